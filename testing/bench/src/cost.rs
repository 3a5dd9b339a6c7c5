//! What has a process used so far?

use std::fs;
use std::time::Duration;

/// CPU time in nanoseconds of all threads that a process has now; 0 if it is gone.
pub(crate) fn cpu_ns(pid: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    let of_thread = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("schedstat")).ok();
    threads
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(of_thread)
        .filter_map(|text| text.split(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// How long ago a process was started, to a hundredth of a second and rather more than less; `None` if it is gone.
pub(crate) fn age(pid: u32) -> Option<Duration> {
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split(' ').next()?.parse().ok()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Field 22 of proc(5), counted after the name's last bracket, which ends field 2.
    let ticks: f64 = stat
        .rsplit_once(')')?
        .1
        .split_ascii_whitespace()
        .nth(22 - 3)?
        .parse()
        .ok()?;
    let age = uptime - ticks / rustix::param::clock_ticks_per_second() as f64;
    Duration::try_from_secs_f64(age).ok()
}

/// Memory in KiB that is a process's alone: its unique set size.
pub(crate) fn uss_kib(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let private = |line: &&str| line.starts_with("Private_Clean:") || line.starts_with("Private_Dirty:");
    text.lines()
        .filter(private)
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum()
}

/// All processes, as id and arguments, whose program is this file.
pub(crate) fn running(program: &std::path::Path) -> Vec<(u32, Vec<String>)> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        (fs::read_link(entry.path().join("exe")).ok()? == program).then_some(())?;
        Some((pid, arguments(pid)))
    })
    .collect()
}

/// The arguments of a process, the program's name first.
pub(crate) fn arguments(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}
