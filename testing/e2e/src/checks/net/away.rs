//! What becomes of VMs, starts and the driver's health while netd is away, or another release's?

use std::collections::BTreeMap;

use serde_json::json;
use steppe_proto::NET_API;

use super::addresses::wait_detached;
use super::canary::refusals;
use crate::checks::witness::Witness;
use crate::hosts::{Host, Net};
use crate::job::Order;
use crate::wait::seconds;
use crate::world::required;

/// So soon the driver must say that netd is away.
const SAID_LIMIT: std::time::Duration = seconds(30);

/// Running VMs lose nothing, a start fails for now and the next succeeds, the driver says what is wrong; its attributes stay.
pub(super) fn netd_away(net: &Net) {
    let [host] = net.own_hosts("w", 1).try_into().expect("one was asked for");
    let client = &host.client;
    let order = Order::guest("lives", "steppe.httpd steppe.ticks=fast")
        .http("default")
        .on(client);
    let lives = net.run(&order);
    let mut order = Order::stub("again", "").tenant("auto").on(client).service();
    order.restarts = 100;
    let again = net.run(&order);
    let _console = again.wait_console(crate::job::STUB_READY);
    let lives = Witness::new(lives, client);
    let before = attributes(net, &host);
    assert_eq!(
        before.get("driver.microvm.network.tenant").map(String::as_str),
        Some("bridge")
    );

    host.netd.kill9();
    // Nomad would place nothing new here; a task that is here already is started again.
    let path = format!("/client/allocation/{}/restart", again.allocation);
    client
        .agent
        .api()
        .put(&path, &json!({ "TaskName": "vm" }))
        .expect("the client restarts a task");
    let refused = refusals(&again, 2);
    let socket = host.netd.socket().display().to_string();
    assert!(
        refused.contains("netd") && refused.contains(&socket),
        "the refusal does not name netd at {socket}: {refused}"
    );
    let said_by = std::time::Instant::now() + SAID_LIMIT;
    client.wait_driver(&net.api, "the driver says that netd is away", |node| {
        match node.drivers.get("microvm") {
            Some(driver) if !driver.healthy && driver.health_description.contains(&socket) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    assert!(
        std::time::Instant::now() < said_by,
        "it took longer than {SAID_LIMIT:?}"
    );
    assert_eq!(attributes(net, &host), before, "the attributes changed");
    let _uptime = lives.untouched(client);
    lives.ticks_on();

    host.netd.start();
    client.wait_healthy(&net.api);
    assert_eq!(attributes(net, &host), before, "the attributes changed");
    let running = again.wait_running();
    again.wait_console(crate::job::STUB_READY);
    assert!(running.event("Started").is_some(), "{}", running.story());
    let _uptime = lives.untouched(client);
    lives.stop();
    let _ended = again.stop_and_wait();
    wait_detached(&host, "");
}

/// What the node says of the driver, but for what can't be taken back for now: without netd that is the task which is to be
/// started again.
fn attributes(net: &Net, host: &Host) -> BTreeMap<String, String> {
    let node = net.api.node(&host.client.node()).expect("the server answers");
    let own = node
        .attributes
        .into_iter()
        .filter(|(name, _)| name.starts_with("driver.microvm") && name != "driver.microvm.orphans");
    own.collect()
}

/// A netd that speaks the version before or the next one will do; two apart is too far, and the driver names both.
pub(super) fn skew(net: &Net) {
    let [host] = net.own_hosts("k", 1).try_into().expect("one was asked for");
    let client = &host.client;
    host.netd.terminate();
    host.netd
        .install(&required("STEPPE_POINTS_PLUGIN_DIR", crate::netd::NETD));
    for version in [NET_API - 1, NET_API + 1] {
        host.netd
            .start_with(&[("STEPPE_NETD_API", &format!("{version}-{version}"))]);
        client.wait_healthy(&net.api);
        let mut order = Order::stub("skew", "").tenant("auto").on(client);
        // The server may still have the health of the last netd.
        order.restarts = 100;
        let job = net.run(&order);
        let _console = job.wait_console(crate::job::STUB_READY);
        assert_eq!(host.netd.of(&job.allocation).len(), 1, "version {version}");
        let _ended = job.stop_and_wait();
        wait_detached(&host, &job.allocation);
        host.netd.terminate();
    }
    let far = NET_API + 2;
    host.netd
        .start_with(&[("STEPPE_NETD_API", &format!("{far}-{far}"))]);
    client.wait_driver(&net.api, "the driver names both versions", |node| {
        match node.drivers.get("microvm") {
            Some(driver) if !driver.healthy && names(&driver.health_description, far) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

/// Whether a sentence has both versions as words.
fn names(sentence: &str, far: u32) -> bool {
    let words: Vec<&str> = sentence.split(|c: char| !c.is_ascii_digit()).collect();
    [NET_API, far]
        .iter()
        .all(|version| words.contains(&version.to_string().as_str()))
}
