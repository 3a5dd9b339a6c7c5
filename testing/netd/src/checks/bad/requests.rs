//! Which requests are refused?

use steppe_proto::net::{self, AttachRequest, Owner, Protocol};
use tonic::Code;

use super::{Row, Table};
use crate::guest;
use crate::host::{at, attach_one, machine, nic, owner, port};
use crate::netd::{Netd, Refused};
use crate::space::{self, Space};
use crate::system;

const CONFIG: &str = r#"
[daemon]
readers = ["65533"]

[network.default]
kind = "nat"
ipv4 = { subnet = "10.83.0.0/20", gateway = "10.83.0.1", pool = "10.83.0.2-10.83.15.254" }

[network.lan]
kind = "bridge"
uplink = "up0"
ipv4 = { subnet = "10.1.0.0/16", gateway = "10.1.0.1", pool = "10.1.1.0-10.1.1.255" }
ipv6 = { prefix = "fd00:1::/64" }
probe = "0s"

[network.small]
kind = "bridge"
ipv4 = { subnet = "10.2.0.0/24", pool = "10.2.0.8-10.2.0.8" }
probe = "0s"

[network.bare]
kind = "bridge"
probe = "0s"

[network.theirs]
kind = "bridge"
bridge = "br0"
ipv4 = { subnet = "10.5.0.0/24", pool = "10.5.0.8-10.5.0.8" }
probe = "0s"

[network.aware]
kind = "vlan-aware"
uplink = "up1"
vids = ["100-120", "200"]
probe = "0s"
"#;

/// The sentence of a refusal for this reason.
fn sentence<A: std::fmt::Debug>(answer: Result<A, Refused>, code: Code, reason: &str) -> String {
    match answer {
        Ok(answer) => format!("NOT REFUSED: {answer:?}"),
        Err(refused) if (refused.code, refused.detail.reason.as_str()) == (code, reason) => refused.sentence,
        Err(refused) => format!("NOT {code:?} ({reason}) BUT {refused}"),
    }
}

fn with(change: impl FnOnce(&mut AttachRequest)) -> AttachRequest {
    let mut request = machine("bad", &[nic("lan")]);
    change(&mut request);
    request
}

fn ports(ports: &[net::Port]) -> AttachRequest {
    machine(
        "bad",
        &[net::Nic {
            ports: ports.to_vec(),
            ..nic("default")
        }],
    )
}

fn on_vlan(vlan: u32, trunk: &[&str]) -> AttachRequest {
    machine(
        "bad",
        &[net::Nic {
            vlan,
            trunk: trunk.iter().map(|word| (*word).to_owned()).collect(),
            ..nic("aware")
        }],
    )
}

pub(super) fn rows() -> Vec<Row> {
    let host = Space::new("requests");
    let neighbour = Space::new("requests-neighbour");
    space::join((&host, "up0"), (&neighbour, "eth0"));
    space::join((&host, "up1"), (&neighbour, "eth1"));
    host.ip("address add 192.0.2.1/24 dev lo\n\
         link add br0 type bridge\n\
         link set br0 up\n\
         address add 10.5.0.8/24 dev br0");
    let netd = Netd::start(&host, CONFIG);
    let client = netd.client();
    let held = net::Nic {
        ports: vec![port(Protocol::Tcp, "192.0.2.1", 8080, 80)],
        ..nic("default")
    };
    let holder = machine("holder", &[held, at("lan", "10.1.0.5")]);
    client
        .attach(&holder)
        .unwrap_or_else(|refused| panic!("{refused}"));
    attach_one(client, "fills", nic("small"));
    let mut table = Table::new(&host);

    let invalid = |table: &mut Table<'_>, input: &str, request: &AttachRequest, words: &[&str]| {
        let said = sentence(client.attach(request), Code::InvalidArgument, "invalid");
        table.row(input, &said, words);
        // The dry run says the same.
        let checked = sentence(client.check(request), Code::InvalidArgument, "invalid");
        if checked != said {
            table.row(&format!("{input}, as a dry run"), &checked, &[&said]);
        }
    };

    let said = client.attach(&machine("bad", &[nic("nosuch")]));
    let said = sentence(said, Code::NotFound, "unknown-network");
    table.row(
        "network nosuch",
        &said,
        &["\"nosuch\"", "aware, bare, default, lan, small, theirs"],
    );
    for (address, word) in [
        ("10.2.0.5", "outside"),
        ("10.1.0.0", "the network address"),
        ("10.1.255.255", "the broadcast address"),
        ("10.1.0.1", "gateway"),
        ("10.1.0", "no IPv4 address"),
        ("fd00:1::5", "no IPv4 address"),
        ("10.1.0.10+index", "no IPv4 address"),
    ] {
        let words = ["nics[0].ipv4", address, word];
        invalid(
            &mut table,
            &format!("ipv4 {address} on 10.1.0.0/16"),
            &machine("bad", &[at("lan", address)]),
            &words,
        );
    }
    invalid(
        &mut table,
        "an address on a network without any",
        &machine("bad", &[at("bare", "10.1.0.9")]),
        &["nics[0].ipv4", "no IPv4"],
    );
    let said = client.attach(&machine("bad", &[at("lan", "10.1.0.5")]));
    let said = sentence(said, Code::AlreadyExists, "address-taken");
    table.row(
        "an address that another machine has",
        &said,
        &["10.1.0.5", "checks", "holder"],
    );
    let said = client.attach(&machine("bad", &[nic("small")]));
    let said = sentence(said, Code::ResourceExhausted, "pool-exhausted");
    table.row(
        "a pool of which every address is used",
        &said,
        &["small", "10.2.0.8"],
    );
    let said = client.attach(&machine("bad", &[at("theirs", "10.5.0.8")]));
    let said = sentence(said, Code::AlreadyExists, "address-taken");
    table.row(
        "an address that the host has on the operator's bridge",
        &said,
        &["nics[0].ipv4", "10.5.0.8", "this host itself", "br0"],
    );
    let said = client.attach(&machine("bad", &[nic("theirs")]));
    let said = sentence(said, Code::ResourceExhausted, "pool-exhausted");
    table.row(
        "a pool of which the host has every address",
        &said,
        &["theirs", "10.5.0.8"],
    );
    let twin = AttachRequest {
        identity: holder.identity.clone(),
        ..machine("bad", &[nic("lan")])
    };
    let said = sentence(client.attach(&twin), Code::AlreadyExists, "identity-held");
    table.row(
        "an identity that another machine has",
        &said,
        &["default/checks/group/holder/0", "holder"],
    );
    let other = machine("holder", &[at("lan", "10.1.0.6")]);
    let said = sentence(client.attach(&other), Code::FailedPrecondition, "other-spec");
    table.row(
        "another request for the same machine",
        &said,
        &["holder", "detach"],
    );

    for (mtu, word) in [(1501, "1500"), (1279, "1280"), (u32::MAX, "1500")] {
        let request = machine("bad", &[net::Nic { mtu, ..nic("lan") }]);
        invalid(
            &mut table,
            &format!("mtu {mtu} on 1500 with IPv6"),
            &request,
            &["nics[0].mtu", word],
        );
    }
    for vlan in [121, 4095, 4096, 65_636] {
        let words = ["nics[0].vlan", "100-120,200"];
        invalid(
            &mut table,
            &format!("vlan {vlan} of 100-120, 200"),
            &on_vlan(vlan, &[]),
            &words,
        );
    }
    invalid(
        &mut table,
        "vlan 0 without a default",
        &on_vlan(0, &[]),
        &["nics[0].vlan", "100-120,200"],
    );
    for (trunk, word) in [
        (&["99"][..], "100-120,200"),
        (&["0"], "0"),
        (&["100-4095"], "4095"),
        (&["b"], "b"),
    ] {
        let words = ["nics[0].trunk", word];
        invalid(
            &mut table,
            &format!("trunk {trunk:?} of 100-120, 200"),
            &on_vlan(0, trunk),
            &words,
        );
    }
    invalid(
        &mut table,
        "vlan and trunk",
        &on_vlan(100, &["101"]),
        &["nics[0].trunk", "vlan"],
    );
    let on_nat = machine(
        "bad",
        &[net::Nic {
            vlan: 5,
            ..nic("default")
        }],
    );
    invalid(
        &mut table,
        "vlan on a nat network",
        &on_nat,
        &["nics[0].vlan", "nat"],
    );
    let twice = machine("bad", &[nic("lan"), nic("lan")]);
    invalid(
        &mut table,
        "one network twice",
        &twice,
        &["nics[1].network", "lan"],
    );

    let taken = ports(&[port(Protocol::Tcp, "192.0.2.1", 8080, 80)]);
    let said = sentence(client.attach(&taken), Code::AlreadyExists, "port-taken");
    table.row("a port that another machine has", &said, &["8080", "holder"]);
    let tcp = |host_ip: &str, host_port, guest_port| port(Protocol::Tcp, host_ip, host_port, guest_port);
    for (input, bad, word) in [
        ("port 0", tcp("192.0.2.1", 0, 80), "0"),
        ("port 65536", tcp("192.0.2.1", 65_536, 80), "65536"),
        ("guest port 0", tcp("192.0.2.1", 8081, 0), "0"),
        ("no host address", tcp("", 8081, 80), "host_ip"),
        ("an IPv6 host address", tcp("::1", 8081, 80), "::1"),
        (
            "no protocol",
            port(Protocol::Unspecified, "192.0.2.1", 8081, 80),
            "protocol",
        ),
    ] {
        invalid(&mut table, input, &ports(&[bad]), &["nics[0].ports", word]);
    }
    for elsewhere in ["192.0.2.2", "10.83.0.9"] {
        let request = ports(&[tcp("192.0.2.1", 8082, 80), tcp(elsewhere, 8081, 80)]);
        let said = sentence(client.attach(&request), Code::Unavailable, "unavailable");
        table.row(
            &format!("a port of {elsewhere}, which the host does not have"),
            &said,
            &["nics[0].ports", elsewhere, "tcp port 8081", "doesn't have"],
        );
    }
    let once = tcp("192.0.2.1", 8081, 80);
    invalid(
        &mut table,
        "one port twice",
        &ports(&[once.clone(), once.clone()]),
        &["nics[0].ports", "8081"],
    );
    let elsewhere = machine(
        "bad",
        &[net::Nic {
            ports: vec![once],
            ..nic("lan")
        }],
    );
    invalid(
        &mut table,
        "a port on a bridged network",
        &elsewhere,
        &["nics[0].ports", "nat"],
    );

    invalid(&mut table, "no owner", &with(|it| it.owner = None), &["owner"]);
    let long = "x".repeat(256);
    for (instance, id) in [
        ("", "m"),
        ("UPPER", "m"),
        (&long[..17], "m"),
        ("checks", ""),
        ("checks", "a|b"),
        ("checks", &long[..49]),
    ] {
        let request = with(|it| {
            it.owner = Some(Owner {
                instance: instance.to_owned(),
                id: id.to_owned(),
            });
        });
        invalid(
            &mut table,
            &format!("owner {instance:?} {:?}", &id[..id.len().min(6)]),
            &request,
            &["owner"],
        );
    }
    for identity in ["", "a\nb", &long] {
        let request = with(|it| identity.clone_into(&mut it.identity));
        invalid(
            &mut table,
            &format!(
                "identity of {} bytes, {:?}",
                identity.len(),
                &identity[..identity.len().min(3)]
            ),
            &request,
            &["identity"],
        );
    }
    invalid(&mut table, "uid 0", &with(|it| it.uid = 0), &["uid", "root"]);
    invalid(
        &mut table,
        "uid 4294967295",
        &with(|it| it.uid = u32::MAX),
        &["uid"],
    );
    invalid(&mut table, "no queues", &with(|it| it.queues = 0), &["queues"]);
    invalid(
        &mut table,
        "a million queues",
        &with(|it| it.queues = 1_000_000),
        &["queues"],
    );
    invalid(
        &mut table,
        "no interface",
        &with(|it| it.nics.clear()),
        &["interface"],
    );
    let many = with(|it| it.nics = vec![nic("lan"); 100]);
    invalid(&mut table, "a hundred interfaces", &many, &["interface", "100"]);
    let hostile = machine("bad", &[nic("lan\"; drop")]);
    let said = sentence(client.attach(&hostile), Code::NotFound, "unknown-network");
    table.row("a network with a quote in its name", &said, &["lan"]);

    let said = client.attach_batch(&[machine("good", &[nic("lan")]), machine("good", &[nic("default")])]);
    let said = sentence(said, Code::FailedPrecondition, "other-spec");
    table.row("one machine in two ways in a batch", &said, &["good"]);
    let said = client.attach_batch(&[machine("good", &[nic("lan")]), machine("bad", &[nic("nosuch")])]);
    let said = sentence(said, Code::NotFound, "unknown-network");
    table.row("a batch of which one is wrong", &said, &["\"nosuch\""]);

    // A machine that runs.
    let tap = client
        .list()
        .into_iter()
        .find(|one| one.owner == Some(owner("holder")));
    let tap = guest::open(&host, &tap.expect("it was attached"));
    let said = crate::wait::until("a running machine is not detached", || {
        match client.detach(&owner("holder"), false) {
            Err(refused) => Ok(refused),
            Ok(taps) => panic!("{taps:?} were detached"),
        }
    });
    let said = sentence::<()>(Err(said), Code::FailedPrecondition, "in-use");
    drop(tap);
    crate::wait::until("nobody holds the tap open", || {
        let busy = client.list().into_iter().any(|one| one.carrier);
        if busy {
            Err("it has carrier".to_owned())
        } else {
            Ok(())
        }
    });
    table.row("detaching a machine that runs", &said, &["holder", "force"]);

    others(&netd, &mut table);
    table.rows
}

/// Somebody who is not allowed to.
fn others(netd: &Netd<'_>, table: &mut Table<'_>) {
    let as_user = |uid: u32, ask: fn(&crate::netd::Client) -> Result<(), Refused>| {
        let client = netd.another_client();
        let asked = std::thread::scope(|scope| {
            let asking = scope.spawn(move || {
                system::become_user(uid).expect("a thread of root's can be any user's");
                ask(&client)
            });
            asking.join().expect("asking does not panic")
        });
        sentence(asked, Code::PermissionDenied, "")
    };
    let said = as_user(65_534, |client| client.try_list().map(drop));
    table.row("a request of user 65534", &said, &["65534"]);
    let said = as_user(65_533, |client| client.try_list().map(drop));
    assert!(said.starts_with("NOT REFUSED"), "a reader may list: {said}");
    let said = as_user(65_533, |client| {
        client.attach(&machine("bad", &[nic("lan")])).map(drop)
    });
    table.row("an Attach of a user who may only read", &said, &["65533"]);
    let said = as_user(65_533, |client| client.detach(&owner("holder"), true).map(drop));
    table.row("a Detach of a user who may only read", &said, &["65533"]);
    let said = as_user(65_533, |client| client.sync::<&str>("checks", &[]).map(drop));
    table.row("a Sync of a user who may only read", &said, &["65533"]);
}
