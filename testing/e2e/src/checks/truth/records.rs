//! Which records are not believed, and what becomes of their VMs when the plugin comes back to them?

use std::cell::RefCell;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode};
use rustix::process::Signal;
use serde_json::Value;

use super::super::bad_input::Row;
use super::super::witness::{starts, terminate};
use super::{
    Place, Stranger, Victim, at_the_end, client_with_grace, read, rename, restart_without_grace, write,
};
use crate::agent::Client;
use crate::harness::side_by_side;
use crate::host;
use crate::job::Order;
use crate::process;
use crate::wait::{self, seconds};
use crate::world::World;

/// How long the reaper may take to see what nobody asks about: it looks eight times within the grace.
const SEEN_LIMIT: Duration = seconds(12);

/// Longer than any VM of these runs.
const UPTIME_MAX: Duration = seconds(600);

/// Starts at a time.
const PARALLEL: usize = 4;

/// What is done while agent and plugin are down, and what the plugin makes of it.
struct Case {
    input: &'static str,
    damage: fn(&Scene<'_, '_>),
    then: Then,
    place: Place,
    words: &'static [&'static str],
}

/// What a damage is done to.
struct Scene<'a, 'w> {
    client: &'a Client,
    victim: &'a Victim<'w>,
    strangers: &'a RefCell<Vec<Stranger>>,
}

impl Scene<'_, '_> {
    /// The record's path and text.
    fn record(&self) -> (std::path::PathBuf, String) {
        let path = self.victim.record(self.client);
        let text = read(&path);
        (path, text)
    }

    fn reversion(&self, version: u32) {
        let (path, text) = self.record();
        let begins = r#"{"version":"#;
        let rest = text
            .strip_prefix(begins)
            .expect("a record begins with its version");
        let rest = rest.trim_start_matches(|digit: char| digit.is_ascii_digit());
        write(&path, &format!("{begins}{version}{rest}"));
    }

    fn replace(&self, from: &str, to: &str) {
        let (path, text) = self.record();
        assert!(text.contains(from), "{text}");
        write(&path, &text.replacen(from, to, 1));
    }
}

/// What is left of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// It runs on, nobody touches what is its own, and nothing runs beside it.
    LeftAlone,
    /// It is the task's, as ever.
    Kept,
    /// Nothing. Nomad may have started the task anew.
    Gone,
}

/// The record is put back from here once all is seen.
const ASIDE: &str = "aside";

const CASES: &[Case] = &[
    Case {
        input: "record cut in its first line",
        damage: |scene| {
            let (path, text) = scene.record();
            write(&path, &text[..40]);
        },
        then: Then::LeftAlone,
        place: Place::Event,
        words: &["left alone", "has no record that names it"],
    },
    Case {
        input: "record empty",
        damage: |scene| write(&scene.record().0, ""),
        then: Then::LeftAlone,
        place: Place::Event,
        words: &["left alone", "has no record that names it"],
    },
    Case {
        input: "record cut in the line that says the guest runs",
        damage: |scene| {
            let (path, text) = scene.record();
            let line = text.find("\"running\"").expect("the guest runs");
            write(&path, &text[..line]);
        },
        then: Then::Gone,
        place: Place::AgentsLog,
        words: &["interrupted before the guest ran"],
    },
    Case {
        input: "record with garbage in its third line",
        damage: |scene| {
            let (path, text) = scene.record();
            let mut lines: Vec<&str> = text.lines().collect();
            lines[2] = "\u{1b}[2J{\"step\":";
            write(&path, &(lines.join("\n") + "\n"));
        },
        then: Then::LeftAlone,
        place: Place::Event,
        words: &["left alone", "line 3 of the record is not readable"],
    },
    Case {
        input: "record of version 99",
        damage: |scene| scene.reversion(99),
        then: Then::LeftAlone,
        place: Place::Event,
        words: &["left alone", "has version 99"],
    },
    Case {
        input: "record of version 0",
        damage: |scene| scene.reversion(0),
        then: Then::LeftAlone,
        place: Place::Event,
        words: &["left alone", "has version 0"],
    },
    Case {
        input: "record of another host (nothing of it runs here)",
        damage: |scene| {
            scene.victim.kill();
            scene.replace(&boot_id(), "0a0a0a0a-0b0b-4c0c-8d0d-0e0e0e0e0e0e");
        },
        then: Then::Gone,
        place: Place::AgentsLog,
        words: &["the host was restarted since (or the record is another host's)"],
    },
    Case {
        input: "record of another host, and its VM runs here",
        damage: |scene| scene.replace(&boot_id(), "0a0a0a0a-0b0b-4c0c-8d0d-0e0e0e0e0e0e"),
        then: Then::LeftAlone,
        place: Place::Event,
        words: &["left alone"],
    },
    Case {
        input: "record of another driver instance",
        damage: |scene| {
            let (path, text) = scene.record();
            let header: Value =
                serde_json::from_str(text.lines().next().expect("it has a header")).expect("it is whole");
            let instance = header["instance"].as_str().expect("it names one");
            write(&path, &text.replacen(instance, "0123456789abcdef", 1));
        },
        then: Then::LeftAlone,
        place: Place::Event,
        words: &["left alone", "another driver instance's", "remove it by hand"],
    },
    Case {
        input: "record of another task",
        damage: |scene| scene.replace("/vm/", "/wm/"),
        then: Then::LeftAlone,
        place: Place::Event,
        words: &[
            "left alone",
            "of another task than its directory",
            "remove it by hand",
        ],
    },
    Case {
        input: "record owned by another user",
        damage: |scene| {
            std::os::unix::fs::chown(scene.record().0, Some(65534), None).expect("root may give files away");
        },
        then: Then::LeftAlone,
        place: Place::Event,
        words: &["left alone", "is another user's file", "remove it by hand"],
    },
    Case {
        input: "record replaced by a symlink",
        damage: |scene| {
            let (path, _) = scene.record();
            let aside = aside(&path);
            rename(&path, &aside);
            std::os::unix::fs::symlink(&aside, &path).expect("a link can be made");
        },
        then: Then::LeftAlone,
        place: Place::Event,
        words: &["left alone", "is a symbolic link", "remove it by hand"],
    },
    Case {
        input: "record replaced by a FIFO",
        damage: |scene| {
            let (path, _) = scene.record();
            rename(&path, &aside(&path));
            rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
                .expect("a FIFO can be made");
        },
        then: Then::LeftAlone,
        place: Place::Event,
        words: &["left alone", "is not a regular file", "remove it by hand"],
    },
    Case {
        input: "clock set back: all of the record's times are an hour ahead",
        damage: |scene| {
            let (path, text) = scene.record();
            write(&path, &later(&text));
        },
        then: Then::Kept,
        place: Place::Event,
        words: &["Started"],
    },
    Case {
        input: "pid reused: the lock of a dead shim names a stranger",
        damage: |scene| {
            scene.victim.kill();
            let stranger = Stranger::new("sleep", &["1000"]);
            write(&lock(scene), &format!("{}\n", stranger.pid()));
            scene.strangers.borrow_mut().push(stranger);
        },
        then: Then::Gone,
        place: Place::Event,
        words: &["shim-lost"],
    },
    Case {
        input: "pid reused: the lock of a dead shim is held by a stranger and names another",
        damage: |scene| {
            scene.victim.kill();
            let lock = lock(scene);
            let stranger = Stranger::new("sleep", &["1000"]);
            write(&lock, &format!("{}\n", stranger.pid()));
            scene.strangers.borrow_mut().push(stranger);
            let holder = Stranger::new("flock", &["-F", &lock.display().to_string(), "sleep", "25"]);
            wait::until("the stranger's lock", seconds(5), || {
                let file = std::fs::File::open(&lock).map_err(|error| error.to_string())?;
                match file.try_lock_shared() {
                    Ok(()) => Err("it is free".to_owned()),
                    Err(_) => Ok(()),
                }
            });
            scene.strangers.borrow_mut().push(holder);
        },
        then: Then::Gone,
        place: Place::AgentsLog,
        words: &["the shim that holds", "does not end"],
    },
    Case {
        input: "QEMU killed by an operator",
        damage: |scene| {
            let qemu = scene.victim.vm.qemu().expect("it runs");
            assert!(process::signal(qemu, Signal::KILL), "QEMU is gone");
        },
        then: Then::Gone,
        place: Place::Event,
        words: &["QEMU was ended from outside by signal 9"],
    },
];

fn aside(record: &Path) -> std::path::PathBuf {
    record.with_file_name(ASIDE)
}

fn lock(scene: &Scene<'_, '_>) -> std::path::PathBuf {
    scene.victim.directory(scene.client).join("shim.lock")
}

fn boot_id() -> String {
    read(Path::new("/proc/sys/kernel/random/boot_id"))
        .trim()
        .to_owned()
}

/// A record whose times are all an hour later.
fn later(text: &str) -> String {
    const HOUR_NS: u64 = 3600 * 1_000_000_000;
    let lines = text.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).expect("the record is whole");
        let members = line.as_object_mut().expect("a line is an object");
        for (name, value) in members {
            if name.ends_with("_unix_ns")
                && let Some(at) = value.as_u64()
            {
                *value = (at + HOUR_NS).into();
            }
        }
        format!("{line}\n")
    });
    lines.collect()
}

pub(super) fn rows(world: &World) -> Vec<Row> {
    let client = &client_with_grace(world, "rec");
    let strangers = RefCell::default();
    let victims = side_by_side(PARALLEL, CASES, |_| {
        Victim::new(world, client, &Order::stub("record", "").on(client))
    });
    let texts: Vec<String> = victims
        .iter()
        .map(|victim| read(&victim.record(client)))
        .collect();
    terminate(client);
    for (case, victim) in CASES.iter().zip(&victims) {
        (case.damage)(&Scene {
            client,
            victim,
            strangers: &strangers,
        });
    }
    client.agent.start();
    client.wait_healthy(&world.api);
    let pairs: Vec<(&Case, &Victim<'_>)> = CASES.iter().zip(&victims).collect();
    let mut rows = side_by_side(PARALLEL, &pairs, |(case, victim)| {
        judge(world, client, case, victim)
    });

    // Whoever put the records there takes them away again: the VMs are found and ended.
    terminate(client);
    for (victim, text) in victims.iter().zip(&texts) {
        let record = victim.record(client);
        if victim.directory(client).exists() {
            drop(std::fs::remove_file(aside(&record)));
            drop(std::fs::remove_file(&record));
            write(&record, text);
        }
    }
    let mut strangers = strangers.into_inner();
    let unharmed = strangers
        .iter_mut()
        .filter_map(|stranger| stranger.is_unharmed().then_some(()))
        .count();
    let mut last = Row {
        input: "all records as they were again".to_owned(),
        sentence: format!(
            "{unharmed} of {} strangers are unharmed; every VM is stopped and taken back",
            strangers.len()
        ),
        left: Vec::new(),
        fault: String::new(),
    };
    if unharmed < strangers.len() {
        last.fault = " a stranger was killed".to_owned();
    }
    drop(victims);
    restart_without_grace(world, client);
    rows.extend([last, at_the_end(client)]);
    rows
}

fn judge(world: &World, client: &Client, case: &Case, victim: &Victim<'_>) -> Row {
    let sentence = victim.told(client, case.place, case.words);
    let mut row = Row::judged(case.input, &sentence, case.words, Vec::new());
    match case.then {
        Then::LeftAlone => {
            let log = client.state_dir().join("log/plugin.log");
            let orphan = wait::try_until(SEEN_LIMIT, || {
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                let mut lines = log.lines();
                let found =
                    |line: &&str| line.contains("no agent asks about") && line.contains(&victim.vm.key);
                lines
                    .find(found)
                    .map(drop)
                    .ok_or_else(|| " it is not told of as an orphan".to_owned())
            });
            row.fault.push_str(&orphan.err().unwrap_or_default());
            row.left = victim.changes(client);
            // The damage itself.
            let record = victim.record(client).display().to_string();
            row.left
                .retain(|line| !line.ends_with(ASIDE) && !line.contains(&record));
        }
        Then::Kept => {
            row.left = victim.changes(client);
            let ended = victim.job.stop_and_wait();
            if starts(&ended) != 1 {
                row.fault
                    .push_str(&format!(" it was started again: {}", ended.story()));
            }
            row.sentence = times(world, &victim.job.allocation, &mut row.fault);
            row.left.extend(victim.wait_left(client));
        }
        Then::Gone => {
            row.left = victim.wait_left(client);
            let vms: Vec<u32> = victim.vm.others.iter().copied().chain([victim.vm.shim]).collect();
            let alive = vms.iter().filter_map(|pid| process::one(*pid));
            row.left.extend(alive.map(|process| format!("{process:?}")));
            let now = host::vms(client)
                .into_iter()
                .filter(|vm| vm.key.starts_with(&victim.job.allocation));
            if now.count() > 1 {
                row.fault.push_str(" two VMs of one task");
            }
            // What Nomad has started in its place, if it has.
            victim.job.stop();
        }
    }
    row
}

/// When the task began and ended, as Nomad shows it, and how long that was.
fn times(world: &World, allocation: &str, fault: &mut String) -> String {
    let path = format!("/allocation/{allocation}");
    let shown: Value = world.api.get(&path).unwrap_or_else(|error| panic!("{error}"));
    let state = &shown["TaskStates"][crate::api::TASK];
    let text = |name: &str| state[name].as_str().unwrap_or_default().to_owned();
    let (started, finished) = (text("StartedAt"), text("FinishedAt"));
    // Both are in UTC, and of one format down to the second.
    if started.get(..19) > finished.get(..19) || finished.starts_with("0001") {
        fault.push_str(" it ended before it began");
    }
    let events = state["Events"].as_array().cloned().unwrap_or_default();
    let at = |kind: &str| {
        let event = events.iter().find(|event| event["Type"] == kind);
        event.and_then(|event| event["Time"].as_i64()).unwrap_or(0)
    };
    if events
        .iter()
        .any(|event| event["Time"].as_i64() > Some(crate::api::now_ns()))
    {
        fault.push_str(" an event is in the future");
    }
    let uptime = Duration::from_nanos(u64::try_from(at("Terminated") - at("Started")).unwrap_or(u64::MAX));
    if uptime > UPTIME_MAX {
        fault.push_str(" it ran for longer than this check");
    }
    format!(
        "started {started}, finished {finished}, ran {:.1} s",
        uptime.as_secs_f64()
    )
}
