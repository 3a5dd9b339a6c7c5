//! Is all drift repaired, nothing else touched, and an equal state left as it is?

use proptest::prelude::*;

use super::*;
use crate::testing::{KERNEL, apply, attached, attachments, bridge_kind, config, config_of, host, link, net};
use crate::{Mac, PortFlags, PortVlan, Vid};

fn run(attachments: &[Attachment], observed: &Observed) -> Repair {
    repair(config(), attachments.iter(), observed, KERNEL)
}

fn printed(actions: &[Action]) -> Vec<String> {
    actions.iter().map(Action::to_string).collect()
}

#[test]
fn an_equal_state_plans_nothing() {
    let all = attachments();
    assert_eq!(run(&all, &attached(config(), &all)), Repair::default());
    assert_eq!(run(&[], &host()), Repair::default());
    // Networks that are there stay, without machines too.
    assert_eq!(run(&[], &attached(config(), &all)).actions, []);
}

#[test]
fn each_drift_has_its_repair() {
    let all = attachments();
    let good = attached(config(), &all);
    let stranger = Mac([2, 9, 9, 9, 9, 9]);
    type Drift<'d> = &'d dyn Fn(&mut Link);
    let drifts: [(usize, Drift<'_>, &[&str]); 17] = [
        (0, &|link| link.up = false, &["set TAP up"]),
        (
            0,
            &|link| link.mtu = 1400,
            &["set TAP to MAC fe:cc:6d:f1:97:2f, MTU 1500, group 0x6e64"],
        ),
        (
            0,
            &|link| link.mac = Some(stranger),
            &["set TAP to MAC fe:cc:6d:f1:97:2f, MTU 1500, group 0x6e64"],
        ),
        (
            0,
            &|link| link.group = 0,
            &["set TAP to MAC fe:cc:6d:f1:97:2f, MTU 1500, group 0x6e64"],
        ),
        (
            3,
            &|link| link.alias = None,
            &[
                "set the alias of TAP to netd1|0123456789abcdef|b|1|old|-|02d52ae36d81a743|7a:e8:59:10:5a:b9|-|-|1000|1|1500",
            ],
        ),
        (
            0,
            &|link| link.altnames.clear(),
            &[
                "give TAP the further name nd.0123456789abcdef.a.0",
                "give TAP the further name ndp.tcp.0a000001.8080.80",
            ],
        ),
        (
            0,
            &|link| link.altnames.push("ndp.tcp.0a000001.1.1".to_owned()),
            &["take the further name \"ndp.tcp.0a000001.1.1\" from TAP"],
        ),
        (0, &|link| link.altnames.push("pet-name".to_owned()), &[]),
        (
            1,
            &|link| (link.master, link.port, link.fdb) = (None, None, Default::default()),
            &[
                "make TAP a port of ndblan",
                "set port TAP to isolated off, learning off, flood off, mcast_flood on, bcast_flood on, guard on",
                "send frames to 1e:50:ec:17:c9:21 to port TAP",
            ],
        ),
        (
            3,
            &|link| {
                link.port = link.port.map(|port| PortFlags {
                    isolated: false,
                    learning: true,
                    ..port
                })
            },
            &[
                "set port TAP to isolated on, learning off, flood off, mcast_flood on, bcast_flood on, guard on",
            ],
        ),
        (
            1,
            &|link| link.fdb.clear(),
            &["send frames to 1e:50:ec:17:c9:21 to port TAP"],
        ),
        (
            1,
            &|link| link.fdb.values_mut().for_each(|sticky| *sticky = false),
            &["send frames to 1e:50:ec:17:c9:21 to port TAP"],
        ),
        (
            1,
            &|link| assert_eq!(link.fdb.insert((stranger, None), false), None),
            &["send frames to 02:09:09:09:09:09 to port TAP no more"],
        ),
        (
            4,
            &|link| link.vlans.clear(),
            &["put port TAP into VLAN 200 without tags"],
        ),
        (
            4,
            &|link| {
                let vid = Vid::new(101).expect("good");
                link.vlans.push(PortVlan {
                    vid,
                    pvid: false,
                    untagged: true,
                });
            },
            &["take port TAP out of VLAN 101"],
        ),
        (
            5,
            &|link| link.vlans[0].pvid = true,
            &["put port TAP into VLAN 100 with tags"],
        ),
        (
            5,
            &|link| link.fdb.retain(|(_, vid), _| vid.is_none()),
            &["send frames to fe:56:7d:75:14:42 to port TAP"],
        ),
    ];
    for (number, drift, expected) in drifts {
        let mut observed = good.clone();
        let tap = all[number].tap.as_str();
        drift(observed.links.get_mut(tap).expect("it is there"));
        let repair = run(&all, &observed);
        let expected: Vec<String> = expected.iter().map(|line| line.replace("TAP", tap)).collect();
        assert_eq!((printed(&repair.actions), repair.gone), (expected, Vec::new()));
    }
}

#[test]
fn taps_that_are_gone_have_ended() {
    let all = attachments();
    let good = attached(config(), &all);
    let tap = &all[0].tap;
    let changes: [&dyn Fn(&mut Observed); 3] = [
        &|observed| drop(observed.links.remove(tap.as_str())),
        &|observed| {
            observed.links.get_mut(tap.as_str()).expect("there").kind = LinkKind::Other("veth".to_owned())
        },
        &|observed| observed.links.get_mut(tap.as_str()).expect("there").group = config().trash_group(),
    ];
    for change in changes {
        let mut observed = good.clone();
        change(&mut observed);
        assert_eq!(
            run(&all, &observed),
            Repair {
                actions: Vec::new(),
                gone: vec![tap.clone()]
            }
        );
    }
}

#[test]
fn a_bridge_that_is_gone_comes_back_with_its_ports() {
    let all = attachments();
    let mut observed = attached(config(), &all);
    let before = observed.clone();
    let bridge = "ndbmany".parse().expect("a name");
    apply(&mut observed, &Action::DeleteLink { name: bridge });
    let repair = run(&all, &observed);
    repair
        .actions
        .iter()
        .for_each(|action| apply(&mut observed, action));
    assert_eq!(run(&all, &observed), Repair::default());
    let index = observed.links["ndbmany"].index;
    assert_ne!(index, before.links["ndbmany"].index);
    let ports = observed
        .links
        .values()
        .filter(|link| link.master == Some(index))
        .count();
    assert_eq!(ports, 3);
}

#[test]
fn ports_are_repaired_while_the_uplink_is_away() {
    let all = attachments();
    let mut observed = attached(config(), &all);
    observed.links.get_mut("eth1").expect("there").up = false;
    observed.links.remove("eth2");
    for attachment in &all {
        let link = observed.links.get_mut(attachment.tap.as_str()).expect("there");
        link.port = link.port.map(|port| PortFlags {
            learning: true,
            ..port
        });
    }
    let repaired: BTreeSet<String> = printed(&run(&all, &observed).actions).into_iter().collect();
    for attachment in &all {
        // Of tenant-a the MTU was its uplink's: nobody knows what it should be.
        let repairs = repaired
            .iter()
            .any(|line| line.starts_with(&format!("set port {} ", attachment.tap)));
        assert_eq!(
            repairs,
            attachment.network.as_str() != "tenant-a",
            "{attachment:?}"
        );
    }
    assert_eq!(repaired.len(), all.len() - 1);
}

#[test]
fn what_no_network_has_is_deleted() {
    let all = attachments();
    let other = config_of("[network.x]\nkind = 'bridge'\n");
    let observed = attached(config(), &all);
    // While machines are attached, all stays.
    assert_eq!(repair(&other, all.iter(), &observed, KERNEL), Repair::default());
    let mut observed = observed;
    detach_all(&all, &mut observed);
    let vlan = vlan_link_name("eth2", Vid::new(100).expect("good"));
    let repair = repair(&other, [].iter(), &observed, KERNEL);
    assert_eq!(
        printed(&repair.actions),
        [
            "delete ndbdefault",
            "delete ndblan",
            "delete ndbmany",
            "delete ndbtenant-a",
            &format!("delete {vlan}")
        ]
    );
    repair
        .actions
        .iter()
        .for_each(|action| apply(&mut observed, action));
    assert_eq!(observed, host());
}

fn detach_all(all: &[Attachment], observed: &mut Observed) {
    for action in crate::detach(config(), [].iter(), all) {
        apply(observed, &action);
    }
    sweep(config(), observed)
        .iter()
        .for_each(|action| apply(observed, action));
}

#[test]
fn taps_that_tell_of_nothing_are_removed_when_nobody_holds_them() {
    let mut observed = host();
    let tap = |carrier: bool, persistent: bool, group: u32| Link {
        group,
        carrier,
        alias: Some("garbage".to_owned()),
        altnames: vec!["ndp.tcp.0a000001.80.80".to_owned(), "pet".to_owned()],
        ..link(
            50,
            "ndtabc",
            LinkKind::Tap {
                uid: Some(1),
                multi_queue: false,
                persistent,
            },
        )
    };
    for (carrier, persistent, group, removed) in [
        (false, true, 0x6e64, true),
        (true, true, 0x6e64, false),
        (false, false, 0x6e64, false),
        (false, true, 0, false),
        (false, true, 0x6e65, false),
    ] {
        observed
            .links
            .insert("ndtabc".to_owned(), tap(carrier, persistent, group));
        let expected = removed.then(|| Action::Trash {
            name: "ndtabc".parse().expect("a name"),
            group: 0x6e65,
            altnames: vec!["ndp.tcp.0a000001.80.80".to_owned()],
        });
        assert_eq!(
            run(&[], &observed).actions,
            expected.into_iter().collect::<Vec<_>>()
        );
    }
}

#[test]
fn faults_are_what_repair_cannot_do() {
    let all = attachments();
    let mut observed = attached(config(), &all);
    let tap = all[0].tap.as_str();
    assert_eq!(faults(&all[0], &observed), Vec::<String>::new());
    let kind = |uid, multi_queue, persistent| LinkKind::Tap {
        uid,
        multi_queue,
        persistent,
    };
    for (kind, fault) in [
        (
            kind(None, false, true),
            "tap TAP may be opened by anybody, not by user 1000",
        ),
        (
            kind(Some(7), false, true),
            "tap TAP may be opened by user 7, not by user 1000",
        ),
        (
            kind(Some(1000), true, true),
            "tap TAP has several queues, and 1 were asked for",
        ),
        (kind(Some(1000), false, false), "tap TAP is not persistent"),
        (bridge_kind(false, 0), "TAP is no tap"),
    ] {
        observed.links.get_mut(tap).expect("there").kind = kind;
        assert_eq!(faults(&all[0], &observed), [fault.replace("TAP", tap)]);
    }
    assert_eq!(faults(&all[0], &host()), [format!("tap {tap} is gone")]);
}

#[test]
fn the_trash_is_swept_but_nothing_foreign() {
    let all = attachments();
    let mut observed = attached(config(), &all);
    assert_eq!(sweep(config(), &observed), []);
    for action in crate::detach(config(), all[2..].iter(), &all[..2]) {
        apply(&mut observed, &action);
    }
    assert_eq!(
        sweep(config(), &observed),
        [Action::DeleteGroup { group: 0x6e65 }]
    );
    observed.links.get_mut("veth0").expect("there").group = 0x6e65;
    let swept = sweep(config(), &observed);
    assert_eq!(swept.len(), 2);
    swept.iter().for_each(|action| apply(&mut observed, action));
    assert!(observed.links.contains_key("veth0"));
    assert_eq!(sweep(config(), &observed), []);
}

/// Something that somebody does to a link.
fn drift() -> impl Strategy<Value = (usize, u8, u32)> {
    (any::<prop::sample::Index>(), 0_u8..14, 0_u32..5)
        .prop_map(|(link, what, value)| (link.index(1000), what, value))
}

fn apply_drift(observed: &mut Observed, (link, what, value): (usize, u8, u32)) {
    let count = observed.links.len();
    let masters: Vec<u32> = observed.links.values().map(|link| link.index).collect();
    let Some(link) = observed.links.values_mut().nth(link % count) else {
        return;
    };
    let number = u16::try_from(value).expect("small");
    match what {
        0 => link.up = !link.up,
        1 => link.mtu = 1300 + value,
        2 => link.mac = Some(Mac([2, 0, 0, 0, 1, 1])),
        3 => {
            link.alias =
                [None, Some("x".to_owned()), Some("netd1|network|x".to_owned())][value as usize % 3].clone()
        }
        4 => link.altnames = vec![format!("ndp.tcp.0a000001.{}.80", link.index)],
        5 => (link.master, link.port) = (None, None),
        6 => link.master = masters.get(value as usize).copied(),
        7 => link.port = None,
        8 => link.vlans.clear(),
        9 => {
            link.vlans = vec![PortVlan {
                vid: Vid::new(value + 1).expect("good"),
                pvid: true,
                untagged: true,
            }]
        }
        10 => link.fdb.clear(),
        11 => drop(link.fdb.insert((Mac([2, 0, 0, 0, 2, 2]), None), number % 2 == 0)),
        12 => drop(link.addresses.insert(net(&format!("10.9.0.{}/24", number + 1)))),
        _ => link.carrier = !link.carrier,
    }
}

/// The links that an action is about, as subject.
fn subject(action: &Action) -> String {
    match action {
        Action::Enslave { name, .. }
        | Action::Release { name, .. }
        | Action::AddPortVlans { name, .. }
        | Action::RemovePortVlans { name, .. } => name.clone(),
        Action::MakeBridge { name, .. }
        | Action::PinMtu { name, .. }
        | Action::MakeVlan { name, .. }
        | Action::SetAlias { name, .. }
        | Action::AddAltname { name, .. }
        | Action::RemoveAltname { name, .. }
        | Action::AddAddress { name, .. }
        | Action::RemoveAddress { name, .. }
        | Action::MakeTap { name, .. }
        | Action::SetLink { name, .. }
        | Action::SetPort { name, .. }
        | Action::AddFdb { name, .. }
        | Action::RemoveFdb { name, .. }
        | Action::Up { name }
        | Action::PersistTap { name }
        | Action::Trash { name, .. }
        | Action::DeleteLink { name } => name.to_string(),
        Action::Sysctl { path, .. } => path.clone(),
        Action::Filter { .. } | Action::DeleteGroup { .. } => String::new(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    /// Whatever is done to links, repair touches ours and the configured uplinks alone; done once, nothing is left to
    /// do.
    #[test]
    fn drift_is_repaired_and_nothing_foreign_touched(
        drifts in prop::collection::vec(drift(), 0..12),
        some in prop::collection::vec(any::<bool>(), 8),
        removed in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let all = attachments();
        let here: Vec<Attachment> =
            all.iter().zip(&some).filter(|(_, here)| **here).map(|(attachment, _)| attachment.clone()).collect();
        let mut observed = attached(config(), &here);
        drifts.into_iter().for_each(|drift| apply_drift(&mut observed, drift));
        if let Some(removed) = removed {
            let names: Vec<LinkName> = observed.links.keys().filter_map(|name| name.parse().ok()).collect();
            if !names.is_empty() && !names[removed.index(names.len())].as_str().contains("foreign") {
                let name = names[removed.index(names.len())].clone();
                apply(&mut observed, &Action::DeleteLink { name });
            }
        }
        let before = observed.clone();
        let first = run(&here, &observed);
        let ours = |name: &str| before.links.get(name).is_none_or(|link| link.group == config().link_group);
        for action in &first.actions {
            let name = subject(action);
            let tap = here.iter().any(|attachment| attachment.tap.as_str() == name);
            let sysctl = matches!(action, Action::Sysctl { .. });
            prop_assert!(
                tap || sysctl || ["eth1", "eth3"].contains(&name.as_str()) || name.starts_with("nd") && ours(&name),
                "{}", action
            );
        }
        first.actions.iter().for_each(|action| apply(&mut observed, action));
        let again = run(&here, &observed);
        prop_assert_eq!(printed(&again.actions), Vec::<String>::new());
        prop_assert_eq!(&again.gone, &first.gone);
        for (name, link) in before.links.iter().filter(|(name, _)| !name.starts_with("nd") || name.contains("foreign")) {
            let now = &observed.links[name];
            if !["eth1", "eth3"].contains(&name.as_str()) {
                prop_assert_eq!(now, link);
            }
        }
    }

    /// Any links at all: nothing panics, and foreign ones are left alone.
    #[test]
    fn any_host_is_left_alone(
        names in prop::collection::vec("(nd[tbvx])?[a-z0-9.%é ]{1,12}", 1..8),
        what in prop::collection::vec((0_usize..4, 0_u32..3, "\\PC{0,20}", any::<bool>()), 8),
    ) {
        let mut observed = host();
        for ((name, (kind, group, alias, flag)), index) in names.iter().zip(what).zip(100..) {
            let kind = [
                LinkKind::Tap { uid: None, multi_queue: flag, persistent: true },
                bridge_kind(flag, 1),
                LinkKind::Vlan { parent: 3, vid: 5 },
                LinkKind::Other(alias.clone()),
            ][kind].clone();
            let group = [0, 0x6e64, 0x6e65][group as usize];
            let link = Link { group, alias: Some(alias), carrier: flag, ..link(index, name, kind) };
            observed.links.insert(name.clone(), link);
        }
        let actions = run(&[], &observed).actions.into_iter().chain(sweep(config(), &observed));
        for action in actions {
            if let Action::DeleteGroup { group } = action {
                prop_assert!(observed.links.values().all(|link| link.group != group || link.name.starts_with("ndt")));
            } else {
                let name = subject(&action);
                prop_assert!(name.starts_with("nd") && observed.links[&name].group >= 0x6e64, "{}", action);
            }
        }
    }
}
