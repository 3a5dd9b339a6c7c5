//! How are the checks run, and what is printed of each?
//!
//! A check is a process of its own, in namespaces of its own for network, mounts and processes: whatever it makes ends with
//! it, and several run side by side.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::mount::MountFlags;

/// A check: a function that panics when something is not as promised.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) place: Place,
    pub(crate) run: fn(),
}

/// Which kernel a check is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The host's.
    Host,
    /// One with 802.1Q and bridges that filter VLANs.
    Machine,
}

/// The argument that makes this program one check, in namespaces of its own.
pub(crate) const ALONE: &str = "--alone";

/// Checks at a time: much of each is waiting for the kernel to delete links.
const PARALLEL: usize = 2;

/// A check that takes longer hangs; one that was asked for more than usual may take its time.
const LIMIT: Duration = Duration::from_mins(5);
const LONG_LIMIT: Duration = Duration::from_hours(1);

/// How much netd_random does, where somebody says so.
pub(crate) const OPERATIONS: &str = "STEPPE_OPERATIONS";

/// Where a check keeps its files: a file system in memory that ends with it.
pub(crate) const SCRATCH: &str = "/run";

const UNPOISONED: &str = "nothing panics with the lock held";

/// Prints one line.
pub(crate) fn say(line: &str) {
    // A reader that has gone needs no help.
    drop(writeln!(std::io::stdout().lock(), "{line}"));
}

/// Runs the checks of a place whose name contains one of the words, or all of them.
pub(crate) fn run(table: &[Check], place: Place, words: &[&str]) -> ExitCode {
    let chosen = table.iter().filter(|check| {
        check.place == place && (words.is_empty() || words.iter().any(|word| check.name.contains(word)))
    });
    let queue: VecDeque<Check> = chosen.copied().collect();
    if queue.is_empty() {
        say(&format!(
            "netd-checks: no check of this place is called {}: see --list",
            words.join(" or ")
        ));
        return ExitCode::from(64);
    }
    let began = Instant::now();
    let count = queue.len();
    let queue = Mutex::new(queue);
    let failed = Mutex::new(false);
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().expect(UNPOISONED).pop_front();
                    let Some(check) = next else { return };
                    if !one(check.name) {
                        *failed.lock().expect(UNPOISONED) = true;
                    }
                }
            });
        }
    });
    say(&format!(
        "{count} checks in {:.1} s",
        began.elapsed().as_secs_f64()
    ));
    if failed.into_inner().expect(UNPOISONED) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// Runs a check as a process and prints its line; whether it held.
fn one(name: &str) -> bool {
    let began = Instant::now();
    let limit = if std::env::var_os(OPERATIONS).is_some() {
        LONG_LIMIT
    } else {
        LIMIT
    };
    let program = std::env::current_exe().expect("this program has a path");
    // util-linux's: what it started dies with it.
    let mut child = Command::new("unshare")
        .args([
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ])
        .arg(program)
        .args([ALONE, name])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("unshare can't be started: {error}"));
    let mut output = child.stdout.take().expect("it is piped");
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        drop(output.read_to_end(&mut text));
        String::from_utf8_lossy(&text).into_owned()
    });
    let mut late = false;
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            break status;
        }
        if !late && began.elapsed() > limit {
            late = true;
            drop(child.kill());
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let text = reader.join().expect("the reader does not panic");
    let seconds = began.elapsed().as_secs_f64();
    if status.success() {
        text.lines().for_each(say);
        say(&format!("check {name} passed {seconds:.2}"));
        return true;
    }
    let reason = if late {
        format!("it had not ended after {} s", limit.as_secs())
    } else {
        // The panic's text, which comes first of what `alone` says at the end.
        let said = text.split_once(FAILED).map_or(text.as_str(), |(_, rest)| rest);
        one_line(said)
    };
    say(&format!("check {name} failed {seconds:.2} {reason}"));
    say(&format!("--- {name}\n{}\n---", text.trim_end()));
    false
}

/// Stands before the reason of a failure.
const FAILED: &str = "failed: ";

fn one_line(text: &str) -> String {
    const SHOWN_MAX: usize = 300;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(SHOWN_MAX).collect()
}

/// This process is one check.
pub(crate) fn alone(table: &[Check], name: &str) -> ExitCode {
    let Some(check) = table.iter().find(|check| check.name == name) else {
        say(&format!("{FAILED}there is no check {name}"));
        return ExitCode::from(64);
    };
    let first_panic = remember_first_panic();
    let held = std::panic::catch_unwind(|| {
        // /sys shows the links of the namespace that it was mounted in.
        rustix::mount::mount("sysfs", "/sys", "sysfs", MountFlags::empty(), None)
            .expect("/sys can be mounted");
        rustix::mount::mount("tmpfs", SCRATCH, "tmpfs", MountFlags::empty(), None)
            .expect("a file system can be mounted");
        (check.run)();
    });
    if held.is_ok() {
        if std::env::var_os("STEPPE_KEEP_LOGS").is_some() {
            say_logs(usize::MAX);
        }
        return ExitCode::SUCCESS;
    }
    let reason = first_panic.lock().expect(UNPOISONED).take().unwrap_or_default();
    say(&format!("{FAILED}{reason}"));
    say_logs(60);
    ExitCode::FAILURE
}

/// From now on the first panic of any thread is kept instead of printed: what its unwinding meets comes after.
fn remember_first_panic() -> &'static Mutex<Option<String>> {
    static FIRST: Mutex<Option<String>> = Mutex::new(None);
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<String>().cloned();
        let text = text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let place = info
            .location()
            .map(|place| format!(" ({}:{})", place.file(), place.line()));
        let text = format!("{}{}", text.unwrap_or_default(), place.unwrap_or_default());
        FIRST.lock().expect(UNPOISONED).get_or_insert(text);
    }));
    &FIRST
}

/// Prints the end of what each netd of this check said.
fn say_logs(lines_max: usize) {
    let Ok(entries) = std::fs::read_dir(SCRATCH) else {
        return;
    };
    for entry in entries.flatten() {
        say_log(&entry.path().join("log"), lines_max);
    }
}

fn say_log(path: &Path, lines_max: usize) {
    let Ok(text) = std::fs::read_to_string(path) else {
        return;
    };
    let lines: Vec<&str> = text.lines().collect();
    say(&format!("{}:", path.display()));
    for line in lines.iter().skip(lines.len().saturating_sub(lines_max)) {
        say(&format!("  {line}"));
    }
}
