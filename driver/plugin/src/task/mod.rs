//! What happens to a task, in which order?
//!
//! `start`, `stop` and `recover` are what Nomad asks for; `follow`
//! makes a VM known and waits for its end; `undo` takes back what a start did, newest first; `shim` is the
//! connection to the task's shim; `registry` knows the tasks of this process.

pub(crate) mod start;
pub(crate) mod stop;

pub(crate) mod follow;
pub(crate) mod recover;
pub(crate) mod undo;

pub(crate) mod events;
pub(crate) mod registry;
pub(crate) mod shim;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use steppe_vm::exit::{Asked, Cause, Outcome};
use steppe_vm::record::Header;
use steppe_vm::spec::Allocated;
use tokio::sync::watch;

use self::events::Events;
use self::shim::Shim;
use self::undo::Undo;

/// What Nomad asks to be started, in our words.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    /// Nomad's task id, new for every start.
    pub(crate) task_id: String,
    pub(crate) task_name: String,
    pub(crate) alloc_id: String,
    pub(crate) job_id: String,
    pub(crate) namespace: String,
    /// The allocation's directory; the task's own is beneath it.
    pub(crate) alloc_dir: PathBuf,
    /// FIFOs that Nomad's log collector reads.
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// The control group that Nomad names, may be empty.
    pub(crate) cgroup: String,
    /// What the scheduler gave.
    pub(crate) allocated: Allocated,
    /// The task's `config` block, MessagePack.
    pub(crate) config: Vec<u8>,
}

/// A task that this process knows: started or recovered by it.
#[derive(Debug)]
pub(crate) struct Task {
    /// Whose it is.
    pub(crate) header: Header,
    /// When the guest was told to run, in nanoseconds since 1970.
    pub(crate) started_at_unix_ns: u64,
    /// Its shim; absent when the VM had ended before it was recovered.
    pub(crate) shim: Option<Shim>,
    /// How it ended, once it has.
    pub(crate) ended: watch::Receiver<Option<Ended>>,
    /// Whether the end was said as an event.
    said: AtomicBool,
    /// How to take everything back.
    pub(crate) undo: Arc<Undo>,
}

/// How and when a task ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    /// In nanoseconds since 1970.
    pub(crate) at_unix_ns: u64,
}

impl Ended {
    /// The end of a VM whose shim left no word.
    pub(crate) fn lost(at_unix_ns: u64) -> Self {
        Self {
            outcome: Cause::ShimLost.outcome(Asked::Nothing),
            at_unix_ns,
        }
    }
}

impl Task {
    /// QEMU's process id, while it runs.
    pub(crate) fn qemu_pid(&self) -> Option<i32> {
        self.shim.as_ref().and_then(Shim::qemu_pid)
    }

    /// How the task ended, if it has.
    pub(crate) fn ended(&self) -> Option<Ended> {
        self.ended.borrow().clone()
    }

    /// Says how the task ended, once. Not before somebody waits for it: right after a recovery Nomad knows no task yet that
    /// an event could belong to.
    pub(crate) fn say_end(&self, events: &Events, ended: &Ended) {
        if !self.said.swap(true, Ordering::Relaxed) {
            events.say(&self.header, &ended.outcome.sentence, ended.at_unix_ns);
        }
    }

    /// Waits for the task's end, however long that takes.
    pub(crate) async fn wait(&self) -> Ended {
        let mut ended = self.ended.clone();
        // The sender is dropped only after it has said how the task ended.
        let result = ended.wait_for(Option::is_some).await.map(|ended| ended.clone());
        result
            .ok()
            .flatten()
            .unwrap_or_else(|| Ended::lost(crate::host::unix_ns()))
    }
}

/// Why a request of Nomad's was not carried out.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It can't be carried out here, however often it is tried.
    Denied(String),
    /// It may go well later: Nomad's restart policy applies.
    Retryable(String),
}

impl Failure {
    pub(crate) fn denied(error: &dyn std::error::Error) -> Self {
        Self::Denied(crate::host::chain(error))
    }

    pub(crate) fn retryable(error: &dyn std::error::Error) -> Self {
        Self::Retryable(crate::host::chain(error))
    }
}

/// Runs something that blocks for milliseconds off the runtime's threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let ended = tokio::task::spawn_blocking(work).await;
    ended.unwrap_or_else(|_| {
        Err(Failure::Denied(
            "the driver failed inside, its log says where".to_owned(),
        ))
    })
}
