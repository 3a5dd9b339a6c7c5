//! Who may have an identity, while two allocations of one index live?

use serde_json::{Value, json};

use super::addresses::{Addresses, answers};
use crate::api::Allocation;
use crate::harness::say;
use crate::hosts::{Host, Net};
use crate::job::{Job, Order};
use crate::wait::{self, seconds};

/// A group whose next version is tried by one canary, beside the allocation that runs.
fn with_canary(order: Order) -> Order {
    let update = json!({
        "Canary": 1, "MaxParallel": 1, "MinHealthyTime": 0, "HealthCheck": "task_states",
        "HealthyDeadline": 120_000_000_000u64, "ProgressDeadline": 240_000_000_000u64
    });
    order.service().group("Update", update)
}

/// Hands in the next version of a job; gives its canary.
fn next_version<'w>(net: &'w Net, job: &Job<'w>, order: &Order) -> Job<'w> {
    let before: Vec<String> = ids(net, &job.id);
    net.api
        .register(&order.json(&job.id))
        .expect("Nomad takes the next version");
    let allocation = wait::until("a canary", seconds(30), || {
        let new = ids(net, &job.id).into_iter().find(|id| !before.contains(id));
        new.ok_or_else(|| "none".to_owned())
    });
    Job::known(&net.api, &job.id, &allocation)
}

fn ids(net: &Net, job: &str) -> Vec<String> {
    let all = net.api.allocations(job).expect("the server answers");
    all.into_iter().map(|allocation| allocation.id).collect()
}

/// With `identity = "alloc"` a canary has its own addresses, beside those of whom it is to replace; both answer.
pub(super) fn alloc_identity(net: &Net) {
    let order = |words: &str| {
        let order = Order::guest("canary", &format!("steppe.httpd {words}")).tenant("auto");
        with_canary(order.set("identity", json!("alloc")).on_any("h"))
    };
    let stays = net.run(&order(""));
    let old = Addresses::of_guest(&stays);
    let canary = next_version(net, &stays, &order("steppe.ticks"));
    let new = Addresses::of_guest(&canary);
    assert!(
        old.mac != new.mac && old.ipv4 != new.ipv4 && old.ipv6 != new.ipv6,
        "{old:?} and {new:?}"
    );
    answers(&old.ipv4);
    answers(&new.ipv4);

    let deployment: Value = wait::until("a healthy canary", seconds(60), || {
        let deployment: Value = net.api.get(&format!("/job/{}/deployment", stays.id))?;
        let healthy = deployment["TaskGroups"]["vm"]["HealthyAllocs"].as_u64();
        if healthy == Some(1) {
            Ok(deployment)
        } else {
            Err(deployment.to_string())
        }
    });
    let id = deployment["ID"].as_str().unwrap_or_default();
    let promote = json!({ "DeploymentID": id, "All": true }).to_string();
    net.api
        .post(&format!("/deployment/promote/{id}"), promote.as_bytes())
        .expect("it can be promoted");
    let _ended = stays.wait_terminal();
    assert_eq!(Addresses::of_guest(&canary), new);
    answers(&new.ipv4);
}

/// With the identity of the job a canary is refused while the allocation of its index lives, on the same host and on another
/// one; it is tried again, and starts once the other has ended.
pub(super) fn duplicate_identity_refused(net: &Net) {
    let [first, second, ..] = net.hosts.as_slice() else {
        panic!("there are hosts");
    };
    let order = |words: &str, host: &Host, restarts: u32| {
        let mut order = with_canary(Order::guest("twice", words).tenant("auto").on(&host.client));
        order.restarts = restarts;
        order
    };
    let holder = net.run(&order("", first, 0));
    let held = Addresses::of_guest(&holder);
    let key = first.netd.of(&holder.allocation)[0].id.clone();

    // On another host: nobody there knows, but the guest answers for its address.
    let elsewhere = next_version(net, &holder, &order("steppe.ticks", second, 100));
    let refused = refusals(&elsewhere, 2);
    say(&format!("    on another host: {refused}"));
    assert!(
        refused.contains(&held.ipv4) || refused.contains(&held.mac),
        "{refused}"
    );

    // On the same one: by name.
    let here = next_version(net, &holder, &order("steppe.ticks=fast", first, 100));
    let refused = refusals(&here, 2);
    say(&format!("    on the same host: {refused}"));
    assert!(
        refused.contains(&key),
        "the refusal does not name {key}: {refused}"
    );

    assert!(
        crate::process::signal(holder.qemu(&first.client), rustix::process::Signal::KILL),
        "QEMU is gone"
    );
    let running = here.wait_running();
    assert!(running.event("Started").is_some(), "{}", running.story());
    assert_eq!(Addresses::of_guest(&here), held, "the identity's addresses");
}

/// Waits until a task's start was refused so often; the last refusal. Nomad tries again: it isn't for good.
#[track_caller]
pub(super) fn refusals(job: &Job<'_>, count: usize) -> String {
    wait::until(
        &format!("{}: {count} refused starts", job.id),
        seconds(60),
        || {
            let allocation: Allocation = job.look();
            assert!(!allocation.is_terminal(), "given up: {}", allocation.story());
            let events = allocation.events().iter();
            let refused: Vec<_> = events.filter(|event| event.kind == "Driver Failure").collect();
            match refused.last() {
                Some(last) if refused.len() >= count => Ok(last.display_message.clone()),
                _ => Err(allocation.story()),
            }
        },
    )
}
