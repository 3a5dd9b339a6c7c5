//! What exactly is the shim told to do?
//!
//! A launch plan is a value that can be printed, stored and run again by hand (`microvm-shim run plan.json`). It names
//! the program, its arguments, the descriptors to open for it, its limits and its user. The shim makes no choices.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::interface::is_tap_name;

/// Version written into new plans. Version 2 added [`LaunchPlan::ready`]; version 3 [`LaunchPlan::cpus`],
/// [`LaunchPlan::isolation`] and two limits; version 4 [`Source::Tap`] and [`Source::Joined`].
pub const PLAN_VERSION: u32 = 4;

/// The version from which on a plan must say what its program is kept from.
const ISOLATION_VERSION: u32 = 3;

/// Oldest version that is read.
pub const PLAN_VERSION_MIN: u32 = 1;

/// Everything needed to start one hypervisor process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaunchPlan {
    /// [`PLAN_VERSION`].
    pub version: u32,
    /// Who the process is for: `<alloc id>.<task name>`, shown in messages only.
    pub owner: String,
    /// How the machine begins.
    pub start: Start,
    /// Absolute path of the program.
    pub program: PathBuf,
    /// Arguments after the program's name.
    pub arguments: Vec<String>,
    /// Descriptors the program inherits besides 0, 1 and 2.
    pub descriptors: Vec<Descriptor>,
    /// Resource limits set before the program runs.
    pub limits: Limits,
    /// User id of the program.
    pub uid: u32,
    /// Group id of the program; it has no supplementary groups.
    pub gid: u32,
    /// What the guest must show to count as ready; nothing where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<Ready>,
    /// The host's processors that the program may use: virtual processor n runs on the n-th of them and nowhere else, every
    /// other thread on any of them. Empty: on all that its control group allows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<u32>,
    /// What the program is kept from, besides what its user may not do. Absent in plans of versions 1 and 2: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
}

/// What a program is kept from. Each part is done or the start fails: whether a host can do it was decided before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Isolation {
    /// Own mount, IPC and host name namespaces, an own root directory, and the network namespace that `network` says
    /// (unshare(2), pivot_root(2)).
    pub namespaces: bool,
    /// The kernel refuses every file but those of `root` and the plan's own, and what else its version of Landlock knows
    /// (landlock(7)).
    pub landlock: bool,
    /// The kernel refuses system calls that the program never needs (seccomp(2)).
    pub seccomp: bool,
    /// Which network the program itself has. A guest's network cards don't need one.
    pub network: Network,
    /// What there is of the host's files. Nothing else is, and nothing of it can be written.
    pub root: Vec<Visible>,
}

/// What a kernel can keep a program from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// Whether the namespaces of [`Isolation::namespaces`] can be made.
    pub namespaces: bool,
    /// Version of Landlock's interface, 0 where there is none.
    pub landlock_abi: u32,
    /// Whether system calls can be refused.
    pub seccomp: bool,
}

impl Kernel {
    /// What it can't do, in words; empty where nothing is missing.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        [
            (self.namespaces, "namespaces"),
            (self.landlock_abi > 0, "Landlock"),
            (self.seccomp, "seccomp"),
        ]
        .into_iter()
        .filter_map(|(there, name)| (!there).then_some(name))
        .collect()
    }
}

/// The network of the program itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// None: an empty network namespace, and no sockets.
    None,
    /// The host's, to be connected to by TCP over IPv4: QEMU's user-mode network needs it for forwarded ports.
    Tcp,
    /// The same, and UDP over IPv4, where a port of it is forwarded: who may answer there may send anywhere.
    Host,
}

/// One thing of the host's file tree that a program sees at the same place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Visible {
    /// A file, or a directory with all in it: for reading.
    Read(PathBuf),
    /// The same, for reading and executing.
    Execute(PathBuf),
    /// A device, for reading and writing.
    Device(PathBuf),
    /// A symbolic link.
    Link {
        /// Where it is.
        path: PathBuf,
        /// What it says.
        target: PathBuf,
    },
}

impl Visible {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Read(path) | Self::Execute(path) | Self::Device(path) | Self::Link { path, .. } => path,
        }
    }
}

/// What the guest must show on its console, and by when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    /// The text, within one line.
    pub pattern: String,
    /// Milliseconds from the guest's first instruction.
    pub timeout_ms: u64,
}

/// How a machine begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// From its kernel, paused before the first instruction until it is told to continue.
    Boot,
}

/// One inherited descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Descriptor {
    /// Number in the new process, 3 or more.
    pub number: i32,
    /// What it is for, in messages.
    pub name: String,
    /// What is opened.
    pub source: Source,
}

/// What a descriptor refers to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Source {
    /// One end of the shim's QMP connection.
    Qmp,
    /// One end of the shim's serial console.
    Console,
    /// A file, found without leaving a directory.
    File {
        /// The directory that resolution may not leave, not even through a symbolic link.
        beneath: PathBuf,
        /// Relative path of the file.
        path: PathBuf,
        /// What the program may do with it.
        access: Access,
    },
    /// Files one behind the other, as the kernel takes several archives for one initrd: each begins at a multiple of four bytes,
    /// with zeros before it. A copy in memory, for reading.
    Joined {
        /// In their order.
        files: Vec<Place>,
    },
    /// A queue of a tap device that is there and belongs to the program's user.
    Tap {
        /// The device's name.
        name: String,
        /// Whether it was made with several queues: then it is opened once for each, else once.
        multi_queue: bool,
    },
}

/// Where a file is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// The directory that resolution may not leave, not even through a symbolic link.
    pub beneath: PathBuf,
    /// Relative path of the file.
    pub path: PathBuf,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} beneath {}", self.path.display(), self.beneath.display())
    }
}

/// What may be done with an opened file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Reading only. The program opens it once more through `/dev/fd`, so its user must be able to read it; a file
    /// that it cannot read is copied into sealed memory first.
    Load,
    /// Reading through the descriptor only.
    Read,
    /// Reading and writing.
    ReadWrite,
}

/// Resource limits of the hypervisor process (setrlimit(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Largest core file in bytes. 1: guest memory never reaches the host's disk. 0 would forbid files only; the kernel hands a
    /// core to a program of the host's (core(5), a pattern that begins with a pipe) unless the limit is just 1.
    pub core_bytes: u64,
    /// Largest number of open files.
    pub open_files: u64,
    /// Largest number of processes and threads of the (unique) user id.
    pub processes: u64,
    /// Largest size in bytes to which a file may be written: no disk grows beyond the largest that its guest was given. Absent: no
    /// limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_bytes: Option<u64>,
    /// Most bytes kept from being swapped out. Absent in plans of versions 1 and 2: the host's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locked_bytes: Option<u64>,
}

impl Default for Limits {
    /// QEMU with its full device set was seen with 87 descriptors and 5 threads; each virtio disk may add up to 64
    /// threads of its I/O pool.
    fn default() -> Self {
        Self {
            core_bytes: 1,
            open_files: 1024,
            processes: 512,
            file_bytes: None,
            locked_bytes: Some(0),
        }
    }
}

/// Why a plan cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The text is not a plan.
    #[error("the launch plan is not readable")]
    Syntax(#[source] serde_json::Error),
    /// Another release wrote it.
    #[error(
        "the launch plan has version {0}, this program reads versions {PLAN_VERSION_MIN} to {PLAN_VERSION}: install plugin \
         and shim of the same release"
    )]
    Version(u32),
    /// A descriptor number is used twice, is below 3 or above [`DESCRIPTOR_NUMBER_MAX`].
    #[error("the launch plan gives descriptor {0} twice or outside 3 to {DESCRIPTOR_NUMBER_MAX}")]
    Descriptor(i32),
    /// A plan must name exactly one QMP and one console descriptor.
    #[error("the launch plan must name exactly one qmp and one console descriptor")]
    Channels,
    /// QEMU must not run as root.
    #[error("the launch plan would run the program as root")]
    Root,
    /// A plan of today says what the program is kept from, be it nothing.
    #[error("the launch plan does not say what the program is kept from")]
    Isolation,
    /// A path of the program's root is not absolute, or leads upwards.
    #[error(
        "the launch plan puts {0:?} into the program's root, which is not an absolute path without \"..\""
    )]
    Visible(PathBuf),
    /// A name that no tap device has.
    #[error("the launch plan names a tap device {0:?}, which is no name of one")]
    Tap(String),
    /// A processor is named twice, or more than [`CPU_MAX`].
    #[error("the launch plan names processor {0} twice, or it is more than {CPU_MAX}")]
    Cpu(u32),
}

/// Highest processor number a plan may name: what a `cpu_set_t` has bits for, less one.
pub const CPU_MAX: u32 = 1023;

/// Highest descriptor number a plan may name, which is more than 22 network interfaces with 8 queues each need: the shim keeps
/// its own copies above it while it arranges them.
pub const DESCRIPTOR_NUMBER_MAX: i32 = 255;

impl LaunchPlan {
    /// Reads a plan from its JSON text and checks it.
    ///
    /// # Errors
    /// [`PlanError`] says what is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Self, PlanError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_slice(text).map_err(PlanError::Syntax)?;
        if !(PLAN_VERSION_MIN..=PLAN_VERSION).contains(&version) {
            return Err(PlanError::Version(version));
        }
        let plan: Self = serde_json::from_slice(text).map_err(PlanError::Syntax)?;
        let mut seen = [false; 256];
        for descriptor in &plan.descriptors {
            let slot = usize::try_from(descriptor.number)
                .ok()
                .filter(|n| *n >= 3)
                .and_then(|n| seen.get_mut(n));
            match slot {
                Some(used) if !*used => *used = true,
                _ => return Err(PlanError::Descriptor(descriptor.number)),
            }
            if let Source::Tap { name, .. } = &descriptor.source
                && !is_tap_name(name)
            {
                return Err(PlanError::Tap(name.clone()));
            }
        }
        let count = |wanted: &Source| plan.descriptors.iter().filter(|d| d.source == *wanted).count();
        if count(&Source::Qmp) != 1 || count(&Source::Console) != 1 {
            return Err(PlanError::Channels);
        }
        if plan.uid == 0 || plan.gid == 0 {
            return Err(PlanError::Root);
        }
        if plan.isolation.is_none() && plan.version >= ISOLATION_VERSION {
            return Err(PlanError::Isolation);
        }
        let visible = plan.isolation.iter().flat_map(|isolation| &isolation.root);
        if let Some(wrong) = visible.map(Visible::path).find(|path| !is_plain(path)) {
            return Err(PlanError::Visible(wrong.to_owned()));
        }
        let twice = |(index, cpu): &(usize, &u32)| **cpu > CPU_MAX || plan.cpus[..*index].contains(cpu);
        if let Some((_, cpu)) = plan.cpus.iter().enumerate().find(twice) {
            return Err(PlanError::Cpu(*cpu));
        }
        Ok(plan)
    }

    /// The plan as indented JSON text, one line per argument.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

/// Whether a path is absolute, leads nowhere but down, and is not the root itself.
fn is_plain(path: &Path) -> bool {
    let mut parts = path.components();
    parts.next() == Some(Component::RootDir)
        && parts.clone().next().is_some()
        && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// The plan as a person reads it: the command, then what is opened for it.
impl fmt::Display for LaunchPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} (uid {} gid {})",
            self.program.display(),
            self.uid,
            self.gid
        )?;
        for argument in &self.arguments {
            writeln!(f, "  {argument}")?;
        }
        for descriptor in &self.descriptors {
            write!(f, "fd {} {}: ", descriptor.number, descriptor.name)?;
            match &descriptor.source {
                Source::Qmp => writeln!(f, "QMP")?,
                Source::Console => writeln!(f, "console")?,
                Source::File {
                    beneath,
                    path,
                    access,
                } => {
                    writeln!(f, "{access:?} {} beneath {}", path.display(), beneath.display())?;
                }
                Source::Joined { files } => {
                    let files: Vec<String> = files.iter().map(Place::to_string).collect();
                    writeln!(f, "{}", files.join(", then "))?;
                }
                Source::Tap { name, multi_queue } => {
                    let of = if *multi_queue { "a queue of tap" } else { "tap" };
                    writeln!(f, "{of} {name}")?;
                }
            }
        }
        if let Some(ready) = &self.ready {
            writeln!(
                f,
                "ready: console shows {:?} within {} ms",
                ready.pattern, ready.timeout_ms
            )?;
        }
        if !self.cpus.is_empty() {
            writeln!(f, "processors {:?}", self.cpus)?;
        }
        let Some(isolation) = &self.isolation else {
            return writeln!(f, "not isolated");
        };
        let done = |name: &str, done: bool| format!("{}{name}", if done { "" } else { "no " });
        writeln!(
            f,
            "{}, {}, {}, network {:?}",
            done("namespaces", isolation.namespaces),
            done("landlock", isolation.landlock),
            done("seccomp", isolation.seccomp),
            isolation.network
        )?;
        for visible in &isolation.root {
            match visible {
                Visible::Read(path) => writeln!(f, "read {}", path.display())?,
                Visible::Execute(path) => writeln!(f, "execute {}", path.display())?,
                Visible::Device(path) => writeln!(f, "device {}", path.display())?,
                Visible::Link { path, target } => {
                    writeln!(f, "link {} -> {}", path.display(), target.display())?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files as each version wrote them: a plan that is on a host today is shown, and run by hand, tomorrow.
    #[test]
    fn fixtures_of_each_version_are_read() {
        let texts = [
            include_str!("fixtures/plan.v1.json"),
            include_str!("fixtures/plan.v2.json"),
            include_str!("fixtures/plan.v3.json"),
            include_str!("fixtures/plan.v4.json"),
        ];
        let plans = texts.map(|text| LaunchPlan::parse(text.as_bytes()).unwrap());
        for (plan, version) in plans.iter().zip(1..) {
            assert_eq!(plan.version, version);
            assert_eq!(plan.ready.is_some(), version >= 2);
            assert_eq!(plan.isolation.is_some(), version >= ISOLATION_VERSION);
            let has_tap = |descriptor: &Descriptor| matches!(descriptor.source, Source::Tap { .. });
            assert_eq!(plan.descriptors.iter().any(has_tap), version >= 4);
        }
        assert_eq!(plans[3].to_json() + "\n", texts[3], "what is written today");
    }

    #[test]
    fn what_can_not_be_run_is_refused() {
        let text = include_str!("fixtures/plan.v4.json");
        let refused = |from: &str, to: &str| {
            assert!(text.contains(from), "{from}");
            let error = LaunchPlan::parse(text.replace(from, to).as_bytes()).unwrap_err();
            crate::error::chain(&error)
        };
        for (from, to, wanted) in [
            ("\"version\": 4", "\"version\": 5", "versions 1 to 4"),
            ("\"version\": 4", "\"version\": 0", "versions 1 to 4"),
            ("ndtabcdefghij", "../ndtabcdefgh", "no name of one"),
            ("ndtabcdefghij", "", "no name of one"),
            ("\"number\": 4,", "\"number\": 3,", "descriptor 3 twice"),
            ("\"number\": 4,", "\"number\": 256,", "descriptor 256"),
            ("\"uid\": 1900000000", "\"uid\": 0", "as root"),
            ("\"multi_queue\"", "\"vhost\"", "unknown field `vhost`"),
        ] {
            let refused = refused(from, to);
            assert!(refused.contains(wanted), "{wanted}: {refused}");
        }
    }
}
