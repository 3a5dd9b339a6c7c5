//! How much of the host can be used up from inside?

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::machine::Console;
use crate::system::{self, Errno};

const MIB: usize = 1 << 20;

/// Takes memory and keeps it. Each step is said before the next, because the kernel may end this at any of them.
pub(crate) fn hog(console: &Console, mib: u64) {
    let mut taken: Vec<Vec<u8>> = Vec::new();
    for step in 1..=mib {
        let mut block: Vec<u8> = Vec::new();
        if block.try_reserve_exact(MIB).is_err() {
            console.say(&format!(
                "inmate: hog refused after {} MiB: {}",
                step - 1,
                Errno(libc::ENOMEM)
            ));
            break;
        }
        // Not zeros, and no two blocks alike: nothing of it can be kept as less than it is.
        let byte = u8::try_from(step % 251).unwrap_or(1) | 1;
        block.resize(MIB, byte);
        taken.push(std::hint::black_box(block));
        console.say(&format!("inmate: hog at {step} MiB"));
    }
    console.say(&format!("inmate: hog done at {} MiB", taken.len()));
    loop {
        std::thread::park();
        std::hint::black_box(&taken);
    }
}

/// Lines of a flood, of 64 bytes each, are written so many at a time.
const FLOOD_LINES: u64 = 1024;

/// Writes numbered lines as fast as they are taken.
pub(crate) fn flood(console: &Console, mib: u64) {
    const PADDING: &str = "...............................................";
    let began = Instant::now();
    let mut longest = Duration::ZERO;
    let lines = mib * (1 << 20) / 64;
    let mut number = 0;
    while number < lines {
        let until = lines.min(number + FLOOD_LINES);
        let text: String = (number + 1..=until)
            .map(|line| format!("flood {line:010}{PADDING}\n"))
            .collect();
        number = until;
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            let asked = Instant::now();
            match console.write_some(rest) {
                Ok(taken) if taken > 0 => rest = rest.get(taken..).unwrap_or_default(),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                _ => return,
            }
            longest = longest.max(asked.elapsed());
        }
    }
    console.say(&format!(
        "inmate: flood done in {} ms, longest stall {} ms",
        began.elapsed().as_millis(),
        longest.as_millis()
    ));
}

const PROCESSES: usize = 100;
const THREADS: usize = 2000;

/// Makes processes and threads, as many at once as it gets.
pub(crate) fn fork(console: &Console) {
    let mut children = Vec::new();
    let mut refusal = None;
    for _ in 0..PROCESSES {
        match system::fork(|| system::sleep_for_good()) {
            Ok(pid) => children.push(pid),
            Err(error) => refusal = Some(error),
        }
    }
    say_count(console, "processes", children.len(), PROCESSES, refusal);
    for pid in children {
        let _ended = system::kill(pid, libc::SIGKILL).and_then(|()| system::wait(pid));
    }

    let over = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    let mut refusal = None;
    for _ in 0..THREADS {
        let over = Arc::clone(&over);
        let thread = std::thread::Builder::new().stack_size(64 * 1024).spawn(move || {
            while !over.load(Ordering::Relaxed) {
                std::thread::park();
            }
        });
        match thread {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                refusal = Some(Errno::from(error));
                break;
            }
        }
    }
    say_count(console, "threads", threads.len(), THREADS, refusal);
    over.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.thread().unpark();
        drop(thread.join());
    }
}

fn say_count(console: &Console, what: &str, made: usize, asked: usize, refusal: Option<Errno>) {
    let refusal = refusal.map_or_else(String::new, |error| format!(", refused {error}"));
    console.say(&format!("inmate: {made} of {asked} {what}{refusal}"));
}

/// Writes to the first disk from its beginning on.
pub(crate) fn write(console: &Console, disk: Option<i64>, mib: u64) {
    // A file size limit that is passed is a signal first, which would end the process.
    system::ignore(libc::SIGXFSZ);
    let Some(file) = disk.and_then(|number| system::own(number).ok()).map(File::from) else {
        console.say("inmate: no disk to write to");
        return;
    };
    let block = vec![b'#'; MIB];
    let end = mib << 20;
    let mut written: u64 = 0;
    while written < end {
        let length = usize::try_from(end - written).unwrap_or(MIB).min(MIB);
        match file.write_at(block.get(..length).unwrap_or_default(), written) {
            Ok(taken) if taken > 0 => written += taken as u64,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            other => {
                let error = other.err().map_or(Errno(libc::ENOSPC), Errno::from);
                console.say(&format!("inmate: write stopped after {written} bytes: {error}"));
                return;
            }
        }
    }
    console.say(&format!("inmate: write done after {written} bytes"));
}
