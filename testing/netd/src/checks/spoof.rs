//! Do only a guest's honest frames arrive, and does a counter tell what became of each other?

mod frames;
mod guard;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use steppe_proto::net;

use crate::frame::{self, Arp, BROADCAST};
use crate::guest;
use crate::harness::say;
use crate::host::{attach_one, nic};
use crate::netd::{CONFIG, Netd};
use crate::space::{self, Space};
use crate::tap::{Tap, contains};

use frames::{Case, Party};
use guard::Guard;

const VLANS: &str = r#"
[network.tenant]
kind = "vlan"
uplink = "up1"
vid = 100
ipv4 = { subnet = "10.2.0.0/16", pool = "10.2.1.0-10.2.1.255" }
ipv6 = { prefix = "fd00:2::/64" }
probe = "0s"

[network.aware]
kind = "vlan-aware"
uplink = "up2"
vids = ["100-120", "200"]
vid = 100
ipv4 = { subnet = "10.3.0.0/16", pool = "10.3.1.0-10.3.1.255" }
ipv6 = { prefix = "fd00:3::/64" }
probe = "0s"
"#;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// A machine whose card is ours.
#[derive(Debug)]
struct Card {
    /// What the host's side of it is called.
    name: String,
    tap: Tap,
    party: Party,
}

impl Card {
    #[track_caller]
    fn attach(netd: &Netd<'_>, host: &Space, id: &str, nic: net::Nic) -> Self {
        let interface = attach_one(netd.client(), id, nic);
        let party = Party {
            mac: guest::mac(&interface),
            // Of a trunk port, an address behind it.
            ipv4: if interface.ipv4.is_empty() {
                Ipv4Addr::new(10, 3, 9, 9)
            } else {
                guest::ipv4(&interface)
            },
            ipv6: (!interface.ipv6.is_empty()).then(|| guest::ipv6(&interface)),
        };
        let tap = guest::plug(host, &interface);
        Self {
            name: interface.tap,
            tap,
            party,
        }
    }
}

/// How many frames the filter dropped, by reason.
type Counts = BTreeMap<String, u64>;

fn counts(host: &Space) -> Counts {
    counts_of(host, "bridge")
}

/// Those of netd's table of this family.
fn counts_of(host: &Space, family: &str) -> Counts {
    let listed = host.json("nft", &["-j", "list", "counters", "table", family, "netd"]);
    let objects = listed["nftables"].as_array().into_iter().flatten();
    let counters = objects.filter_map(|object| object.get("counter"));
    counters
        .map(|counter| {
            let name = counter["name"].as_str().unwrap_or_default();
            let packets = counter["packets"].as_u64().unwrap_or_default();
            (name.trim_start_matches("drop_").to_owned(), packets)
        })
        .collect()
}

fn since(before: &Counts, after: &Counts) -> Counts {
    let grown = after.iter().map(|(name, count)| {
        let before = before.get(name).copied().unwrap_or_default();
        (name.clone(), count - before)
    });
    grown.filter(|(_, count)| *count > 0).collect()
}

/// Sends every case, then the end of it; the faults.
fn judge(
    host: &Space,
    kind: &str,
    (out, heard): (&Tap, &Tap),
    cases: &[Case],
    (last, end): (Vec<u8>, &[u8]),
    one_by_one: bool,
) -> Vec<String> {
    let mut faults = Vec::new();
    heard.forget();
    let before = counts(host);
    let mut seen = before.clone();
    for case in cases {
        out.send(&case.frame);
        if one_by_one {
            let now = counts(host);
            let expected: Counts = case.dies.iter().map(|reason| ((*reason).to_owned(), 1)).collect();
            let grown = since(&seen, &now);
            if grown != expected {
                faults.push(format!(
                    "{kind}: {}: counted {grown:?}, not {expected:?}",
                    case.name
                ));
            }
            seen = now;
        }
    }
    out.send(&last);
    let frames = heard.receive_until(end);
    for case in cases {
        let mark = frames::mark(case.name);
        let count = frames
            .iter()
            .filter(|frame| contains(frame, mark.as_bytes()))
            .count();
        let wanted = usize::from(case.dies.is_none());
        if count != wanted {
            faults.push(format!(
                "{kind}: {}: arrives {count} times, not {wanted}",
                case.name
            ));
        }
    }
    let mut expected = Counts::new();
    for reason in cases.iter().filter_map(|case| case.dies) {
        *expected.entry(reason.to_owned()).or_default() += 1;
    }
    let grown = since(&before, &counts(host));
    if grown != expected {
        faults.push(format!("{kind}: counted {grown:?}, not {expected:?}"));
    }
    let honest = cases.iter().filter(|case| case.dies.is_none()).count();
    say(&format!(
        "{kind}: {honest} honest frames, {} forged ones: {grown:?}",
        cases.len() - honest
    ));
    faults
}

/// On the host's kernel: networks without VLANs.
pub(crate) fn spoof_frames_host() {
    spoof(false);
}

/// On a kernel with VLANs: every kind of network and port.
pub(crate) fn spoof_frames() {
    spoof(true);
}

fn spoof(vlans: bool) {
    let host = Space::new("host");
    let neighbour = Space::new("neighbour");
    for uplink in ["up0", "up1", "up2"] {
        space::join((&host, uplink), (&neighbour, uplink));
    }
    let config = if vlans {
        format!("{CONFIG}{VLANS}")
    } else {
        CONFIG.to_owned()
    };
    let netd = Netd::start(&host, &config);
    let mut kinds = vec![("nat", "default"), ("bridge", "lan")];
    if vlans {
        kinds.extend([("vlan", "tenant"), ("access port", "aware")]);
    }
    let mut faults = Vec::new();
    let mut all = BTreeSet::new();
    let guard = Guard::new(&host);
    let mut guarded = Vec::new();
    for (kind, network) in kinds {
        let [me, to, victim] = ["me", "to", "victim"]
            .map(|id| Card::attach(&netd, &host, &format!("{id}-{network}"), nic(network)));
        let cases = frames::access(me.party, to.party, victim.party);
        faults.extend(judge(
            &host,
            kind,
            (&me.tap, &to.tap),
            &cases,
            frames::end(me.party, to.party, None),
            !vlans,
        ));
        all.extend(cases.iter().filter_map(|case| case.dies));
        if network == "lan" {
            faults.extend(unknown(&host, &me, &to));
        }
        let (uplink, vid) = match network {
            "lan" => ("up0", None),
            "tenant" => ("up1", Some(100)),
            _ => ("up2", Some(100)),
        };
        let wire = (network != "default").then(|| wire::plug(&neighbour, uplink));
        if let Some(wire) = &wire {
            faults.extend(wire::keeps_its_place(kind, wire, vid, &me, &to));
        }
        faults.extend(guard.groups(kind, &me, true));
        faults.extend(guard.taken_out(&netd, kind, &me));
        if let ("tenant", Some(wire)) = (network, &wire) {
            faults.extend(guard.groups_of_vlan(wire, 100, &to, true));
        }
        guarded.push((kind, me, to, wire));
    }
    assert_eq!(
        all,
        [
            "arp", "dhcp", "ipv4", "ipv6", "llc", "mac", "nd", "other", "ra", "redirect", "tag"
        ]
        .into(),
        "reasons that frames died for"
    );
    if vlans {
        let nic = net::Nic {
            trunk: vec!["100-101".to_owned()],
            ..nic("aware")
        };
        let me = Card::attach(&netd, &host, "me-trunk", nic);
        let [to, victim] =
            ["to-trunk", "victim-trunk"].map(|id| Card::attach(&netd, &host, id, crate::host::nic("aware")));
        let cases = frames::trunk(me.party, to.party, victim.party, (100, 200));
        faults.extend(judge(
            &host,
            "trunk port",
            (&me.tap, &to.tap),
            &cases,
            frames::end(me.party, to.party, Some(100)),
            false,
        ));
    }
    // With the rules away they do arrive: the kernel hands them over, and it is the rules that keep them away.
    guard.without(netd);
    for (kind, me, to, wire) in &guarded {
        let kind = format!("{kind}, without rules");
        faults.extend(guard.groups(&kind, me, false));
        if let ("vlan, without rules", Some(wire)) = (kind.as_str(), wire) {
            faults.extend(guard.groups_of_vlan(wire, 100, to, false));
        }
        guard.answers_arp(me);
        faults.extend(guard.alone(&kind, me, false));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// A port that is called like netd's and is none passes nothing, also what would be honest.
fn unknown(host: &Space, me: &Card, to: &Card) -> Option<String> {
    // With carrier from the beginning.
    let forged = Tap::open(host, "ndtnobody", 0, false).expect("a tap can be made");
    host.ip("link set ndtnobody master ndblan up");
    let says = Arp {
        request: true,
        sender: (me.party.mac, me.party.ipv4),
        target: ([0; 6], to.party.ipv4),
    };
    let before = counts(host);
    forged.send(&frame::arp(BROADCAST, me.party.mac, says, "nobody's"));
    me.tap
        .send(&frame::arp(BROADCAST, me.party.mac, says, "somebody's"));
    let frames = to.tap.receive_until(b"somebody's");
    let grown = since(&before, &counts(host));
    let arrived = frames.iter().any(|frame| contains(frame, b"nobody's"));
    let expected: Counts = [("other".to_owned(), 1)].into();
    (arrived || grown != expected).then(|| format!("an unknown port: arrived {arrived}, counted {grown:?}"))
}
