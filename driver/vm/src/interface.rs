//! What did netd make of the networks that a VM asks for, and what do its guest and its services learn of that?

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::vm::{TapRequest, Vm};

/// Where the guest finds what [`guest_file`] says.
pub const GUEST_FILE: &str = "etc/steppe/network";

/// Kind of a network whose addresses only its host knows.
pub const KIND_NAT: &str = "nat";

/// Longest name of a network interface on Linux, in bytes.
const TAP_NAME_MAX: usize = 15;

/// An interface that netd has made, as it is kept in the task's record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Name of the network.
    pub network: String,
    /// Its kind.
    pub kind: String,
    /// Name of the tap device.
    pub tap: String,
    /// Queues of the tap device; more than one makes it a multi-queue device.
    pub queues: u32,
    /// The guest's MAC address.
    pub mac: String,
    /// With prefix length; empty where there is none.
    pub ipv4: String,
    /// Empty where there is none.
    pub ipv4_gateway: String,
    /// With prefix length; empty where there is none.
    pub ipv6: String,
    /// Empty where there is none.
    pub ipv6_gateway: String,
    /// Addresses of name servers.
    pub dns: Vec<String>,
    /// What the guest is told.
    pub mtu: u32,
    /// VLAN of an access port, 0 where there is none.
    pub vlan: u32,
    /// VLANs of a trunk port, each a number or a range.
    pub trunk: Vec<String>,
}

/// netd said something of an interface that can't be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InterfaceError {
    /// Other interfaces than those that were asked for.
    #[error("it answers with {0} interfaces where {1} were asked for")]
    Count(usize, usize),
    /// A value that isn't of its kind.
    #[error("it answers with {name} = {value:?} for network {network:?}")]
    Value {
        /// What it is of.
        network: String,
        /// Which.
        name: &'static str,
        /// What was said.
        value: String,
    },
}

/// Checks what netd has made against what it was asked for. Its words become arguments, and a file that a guest's shell reads.
///
/// # Errors
/// The first thing that can't be.
pub fn check(vm: &Vm, interfaces: &[Interface]) -> Result<(), InterfaceError> {
    let asked: Vec<&TapRequest> = vm.taps().collect();
    if asked.len() != interfaces.len() {
        return Err(InterfaceError::Count(interfaces.len(), asked.len()));
    }
    for (asked, interface) in asked.into_iter().zip(interfaces) {
        let wrong = |name, value: &dyn ToString| InterfaceError::Value {
            network: asked.network.clone(),
            name,
            value: value.to_string(),
        };
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if interface.network != asked.network || !interface.network.bytes().all(is_plain) {
            return Err(wrong("network", &interface.network));
        }
        if interface.queues == 0 || interface.queues > vm.queues() {
            return Err(wrong("queues", &interface.queues));
        }
        if !MTU.contains(&interface.mtu) {
            return Err(wrong("mtu", &interface.mtu));
        }
        let texts = [
            ("kind", &interface.kind, is_word(&interface.kind)),
            ("tap", &interface.tap, is_tap_name(&interface.tap)),
            ("mac", &interface.mac, is_mac(&interface.mac)),
            ("ipv4", &interface.ipv4, is_net::<Ipv4Addr>(&interface.ipv4, 32)),
            (
                "ipv4_gateway",
                &interface.ipv4_gateway,
                is_address::<Ipv4Addr>(&interface.ipv4_gateway),
            ),
            ("ipv6", &interface.ipv6, is_net::<Ipv6Addr>(&interface.ipv6, 128)),
            (
                "ipv6_gateway",
                &interface.ipv6_gateway,
                is_address::<Ipv6Addr>(&interface.ipv6_gateway),
            ),
        ];
        if let Some((name, value, _)) = texts.into_iter().find(|(.., is_good)| !is_good) {
            return Err(wrong(name, value));
        }
        if let Some(value) = interface.dns.iter().find(|dns| dns.parse::<IpAddr>().is_err()) {
            return Err(wrong("dns", value));
        }
        if let Some(value) = interface.trunk.iter().find(|vlans| range(vlans).is_none()) {
            return Err(wrong("trunk", value));
        }
    }
    Ok(())
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// Whether a text may name a tap device.
#[must_use]
pub fn is_tap_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (1..=TAP_NAME_MAX).contains(&name.len()) && name.bytes().all(plain) && !matches!(name, "." | "..")
}

/// Six pairs of hexadecimal digits that aren't a group's address.
fn is_mac(text: &str) -> bool {
    let byte = |part: &str| {
        let digits = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
        digits.then(|| u8::from_str_radix(part, 16).ok()).flatten()
    };
    let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
    bytes.is_some_and(|bytes| bytes.len() == 6 && bytes.first().is_some_and(|first| first & 1 == 0))
}

fn is_address<A: std::str::FromStr>(text: &str) -> bool {
    text.is_empty() || text.parse::<A>().is_ok()
}

fn is_net<A: std::str::FromStr>(text: &str, longest: u8) -> bool {
    text.is_empty()
        || text.split_once('/').is_some_and(|(address, length)| {
            address.parse::<A>().is_ok() && length.parse::<u8>().is_ok_and(|length| length <= longest)
        })
}

/// Least and largest MTU: below, IPv4 doesn't work; above, virtio has no number.
pub(crate) const MTU: RangeInclusive<u32> = 68..=65_535;

/// Smallest and largest number of a VLAN (IEEE 802.1Q).
pub(crate) const VLANS: RangeInclusive<u32> = 1..=4094;

/// First and last of the VLANs that `100` or `100-120` means; `None` where it means none.
pub(crate) fn range(text: &str) -> Option<(u32, u32)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    // `parse` takes a sign.
    let number = |text: &str| {
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        let number = digits.then(|| text.parse().ok()).flatten();
        number.filter(|vlan| VLANS.contains(vlan))
    };
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

/// An address without its prefix length.
fn bare(address: &str) -> &str {
    address.split_once('/').map_or(address, |(address, _)| address)
}

impl Interface {
    /// The address by which others reach the guest, without its prefix length; empty where it has none.
    #[must_use]
    pub fn address(&self) -> &str {
        match bare(&self.ipv4) {
            "" => bare(&self.ipv6),
            ipv4 => ipv4,
        }
    }

    /// One line for a person: `tenant-a: 10.1.0.7/16, fd00:1::7/64, 02:00:00:00:00:01`.
    #[must_use]
    pub fn sentence(&self) -> String {
        let mut port = String::new();
        if self.vlan > 0 {
            let _ = write!(port, "VLAN {}", self.vlan);
        } else if !self.trunk.is_empty() {
            let _ = write!(port, "VLANs {} tagged", self.trunk.join(" "));
        }
        let parts = [&port, &self.ipv4, &self.ipv6, &self.mac];
        let parts: Vec<&str> = parts.into_iter().map(String::as_str).collect();
        let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        format!("{}: {}", self.network, parts.join(", "))
    }

    /// Every VLAN of a trunk port.
    fn vlans(&self) -> Vec<String> {
        let ranges = self.trunk.iter().filter_map(|vlans| range(vlans));
        ranges
            .flat_map(|(first, last)| first..=last)
            .map(|vlan| vlan.to_string())
            .collect()
    }
}

/// What a guest is told of its interfaces: lines that a shell can read. Every key is there for each interface, empty where
/// there is nothing to say. The guest knows an interface by its MAC address.
#[must_use]
pub fn guest_file(interfaces: &[Interface]) -> String {
    // Writing to a String can't fail.
    let mut text = format!("NICS={}\n", interfaces.len());
    for (index, interface) in interfaces.iter().enumerate() {
        let mut line = |key: &str, value: &str| {
            let quote = if value.contains(' ') { "\"" } else { "" };
            let _ = writeln!(text, "NIC{index}_{key}={quote}{value}{quote}");
        };
        line("MAC", &interface.mac);
        line("NETWORK", &interface.network);
        line("IPV4", &interface.ipv4);
        line("IPV4_GATEWAY", &interface.ipv4_gateway);
        line("IPV6", &interface.ipv6);
        line("IPV6_GATEWAY", &interface.ipv6_gateway);
        line("MTU", &interface.mtu.to_string());
        line("VLANS", &interface.vlans().join(" "));
        line("DNS", &interface.dns.join(" "));
    }
    text
}

/// What services register that want the VM's own address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertised {
    /// The address.
    pub address: String,
    /// Whether services that say nothing register it, too: others than the host reach it.
    pub by_default: bool,
    /// Guest ports by label.
    pub ports: BTreeMap<String, u16>,
}

/// The address that Nomad is told: the first that other hosts reach, else the first; of IPv4 before IPv6. `None` where the VM has
/// none of its own.
#[must_use]
pub fn advertised(vm: &Vm, interfaces: &[Interface]) -> Option<Advertised> {
    let rank = |interface: &Interface| {
        let address = interface.ipv4.is_empty();
        (!interface.address().is_empty()).then_some((interface.kind == KIND_NAT, address))
    };
    let taps = vm.taps().zip(interfaces);
    // Of those of one rank, the first.
    let (asked, interface) = taps
        .filter(|(_, interface)| rank(interface).is_some())
        .min_by_key(|(_, interface)| rank(interface))?;
    let forwards = asked
        .forwards
        .iter()
        .map(|forward| (&forward.label, &forward.guest_port));
    let ports = forwards.chain(&asked.port_map);
    Some(Advertised {
        address: interface.address().to_owned(),
        by_default: interface.kind != KIND_NAT,
        ports: ports.map(|(label, port)| (label.clone(), *port)).collect(),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::vm::{Accelerator, FileName, FileRoot, Forward, Machine, Nic, Protocol, Reboot};

    pub(crate) fn interface(network: &str, kind: &str) -> Interface {
        Interface {
            network: network.into(),
            kind: kind.into(),
            tap: "ndtabcdefghij".into(),
            queues: 1,
            mac: "02:00:00:00:00:01".into(),
            ipv4: "10.1.0.7/16".into(),
            ipv4_gateway: "10.1.0.1".into(),
            ipv6: "fd00:1::ff:fe00:1/64".into(),
            ipv6_gateway: "fd00:1::1".into(),
            dns: vec!["10.0.0.1".into(), "fd00::1".into()],
            mtu: 1500,
            vlan: 0,
            trunk: Vec::new(),
        }
    }

    fn trunk() -> Interface {
        Interface {
            ipv4: String::new(),
            ipv4_gateway: String::new(),
            ipv6: String::new(),
            ipv6_gateway: String::new(),
            dns: Vec::new(),
            mtu: 9000,
            trunk: vec!["100-102".into(), "200".into()],
            ..interface("lab", "vlan-aware")
        }
    }

    fn vm(taps: Vec<TapRequest>) -> Vm {
        Vm {
            machine: Machine::Microvm,
            accelerator: Accelerator::Kvm,
            vcpus: 1,
            cpus: Vec::new(),
            memory_mib: 128,
            kernel: FileName {
                root: FileRoot::Images,
                path: "vmlinux".into(),
            },
            initrd: None,
            cmdline: String::new(),
            disks: Vec::new(),
            nics: taps.into_iter().map(Nic::Tap).collect(),
            identity: "i".into(),
            reboot: Reboot::Reset,
            ready: None,
        }
    }

    fn asked(network: &str) -> TapRequest {
        TapRequest {
            network: network.into(),
            ..TapRequest::default()
        }
    }

    #[test]
    fn the_guests_file_has_every_key_and_a_shell_reads_it() {
        let expected = "\
NICS=2
NIC0_MAC=02:00:00:00:00:01
NIC0_NETWORK=tenant-a
NIC0_IPV4=10.1.0.7/16
NIC0_IPV4_GATEWAY=10.1.0.1
NIC0_IPV6=fd00:1::ff:fe00:1/64
NIC0_IPV6_GATEWAY=fd00:1::1
NIC0_MTU=1500
NIC0_VLANS=
NIC0_DNS=\"10.0.0.1 fd00::1\"
NIC1_MAC=02:00:00:00:00:01
NIC1_NETWORK=lab
NIC1_IPV4=
NIC1_IPV4_GATEWAY=
NIC1_IPV6=
NIC1_IPV6_GATEWAY=
NIC1_MTU=9000
NIC1_VLANS=\"100 101 102 200\"
NIC1_DNS=
";
        assert_eq!(guest_file(&[interface("tenant-a", "vlan"), trunk()]), expected);
    }

    type Change = fn(&mut Interface);

    #[test]
    fn what_can_not_be_is_not_believed() {
        let vm = vm(vec![asked("a")]);
        assert_eq!(check(&vm, &[interface("a", "nat")]), Ok(()));
        assert_eq!(check(&vm, &[]), Err(InterfaceError::Count(0, 1)));
        let bad: [(&str, Change); 19] = [
            ("network", |i| i.network = "b".into()),
            ("queues", |i| i.queues = 0),
            ("queues", |i| i.queues = 2),
            ("mtu", |i| i.mtu = 0),
            ("mtu", |i| i.mtu = 65_536),
            ("kind", |i| i.kind = String::new()),
            ("tap", |i| i.tap = String::new()),
            ("tap", |i| i.tap = "../net".into()),
            ("tap", |i| i.tap = "sixteen-bytes-is".into()),
            ("mac", |i| i.mac = "01:00:00:00:00:01".into()),
            ("mac", |i| i.mac = "02:00:00:00:00".into()),
            ("mac", |i| i.mac = "02:00:00:00:00:+1".into()),
            ("ipv4", |i| i.ipv4 = "10.1.0.7".into()),
            ("ipv4", |i| i.ipv4 = "10.1.0.7/33".into()),
            ("ipv4_gateway", |i| i.ipv4_gateway = "$(reboot)".into()),
            ("ipv6", |i| i.ipv6 = "10.1.0.7/16".into()),
            ("ipv6_gateway", |i| i.ipv6_gateway = "x\ny".into()),
            ("dns", |i| i.dns = vec!["10.0.0.1".into(), "\"".into()]),
            ("trunk", |i| i.trunk = vec!["0-5".into()]),
        ];
        for (wanted, change) in bad {
            let mut interface = interface("a", "nat");
            change(&mut interface);
            let error = check(&vm, &[interface]).unwrap_err();
            assert!(
                matches!(&error, InterfaceError::Value { name, .. } if *name == wanted),
                "{wanted}: {error}"
            );
            assert!(!error.to_string().contains('\n'), "{error}");
        }
        for text in ["", "0", "4095", "5-4", "+5", "1-", "-1", "1-2-3", "100, 101"] {
            assert_eq!(range(text), None, "{text:?}");
        }
        assert_eq!((range("1-4094"), range("7")), (Some((1, 4094)), Some((7, 7))));
    }

    #[test]
    fn services_get_the_first_address_that_others_reach() {
        let own = |interface: Interface| {
            let mut ask = asked(&interface.network);
            let _none = ask.port_map.insert("ssh".into(), 22);
            ask.forwards.push(Forward {
                label: "http".into(),
                protocol: Protocol::Tcp,
                host: "192.0.2.1:20000".parse().unwrap(),
                guest_port: 80,
            });
            advertised(&vm(vec![asked("lab"), ask]), &[trunk(), interface])
        };
        let ports = BTreeMap::from([("http".to_owned(), 80), ("ssh".to_owned(), 22)]);
        let expected = |address: &str, by_default| {
            Some(Advertised {
                address: address.into(),
                by_default,
                ports: ports.clone(),
            })
        };
        assert_eq!(own(interface("a", "vlan")), expected("10.1.0.7", true));
        assert_eq!(own(interface("a", "nat")), expected("10.1.0.7", false));
        let ipv6 = Interface {
            ipv4: String::new(),
            ..interface("a", "bridge")
        };
        assert_eq!(own(ipv6), expected("fd00:1::ff:fe00:1", true));
        assert_eq!(
            own(Interface {
                network: "a".into(),
                ..trunk()
            }),
            None
        );
        assert_eq!(advertised(&vm(Vec::new()), &[]), None);
    }

    #[test]
    fn an_interface_is_one_sentence() {
        assert_eq!(
            interface("tenant-a", "vlan").sentence(),
            "tenant-a: 10.1.0.7/16, fd00:1::ff:fe00:1/64, 02:00:00:00:00:01"
        );
        assert_eq!(
            trunk().sentence(),
            "lab: VLANs 100-102 200 tagged, 02:00:00:00:00:01"
        );
        let access = Interface {
            vlan: 100,
            trunk: Vec::new(),
            ..trunk()
        };
        assert_eq!(access.sentence(), "lab: VLAN 100, 02:00:00:00:00:01");
    }
}
