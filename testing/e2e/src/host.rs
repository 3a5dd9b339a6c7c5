//! What of ours is on this host right now?

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::agent::Client;
use crate::process;
use crate::scratch;

/// Everything that a driver may leave behind, one line for each thing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Looks at what belongs to a client's driver, and at its host's links and mounts.
    ///
    /// Of Nomad's own things, the folders, mounts and control groups of allocations that its garbage collection removes,
    /// nothing is listed.
    pub(crate) fn of(client: &Client) -> Self {
        let mut lines = BTreeSet::new();
        for vm in vms(client) {
            lines.insert(format!("process microvm-shim {} of task {}", vm.shim, vm.key));
            for pid in vm.others {
                let name = process::one(pid).map_or_else(String::new, |process| process.name().to_owned());
                lines.insert(format!("process {name} {pid} of task {}", vm.key));
            }
        }
        for place in [client.state_dir().join("tasks"), client.run_dir()] {
            beneath(&place, &mut |path| {
                // A lease is a link whose target names its owner.
                let owner = std::fs::read_link(path).unwrap_or_default();
                lines.insert(
                    format!("file {} {}", path.display(), owner.display())
                        .trim_end()
                        .to_owned(),
                );
            });
        }
        for group in task_groups(client.directory()) {
            beneath(&group, &mut |path| {
                if path.is_dir() {
                    lines.insert(format!("control group {}", path.display()));
                }
            });
        }
        for link in client.links() {
            lines.insert(format!("link {link}"));
        }
        // Nomad mounts small file systems into the folder of an allocation; other agents may be at work on this host.
        let is_nomads = |mount: &Path| mount.to_string_lossy().contains("/alloc/");
        // Another check may mount something for a client of its own, in its folder beside ours.
        let (own, all) = (client.directory(), client.directory().parent());
        let is_anothers =
            |mount: &Path| all.is_some_and(|all| mount.starts_with(all)) && !mount.starts_with(own);
        for mount in mounts().filter(|mount| !is_nomads(mount) && !is_anothers(mount)) {
            lines.insert(format!("mount {}", mount.display()));
        }
        Self(lines)
    }

    /// What is here and was not there before.
    pub(crate) fn since(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }

    /// What is here of one allocation.
    pub(crate) fn about(&self, allocation: &str) -> Vec<String> {
        self.0
            .iter()
            .filter(|line| line.contains(allocation))
            .cloned()
            .collect()
    }
}

/// What a client's driver has on this host that is there for tasks: nothing, if it has none.
pub(crate) fn leavings(client: &Client) -> Vec<String> {
    let run_dir = client.run_dir();
    // The folders of the leases and of each driver instance are made once and stay.
    let stays = |line: &str| {
        let path = line.strip_prefix("file ").map(Path::new);
        path.is_some_and(|path| path.parent() == Some(&run_dir) && path.is_dir())
    };
    let Snapshot(lines) = Snapshot::of(client);
    lines
        .into_iter()
        .filter(|line| !line.starts_with("link ") && !line.starts_with("mount ") && !stays(line))
        .collect()
}

fn beneath(directory: &Path, see: &mut impl FnMut(&Path)) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        see(&entry.path());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            beneath(&entry.path(), see);
        }
    }
}

/// A VM that runs: its shim, which was started for a task of this key, and what descends from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Vm {
    pub(crate) key: String,
    pub(crate) shim: u32,
    pub(crate) others: Vec<u32>,
}

impl Vm {
    /// QEMU's process id: the descendant of the shim that is no shim.
    pub(crate) fn qemu(&self) -> Option<u32> {
        self.others
            .iter()
            .copied()
            .find(|pid| process::one(*pid).is_some_and(|process| process.name() != SHIM))
    }

    /// The supervisor's process id: the descendant of the shim that is one.
    pub(crate) fn supervisor(&self) -> Option<u32> {
        self.others
            .iter()
            .copied()
            .find(|pid| process::one(*pid).is_some_and(|process| process.name() == SHIM))
    }

    /// The folder of its record.
    pub(crate) fn directory(&self, client: &Client) -> PathBuf {
        client.state_dir().join("tasks").join(&self.key)
    }

    /// Where its shim listens.
    pub(crate) fn control(&self, client: &Client) -> PathBuf {
        let run = self.step(client, "run-directory");
        Path::new(run["path"].as_str().expect("the record names it")).join("control.sock")
    }

    /// The control group in which QEMU's memory is limited.
    pub(crate) fn memory_group(&self, client: &Client) -> PathBuf {
        let step = self.step(client, "cgroups");
        let leaves = step["leaves"].as_array().cloned().unwrap_or_default();
        leaves
            .iter()
            .filter_map(|leaf| leaf.as_str().map(PathBuf::from))
            .find(|leaf| leaf.ends_with("vm") && memory_files(leaf).is_some())
            .expect("Nomad made a memory group for the task")
    }

    /// A step of its record.
    fn step(&self, client: &Client, name: &str) -> Value {
        let record = self.directory(client).join("record");
        let text =
            std::fs::read_to_string(&record).unwrap_or_else(|error| panic!("{}: {error}", record.display()));
        text.lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(|line| line["step"] == name)
            .unwrap_or_else(|| panic!("no step {name}:\n{text}"))
    }
}

/// The files of a memory group, if it is one: what is used, and how much may be.
pub(crate) fn memory_files(group: &Path) -> Option<[PathBuf; 2]> {
    let versions = [
        ["memory.usage_in_bytes", "memory.limit_in_bytes"],
        ["memory.current", "memory.max"],
    ];
    versions
        .map(|names| names.map(|name| group.join(name)))
        .into_iter()
        .find(|files| files.iter().all(|file| file.exists()))
}

/// What the shim's program is called.
pub(crate) const SHIM: &str = "microvm-shim";

/// The VMs of a client's driver, found by the record folder in their shims' arguments.
pub(crate) fn vms(client: &Client) -> Vec<Vm> {
    let tasks = client.state_dir().join("tasks");
    let all = process::all();
    let monitors = all
        .iter()
        .filter(|process| process.name() == SHIM)
        .filter_map(|process| {
            // The supervisor is forked from the monitor and has the same arguments.
            let is_fork = all
                .iter()
                .any(|other| other.pid == process.parent && other.name() == SHIM);
            let record = process
                .arguments
                .iter()
                .skip_while(|word| *word != "--record")
                .nth(1)?;
            let key = Path::new(record).strip_prefix(&tasks).ok()?.to_str()?.to_owned();
            (!is_fork).then_some((key, process.pid))
        });
    monitors
        .map(|(key, shim)| {
            let mut others = process::with_descendants([shim], &all);
            others.remove(&shim);
            Vm {
                key,
                shim,
                others: others.into_iter().collect(),
            }
        })
        .collect()
}

fn mounts() -> impl Iterator<Item = PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let places: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| Some(PathBuf::from(line.split(' ').nth(4)?.replace("\\040", " "))))
        .collect();
    places.into_iter()
}

/// Mounts beneath a folder, the innermost first.
pub(crate) fn mounts_beneath(directory: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = mounts().filter(|mount| mount.starts_with(directory)).collect();
    found.reverse();
    found
}

/// The control groups that Nomad made for tasks whose allocation has its folder somewhere beneath this one.
pub(crate) fn task_groups(directory: &Path) -> Vec<PathBuf> {
    let subdirectories = |path: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect()
    };
    // <directory>/data/alloc/<id> for a client's folder, <directory>/<client>/data/alloc/<id> for the whole run's.
    let clients = subdirectories(directory)
        .into_iter()
        .chain([directory.to_owned()]);
    let allocations: Vec<String> = clients
        .flat_map(|client| subdirectories(&client.join("data/alloc")))
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .collect();
    let root = Path::new("/sys/fs/cgroup");
    // Version 2 has nomad.slice at the root, version 1 a folder nomad for each controller; and so has the part of each host of
    // a run's own.
    let controllers = subdirectories(root);
    let hosts = controllers
        .iter()
        .flat_map(|controller| subdirectories(controller));
    let hosts = hosts.chain(controllers.iter().cloned());
    let hosts: Vec<PathBuf> = hosts.filter(|path| scratch::is_part(path)).collect();
    let roots = controllers.into_iter().chain(hosts).chain([root.to_owned()]);
    let parents = roots
        .flat_map(|root| ["nomad", "nomad.slice"].map(|name| root.join(name)))
        .flat_map(|parent| {
            ["", "share", "reserve", "share.slice", "reserve.slice"].map(|part| parent.join(part))
        });
    let groups = parents.flat_map(|parent| subdirectories(&parent));
    groups
        .filter(|group| {
            let name = group
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            allocations.iter().any(|id| name.starts_with(id.as_str()))
        })
        .collect()
}
