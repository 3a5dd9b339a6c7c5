//! How large is that, as an operator or a job writes it?

use std::fmt;
use std::str::FromStr;

/// A number of bytes of a disk: a multiple of a sector, at most [`Size::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(u64);

/// Why a text is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// No number with a unit.
    #[error("is no size: give a whole number and one of KiB, MiB, GiB, TiB, such as \"10GiB\"")]
    Text,
    /// A unit that means something else to each reader.
    #[error("has the unit {0:?}: give one of KiB, MiB, GiB, TiB")]
    Unit(String),
    /// Nothing.
    #[error("is nothing: give at least 1MiB")]
    Small,
    /// More than any disk has.
    #[error("is more than {}: no disk is that large", Size(Size::MAX))]
    Large,
}

const UNITS: [(&str, u32); 4] = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];

impl Size {
    /// Most bytes: far above every disk that exists, far below where sums could overflow.
    pub const MAX: u64 = 1 << 50;

    /// Fewest bytes: less holds no file system.
    pub const MIN: u64 = 1 << 20;

    /// So many GiB; more than [`Size::MAX`] is that.
    #[must_use]
    pub const fn gib(number: u32) -> Self {
        let bytes = (number as u64) << 30;
        Self(if bytes > Self::MAX { Self::MAX } else { bytes })
    }

    /// A number of bytes, if a disk can have it.
    ///
    /// # Errors
    ///
    /// It is too small or too large. What is no whole sector is rounded up.
    pub fn new(bytes: u64) -> Result<Self, SizeError> {
        match bytes {
            ..Self::MIN => Err(SizeError::Small),
            Self::MIN..=Self::MAX => Ok(Self(bytes.next_multiple_of(512))),
            _ => Err(SizeError::Large),
        }
    }

    /// The number of bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        if number.is_empty() || !unit.bytes().all(|byte| byte.is_ascii_alphabetic()) || unit.is_empty() {
            return Err(SizeError::Text);
        }
        let Some((_, shift)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(SizeError::Unit(unit.chars().take(16).collect()));
        };
        // A number with more digits than fit is too large as well.
        let number: u64 = number.parse().map_err(|_| SizeError::Large)?;
        Self::new(number.saturating_mul(1 << shift))
    }
}

impl fmt::Display for Size {
    /// In the largest unit in which it is a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = UNITS
            .iter()
            .rev()
            .find(|(_, shift)| self.0.is_multiple_of(1 << shift));
        match whole {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        for text in ["1MiB", "10GiB", "1500MiB", "3TiB", "1024TiB", "1025KiB"] {
            assert_eq!(text.parse::<Size>().expect(text).to_string(), text);
        }
        assert_eq!("2048MiB".parse::<Size>().expect("a size").to_string(), "2GiB");
        assert_eq!(
            Size::new((1 << 20) + 1).expect("a size").to_string(),
            "1049088 bytes"
        );
    }

    #[test]
    fn what_is_no_size_says_what_to_give() {
        let refused = |text: &str| text.parse::<Size>().expect_err(text);
        for text in ["", "GiB", "10", "-1GiB", "1.5GiB", "10 GiB", "0x10GiB", "10GiB!"] {
            assert_eq!(refused(text), SizeError::Text, "{text:?}");
        }
        for unit in ["GB", "G", "gib", "Gib", "B", "PiB"] {
            assert_eq!(refused(&format!("10{unit}")), SizeError::Unit(unit.to_owned()));
        }
        assert_eq!(refused("0GiB"), SizeError::Small);
        assert_eq!(refused("1023KiB"), SizeError::Small);
        for text in ["1025TiB", "99999999999999999999999GiB", "18446744073709551615TiB"] {
            assert_eq!(refused(text), SizeError::Large, "{text}");
        }
        assert_eq!(
            refused("10GB").to_string(),
            "has the unit \"GB\": give one of KiB, MiB, GiB, TiB"
        );
        assert_eq!(
            refused("9999TiB").to_string(),
            "is more than 1024TiB: no disk is that large"
        );
    }
}
