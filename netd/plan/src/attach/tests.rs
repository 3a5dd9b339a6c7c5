//! Is an attachment made in the order that leaves nothing open, and taken back whole?

use super::*;
use crate::testing::{apply, attached, attachments, config, host};

fn printed(actions: &[Action]) -> Vec<String> {
    actions.iter().map(Action::to_string).collect()
}

#[test]
fn golden_steps() {
    let all = attachments();
    let observed = attached(config(), &[]);
    let access = printed(&attach(config(), &observed, [].iter(), &all[4..5]));
    assert_eq!(
        access,
        [
            "load 17 lines of filter",
            "make tap TAP for user 1000",
            "set TAP to MAC fe:2f:c7:ef:bb:0a, MTU 1500, group 0x6e64",
            "ALIAS",
            "give TAP the further name nd.0123456789abcdef.b.2",
            "make TAP a port of ndbmany",
            "set port TAP to isolated off, learning off, flood off, mcast_flood on, bcast_flood on, guard on",
            "put port TAP into VLAN 200 without tags",
            "send frames to 36:2f:c7:ef:bb:0a to port TAP",
            "set TAP up",
            "make tap TAP persistent",
        ]
        .map(|line| line.replace("TAP", all[4].tap.as_str()).replace(
            "ALIAS",
            &format!(
                "set the alias of {} to {}",
                all[4].tap,
                crate::alias::alias(&all[4])
            )
        ))
    );
    // An operator's bridge gives each port a VLAN by itself: it is taken away before the link is up.
    let theirs = printed(&attach(config(), &observed, [].iter(), &all[7..8]));
    let vlans: Vec<&String> = theirs.iter().filter(|line| line.contains("VLAN")).collect();
    let tap = &all[7].tap;
    assert_eq!(
        vlans,
        [
            &format!("take port {tap} out of VLAN 1"),
            &format!("put port {tap} into VLAN 7 without tags")
        ]
    );
}

#[test]
fn several_share_the_filter_and_are_persistent_last() {
    let all = attachments();
    let actions = attach(config(), &host(), [].iter(), &all);
    let filters = actions
        .iter()
        .filter(|action| matches!(action, Action::Filter { .. }))
        .count();
    assert!(matches!(actions[0], Action::Filter { .. }) && filters == 1);
    let last = &actions[actions.len() - all.len()..];
    assert!(
        last.iter()
            .all(|action| matches!(action, Action::PersistTap { .. }))
    );
    // No link is up before its port is what it should be.
    for attachment in &all {
        let of = |action: &&Action| action.to_string().contains(attachment.tap.as_str());
        let mine: Vec<&Action> = actions.iter().filter(of).collect();
        assert!(matches!(mine[mine.len() - 2], Action::Up { .. }), "{mine:?}");
    }
    assert_eq!(attach(config(), &host(), all.iter(), &[]), []);
    assert_eq!(detach(config(), all.iter(), &[]), []);
}

#[test]
fn detached_is_out_of_the_way() {
    let all = attachments();
    let mut observed = attached(config(), &all);
    let before = attached(config(), &all[2..]);
    let actions = detach(config(), all[2..].iter(), &all[..2]);
    assert!(
        matches!(&actions[0], Action::Filter { text } if *text == filter::remove(config(), all[2..].iter(), &all[..2]))
    );
    let names = |action: &Action| match action {
        Action::Trash { altnames, .. } => altnames.clone(),
        other => panic!("{other}"),
    };
    assert_eq!(names(&actions[1]), ["ndp.tcp.0a000001.8080.80"]);
    assert_eq!(names(&actions[2]), Vec::<String>::new());
    actions.iter().for_each(|action| apply(&mut observed, action));
    let trash = config().trash_group();
    assert_eq!(
        observed.links.values().filter(|link| link.group == trash).count(),
        2
    );
    crate::sweep(config(), &observed)
        .iter()
        .for_each(|action| apply(&mut observed, action));
    // All but the kernel's numbers is as if they had never been.
    let links = |observed: &crate::Observed| observed.links.keys().cloned().collect::<Vec<_>>();
    let with_networks: Vec<String> = links(&before);
    assert!(with_networks.iter().all(|name| observed.links.contains_key(name)));
    assert!(
        all[..2]
            .iter()
            .all(|gone| !observed.links.contains_key(gone.tap.as_str()))
    );
}

#[test]
fn each_part_of_an_attach_is_taken_back() {
    let all = attachments();
    let new = &all[..2];
    let actions = attach(config(), &attached(config(), &[]), [].iter(), new);
    assert_eq!(take_back(config(), [].iter(), new, &[]), []);
    // The filter itself failed: nothing of it is there.
    assert_eq!(take_back(config(), [].iter(), new, &actions[..1]), []);
    for done in 2..=actions.len() {
        let back = take_back(config(), [].iter(), new, &actions[..done]);
        assert!(matches!(&back[0], Action::Filter { .. }));
        let persistent = actions[..done]
            .iter()
            .filter(|action| matches!(action, Action::PersistTap { .. }));
        let expected: Vec<String> = persistent
            .map(|action| {
                action
                    .to_string()
                    .replace("make tap ", "put ")
                    .replace(" persistent", "")
            })
            .map(|put| format!("{put} out of the way: down, of no bridge, group 0x6e65"))
            .collect();
        assert_eq!(printed(&back[1..]), expected);
    }
}
