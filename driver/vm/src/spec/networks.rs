//! What may a task ask of its networks, and is it what the network can give?

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use super::{Allocated, AllocatedPort, Host, NetworkSpec, USER_NETWORK, clip};
use crate::interface::{KIND_NAT, MTU, VLANS, range};
use crate::vm::{Forward, Nic, Protocol, TapRequest};

/// Kind of a network that has many VLANs.
const KIND_VLAN_AWARE: &str = "vlan-aware";

/// Longest identity in bytes that netd takes.
const IDENTITY_MAX_BYTES: usize = 255;

/// Why a request for networks is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// A network that isn't there.
    #[error("network {0:?} is not known on this node: {1}")]
    Unknown(String, String),
    /// User-mode networking is off.
    #[error("network \"user\" is not allowed on this node: the plugin option user_network is false")]
    User,
    /// The same again.
    #[error("network {0:?} is given twice: a VM has one interface on each network, or on each VLAN of it")]
    Twice(String),
    /// A key that this network has no use for.
    #[error("network {network:?}: {key} is given, which {kind} network does not have: leave it out")]
    Key {
        /// The network.
        network: String,
        /// The key.
        key: &'static str,
        /// `a user-mode`, `a vlan`.
        kind: String,
    },
    /// An access port is no trunk port.
    #[error("network {0:?}: vlan and trunk are both given: give one of them")]
    VlanAndTrunk(String),
    /// A VLAN that can't be.
    #[error("network {network:?}: {key} = {value:?} is no VLAN: use 1 to 4094{more}")]
    Vlan {
        /// The network.
        network: String,
        /// `vlan` or `trunk`.
        key: &'static str,
        /// What was given.
        value: String,
        /// What else may be written.
        more: &'static str,
    },
    /// An address that can't be.
    #[error(
        "network {network:?}: ipv4 = {value:?} is none: use \"auto\", \"none\", an address such as \"10.1.0.5\", or one with \
         \"+index\" behind it"
    )]
    Ipv4 {
        /// The network.
        network: String,
        /// What was given.
        value: String,
    },
    /// `+index` leads nowhere.
    #[error("network {network:?}: ipv4 = {value:?} leads nowhere: {why}")]
    Index {
        /// The network.
        network: String,
        /// What was given.
        value: String,
        /// Why.
        why: &'static str,
    },
    /// An MTU that can't be.
    #[error("network {network:?}: mtu = {value} is outside 68 to 65535: change it, or leave it out")]
    Mtu {
        /// The network.
        network: String,
        /// What was given.
        value: i64,
    },
    /// Ports of the host don't lead there.
    #[error(
        "network {0:?} gives the VM an address of its own, to which no port of the host leads: leave ports out; a service \
         registers that address with address_mode = \"driver\" and a port with `to`, or a number"
    )]
    Ports(String),
    /// A port entry that isn't one.
    #[error(
        "network {network:?}: ports = {value:?} is not known here: use a port label, \"label/tcp\" or \"label/udp\""
    )]
    Port {
        /// The network.
        network: String,
        /// What was given.
        value: String,
    },
    /// A port label is not in the job's network block.
    #[error("port {0:?} is not declared in the job's network block: declared are {1}")]
    NoPort(String, String),
    /// A port is listed twice.
    #[error("port {0:?} is listed twice: list it once")]
    DuplicatePort(String),
    /// A port number is out of range.
    #[error("port {label:?} leads to guest port {port}: use 1 to 65535")]
    GuestPort {
        /// The label.
        label: String,
        /// The number.
        port: i64,
    },
    /// `port_map` names a port that `ports` doesn't list.
    #[error("port_map names {0:?}, which is not in ports: list it there too")]
    PortMap(String),
    /// Nomad handed out something that isn't an IPv4 address.
    #[error(
        "port {label:?} has the host address {value:?}, network {network:?} forwards IPv4 only: give the port a host_network \
         with an IPv4 address"
    )]
    HostAddress {
        /// The network.
        network: String,
        /// The label.
        label: String,
        /// What Nomad said.
        value: String,
    },
    /// Whose the VM is takes too many bytes.
    #[error(
        "namespace, job, group and task have {0} bytes together, an identity has {IDENTITY_MAX_BYTES}: shorten a name, or \
         say identity = \"alloc\""
    )]
    Identity(usize),
    /// Nobody said which allocation of its group this is.
    #[error("the allocation's index is not known, on which its identity depends: say identity = \"alloc\"")]
    NoIndex,
}

/// The interfaces, in the job's order.
pub(super) fn nics(
    specs: &[NetworkSpec],
    allocated: &Allocated,
    host: &Host,
) -> Result<Vec<Nic>, NetworkError> {
    let mut seen = BTreeSet::new();
    let mut nics = Vec::with_capacity(specs.len());
    for spec in specs {
        let nic = if spec.name == USER_NETWORK {
            user(spec, allocated, host)?
        } else {
            Nic::Tap(tap(spec, allocated, host)?)
        };
        if !seen.insert((spec.name.as_str(), segment(&nic))) {
            return Err(NetworkError::Twice(clip(&spec.name)));
        }
        nics.push(nic);
    }
    Ok(nics)
}

/// What of a network an interface is on.
fn segment(nic: &Nic) -> String {
    match nic {
        Nic::Tap(tap) if !tap.trunk.is_empty() => "trunk".to_owned(),
        Nic::Tap(tap) if tap.vlan > 0 => tap.vlan.to_string(),
        Nic::Tap(_) | Nic::User { .. } => String::new(),
    }
}

fn user(spec: &NetworkSpec, allocated: &Allocated, host: &Host) -> Result<Nic, NetworkError> {
    if !host.user_network {
        return Err(NetworkError::User);
    }
    without(spec, &["ipv4", "vlan", "trunk", "mtu"], "a user-mode")?;
    Ok(Nic::User {
        forwards: forwards(spec, &allocated.ports)?,
    })
}

fn tap(spec: &NetworkSpec, allocated: &Allocated, host: &Host) -> Result<TapRequest, NetworkError> {
    let kind = kind(&spec.name, host)?;
    if kind != KIND_VLAN_AWARE {
        without(spec, &["vlan", "trunk"], &format!("a {kind}"))?;
    }
    let (vlan, trunk) = vlans(spec)?;
    let mtu = match spec.mtu {
        None => 0,
        Some(value) => u32::try_from(value)
            .ok()
            .filter(|mtu| MTU.contains(mtu))
            .ok_or_else(|| NetworkError::Mtu {
                network: spec.name.clone(),
                value,
            })?,
    };
    let (forwards, port_map) = if kind == KIND_NAT {
        (forwards(spec, &allocated.ports)?, BTreeMap::new())
    } else if spec.ports.is_empty() {
        (Vec::new(), port_map(spec)?)
    } else {
        return Err(NetworkError::Ports(spec.name.clone()));
    };
    Ok(TapRequest {
        network: spec.name.clone(),
        ipv4: ipv4(spec, allocated.whose.index)?,
        vlan,
        trunk,
        mtu,
        forwards,
        port_map,
    })
}

/// The kind of a network of netd's.
fn kind<'a>(name: &str, host: &'a Host) -> Result<&'a str, NetworkError> {
    let user = host.user_network.then_some(USER_NETWORK);
    let known = match &host.networks {
        None => {
            let only = "the only network is \"user\", because the plugin option netd is empty";
            return Err(NetworkError::Unknown(clip(name), only.to_owned()));
        }
        Some(known) => known,
    };
    if let Some(network) = known.iter().find(|network| network.name == name) {
        return Ok(&network.kind);
    }
    let mut names: Vec<&str> = known.iter().map(|network| network.name.as_str()).collect();
    names.extend(user);
    names.sort_unstable();
    let known = match names.as_slice() {
        [] => "netd has no network".to_owned(),
        names => format!("known are {}", names.join(", ")),
    };
    Err(NetworkError::Unknown(clip(name), known))
}

/// Refuses keys that a network has no use for.
fn without(spec: &NetworkSpec, keys: &[&'static str], kind: &str) -> Result<(), NetworkError> {
    let given = |key: &&&'static str| match **key {
        "ipv4" => spec.ipv4.is_some(),
        "vlan" => spec.vlan.is_some(),
        "trunk" => !spec.trunk.is_empty(),
        _ => spec.mtu.is_some(),
    };
    match keys.iter().find(given) {
        None => Ok(()),
        Some(key) => Err(NetworkError::Key {
            network: spec.name.clone(),
            key,
            kind: kind.to_owned(),
        }),
    }
}

/// The VLAN of an access port, or those of a trunk port.
fn vlans(spec: &NetworkSpec) -> Result<(u32, Vec<String>), NetworkError> {
    let wrong = |key, value: &dyn ToString, more| NetworkError::Vlan {
        network: spec.name.clone(),
        key,
        value: clip(&value.to_string()),
        more,
    };
    if let Some(value) = spec.trunk.iter().find(|vlans| range(vlans).is_none()) {
        return Err(wrong(
            "trunk",
            value,
            ", each a number or a range such as \"100-120\"",
        ));
    }
    match spec.vlan {
        None => Ok((0, spec.trunk.clone())),
        Some(_) if !spec.trunk.is_empty() => Err(NetworkError::VlanAndTrunk(spec.name.clone())),
        Some(value) => {
            let vlan = u32::try_from(value).ok().filter(|vlan| VLANS.contains(vlan));
            Ok((vlan.ok_or_else(|| wrong("vlan", &value, ""))?, Vec::new()))
        }
    }
}

/// The address that is asked for; with `+index`, the one so many behind it.
fn ipv4(spec: &NetworkSpec, index: Option<u32>) -> Result<String, NetworkError> {
    let text = match spec.ipv4.as_deref() {
        // What the network has: a trunk port, and one on a network without IPv4, have none.
        None | Some("") => return Ok(String::new()),
        Some(word @ ("auto" | "none")) => return Ok(word.to_owned()),
        Some(text) => text,
    };
    let (network, value) = (spec.name.clone(), clip(text));
    let base = text.strip_suffix("+index");
    let address: Ipv4Addr = match base.unwrap_or(text).parse() {
        Ok(address) => address,
        Err(_) => return Err(NetworkError::Ipv4 { network, value }),
    };
    if base.is_none() {
        return Ok(address.to_string());
    }
    let nowhere = |why| NetworkError::Index { network, value, why };
    let Some(index) = index else {
        return Err(nowhere("the allocation's index is not known"));
    };
    match u32::from(address).checked_add(index) {
        Some(sum) => Ok(Ipv4Addr::from(sum).to_string()),
        None => Err(nowhere("there is no address so far behind it")),
    }
}

fn port_map(spec: &NetworkSpec) -> Result<BTreeMap<String, u16>, NetworkError> {
    let checked = |(label, port): (&String, &i64)| Ok((label.clone(), port_number(label, *port)?));
    spec.port_map.iter().map(checked).collect()
}

fn port_number(label: &str, port: i64) -> Result<u16, NetworkError> {
    let number = u16::try_from(port).ok().filter(|port| *port > 0);
    number.ok_or_else(|| NetworkError::GuestPort {
        label: clip(label),
        port,
    })
}

fn forwards(spec: &NetworkSpec, ports: &[AllocatedPort]) -> Result<Vec<Forward>, NetworkError> {
    let mut listed = BTreeSet::new();
    let mut forwards = Vec::with_capacity(spec.ports.len());
    for entry in &spec.ports {
        let (label, protocol) = match entry.rsplit_once('/') {
            None => (entry.as_str(), Protocol::Tcp),
            Some((label, "tcp")) => (label, Protocol::Tcp),
            Some((label, "udp")) => (label, Protocol::Udp),
            Some(_) => {
                return Err(NetworkError::Port {
                    network: spec.name.clone(),
                    value: clip(entry),
                });
            }
        };
        let port = ports.iter().find(|port| port.label == label).ok_or_else(|| {
            let mut declared: Vec<&str> = ports.iter().map(|port| port.label.as_str()).collect();
            declared.sort_unstable();
            let declared = if declared.is_empty() {
                "none".to_owned()
            } else {
                declared.join(", ")
            };
            NetworkError::NoPort(clip(label), clip(&declared))
        })?;
        if !listed.insert((label, protocol.as_str())) {
            return Err(NetworkError::DuplicatePort(entry.clone()));
        }
        forwards.push(forward(spec, port, protocol)?);
    }
    if let Some(label) = spec
        .port_map
        .keys()
        .find(|label| !listed.iter().any(|(listed, _)| listed == label))
    {
        return Err(NetworkError::PortMap(clip(label)));
    }
    Ok(forwards)
}

fn forward(spec: &NetworkSpec, port: &AllocatedPort, protocol: Protocol) -> Result<Forward, NetworkError> {
    let label = port.label.clone();
    let wanted = match (spec.port_map.get(&label), port.guest_port) {
        (Some(mapped), _) => *mapped,
        (None, to) if to > 0 => to,
        (None, _) => port.host_port,
    };
    let guest_port = port_number(&label, wanted)?;
    let host_port = port_number(&label, port.host_port)?;
    // Nomad leaves the address empty only where a client has no address at all; the loopback is then what is safe.
    let address = if port.host_ip.is_empty() {
        Ipv4Addr::LOCALHOST
    } else {
        port.host_ip.parse().map_err(|_| NetworkError::HostAddress {
            network: spec.name.clone(),
            label: label.clone(),
            value: clip(&port.host_ip),
        })?
    };
    Ok(Forward {
        label,
        protocol,
        host: SocketAddrV4::new(address, host_port),
        guest_port,
    })
}

/// A name as one part of an identity: jobs and groups may have slashes in theirs.
fn one_part(name: &str) -> String {
    name.replace('%', "%25").replace('/', "%2F")
}

/// What netd computes addresses from: for a job's VM what stays when it is started again or moves, else what is new with each
/// allocation. The task is in it because two tasks of a group may be on one network.
pub(super) fn identity(allocated: &Allocated, of_allocation: bool) -> Result<String, NetworkError> {
    let whose = &allocated.whose;
    let identity = if of_allocation {
        format!("{}/{}", whose.alloc_id, whose.task)
    } else {
        let index = whose.index.ok_or(NetworkError::NoIndex)?;
        let names = [&whose.namespace, &whose.job, &whose.group, &whose.task];
        let names = names.map(|name| one_part(name));
        format!("{}/{index}", names.join("/"))
    };
    if identity.len() > IDENTITY_MAX_BYTES {
        return Err(NetworkError::Identity(identity.len()));
    }
    Ok(identity)
}
