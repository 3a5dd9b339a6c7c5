//! What do machines reach through the host, and who reaches them?

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use super::Text;
use crate::name::{TAP, VLAN, bridge_name};
use crate::{Attachment, Config, Forward, Ipv4, Kind, LinkName, Protocol};

/// A network of kind nat.
#[derive(Debug)]
struct Nat<'c> {
    bridge: LinkName,
    ipv4: &'c Ipv4,
    isolated: bool,
    host_access: bool,
}

fn nats(config: &Config) -> impl Iterator<Item = Nat<'_>> + Clone {
    config.networks.values().filter_map(|network| match network.kind {
        Kind::Nat { host_access } => Some(Nat {
            bridge: bridge_name(&network.name),
            ipv4: network.ipv4.as_ref()?,
            isolated: network.isolated,
            host_access,
        }),
        _ => None,
    })
}

/// Bridges of ours on which the host has no place, and those of networks that aren't configured any more: machines
/// live on them, and nobody says any more what of the host they may reach.
fn closed<'a>(config: &Config, attachments: impl Iterator<Item = &'a Attachment>) -> BTreeSet<LinkName> {
    let nobodys = attachments
        .map(|attachment| &attachment.network)
        .filter(|name| !config.networks.contains_key(name));
    let networks = config.networks.values();
    networks
        .filter(|network| !matches!(network.kind, Kind::Nat { .. }) && !network.is_foreign())
        .map(|network| &network.name)
        .chain(nobodys)
        .map(bridge_name)
        .collect()
}

pub(super) fn whole<'a>(
    text: &mut Text,
    config: &Config,
    attachments: impl Iterator<Item = &'a Attachment> + Clone,
) {
    let nat = nats(config).next().is_some();
    let closed = closed(config, attachments.clone());
    text.line(format_args!("table inet netd {{"));
    text.lines("\tcounter drop_forward { }\n\tcounter drop_host { }\n");
    set(text, "closed", "ifname", closed.iter().map(quoted));
    if nat {
        set(text, "nat", "ifname", nats(config).map(|nat| quoted(&nat.bridge)));
        let guarded = nats(config).filter(|nat| !nat.host_access);
        set(text, "guarded", "ifname", guarded.map(|nat| quoted(&nat.bridge)));
        let gateways = nats(config).filter_map(|nat| nat.ipv4.gateway);
        set(
            text,
            "gateways",
            "ipv4_addr",
            gateways.map(|address| address.to_string()),
        );
        translation(text, config);
    }
    guard(text, nat);
    input(text, nat);
    forward(text, config, nat);
    text.line(format_args!("}}"));
    if nat {
        let forwards: Vec<Element> = elements(attachments).collect();
        let loopback = loopback(forwards.iter().copied(), |_| true);
        change(text, "add", forwards.into_iter().chain(loopback));
    }
}

pub(super) fn add<'a>(
    text: &mut Text,
    config: &Config,
    existing: impl Iterator<Item = &'a Attachment> + Clone,
    new: &[Attachment],
) {
    if nats(config).next().is_none() || new.iter().all(|attachment| attachment.forwards.is_empty()) {
        return;
    }
    let before = elements(existing);
    let after = before.clone().chain(elements(new.iter()));
    let (gone, came) = loopback_change(&ports_of(new), before, after);
    change(text, "delete", gone.into_iter());
    change(text, "add", elements(new.iter()).chain(came));
}

pub(super) fn remove<'a>(
    text: &mut Text,
    config: &Config,
    remaining: impl Iterator<Item = &'a Attachment> + Clone,
    gone: &[Attachment],
) {
    if nats(config).next().is_none() || gone.iter().all(|attachment| attachment.forwards.is_empty()) {
        return;
    }
    let after = elements(remaining);
    let before = after.clone().chain(elements(gone.iter()));
    let ports = ports_of(gone);
    let (loopback_gone, came) = loopback_change(&ports, before, after.clone());
    // The kernel looks at where a port is, not where it leads: what is somebody else's by now stays.
    let taken: BTreeSet<(Protocol, SocketAddrV4)> = after
        .clone()
        .filter(|element| ports.contains(&element.port()))
        .map(Element::key)
        .collect();
    let gone = elements(gone.iter()).filter(|element| !taken.contains(&element.key()));
    change(text, "delete", gone.chain(loopback_gone));
    change(text, "add", came.into_iter());
}

/// What a port of ours receives is its bridge's: the host takes nothing from it itself. There is something where a port has
/// no bridge, and where a bridge hands frames to link-local group addresses (01:80:c2:00:00:0X) past its own hooks.
fn guard(text: &mut Text, nat: bool) {
    text.line(format_args!(
        "\tchain guard {{
\t\ttype filter hook prerouting priority -300; policy accept;
\t\tiifname \"{TAP}*\" counter name drop_host drop
\t\tiifname \"{VLAN}*\" counter name drop_host drop"
    ));
    if nat {
        text.lines("\t\tiifname @nat ip daddr 127.0.0.0/8 counter name drop_host drop\n");
    }
    text.lines("\t}\n");
}

fn translation(text: &mut Text, config: &Config) {
    text.lines(
        "\tmap forwarded { type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service; }
	chain prerouting {
		type nat hook prerouting priority -100; policy accept;
		dnat ip to meta l4proto . ip daddr . th dport map @forwarded
	}
	chain output {
		type nat hook output priority -100; policy accept;
		dnat ip to meta l4proto . ip daddr . th dport map @forwarded
	}
	chain postrouting {
		type nat hook postrouting priority 100; policy accept;
		ip saddr 127.0.0.0/8 oifname @nat masquerade
",
    );
    for Nat { bridge, ipv4, .. } in nats(config) {
        let subnet = ipv4.subnet;
        text.line(format_args!(
            "\t\tip saddr {subnet} oifname != \"{bridge}\" masquerade"
        ));
        // To a machine of the same network by way of a port of the host: it would answer past the host.
        text.line(format_args!(
            "\t\tip saddr {subnet} oifname \"{bridge}\" ct status dnat masquerade"
        ));
    }
    text.lines("\t}\n");
}

fn input(text: &mut Text, nat: bool) {
    text.lines(
        "\tchain input {
		type filter hook input priority 0; policy accept;
		iifname @closed counter name drop_host drop
",
    );
    if nat {
        text.lines(
            "\t\tiifname != @guarded accept
		ct state established,related accept
		ip daddr @gateways icmp type echo-request accept
		counter name drop_host drop
",
        );
    }
    text.lines("\t}\n");
}

/// Frames within one bridge come by here too where the host's bridges call iptables: they have one bridge on both
/// sides.
fn forward(text: &mut Text, config: &Config, nat: bool) {
    text.lines(
        "\tchain forward {
		type filter hook forward priority 0; policy accept;
		iifname @closed oifname != @closed counter name drop_forward drop
",
    );
    if nat {
        text.lines(
            "\t\tiifname != @nat oifname != @nat accept
		ct state established,related accept
		ct status dnat accept
",
        );
        for Nat { bridge, .. } in nats(config).filter(|nat| !nat.isolated) {
            text.line(format_args!(
                "\t\tiifname \"{bridge}\" oifname \"{bridge}\" accept"
            ));
        }
        text.lines(
            "\t\tmeta nfproto ipv4 iifname @nat oifname != @nat accept
		counter name drop_forward drop
",
        );
    }
    text.lines("\t}\n");
}

fn quoted(link: &LinkName) -> String {
    format!("\"{link}\"")
}

fn set(text: &mut Text, name: &str, kind: &str, elements: impl Iterator<Item = String>) {
    let elements: Vec<String> = elements.collect();
    if elements.is_empty() {
        text.line(format_args!("\tset {name} {{ type {kind}; }}"));
    } else {
        let elements = elements.join(", ");
        text.line(format_args!(
            "\tset {name} {{ type {kind}; elements = {{ {elements} }} }}"
        ));
    }
}

/// An element of the map of forwarded ports: where packets are sent, and where they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Element {
    protocol: Protocol,
    from: SocketAddrV4,
    to: SocketAddrV4,
}

/// What a port is but for the host's address.
type Port = (Protocol, u16);

impl Element {
    fn port(self) -> Port {
        (self.protocol, self.from.port())
    }

    fn key(self) -> (Protocol, SocketAddrV4) {
        (self.protocol, self.from)
    }
}

fn elements<'a>(
    attachments: impl Iterator<Item = &'a Attachment> + Clone,
) -> impl Iterator<Item = Element> + Clone {
    attachments
        .filter_map(|attachment| Some((attachment.ipv4?.addr(), attachment)))
        .flat_map(|(guest, attachment)| {
            attachment.forwards.iter().map(move |forward: &Forward| Element {
                protocol: forward.protocol,
                from: SocketAddrV4::new(forward.host_ip, forward.host_port),
                to: SocketAddrV4::new(guest, forward.guest_port),
            })
        })
}

/// For 127.0.0.1, of each port that is asked about: where the element of the lowest address of the host leads, unless
/// 127.0.0.1 is forwarded itself. Which one depends on nothing but what is forwarded, not on the order in which that
/// came.
fn loopback(elements: impl Iterator<Item = Element>, asked: impl Fn(Port) -> bool) -> Vec<Element> {
    let mut chosen: BTreeMap<Port, Element> = BTreeMap::new();
    for element in elements.filter(|element| asked(element.port())) {
        let rank = |element: &Element| (*element.from.ip() != Ipv4Addr::LOCALHOST, *element.from.ip());
        let entry = chosen.entry(element.port()).or_insert(element);
        if rank(&element) < rank(entry) {
            *entry = element;
        }
    }
    chosen
        .into_values()
        .filter(|element| *element.from.ip() != Ipv4Addr::LOCALHOST)
        .map(|element| Element {
            from: SocketAddrV4::new(Ipv4Addr::LOCALHOST, element.from.port()),
            ..element
        })
        .collect()
}

fn ports_of(attachments: &[Attachment]) -> BTreeSet<Port> {
    elements(attachments.iter()).map(Element::port).collect()
}

/// The elements for 127.0.0.1 that go and come where attachments with these ports do.
fn loopback_change(
    ports: &BTreeSet<Port>,
    before: impl Iterator<Item = Element>,
    after: impl Iterator<Item = Element>,
) -> (Vec<Element>, Vec<Element>) {
    let mut before = loopback(before, |port| ports.contains(&port));
    let mut after = loopback(after, |port| ports.contains(&port));
    let stay: Vec<Element> = before
        .iter()
        .filter(|element| after.contains(element))
        .copied()
        .collect();
    before.retain(|element| !stay.contains(element));
    after.retain(|element| !stay.contains(element));
    (before, after)
}

fn change(text: &mut Text, verb: &str, mut elements: impl Iterator<Item = Element>) {
    let Some(first) = elements.next() else {
        return;
    };
    text.lines(&format!(
        "{verb} element inet netd forwarded {{ {}",
        element(first)
    ));
    for further in elements {
        text.lines(&format!(", {}", element(further)));
    }
    text.line(format_args!(" }}"));
}

fn element(Element { protocol, from, to }: Element) -> String {
    let (host, port, guest, inner) = (from.ip(), from.port(), to.ip(), to.port());
    format!("{protocol} . {host} . {port} : {guest} . {inner}")
}
