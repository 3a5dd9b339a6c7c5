//! What if nobody reads a VM's log, or somebody has put something else in its place?

use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::json;

use super::super::bad_input::Row;
use super::super::flood;
use super::super::witness::{terminate, the_vm};
use super::{Place, Victim, at_the_end, read, write};
use crate::agent::Client;
use crate::host::Snapshot;
use crate::job::{Job, Order};
use crate::process::{self, Process};
use crate::wait::{self, seconds};
use crate::world::World;

/// What stands in a log where bytes are missing.
const DROPPED: &str = "bytes were dropped here, the log was not read";

pub(super) fn rows(world: &World) -> Vec<Row> {
    let client = &world.own_client(&world.name("log"));
    let mut flood = Order::with_http("flood", "steppe.flood").on(client);
    flood.kill_signal = "SIGKILL".to_owned();
    let flood = world.run(&flood);
    let mut rows = vec![
        disabled(world, client),
        symlink(world, client),
        neighbour(world, client),
    ];
    rows.extend(unread(world, client, &flood));
    drop(flood);
    rows.push(at_the_end(client));
    rows
}

fn folder(client: &Client, job: &Job<'_>) -> PathBuf {
    client
        .data_dir()
        .join("alloc")
        .join(&job.allocation)
        .join("alloc/logs")
}

/// The process that reads a job's console.
fn reader(client: &Client, job: &Job<'_>) -> Option<Process> {
    let fifo = folder(client, job).join(".vm.stdout.fifo");
    process::all()
        .into_iter()
        .find(|process| process.arguments.iter().any(|word| word == "logmon") && process.holds(&fifo))
}

fn notes(job: &Job<'_>) -> Vec<String> {
    let console = job.console();
    let notes = console.lines().filter(|line| line.contains(DROPPED));
    notes.map(|line| line.trim().to_owned()).collect()
}

/// The guest goes on while nobody reads; afterwards the log says what it lacks.
fn unread(world: &World, client: &Client, job: &Job<'_>) -> [Row; 2] {
    let _console = job.wait_console("flood 100\r\n");
    let vm = the_vm(job, client);
    let unread_for = flood::long_enough(world, job);
    let goes_on = |what: &str, since: f64| {
        let wanted = since + unread_for.as_secs_f64();
        let uptime = wait::try_until(seconds(20), || {
            let now = job.uptime();
            if now > wanted {
                Ok(())
            } else {
                Err(format!("{what}: uptime {now}, {since} before"))
            }
        });
        uptime.err().unwrap_or_default()
    };
    let wait_note = |more_than: usize| {
        let note = wait::try_until(seconds(20), || match notes(job).as_slice() {
            notes if notes.len() > more_than => Ok(notes.last().cloned().unwrap_or_default()),
            notes => Err(format!("{} notes of dropped bytes", notes.len())),
        });
        note.unwrap_or_else(|fault| fault)
    };
    let reading = reader(client, job).expect("a logmon reads the FIFO");

    let before = job.uptime();
    assert!(process::signal(reading.pid, Signal::STOP), "logmon is gone");
    std::thread::sleep(unread_for);
    let fault = goes_on("logmon stands still", before);
    process::signal(reading.pid, Signal::CONT);
    let mut never = Row::judged(
        "log reader that never reads (logmon stands still)",
        &wait_note(0),
        &[DROPPED],
        Vec::new(),
    );
    never.fault.push_str(&fault);

    let (before, known) = (job.uptime(), notes(job).len());
    assert!(process::signal(reading.pid, Signal::KILL), "logmon is gone");
    std::thread::sleep(unread_for);
    let fault = goes_on("logmon is dead", before);
    terminate(client);
    client.agent.start();
    client.wait_healthy(&world.api);
    let mut killed = Row::judged(
        "logmon killed, the agent started again",
        &wait_note(known),
        &[DROPPED],
        Vec::new(),
    );
    killed.fault.push_str(&fault);
    if the_vm(job, client) != vm {
        killed.fault.push_str(" another VM");
    }
    let length = job.console().len();
    let grows = wait::try_until(seconds(20), || {
        let now = job.console().len();
        if now > length {
            Ok(())
        } else {
            Err(" the log doesn't grow any more".to_owned())
        }
    });
    killed.fault.push_str(&grows.err().unwrap_or_default());
    let ended = job.stop_and_wait();
    let words = [
        "the guest did not power off in time",
        "the console ended with: flood ",
    ];
    let event = job.wait_event("Driver", "");
    if words.iter().any(|word| !event.display_message.contains(word)) {
        killed.fault.push_str(&ended.story());
    }
    [never, killed]
}

/// A job that wants no logs: the console is nowhere, but its end is still told.
fn disabled(world: &World, client: &Client) -> Row {
    let mut order = Order::stub("mute", "stub.exit=3").on(client);
    order.logs = false;
    let job = world.run(&order);
    let ended = job.wait_terminal();
    let words = [
        "the guest's program ended with exit code 3",
        "the console ended with: stub: ready",
    ];
    let event = job.wait_event("Driver", "exit code");
    let mut row = Row::judged(
        "logs { disabled = true }",
        &event.display_message,
        &words,
        Vec::new(),
    );
    if folder(client, &job).join(".vm.stdout.fifo").exists() {
        row.fault = " Nomad made a FIFO all the same: nothing was tested".to_owned();
    }
    if ended.event("Terminated").map(|end| end.exit_code) != Some(3) {
        row.fault.push_str(&ended.story());
    }
    row
}

/// Between two tries of a start, somebody puts a link in the FIFO's place.
fn symlink(world: &World, client: &Client) -> Row {
    const PRECIOUS: &str = "not a log\n";
    let input = "log FIFO replaced by a symlink";
    let precious = world.scratch.path().join("precious");
    write(&precious, PRECIOUS);
    let port = crate::agent::ports(1);
    let held =
        std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, port)).expect("it was free just now");
    let mut order = Order::stub("linked", "")
        .set("network", json!([{ "name": "user", "ports": ["http"] }]))
        .on(client);
    order.fixed_ports.push(("http".to_owned(), port));
    order.restarts = 1;
    order.restart_delay = seconds(3);
    let job = world.run(&order);
    let _refused = job.wait_event("Driver Failure", "a port of the task is in use");
    let fifo = folder(client, &job).join(".vm.stdout.fifo");
    std::fs::remove_file(&fifo)
        .and_then(|()| std::os::unix::fs::symlink(&precious, &fifo))
        .unwrap_or_else(|error| panic!("{}: {error}", fifo.display()));
    drop(held);
    let ended = job.terminal_within(seconds(30));
    let words = ["log", ".vm.stdout.fifo", "neither a FIFO nor"];
    let refusal = ended
        .event("Driver Failure")
        .map(|event| event.display_message.clone());
    let mut row = Row::judged(input, &refusal.unwrap_or_default(), &words, Vec::new());
    if ended.client_status != "failed" || ended.event("Started").is_some() {
        row.fault.push_str(&ended.story());
    }
    if read(&precious) != PRECIOUS {
        row.fault.push_str(" the link's target was written to");
    }
    let gone = wait::try_until(seconds(8), || {
        match Snapshot::of(client).about(&job.allocation).as_slice() {
            [] => Ok(()),
            left => Err(left.join("; ")),
        }
    });
    row.left.extend(gone.err());
    row
}

/// Another agent, with folders of its own, uses the same directory of sockets.
fn neighbour(world: &World, client: &Client) -> Row {
    let shared = client.run_dir();
    let own = |path: &Path| path.display().to_string();
    let options = world.options().replace("DIRECTORY/run", &own(&shared));
    let other = world.client_with(&world.name("two"), &options, |setup| {
        setup.run_dir = Some(shared.clone())
    });
    other.agent.start();
    other.wait_healthy(&world.api);
    let first = Victim::new(world, client, &Order::stub("first", "").on(client));
    let second = Victim::new(world, &other, &Order::stub("second", "").on(&other));
    let mut row = Row::judged(
        "an agent with another data_dir, the same run_dir",
        "both run",
        &[],
        Vec::new(),
    );
    let ended = second.job.stop_and_wait();
    if ended.client_status != "complete" {
        row.fault.push_str(&ended.story());
    }
    row.left = second.wait_left(&other);
    other.agent.kill9();
    other.agent.start();
    other.wait_healthy(&world.api);
    terminate(&other);
    row.left.extend(first.changes(client));
    let ended = first.job.stop_and_wait();
    if ended.client_status != "complete" {
        row.fault.push_str(&ended.story());
    }
    let said = first.told(client, Place::Event, &["after the power button"]);
    row.sentence =
        format!("both run; the other agent stops its own, dies, comes and goes; then the first: {said}");
    row
}
