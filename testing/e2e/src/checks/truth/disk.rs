//! What if the disk of the state directory is full: at each write of a start, and at a VM's end?

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, mount};
use rustix::process::Signal;

use super::super::bad_input::Row;
use super::super::stop::terminated;
use super::super::witness::terminate;
use super::{Place, Victim, at_the_end};
use crate::agent::Client;
use crate::host::Snapshot;
use crate::job::Order;
use crate::process;
use crate::wait::{self, seconds};
use crate::world::World;

/// Most that a start may need of anything before it is taken for broken.
const NEEDED_MAX: u64 = 20;

/// Starts in a row that must go well until it is enough.
const ENOUGH: u64 = 2;

/// What a file system may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    /// Pages of 4 KiB.
    Pages,
    /// Files and folders.
    Files,
}

/// A small file system in memory.
struct Small(PathBuf);

impl Small {
    fn new(at: &Path) -> Self {
        std::fs::create_dir_all(at).unwrap_or_else(|error| panic!("{}: {error}", at.display()));
        let options = c"size=1m,nr_inodes=200,mode=0700";
        // The scratch folder's sweep takes it away, whatever happens here.
        mount("tmpfs", at, "tmpfs", MountFlags::empty(), options)
            .unwrap_or_else(|error| panic!("{}: {error}", at.display()));
        Self(at.to_owned())
    }

    fn free(&self, room: Room) -> u64 {
        let now =
            rustix::fs::statvfs(&self.0).unwrap_or_else(|error| panic!("{}: {error}", self.0.display()));
        match room {
            Room::Pages => now.f_bfree,
            Room::Files => now.f_ffree,
        }
    }

    /// Fills it until so much is left.
    fn leave(&self, room: Room, left: u64) {
        match room {
            Room::Pages => {
                let path = self.0.join("filler");
                // What a file takes beside its bytes is counted too: page by page.
                let mut filler = File::create(path).expect("there is room for a name");
                while self.free(room) > left {
                    filler.write_all(&[7; 4096]).expect("there is room for a page");
                }
            }
            Room::Files => {
                let folder = self.0.join("fillers");
                drop(std::fs::remove_dir_all(&folder));
                std::fs::create_dir(&folder).expect("there is room for a name");
                for number in 0.. {
                    if self.free(room) <= left {
                        break;
                    }
                    File::create(folder.join(number.to_string())).expect("there is room for a name");
                }
            }
        }
        assert_eq!(self.free(room), left, "{room:?} of {}", self.0.display());
    }

    fn clear(&self) {
        drop(std::fs::remove_file(self.0.join("filler")));
        drop(std::fs::remove_dir_all(self.0.join("fillers")));
    }
}

/// A client whose state directory, and whose directory of sockets, are small; not started yet.
fn client(world: &World) -> (Client, Small, Small) {
    // Its own log must not take the last page that a start is to find.
    let options = world.options().replace("\"debug\"", "\"error\"");
    let client = world.client(&world.name("dsk"), &options);
    let state = Small::new(&client.state_dir());
    let run = Small::new(&client.run_dir());
    client.agent.start();
    client.wait_healthy(&world.api);
    // The first start ever makes folders and files for good.
    let warm = world.run(&Order::stub("warm", "stub.exit=0").on(&client));
    let _ended = warm.wait_terminal();
    (client, state, run)
}

/// Starts with ever more room.
pub(super) fn starts(world: &World) -> Vec<Row> {
    let (client, state, run) = client(world);
    let mut rows = Vec::new();
    for (place, small, room) in [
        ("state_dir", &state, Room::Pages),
        ("state_dir", &state, Room::Files),
        ("run_dir", &run, Room::Files),
    ] {
        let mut well = 0;
        for left in 0..NEEDED_MAX {
            small.leave(room, left);
            let unit = if room == Room::Pages { "pages" } else { "files" };
            let input = format!("disk full: {place} has room for {left} {unit} at the start");
            let (row, runs) = start(world, &client, &input);
            rows.push(row);
            well = if runs { well + 1 } else { 0 };
            if well >= ENOUGH {
                break;
            }
        }
        if well < ENOUGH {
            rows.push(Row::judged(
                place,
                "no start goes well",
                &["at last it runs"],
                Vec::new(),
            ));
        }
        small.clear();
    }
    rows.push(at_the_end(&client));
    rows
}

/// Starts a VM; whether it runs.
fn start(world: &World, client: &Client, input: &str) -> (Row, bool) {
    let mut order = Order::stub("full", "").on(client);
    // A failure that may pass is told by the next try, which is not waited for.
    order.restarts = 1;
    order.restart_delay = seconds(60);
    let job = world.run(&order);
    let seen = wait::until(&format!("{input}: a word of the start"), seconds(30), || {
        let now = job.look();
        let decided = ["Started", "Restarting", "Not Restarting"]
            .iter()
            .any(|kind| now.event(kind).is_some());
        if decided { Ok(now) } else { Err(now.story()) }
    });
    let runs = seen.event("Started").is_some();
    let mut row = if runs {
        let ended = job.stop_and_wait();
        let mut row = Row::judged(input, "it runs", &[], Vec::new());
        if ended.client_status != "complete" {
            row.fault = ended.story();
        }
        row
    } else {
        let failure = seen
            .event("Driver Failure")
            .map(|event| event.display_message.clone());
        let sentence = failure.unwrap_or_else(|| seen.story());
        let mut row = Row::judged(input, &sentence, &["No space left on device"], Vec::new());
        if seen.event("Restarting").is_none() {
            row.fault
                .push_str(&format!(" it is not recoverable: {}", seen.story()));
        }
        row
    };
    let gone = wait::try_until(seconds(8), || {
        match Snapshot::of(client).about(&job.allocation).as_slice() {
            [] => Ok(()),
            left => Err(left.join("; ")),
        }
    });
    row.left.extend(gone.err());
    (row, runs)
}

/// VMs that end when there is no room at all.
pub(super) fn ends(world: &World) -> Vec<Row> {
    let (client, state, run) = client(world);
    let order = Order::stub("full", "").on(&client);
    let [seen, unseen, stopped] = [(); 3].map(|()| Victim::new(world, &client, &order));
    let fill = || {
        for small in [&state, &run] {
            small.leave(Room::Files, 0);
        }
        // A name's room is there already.
        state.leave(Room::Pages, 0);
    };
    File::create(state.0.join("filler")).expect("there is room for a name");
    fill();
    let kill = |victim: &Victim<'_>| {
        let qemu = victim.vm.qemu().expect("it runs");
        assert!(process::signal(qemu, Signal::KILL), "QEMU is gone");
    };
    let words = ["QEMU was ended from outside by signal 9", crate::job::STUB_READY];
    let told = |input: &str, victim: &Victim<'_>| {
        let sentence = victim.told(&client, Place::Event, &words);
        let mut row = Row::judged(input, &sentence, &words, Vec::new());
        let ended = victim.job.terminal_within(seconds(20));
        if ended.event("Terminated").map(|end| (end.exit_code, end.signal)) != Some((137, 9)) {
            row.fault.push_str(&ended.story());
        }
        row.left = victim.wait_left(&client);
        row
    };
    kill(&seen);
    let mut rows = vec![told("disk full: a VM's end", &seen)];
    let ended = stopped.job.stop_and_wait();
    let mut row = Row::judged(
        "disk full: a job is stopped",
        &stopped.told(&client, Place::Event, &["after the power button"]),
        &["the guest powered off after the power button"],
        stopped.wait_left(&client),
    );
    if terminated(&ended).exit_code != 0 {
        row.fault.push_str(&ended.story());
    }
    rows.push(row);
    // What has ended has made room.
    for small in [&state, &run] {
        small.clear();
    }
    File::create(state.0.join("filler")).expect("there is room for a name");
    fill();
    terminate(&client);
    kill(&unseen);
    wait::until("the end's record", seconds(10), || {
        if unseen.directory(&client).join("exit.json").exists() {
            Ok(())
        } else {
            Err("none".to_owned())
        }
    });
    client.agent.start();
    client.wait_healthy(&world.api);
    rows.push(told("disk full: a VM's end while the agent is down", &unseen));
    for small in [&state, &run] {
        small.clear();
    }
    rows.push(at_the_end(&client));
    rows
}
