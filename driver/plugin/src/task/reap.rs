//! Who comes back to what Nomad doesn't ask for any more?
//!
//! An undo that failed, a start that was interrupted and not repeated, a VM that no agent knows: the reaper looks at every
//! record of this instance, again and again, and does what [`steppe_vm::reap::judge`] says. It begins at the first
//! configuration that comes from an agent, because each agent's start launches the plugin three times, and counts time
//! only while an agent is connected.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use steppe_vm::reap::{Seen, Verdict, judge};
use steppe_vm::record::{Record, Step, is_key};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::undo::{self, UIDS, Undo, undo_of};
use super::{Failure, blocking, recover, stop};
use crate::host::{chain, records, uids, unix_ns};
use crate::service::Driver;

/// Pause between two looks; a look at forty records costs a millisecond.
const INTERVAL: Duration = Duration::from_secs(10);

/// After so long without an agent the plugin ends, and with it its claim on the state directory: an agent that was killed and
/// comes back finds its plugin until then, one that lost its memory launches another. Longer than the two minutes that Nomad
/// waits at most until it opens a stream again.
const ALONE_TIMEOUT: Duration = Duration::from_secs(300);

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
    let mut alone = Duration::ZERO;
    let mut last = Instant::now();
    loop {
        let Ok(instance) = driver.instance() else { return };
        let grace = instance.options.orphan_grace;
        let interval = INTERVAL.min(grace / 8);
        tokio::time::sleep(interval).await;
        // A look that took long, or a host that slept, is no time in which somebody could have asked.
        let passed = last.elapsed().min(interval * 2);
        last = Instant::now();
        let connected = driver.reaper.connections.load(Ordering::Relaxed) > 0;
        alone = if connected { Duration::ZERO } else { alone + passed };
        if alone >= ALONE_TIMEOUT {
            tracing::info!("no agent is there any more: the plugin ends, its VMs go on");
            driver.plugin.stopper.stop();
            return;
        }
        let found = {
            let driver = Arc::clone(driver);
            blocking(move || look(&driver)).await
        };
        let Look { found, busy } = match found {
            Ok(look) => look,
            Err(Failure::Denied(reason) | Failure::Retryable(reason)) => {
                tracing::debug!(reason, "the records can't be looked through");
                continue;
            }
        };
        // Who is asked about, or gone, begins anew; of whom is busy nothing is known.
        unasked.retain(|key, _| busy.contains(key) || found.iter().any(|found| found.key == *key));
        let mut orphans = Vec::new();
        let mut ended = JoinSet::new();
        for found in found {
            let new = !unasked.contains_key(&found.key);
            let time = unasked.entry(found.key.clone()).or_insert(Duration::ZERO);
            *time += if new || !connected { Duration::ZERO } else { passed };
            match judge(found.seen, *time, grace) {
                Verdict::Leave => {}
                Verdict::Report => orphans.push(found.report()),
                Verdict::TakeBack => {
                    // One that can't be taken back is still there.
                    if found
                        .record
                        .as_ref()
                        .is_some_and(|record| record.last_failure().is_some())
                    {
                        orphans.push(found.report());
                    }
                    let (driver, time) = (Arc::clone(driver), *time);
                    drop(ended.spawn(async move { take_back(&driver, found, time, grace).await }));
                }
            }
        }
        report(driver, orphans);
        // Side by side: each may take as long as a guest takes to shut down.
        while ended.join_next().await.is_some() {}
    }
}

/// A task that nobody asks about right now.
#[derive(Debug)]
struct Found {
    key: String,
    /// `None` where only its user ids are left.
    undo: Option<Undo>,
    seen: Seen,
    record: Option<Record>,
    /// Why its record is not believed.
    reason: String,
}

impl Found {
    fn name(&self) -> String {
        self.record.as_ref().map_or_else(
            || self.key.clone(),
            |record| format!("{}/{}", record.header.alloc_id, record.header.task_name),
        )
    }

    fn report(&self) -> Orphan {
        Orphan {
            name: self.name(),
            key: self.key.clone(),
            reason: self.reason.clone(),
        }
    }

    /// What a task's directory shows.
    fn look(undo: Undo) -> Self {
        let (seen, record, reason) = match undo.record() {
            Ok(Some(record)) => (seen(&record, &undo.lock()), Some(record), String::new()),
            Ok(None) => (Seen::Interrupted, None, String::new()),
            Err(error) => (Seen::Unreadable, None, chain(&error)),
        };
        let undo = match &record {
            Some(record) => undo.at(record),
            None => undo,
        };
        Self {
            key: undo.key(),
            undo: Some(undo),
            seen,
            record,
            reason,
        }
    }
}

/// What is said of a task that nobody asks about.
#[derive(Debug)]
struct Orphan {
    name: String,
    key: String,
    reason: String,
}

fn seen(record: &Record, lock: &Path) -> Seen {
    if record.undo_begun() {
        Seen::Undoing
    } else if undo::is_of_this_boot(record, lock) == Some(false) {
        Seen::OtherBoot
    } else if record.started_at_unix_ns().is_none() {
        Seen::Interrupted
    } else {
        Seen::Started
    }
}

/// All tasks that nobody asks about, and the keys of those to which something is done right now.
#[derive(Debug)]
struct Look {
    found: Vec<Found>,
    busy: Vec<String>,
}

/// Looks at every record of this instance, and at user ids that it leased for a task without one. Blocks.
fn look(driver: &Driver) -> Result<Look, Failure> {
    let instance = driver.instance()?;
    let state = instance.state().map_err(|error| Failure::retryable(&error))?;
    let keys = state.tasks().map_err(|error| Failure::retryable(&error))?;
    let mut look = Look {
        found: Vec::new(),
        busy: Vec::new(),
    };
    for key in &keys {
        if driver.tasks.is_waited_for(key) {
            continue;
        }
        if driver.tasks.is_busy(key) {
            look.busy.push(key.clone());
        } else {
            look.found.push(Found::look(undo_of(&instance, &state, key)));
        }
    }
    let leases = instance.options.run_dir.join(UIDS);
    for (lease, key) in uids::held_by(&leases, state.instance()) {
        if keys.contains(&key) || driver.tasks.is_busy(&key) || !is_key(&key) {
            continue;
        }
        // Its directory was removed by hand, or is being made or removed right now.
        let undo = undo_of(&instance, &state, &key);
        if !matches!(undo.directory.try_exists(), Ok(false)) {
            continue;
        }
        if !uids::in_use(lease) {
            tracing::info!(%lease, key, "user ids of a task that is gone are given back");
            drop(uids::release(&leases, lease, &undo.owner()));
            drop(std::fs::remove_dir_all(&undo.run_directory));
            continue;
        }
        look.found.push(Found {
            key,
            undo: None,
            seen: Seen::Unreadable,
            record: None,
            reason: format!("it has user ids {lease}, but its directory is gone"),
        });
    }
    Ok(look)
}

/// Makes the orphans an attribute of the node, and says each new one in the log.
fn report(driver: &Driver, orphans: Vec<Orphan>) {
    let _changed = driver.reaper.orphans.send_if_modified(|known| {
        for orphan in orphans.iter().filter(|orphan| !known.contains(&orphan.name)) {
            tracing::warn!(
                task = orphan.name,
                record = orphan.key,
                reason = orphan.reason,
                "something of a task is here that no agent asks about"
            );
        }
        let names: Vec<String> = orphans.into_iter().map(|orphan| orphan.name).collect();
        let changed = *known != names;
        *known = names;
        changed
    });
}

/// Ends what is left of a task, if anything, and takes it back.
async fn take_back(driver: &Arc<Driver>, found: Found, unasked: Duration, grace: Duration) {
    let name = found.name();
    let Some(undo) = found.undo else { return };
    let header = found.record.map(|record| record.header);
    let gate = header
        .as_ref()
        .map(|header| driver.tasks.gate(&header.alloc_id, &header.task_name));
    let _turn = match &gate {
        Some(gate) => match gate.try_lock() {
            Ok(turn) => Some(turn),
            Err(_) => return,
        },
        None => None,
    };
    // Somebody may have asked about it, or changed it, since it was looked at.
    if driver.tasks.is_waited_for(&found.key) || (gate.is_none() && driver.tasks.is_busy(&found.key)) {
        return;
    }
    let again = blocking(move || Ok(Found::look(undo))).await;
    let Ok(Found {
        undo: Some(undo),
        seen,
        record,
        ..
    }) = again
    else {
        return;
    };
    if judge(seen, unasked, grace) != Verdict::TakeBack {
        return;
    }
    let failed_before = record
        .as_ref()
        .and_then(|record| record.last_failure())
        .map(|(_, reason)| reason.to_owned());
    if let (Seen::Started, Some(record)) = (seen, record) {
        tracing::warn!(task = name, "a VM that no agent asked about is stopped");
        stop_orphan(driver, record, &undo).await;
    }
    let directory = undo.directory.clone();
    let undone = blocking(move || undo.run().map_err(|error| Failure::retryable(&error))).await;
    match undone {
        Ok(()) => {
            tracing::info!(task = name, "what was left of a task is taken back");
            if let Some(header) = &header {
                driver.tasks.remove(&header.task_id);
            }
        }
        Err(Failure::Denied(reason) | Failure::Retryable(reason)) => {
            let kept = records::read(&directory).ok().flatten();
            let failed_now = kept.as_ref().and_then(|record| record.last_failure());
            // Said when it is new, tried again in any case.
            if failed_now.map(|(_, reason)| reason) != failed_before.as_deref() {
                tracing::warn!(task = name, reason, "a task can't be taken back");
                if let Some(header) = &header {
                    driver.events.say(header, &reason, unix_ns());
                }
            }
        }
    }
}

/// Lets an orphan's guest shut down. From now on nobody recovers it: the record says that it is taken back.
async fn stop_orphan(driver: &Arc<Driver>, record: Record, undo: &Undo) {
    let known = driver.tasks.get(&record.header.task_id);
    driver.tasks.remove(&record.header.task_id);
    let naming = undo.clone();
    let named = blocking(move || {
        naming.note(&Step::Undo);
        Ok(())
    });
    drop(named.await);
    let task = match known {
        Some(task) => Ok(task),
        None => recover::take_back(record, Arc::new(undo.clone())).await,
    };
    // The undo ends whatever doesn't stop by itself.
    if let Ok(task) = task {
        drop(stop::stop(&task, STOP_TIMEOUT, "").await);
    }
}
