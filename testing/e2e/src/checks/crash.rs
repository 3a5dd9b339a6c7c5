//! Does a VM live through the death of the plugin, of the agent, of both?

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::logs::ticks;
use super::stop::assert_exit;
use crate::agent::Client;
use crate::api::{TASK, now_ns};
use crate::job::{Job, Order};
use crate::process;
use crate::wait::{self, seconds};
use crate::world::World;

/// How long the agent is down where something is to happen meanwhile.
const DOWN_FOR: Duration = seconds(4);

/// Nomad relaunches a plugin after 20 to 50 ms.
const RELAUNCH_LIMIT: Duration = seconds(20);

pub(super) fn plugin_kill9(world: &World) {
    undisturbed(world, "kill-p", |client, job| {
        // Three times: Nomad has no counter and no pause. But a plugin that dies again before it has the task back is a
        // failure to Nomad, which then starts the task anew.
        for _ in 0..3 {
            let old = client.plugin().expect("the plugin runs").pid;
            let killed = now_ns();
            assert!(process::signal(old, Signal::KILL), "plugin {old} is gone");
            wait::until("a new plugin", RELAUNCH_LIMIT, || match client.plugin() {
                Some(plugin) if plugin.pid != old => Ok(()),
                other => Err(format!("{other:?}")),
            });
            wait_statistics(world, job, killed);
        }
    });
}

/// Waits for statistics of the task that were taken after this time: the driver has it, or has it again.
fn wait_statistics(world: &World, job: &Job<'_>, since_ns: i64) {
    wait::until("statistics of the task", RELAUNCH_LIMIT, || {
        let path = format!("/client/allocation/{}/stats", job.allocation);
        let stats: Value = world.api.get(&path)?;
        let taken = stats["Tasks"][TASK]["Timestamp"].as_i64();
        match taken {
            Some(taken) if taken > since_ns => Ok(()),
            _ => Err(stats.to_string()),
        }
    });
}

pub(super) fn agent_kill9(world: &World) {
    undisturbed(world, "kill-a", |client, job| {
        let plugin = client.plugin().expect("the plugin runs").pid;
        client.agent.kill9();
        std::thread::sleep(DOWN_FOR);
        assert!(process::one(plugin).is_some(), "the plugin ended with the agent");
        client.agent.start();
        client.wait_healthy(&world.api);
        wait_statistics(world, job, now_ns());
        // Once more, the plugin too: then nobody holds a connection to the shim.
        let plugin = client.plugin().expect("the plugin runs").pid;
        client.agent.kill9();
        assert!(process::signal(plugin, Signal::KILL), "plugin {plugin} is gone");
        client.agent.start();
        client.wait_healthy(&world.api);
    });
}

pub(super) fn agent_restart(world: &World) {
    undisturbed(world, "restart", |client, _job| {
        client.agent.terminate();
        wait::until("the plugins' end", seconds(10), || {
            match client.plugins().as_slice() {
                [] => Ok(()),
                left => Err(format!("{left:?}")),
            }
        });
        std::thread::sleep(DOWN_FOR);
        client.agent.start();
        client.wait_healthy(&world.api);
    });
}

/// Runs a guest, disturbs what is around it, and looks whether the guest and its log took no notice.
fn undisturbed(world: &World, name: &str, disturb: impl Fn(&Client, &Job<'_>)) {
    let client = world.own_client(name);
    let mut order = Order::with_http(name, "steppe.ticks=fast").on(&client);
    // A start too many would succeed, and be seen.
    order.restarts = 3;
    let job = world.run(&order);
    let _console = job.wait_console("tick 5\r\n");
    let qemu = job.qemu(&client);
    let before = job.uptime();
    let began = Instant::now();
    let attributes = world
        .api
        .node(&client.node())
        .expect("the server answers")
        .attributes;

    disturb(&client, &job);

    let after = job.uptime();
    let wall = began.elapsed().as_secs_f64();
    // The guest's clock may lag where the host is busy; a guest that was started again would be far below.
    assert!(
        after > before && after >= before + wall / 2.0,
        "uptime {before}, then {after} after {wall:.1} s"
    );
    assert_eq!(job.qemu(&client), qemu, "another QEMU");
    let ours = |attributes: &std::collections::BTreeMap<String, String>| -> BTreeSet<String> {
        let ours = attributes.iter().filter(|(name, _)| name.starts_with("driver."));
        ours.map(|(name, value)| format!("{name} = {value}")).collect()
    };
    // Nomad itself takes `driver.microvm` away while the plugin is gone, and tells its server of changes in batches.
    wait::until("the attributes of before", seconds(40), || {
        let again = world.api.node(&client.node())?.attributes;
        if ours(&again) == ours(&attributes) {
            Ok(())
        } else {
            Err(format!("{:?}, not {:?}", ours(&again), ours(&attributes)))
        }
    });

    // What the guest said meanwhile is there, and it is still heard.
    let sofar = ticks(&job.console());
    let console = job.wait_console(&format!("tick {}\r\n", sofar + 10));
    let _complete = ticks(&console);
    wait_statistics(world, &job, now_ns());

    // It can be stopped as ever: the driver has it again.
    let ended = job.stop_and_wait();
    assert_exit(&ended, 0, 0);
    let console = job.console();
    assert!(
        console.contains("steppe-guest: bye"),
        "no orderly end: {}",
        ended.story()
    );
    assert!(ticks(&console) >= sofar + 10);
    assert_eq!(job.allocations(), 1, "Nomad made another allocation");
    assert_eq!(
        ended.task().map(|task| task.restarts),
        Some(0),
        "{}",
        ended.story()
    );
    let started = ended
        .events()
        .iter()
        .filter(|event| event.kind == "Started")
        .count();
    assert_eq!(started, 1, "{}", ended.story());
    let troubles = ["Driver Failure", "Restarting", "Failed Restoring Task"];
    let trouble = ended
        .events()
        .iter()
        .find(|event| troubles.contains(&event.kind.as_str()));
    assert!(trouble.is_none(), "{}", ended.story());
    assert!(job.vms(&client).is_empty(), "its VM is still there");
}

/// A guest that ends while nobody watches: Nomad learns its exit code and when it was.
pub(super) fn vm_dies_while_agent_down(world: &World) {
    /// How far the time that Nomad shows may be from the one seen here.
    const TIME_ERROR_MAX: Duration = seconds(2);
    let client = world.own_client("unseen");
    let job = world.run(&Order::with_http("unseen", "").on(&client));
    let _console = job.wait_ready();
    let qemu = job.qemu(&client);
    let address = job.address();
    client.agent.terminate();

    let http = crate::api::client(seconds(5));
    crate::api::get(&http, &format!("http://{address}/cgi-bin/exit?5"))
        .unwrap_or_else(|error| panic!("{error}"));
    wait::until("QEMU's end", seconds(20), || match process::one(qemu) {
        None => Ok(()),
        Some(_) => Err("it runs".to_owned()),
    });
    let end = now_ns();
    // Longer than the error that is allowed.
    std::thread::sleep(TIME_ERROR_MAX + DOWN_FOR);
    client.agent.start();
    client.wait_healthy(&world.api);

    let ended = job.wait_terminal();
    assert_eq!(ended.client_status, "failed", "{}", ended.story());
    assert_exit(&ended, 5, 0);
    // FinishedAt is Nomad's own: when it learned of the end. When the end was is the driver's event's time.
    let event = job.wait_event("Driver", "exit code 5");
    let error = Duration::from_nanos(event.time.abs_diff(end));
    assert!(
        error <= TIME_ERROR_MAX,
        "the driver's event is {:.2} s from the guest's end: {}",
        error.as_secs_f64(),
        event.display_message
    );
    assert!(job.console().contains(crate::job::READY), "the log is gone");
}
