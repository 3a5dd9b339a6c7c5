//! Does a VM get exactly what it was given, and does it end with those who watch over it?

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::bare;
use super::causes::starve;
use super::page::page_json;
use super::stop::assert_exit;
use super::witness::{starts, the_vm, wait_nothing_left};
use crate::agent::Client;
use crate::harness::{say, side_by_side};
use crate::host::{self, Vm};
use crate::job::{Job, Order, STUB_READY};
use crate::process;
use crate::wait::{self, seconds};
use crate::world::{IMAGES, World};

const MIB: u64 = 1 << 20;

// --- the shim's death

/// How long QEMU may outlive the one who answers for it.
const DEATH_LIMIT: Duration = seconds(1);

/// Pause between two looks while something is timed.
const LOOK: Duration = Duration::from_micros(500);

/// Which half of the shim is killed, and whether QEMU stands still by then.
#[derive(Clone, Copy)]
struct Death {
    supervisor: bool,
    stopped: bool,
}

pub(super) fn shim_killed_vm_dies(world: &World) {
    let client = &world.own_client(&world.name("die"));
    let deaths = [(false, false), (true, false), (false, true), (true, true)];
    let deaths = deaths.map(|(supervisor, stopped)| Death { supervisor, stopped });
    let doomed = side_by_side(deaths.len(), &deaths, |death| Doomed::new(world, client, *death));
    // It would see a shim's end and kill what is left: whether QEMU dies by itself is the question.
    let plugins = client.plugins();
    assert!(!plugins.is_empty(), "{} has no plugin", client.name);
    let stopped: Vec<Stopped> = plugins.iter().map(|plugin| Stopped::new(plugin.pid)).collect();
    let lines: Vec<String> = doomed.iter().map(Doomed::kill).collect();
    drop(stopped);
    lines.iter().for_each(|line| say(line));
    let _told = side_by_side(doomed.len(), &doomed, Doomed::is_told);
    wait_nothing_left(client);
}

/// Stops a process, and waits until it is.
fn stand_still(pid: u32) {
    assert!(process::signal(pid, Signal::STOP), "{pid} is gone");
    wait::until(&format!("{pid} stands still"), seconds(5), || {
        let state = process::status(pid, pid).remove("State").unwrap_or_default();
        if state.starts_with('T') {
            Ok(())
        } else {
            Err(state)
        }
    });
}

/// A process that stands still, and goes on when this value goes.
struct Stopped(u32);

impl Stopped {
    fn new(pid: u32) -> Self {
        stand_still(pid);
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        process::signal(self.0, Signal::CONT);
    }
}

/// A VM of which half of the shim is to be killed.
struct Doomed<'w> {
    job: Job<'w>,
    vm: Vm,
    qemu: u32,
    leaf: PathBuf,
    death: Death,
}

impl<'w> Doomed<'w> {
    fn new(world: &'w World, client: &Client, death: Death) -> Self {
        let job = running(world, &Order::stub("shimless", "").on(client));
        let _console = job.wait_console(STUB_READY);
        let vm = the_vm(&job, client);
        let qemu = vm.qemu().expect("a VM that runs has a QEMU");
        let leaf = vm.memory_group(client);
        assert_eq!(members(&leaf), [qemu].into(), "{}: not alone in its leaf", job.id);
        if death.stopped {
            stand_still(qemu);
        }
        Self {
            job,
            vm,
            qemu,
            leaf,
            death,
        }
    }

    /// Kills the half of the shim; what came of it, in words.
    fn kill(&self) -> String {
        let (half, pid) = if self.death.supervisor {
            ("supervisor", self.vm.supervisor())
        } else {
            ("monitor", Some(self.vm.shim))
        };
        let pid = pid.expect("a VM that runs has both");
        let killed = Instant::now();
        assert!(
            process::signal(pid, Signal::KILL),
            "{}: the {half} is gone",
            self.job.id
        );
        while process::one(self.qemu).is_some() {
            assert!(
                killed.elapsed() < DEATH_LIMIT,
                "{}: QEMU lives on without its {half}",
                self.job.id
            );
            std::thread::sleep(LOOK);
        }
        let took = killed.elapsed();
        // The kernel may count it for a moment longer.
        wait::until(&format!("{}: an empty leaf", self.job.id), DEATH_LIMIT, || {
            let left = members(&self.leaf);
            if left.is_empty() {
                Ok(())
            } else {
                Err(format!("{left:?}"))
            }
        });
        format!(
            "    SIGKILL to the {half}, QEMU {}: dead after {:.1} ms",
            if self.death.stopped { "stopped" } else { "running" },
            took.as_secs_f64() * 1000.0
        )
    }

    /// Nomad is told what it was, and nothing is left.
    fn is_told(&self) {
        let ended = self.job.wait_terminal();
        assert_eq!(ended.client_status, "failed", "{}", ended.story());
        let told = self.job.wait_event("Driver", "and the VM with it");
        assert_eq!(told.detail("cause"), "shim-lost", "{told:?}");
        assert_exit(&ended, 1, 0);
        let processes = self.vm.others.iter().chain([&self.vm.shim]);
        let left: Vec<_> = processes.filter_map(|pid| process::one(*pid)).collect();
        assert!(left.is_empty(), "{}: {left:?}", self.job.id);
    }
}

/// The processes of a control group; none of one that is gone.
fn members(group: &Path) -> BTreeSet<u32> {
    let text = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

// --- out of memory

/// What the guest takes in the end, if its boot was not too much already.
const EATEN_MIB: u64 = 40;

pub(super) fn oom_keeps_record(world: &World) {
    let client = &world.main;
    // Its second life has the limit that it should have, and goes on.
    let mut order = Order::guest("oom", &format!("steppe.eat={EATEN_MIB} steppe.after=3"));
    order.restarts = 1;
    let job = world.run(&order);
    let _running = job.wait_running();
    let qemu = job.qemu(client);
    // Before it has taken all that it will take.
    assert!(process::signal(qemu, Signal::STOP), "{}: QEMU is gone", job.id);
    let vm = the_vm(&job, client);
    let directory = vm.directory(client);
    // Nomad has the task destroyed as soon as it has ended, and the record goes: who holds the file has what is in it.
    let record = File::open(directory.join("exit.json.new")).expect("its room is taken at the start");
    let mut names = Names::of(&directory);
    let leaf = vm.memory_group(client);
    starve(&leaf);
    assert!(process::signal(qemu, Signal::CONT), "{}: QEMU is gone", job.id);

    wait::until(&format!("{}: an exit record", job.id), seconds(30), || {
        if names.has("exit.json") {
            Ok(())
        } else {
            Err(job.look().story())
        }
    });
    assert!(
        process::one(qemu).is_none(),
        "{}: its end is recorded, and it is there",
        job.id
    );
    let bytes = whole(&record);
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let written: Value = serde_json::from_slice(line)
        .unwrap_or_else(|error| panic!("{error}: {:?}", String::from_utf8_lossy(&bytes)));
    assert_eq!(written["oom"], "limit", "{written}");
    assert_eq!(written["status"], json!({ "signaled": 9 }), "{written}");

    let told = job.wait_event("Driver", "killed by the kernel");
    assert_eq!(told.detail("cause"), "out-of-memory", "{told:?}");
    let end = job.wait_event("Terminated", "OOM Killed");
    assert_eq!((end.exit_code, end.signal), (137, 9), "{end:?}");
    assert_eq!(end.detail("oom_killed"), "true", "{end:?}");

    wait::until(&format!("{}: a second life", job.id), seconds(90), || {
        let allocation = job.look();
        let restarts = allocation.task().map_or(0, |task| task.restarts);
        let meals = job.console().matches(&format!("ate {EATEN_MIB} MiB")).count();
        let is_running = allocation.client_status == "running";
        if (restarts, starts(&allocation), meals, is_running) == (1, 2, 1, true) {
            Ok(())
        } else {
            Err(format!(
                "{restarts} restarts, {meals} meals: {}",
                allocation.story()
            ))
        }
    });
    let again = the_vm(&job, client);
    let before: BTreeSet<u32> = vm.others.iter().copied().chain([vm.shim]).collect();
    let after = again.others.iter().copied().chain([again.shim]);
    assert!(
        after.into_iter().all(|pid| !before.contains(&pid)),
        "{again:?} is {vm:?}"
    );
    say(&format!("    {}; {}", end.display_message, told.display_message));
    assert_exit(&job.stop_and_wait(), 0, 0);
    assert_eq!(job.allocations(), 1, "Nomad made another allocation");
}

/// Everything in a file that may be growing.
fn whole(file: &File) -> Vec<u8> {
    let length = file.metadata().map_or(0, |data| data.len());
    let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
    file.read_exact_at(&mut bytes, 0)
        .unwrap_or_else(|error| panic!("the exit record: {error}"));
    bytes
}

/// The names that files of a directory were given since, even if they are gone by now.
struct Names {
    watch: OwnedFd,
    seen: BTreeSet<String>,
}

impl Names {
    fn of(directory: &Path) -> Self {
        let watch = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).expect("inotify is there");
        let _watched = inotify::add_watch(&watch, directory, WatchFlags::MOVED_TO)
            .unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        Self {
            watch,
            seen: BTreeSet::new(),
        }
    }

    fn has(&mut self, name: &str) -> bool {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.watch, &mut buffer);
        while let Ok(event) = events.next() {
            let name = event.file_name().map(|name| name.to_string_lossy().into_owned());
            self.seen.extend(name);
        }
        self.seen.contains(name)
    }
}

// --- cores

/// Processor time of a VM without cores, in MHz: no multiple of anything.
const SHARE_MHZ: u32 = 37;

pub(super) fn pinned_cores(world: &World) {
    let client = &world.own_client(&world.name("pin"));
    let order = |name: &str, cores: u32| {
        let mut order = Order::stub(name, "").on(client);
        (order.cores, order.cpu_mhz) = (cores, SHARE_MHZ);
        order
    };
    let attributes = world
        .api
        .node(&client.node())
        .unwrap_or_else(|error| panic!("{error}"))
        .attributes;
    let there: u32 = attributes["cpu.reservablecores"]
        .parse()
        .expect("Nomad counts the cores");
    assert!(there >= 2, "this host has {there} cores, and the check needs 2");

    let greedy = world.hand_in(&order("greedy", there + 1));
    let evaluation = wait::until(&format!("{}: a judgement", greedy.id), seconds(15), || {
        let path = format!("/job/{}/evaluations", greedy.id);
        let evaluations: Vec<Value> = world.api.get(&path)?;
        let failed = evaluations
            .iter()
            .find(|one| !one["FailedTGAllocs"]["vm"].is_null());
        failed.cloned().ok_or_else(|| format!("{evaluations:?}"))
    });
    let exhausted = &evaluation["FailedTGAllocs"]["vm"]["DimensionExhausted"];
    assert_eq!(*exhausted, json!({ "cores": 1 }), "{evaluation}");
    assert_eq!(greedy.allocations(), 0, "{} was placed", greedy.id);
    drop(greedy);

    // A VM without cores goes where others are not.
    let sharer = &running(world, &order("sharer", 0));
    shares(client, sharer, SHARE_MHZ.into());
    let free = wait_shared(client, sharer, |cpus| cpus.len() > 1);
    let sharers = process::groups(sharer.qemu(client)).into_iter();
    let sharers: Vec<PathBuf> = sharers
        .filter(|group| group.to_string_lossy().contains("/share"))
        .collect();
    let first = &running(world, &order("first", 1));
    let of_first = is_pinned(world, client, first, 1);
    let left = wait_shared(client, sharer, |cpus| cpus.is_disjoint(&of_first));
    assert!(!left.is_empty(), "nothing is left for the others");
    say(&format!(
        "    without cores, a VM ran on {free:?}, then on {left:?} beside one that has {of_first:?}"
    ));
    let _ended = sharer.stop_and_wait();
    // Where there are two cores only, Nomad takes the last one from those who share, and can't while anybody is there: a
    // shim that holds a log, a VM of a check before.
    for group in &sharers {
        wait::until(
            &format!("nobody is left in {}", group.display()),
            seconds(90),
            || {
                let left: Vec<_> = members(group).into_iter().filter_map(process::one).collect();
                if left.is_empty() {
                    Ok(())
                } else {
                    Err(format!("{left:?}"))
                }
            },
        );
    }

    let second = &running(world, &order("second", 1));
    let of_second = is_pinned(world, client, second, 1);
    assert_eq!(
        is_pinned(world, client, first, 1),
        of_first,
        "the first one's cores have changed"
    );
    assert!(
        of_first.is_disjoint(&of_second),
        "two VMs have {of_first:?} and {of_second:?}"
    );
    let _ended = side_by_side(2, &[first, second], |job| job.stop_and_wait());

    let both = &running(world, &order("both", 2));
    let of_both = is_pinned(world, client, both, 2);
    say(&format!(
        "    with cores: {of_first:?} and {of_second:?}; then {of_both:?}"
    ));
    let seen = bare::look(world, client, both);
    assert!(seen.faults.is_empty(), "{}", seen.faults.join("\n"));
    let _ended = both.stop_and_wait();
    wait_nothing_left(client);
}

/// A job that runs.
fn running<'w>(world: &'w World, order: &Order) -> Job<'w> {
    let job = world.run(order);
    let _running = job.wait_running();
    job
}

/// Each virtual processor runs on one of the cores that Nomad gave, and nothing of QEMU's anywhere else. Gives the cores.
fn is_pinned(world: &World, client: &Client, job: &Job<'_>, count: usize) -> BTreeSet<u32> {
    let resources = job.look().allocated_resources.expect("it has an allocation");
    let cpu = &resources.tasks[crate::api::TASK].cpu;
    let cores = cpu.reserved_cores.clone().unwrap_or_default();
    assert_eq!(cores.len(), count, "{}: Nomad gave {cores:?}", job.id);
    let set: BTreeSet<u32> = cores.iter().copied().collect();
    let vm = the_vm(job, client);
    let inspected = page_json(world, &client.state_dir(), &["inspect", &vm.key]);
    assert_eq!(
        inspected["plan"]["cpus"],
        json!(cores),
        "{}: the plan's processors",
        job.id
    );
    let qemu = job.qemu(client);
    let mut pinned = BTreeMap::new();
    for thread in process::threads(qemu) {
        let name = std::fs::read_to_string(format!("/proc/{qemu}/task/{thread}/comm")).unwrap_or_default();
        let allowed = allowed(qemu, thread);
        // QEMU names the threads of its virtual processors `CPU 0/TCG`.
        let index = name.strip_prefix("CPU ").and_then(|rest| rest.split('/').next());
        if let Some(index) = index.and_then(|index| index.parse::<usize>().ok()) {
            assert_eq!(allowed, [cores[index]].into(), "{}: {}", job.id, name.trim());
            pinned.insert(index, thread);
        } else {
            assert!(
                !allowed.is_empty() && allowed.is_subset(&set),
                "{}: thread {} may run on {allowed:?}",
                job.id,
                name.trim()
            );
        }
    }
    assert_eq!(
        pinned.len(),
        count,
        "{}: its virtual processors are {pinned:?}",
        job.id
    );
    let groups = process::groups(qemu);
    assert!(
        groups
            .iter()
            .any(|group| group.to_string_lossy().contains("/reserve")),
        "{}: no group has reserved processors: {groups:?}",
        job.id
    );
    shares(client, job, cpu.cpu_shares);
    set
}

/// The processors on which a thread may run.
fn allowed(pid: u32, thread: u32) -> BTreeSet<u32> {
    let status = process::status(pid, thread);
    let list = status.get("Cpus_allowed_list").map_or("", String::as_str);
    let mut cpus = BTreeSet::new();
    for part in list.split(',').filter(|part| !part.is_empty()) {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| -> u32 {
            text.parse()
                .unwrap_or_else(|_| panic!("{list:?} lists no processors"))
        };
        cpus.extend(number(from)..=number(to));
    }
    cpus
}

/// Waits until all threads of a VM without cores may run on processors such as these.
fn wait_shared(client: &Client, job: &Job<'_>, fits: impl Fn(&BTreeSet<u32>) -> bool) -> BTreeSet<u32> {
    let qemu = job.qemu(client);
    let groups = process::groups(qemu);
    assert!(
        groups
            .iter()
            .any(|group| group.to_string_lossy().contains("/share")),
        "{}: not among those who share: {groups:?}",
        job.id
    );
    wait::until(&format!("{}: its processors", job.id), seconds(10), || {
        let threads = process::threads(qemu);
        let sets: BTreeSet<BTreeSet<u32>> = threads.iter().map(|thread| allowed(qemu, *thread)).collect();
        match sets.first() {
            Some(only) if sets.len() == 1 && fits(only) => Ok(only.clone()),
            _ => Err(format!("{sets:?}")),
        }
    })
}

/// Its weight against others is what the job says, in the group that Nomad made for the task.
fn shares(client: &Client, job: &Job<'_>, mhz: u64) {
    let qemu = job.qemu(client);
    let parents = process::groups(qemu)
        .into_iter()
        .filter(|group| group.ends_with("vm"));
    let parents: Vec<PathBuf> = parents
        .filter_map(|leaf| Some(leaf.parent()?.to_owned()))
        .collect();
    let value = |name: &str| {
        let mut files = parents.iter().map(|group| group.join(name));
        let text = files.find_map(|file| std::fs::read_to_string(file).ok())?;
        text.trim().parse::<u64>().ok()
    };
    // Version 2 has another scale, and 100 is its default.
    match (value("cpu.shares"), value("cpu.weight")) {
        (Some(shares), _) => assert_eq!(shares, mhz, "{}: cpu.shares", job.id),
        (None, Some(weight)) => assert_ne!(weight, 100, "{}: cpu.weight", job.id),
        (None, None) => panic!("{}: none of {parents:?} has processor time", job.id),
    }
}

// --- memory

/// What Nomad is told that its host has: more than any host.
const PRETENDED_MIB: u64 = 8 << 20;

/// How much more than the host has a VM asks for.
const TOO_MUCH_MIB: u64 = 4096;

/// What firmware and the hole below 1 MiB take of a machine's memory before its kernel counts it.
const FIRMWARE_BYTES: u64 = MIB;

/// What the guest's kernel keeps for itself at most: its code and data, and a share for the descriptions of pages.
const RESERVED_BYTES: u64 = 40 * MIB;
const RESERVED_SHARE: u64 = 50;

/// What of the rest no program gets: its kernel's working memory and its reserve for bad times, its other processes.
const UNEATEN_BYTES: u64 = 32 * MIB;
const UNEATEN_SHARE: u64 = 16;

/// One address range of a table of a qcow2 image with clusters of 64 KiB, and the size of the table.
const QCOW2_TABLE_SPAN_MIB: u64 = 512;
const QCOW2_TABLE_BYTES: u64 = 64 << 10;

/// So many tables are what QEMU keeps in memory of one image at most: 32 MiB.
const QCOW2_TABLES: u64 = 512;

/// A VM of a size.
struct Size {
    memory_mib: u32,
    raw: usize,
    qcow2: usize,
}

/// What was seen of it, in bytes.
struct Measured {
    ram: u64,
    reserved: u64,
    eaten: u64,
    limit: u64,
    peak: u64,
}

pub(super) fn memory_exact(world: &World) {
    let client = &world.client(&world.name("mem"), &world.options());
    let interface = "network_interface = \"lo\"";
    client.agent.reconfigure(
        interface,
        &format!("{interface}\n  memory_total_mb   = {PRETENDED_MIB}"),
    );
    client.agent.start();
    client.wait_healthy(&world.api);
    let files = images(world);
    let size = |memory_mib, raw, qcow2| Size {
        memory_mib,
        raw,
        qcow2,
    };
    // The largest first: it takes longest.
    let sizes = [
        size(2048, 1, 2),
        size(1024, 0, 1),
        size(256, 1, 0),
        size(96, 0, 0),
    ];
    let refused = AtomicBool::new(false);
    let measured = side_by_side(2, &sizes, |size| {
        if size.memory_mib == 96 {
            is_refused(world, client);
            refused.store(true, Ordering::Relaxed);
        }
        measure(world, client, size, &files)
    });
    assert!(refused.into_inner(), "nothing was refused");

    let mut text = String::from(
        "asked MiB  disks          guest's RAM  its kernel's   eaten MiB  limit MiB   peak MiB   left MiB\n",
    );
    let mut faults = Vec::new();
    for (size, seen) in sizes.iter().zip(&measured).rev() {
        let mib = |bytes: u64| format!("{}.{}", bytes / MIB, bytes % MIB * 10 / MIB);
        let disks = format!("{} raw, {} qcow2", size.raw, size.qcow2);
        let _ok = writeln!(
            text,
            "{:>9}  {disks:<13}  {:>11}  {:>12}  {:>10}  {:>9}  {:>9}  {:>9}",
            size.memory_mib,
            mib(seen.ram),
            mib(seen.reserved),
            mib(seen.eaten),
            mib(seen.limit),
            mib(seen.peak),
            mib(seen.limit.saturating_sub(seen.peak)),
        );
        faults.extend(
            seen.faults(size)
                .into_iter()
                .map(|fault| format!("{} MiB: {fault}", size.memory_mib)),
        );
    }
    text.lines().for_each(|line| say(&format!("    {line}")));
    let path = crate::scratch::output().join("memory-exact.txt");
    std::fs::write(&path, &text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    wait_nothing_left(client);
}

/// A raw image, and a qcow2 image of which each table has a place of its own, beyond the file's end: reading anywhere makes
/// QEMU keep one more. Their paths.
fn images(world: &World) -> [PathBuf; 2] {
    let images = world.scratch.path().join(IMAGES);
    let raw = images.join("exact.raw");
    // Text, because it goes through one of Nomad's templates.
    std::fs::write(&raw, " ".repeat(1 << 20)).expect("a file can be written in the scratch folder");
    let qcow2 = images.join("exact.qcow2");
    let size = format!("{}M", QCOW2_TABLES * QCOW2_TABLE_SPAN_MIB);
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&qcow2)
        .arg(size)
        .output()
        .expect("qemu-img runs, see testing/packages.txt");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let file = File::options()
        .read(true)
        .write(true)
        .open(&qcow2)
        .expect("qemu-img made it");
    // The header (QEMU's docs/interop/qcow2.txt): bytes 36 to 39 are the number of tables, 40 to 47 where their list is.
    let mut header = [0; 48];
    file.read_exact_at(&mut header, 0).expect("it has a header");
    let mut place = [0; 8];
    place.copy_from_slice(&header[40..]);
    let place = u64::from_be_bytes(place);
    assert_eq!(
        header[36..40],
        u32::try_from(QCOW2_TABLES).unwrap_or(0).to_be_bytes()
    );
    let list: Vec<u8> = (1..=QCOW2_TABLES)
        // A table that nobody else has: the highest bit.
        .flat_map(|n| ((1 << 63) | ((1 << 32) + n * QCOW2_TABLE_BYTES)).to_be_bytes())
        .collect();
    file.write_all_at(&list, place)
        .expect("a file can be written in the scratch folder");
    [raw, qcow2]
}

/// A VM that the host has no memory for is told so, and may come again.
fn is_refused(world: &World, client: &Client) {
    let available = host_available_mib();
    let asked = u32::try_from(available + TOO_MUCH_MIB).expect("no host has so much");
    let mut order = Order::stub("too-large", "").on(client);
    order.memory_mib = asked;
    order.restarts = 1;
    let job = world.run(&order);
    let ended = job.wait_terminal();
    let told = job.wait_event("Driver Failure", "the host has ");
    let sentence = &told.display_message;
    let numbers: Vec<u64> = sentence
        .split(|character: char| !character.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect();
    let [has, needs, guest, beside] = numbers.as_slice() else {
        panic!("{sentence:?} has not four numbers");
    };
    assert_eq!((*guest, guest + beside), (u64::from(asked), *needs), "{sentence}");
    // Others come and go meanwhile.
    let slack = TOO_MUCH_MIB / 2;
    assert!(
        has.abs_diff(available) < slack,
        "{sentence}, and this host had {available} MiB"
    );
    for words in [
        format!("the host has {has} MiB of memory available"),
        format!("the VM needs {needs} MiB"),
    ] {
        assert!(sentence.contains(&words), "{words:?} is not in {sentence:?}");
    }
    // Not for good: Nomad's restart policy decides.
    assert!(ended.event("Restarting").is_some(), "{}", ended.story());
    assert_eq!(starts(&ended), 0, "{}", ended.story());
    say(&format!("    {sentence}"));
}

/// Memory that this host could give to processes.
fn host_available_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").expect("Linux says how much memory there is");
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .and_then(|number| number.parse::<u64>().ok())
        .expect("and how much of it is to be had")
        / 1024
}

/// Lets a guest take all it has, and its disks be read everywhere.
fn measure(world: &World, client: &Client, size: &Size, files: &[PathBuf; 2]) -> Measured {
    // More than it has: its own kernel stops the eater, and says what was there and what was eaten.
    let mut words = format!("loglevel=5 steppe.eat={}", size.memory_mib);
    let mut disks = Vec::new();
    let mut templates = Vec::new();
    for (format, count, source) in [("raw", size.raw, &files[0]), ("qcow2", size.qcow2, &files[1])] {
        for n in 0..count {
            let file = format!("local/{format}-{n}");
            disks.push(json!({ "name": format!("{format}-{n}"), "file": file, "format": format }));
            templates.push((source.display().to_string(), file));
        }
    }
    if !disks.is_empty() {
        words.push_str(&format!(" steppe.scan={QCOW2_TABLE_SPAN_MIB}"));
    }
    let mut order = Order::guest("exact", &words).on(client).set("disk", json!(disks));
    order.memory_mib = size.memory_mib;
    order.files = templates;
    let job = world.run(&order);
    let _running = job.wait_running();
    let console = wait::until(&format!("{}: a guest out of memory", job.id), seconds(90), || {
        let allocation = job.look();
        assert!(
            !allocation.is_terminal(),
            "{} ended: {}",
            job.id,
            allocation.story()
        );
        let console = job.console();
        if console.contains("Out of memory: Killed process") {
            Ok(console)
        } else {
            Err(console.lines().last().unwrap_or_default().to_owned())
        }
    });
    let scanned = console.matches(&format!(", {QCOW2_TABLES} sectors")).count();
    assert_eq!(scanned, size.qcow2, "{}: disks that were read: {console}", job.id);
    if size.memory_mib == 2048 {
        let _told = job.wait_event(
            "Driver",
            "2048 MiB never boots on machine \"microvm\": the guest gets 2047 MiB",
        );
    }
    // The kernel's own words: `523903 pages RAM`, `13000 pages reserved`, `anon-rss:2040000kB`.
    let before = |words: &str| -> u64 {
        let (text, _) = console
            .split_once(words)
            .unwrap_or_else(|| panic!("{}: no {words:?} in:\n{console}", job.id));
        let number = text.rsplit(' ').next().and_then(|number| number.parse().ok());
        number.unwrap_or_else(|| panic!("{}: no number before {words:?} in:\n{console}", job.id))
    };
    let eaten = console
        .split("anon-rss:")
        .nth(1)
        .and_then(|rest| rest.split("kB").next());
    let eaten: u64 = eaten.and_then(|number| number.parse().ok()).unwrap_or_default();
    let leaf = the_vm(&job, client).memory_group(client);
    let number = |name: &str| -> Option<u64> {
        let text = std::fs::read_to_string(leaf.join(name)).ok()?;
        text.trim().parse().ok()
    };
    let [_, limit] = host::memory_files(&leaf).expect("it is a memory group");
    let limit =
        std::fs::read_to_string(&limit).unwrap_or_else(|error| panic!("{}: {error}", limit.display()));
    let peak = number("memory.max_usage_in_bytes").or_else(|| number("memory.peak"));
    let measured = Measured {
        ram: before(" pages RAM") * 4096,
        reserved: before(" pages reserved") * 4096,
        eaten: eaten * 1024,
        limit: limit
            .trim()
            .parse()
            .unwrap_or_else(|_| panic!("{}: the limit is {limit:?}", job.id)),
        peak: peak.unwrap_or_else(|| panic!("{}: no peak in {}", job.id, leaf.display())),
    };
    let key = the_vm(&job, client).key;
    let inspected = page_json(world, &client.state_dir(), &["inspect", &key]);
    assert_eq!(
        inspected["memory_limit_bytes"], measured.limit,
        "{}: the recorded limit",
        job.id
    );
    // It has lived through that.
    let ended = job.stop_and_wait();
    assert_exit(&ended, 0, 0);
    assert_eq!(starts(&ended), 1, "{}", ended.story());
    measured
}

impl Measured {
    /// What is not as it was promised.
    fn faults(&self, size: &Size) -> Vec<String> {
        let given = u64::from(if size.memory_mib == 2048 {
            2047
        } else {
            size.memory_mib
        }) * MIB;
        let mut faults = Vec::new();
        let mut must = |is_so: bool, fault: String| {
            if !is_so {
                faults.push(fault);
            }
        };
        must(
            self.ram <= given && given - self.ram <= FIRMWARE_BYTES,
            format!("the guest has {} bytes of {given}", self.ram),
        );
        let total = self.ram.saturating_sub(self.reserved);
        must(
            self.reserved <= RESERVED_BYTES + self.ram / RESERVED_SHARE,
            format!("its kernel keeps {} bytes for itself", self.reserved),
        );
        must(
            self.eaten + UNEATEN_BYTES + total / UNEATEN_SHARE >= total,
            format!("it could use {} bytes of its {total}", self.eaten),
        );
        must(
            self.peak >= given,
            format!(
                "QEMU never had more than {} bytes: the guest can't have used {given}",
                self.peak
            ),
        );
        must(
            self.peak < self.limit,
            format!("QEMU reached its limit: {} of {} bytes", self.peak, self.limit),
        );
        faults
    }
}
