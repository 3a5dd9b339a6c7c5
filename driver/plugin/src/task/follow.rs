//! How does a running VM become known, and its end?

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::{Duration, Instant};

use steppe_vm::control::State;
use steppe_vm::exit::ExitRecord;
use steppe_vm::record::Header;
use tokio::sync::watch;

use super::shim::{Shim, View};
use super::undo::{self, Undo};
use super::{Ended, Task, blocking};
use crate::host::records::{self, Exit, RecordFileError};
use crate::host::{chain, unix_ns};
use crate::service::Driver;

/// How long a shim that ends may still hold its lock.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Pause between two tries to read how a VM ended.
const READ_INTERVAL: Duration = Duration::from_millis(100);

/// Makes a running VM known, and follows it to its end.
pub(crate) fn adopt(
    driver: &Driver,
    header: Header,
    started_at_unix_ns: u64,
    shim: Shim,
    undo: Arc<Undo>,
) -> Arc<Task> {
    let task = follow(header, started_at_unix_ns, shim, undo);
    driver.tasks.insert(Arc::clone(&task));
    task
}

/// Follows a running VM to its end, without making it known to Nomad's calls.
pub(super) fn follow(header: Header, started_at_unix_ns: u64, shim: Shim, undo: Arc<Undo>) -> Arc<Task> {
    let (sender, ended) = watch::channel(None);
    let follower = Follower {
        header: header.clone(),
        shim: shim.clone(),
        undo: Arc::clone(&undo),
    };
    drop(tokio::spawn(async move {
        let end = follower.end().await;
        sender.send_replace(Some(end));
    }));
    Arc::new(Task {
        header,
        started_at_unix_ns,
        shim: Some(shim),
        ended,
        said: AtomicBool::new(false),
        waiting: AtomicUsize::new(0),
        undo,
    })
}

/// Waits for one VM's end.
struct Follower {
    header: Header,
    shim: Shim,
    undo: Arc<Undo>,
}

impl Follower {
    async fn end(self) -> Ended {
        let mut view = self.shim.view.clone();
        let last = view.wait_for(View::is_final).await.map(|view| view.clone());
        let ended = match last {
            Ok(View::Is(State::Exited { exit, .. })) => recorded(exit, &self.undo).await,
            _ => settle(&self.undo).await.unwrap_or_else(|| Ended::lost(unix_ns())),
        };
        tracing::info!(
            task = self.header.task_id,
            cause = ended.outcome.name,
            sentence = ended.sentence(),
            "a VM ended"
        );
        ended
    }
}

/// What kept a file from being read may pass, such as want of descriptors; the end of a VM is asked for only once.
fn read_exit_patiently(directory: &Path) -> Result<Option<Exit>, RecordFileError> {
    let deadline = Instant::now() + SETTLE_TIMEOUT;
    loop {
        let read = records::read_exit(directory);
        if read.is_ok() || Instant::now() >= deadline {
            return read;
        }
        std::thread::sleep(READ_INTERVAL);
    }
}

/// The end that a shim tells of, with what it wrote down beside it. Where that can't be read, its word is enough.
pub(crate) async fn recorded(exit: ExitRecord, undo: &Undo) -> Ended {
    let directory = undo.directory.clone();
    let told = Exit {
        record: exit,
        console: Vec::new(),
        stderr: Vec::new(),
    };
    let read = blocking(move || {
        let read = records::read_exit(&directory).ok().flatten();
        let read = read.filter(|read| read.record == told.record);
        Ok(Ended::recorded(&read.unwrap_or(told)))
    });
    read.await.unwrap_or_else(|_| Ended::lost(unix_ns()))
}

/// The end of a VM whose shim doesn't speak: what it wrote down, or that it was lost. `None` while the shim lives.
pub(crate) async fn settle(undo: &Undo) -> Option<Ended> {
    let undo = undo.clone();
    let settled = blocking(move || {
        if !undo::wait_unlocked(&undo.lock(), SETTLE_TIMEOUT) {
            return Ok(None);
        }
        match read_exit_patiently(&undo.directory) {
            Ok(Some(exit)) => return Ok(Some(Ended::recorded(&exit))),
            Ok(None) => {}
            Err(error) => tracing::error!(error = chain(&error), "how a VM ended can't be read"),
        }
        // A shim that was killed because it stood still could not write anything down.
        let killed = matches!(undo.record(), Ok(Some(record)) if record.shim_was_killed());
        Ok(Some(if killed {
            Ended::killed(unix_ns())
        } else {
            Ended::lost(unix_ns())
        }))
    });
    settled.await.unwrap_or_default()
}
