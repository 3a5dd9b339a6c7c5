//! Is what Nomad shows of a VM's use true?

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::agent::Client;
use crate::api::{TASK, now_ns};
use crate::checks::witness::wait_nothing_left;
use crate::harness::side_by_side;
use crate::host;
use crate::job::{Job, Order};
use crate::process;
use crate::wait::{self, seconds};
use crate::world::World;

/// How far from the truth a figure may be.
const ERROR_MAX: f64 = 0.1;

/// /proc cuts user and system time off at ticks of 10 ms, at both ends of an interval.
const TICKS_ERROR_S: f64 = 0.02;

/// It counts the nanoseconds of a thread that is running only when the kernel's clock ticks, which is each 10 ms at worst.
const RUNNING_ERROR_S: f64 = 0.01;

/// How much of a VM that idles may be missed: in percent of a core, over some seconds.
const IDLE_ERROR: f64 = 0.1;

/// How often /proc is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Nomad's interval between two samples, and over which the driver's first one is taken.
const SAMPLE_INTERVAL: Duration = seconds(1);
const FIRST_INTERVAL: Duration = Duration::from_millis(200);

/// How long samples may take to come: Nomad asks a new plugin after some seconds.
const SAMPLES_LIMIT: Duration = seconds(20);

/// What must be measured on this host, whose groups have a memory controller.
const CPU_FIELDS: [&str; 3] = ["Percent", "System Mode", "User Mode"];
const MEMORY_FIELDS: [&str; 4] = ["Cache", "Max Usage", "RSS", "Usage"];

/// A VM to be measured, and where the truth about it is.
struct Vm<'w> {
    job: Job<'w>,
    /// QEMU, its monitor and its supervisor.
    pids: Vec<u32>,
    /// The memory groups of QEMU and its shim.
    groups: [PathBuf; 2],
}

impl<'w> Vm<'w> {
    fn find(job: Job<'w>, client: &Client) -> Self {
        let [vm] = &job.vms(client)[..] else {
            panic!("{}: not one VM", job.id);
        };
        let of = |pid: Option<u32>, name: &str| pid.unwrap_or_else(|| panic!("{}: no {name}", job.id));
        let pids = vec![of(vm.qemu(), "QEMU"), vm.shim, of(vm.supervisor(), "supervisor")];
        let group = vm.memory_group(client);
        let groups = [group.clone(), group.with_file_name("shim")];
        Self { job, pids, groups }
    }

    fn look(&self) -> Truth {
        let processes = self.pids.iter().map(|pid| (*pid, Process::look(*pid)));
        Truth {
            at: now_ns(),
            processes: processes.collect(),
            usage: self.groups.iter().map(|group| charged(group)).sum(),
        }
    }

    fn sample(&self, world: &World) -> Result<Sample, String> {
        let path = format!("/client/allocation/{}/stats", self.job.allocation);
        let mut stats: Value = world.api.get(&path)?;
        let task = stats["Tasks"][TASK].take();
        match task["Timestamp"].as_i64() {
            Some(at) if at > 0 => Ok(Sample { at, task }),
            _ => Err(stats.to_string()),
        }
    }
}

/// What /proc and the groups say of a VM at one moment.
struct Truth {
    at: i64,
    processes: BTreeMap<u32, Process>,
    usage: u64,
}

/// What /proc says of a process.
#[derive(Clone, Copy)]
struct Process {
    /// Of all its threads.
    time_s: f64,
    user_s: f64,
    system_s: f64,
    rss: u64,
}

impl Process {
    fn look(pid: u32) -> Self {
        let text = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
        };
        let stat = text("stat");
        let (_, fields) = stat.rsplit_once(") ").expect("the name is in brackets");
        // Numbers of proc(5); the first behind the name is 3.
        let ticks = |number: usize| nth(fields, number - 3) as f64 / 100.0;
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it has threads");
        let threads = threads.map(|thread| thread.expect("it is listed").file_name());
        let ran = |thread: OsString| nth(&text(&format!("task/{}/schedstat", thread.display())), 0);
        let status = text("status");
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            nth(line.unwrap_or_else(|| panic!("no {name} {status}")), 0) << 10
        };
        Self {
            time_s: threads.map(ran).sum::<u64>() as f64 / 1e9,
            user_s: ticks(14),
            system_s: ticks(15),
            rss: bytes("RssAnon:") + bytes("RssShmem:"),
        }
    }
}

/// A number among words.
fn nth(text: &str, number: usize) -> u64 {
    let word = text.split_ascii_whitespace().nth(number);
    let parsed = word.and_then(|word| word.parse().ok());
    parsed.unwrap_or_else(|| panic!("word {number} is no number: {text:?}"))
}

fn charged(group: &Path) -> u64 {
    let [used, _limit] = host::memory_files(group).expect("a memory group");
    let text = std::fs::read_to_string(used).expect("it is there");
    text.trim().parse().expect("it is a number")
}

/// One answer of Nomad's.
#[derive(Clone)]
struct Sample {
    at: i64,
    task: Value,
}

impl Sample {
    fn cpu(&self, name: &str) -> f64 {
        number(&self.task["ResourceUsage"]["CpuStats"][name])
    }

    fn memory(&self, name: &str) -> u64 {
        let value = &self.task["ResourceUsage"]["MemoryStats"][name];
        value
            .as_u64()
            .unwrap_or_else(|| panic!("no {name}: {}", self.task))
    }

    fn measured(&self, stats: &str) -> BTreeSet<&str> {
        let names = self.task["ResourceUsage"][stats]["Measured"].as_array();
        names.into_iter().flatten().filter_map(Value::as_str).collect()
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// A sample, what it is of, and since when.
struct Seen {
    vm: usize,
    since: i64,
    sample: Sample,
}

/// Under load and idle, before and after the plugin was killed: the HTTP API and the command line say within 10 % what
/// /proc says of the same interval.
pub(super) fn stats_true(world: &World) {
    let client = world.own_client("stats");
    // What floods its console costs the supervisor time too.
    let orders = [("busy", "steppe.busy steppe.flood"), ("idle", "")];
    let jobs = orders.map(|(name, words)| world.run(&Order::guest(name, words).on(&client)));
    let vms = jobs.map(|job| {
        let _console = job.wait_ready();
        Vm::find(job, &client)
    });
    let core_mhz = core_mhz(world, &client);

    let (mut before, mut after) = (Vec::new(), Vec::new());
    let truths = watch(&vms, || {
        before = samples(world, &vms, None, 3);
        let old = client.plugin().expect("the plugin runs").pid;
        let killed = now_ns();
        assert!(process::signal(old, Signal::KILL), "plugin {old} is gone");
        after = samples(world, &vms, Some(killed), 2);
        assert!(
            client.plugin().is_some_and(|plugin| plugin.pid != old),
            "no new plugin"
        );
    });
    for (n, vm) in vms.iter().enumerate() {
        let past = Past::of(n, &truths);
        for (when, seen) in [("before", &before), ("after", &after)] {
            let row: Vec<&Seen> = seen.iter().filter(|seen| seen.vm == n).collect();
            for (number, seen) in row.iter().enumerate() {
                let what = format!("{}, sample {number} {when} the kill", vm.job.id);
                assert_complete(&what, &seen.sample, vm, core_mhz);
                assert_true(&what, seen, &past);
            }
            assert_true_together(&format!("{} {when} the kill", vm.job.id), &row, &past);
        }
    }
    let all = || before.iter().chain(&after);
    let of = |vm: usize| {
        all()
            .filter(move |seen| seen.vm == vm)
            .map(|seen| seen.sample.cpu("Percent"))
    };
    let least_busy = of(0).fold(f64::INFINITY, f64::min);
    let most_idle = of(1).fold(0.0, f64::max);
    assert!(least_busy > most_idle, "busy {least_busy} %, idle {most_idle} %");

    command_line(world, &client, &vms);
    let _ended = side_by_side(2, &vms, |vm| vm.job.stop_and_wait());
    wait_nothing_left(&client);
}

/// Looks at /proc for as long as something is done.
fn watch(vms: &[Vm<'_>], work: impl FnOnce()) -> Vec<Vec<Truth>> {
    let truths = Mutex::new(Vec::new());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let look: Vec<Truth> = vms.iter().map(Vm::look).collect();
                truths
                    .lock()
                    .expect("nothing panics with the lock held")
                    .push(look);
                std::thread::sleep(LOOK_INTERVAL);
            }
        });
        // A panic must not leave the watcher looking for ever.
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        std::thread::sleep(LOOK_INTERVAL * 2);
        done.store(true, Ordering::Relaxed);
        watcher
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        worked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    truths.into_inner().expect("nothing panics with the lock held")
}

/// Collects so many samples of each VM. Those since a moment begin with the driver's first; else the first that is seen
/// only tells where the next begins.
fn samples(world: &World, vms: &[Vm<'_>], since: Option<i64>, count: usize) -> Vec<Seen> {
    let mut seen: Vec<Seen> = Vec::new();
    let mut last: Vec<Option<i64>> = vec![None; vms.len()];
    let began = since.unwrap_or_else(now_ns);
    let deadline = std::time::Instant::now() + SAMPLES_LIMIT;
    let of = |seen: &[Seen], vm: usize| seen.iter().filter(|seen| seen.vm == vm).count();
    while (0..vms.len()).any(|vm| of(&seen, vm) < count) {
        for (n, vm) in vms.iter().enumerate() {
            let Ok(sample) = vm.sample(world) else { continue };
            let at = sample.at;
            if at <= last[n].unwrap_or(began) {
                continue;
            }
            let before = match (last[n].replace(at), since) {
                (Some(before), _) => before,
                (None, Some(_)) => at - nanoseconds(FIRST_INTERVAL),
                (None, None) => continue,
            };
            // One that was missed would be taken for a part of the next.
            let between = at - before;
            assert!(
                between < nanoseconds(SAMPLE_INTERVAL * 2),
                "{}: {between} ns",
                vm.job.id
            );
            seen.push(Seen {
                vm: n,
                since: before,
                sample,
            });
        }
        assert!(
            std::time::Instant::now() < deadline,
            "{} samples in {SAMPLES_LIMIT:?}",
            seen.len()
        );
        std::thread::sleep(LOOK_INTERVAL);
    }
    seen
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// Everything is named that was measured, and the whole is the sum of its parts.
fn assert_complete(what: &str, sample: &Sample, vm: &Vm<'_>, core_mhz: f64) {
    for (stats, wanted) in [("CpuStats", &CPU_FIELDS[..]), ("MemoryStats", &MEMORY_FIELDS)] {
        let measured = sample.measured(stats);
        for name in wanted {
            assert!(
                measured.contains(name),
                "{what}: {stats} has no {name}: {measured:?}"
            );
        }
    }
    let percent = sample.cpu("Percent");
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    assert!(
        percent <= cores as f64 * 101.0,
        "{what}: {percent} % of {cores} cores"
    );
    near(
        &format!("{what}: ticks"),
        sample.cpu("TotalTicks"),
        percent / 100.0 * core_mhz,
        1e-6,
        1e-6,
    );
    let each = sample.task["Pids"].as_object().expect("there are processes");
    let pids: BTreeSet<String> = each.keys().cloned().collect();
    assert_eq!(pids, vm.pids.iter().map(u32::to_string).collect(), "{what}");
    for name in ["Percent", "UserMode", "SystemMode", "TotalTicks"] {
        let sum = each
            .values()
            .map(|process| number(&process["CpuStats"][name]))
            .sum();
        near(
            &format!("{what}: sum of {name}"),
            sample.cpu(name),
            sum,
            1e-6,
            1e-6,
        );
    }
    near(
        &format!("{what}: user and system"),
        percent,
        sample.cpu("UserMode") + sample.cpu("SystemMode"),
        1e-6,
        1e-6,
    );
    let rss: u64 = each
        .values()
        .filter_map(|process| process["MemoryStats"]["RSS"].as_u64())
        .sum();
    assert_eq!(sample.memory("RSS"), rss, "{what}");
    assert!(
        sample.memory("MaxUsage") >= sample.memory("Usage"),
        "{what}: {}",
        sample.task
    );
}

/// What was seen of one VM by and by.
struct Past<'t>(Vec<&'t Truth>);

impl<'t> Past<'t> {
    fn of(vm: usize, truths: &'t [Vec<Truth>]) -> Self {
        Self(truths.iter().map(|all| &all[vm]).collect())
    }

    fn pids(&self) -> Vec<u32> {
        self.0[0].processes.keys().copied().collect()
    }

    /// How much a figure grew between two moments, in percent of the time between them.
    fn percent(&self, pid: u32, figure: fn(&Process) -> f64, [since, until]: [i64; 2]) -> f64 {
        // Steadily between two looks.
        let at = |when: i64| {
            let next = self.0.partition_point(|truth| truth.at < when);
            assert!((1..self.0.len()).contains(&next), "nobody looked at /proc then");
            let [before, after] = [self.0[next - 1], self.0[next]];
            let part = (when - before.at) as f64 / (after.at - before.at) as f64;
            let [from, to] = [before, after].map(|truth| figure(&truth.processes[&pid]));
            from + (to - from) * part
        };
        (at(until) - at(since)) / (until - since) as f64 * 1e11
    }

    fn nearest(&self, when: i64) -> &Truth {
        let nearest = self.0.iter().min_by_key(|truth| truth.at.abs_diff(when));
        nearest.expect("somebody looked")
    }
}

/// Each figure is near what /proc and the groups said.
fn assert_true(what: &str, seen: &Seen, past: &Past<'_>) {
    type Figure = (&'static str, fn(&Process) -> f64, f64);
    let figures: [Figure; 3] = [
        ("UserMode", |process| process.user_s, TICKS_ERROR_S),
        ("SystemMode", |process| process.system_s, TICKS_ERROR_S),
        ("Percent", |process| process.time_s, RUNNING_ERROR_S),
    ];
    let sample = &seen.sample;
    for (name, figure, error_s) in figures {
        let slack = error_s / (sample.at - seen.since) as f64 * 1e11;
        let mut sum = 0.0;
        for pid in past.pids() {
            let truth = past.percent(pid, figure, [seen.since, sample.at]);
            let told = number(&sample.task["Pids"][pid.to_string()]["CpuStats"][name]);
            near(&format!("{what}: {name} of {pid}"), told, truth, ERROR_MAX, slack);
            sum += truth;
        }
        near(
            &format!("{what}: {name}"),
            sample.cpu(name),
            sum,
            ERROR_MAX,
            slack * 2.0,
        );
    }
    let truth = past.nearest(sample.at);
    let rss: u64 = truth.processes.values().map(|process| process.rss).sum();
    for (name, truth) in [("RSS", rss), ("Usage", truth.usage)] {
        near(
            &format!("{what}: {name}"),
            sample.memory(name) as f64,
            truth as f64,
            ERROR_MAX,
            0.0,
        );
    }
}

/// Samples in a row tell together what /proc says of all that time: of a VM that idles, too.
fn assert_true_together(what: &str, row: &[&Seen], past: &Past<'_>) {
    let [.., last] = row else {
        panic!("{what}: no samples")
    };
    let all = [row[0].since, last.sample.at];
    let of = |seen: &&Seen| seen.sample.cpu("Percent") * (seen.sample.at - seen.since) as f64;
    let told = row.iter().map(of).sum::<f64>() / (all[1] - all[0]) as f64;
    let truth = past
        .pids()
        .iter()
        .map(|pid| past.percent(*pid, |process| process.time_s, all))
        .sum();
    near(&format!("{what}: together"), told, truth, ERROR_MAX, IDLE_ERROR);
}

#[track_caller]
fn near(what: &str, told: f64, truth: f64, relative: f64, absolute: f64) {
    let allowed = truth.abs() * relative + absolute;
    assert!(
        (told - truth).abs() <= allowed,
        "{what}: {told:.3}, in truth {truth:.3} (± {allowed:.3})"
    );
}

/// MHz of a core as Nomad counts them.
fn core_mhz(world: &World, client: &Client) -> f64 {
    let node: Value = world
        .api
        .get(&format!("/node/{}", client.node()))
        .expect("the server answers");
    let cpu = &node["NodeResources"]["Cpu"];
    number(&cpu["CpuShares"]) / number(&cpu["TotalCpuCores"])
}

/// The command line prints the same figures, and sums them up for the node.
fn command_line(world: &World, client: &Client, vms: &[Vm<'_>]) {
    let about: Value = client.agent.api().get("/agent/self").expect("the agent answers");
    let address = format!("http://127.0.0.1:{}", about["config"]["Ports"]["HTTP"]);
    let nomad = std::env::var_os("STEPPE_NOMAD").expect("the checks run with it");
    let print = |arguments: &[&str]| {
        let printed = Command::new(&nomad)
            .args(arguments)
            .env("NOMAD_ADDR", &address)
            .output();
        let printed = printed.expect("Nomad's program runs");
        assert!(
            printed.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&printed.stderr)
        );
        String::from_utf8_lossy(&printed.stdout).into_owned()
    };
    // What is printed is of the samples that were the last before and after.
    let still = |print: &dyn Fn() -> String| {
        wait::until("the same samples before and after", SAMPLES_LIMIT, || {
            let all = || {
                vms.iter()
                    .map(|vm| vm.sample(world))
                    .collect::<Result<Vec<_>, _>>()
            };
            let before = all()?;
            let text = print();
            let after = all()?;
            let is_same = before
                .iter()
                .zip(&after)
                .all(|(before, after)| before.at == after.at);
            is_same
                .then_some((before, text))
                .ok_or_else(|| "others".to_owned())
        })
    };
    for (n, vm) in vms.iter().enumerate() {
        let (samples, text) = still(&|| print(&["alloc", "status", "-stats", &vm.job.allocation]));
        let sample = &samples[n];
        let cpu = table(&text, "CPU Stats");
        for (column, name) in [
            ("Percent", "Percent"),
            ("User Mode", "UserMode"),
            ("System Mode", "SystemMode"),
        ] {
            let told = cell(&cpu, column, &text)
                .trim_end_matches('%')
                .parse()
                .expect("a number");
            near(
                &format!("{}: printed {column}", vm.job.id),
                told,
                sample.cpu(name),
                0.0,
                0.006,
            );
        }
        let memory = table(&text, "Memory Stats");
        for (column, name) in [
            ("RSS", "RSS"),
            ("Usage", "Usage"),
            ("Max Usage", "MaxUsage"),
            ("Cache", "Cache"),
        ] {
            let told = bytes(cell(&memory, column, &text));
            near(
                &format!("{}: printed {column}", vm.job.id),
                told,
                sample.memory(name) as f64,
                ERROR_MAX,
                1.0,
            );
        }
        let row = table(&text, "Task Resources:");
        let (ticks, _) = cell(&row, "CPU", &text).split_once('/').expect("used/given");
        near(
            "printed MHz",
            ticks.parse().expect("a number"),
            sample.cpu("TotalTicks").floor(),
            0.0,
            0.1,
        );
        let (rss, _) = cell(&row, "Memory", &text).split_once('/').expect("used/given");
        near(
            "printed memory",
            bytes(rss),
            sample.memory("RSS") as f64,
            ERROR_MAX,
            0.0,
        );
    }

    let node = client.node();
    let (samples, text) = still(&|| print(&["node", "status", "-stats", &node]));
    let sum = |figure: &dyn Fn(&Sample) -> f64| samples.iter().map(figure).sum::<f64>();
    let row = table(&text, "Allocation Resource Utilization");
    let (ticks, of) = cell(&row, "CPU", &text).split_once('/').expect("used/there");
    let ticks: f64 = ticks.parse().expect("a number");
    near(
        "the node's MHz",
        ticks,
        sum(&|sample| sample.cpu("TotalTicks")).floor(),
        0.0,
        1.0,
    );
    let there: f64 = of.trim_end_matches(" MHz").parse().expect("a number");
    assert!(ticks > 0.0 && ticks <= there * 1.01, "{text}");
    let (used, there) = cell(&row, "Memory", &text).split_once('/').expect("used/there");
    near(
        "the node's memory",
        bytes(used),
        sum(&|sample| sample.memory("Usage") as f64),
        ERROR_MAX,
        0.0,
    );
    assert!(bytes(used) < bytes(there), "{text}");
}

/// The one row beneath a title, by its columns. Two spaces are between two columns.
fn table(text: &str, title: &str) -> BTreeMap<String, String> {
    let mut lines = text.lines().skip_while(|line| line.trim() != title).skip(1);
    let mut cells = || -> Vec<String> {
        let line = lines.next().unwrap_or_default();
        let cells = line.split("  ").map(str::trim);
        cells.filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
    };
    let (names, values) = (cells(), cells());
    names.into_iter().zip(values).collect()
}

fn cell<'t>(table: &'t BTreeMap<String, String>, column: &str, text: &str) -> &'t str {
    table
        .get(column)
        .unwrap_or_else(|| panic!("no column {column}:\n{text}"))
}

/// "77 MiB" in bytes.
fn bytes(text: &str) -> f64 {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let parsed = text.trim().split_once(' ').and_then(|(number, unit)| {
        let power = UNITS.iter().position(|known| *known == unit)?;
        Some(number.parse::<f64>().ok()? * 1024_f64.powi(i32::try_from(power).ok()?))
    });
    parsed.unwrap_or_else(|| panic!("{text:?} is no size"))
}
