//! Who comes back to what Nomad doesn't ask for any more?
//!
//! An undo that failed, a start that was interrupted and not repeated, a VM that no agent knows: the reaper looks at every
//! record of this instance, again and again, and does what [`steppe_vm::reap::judge`] says. It begins at the first
//! configuration that comes from an agent, because each agent's start launches the plugin three times, and counts time
//! only while an agent is connected.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use steppe_vm::reap::{Seen, Verdict, judge};
use steppe_vm::record::Record;
use tokio::sync::watch;

use super::undo::{Undo, undo_of};
use super::{Failure, blocking, recover, stop};
use crate::host::{chain, records, unix_ns};
use crate::service::Driver;

/// Pause between two looks; a look at forty records costs a millisecond.
const INTERVAL: Duration = Duration::from_secs(10);

/// How long an orphan's guest may take to power off.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// What the reaper knows and others ask.
#[derive(Debug)]
pub(crate) struct Reaper {
    /// Streams that an agent keeps open as long as it is there.
    connections: Arc<AtomicUsize>,
    begun: AtomicBool,
    orphans: watch::Sender<Vec<String>>,
}

impl Default for Reaper {
    fn default() -> Self {
        Self {
            connections: Arc::default(),
            begun: AtomicBool::new(false),
            orphans: watch::channel(Vec::new()).0,
        }
    }
}

/// An agent's presence, as long as it lives.
#[derive(Debug)]
pub(crate) struct Connected(Arc<AtomicUsize>);

impl Drop for Connected {
    fn drop(&mut self) {
        let _before = self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Reaper {
    /// An agent is there until the result is dropped.
    pub(crate) fn connected(&self) -> Connected {
        let _before = self.connections.fetch_add(1, Ordering::Relaxed);
        Connected(Arc::clone(&self.connections))
    }

    /// VMs that nobody asks about, `<allocation>/<task>` each.
    pub(crate) fn orphans(&self) -> watch::Receiver<Vec<String>> {
        self.orphans.subscribe()
    }
}

/// Starts the reaper, once per process.
pub(crate) fn begin(driver: &Arc<Driver>) {
    if !driver.reaper.begun.swap(true, Ordering::Relaxed) {
        let driver = Arc::clone(driver);
        drop(tokio::spawn(async move {
            let stopped = driver.plugin.stopper.stopped();
            tokio::select! {
                () = stopped => {}
                () = run(&driver) => {}
            }
        }));
    }
}

async fn run(driver: &Arc<Driver>) {
    let mut unasked = BTreeMap::new();
    let mut last = Instant::now();
    loop {
        let Ok(instance) = driver.instance() else { return };
        let grace = instance.options.orphan_grace;
        tokio::time::sleep(INTERVAL.min(grace / 8)).await;
        let connected = driver.reaper.connections.load(Ordering::Relaxed) > 0;
        let passed = if connected { last.elapsed() } else { Duration::ZERO };
        last = Instant::now();
        let found = {
            let driver = Arc::clone(driver);
            blocking(move || look(&driver)).await
        };
        let found = match found {
            Ok(found) => found,
            Err(Failure::Denied(reason) | Failure::Retryable(reason)) => {
                tracing::debug!(reason, "the records can't be looked through");
                continue;
            }
        };
        // Who is asked about, or gone, begins anew.
        unasked.retain(|key, _| found.iter().any(|found| found.undo.key() == *key));
        let mut orphans = Vec::new();
        for found in found {
            let key = found.undo.key();
            let new = !unasked.contains_key(&key);
            let time = unasked.entry(key).or_insert(Duration::ZERO);
            *time += if new { Duration::ZERO } else { passed };
            match judge(found.seen, *time, grace) {
                Verdict::Leave => {}
                Verdict::Report => orphans.push(found),
                Verdict::TakeBack => take_back(driver, found).await,
            }
        }
        report(driver, &orphans);
    }
}

/// A task that nobody asks about right now.
#[derive(Debug)]
struct Found {
    undo: Undo,
    seen: Seen,
    record: Option<Record>,
    /// Why the record can't be read.
    reason: String,
}

impl Found {
    fn name(&self) -> String {
        self.record.as_ref().map_or_else(
            || self.undo.key(),
            |record| format!("{}/{}", record.header.alloc_id, record.header.task_name),
        )
    }
}

/// Looks at every record of this instance. Blocks.
fn look(driver: &Driver) -> Result<Vec<Found>, Failure> {
    let instance = driver.instance()?;
    let state = instance.state().map_err(|error| Failure::retryable(&error))?;
    let boot_id = records::boot_id();
    let mut all = Vec::new();
    for key in state.tasks().map_err(|error| Failure::retryable(&error))? {
        let undo = undo_of(&instance, &state, &key);
        let (seen, record, reason) = match records::read(&undo.directory) {
            Ok(Some(record)) => {
                let seen = if record.undo_begun() {
                    Seen::Undoing
                } else if record.header.boot_id != boot_id {
                    Seen::OtherBoot
                } else if record.started_at_unix_ns().is_none() {
                    Seen::Interrupted
                } else {
                    Seen::Started
                };
                (seen, Some(record), String::new())
            }
            Ok(None) => (Seen::Interrupted, None, String::new()),
            Err(error) if error.is_empty() => (Seen::Interrupted, None, String::new()),
            Err(error) => (Seen::Unreadable, None, chain(&error)),
        };
        let asked = record.as_ref().is_some_and(|record| {
            driver.tasks.is_waited_for(&record.header.task_id)
                || driver
                    .tasks
                    .gate(&record.header.alloc_id, &record.header.task_name)
                    .try_lock()
                    .is_err()
        });
        if !asked {
            all.push(Found {
                undo,
                seen,
                record,
                reason,
            });
        }
    }
    Ok(all)
}

/// Makes the orphans an attribute of the node, and says each new one in the log.
fn report(driver: &Driver, orphans: &[Found]) {
    let names: Vec<String> = orphans.iter().map(Found::name).collect();
    let _changed = driver.reaper.orphans.send_if_modified(|known| {
        for found in orphans.iter().filter(|found| !known.contains(&found.name())) {
            tracing::warn!(
                task = found.name(),
                directory = %found.undo.directory.display(),
                reason = found.reason,
                "a VM is here that no agent asks about"
            );
        }
        let changed = *known != names;
        *known = names;
        changed
    });
}

/// Ends what is left of a task, if anything, and takes it back.
async fn take_back(driver: &Arc<Driver>, found: Found) {
    let name = found.name();
    let Some(record) = found.record else {
        let undone = blocking(move || found.undo.run().map_err(|error| Failure::retryable(&error))).await;
        tracing::info!(task = name, done = undone.is_ok(), "an empty record is removed");
        return;
    };
    let header = record.header.clone();
    let gate = driver.tasks.gate(&header.alloc_id, &header.task_name);
    let Ok(_turn) = gate.try_lock() else { return };
    // Somebody may have asked about it since it was looked at.
    if driver.tasks.is_waited_for(&header.task_id) {
        return;
    }
    let known_failure = record.last_failure().map(|(_, reason)| reason.to_owned());
    if found.seen == Seen::Started {
        tracing::warn!(task = name, "a VM that no agent asked about is stopped");
        let task = match driver.tasks.get(&header.task_id) {
            Some(task) => Ok(task),
            None => recover::take_back(driver, record, Arc::new(found.undo.clone())).await,
        };
        if let Ok(task) = task {
            // The undo ends whatever doesn't stop by itself.
            drop(stop::stop(&task, STOP_TIMEOUT, "").await);
        }
    }
    let undo = found.undo;
    let directory = undo.directory.clone();
    match blocking(move || undo.run().map_err(|error| Failure::retryable(&error))).await {
        Ok(()) => {
            driver.tasks.remove(&header.task_id);
            tracing::info!(task = name, "what was left of a task is taken back");
        }
        Err(Failure::Denied(reason) | Failure::Retryable(reason)) => {
            let kept = records::read(&directory).ok().flatten();
            let failure = kept
                .as_ref()
                .and_then(|record| record.last_failure())
                .map(|(_, reason)| reason);
            // Said when it is new, tried again in any case.
            if failure != known_failure.as_deref() {
                tracing::warn!(task = name, reason, "a task can't be taken back");
                driver.events.say(&header, &reason, unix_ns());
            }
        }
    }
}
