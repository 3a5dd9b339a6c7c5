//! What may an operator set, and what may a task's `config` block say?
//!
//! Each key is one row of a table with type, default, meaning and example: the schema that Nomad enforces and the printed
//! reference (`--options`, `jobs/README.md`) are both made from the rows, so they can't differ.

mod decode;
mod schema;

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use nomad_proto::hclspec::Spec;
use serde::Deserialize;
use steppe_vm::lease::UID_MAX;
use tracing::level_filters::LevelFilter;

pub(crate) use decode::{DecodeError, task};

/// One key of a configuration block.
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) required: bool,
    /// The default as HCL source, empty where there is none.
    pub(crate) default: &'static str,
    pub(crate) meaning: &'static str,
    pub(crate) example: &'static str,
}

/// What a key holds.
pub(crate) enum Kind {
    String,
    Bool,
    Number,
    StringList,
    NumberMap,
    /// Repeated blocks, in order.
    Blocks(&'static [Key]),
}

const fn key(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    meaning: &'static str,
    example: &'static str,
) -> Key {
    Key {
        name,
        kind,
        required: false,
        default,
        meaning,
        example,
    }
}

const fn required(name: &'static str, kind: Kind, meaning: &'static str, example: &'static str) -> Key {
    Key {
        name,
        kind,
        required: true,
        default: "",
        meaning,
        example,
    }
}

/// Keys of the agent's `plugin "nomad-driver-microvm" { config { … } }`.
const OPTIONS: &[Key] = &[
    key(
        "enabled",
        Kind::Bool,
        "true",
        "whether this node offers the driver",
        "enabled = false",
    ),
    key(
        "image_paths",
        Kind::StringList,
        "[]",
        "absolute directories in which a job's kernel and initrd names are looked up, first match wins",
        "image_paths = [\"/var/lib/steppe/images\"]",
    ),
    key(
        "user_network",
        Kind::Bool,
        "false",
        "whether jobs may use QEMU's user-mode network (network \"user\"): no way out, only Nomad's ports in",
        "user_network = true",
    ),
    key(
        "netd",
        Kind::String,
        "\"\"",
        "absolute path of the socket at which netd listens; its networks are what jobs may name, and node attributes \
         driver.microvm.network.NAME; empty: no netd, and no network but \"user\"",
        "netd = \"/run/netd/netd.sock\"",
    ),
    key(
        "accelerator",
        Kind::String,
        "\"auto\"",
        "\"kvm\": hardware or nothing; \"tcg\": emulation; \"auto\": kvm where a timed loop proves it, else tcg",
        "accelerator = \"kvm\"",
    ),
    key(
        "qemu",
        Kind::String,
        "\"qemu-system-x86_64\"",
        "QEMU's program, a name in PATH or an absolute path",
        "qemu = \"/usr/bin/qemu-system-x86_64\"",
    ),
    key(
        "qemu_paths",
        Kind::StringList,
        "[]",
        "absolute files and directories that QEMU's process may read and execute besides its program, the host's libraries \
         and QEMU's firmware: for a QEMU that is installed in an unusual way",
        "qemu_paths = [\"/opt/qemu-libs\"]",
    ),
    key(
        "hardening",
        Kind::String,
        "\"required\"",
        "\"required\": no VM where the kernel can't keep QEMU from all it should; \"best\": as far as the kernel can, and node \
         attribute driver.microvm.hardening and an event at each start say what is missing",
        "hardening = \"best\"",
    ),
    key(
        "shim",
        Kind::String,
        "\"\"",
        "absolute path of microvm-shim; empty: beside the plugin",
        "shim = \"/usr/lib/steppe/microvm-shim\"",
    ),
    key(
        "state_dir",
        Kind::String,
        "\"/var/lib/steppe/driver\"",
        "where records, exit records and logs are kept; one per agent, on a disk that survives a reboot",
        "state_dir = \"/var/lib/steppe/driver\"",
    ),
    key(
        "run_dir",
        Kind::String,
        "\"/run/steppe\"",
        "where sockets are kept; may be shared by agents; its path is short, because a socket's is at most 107 bytes",
        "run_dir = \"/run/steppe\"",
    ),
    key(
        "vm_uids",
        Kind::String,
        "\"1900000000-1900065535\"",
        "range of user ids that VMs run as, two each; nobody else may use them, agents on one host that don't share run_dir \
         need one each",
        "vm_uids = \"1900000000-1900065535\"",
    ),
    key(
        "workload_uids",
        Kind::String,
        "\"80000-89999\"",
        "range of user ids that the agent leases to tasks (client users { dynamic_user_min, dynamic_user_max }): QEMU runs as the \
         one that its task was given, unless another VM has it",
        "workload_uids = \"80000-89999\"",
    ),
    key(
        "orphan_grace",
        Kind::String,
        "\"1h\"",
        "how long a VM that no agent asks about may run on, counted while an agent is connected; then it is stopped and \
         removed; it is reported before, as node attribute driver.microvm.orphans",
        "orphan_grace = \"1h\"",
    ),
    key(
        "log_level",
        Kind::String,
        "\"info\"",
        "least level that is logged: trace, debug, info, warn, error",
        "log_level = \"debug\"",
    ),
];

/// Keys of a task's `config` block.
const TASK: &[Key] = &[
    required(
        "kernel",
        Kind::String,
        "the kernel, an x86-64 ELF image (starts fastest) or bzImage: a file beneath local/, secrets/ or alloc/, or a name \
         in the operator's image_paths",
        "kernel = \"local/vmlinuz\"",
    ),
    key(
        "machine",
        Kind::String,
        "\"microvm\"",
        "the machine profile; \"microvm\" is the only one so far",
        "machine = \"microvm\"",
    ),
    key(
        "initrd",
        Kind::String,
        "",
        "the initial RAM disk, named like kernel",
        "initrd = \"local/initrd.img\"",
    ),
    key(
        "cmdline",
        Kind::String,
        "",
        "kernel command line, at most 2047 bytes with what the driver puts before it (console, panic, TSC)",
        "cmdline = \"root=/dev/vda rw quiet\"",
    ),
    key(
        "accelerator",
        Kind::String,
        "\"auto\"",
        "\"kvm\", \"tcg\" or \"auto\"",
        "accelerator = \"kvm\"",
    ),
    key(
        "reboot",
        Kind::String,
        "\"reset\"",
        "what a reboot of the guest does; \"reset\": the machine starts again in place; \"shutdown\": the VM ends with exit \
         code 1. Three resets within 60 s end it in any case",
        "reboot = \"shutdown\"",
    ),
    key(
        "ready",
        Kind::String,
        "\"none\"",
        "what the start waits for; \"none\": nothing; \"console\": until the console has shown ready_pattern, else the start \
         fails and the task's restart policy applies",
        "ready = \"console\"",
    ),
    key(
        "ready_pattern",
        Kind::String,
        "",
        "the text, within one line, at most 256 bytes; needs ready = \"console\"",
        "ready_pattern = \"login:\"",
    ),
    key(
        "ready_timeout",
        Kind::String,
        "",
        "how long the guest may take to be ready, 1 s to 5 min, 60s where ready = \"console\" stands alone",
        "ready_timeout = \"90s\"",
    ),
    key(
        "identity",
        Kind::String,
        "\"job\"",
        "what MAC, IPv6 and \"auto\" IPv4 addresses depend on besides the network; \"job\": namespace, job, group, task and the \
         allocation's index, so they stay when the VM is started again or moves; \"alloc\": the allocation, for jobs with \
         canaries, which have the indexes of allocations that still run",
        "identity = \"alloc\"",
    ),
    key(
        "disk",
        Kind::Blocks(DISK),
        "",
        "a disk; the first is /dev/vda; at most 22 with the networks",
        "disk { … }",
    ),
    key(
        "network",
        Kind::Blocks(NETWORK),
        "",
        "a network interface; the first is eth0. Services with address_mode = \"driver\" register the first address that other \
         hosts reach, IPv4 before IPv6, and do so by default; where all networks are of kind nat, the first of those if they ask",
        "network { … }",
    ),
];

/// Keys of a `disk` block.
const DISK: &[Key] = &[
    required(
        "name",
        Kind::String,
        "unique in the task, a-z, 0-9 and -, at most 20; the serial number in the guest",
        "name = \"data\"",
    ),
    required(
        "file",
        Kind::String,
        "a file beneath local/ or alloc/; it stays there when the task ends",
        "file = \"local/data.qcow2\"",
    ),
    required(
        "format",
        Kind::String,
        "\"raw\" or \"qcow2\": stated, never guessed",
        "format = \"qcow2\"",
    ),
    key(
        "read_only",
        Kind::Bool,
        "false",
        "whether the guest is refused writing",
        "read_only = true",
    ),
];

/// Keys of a `network` block.
const NETWORK: &[Key] = &[
    required(
        "name",
        Kind::String,
        "a network that netd knows on this node; or \"user\": QEMU's user-mode network, where the operator allows it. A VM has one \
         interface on each network, or on each VLAN of it",
        "name = \"tenant-a\"",
    ),
    key(
        "ipv4",
        Kind::String,
        "",
        "\"auto\": one of the network's pool, computed from the identity, that nobody else answers for; \"none\"; an address; or one \
         with \"+index\" behind it, which adds the allocation's index. \"auto\" where it is absent. Not for \"user\"",
        "ipv4 = \"10.1.0.10+index\"",
    ),
    key(
        "vlan",
        Kind::Number,
        "",
        "the VLAN of the interface, which the guest does not see; for networks of kind vlan-aware",
        "vlan = 100",
    ),
    key(
        "trunk",
        Kind::StringList,
        "[]",
        "VLANs whose frames the guest sees tagged, each a number or a range; for networks of kind vlan-aware, instead of vlan",
        "trunk = [\"100-120\", \"200\"]",
    ),
    key(
        "mtu",
        Kind::Number,
        "",
        "MTU that the guest is told, at most the network's, which it is where it is absent. Not for \"user\"",
        "mtu = 1400",
    ),
    key(
        "ports",
        Kind::StringList,
        "[]",
        "labels of Nomad ports that lead into the guest, TCP unless \"/udp\" is added; the guest's port is \
         port_map's, else the job's `to`, else the host's number. For \"user\" and networks of kind nat",
        "ports = [\"http\", \"dns/udp\"]",
    ),
    key(
        "port_map",
        Kind::NumberMap,
        "{}",
        "guest port by label; wins over `to`. Where a network takes no ports it is only told to Nomad with the address: there a \
         service with address_mode = \"driver\" needs a port with `to`, or a number",
        "port_map = { http = 8080 }",
    ),
];

/// Schema of the plugin options, as Nomad wants it.
pub(crate) fn options_schema() -> Spec {
    schema::object(OPTIONS)
}

/// Schema of a task's `config` block.
pub(crate) fn task_schema() -> Spec {
    schema::object(TASK)
}

/// Both tables as Markdown.
pub(crate) fn reference() -> String {
    let mut text = String::from("# Plugin options\n\n");
    schema::table("", OPTIONS, &mut text);
    text.push_str("\n# Keys of a task's config block\n\n");
    schema::table("", TASK, &mut text);
    text
}

/// Checked plugin options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) enabled: bool,
    pub(crate) image_paths: Vec<PathBuf>,
    pub(crate) user_network: bool,
    pub(crate) netd: Option<PathBuf>,
    pub(crate) accelerator: AcceleratorOption,
    pub(crate) qemu: PathBuf,
    pub(crate) qemu_paths: Vec<PathBuf>,
    pub(crate) hardening: Hardening,
    pub(crate) shim: Option<PathBuf>,
    pub(crate) state_dir: PathBuf,
    pub(crate) run_dir: PathBuf,
    pub(crate) vm_uids: RangeInclusive<u32>,
    pub(crate) workload_uids: RangeInclusive<u32>,
    pub(crate) orphan_grace: Duration,
    pub(crate) log_level: LevelFilter,
}

/// The option `hardening`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hardening {
    Required,
    Best,
}

/// The option `accelerator`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AcceleratorOption {
    Auto,
    Kvm,
    Tcg,
}

/// Why plugin options are refused. Nomad's agent shows the text and does not start.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OptionsError {
    #[error("plugin option {name} = {value:?} is not known: use {allowed}")]
    Word {
        name: &'static str,
        value: String,
        allowed: &'static str,
    },
    #[error(
        "plugin option {name} = {value:?} is not an absolute path without \"..\": write one that begins with /"
    )]
    Path { name: &'static str, value: String },
    #[error(
        "plugin option run_dir = {value:?} is longer than {RUN_DIR_MAX_BYTES} bytes: a socket beneath it would have no room"
    )]
    RunDir { value: String },
    #[error("plugin option qemu is empty: name QEMU's program, such as qemu-system-x86_64")]
    Qemu,
    #[error("plugin options vm_uids and workload_uids overlap: give each a range of its own")]
    UidsTwice,
    #[error(
        "plugin option {name} = {value:?} is not a range of at least two user ids between {UID_MIN} and {UID_MAX}: \
         write one such as 1900000000-1900065535"
    )]
    Uids { name: &'static str, value: String },
    #[error(
        "plugin option orphan_grace = {value:?} is not a duration of at least 1 s: write one such as \"1h\""
    )]
    OrphanGrace { value: String },
}

/// Room for `/<16 hex>/<45 bytes of task key>/control.sock` in a socket's 107 bytes.
const RUN_DIR_MAX_BYTES: usize = 30;

/// Below are the host's own users (Debian's policy, §9.2.2).
const UID_MIN: u32 = 65_536;

/// Options as decoded; absent ones are `None`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawOptions {
    enabled: Option<bool>,
    image_paths: Option<Vec<String>>,
    user_network: Option<bool>,
    netd: Option<String>,
    accelerator: Option<String>,
    qemu: Option<String>,
    qemu_paths: Option<Vec<String>>,
    hardening: Option<String>,
    shim: Option<String>,
    state_dir: Option<String>,
    run_dir: Option<String>,
    vm_uids: Option<String>,
    workload_uids: Option<String>,
    orphan_grace: Option<String>,
    log_level: Option<String>,
}

/// Decodes and checks plugin options. Pure.
pub(crate) fn options(msgpack: &[u8]) -> Result<Options, OptionsOrDecodeError> {
    let raw: RawOptions = decode::any(msgpack)?;
    Ok(check_options(raw)?)
}

/// Why plugin options are refused, or can't be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OptionsOrDecodeError {
    #[error(transparent)]
    Options(#[from] OptionsError),
    #[error("plugin options can't be read")]
    Decode(#[from] DecodeError),
}

fn check_options(raw: RawOptions) -> Result<Options, OptionsError> {
    let text = |value: Option<String>, default: &str| value.unwrap_or_else(|| default.to_owned());
    let accelerator = match text(raw.accelerator, "auto").as_str() {
        "auto" => AcceleratorOption::Auto,
        "kvm" => AcceleratorOption::Kvm,
        "tcg" => AcceleratorOption::Tcg,
        other => return Err(word("accelerator", other, "\"auto\", \"kvm\" or \"tcg\"")),
    };
    let log_level = match text(raw.log_level, "info").as_str() {
        "trace" => LevelFilter::TRACE,
        "debug" => LevelFilter::DEBUG,
        "info" => LevelFilter::INFO,
        "warn" => LevelFilter::WARN,
        "error" => LevelFilter::ERROR,
        other => return Err(word("log_level", other, "trace, debug, info, warn or error")),
    };
    let hardening = match text(raw.hardening, "required").as_str() {
        "required" => Hardening::Required,
        "best" => Hardening::Best,
        other => return Err(word("hardening", other, "\"required\" or \"best\"")),
    };
    let qemu = text(raw.qemu, "qemu-system-x86_64");
    if qemu.is_empty() {
        return Err(OptionsError::Qemu);
    }
    let qemu = if qemu.contains('/') {
        absolute("qemu", &qemu)?
    } else {
        PathBuf::from(qemu)
    };
    let if_given = |name, value| match text(value, "") {
        empty if empty.is_empty() => Ok(None),
        path => absolute(name, &path).map(Some),
    };
    let shim = if_given("shim", raw.shim)?;
    let netd = if_given("netd", raw.netd)?;
    let all_absolute = |name, paths: Option<Vec<String>>| -> Result<Vec<PathBuf>, OptionsError> {
        let paths = paths.unwrap_or_default();
        paths.iter().map(|path| absolute(name, path)).collect()
    };
    let run_dir = text(raw.run_dir, "/run/steppe");
    if run_dir.len() > RUN_DIR_MAX_BYTES {
        return Err(OptionsError::RunDir { value: run_dir });
    }
    let vm_uids = uids("vm_uids", &text(raw.vm_uids, "1900000000-1900065535"))?;
    let workload_uids = uids("workload_uids", &text(raw.workload_uids, "80000-89999"))?;
    if vm_uids.start() <= workload_uids.end() && workload_uids.start() <= vm_uids.end() {
        return Err(OptionsError::UidsTwice);
    }
    Ok(Options {
        enabled: raw.enabled.unwrap_or(true),
        image_paths: all_absolute("image_paths", raw.image_paths)?,
        user_network: raw.user_network.unwrap_or(false),
        netd,
        accelerator,
        qemu,
        qemu_paths: all_absolute("qemu_paths", raw.qemu_paths)?,
        hardening,
        shim,
        state_dir: absolute("state_dir", &text(raw.state_dir, "/var/lib/steppe/driver"))?,
        run_dir: absolute("run_dir", &run_dir)?,
        orphan_grace: grace(&text(raw.orphan_grace, "1h"))?,
        vm_uids,
        workload_uids,
        log_level,
    })
}

fn word(name: &'static str, value: &str, allowed: &'static str) -> OptionsError {
    OptionsError::Word {
        name,
        value: value.to_owned(),
        allowed,
    }
}

fn absolute(name: &'static str, value: &str) -> Result<PathBuf, OptionsError> {
    let path = PathBuf::from(value);
    let plain =
        !value.chars().any(char::is_control) && !path.components().any(|part| part.as_os_str() == "..");
    if path.is_absolute() && path.parent().is_some() && plain {
        Ok(path)
    } else {
        Err(OptionsError::Path {
            name,
            value: value.to_owned(),
        })
    }
}

fn grace(value: &str) -> Result<Duration, OptionsError> {
    humantime::parse_duration(value)
        .ok()
        .filter(|grace| *grace >= Duration::from_secs(1))
        .ok_or_else(|| OptionsError::OrphanGrace {
            value: value.to_owned(),
        })
}

fn uids(name: &'static str, value: &str) -> Result<RangeInclusive<u32>, OptionsError> {
    let range = value
        .split_once('-')
        .and_then(|(from, to)| Some(from.parse().ok()?..=to.parse().ok()?));
    range
        .filter(|range: &RangeInclusive<u32>| {
            *range.start() >= UID_MIN && *range.end() <= UID_MAX && range.start() < range.end()
        })
        .ok_or_else(|| OptionsError::Uids {
            name,
            value: value.to_owned(),
        })
}

#[cfg(test)]
mod tests;
