//! Is each wrong request refused with its reason, field and sentence, and each right one carried out once?

use proptest::prelude::*;

use super::*;
use crate::testing::{attachments, config, config_of, decided, host, link, network_of, nic, owner, request};
use crate::{Identity, Protocol};

fn with(network: &str, change: impl FnOnce(&mut RequestNic)) -> RequestNic {
    let mut nic = nic(network);
    change(&mut nic);
    nic
}

fn at(network: &str, ipv4: &str) -> RequestNic {
    with(network, |nic| nic.ipv4 = ipv4.to_owned())
}

fn vlan(network: &str, vlan: u32) -> RequestNic {
    with(network, |nic| nic.vlan = vlan)
}

fn trunk(network: &str, vids: &[&str]) -> RequestNic {
    with(network, |nic| {
        nic.trunk = vids.iter().map(|vid| (*vid).to_owned()).collect()
    })
}

fn mtu(network: &str, mtu: u32) -> RequestNic {
    with(network, |nic| nic.mtu = mtu)
}

fn port(host_port: u32, guest_port: u32) -> Forward {
    Forward::new(
        "ports",
        Protocol::Tcp,
        [10, 0, 0, 1].into(),
        host_port,
        guest_port,
    )
    .expect("good")
}

fn ports(network: &str, ports: &[Forward]) -> RequestNic {
    with(network, |nic| nic.ports = ports.to_vec())
}

/// The refusal as (reason, field, sentence).
fn refused(existing: &[Attachment], request: &Request) -> (String, String, String) {
    let refusal = decided(existing, request).expect_err("it is wrong");
    (refusal.reason.to_owned(), refusal.field, refusal.sentence)
}

#[test]
fn each_wrong_interface_has_its_sentence() {
    let wide: Vec<String> = (1..30).map(|vid| (vid * 2).to_string()).collect();
    let wide: Vec<&str> = wide.iter().map(String::as_str).collect();
    let cases = [
        (
            nic("tenant-b"),
            "unknown-network",
            "network",
            "nics[0].network is \"tenant-b\", a network that this host doesn't have; its networks are default, lan, many, old, \
             tenant-a, theirs",
        ),
        (
            nic("No such/name"),
            "unknown-network",
            "network",
            "nics[0].network is \"No such/name\", a network",
        ),
        (
            vlan("lan", 5),
            "invalid",
            "vlan",
            "nics[0].vlan: network lan is of kind bridge and has no VLANs to choose from; leave vlan out",
        ),
        (
            trunk("default", &["5"]),
            "invalid",
            "trunk",
            "nics[0].trunk: network default is of kind nat and has no VLANs to choose from; leave trunk out",
        ),
        (
            vlan("many", 4095),
            "invalid",
            "vlan",
            "nics[0].vlan is 4095; network many allows the VLANs 100-120,200: give one of them",
        ),
        (
            vlan("many", 99),
            "invalid",
            "vlan",
            "nics[0].vlan is 99; network many allows the VLANs 100-120,200",
        ),
        (
            vlan("many", 65_636),
            "invalid",
            "vlan",
            "nics[0].vlan is 65636; network many allows",
        ),
        (
            vlan("theirs", 0),
            "invalid",
            "vlan",
            "nics[0].vlan is 0, which is none; network theirs allows the VLANs 1-4094: give one of them",
        ),
        (
            trunk("many", &["0"]),
            "invalid",
            "trunk",
            "nics[0].trunk: \"0\" is no VLAN and no range of VLANs: they are numbered 1 to 4094, and a range is \"100-120\"",
        ),
        (
            trunk("many", &["100-4095"]),
            "invalid",
            "trunk",
            "nics[0].trunk: \"100-4095\" is no VLAN",
        ),
        (
            trunk("many", &["100-121"]),
            "invalid",
            "trunk",
            "nics[0].trunk has 121; network many allows the VLANs 100-120,200: leave it out",
        ),
        (
            trunk("theirs", &wide),
            "invalid",
            "trunk",
            "longer than 40 characters; give fewer ranges",
        ),
        (
            with("many", |nic| {
                nic.vlan = 100;
                nic.trunk = vec!["101".to_owned()];
            }),
            "invalid",
            "trunk",
            "nics[0].trunk and vlan exclude each other",
        ),
        (
            at("lan", "10.2.0.5"),
            "invalid",
            "ipv4",
            "nics[0].ipv4 is \"10.2.0.5\", which is outside network lan's subnet 10.1.0.0/16; give another address of it",
        ),
        (
            at("lan", "10.1.0.0"),
            "invalid",
            "ipv4",
            "nics[0].ipv4 is \"10.1.0.0\", which is the network address of network lan's subnet",
        ),
        (
            at("lan", "10.1.255.255"),
            "invalid",
            "ipv4",
            "nics[0].ipv4 is \"10.1.255.255\", which is the broadcast address of network lan's subnet",
        ),
        (
            at("lan", "10.1.0.1"),
            "invalid",
            "ipv4",
            "nics[0].ipv4 is \"10.1.0.1\", which is the gateway of network lan's subnet",
        ),
        (
            at("default", "10.83.0.1"),
            "invalid",
            "ipv4",
            "which is the gateway of network default's",
        ),
        (
            at("lan", "10.1.0.5/16"),
            "invalid",
            "ipv4",
            "which is no IPv4 address; give \"auto\", \"none\" or an address of 10.1.0.0/16",
        ),
        (
            at("lan", "fd00:1::5"),
            "invalid",
            "ipv4",
            "which is no IPv4 address",
        ),
        (
            at("old", "auto"),
            "invalid",
            "ipv4",
            "nics[0].ipv4 is \"auto\" on network old, but the network has no IPv4; leave ipv4 out",
        ),
        (
            with("many", |nic| {
                nic.trunk = vec!["100".to_owned()];
                nic.ipv4 = "auto".to_owned();
            }),
            "invalid",
            "ipv4",
            "but a trunk port has no address of its own; leave ipv4 out",
        ),
        (
            mtu("lan", 1501),
            "invalid",
            "mtu",
            "nics[0].mtu is 1501, more than the 1500 of network lan; give at most that",
        ),
        (
            mtu("lan", 1279),
            "invalid",
            "mtu",
            "nics[0].mtu is 1279; give 1280 to 1500 where there is IPv6",
        ),
        (
            mtu("default", 67),
            "invalid",
            "mtu",
            "nics[0].mtu is 67; give 68 to 1500",
        ),
        (
            ports("lan", &[port(80, 80)]),
            "invalid",
            "ports",
            "nics[0].ports: network lan is of kind bridge, where a machine is reached at its own address; leave ports out, or \
             take a network of kind nat",
        ),
        (
            with("default", |nic| {
                nic.ipv4 = "none".to_owned();
                nic.ports = vec![port(80, 80)];
            }),
            "invalid",
            "ports",
            "nics[0].ports: ports lead to an IPv4 address, and ipv4 is \"none\"; give one",
        ),
        (
            ports("default", &[port(80, 80), port(80, 81)]),
            "invalid",
            "ports",
            "nics[0].ports has tcp port 80 of 10.0.0.1 twice; leave one out",
        ),
        (
            ports(
                "default",
                &(1..130).map(|number| port(number, 80)).collect::<Vec<_>>(),
            ),
            "invalid",
            "ports",
            "nics[0].ports has 129 ports; give at most 128",
        ),
    ];
    for (nic, reason, key, sentence) in cases {
        let said = refused(&[], &request("new", [nic]));
        assert_eq!(
            (said.0.as_str(), said.1),
            (reason, format!("nics[0].{key}")),
            "{}",
            said.2
        );
        assert!(said.2.contains(sentence), "{}\n{sentence}", said.2);
    }
}

#[test]
fn each_wrong_machine_has_its_sentence() {
    let good = || request("new", [nic("lan")]);
    let cases = [
        (
            Request { uid: 0, ..good() },
            "uid",
            "uid is 0; interfaces are opened by a user of the machine's own",
        ),
        (
            Request {
                uid: u32::MAX,
                ..good()
            },
            "uid",
            "uid is 4294967295",
        ),
        (
            Request { queues: 0, ..good() },
            "queues",
            "queues is 0; give 1 to 256",
        ),
        (
            Request {
                queues: 257,
                ..good()
            },
            "queues",
            "queues is 257; give 1 to 256",
        ),
        (
            Request {
                nics: Vec::new(),
                ..good()
            },
            "nics",
            "the request has 0 interfaces; give 1 to 32",
        ),
        (
            Request {
                nics: vec![nic("lan"); 33],
                ..good()
            },
            "nics",
            "the request has 33 interfaces; give 1 to 32",
        ),
        (
            request("new", [nic("lan"), nic("default"), nic("lan")]),
            "nics[2].network",
            "nics[2].network is lan a second time, after nics[0]; a machine has one interface in each VLAN of a network",
        ),
        (
            request("new", [vlan("many", 0), vlan("many", 101)]),
            "nics[1].network",
            "nics[1].network is many a second time, after nics[0]",
        ),
    ];
    for (request, field, sentence) in cases {
        let said = refused(&[], &request);
        assert_eq!((said.0.as_str(), said.1.as_str()), ("invalid", field));
        assert!(said.2.contains(sentence), "{}", said.2);
    }
    for (instance, id) in [("", "a"), ("A", "a"), ("a_b", "a"), ("12345678901234567", "a")] {
        assert_eq!(Owner::new(instance, id).expect_err("bad").field, "owner.instance");
    }
    for id in ["", "a b", "a/b", "a|b", "ä", &"x".repeat(49)] {
        assert_eq!(Owner::new("a", id).expect_err("bad").field, "owner.id");
    }
    for (host_ip, host_port, guest_port, field) in [
        ([0, 0, 0, 0], 1, 1, "nics[0].ports[0].host_ip"),
        ([224, 0, 0, 1], 1, 1, "nics[0].ports[0].host_ip"),
        ([255, 255, 255, 255], 1, 1, "nics[0].ports[0].host_ip"),
        ([10, 0, 0, 1], 0, 1, "nics[0].ports[0].host_port"),
        ([10, 0, 0, 1], 1, 65_536, "nics[0].ports[0].guest_port"),
    ] {
        let forward = Forward::new(
            "nics[0].ports[0]",
            Protocol::Udp,
            host_ip.into(),
            host_port,
            guest_port,
        );
        assert_eq!(forward.expect_err("bad").field, field);
    }
}

#[test]
fn what_somebody_has_is_refused_by_name() {
    let first = decided(
        &[],
        &request(
            "first",
            [at("lan", "10.1.0.7"), ports("default", &[port(80, 80)])],
        ),
    );
    let first = first.expect("good");
    let same_identity = Request {
        identity: request("first", []).identity,
        ..request("second", [nic("lan")])
    };
    for (request, reason, field, sentence) in [
        (
            request("second", [at("lan", "10.1.0.7")]),
            "address-taken",
            "nics[0].ipv4",
            "nics[0].ipv4 is 10.1.0.7, which 0123456789abcdef/first has on network lan; give another address, or detach that one",
        ),
        (
            request("second", [nic("lan"), ports("default", &[port(80, 8080)])]),
            "port-taken",
            "nics[1].ports",
            "nics[1].ports: tcp port 80 of 10.0.0.1 leads to 0123456789abcdef/first; take another port, or detach that one",
        ),
        (
            same_identity.clone(),
            "identity-held",
            "identity",
            "identity \"default/job/first/vm/0\" is held on network lan by 0123456789abcdef/first, which lives on this host",
        ),
    ] {
        let refusal = decided(&first, &request).expect_err("held");
        assert_eq!((refusal.reason, refusal.field.as_str()), (reason, field));
        assert!(refusal.sentence.starts_with(sentence), "{}", refusal.sentence);
        assert!(refusal.retryable);
        assert_eq!(refusal.holder, Some(owner("first")));
    }
    // Elsewhere, nobody has it.
    let elsewhere = Request {
        nics: vec![nic("tenant-a"), nic("many")],
        ..same_identity
    };
    assert!(decided(&first, &elsewhere).is_ok());
    let other_address = Forward::new("", Protocol::Tcp, [192, 0, 2, 7].into(), 80, 80).expect("good");
    assert!(decided(&first, &request("second", [ports("default", &[other_address])])).is_ok());
    // One address in two VLANs is two addresses.
    let here = decided(&[], &request("first", [at("many", "10.2.0.7")])).expect("good");
    let there = with("many", |nic| {
        nic.vlan = 200;
        nic.ipv4 = "10.2.0.7".to_owned();
    });
    assert!(decided(&here, &request("second", [there])).is_ok());
    assert!(decided(&here, &request("second", [at("many", "10.2.0.7")])).is_err());
}

#[test]
fn auto_takes_what_nobody_has_and_answers_for() {
    let (config, host) = (config(), host());
    let wanted = request("new", [nic("lan")]);
    let run = |existing: &[Attachment], answered: &Answered| {
        decide(config, &host, existing.iter(), answered, &wanted)
            .map(|new| new[0].ipv4.expect("an address").addr())
    };
    let mut answered = Answered::new();
    let lan = network_of(config, "lan").name.clone();
    let mut seen = BTreeSet::new();
    let first = run(&[], &answered).expect("free");
    for _ in 0..255 {
        let address = run(&[], &answered).expect("free");
        assert!(
            seen.insert(address) && u32::from(address) >> 8 == 0x000a_0101,
            "{address}"
        );
        answered.insert((lan.clone(), None, address));
    }
    // The last one is taken by a machine here.
    let last = run(&[], &answered).expect("free");
    let mut other = decided(&[], &request("other", [at("lan", &last.to_string())])).expect("good");
    let refusal = run(&other, &answered).expect_err("exhausted");
    assert_eq!(
        (refusal.reason, refusal.field.as_str(), refusal.retryable),
        ("pool-exhausted", "nics[0].ipv4", true)
    );
    assert_eq!(
        refusal.sentence,
        "nics[0].ipv4: none of the 256 addresses of network lan's pool (10.1.1.0-10.1.1.255) is free; detach a machine, or enlarge \
         the pool"
    );
    // Answers in another VLAN, or on another network, are nobody's concern.
    let vid = Vid::new(5);
    assert_eq!(run(&[], &BTreeSet::from([(lan.clone(), vid, first)])), Ok(first));
    let default = network_of(config, "default").name.clone();
    assert_eq!(run(&[], &BTreeSet::from([(default, None, first)])), Ok(first));
    // Held here, the next candidate follows, the same as if it were held by another host.
    other[0].ipv4 = Ipv4Net::new(first, 16).ok();
    let held = run(&other, &Answered::new());
    assert_eq!(held, run(&[], &BTreeSet::from([(lan, None, first)])));
    assert_ne!(held, Ok(first));
    // A given address may be outside of the pool, but not another host's.
    let given = request("new", [at("lan", "10.1.0.2")]);
    assert!(decided(&[], &given).is_ok());
    let answered = Answered::from([(network_of(config, "lan").name.clone(), None, [10, 1, 0, 2].into())]);
    let refusal = decide(config, &host, [].iter(), &answered, &given).expect_err("taken");
    assert_eq!(
        (refusal.reason, refusal.retryable, refusal.holder),
        ("address-taken", true, None)
    );
}

#[test]
fn the_same_request_has_the_same_answer() {
    let all = attachments();
    let again = request(
        "b",
        [
            nic("lan"),
            nic("old"),
            vlan("many", 200),
            trunk("many", &["200", "100-102"]),
        ],
    );
    assert_eq!(decided(&all, &again).as_deref(), Ok(&all[2..6]));
    // Interrupted after its first interfaces, it is completed; the address that there is stays.
    let mut some = all[..4].to_vec();
    some[2].ipv4 = Ipv4Net::new([10, 1, 1, 77].into(), 16).ok();
    let completed = decided(&some, &again).expect("the same");
    assert_eq!((&completed[..2], &completed[2..]), (&some[2..], &all[4..6]));
    // What the request leaves open is as it was.
    some[2].mtu = 1400;
    assert!(decided(&some, &again).is_ok());
}

#[test]
fn another_request_is_refused_while_there_are_interfaces() {
    let first = request(
        "new",
        [
            at("lan", "10.1.0.7"),
            ports("default", &[port(80, 80)]),
            vlan("many", 100),
        ],
    );
    let there = decided(&[], &first).expect("good");
    assert_eq!(decided(&there, &first).as_ref(), Ok(&there));
    let change = |change: &dyn Fn(&mut Request)| {
        let mut other = first.clone();
        change(&mut other);
        refused(&there, &other)
    };
    type Change<'c> = &'c dyn Fn(&mut Request);
    let nics: [(&str, Change<'_>, &str); 12] = [
        (
            "nics",
            &|r| r.nics.truncate(2),
            "its interface 2 is not in this request",
        ),
        (
            "nics[0].network",
            &|r| r.nics[0] = nic("tenant-a"),
            "nics[0].network was lan",
        ),
        (
            "nics[0].ipv4",
            &|r| r.nics[0].ipv4 = "10.1.0.8".to_owned(),
            "nics[0].ipv4 was 10.1.0.7",
        ),
        (
            "nics[0].ipv4",
            &|r| r.nics[0].ipv4 = "none".to_owned(),
            "nics[0].ipv4 was 10.1.0.7",
        ),
        ("nics[0].mtu", &|r| r.nics[0].mtu = 1400, "nics[0].mtu was 1500"),
        (
            "nics[1].ports",
            &|r| r.nics[1].ports.clear(),
            "nics[1].ports was another set of ports",
        ),
        (
            "nics[1].ports",
            &|r| r.nics[1].ports[0].guest_port = 81,
            "another set of ports",
        ),
        ("nics[2].vlan", &|r| r.nics[2].vlan = 101, "nics[2].vlan was 100"),
        (
            "nics[2].vlan",
            &|r| r.nics[2] = trunk("many", &["100"]),
            "nics[2].vlan was 100",
        ),
        ("uid", &|r| r.uid = 1001, "uid was 1000"),
        ("queues", &|r| r.queues = 2, "queues was 1"),
        (
            "identity",
            &|r| r.identity = Identity::new("x").expect("good"),
            "identity was another",
        ),
    ];
    for (field, with, why) in nics {
        let said = change(with);
        assert_eq!(
            (said.0.as_str(), said.1.as_str()),
            ("other-spec", field),
            "{}",
            said.2
        );
        assert_eq!(
            said.2,
            format!(
                "0123456789abcdef/new has interfaces of another request: {}; detach it before it is attached otherwise",
                if why.starts_with("another set") {
                    format!("{field} was {why}")
                } else {
                    why.to_owned()
                }
            )
        );
    }
}

#[test]
fn a_full_bridge_is_refused() {
    let config = config_of(
        "[network.a]\nkind = 'bridge'\nbridge = 'br0'\n[network.b]\nkind = 'bridge'\nuplink = 'eth1'\n",
    );
    let mut observed = host();
    let port = |number: u32| {
        let mut port = link(
            100 + number,
            &format!("p{number}"),
            crate::LinkKind::Other("veth".to_owned()),
        );
        port.master = Some(6);
        (port.name.clone(), port)
    };
    // With veth0, which is there already, 1022 ports.
    observed.links.extend((1..1022).map(port));
    let run = |existing: &[Attachment], network: &str, id: &str| {
        decide(
            &config,
            &observed,
            existing.iter(),
            &Answered::new(),
            &request(id, [nic(network)]),
        )
    };
    let there = run(&[], "a", "first").expect("one fits");
    let refusal = run(&there, "a", "second").expect_err("full");
    assert_eq!((refusal.reason, refusal.retryable), ("bridge-full", true));
    assert_eq!(
        refusal.sentence,
        "nics[0].network: bridge br0 of network a has 1023 ports, and the kernel allows 1023; detach some, or take another network \
         or host"
    );
    assert!(run(&there, "b", "second").is_ok());
    // Its uplink is a port, even before it is one.
    let mut many = run(&[], "b", "x").expect("good");
    let one = many.remove(0);
    for number in 0..1022 {
        let owner = owner(&number.to_string());
        let mut mac = one.mac;
        mac.0[5] ^= 1;
        many.push(Attachment {
            owner,
            mac,
            ..one.clone()
        });
    }
    assert_eq!(run(&many, "b", "new").expect_err("full").reason, "bridge-full");
    assert!(run(&many[1..], "b", "new").is_ok());
}

#[test]
fn the_mtu_is_the_networks() {
    let config = config();
    let mut observed = host();
    observed.links.get_mut("eth2").expect("it is there").mtu = 9000;
    let run = |nic: RequestNic| {
        decide(
            config,
            &observed,
            [].iter(),
            &Answered::new(),
            &request("a", [nic]),
        )
        .map(|new| new[0].mtu)
    };
    assert_eq!(run(nic("tenant-a")), Ok(9000));
    assert_eq!(run(mtu("tenant-a", 8000)), Ok(8000));
    assert_eq!(run(nic("lan")), Ok(1500));
    assert_eq!(run(mtu("lan", 1280)), Ok(1280));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whoever comes, each has addresses of the network that nobody else has.
    #[test]
    fn addresses_are_unique(ids in prop::collection::btree_set("[a-z0-9]{1,6}", 1..40), networks in prop::collection::vec(0_usize..3, 40)) {
        let config = config_of("[network.n0]\nkind = 'nat'\nipv4 = { subnet = '10.0.0.0/26' }\n[network.n1]\nkind = 'bridge'\n\
            ipv4 = { subnet = '10.0.0.0/26', gateway = '10.0.0.9', pool = '10.0.0.1-10.0.0.62' }\n\
            [network.n2]\nkind = 'nat'\nipv4 = { subnet = '10.0.1.0/30' }\n");
        let mut all: Vec<Attachment> = Vec::new();
        let mut taken = BTreeSet::new();
        for (id, network) in ids.iter().zip(networks) {
            let request = request(id, [nic(&format!("n{network}"))]);
            match decide(&config, &Observed::default(), all.iter(), &Answered::new(), &request) {
                Ok(new) => {
                    let one = &new[0];
                    let ipv4 = config.networks[&one.network].ipv4.as_ref().expect("it has");
                    let address = one.ipv4.expect("it has").addr();
                    prop_assert!(ipv4.is_usable(address) && ipv4.pool.contains(&address));
                    prop_assert!(taken.insert((one.network.clone(), address)));
                    all.extend(new);
                }
                // Of a /30 the gateway leaves one.
                Err(refusal) => {
                    prop_assert_eq!(refusal.reason, "pool-exhausted");
                    prop_assert!(network == 2 && taken.iter().any(|(name, _)| name.as_str() == "n2"));
                }
            }
        }
    }
}

#[test]
fn a_port_is_taken_from_this_hosts_addresses_only() {
    let of = |address: [u8; 4]| {
        let forward = Forward::new("", Protocol::Udp, address.into(), 53, 53).expect("good");
        decided(&[], &request("a", [ports("default", &[forward])]))
    };
    assert!(of([127, 0, 0, 1]).is_ok());
    assert!(of([192, 0, 2, 7]).is_ok());
    let refusal = of([8, 8, 8, 8]).expect_err("it is somebody else's");
    assert_eq!((refusal.reason, refusal.retryable), ("unavailable", true));
    assert_eq!(
        refusal.sentence,
        "nics[0].ports: udp port 53 is to be taken from 8.8.8.8, which this host doesn't have; give an address of it"
    );
}

#[test]
fn the_hosts_own_address_on_a_bridge_is_taken() {
    let config = config_of(
        "[network.office]\nkind = 'bridge'\nbridge = 'br0'\nipv4 = { subnet = '10.9.0.0/29' }\n\
         [network.made]\nkind = 'bridge'\nipv4 = { subnet = '10.9.0.0/29' }\n",
    );
    let mut observed = host();
    let addresses = |text: &str| [crate::testing::net(text)].into();
    observed.links.get_mut("br0").expect("it is there").addresses = addresses("10.9.0.1/29");
    let mut vlan = crate::testing::link(20, "br0.5", LinkKind::Vlan { parent: 6, vid: 5 });
    vlan.addresses = addresses("10.9.0.2/29");
    observed.links.insert(vlan.name.clone(), vlan);
    let asked = |network: &str, ipv4: &str| {
        let request = request("a", [at(network, ipv4)]);
        decide(&config, &observed, [].iter(), &Answered::new(), &request)
    };
    for (address, link) in [("10.9.0.1", "br0"), ("10.9.0.2", "br0.5")] {
        let refusal = asked("office", address).expect_err("the host has it");
        assert_eq!((refusal.reason, refusal.retryable), ("address-taken", false));
        assert_eq!(
            refusal.sentence,
            format!("nics[0].ipv4 is {address}, which this host itself has, on {link}; give another address")
        );
        // Another network's addresses are its own business.
        assert!(asked("made", address).is_ok());
    }
    for number in 0..8 {
        let request = request(&format!("m{number}"), [nic("office")]);
        let decided =
            decide(&config, &observed, [].iter(), &Answered::new(), &request).expect("there is room");
        let address = decided[0].ipv4.expect("it has one").addr();
        assert!(address.octets()[3] > 2, "{address}");
    }
}
