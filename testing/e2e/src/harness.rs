//! How are the checks run, and what is printed of each?

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

/// A check of a suite whose checks share a `W`: a function that panics when something is not as promised.
#[derive(Debug)]
pub(crate) struct Check<W> {
    pub(crate) name: &'static str,
    pub(crate) beside: Beside,
    pub(crate) run: fn(&W),
}

/// A row of a suite's table.
pub(crate) const fn check<W>(name: &'static str, beside: Beside, run: fn(&W)) -> Check<W> {
    Check { name, beside, run }
}

/// What may run at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beside {
    /// Others of this kind: it touches its own jobs only, or has a client of its own.
    Others,
    /// Nothing: it counts what is on the host, or has a short deadline.
    Nothing,
}

/// Checks at a time. A guest's boot takes two seconds of a core; most of a check is waiting.
const PARALLEL: usize = 4;

/// Prints one line.
pub(crate) fn say(line: &str) {
    // A reader that has gone needs no help.
    drop(writeln!(std::io::stdout().lock(), "{line}"));
}

/// Prints the names of a suite's checks.
pub(crate) fn list<W>(table: &[Check<W>]) -> ExitCode {
    table.iter().for_each(|check| say(check.name));
    ExitCode::SUCCESS
}

/// Runs the checks whose name contains one of the words, or all, in a world that is made for them.
pub(crate) fn run<W: Sync>(table: &[Check<W>], words: &[&str], make: fn() -> W) -> ExitCode {
    let chosen = table
        .iter()
        .filter(|check| words.is_empty() || words.iter().any(|word| check.name.contains(word)));
    let chosen: Vec<&Check<W>> = chosen.collect();
    if chosen.is_empty() {
        say(&format!(
            "steppe-e2e: no check is called {}: see --list",
            words.join(" or ")
        ));
        return ExitCode::from(64);
    }
    remember_panics();
    let began = Instant::now();
    let world = match std::panic::catch_unwind(make) {
        Ok(world) => world,
        Err(_) => {
            let reason = take_panic();
            chosen
                .iter()
                .for_each(|check| say(&format!("check {} failed 0.00 {}", check.name, one_line(&reason))));
            return ExitCode::FAILURE;
        }
    };
    say(&format!(
        "the agents are ready after {:.2} s",
        began.elapsed().as_secs_f64()
    ));
    let failed = Mutex::new(0);
    let (others, nothing): (Vec<_>, Vec<_>) = chosen.iter().partition(|check| check.beside == Beside::Others);
    for (checks, threads) in [(others, PARALLEL), (nothing, 1)] {
        let queue = Mutex::new(VecDeque::from(checks));
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some(check) = next(&queue) {
                        if !one(&world, check) {
                            *failed.lock().expect("no check panics with the lock held") += 1;
                        }
                    }
                });
            }
        });
    }
    let ended = Instant::now();
    drop(world);
    say(&format!(
        "{} checks in {:.1} s, {:.1} s of them to take everything down",
        chosen.len(),
        began.elapsed().as_secs_f64(),
        ended.elapsed().as_secs_f64()
    ));
    let failed = failed.into_inner().expect("no check panics with the lock held");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn next<T>(queue: &Mutex<VecDeque<T>>) -> Option<T> {
    queue
        .lock()
        .expect("no check panics with the lock held")
        .pop_front()
}

/// Runs a check and prints its line; whether it held.
fn one<W>(world: &W, check: &Check<W>) -> bool {
    let began = Instant::now();
    let held = std::panic::catch_unwind(AssertUnwindSafe(|| (check.run)(world))).is_ok();
    let seconds = began.elapsed().as_secs_f64();
    if held {
        say(&format!("check {} passed {seconds:.2}", check.name));
    } else {
        let reason = take_panic();
        say(&format!(
            "check {} failed {seconds:.2} {}",
            check.name,
            one_line(&reason)
        ));
        say(&format!("--- {}\n{reason}\n---", check.name));
    }
    held
}

fn one_line(text: &str) -> String {
    const SHOWN_MAX: usize = 300;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(SHOWN_MAX).collect()
}

thread_local! {
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// From now on a panic's text and place are kept for whoever catches it, not printed.
fn remember_panics() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<String>().cloned();
        let text = text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let place = info
            .location()
            .map(|place| format!(" ({}:{})", place.file(), place.line()));
        let text = format!("{}{}", text.unwrap_or_default(), place.unwrap_or_default());
        // The first one is the cause; what the unwinding meets comes after.
        PANIC.with_borrow_mut(|kept| {
            if kept.is_empty() {
                *kept = text;
            }
        });
    }));
}

/// The text and place of this thread's last panic, for whoever has caught it.
pub(crate) fn take_panic() -> String {
    PANIC.take()
}

/// Runs several of the same side by side; the results in the items' order. Panics with all failures together: a panic in a
/// thread is known to that thread only.
pub(crate) fn side_by_side<T: Sync, R: Send>(
    threads: usize,
    items: &[T],
    run: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    const UNPOISONED: &str = "nothing panics with the lock held";
    let queue = Mutex::new(items.iter().enumerate().collect::<VecDeque<_>>());
    let results = Mutex::new(BTreeMap::new());
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().expect(UNPOISONED).pop_front();
                    let Some((index, item)) = next else { return };
                    match std::panic::catch_unwind(AssertUnwindSafe(|| run(item))) {
                        Ok(result) => drop(results.lock().expect(UNPOISONED).insert(index, result)),
                        Err(_) => failures.lock().expect(UNPOISONED).push(take_panic()),
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect(UNPOISONED);
    assert!(
        failures.is_empty(),
        "{} of {} failed:\n{}",
        failures.len(),
        items.len(),
        failures.join("\n")
    );
    results.into_inner().expect(UNPOISONED).into_values().collect()
}
