//! What if a shim hears nonsense, or the plugin does in a shim's place?

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use super::super::bad_input::Row;
use super::super::witness::{starts, terminate};
use super::{Place, Victim, at_the_end, client_with_grace, rename, restart_without_grace};
use crate::agent::Client;
use crate::harness::side_by_side;
use crate::job::Order;
use crate::shim::Shim;
use crate::wait::seconds;
use crate::world::World;

/// More than a shim lets in.
const STALLING: usize = 9;

pub(super) fn rows(world: &World) -> Vec<Row> {
    let client = &client_with_grace(world, "soc");
    let orders = vec![Order::stub("socket", "").on(client); IMPOSTORS.len() + 2];
    let mut victims = side_by_side(4, &orders, |order| Victim::new(world, client, order));
    let asked = victims.pop().expect("there are two more");
    let stalled = victims.pop().expect("there are two more");
    let mut rows: Vec<Row> = CLIENTS
        .iter()
        .map(|case| as_client(client, &asked, case))
        .collect();

    terminate(client);
    // Nobody else is connected: all the room is theirs.
    let mut peers: Vec<Shim> = (0..STALLING)
        .map(|_| Shim::connect(&stalled.vm.control(client)))
        .collect();
    for peer in &mut peers {
        // Half a word, and no more.
        let _taken = peer.send(b"{\"request\":\"hel");
    }
    let impostors: Vec<Impostor> = IMPOSTORS
        .iter()
        .zip(&victims)
        .map(|(case, victim)| {
            if case.dead {
                victim.kill();
            }
            Impostor::new(&victim.vm.control(client), case.says)
        })
        .collect();
    client.agent.start();
    client.wait_healthy(&world.api);
    let mut row = Row::judged(
        "control socket: peers that stall, more than are let in",
        "the agent comes back meanwhile and finds its VM",
        &[],
        stalled.changes(client),
    );
    let ended = stalled.job.stop_and_wait();
    if starts(&ended) != 1 || ended.client_status != "complete" {
        row.fault = ended.story();
    }
    rows.push(row);
    drop(peers);
    for (case, victim) in IMPOSTORS.iter().zip(&victims) {
        let place = if case.dead { Place::Event } else { Place::AgentsLog };
        let sentence = victim.told(client, place, case.words);
        let mut row = Row::judged(case.input, &sentence, case.words, Vec::new());
        row.left = match case.then {
            Then::LeftAlone => victim.changes(client),
            Then::Gone => victim.wait_left(client),
        };
        row.left.retain(|line| !line.ends_with("control.own"));
        rows.push(row);
    }
    // The shims are heard again.
    terminate(client);
    drop((impostors, victims, asked, stalled));
    restart_without_grace(world, client);
    rows.push(at_the_end(client));
    rows
}

/// Something that is said to a shim.
struct ToShim {
    input: &'static str,
    says: fn(&mut Shim) -> bool,
    /// What it answers; nothing where it only hangs up.
    words: &'static [&'static str],
}

const CLIENTS: &[ToShim] = &[
    ToShim {
        input: "control socket: garbage",
        says: |shim| shim.send(b"\x00\xff{{{ garbage\n"),
        words: &[],
    },
    ToShim {
        input: "control socket: a line without end",
        says: |shim| shim.send(&vec![b'x'; 1 << 20]),
        words: &[],
    },
    ToShim {
        input: "control socket: a request before hello",
        says: |shim| shim.send(b"{\"request\":\"kill\"}\n"),
        words: &[],
    },
    ToShim {
        input: "control socket: a peer of a newer version",
        says: |shim| shim.send(b"{\"request\":\"hello\",\"min\":98,\"max\":99}\n{\"request\":\"kill\"}\n"),
        words: &["this shim speaks no version of 98 to 99"],
    },
];

fn as_client(client: &Client, asked: &Victim<'_>, case: &ToShim) -> Row {
    let mut shim = Shim::connect(&asked.vm.control(client));
    let _taken = (case.says)(&mut shim);
    let mut heard = shim.hear();
    if heard.is_empty() {
        heard = "(the shim hangs up)".to_owned();
    } else if !shim.hear().is_empty() {
        heard.push_str(" (and goes on)");
    }
    let mut row = Row::judged(case.input, &heard, case.words, asked.changes(client));
    if asked.job.look().client_status != "running" {
        row.fault.push_str(&asked.job.look().story());
    }
    row
}

/// What is left of its VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// It runs on.
    LeftAlone,
    /// Nothing: Nomad asks for its end, and starts the task anew.
    Gone,
}

/// What the plugin meets in the place of a shim's socket.
struct InShimsPlace {
    input: &'static str,
    /// Whether its VM has ended before.
    dead: bool,
    then: Then,
    /// What it says to a hello; nothing where it is silent.
    says: &'static str,
    words: &'static [&'static str],
}

const IMPOSTORS: &[InShimsPlace] = &[
    InShimsPlace {
        input: "shim that says garbage",
        dead: false,
        then: Then::Gone,
        says: "\u{7f}garbage\n",
        words: &["the VM runs, but the shim's words can't be read"],
    },
    InShimsPlace {
        input: "shim that says nothing",
        dead: false,
        then: Then::Gone,
        says: "",
        words: &["the VM runs, but the shim did not say hello within"],
    },
    InShimsPlace {
        input: "shim of a newer version",
        dead: false,
        then: Then::LeftAlone,
        says: "{\"message\":\"refused\",\"reason\":\"this shim speaks no version of 1 to 2\"}\n",
        words: &["the VM runs, but the shim speaks another version"],
    },
    InShimsPlace {
        input: "shim that is dead, garbage in its socket's place",
        dead: true,
        then: Then::Gone,
        says: "\u{7f}garbage\n",
        words: &["shim-lost"],
    },
    InShimsPlace {
        input: "shim that is dead, another says that all is well",
        dead: true,
        then: Then::Gone,
        says: "{\"message\":\"hello\",\"version\":2,\"state\":{\"is\":\"running\",\"qemu_pid\":1,\"ready\":true}}\n",
        words: &["shim-lost"],
    },
];

/// Listens in a shim's place, as long as it lives.
struct Impostor {
    path: PathBuf,
    own: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Impostor {
    fn new(path: &Path, says: &'static str) -> Self {
        let own = path.with_extension("own");
        rename(path, &own);
        let listener = UnixListener::bind(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        listener.set_nonblocking(true).expect("a socket can be made so");
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let mut open = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((peer, _)) => open.extend(answer(peer, says)),
                        Err(_) => std::thread::sleep(std::time::Duration::from_millis(20)),
                    }
                }
            }
        });
        Self {
            path: path.to_owned(),
            own,
            stop,
            thread: Some(thread),
        }
    }
}

/// Hears a hello, answers it, and stays.
fn answer(peer: UnixStream, says: &str) -> Option<UnixStream> {
    peer.set_nonblocking(false).ok()?;
    peer.set_read_timeout(Some(seconds(2))).ok()?;
    let mut hello = String::new();
    BufReader::new(&peer).read_line(&mut hello).ok()?;
    (&peer).write_all(says.as_bytes()).ok()?;
    Some(peer)
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.thread.take().map(JoinHandle::join));
        if self.own.exists() {
            drop(std::fs::rename(&self.own, &self.path));
        }
    }
}
