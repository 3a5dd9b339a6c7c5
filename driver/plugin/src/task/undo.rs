//! How is everything that a start did taken back?
//!
//! From the record alone, newest first; each step does nothing where its work is done already, so an undo that was
//! interrupted is simply done again. A step that fails doesn't keep the others from being done.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use steppe_vm::record::{Record, Step};

use crate::host::records::{self, RecordFileError};
use crate::host::{cgroup, chain, uids};

/// How long a shim may take to leave by itself once its VM has ended and its logs are read.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a killed shim may take to be gone, QEMU with it: seen 11 ms at most.
const DEATH_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause between two looks at the lock.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// Name of the file that a living shim holds locked.
pub(crate) const LOCK: &str = "shim.lock";

/// What is needed to take back a task's start: where its things are.
#[derive(Debug, Clone)]
pub(crate) struct Undo {
    /// The directory of its record.
    pub(crate) directory: PathBuf,
    /// The directory of its sockets.
    pub(crate) run_directory: PathBuf,
    /// Where user id leases are.
    pub(crate) leases: PathBuf,
    /// The owner's name in a lease.
    pub(crate) owner: String,
}

/// What could not be taken back; the record stays until it is.
#[derive(Debug, thiserror::Error)]
#[error("not everything could be taken back: {}", .0.join("; "))]
pub(crate) struct UndoError(Vec<String>);

impl Undo {
    /// Takes everything back. Blocks for some milliseconds, for seconds if processes don't die.
    pub(crate) fn run(&self) -> Result<(), UndoError> {
        let mut failed = Vec::new();
        let mut note = |result: Result<(), String>| failed.extend(result.err());
        let record = match records::read(&self.directory) {
            Ok(record) => record,
            Err(error) => {
                note(Err(chain(&error)));
                None
            }
        };
        if record.is_some() {
            note(
                records::append(&self.directory, &Step::Undo).map_err(|error: RecordFileError| chain(&error)),
            );
        }
        note(self.end_shim());
        if let Some(record) = &record {
            self.take_back(record, &mut note);
        }
        if failed.is_empty() {
            records::remove(&self.directory).map_err(|error| UndoError(vec![chain(&error)]))
        } else {
            Err(UndoError(failed))
        }
    }

    fn take_back(&self, record: &Record, note: &mut impl FnMut(Result<(), String>)) {
        let leaves = record.leaves();
        note(cgroup::kill(leaves).map_err(|error| chain(&error)));
        note(cgroup::remove(leaves).map_err(|error| chain(&error)));
        note(match std::fs::remove_dir_all(&self.run_directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(format!(
                "{} can't be removed: {error}",
                self.run_directory.display()
            )),
            _ => Ok(()),
        });
        if let Some(uid) = record.uid() {
            note(uids::release(&self.leases, uid, &self.owner).map_err(|error| chain(&error)));
        }
    }

    /// Makes sure that no shim lives: waits a moment if it is about to leave, else kills it, which kills QEMU.
    fn end_shim(&self) -> Result<(), String> {
        let lock = self.directory.join(LOCK);
        let ended = records::read_exit(&self.directory).is_some();
        if ended && wait_unlocked(&lock, LEAVE_TIMEOUT) || is_unlocked(&lock) {
            return Ok(());
        }
        let deadline = Instant::now() + DEATH_TIMEOUT;
        while Instant::now() < deadline {
            // The lock is held, so the process in it lives and its number is its own. It writes it first of all; until
            // then there is nothing to kill, and a shim whose plugin died leaves by itself.
            if let Some(pid) = holder(&lock) {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
            if wait_unlocked(&lock, LOOK_INTERVAL * 10) {
                return Ok(());
            }
        }
        Err(format!("the shim that holds {} does not end", lock.display()))
    }
}

/// Whether no living shim holds the lock.
pub(crate) fn is_unlocked(lock: &Path) -> bool {
    // A file that can't be opened was never given to a shim.
    File::open(lock).map_or(true, |file| file.try_lock().is_ok())
}

/// Waits until no living shim holds the lock, at most so long.
pub(crate) fn wait_unlocked(lock: &Path, timeout: Duration) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        if is_unlocked(lock) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

fn holder(lock: &Path) -> Option<Pid> {
    let mut text = String::new();
    let _length = File::open(lock).ok()?.take(32).read_to_string(&mut text).ok()?;
    Pid::from_raw(text.trim().parse().ok()?)
}
