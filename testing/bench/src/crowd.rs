//! What does each of many machines cost while it does nothing, and when the plugin dies?

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::cost::{self, uss_kib};
use crate::figures::{Report, Samples};
use crate::log::unix_ns;
use crate::nomad::{Task, until};
use crate::one::{self, Driver};
use crate::{Bench, BenchError, say};

/// Machines of the built-in driver beside which its executors are measured: each is a PC with 256 MiB.
const RIVALS: usize = 8;

/// Memory of ours: what the test guest boots with, and a little.
const MEMORY_MIB: u32 = 96;

/// Forty of them fit on any node.
const CPU_MHZ: u32 = 20;

/// Forty boots on two cores take about a minute.
const LIMIT: Duration = Duration::from_secs(300);

/// The machines have booted when all QEMUs together use less than this share of a core.
const IDLE_CORES: f64 = 0.4;

/// Waits until the machines have booted.
fn settle(qemus: &[u32]) -> Result<(), BenchError> {
    let used = || qemus.iter().map(|pid| cost::cpu_ns(*pid)).sum::<u64>();
    until("rest after the boot of many machines", LIMIT, || {
        let before = used();
        std::thread::sleep(Duration::from_secs(2));
        Ok((used().saturating_sub(before) as f64 / 2e9 < IDLE_CORES).then_some(()))
    })
}

fn all_running(bench: &Bench, job: &str, count: usize) -> Result<Vec<u32>, BenchError> {
    let allocations = bench.api.allocations(job, count)?;
    let mut qemus = Vec::new();
    for allocation in &allocations {
        let _state = bench.api.task_state(allocation, "running", LIMIT)?;
        qemus.push(bench.watch.began(allocation, LIMIT)?.pid);
    }
    settle(&qemus)?;
    Ok(qemus)
}

fn all_gone(bench: &Bench, job: &str, qemus: &[u32]) -> Result<(), BenchError> {
    bench.api.purge(job)?;
    for pid in qemus {
        let _at = bench.watch.ended_ns(*pid, LIMIT)?;
    }
    Ok(())
}

/// Parts of the time for which idle machines are watched, for the spread.
const IDLE_PARTS: u32 = 6;

/// What plugin and shims use while the guests do nothing, as a share of a core for each machine. Nomad asks for what each
/// machine uses at its default interval, once a second, and publishes it: the agents' configuration says so.
fn idle(plugin: u32, shims: &[u32], count: usize, time: Duration, report: &mut Report) {
    say(&format!("{} s with {count} idle machines", time.as_secs()));
    let used = || {
        [
            cost::cpu_ns(plugin),
            shims.iter().map(|pid| cost::cpu_ns(*pid)).sum(),
        ]
    };
    let percent = |ns: u64, elapsed: Duration| ns as f64 / elapsed.as_nanos() as f64 / count as f64 * 100.0;
    let (mut both, mut of_shims) = (Samples::default(), Samples::default());
    for _ in 0..IDLE_PARTS {
        let (began, before) = (Instant::now(), used());
        std::thread::sleep(time / IDLE_PARTS);
        let (elapsed, now) = (began.elapsed(), used());
        let [plugin, shims] = [0, 1].map(|of| percent(now[of].saturating_sub(before[of]), elapsed));
        both.push(plugin + shims);
        of_shims.push(shims);
    }
    report.add(
        "CPU of plugin and shims per idle machine",
        both.mean(),
        "% of a core",
        Some(0.1),
        both.spread(),
    );
    report.add(
        "CPU of the shim alone per idle machine",
        of_shims.mean(),
        "% of a core",
        None,
        of_shims.spread(),
    );
}

/// Kills the plugin and waits until its successor has every machine again.
///
/// The time counts from the new process's start, which is before its handshake. Its CPU time is all it used until then, its
/// own beginning included.
fn recovery(bench: &Bench, plugin: u32, count: usize, report: &mut Report) -> Result<(), BenchError> {
    let log = bench.agents.join("driver/log/plugin.log");
    let recovered = || -> Vec<u64> {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let lines = text.lines().filter(|line| line.contains("a VM is found again"));
        let times = lines.filter_map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            unix_ns(line["@timestamp"].as_str()?)
        });
        times.collect()
    };
    let before = recovered().len();
    let pid = i32::try_from(plugin)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    let killed = pid.map(|pid| rustix::process::kill_process(pid, rustix::process::Signal::KILL));
    if killed != Some(Ok(())) {
        return Err(BenchError::Task("the plugin can't be killed".to_owned()));
    }
    let deadline = Instant::now() + LIMIT;
    let successor = loop {
        match one::plugin(bench) {
            Ok(new) if new != plugin => break new,
            _ if Instant::now() > deadline => return Err(BenchError::Late("a new plugin".to_owned())),
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    };
    let age = cost::age(successor).unwrap_or_default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let began = now.saturating_sub(age);
    until("the recovery of every machine", LIMIT, || {
        Ok((recovered().len() >= before + count).then_some(()))
    })?;
    let cpu_ms = cost::cpu_ns(successor) as f64 / 1e6;
    let last = Duration::from_nanos(recovered().into_iter().max().unwrap_or_default());
    report.add(
        "recovery of all machines after the plugin's death",
        last.saturating_sub(began).as_secs_f64(),
        "s",
        Some(1.0),
        0.0,
    );
    report.add(
        "CPU time of one recovery, the new plugin's beginning included",
        cpu_ms / count as f64,
        "ms",
        Some(20.0),
        0.0,
    );
    Ok(())
}

pub(crate) fn measure(
    bench: &Bench,
    count: usize,
    idle_time: Duration,
    report: &mut Report,
) -> Result<(), BenchError> {
    let plugin = one::plugin(bench)?;
    let before = uss_kib(plugin);
    say(&format!("{count} machines at once"));
    let config = json!({"kernel": "vmlinux", "initrd": "initrd.img", "cmdline": "quiet"});
    bench.api.submit(
        "crowd",
        &Task {
            driver: "microvm",
            config,
            memory_mib: MEMORY_MIB,
            cpu_mhz: CPU_MHZ,
            count,
        },
    )?;
    let qemus = all_running(bench, "crowd", count)?;
    let shims = cost::running(&bench.agents.join("bin/plugins/microvm-shim"));
    // Both processes of a shim have its arguments, which name its task.
    let mut by_task = std::collections::BTreeMap::<Vec<String>, u64>::new();
    let shim_pids: Vec<u32> = shims.iter().map(|(pid, _)| *pid).collect();
    for (pid, arguments) in shims {
        *by_task.entry(arguments).or_default() += uss_kib(pid);
    }
    if by_task.len() != count {
        return Err(BenchError::Task(format!(
            "{} shims run, {count} should",
            by_task.len()
        )));
    }
    let mut shim = Samples::default();
    by_task.values().for_each(|kib| shim.push(*kib as f64 / 1024.0));
    let growth = uss_kib(plugin).saturating_sub(before) as f64 / count as f64;
    idle(plugin, &shim_pids, count, idle_time, report);
    recovery(bench, plugin, count, report)?;
    all_gone(bench, "crowd", &qemus)?;

    let rivals = RIVALS.min(count);
    let task = Task {
        count: rivals,
        cpu_mhz: CPU_MHZ,
        ..one::task(bench, Driver::BuiltIn, "", false)?
    };
    bench.api.submit("crowd-built-in", &task)?;
    let qemus = all_running(bench, "crowd-built-in", rivals)?;
    let nomads = cost::running(&bench.agents.join("bin/nomad"));
    let mut executor = Samples::default();
    for (pid, arguments) in nomads {
        if arguments.get(1).is_some_and(|word| word == "executor") {
            executor.push(uss_kib(pid) as f64 / 1024.0);
        }
    }
    all_gone(bench, "crowd-built-in", &qemus)?;

    report.add(
        "USS of a shim, both processes, mean",
        shim.mean(),
        "MiB",
        Some(1.0),
        shim.spread(),
    );
    report.add(
        "USS of the built-in driver's executor, mean",
        executor.mean(),
        "MiB",
        None,
        executor.spread(),
    );
    let both = shim.spread() + executor.spread();
    report.add(
        "USS of a shim, ratio to that",
        shim.mean() / executor.mean(),
        "",
        Some(0.08),
        both,
    );
    report.add(
        "growth of the plugin per machine",
        growth,
        "KiB",
        Some(100.0),
        0.0,
    );
    Ok(())
}
