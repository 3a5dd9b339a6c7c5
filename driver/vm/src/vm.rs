//! What does a checked virtual machine consist of?
//!
//! Values of these types are made only by [`crate::spec::check`]; nothing here needs to be checked again.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddrV4;
use std::time::Duration;

/// Memory of a guest, in MiB (2^20 bytes).
pub type Mib = u32;

/// A virtual machine that may be started: the hypervisor-neutral half of a launch plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vm {
    /// The machine profile.
    pub machine: Machine,
    /// What executes the guest's instructions.
    pub accelerator: Accelerator,
    /// Number of virtual processors, at least 1.
    pub vcpus: u32,
    /// The host's processors that they have to themselves, one each; empty where the job reserved none.
    pub cpus: Vec<u32>,
    /// Guest memory in MiB, as the guest gets it.
    pub memory_mib: Mib,
    /// The kernel image.
    pub kernel: FileName,
    /// The initial RAM disk, if any.
    pub initrd: Option<FileName>,
    /// The whole kernel command line, the driver's arguments included.
    pub cmdline: String,
    /// Disks in the order the guest sees them (vda, vdb, …).
    pub disks: Vec<Disk>,
    /// Network interfaces in the order the guest sees them (eth0, eth1, …).
    pub nics: Vec<Nic>,
    /// What netd computes addresses from; empty where no interface is netd's.
    pub identity: String,
    /// What a reset of the guest does.
    pub reboot: Reboot,
    /// What the start waits for; nothing where it is absent.
    pub ready: Option<Ready>,
}

/// What happens when the guest resets itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reboot {
    /// The machine starts again in place: same process, same task.
    Reset,
    /// The VM ends, and Nomad's restart policy says what follows.
    Shutdown,
}

/// When a guest counts as ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// Once its console has shown this text, within one line.
    pub pattern: String,
    /// It must have by then, counted from the guest's first instruction.
    pub timeout: Duration,
}

/// The machine profile: which board the hypervisor emulates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    /// QEMU's `microvm`: smallest and fastest, virtio-mmio devices only.
    Microvm,
}

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The kernel's KVM.
    Kvm,
    /// QEMU's emulation. The guest sees the host's time stamp counter, whose rate the kernel must be told.
    Tcg {
        /// Rate of the host's time stamp counter in kHz.
        tsc_khz: u32,
    },
}

impl Accelerator {
    /// The name used in job files, attributes and events.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg { .. } => "tcg",
        }
    }
}

/// A file named by a job: where it is looked up, and the relative path beneath that place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileName {
    /// The directory that the path may not leave.
    pub root: FileRoot,
    /// Relative, without `..` and without empty components.
    pub path: String,
}

/// The place beneath which a named file is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileRoot {
    /// The task's own directory (`local/…`, `secrets/…`).
    Task,
    /// The directory shared by the tasks of the allocation (`alloc/…`).
    Alloc,
    /// The operator's image directories, first match wins.
    Images,
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.root {
            FileRoot::Task | FileRoot::Images => write!(f, "{}", self.path),
            FileRoot::Alloc => write!(f, "alloc/{}", self.path),
        }
    }
}

/// A disk of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Name within the task and serial number in the guest: `[a-z0-9-]`, 1 to 20 characters (virtio-blk's limit).
    pub name: String,
    /// The file that holds it.
    pub file: FileName,
    /// How the file is laid out: stated by the job, never probed.
    pub format: DiskFormat,
    /// Whether the guest is refused writing.
    pub read_only: bool,
}

/// Layout of a disk file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFormat {
    /// The bytes of the disk and nothing else.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

/// A network interface of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nic {
    /// QEMU's user-mode network: no way out, only the listed ports in.
    User {
        /// Host ports that are forwarded into the guest.
        forwards: Vec<Forward>,
    },
    /// An interface on a network that netd knows.
    Tap(TapRequest),
}

/// What netd is asked for. What it makes of it is an [`Interface`](crate::interface::Interface).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TapRequest {
    /// Name of the network.
    pub network: String,
    /// `auto`, `none` or an address; empty where the job doesn't say: `auto` where the network has IPv4 for it.
    pub ipv4: String,
    /// VLAN of an access port, 0 where the job names none.
    pub vlan: u32,
    /// VLANs of a trunk port, each a number or a range.
    pub trunk: Vec<String>,
    /// MTU that the guest is told, 0 for the network's.
    pub mtu: u32,
    /// Host ports that lead into the guest.
    pub forwards: Vec<Forward>,
    /// Guest ports that services may name by a label.
    pub port_map: BTreeMap<String, u16>,
}

impl Vm {
    /// What netd is asked for, in the guest's order.
    pub fn taps(&self) -> impl Iterator<Item = &TapRequest> + Clone {
        self.nics.iter().filter_map(|nic| match nic {
            Nic::Tap(tap) => Some(tap),
            Nic::User { .. } => None,
        })
    }

    /// Queues of each of netd's interfaces: one for each virtual processor, as long as that helps.
    #[must_use]
    pub fn queues(&self) -> u32 {
        self.vcpus.min(QUEUES_MAX)
    }
}

/// Most queues of an interface: each costs a descriptor, a thread of the guest's and some memory.
const QUEUES_MAX: u32 = 8;

/// One host port forwarded to one guest port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// Nomad's label of the port, for messages.
    pub label: String,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Address and port on which the host listens: IPv4 only.
    pub host: SocketAddrV4,
    /// Port in the guest.
    pub guest_port: u16,
}

/// Transport protocol of a forwarded port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP, the default.
    Tcp,
    /// UDP, where the job says so.
    Udp,
}

impl Protocol {
    /// `tcp` or `udp`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}
