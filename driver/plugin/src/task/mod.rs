//! What happens to a task, in which order?
//!
//! `start`, `stop` and `recover` are what Nomad asks for; `reap` comes back to what Nomad doesn't ask for any more; `follow`
//! makes a VM known and waits for its end; `undo` takes back what a start did, newest first; `network` has the VM's interfaces
//! made, and keeps in touch with netd; `shim` is the connection to the task's shim; `registry` knows the tasks of this process.

pub(crate) mod start;
pub(crate) mod stop;

pub(crate) mod follow;
pub(crate) mod reap;
pub(crate) mod recover;
pub(crate) mod undo;

pub(crate) mod ask;
pub(crate) mod events;
pub(crate) mod network;
pub(crate) mod registry;
pub(crate) mod shim;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use steppe_vm::exit::{Asked, Cause, Outcome, last_lines};
use steppe_vm::record::Header;
use steppe_vm::spec::Allocated;
use tokio::sync::watch;

use self::events::Events;
use self::shim::Shim;
use self::undo::Undo;
use crate::host::records::Exit;

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
    /// The task's share of the processors, in MHz.
    pub(crate) cpu_shares: i64,
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
    /// How many calls of Nomad's wait for its end: none for a VM that no agent knows.
    waiting: AtomicUsize,
    /// How to take everything back.
    pub(crate) undo: Arc<Undo>,
}

/// How and when a task ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    /// The last lines that were seen of the VM, on one line; may be empty.
    last_lines: String,
    /// In nanoseconds since 1970.
    pub(crate) at_unix_ns: u64,
}

impl Ended {
    /// The end of a VM whose shim left no word.
    pub(crate) fn lost(at_unix_ns: u64) -> Self {
        Self {
            outcome: Cause::ShimLost.outcome(Asked::Nothing),
            last_lines: String::new(),
            at_unix_ns,
        }
    }

    /// The end of a VM whose shim stood still and was killed.
    pub(crate) fn killed(at_unix_ns: u64) -> Self {
        Self {
            outcome: Cause::Killed.outcome(Asked::Kill),
            ..Self::lost(at_unix_ns)
        }
    }

    /// The end that a shim has written down in its task's directory.
    pub(crate) fn recorded(exit: &Exit) -> Self {
        let of = |name: &str, tail: &[u8]| match last_lines(tail) {
            empty if empty.is_empty() => empty,
            lines => format!("; {name} ended with: {lines}"),
        };
        let record = &exit.record;
        let cause = record.cause();
        let said_by_qemu = matches!(
            cause,
            Cause::Failed(_) | Cause::Crashed(_) | Cause::Broken | Cause::NotStarted(_)
        );
        let mut last_lines = of("the console", &exit.console);
        if said_by_qemu {
            last_lines.insert_str(0, &of("QEMU's messages", &exit.stderr));
        }
        Self {
            outcome: cause.outcome(record.asked),
            last_lines,
            at_unix_ns: record.ended_at_unix_ns,
        }
    }

    /// One line for the task's events: what ended the VM, and the last that was seen of it.
    pub(crate) fn sentence(&self) -> String {
        format!("{}{}", self.outcome.sentence, self.last_lines)
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
            events.say_cause(
                &self.header,
                &ended.sentence(),
                ended.outcome.name,
                ended.at_unix_ns,
            );
        }
    }

    /// Whether some call of Nomad's waits for the task's end.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
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

/// Counts a call of Nomad's that waits for a task's end, as long as it lives.
#[derive(Debug)]
pub(crate) struct Waiting(Arc<Task>);

impl Waiting {
    pub(crate) fn on(task: &Arc<Task>) -> Self {
        let _before = task.waiting.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(task))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _before = self.0.waiting.fetch_sub(1, Ordering::Relaxed);
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
