//! How much processor time and memory does a VM use, QEMU and its shim together?
//!
//! One source for each figure: processor time is the process's own clock, which counts nanoseconds; `stat` tells which part
//! of it was in user mode; `status` tells the resident memory; the control group leaves tell what is charged to them.
//!
//! Nothing is kept open between two readings: a reading opens up to 17 files, which takes 0.15 ms of processor time,
//! and a node with hundreds of VMs would need thousands of descriptors.

mod figures;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(crate) use figures::{Memory, Reading, Resident, Sample, Throttling, Used};
use figures::{Process, Stat, Version};

/// Longest text that is read. The longest of the kernel's, `memory.stat`, has 2 KiB.
const TEXT_MAX_BYTES: u64 = 64 * 1024;

/// How far apart the looks at a process's clock and at ours may be. They take a microsecond, unless the host lets another
/// program run between the two.
const TOGETHER: Duration = Duration::from_micros(100);

/// How often they are tried to be got together.
const TOGETHER_TRIES: usize = 5;

/// What is read of one VM. Its processes and its groups are found once: they don't change in its life.
#[derive(Debug)]
pub(crate) struct Meter {
    processes: Vec<Known>,
    /// Leaves with the memory controller.
    memory: Vec<(Version, PathBuf)>,
    /// The file that tells how QEMU's processor time is limited.
    throttling: Option<PathBuf>,
}

/// A process that can't be taken for another one that has its id later.
#[derive(Debug, Clone, Copy)]
struct Known {
    pid: i32,
    started_ticks: u64,
}

impl Meter {
    /// Finds what is to be read of a VM: QEMU, its shim, and the shim's other child, which watches the console. `None`
    /// where QEMU is no child of that shim: it has ended, or is somebody else's.
    pub(crate) fn of(qemu: i32, shim: i32, leaves: &[PathBuf]) -> Option<Self> {
        let children = children(shim);
        if !children.contains(&qemu) {
            return None;
        }
        let known = |pid| {
            let started_ticks = stat(pid)?.started_ticks;
            Some(Known { pid, started_ticks })
        };
        let supervisor = children.into_iter().filter(|pid| *pid != qemu);
        let pids = [qemu, shim].into_iter().chain(supervisor);
        let memory = leaves.iter().filter_map(|leaf| {
            let mut versions = [Version::One, Version::Two].into_iter();
            let version = versions.find(|version| leaf.join(version.usage_file()).exists())?;
            Some((version, leaf.clone()))
        });
        let mut cpu = leaves
            .iter()
            .filter(|leaf| super::cgroup::is_vm(leaf))
            .map(|leaf| leaf.join("cpu.stat"));
        Some(Self {
            processes: pids.map(known).collect::<Option<_>>()?,
            memory: memory.collect(),
            throttling: cpu.find(|file| throttling(file).is_some()),
        })
    }

    /// Reads everything. `None` once one of the processes or groups is gone: the VM is ending.
    pub(crate) fn read(&self) -> Option<Reading> {
        let processes = self.processes.iter().map(|known| known.read());
        let mut memory: Option<Memory> = None;
        for (version, leaf) in &self.memory {
            let leaf = Memory::read(*version, |name| text(&leaf.join(name)))?;
            memory = Some(memory.map_or(leaf, |other| other.plus(leaf)));
        }
        Some(Reading {
            processes: processes.collect::<Option<_>>()?,
            memory,
            throttling: match &self.throttling {
                Some(file) => Some(throttling(file)?),
                None => None,
            },
        })
    }
}

impl Known {
    fn read(&self) -> Option<Process> {
        let (at, time) = time(self.pid)?;
        // After its clock: then that was this very process's too.
        let stat = stat(self.pid).filter(|stat| stat.started_ticks == self.started_ticks)?;
        Some(Process {
            pid: self.pid,
            at,
            time,
            stat,
            resident: Resident::parse(&text(&process_file(self.pid, "status"))?)?,
        })
    }
}

fn process_file(pid: i32, name: &str) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join(name)
}

fn stat(pid: i32) -> Option<Stat> {
    Stat::parse(&text(&process_file(pid, "stat"))?)
}

fn throttling(file: &Path) -> Option<Throttling> {
    Throttling::parse(&text(file)?)
}

/// A text of the kernel's. A process's name in it may be anything; what is looked for is ASCII.
fn text(path: &Path) -> Option<String> {
    let mut bytes = Vec::with_capacity(4096);
    let file = std::fs::File::open(path).ok()?;
    let _length = file.take(TEXT_MAX_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The children of a process with one thread. A kernel that lists none (`CONFIG_PROC_CHILDREN`) is asked about each process.
fn children(parent: i32) -> Vec<i32> {
    let list = format!("task/{parent}/children");
    match text(&process_file(parent, &list)) {
        Some(pids) => pids
            .split_ascii_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .collect(),
        None => children_by_search(parent),
    }
}

fn children_by_search(parent: i32) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| stat(*pid).is_some_and(|stat| stat.parent == parent))
        .collect()
}

/// When it was, and the processor time of a process by then: of all its threads, those that have ended too.
fn time(pid: i32) -> Option<(Instant, Duration)> {
    let mut nearest: Option<(Duration, Instant, Duration)> = None;
    for _ in 0..TOGETHER_TRIES {
        let before = Instant::now();
        let time = processor_time(pid)?;
        let apart = before.elapsed();
        if nearest.is_none_or(|(nearest, ..)| apart < nearest) {
            nearest = Some((apart, before + apart / 2, time));
        }
        if apart <= TOGETHER {
            break;
        }
    }
    nearest.map(|(_, at, time)| (at, time))
}

#[expect(unsafe_code, reason = "the clock of another process has no safe form")]
fn processor_time(pid: i32) -> Option<Duration> {
    let mut clock = libc::CLOCK_REALTIME;
    // SAFETY: the pointer is to a clock id of ours that outlives the call; any number is allowed as a process id.
    if unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) } != 0 {
        return None;
    }
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a time of ours that outlives the call; a clock whose process is gone is refused.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return None;
    }
    Some(Duration::new(
        time.tv_sec.try_into().ok()?,
        time.tv_nsec.try_into().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A program in the shim's place, whose children are one that idles and one that is busy.
    struct Vm {
        shim: Child,
        idle: i32,
        busy: i32,
    }

    impl Vm {
        fn start() -> Self {
            let shim = Command::new("sh")
                .args(["-c", "while :; do :; done & sleep 60 & wait"])
                .stdin(Stdio::null())
                .spawn();
            let (idle, busy) = (0, 0);
            let mut vm = Self {
                shim: shim.unwrap(),
                idle,
                busy,
            };
            let deadline = Instant::now() + Duration::from_secs(10);
            loop {
                let children = children(vm.pid());
                let name = |pid: &&i32| text(&process_file(**pid, "comm")).as_deref() == Some("sleep\n");
                if let (2, Some(&idle)) = (children.len(), children.iter().find(name)) {
                    vm.idle = idle;
                    vm.busy = children.iter().copied().find(|pid| *pid != idle).unwrap();
                    return vm;
                }
                assert!(Instant::now() < deadline, "{children:?}");
                std::thread::sleep(Duration::from_millis(2));
            }
        }

        fn pid(&self) -> i32 {
            self.shim.id().cast_signed()
        }
    }

    impl Drop for Vm {
        fn drop(&mut self) {
            for pid in children(self.pid()) {
                kill(pid);
            }
            self.shim.kill().unwrap();
            self.shim.wait().unwrap();
        }
    }

    /// The kernel gives out smaller ids only.
    const NOBODY: i32 = 1 << 22;

    fn kill(pid: i32) {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }

    /// Looks until it is gone: a killed process may still be there for a moment.
    fn is_soon_gone(meter: &Meter) -> bool {
        (0..500).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            meter.read().is_none()
        })
    }

    #[test]
    fn the_three_processes_are_found_and_measured() {
        let vm = Vm::start();
        let meter = Meter::of(vm.idle, vm.pid(), &[]).unwrap();
        let before = meter.read().unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let now = meter.read().unwrap();
        let sample = Sample::between(&before, &now).unwrap();
        let pids: Vec<i32> = sample.processes.iter().map(|used| used.pid).collect();
        assert_eq!(pids, [vm.idle, vm.pid(), vm.busy]);
        assert!(sample.memory.is_none() && sample.throttling.is_none());
        for used in &sample.processes {
            let (all, rss) = (used.user + used.system, used.resident.rss_bytes);
            assert!((16 << 10..16 << 20).contains(&rss), "{rss} bytes");
            // The two that idle need a microsecond; the busy one may have to share its core with others.
            let is_plausible = if used.pid == vm.busy {
                (2.0..=101.0).contains(&all)
            } else {
                all < 2.0
            };
            assert!(is_plausible, "{used:?}");
        }
        let whole = processor_time(vm.busy).unwrap();
        let ticks = now.processes[2].stat.user_ticks + now.processes[2].stat.system_ticks;
        let ticks = Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second());
        assert!(
            whole.abs_diff(ticks) < Duration::from_millis(500),
            "{whole:?} {ticks:?}"
        );
    }

    #[test]
    fn either_way_finds_the_same_children() {
        let vm = Vm::start();
        let (mut listed, mut searched) = (children(vm.pid()), children_by_search(vm.pid()));
        listed.sort_unstable();
        searched.sort_unstable();
        assert_eq!(listed, searched);
        assert!(children(NOBODY).is_empty());
    }

    #[test]
    fn what_is_not_this_shim_s_qemu_is_not_measured() {
        let vm = Vm::start();
        let own = rustix::process::getpid().as_raw_nonzero().get();
        for (qemu, shim) in [
            (own, vm.pid()),
            (vm.idle, NOBODY),
            (NOBODY, vm.pid()),
            (0, 0),
            (-1, -1),
        ] {
            assert!(Meter::of(qemu, shim, &[]).is_none(), "{qemu} {shim}");
        }
        // Another one that has its id.
        let mut meter = Meter::of(vm.idle, vm.pid(), &[]).unwrap();
        meter.processes[0].started_ticks += 1;
        assert_eq!(meter.read(), None);
    }

    #[test]
    fn a_process_that_ends_ends_the_figures() {
        let vm = Vm::start();
        let meters = [
            Meter::of(vm.idle, vm.pid(), &[]).unwrap(),
            Meter::of(vm.busy, vm.pid(), &[]).unwrap(),
        ];
        assert!(meters.iter().all(|meter| meter.read().is_some()));
        kill(vm.idle);
        assert!(meters.iter().all(is_soon_gone));
        assert_eq!(processor_time(NOBODY), None);
    }

    #[test]
    fn leaves_of_both_versions_are_read_until_one_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        for (leaf, usage) in [("vm", "1000\n"), ("shim", "24\n")] {
            write(&format!("memory/{leaf}/memory.usage_in_bytes"), usage);
            write(&format!("memory/{leaf}/memory.max_usage_in_bytes"), "5000\n");
            write(
                &format!("cpu/{leaf}/cpu.stat"),
                "nr_throttled 2\nthrottled_time 7\n",
            );
            write(&format!("freezer/{leaf}/freezer.state"), "THAWED\n");
            write(&format!("two/{leaf}/memory.current"), usage);
            write(&format!("two/{leaf}/cpu.stat"), "usage_usec 5\n");
        }
        let leaves = |parents: &[&str]| -> Vec<PathBuf> {
            let leaves = parents
                .iter()
                .flat_map(|parent| ["vm", "shim"].map(|leaf| format!("{parent}/{leaf}")));
            leaves.map(|leaf| root.path().join(leaf)).collect()
        };
        let vm = Vm::start();
        let meter = |parents: &[&str]| Meter::of(vm.idle, vm.pid(), &leaves(parents)).unwrap();
        let one = meter(&["freezer", "cpu", "memory"]);
        let reading = one.read().unwrap();
        let wanted = Memory {
            usage: 1024,
            max_usage: Some(10_000),
            ..Memory::default()
        };
        assert_eq!(reading.memory, Some(wanted));
        let wanted = Throttling {
            periods: 2,
            time_ns: 7,
        };
        assert_eq!(reading.throttling, Some(wanted));
        let two = meter(&["two"]);
        let reading = two.read().unwrap();
        assert_eq!((reading.memory.unwrap().usage, reading.throttling), (1024, None));
        let without = meter(&["freezer"]);
        assert_eq!(without.read().unwrap().memory, None);

        std::fs::remove_dir_all(root.path().join("two/shim")).unwrap();
        assert_eq!(two.read(), None);
        assert!(one.read().is_some());
        std::fs::remove_dir_all(root.path().join("cpu")).unwrap();
        assert_eq!(one.read(), None);
    }
}
