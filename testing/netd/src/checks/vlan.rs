//! Are VLANs what keeps tenants apart and joins their hosts?
//!
//! Two hosts at a switch that passes every VLAN; a card of our own in the switch sees the wire.

use std::net::IpAddr;

use steppe_proto::net;

use crate::frame::{self, Arp, BROADCAST, DOT1Q};
use crate::guest::{self, Guest};
use crate::host::{at, attach_one, machine, nic, owner};
use crate::netd::{Client, Netd};
use crate::ping;
use crate::space::{self, Space};
use crate::tap::{Tap, contains};

/// Two hosts and what joins them.
#[derive(Debug)]
struct Hosts {
    left: Space,
    right: Space,
    switch: Space,
}

impl Hosts {
    fn new() -> Self {
        let hosts = Self {
            left: Space::new("left"),
            right: Space::new("right"),
            switch: Space::new("switch"),
        };
        hosts.cable("up0", "sw0", 1500);
        hosts
    }

    /// One more uplink of each host, and a switch for it.
    fn cable(&self, uplink: &str, switch: &str, mtu: u32) {
        self.switch.ip(&format!(
            "link add {switch} mtu {mtu} type bridge\nlink set {switch} addrgenmode none up"
        ));
        for host in [&self.left, &self.right] {
            let port = format!("{}{switch}", host.name());
            space::join((&self.switch, &port), (host, uplink));
            self.switch.ip(&format!(
                "link set {port} mtu {mtu}\nlink set {port} master {switch}"
            ));
            host.ip(&format!("link set {uplink} mtu {mtu}"));
        }
    }

    /// A card of our own at the switch.
    fn wire(&self) -> Tap {
        let tap = Tap::open(&self.switch, "wire", 0, false).expect("a card can be made");
        self.switch
            .ip("link set wire addrgenmode none\nlink set wire master sw0 up");
        tap
    }
}

/// A machine whose card is ours.
#[derive(Debug)]
struct Card {
    interface: net::Interface,
    tap: Tap,
}

impl Card {
    #[track_caller]
    fn attach(host: &Space, client: &Client, id: &str, nic: net::Nic) -> Self {
        let interface = attach_one(client, id, nic);
        let tap = guest::plug(host, &interface);
        Self { interface, tap }
    }

    /// An honest broadcast with a text.
    fn says(&self, text: &str) -> Vec<u8> {
        self.says_to(BROADCAST, text)
    }

    fn says_to(&self, to: frame::Mac, text: &str) -> Vec<u8> {
        let own = (guest::mac(&self.interface), guest::ipv4(&self.interface));
        let says = Arp {
            request: true,
            sender: own,
            target: ([0; 6], own.1),
        };
        frame::arp(to, own.0, says, text)
    }
}

/// The mark arrives, and nothing with any of these texts before it.
#[track_caller]
fn only(tap: &Tap, mark: &str, never: &[&str]) {
    let frames = tap.receive_until(mark.as_bytes());
    for text in never {
        assert!(
            !frames.iter().any(|frame| contains(frame, text.as_bytes())),
            "{text:?} arrived before {mark:?}"
        );
    }
}

fn nic_of(network: &str, vlan: u32) -> net::Nic {
    net::Nic { vlan, ..nic(network) }
}

const TENANTS: &str = r#"
[network.tenant-a]
kind = "vlan"
uplink = "up0"
vid = 100
ipv4 = { subnet = "10.1.0.0/16", pool = "10.1.1.0-10.1.1.255" }
ipv6 = { prefix = "fd00:1::/64" }
probe = "200ms"

[network.tenant-b]
kind = "vlan"
uplink = "up0"
vid = 200
ipv4 = { subnet = "10.1.0.0/16", pool = "10.1.1.0-10.1.1.255" }
ipv6 = { prefix = "fd00:1::/64" }
probe = "0s"
"#;

/// A tenant's machines on two hosts are on one network, and no other tenant's sees any of it.
pub(crate) fn vlan_isolation() {
    let hosts = Hosts::new();
    let (left, right) = (&hosts.left, &hosts.right);
    let mut netd = Netd::start(left, TENANTS);
    let other = Netd::start(right, TENANTS);
    let wire = hosts.wire();

    let one = attach_one(netd.client(), "one", nic("tenant-a"));
    let guest = Guest::boot(left, &one);
    let two = attach_one(other.client(), "two", nic("tenant-a"));
    let far = Guest::boot(right, &two);
    assert!(guest.reaches(guest::ipv4(&two)) && guest.reaches(guest::ipv6(&two)));
    assert!(far.reaches(guest::ipv4(&one)) && far.reaches(guest::ipv6(&one)));

    // Broadcast, and straight at a machine of another tenant whose address is known.
    let a = Card::attach(left, netd.client(), "a", nic("tenant-a"));
    let far_a = Card::attach(right, other.client(), "far-a", nic("tenant-a"));
    let b = Card::attach(left, netd.client(), "b", nic("tenant-b"));
    let far_b = Card::attach(right, other.client(), "far-b", nic("tenant-b"));
    a.tap.send(&a.says("secret of a"));
    for card in [&b, &far_b] {
        a.tap
            .send(&a.says_to(guest::mac(&card.interface), "aimed secret of a"));
    }
    a.tap.send(&a.says("end of a"));
    only(&far_a.tap, "secret of a", &[]);
    only(&far_a.tap, "end of a", &["aimed"]);
    b.tap.send(&b.says("mark of b"));
    only(&far_b.tap, "mark of b", &["of a"]);
    far_b.tap.send(&far_b.says("mark of far b"));
    only(&b.tap, "mark of far b", &["of a"]);

    // On the wire all of it has its tag.
    let frames = wire.receive_until(b"mark of far b");
    for (text, vid) in [("of a", 100), ("of b", 200), ("of far b", 200)] {
        let seen = frames.iter().filter(|frame| contains(frame, text.as_bytes()));
        let tags: Vec<&[u8]> = seen.map(|frame| &frame[12..16]).collect();
        assert!(
            !tags.is_empty() && tags.iter().all(|tag| *tag == [0x81, 0, 0, vid]),
            "{text}: {tags:?}"
        );
    }
    // What comes from there without one, or with another, is nobody's.
    let foreign = frame::ether(BROADCAST, [2, 0, 0, 0, 0, 1], 0x0800, b"foreign");
    wire.send(&foreign);
    wire.send(&frame::tagged(&foreign, DOT1Q, 300));
    wire.send(&frame::tagged(&frame::tagged(&foreign, DOT1Q, 300), DOT1Q, 100));
    for (card, vid) in [(&far_a, 100), (&far_b, 200)] {
        let mark = frame::ether(
            BROADCAST,
            [2, 0, 0, 0, 0, 1],
            0x0800,
            format!("in {vid}").as_bytes(),
        );
        wire.send(&frame::tagged(&mark, DOT1Q, vid));
        let frames = card.tap.receive_until(format!("in {vid}").as_bytes());
        let untagged = frames
            .iter()
            .any(|frame| contains(frame, b"foreign") && frame[12..14] != [0x81, 0]);
        assert!(!untagged, "a frame of another VLAN is in VLAN {vid}");
    }

    // An address is asked for within its own VLAN.
    let address = guest::ipv4(&two).to_string();
    let refused = netd
        .client()
        .attach(&machine("late", &[at("tenant-a", &address)]))
        .expect_err("it is a machine's on the other host");
    assert_eq!(refused.detail.reason, "address-taken", "{refused}");
    let free = attach_one(netd.client(), "late", at("tenant-b", &address));
    assert_eq!(guest::ipv4(&free).to_string(), address);

    netd.restart();
    assert!(guest.reaches(guest::ipv4(&two)) && guest.reaches(guest::ipv6(&two)));
}

const AWARE: &str = r#"
[network.aware]
kind = "vlan-aware"
uplink = "up0"
vids = ["100-120", "200"]
vid = 100
ipv4 = { subnet = "10.2.0.0/16", pool = "10.2.9.0-10.2.9.255" }
ipv6 = { prefix = "fd00:2::/64" }
probe = "0s"
"#;

/// A guest that routes between two VLANs of its trunk port, and gets at no third.
pub(crate) fn vlan_trunk() {
    let hosts = Hosts::new();
    let (left, right) = (&hosts.left, &hosts.right);
    let netd = Netd::start(left, AWARE);
    let other = Netd::start(right, AWARE);
    let wire = hosts.wire();

    let trunk = |words: &[&str]| net::Nic {
        ipv4: "none".to_owned(),
        trunk: words.iter().map(|word| (*word).to_owned()).collect(),
        ..nic("aware")
    };
    let interface = attach_one(netd.client(), "router", trunk(&["100-101"]));
    assert_eq!(interface.trunk, ["100-101"], "{interface:?}");
    let commands: String = [(100, "10.2.1.1/24"), (101, "10.2.2.1/24")]
        .map(|(vid, address)| {
            format!(
                "link add link eth0 name eth0.{vid} type vlan id {vid}\n\
                 address add {address} dev eth0.{vid}\nlink set eth0.{vid} up\n"
            )
        })
        .concat();
    let router = Guest::boot_as(left, &interface, &commands);
    router.space.set("ipv4/ip_forward", "1");

    let ends: Vec<Guest> = [
        (left, netd.client(), "a", 100, "10.2.1.5", "10.2.1.1"),
        (right, other.client(), "b", 101, "10.2.2.5", "10.2.2.1"),
    ]
    .into_iter()
    .map(|(host, client, id, vlan, address, gateway)| {
        let nic = net::Nic {
            vlan,
            ..at("aware", address)
        };
        let commands = format!("address add {address}/24 dev eth0\nroute add default via {gateway}");
        Guest::boot_as(host, &attach_one(client, id, nic), &commands)
    })
    .collect();
    assert!(ends[0].reaches(IpAddr::from([10, 2, 2, 5])), "through the router");
    assert!(ends[1].reaches(IpAddr::from([10, 2, 1, 5])), "and back");

    // VLANs that it was not given, in both directions.
    let probe = Card::attach(left, netd.client(), "probe", trunk(&["100", "101"]));
    let c = Card::attach(left, netd.client(), "c", nic_of("aware", 102));
    let d = Card::attach(right, other.client(), "d", nic_of("aware", 102));
    let e = Card::attach(right, other.client(), "e", nic_of("aware", 101));
    // Honest but for their VLAN.
    let macs = (BROADCAST, guest::mac(&probe.interface));
    let addresses = ([10, 2, 2, 9].into(), [10, 2, 2, 255].into());
    let says = |text: &str| frame::udp4(macs, addresses, (9, 9), text);
    probe.tap.send(&frame::tagged(&says("in 102"), DOT1Q, 102));
    probe.tap.send(&says("without a tag"));
    probe.tap.send(&frame::tagged(
        &frame::tagged(&says("in 102 in 101"), DOT1Q, 102),
        DOT1Q,
        101,
    ));
    probe.tap.send(&frame::tagged(&says("mark in 101"), DOT1Q, 101));
    let never = ["in 102", "without a tag"];
    only(&e.tap, "mark in 101", &never);
    only(&wire, "mark in 101", &never);
    c.tap.send(&c.says("mark of c"));
    only(&d.tap, "mark of c", &never);
    only(&wire, "mark of c", &never);
    e.tap.send(&e.says("mark of e"));
    let frames = probe.tap.receive_until(b"mark of e");
    assert_eq!(frames.last().expect("the mark")[12..16], [0x81, 0, 0, 101]);
    assert!(!frames.iter().any(|frame| contains(frame, b"mark of c")));

    for words in [&["100", "121"][..], &["0"], &["4095"], &["101-100"], &["a"]] {
        let refused = netd
            .client()
            .attach(&machine("wrong", &[trunk(words)]))
            .expect_err("no such VLAN may be asked for");
        assert_eq!(
            (refused.detail.reason.as_str(), refused.detail.field.as_str()),
            ("invalid", "nics[0].trunk"),
            "{refused}"
        );
    }
}

/// Ports of one VLAN each on a bridge that filters them.
pub(crate) fn vlan_aware_access() {
    let hosts = Hosts::new();
    let (left, right) = (&hosts.left, &hosts.right);
    let mut netd = Netd::start(left, AWARE);
    let other = Netd::start(right, AWARE);
    let wire = hosts.wire();

    // The network's own VLAN where none is named.
    let one = attach_one(netd.client(), "one", nic("aware"));
    assert_eq!(one.vlan, 100);
    let guest = Guest::boot(left, &one);
    let two = attach_one(other.client(), "two", nic_of("aware", 100));
    let _far = Guest::boot(right, &two);
    assert!(guest.reaches(guest::ipv4(&two)) && guest.reaches(guest::ipv6(&two)));

    let a = Card::attach(left, netd.client(), "a", nic_of("aware", 100));
    let far_a = Card::attach(right, other.client(), "far-a", nic_of("aware", 100));
    let b = Card::attach(left, netd.client(), "b", nic_of("aware", 200));
    let far_b = Card::attach(right, other.client(), "far-b", nic_of("aware", 200));
    a.tap.send(&a.says("secret of a"));
    a.tap
        .send(&a.says_to(guest::mac(&b.interface), "aimed secret of a"));
    // The guest says itself which VLAN; also of the one it is in.
    for vid in [0, 100, 200] {
        a.tap.send(&frame::tagged(
            &a.says(&format!("tagged secret of a {vid}")),
            DOT1Q,
            vid,
        ));
    }
    a.tap.send(&a.says("end of a"));
    only(&far_a.tap, "end of a", &["tagged", "aimed"]);
    b.tap.send(&b.says("mark of b"));
    only(&far_b.tap, "mark of b", &["of a"]);
    far_b.tap.send(&far_b.says("mark of far b"));
    only(&b.tap, "mark of far b", &["of a"]);
    let frames = wire.receive_until(b"mark of far b");
    let tags: Vec<&[u8]> = [&b"end of a"[..], b"mark of b"]
        .iter()
        .filter_map(|text| frames.iter().find(|frame| contains(frame, text)))
        .map(|frame| &frame[12..16])
        .collect();
    assert_eq!(tags, [[0x81, 0, 0, 100], [0x81, 0, 0, 200]]);

    // One identity has another address in each VLAN.
    assert_ne!(a.interface.mac, b.interface.mac);
    let checked = |vlan| {
        let checked = netd.client().check(&machine("same", &[nic_of("aware", vlan)]));
        checked.expect("it could be attached").interfaces[0].mac.clone()
    };
    assert_ne!(checked(100), checked(200));

    for (vlan, field) in [
        (121, "nics[0].vlan"),
        (4095, "nics[0].vlan"),
        (70_000, "nics[0].vlan"),
    ] {
        let refused = netd
            .client()
            .attach(&machine("wrong", &[nic_of("aware", vlan)]))
            .expect_err("no such VLAN may be asked for");
        assert_eq!(
            (refused.detail.reason.as_str(), refused.detail.field.as_str()),
            ("invalid", field),
            "{refused}"
        );
    }
    netd.restart();
    assert!(guest.reaches(guest::ipv4(&two)) && guest.reaches(guest::ipv6(&two)));
    // Gone with its last port: what the uplink carries.
    for id in ["one", "a", "b"] {
        netd.client().detach(&owner(id), true).expect("it is forced");
    }
}

const MTU: &str = r#"
[network.plain]
kind = "vlan"
uplink = "up0"
vid = 100
ipv4 = { subnet = "10.1.0.0/16", pool = "10.1.1.0-10.1.1.255" }
ipv6 = { prefix = "fd00:1::/64" }
probe = "0s"

[network.jumbo]
kind = "bridge"
uplink = "up1"
ipv4 = { subnet = "10.2.0.0/16", pool = "10.2.1.0-10.2.1.255" }
probe = "0s"
"#;

/// Frames as long as the MTU pass whole, longer ones don't, and no port lowers what its bridge passes.
pub(crate) fn mtu_dont_fragment() {
    let hosts = Hosts::new();
    let (left, right) = (&hosts.left, &hosts.right);
    hosts.cable("up1", "sw1", 9000);
    let netd = Netd::start(left, MTU);
    let other = Netd::start(right, MTU);

    let mut guests = Vec::new();
    for (network, mtu) in [("plain", 1500), ("jumbo", 9000)] {
        let near = attach_one(netd.client(), &format!("near-{network}"), nic(network));
        let far = attach_one(other.client(), &format!("far-{network}"), nic(network));
        assert_eq!((near.mtu, far.mtu), (mtu, mtu), "MTU of {network}");
        let mtu = usize::try_from(mtu).expect("it is small");
        let guest = Guest::boot(left, &near);
        guests.push(Guest::boot(right, &far));
        let mut ways = vec![IpAddr::from(guest::ipv4(&far))];
        if !far.ipv6.is_empty() {
            ways.push(guest::ipv6(&far).into());
        }
        passes(&guest, mtu, &ways);
        guests.push(guest);
    }

    // A longer one than any guest that keeps to its MTU would send.
    let card = Card::attach(left, netd.client(), "card", nic("plain"));
    let far = Card::attach(right, other.client(), "far-card", nic("plain"));
    let macs = (guest::mac(&far.interface), guest::mac(&card.interface));
    let addresses = (guest::ipv4(&card.interface), guest::ipv4(&far.interface));
    let of = |length: usize, text: &str| {
        let data = text.to_owned() + &".".repeat(length - 28 - text.len());
        frame::udp4(macs, addresses, (9, 9), &data)
    };
    card.tap.send(&of(1600, "long"));
    card.tap.send(&of(9000, "longer"));
    card.tap.send(&of(1500, "as long as may be"));
    only(&far.tap, "as long as may be", &["long."]);

    // Told to one guest alone; the host's side stays.
    let low = attach_one(
        netd.client(),
        "low",
        net::Nic {
            mtu: 1280,
            ..nic("plain")
        },
    );
    assert_eq!(low.mtu, 1280);
    let mtu_of = |name: &str| {
        let link = left.json("ip", &["-j", "link", "show", name]);
        link[0]["mtu"].as_u64().expect("a link has one")
    };
    assert_eq!((mtu_of(&low.tap), mtu_of("ndbplain")), (1500, 1500));
    // Somebody puts a lower one beside.
    left.ip("link add low0 mtu 1300 type veth peer name low1 mtu 1300\nlink set low0 master ndbplain");
    assert_eq!(mtu_of("ndbplain"), 1500);
    passes(
        &guests[1],
        1500,
        &[guest::ipv4(&far_of(&other, "far-plain")).into()],
    );

    let refused = netd
        .client()
        .attach(&machine(
            "high",
            &[net::Nic {
                mtu: 1501,
                ..nic("plain")
            }],
        ))
        .expect_err("it is more than the network's");
    assert_eq!(refused.detail.field, "nics[0].mtu", "{refused}");
}

fn far_of(netd: &Netd<'_>, id: &str) -> net::Interface {
    let all = netd.client().list();
    let found = all.into_iter().find(|one| one.owner == Some(owner(id)));
    found.unwrap_or_else(|| panic!("{id} is not listed"))
}

/// A packet of exactly the MTU passes, a longer one does not leave the guest.
#[track_caller]
fn passes(guest: &Guest, mtu: usize, ways: &[IpAddr]) {
    for way in ways {
        let most = mtu - ping::headers(*way);
        assert!(ping::answers(&guest.space, *way, most), "{mtu} bytes to {way}");
        assert!(
            !ping::answers(&guest.space, *way, most + 1),
            "{} bytes to {way}",
            mtu + 1
        );
    }
}
