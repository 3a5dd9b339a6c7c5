//! What does a frame look like, byte by byte?
//!
//! Each frame has a text of its own, by which a receiver knows it.

use std::net::{Ipv4Addr, Ipv6Addr};

/// A hardware address.
pub(crate) type Mac = [u8; 6];

/// To everybody.
pub(crate) const BROADCAST: Mac = [0xff; 6];

/// EtherType of 802.1Q tags.
pub(crate) const DOT1Q: u16 = 0x8100;
/// EtherType of 802.1ad tags.
pub(crate) const DOT1AD: u16 = 0x88a8;

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;

const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// The hardware address in a text such as "02:00:00:00:00:01".
pub(crate) fn mac(text: &str) -> Mac {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|byte| {
            u8::from_str_radix(byte, 16).unwrap_or_else(|_| panic!("{text:?} is no hardware address"))
        })
        .collect();
    bytes
        .try_into()
        .unwrap_or_else(|_| panic!("{text:?} is no hardware address"))
}

/// A frame with anything in it.
pub(crate) fn ether(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(14 + payload.len());
    frame.extend(to);
    frame.extend(from);
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The frame with one more tag, outside those it has.
pub(crate) fn tagged(frame: &[u8], protocol: u16, vid: u16) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(12);
    [addresses, &protocol.to_be_bytes(), &vid.to_be_bytes(), rest].concat()
}

/// The frame as 802.3 with LLC and SNAP: a length where the EtherType was, which comes later.
pub(crate) fn llc_snap(frame: &[u8]) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(12);
    let body = [&[0xaa, 0xaa, 0x03, 0, 0, 0], rest].concat();
    let length = u16::try_from(body.len()).expect("a short frame");
    [addresses, &length.to_be_bytes(), &body].concat()
}

/// What an ARP packet says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arp {
    pub(crate) request: bool,
    pub(crate) sender: (Mac, Ipv4Addr),
    pub(crate) target: (Mac, Ipv4Addr),
}

/// An ARP packet, from whomever.
pub(crate) fn arp(to: Mac, from: Mac, says: Arp, text: &str) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, if says.request { 1 } else { 2 }];
    for (hardware, address) in [says.sender, says.target] {
        packet.extend(hardware);
        packet.extend(address.octets());
    }
    packet.extend(text.as_bytes());
    ether(to, from, ARP, &packet)
}

/// A UDP datagram's ports.
pub(crate) type Ports = (u16, u16);

fn udp(ports: Ports, text: &str, pseudo_header: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + text.len()).expect("a short datagram");
    let mut datagram = Vec::new();
    datagram.extend(ports.0.to_be_bytes());
    datagram.extend(ports.1.to_be_bytes());
    datagram.extend(length.to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(text.as_bytes());
    let sum = checksum(&[pseudo_header, &datagram].concat());
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    datagram
}

/// A UDP datagram over IPv4.
pub(crate) fn udp4(
    (to, from): (Mac, Mac),
    (source, destination): (Ipv4Addr, Ipv4Addr),
    ports: Ports,
    text: &str,
) -> Vec<u8> {
    let mut pseudo_header = [source.octets(), destination.octets()].concat();
    pseudo_header.extend([0, UDP]);
    pseudo_header.extend(
        u16::try_from(8 + text.len())
            .expect("a short datagram")
            .to_be_bytes(),
    );
    let datagram = udp(ports, text, &pseudo_header);
    let length = u16::try_from(20 + datagram.len()).expect("a short datagram");
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 1, 0x40, 0, 64, UDP, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(datagram);
    ether(to, from, IPV4, &packet)
}

fn ipv6(
    (to, from): (Mac, Mac),
    (source, destination): (Ipv6Addr, Ipv6Addr),
    next: u8,
    hop_limit: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(
        u16::try_from(payload.len())
            .expect("a short packet")
            .to_be_bytes(),
    );
    packet.extend([next, hop_limit]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    ether(to, from, IPV6, &packet)
}

fn pseudo_header6((source, destination): (Ipv6Addr, Ipv6Addr), next: u8, length: usize) -> Vec<u8> {
    let mut header = [source.octets(), destination.octets()].concat();
    header.extend(u32::try_from(length).expect("a short packet").to_be_bytes());
    header.extend([0, 0, 0, next]);
    header
}

/// A UDP datagram over IPv6.
pub(crate) fn udp6(macs: (Mac, Mac), addresses: (Ipv6Addr, Ipv6Addr), ports: Ports, text: &str) -> Vec<u8> {
    let datagram = udp(ports, text, &pseudo_header6(addresses, UDP, 8 + text.len()));
    ipv6(macs, addresses, UDP, 64, &datagram)
}

/// What an ICMPv6 message of neighbour discovery or multicast listening says.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Discovery {
    /// Router advertisement: whoever hears it takes the sender for a router.
    Router,
    /// Neighbour solicitation: who has this address?
    Solicitation(Ipv6Addr),
    /// Neighbour advertisement: I have this address, at this hardware address.
    Advertisement(Ipv6Addr, Mac),
    /// Redirect: the way to this address is through that one.
    Redirect(Ipv6Addr, Ipv6Addr),
    /// Report of the groups that are listened to (MLD 2).
    Listener(Ipv6Addr),
}

/// A message of neighbour discovery or multicast listening.
pub(crate) fn discovery(
    macs: (Mac, Mac),
    addresses: (Ipv6Addr, Ipv6Addr),
    says: Discovery,
    text: &str,
) -> Vec<u8> {
    let mut message = match says {
        // Hop limit 64, no flags, lifetime 1800 s, and its hardware address.
        Discovery::Router => {
            let mut message = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
            message.extend([1, 1]);
            message.extend(macs.1);
            message
        }
        Discovery::Solicitation(target) => [&[135, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat(),
        // Solicited no, override yes, and the hardware address.
        Discovery::Advertisement(target, hardware) => {
            let head: &[u8] = &[136, 0, 0, 0, 0x20, 0, 0, 0];
            [head, &target.octets(), &[2, 1], &hardware].concat()
        }
        Discovery::Redirect(destination, through) => {
            let head: &[u8] = &[137, 0, 0, 0, 0, 0, 0, 0];
            [head, &through.octets(), &destination.octets()].concat()
        }
        // One record: changed to excluding nothing.
        Discovery::Listener(group) => {
            let head: &[u8] = &[143, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0];
            [head, &group.octets()].concat()
        }
    };
    // In an option for experiments, of a length in eights. What listeners say may be followed by anything.
    let option = 2 + text.len();
    message.extend([253, u8::try_from(option.div_ceil(8)).expect("a short text")]);
    message.extend(text.as_bytes());
    message.resize(message.len() + option.next_multiple_of(8) - option, 0);
    let whole = [pseudo_header6(addresses, ICMPV6, message.len()), message.clone()].concat();
    message[2..4].copy_from_slice(&checksum(&whole).to_be_bytes());
    ipv6(macs, addresses, ICMPV6, 255, &message)
}

/// The link-local address that is computed from a hardware address.
pub(crate) fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// Where an IPv6 multicast group's packets go.
pub(crate) fn multicast_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

/// The checksum of the internet protocols.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        let low = pair.get(1).copied().unwrap_or_default();
        u32::from(u16::from_be_bytes([pair[0], low]))
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("it was folded")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_as_in_rfc_1071_and_real_packets() {
        assert_eq!(
            checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            !0xddf2
        );
        let macs = (BROADCAST, [2, 0, 0, 0, 0, 1]);
        let frame = udp4(
            macs,
            (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)),
            (1, 2),
            "odd",
        );
        // A checksum over what contains it is zero.
        assert_eq!(checksum(&frame[14..34]), 0);
        let six = discovery(
            macs,
            (link_local(macs.1), Ipv6Addr::LOCALHOST),
            Discovery::Router,
            "",
        );
        let addresses = (link_local(macs.1), Ipv6Addr::LOCALHOST);
        let message = &six[54..];
        assert_eq!(
            checksum(&[&pseudo_header6(addresses, ICMPV6, message.len()), message].concat()),
            0
        );
    }

    #[test]
    fn tags_and_lengths_stand_where_they_belong() {
        let frame = ether([1; 6], [2; 6], 0x0800, b"payload");
        let outer = tagged(&tagged(&frame, DOT1Q, 5), DOT1AD, 6);
        assert_eq!(&outer[12..22], [0x88, 0xa8, 0, 6, 0x81, 0, 0, 5, 8, 0]);
        let llc = llc_snap(&frame);
        assert_eq!(&llc[12..14], [0, 15]);
        assert_eq!(llc.len(), 14 + 15);
        assert_eq!(
            link_local([2, 0, 0, 0, 0, 1]),
            "fe80::ff:fe00:1".parse::<Ipv6Addr>().expect("an address")
        );
    }
}
