//! Which user ids does a VM get, and how is it made sure that no other VM has them?
//!
//! Each VM has a pair: an even offset for QEMU, the next for its supervisor. Where Nomad leased a user for the task, QEMU
//! gets that one instead; it is held in the same way, because two agents on one host may hand out the same. A lease is a
//! symbolic link; making one is atomic and carries its owner, `<instance>/<task key>`, in the same step. The directory is
//! shared by all driver instances with the same `run_dir`.

use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use steppe_vm::lease::Lease;

/// Pause between two looks at the processes.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// No pair is free, or the leases can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaseError {
    #[error("all user ids of vm_uids are in use: widen the plugin option or stop a VM")]
    Exhausted,
    #[error("a process of user {0} does not end")]
    InUse(Lease),
    #[error("user id lease {path} can't be made")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The first pair that is free, looked for from a place that depends on the owner, so that instances seldom meet.
pub(crate) fn candidate(
    directory: &Path,
    range: &RangeInclusive<u32>,
    owner: &str,
) -> Result<u32, LeaseError> {
    let ids = range.end() - range.start() + 1;
    let pairs = ids / 2;
    let start = owner.bytes().fold(0u32, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u32::from(byte))
    });
    (0..pairs)
        .map(|n| range.start() + (start.wrapping_add(n) % pairs) * 2)
        .find(|uid| is_free(directory, Lease::Pair(*uid)))
        .ok_or(LeaseError::Exhausted)
}

/// Whether nobody holds a lease.
pub(crate) fn is_free(directory: &Path, lease: Lease) -> bool {
    std::fs::symlink_metadata(link(directory, lease)).is_err()
}

/// Takes a lease; false if somebody else was faster.
pub(crate) fn take(directory: &Path, lease: Lease, owner: &str) -> Result<bool, LeaseError> {
    let path = link(directory, lease);
    std::fs::create_dir_all(directory).map_err(|source| LeaseError::Io {
        path: directory.to_owned(),
        source,
    })?;
    match std::os::unix::fs::symlink(owner, &path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(source) => Err(LeaseError::Io { path, source }),
    }
}

/// Waits until no process has one of a lease's ids, at most so long.
pub(crate) fn wait_unused(lease: Lease, timeout: Duration) -> Result<(), LeaseError> {
    let deadline = Instant::now() + timeout;
    while in_use(lease) {
        if Instant::now() >= deadline {
            return Err(LeaseError::InUse(lease));
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
    Ok(())
}

/// Whether a process has this user id, a zombie included: for the kernel a look at one table, where [`in_use`] reads all of
/// `/proc`.
pub(crate) fn is_anybodys(uid: u32) -> bool {
    let priority = rustix::process::getpriority_user(rustix::process::Uid::from_raw(uid));
    !matches!(priority, Err(rustix::io::Errno::SRCH))
}

/// Whether a process has one of a lease's ids.
pub(crate) fn in_use(lease: Lease) -> bool {
    // Where processes can't be listed, nothing proves that there is none.
    let Ok(mut processes) = std::fs::read_dir("/proc") else {
        return true;
    };
    processes.any(|entry| {
        let Ok(entry) = entry else { return true };
        // The owner of a process's directory is its effective user. One that is gone by now has none.
        let owner = entry.metadata().map(|data| data.uid());
        owner.is_ok_and(|owner| lease.ids().contains(&owner)) && !is_zombie(&entry.path())
    })
}

/// Whether a process has ended and nobody has asked how: it keeps its user, and does nothing any more.
fn is_zombie(process: &Path) -> bool {
    let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
    // proc(5): the state follows the name, which may contain anything.
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| matches!(rest.trim_start().chars().next(), Some('Z' | 'X')))
}

/// Whether a lease is this owner's.
pub(crate) fn is_held_by(directory: &Path, lease: Lease, owner: &str) -> bool {
    std::fs::read_link(link(directory, lease)).is_ok_and(|holder| holder == Path::new(owner))
}

/// All leases of a driver instance, each with the task's key.
pub(crate) fn held_by(directory: &Path, instance: &str) -> Vec<(Lease, String)> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let of_instance = |entry: std::fs::DirEntry| {
        let lease = entry.file_name().to_str()?.parse().ok()?;
        let owner = std::fs::read_link(entry.path()).ok()?;
        let (holder, key) = owner.to_str()?.split_once('/')?;
        (holder == instance).then(|| (lease, key.to_owned()))
    };
    entries.filter_map(of_instance).collect()
}

/// Gives a lease back, if it is this owner's.
pub(crate) fn release(directory: &Path, lease: Lease, owner: &str) -> Result<(), LeaseError> {
    let path = link(directory, lease);
    match std::fs::read_link(&path) {
        Ok(holder) if holder == Path::new(owner) => {
            std::fs::remove_file(&path).map_err(|source| LeaseError::Io { path, source })
        }
        _ => Ok(()),
    }
}

fn link(directory: &Path, lease: Lease) -> PathBuf {
    directory.join(lease.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_leased_once_and_given_back_by_their_owner() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("uids");
        let range = 1000..=1005;
        let mut leased = Vec::new();
        for owner in ["i/a", "i/b", "i/c"] {
            let uid = candidate(&directory, &range, owner).unwrap();
            assert!(take(&directory, Lease::Pair(uid), owner).unwrap());
            leased.push(uid);
        }
        leased.sort_unstable();
        assert_eq!(leased, [1000, 1002, 1004]);
        assert!(matches!(
            candidate(&directory, &range, "i/d"),
            Err(LeaseError::Exhausted)
        ));
        assert!(!take(&directory, Lease::Pair(1002), "i/d").unwrap());
        release(&directory, Lease::Pair(1002), "i/d").unwrap();
        let user = Lease::User(1002);
        assert!(is_free(&directory, user) && take(&directory, user, "i/a").unwrap());
        assert!(!is_free(&directory, user) && is_held_by(&directory, user, "i/a"));
        assert!(held_by(&directory, "i").contains(&(user, "a".to_owned())));
        release(&directory, user, "i/a").unwrap();
        assert!(is_anybodys(rustix::process::geteuid().as_raw()) && !is_anybodys(2_100_000_001));
        assert!(matches!(
            candidate(&directory, &range, "i/d"),
            Err(LeaseError::Exhausted)
        ));
        for owner in ["i/a", "i/b", "i/c"] {
            for uid in &leased {
                release(&directory, Lease::Pair(*uid), owner).unwrap();
            }
        }
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
    }
}
