//! Is an address that somebody else on the network has left to them?

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use steppe_proto::net;
use tonic::Code;

use crate::frame::link_local;
use crate::guest::{self, Guest};
use crate::host::{at, attach_one, machine, nic, owner};
use crate::netd::{Netd, Refused};
use crate::space::{self, Space};

const CONFIG: &str = r#"
[network.lan]
kind = "bridge"
uplink = "up0"
ipv4 = { subnet = "10.1.0.0/16", gateway = "10.1.0.1", pool = "10.1.1.0-10.1.1.255" }
ipv6 = { prefix = "fd00:1::/64" }
probe = "400ms"

[network.small]
kind = "bridge"
uplink = "up1"
ipv4 = { subnet = "10.2.0.0/24", pool = "10.2.0.8-10.2.0.9" }
probe = "100ms"
"#;

/// Shorter than the network's probe: an answer was not waited for to its end.
const EARLY: Duration = Duration::from_millis(400);

#[track_caller]
fn taken(answer: Result<Vec<net::Interface>, Refused>, address: &str) {
    let refused = answer.expect_err("the address is another host's");
    assert_eq!(refused.code, Code::AlreadyExists, "{refused}");
    assert!(
        matches!(refused.detail.reason.as_str(), "address-taken" | "identity-held"),
        "{refused}"
    );
    assert!(refused.detail.retryable, "{refused}");
    assert!(
        refused.sentence.contains(address),
        "{refused}: it does not name {address}"
    );
}

/// Addresses that another host answers for are refused or passed over; those that this host gave are known without asking.
pub(crate) fn duplicate_address_probe() {
    let host = Space::new("host");
    let neighbour = Space::new("neighbour");
    space::join((&host, "up0"), (&neighbour, "eth0"));
    space::join((&host, "up1"), (&neighbour, "eth1"));
    neighbour.ip("address add 10.1.0.5/16 dev eth0");
    let netd = Netd::start(&host, CONFIG);
    let client = netd.client();

    // Given, and another host's.
    taken(client.attach(&machine("a", &[at("lan", "10.1.0.5")])), "10.1.0.5");
    // Given, and nobody's: the full time is waited.
    let began = Instant::now();
    let interface = attach_one(client, "a", at("lan", "10.1.0.6"));
    assert!(
        began.elapsed() >= EARLY,
        "nobody else was asked: {:?}",
        began.elapsed()
    );
    // Given, and a machine's of this host.
    let refused = client
        .attach(&machine("b", &[at("lan", "10.1.0.6")]))
        .expect_err("the address is another machine's");
    assert_eq!(refused.detail.holder, Some(owner("a")), "{refused}");
    // The machine itself, once more: it answers for its own address now, and is not asked.
    let guest = Guest::boot(&host, &interface);
    let again = attach_one(client, "a", at("lan", "10.1.0.6"));
    assert_eq!(again.tap, interface.tap);

    // Computed: the first candidate is another host's, so the second is taken; and is the same at the next time.
    let checked = client
        .check(&machine("c", &[nic("lan")]))
        .expect("it could be attached");
    let first = guest::ipv4(&checked.interfaces[0]);
    let six = guest::ipv6(&checked.interfaces[0]);
    assert!(in_pool(first), "{first}");
    neighbour.ip(&format!("address add {first}/16 dev eth0"));
    let second = attach_one(client, "c", nic("lan"));
    assert_ne!(guest::ipv4(&second), first);
    assert!(in_pool(guest::ipv4(&second)), "{}", second.ipv4);
    assert_eq!(guest::ipv6(&second), six);
    client.detach(&owner("c"), false).expect("nobody holds it open");
    let third = attach_one(client, "c", nic("lan"));
    assert_eq!(third.ipv4, second.ipv4);
    client.detach(&owner("c"), false).expect("nobody holds it open");
    neighbour.ip(&format!("address del {first}/16 dev eth0"));
    assert_eq!(guest::ipv4(&attach_one(client, "c", nic("lan"))), first);
    client.detach(&owner("c"), false).expect("nobody holds it open");

    // Whoever has this identity has its hardware address, and the link-local address that follows from it.
    let local = link_local(guest::mac(&second));
    assert_eq!(six.segments()[4..], local.segments()[4..]);
    neighbour.ip(&format!("address add {local}/64 dev eth0 nodad"));
    let refused = client
        .attach(&machine("c", &[nic("lan")]))
        .expect_err("a machine of this identity lives on another host");
    assert_eq!(
        (
            refused.code,
            refused.detail.reason.as_str(),
            refused.detail.retryable
        ),
        (Code::AlreadyExists, "identity-held", true),
        "{refused}"
    );
    neighbour.ip(&format!("address del {local}/64 dev eth0"));

    // A pool of which each address is somebody's.
    neighbour.ip("address add 10.2.0.8/24 dev eth1\naddress add 10.2.0.9/24 dev eth1");
    let refused = client
        .attach(&machine("d", &[nic("small")]))
        .expect_err("every address is taken");
    assert_eq!(refused.code, Code::ResourceExhausted, "{refused}");
    assert_eq!(refused.detail.reason, "pool-exhausted", "{refused}");
    // Of two networks the second fails: nothing is left of the first.
    let refused = client.attach(&machine("d", &[nic("lan"), nic("small")]));
    assert!(refused.is_err(), "every address is taken");
    assert!(client.list().iter().all(|one| one.owner != Some(owner("d"))));

    // All the while guest and neighbour talk.
    assert!(guest.reaches(IpAddr::from([10, 1, 0, 5])));
}

fn in_pool(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    (a, b, c) == (10, 1, 1)
}

const JOINED: &str = r#"
[network.lan]
kind = "bridge"
uplink = "up0"
ipv4 = { subnet = "10.1.0.0/16", pool = "10.1.1.0-10.1.1.255" }
probe = "400ms"
"#;

/// An address and an identity that a host has given are its own from the first moment, though no guest answers yet; and no
/// longer than they are given.
pub(crate) fn address_defended() {
    let (left, right) = (Space::new("left"), Space::new("right"));
    space::join((&left, "up0"), (&right, "up0"));
    let (here, there) = (Netd::start(&left, JOINED), Netd::start(&right, JOINED));
    let (here, there) = (here.client(), there.client());
    // Nobody opens the taps: no guest answers.
    let given = attach_one(here, "given", at("lan", "10.1.0.7"));
    let computed = attach_one(here, "computed", nic("lan"));
    let same = |id: &str, nic: net::Nic| net::AttachRequest {
        identity: machine(id, &[]).identity,
        ..machine(&format!("like-{id}"), &[nic])
    };
    let mut waited = Duration::ZERO;
    for _ in 0..3 {
        for (address, what) in [
            ("10.1.0.7", "given"),
            (&guest::ipv4(&computed).to_string(), "computed"),
        ] {
            let began = Instant::now();
            let refused = there
                .attach(&machine("late", &[at("lan", address)]))
                .expect_err("the address is given on another host");
            waited += began.elapsed();
            assert_eq!(
                (refused.code, refused.detail.reason.as_str()),
                (Code::AlreadyExists, "address-taken"),
                "{what}: {refused}"
            );
            assert!(
                refused.detail.retryable && refused.sentence.contains(address),
                "{refused}"
            );
            let refused = there
                .attach(&same(what, nic("lan")))
                .expect_err("the identity lives on another host");
            assert_eq!(
                (refused.code, refused.detail.reason.as_str()),
                (Code::AlreadyExists, "identity-held"),
                "{what}: {refused}"
            );
            assert!(refused.detail.retryable, "{refused}");
        }
    }
    // The other way round, and what nobody has is had at once by whoever asks for it.
    let theirs = attach_one(there, "theirs", at("lan", "10.1.0.9"));
    taken(
        here.attach(&machine("late", &[at("lan", "10.1.0.9")])),
        "10.1.0.9",
    );
    assert_eq!(there.list(), [theirs]);

    // As soon as the one has gone, the other one may come.
    for (id, address) in [
        ("given", guest::ipv4(&given)),
        ("computed", guest::ipv4(&computed)),
    ] {
        here.detach(&owner(id), false).expect("nobody holds it open");
        let moved = attach_one(
            there,
            &format!("like-{id}"),
            net::Nic {
                ipv4: address.to_string(),
                ..nic("lan")
            },
        );
        assert_eq!(guest::ipv4(&moved), address);
        taken(
            here.attach(&machine(id, &[at("lan", &address.to_string())])),
            &address.to_string(),
        );
    }
    // An identity moves, with all that follows from it.
    let again = attach_one(here, "mover", nic("lan"));
    here.detach(&owner("mover"), false).expect("nobody holds it open");
    let moved = attach_one(there, "like-mover", nic("lan"));
    assert_ne!(moved.mac, again.mac);
    there
        .detach(&owner("like-mover"), false)
        .expect("nobody holds it open");
    let moved = there
        .attach(&same("mover", nic("lan")))
        .unwrap_or_else(|refused| panic!("{refused}"));
    assert_eq!((&moved[0].mac, &moved[0].ipv4), (&again.mac, &again.ipv4));
    crate::harness::say(&format!(
        "an address that is given elsewhere is refused within {} ms",
        (waited / 6).as_millis()
    ));
}
