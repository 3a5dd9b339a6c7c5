//! What comes of many requests at once, and of as many machines as a bridge can carry?

use std::collections::BTreeSet;
use std::time::Instant;

use steppe_proto::net;
use tonic::Code;

use crate::frame::{self, BROADCAST};
use crate::guest;
use crate::harness::say;
use crate::host::{INSTANCE, at, attach, attach_one, machine, nic, owner};
use crate::netd::{Netd, Refused};
use crate::space::Space;
use crate::state;
use crate::wait;

const CONFIG: &str = r#"
[network.default]
kind = "nat"
ipv4 = { subnet = "10.83.0.0/20", gateway = "10.83.0.1", pool = "10.83.0.2-10.83.15.254" }

[network.lan]
kind = "bridge"
ipv4 = { subnet = "10.1.0.0/16", pool = "10.1.1.0-10.1.9.255" }
ipv6 = { prefix = "fd00:1::/64" }
probe = "0s"
"#;

/// Sends requests side by side, each over a connection of its own.
fn at_once(netd: &Netd<'_>, requests: &[net::AttachRequest]) -> Vec<Result<Vec<net::Interface>, Refused>> {
    let clients: Vec<_> = requests.iter().map(|_| netd.another_client()).collect();
    std::thread::scope(|scope| {
        let asked: Vec<_> = requests
            .iter()
            .zip(clients)
            .map(|(request, client)| scope.spawn(move || client.attach(request)))
            .collect();
        let answers = asked.into_iter().map(|one| one.join().expect("Attach answers"));
        answers.collect()
    })
}

/// An interface without its carrier: a tap has it for a moment while it is being made.
fn settled(interface: &net::Interface) -> net::Interface {
    net::Interface {
        carrier: false,
        ..interface.clone()
    }
}

/// Requests at once are as good as one after the other.
pub(crate) fn netd_attach_at_once() {
    let host = Space::new("host");
    let netd = Netd::start(&host, CONFIG);
    let idle = idle(&host, &netd, &["default", "lan"]);

    // The same machine, two ideas of it: one comes true.
    for round in 0..10 {
        let id = format!("two-{round}");
        let requests = [
            machine(&id, &[at("lan", "10.1.0.1")]),
            machine(&id, &[at("lan", "10.1.0.2"), nic("default")]),
        ];
        let answers = at_once(&netd, &requests);
        let refused: Vec<&Refused> = answers
            .iter()
            .filter_map(|answer| answer.as_ref().err())
            .collect();
        let [refused] = refused[..] else {
            panic!("{} of two different requests were refused", refused.len());
        };
        assert_eq!(refused.code, Code::FailedPrecondition, "{refused}");
        assert_eq!(refused.detail.reason, "other-spec", "{refused}");
        let won = answers.iter().flatten().flatten().map(settled);
        let all = netd.client().list();
        assert_eq!(
            all.iter().map(settled).collect::<Vec<_>>(),
            won.collect::<Vec<_>>()
        );
        netd.client()
            .detach(&owner(&id), false)
            .expect("nobody holds it open");
    }
    // The same machine, one idea: it comes true once.
    let request = machine("same", &[nic("lan"), nic("default")]);
    let answers = at_once(&netd, &[request.clone(), request.clone(), request]);
    let whole = |answer: &Result<Vec<net::Interface>, Refused>| -> Vec<net::Interface> {
        let interfaces = answer.as_ref().expect("the request is right");
        interfaces.iter().map(settled).collect()
    };
    for answer in &answers {
        assert_eq!(whole(answer), whole(&answers[0]));
    }
    // Two machines, one address, and one identity.
    let x = machine("x", &[nic("lan")]);
    let y = net::AttachRequest {
        identity: x.identity.clone(),
        ..machine("y", &[nic("lan")])
    };
    let twins = [x, y];
    let answers = at_once(&netd, &twins);
    let refused: Vec<&Refused> = answers
        .iter()
        .filter_map(|answer| answer.as_ref().err())
        .collect();
    let [refused] = refused[..] else {
        panic!("{} of two machines of one identity were refused", refused.len());
    };
    assert_eq!(
        (refused.code, refused.detail.retryable),
        (Code::AlreadyExists, true),
        "{refused}"
    );
    assert_eq!(refused.detail.reason, "identity-held", "{refused}");
    let first = usize::from(answers[0].is_err());
    assert_eq!(refused.detail.holder, twins[first].owner, "{refused}");
    assert!(refused.sentence.contains(["x", "y"][first]), "{refused}");

    // Many.
    let requests: Vec<_> = (0..64)
        .map(|number| machine(&format!("many-{number}"), &[nic("lan"), nic("default")]))
        .collect();
    let began = Instant::now();
    let answers = at_once(&netd, &requests);
    let took = began.elapsed();
    let interfaces: Vec<net::Interface> = answers
        .into_iter()
        .flat_map(|answer| answer.unwrap_or_else(|refused| panic!("{refused}")))
        .collect();
    let distinct = |of: fn(&net::Interface) -> String| -> usize {
        interfaces.iter().map(of).collect::<BTreeSet<_>>().len()
    };
    assert_eq!(
        (
            distinct(|one| one.tap.clone()),
            distinct(|one| one.mac.clone()),
            distinct(|one| one.ipv4.clone())
        ),
        (128, 128, 128)
    );
    assert_eq!(netd.client().list().len(), 128 + 3);
    let began = Instant::now();
    let clients: Vec<_> = requests.iter().map(|_| netd.another_client()).collect();
    std::thread::scope(|scope| {
        for (request, client) in requests.iter().zip(clients) {
            let owner = request.owner.as_ref().expect("it has one");
            scope.spawn(move || client.detach(owner, false).expect("nobody holds it open"));
        }
    });
    say(&format!(
        "64 machines at once: attached within {} ms, detached within {} ms",
        took.as_millis(),
        began.elapsed().as_millis()
    ));
    for id in ["same", "x", "y"] {
        netd.client()
            .detach(&owner(id), false)
            .expect("nobody holds it open");
    }
    assert_eq!(netd.client().list(), []);
    becomes(&host, &idle);
}

/// What is netd's when these networks were used and no machine is attached.
#[track_caller]
pub(crate) fn idle(host: &Space, netd: &Netd<'_>, networks: &[&str]) -> BTreeSet<String> {
    let nics: Vec<net::Nic> = networks.iter().map(|network| nic(network)).collect();
    attach(netd.client(), &machine("first", &nics));
    netd.client()
        .detach(&owner("first"), false)
        .expect("nobody holds it open");
    // Of the filter, too, what it left is deleted a little later.
    wait::until("everything of a machine is deleted", || {
        let ours = state::ours(host);
        let tap = ours
            .iter()
            .find(|line| line.contains(" v_ndt") || line.starts_with("link ndt"));
        tap.map_or(Ok(ours.clone()), |line| Err(line.clone()))
    })
}

/// What is netd's becomes this again: what was detached is deleted a little later.
#[track_caller]
pub(crate) fn becomes(host: &Space, idle: &BTreeSet<String>) {
    wait::until("everything detached is gone", || {
        let difference = state::difference(idle, &state::ours(host));
        if difference.is_empty() {
            Ok(())
        } else {
            Err(difference)
        }
    });
}

/// Ports that a bridge of Linux can have.
const PORTS_MAX: usize = 1023;

/// As many machines as fit: the next is refused in one sentence, and changes nothing.
pub(crate) fn netd_bridge_full() {
    let host = Space::new("host");
    let mut netd = Netd::start(&host, CONFIG);
    let idle = idle(&host, &netd, &["default", "lan"]);
    let began = Instant::now();
    let requests: Vec<_> = (0..PORTS_MAX)
        .map(|number| machine(&format!("m{number}"), &[nic("default")]))
        .collect();
    let (last, most) = requests.split_last().expect("there are some");
    for batch in most.chunks(146) {
        netd.client()
            .attach_batch(batch)
            .unwrap_or_else(|refused| panic!("{refused}"));
    }
    let attached = began.elapsed();
    attach(netd.client(), last);
    let before = state::taps(&host);
    assert_eq!(before.len(), PORTS_MAX);
    let refused = netd
        .client()
        .attach(&machine("beyond", &[nic("lan"), nic("default")]))
        .expect_err("the bridge is full");
    assert_eq!(refused.code, Code::ResourceExhausted, "{refused}");
    assert_eq!(refused.detail.reason, "bridge-full", "{refused}");
    assert!(
        refused.sentence.contains("default") && refused.sentence.contains("1023"),
        "{refused}"
    );
    assert_eq!(state::taps(&host), before);
    // A batch of which one does not fit.
    let batch = [
        machine("fits", &[nic("lan")]),
        machine("beyond", &[nic("default")]),
    ];
    netd.client()
        .attach_batch(&batch)
        .expect_err("the bridge is full");
    assert_eq!(state::taps(&host), before);

    let began = Instant::now();
    netd.restart();
    let restarted = began.elapsed();
    assert_eq!(netd.client().list().len(), PORTS_MAX);
    let began = Instant::now();
    for _ in 0..2 {
        netd.client()
            .sync::<&str>(INSTANCE, &[])
            .expect("no machine lives");
    }
    becomes(&host, &idle);
    say(&format!(
        "{PORTS_MAX} interfaces: attached in {:.1} s, netd restarted in {:.1} s, removed in {:.1} s",
        attached.as_secs_f64(),
        restarted.as_secs_f64(),
        began.elapsed().as_secs_f64()
    ));
    attach_one(netd.client(), "beyond", nic("default"));
}

/// Somebody empties nftables, or takes netd's tables alone: they are back within moments, and nothing forged passes.
pub(crate) fn netd_flushed_ruleset() {
    let host = Space::new("host");
    host.nft("add table inet others\nadd chain inet others c\nadd rule inet others c accept\n");
    let netd = Netd::start(&host, CONFIG);
    let sender = attach_one(netd.client(), "sender", nic("lan"));
    let receiver = attach_one(netd.client(), "receiver", nic("lan"));
    let (out, heard) = (guest::plug(&host, &sender), guest::plug(&host, &receiver));
    let before = state::ours(&host);
    let own = guest::mac(&sender);
    let says = |source: [u8; 4], text: &str| {
        let addresses = (source.into(), guest::ipv4(&receiver));
        out.send(&frame::udp4((BROADCAST, own), addresses, (9, 9), text));
    };
    for loss in [
        "flush ruleset",
        "delete table bridge netd",
        "delete table inet netd",
    ] {
        let began = Instant::now();
        host.nft(loss);
        becomes(&host, &before);
        say(&format!(
            "after {loss}: whole again within {} ms",
            began.elapsed().as_millis()
        ));
        says([10, 1, 77, 77], "forged");
        says(guest::ipv4(&sender).octets(), "honest");
        let frames = heard.receive_until(b"honest");
        assert!(!frames.iter().any(|frame| crate::tap::contains(frame, b"forged")));
    }
}
