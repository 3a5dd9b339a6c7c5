//! Does somebody on the network have an address that a machine here is to get?
//!
//! IPv4 as RFC 5227 says: ARP that asks without telling an address of one's own. Whoever has the identity is found by its IPv6
//! link-local address, which most systems compute from the hardware address. What comes back is written by anybody.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use netd_plan::Mac;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::packet::{FRAME_MAX, Packet};

/// So often each question is asked within its time.
const TIMES: u32 = 3;

const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const ETHERTYPE_VLAN: [u8; 2] = [0x81, 0x00];
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Of an advertisement's flags (RFC 4861, 4.4): it counts more than what is known.
const OVERRIDE: u8 = 0x20;
const TARGET_LINK_LAYER_ADDRESS: u8 = 2;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// A message that came through a router has less.
const HOP_LIMIT: u8 = 255;

/// A link where it is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The kernel's number of the link.
    pub(crate) index: u32,
    /// Its own address, which the question comes from.
    pub(crate) mac: Mac,
    /// The VLAN, where frames carry a tag there.
    pub(crate) tag: Option<u16>,
}

/// What is asked for one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    /// Where.
    pub(crate) places: Vec<Place>,
    /// Who has this address?
    pub(crate) ipv4: Option<Ipv4Addr>,
    /// And this?
    pub(crate) link_local: Ipv6Addr,
    /// How long others have time to say so.
    pub(crate) time: Duration,
}

/// Somebody has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    /// The IPv4 address.
    Ipv4(Mac),
    /// The link-local address.
    LinkLocal(Mac),
}

/// Asks, and waits for the first answer or until the time is over. Blocks.
pub(crate) fn ask(question: &Question) -> Result<Option<Holder>, Errno> {
    let mut sockets = Vec::with_capacity(question.places.len());
    for place in &question.places {
        sockets.push((place, Packet::open(place.index, place.tag)?));
    }
    let began = Instant::now();
    let mut asked = 0;
    loop {
        let passed = began.elapsed();
        if passed >= question.time || sockets.is_empty() {
            return Ok(None);
        }
        let mut next = question.time / TIMES * asked;
        if asked < TIMES && passed >= next {
            for (place, socket) in &sockets {
                for frame in frames(question, place) {
                    socket.send(&frame)?;
                }
            }
            asked += 1;
            next = question.time / TIMES * asked;
        }
        let until = if asked < TIMES { next } else { question.time };
        let timeout = Timespec::try_from(until.saturating_sub(passed)).map_err(|_| Errno::INVAL)?;
        let mut ready: Vec<PollFd<'_>> = sockets
            .iter()
            .map(|(_, socket)| PollFd::new(socket, PollFlags::IN))
            .collect();
        match poll(&mut ready, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        let ready: Vec<bool> = ready.iter().map(|fd| !fd.revents().is_empty()).collect();
        for ((place, socket), _) in sockets.iter().zip(ready).filter(|(_, ready)| *ready) {
            let mut room = [0; FRAME_MAX];
            while let Some(frame) = socket.receive(&mut room)? {
                if let Some(holder) = holder(question, place, frame) {
                    return Ok(Some(holder));
                }
            }
        }
    }
}

/// The frames that ask in one place.
fn frames(question: &Question, place: &Place) -> Vec<Vec<u8>> {
    let solicitation = solicitation(question.link_local, place);
    let probe = question.ipv4.map(|address| arp(address, place));
    probe.into_iter().chain([solicitation]).collect()
}

fn header(to: [u8; 6], place: &Place, kind: [u8; 2]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(90);
    frame.extend(to);
    frame.extend(place.mac.0);
    if let Some(vid) = place.tag {
        frame.extend(ETHERTYPE_VLAN);
        frame.extend(vid.to_be_bytes());
    }
    frame.extend(kind);
    frame
}

/// An ARP probe: a request whose sender has no address.
fn arp(address: Ipv4Addr, place: &Place) -> Vec<u8> {
    let mut frame = header([0xff; 6], place, ETHERTYPE_ARP);
    // Ethernet, IPv4, the lengths of their addresses, request.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(place.mac.0);
    frame.extend([0; 4]);
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

/// A neighbour solicitation whose sender has no address, as in duplicate address detection.
fn solicitation(address: Ipv6Addr, place: &Place) -> Vec<u8> {
    let [.., a, b, c] = address.octets();
    let mut frame = header([0x33, 0x33, 0xff, a, b, c], place, ETHERTYPE_IPV6);
    let to = Ipv6Addr::new(
        0xff02,
        0,
        0,
        0,
        0,
        1,
        0xff00 | u16::from(a),
        u16::from_be_bytes([b, c]),
    );
    let mut message = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend(address.octets());
    icmpv6(&mut frame, Ipv6Addr::UNSPECIFIED, to, message);
    frame
}

/// Puts a message behind an Ethernet header, with its checksum.
fn icmpv6(frame: &mut Vec<u8>, from: Ipv6Addr, to: Ipv6Addr, mut message: Vec<u8>) {
    let sum = checksum(from, to, &message);
    message.splice(2..4, sum);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(u16::try_from(message.len()).unwrap_or_default().to_be_bytes());
    frame.extend([ICMPV6, HOP_LIMIT]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    frame.extend(message);
}

/// The checksum of an ICMPv6 message, with the pseudo header.
fn checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> [u8; 2] {
    let length = u32::try_from(message.len()).unwrap_or_default();
    let pseudo = [
        from.octets().as_slice(),
        to.octets().as_slice(),
        &length.to_be_bytes(),
        &[0, 0, 0, ICMPV6],
    ]
    .concat();
    let words = |bytes: &[u8]| -> u32 {
        let pairs = bytes.chunks(2);
        pairs
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
            .sum()
    };
    let mut sum = words(&pseudo) + words(message);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [_, _, high, low] = (!sum).to_be_bytes();
    [high, low]
}

/// Who says in a frame, without tag, that it has what is asked for.
fn holder(question: &Question, place: &Place, frame: &[u8]) -> Option<Holder> {
    let mac = |from: usize| -> Option<Mac> { Some(Mac(frame.get(from..from + 6)?.try_into().ok()?)) };
    match <[u8; 2]>::try_from(frame.get(12..14)?).ok()? {
        ETHERTYPE_ARP => {
            // Ethernet, IPv4, the lengths of their addresses; request or answer is the same here.
            if frame.get(14..20)? != [0, 1, 8, 0, 6, 4] {
                return None;
            }
            let wanted = question.ipv4?.octets();
            let (sender, from, about) = (mac(22)?, frame.get(28..32)?, frame.get(38..42)?);
            // Another host that is just asking for the same address wants it too.
            let asks = from == [0; 4] && about == wanted && sender != place.mac;
            (from == wanted || asks).then_some(Holder::Ipv4(sender))
        }
        ETHERTYPE_IPV6 => {
            let is_message = *frame.get(20)? == ICMPV6 && *frame.get(21)? == HOP_LIMIT;
            let about = frame.get(62..78)? == question.link_local.octets();
            let sender = mac(6)?;
            if !is_message || !about || sender == place.mac {
                return None;
            }
            match *frame.get(54)? {
                ADVERTISEMENT => Some(Holder::LinkLocal(sender)),
                // Without an address of its own it is about to take this one.
                SOLICITATION if frame.get(22..38)? == [0; 16] => Some(Holder::LinkLocal(sender)),
                _ => None,
            }
        }
        _ => None,
    }
}

/// What the machine that has what is asked for would say to somebody who asks without having an address, in a frame without
/// tag.
pub(crate) fn reply(question: &Question, mac: Mac, place: &Place, frame: &[u8]) -> Option<Vec<u8>> {
    let asker: [u8; 6] = frame.get(6..12)?.try_into().ok()?;
    let own = Place { mac, ..place.clone() };
    match <[u8; 2]>::try_from(frame.get(12..14)?).ok()? {
        ETHERTYPE_ARP => {
            let address = question.ipv4?;
            let asks = frame.get(14..22)? == [0, 1, 8, 0, 6, 4, 0, 1] && frame.get(28..32)? == [0; 4];
            if !asks || frame.get(38..42)? != address.octets() || frame.get(22..28)? == mac.0 {
                return None;
            }
            let mut answer = header(asker, &own, ETHERTYPE_ARP);
            answer.extend([0, 1, 8, 0, 6, 4, 0, 2]);
            answer.extend(mac.0);
            answer.extend(address.octets());
            answer.extend(asker);
            answer.extend([0; 4]);
            Some(answer)
        }
        ETHERTYPE_IPV6 => {
            let asks =
                *frame.get(20)? == ICMPV6 && *frame.get(21)? == HOP_LIMIT && *frame.get(54)? == SOLICITATION;
            let unspecified = frame.get(22..38)? == [0; 16];
            let about = frame.get(62..78)? == question.link_local.octets();
            if !asks || !unspecified || !about || asker == mac.0 {
                return None;
            }
            // To everybody: who asks has no address yet.
            let mut answer = header([0x33, 0x33, 0, 0, 0, 1], &own, ETHERTYPE_IPV6);
            let mut message = vec![ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0];
            message.extend(question.link_local.octets());
            message.extend([TARGET_LINK_LAYER_ADDRESS, 1]);
            message.extend(mac.0);
            icmpv6(&mut answer, question.link_local, ALL_NODES, message);
            Some(answer)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_what_an_asker_hears() {
        let (own, there) = (Mac([0x0e, 0, 0, 0, 0, 7]), place(None));
        let mut asked = question();
        asked.link_local = own.link_local();
        let [arp, solicitation] = <[Vec<u8>; 2]>::try_from(frames(&asked, &there)).unwrap();
        let answer = reply(&asked, own, &there, &arp).unwrap();
        assert_eq!(holder(&asked, &there, &answer), Some(Holder::Ipv4(own)));
        assert_eq!(answer[..12], [there.mac.0, own.0].concat());
        let answer = reply(&asked, own, &there, &solicitation).unwrap();
        assert_eq!(holder(&asked, &there, &answer), Some(Holder::LinkLocal(own)));
        let to = <[u8; 16]>::try_from(&answer[38..54]).unwrap();
        assert_eq!(checksum(asked.link_local, to.into(), &answer[54..]), [0, 0]);
        // On a trunk with its tag.
        let tagged = reply(&asked, own, &place(Some(100)), &arp).unwrap();
        assert_eq!(tagged[12..16], [0x81, 0, 0, 100]);
        // Not to what is asked about another, by one that has an address, or by itself.
        let mut other = asked.clone();
        other.ipv4 = Some(Ipv4Addr::new(10, 1, 0, 8));
        other.link_local = "fe80::8".parse().unwrap();
        for frame in [&arp, &solicitation] {
            assert_eq!(reply(&other, own, &there, frame), None);
            for length in 0..frame.len() {
                assert_eq!(reply(&asked, own, &there, &frame[..length.min(41)]), None);
            }
        }
        let mut from_somebody = arp.clone();
        from_somebody[31] = 9;
        assert_eq!(reply(&asked, own, &there, &from_somebody), None);
        assert_eq!(reply(&asked, there.mac, &there, &arp), None);
        assert_eq!(reply(&asked, there.mac, &there, &solicitation), None);
    }

    fn question() -> Question {
        Question {
            places: vec![place(None)],
            ipv4: Some(Ipv4Addr::new(10, 1, 0, 7)),
            link_local: "fe80::ff:fe00:107".parse().unwrap(),
            time: Duration::from_millis(300),
        }
    }

    fn place(tag: Option<u16>) -> Place {
        Place {
            index: 2,
            mac: Mac([2, 0, 0, 0, 0, 1]),
            tag,
        }
    }

    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn answer() -> Vec<u8> {
        let mut frame = arp(Ipv4Addr::new(10, 1, 0, 9), &place(None));
        frame[21] = 2;
        frame[22..28].copy_from_slice(&OTHER.0);
        frame[28..32].copy_from_slice(&[10, 1, 0, 7]);
        frame
    }

    #[test]
    fn an_answer_tells_its_sender() {
        let held = Some(Holder::Ipv4(OTHER));
        assert_eq!(holder(&question(), &place(None), &answer()), held);
        // A machine that announces itself.
        let mut announced = answer();
        announced[21] = 1;
        assert_eq!(holder(&question(), &place(None), &announced), held);
        // Another host that asks at the same time, but not the question itself.
        let mut asked = arp(Ipv4Addr::new(10, 1, 0, 7), &place(None));
        assert_eq!(holder(&question(), &place(None), &asked), None);
        asked[22..28].copy_from_slice(&OTHER.0);
        assert_eq!(holder(&question(), &place(None), &asked), held);
        // Who asks for the address, having another, has it not.
        asked[28..32].copy_from_slice(&[10, 1, 0, 9]);
        assert_eq!(holder(&question(), &place(None), &asked), None);
    }

    #[test]
    fn an_advertisement_tells_its_sender() {
        let mut frame = solicitation(question().link_local, &place(None));
        assert_eq!(holder(&question(), &place(None), &frame), None);
        frame[6..12].copy_from_slice(&OTHER.0);
        let held = Some(Holder::LinkLocal(OTHER));
        assert_eq!(holder(&question(), &place(None), &frame), held);
        frame[37] = 1;
        assert_eq!(holder(&question(), &place(None), &frame), None);
        frame[54] = ADVERTISEMENT;
        assert_eq!(holder(&question(), &place(None), &frame), held);
        // Through a router it is nobody of this network.
        frame[21] = 254;
        assert_eq!(holder(&question(), &place(None), &frame), None);
    }

    #[test]
    fn hostile_frames_are_no_answers() {
        let whole = [answer(), solicitation(question().link_local, &place(None))];
        for frame in &whole {
            for length in 0..frame.len() {
                assert_eq!(holder(&question(), &place(None), &frame[..length]), None);
            }
        }
        let mut odd = answer();
        odd[18] = 7;
        assert_eq!(holder(&question(), &place(None), &odd), None);
    }

    #[test]
    fn a_question_on_a_trunk_has_a_tag() {
        let frames = frames(&question(), &place(Some(100)));
        for frame in &frames {
            assert_eq!(frame[12..16], [0x81, 0, 0, 100]);
        }
        assert_eq!(frames.len(), 2);
        assert_eq!(frames[0].len(), 46);
    }

    #[test]
    fn the_checksum_is_right() {
        let frame = solicitation(question().link_local, &place(None));
        let to = <[u8; 16]>::try_from(&frame[38..54]).unwrap();
        // Over a message with its sum, the sum is zero.
        assert_eq!(checksum(Ipv6Addr::UNSPECIFIED, to.into(), &frame[54..]), [0, 0]);
    }
}
