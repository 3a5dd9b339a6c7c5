//! Does a console at full speed hold up nobody: its guest, the shim, the log, the host?

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use super::logs::ticks;
use super::stop::assert_exit;
use super::witness::{the_vm, wait_nothing_left};
use crate::agent::Client;
use crate::harness::{say, side_by_side};
use crate::host::Vm;
use crate::job::{Job, Order};
use crate::process::{self, Process};
use crate::wait::{self, seconds};
use crate::world::{World, required};

const MIB: u64 = 1 << 20;

/// What the program in QEMU's place writes, in lines of 64 bytes.
const FLOOD_MIB: u64 = 100;

/// How long one write of 64 KiB to the console may take, that is four rounds of the supervisor. 16 to 70 ms were seen on two
/// processors with a load of 6. A guest's serial port at 115200 baud takes 5.7 s for as much, so a guest that expects
/// no more of its console than that of hardware never notices; its kernel complains after 20 s.
const STALL_MAX: Duration = Duration::from_millis(500);

/// How much more memory each of the shim's processes may have than that of a VM that says nothing: the buffers have 68 KiB.
const GROWTH_MAX_BYTES: u64 = MIB;

/// What Nomad keeps of the log.
const LOG_FILES: u32 = 3;
const LOG_FILE_MIB: u32 = 5;

/// How often and how long nobody reads the log.
const UNREAD_TIMES: u32 = 3;
const UNREAD_FOR: Duration = Duration::from_millis(300);

/// How long Nomad's API may take to answer with the end of a log that is flooded.
const TAIL_LIMIT: Duration = seconds(5);

/// How long a stop may take in a flood: the kill timeout is 20 s, and this machine powers off at once.
const STOP_LIMIT: Duration = seconds(3);

/// Pause between two looks at the processes and the log's files.
const LOOK: Duration = Duration::from_millis(20);

/// A program floods the console from QEMU's place, faster than any guest could.
pub(super) fn console_flood(world: &World) {
    let client = &with_inmate(world);
    let mut order = flooding("flood", FLOOD_MIB).on(client);
    order.log_files = [LOG_FILES, LOG_FILE_MIB];
    let idle = world.run(&Order::stub("idle", "").on(client));
    let _running = idle.wait_running();
    let unflooded = shim_memory(&the_vm(&idle, client));
    let job = world.run(&order);
    let _running = job.wait_running();
    let vm = the_vm(&job, client);
    let logs = logs(client, &job);
    let over = AtomicBool::new(false);
    let (seen, slowest) = std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch(&vm, &logs, &over));
        let slowest = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| disturb(world, client, &job)));
        over.store(true, Ordering::Relaxed);
        let seen = watching.join().expect("it only looks");
        (
            seen,
            slowest.unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        )
    });

    let whole = seen.whole_log();
    let (text, notes) = without_notes(&whole);
    let (dropped, arrived) = (notes.iter().sum::<u64>(), text.len() as u64);
    let done = text
        .lines()
        .find(|line| line.starts_with("inmate: flood done"))
        .unwrap_or_else(|| panic!("the flood has no end: {} bytes", whole.len()));
    let stall = number_after(done, "longest stall ");
    say(&format!(
        "    {FLOOD_MIB} MiB in {} ms: {arrived} bytes arrived, {dropped} dropped in {} places; longest stall {stall} ms; \
         memory {} KiB (monitor) and {} KiB (supervisor), {} and {} without a flood; log at most {} KiB on disk; its end told within {} ms",
        number_after(done, "done in "),
        notes.len(),
        seen.memory[0] >> 10,
        seen.memory[1] >> 10,
        unflooded[0] >> 10,
        unflooded[1] >> 10,
        seen.log_most >> 10,
        slowest.as_millis()
    ));
    assert!(
        Duration::from_millis(stall) <= STALL_MAX,
        "the guest stood still: {done}"
    );
    for ((most, idle), which) in seen
        .memory
        .into_iter()
        .zip(unflooded)
        .zip(["monitor", "supervisor"])
    {
        assert!(
            idle > 0 && most <= idle + GROWTH_MAX_BYTES,
            "the {which} has {most} bytes, that of a VM that says nothing has {idle}"
        );
    }
    // One file more than it keeps, while the oldest is removed.
    let most = u64::from((LOG_FILES + 1) * LOG_FILE_MIB) * MIB;
    assert!(seen.log_most <= most, "the log had {} bytes", seen.log_most);
    assert!(
        seen.files.len() > LOG_FILES as usize,
        "it was never rotated: {:?}",
        seen.files.keys()
    );
    assert!(dropped > 0, "nothing was dropped while nobody read");
    assert_eq!(
        arrived + dropped,
        FLOOD_MIB * MIB + done.len() as u64 + 1,
        "bytes are missing, or told of too often: {notes:?}"
    );
    is_in_order(&text);

    // A stop in the middle of it.
    let other = world.run(&flooding("flooding", 100 * FLOOD_MIB).on(client));
    let _flooded = other.wait_console("flood 00000");
    std::thread::sleep(UNREAD_FOR);
    let ended = other.stop_and_wait();
    assert_exit(&ended, 0, 0);
    let at = |kind: &str| ended.event(kind).map_or(0, |event| event.time);
    let took = Duration::from_nanos(u64::try_from(at("Terminated") - at("Killing")).unwrap_or(u64::MAX));
    assert!(took <= STOP_LIMIT, "the stop took {took:?}: {}", ended.story());
    for job in [job, idle] {
        let _ended = job.stop_and_wait();
    }
    wait_nothing_left(client);
}

/// How long a flooding guest may take to answer over HTTP, with two guests on two processors. 60 ms are usual.
const ANSWER_MAX: Duration = seconds(5);

/// How long the console of another guest, which prints every 200 ms, may be still.
const STILL_MAX: Duration = seconds(3);

/// How much slower a guest may print while nobody reads: what else happens on the host slows it down too, three times were seen.
const SLOWER_MAX: f64 = 10.0;

/// A guest prints without end, with nobody to read it: it goes on, and so does the one beside it.
pub(super) fn guest(world: &World) {
    let client = &world.main;
    // The port in the guest by the driver's port_map, not by the job's `to`.
    let mut order = Order::with_http("flood", "steppe.flood").set(
        "network",
        json!([{ "name": "user", "ports": ["http"], "port_map": { "http": 80 } }]),
    );
    order.ports = vec![("http".to_owned(), 0)];
    let [job, beside] = side_by_side(
        2,
        &[order, Order::guest("beside", "steppe.ticks=fast")],
        |order| world.run(order),
    )
    .try_into()
    .expect("there are two");
    let _console = job.wait_console("flood 100\r\n");
    let _console = beside.wait_console("tick 3\r\n");
    let reader = reader(client, &job);
    let _answered = job.uptime();

    let (before, per_second) = rate(world, &job);
    let unread_for = unread_for(per_second);
    let over = AtomicBool::new(false);
    let (still, slowest) = std::thread::scope(|scope| {
        let watching = scope.spawn(|| longest_still(&logs(client, &beside), &over));
        let reading = Paused::new(&reader);
        let (began, mut slowest) = (Instant::now(), Duration::ZERO);
        let mut last = 0.0;
        while began.elapsed() < unread_for {
            let asked = Instant::now();
            let now = job.uptime();
            slowest = slowest.max(asked.elapsed());
            assert!(now > last, "the guest's clock stands still at {now}");
            last = now;
            std::thread::sleep(LOOK);
        }
        drop(reading);
        over.store(true, Ordering::Relaxed);
        (watching.join().expect("it only looks"), slowest)
    });
    let log = wait::until("a word of what is missing", seconds(20), || {
        let log = job.console();
        let Some((_, rest)) = log.split_once(NOTE[0]) else {
            return Err(format!("{} bytes", log.len()));
        };
        // Some lines behind it too.
        if rest.lines().count() > 10 {
            Ok(log)
        } else {
            Err("nothing after the note".to_owned())
        }
    });
    let after = newest_number(&log);
    let rate_unread = (after - before) as f64 * LINE_BYTES / unread_for.as_secs_f64();
    let dropped = adds_up(&log);
    say(&format!(
        "    a guest that prints {:.0} KiB/s was not read for {:.1} s: {dropped} bytes dropped, {:.0} KiB/s printed meanwhile; \
         it answers within {} ms; the guest beside it was still for {} ms at most",
        per_second / 1024.0,
        unread_for.as_secs_f64(),
        rate_unread / 1024.0,
        slowest.as_millis(),
        still.as_millis()
    ));
    assert!(slowest <= ANSWER_MAX, "it answers after {slowest:?}");
    assert!(
        still <= STILL_MAX,
        "the guest beside it said nothing for {still:?}"
    );
    assert!(
        rate_unread * SLOWER_MAX >= per_second,
        "it printed {rate_unread} bytes a second while nobody read, {per_second} before"
    );
    let length = job.console().len();
    wait::until("the log grows again", seconds(20), || {
        let now = job.console().len();
        if now > length {
            Ok(())
        } else {
            Err(format!("{now} bytes"))
        }
    });
    let ended = job.stop_and_wait();
    assert_eq!(ended.client_status, "complete", "{}", ended.story());
    let ended = beside.stop_and_wait();
    assert_exit(&ended, 0, 0);
    let _complete = ticks(&beside.console());
}

/// So many bytes a guest is to print while nobody reads: more than the FIFO and the shim's buffer hold, which are 128 KiB.
const UNREAD_BYTES: f64 = 300.0 * 1024.0;

fn unread_for(per_second: f64) -> Duration {
    Duration::from_secs_f64(UNREAD_BYTES / per_second).clamp(seconds(4), seconds(20))
}

/// How long the log of a flooding guest is to be unread so that bytes are dropped.
pub(super) fn long_enough(world: &World, job: &Job<'_>) -> Duration {
    let (_, per_second) = rate(world, job);
    unread_for(per_second)
}

/// About what a line of a guest's flood has: `flood 123456` and two more.
const LINE_BYTES: f64 = 13.0;

/// A line of a guest's flood: `flood 12`.
fn guest_line(line: &str) -> Option<u64> {
    line.trim_end_matches('\r').strip_prefix("flood ")?.parse().ok()
}

/// The number of a guest's newest whole line.
fn newest_number(log: &str) -> u64 {
    let mut whole = log.rsplit('\n').skip(1);
    whole.find_map(guest_line).expect("a flood has numbers")
}

/// The number of a flooding guest's newest line, and how many bytes it prints a second.
fn rate(world: &World, job: &Job<'_>) -> (u64, f64) {
    const MEASURED: Duration = seconds(1);
    let look = || {
        let end = world
            .api
            .log_end(&job.allocation, 1000)
            .unwrap_or_else(|error| panic!("{error}"));
        (newest_number(&end), Instant::now())
    };
    let (from, at) = look();
    std::thread::sleep(MEASURED);
    let (to, then) = look();
    (to, (to - from) as f64 * LINE_BYTES / (then - at).as_secs_f64())
}

/// How long a job's console said nothing, at most, until told that all is over.
fn longest_still(logs: &Path, over: &AtomicBool) -> Duration {
    let size = || std::fs::metadata(logs.join("vm.stdout.0")).map_or(0, |data| data.len());
    let (mut longest, mut at, mut last) = (Duration::ZERO, Instant::now(), size());
    while !over.load(Ordering::Relaxed) {
        let now = size();
        longest = longest.max(at.elapsed());
        if now != last {
            (at, last) = (Instant::now(), now);
        }
        std::thread::sleep(LOOK);
    }
    longest
}

/// How many bytes a guest's flood had dropped, each of which the notes must have told of.
fn adds_up(log: &str) -> u64 {
    // Where the line of a number ends, counted from the first one's beginning.
    let end = |number: u64| {
        (1..=number)
            .map(|line| format!("flood {line}\r\n").len() as u64)
            .sum::<u64>()
    };
    let parts: Vec<&str> = log.split(NOTE[0]).collect();
    let mut all = 0;
    for pair in parts.windows(2) {
        let (number, behind) = pair[1].split_once(NOTE[1]).expect("a note has an end");
        let ahead = pair[0].split_once(NOTE[1]).map_or(pair[0], |(_, rest)| rest);
        let dropped: u64 = number.parse().expect("a note says how many");
        let (whole, cut) = ahead
            .rsplit_once('\n')
            .expect("there are whole lines before a note");
        let last = whole
            .rsplit('\n')
            .find_map(guest_line)
            .expect("a flood has numbers");
        let (rest, next) = behind
            .split_once('\n')
            .expect("there are whole lines after a note");
        let first = next.lines().find_map(guest_line).expect("a flood has numbers");
        let from = end(last) + cut.len() as u64;
        let to = end(first - 1) - rest.len() as u64 - 1;
        assert_eq!(
            dropped,
            to - from,
            "missing between {last} and {first}: {cut:?} and {rest:?}"
        );
        all += dropped;
    }
    assert!(all > 0, "nothing was dropped while nobody read");
    all
}

fn flooding(name: &str, mib: u64) -> Order {
    Order::stub(name, &format!("inmate.flood={mib}"))
}

/// A client whose QEMU is a program of ours.
pub(super) fn with_inmate(world: &World) -> Client {
    let name = world.name("inm");
    let folder = world.scratch.path().join(format!("{name}-qemu"));
    std::fs::create_dir(&folder).expect("a folder can be made in the scratch folder");
    let program = folder.join("qemu-inmate");
    crate::world::replace(&required("STEPPE_INMATE", ""), &program);
    let options = format!(
        "{}\n    accelerator = \"tcg\"\n    qemu = \"{}\"\n",
        world.options(),
        program.display()
    );
    let client = world.client(&name, &options);
    client.agent.start();
    client.wait_healthy(&world.api);
    client
}

/// Keeps the log's reader from reading for some moments, and asks for the log's end meanwhile, until all is written. Gives
/// the slowest answer.
fn disturb(world: &World, client: &Client, job: &Job<'_>) -> Duration {
    let reader = reader(client, job);
    let mut slowest = Duration::ZERO;
    let mut newest = 0;
    for _ in 0..UNREAD_TIMES {
        wait::until("the flood goes on", seconds(20), || {
            let asked = Instant::now();
            let end = world.api.log_end(&job.allocation, 1000)?;
            slowest = slowest.max(asked.elapsed());
            let last = newest_line(&end);
            if last > newest {
                newest = last;
                Ok(())
            } else {
                Err(format!("{last:?}, {newest} before"))
            }
        });
        let _reading = Paused::new(&reader);
        std::thread::sleep(UNREAD_FOR);
    }
    wait::until("the flood's end", seconds(60), || {
        let asked = Instant::now();
        let end = world.api.log_end(&job.allocation, 1000)?;
        slowest = slowest.max(asked.elapsed());
        if end.contains("inmate: flood done") {
            Ok(())
        } else {
            Err(format!("line {}", newest_line(&end)))
        }
    });
    assert!(slowest <= TAIL_LIMIT, "the log's end was told after {slowest:?}");
    slowest
}

/// The number of the last whole line of a flood; 0 if there is none.
fn newest_line(text: &str) -> u64 {
    let mut lines = text.lines().rev().skip(1);
    lines.find_map(line_number).unwrap_or(0)
}

/// A line of the program's flood: `flood 0000000001.....`.
fn line_number(line: &str) -> Option<u64> {
    let number = line.strip_prefix("flood ")?.trim_end_matches('.');
    if line.len() == 63 {
        number.parse().ok()
    } else {
        None
    }
}

/// A process that stands still as long as this value lives.
struct Paused<'p>(&'p Process);

impl<'p> Paused<'p> {
    fn new(process: &'p Process) -> Self {
        assert!(process::signal(process.pid, Signal::STOP), "{process:?} is gone");
        Self(process)
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        process::signal(self.0.pid, Signal::CONT);
    }
}

/// Where Nomad keeps a job's logs.
fn logs(client: &Client, job: &Job<'_>) -> PathBuf {
    let allocation = client.data_dir().join("alloc").join(&job.allocation);
    allocation.join("alloc/logs")
}

/// The process that reads a job's console.
fn reader(client: &Client, job: &Job<'_>) -> Process {
    let fifo = logs(client, job).join(".vm.stdout.fifo");
    process::all()
        .into_iter()
        .find(|process| process.arguments.iter().any(|word| word == "logmon") && process.holds(&fifo))
        .expect("a logmon reads the FIFO")
}

/// What was seen while it lasted.
struct Seen {
    /// Most memory of monitor and supervisor, in bytes.
    memory: [u64; 2],
    /// Most bytes that the log had on disk.
    log_most: u64,
    /// Its files by their numbers: whoever holds a file has what is in it, also when it is removed.
    files: BTreeMap<u32, File>,
}

impl Seen {
    fn whole_log(&self) -> String {
        let mut bytes = Vec::new();
        for (number, mut file) in &self.files {
            file.read_to_end(&mut bytes)
                .unwrap_or_else(|error| panic!("file {number} of the log: {error}"));
        }
        String::from_utf8(bytes).expect("the flood is text")
    }
}

/// Looks at a VM's shim and its log until told that all is over.
fn watch(vm: &Vm, logs: &Path, over: &AtomicBool) -> Seen {
    let mut seen = Seen {
        memory: [0; 2],
        log_most: 0,
        files: BTreeMap::new(),
    };
    loop {
        // Once more after the end: the last file.
        let last = over.load(Ordering::Relaxed);
        for (most, now) in seen.memory.iter_mut().zip(shim_memory(vm)) {
            *most = (*most).max(now);
        }
        let mut size = 0;
        for entry in std::fs::read_dir(logs).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(number) = name
                .to_str()
                .and_then(|name| name.strip_prefix("vm.stdout.")?.parse().ok())
            else {
                continue;
            };
            size += entry.metadata().map_or(0, |data| data.len());
            if let std::collections::btree_map::Entry::Vacant(place) = seen.files.entry(number)
                && let Ok(file) = File::open(entry.path())
            {
                place.insert(file);
            }
        }
        seen.log_most = seen.log_most.max(size);
        if last {
            return seen;
        }
        std::thread::sleep(LOOK);
    }
}

/// The memory of monitor and supervisor in bytes.
fn shim_memory(vm: &Vm) -> [u64; 2] {
    [vm.shim, vm.supervisor().unwrap_or_default()].map(memory)
}

/// The memory of a process in bytes.
fn memory(pid: u32) -> u64 {
    let status = process::status(pid, pid);
    let size = status
        .get("VmRSS")
        .and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
    size.unwrap_or(0) << 10
}

/// What the supervisor writes in the place of what it dropped, before and after the number.
const NOTE: [&str; 2] = ["\n[steppe: ", " bytes were dropped here, the log was not read]\n"];

/// A log as it would be had nobody noted anything in it, and how many bytes each note says are missing.
fn without_notes(log: &str) -> (String, Vec<u64>) {
    let (mut text, mut notes) = (String::with_capacity(log.len()), Vec::new());
    for (place, part) in log.split(NOTE[0]).enumerate() {
        match part.split_once(NOTE[1]) {
            Some((number, rest)) if place > 0 => {
                notes.push(number.parse().expect("a note says how many"));
                text.push_str(rest);
            }
            _ => text.push_str(part),
        }
    }
    (text, notes)
}

/// Whole lines have rising numbers; what is no whole line lies where bytes were dropped.
fn is_in_order(text: &str) {
    let mut last = 0;
    for number in text.lines().filter_map(line_number) {
        assert!(number > last, "line {number} comes after {last}");
        last = number;
    }
    assert_eq!(last, FLOOD_MIB * MIB / 64, "the newest lines are missing");
}

fn number_after(text: &str, words: &str) -> u64 {
    let rest = text.split_once(words).map_or("", |(_, rest)| rest);
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits
        .parse()
        .unwrap_or_else(|_| panic!("no number after {words:?}: {text}"))
}
