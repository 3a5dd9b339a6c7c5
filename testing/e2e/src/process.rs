//! Which processes are there, and how is one of them ended?

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal};

/// A process as /proc shows it.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) parent: u32,
    /// Its program, empty where that can't be read.
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
}

impl Process {
    /// The file name of its program; a program that was replaced or removed keeps its name.
    pub(crate) fn name(&self) -> &str {
        let name = self
            .program
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        name.strip_suffix(" (deleted)").unwrap_or(name)
    }

    /// Whether it runs the file that has this path now, and not one that had it before.
    pub(crate) fn runs(&self, file: &Path) -> bool {
        let identity = |path: &Path| std::fs::metadata(path).ok().map(|data| (data.dev(), data.ino()));
        let own = identity(Path::new(&format!("/proc/{}/exe", self.pid)));
        own.is_some() && own == identity(file)
    }

    /// The value of a variable in the environment it was started with.
    pub(crate) fn variable(&self, name: &str) -> Option<String> {
        let environment = std::fs::read(format!("/proc/{}/environ", self.pid)).ok()?;
        environment.split(|byte| *byte == 0).find_map(|entry| {
            let entry = String::from_utf8_lossy(entry);
            Some(entry.strip_prefix(name)?.strip_prefix('=')?.to_owned())
        })
    }

    /// Whether it holds this file open.
    pub(crate) fn holds(&self, file: &Path) -> bool {
        let links = std::fs::read_dir(format!("/proc/{}/fd", self.pid));
        let mut links = links.into_iter().flatten().flatten();
        links.any(|link| std::fs::read_link(link.path()).is_ok_and(|target| target == file))
    }
}

/// One process; `None` if it is gone or a zombie.
pub(crate) fn one(pid: u32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may itself have brackets and spaces.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    let parent = fields.next()?.parse().ok()?;
    let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let arguments = String::from_utf8_lossy(arguments.strip_suffix(&[0]).unwrap_or(&arguments))
        .split('\0')
        .map(str::to_owned)
        .collect();
    Some(Process {
        pid,
        parent,
        program,
        arguments,
    })
}

/// All processes but zombies, in the order of their ids.
pub(crate) fn all() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids: BTreeSet<u32> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.into_iter().filter_map(one).collect()
}

/// Those processes, their children, the children's children and so on.
pub(crate) fn with_descendants(roots: impl IntoIterator<Item = u32>, among: &[Process]) -> BTreeSet<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for process in among {
        children.entry(process.parent).or_default().push(process.pid);
    }
    let mut found = BTreeSet::new();
    let mut open: Vec<u32> = roots.into_iter().collect();
    while let Some(pid) = open.pop() {
        if found.insert(pid) {
            open.extend(children.get(&pid).into_iter().flatten());
        }
    }
    found
}

/// Sends a signal; whether there was a process to get it.
pub(crate) fn signal(pid: u32, signal: Signal) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::kill_process(pid, signal).is_ok())
}

/// Sends a signal to every process of a group; whether there was one to get it.
pub(crate) fn signal_group(leader: u32, signal: Signal) -> bool {
    let group = i32::try_from(leader).ok().and_then(Pid::from_raw);
    group.is_some_and(|group| rustix::process::kill_process_group(group, signal).is_ok())
}

/// Number of open descriptors of a process.
pub(crate) fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// The ids of a process's threads.
pub(crate) fn threads(pid: u32) -> Vec<u32> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/task"));
    let entries = entries.into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// What the kernel says of one of its threads, by name; nothing of a thread that is gone.
pub(crate) fn status(pid: u32, thread: u32) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/status")).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect()
}

/// The control groups in which a process is, one for each controller on version 1.
pub(crate) fn groups(pid: u32) -> BTreeSet<PathBuf> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let root = Path::new("/sys/fs/cgroup");
    let mut groups = BTreeSet::new();
    for line in text.lines() {
        // cgroups(7): number, controllers, path; version 2 has no controllers here.
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        for controller in controllers.split(',') {
            groups.insert(root.join(controller).join(path.trim_start_matches('/')));
        }
    }
    groups
}
