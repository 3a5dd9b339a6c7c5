//! What may a task ask for, and is this request one that can be carried out?
//!
//! [`check`] is the only way to a [`Vm`]. It is given everything it needs as values (the request, what Nomad allocated,
//! what the host offers) and answers with the machine or with one sentence that names key, value and remedy.

mod networks;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;

pub use networks::NetworkError;

use crate::lease::Lease;
use crate::plan::CPU_MAX;
use crate::vm::{Accelerator, Disk, DiskFormat, FileName, FileRoot, Machine, Mib, Nic, Ready, Reboot, Vm};

/// Smallest guest memory accepted: Debian's kernels were seen to need 64 MiB and more to reach user space.
pub const MEMORY_MIN_MIB: Mib = 64;

/// Largest guest memory accepted, the microvm machine's address space being the limit: 1 TiB.
pub const MEMORY_MAX_MIB: Mib = 1 << 20;

/// Guest memory with which a microvm never boots (the RAM ends exactly where its 32-bit hole begins).
pub const MEMORY_BROKEN_MIB: Mib = 2048;

/// Longest kernel command line in bytes: x86's `COMMAND_LINE_SIZE` (2048) less the final NUL.
pub const CMDLINE_MAX_BYTES: usize = 2047;

/// virtio-mmio slots of a microvm with its second I/O APIC: 24 fit, QEMU refuses the 25th.
pub const MMIO_SLOTS: usize = 24;

/// Slots that no disk or network can have: the random number generator's, and slot 0, whose interrupts don't reach the
/// guest (seen with QEMU 7.2 and Debian's 6.1: a network card there receives nothing, in slots 1 to 9 it works).
pub const MMIO_SLOTS_OURS: usize = 2;

/// Longest disk name: virtio-blk's serial number holds 20 bytes.
pub const DISK_NAME_MAX: usize = 20;

/// Most virtual processors of one machine (QEMU's microvm limit).
pub const VCPUS_MAX: usize = 288;

/// Longest path a job may name, in bytes.
pub const PATH_MAX_BYTES: usize = 1024;

/// Longest text that a console may be watched for, in bytes.
pub const READY_PATTERN_MAX_BYTES: usize = 256;

/// How long a guest may take to be ready where the job doesn't say.
pub const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// Bounds of what the job may say. Nomad can't cancel a start that is under way, so it must end by itself.
pub const READY_TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// See [`READY_TIMEOUT_MIN`].
pub const READY_TIMEOUT_MAX: Duration = Duration::from_secs(300);

/// The one network that netd has nothing to do with: QEMU's own.
pub const USER_NETWORK: &str = "user";

/// What a task's `config` block says, decoded but not checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spec {
    /// `machine`; absent means `microvm`.
    pub machine: Option<String>,
    /// `kernel`.
    pub kernel: String,
    /// `initrd`.
    pub initrd: Option<String>,
    /// `cmdline`.
    pub cmdline: Option<String>,
    /// `accelerator`; absent means `auto`.
    pub accelerator: Option<String>,
    /// `disk` blocks in order.
    pub disks: Vec<DiskSpec>,
    /// `network` blocks in order.
    pub networks: Vec<NetworkSpec>,
    /// `identity`; absent means `job`.
    pub identity: Option<String>,
    /// `reboot`; absent means `reset`.
    pub reboot: Option<String>,
    /// `ready`; absent means `none`.
    pub ready: Option<String>,
    /// `ready_pattern`.
    pub ready_pattern: Option<String>,
    /// `ready_timeout`; absent means [`READY_TIMEOUT`].
    pub ready_timeout: Option<String>,
}

/// A `disk` block.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskSpec {
    /// `name`.
    pub name: String,
    /// `file`.
    pub file: String,
    /// `format`.
    pub format: String,
    /// `read_only`.
    pub read_only: bool,
}

/// A `network` block.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkSpec {
    /// `name`.
    pub name: String,
    /// `ports`: labels of Nomad's ports, each with an optional `/tcp` or `/udp`.
    pub ports: Vec<String>,
    /// `port_map`: guest port by label.
    pub port_map: BTreeMap<String, i64>,
    /// `ipv4`; absent means `auto`.
    pub ipv4: Option<String>,
    /// `vlan`: that of an access port.
    pub vlan: Option<i64>,
    /// `trunk`: VLANs of a trunk port, each a number or a range.
    pub trunk: Vec<String>,
    /// `mtu`; absent means the network's.
    pub mtu: Option<i64>,
}

/// Whose a VM is, in Nomad's words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Whose {
    /// The job's namespace.
    pub namespace: String,
    /// The job.
    pub job: String,
    /// The task group.
    pub group: String,
    /// The task.
    pub task: String,
    /// The allocation.
    pub alloc_id: String,
    /// Which allocation of its group this is, from 0; absent where nobody said it.
    pub index: Option<u32>,
}

/// What Nomad's scheduler gave the task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allocated {
    /// `resources.memory` in MiB.
    pub memory_mib: i64,
    /// `resources.memory_max` in MiB, 0 where the job or the cluster has none.
    pub memory_max_mib: i64,
    /// The reserved cores as Nomad lists them (`0,2`); empty where the task asked for MHz instead.
    pub cores: String,
    /// The user that the job names, or that Nomad leased (`nomad-80017`); empty where it is nobody.
    pub user: String,
    /// Devices of the host that device plugins gave to the task, by path.
    pub devices: Vec<String>,
    /// Volumes that Nomad mounts, by their places in the task.
    pub mounts: Vec<String>,
    /// Ports of the group and of the task.
    pub ports: Vec<AllocatedPort>,
    /// Whose it is.
    pub whose: Whose,
}

/// A port that Nomad reserved on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllocatedPort {
    /// Label in the job.
    pub label: String,
    /// Port on the host.
    pub host_port: i64,
    /// Port in the guest (`to`), 0 or less where the job says none.
    pub guest_port: i64,
    /// Address of the host, may be empty.
    pub host_ip: String,
}

/// What the host offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Why KVM can't be used; `None` where it can.
    pub kvm_unusable: Option<String>,
    /// Whether the operator allows emulation.
    pub tcg_allowed: bool,
    /// Rate of the time stamp counter in kHz.
    pub tsc_khz: u32,
    /// Whether the operator allows QEMU's user-mode network.
    pub user_network: bool,
    /// The user ids that Nomad leases to tasks.
    pub workload_uids: RangeInclusive<u32>,
    /// netd's networks; absent where the operator named no netd.
    pub networks: Option<Vec<KnownNetwork>>,
}

/// A network that netd knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownNetwork {
    /// Its name.
    pub name: String,
    /// `nat`, `bridge`, `vlan`, `vlan-aware`, or a word of a later netd.
    pub kind: String,
}

/// A machine that may be started, and what was changed in the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The machine.
    pub vm: Vm,
    /// One sentence per correction, for the task's events.
    pub notices: Vec<String>,
}

/// Why a request is refused. The text is what `nomad alloc status` shows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A key has a value that isn't one of its words.
    #[error("{key} = {value:?} is not known here: use {allowed}")]
    Word {
        /// Where.
        key: String,
        /// What was given.
        value: String,
        /// What would do.
        allowed: &'static str,
    },
    /// A required key is empty.
    #[error("{key} is empty: {remedy}")]
    Empty {
        /// Where.
        key: String,
        /// What to write.
        remedy: &'static str,
    },
    /// A text has a control character, such as a newline.
    #[error("{key} = {value:?} has a control character: remove it")]
    Control {
        /// Where.
        key: String,
        /// What was given.
        value: String,
    },
    /// A text is longer than it may be.
    #[error("{key} has {length} bytes, the limit is {limit}: shorten it")]
    TooLong {
        /// Where.
        key: String,
        /// How long it is.
        length: usize,
        /// How long it may be.
        limit: usize,
    },
    /// The command line with the driver's own arguments is too long.
    #[error(
        "cmdline has {length} bytes with the {ours} that the driver adds, the kernel takes {CMDLINE_MAX_BYTES}: shorten it"
    )]
    Cmdline {
        /// Length of the whole.
        length: usize,
        /// Length of the driver's part.
        ours: usize,
    },
    /// A path leaves the place it is looked up in, or is absolute.
    #[error(
        "{key} = {value:?} leaves its directory: name a file beneath local/, secrets/ or alloc/, or a name in the \
         operator's image_paths, without \"..\""
    )]
    Path {
        /// Where.
        key: String,
        /// What was given.
        value: String,
    },
    /// A disk's file must be the task's own.
    #[error(
        "{key} = {value:?} is not in the task's or allocation's directory: begin it with local/ or alloc/"
    )]
    DiskPlace {
        /// Where.
        key: String,
        /// What was given.
        value: String,
    },
    /// A disk name is not usable as a serial number.
    #[error("disk {index} has the name {value:?}: use 1 to {DISK_NAME_MAX} characters of a-z, 0-9 and -")]
    DiskName {
        /// Position of the block, from 1.
        index: usize,
        /// What was given.
        value: String,
    },
    /// Two disks share a name.
    #[error("disk name {0:?} is used twice: give each disk a name of its own")]
    DuplicateDisk(String),
    /// More devices than the machine has slots.
    #[error("{disks} disks and {nics} networks do not fit: machine \"microvm\" has room for {room} in all")]
    Devices {
        /// Number of disks.
        disks: usize,
        /// Number of networks.
        nics: usize,
        /// What fits.
        room: usize,
    },
    /// Memory out of bounds.
    #[error(
        "memory = {memory} MiB is outside {MEMORY_MIN_MIB} to {MEMORY_MAX_MIB} MiB: change resources.memory"
    )]
    Memory {
        /// What was given.
        memory: i64,
    },
    /// More processors than the machine takes.
    #[error("cores = {0} is more than the {VCPUS_MAX} processors of a machine: ask for fewer")]
    Cores(usize),
    /// Reserved cores that aren't processor numbers.
    #[error("the reserved cores {0:?} can't be read: each must be a different number up to {CPU_MAX}")]
    CoreList(String),
    /// A user was asked for.
    #[error("user = {0:?} can't be had: each VM has a user of its own; leave it out")]
    User(String),
    /// A device of the host was asked for.
    #[error("device {0:?} can't be given to a VM: leave the device block out")]
    HostDevice(String),
    /// A volume was asked for.
    #[error("volume_mount {0:?} can't be given to a VM: leave it out, and name disks in disk blocks")]
    Mount(String),
    /// KVM was asked for.
    #[error(
        "accelerator = \"kvm\" can't be used on this node: {0}; use \"auto\" or \"tcg\", or another node"
    )]
    NoKvm(String),
    /// Emulation was asked for, or is all there is.
    #[error("accelerator \"tcg\" is not allowed on this node: the plugin option accelerator is \"kvm\"{0}")]
    NoTcg(String),
    /// A network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A key that only `ready = "console"` has use for.
    #[error("{0} is given without ready = \"console\": add that, or leave {0} out")]
    WithoutReady(&'static str),
    /// A deadline out of bounds, or not a duration.
    #[error("ready_timeout = {0:?} is not a duration of 1 s to 5 min: write one such as \"90s\"")]
    ReadyTimeout(String),
}

/// Checks a task's request against what was allocated and what the host offers.
///
/// # Errors
/// The first thing that is wrong, as one sentence.
pub fn check(spec: &Spec, allocated: &Allocated, host: &Host) -> Result<Checked, SpecError> {
    let mut notices = Vec::new();
    let machine = match spec.machine.as_deref() {
        None | Some("" | "microvm") => Machine::Microvm,
        Some(other) => return Err(word("machine", other, "\"microvm\" (\"q35\" is not built yet)")),
    };
    let accelerator = accelerator(spec.accelerator.as_deref().unwrap_or("auto"), host)?;
    let memory_mib = memory(allocated.memory_mib, &mut notices)?;
    if allocated.memory_max_mib > allocated.memory_mib {
        notices.push(format!(
            "memory_max = {} MiB has no effect: the guest gets memory = {memory_mib} MiB",
            allocated.memory_max_mib
        ));
    }
    not_the_hosts(allocated, host)?;
    let cpus = cores(&allocated.cores)?;
    let vcpus = match cpus.len() {
        0 => 1,
        n if n <= VCPUS_MAX => u32::try_from(n).unwrap_or(1),
        n => return Err(SpecError::Cores(n)),
    };
    let kernel = file_name("kernel", &spec.kernel, "name a kernel, such as local/vmlinuz")?;
    let initrd = match spec.initrd.as_deref() {
        None => None,
        Some(text) => Some(file_name("initrd", text, "leave it out or name a file")?),
    };
    let cmdline = cmdline(spec.cmdline.as_deref().unwrap_or(""), accelerator)?;
    let room = MMIO_SLOTS - MMIO_SLOTS_OURS;
    if spec.disks.len() + spec.networks.len() > room {
        return Err(SpecError::Devices {
            disks: spec.disks.len(),
            nics: spec.networks.len(),
            room,
        });
    }
    let disks = disks(&spec.disks)?;
    let nics = networks::nics(&spec.networks, allocated, host)?;
    let of_allocation = match spec.identity.as_deref() {
        None | Some("" | "job") => false,
        Some("alloc") => true,
        Some(other) => return Err(word("identity", other, "\"job\" or \"alloc\"")),
    };
    let identity = if nics.iter().any(|nic| matches!(nic, Nic::Tap(_))) {
        networks::identity(allocated, of_allocation)?
    } else {
        String::new()
    };
    let reboot = match spec.reboot.as_deref() {
        None | Some("" | "reset") => Reboot::Reset,
        Some("shutdown") => Reboot::Shutdown,
        Some(other) => return Err(word("reboot", other, "\"reset\" or \"shutdown\"")),
    };
    let ready = ready(spec)?;
    let vm = Vm {
        machine,
        accelerator,
        vcpus,
        cpus,
        memory_mib,
        kernel,
        initrd,
        cmdline,
        disks,
        nics,
        identity,
        reboot,
        ready,
    };
    Ok(Checked { vm, notices })
}

/// What of the host a VM can't be given.
fn not_the_hosts(allocated: &Allocated, host: &Host) -> Result<(), SpecError> {
    // A job could name a user of the same form. It is taken only if nobody has it.
    let leased = matches!(allocated.user.parse(), Ok(Lease::User(uid)) if host.workload_uids.contains(&uid));
    if !allocated.user.is_empty() && !leased {
        return Err(SpecError::User(clip(&allocated.user)));
    }
    if let Some(device) = allocated.devices.first() {
        return Err(SpecError::HostDevice(clip(device)));
    }
    match allocated.mounts.first() {
        Some(mount) => Err(SpecError::Mount(clip(mount))),
        None => Ok(()),
    }
}

/// The kernel's list of processors: numbers and ranges (cpuset(7)).
fn cores(list: &str) -> Result<Vec<u32>, SpecError> {
    let wrong = || SpecError::CoreList(clip(list));
    let mut cores = Vec::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: u32 = first.parse().map_err(|_| wrong())?;
        let last: u32 = last.parse().map_err(|_| wrong())?;
        if last > CPU_MAX || first > last {
            return Err(wrong());
        }
        cores.extend(first..=last);
    }
    let different: BTreeSet<u32> = cores.iter().copied().collect();
    if different.len() == cores.len() {
        Ok(cores)
    } else {
        Err(wrong())
    }
}

fn word(key: &str, value: &str, allowed: &'static str) -> SpecError {
    SpecError::Word {
        key: key.to_owned(),
        value: clip(value),
        allowed,
    }
}

/// Values appear in sentences: keep those short.
fn clip(value: &str) -> String {
    const SHOWN_MAX: usize = 80;
    if value.chars().count() <= SHOWN_MAX {
        return value.to_owned();
    }
    let mut short: String = value.chars().take(SHOWN_MAX).collect();
    short.push('…');
    short
}

fn accelerator(asked: &str, host: &Host) -> Result<Accelerator, SpecError> {
    let tcg = Accelerator::Tcg {
        tsc_khz: host.tsc_khz,
    };
    match (asked, &host.kvm_unusable) {
        ("auto" | "" | "kvm", None) => Ok(Accelerator::Kvm),
        ("kvm", Some(reason)) => Err(SpecError::NoKvm(reason.clone())),
        ("auto" | "", Some(reason)) if !host.tcg_allowed => {
            Err(SpecError::NoTcg(format!(" and KVM is unusable: {reason}")))
        }
        ("tcg", _) if !host.tcg_allowed => Err(SpecError::NoTcg(String::new())),
        ("auto" | "" | "tcg", _) => Ok(tcg),
        (other, _) => Err(word("accelerator", other, "\"auto\", \"kvm\" or \"tcg\"")),
    }
}

fn memory(asked: i64, notices: &mut Vec<String>) -> Result<Mib, SpecError> {
    let memory = Mib::try_from(asked)
        .ok()
        .filter(|m| (MEMORY_MIN_MIB..=MEMORY_MAX_MIB).contains(m))
        .ok_or(SpecError::Memory { memory: asked })?;
    if memory != MEMORY_BROKEN_MIB {
        return Ok(memory);
    }
    notices.push(format!(
        "memory = {MEMORY_BROKEN_MIB} MiB never boots on machine \"microvm\": the guest gets {} MiB",
        MEMORY_BROKEN_MIB - 1
    ));
    Ok(MEMORY_BROKEN_MIB - 1)
}

/// A text that goes into a path, an argument or a message: no control characters.
fn plain(key: &str, value: &str) -> Result<(), SpecError> {
    if value.chars().any(char::is_control) {
        return Err(SpecError::Control {
            key: key.to_owned(),
            value: clip(value),
        });
    }
    Ok(())
}

/// Reads a file name: `local/…`, `secrets/…` (also with a leading slash, as Nomad's environment has them) are the
/// task's, `alloc/…` is the allocation's, any other relative path is looked up in the image directories.
fn file_name(key: &str, value: &str, remedy: &'static str) -> Result<FileName, SpecError> {
    if value.is_empty() {
        return Err(SpecError::Empty {
            key: key.to_owned(),
            remedy,
        });
    }
    plain(key, value)?;
    if value.len() > PATH_MAX_BYTES {
        return Err(SpecError::TooLong {
            key: key.to_owned(),
            length: value.len(),
            limit: PATH_MAX_BYTES,
        });
    }
    let outside = || SpecError::Path {
        key: key.to_owned(),
        value: clip(value),
    };
    let (absolute, rest) = value
        .strip_prefix('/')
        .map_or((false, value), |rest| (true, rest));
    let parts: Vec<&str> = rest.split('/').collect();
    if parts
        .iter()
        .any(|part| part.is_empty() || *part == "." || *part == "..")
    {
        return Err(outside());
    }
    let place = parts.first().copied().unwrap_or_default();
    match place {
        "local" | "secrets" if parts.len() > 1 => Ok(FileName {
            root: FileRoot::Task,
            path: parts.join("/"),
        }),
        "alloc" if parts.len() > 1 => Ok(FileName {
            root: FileRoot::Alloc,
            path: parts[1..].join("/"),
        }),
        _ if absolute => Err(outside()),
        _ => Ok(FileName {
            root: FileRoot::Images,
            path: parts.join("/"),
        }),
    }
}

/// The driver's arguments come first, so that the job's own win where both say something.
fn cmdline(asked: &str, accelerator: Accelerator) -> Result<String, SpecError> {
    plain("cmdline", asked)?;
    // The console is where Nomad's log comes from. A panic must end the machine, not leave it spinning; the reboot that
    // follows it is never reached, because pvpanic has told QEMU before. t (triple fault) needs no firmware.
    let mut line = String::from("console=ttyS0 reboot=t panic=-1");
    if let Accelerator::Tcg { tsc_khz } = accelerator {
        // Under emulation a microvm has no timer that calibrates the time stamp counter reliably: without these words
        // the guest hangs now and then on a busy host.
        line.push_str(&format!(" tsc_early_khz={tsc_khz} tsc=reliable"));
    }
    let ours = line.len();
    if !asked.is_empty() {
        line.push(' ');
        line.push_str(asked);
    }
    if line.len() > CMDLINE_MAX_BYTES {
        return Err(SpecError::Cmdline {
            length: line.len(),
            ours,
        });
    }
    Ok(line)
}

fn ready(spec: &Spec) -> Result<Option<Ready>, SpecError> {
    let given = |text: &Option<String>| text.as_deref().is_some_and(|text| !text.is_empty());
    match spec.ready.as_deref() {
        None | Some("" | "none") => {
            let unused = [
                ("ready_pattern", given(&spec.ready_pattern)),
                ("ready_timeout", given(&spec.ready_timeout)),
            ];
            return match unused.iter().find(|(_, given)| *given) {
                Some((key, _)) => Err(SpecError::WithoutReady(key)),
                None => Ok(None),
            };
        }
        Some("console") => {}
        Some(other) => return Err(word("ready", other, "\"none\" or \"console\"")),
    }
    let pattern = spec.ready_pattern.as_deref().unwrap_or_default();
    if pattern.is_empty() {
        return Err(SpecError::Empty {
            key: "ready_pattern".to_owned(),
            remedy: "give the text that the console shows when the guest is ready, such as \"login:\"",
        });
    }
    plain("ready_pattern", pattern)?;
    if pattern.len() > READY_PATTERN_MAX_BYTES {
        return Err(SpecError::TooLong {
            key: "ready_pattern".to_owned(),
            length: pattern.len(),
            limit: READY_PATTERN_MAX_BYTES,
        });
    }
    let timeout = match spec.ready_timeout.as_deref() {
        None | Some("") => READY_TIMEOUT,
        Some(text) => humantime::parse_duration(text)
            .ok()
            .filter(|timeout| (READY_TIMEOUT_MIN..=READY_TIMEOUT_MAX).contains(timeout))
            .ok_or_else(|| SpecError::ReadyTimeout(clip(text)))?,
    };
    Ok(Some(Ready {
        pattern: pattern.to_owned(),
        timeout,
    }))
}

fn disks(specs: &[DiskSpec]) -> Result<Vec<Disk>, SpecError> {
    let mut names = BTreeSet::new();
    let mut disks = Vec::with_capacity(specs.len());
    for (position, spec) in specs.iter().enumerate() {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if spec.name.is_empty() || spec.name.len() > DISK_NAME_MAX || !spec.name.chars().all(allowed) {
            return Err(SpecError::DiskName {
                index: position + 1,
                value: clip(&spec.name),
            });
        }
        if !names.insert(spec.name.as_str()) {
            return Err(SpecError::DuplicateDisk(spec.name.clone()));
        }
        let key = |field: &str| format!("disk {:?}: {field}", spec.name);
        let file = file_name(&key("file"), &spec.file, "name a file, such as local/data.raw")?;
        if file.root == FileRoot::Images {
            return Err(SpecError::DiskPlace {
                key: key("file"),
                value: clip(&spec.file),
            });
        }
        let format = match spec.format.as_str() {
            "raw" => DiskFormat::Raw,
            "qcow2" => DiskFormat::Qcow2,
            other => return Err(word(&key("format"), other, "\"raw\" or \"qcow2\"")),
        };
        disks.push(Disk {
            name: spec.name.clone(),
            file,
            format,
            read_only: spec.read_only,
        });
    }
    Ok(disks)
}

#[cfg(test)]
mod tests;
