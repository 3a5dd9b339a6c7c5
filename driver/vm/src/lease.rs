//! Which user ids does a VM hold, and by which name does the host know that?

use std::fmt;
use std::str::FromStr;

/// User ids that belong to one VM. Its text is the name under which the host keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// Two of the driver's own range, this one and the next: `1900000000`.
    Pair(u32),
    /// The one that Nomad leased for the task: `nomad-80017`.
    User(u32),
}

/// How Nomad names a user that it leased for a task (its helper/users/dynamic).
const USER_PREFIX: &str = "nomad-";

/// Largest user id: above are ids that the kernel and some programs take for signed or invalid ones.
pub const UID_MAX: u32 = 2_147_483_646;

impl Lease {
    /// The ids.
    #[must_use]
    pub fn ids(self) -> [u32; 2] {
        match self {
            Self::Pair(uid) => [uid, uid.saturating_add(1)],
            Self::User(uid) => [uid, uid],
        }
    }
}

impl fmt::Display for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pair(uid) => write!(f, "{uid}"),
            Self::User(uid) => write!(f, "{USER_PREFIX}{uid}"),
        }
    }
}

/// The text names no user ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoLease;

impl FromStr for Lease {
    type Err = NoLease;

    fn from_str(text: &str) -> Result<Self, NoLease> {
        let (make, digits): (fn(u32) -> Self, _) = match text.strip_prefix(USER_PREFIX) {
            Some(digits) => (Self::User, digits),
            None => (Self::Pair, text),
        };
        let uid = digits
            .parse()
            .ok()
            .filter(|uid| (1..=UID_MAX).contains(uid))
            .ok_or(NoLease)?;
        // One text for one lease: no sign, no leading zero.
        let lease = make(uid);
        if lease.to_string() == text {
            Ok(lease)
        } else {
            Err(NoLease)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_lease_has_one_name() {
        for (text, lease) in [
            ("1900000000", Lease::Pair(1_900_000_000)),
            ("nomad-80017", Lease::User(80_017)),
        ] {
            assert_eq!(text.parse(), Ok(lease));
            assert_eq!(lease.to_string(), text);
        }
        for text in [
            "",
            "0",
            "nomad-",
            "nomad-0",
            "nomad-+5",
            "+5",
            "007",
            "-1",
            "root",
            "nomad-nomad-5",
            "4294967295",
            " 5",
        ] {
            assert_eq!(text.parse::<Lease>(), Err(NoLease), "{text:?}");
        }
        assert_eq!(Lease::Pair(8).ids(), [8, 9]);
        assert_eq!(Lease::User(8).ids(), [8, 8]);
    }
}
