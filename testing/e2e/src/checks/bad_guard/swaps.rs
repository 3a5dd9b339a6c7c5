//! Is a file opened that is swapped for another one between the look at it and its use?
//!
//! Two names change places as fast as the kernel does that, while starts run. What must never be opened lies outside, and
//! the kernel tells of each opening of it.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{CWD, FileType, Mode, RenameFlags};
use serde_json::{Value, json};

use super::super::bad_input::Row;
use super::super::flood::with_inmate;
use super::super::witness::the_vm;
use super::{at_the_end, left_of};
use crate::agent::Client;
use crate::harness::side_by_side;
use crate::job::{Job, Order};
use crate::scratch;
use crate::wait::{self, seconds};
use crate::world::World;

/// Starts by hand of each kind. Each opens the file twice.
const BY_HAND: usize = 40;

/// Starts by Nomad of each kind.
const BY_NOMAD: usize = 3;

/// What changes places with the task's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Other {
    /// A link that leads out.
    Link,
    /// A FIFO, which whoever opens it might wait for.
    Fifo,
    Folder,
    /// A link that leads out, with the folder in which the file lies.
    Above,
}

const OTHERS: [(Other, &str); 4] = [
    (Other::Link, "a file that becomes a link out"),
    (Other::Fifo, "a file that becomes a FIFO"),
    (Other::Folder, "a file that becomes a folder"),
    (Other::Above, "a folder that becomes a link out"),
];

/// The names have changed places for up to six times this: a start looks at the file for some milliseconds.
const SWAP_PAUSE: Duration = Duration::from_micros(60);

/// The file's name.
const FILE: &str = "swapped.raw";

const BYTES: usize = 32 * 1024;

pub(super) fn rows(world: &World) -> Vec<Row> {
    let client = &with_inmate(world);
    let plan = plan(world, client);
    let mut rows = Vec::new();
    // One after the other: the more often they change places, the better.
    for (other, input) in OTHERS {
        rows.push(by_hand(world, &plan, other, input));
        rows.push(by_nomad(world, client, other, input));
    }
    rows.push(at_the_end(client));
    rows
}

/// What must not be opened, and the kernel's word about that.
struct Outside {
    folder: PathBuf,
    watch: OwnedFd,
}

impl Outside {
    fn new(world: &World) -> Self {
        let folder = world.scratch.path().join(world.name("outside"));
        std::fs::create_dir(&folder).expect("a folder can be made in the scratch folder");
        std::fs::write(folder.join(FILE), vec![7; BYTES])
            .expect("a file can be written in the scratch folder");
        let watch =
            inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).expect("the kernel has inotify");
        let seen = WatchFlags::OPEN | WatchFlags::ACCESS | WatchFlags::MODIFY | WatchFlags::ATTRIB;
        // Of a folder's watch also what is in it.
        inotify::add_watch(&watch, &folder, seen).expect("a folder can be watched");
        Self { folder, watch }
    }

    /// Whether something of it was opened, read or changed since the last time that this was asked.
    fn is_touched(&self) -> bool {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 16 * 1024];
        let mut events = inotify::Reader::new(&self.watch, &mut buffer);
        let mut touched = false;
        while events.next().is_ok() {
            touched = true;
        }
        touched
    }

    /// What was touched, and a proof that it would have been seen.
    fn judge(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.is_touched() {
            faults.push("what lies outside was touched".to_owned());
        }
        let read = std::fs::read(self.folder.join(FILE)).expect("it is there");
        assert!(self.is_touched(), "the kernel says nothing of what is opened");
        if read != [7; BYTES] {
            faults.push("what lies outside was changed".to_owned());
        }
        faults
    }
}

/// Lets two names change places until told that it is enough; how often they did.
fn swap(a: &Path, b: &Path, over: &AtomicBool) -> u32 {
    let mut count: u32 = 0;
    while !over.load(Ordering::Relaxed) {
        if rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).is_ok() {
            count += 1;
        }
        // Both states are to last for a moment, of different lengths, and the others on this host shall live.
        std::thread::sleep(SWAP_PAUSE * (count % 7));
    }
    count
}

/// Makes what is to change places with the file, beside it; both names.
fn prepare(other: Other, folder: &Path, outside: &Outside) -> [PathBuf; 2] {
    let [file, beside] = match other {
        Other::Above => [folder.to_owned(), folder.with_file_name("swapped-above")],
        _ => [folder.join(FILE), folder.join("swapped-other")],
    };
    let made = match other {
        Other::Link => std::os::unix::fs::symlink(outside.folder.join(FILE), &beside),
        Other::Above => std::os::unix::fs::symlink(&outside.folder, &beside),
        Other::Folder => std::fs::create_dir(&beside),
        Other::Fifo => rustix::fs::mknodat(CWD, &beside, FileType::Fifo, Mode::from_raw_mode(0o666), 0)
            .map_err(Into::into),
    };
    made.unwrap_or_else(|error| panic!("{}: {error}", beside.display()));
    [file, beside]
}

/// A launch plan of a task of Nomad's, whose program only says its version.
fn plan(world: &World, client: &Client) -> Value {
    let job = world.run(&Order::stub("plan", "").on(client));
    let _running = job.wait_running();
    let path = the_vm(&job, client).directory(client).join("plan.json");
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let _ended = job.stop_and_wait();
    let mut plan: Value = serde_json::from_slice(&text).expect("a plan is JSON");
    plan["arguments"] = json!(["--version"]);
    plan
}

/// Starts by the shim alone, many times.
fn by_hand(world: &World, plan: &Value, other: Other, input: &str) -> Row {
    let outside = Outside::new(world);
    let task = world.scratch.path().join(world.name("task"));
    let folder = task.join("local");
    std::fs::create_dir_all(&folder).expect("a folder can be made in the scratch folder");
    std::fs::write(folder.join(FILE), vec![8; BYTES]).expect("a file can be written in the scratch folder");
    let names = prepare(other, &folder, &outside);
    let mut plan = plan.clone();
    let descriptors = plan["descriptors"]
        .as_array_mut()
        .expect("a plan has descriptors");
    for (number, access) in [(40, "read-write"), (41, "load")] {
        descriptors.push(json!({
            "number": number, "name": access,
            "source": { "file": { "beneath": task, "path": format!("local/{FILE}"), "access": access } }
        }));
    }
    let path = task.join("plan.json");
    std::fs::write(&path, plan.to_string()).expect("a file can be written in the scratch folder");

    let over = AtomicBool::new(false);
    let (said, swaps) = std::thread::scope(|scope| {
        let swapping = scope.spawn(|| swap(&names[0], &names[1], &over));
        let said: Vec<String> = (0..BY_HAND).map(|_| run(world, &path)).collect();
        over.store(true, Ordering::Relaxed);
        (said, swapping.join().expect("it only swaps"))
    });
    // Past the opening, the program says its version and ends.
    let is_opened = |text: &&String| text.contains("before the guest was started");
    let is_refused =
        |text: &&String| text.contains("can't be opened beneath") || text.contains("is not a regular file");
    let (opened, refused) = (
        said.iter().filter(is_opened).count(),
        said.iter().filter(is_refused).count(),
    );
    let first = said.iter().find(is_refused).cloned().unwrap_or_default();
    let sentence = format!(
        "{BY_HAND} starts, {swaps} swaps: {opened} found the file, {refused} were refused: {}",
        short(world, &first)
    );
    let mut row = Row::judged(
        &format!("{input}, the shim alone"),
        &sentence,
        &[],
        outside.judge(),
    );
    if opened == 0 || refused == 0 || opened + refused < BY_HAND {
        let strange = said.iter().find(|text| !is_opened(text) && !is_refused(text));
        row.fault = format!(" nothing was raced: {strange:?}");
    }
    row
}

/// What the shim says of one start.
fn run(world: &World, plan: &Path) -> String {
    // A shim that waits for somebody who opens the FIFO's other end would wait for good.
    let done = Command::new("timeout")
        .arg("20")
        .arg(world.shim())
        .arg("run")
        .arg(plan)
        .env(scratch::MARK, world.scratch.path())
        .stdin(Stdio::null())
        .output()
        .expect("the shim can be started");
    String::from_utf8_lossy(&done.stderr).into_owned()
}

/// Starts by Nomad: plugin and shim look at the file, one after the other.
fn by_nomad(world: &World, client: &Client, other: Other, input: &str) -> Row {
    let outside = Outside::new(world);
    let image = world.scratch.path().join(world.name("image"));
    std::fs::write(&image, " ".repeat(BYTES)).expect("a file can be written in the scratch folder");
    let mut order = Order::stub("swapped", "")
        .set(
            "disk",
            json!([{ "name": "data", "file": format!("local/{FILE}"), "format": "raw" }]),
        )
        .on(client);
    order.files = vec![(image.display().to_string(), format!("local/{FILE}"))];
    let told = side_by_side(BY_NOMAD, &[(); BY_NOMAD], |()| {
        let job = world.run(&order);
        let folder = client
            .data_dir()
            .join("alloc")
            .join(&job.allocation)
            .join("vm/local");
        let over = AtomicBool::new(false);
        let told = std::thread::scope(|scope| {
            let swapping = scope.spawn(|| {
                // As soon as Nomad has put it there, which is just before the start.
                let there = wait_for(&folder.join(FILE), &over);
                there.then(|| {
                    let names = prepare(other, &folder, &outside);
                    let count = swap(&names[0], &names[1], &over);
                    // What Nomad removes afterwards is what it made.
                    let data = std::fs::symlink_metadata(&names[0]);
                    if !data.is_ok_and(|data| {
                        if other == Other::Above {
                            data.is_dir()
                        } else {
                            data.is_file()
                        }
                    }) {
                        let _ =
                            rustix::fs::renameat_with(CWD, &names[0], CWD, &names[1], RenameFlags::EXCHANGE);
                    }
                    count
                })
            });
            let told = outcome(&job);
            over.store(true, Ordering::Relaxed);
            let swaps = swapping.join().expect("it only swaps").unwrap_or(0);
            (told, swaps)
        });
        let _ended = job.stop_and_wait();
        let left = left_of(client, &job.allocation);
        (told.0, told.1, left)
    });
    let swaps: u32 = told.iter().map(|(_, swaps, _)| swaps).sum();
    let sentences: Vec<&str> = told.iter().map(|(sentence, ..)| sentence.as_str()).collect();
    let mut row = Row::judged(
        &format!("{input}, by Nomad"),
        &short(
            world,
            &format!("{} starts, {swaps} swaps: {}", told.len(), sentences.join(" | ")),
        ),
        &[],
        outside.judge(),
    );
    row.left.extend(told.iter().flat_map(|(.., left)| left.clone()));
    let of_the_file = |sentence: &&str| *sentence == "started" || sentence.contains(FILE);
    if !sentences.iter().all(of_the_file) || swaps == 0 {
        row.fault = " it is refused for something else, or nothing was raced".to_owned();
    }
    row
}

/// Waits for a file without a pause; whether it came before all was over.
fn wait_for(file: &Path, over: &AtomicBool) -> bool {
    while !file.exists() {
        if over.load(Ordering::Relaxed) {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

/// What becomes of a start.
fn outcome(job: &Job<'_>) -> String {
    let told = wait::try_until(seconds(30), || {
        let look = job.look();
        if look.event("Started").is_some() {
            return Ok("started".to_owned());
        }
        let refusal = look
            .event("Driver Failure")
            .map(|event| event.display_message.clone());
        refusal.ok_or_else(|| look.story())
    });
    let told = told.unwrap_or_else(|seen| seen);
    told.rsplit("desc = ").next().unwrap_or_default().to_owned()
}

/// A sentence without the paths of this run.
fn short(world: &World, sentence: &str) -> String {
    let scratch = world.scratch.path().display().to_string();
    sentence.trim().replace(&scratch, "…")
}
