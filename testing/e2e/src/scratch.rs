//! Where does a run keep everything of its own, and how is all of it taken away whatever happens?
//!
//! Every process of a run carries the scratch folder in its environment ([`MARK`]), runs a program from it, or descends
//! from one that does. A watching process, in a group of its own, sweeps when the run's process is gone, even if it was killed.

use std::fs::Permissions;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::mount::UnmountFlags;
use rustix::process::Signal;

use crate::{host, process, wait};

/// What the name of each scratch folder begins with.
const PREFIX: &str = "steppe-";

/// Variable in the environment of each agent and thereby of what it starts; its value begins with the scratch folder.
pub(crate) const MARK: &str = "STEPPE_E2E";

/// The argument that makes this program the watching process.
pub(crate) const WATCH: &str = "--sweep-when-stdin-ends";

/// Short, because the plugin's `run_dir` beneath it has 30 bytes.
const PARENT: &str = "/tmp";

/// How long killed processes may take to be gone.
const SWEEP_LIMIT: Duration = Duration::from_secs(10);

/// The folder, with the process that watches over it.
#[derive(Debug)]
pub(crate) struct Scratch {
    directory: PathBuf,
    suite: &'static str,
    watcher: Child,
}

impl Scratch {
    /// For a suite, after which the folder of its logs is named.
    pub(crate) fn new(suite: &'static str) -> Self {
        let directory = tempfile::Builder::new()
            .prefix(PREFIX)
            // Unprivileged QEMUs look for their programs in it.
            .permissions(Permissions::from_mode(0o755))
            .tempdir_in(PARENT)
            .expect("a folder can be made in /tmp")
            .keep();
        let watcher = Command::new(std::env::current_exe().expect("this program has a path"))
            .args([WATCH, suite])
            .arg(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("this program can start itself");
        Self {
            directory,
            suite,
            watcher,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        sweep(&self.directory, self.suite, self.watcher.id());
        drop(self.watcher.stdin.take());
        drop(self.watcher.wait());
    }
}

/// The watching process: waits for the end of whoever holds its standard input, then sweeps.
pub(crate) fn watch(suite: &str, directory: &Path) {
    let _length = std::io::stdin().read_to_end(&mut Vec::new());
    sweep(directory, suite, 0);
}

/// Whether this process belongs to the run with that scratch folder.
pub(crate) fn owns(directory: &Path, candidate: &process::Process) -> bool {
    candidate.program.starts_with(directory)
        || candidate
            .variable(MARK)
            .is_some_and(|value| Path::new(&value).starts_with(directory))
}

fn sweep(directory: &Path, suite: &str, watcher: u32) {
    if !directory.exists() {
        return;
    }
    let _left = wait::try_until(SWEEP_LIMIT, || {
        let all = process::all();
        let roots = all
            .iter()
            .filter(|process| owns(directory, process))
            .map(|process| process.pid);
        let mut found = process::with_descendants(roots, &all);
        found.remove(&std::process::id());
        found.remove(&watcher);
        // A QEMU that has lost its shim has nothing of ours about it but its groups.
        for group in host::task_groups(directory).iter().chain(&parts(directory)) {
            found.extend(members(group));
        }
        for pid in &found {
            process::signal(*pid, Signal::KILL);
        }
        if found.is_empty() {
            Ok(())
        } else {
            Err("processes remain".to_owned())
        }
    });
    for mount in host::mounts_beneath(directory) {
        let _ = rustix::mount::unmount(&mount, UnmountFlags::DETACH);
    }
    for group in host::task_groups(directory).iter().chain(&parts(directory)) {
        remove_groups(group);
    }
    keep_logs(directory, suite);
    if std::env::var_os("STEPPE_KEEP").is_none() {
        drop(std::fs::remove_dir_all(directory));
    }
}

/// The name of the control groups that are the root ones of a host of the run's own.
pub(crate) fn part(directory: &Path, host: &str) -> String {
    let run = directory.file_name().unwrap_or_default();
    format!("{}.{host}", run.to_string_lossy())
}

/// Whether a control group is named like those of some run's hosts.
pub(crate) fn is_part(group: &Path) -> bool {
    let name = group.file_name().unwrap_or_default();
    name.to_string_lossy().starts_with(PREFIX)
}

/// Those of this run's hosts: at the root on version 2, one for each hierarchy on version 1.
fn parts(directory: &Path) -> Vec<PathBuf> {
    let folders = |path: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let roots = folders(Path::new("/sys/fs/cgroup"));
    let beneath = roots
        .iter()
        .filter(|root| !root.is_symlink())
        .flat_map(|root| folders(root));
    let (all, name): (Vec<PathBuf>, String) = (
        beneath.chain(roots.iter().cloned()).collect(),
        part(directory, ""),
    );
    let is_own = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|own| own.to_string_lossy().starts_with(&name))
    };
    all.into_iter().filter(is_own).collect()
}

/// The processes in a control group and beneath it.
fn members(group: &Path) -> Vec<u32> {
    let own = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<u32> = own.lines().filter_map(|line| line.parse().ok()).collect();
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pids.extend(members(&entry.path()));
        }
    }
    pids
}

/// Control groups go from the inside out; a process that was killed a moment ago may still be counted.
pub(crate) fn remove_groups(group: &Path) {
    for entry in std::fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    let remove = || std::fs::remove_dir(group).map_err(|error| error.to_string());
    drop(wait::try_until(Duration::from_secs(1), remove));
}

/// The tree's folder for what a run leaves to be read.
pub(crate) fn output() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target")
}

fn keep_logs(directory: &Path, suite: &str) {
    let kept = output().join("logs").join(suite);
    drop(std::fs::remove_dir_all(&kept));
    drop(std::fs::create_dir_all(&kept));
    for agent in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        for log in [
            "agent.log",
            "netd.log",
            "state/log/plugin.log",
            "state/log/shim.log",
        ] {
            let name = Path::new(log).file_name().unwrap_or_default().to_string_lossy();
            let to = kept.join(format!("{}-{name}", agent.file_name().to_string_lossy()));
            drop(std::fs::copy(agent.path().join(log), to));
        }
    }
}
