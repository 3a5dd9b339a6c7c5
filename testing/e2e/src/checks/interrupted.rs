//! What if the plugin dies in the middle of a start?
//!
//! Nomad calls StartTask again in the next process, with the same task id and without an event.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::agent::Client;
use crate::harness::say;
use crate::host::Snapshot;
use crate::job::{Order, READY};
use crate::process;
use crate::wait::{self, seconds};
use crate::world::World;

/// The lines of a record at which the plugin is to die. `running` is the last one, after which a start is done.
const MOMENTS: &[&str] = &[
    "header",
    "uids",
    "run-directory",
    "cgroups",
    "shim",
    "shim",
    "shim",
    "shim",
];

/// The first moment at which QEMU is about to be, or is, started.
const FIRST_SHIM: usize = 4;

/// Ever longer after the step was named, so that the later moments are met in different states of QEMU.
const LATER: Duration = Duration::from_millis(15);

/// How often a moment is tried before it is given up: some steps are over in less than a look.
const TRIES_MAX: usize = 3;

/// How long the second guest may take until its console is in the log. It shares the machine with nothing.
const BOOT_LIMIT: Duration = seconds(20);

/// What came of one kill.
struct Outcome {
    /// The last step that the plugin had named when it was killed; `None` if the start was over before that.
    reached: Option<String>,
    /// What is not as it should be.
    faults: Vec<String>,
}

pub(super) fn start(world: &World) {
    let client = &world.own_client("start");
    // The first start ever makes folders for good.
    let warm = world.run(&Order::guest("warm", "steppe.exit=0").on(client));
    let _ended = warm.wait_terminal();
    let before = Snapshot::of(client);
    let mut met = BTreeSet::new();
    let mut faults = Vec::new();
    for (index, moment) in MOMENTS.iter().enumerate() {
        let later = LATER * u32::try_from(index.saturating_sub(FIRST_SHIM)).unwrap_or(0);
        for _ in 0..TRIES_MAX {
            let outcome = interrupt(world, client, moment, later);
            let reached = outcome.reached.as_deref().unwrap_or("missed, the start was over");
            say(&format!(
                "    plugin to be killed at {moment}, {later:?} later: {reached}"
            ));
            faults.extend(
                outcome
                    .faults
                    .iter()
                    .map(|fault| format!("killed at {reached}: {fault}")),
            );
            met.extend(outcome.reached.clone());
            if outcome.reached.is_some() {
                break;
            }
        }
    }
    let left = wait::try_until(seconds(10), || {
        let left = Snapshot::of(client).since(&before);
        if left.is_empty() {
            Ok(())
        } else {
            Err(left.join("\n"))
        }
    });
    faults.extend(left.err().map(|left| format!("left on the host: {left}")));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(met.len() >= 2, "too few moments were met: {met:?}");
}

/// Kills the plugin when a start has come to a moment, and sees what Nomad's second StartTask makes of it.
fn interrupt(world: &World, client: &Client, moment: &str, later: Duration) -> Outcome {
    let mut order = Order::guest("interrupted", "").on(client);
    // The guest need not be up to be stopped.
    order.kill_signal = "SIGKILL".to_owned();
    order.restarts = 3;
    let tasks = client.state_dir().join("tasks");
    let known = records(&tasks);
    let plugin = client.plugin().expect("the plugin runs").pid;
    let (job, reached) = std::thread::scope(|scope| {
        let killer = scope.spawn(|| kill_at(&tasks, &known, plugin, moment, later));
        (world.run(&order), killer.join())
    });
    let reached = reached.unwrap_or_else(|_| panic!("the start was not seen: {}", job.look().story()));

    let mut faults = Vec::new();
    let mut hold = |holds: bool, fault: String| {
        if !holds {
            faults.push(fault);
        }
    };
    let running = job.wait_running();
    let started = running
        .events()
        .iter()
        .filter(|event| event.kind == "Started")
        .count();
    hold(started == 1, format!("{started} starts: {}", running.story()));
    let restarts = running.task().map_or(0, |task| task.restarts);
    hold(restarts == 0, format!("{restarts} restarts: {}", running.story()));
    hold(
        running.event("Driver Failure").is_none(),
        format!("a failure is shown: {}", running.story()),
    );
    let qemu = job.qemu(client);
    let console = wait::try_until(BOOT_LIMIT, || {
        let console = job.console();
        if console.contains(READY) {
            Ok(console)
        } else {
            Err(format!("{} bytes", console.len()))
        }
    });
    match console {
        Ok(console) => {
            hold(
                console.matches(READY).count() == 1,
                format!("two guests wrote into one log: {console}"),
            );
        }
        Err(last) => hold(
            false,
            format!("the second guest's console is not in the log: {last}"),
        ),
    }
    hold(job.qemu(client) == qemu, "another QEMU".to_owned());
    let _ended = job.stop_and_wait();
    let vms = job.vms(client);
    hold(
        vms.is_empty(),
        format!("its VM is still there after the stop: {vms:?}"),
    );
    Outcome { reached, faults }
}

/// Waits for a new record that has come to a moment, and kills the plugin; the last step that it had named, `None` if that
/// was the last of all: then it lives on.
fn kill_at(
    tasks: &Path,
    known: &BTreeSet<PathBuf>,
    plugin: u32,
    moment: &str,
    later: Duration,
) -> Option<String> {
    let deadline = Instant::now() + seconds(30);
    let record = loop {
        assert!(Instant::now() < deadline, "no record was written");
        let new = records(tasks).into_iter().find(|path| !known.contains(path));
        if let Some(record) = new.filter(|record| steps(record).iter().any(|step| step == moment)) {
            break record;
        }
    };
    std::thread::sleep(later);
    // Stopped first, so that what was reached is what it dies with.
    assert!(process::signal(plugin, Signal::STOP), "plugin {plugin} is gone");
    let reached = steps(&record).pop().unwrap_or_default();
    if reached == "running" {
        process::signal(plugin, Signal::CONT);
        return None;
    }
    process::signal(plugin, Signal::KILL);
    Some(reached)
}

fn records(tasks: &Path) -> BTreeSet<PathBuf> {
    let entries = std::fs::read_dir(tasks).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path().join("record"))
        .filter(|path| path.exists())
        .collect()
}

/// The names of a record's lines, in order.
fn steps(record: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(record).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let name = |line: &str| -> String {
        let line: Value = serde_json::from_str(line).unwrap_or_default();
        line["step"].as_str().unwrap_or("header").to_owned()
    };
    whole.lines().map(name).collect()
}
