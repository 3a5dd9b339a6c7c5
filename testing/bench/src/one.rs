//! What does one start of one machine cost, and how soon is its end known?

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use crate::nomad::Task;
use crate::{Bench, BenchError, log};

/// A start under load, a boot under emulation on a busy host.
const LIMIT: Duration = Duration::from_secs(90);

/// Guest memory of the measured machines: the built-in driver's guest and its QEMU share this as their limit, and with
/// less it is killed.
pub(crate) const MEMORY_MIB: u32 = 256;

/// As many shares as a process has that is in no group.
const CPU_MHZ: u32 = 1024;

/// After the driver's own attempt, which takes it 20 ms, and long before its first look a second later.
const BUTTON_DELAY: Duration = Duration::from_millis(150);

/// Between two starts: what an agent does when a job is forgotten is over.
const REST: Duration = Duration::from_millis(300);

/// Which driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Driver {
    Ours,
    BuiltIn,
}

/// When the guest ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// By itself, as soon as it has booted.
    Poweroff,
    /// Stopped as soon as QEMU runs: for a start alone.
    AtOnce,
}

/// What one start showed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct One {
    /// From StartTask to QEMU's exec, ms.
    pub(crate) start_ms: f64,
    /// CPU in that, ms, of the plugin. What the built-in driver uses inside the agent is not counted, in its favour.
    pub(crate) plugin_cpu_ms: f64,
    /// Of the shim's two processes, or of Nomad's executor.
    pub(crate) helpers_cpu_ms: f64,
    /// Of the process that becomes QEMU.
    pub(crate) child_cpu_ms: f64,
    /// From QEMU's exec to the end of a guest that powers off when it has booted, ms.
    pub(crate) boot_ms: Option<f64>,
    /// From QEMU's end to the terminal event, ms.
    pub(crate) told_ms: Option<f64>,
}

pub(crate) fn task(bench: &Bench, driver: Driver, words: &str, graceful: bool) -> Result<Task, BenchError> {
    let file = |name: &str| bench.guest.join(name).display().to_string();
    let config = match driver {
        // As each boots by default: ours takes the ELF kernel, a PC takes a bzImage. The kernel is the same.
        Driver::Ours => {
            json!({"kernel": "vmlinux", "initrd": "initrd.img", "cmdline": format!("quiet {words}")})
        }
        Driver::BuiltIn => {
            let tsc = tsc_words(bench)?;
            json!({
                "image_path": format!("{}/tiny-${{NOMAD_ALLOC_INDEX}}.qcow2", bench.images.display()),
                "graceful_shutdown": graceful,
                "args": ["-kernel", file("vmlinuz"), "-initrd", file("initrd.img"), "-append",
                    format!("console=ttyS0 reboot=t panic=-1 {tsc} quiet {words}")],
            })
        }
    };
    let driver = match driver {
        Driver::Ours => "microvm",
        Driver::BuiltIn => "qemu",
    };
    Ok(Task {
        driver,
        config,
        memory_mib: MEMORY_MIB,
        cpu_mhz: CPU_MHZ,
        count: 1,
    })
}

/// The words about the time stamp counter that our driver gives its guests; the rival's guest gets the same.
fn tsc_words(bench: &Bench) -> Result<String, BenchError> {
    let nodes = bench.api.get("/nodes")?;
    let node = bench
        .api
        .get(&format!("/node/{}", nodes[0]["ID"].as_str().unwrap_or_default()))?;
    let mhz = node["Attributes"]["driver.microvm.tsc_mhz"]
        .as_str()
        .unwrap_or_default();
    let mhz: f64 = mhz
        .parse()
        .map_err(|_| BenchError::Task(format!("the driver's tsc_mhz is {mhz:?}")))?;
    Ok(format!("tsc_early_khz={:.0} tsc=reliable", mhz * 1000.0))
}

/// The plugin's process: the one that holds the state directory.
pub(crate) fn plugin(bench: &Bench) -> Result<u32, BenchError> {
    let path = bench.agents.join("driver/lock");
    let text = std::fs::read_to_string(&path)
        .map_err(|error| BenchError::Io(format!("{} can't be read", path.display()), error))?;
    text.trim()
        .parse()
        .map_err(|_| BenchError::Task(format!("{} names no process", path.display())))
}

/// Starts one machine, waits for its end, and forgets it.
pub(crate) fn start(bench: &Bench, driver: Driver, ending: Ending, job: &str) -> Result<One, BenchError> {
    let words = if ending == Ending::Poweroff {
        "steppe.poweroff"
    } else {
        ""
    };
    let task = task(bench, driver, words, false)?;
    bench.watch.observe(plugin(bench)?);
    bench.api.submit(job, &task)?;
    let allocation = bench.api.allocations(job, 1)?.swap_remove(0);
    let began = bench
        .watch
        .began(&allocation, LIMIT)
        .map_err(|error| bench.api.explain(&allocation, error))?;
    if ending == Ending::AtOnce {
        bench.api.stop(job)?;
    }
    let ended_ns = bench.watch.ended_ns(began.pid, LIMIT)?;
    let state = bench.api.task_state(&allocation, "dead", LIMIT)?;
    let called_ns = log::prestart_end_unix_ns(&bench.agents.join("client.log"), &allocation)?;
    let plugin_ns = match driver {
        Driver::Ours => began.observed_cpu_ns,
        Driver::BuiltIn => 0,
    };
    let (boot_ms, told_ms) = match ending {
        Ending::AtOnce => (None, None),
        Ending::Poweroff => (
            Some(ms(ended_ns, began.exec_ns)),
            Some(ms(state.event_unix_ns("Terminated")?, unix_ns(ended_ns))),
        ),
    };
    bench.api.purge(job)?;
    std::thread::sleep(REST);
    Ok(One {
        start_ms: ms(unix_ns(began.exec_ns), called_ns),
        plugin_cpu_ms: plugin_ns as f64 / 1e6,
        helpers_cpu_ms: began.helpers_cpu_ns as f64 / 1e6,
        child_cpu_ms: began.own_cpu_ns as f64 / 1e6,
        boot_ms,
        told_ms,
    })
}

/// The built-in driver's graceful stop of a guest that obeys: from "Killing" to "Killed", ms.
///
/// The driver writes to QEMU's monitor and closes it at once, and QEMU 7.2 drops what it has not read by then: the guest is
/// seldom asked (with the connection held open it is off after 60 ms). So the button is pressed once more from here, and what
/// is measured is how long a driver that looks once a second takes to notice, as with a QEMU that listens.
pub(crate) fn graceful_stop_ms(bench: &Bench, job: &str) -> Result<f64, BenchError> {
    bench.api.submit(job, &task(bench, Driver::BuiltIn, "", true)?)?;
    let allocation = bench.api.allocations(job, 1)?.swap_remove(0);
    bench.api.log_says(&allocation, "steppe-guest: ready", LIMIT)?;
    bench.api.stop(job)?;
    std::thread::sleep(BUTTON_DELAY);
    let socket = bench
        .agents
        .join("client/alloc")
        .join(&allocation)
        .join("vm/qm.sock");
    // Without a socket QEMU has ended already: this time it was asked.
    let mut monitor = UnixStream::connect(socket).ok();
    if let Some(monitor) = &mut monitor {
        drop(monitor.write_all(b"system_powerdown\n"));
    }
    let state = bench.api.task_state(&allocation, "dead", LIMIT)?;
    drop(monitor);
    let took = ms(state.event_unix_ns("Killed")?, state.event_unix_ns("Killing")?);
    bench.api.purge(job)?;
    Ok(took)
}

/// Milliseconds between two moments of one clock.
fn ms(later_ns: u64, earlier_ns: u64) -> f64 {
    later_ns as f64 / 1e6 - earlier_ns as f64 / 1e6
}

/// A moment of the monotonic clock, in nanoseconds since 1970.
fn unix_ns(monotonic_ns: u64) -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let now_ns =
        u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0);
    let real = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(real.as_nanos()).unwrap_or(0) - now_ns + monotonic_ns
}
