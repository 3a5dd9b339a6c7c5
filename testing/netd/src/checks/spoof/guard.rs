//! Does anything that a guest sends reach the host itself past the bridge of its network?
//!
//! A bridge hands frames to link-local group addresses to the host as its port's own, past its hooks; and a tap without a
//! bridge is a link of the host's like any other.

use std::net::{Ipv4Addr, UdpSocket};

use rustix::process::Signal;

use super::{ALL_NODES, Card, counts_of};
use crate::frame::{self, Arp, BROADCAST, DOT1Q, Discovery, Mac, link_local};
use crate::netd::Netd;
use crate::space::Space;
use crate::tap::{Tap, contains};
use crate::wait;

/// Nearest Customer Bridge (LLDP) and Nearest non-TPMR Bridge: a bridge passes neither on.
const GROUPS: [Mac; 2] = [[0x01, 0x80, 0xc2, 0, 0, 0x0e], [0x01, 0x80, 0xc2, 0, 0, 0x03]];

/// An address of the host's that is no network's.
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);
const PORT: u16 = 7777;
const OWN_PORT: u16 = 7778;

/// What a guest could reach of the host.
#[derive(Debug)]
pub(super) struct Guard<'a> {
    host: &'a Space,
    listener: UdpSocket,
}

/// What has reached it: packets that its filter refused, datagrams, and router advertisements.
type Reached = [u64; 3];

impl<'a> Guard<'a> {
    pub(super) fn new(host: &'a Space) -> Self {
        // A packet is refused because of where it comes in, not because the way back is another one.
        for path in ["all", "default"] {
            host.set(&format!("ipv4/conf/{path}/rp_filter"), "0");
        }
        host.ip(&format!("address add {HOST}/32 dev lo"));
        let listener = host.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)));
        let listener = listener.expect("a socket can be made");
        listener
            .set_nonblocking(true)
            .expect("a socket can be told not to wait");
        Self { host, listener }
    }

    /// What reaches the host of what is done. A tap's frame is the host's when its sending ends.
    fn reached(&self, act: impl FnOnce()) -> Reached {
        let before = (self.refused(), self.advertisements());
        act();
        let mut datagrams = 0;
        while self.listener.recv(&mut [0; 64]).is_ok() {
            datagrams += 1;
        }
        let after = (self.refused(), self.advertisements());
        [after.0 - before.0, datagrams, after.1 - before.1]
    }

    fn refused(&self) -> u64 {
        counts_of(self.host, "inet")
            .get("host")
            .copied()
            .unwrap_or_default()
    }

    /// Router advertisements that its IPv6 has taken note of.
    fn advertisements(&self) -> u64 {
        let read = || std::fs::read_to_string("/proc/thread-self/net/snmp6");
        let text = self.host.enter(read).expect("the host has IPv6");
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("Icmp6InRouterAdvertisements"));
        line.and_then(|count| count.trim().parse().ok())
            .expect("the kernel counts them")
    }

    /// Frames to link-local groups: the faults of a machine's. With the rules away they do reach the host.
    pub(super) fn groups(&self, kind: &str, card: &Card, guarded: bool) -> Vec<String> {
        let expected = if guarded { [2, 0, 0] } else { [0, 1, 1] };
        let mut faults = Vec::new();
        for group in GROUPS {
            let reached = self.reached(|| {
                card.tap.send(&datagram(group, card));
                card.tap.send(&advertisement(group, card));
            });
            faults.extend(fault(&format!("{kind}: to {group:02x?}"), reached, expected));
        }
        faults
    }

    /// The same of somebody in the VLAN of a network: the uplink's VLAN is a port of its bridge.
    pub(super) fn groups_of_vlan(&self, wire: &Tap, vid: u16, card: &Card, guarded: bool) -> Vec<String> {
        let expected = if guarded { [1, 0, 0] } else { [0, 1, 0] };
        let mut faults = Vec::new();
        for group in GROUPS {
            let reached = self.reached(|| {
                let before = self.refused();
                wire.send(&frame::tagged(&datagram(group, card), DOT1Q, vid));
                // It comes by a cable, when the kernel finds the time.
                wait::until("a frame to a link-local group is the host's", || {
                    if self.listener.peek(&mut [0; 64]).is_ok() || self.refused() > before {
                        Ok(())
                    } else {
                        Err("nothing came".to_owned())
                    }
                });
            });
            faults.extend(fault(
                &format!("in VLAN {vid}: to {group:02x?}"),
                reached,
                expected,
            ));
        }
        faults
    }

    /// A tap that somebody takes out of its bridge, before netd hears of it.
    pub(super) fn taken_out(&self, netd: &Netd<'_>, kind: &str, card: &Card) -> Vec<String> {
        let bridge = self.bridge_of(&card.name);
        netd.signal(Signal::STOP);
        let mut faults = self.alone(kind, card, true);
        netd.signal(Signal::CONT);
        wait::until("a tap is put back", || {
            let found = self.bridge_of(&card.name);
            if found == bridge { Ok(()) } else { Err(found) }
        });
        crate::guest::takes_frames(self.host, &card.name);
        faults.extend(self.groups(&format!("{kind}, put back"), card, true));
        faults
    }

    fn bridge_of(&self, tap: &str) -> String {
        let link = self.host.json("ip", &["-j", "link", "show", tap]);
        link[0]["master"].as_str().unwrap_or_default().to_owned()
    }

    /// Takes a tap out of its bridge; the faults of what its machine then says to the host.
    pub(super) fn alone(&self, kind: &str, card: &Card, guarded: bool) -> Vec<String> {
        let expected = if guarded { [6, 0, 0] } else { [0, 3, 3] };
        let tap = &card.name;
        self.host.ip(&format!("link set {tap} nomaster"));
        let link = self.host.json("ip", &["-j", "link", "show", tap]);
        let own = frame::mac(link[0]["address"].as_str().expect("a tap has an address"));
        card.tap.forget();
        let asks = Arp {
            request: true,
            sender: (card.party.mac, card.party.ipv4),
            target: ([0; 6], HOST),
        };
        let reached = self.reached(|| {
            for to in [own, BROADCAST, GROUPS[0]] {
                card.tap.send(&datagram(to, card));
                card.tap.send(&advertisement(to, card));
            }
            card.tap
                .send(&frame::arp(BROADCAST, card.party.mac, asks, "who has it"));
        });
        let mut faults = Vec::new();
        faults.extend(fault(&format!("{kind}: out of its bridge"), reached, expected));
        let mut answered = false;
        while let Ok(frame) = card.tap.take() {
            // Of ARP, from the host's end of the tap.
            answered |= contains(&frame, &[&own[..], &HOST.octets()].concat());
        }
        if answered == guarded {
            faults.push(format!("{kind}: the host answers ARP on a tap: {answered}"));
        }
        faults
    }

    /// With netd away and its rules with it, the same frames do arrive: so it is the rules that keep them away.
    pub(super) fn without(&self, mut netd: Netd<'_>) {
        netd.kill();
        self.host.nft("flush chain inet netd guard");
    }

    /// A tap is a link like any other again.
    pub(super) fn answers_arp(&self, card: &Card) {
        self.host.ip(&format!("link set {} arp on", card.name));
    }
}

fn fault(what: &str, reached: Reached, expected: Reached) -> Option<String> {
    let words = |[refused, datagrams, advertisements]: Reached| {
        format!("{refused} refused, {datagrams} datagrams and {advertisements} advertisements heard")
    };
    (reached != expected).then(|| format!("{what}: {}, and not {}", words(reached), words(expected)))
}

/// A machine's honest datagram to the host.
fn datagram(to: Mac, card: &Card) -> Vec<u8> {
    let addresses = (card.party.ipv4, HOST);
    frame::udp4((to, card.party.mac), addresses, (OWN_PORT, PORT), "to the host")
}

/// A machine's that says it is a router.
fn advertisement(to: Mac, card: &Card) -> Vec<u8> {
    let addresses = (link_local(card.party.mac), ALL_NODES);
    frame::discovery((to, card.party.mac), addresses, Discovery::Router, "a way out")
}
