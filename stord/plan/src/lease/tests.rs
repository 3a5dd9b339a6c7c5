//! Who gets a volume, who is refused, and what of a stored lease is believed?

use proptest::prelude::*;

use super::*;

fn holder(host: &str, boot: &str, owner: &str) -> Holder {
    Holder {
        host: host.to_owned(),
        boot: boot.to_owned(),
        owner: owner.to_owned(),
    }
}

fn set(addresses: &[&str]) -> BTreeSet<Address> {
    addresses.iter().map(|address| (*address).to_owned()).collect()
}

/// The lease that a holder has, with clients.
fn attached(me: &Holder, clients: &[&str]) -> Lease {
    let Claim::Attach(change) = claim(None, me, OnConflict::Refuse, 7) else {
        panic!("nobody has it");
    };
    assert!(change.holds(None));
    confirm(&change.write, set(clients)).write
}

#[test]
fn the_first_claim_is_granted_and_a_second_one_is_held() {
    let me = holder("a", "1", "i/web");
    let lease = attached(&me, &["10.0.0.1:0/7"]);
    assert_eq!(
        (lease.revision, lease.epoch, &lease.state),
        (2, 1, &State::Attached)
    );
    assert_eq!(adopt(&lease, &me), Ok(()));
    // Another machine on this host, this one itself, and one on another host that may not fence.
    for other in [holder("a", "1", "i/db"), me.clone(), holder("b", "1", "i/web")] {
        let Claim::Held(held) = claim(Some(&lease), &other, OnConflict::Refuse, 9) else {
            panic!("{other} gets it");
        };
        assert_eq!(held.to_string(), "i/web on host a has it (attached)");
        assert_eq!(held.since, 7);
    }
    let neighbour = holder("a", "1", "i/db");
    let fencing = claim(Some(&lease), &neighbour, OnConflict::Fence, 9);
    assert!(matches!(fencing, Claim::Held(_)), "on one host nobody is fenced");
}

#[test]
fn what_was_interrupted_is_begun_anew() {
    let me = holder("a", "1", "i/web");
    let Claim::Attach(first) = claim(None, &me, OnConflict::Refuse, 7) else {
        panic!("nobody has it");
    };
    let Claim::Attach(again) = claim(Some(&first.write), &me, OnConflict::Refuse, 8) else {
        panic!("it is ours");
    };
    assert!(again.holds(Some(&first.write)));
    let late = confirm(&first.write, set(&["old"]));
    assert!(!late.holds(Some(&again.write)));
    assert!(confirm(&again.write, set(&["new"])).holds(Some(&again.write)));
}

#[test]
fn a_rebooted_host_fences_only_what_storage_may_remember() {
    let before = holder("a", "1", "i/web");
    let after = holder("a", "2", "i/db");
    let local = claim(Some(&attached(&before, &[])), &after, OnConflict::Refuse, 9);
    assert!(matches!(local, Claim::Attach(_)), "{local:?}");
    let Claim::Fence(change) = claim(Some(&attached(&before, &["x"])), &after, OnConflict::Refuse, 9) else {
        panic!("its client may still be known");
    };
    assert_eq!(change.write.victims, set(&["x"]));
}

#[test]
fn victims_stay_until_they_are_fenced() {
    let (a, b, c) = (
        holder("a", "1", "vm"),
        holder("b", "1", "vm"),
        holder("c", "1", "vm"),
    );
    let lease = attached(&a, &["x"]);
    let Claim::Fence(first) = claim(Some(&lease), &b, OnConflict::Fence, 9) else {
        panic!("b may fence");
    };
    // The fencer gives up, or another one takes over.
    let Some(given_back) = release(Some(&first.write), &b) else {
        panic!("b has it");
    };
    assert_eq!(given_back.write.victims, set(&["x"]));
    for stored in [&first.write, &given_back.write] {
        let Claim::Fence(second) = claim(Some(stored), &c, OnConflict::Fence, 9) else {
            panic!("the victims come first");
        };
        let fence = to_fence(&second.write, &set(&["y", "own"]), &set(&["own"]));
        assert_eq!(fence, set(&["x", "y"]));
        let attaching = fenced(&second.write);
        assert_eq!(
            (attaching.write.state.name(), attaching.write.victims.len()),
            ("attaching", 0)
        );
    }
    assert_eq!(release(Some(&lease), &b), None);
    assert_eq!(release(None, &b), None);
}

#[test]
fn a_handover_is_passed_once_both_are_known() {
    let (a, b) = (holder("a", "1", "vm"), holder("b", "1", "vm"));
    let lease = attached(&a, &["x"]);
    assert!(offer(&lease, &b, &a).is_err());
    let offered = offer(&lease, &a, &b).expect("it is a's").write;
    assert!(pass(&offered, &a).is_err(), "b's client isn't there");
    assert!(accept(&offered, &a, &set(&["z"])).is_err());
    let accepted = accept(&offered, &b, &set(&["y"]))
        .expect("it is offered to b")
        .write;
    assert_eq!(accepted.addresses, set(&["x", "y"]));
    let passed = pass(&accepted, &a).expect("b's client is there").write;
    assert_eq!((&passed.holder, &passed.state), (&b, &State::Attached));
    let back = withdraw(&accepted, &a).expect("it is a's").write;
    assert_eq!((&back.holder, &back.state), (&a, &State::Attached));
    assert!(withdraw(&passed, &a).is_err());
    // A holder that dies in between leaves both to be fenced.
    let Some(released) = release(Some(&accepted), &a) else {
        panic!("a has it");
    };
    assert_eq!(released.write.victims, set(&["x", "y"]));
}

#[test]
fn golden_record() {
    let a = holder("a.example", "3f0c", "0123456789abcdef/web");
    let lease = attached(&a, &["10.0.0.1:0/77"]);
    let lease = offer(&lease, &a, &holder("b", "9d", "0123456789abcdef/web"))
        .expect("it is a's")
        .write;
    let text = "{\"version\":1,\"lease\":{\"revision\":3,\"epoch\":1,\"holder\":{\"host\":\"a.example\",\"boot\":\"3f0c\",\
        \"owner\":\"0123456789abcdef/web\"},\"state\":{\"handover\":{\"to\":{\"host\":\"b\",\"boot\":\"9d\",\"owner\":\
        \"0123456789abcdef/web\"},\"accepted\":false}},\"addresses\":[\"10.0.0.1:0/77\"],\"victims\":[],\"since\":7}}\n";
    assert_eq!(lease.to_record(), text);
    assert_eq!(Lease::from_record(text.as_bytes()), Ok(lease));
}

#[test]
fn what_we_did_not_write_is_no_lease() {
    let good = attached(&holder("a", "1", "i/web"), &["x"]).to_record();
    let refused = |text: &str| Lease::from_record(text.as_bytes()).expect_err(text).to_string();
    assert!(
        refused("").starts_with("the lease is no record of stord: EOF"),
        "{}",
        refused("")
    );
    assert!(refused("garbage").contains("expected value"));
    assert_eq!(
        refused(&good.replace("\"version\":1", "\"version\":2")),
        "the lease is of version 2, and this stord reads version 1: install the release that wrote it"
    );
    for (from, to, why) in [
        ("\"revision\":2", "\"revision\":0", "revision 0"),
        ("\"epoch\":1", "\"epoch\":9", "epoch 9"),
        ("\"host\":\"a\"", "\"host\":\"\"", "one of its texts"),
        ("\"host\":\"a\"", "\"host\":\"a\\nb\"", "one of its texts"),
        ("[\"x\"]", "[\"\\u001b[2J\"]", "one of its texts"),
        ("\"attached\"", "\"attaching\"", "has clients"),
        ("\"attached\"", "\"stolen\"", "unknown variant"),
        ("\"since\":7", "\"since\":7,\"more\":1", "unknown field"),
    ] {
        let text = good.replace(from, to);
        assert_ne!(text, good);
        assert!(refused(&text).contains(why), "{}", refused(&text));
    }
    assert!(refused(&" ".repeat(RECORD_BYTES_MAX + 1)).contains("bytes"));
}

proptest! {
    /// What is read back is what was written, and nothing else is believed.
    #[test]
    fn any_bytes_are_a_lease_or_a_sentence(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0..400_usize, by in any::<u8>()) {
        let _refused = Lease::from_record(&bytes);
        let lease = attached(&holder("a", "1", "i/web"), &["x"]);
        let mut text = lease.to_record().into_bytes();
        let place = at % text.len();
        text[place] = by;
        if let Ok(read) = Lease::from_record(&text) {
            prop_assert_eq!(Lease::from_record(read.to_record().as_bytes()), Ok(read));
        }
    }
}
