//! Is the text what was tried, and do its parts come to the same as the whole?

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::testing::{attachments, config, config_of, decided, nic, request};
use crate::{Attachment, Forward, Protocol};

#[test]
fn golden_chains() {
    let all = attachments();
    assert_eq!(
        add(config(), [].iter(), &all[4..6]),
        include_str!("golden/add.nft")
    );
}

#[test]
fn golden_forwards() {
    let all = attachments();
    let host: Vec<String> = add(config(), [].iter(), &all[..1])
        .lines()
        .filter(|line| line.contains("inet"))
        .map(str::to_owned)
        .collect();
    assert_eq!(
        host,
        [
            "add element inet netd forwarded { tcp . 10.0.0.1 . 8080 : 10.83.10.0 . 80, tcp . 127.0.0.1 . 8080 : 10.83.10.0 . 80 }"
        ]
    );
    assert_eq!(
        remove(config(), [].iter(), &all[..1]),
        include_str!("golden/remove.nft")
    );
    assert!(!add(config(), [].iter(), &all[1..2]).contains("inet"));
}

#[test]
fn golden_host() {
    let text = whole(config(), [].iter());
    assert_eq!(text, include_str!("golden/whole.nft"));
    assert!(text.starts_with(&purge()));
    assert!(!text.contains("add element"));
    // Without a network of the host's own making, only what comes past the bridge is kept from the host.
    let foreign = config_of("[network.a]\nkind = 'bridge'\nbridge = 'br0'\n");
    let text = whole(&foreign, [].iter());
    assert!(
        text.contains("iifname \"ndt*\" counter name drop_host drop"),
        "{text}"
    );
    assert!(!text.contains("@nat"), "{text}");
    let closed = config_of("[network.a]\nkind = 'bridge'\n");
    let text = whole(&closed, [].iter());
    assert!(
        text.contains("iifname @closed") && !text.contains("type nat"),
        "{text}"
    );
    // Of a network that isn't configured any more, machines reach nothing of the host.
    let text = whole(&foreign, attachments().iter());
    assert!(text.contains("\"ndbdefault\""), "{text}");
    assert!(!text.contains("element inet"), "{text}");
    let open = config_of(
        "[network.a]\nkind = 'nat'\nisolated = true\nhost_access = true\nipv4 = { subnet = '10.0.0.0/24' }\n",
    );
    let text = whole(&open, [].iter());
    assert!(
        text.contains("set guarded { type ifname; }") && !text.contains("iifname \"ndba\" oifname \"ndba\""),
        "{text}"
    );
}

#[test]
fn no_text_of_others_gets_in() {
    // What is said of an attachment has only characters that nft has no meaning for.
    for attachment in attachments() {
        for word in [attachment.tap.as_str(), attachment.network.as_str()] {
            assert!(
                word.bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.')
            );
        }
    }
}

/// What the map of forwarded ports holds after a text.
fn load(map: &mut BTreeMap<String, String>, text: &str) {
    if text.contains("delete table inet netd") {
        map.clear();
    }
    for line in text.lines() {
        let parts = |line: &str| -> Vec<(String, String)> {
            let inner = line
                .trim_start_matches(|c| c != '{')
                .trim_matches(['{', '}', ' ']);
            inner
                .split(", ")
                .filter_map(|element| element.split_once(" : "))
                .map(|(from, to)| (from.to_owned(), to.to_owned()))
                .collect()
        };
        if line.starts_with("add element inet") {
            for (from, to) in parts(line) {
                let there = map.insert(from.clone(), to.clone());
                assert!(there.is_none_or(|there| there == to), "File exists: {from}");
            }
        } else if line.starts_with("delete element inet") {
            for (from, to) in parts(line) {
                assert_eq!(map.remove(&from), Some(to), "no such element");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// However machines come and go, the host's ports lead where the whole text would have them lead.
    #[test]
    fn parts_come_to_the_whole(steps in prop::collection::vec((0_u32..6, 0_u32..3, 1_u32..4), 1..20)) {
        let mut map = BTreeMap::new();
        let mut all: Vec<Attachment> = Vec::new();
        load(&mut map, &whole(config(), all.iter()));
        for (id, host, port) in steps {
            let id = id.to_string();
            if let Some(place) = all.iter().position(|there| there.owner.id() == id) {
                let gone = all.remove(place);
                load(&mut map, &remove(config(), all.iter(), std::slice::from_ref(&gone)));
            } else {
                let host = [[10, 0, 0, 1], [10, 0, 0, 2], [127, 0, 0, 1]][host as usize];
                let mut nic = nic("default");
                nic.ports = vec![Forward::new("", Protocol::Tcp, host.into(), port, 80).expect("good")];
                if let Ok(new) = decided(&all, &request(&id, [nic])) {
                    load(&mut map, &add(config(), all.iter(), &new));
                    all.extend(new);
                }
            }
            let mut anew = BTreeMap::new();
            load(&mut anew, &whole(config(), all.iter()));
            prop_assert_eq!(&map, &anew);
        }
    }
}

#[test]
fn what_is_somebody_elses_by_now_stays() {
    let old = attachments().remove(0);
    let mut nic = nic("default");
    nic.ports = old.forwards.clone();
    let new = decided(&[], &request("new", [nic])).expect("good");
    let text = remove(config(), new.iter(), std::slice::from_ref(&old));
    assert!(
        !text.contains("delete element inet netd forwarded { tcp . 10.0.0.1"),
        "{text}"
    );
}
