//! Into which control groups do QEMU and its shim go?
//!
//! Nomad makes one group per task (on version 1 one per controller); below it we make two leaves, `vm` and `shim`, so that
//! what kills or limits the one leaves the other alone. The group itself is Nomad's: nothing is written to it, and nothing
//! in it is killed.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Version 1 controllers for which Nomad makes a group per task. `cpuset` is not among them: without reserved cores its
/// group is shared by all tasks.
const V1_CONTROLLERS: [&str; 3] = ["freezer", "cpu", "memory"];

/// How long a group may take to become empty. A killed QEMU was seen to leave within 8 ms.
const EMPTY_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause between two looks.
const EMPTY_INTERVAL: Duration = Duration::from_millis(2);

/// What could not be done to a group.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    #[error("control group {path} can't be made")]
    Make {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("memory limit {path} can't be set")]
    Limit {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("control group {path} can't be read")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("control group {path} can't be removed")]
    Remove {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("control group {path} is not empty after {} s of killing", EMPTY_TIMEOUT.as_secs())]
    NotEmpty { path: PathBuf },
}

/// The leaves of a task, `vm` and `shim` for each group that Nomad made; none on a host without control groups.
///
/// `cpuset_group` is the path Nomad gives: on version 2 the task's group itself, on version 1 a group of the cpuset
/// controller, from which the others' places follow.
pub(crate) fn leaves(cpuset_group: &str, alloc_id: &str, task_name: &str) -> Vec<PathBuf> {
    let group = Path::new(cpuset_group);
    if cpuset_group.is_empty() || task_name.contains('/') {
        return Vec::new();
    }
    let parents = if group.join("cgroup.procs").exists() && group.join("cgroup.controllers").exists() {
        vec![group.to_owned()]
    } else if let Some((root, _)) = cpuset_group.split_once("/cpuset/") {
        let task = format!("{alloc_id}.{task_name}");
        V1_CONTROLLERS
            .iter()
            .map(|controller| Path::new(root).join(controller).join("nomad").join(&task))
            .filter(|parent| parent.join("tasks").exists())
            .collect()
    } else {
        Vec::new()
    };
    parents
        .iter()
        .flat_map(|parent| [parent.join("vm"), parent.join("shim")])
        .collect()
}

/// Whether a leaf is for QEMU (the others are for the shim).
pub(crate) fn is_vm(leaf: &Path) -> bool {
    leaf.file_name().is_some_and(|name| name == "vm")
}

/// Makes the leaves, those that are there stay, and limits QEMU's memory; false where no group has a memory controller.
pub(crate) fn make(leaves: &[PathBuf], memory_bytes: u64) -> Result<bool, CgroupError> {
    let mut limited = false;
    for leaf in leaves {
        match std::fs::create_dir(leaf) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                return Err(CgroupError::Make {
                    path: leaf.clone(),
                    source,
                });
            }
            _ => {}
        }
        if is_vm(leaf) {
            limited |= limit_memory(leaf, memory_bytes)?;
        }
    }
    Ok(limited)
}

/// Version 1 and version 2 have different files, and only the memory controller's group has either.
fn limit_memory(leaf: &Path, bytes: u64) -> Result<bool, CgroupError> {
    let mut limited = false;
    for name in ["memory.limit_in_bytes", "memory.max"] {
        let path = leaf.join(name);
        if path.exists() {
            std::fs::write(&path, bytes.to_string()).map_err(|source| CgroupError::Limit { path, source })?;
            limited = true;
        }
    }
    Ok(limited)
}

/// Kills what is in QEMU's leaves and waits until they are empty: only emptiness proves death.
pub(crate) fn kill(leaves: &[PathBuf]) -> Result<(), CgroupError> {
    let deadline = Instant::now() + EMPTY_TIMEOUT;
    for leaf in leaves.iter().filter(|leaf| is_vm(leaf)) {
        loop {
            let pids = pids(leaf).map_err(|source| CgroupError::Read {
                path: leaf.clone(),
                source,
            })?;
            if pids.is_empty() {
                break;
            }
            if Instant::now() > deadline {
                return Err(CgroupError::NotEmpty { path: leaf.clone() });
            }
            for pid in pids {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            std::thread::sleep(EMPTY_INTERVAL);
        }
    }
    Ok(())
}

/// Read anew each time: version 1 caches the list of an open file for a second.
fn pids(leaf: &Path) -> io::Result<Vec<rustix::process::Pid>> {
    match std::fs::read_to_string(leaf.join("cgroup.procs")) {
        Ok(text) => Ok(text
            .lines()
            .filter_map(|line| rustix::process::Pid::from_raw(line.parse().ok()?))
            .collect()),
        // A group that isn't there, or is being removed, has nobody in it; anything else proves nothing.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Removes the leaves. A process that ended a moment ago may still be counted, so a busy one is tried again.
pub(crate) fn remove(leaves: &[PathBuf]) -> Result<(), CgroupError> {
    let deadline = Instant::now() + EMPTY_TIMEOUT;
    for leaf in leaves {
        loop {
            match std::fs::remove_dir(leaf) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                    std::thread::sleep(EMPTY_INTERVAL);
                }
                Err(source) => {
                    return Err(CgroupError::Remove {
                        path: leaf.clone(),
                        source,
                    });
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_follow_from_what_nomad_says() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        for directory in [
            "cpuset/nomad/share",
            "memory/nomad/a.vm",
            "freezer/nomad/a.vm",
            "v2/a.vm.scope",
        ] {
            std::fs::create_dir_all(root.join(directory)).unwrap();
        }
        for file in ["memory/nomad/a.vm/tasks", "freezer/nomad/a.vm/tasks"] {
            std::fs::write(root.join(file), "").unwrap();
        }
        for file in ["cgroup.procs", "cgroup.controllers"] {
            std::fs::write(root.join("v2/a.vm.scope").join(file), "").unwrap();
        }
        let path = |tail: &str| root.join(tail).to_str().unwrap().to_owned();
        let v1 = leaves(&path("cpuset/nomad/share"), "a", "vm");
        let expected = [
            "freezer/nomad/a.vm/vm",
            "freezer/nomad/a.vm/shim",
            "memory/nomad/a.vm/vm",
            "memory/nomad/a.vm/shim",
        ];
        assert_eq!(v1, expected.map(|tail| root.join(tail)));
        let v2 = leaves(&path("v2/a.vm.scope"), "a", "vm");
        assert_eq!(
            v2,
            ["vm", "shim"].map(|leaf| root.join("v2/a.vm.scope").join(leaf))
        );
        for nothing in ["", "/does/not/exist", &path("cpuset/nomad/share")] {
            assert_eq!(leaves(nothing, "a", "../escape"), Vec::<PathBuf>::new());
        }
        assert!(!make(&v2, 1 << 20).unwrap());
        std::fs::write(v2[0].join("memory.max"), "max\n").unwrap();
        assert!(make(&v2, 1 << 20).unwrap());
        let limit = std::fs::read_to_string(v2[0].join("memory.max")).unwrap();
        assert_eq!(limit, "1048576");
        std::fs::remove_file(v2[0].join("memory.max")).unwrap();
        assert!(v2[0].is_dir());
        remove(&v2).unwrap();
        remove(&v2).unwrap();
        assert!(!v2[0].exists());
    }
}
