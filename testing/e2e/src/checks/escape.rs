//! What could a guest do that broke out into QEMU?
//!
//! `testing/inmate` is started in QEMU's place, by a real job, and tries one thing after the other. The same program tries
//! the same unconfined: a refusal means something only where that is not refused too.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use serde_json::json;

use super::stop::terminated;
use crate::agent::Client;
use crate::harness::say;
use crate::host::Vm;
use crate::job::{Job, Order};
use crate::process;
use crate::wait::{self, seconds};
use crate::world::{IMAGES, World, required};

/// How many attempts there are: whoever takes one away says so here, too.
const TRIED: usize = 270;

/// How many must succeed unconfined: a kernel may lack some of what is tried, and root in a container some of its powers.
const CONTROL_MIN: usize = 150;

/// What QEMU's own network takes: sockets that forwarded ports come in by. Nobody is connected to.
const NETWORKED: &[&str] = &["socket_inet_stream", "listen"];

/// Attempts on things that are told by their names or numbers. Unconfined each must succeed, or it was tried on nothing.
const AIMED: &[&str] = &[
    "victim_",
    "own_",
    "connect_",
    "tasks_",
    "lock_",
    "run_directory_",
    "nomad_",
    "signal_",
    "ptrace_",
    "memory_read_",
    "memory_write_",
    "take_descriptor_",
    "proc_victim_",
    "proc_monitor_",
    "cgroup_",
    "shared_memory_",
    "semaphore",
    "message_queue",
    "posix_queue",
    "disk_",
    "datagram_",
];

/// The name of each VM's disk.
const DISK: &str = "escape.raw";

/// What nothing may change.
const HOST_FILES: &[&str] = &[
    "/etc/passwd",
    "/etc/shadow",
    "/etc/hostname",
    "/usr/lib/x86_64-linux-gnu/libc.so.6",
    "/proc/sys/kernel/hostname",
    "/proc/sys/kernel/domainname",
    "/proc/sys/kernel/core_pattern",
];

/// Where something new would be found.
const HOST_FOLDERS: &[&str] = &[
    "/", "/tmp", "/var/tmp", "/run", "/dev", "/dev/shm", "/etc", "/usr",
];

pub(super) fn table(world: &World) {
    let inmate = &place_inmate(world);
    let client = &client_with(world, inmate);
    let victim = &world.run(&with_disk(world, "victim", "").on(client));
    let _running = victim.wait_running();
    let vm = &the_vm(victim, client);
    let bait = Bait::new(world.scratch.path());
    let words = format!("{} {}", bait.words, targets(client, victim, vm));
    let before = host_state(inmate, client, victim, vm);

    let control = control(inmate, &words, victim, vm);
    let names: Vec<&str> = control.iter().map(|(name, _)| name.as_str()).collect();
    let networked = confined(world, client, &words, true, &names);
    let confined = confined(world, client, &words, false, &names);

    let text = text(&control, &confined, &networked);
    text.lines().for_each(say);
    let folder = crate::scratch::output();
    let path = folder.join("escape-table.txt");
    let written = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&path, &text));
    written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));

    let mut faults = [
        control_faults(&control),
        faults("confined", &control, &confined, &[]),
        faults("with a user network", &control, &networked, NETWORKED),
    ]
    .concat();
    let after = host_state(inmate, client, victim, vm);
    let changed = before
        .iter()
        .filter(|(path, state)| after.get(*path) != Some(*state));
    faults.extend(changed.map(|(path, _)| format!("{} was changed", path.display())));
    for path in strays() {
        // Not for the next run to find.
        drop(std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir(&path)));
        faults.push(format!("{path} was left"));
    }
    for pid in vm.others.iter().chain([&vm.shim]) {
        if process::one(*pid).is_none() {
            faults.push(format!("process {pid} of the other VM is gone"));
        }
    }
    let look = victim.look();
    if look.client_status != "running" {
        faults.push(format!("the other VM: {}", look.story()));
    }
    assert!(
        faults.is_empty(),
        "{} faults:\n{}",
        faults.len(),
        faults.join("\n")
    );
    let ended = victim.stop_and_wait();
    assert_eq!(ended.client_status, "complete", "{}", ended.story());
}

/// The program, alone in a folder that QEMU's process may read.
fn place_inmate(world: &World) -> PathBuf {
    let from = required("STEPPE_INMATE", "");
    let folder = world.scratch.path().join("inmate");
    std::fs::create_dir(&folder).expect("a folder can be made in the scratch folder");
    let to = folder.join("qemu-inmate");
    crate::world::replace(&from, &to);
    to
}

/// A client whose QEMU it is.
fn client_with(world: &World, inmate: &Path) -> Client {
    let folder = inmate.parent().expect("it is in a folder");
    let options = format!(
        "{}\n    qemu = \"{}\"\n    qemu_paths = [\"{}\"]\n",
        world.options(),
        inmate.display(),
        folder.display()
    );
    let client = world.client(&world.name("esc"), &options);
    client.agent.start();
    client.wait_healthy(&world.api);
    client
}

/// A VM with a disk.
pub(super) fn with_disk(world: &World, name: &str, words: &str) -> Order {
    let path = world.scratch.path().join(IMAGES).join(DISK);
    // Text, because it goes through one of Nomad's templates.
    std::fs::write(&path, " ".repeat(64 * 512)).expect("a file can be written in the scratch folder");
    let disk = json!([{ "name": "first", "file": format!("local/{DISK}"), "format": "raw" }]);
    let mut order = Order::stub(name, words).set("disk", disk);
    order.files = vec![(path.display().to_string(), format!("local/{DISK}"))];
    order
}

fn the_vm(job: &Job<'_>, client: &Client) -> Vm {
    wait::until(&format!("{}: its processes", job.id), seconds(10), || {
        match job.vms(client).as_slice() {
            [vm] if vm.qemu().is_some() && vm.supervisor().is_some() => Ok(vm.clone()),
            other => Err(format!("{other:?}")),
        }
    })
}

/// What is set up by the inmate itself, and taken away when this value goes.
#[derive(Debug)]
struct Bait {
    child: Child,
    words: String,
}

impl Bait {
    fn new(folder: &Path) -> Self {
        // Not the scratch folder's: whatever ends this run ends its input, and it is to clean up then, not to be killed.
        let mut child = Command::new(required("STEPPE_INMATE", ""))
            .arg("bait")
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the inmate can be started");
        let mut words = String::new();
        let output = child.stdout.take().expect("it has one");
        BufReader::new(output)
            .read_line(&mut words)
            .expect("a pipe can be read");
        assert!(words.contains("inmate.bait."), "no bait: {words:?}");
        let words = words.trim().to_owned();
        Self { child, words }
    }
}

impl Drop for Bait {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        drop(self.child.wait());
    }
}

/// On what it is tried, in the inmate's words.
pub(super) fn targets(client: &Client, victim: &Job<'_>, vm: &Vm) -> String {
    let pid = vm.qemu().expect("it runs");
    let logs = allocation(client, victim).join("alloc/logs");
    format!(
        "inmate.host.state={} inmate.host.run={} inmate.host.data={} inmate.victim.pid={pid} inmate.victim.uid={} \
         inmate.victim.key={} inmate.victim.disk={} inmate.victim.fifo={} inmate.victim.log={} \
         inmate.victim.control={} inmate.victim.group={}",
        client.state_dir().display(),
        client.run_dir().display(),
        client.data_dir().display(),
        user(pid),
        vm.key,
        disk(client, victim).display(),
        logs.join(".vm.stdout.fifo").display(),
        logs.join("vm.stdout.0").display(),
        vm.control(client).display(),
        vm.memory_group(client).display(),
    )
}

fn allocation(client: &Client, job: &Job<'_>) -> PathBuf {
    client.data_dir().join("alloc").join(&job.allocation)
}

fn disk(client: &Client, victim: &Job<'_>) -> PathBuf {
    allocation(client, victim).join("vm/local").join(DISK)
}

/// A process's user.
fn user(pid: u32) -> u32 {
    std::fs::metadata(format!("/proc/{pid}")).map_or(0, |data| data.uid())
}

/// What came of each attempt, in the order in which they were made.
pub(super) type Results = Vec<(String, String)>;

/// What came of one of them.
fn result<'a>(results: &'a Results, name: &str) -> Option<&'a str> {
    let found = results.iter().find(|(other, _)| other == name);
    found.map(|(_, result)| result.as_str())
}

/// Reads `escape NAME RESULT` lines, and whether there is a last one, which says how many there are.
pub(super) fn results(text: &str) -> (Results, bool) {
    let lines = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("escape ")?.split_once(' '));
    let mut found: Results = lines
        .map(|(name, result)| (name.to_owned(), result.to_owned()))
        .collect();
    let Some((_, count)) = found.pop_if(|(name, _)| name == "end") else {
        return (found, false);
    };
    assert_eq!(count, found.len().to_string(), "the list is not whole:\n{text}");
    (found, true)
}

/// The same unconfined. What is the inmate's own there is the other VM's here.
fn control(inmate: &Path, words: &str, victim: &Job<'_>, vm: &Vm) -> Results {
    let output = Command::new(inmate)
        .arg("control")
        .args(words.split_whitespace())
        .arg(format!("inmate.own.allocation={}", victim.allocation))
        .arg(format!(
            "inmate.supervisor.pid={}",
            vm.supervisor().expect("it was there")
        ))
        .stdin(Stdio::null())
        .output()
        .expect("the inmate can be started");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "control: {}: {errors}", output.status);
    let (results, whole) = results(&String::from_utf8_lossy(&output.stdout));
    assert!(whole, "control: {errors}");
    results
}

/// Most jobs for one list: an attempt for which QEMU is ended takes the rest of the list with it.
const JOBS_MAX: usize = 6;

/// In QEMU's place. `names` are those of all attempts, in order.
fn confined(world: &World, client: &Client, words: &str, network: bool, names: &[&str]) -> Results {
    let mut all = Results::new();
    for _ in 0..JOBS_MAX {
        let Some(next) = names.get(all.len()) else {
            return all;
        };
        let words = format!(
            "inmate.escape inmate.escape.from={next} {words} inmate.own.allocation=${{NOMAD_ALLOC_ID}}"
        );
        let mut order = with_disk(world, "escape", &words).on(client);
        if network {
            order = order.set("network", json!([{ "name": "user" }]));
        }
        let job = world.run(&order);
        let ended = job.wait_terminal();
        let (found, whole) = results(&job.console());
        all.extend(found);
        if whole {
            return all;
        }
        let end = terminated(&ended);
        let signal = i64::from(Signal::SYS.as_raw());
        let killed = (end.signal == signal).then(|| names.get(all.len())).flatten();
        let Some(killed) = killed else {
            panic!(
                "the list breaks off after {:?}: {}\n{}",
                all.last(),
                ended.story(),
                job.messages()
            );
        };
        // As good as refused: a call for which the kernel ends who makes it.
        all.push(((*killed).to_owned(), "refused SIGSYS".to_owned()));
    }
    panic!("QEMU is ended too often: {all:?}");
}

fn text(control: &Results, confined: &Results, networked: &Results) -> String {
    let done = |results: &Results| results.iter().filter(|(_, result)| result == "done").count();
    let row = |a: &str, b: &str, c: &str, d: &str| format!("{a:<36} {b:<22} {c:<16} {d}\n");
    let mut text = row(
        "tried in QEMU's place",
        "unconfined",
        "confined",
        "with a user network",
    );
    for (name, there) in control {
        let here = |results| result(results, name).unwrap_or("not tried");
        text.push_str(&row(name, there, here(confined), here(networked)));
    }
    text.push_str(&format!(
        "{} tried; done unconfined: {}, confined: {}, with a user network: {}\n",
        confined.len(),
        done(control),
        done(confined),
        done(networked)
    ));
    text
}

fn faults(how: &str, control: &Results, confined: &Results, allowed: &[&str]) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, result) in confined {
        let fine = result.starts_with("refused ") || allowed.contains(&name.as_str());
        if !fine {
            faults.push(format!("{name}, {how}: {result}"));
        }
    }
    let names =
        |results: &Results| -> BTreeSet<String> { results.iter().map(|(name, _)| name.clone()).collect() };
    let (here, there) = (names(confined), names(control));
    for name in here.symmetric_difference(&there) {
        faults.push(format!("{name}, {how}: tried on one side only"));
    }
    if confined.len() != TRIED {
        faults.push(format!("{how}: {} attempts instead of {TRIED}", confined.len()));
    }
    faults
}

fn control_faults(control: &Results) -> Vec<String> {
    let mut faults = Vec::new();
    let done = control.iter().filter(|(_, result)| result == "done").count();
    if done < CONTROL_MIN {
        faults.push(format!("unconfined, {done} succeed instead of {CONTROL_MIN}"));
    }
    for (name, result) in control {
        let fine = result == "done" || result.starts_with("refused ");
        let aimed = AIMED.iter().any(|beginning| name.starts_with(beginning));
        if !fine || (aimed && result != "done") {
            faults.push(format!("{name}, unconfined: {result}"));
        }
    }
    faults
}

/// What a file is: its owner, mode, time and contents.
fn host_state(inmate: &Path, client: &Client, victim: &Job<'_>, vm: &Vm) -> BTreeMap<PathBuf, String> {
    let record = vm.directory(client);
    let more = [
        inmate.to_owned(),
        disk(client, victim),
        record.join("plan.json"),
        record.join("record"),
    ];
    let paths = HOST_FILES.iter().map(PathBuf::from).chain(more);
    paths
        .filter_map(|path| {
            let data = std::fs::metadata(&path).ok()?;
            let contents = std::fs::read(&path).ok()?;
            // Those of the kernel have no time of their own.
            let time = if path.starts_with("/proc") {
                0
            } else {
                data.mtime()
            };
            let state = format!(
                "{} {} {:o} {time} {contents:?}",
                data.uid(),
                data.gid(),
                data.mode()
            );
            Some((path, state))
        })
        .collect()
}

/// What an attempt made and did not take away.
fn strays() -> Vec<String> {
    let folders = HOST_FOLDERS
        .iter()
        .flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten());
    folders
        .map(|entry| entry.path().display().to_string())
        .filter(|path| path.contains("/inmate-was-here-"))
        .collect()
}
