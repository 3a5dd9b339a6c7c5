//! Is each network made as it should be, left alone where it is, and refused where it can't be had?

use super::*;
use crate::testing::{
    KERNEL, apply, attached, attachments, bridge_kind, config, config_of, host, link, net, network_of,
};

fn steps(config: &Config, name: &str, observed: &Observed) -> Result<Vec<Action>, String> {
    network(config, network_of(config, name), observed, KERNEL).map_err(|unavailable| unavailable.sentence)
}

fn printed(actions: &[Action]) -> Vec<String> {
    actions.iter().map(Action::to_string).collect()
}

#[test]
fn golden_steps() {
    let cases: [(&str, &[&str]); 6] = [
        (
            "default",
            &[
                "make bridge ndbdefault with MAC 12:a8:79:9a:3d:39, MTU 1500, group 0x6e64",
                "pin the MTU of ndbdefault to 1500",
                "give ndbdefault the address 10.83.0.1/20",
                "write 1 to /proc/sys/net/ipv4/ip_forward",
                "write 1 to /proc/sys/net/ipv4/conf/ndbdefault/route_localnet",
                "write 0 to /proc/sys/net/ipv4/conf/ndbdefault/arp_ignore",
                "set ndbdefault up",
                "set the alias of ndbdefault to netd1|network|default",
            ],
        ),
        (
            "lan",
            &[
                "make bridge ndblan with MAC 1a:78:dd:a6:db:1e, MTU 1500, group 0x6e64",
                "pin the MTU of ndblan to 1500",
                "write 8 to /proc/sys/net/ipv4/conf/ndblan/arp_ignore",
                "set ndblan up",
                "set the alias of ndblan to netd1|network|lan|eth1",
                "make eth1 a port of ndblan",
            ],
        ),
        ("old", &[]),
        (
            "tenant-a",
            &[
                "make bridge ndbtenant-a with MAC 76:12:f4:71:9f:4e, MTU 1500, group 0x6e64",
                "pin the MTU of ndbtenant-a to 1500",
                "write 8 to /proc/sys/net/ipv4/conf/ndbtenant-a/arp_ignore",
                "set ndbtenant-a up",
                "set the alias of ndbtenant-a to netd1|network|tenant-a",
                "make ndv100.rbvn, VLAN 100 of eth2, port of ndbtenant-a, with MTU 1500, group 0x6e64",
                "set the alias of ndv100.rbvn to netd1|network|tenant-a",
            ],
        ),
        (
            "many",
            &[
                "make bridge ndbmany with MAC 56:11:16:b0:bf:5f, MTU 1500, group 0x6e64, filtering VLANs",
                "pin the MTU of ndbmany to 1500",
                "write 8 to /proc/sys/net/ipv4/conf/ndbmany/arp_ignore",
                "set ndbmany up",
                "set the alias of ndbmany to netd1|network|many|eth3",
                "make eth3 a port of ndbmany",
                "put port eth3 into VLAN 100-120,200 with tags",
            ],
        ),
        ("theirs", &[]),
    ];
    for (name, expected) in cases {
        let actions = steps(config(), name, &host()).expect("it can be had");
        assert_eq!(printed(&actions), expected, "{name}");
        // Done, nothing is left to do.
        let mut observed = host();
        actions.iter().for_each(|action| apply(&mut observed, action));
        assert_eq!(steps(config(), name, &observed), Ok(Vec::new()), "{name}");
    }
}

#[test]
fn what_was_interrupted_is_done_again() {
    for name in ["default", "lan", "tenant-a", "many"] {
        let actions = steps(config(), name, &host()).expect("it can be had");
        for done in 0..actions.len() {
            let mut observed = host();
            actions
                .iter()
                .take(done)
                .for_each(|action| apply(&mut observed, action));
            let rest = steps(config(), name, &observed).expect("it can be had");
            // What can't be seen on links is done again, until the alias tells that it was done.
            let unseen = |action: &&Action| matches!(action, Action::Sysctl { .. });
            let told = |action: &Action| matches!(action, Action::SetAlias { name, .. } if name.is_bridge());
            let again: Vec<&Action> = if actions.iter().take(done).any(told) {
                Vec::new()
            } else {
                actions.iter().filter(unseen).collect()
            };
            assert_eq!(
                rest.iter().filter(unseen).collect::<Vec<_>>(),
                again,
                "{name} after {done}"
            );
            rest.iter().for_each(|action| apply(&mut observed, action));
            assert_eq!(
                steps(config(), name, &observed),
                Ok(Vec::new()),
                "{name} after {done}"
            );
        }
    }
}

/// Two networks are never joined: the uplink of before is released first.
#[test]
fn an_uplink_that_is_no_longer_wanted_is_released() {
    let mut observed = host();
    let before = steps(config(), "lan", &observed).expect("it can be had");
    before.iter().for_each(|action| apply(&mut observed, action));
    let moved = config_of("[network.lan]\nkind = 'bridge'\nuplink = 'eth3'\n");
    let actions = steps(&moved, "lan", &observed).expect("it can be had");
    let printed = printed(&actions);
    let at = |wanted: &str| printed.iter().position(|step| step == wanted);
    let (away, told, there) = (
        at("take eth1 out of ndblan"),
        at("set the alias of ndblan to netd1|network|lan|eth3"),
        at("make eth3 a port of ndblan"),
    );
    assert!(away.is_some() && away < told && told < there, "{printed:?}");
    // Interrupted anywhere, there is never a second uplink.
    for done in 0..=actions.len() {
        let mut after = observed.clone();
        actions
            .iter()
            .take(done)
            .for_each(|action| apply(&mut after, action));
        let bridge = after.links["ndblan"].index;
        let ports = after.links.values().filter(|link| link.master == Some(bridge));
        assert!(ports.count() <= 1, "after {done}");
        let rest = steps(&moved, "lan", &after).expect("it can be had");
        rest.iter().for_each(|action| apply(&mut after, action));
        assert_eq!(after.links["eth1"].master, None);
        assert_eq!(steps(&moved, "lan", &after), Ok(Vec::new()));
    }
    // A nat network of that name is nobody's port either.
    let nat = config_of("[network.lan]\nkind = 'nat'\nipv4 = { subnet = '10.9.0.0/24' }\n");
    let actions = steps(&nat, "lan", &observed).expect("it can be had");
    assert_eq!(
        actions.first().map(ToString::to_string).as_deref(),
        Some("take eth1 out of ndblan")
    );
    // What somebody put somewhere else meanwhile is not touched.
    observed.links.get_mut("eth1").expect("it is there").master = Some(6);
    let actions = steps(&moved, "lan", &observed).expect("it can be had");
    assert!(
        !actions
            .iter()
            .any(|action| matches!(action, Action::Release { .. }))
    );
}

#[test]
fn what_a_nat_network_had_is_gone_when_it_is_another_kind() {
    let mut observed = host();
    let nat = config_of("[network.lan]\nkind = 'nat'\nipv4 = { subnet = '10.9.0.0/24' }\n");
    let made = steps(&nat, "lan", &observed).expect("it can be had");
    made.iter().for_each(|action| apply(&mut observed, action));
    let actions = steps(config(), "lan", &observed).expect("it can be had");
    let printed = printed(&actions);
    assert!(
        printed.contains(&"take the address 10.9.0.1/24 from ndblan".to_owned()),
        "{printed:?}"
    );
    actions.iter().for_each(|action| apply(&mut observed, action));
    // What the operator gives the bridge then is the operator's.
    let bridge = observed.links.get_mut("ndblan").expect("it is there");
    bridge.addresses.insert(crate::testing::net("10.1.0.5/16"));
    assert_eq!(steps(config(), "lan", &observed), Ok(Vec::new()));
}

#[test]
fn what_collides_with_a_network_of_before_waits() {
    let both = config_of("[network.www]\nkind = 'nat'\nipv4 = { subnet = '10.9.0.0/24' }\n");
    let mut retired = both.networks.values().next().expect("it is there").clone();
    retired.name = "web".parse().expect("a good name");
    let mut config = both.clone();
    config.networks.insert(retired.name.clone(), retired);
    assert_eq!(
        steps(&config, "www", &host()).expect_err("it collides"),
        "network www can't be had on this host: network www's subnet 10.9.0.0/24 overlaps network web's, 10.9.0.0/24; give \
         another, or wait for the end of its machines"
    );
    assert!(steps(&both, "www", &host()).is_ok());
}

/// A host with a link changed.
fn with(name: &str, change: impl FnOnce(&mut Link)) -> Observed {
    let mut observed = host();
    change(observed.links.get_mut(name).expect("it is there"));
    observed
}

fn without(name: &str) -> Observed {
    let mut observed = host();
    observed.links.remove(name);
    observed
}

fn and(link: Link) -> Observed {
    let mut observed = host();
    observed.links.insert(link.name.clone(), link);
    observed
}

#[test]
fn what_cannot_be_had_is_said() {
    let vlan = |index, name: &str, parent, vid| link(index, name, LinkKind::Vlan { parent, vid });
    let cases = [
        (
            "old",
            without("br0"),
            "there is no bridge br0; make it, or name another",
        ),
        (
            "old",
            with("br0", |link| link.kind = LinkKind::Other("veth".to_owned())),
            "br0 is no bridge; name one",
        ),
        (
            "old",
            with("br0", |link| link.up = false),
            "bridge br0 is down; ip link set br0 up",
        ),
        (
            "theirs",
            with("br1", |link| link.kind = bridge_kind(false, 1)),
            "bridge br1 doesn't filter VLANs; ip link set br1 type bridge vlan_filtering 1",
        ),
        (
            "lan",
            without("eth1"),
            "there is no uplink eth1; make it, or name another",
        ),
        (
            "lan",
            with("eth1", |link| link.up = false),
            "uplink eth1 is down; ip link set eth1 up",
        ),
        (
            "tenant-a",
            without("eth2"),
            "there is no uplink eth2; make it, or name another",
        ),
        (
            "tenant-a",
            with("eth2", |link| link.up = false),
            "uplink eth2 is down; ip link set eth2 up",
        ),
        (
            "many",
            with("eth3", |link| link.up = false),
            "uplink eth3 is down; ip link set eth3 up",
        ),
        (
            "lan",
            with("eth1", |link| link.master = Some(6)),
            "uplink eth1 is a port of br0 already; take it away there, or name another",
        ),
        (
            "tenant-a",
            with("eth2", |link| link.master = Some(6)),
            "uplink eth2 is a port of br0, so that its VLANs receive nothing; take it away there, or name another",
        ),
        (
            "lan",
            with("eth1", |link| link.kind = bridge_kind(false, 0)),
            "uplink eth1 is a bridge, which can't be a port of one; name it as bridge instead",
        ),
        (
            "lan",
            with("eth1", |link| {
                link.addresses.extend([net("fe80::1/64"), net("192.0.2.9/24")])
            }),
            "uplink eth1 has the address 192.0.2.9/24, which the host would lose; take it away, or make a bridge with that address \
             yourself and name it as bridge",
        ),
        (
            "many",
            and(vlan(20, "eth3.5", 5, 5)),
            "uplink eth3 has the VLAN sub-interface eth3.5, which would receive nothing any more; delete that",
        ),
        (
            "lan",
            with("eth1", |link| link.mtu = 1400),
            "uplink eth1 has MTU 1400, less than the network's 1500; raise the one or lower the other",
        ),
        (
            "many",
            with("eth3", |link| link.mtu = 1200),
            "uplink eth3 has MTU 1200, and IPv6 needs 1280; raise it, or leave ipv6 out",
        ),
        (
            "tenant-a",
            and(vlan(20, "eth2.100", 4, 100)),
            "VLAN 100 of eth2 exists as eth2.100 and is not netd's; delete it, or make a bridge with it and name that as bridge",
        ),
        (
            "default",
            and(link(20, "ndbdefault", bridge_kind(false, 0))),
            "bridge ndbdefault exists and is not netd's: its group is 0x0, not 0x6e64; delete or rename it",
        ),
        (
            "default",
            and(link(20, "ndbdefault", LinkKind::Other("dummy".to_owned()))),
            "ndbdefault exists and is no bridge; delete or rename it",
        ),
        (
            "tenant-a",
            and(vlan(
                20,
                vlan_link_name("eth2", Vid::new(100).expect("good")).as_str(),
                3,
                100,
            )),
            "exists and is not netd's; delete or rename it",
        ),
    ];
    for (name, observed, why) in cases {
        let said = steps(config(), name, &observed).expect_err(why);
        assert!(
            said.starts_with(&format!("network {name} can't be had on this host: ")),
            "{said}"
        );
        assert!(said.ends_with(why), "{said}\n{why}");
    }
    let bare = Kernel {
        vlan: false,
        vlan_filtering: false,
    };
    for (name, why) in [
        ("tenant-a", "the kernel has no VLANs: load the module 8021q"),
        (
            "many",
            "the kernel's bridges can't filter VLANs: boot one with CONFIG_BRIDGE_VLAN_FILTERING, or take kind vlan",
        ),
        ("theirs", "the kernel's bridges can't filter VLANs"),
    ] {
        let said = network(config(), network_of(config(), name), &host(), bare).expect_err(why);
        assert!(said.sentence.contains(why), "{said}");
        assert_eq!(
            (Refusal::from(said.clone()).reason, Refusal::from(said).retryable),
            ("unavailable", true)
        );
    }
    for name in ["default", "lan", "old"] {
        assert!(network(config(), network_of(config(), name), &host(), bare).is_ok());
    }
}

#[test]
fn an_uplink_that_is_a_port_already_stays_one() {
    let mut observed = attached(config(), &attachments());
    for uplink in ["eth1", "eth3"] {
        let link = observed.links.get_mut(uplink).expect("it is there");
        link.addresses.insert(net("192.0.2.9/24"));
    }
    for name in ["lan", "many"] {
        assert_eq!(steps(config(), name, &observed), Ok(Vec::new()));
    }
}

#[test]
fn another_configuration_changes_what_there_is() {
    let made = attached(config(), &[]);
    let mut made = config().networks.values().fold(made, |mut observed, one| {
        let steps = network(config(), one, &observed, KERNEL).expect("it can be had");
        steps.iter().for_each(|action| apply(&mut observed, action));
        observed
    });
    let changed = |text: &str, name: &str, observed: &Observed| {
        steps(&config_of(text), name, observed).map(|actions| printed(&actions))
    };
    let vlan = vlan_link_name("eth2", Vid::new(100).expect("good"));
    // Another VLAN: the old one is deleted before the new one is there.
    assert_eq!(
        changed(
            "[network.tenant-a]\nkind = 'vlan'\nuplink = 'eth2'\nvid = 101\n",
            "tenant-a",
            &made
        )
        .expect("good")[..2],
        [
            format!("delete {vlan}"),
            format!(
                "make {}, VLAN 101 of eth2, port of ndbtenant-a, with MTU 1500, group 0x6e64",
                vlan_link_name("eth2", Vid::new(101).expect("good"))
            )
        ]
    );
    // Another kind.
    assert_eq!(
        changed("[network.tenant-a]\nkind = 'bridge'\n", "tenant-a", &made),
        Ok(vec![format!("delete {vlan}")])
    );
    // Another address of the host.
    assert_eq!(
        changed(
            "[network.default]\nkind = 'nat'\nipv4 = { subnet = '10.84.0.0/20' }\n",
            "default",
            &made
        ),
        Ok(vec![
            "take the address 10.83.0.1/20 from ndbdefault".to_owned(),
            "give ndbdefault the address 10.84.0.1/20".to_owned()
        ])
    );
    // Fewer VLANs, another MTU.
    assert_eq!(
        changed(
            "[network.many]\nkind = 'vlan-aware'\nuplink = 'eth3'\nvids = ['100-110', '300']\nmtu = 1400\n",
            "many",
            &made
        ),
        Ok(vec![
            "pin the MTU of ndbmany to 1400".to_owned(),
            "take port eth3 out of VLAN 111-120,200".to_owned(),
            "put port eth3 into VLAN 300 with tags".to_owned()
        ])
    );
    // A bridge that filters VLANs can't become one that doesn't; without machines it is made anew.
    let plain = "[network.many]\nkind = 'bridge'\nuplink = 'eth3'\n";
    let anew = changed(plain, "many", &made).expect("good");
    assert_eq!(anew[0], "delete ndbmany");
    assert!(
        anew.contains(&"make eth3 a port of ndbmany".to_owned()),
        "{anew:?}"
    );
    let index = made.links["ndbmany"].index;
    let mut tap = link(90, "ndtx", LinkKind::Other("tun".to_owned()));
    tap.master = Some(index);
    made.links.insert(tap.name.clone(), tap);
    let said = changed(plain, "many", &made).expect_err("busy");
    assert!(said.ends_with("bridge ndbmany was made for another kind of network, and machines are attached to it; detach them first"));
}

#[test]
fn sysctls_are_those_of_networks_that_were_made() {
    let mut observed = host();
    assert_eq!(sysctls(config(), &observed), []);
    for action in steps(config(), "default", &observed).unwrap() {
        apply(&mut observed, &action);
    }
    assert_eq!(
        printed(&sysctls(config(), &observed)),
        [
            "write 1 to /proc/sys/net/ipv4/ip_forward",
            "write 1 to /proc/sys/net/ipv4/conf/ndbdefault/route_localnet",
            "write 0 to /proc/sys/net/ipv4/conf/ndbdefault/arp_ignore",
        ]
    );
    // Another's bridge of that name is not ours to set.
    observed.links.get_mut("ndbdefault").unwrap().alias = None;
    assert_eq!(sysctls(config(), &observed), []);
}
