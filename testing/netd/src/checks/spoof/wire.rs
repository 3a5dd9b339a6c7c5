//! What does somebody on the operator's network send?

use super::Card;
use crate::frame::{self, BROADCAST, DOT1Q, Mac};
use crate::guest::takes_frames;
use crate::harness::say;
use crate::space::Space;
use crate::tap::{Tap, contains};

/// A card of ours on the other side of an uplink, which is in `neighbour` under the same name. What it sends, link-local
/// groups too, arrives there.
pub(super) fn plug(neighbour: &Space, uplink: &str) -> Tap {
    let (card, switch) = (format!("wire-{uplink}"), format!("sw-{uplink}"));
    let tap = Tap::open(neighbour, &card, 0, false).expect("a card can be made");
    neighbour.ip(&format!(
        "link add {switch} type bridge group_fwd_mask 0x4008 mcast_snooping 0\n\
         link set {switch} addrgenmode none up\n\
         link set {card} addrgenmode none\n\
         link set {card} master {switch} up\n\
         link set {uplink} master {switch}\n\
         link set {card} type bridge_slave learning off\n\
         link set {uplink} type bridge_slave learning off"
    ));
    takes_frames(neighbour, &card);
    takes_frames(neighbour, uplink);
    tap
}

/// Somebody's own address.
const OWN: Mac = [0x02, 0, 0, 0, 0, 0x55];

/// Somebody on the uplink sends with a machine's address as source: what is sent to the machine arrives there all the same.
pub(super) fn keeps_its_place(kind: &str, wire: &Tap, vid: Option<u16>, me: &Card, to: &Card) -> Vec<String> {
    let tag = |frame: Vec<u8>| vid.map_or(frame.clone(), |vid| frame::tagged(&frame, DOT1Q, vid));
    let udp = |macs: (Mac, Mac), text: &str| frame::udp4(macs, (me.party.ipv4, to.party.ipv4), (9, 9), text);
    let (mine, its) = (me.party.mac, to.party.mac);
    me.tap.forget();
    wire.send(&tag(udp((its, mine), "as the machine")));
    // When it has arrived, the bridge has seen where it came from.
    to.tap.receive_until(b"as the machine");
    // The other machine's frames have its own addresses, or they die.
    let beside = |to_whom: Mac, text: &str| {
        let addresses = (to.party.ipv4, me.party.ipv4);
        frame::udp4((to_whom, its), addresses, (9, 9), text)
    };
    to.tap.send(&beside(mine, "from beside"));
    to.tap.send(&beside(BROADCAST, "that was beside"));
    let mut faults = Vec::new();
    let mut judge = |mark: &str, text: &str| {
        let frames = me.tap.receive_until(mark.as_bytes());
        let arrived = frames.iter().any(|frame| contains(frame, text.as_bytes()));
        if !arrived {
            faults.push(format!(
                "{kind}: after a frame on the uplink with its address, a machine gets nothing {text}"
            ));
        }
    };
    judge("that was beside", "from beside");
    wire.send(&tag(udp((mine, OWN), "from outside")));
    wire.send(&tag(udp((BROADCAST, OWN), "that was outside")));
    judge("that was outside", "from outside");
    say(&format!("{kind}: {} faults of forwarding", faults.len()));
    faults
}
