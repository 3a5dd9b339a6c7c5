//! Which frames does a guest send, and which of them are forged?

use std::net::{Ipv4Addr, Ipv6Addr};

use super::ALL_NODES;
use crate::frame::{
    Arp, BROADCAST, DOT1AD, DOT1Q, Discovery, Mac, arp, discovery, ether, link_local, llc_snap,
    multicast_mac, tagged, udp4, udp6,
};

/// Somebody on the network.
#[derive(Debug, Clone, Copy)]
pub(super) struct Party {
    pub(super) mac: Mac,
    pub(super) ipv4: Ipv4Addr,
    /// None where the network has no IPv6.
    pub(super) ipv6: Option<Ipv6Addr>,
}

/// A frame, and what becomes of it.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) frame: Vec<u8>,
    /// Why it is dropped; `None`: it arrives.
    pub(super) dies: Option<&'static str>,
}

const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const ALL_DHCP: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
const ALL_LISTENERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);

/// The group in which an address is asked for.
fn solicited(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c])
}

/// The frames of a guest on a port of one VLAN, or none: `me` sends, `to` receives, and `victim` is whose addresses are taken.
pub(super) fn access(me: Party, to: Party, victim: Party) -> Vec<Case> {
    let mut cases = Cases(Vec::new());
    let mut add = |name, dies, frame: &dyn Fn(&str) -> Vec<u8>| cases.add(name, dies, frame);
    let unicast = (to.mac, me.mac);
    let own = (me.ipv4, to.ipv4);
    let stolen = (victim.ipv4, to.ipv4);
    let ports = (9, 9);
    let request = |sender: (Mac, Ipv4Addr), text: &str, from: Mac| {
        let says = Arp {
            request: true,
            sender,
            target: ([0; 6], to.ipv4),
        };
        arp(BROADCAST, from, says, text)
    };
    let reply = |sender: (Mac, Ipv4Addr), text: &str| {
        let says = Arp {
            request: false,
            sender,
            target: (to.mac, to.ipv4),
        };
        arp(to.mac, me.mac, says, text)
    };

    add("honest IPv4", None, &|text| udp4(unicast, own, ports, text));
    add("honest ARP request", None, &|text| {
        request((me.mac, me.ipv4), text, me.mac)
    });
    add("honest ARP reply", None, &|text| reply((me.mac, me.ipv4), text));
    let asks_for = |target: Ipv4Addr, text: &str| {
        let says = Arp {
            request: true,
            sender: (me.mac, Ipv4Addr::UNSPECIFIED),
            target: ([0; 6], target),
        };
        arp(BROADCAST, me.mac, says, text)
    };
    add("honest ARP probe", None, &|text| asks_for(me.ipv4, text));
    add("ARP probe of a foreign address", Some("arp"), &|text| {
        asks_for(victim.ipv4, text)
    });
    add("honest DHCPv4 client", None, &|text| {
        let addresses = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
        udp4((BROADCAST, me.mac), addresses, (68, 67), text)
    });

    // netd.md's nine.
    let forged = |text: &str| udp4(unicast, stolen, ports, text);
    add("foreign IPv4 source", Some("ipv4"), &forged);
    add("foreign ARP sender", Some("arp"), &|text| {
        request((me.mac, victim.ipv4), text, me.mac)
    });
    add("foreign source MAC", Some("mac"), &|text| {
        udp4((to.mac, victim.mac), own, ports, text)
    });
    add("foreign source behind a priority tag", Some("tag"), &|text| {
        tagged(&forged(text), DOT1Q, 0)
    });
    add("foreign source behind tag 5", Some("tag"), &|text| {
        tagged(&forged(text), DOT1Q, 5)
    });
    add("foreign source behind two priority tags", Some("tag"), &|text| {
        tagged(&tagged(&forged(text), DOT1Q, 0), DOT1Q, 0)
    });
    add("foreign source behind an 802.1ad tag", Some("tag"), &|text| {
        tagged(&forged(text), DOT1AD, 5)
    });
    add("foreign source in LLC/SNAP", Some("llc"), &|text| {
        llc_snap(&forged(text))
    });
    add("ARP sender is not the frame's", Some("arp"), &|text| {
        request((victim.mac, me.ipv4), text, me.mac)
    });

    // An honest packet's tag is as bad.
    let honest = |text: &str| udp4(unicast, own, ports, text);
    add("priority tag", Some("tag"), &|text| {
        tagged(&honest(text), DOT1Q, 0)
    });
    add("priority tag with priority 7", Some("tag"), &|text| {
        tagged(&honest(text), DOT1Q, 7 << 13)
    });
    add("double tag", Some("tag"), &|text| {
        tagged(&tagged(&honest(text), DOT1Q, 5), DOT1Q, 6)
    });
    add("QinQ", Some("tag"), &|text| {
        tagged(&tagged(&honest(text), DOT1Q, 5), DOT1AD, 6)
    });
    add("old QinQ", Some("tag"), &|text| tagged(&honest(text), 0x9100, 6));
    add("LLC/SNAP", Some("llc"), &|text| llc_snap(&honest(text)));
    add("no IPv4 address", Some("ipv4"), &|text| {
        udp4(unicast, (Ipv4Addr::UNSPECIFIED, to.ipv4), ports, text)
    });
    add("DHCPv4 server", Some("dhcp"), &|text| {
        udp4(
            (BROADCAST, me.mac),
            (me.ipv4, Ipv4Addr::BROADCAST),
            (67, 68),
            text,
        )
    });
    add("DHCPv4 server, to one", Some("dhcp"), &|text| {
        udp4(unicast, own, (67, 68), text)
    });
    add("foreign ARP reply", Some("arp"), &|text| {
        reply((me.mac, victim.ipv4), text)
    });
    add("RARP", Some("other"), &|text| {
        let mut frame = request((me.mac, me.ipv4), text, me.mac);
        frame[12..14].copy_from_slice(&[0x80, 0x35]);
        frame
    });
    add("ARP of another kind of hardware", Some("arp"), &|text| {
        let mut frame = request((me.mac, victim.ipv4), text, me.mac);
        frame[14..16].copy_from_slice(&[0, 6]);
        frame
    });
    add("LLDP", Some("other"), &|text| {
        ether(BROADCAST, me.mac, 0x88cc, text.as_bytes())
    });
    add("ICMP redirect", Some("redirect"), &|text| {
        let mut frame = udp4(unicast, own, (5 << 8, 0), text);
        frame[23] = 1;
        frame
    });
    add("no such protocol", Some("other"), &|text| {
        ether(to.mac, me.mac, 0xffff, text.as_bytes())
    });

    // What a router or another machine says.
    let local = link_local(me.mac);
    let all = (multicast_mac(ALL_NODES), me.mac);
    add("RA", Some("ra"), &|text| {
        discovery(all, (local, ALL_NODES), Discovery::Router, text)
    });
    add("RA, to one", Some("ra"), &|text| {
        discovery(unicast, (local, link_local(to.mac)), Discovery::Router, text)
    });
    add("RA behind a hop-by-hop header", Some("ra"), &|text| {
        behind_options(discovery(all, (local, ALL_NODES), Discovery::Router, text), 0)
    });
    add("RA behind destination options", Some("ra"), &|text| {
        behind_options(discovery(all, (local, ALL_NODES), Discovery::Router, text), 60)
    });
    add("RA as a fragment that is all", Some("ra"), &|text| {
        let whole = discovery(all, (local, ALL_NODES), Discovery::Router, text);
        fragment(whole, false)
    });
    add(
        "RA of which the first fragment has nothing",
        Some("ipv6"),
        &|text| {
            let whole = discovery(all, (local, ALL_NODES), Discovery::Router, text);
            let mut first = fragment(behind_options(whole, 60), true);
            // Behind the fragment's header and the options there is only the text.
            first.truncate(54 + 8 + 8);
            first[18..20].copy_from_slice(&16_u16.to_be_bytes());
            first.extend(text.as_bytes());
            first
        },
    );
    add("redirect", Some("redirect"), &|text| {
        let says = Discovery::Redirect(link_local(victim.mac), local);
        discovery(unicast, (local, link_local(to.mac)), says, text)
    });
    add("foreign link-local source", Some("ipv6"), &|text| {
        udp6(unicast, (link_local(victim.mac), link_local(to.mac)), ports, text)
    });
    add("DHCPv6 server", Some("dhcp"), &|text| {
        udp6(unicast, (local, link_local(to.mac)), (547, 546), text)
    });
    add("foreign NA, link-local", Some("nd"), &|text| {
        let says = Discovery::Advertisement(link_local(victim.mac), me.mac);
        discovery(all, (local, ALL_NODES), says, text)
    });
    if let (Some(ipv6), Some(theirs), Some(its)) = (me.ipv6, victim.ipv6, to.ipv6) {
        add("honest IPv6", None, &|text| {
            udp6(unicast, (ipv6, its), ports, text)
        });
        add("honest IPv6, link-local", None, &|text| {
            udp6(unicast, (local, link_local(to.mac)), ports, text)
        });
        add("honest NS", None, &|text| {
            let group = solicited(its);
            discovery(
                (multicast_mac(group), me.mac),
                (ipv6, group),
                Discovery::Solicitation(its),
                text,
            )
        });
        for (name, address) in [("honest DAD", ipv6), ("honest DAD, link-local", local)] {
            add(name, None, &|text| {
                let group = solicited(address);
                let addresses = (Ipv6Addr::UNSPECIFIED, group);
                discovery(
                    (multicast_mac(group), me.mac),
                    addresses,
                    Discovery::Solicitation(address),
                    text,
                )
            });
        }
        add("honest NA", None, &|text| {
            let says = Discovery::Advertisement(ipv6, me.mac);
            discovery(unicast, (ipv6, its), says, text)
        });
        add("honest NA, link-local", None, &|text| {
            let says = Discovery::Advertisement(local, me.mac);
            discovery(all, (local, ALL_NODES), says, text)
        });
        add("honest MLD report", None, &|text| {
            let macs = (multicast_mac(ALL_LISTENERS), me.mac);
            discovery(
                macs,
                (Ipv6Addr::UNSPECIFIED, ALL_LISTENERS),
                Discovery::Listener(solicited(ipv6)),
                text,
            )
        });
        add("honest DHCPv6 client", None, &|text| {
            udp6(
                (multicast_mac(ALL_DHCP), me.mac),
                (local, ALL_DHCP),
                (546, 547),
                text,
            )
        });
        add("foreign IPv6 source", Some("ipv6"), &|text| {
            udp6(unicast, (theirs, its), ports, text)
        });
        add("foreign IPv6 source behind tag 5", Some("tag"), &|text| {
            tagged(&udp6(unicast, (theirs, its), ports, text), DOT1Q, 5)
        });
        add("no IPv6 address", Some("ipv6"), &|text| {
            udp6(unicast, (Ipv6Addr::UNSPECIFIED, its), ports, text)
        });
        add("foreign NA", Some("nd"), &|text| {
            let says = Discovery::Advertisement(theirs, me.mac);
            discovery(all, (ipv6, ALL_NODES), says, text)
        });
        add("foreign NA, as the other", Some("nd"), &|text| {
            let says = Discovery::Advertisement(theirs, me.mac);
            discovery(all, (theirs, ALL_NODES), says, text)
        });
        add("foreign NA behind a hop-by-hop header", Some("nd"), &|text| {
            let says = Discovery::Advertisement(theirs, me.mac);
            behind_options(discovery(all, (ipv6, ALL_NODES), says, text), 0)
        });
        add("DHCPv6 server, own address", Some("dhcp"), &|text| {
            udp6(unicast, (ipv6, its), (547, 546), text)
        });
        add("DAD of a foreign address", Some("nd"), &|text| {
            let group = solicited(theirs);
            let addresses = (Ipv6Addr::UNSPECIFIED, group);
            discovery(
                (multicast_mac(group), me.mac),
                addresses,
                Discovery::Solicitation(theirs),
                text,
            )
        });
        add("honest RS", None, &|text| {
            let mut frame = discovery(
                (multicast_mac(ALL_ROUTERS), me.mac),
                (local, ALL_ROUTERS),
                Discovery::Solicitation(local),
                text,
            );
            // Nothing checks the sum on the way.
            frame[54] = 133;
            frame
        });
    }
    cases.0
}

/// The frames of a guest with tags, in VLAN `vid` and others; of `other` it is not.
pub(super) fn trunk(me: Party, to: Party, victim: Party, (vid, other): (u16, u16)) -> Vec<Case> {
    let mut cases = Cases(Vec::new());
    let mut add = |name, dies, frame: &dyn Fn(&str) -> Vec<u8>| cases.add(name, dies, frame);
    let unicast = (to.mac, me.mac);
    let ports = (9, 9);
    let in_vid = |frame: &[u8]| tagged(frame, DOT1Q, vid);
    let from = |source: Ipv4Addr, text: &str| udp4(unicast, (source, to.ipv4), ports, text);
    let honest = |text: &str| from(me.ipv4, text);
    let request = |sender: (Mac, Ipv4Addr), text: &str| {
        let says = Arp {
            request: true,
            sender,
            target: ([0; 6], to.ipv4),
        };
        arp(BROADCAST, me.mac, says, text)
    };
    let local = link_local(me.mac);
    let all = (multicast_mac(ALL_NODES), me.mac);

    add("honest IPv4", None, &|text| in_vid(&honest(text)));
    add("forwarded IPv4", None, &|text| in_vid(&from(victim.ipv4, text)));
    add("honest ARP", None, &|text| {
        in_vid(&request((me.mac, me.ipv4), text))
    });
    add("RA of a router", None, &|text| {
        in_vid(&discovery(all, (local, ALL_NODES), Discovery::Router, text))
    });
    add("foreign source MAC", Some("mac"), &|text| {
        in_vid(&udp4((to.mac, victim.mac), (me.ipv4, to.ipv4), ports, text))
    });
    add("ARP sender is not the frame's", Some("arp"), &|text| {
        in_vid(&request((victim.mac, me.ipv4), text))
    });
    add("no tag", Some("tag"), &honest);
    add("priority tag", Some("tag"), &|text| {
        tagged(&honest(text), DOT1Q, 0)
    });
    add("a VLAN that is not its", Some("tag"), &|text| {
        tagged(&honest(text), DOT1Q, other)
    });
    add("VLAN 4095", Some("tag"), &|text| {
        tagged(&honest(text), DOT1Q, 4095)
    });
    add("802.1ad tag", Some("tag"), &|text| {
        tagged(&honest(text), DOT1AD, vid)
    });
    add("double tag", Some("tag"), &|text| {
        in_vid(&tagged(&honest(text), DOT1Q, other))
    });
    add("double tag of its own", Some("tag"), &|text| {
        in_vid(&in_vid(&honest(text)))
    });
    add("QinQ", Some("tag"), &|text| {
        tagged(&in_vid(&honest(text)), DOT1AD, vid)
    });
    add("old QinQ within", Some("tag"), &|text| {
        in_vid(&tagged(&honest(text), 0x9100, other))
    });
    add("priority tag within", Some("tag"), &|text| {
        in_vid(&tagged(&honest(text), DOT1Q, 0))
    });
    add("LLC/SNAP", Some("llc"), &|text| in_vid(&llc_snap(&honest(text))));
    add("LLDP", Some("other"), &|text| {
        in_vid(&ether(BROADCAST, me.mac, 0x88cc, text.as_bytes()))
    });
    cases.0
}

/// An honest frame, and a text within it.
pub(super) fn end(me: Party, to: Party, vid: Option<u16>) -> (Vec<u8>, &'static [u8]) {
    const TEXT: &str = "the end of it";
    let frame = udp4((to.mac, me.mac), (me.ipv4, to.ipv4), (9, 9), TEXT);
    let frame = vid.map_or_else(|| frame.clone(), |vid| tagged(&frame, DOT1Q, vid));
    (frame, TEXT.as_bytes())
}

/// Cases that are being written.
#[derive(Debug)]
struct Cases(Vec<Case>);

impl Cases {
    fn add(&mut self, name: &'static str, dies: Option<&'static str>, frame: &dyn Fn(&str) -> Vec<u8>) {
        let frame = frame(&mark(name));
        self.0.push(Case { name, frame, dies });
    }
}

/// What a case's frame has within.
pub(super) fn mark(name: &str) -> String {
    format!("[{name}]")
}

/// The same packet with the header of its first fragment.
fn fragment(mut frame: Vec<u8>, more: bool) -> Vec<u8> {
    let (length, next) = (u16::from_be_bytes([frame[18], frame[19]]), frame[20]);
    frame[18..20].copy_from_slice(&(length + 8).to_be_bytes());
    frame[20] = 44;
    frame.splice(54..54, [next, 0, 0, u8::from(more), 0, 0, 0, 1]);
    frame
}

/// The same packet with eight bytes of padding options before its message.
fn behind_options(mut frame: Vec<u8>, header: u8) -> Vec<u8> {
    let (length, next) = (u16::from_be_bytes([frame[18], frame[19]]), frame[20]);
    frame[18..20].copy_from_slice(&(length + 8).to_be_bytes());
    frame[20] = header;
    frame.splice(54..54, [next, 0, 1, 4, 0, 0, 0, 0]);
    frame
}
