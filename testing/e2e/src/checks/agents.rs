//! What becomes of VMs whose agent is not alone, never comes back, or keeps nothing?

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::witness::{Witness, terminate, the_vm, wait_nothing_left};
use crate::agent::Client;
use crate::harness::say;
use crate::host;
use crate::job::{Job, Order};
use crate::process;
use crate::wait::{self, seconds};
use crate::world::World;

/// Ends an agent and its plugin at once.
fn kill_both(client: &Client) {
    let plugin = client.plugin().expect("the plugin runs").pid;
    client.agent.kill9();
    assert!(process::signal(plugin, Signal::KILL), "plugin {plugin} is gone");
}

/// Makes Nomad forget a job of a client and the client's node, and the client all that it knew. The allocations' folders
/// stay: only Nomad knew what to do with them.
fn forget(world: &World, client: &Client, job: &Job<'_>) {
    drop(world.api.purge(&job.id));
    let purged = world.api.post(&format!("/node/{}/purge", client.node()), b"");
    purged.unwrap_or_else(|error| panic!("{error}"));
    let state = client.data_dir().join("client");
    std::fs::remove_dir_all(&state).unwrap_or_else(|error| panic!("{}: {error}", state.display()));
}

/// Two agents share a host, its `run_dir` and the users of its VMs; whatever becomes of the one, the other's VM goes on.
pub(super) fn two_on_one_host(world: &World) {
    let shared = world.scratch.path().join("two");
    let place = shared.display().to_string();
    let options = |grace: &str| {
        let options = world.options().replace("DIRECTORY/run", &place);
        // Three pairs: their VMs come to want the same users.
        format!("{options}\n    vm_uids = \"1900070000-1900070005\"\n    orphan_grace = \"{grace}\"\n")
    };
    let start = |name: &str, options: &str| {
        let client = world.client_with(name, options, |setup| {
            setup.run_dir = Some(shared.clone());
        });
        client.agent.start();
        client
    };
    let (one, other) = (start("one", &options("3s")), start("other", &options("3s")));
    one.wait_healthy(&world.api);
    other.wait_healthy(&world.api);
    let first = Witness::new(world.run(&Witness::order("first", &one)), &one);
    let second = Witness::new(world.run(&Witness::order("second", &other)), &other);

    // Everything that happens to one agent and its plugin, the other one's VM doesn't notice. Nor does its own.
    one.agent.kill9();
    one.agent.start();
    one.wait_healthy(&world.api);
    let _uptime = second.untouched(&other);
    kill_both(&one);
    one.agent.start();
    one.wait_healthy(&world.api);
    let _uptime = second.untouched(&other);
    terminate(&one);
    one.agent.start();
    one.wait_healthy(&world.api);
    // Ctrl-C in a terminal reaches everything that the agent started and that has not left its process group.
    one.agent.interrupt();
    let _status = one.agent.wait_end();
    one.agent.start();
    one.wait_healthy(&world.api);
    let _uptime = second.untouched(&other);
    let _uptime = first.untouched(&one);

    // A third one that is told the state directory of another is told so, and that is all.
    let lent = options("1s").replace("DIRECTORY/state", &other.state_dir().display().to_string());
    let holder = other.plugin().expect("the plugin runs").pid;
    let third = start("third", &lent);
    let words = ["in use by another agent's driver", &format!("process {holder}")];
    third.wait_driver(&world.api, "the driver is unhealthy", |node| {
        match node.drivers.get("microvm") {
            Some(driver)
                if !driver.healthy && words.iter().all(|word| driver.health_description.contains(word)) =>
            {
                Ok(())
            }
            other => Err(format!("{other:?}")),
        }
    });
    std::thread::sleep(seconds(3));
    terminate(&third);
    assert_eq!(
        other.plugin().map(|plugin| plugin.pid),
        Some(holder),
        "the second agent's plugin is another one"
    );
    let _uptime = second.untouched(&other);

    // The first agent forgets its allocations: its reaper ends its own VM, and no other.
    terminate(&one);
    forget(world, &one, &first.job);
    one.agent.start();
    one.wait_healthy(&world.api);
    wait::until("the orphan's end", seconds(30), || {
        match host::vms(&one).as_slice() {
            [] => Ok(()),
            vms => Err(format!("{vms:?}")),
        }
    });
    let _uptime = second.untouched(&other);
    // And what it starts then finds other users than the second's.
    let third = world.run(&hard("third", &one));
    let _running = third.wait_running();
    assert_eq!(users(&shared), 2, "two VMs run");
    let _ended = third.stop_and_wait();
    terminate(&one);
    let _uptime = second.untouched(&other);
    second.ticks_on();
    second.stop();
    wait_nothing_left(&other);
    wait_nothing_left(&one);
}

/// How many pairs of users are leased. A user that Nomad leased is held beside them.
fn users(run_dir: &Path) -> usize {
    let leases = std::fs::read_dir(run_dir.join("uids"))
        .into_iter()
        .flatten()
        .flatten();
    let is_pair = |lease: &std::fs::DirEntry| !lease.file_name().to_string_lossy().starts_with("nomad-");
    leases.filter(is_pair).count()
}

/// A VM that is switched off, whatever its guest does.
fn hard(name: &str, client: &Client) -> Order {
    let mut order = Order::guest(name, "").on(client);
    order.kill_signal = "SIGKILL".to_owned();
    order
}

/// A VM whose allocation nobody knows any more is said, then stopped; one that somebody waits for is not, and while there
/// is no agent, nobody could have waited.
pub(super) fn orphan(world: &World) {
    const GRACE: Duration = seconds(5);
    const ATTRIBUTE: &str = "driver.microvm.orphans";
    /// Where the server is to hear of the orphan before its end: it is told after a quarter, and Nomad's client hands
    /// changed attributes on after 5 to 10 s.
    const LONG_GRACE: Duration = seconds(24);
    let grace = |time: Duration| format!("orphan_grace = \"{}s\"", time.as_secs());
    let options = format!("{}\n    {}\n", world.options(), grace(GRACE));
    let client = world.client("orphan", &options);
    client.agent.start();
    client.wait_healthy(&world.api);
    let lost = Witness::new(world.run(&Witness::order("lost", &client)), &client);
    let key = the_vm(&lost.job, &client).key;
    // The first agent waited for it all the time.
    std::thread::sleep(GRACE + seconds(3));
    let _uptime = lost.untouched(&client);
    assert_eq!(
        orphans(world, &client, ATTRIBUTE),
        "",
        "an orphan that has an agent"
    );

    // Without an agent, the plugin alone: longer than the grace.
    let plugin = client.plugin().expect("the plugin runs").pid;
    client.agent.kill9();
    std::thread::sleep(GRACE + seconds(4));
    let _uptime = lost.untouched(&client);
    assert!(process::one(plugin).is_some(), "the plugin ended with the agent");

    // The server and the client's state forget the allocation. A plugin that nobody knows any more would hold the state.
    assert!(process::signal(plugin, Signal::KILL), "plugin {plugin} is gone");
    forget(world, &client, &lost.job);
    client.agent.reconfigure(&grace(GRACE), &grace(LONG_GRACE));
    let began = Instant::now();
    client.agent.start();
    let said = client.wait_driver(&world.api, "the orphan is told", |node| {
        let orphans = node.attributes.get(ATTRIBUTE).map(String::as_str);
        match orphans {
            None | Some("" | "0") => Err(format!("{orphans:?}")),
            Some(orphans) => Ok(orphans.to_owned()),
        }
    });
    say(&format!(
        "    {ATTRIBUTE} = {said} after {:.1} s",
        began.elapsed().as_secs_f64()
    ));
    let end = wait::until("the orphan's end", seconds(40), || {
        match process::one(lost.qemu()) {
            None => Ok(began.elapsed()),
            Some(_) => Err("it runs".to_owned()),
        }
    });
    assert!(
        end >= GRACE,
        "stopped {:.1} s after the agent's start",
        end.as_secs_f64()
    );
    wait_nothing_left(&client);
    let log = std::fs::read_to_string(client.state_dir().join("log/plugin.log")).unwrap_or_default();
    let told: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("no agent asks about") && line.contains(&key))
        .collect();
    assert!(!told.is_empty(), "the log does not tell of {key}:\n{log}");
    say(&format!("    log: {}", told[0]));
    wait::until("no orphan is told any more", seconds(60), || {
        match orphans(world, &client, ATTRIBUTE).as_str() {
            "" | "0" => Ok(()),
            other => Err(other.to_owned()),
        }
    });

    // One that is recovered has an agent again.
    let kept = Witness::new(world.run(&Witness::order("kept", &client)), &client);
    terminate(&client);
    client.agent.reconfigure(&grace(LONG_GRACE), &grace(GRACE));
    std::thread::sleep(GRACE);
    client.agent.start();
    client.wait_healthy(&world.api);
    std::thread::sleep(GRACE * 2);
    let _uptime = kept.untouched(&client);
    kept.ticks_on();
    kept.stop();
    wait_nothing_left(&client);
}

/// What the node tells of orphans.
fn orphans(world: &World, client: &Client, attribute: &str) -> String {
    let node = world.api.node(&client.node()).expect("the server answers");
    node.attributes.get(attribute).cloned().unwrap_or_default()
}

/// An agent that keeps nothing gets ctrl-c: it takes its VMs with it.
pub(super) fn dev_ctrl_c(world: &World) {
    /// The guest powers off in less than two seconds; the rest is Nomad's.
    const END_LIMIT: Duration = seconds(15);
    let client = world.client_with("dev", &world.options(), |setup| setup.dev = true);
    client.agent.start();
    let api = client.agent.api();
    client.wait_healthy(&api);
    let job = Job::run(&api, &Witness::order("service", &client), world.number());
    let service = Witness::new(job, &client);
    let vm = the_vm(&service.job, &client);
    let allocation = service.job.allocation.clone();

    let began = Instant::now();
    client.agent.interrupt();
    let status = client.agent.wait_end();
    say(&format!(
        "    the agent ended after {:.1} s: {status}",
        began.elapsed().as_secs_f64()
    ));
    let end = |what: &str, look: &dyn Fn() -> Vec<String>| {
        let limit = END_LIMIT.saturating_sub(began.elapsed());
        wait::until(what, limit, || match look().as_slice() {
            [] => Ok(()),
            left => Err(left.join("\n")),
        });
    };
    end("the end of the VM", &|| {
        let pids = vm.others.iter().copied().chain([vm.shim]);
        pids.filter_map(process::one)
            .map(|process| format!("{process:?}"))
            .collect()
    });
    end("the end of the plugin", &|| {
        let left = client.plugins().into_iter();
        left.map(|process| format!("{process:?}")).collect()
    });
    end("nothing is left", &|| host::leavings(&client));
    end("no control group is left", &|| groups(&allocation));
    assert!(
        matches!(status.code(), Some(0 | 1)),
        "the agent ended with {status}"
    );
    let log = client.agent.log();
    for word in ["exited unexpectedly", "panic:", "goroutine "] {
        let line = log.lines().find(|line| line.contains(word));
        assert!(line.is_none(), "the agent says: {line:?}");
    }
}

/// Our leaves of an allocation's control groups.
fn groups(allocation: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![std::path::PathBuf::from("/sys/fs/cgroup")];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let path = entry.path();
                if path.to_string_lossy().contains(allocation) {
                    found.push(path.display().to_string());
                }
                open.push(path);
            }
        }
    }
    found
}
