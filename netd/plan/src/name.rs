//! What is a link of ours called, and what may a network be called?

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use crate::{Forward, Owner, Vid};

/// Longest name of a link: `IFNAMSIZ` (16) less the final NUL.
pub const LINK_NAME_MAX: usize = 15;

/// Longest name of a network: its bridge is `ndb<name>`.
pub const NETWORK_NAME_MAX: usize = LINK_NAME_MAX - 3;

/// Beginning of the name of every tap of ours.
pub const TAP: &str = "ndt";
/// Beginning of the name of every bridge of ours.
pub const BRIDGE: &str = "ndb";
/// Beginning of the name of every VLAN sub-interface of ours.
pub const VLAN: &str = "ndv";

/// Name of a link of ours: `nd`, a letter for what it is (`t` tap, `b` bridge, `v` VLAN), and 1 to 12 further
/// characters of `a-z0-9.-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkName(String);

/// Name of a network: 1 to 12 of `a-z`, `0-9` and `-`, beginning with a letter, so that its bridge is `ndb<name>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkName(pub(crate) String);

/// The text is no name of that kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoName;

impl LinkName {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a tap's.
    #[must_use]
    pub fn is_tap(&self) -> bool {
        self.0.starts_with(TAP)
    }

    /// Whether it is a bridge's.
    #[must_use]
    pub fn is_bridge(&self) -> bool {
        self.0.starts_with(BRIDGE)
    }

    /// Whether it is a VLAN sub-interface's.
    #[must_use]
    pub fn is_vlan(&self) -> bool {
        self.0.starts_with(VLAN)
    }
}

impl FromStr for LinkName {
    type Err = NoName;

    fn from_str(text: &str) -> Result<Self, NoName> {
        let rest = [TAP, BRIDGE, VLAN]
            .iter()
            .find_map(|beginning| text.strip_prefix(beginning))
            .ok_or(NoName)?;
        let fits = !rest.is_empty()
            && text.len() <= LINK_NAME_MAX
            && rest
                .bytes()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-'));
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(NoName)
        }
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl NetworkName {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NetworkName {
    type Err = NoName;

    fn from_str(text: &str) -> Result<Self, NoName> {
        let fits = text.len() <= NETWORK_NAME_MAX
            && text.starts_with(|first: char| first.is_ascii_lowercase())
            && text
                .bytes()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(NoName)
        }
    }
}

impl fmt::Display for NetworkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Name of an owner's tap: of this owner alone, so that the taps of an old and a new machine with one identity never
/// clash.
#[must_use]
pub fn tap_name(owner: &Owner, index: u32) -> LinkName {
    let text = format!("netd tap 1\0{}\0{}\0{index}", owner.instance(), owner.id());
    LinkName(format!("{TAP}{}", short_hash(&text, 10)))
}

/// Name of the bridge that is made for a network.
#[must_use]
pub fn bridge_name(network: &NetworkName) -> LinkName {
    LinkName(format!("{BRIDGE}{network}"))
}

/// Name of the sub-interface that is made for a VLAN of an uplink.
#[must_use]
pub fn vlan_link_name(uplink: &str, vid: Vid) -> LinkName {
    LinkName(format!(
        "{VLAN}{vid}.{}",
        short_hash(&format!("netd uplink 1\0{uplink}"), 4)
    ))
}

/// The tap's further name that tells a person, and other programs, whose it is.
#[must_use]
pub fn owner_altname(owner: &Owner, index: u32) -> String {
    format!("nd.{}.{}.{index}", owner.instance(), owner.id())
}

/// The tap's further name that tells of a forwarded port, and where it leads.
#[must_use]
pub fn port_altname(forward: &Forward) -> String {
    format!(
        "ndp.{}.{:08x}.{}.{}",
        forward.protocol,
        u32::from(forward.host_ip),
        forward.host_port,
        forward.guest_port
    )
}

/// The first characters of a text's SHA-256 in base32 (RFC 4648, lowercase).
fn short_hash(text: &str, characters: usize) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let digest = Sha256::digest(text.as_bytes());
    let mut short = String::with_capacity(characters);
    let (mut bits, mut held) = (0_u32, 0_u32);
    for byte in digest {
        bits = (bits << 8 | u32::from(byte)) & 0xfff;
        held += 8;
        while held >= 5 && short.len() < characters {
            held -= 5;
            short.push(char::from(ALPHABET[usize::from((bits >> held & 31) as u8)]));
        }
    }
    short
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::owner;
    use crate::{Forward, Protocol};

    /// They must never change: running machines are found by them.
    #[test]
    fn golden_names() {
        let vm = owner("8d4f1c2e-0000-1111-2222-333344445555.vm");
        assert_eq!(tap_name(&vm, 0).as_str(), "ndt6gdbklbzam");
        assert_eq!(tap_name(&vm, 1).as_str(), "ndtic4d2bdfzn");
        assert_eq!(
            owner_altname(&vm, 1),
            "nd.0123456789abcdef.8d4f1c2e-0000-1111-2222-333344445555.vm.1"
        );
        let network: NetworkName = "tenant-a".parse().expect("good");
        assert_eq!(bridge_name(&network).as_str(), "ndbtenant-a");
        let vid = Vid::new(100).expect("good");
        assert_eq!(vlan_link_name("eth0", vid).as_str(), "ndv100.mzdz");
        let forward = Forward::new("", Protocol::Udp, [192, 168, 0, 1].into(), 8080, 80).expect("good");
        assert_eq!(port_altname(&forward), "ndp.udp.c0a80001.8080.80");
    }

    #[test]
    fn what_is_a_name() {
        for name in ["ndta", "ndbtenant-a", "ndv4094.ab12", "ndt234567abcdef"] {
            assert!(name.parse::<LinkName>().is_ok(), "{name}");
        }
        for name in [
            "",
            "ndt",
            "eth0",
            "ndxabc",
            "ndtA",
            "ndt/",
            "ndt a",
            "ndt%d",
            "ndt234567abcdefg",
            "ndé",
        ] {
            assert!(name.parse::<LinkName>().is_err(), "{name}");
        }
        for name in ["a", "tenant-a", "abcdefghijkl", "x1-"] {
            assert!(name.parse::<NetworkName>().is_ok(), "{name}");
        }
        for name in ["", "1a", "-a", "A", "a.b", "a_b", "abcdefghijklm", "ä"] {
            assert!(name.parse::<NetworkName>().is_err(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn names_fit(id in "[A-Za-z0-9._-]{1,48}", index in 0_u32..99, uplink in "\\PC{0,20}", vid in 1_u32..=4094) {
            let tap = tap_name(&owner(&id), index);
            prop_assert!(tap.is_tap() && tap.as_str().len() <= LINK_NAME_MAX);
            prop_assert_eq!(tap.as_str().parse(), Ok(tap.clone()));
            let link = vlan_link_name(&uplink, Vid::new(vid).expect("in range"));
            prop_assert!(link.is_vlan() && link.as_str().len() <= LINK_NAME_MAX);
            prop_assert_eq!(link.as_str().parse(), Ok(link.clone()));
        }
    }
}
