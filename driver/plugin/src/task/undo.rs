//! How is everything that a start did taken back?
//!
//! What is to be done is decided by [`steppe_vm::undo::steps`] from the record alone; here it is done. A step that fails
//! doesn't keep the others from being done; it is kept in the record with its reason, and the reaper comes back to it. A
//! record that can't be read is never acted upon.

use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal};
use steppe_proto::net::Owner;
use steppe_vm::lease::Lease;
use steppe_vm::record::{Record, Step};
use steppe_vm::undo::{UndoStep, steps};
use tokio::runtime::Handle;

use super::ask::{AskError, ask};
use super::shim::Address;
use crate::host::cgroup::CgroupError;
use crate::host::netd::{self, NetdError};
use crate::host::records::{self, RecordFileError};
use crate::host::state_dir::StateDir;
use crate::host::uids::LeaseError;
use crate::host::{cgroup, chain, open_warily, uids};
use crate::instance::Instance;

/// How long a shim may take to leave by itself once its VM has ended: it holds the logs for their reader up to 5 s.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(6);

/// How long a killed shim may take to be gone, QEMU with it: seen 11 ms at most.
const DEATH_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause between two looks at the lock.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// Name of the directory of user id leases in `run_dir`.
pub(crate) const UIDS: &str = "uids";

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
    /// This driver instance.
    pub(crate) instance: String,
    /// Where the options say that netd listens: its socket may have moved since the VM was started.
    pub(crate) netd: Option<PathBuf>,
}

/// Why not everything was taken back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UndoError {
    /// Nothing was done.
    #[error("the VM is left alone")]
    Record(#[from] BeliefError),
    /// Nothing was done.
    #[error(
        "the kernel's boot id can't be read, so nothing is known of the VM's processes; it is tried again"
    )]
    BootId,
    /// Nothing was done: another release knows this VM, this one doesn't.
    #[error(
        "the VM is left alone{}: its shim speaks another version: {reason}; install the release that started it again",
        holder_text(*.holder)
    )]
    Version { reason: String, holder: Option<Pid> },
    /// What doesn't depend on it was done; the record stays until this is.
    #[error("not everything could be taken back, it is tried again: {}", list(.0))]
    Steps(Vec<Failed>),
}

/// A step that could not be done.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) what: &'static str,
    pub(crate) reason: String,
}

fn list(failed: &[Failed]) -> String {
    let texts: Vec<_> = failed
        .iter()
        .map(|failed| format!("{}: {}", failed.what, failed.reason))
        .collect();
    texts.join("; ")
}

/// Why a task's record is not acted upon. Whatever it names may be somebody else's, or its VM may be of another kind.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BeliefError {
    #[error("its record is not usable{}", holder_text(*.holder))]
    Record {
        #[source]
        source: RecordFileError,
        holder: Option<Pid>,
    },
    #[error("record {path} is {what}: find out how it came there, and remove it by hand{}", holder_text(*.holder))]
    Foreign {
        path: PathBuf,
        what: &'static str,
        holder: Option<Pid>,
    },
    #[error(
        "{directory} has no record that names it, but a shim lives there{}: end that process, then remove the directory",
        holder_text(*.holder)
    )]
    NoRecord { directory: PathBuf, holder: Option<Pid> },
}

fn holder_text(holder: Option<Pid>) -> String {
    holder.map_or_else(String::new, |pid| format!(" (the VM's shim is process {pid})"))
}

/// Why one step could not be done.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error("the shim that holds {0} does not end")]
    Shim(PathBuf),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Uids(#[from] LeaseError),
    #[error("{path} can't be removed")]
    Remove {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Record(#[from] RecordFileError),
    #[error(transparent)]
    Netd(#[from] NetdError),
    #[error("netd can't be asked")]
    Runtime(#[from] tokio::runtime::TryCurrentError),
}

/// The undo of the task with this key.
pub(crate) fn undo_of(instance: &Instance, state: &StateDir, key: &str) -> Undo {
    Undo {
        directory: state.task(key),
        run_directory: instance.options.run_dir.join(state.instance()).join(key),
        leases: instance.options.run_dir.join(UIDS),
        instance: state.instance().to_owned(),
        netd: instance.options.netd.clone(),
    }
}

impl Undo {
    /// The file that the task's shim holds locked as long as it lives.
    pub(crate) fn lock(&self) -> PathBuf {
        self.directory.join(LOCK)
    }

    /// The task's key, the name of its directories.
    pub(crate) fn key(&self) -> String {
        let name = self.directory.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Where the task's shim is found.
    pub(crate) fn shim(&self) -> Address {
        Address {
            control: self.run_directory.join("control.sock"),
            lock: self.lock(),
        }
    }

    /// The owner of its network interfaces.
    pub(crate) fn netd_owner(&self) -> Owner {
        Owner {
            instance: self.instance.clone(),
            id: self.key(),
        }
    }

    /// The owner's name in a lease.
    pub(crate) fn owner(&self) -> String {
        format!("{}/{}", self.instance, self.key())
    }

    /// Reads the task's record, and decides whether it is to be believed. `None` where nothing was begun: the header comes
    /// before the first effect.
    pub(crate) fn record(&self) -> Result<Option<Record>, BeliefError> {
        // Before the record is read: the step that names the shim is written before the lock is taken.
        let lives = !is_unlocked(&self.lock());
        let holder = || holder(&self.lock());
        let no_record = || BeliefError::NoRecord {
            directory: self.directory.clone(),
            holder: holder(),
        };
        let record = match records::read(&self.directory) {
            Ok(Some(record)) => record,
            Ok(None) if lives => return Err(no_record()),
            Err(error) if error.is_empty() && lives => return Err(no_record()),
            Ok(None) => return Ok(None),
            Err(error) if error.is_empty() => return Ok(None),
            Err(source) => {
                return Err(BeliefError::Record {
                    source,
                    holder: holder(),
                });
            }
        };
        let header = &record.header;
        let foreign = |what| BeliefError::Foreign {
            path: self.directory.join("record"),
            what,
            holder: holder(),
        };
        if let Some(whose) = record.stranger(&self.instance, &self.key()) {
            return Err(foreign(whose));
        }
        let is_place = |path: &Path| path.ends_with(Path::new(&self.instance).join(self.key()));
        let is_leaf = |leaf: &PathBuf| leaf.ends_with("vm") || leaf.ends_with("shim");
        if !record.run_directory().is_none_or(is_place) || !record.leaves().iter().all(is_leaf) {
            return Err(foreign("one that names what no task has"));
        }
        // No process outlives a boot: whoever wrote that record, its VM is of this one.
        if lives && records::boot_id().is_some_and(|id| id != header.boot_id) {
            return Err(foreign("of another boot of the host than its VM"));
        }
        // The end of the record is missing, and with it what the VM has.
        if !record.may_have_shim() && lives {
            return Err(no_record());
        }
        Ok(Some(record))
    }

    /// Notes in the record what is done. One that can't be written, such as on a full disk, keeps nobody from doing it.
    pub(crate) fn note(&self, step: &Step) {
        if let Err(error) = records::append(&self.directory, step) {
            tracing::debug!(
                record = self.key(),
                step = step.name(),
                error = chain(&error),
                "a step could not be noted"
            );
        }
    }

    /// The same task where its record says that it is: the option `run_dir` may have another value by now.
    pub(crate) fn at(mut self, record: &Record) -> Self {
        if let Some(path) = record.run_directory() {
            self.run_directory = path.to_owned();
            // <run_dir>/<instance>/<key>
            if let Some(run_dir) = path.parent().and_then(Path::parent) {
                self.leases = run_dir.join(UIDS);
            }
        }
        self
    }

    /// Takes everything back. Blocks for some milliseconds, for seconds if processes don't die.
    pub(crate) fn run(&self) -> Result<(), UndoError> {
        let record = self.record()?;
        let here = record
            .as_ref()
            .map_or_else(|| self.clone(), |record| self.clone().at(record));
        let had_guest = record
            .as_ref()
            .is_some_and(|record| record.started_at_unix_ns().is_some());
        if had_guest
            && !is_unlocked(&self.lock())
            && let Err(AskError::Version(reason)) = ask(&here.shim().control)
        {
            return Err(UndoError::Version {
                reason,
                holder: holder(&self.lock()),
            });
        }
        self.reach("named.before");
        if record.as_ref().is_some_and(|record| !record.undo_begun()) {
            self.note(&Step::Undo);
        }
        self.reach("named.after");
        let this_boot = match &record {
            Some(record) => is_of_this_boot(record, &self.lock()).ok_or(UndoError::BootId)?,
            None => true,
        };
        let mut failed = Vec::new();
        let mut not_done: Vec<UndoStep> = Vec::new();
        for step in steps(record.as_ref(), this_boot) {
            if not_done.iter().any(|failed| step.waits_for(failed)) {
                continue;
            }
            self.reach(&format!("{}.before", step.name()));
            let taken = here.take(&step);
            self.reach(&format!("{}.after", step.name()));
            if let Err(error) = taken {
                failed.push(Failed {
                    what: step.name(),
                    reason: chain(&error),
                });
                not_done.push(step);
            }
        }
        let Some(last) = failed.last() else {
            return Ok(());
        };
        let known = record.as_ref().and_then(|record| record.last_failure());
        if known != Some((last.what, &last.reason)) {
            let step = Step::UndoFailed {
                what: last.what.to_owned(),
                reason: last.reason.clone(),
            };
            self.note(&step);
        }
        Err(UndoError::Steps(failed))
    }

    fn take(&self, step: &UndoStep) -> Result<(), StepError> {
        match step {
            UndoStep::EndShim { had_guest } => self.end_shim(*had_guest)?,
            UndoStep::KillCgroups { leaves } => cgroup::kill(leaves)?,
            UndoStep::WaitUids { leases } => {
                // What was named and never taken is somebody else's.
                let held = |lease: &&Lease| uids::is_held_by(&self.leases, **lease, &self.owner());
                for lease in leases.iter().filter(held) {
                    uids::wait_unused(*lease, DEATH_TIMEOUT)?;
                }
            }
            UndoStep::RemoveCgroups { leaves } => cgroup::remove(leaves)?,
            UndoStep::DetachNetwork { socket } => {
                let moved = self.netd.as_deref().filter(|now| now != socket);
                Handle::try_current()?.block_on(netd::detach(socket, moved, self.netd_owner()))?;
            }
            UndoStep::RemoveRunDirectory { path } => match std::fs::remove_dir_all(path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(StepError::Remove {
                        path: path.clone(),
                        source,
                    });
                }
                _ => {}
            },
            UndoStep::ReleaseUids { leases } => {
                for lease in leases {
                    uids::release(&self.leases, *lease, &self.owner())?;
                }
            }
            UndoStep::RemoveRecord => records::remove(&self.directory)?,
        }
        Ok(())
    }

    /// Makes sure that no shim lives: waits a moment if it is about to leave, else kills it, which kills QEMU.
    fn end_shim(&self, had_guest: bool) -> Result<(), StepError> {
        let lock = self.lock();
        let ended = matches!(records::read_exit(&self.directory), Ok(Some(_)));
        // Logs are held for their reader only where a guest wrote some.
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
        Err(StepError::Shim(lock))
    }

    fn reach(&self, point: &str) {
        steppe_points::reach(&format!("undo.{point}"), &self.key());
    }
}

/// Whether the host still runs the boot in which a record was written. A lock that is held proves it; `None` where nothing does.
pub(crate) fn is_of_this_boot(record: &Record, lock: &Path) -> Option<bool> {
    if !is_unlocked(lock) {
        return Some(true);
    }
    Some(record.header.boot_id == records::boot_id()?)
}

/// Whether no living shim holds the lock.
pub(crate) fn is_unlocked(lock: &Path) -> bool {
    // Shared: two who look at once don't take each other for a shim. Only a file that isn't there was never given to one;
    // one that can't be opened, such as for want of descriptors, says nothing.
    match open_warily(lock, false) {
        Ok(file) => file.try_lock_shared().is_ok(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
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
    // Still held, and by this very process: so the number was its holder's when the descriptor was made, and not that of
    // somebody who came after, or whom somebody wrote into the file.
    if !is_unlocked(lock) && has_open(pid, lock) {
        let _ = rustix::process::pidfd_send_signal(&process, Signal::KILL);
    }
}

/// Whether a process has this very file open.
pub(crate) fn has_open(pid: Pid, file: &Path) -> bool {
    let Ok(wanted) = std::fs::metadata(file) else {
        return false;
    };
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    descriptors
        .filter_map(|entry| std::fs::metadata(entry.path()).ok())
        .any(|data| (data.dev(), data.ino()) == (wanted.dev(), wanted.ino()))
}

/// The process that says it holds the lock.
pub(crate) fn holder(lock: &Path) -> Option<Pid> {
    let mut text = String::new();
    let _length = open_warily(lock, false)
        .ok()?
        .take(32)
        .read_to_string(&mut text)
        .ok()?;
    Pid::from_raw(text.trim().parse().ok()?)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use steppe_vm::record::{Header, RECORD_VERSION, task_key};

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
        let key = task_key("a", "a/vm/1");
        let undo = Undo {
            directory: path("tasks").join(&key),
            run_directory: path("run/i").join(&key),
            leases: path("run/uids"),
            instance: "i".into(),
            netd: None,
        };
        let header = Header {
            version: RECORD_VERSION,
            instance: "i".into(),
            boot_id: records::boot_id().unwrap().into(),
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
            Step::User { uid: 100_007 },
            Step::RunDirectory {
                path: undo.run_directory.clone(),
            },
            Step::Cgroups {
                leaves: leaves.clone(),
                memory_bytes: Some(1 << 20),
            },
            Step::Shim,
        ];
        for (n, step) in steps.iter().enumerate().take(done + 1) {
            record.name(step).unwrap();
            if n == done {
                break;
            }
            match step {
                Step::Uids { uid } => {
                    assert!(uids::take(&undo.leases, Lease::Pair(*uid), &undo.owner()).unwrap());
                }
                Step::User { uid } => {
                    assert!(uids::take(&undo.leases, Lease::User(*uid), &undo.owner()).unwrap());
                }
                Step::RunDirectory { path } => {
                    std::fs::create_dir_all(path).unwrap();
                    std::fs::write(path.join("control.sock"), "").unwrap();
                }
                Step::Cgroups { leaves, .. } => {
                    for leaf in leaves {
                        std::fs::create_dir(leaf).unwrap();
                    }
                }
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
        for done in 0..=5 {
            let host = host(done);
            for _twice in 0..2 {
                host.undo.run().unwrap();
                assert!(!host.undo.directory.exists(), "{done}");
                assert!(!host.undo.run_directory.exists(), "{done}");
                assert!(host.leaves.iter().all(|leaf| !leaf.exists()), "{done}");
                assert!(!host.undo.leases.join("100000").is_symlink(), "{done}");
            }
        }
    }

    #[test]
    fn what_is_not_ours_stays() {
        let host = host(5);
        let lease = host.undo.leases.join("100000");
        std::fs::remove_file(&lease).unwrap();
        std::os::unix::fs::symlink("other/key", &lease).unwrap();
        host.undo.run().unwrap();
        assert_eq!(std::fs::read_link(&lease).unwrap(), Path::new("other/key"));
    }

    #[test]
    fn what_a_living_vm_uses_is_not_given_back() {
        let host = host(1);
        // Another process of that user stands for a QEMU that doesn't die; there are no control groups yet.
        let mut process = std::process::Command::new("sleep");
        let Ok(mut living) = std::os::unix::process::CommandExt::uid(&mut process, 100_000)
            .arg("60")
            .spawn()
        else {
            // Only root can do that, and the checks run as root.
            assert!(!rustix::process::geteuid().is_root());
            return;
        };
        let error = host.undo.run().unwrap_err().to_string();
        assert!(error.contains("wait-uids"), "{error}");
        assert!(host.undo.leases.join("100000").is_symlink());
        living.kill().unwrap();
        living.wait().unwrap();
        host.undo.run().unwrap();
        assert!(!host.undo.leases.join("100000").is_symlink());
    }

    #[test]
    fn a_pair_that_was_never_leased_is_not_waited_for() {
        // Named, and then another was faster.
        let host = host(0);
        let uid = rustix::process::geteuid().as_raw();
        let path = host.undo.directory.join("record");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("100000", &uid.to_string())).unwrap();
        host.undo.run().unwrap();
        assert!(!host.undo.directory.exists());
    }

    #[test]
    fn records_of_others_are_not_acted_upon() {
        for (from, to, wanted) in [
            (
                "\"instance\":\"i\"",
                "\"instance\":\"o\"",
                "another driver instance",
            ),
            ("a/vm/1", "a/vm/2", "of another task"),
        ] {
            let host = host(5);
            let path = host.undo.directory.join("record");
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(&path, text.replace(from, to)).unwrap();
            let error = chain(&host.undo.run().unwrap_err());
            assert!(error.contains("left alone") && error.contains(wanted), "{error}");
            assert!(host.undo.run_directory.exists() && host.leaves[0].exists());
        }
    }

    #[test]
    fn a_record_without_its_end_is_not_believed_while_a_shim_lives() {
        let host = host(5);
        let path = host.undo.directory.join("record");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &text[..=text.find('\n').unwrap()]).unwrap();
        let lock = File::create(host.undo.lock()).unwrap();
        lock.lock().unwrap();
        assert!(chain(&host.undo.run().unwrap_err()).contains("a shim lives there"));
        assert!(host.undo.directory.exists() && host.leaves[0].exists());
    }

    #[test]
    fn what_can_not_be_taken_back_is_kept_with_its_reason() {
        let host = host(5);
        std::fs::create_dir(host.leaves[0].join("somebody")).unwrap();
        let error = host.undo.run().unwrap_err().to_string();
        assert!(error.contains("cgroup/vm can't be removed"), "{error}");
        let record = records::read(&host.undo.directory).unwrap().unwrap();
        assert!(record.undo_begun());
        assert_eq!(
            record.last_failure().map(|(what, _)| what),
            Some("remove-cgroups")
        );
        let entries = record.entries.len();
        host.undo.run().unwrap_err();
        let again = records::read(&host.undo.directory).unwrap().unwrap();
        assert_eq!(again.entries.len(), entries, "the same failure is kept once");
        assert!(host.undo.directory.join("record").exists());
        // A group that can't be removed may have a living process.
        assert!(host.undo.run_directory.exists());
        assert!(host.undo.leases.join("100000").is_symlink());
        std::fs::remove_dir(host.leaves[0].join("somebody")).unwrap();
        host.undo.run().unwrap();
        assert!(!host.undo.directory.exists());
    }

    #[tokio::test]
    async fn while_netd_is_away_its_interfaces_keep_their_user() {
        let host = host(2);
        let socket = host.undo.directory.join("no.sock");
        host.undo.note(&Step::Network {
            socket: socket.clone(),
        });
        let undo = host.undo.clone();
        let error = tokio::task::spawn_blocking(move || undo.run()).await.unwrap();
        let error = error.unwrap_err().to_string();
        let wanted = format!("detach-network: netd at {} does not answer", socket.display());
        assert!(error.contains(&wanted), "{error}");
        let record = records::read(&host.undo.directory).unwrap().unwrap();
        assert_eq!(
            record.last_failure().map(|(what, _)| what),
            Some("detach-network")
        );
        assert!(
            host.undo.leases.join("100000").is_symlink()
                && host.undo.leases.join("nomad-100007").is_symlink()
        );
        // Nothing else waits for it.
        assert!(!host.undo.run_directory.exists());
    }

    #[test]
    fn a_record_that_can_not_be_read_is_not_acted_upon() {
        let host = host(5);
        let path = host.undo.directory.join("record");
        let text = std::fs::read_to_string(&path).unwrap();
        let version = |version: u32| format!("\"version\":{version}");
        let newer = text.replace(&version(RECORD_VERSION), &version(RECORD_VERSION + 1));
        for (damaged, wanted) in [
            (newer, format!("has version {}", RECORD_VERSION + 1)),
            (text.clone() + "garbage\n", "line 7 of the record".to_owned()),
        ] {
            std::fs::write(&path, damaged).unwrap();
            let error = chain(&host.undo.run().unwrap_err());
            assert!(
                error.contains("left alone") && error.contains(wanted.as_str()),
                "{error}"
            );
            assert!(host.undo.run_directory.exists() && host.leaves[0].exists());
        }
        std::fs::write(&path, "").unwrap();
        let lock = File::create(host.undo.lock()).unwrap();
        lock.lock().unwrap();
        assert!(chain(&host.undo.run().unwrap_err()).contains("left alone"));
        drop(lock);
        host.undo.run().unwrap();
        assert!(!host.undo.directory.exists());
    }

    #[test]
    fn after_a_restart_of_the_host_only_files_are_taken_back() {
        let host = host(5);
        let path = host.undo.directory.join("record");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace(records::boot_id().unwrap(), "earlier")).unwrap();
        host.undo.run().unwrap();
        assert!(!host.undo.directory.exists() && !host.undo.run_directory.exists());
        // A group of that name is somebody else's by now.
        assert!(host.leaves[0].exists());
    }

    #[test]
    fn only_the_holder_itself_is_killed() {
        let host = host(5);
        let path = host.undo.lock();
        let lock = File::create(&path).unwrap();
        lock.lock().unwrap();
        let mut other = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        std::fs::write(&path, format!("{}\n", other.id())).unwrap();
        kill_holder(&path);
        std::thread::sleep(Duration::from_millis(50));
        assert!(
            other.try_wait().unwrap().is_none(),
            "a process was killed for a number in a file"
        );
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn a_lock_that_is_held_is_waited_for() {
        let host = host(5);
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
