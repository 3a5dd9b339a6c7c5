//! Into which control groups do QEMU and its shim go?
//!
//! Nomad makes one group per task (on version 1 one per controller); below it we make two leaves, `vm` and `shim`, so that
//! what kills or limits the one leaves the other alone. Of the task's own group we set what Nomad leaves to its drivers: its
//! share of the processors, those reserved for it, and on version 2 which controllers the leaves have. In what tasks share
//! nothing is set, and nothing is killed.

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
    #[error("{path} can't be set")]
    Set {
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

/// The control groups of a task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Groups {
    /// Nomad's own, one for each controller on version 1; none on a host without control groups.
    task: Vec<PathBuf>,
    /// Ours, `vm` and `shim` in each of them.
    pub(crate) leaves: Vec<PathBuf>,
    /// The group of version 1's cpuset controller in which all of the task's processes are to be, beside the leaves.
    pub(crate) cpuset: Option<PathBuf>,
}

/// Which groups a task has. `cpuset_group` is the path Nomad gives: on version 2 the task's group itself, on version 1 a
/// group of the cpuset controller, from which the others' places follow.
pub(crate) fn groups(cpuset_group: &str, alloc_id: &str, task_name: &str) -> Groups {
    let group = Path::new(cpuset_group);
    if cpuset_group.is_empty() || task_name.contains('/') {
        return Groups::default();
    }
    let mut cpuset = None;
    let task = if group.join("cgroup.procs").exists() && group.join("cgroup.controllers").exists() {
        vec![group.to_owned()]
    } else if let Some((root, _)) = cpuset_group.split_once("/cpuset/") {
        cpuset = group.join("tasks").exists().then(|| group.to_owned());
        let task = format!("{alloc_id}.{task_name}");
        V1_CONTROLLERS
            .iter()
            .map(|controller| Path::new(root).join(controller).join("nomad").join(&task))
            .filter(|parent| parent.join("tasks").exists())
            .collect()
    } else {
        Vec::new()
    };
    Groups {
        leaves: task
            .iter()
            .flat_map(|parent| [parent.join("vm"), parent.join("shim")])
            .collect(),
        task,
        cpuset,
    }
}

/// Which version of control groups this host has: `v1`, `v2` or `none`.
pub(crate) fn version() -> &'static str {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        "v2"
    } else if root.join("memory").join("tasks").exists() {
        "v1"
    } else {
        "none"
    }
}

/// Whether a leaf is for QEMU (the others are for the shim).
pub(crate) fn is_vm(leaf: &Path) -> bool {
    leaf.file_name().is_some_and(|name| name == "vm")
}

/// What a task may take of its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share<'a> {
    /// Limit of QEMU's memory.
    pub(crate) memory_bytes: u64,
    /// Weight against other tasks where processors are scarce, in MHz as Nomad counts them; 0 or less: none is set.
    pub(crate) cpu_shares: i64,
    /// The processors that Nomad reserved for the task.
    pub(crate) cpus: &'a [u32],
}

/// Makes the leaves, those that are there stay, and sets what the task may take; false where no group has a memory
/// controller.
pub(crate) fn make(groups: &Groups, share: &Share<'_>) -> Result<bool, CgroupError> {
    for group in &groups.task {
        // Version 2: controllers are handed down one level at a time. A host may lack one, which is found out below.
        for controller in ["+memory", "+cpu"] {
            let _lacking = set_if_there(group, "cgroup.subtree_control", controller);
        }
        if share.cpu_shares > 0 {
            let shares = share.cpu_shares.cast_unsigned();
            set_if_there(group, "cpu.shares", &shares.clamp(SHARES.0, SHARES.1).to_string())?;
            set_if_there(group, "cpu.weight", &weight(shares).to_string())?;
        }
    }
    // Groups of this task alone. On version 1 nothing can join one before it has processors; on version 2 it would have those
    // of all tasks with reserved cores, and whenever these change, kernels before 6.2 forget which thread was pinned where.
    if !share.cpus.is_empty() {
        let list: Vec<String> = share.cpus.iter().map(u32::to_string).collect();
        for group in groups.task.iter().chain(&groups.cpuset) {
            set_if_there(group, "cpuset.cpus", &list.join(","))?;
        }
    }
    let mut limited = false;
    for leaf in &groups.leaves {
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
            limited |= limit_memory(leaf, share.memory_bytes)?;
        }
    }
    Ok(limited)
}

/// Sets a value where a group has one of that name; whether it has.
fn set_if_there(group: &Path, name: &str, value: &str) -> Result<bool, CgroupError> {
    let path = group.join(name);
    if !path.exists() {
        return Ok(false);
    }
    match std::fs::write(&path, value) {
        Ok(()) => Ok(true),
        Err(source) => Err(CgroupError::Set { path, source }),
    }
}

/// Bounds of version 1's `cpu.shares` (the kernel's MIN_SHARES and MAX_SHARES).
const SHARES: (u64, u64) = (2, 262_144);

/// Bounds of version 2's `cpu.weight`.
const WEIGHT: (u64, u64) = (1, 10_000);

/// Version 2's weight for version 1's shares, by the formula of the container runtimes' library that Nomad's own drivers use
/// (opencontainers/cgroups, `ConvertCPUSharesToCgroupV2Value`): tasks of all drivers must be weighed on the same scale.
fn weight(shares: u64) -> u64 {
    if shares <= SHARES.0 {
        return WEIGHT.0;
    }
    if shares >= SHARES.1 {
        return WEIGHT.1;
    }
    let shares = u32::try_from(shares).unwrap_or(u32::MAX);
    let log = f64::from(shares).log2();
    let weight = 10f64.powf((log * log + 125.0 * log) / 612.0 - 7.0 / 34.0).ceil();
    // Counted up, because the bounds are small and a conversion of floating point is not exact by type.
    (WEIGHT.0..=WEIGHT.1)
        .find(|n| u32::try_from(*n).is_ok_and(|n| f64::from(n) >= weight))
        .unwrap_or(WEIGHT.1)
}

/// Version 1 and version 2 have different files, and only the memory controller's group has either.
fn limit_memory(leaf: &Path, bytes: u64) -> Result<bool, CgroupError> {
    let mut limited = false;
    for name in ["memory.limit_in_bytes", "memory.max"] {
        limited |= set_if_there(leaf, name, &bytes.to_string())?;
    }
    // What doesn't fit is not to go to the host's swap instead. Version 1 counts memory and swap together, if it counts swap.
    set_if_there(leaf, "memory.swap.max", "0")?;
    if !set_if_there(leaf, "memory.memsw.limit_in_bytes", &bytes.to_string())? {
        set_if_there(leaf, "memory.swappiness", "0")?;
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
            "cpuset/nomad/reserve/a.vm",
            "memory/nomad/a.vm",
            "freezer/nomad/a.vm",
            "v2/a.vm.scope",
        ] {
            std::fs::create_dir_all(root.join(directory)).unwrap();
        }
        for file in [
            "memory/nomad/a.vm/tasks",
            "freezer/nomad/a.vm/tasks",
            "cpuset/nomad/share/tasks",
            "cpuset/nomad/reserve/a.vm/tasks",
            "cpuset/nomad/reserve/a.vm/cpuset.cpus",
        ] {
            std::fs::write(root.join(file), "").unwrap();
        }
        for file in [
            "cgroup.procs",
            "cgroup.controllers",
            "cgroup.subtree_control",
            "cpu.weight",
            "cpuset.cpus",
        ] {
            std::fs::write(root.join("v2/a.vm.scope").join(file), "").unwrap();
        }
        let path = |tail: &str| root.join(tail).to_str().unwrap().to_owned();
        let v1 = groups(&path("cpuset/nomad/share"), "a", "vm");
        let expected = [
            "freezer/nomad/a.vm/vm",
            "freezer/nomad/a.vm/shim",
            "memory/nomad/a.vm/vm",
            "memory/nomad/a.vm/shim",
        ];
        assert_eq!(v1.leaves, expected.map(|tail| root.join(tail)));
        assert_eq!(v1.cpuset, Some(root.join("cpuset/nomad/share")));
        for nothing in ["", "/does/not/exist", &path("cpuset/nomad/share")] {
            assert_eq!(groups(nothing, "a", "../escape"), Groups::default());
        }

        let share = Share {
            memory_bytes: 1 << 20,
            cpu_shares: 1024,
            cpus: &[],
        };
        // What tasks share is not written to.
        assert!(!make(&v1, &share).unwrap());
        assert!(!root.join("cpuset/nomad/share/cpuset.cpus").exists());
        let reserved = groups(&path("cpuset/nomad/reserve/a.vm"), "a", "vm");
        let two = Share {
            cpus: &[2, 5],
            ..share
        };
        assert!(!make(&reserved, &two).unwrap());
        let cpus = root.join("cpuset/nomad/reserve/a.vm/cpuset.cpus");
        assert_eq!(std::fs::read_to_string(cpus).unwrap(), "2,5");

        let v2 = groups(&path("v2/a.vm.scope"), "a", "vm");
        assert_eq!(
            v2.leaves,
            ["vm", "shim"].map(|leaf| root.join("v2/a.vm.scope").join(leaf))
        );
        assert_eq!(v2.cpuset, None);
        assert!(!make(&v2, &share).unwrap());
        let weight = std::fs::read_to_string(root.join("v2/a.vm.scope/cpu.weight")).unwrap();
        assert_eq!(weight, "100");
        let cpus = root.join("v2/a.vm.scope/cpuset.cpus");
        assert_eq!(std::fs::read_to_string(&cpus).unwrap(), "");
        assert!(!make(&v2, &two).unwrap());
        assert_eq!(std::fs::read_to_string(&cpus).unwrap(), "2,5");
        std::fs::write(v2.leaves[0].join("memory.max"), "max\n").unwrap();
        assert!(make(&v2, &share).unwrap());
        let limit = std::fs::read_to_string(v2.leaves[0].join("memory.max")).unwrap();
        assert_eq!(limit, "1048576");
        std::fs::remove_file(v2.leaves[0].join("memory.max")).unwrap();
        assert!(v2.leaves[0].is_dir());
        remove(&v2.leaves).unwrap();
        remove(&v2.leaves).unwrap();
        assert!(!v2.leaves[0].exists());
    }

    #[test]
    fn shares_become_weights_as_for_nomads_own_drivers() {
        // Fixed points of the formula: the least, the default, the most.
        for (shares, expected) in [(0, 1), (2, 1), (1024, 100), (262_144, 10_000), (u64::MAX, 10_000)] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
        let all: Vec<u64> = (1..18).map(|bit| weight(1 << bit)).collect();
        assert!(all.is_sorted(), "{all:?}");
    }
}
