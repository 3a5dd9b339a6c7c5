//! How does an interface look to a person, and to a program?

use serde::Serialize;
use steppe_daemon::text::{UNKNOWN, plain};
use steppe_proto::net::{Interface, Port, Protocol};

/// An interface as JSON has it.
#[derive(Debug, Serialize)]
pub(super) struct InterfaceJson {
    instance: String,
    id: String,
    index: u32,
    network: String,
    kind: String,
    tap: String,
    uid: u32,
    queues: u32,
    mac: String,
    ipv4: Option<String>,
    ipv4_gateway: Option<String>,
    ipv6: Option<String>,
    ipv6_gateway: Option<String>,
    dns: Vec<String>,
    mtu: u32,
    vlan: Option<u32>,
    trunk: Vec<String>,
    ports: Vec<PortJson>,
    carrier: bool,
    faults: Vec<String>,
}

#[derive(Debug, Serialize)]
struct PortJson {
    protocol: &'static str,
    host_ip: String,
    host_port: u32,
    guest_port: u32,
}

/// A text, if there is one.
pub(super) fn some(text: &str) -> Option<String> {
    Some(text.to_owned()).filter(|text| !text.is_empty())
}

fn protocol(port: &Port) -> &'static str {
    match port.protocol() {
        Protocol::Udp => "udp",
        Protocol::Tcp | Protocol::Unspecified => "tcp",
    }
}

impl From<&Interface> for InterfaceJson {
    fn from(interface: &Interface) -> Self {
        let owner = interface.owner.clone().unwrap_or_default();
        let ports = interface.ports.iter().map(|port| PortJson {
            protocol: protocol(port),
            host_ip: port.host_ip.clone(),
            host_port: port.host_port,
            guest_port: port.guest_port,
        });
        Self {
            instance: owner.instance,
            id: owner.id,
            index: interface.index,
            network: interface.network.clone(),
            kind: interface.kind.clone(),
            tap: interface.tap.clone(),
            uid: interface.uid,
            queues: interface.queues,
            mac: interface.mac.clone(),
            ipv4: some(&interface.ipv4),
            ipv4_gateway: some(&interface.ipv4_gateway),
            ipv6: some(&interface.ipv6),
            ipv6_gateway: some(&interface.ipv6_gateway),
            dns: interface.dns.clone(),
            mtu: interface.mtu,
            vlan: Some(interface.vlan).filter(|vlan| *vlan != 0),
            trunk: interface.trunk.clone(),
            ports: ports.collect(),
            carrier: interface.carrier,
            faults: interface.faults.clone(),
        }
    }
}

/// The head of a table of interfaces.
pub(super) const HEAD: [&str; 9] = [
    "TAP", "OWNER", "NIC", "NETWORK", "VLAN", "MAC", "IPV4", "IPV6", "OPEN",
];

/// A row of it.
pub(super) fn row(interface: &Interface) -> Vec<String> {
    let owner = interface.owner.clone().unwrap_or_default();
    let or_unknown = |text: &str| some(&plain(text)).unwrap_or_else(|| UNKNOWN.to_owned());
    let vlan = match (interface.vlan, interface.trunk.as_slice()) {
        (0, []) => UNKNOWN.to_owned(),
        (0, trunk) => plain(&trunk.join(",")),
        (vlan, _) => vlan.to_string(),
    };
    vec![
        or_unknown(&interface.tap),
        plain(&format!("{}/{}", owner.instance, owner.id)),
        interface.index.to_string(),
        or_unknown(&interface.network),
        vlan,
        or_unknown(&interface.mac),
        or_unknown(&interface.ipv4),
        or_unknown(&interface.ipv6),
        if interface.carrier { "yes" } else { "no" }.to_owned(),
    ]
}

/// Lines below the table: forwarded ports and faults.
pub(super) fn notes(interface: &Interface) -> Vec<String> {
    let tap = plain(&interface.tap);
    let ports = interface.ports.iter().map(|port| {
        let name = protocol(port);
        format!(
            "{tap}: {name} {}:{} leads to port {}",
            plain(&port.host_ip),
            port.host_port,
            port.guest_port
        )
    });
    let faults = interface
        .faults
        .iter()
        .map(|fault| format!("{tap}: {}", plain(fault)));
    ports.chain(faults).collect()
}
