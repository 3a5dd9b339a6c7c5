//! What are pools, volumes, images and tenants called?

use std::fmt;
use std::str::FromStr;

/// Why a text is no name; what it is of is said by whoever asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It has other characters, or too many.
    #[error("give 1 to {max} characters of {allowed}, beginning with a letter or a digit")]
    Characters {
        /// How many it may have.
        max: usize,
        /// Which.
        allowed: &'static str,
    },
    /// Of a volume: no pool in front.
    #[error("give a pool and a name, such as \"local/web-0\"")]
    NoPool,
}

fn check(text: &str, max: usize, further: &[u8], allowed: &'static str) -> Result<(), NameError> {
    let small = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let fits = (1..=max).contains(&text.len())
        && text.bytes().next().is_some_and(small)
        && text.bytes().all(|byte| small(byte) || further.contains(&byte));
    if fits {
        Ok(())
    } else {
        Err(NameError::Characters { max, allowed })
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $max:expr, $further:expr, $allowed:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The name.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                check(text, $max, $further, $allowed).map(|()| Self(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name! {
    /// A pool's name: 1 to 32 of a-z, 0-9 and -. It becomes part of a node attribute.
    PoolName, 32, b"-", "a-z, 0-9 and -"
}
name! {
    /// A name within a pool: 1 to 64 of a-z, 0-9, `.`, `_` and -. It becomes a file's name.
    LocalName, 64, b"-._", "a-z, 0-9, ., _ and -"
}
name! {
    /// An image's name: 1 to 64 of a-z, 0-9, `.`, `_` and -.
    ImageName, 64, b"-._", "a-z, 0-9, ., _ and -"
}

/// A volume: its pool and its name there, written `local/web-0`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeName {
    /// The pool.
    pub pool: PoolName,
    /// Its name there.
    pub name: LocalName,
}

impl FromStr for VolumeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (pool, name) = text.split_once('/').ok_or(NameError::NoPool)?;
        Ok(Self {
            pool: pool.parse()?,
            name: name.parse()?,
        })
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pool, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_a_file_can_be_called() {
        for text in ["local/web-0", "ssd/db.data_1", "a/0"] {
            assert_eq!(text.parse::<VolumeName>().expect(text).to_string(), text);
        }
        assert_eq!("web-0".parse::<VolumeName>(), Err(NameError::NoPool));
        for text in [
            "/x",
            "local/",
            "local/..",
            "local/.x",
            "local/-x",
            "local/a/b",
            "local/A",
            "lo.cal/a",
            "local/a b",
            "local/ä",
            "local/a\0",
            "../x",
        ] {
            assert!(
                matches!(text.parse::<VolumeName>(), Err(NameError::Characters { .. })),
                "{text:?}"
            );
        }
        let long = |length: usize| "a".repeat(length).parse::<LocalName>();
        assert!(long(64).is_ok() && long(65).is_err());
        assert_eq!(
            "X".parse::<PoolName>().expect_err("a capital").to_string(),
            "give 1 to 32 characters of a-z, 0-9 and -, beginning with a letter or a digit"
        );
    }
}
