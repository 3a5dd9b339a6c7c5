//! Do our programs have the privileges that ARCHITECTURE.md says they need, and no more?
//!
//! The plugin is started by `setpriv` with exactly the documented capabilities, and then does all that it is there for. The
//! least list was found by leaving out one after the other (`STEPPE_WITHOUT`); the same document says what failed then.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::bare;
use super::logs::ticks;
use super::stop::assert_exit;
use super::witness::{starts, the_vm, wait_nothing_left};
use crate::agent::{Client, PLUGIN};
use crate::harness::{say, side_by_side};
use crate::host::Vm;
use crate::job::{Job, Order, STUB_READY};
use crate::process;
use crate::wait::{self, seconds};
use crate::world::{IMAGES, World, place};

/// The document's section.
const SECTION: &str = "## Privileges";

/// Leaves a capability out, to see what it is there for: `STEPPE_WITHOUT=CAP_KILL`.
const WITHOUT: &str = "STEPPE_WITHOUT";

/// A user who has nothing to do with us, to whom a task's files belong.
const SOMEBODY: u32 = 65_533;

/// Names of capabilities, in the order of their numbers (linux/capability.h).
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Capabilities, by name.
type Set = BTreeSet<String>;

/// What ARCHITECTURE.md says.
struct Documented {
    plugin: Set,
    /// The monitor's once QEMU runs, and beside them where the VM has cores.
    monitor: Set,
    monitor_pins: Set,
}

impl Documented {
    fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ARCHITECTURE.md");
        let text =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let section = text
            .split_once(&format!("{SECTION}\n"))
            .map(|(_, rest)| rest.split("\n## ").next().unwrap_or_default())
            .unwrap_or_else(|| panic!("{} has no section {SECTION}", path.display()));
        let rows: Vec<Vec<&str>> = section
            .lines()
            .filter(|line| line.starts_with("| "))
            .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
            .collect();
        let cells = |program: &str| -> &[&str] {
            let row = rows.iter().find(|row| row[0] == program);
            row.unwrap_or_else(|| panic!("{SECTION} has no row {program:?}"))
        };
        let named = |program: &str, user: &str| {
            let row = cells(program);
            assert_eq!(row[1], user, "{SECTION}: the user of {program}");
            names(row[2])
        };
        let documented = Self {
            plugin: named("plugin; monitor until QEMU was executed", "root"),
            monitor: named("monitor from then on", "root"),
            monitor_pins: names(cells("the same, of a VM with `cores`")[2]),
        };
        // bare::look compares these two with the processes.
        assert_eq!(named("supervisor", "the pair's second id"), Set::new());
        assert_eq!(
            named("QEMU", "the task's leased user, else the pair's first id"),
            Set::new()
        );
        let explained: Set = rows.iter().flat_map(|row| names(row[0])).collect();
        assert_eq!(explained, documented.plugin, "{SECTION}: the table of reasons");
        documented
    }
}

/// Capabilities that a text names.
fn names(text: &str) -> Set {
    let words = text.split(|c: char| !c.is_ascii_uppercase() && c != '_');
    let found: Set = words
        .filter(|word| word.starts_with("CAP_"))
        .map(str::to_owned)
        .collect();
    let unknown: Vec<_> = found
        .iter()
        .filter(|name| !CAPABILITIES.contains(&name.as_str()))
        .collect();
    assert!(unknown.is_empty(), "{SECTION}: there is no {unknown:?}");
    found
}

/// A set of capabilities as /proc has it.
fn set(hexadecimal: &str) -> Set {
    let bits = u64::from_str_radix(hexadecimal, 16).expect("the kernel writes hexadecimal numbers");
    let named = CAPABILITIES.iter().enumerate();
    named
        .filter(|(number, _)| bits >> number & 1 == 1)
        .map(|(_, name)| (*name).to_owned())
        .collect()
}

pub(super) fn unit_privileges(world: &World) {
    let documented = Documented::read();
    let mut given = documented.plugin.clone();
    if let Ok(without) = std::env::var(WITHOUT) {
        assert!(
            given.remove(&without),
            "{WITHOUT} = {without} is none of {given:?}"
        );
    }
    let client = &client_with(world, &given);
    has(client.plugin().expect("the plugin runs").pid, &given, &given);
    say(&format!(
        "    the plugin has {}",
        given.iter().cloned().collect::<Vec<_>>().join(", ")
    ));

    type Part = (&'static str, fn(&World, &Client, &Documented));
    // The cores first: Nomad takes them from the others.
    let parts: [&[Part]; 2] = [
        &[("a VM with a core of its own", cores)],
        &[
            ("a VM with all there is, and the plugin's death", life),
            ("exit code 7", exits),
            ("a QEMU that stands still is stopped", stands_still),
            ("a monitor that is killed", loses_monitor),
            ("a start that fails", fails),
        ],
    ];
    let mut faults = Vec::new();
    for parts in parts {
        let told = side_by_side(parts.len(), parts, |(name, part)| {
            let done =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| part(world, client, &documented)));
            done.err()
                .map(|_| format!("{name}: {}", crate::harness::take_panic()))
        });
        faults.extend(told.into_iter().flatten());
    }
    assert!(
        faults.is_empty(),
        "{} parts fail with {given:?}:\n{}",
        faults.len(),
        faults.join("\n")
    );
    wait_nothing_left(client);
}

/// A client whose plugin folder has a script of the plugin's name, which becomes the plugin with these capabilities.
fn client_with(world: &World, given: &Set) -> Client {
    let name = &world.name("priv");
    let folder = world.scratch.path().join(name);
    let (real, plugins) = (folder.join("real"), folder.join("plugins"));
    place(&world.plugins(), &real);
    std::fs::create_dir_all(&plugins).expect("a folder can be made in the scratch folder");
    let kept: String = given
        .iter()
        .map(|name| name.trim_start_matches("CAP_").to_lowercase())
        .map(|name| format!(",+{name}"))
        .collect();
    let script = format!(
        "#!/bin/sh\nexec setpriv --no-new-privs --clear-groups --inh-caps=-all --ambient-caps=-all \
         --bounding-set=-all{kept} {} \"$@\"\n",
        real.join(PLUGIN).display()
    );
    std::fs::write(plugins.join(PLUGIN), script).expect("a file can be written in the scratch folder");
    std::fs::set_permissions(plugins.join(PLUGIN), std::fs::Permissions::from_mode(0o755))
        .expect("a file's mode can be changed");
    let client = world.client_with(name, &world.options(), |setup| setup.plugins = plugins);
    client.agent.start();
    client.wait_healthy(&world.api);
    client
}

/// Root, without groups, with these capabilities and the chance to get none but those.
#[track_caller]
fn has(pid: u32, effective: &Set, bounding: &Set) {
    let status = process::status(pid, pid);
    let about = |name: &str| status.get(name).map_or("", String::as_str);
    let name = process::one(pid).map_or_else(String::new, |process| process.name().to_owned());
    for (kind, wanted) in [
        ("CapEff", effective),
        ("CapPrm", effective),
        ("CapBnd", bounding),
        ("CapInh", &Set::new()),
        ("CapAmb", &Set::new()),
    ] {
        assert_eq!(set(about(kind)), *wanted, "{kind} of {name} {pid}");
    }
    assert_eq!(about("Uid"), "0\t0\t0\t0", "{name} {pid}");
    assert_eq!(about("Gid"), "0\t0\t0\t0", "{name} {pid}");
    assert_eq!((about("Groups"), about("NoNewPrivs")), ("", "1"), "{name} {pid}");
}

/// The three processes of a VM are as the document says.
#[track_caller]
fn are_as_documented(world: &World, client: &Client, job: &Job<'_>, monitor: &Set) -> Vm {
    let vm = the_vm(job, client);
    has(vm.shim, monitor, &Set::new());
    let seen = bare::look(world, client, job);
    assert!(seen.faults.is_empty(), "{}", seen.faults.join("\n"));
    vm
}

fn stub<'w>(world: &'w World, order: &Order) -> Job<'w> {
    let job = world.run(order);
    let _running = job.wait_running();
    let _console = job.wait_console(STUB_READY);
    job
}

fn cores(world: &World, client: &Client, documented: &Documented) {
    let mut order = Order::stub("core", "").on(client);
    order.cores = 1;
    let job = stub(world, &order);
    let _vm = are_as_documented(world, client, &job, &documented.monitor_pins);
    let qemu = job.qemu(client);
    for thread in process::threads(qemu) {
        let status = process::status(qemu, thread);
        let allowed = status.get("Cpus_allowed_list").map_or("", String::as_str);
        assert!(
            allowed.parse::<u32>().is_ok(),
            "thread {thread} may run on {allowed:?}"
        );
    }
    let ended = job.stop_and_wait();
    assert_exit(&ended, 0, 0);
}

/// A disk that is somebody's, console, port, statistics, commands on the host, and the plugin's death meanwhile.
fn life(world: &World, client: &Client, documented: &Documented) {
    let image = world.scratch.path().join(IMAGES).join("private.raw");
    // Text, because it goes through one of Nomad's templates.
    std::fs::write(&image, " ".repeat(64 * 512)).expect("a file can be written in the scratch folder");
    let mut order = Order::with_http("life", "steppe.disk steppe.ticks=fast")
        .set(
            "disk",
            json!([{ "name": "own", "file": "local/own.raw", "format": "raw" }]),
        )
        .on(client);
    order.files = vec![(image.display().to_string(), "local/own.raw".to_owned())];
    order.files_of = Some(SOMEBODY);
    let job = world.run(&order);
    let _running = job.wait_running();
    let _console = job.wait_console("tick 3\r\n");
    assert!(
        job.console().contains("disk wrote 'steppe-disk 1'"),
        "{}",
        job.console()
    );
    let before = job.uptime();
    let vm = are_as_documented(world, client, &job, &documented.monitor);

    let old = client.plugin().expect("the plugin runs").pid;
    assert!(process::signal(old, Signal::KILL), "plugin {old} is gone");
    wait::until("a new plugin", seconds(20), || match client.plugin() {
        Some(plugin) if plugin.pid != old => Ok(()),
        other => Err(format!("{other:?}")),
    });
    wait::until("statistics of the task", seconds(20), || {
        let path = format!("/client/allocation/{}/stats", job.allocation);
        let stats: Value = world.api.get(&path)?;
        let memory = &stats["ResourceUsage"]["MemoryStats"]["RSS"];
        memory
            .as_u64()
            .filter(|bytes| *bytes > 0)
            .map(drop)
            .ok_or_else(|| stats.to_string())
    });
    assert_eq!(the_vm(&job, client), vm, "other processes");
    assert!(job.uptime() > before, "another guest");
    for words in [&["list"] as &[&str], &["inspect", &vm.key]] {
        let printed = Command::new(client.plugins.join(PLUGIN))
            .args(words)
            .arg("--state-dir")
            .arg(client.state_dir())
            .output()
            .expect("the driver's program can be started");
        let out = String::from_utf8_lossy(&printed.stdout).into_owned();
        let err = String::from_utf8_lossy(&printed.stderr).into_owned();
        assert!(printed.status.success() && err.is_empty(), "{words:?}: {err}");
        assert!(
            out.contains("running") && out.contains(&vm.shim.to_string()),
            "{words:?}: {out}"
        );
    }
    let ended = job.stop_and_wait();
    assert_exit(&ended, 0, 0);
    assert_eq!(starts(&ended), 1, "{}", ended.story());
    let console = job.console();
    assert!(console.contains("steppe-guest: bye"), "no orderly end: {console}");
    let _complete = ticks(&console);
}

fn exits(world: &World, client: &Client, _: &Documented) {
    let ended = world
        .run(&Order::stub("exits", "stub.exit=7").on(client))
        .wait_terminal();
    assert_exit(&ended, 7, 0);
}

fn stands_still(world: &World, client: &Client, _: &Documented) {
    let mut order = Order::stub("still", "").on(client);
    order.kill_timeout = seconds(1);
    let job = stub(world, &order);
    let qemu = job.qemu(client);
    assert!(process::signal(qemu, Signal::STOP), "QEMU {qemu} is gone");
    let ended = job.stop_and_wait();
    assert_exit(&ended, 137, 9);
}

fn loses_monitor(world: &World, client: &Client, _: &Documented) {
    let job = stub(world, &Order::stub("lost", "").on(client));
    let vm = the_vm(&job, client);
    assert!(process::signal(vm.shim, Signal::KILL), "the monitor is gone");
    let _ended = job.wait_event("Driver", "shim-lost");
    let alive: Vec<u32> = vm
        .others
        .into_iter()
        .filter(|pid| process::one(*pid).is_some())
        .collect();
    assert!(alive.is_empty(), "{alive:?} live on");
    assert_eq!(job.wait_terminal().client_status, "failed");
}

/// QEMU runs, its guest doesn't get ready: all of it is taken back.
fn fails(world: &World, client: &Client, _: &Documented) {
    let order = Order::stub("fails", "")
        .set("ready", "console".into())
        .set("ready_pattern", "never said".into())
        .set("ready_timeout", "1s".into());
    let ended = world.run(&order.on(client)).wait_terminal();
    let refused = ended
        .event("Driver Failure")
        .unwrap_or_else(|| panic!("{}", ended.story()));
    assert!(
        refused.display_message.contains("the guest did not get ready"),
        "{}",
        refused.display_message
    );
    assert!(ended.event("Started").is_none(), "{}", ended.story());
}
