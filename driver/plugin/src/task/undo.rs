//! How is everything that a start did taken back?
//!
//! From the record alone, newest first; each step does nothing where its work is done already, so an undo that was
//! interrupted is simply done again. A step that fails doesn't keep the others from being done.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};
use steppe_vm::record::{Record, RecordError, Step};

use super::shim::Address;
use crate::host::records::{self, RecordFileError};
use crate::host::state_dir::StateDir;
use crate::host::{cgroup, chain, uids};
use crate::instance::Instance;

/// How long a shim may take to leave by itself once its VM has ended: it holds the logs for their reader up to 5 s.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(6);

/// How long a killed shim may take to be gone, QEMU with it: seen 11 ms at most.
const DEATH_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause between two looks at the lock.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// Name of the file that a living shim holds locked.
const LOCK: &str = "shim.lock";

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

/// The undo of the task with this key.
pub(crate) fn undo_of(instance: &Instance, state: &StateDir, key: &str) -> Undo {
    Undo {
        directory: state.task(key),
        run_directory: instance.options.run_dir.join(state.instance()).join(key),
        leases: instance.uid_leases(),
        owner: format!("{}/{key}", state.instance()),
    }
}

impl Undo {
    /// The file that the task's shim holds locked as long as it lives.
    pub(crate) fn lock(&self) -> PathBuf {
        self.directory.join(LOCK)
    }

    /// Where the task's shim is found.
    pub(crate) fn shim(&self) -> Address {
        Address {
            control: self.run_directory.join("control.sock"),
            lock: self.lock(),
        }
    }

    /// Takes everything back. Blocks for some milliseconds, for seconds if processes don't die.
    pub(crate) fn run(&self) -> Result<(), UndoError> {
        let mut failed = Vec::new();
        let mut note = |result: Result<(), String>| failed.extend(result.err());
        let record = match records::read(&self.directory) {
            Ok(record) => record,
            // The header comes before the first effect: without it nothing was begun.
            Err(RecordFileError::Format {
                source: RecordError::Empty,
                ..
            }) => None,
            Err(error) => {
                note(Err(chain(&error)));
                None
            }
        };
        if record.is_some()
            && let Err(error) = records::append(&self.directory, &Step::Undo)
        {
            // Such as on a full disk, which an undo makes room on: it goes on unnamed.
            tracing::debug!(error = chain(&error), "an undo could not be named");
        }
        // Logs are held for their reader only where a guest wrote some.
        let had_guest = record
            .as_ref()
            .is_some_and(|record| record.started_at_unix_ns().is_some());
        note(self.end_shim(had_guest));
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
        if leaves.is_empty()
            && let Some(uid) = record.uid()
        {
            // The shim's lock is free a moment before QEMU is dead; without control groups its user says when.
            note(uids::wait_unused(uid, DEATH_TIMEOUT).map_err(|error| chain(&error)));
        }
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
    fn end_shim(&self, had_guest: bool) -> Result<(), String> {
        let lock = self.lock();
        let ended = records::read_exit(&self.directory).is_some();
        if had_guest && ended && wait_unlocked(&lock, LEAVE_TIMEOUT) || is_unlocked(&lock) {
            return Ok(());
        }
        let deadline = Instant::now() + DEATH_TIMEOUT;
        while Instant::now() < deadline {
            kill_holder(&lock);
            if wait_unlocked(&lock, LOOK_INTERVAL * 10) {
                return Ok(());
            }
        }
        Err(format!("the shim that holds {} does not end", lock.display()))
    }
}

/// Whether no living shim holds the lock.
pub(crate) fn is_unlocked(lock: &Path) -> bool {
    // Shared: two who look at once don't take each other for a shim. A file that can't be opened was never given to one.
    File::open(lock).map_or(true, |file| file.try_lock_shared().is_ok())
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

/// Kills the shim that holds the lock, and QEMU with it. It writes its number into the file first of all; until then there
/// is nothing to kill, and a shim whose plugin died leaves by itself.
pub(crate) fn kill_holder(lock: &Path) {
    let Some(pid) = holder(lock) else { return };
    let Ok(process) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    // Still held: so the number was its holder's when the descriptor was made, and not somebody's who came after.
    if !is_unlocked(lock) {
        let _ = rustix::process::pidfd_send_signal(&process, Signal::KILL);
    }
}

fn holder(lock: &Path) -> Option<Pid> {
    let mut text = String::new();
    let _length = File::open(lock).ok()?.take(32).read_to_string(&mut text).ok()?;
    Pid::from_raw(text.trim().parse().ok()?)
}

#[cfg(test)]
mod tests {
    use steppe_vm::record::{Header, RECORD_VERSION};

    use super::*;
    use crate::host::records::RecordFile;

    struct Host {
        _root: tempfile::TempDir,
        undo: Undo,
        leaves: Vec<PathBuf>,
    }

    /// A host on which the first `done` of a start's steps were named and done, and one more was named.
    fn host(done: usize) -> Host {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        let undo = Undo {
            directory: path("tasks/key"),
            run_directory: path("run/i/key"),
            leases: path("run/uids"),
            owner: "i/key".into(),
        };
        let header = Header {
            version: RECORD_VERSION,
            instance: "i".into(),
            boot_id: "b".into(),
            task_id: "a/vm/1".into(),
            alloc_id: "a".into(),
            task_name: "vm".into(),
            job_id: "j".into(),
            namespace: "n".into(),
            created_at_unix_ns: 1,
        };
        let leaves = vec![path("cgroup/vm"), path("cgroup/shim")];
        std::fs::create_dir_all(path("tasks")).unwrap();
        std::fs::create_dir_all(path("cgroup")).unwrap();
        let mut record = RecordFile::create(&undo.directory, &header).unwrap();
        let steps = [
            Step::Uids { uid: 100_000 },
            Step::RunDirectory {
                path: undo.run_directory.clone(),
            },
            Step::Cgroups {
                leaves: leaves.clone(),
            },
            Step::Shim,
        ];
        for (n, step) in steps.iter().enumerate().take(done + 1) {
            record.name(step).unwrap();
            if n == done {
                break;
            }
            match step {
                Step::Uids { uid } => assert!(uids::lease(&undo.leases, *uid, &undo.owner).unwrap()),
                Step::RunDirectory { path } => {
                    std::fs::create_dir_all(path).unwrap();
                    std::fs::write(path.join("control.sock"), "").unwrap();
                }
                Step::Cgroups { leaves } => cgroup::make(leaves).unwrap(),
                _ => std::fs::write(undo.directory.join("plan.json"), "").unwrap(),
            }
        }
        Host {
            _root: root,
            undo,
            leaves,
        }
    }

    #[test]
    fn a_start_is_taken_back_from_wherever_it_stopped() {
        for done in 0..=4 {
            let host = host(done);
            for _twice in 0..2 {
                host.undo.run().unwrap();
                assert!(!host.undo.directory.exists(), "{done}");
                assert!(!host.undo.run_directory.exists(), "{done}");
                assert!(host.leaves.iter().all(|leaf| !leaf.exists()), "{done}");
                assert!(!host.undo.leases.join("100000").exists(), "{done}");
            }
        }
    }

    #[test]
    fn what_is_not_ours_stays() {
        let host = host(4);
        let lease = host.undo.leases.join("100000");
        std::fs::remove_file(&lease).unwrap();
        std::os::unix::fs::symlink("other/key", &lease).unwrap();
        host.undo.run().unwrap();
        assert_eq!(std::fs::read_link(&lease).unwrap(), Path::new("other/key"));
    }

    #[test]
    fn what_can_not_be_taken_back_keeps_the_record_and_not_the_rest() {
        let host = host(4);
        std::fs::create_dir(host.leaves[0].join("somebody")).unwrap();
        let error = host.undo.run().unwrap_err().to_string();
        assert!(error.contains("cgroup/vm can't be removed"), "{error}");
        assert!(host.undo.directory.join("record").exists());
        assert!(!host.undo.run_directory.exists());
        assert!(!host.undo.leases.join("100000").exists());
        std::fs::remove_dir(host.leaves[0].join("somebody")).unwrap();
        host.undo.run().unwrap();
        assert!(!host.undo.directory.exists());
    }

    #[test]
    fn a_lock_that_is_held_is_waited_for() {
        let host = host(4);
        let path = host.undo.directory.join(LOCK);
        let lock = File::create(&path).unwrap();
        lock.lock().unwrap();
        assert!(!is_unlocked(&path));
        assert!(!wait_unlocked(&path, Duration::from_millis(10)));
        drop(lock);
        assert!(wait_unlocked(&path, Duration::ZERO));
        assert!(is_unlocked(Path::new("/does/not/exist")));
    }
}
