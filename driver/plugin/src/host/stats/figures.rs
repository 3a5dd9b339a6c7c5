//! What do the kernel's texts say of a VM, and what is there to tell of two readings of them?

use std::time::{Duration, Instant};

/// Shortest time between two readings over which a rate is taken: over less, a reading that came late by a moment would
/// look like another rate.
pub(crate) const INTERVAL_MIN: Duration = Duration::from_millis(50);

/// From so many ticks on, an interval has its own proportion of user to system time.
const TICKS_MIN: u64 = 10;

/// What is needed of a process's `stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) parent: i32,
    /// Processor time in user mode, in clock ticks.
    pub(crate) user_ticks: u64,
    /// Processor time in the kernel, in clock ticks.
    pub(crate) system_ticks: u64,
    /// When it began, in clock ticks since the host's start: with the process id a name that nothing else ever has.
    pub(crate) started_ticks: u64,
}

impl Stat {
    /// Reads `/proc/<pid>/stat`. A process that has ended and only waits to be asked how is none any more.
    ///
    /// Field numbers are proc(5)'s; the name in field 2 may contain anything, so fields are counted after its last bracket.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        const FIRST_AFTER_NAME: usize = 3;
        let (_, rest) = text.rsplit_once(')')?;
        let field = |number: usize| rest.split_ascii_whitespace().nth(number - FIRST_AFTER_NAME);
        let number = |number: usize| field(number)?.parse().ok();
        if matches!(field(3)?, "Z" | "X") {
            return None;
        }
        Some(Self {
            parent: field(4)?.parse().ok()?,
            user_ticks: number(14)?,
            system_ticks: number(15)?,
            started_ticks: number(22)?,
        })
    }
}

/// What is needed of a process's `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resident {
    /// Memory of its own that is resident, in bytes: anonymous, and shared without a file. Pages of files (its program, its
    /// libraries) are left out: the host can drop them at any time.
    pub(crate) rss_bytes: u64,
    /// Anonymous memory in the host's swap, in bytes.
    pub(crate) swap_bytes: u64,
}

impl Resident {
    /// Reads `/proc/<pid>/status`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let bytes = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name))?;
            let kib: u64 = value.strip_suffix("kB")?.trim().parse().ok()?;
            kib.checked_mul(1024)
        };
        Some(Self {
            rss_bytes: bytes("RssAnon:")?.checked_add(bytes("RssShmem:")?)?,
            swap_bytes: bytes("VmSwap:")?,
        })
    }
}

/// Version of the control groups in which a group is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    One,
    Two,
}

impl Version {
    /// The file of a group that says how much memory is charged to it; only a group with the memory controller has it.
    pub(crate) fn usage_file(self) -> &'static str {
        match self {
            Self::One => "memory.usage_in_bytes",
            Self::Two => "memory.current",
        }
    }
}

/// What control groups say of memory, in bytes. What their kernel doesn't say is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Everything that is charged: the processes' own memory, the host's cache of their files, the kernel's for them.
    pub(crate) usage: u64,
    /// The most that it ever was.
    pub(crate) max_usage: Option<u64>,
    /// In the host's swap.
    pub(crate) swap: Option<u64>,
    /// The host's cache of files. Memory shared without a file, which the kernel counts in, is left out: it is resident
    /// memory of the processes.
    pub(crate) cache: Option<u64>,
    /// The kernel's own for them.
    pub(crate) kernel: Option<u64>,
    /// The most that this ever was.
    pub(crate) kernel_max: Option<u64>,
}

impl Memory {
    /// Reads a group's files, each by its name. `None` without the file that every memory group has.
    pub(crate) fn read(version: Version, text: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let file = |name: &str| number(&text(name)?);
        let usage = file(version.usage_file())?;
        let stat = text("memory.stat").unwrap_or_default();
        let cache = |all: &str| Some(keyed(&stat, all)?.saturating_sub(keyed(&stat, "shmem")?));
        Some(match version {
            Version::One => Self {
                usage,
                max_usage: file("memory.max_usage_in_bytes"),
                swap: keyed(&stat, "swap"),
                cache: cache("cache"),
                kernel: file("memory.kmem.usage_in_bytes"),
                kernel_max: file("memory.kmem.max_usage_in_bytes"),
            },
            Version::Two => Self {
                usage,
                max_usage: file("memory.peak"),
                swap: file("memory.swap.current"),
                cache: cache("file"),
                kernel: keyed(&stat, "kernel"),
                kernel_max: None,
            },
        })
    }

    /// Of two groups together. The sum of two maxima is at most by the smaller one above the maximum of the sum: the shim's
    /// is a few MiB.
    pub(crate) fn plus(self, other: Self) -> Self {
        let sum = |one: Option<u64>, other: Option<u64>| Some(one?.saturating_add(other?));
        Self {
            usage: self.usage.saturating_add(other.usage),
            max_usage: sum(self.max_usage, other.max_usage),
            swap: sum(self.swap, other.swap),
            cache: sum(self.cache, other.cache),
            kernel: sum(self.kernel, other.kernel),
            kernel_max: sum(self.kernel_max, other.kernel_max),
        }
    }
}

/// How often QEMU had to wait because its group had used up its share of a period, since the VM's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Throttling {
    pub(crate) periods: u64,
    pub(crate) time_ns: u64,
}

impl Throttling {
    /// Reads a group's `cpu.stat`. `None` without the processor controller: version 2 has the file there too, but without
    /// these lines.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let time_ns = match keyed(text, "throttled_time") {
            Some(ns) => ns,
            None => keyed(text, "throttled_usec")?.checked_mul(1000)?,
        };
        Some(Self {
            periods: keyed(text, "nr_throttled")?,
            time_ns,
        })
    }
}

/// The number that is all of a text.
fn number(text: &str) -> Option<u64> {
    text.trim_ascii_end().parse().ok()
}

/// The number behind a key, of lines of a key and a number each.
fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
        .and_then(number)
}

/// A process at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// When `time` was read.
    pub(crate) at: Instant,
    /// Processor time since its start, all threads together.
    pub(crate) time: Duration,
    pub(crate) stat: Stat,
    pub(crate) resident: Resident,
}

/// A VM at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reading {
    pub(crate) processes: Vec<Process>,
    /// Of all groups together; `None` where there are none with the memory controller.
    pub(crate) memory: Option<Memory>,
    pub(crate) throttling: Option<Throttling>,
}

/// What a process used between two readings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Used {
    pub(crate) pid: i32,
    /// Processor time in user mode, in percent of one core.
    pub(crate) user: f64,
    /// Processor time in the kernel, in percent of one core.
    pub(crate) system: f64,
    pub(crate) resident: Resident,
}

/// What there is to tell of a VM.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    pub(crate) processes: Vec<Used>,
    pub(crate) memory: Option<Memory>,
    pub(crate) throttling: Option<Throttling>,
}

impl Sample {
    /// What was between two readings. `None` where no rate can be told: the readings are too close, or not of the same
    /// processes.
    pub(crate) fn between(before: &Reading, now: &Reading) -> Option<Self> {
        if before.processes.len() != now.processes.len() {
            return None;
        }
        let pairs = before.processes.iter().zip(&now.processes);
        let processes = pairs
            .map(|(before, now)| used(before, now))
            .collect::<Option<_>>()?;
        Some(Self {
            processes,
            memory: now.memory,
            throttling: now.throttling.map(|now| {
                // These only grow.
                let before = before.throttling.unwrap_or_default();
                Throttling {
                    periods: now.periods.max(before.periods),
                    time_ns: now.time_ns.max(before.time_ns),
                }
            }),
        })
    }
}

fn used(before: &Process, now: &Process) -> Option<Used> {
    let elapsed = now.at.saturating_duration_since(before.at);
    if before.pid != now.pid || elapsed < INTERVAL_MIN {
        return None;
    }
    // A clock that went backwards, if there is one, has used nothing.
    let time = now.time.saturating_sub(before.time);
    let percent = time.as_secs_f64() / elapsed.as_secs_f64() * 100.0;
    let user = percent * user_part(&before.stat, &now.stat);
    Some(Used {
        pid: now.pid,
        user,
        system: percent - user,
        resident: now.resident,
    })
}

/// Which part of an interval's processor time was in user mode.
///
/// The kernel tells the two apart in ticks of 10 ms only. So the ticks give the proportion, never the amount; and of an
/// interval with too few of them the proportion is that of the whole life.
fn user_part(before: &Stat, now: &Stat) -> f64 {
    let user = now.user_ticks.saturating_sub(before.user_ticks);
    let system = now.system_ticks.saturating_sub(before.system_ticks);
    let (user, system) = if user.saturating_add(system) < TICKS_MIN {
        (now.user_ticks, now.system_ticks)
    } else {
        (user, system)
    };
    if user == 0 {
        return 0.0;
    }
    // As durations, because only these become floating point without a cast; of what unit doesn't matter.
    Duration::from_millis(user).div_duration_f64(Duration::from_millis(user.saturating_add(system)))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const STAT: &str = "77 (a) R (b) S 7 2 3 4 5 6 7 8 9 10 110 50 13 14 20 0 4 0 2122 22 99 24";

    #[test]
    fn fields_are_found_behind_any_name() {
        let stat = Stat::parse(STAT).unwrap();
        let wanted = Stat {
            parent: 7,
            user_ticks: 110,
            system_ticks: 50,
            started_ticks: 2122,
        };
        assert_eq!(stat, wanted);
        for garbage in [
            "",
            "1 (x) S 1",
            "1 x S 1",
            &STAT.replace("110", "-1"),
            &STAT.replace(" S ", " Z "),
        ] {
            assert_eq!(Stat::parse(garbage), None, "{garbage:?}");
        }
    }

    #[test]
    fn resident_memory_is_the_process_s_own() {
        let status = "Name:\tRssAnon:\t9 kB\nVmPeak:\t  99 kB\nRssAnon:\t    2000 kB\nRssFile:\t   17000 kB\n\
                      RssShmem:\t      24 kB\nVmData:\t 1 kB\nVmSwap:\t       3 kB\n";
        let wanted = Resident {
            rss_bytes: 2024 * 1024,
            swap_bytes: 3 * 1024,
        };
        assert_eq!(Resident::parse(status), Some(wanted));
        // A process that is ending has no memory any more.
        for gone in ["RssAnon", "RssShmem", "VmSwap"] {
            assert_eq!(Resident::parse(&status.replace(gone, "Gone")), None, "{gone}");
        }
        for garbage in [
            "",
            "2000 MB",
            "99999999999999999999999 kB",
            "18446744073709551615 kB",
        ] {
            assert_eq!(
                Resident::parse(&status.replace("    2000 kB", garbage)),
                None,
                "{garbage}"
            );
        }
    }

    fn memory(version: Version, files: &[(&str, &str)]) -> Option<Memory> {
        let files: HashMap<_, _> = files.iter().copied().collect();
        Memory::read(version, |name| files.get(name).map(|text| (*text).to_owned()))
    }

    /// Texts of Linux 6.18.
    const FILES_1: [(&str, &str); 5] = [
        ("memory.usage_in_bytes", "90238976\n"),
        ("memory.max_usage_in_bytes", "91000832\n"),
        ("memory.kmem.usage_in_bytes", "1200128\n"),
        ("memory.kmem.max_usage_in_bytes", "1300480\n"),
        (
            "memory.stat",
            "cache 9240576\nrss 7434240\nrss_huge 0\nshmem 9084928\nmapped_file 7671808\nswap 4096\nswapcached 0\n\
             total_cache 141561856\ntotal_swap 5\n",
        ),
    ];
    const FILES_2: [(&str, &str); 4] = [
        ("memory.current", "90238976\n"),
        ("memory.peak", "91000832\n"),
        ("memory.swap.current", "4096\n"),
        (
            "memory.stat",
            "anon 7434240\nfile 9240576\nkernel 1200128\nkernel_stack 98304\nshmem 9084928\nfile_mapped 7671808\n\
             swapcached 0\n",
        ),
    ];

    #[test]
    fn memory_groups_of_both_versions_say_the_same() {
        let wanted = Memory {
            usage: 90_238_976,
            max_usage: Some(91_000_832),
            swap: Some(4096),
            cache: Some(9_240_576 - 9_084_928),
            kernel: Some(1_200_128),
            kernel_max: Some(1_300_480),
        };
        assert_eq!(memory(Version::One, &FILES_1), Some(wanted));
        let wanted = Memory {
            kernel_max: None,
            ..wanted
        };
        assert_eq!(memory(Version::Two, &FILES_2), Some(wanted));
    }

    #[test]
    fn what_a_kernel_does_not_say_is_absent_and_not_zero() {
        // Before 5.18 no kernel line, before 5.19 no peak; without swap no file for it.
        let old = [("memory.current", "4096\n"), ("memory.stat", "anon 1\nfile 3\n")];
        let wanted = Memory {
            usage: 4096,
            ..Memory::default()
        };
        assert_eq!(memory(Version::Two, &old), Some(wanted));
        assert_eq!(
            memory(Version::One, &[("memory.usage_in_bytes", "4096\n")]),
            Some(wanted)
        );
        let more = Memory {
            usage: 1,
            swap: Some(7),
            ..Memory::default()
        };
        assert_eq!(wanted.plus(more).usage, 4097);
        assert_eq!((wanted.plus(more).swap, more.plus(more).swap), (None, Some(14)));
    }

    #[test]
    fn no_memory_group_no_figures() {
        for version in [Version::One, Version::Two] {
            assert_eq!(memory(version, &[]), None);
            assert_eq!(memory(version, &FILES_1[1..]), None);
            for garbage in ["", "max\n", "-1\n", "1 2\n"] {
                assert_eq!(memory(version, &[(version.usage_file(), garbage)]), None);
            }
        }
        let garbage = [
            ("memory.current", "1\n"),
            ("memory.peak", "max\n"),
            ("memory.stat", "file\nfile x\n"),
        ];
        let wanted = Memory {
            usage: 1,
            ..Memory::default()
        };
        assert_eq!(memory(Version::Two, &garbage), Some(wanted));
    }

    #[test]
    fn throttling_of_both_versions_is_in_nanoseconds() {
        let wanted = Throttling {
            periods: 3,
            time_ns: 12_345_000,
        };
        let one = "nr_periods 9\nnr_throttled 3\nthrottled_time 12345000\nnr_bursts 0\nburst_time 0\n";
        assert_eq!(Throttling::parse(one), Some(wanted));
        let two = "usage_usec 88\nuser_usec 66\nsystem_usec 22\nnr_periods 9\nnr_throttled 3\nthrottled_usec 12345\n";
        assert_eq!(Throttling::parse(two), Some(wanted));
        for without in [
            "",
            "usage_usec 88\nuser_usec 66\nsystem_usec 22\n",
            "nr_throttled 3\n",
            "nr_throttled x\nthrottled_usec 1\n",
        ] {
            assert_eq!(Throttling::parse(without), None, "{without:?}");
        }
    }

    /// A process that ran so many milliseconds, `user` of them (in ticks of 10 ms) in user mode.
    fn process(at: Instant, ran_ms: u64, user_ticks: u64, system_ticks: u64) -> Process {
        Process {
            pid: 7,
            at,
            time: Duration::from_millis(ran_ms),
            stat: Stat {
                parent: 1,
                user_ticks,
                system_ticks,
                started_ticks: 1,
            },
            resident: Resident {
                rss_bytes: 1,
                swap_bytes: 0,
            },
        }
    }

    fn reading(processes: Vec<Process>) -> Reading {
        Reading {
            processes,
            memory: None,
            throttling: None,
        }
    }

    /// The rates of a single process: user, system.
    fn rates(before: Process, now: Process) -> Option<(f64, f64)> {
        let sample = Sample::between(&reading(vec![before]), &reading(vec![now]))?;
        Some((sample.processes[0].user, sample.processes[0].system))
    }

    fn near(rates: Option<(f64, f64)>, user: f64, system: f64) {
        let (seen_user, seen_system) = rates.unwrap();
        assert!((seen_user - user).abs() < 1e-6, "{seen_user}, not {user}");
        assert!((seen_system - system).abs() < 1e-6, "{seen_system}, not {system}");
    }

    #[test]
    fn rates_are_of_the_interval_and_not_of_the_past() {
        let begin = Instant::now();
        let long_past = process(begin, 9_000_000, 800_000, 100_000);
        let now = process(begin + Duration::from_secs(1), 9_000_800, 800_060, 100_020);
        near(rates(long_past, now), 60.0, 20.0);
        // Several cores.
        let now = process(begin + Duration::from_secs(2), 9_006_000, 800_600, 100_000);
        near(rates(long_past, now), 300.0, 0.0);
    }

    #[test]
    fn a_tenth_of_a_second_is_enough() {
        let begin = Instant::now();
        let before = process(begin, 500, 40, 10);
        let now = |ms: u64| process(begin + Duration::from_millis(ms), 500 + ms, 40 + ms / 10, 10);
        near(rates(before, now(100)), 100.0, 0.0);
        near(rates(before, now(50)), 4500.0 / 55.0, 1000.0 / 55.0);
        assert_eq!(rates(before, now(49)), None);
        assert_eq!(rates(before, now(0)), None);
    }

    #[test]
    fn ticks_give_the_proportion_and_never_the_amount() {
        let begin = Instant::now();
        let later = begin + Duration::from_secs(1);
        // 3 ms of an idle VM, and a tick that became full just then: 10 ms would be three times too many.
        near(
            rates(process(begin, 1000, 75, 25), process(later, 1003, 76, 25)),
            0.3 * 76.0 / 101.0,
            0.3 * 25.0 / 101.0,
        );
        // Younger than a tick.
        near(rates(process(begin, 1, 0, 0), process(later, 4, 0, 0)), 0.0, 0.3);
    }

    #[test]
    fn counters_that_go_backwards_have_used_nothing() {
        let begin = Instant::now();
        let later = begin + Duration::from_secs(1);
        near(
            rates(process(begin, 900, 80, 10), process(later, 800, 70, 10)),
            0.0,
            0.0,
        );
        // Only the ticks: the proportion is then that of the whole life.
        near(
            rates(process(begin, 900, 80, 10), process(later, 1000, 70, 10)),
            10.0 * 70.0 / 80.0,
            10.0 / 8.0,
        );
        // Time itself.
        assert_eq!(
            rates(process(later, 900, 80, 10), process(begin, 1000, 90, 10)),
            None
        );
        let at = |when, periods, time_ns| Reading {
            throttling: Some(Throttling { periods, time_ns }),
            ..reading(vec![process(when, 1, 1, 1)])
        };
        let sample = Sample::between(&at(begin, 5, 50), &at(later, 4, 60)).unwrap();
        let wanted = Throttling {
            periods: 5,
            time_ns: 60,
        };
        assert_eq!(sample.throttling, Some(wanted));
    }

    #[test]
    fn readings_of_other_processes_are_not_compared() {
        let begin = Instant::now();
        let before = process(begin, 900, 80, 10);
        let now = process(begin + Duration::from_secs(1), 1000, 90, 10);
        assert_eq!(rates(before, Process { pid: 8, ..now }), None);
        assert_eq!(
            Sample::between(&reading(vec![before, before]), &reading(vec![now])),
            None
        );
    }
}
