//! What does the driver say to files, sockets and processes that are not as it left them, and does it leave them alone?

mod disk;
mod logs;
mod records;
mod sockets;

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use super::bad_input::{self, Group, Row};
use crate::agent::Client;
use crate::host::{self, Snapshot, Vm};
use crate::job::{Job, Order, STUB_READY};
use crate::process;
use crate::wait::{self, seconds};
use crate::world::World;

/// How long a word about something may take to be said.
const TOLD_LIMIT: Duration = seconds(20);

/// How long what a task made may still be there after its end. A shim holds a log for its reader up to 5 s.
const GONE_LIMIT: Duration = seconds(30);

pub(super) fn input(world: &World) {
    let groups: [Group; 5] = [
        ("sockets", sockets::rows),
        ("records", records::rows),
        ("starts on a full disk", disk::starts),
        ("ends on a full disk", disk::ends),
        ("logs", logs::rows),
    ];
    bad_input::show("bad-input-truth.txt", &bad_input::side_by_side(world, &groups));
}

/// How long a VM that nobody asks about may stay: longer than an agent may need to come to its last task.
const GRACE: &str = "40s";

/// The same once all is seen.
const SHORT_GRACE: &str = "2s";

/// A client whose VMs may be without an agent for [`GRACE`], ready.
fn client_with_grace(world: &World, word: &str) -> Client {
    let options = format!("{}\n    orphan_grace = \"{GRACE}\"\n", world.options());
    let client = world.client(&world.name(word), &options);
    client.agent.start();
    client.wait_healthy(&world.api);
    client
}

/// Starts a client's agent again; what nobody asks about is then soon ended.
fn restart_without_grace(world: &World, client: &Client) {
    let config = client.directory().join("agent.hcl");
    write(&config, &read(&config).replace(GRACE, SHORT_GRACE));
    client.agent.start();
    client.wait_healthy(&world.api);
}

/// A last row for a client: what its driver leaves on the host when all is over.
pub(super) fn at_the_end(client: &Client) -> Row {
    let gone = wait::try_until(GONE_LIMIT, || match host::leavings(client).as_slice() {
        [] => Ok(()),
        left => Err(left.join("; ")),
    });
    Row {
        input: format!("the host after all of these ({})", client.name),
        sentence: "(processes, files and control groups of its tasks)".to_owned(),
        left: gone.err().into_iter().collect(),
        fault: String::new(),
    }
}

/// A running stub guest, to which something is done.
struct Victim<'w> {
    job: Job<'w>,
    vm: Vm,
    /// What was on the host for it when it ran.
    before: Vec<String>,
}

impl<'w> Victim<'w> {
    #[track_caller]
    fn new(world: &'w World, client: &Client, order: &Order) -> Self {
        let job = world.run(order);
        let _running = job.wait_running();
        let _console = job.wait_console(STUB_READY);
        let vm = super::witness::the_vm(&job, client);
        let before = Snapshot::of(client).about(&job.allocation);
        Self { job, vm, before }
    }

    fn directory(&self, client: &Client) -> PathBuf {
        self.vm.directory(client)
    }

    fn record(&self, client: &Client) -> PathBuf {
        self.directory(client).join("record")
    }

    /// What is here of it and was not when it ran, and what was and is not.
    fn changes(&self, client: &Client) -> Vec<String> {
        let now = Snapshot::of(client).about(&self.job.allocation);
        let gone = self.before.iter().filter(|line| !now.contains(line));
        let new = now.iter().filter(|line| !self.before.contains(line));
        gone.map(|line| format!("gone: {line}"))
            .chain(new.map(|line| format!("new: {line}")))
            .collect()
    }

    /// What is left of it.
    fn left(&self, client: &Client) -> Vec<String> {
        let now = Snapshot::of(client).about(&self.job.allocation);
        now.into_iter()
            .filter(|line| line.contains(&self.vm.key))
            .collect()
    }

    /// Waits until nothing is left of it; what is, if that takes too long.
    fn wait_left(&self, client: &Client) -> Vec<String> {
        let gone = wait::try_until(TOLD_LIMIT, || match self.left(client).as_slice() {
            [] => Ok(()),
            left => Err(left.join("; ")),
        });
        gone.err().into_iter().collect()
    }

    /// Ends its processes as a crash does, and waits for that.
    fn kill(&self) {
        process::signal(self.vm.shim, rustix::process::Signal::KILL);
        let pids = self.vm.others.iter().chain([&self.vm.shim]);
        let pids: Vec<u32> = pids.copied().collect();
        wait::until("the end of a VM's processes", seconds(10), || {
            match pids.iter().find_map(|pid| process::one(*pid)) {
                None => Ok(()),
                Some(left) => Err(format!("{left:?}")),
            }
        });
    }

    /// The sentence with these words that is said of it.
    fn told(&self, client: &Client, place: Place, words: &[&str]) -> String {
        let has_all = |text: &str| words.iter().all(|word| text.contains(word));
        let told = wait::try_until(TOLD_LIMIT, || {
            let allocation = self.job.look();
            let found = match place {
                Place::Event => {
                    let events = allocation.events().iter().rev();
                    let mut shown = events.map(|event| event.display_message.clone());
                    shown.find(|sentence| has_all(sentence))
                }
                Place::AgentsLog => {
                    let log = client.agent.log();
                    let mut lines = log.lines().filter(|line| line.contains(&self.job.allocation));
                    let line = lines.find(|line| has_all(line) && line.contains("error="));
                    line.map(|line| format!("(agent's log) {}", said(line)))
                }
            };
            found.ok_or_else(|| allocation.story())
        });
        told.unwrap_or_else(|story| story)
    }
}

/// Where something is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In an event of the task.
    Event,
    /// In the agent's log only: Nomad shows nobody why a task was not recovered.
    AgentsLog,
}

/// What a line of the agent's log has behind `error=`.
fn said(line: &str) -> &str {
    let from = line.split_once("error=").map_or(line, |(_, rest)| rest);
    from.strip_prefix('"')
        .and_then(|rest| rest.split_once("\" "))
        .map_or(from, |(text, _)| text)
        .trim_end_matches('"')
}

/// A process that has nothing to do with us.
#[derive(Debug)]
struct Stranger(Child);

impl Stranger {
    fn new(program: &str, arguments: &[&str]) -> Self {
        let child = Command::new(program).args(arguments).spawn();
        Self(child.unwrap_or_else(|error| panic!("{program}: {error}")))
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Whether it lives, or has ended by itself.
    fn is_unharmed(&mut self) -> bool {
        match self.0.try_wait() {
            Ok(status) => status.is_none_or(|status| status.success()),
            Err(_) => false,
        }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn rename(from: &Path, to: &Path) {
    std::fs::rename(from, to)
        .unwrap_or_else(|error| panic!("{} to {}: {error}", from.display(), to.display()));
}
