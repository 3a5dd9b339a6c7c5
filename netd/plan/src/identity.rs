//! Which addresses does a machine have, whichever host it is on?
//!
//! All are computed from the network's name and the machine's identity, so that every host comes to the same. The
//! texts that are hashed never change: a machine would lose its address.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::Ipv6Net;
use sha2::{Digest, Sha256};

use crate::{Mark, Mode, NetworkName, Refusal};

/// Longest identity in bytes.
pub const IDENTITY_MAX: usize = 255;

/// Candidates for an IPv4 address that are computed; after them the pool is searched in order.
pub const CANDIDATES: u32 = 64;

/// What addresses are computed from: 1 to 255 bytes of text without control characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(String);

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Identity {
    /// The text, checked.
    ///
    /// # Errors
    ///
    /// It is empty, too long or has control characters.
    pub fn new(text: &str) -> Result<Self, Refusal> {
        let refuse = |what: &str| {
            Err(Refusal::invalid(
                "identity",
                format!("identity {what}; give 1 to {IDENTITY_MAX} bytes of text without control characters"),
            ))
        };
        if text.is_empty() {
            refuse("is empty")
        } else if text.len() > IDENTITY_MAX {
            refuse(&format!("has {} bytes", text.len()))
        } else if text.chars().any(char::is_control) {
            refuse("has control characters")
        } else {
            Ok(Self(text.to_owned()))
        }
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// By which it is known again.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark(first_u64(&Sha256::digest(self.0.as_bytes()).into()))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Mac {
    /// Whether it is locally administered and no group's: what netd gives to machines.
    #[must_use]
    pub fn is_local_unicast(self) -> bool {
        self.0[0] & 3 == 2
    }

    /// The tap's own address beside a guest's. It begins with fe, higher than any guest's, so that no bridge takes it
    /// for its own; a guest's that begins so itself has fa beside it.
    #[must_use]
    pub fn host_side(self) -> Self {
        let [first, rest @ ..] = self.0;
        let first = if first == 0xfe { 0xfa } else { 0xfe };
        Self([first, rest[0], rest[1], rest[2], rest[3], rest[4]])
    }

    /// The IPv6 address beneath a prefix that a machine computes from this address by itself (EUI-64).
    #[must_use]
    pub fn eui64(self, prefix: Ipv6Addr) -> Ipv6Addr {
        let [a, b, c, d, e, f] = self.0;
        let interface = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
        let high = u128::from(prefix) >> 64 << 64;
        Ipv6Addr::from(high | u128::from(interface))
    }

    /// The IPv6 link-local address of a machine with this address.
    #[must_use]
    pub fn link_local(self) -> Ipv6Addr {
        self.eui64(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// The text is no hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoMac;

impl FromStr for Mac {
    type Err = NoMac;

    fn from_str(text: &str) -> Result<Self, NoMac> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or(NoMac)?;
            let digits = part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
            *byte = digits
                .then(|| u8::from_str_radix(part, 16).ok())
                .flatten()
                .ok_or(NoMac)?;
        }
        if parts.next().is_some() {
            Err(NoMac)
        } else {
            Ok(Self(bytes))
        }
    }
}

/// The hardware address of a machine on a network: 46 bits of a hash, locally administered, no group's.
#[must_use]
pub fn mac(network: &NetworkName, mode: &Mode, identity: &Identity) -> Mac {
    let digest = hash("netd mac 1", network, mode, identity.as_str());
    let [a, b, c, d, e, f, ..] = digest;
    Mac([a & 0xfc | 2, b, c, d, e, f])
}

/// The hardware address of the bridge that is made for a network.
#[must_use]
pub fn bridge_mac(network: &NetworkName) -> Mac {
    let [a, b, c, d, e, f, ..] = hash("netd bridge 1", network, &Mode::Plain, "");
    Mac([a & 0xfc | 2, b, c, d, e, f])
}

/// The IPv6 address of a machine.
#[must_use]
pub fn ipv6(prefix: Ipv6Net, mac: Mac) -> Ipv6Addr {
    mac.eui64(prefix.network())
}

/// The addresses that a machine tries for its own, in order: some that depend on its identity, then the whole pool
/// from the first of these on. Without end in no case: each address of the pool comes at least once.
pub fn ipv4_candidates<'a>(
    network: &'a NetworkName,
    mode: &'a Mode,
    identity: &'a Identity,
    pool: &RangeInclusive<Ipv4Addr>,
) -> impl Iterator<Item = Ipv4Addr> + 'a {
    let (first, last) = (u32::from(*pool.start()), u32::from(*pool.end()));
    let size = u64::from(last.saturating_sub(first)) + 1;
    let at = move |offset: u64| {
        let offset = u32::try_from(offset % size).unwrap_or_default();
        Ipv4Addr::from(first.saturating_add(offset))
    };
    let computed = move |k: u32| {
        let text = format!("{identity}\0{k}");
        first_u64(&hash("netd ipv4 1", network, mode, &text)) % size
    };
    let walk = move || {
        let start = computed(0);
        (1..size).map(move |step| at(start + step))
    };
    (0..CANDIDATES)
        .map(move |k| at(computed(k)))
        .chain(std::iter::once_with(walk).flatten())
}

/// SHA-256 of what, where and who.
fn hash(what: &str, network: &NetworkName, mode: &Mode, who: &str) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in [what, network.as_str(), &mode.segment()] {
        hasher.update(part.as_bytes());
        hasher.update([0]);
    }
    hasher.update(who.as_bytes());
    hasher.finalize().into()
}

fn first_u64(digest: &[u8; 32]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *digest;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Vid, Vids};

    fn identity(text: &str) -> Identity {
        Identity::new(text).expect("a good identity")
    }

    fn network(name: &str) -> NetworkName {
        name.parse().expect("a good name")
    }

    fn access(vid: u32) -> Mode {
        Mode::Access(Vid::new(vid).expect("a VLAN"))
    }

    /// They must never change: a machine would lose its addresses.
    #[test]
    fn golden_addresses() {
        let vm = identity("default/web/web/vm/0");
        let tenant = network("tenant-a");
        let trunk = Mode::Trunk(Vids::parse(&["1-5"]).expect("good"));
        let macs = [&Mode::Plain, &access(100), &trunk].map(|mode| mac(&tenant, mode, &vm).to_string());
        assert_eq!(
            macs,
            ["f6:4c:03:fe:32:1f", "6a:88:14:c4:ca:24", "b6:4b:6c:2d:c6:8f"]
        );
        assert_eq!(bridge_mac(&tenant).to_string(), "76:12:f4:71:9f:4e");
        assert_eq!(vm.mark().to_string(), "2794a8dbb6f4db5f");
        let prefix = "fd00:1::/64".parse().expect("a prefix");
        let own = mac(&tenant, &Mode::Plain, &vm);
        assert_eq!(ipv6(prefix, own).to_string(), "fd00:1::f44c:3ff:fefe:321f");
        let pool = Ipv4Addr::new(10, 1, 0, 2)..=Ipv4Addr::new(10, 1, 15, 254);
        let first: Vec<String> = ipv4_candidates(&tenant, &access(100), &vm, &pool)
            .take(3)
            .map(|address| address.to_string())
            .collect();
        assert_eq!(first, ["10.1.15.9", "10.1.0.210", "10.1.5.112"]);
    }

    #[test]
    fn addresses_as_standards_have_them() {
        let mac: Mac = "02:00:5e:10:00:01".parse().expect("an address");
        assert_eq!(mac.link_local().to_string(), "fe80::5eff:fe10:1");
        assert_eq!(mac.host_side().to_string(), "fe:00:5e:10:00:01");
        assert_eq!(mac.host_side().host_side().to_string(), "fa:00:5e:10:00:01");
        for text in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:01:02",
            "2:0:5e:10:0:1",
            "+2:00:5e:10:00:01",
            "xx",
        ] {
            assert_eq!(text.parse::<Mac>(), Err(NoMac), "{text:?}");
        }
    }

    #[test]
    fn what_is_an_identity() {
        for good in ["a", "default/web/web/vm/0", "ünï/cödé", &"x".repeat(255)] {
            assert_eq!(identity(good).as_str(), good);
        }
        for bad in ["", "a\n", "\0", "tab\t", &"x".repeat(256)] {
            let refusal = Identity::new(bad).expect_err("bad");
            assert_eq!((refusal.reason, refusal.field.as_str()), ("invalid", "identity"));
            assert!(refusal.sentence.len() < 200);
        }
    }

    proptest! {
        #[test]
        fn macs_are_local_and_nobodys_group(text in "\\PC{1,80}", vid in 1_u32..=4094) {
            prop_assume!(Identity::new(&text).is_ok());
            let (vm, tenant) = (identity(&text), network("tenant-a"));
            for mode in [Mode::Plain, access(vid)] {
                let mac = mac(&tenant, &mode, &vm);
                prop_assert!(mac.is_local_unicast() && mac.host_side().is_local_unicast());
                prop_assert!(mac != mac.host_side());
                prop_assert_eq!(mac.to_string().parse(), Ok(mac));
            }
        }

        #[test]
        fn candidates_are_the_pool(text in "[a-z/0-9]{1,40}", first in any::<u32>(), size in 0_u32..300) {
            let last = first.saturating_add(size);
            let pool = Ipv4Addr::from(first)..=Ipv4Addr::from(last);
            let (vm, tenant) = (identity(&text), network("a"));
            let all: Vec<u32> = ipv4_candidates(&tenant, &Mode::Plain, &vm, &pool).map(u32::from).collect();
            prop_assert!(all.iter().all(|address| (first..=last).contains(address)));
            let different: std::collections::BTreeSet<u32> = all.iter().copied().collect();
            prop_assert_eq!(u32::try_from(different.len()).expect("few"), last - first + 1);
        }
    }
}
