//! Is each end of a VM told as what it was, whether or not anybody was there to see it?

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use super::bad_input::assert_none_faulty;
use super::witness::{terminate, the_vm, wait_nothing_left};
use crate::agent::{Client, PLUGIN, SCRIPT_PATHS};
use crate::api::{Event, now_ns};
use crate::harness::{say, side_by_side};
use crate::host::{self, Vm};
use crate::job::{Job, Order, STUB_READY};
use crate::process;
use crate::shim::Shim;
use crate::wait::{self, seconds};
use crate::world::World;

/// Jobs at a time: most of them wait for Nomad.
const PARALLEL: usize = 6;

/// What a guest takes that is to run out of memory.
const EATEN_MIB: u64 = 40;

/// How much more than now its VM may use by then: much less.
const MEMORY_LEFT_BYTES: u64 = 4 << 20;

/// How long an end may take to be seen: two guests share a core of a small machine.
const END_LIMIT: Duration = seconds(40);

/// A way for a VM to end.
struct Case {
    /// The cause's word.
    cause: &'static str,
    /// How the end is produced.
    how: &'static str,
    order: Order,
    act: Act,
    /// Exit code and signal; none where the start fails, which has neither.
    exit: Option<(i64, i64)>,
    /// The event's words beside the cause's own sentence.
    words: &'static [&'static str],
    /// Whether agent and plugin are down when it happens.
    unseen: bool,
}

/// What is done to a VM that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    /// Nothing: it ends by itself. Unseen, it stands still until nobody watches.
    Nothing,
    /// One of its processes gets a signal.
    Signal(Target, Signal),
    /// The reset button is pressed.
    Reset,
    /// A memory limit becomes little more than what it uses: its own, or that of the group above.
    Starve(Limit),
    /// Nomad is asked to stop the job.
    Stop,
    /// The same, with a QEMU that stands still.
    StopStanding,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    Own,
    Above,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Qemu,
    Monitor,
    Supervisor,
}

/// A row of the table that the plugin prints.
struct Documented {
    cause: String,
    exit_code: String,
    signal: String,
    oom: bool,
    sentence: String,
}

/// A row of ours.
struct Row {
    cause: &'static str,
    how: &'static str,
    unseen: bool,
    exit: Option<(i64, i64)>,
    oom: bool,
    sentence: String,
    /// What is not as it should be; empty if all is well.
    faults: Vec<String>,
}

/// What became of a case.
enum Begun<'w> {
    Ended(Row),
    /// It is still to end, while nobody watches.
    Held(Job<'w>, Vm),
}

pub(super) fn table(world: &World) {
    let documented = documented(&world.plugins().join(PLUGIN));
    let cases = cases();
    let client = &world.own_client(&world.name("end"));
    let odd = &with_fake_qemu(world);
    let on = |case: &Case| if fakes(case) { odd } else { client };

    let clock = Instant::now();
    let begun = side_by_side(PARALLEL, &cases, |case| begin(world, on(case), case));
    let mut rows = Vec::new();
    let mut held = Vec::new();
    for (case, begun) in cases.iter().zip(begun) {
        match begun {
            Begun::Ended(row) => rows.push(row),
            Begun::Held(job, vm) => held.push((case, job, vm)),
        }
    }
    let seen_after = clock.elapsed();
    terminate(client);
    for (case, _, vm) in &held {
        act(client, case, vm);
        resume(vm);
    }
    for (case, job, vm) in &held {
        let processes = vm.others.iter().copied().chain([vm.shim]);
        let processes: Vec<u32> = processes.collect();
        wait::until(&format!("{}: the VM's end", job.id), seconds(60), || {
            let left: Vec<_> = processes.iter().filter_map(|pid| process::one(*pid)).collect();
            let recorded = vm.directory(client).join("exit.json").exists();
            // A shim holds the logs open for some seconds after it has written down the end.
            if left.is_empty() || recorded && vm.qemu().is_none() {
                Ok(())
            } else {
                Err(format!("{}: {left:?}", case.how))
            }
        });
    }
    let ended_after = clock.elapsed();
    let back = now_ns();
    client.agent.start();
    client.wait_healthy(&world.api);
    let unseen = side_by_side(PARALLEL, &held, |(case, job, vm)| {
        let recorded = vm.directory(client).join("exit.json").exists();
        let mut row = judge(case, job);
        let late = job.look().event("Driver").is_some_and(|event| event.time >= back);
        if recorded && late {
            row.faults
                .push("its time is that of the agent's return, not of the end".to_owned());
        }
        row
    });
    rows.extend(unseen);
    say(&format!(
        "    all jobs begun, and those to be seen ended, after {:.1} s; the others after {:.1} s; told after {:.1} s",
        seen_after.as_secs_f64(),
        ended_after.as_secs_f64(),
        clock.elapsed().as_secs_f64()
    ));

    for row in &mut rows {
        let fits = documented.iter().any(|line| line.fits(row));
        if !fits {
            row.faults
                .push("the plugin's own table has no such line".to_owned());
        }
    }
    let text = text(&rows);
    text.lines().for_each(say);
    let path = crate::scratch::output().join("exit-causes.txt");
    std::fs::write(&path, &text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let missing: Vec<&str> = documented
        .iter()
        .filter(|line| !rows.iter().any(|row| line.fits(row)))
        .map(|line| line.sentence.as_str())
        .collect();
    assert!(missing.is_empty(), "no case has shown: {missing:#?}");
    let faulty: Vec<String> = rows
        .iter()
        .filter(|row| !row.faults.is_empty())
        .map(|row| {
            format!(
                "{}, {}, unseen: {}: {}\n    {}",
                row.cause,
                row.how,
                row.unseen,
                row.faults.join("; "),
                row.sentence
            )
        })
        .collect();
    assert_none_faulty(&faulty, rows.len());
    drop(held);
    wait_nothing_left(client);
    wait_nothing_left(odd);
}

fn fakes(case: &Case) -> bool {
    case.order.config["cmdline"]
        .as_str()
        .is_some_and(|words| words.contains("fake."))
}

fn cases() -> Vec<Case> {
    let mut cases = seen_only();
    for unseen in [true, false] {
        cases.extend(seen_or_not(unseen));
    }
    // Those that need a guest's boot, and are held for later, come first.
    cases.sort_by_key(|case| !case.unseen);
    cases
}

/// A stub guest that does nothing.
fn idle() -> Order {
    Order::stub("cause", "")
}

fn shutdown(order: Order) -> Order {
    order.set("reboot", "shutdown".into())
}

/// A job that is not stopped for long.
fn hasty(mut order: Order) -> Order {
    order.kill_timeout = seconds(1);
    order
}

/// What happens with and without anybody there to see it.
fn seen_or_not(unseen: bool) -> Vec<Case> {
    let case = |cause, how, order, act, exit, words| Case {
        cause,
        how,
        order,
        act,
        exit: Some(exit),
        words,
        unseen,
    };
    // Unseen, a guest must not end before it could be made to stand still: a stub has ended by then.
    let wait = if unseen { " steppe.after=3" } else { "" };
    let guest = |words: &str| Order::guest("cause", &format!("{words}{wait}"));
    let (exit, reset, resets) = if unseen {
        (
            guest("steppe.exit=3"),
            guest("steppe.reboot"),
            // One reset too early does no harm.
            Order::guest("cause", "steppe.reboot steppe.after=1"),
        )
    } else {
        (
            Order::stub("cause", "stub.exit=3"),
            Order::stub("cause", "stub.reset"),
            Order::stub("cause", "stub.reset"),
        )
    };
    let signal = |target, signal| Act::Signal(target, signal);
    vec![
        case(
            "guest-poweroff",
            "the guest powers off",
            guest("steppe.poweroff"),
            Act::Nothing,
            (0, 0),
            &["the console ended with: ", "steppe-guest: bye"],
        ),
        case(
            "guest-exit",
            "the guest writes 3 to isa-debug-exit",
            exit,
            Act::Nothing,
            (3, 0),
            &["the console ended with: "],
        ),
        case(
            "guest-reset",
            "the guest resets, reboot = \"shutdown\"",
            shutdown(reset),
            Act::Nothing,
            (1, 0),
            &["the console ended with: "],
        ),
        case(
            "guest-panic",
            "the guest's kernel panics",
            guest("steppe.panic"),
            Act::Nothing,
            (1, 0),
            &["the console ended with: "],
        ),
        case(
            "reset-loop",
            "the guest resets at each boot",
            resets,
            Act::Nothing,
            (1, 0),
            &["the console ended with: "],
        ),
        case(
            "host-reset",
            "reset over the control socket, reboot = \"shutdown\"",
            shutdown(idle()),
            Act::Reset,
            (1, 0),
            &[STUB_READY],
        ),
        case(
            "signal",
            "SIGTERM to QEMU",
            idle(),
            signal(Target::Qemu, Signal::TERM),
            (1, 0),
            &[STUB_READY],
        ),
        case(
            "signal",
            "SIGTERM to the shim's monitor",
            idle(),
            signal(Target::Monitor, Signal::TERM),
            (1, 0),
            &[STUB_READY],
        ),
        case(
            "signal",
            "SIGKILL to QEMU",
            idle(),
            signal(Target::Qemu, Signal::KILL),
            (137, 9),
            &[STUB_READY],
        ),
        case(
            "out-of-memory",
            "a memory limit that the guest outgrows",
            Order::guest("cause", &format!("steppe.eat={EATEN_MIB} steppe.after=3")),
            Act::Starve(Limit::Own),
            (137, 9),
            &[],
        ),
        case(
            "host-out-of-memory",
            "the same above the VM's control group",
            Order::guest("cause", &format!("steppe.eat={EATEN_MIB} steppe.after=3")),
            Act::Starve(Limit::Above),
            (137, 9),
            &[],
        ),
        case(
            "qemu-crash",
            "SIGSEGV to QEMU",
            idle(),
            signal(Target::Qemu, Signal::SEGV),
            (139, 11),
            &[STUB_READY],
        ),
        case(
            "shim-lost",
            "SIGKILL to the shim's monitor",
            idle(),
            signal(Target::Monitor, Signal::KILL),
            (1, 0),
            &[],
        ),
        case(
            "shim-lost",
            "SIGKILL to the shim's supervisor",
            idle(),
            signal(Target::Supervisor, Signal::KILL),
            (1, 0),
            &[],
        ),
    ]
}

/// What only the driver itself brings about, and what only a fake QEMU can show.
fn seen_only() -> Vec<Case> {
    let case = |cause, how, order, act, exit, words| Case {
        cause,
        how,
        order,
        act,
        exit,
        words,
        unseen: false,
    };
    let never_ready = idle()
        .set("ready", "console".into())
        .set("ready_pattern", "never said".into())
        .set("ready_timeout", "1s".into());
    vec![
        case(
            "guest-poweroff",
            "the job is stopped",
            idle(),
            Act::Stop,
            Some((0, 0)),
            &["after the power button", "stub: powering off"],
        ),
        case(
            "quit",
            "the job is stopped, the guest ignores the power button",
            hasty(Order::stub("cause", "stub.ignore-poweroff")),
            Act::Stop,
            Some((137, 9)),
            &[STUB_READY],
        ),
        case(
            "killed",
            "the job is stopped, QEMU stands still (SIGSTOP)",
            hasty(idle()),
            Act::StopStanding,
            Some((137, 9)),
            &[STUB_READY],
        ),
        case(
            "boot-deadline",
            "ready_pattern is never shown, ready_timeout = \"1s\"",
            never_ready,
            Act::Nothing,
            None,
            &["the guest did not get ready", STUB_READY],
        ),
        case(
            "not-started",
            "the port is in use on the host",
            Order::stub("cause", ""),
            Act::Nothing,
            None,
            &[
                "a port of the task is in use on this host",
                "host forwarding rule",
            ],
        ),
        case(
            "internal-error",
            "fake QEMU: STOP, then status internal-error",
            Order::stub("cause", "fake.stop"),
            Act::Nothing,
            Some((1, 0)),
            &[],
        ),
        case(
            "qemu-failed",
            "fake QEMU: an error message and status 2",
            Order::stub("cause", "fake.fail"),
            Act::Nothing,
            Some((1, 0)),
            &["QEMU's messages ended with: qemu-system-x86_64: no machine in here"],
        ),
        case(
            "qmp-broken",
            "fake QEMU: garbage over QMP",
            Order::stub("cause", "fake.garbage"),
            Act::Nothing,
            Some((1, 0)),
            &[],
        ),
    ]
}

/// A client whose QEMU has no machine.
fn with_fake_qemu(world: &World) -> Client {
    const FAKE: &str = "qemu-acts";
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fakes").join(FAKE);
    // Where an unprivileged user can reach it.
    let to = world.scratch.path().join(FAKE);
    crate::world::replace(&from, &to);
    let options = format!(
        "{}\n    accelerator = \"tcg\"\n    {SCRIPT_PATHS}    qemu = \"{}\"\n",
        world.options(),
        to.display()
    );
    let client = world.client(&world.name("odd"), &options);
    client.agent.start();
    client.wait_healthy(&world.api);
    client
}

/// Starts a case's job and brings about its end; one that is to be unseen is brought to where only that is missing.
fn begin<'w>(world: &'w World, client: &Client, case: &Case) -> Begun<'w> {
    let mut order = case.order.clone().on(client);
    order.restarts = u32::from(case.exit.is_none());
    let port = crate::agent::ports(1);
    let mut _held = None;
    if case.cause == "not-started" {
        _held = Some(
            std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, port)).expect("it was free just now"),
        );
        order.fixed_ports.push(("http".to_owned(), port));
        order = order.set("network", json!([{ "name": "user", "ports": ["http"] }]));
    }
    let job = world.run(&order);
    let ends_by_itself = case.act == Act::Nothing;
    if case.unseen || !ends_by_itself {
        let _running = job.wait_running();
        let is_stub = order.config["kernel"] == crate::world::STUB;
        if is_stub {
            let _console = job.wait_console(STUB_READY);
        }
        let vm = wait::until(&format!("{}: its VM", job.id), seconds(10), || {
            let vm = the_vm(&job, client);
            vm.qemu().map(|_| vm).ok_or_else(|| "no QEMU".to_owned())
        });
        if !is_stub || case.act == Act::StopStanding {
            stop_still(&vm);
        }
        if case.unseen {
            return Begun::Held(job, vm);
        }
        act(client, case, &vm);
        match case.act {
            Act::Stop => job.stop(),
            Act::StopStanding => job.stop(),
            _ => resume(&vm),
        }
    }
    Begun::Ended(judge(case, &job))
}

fn stop_still(vm: &Vm) {
    let qemu = vm.qemu().expect("it was seen");
    assert!(process::signal(qemu, Signal::STOP), "QEMU {qemu} is gone");
}

fn resume(vm: &Vm) {
    // It may have ended by now.
    vm.qemu().map(|qemu| process::signal(qemu, Signal::CONT));
}

fn act(client: &Client, case: &Case, vm: &Vm) {
    match case.act {
        Act::Nothing | Act::Stop | Act::StopStanding => {}
        Act::Signal(target, signal) => {
            let pid = match target {
                Target::Qemu => vm.qemu(),
                Target::Monitor => Some(vm.shim),
                Target::Supervisor => vm.supervisor(),
            };
            let pid = pid.unwrap_or_else(|| panic!("{}: the {target:?} is gone", case.how));
            assert!(
                process::signal(pid, signal),
                "{}: the {target:?} is gone",
                case.how
            );
        }
        Act::Reset => Shim::connect(&vm.control(client)).ask("reset"),
        Act::Starve(Limit::Own) => starve(&vm.memory_group(client)),
        Act::Starve(Limit::Above) => {
            let group = vm.memory_group(client);
            starve(group.parent().expect("Nomad made the group above"));
        }
    }
}

/// Lowers a memory limit to little more than what is used.
pub(super) fn starve(group: &Path) {
    let [usage, limit] = host::memory_files(group).expect("it is a memory group");
    let read =
        |file: &Path| std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()));
    // What was just used may be given back, or not be countable yet.
    wait::until("a lower memory limit", seconds(5), || {
        let used: u64 = read(&usage)?
            .trim()
            .parse()
            .map_err(|error| format!("{}: {error}", usage.display()))?;
        let bytes = used + MEMORY_LEFT_BYTES;
        std::fs::write(&limit, bytes.to_string()).map_err(|error| format!("{}: {error}", limit.display()))
    });
}

/// What Nomad shows of an end, against what it should show.
fn judge(case: &Case, job: &Job<'_>) -> Row {
    let ended = job.terminal_within(END_LIMIT);
    let mut faults = Vec::new();
    let kind = if case.exit.is_some() {
        "Driver"
    } else {
        "Driver Failure"
    };
    // An event may come after the end that it tells of.
    let event = wait::try_until(seconds(5), || {
        let event = job.look().event(kind).cloned();
        event.ok_or_else(|| "no word of the end".to_owned())
    });
    let event = event.unwrap_or_else(|fault| {
        faults.push(fault);
        Event::default()
    });
    let sentence = event.display_message.clone();
    let missing: Vec<&&str> = case
        .words
        .iter()
        .filter(|words| !sentence.contains(**words))
        .collect();
    if !missing.is_empty() {
        faults.push(format!("the sentence lacks {missing:?}"));
    }
    if case.exit.is_some() && event.detail("cause") != case.cause {
        faults.push(format!("the event's annotation is {:?}", event.details));
    }
    let end = ended.event("Terminated");
    let exit = end.map(|end| (end.exit_code, end.signal));
    if exit != case.exit {
        faults.push(format!("exit code and signal {exit:?}: {}", ended.story()));
    }
    let oom = end.is_some_and(|end| end.detail("oom_killed") == "true");
    let completes = matches!(case.act, Act::Stop | Act::StopStanding) || case.exit == Some((0, 0));
    let status = if completes { "complete" } else { "failed" };
    if ended.client_status != status {
        faults.push(format!("it is not {status}: {}", ended.story()));
    }
    // A start that may go better at another time is tried again.
    if case.exit.is_none() && ended.event("Restarting").is_none() {
        faults.push(format!("it is not recoverable: {}", ended.story()));
    }
    let lives = ended
        .events()
        .iter()
        .filter(|event| event.kind == "Started")
        .count();
    if lives != usize::from(case.exit.is_some()) {
        faults.push(format!("{lives} starts: {}", ended.story()));
    }
    Row {
        cause: case.cause,
        how: case.how,
        unseen: case.unseen,
        exit,
        oom,
        sentence,
        faults,
    }
}

impl Documented {
    /// Whether a row of ours is what the plugin's own table promises.
    fn fits(&self, row: &Row) -> bool {
        let code = |exit_code: i64| match self.exit_code.as_str() {
            "128 + signal" => row.exit.is_some_and(|(_, signal)| exit_code == 128 + signal),
            "the program's, 0 to 127" => (0..=127).contains(&exit_code),
            number => number.parse() == Ok(exit_code),
        };
        let signal = |signal: i64| match self.signal.as_str() {
            "" => signal == 0,
            "the signal" => signal > 0,
            number => number.parse() == Ok(signal),
        };
        // A start that fails has no exit code that Nomad would show.
        let exit = row
            .exit
            .is_none_or(|(exit_code, number)| code(exit_code) && signal(number));
        // The one sentence with two forms.
        let sentence = row.sentence.replace(
            "the guest powered off after the power button",
            "the guest powered itself off",
        );
        self.cause == row.cause && exit && self.oom == row.oom && sentence.contains(&self.sentence)
    }
}

/// What the plugin says of itself: a Markdown table with one line for each way in which a VM can end.
fn documented(plugin: &Path) -> Vec<Documented> {
    let printed = Command::new(plugin)
        .arg("--exit-causes")
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", plugin.display()));
    let text = String::from_utf8_lossy(&printed.stdout).into_owned();
    let lines: Vec<Documented> = text
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let [cause, exit_code, signal, oom, sentence] = cells.as_slice() else {
                panic!("not five columns: {line}");
            };
            Documented {
                cause: cause.trim_matches('`').to_owned(),
                exit_code: (*exit_code).to_owned(),
                signal: (*signal).to_owned(),
                oom: *oom == "yes",
                sentence: (*sentence).to_owned(),
            }
        })
        .collect();
    let causes: BTreeSet<&str> = lines.iter().map(|line| line.cause.as_str()).collect();
    assert!(causes.len() >= 17, "{} causes:\n{text}", causes.len());
    lines
}

fn text(rows: &[Row]) -> String {
    let width = |column: fn(&Row) -> &str| {
        rows.iter()
            .map(|row| column(row).chars().count())
            .max()
            .unwrap_or(0)
    };
    let (cause, how) = (width(|row| row.cause), width(|row| row.how));
    let mut sorted: Vec<&Row> = rows.iter().collect();
    sorted.sort_by_key(|row| (row.cause, row.how, row.unseen));
    let mut text = format!(
        "{:<cause$}  {:<how$}  agent  exit  signal  OOM  what Nomad shows\n",
        "cause", "produced by"
    );
    for row in sorted {
        let agent = if row.unseen { "down" } else { "up" };
        let (exit_code, signal) = row.exit.map_or_else(
            || ("-".to_owned(), "-".to_owned()),
            |(exit_code, signal)| (exit_code.to_string(), signal.to_string()),
        );
        let oom = if row.oom { "yes" } else { "" };
        let fault = if row.faults.is_empty() {
            String::new()
        } else {
            format!("  FAULT: {}", row.faults.join("; "))
        };
        // Writing to a String never fails.
        let _ok = writeln!(
            text,
            "{:<cause$}  {:<how$}  {agent:<5}  {exit_code:>4}  {signal:>6}  {oom:<3}  {}{fault}",
            row.cause, row.how, row.sentence
        );
    }
    text
}
