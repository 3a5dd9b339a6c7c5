//! What does a launch cost from the shim's exec until the guest may run, with what QEMU is kept from and without?
//!
//! The shim is started here as the plugin starts it: its options and its launch plan are those of a VM that the plugin started
//! a moment before. Between two starts only the plan's isolation differs.
//!
//! Times are read where they are exact, of processes that stand:
//!
//! - Before the shim's exec: `first.s` stops in the process that is about to execute it. What that had used is not the
//!   shim's; the exec itself is.
//! - When QEMU has answered: monitor and supervisor wait for the word to continue, and threads are pinned.
//! - Of the child between fork and exec there is no such moment. So in a second start `first.s` is in QEMU's place, and asks
//!   for its process's time with its first instruction. What the exec of so small a program costs is taken off again, because
//!   it is QEMU's: it is measured by `first.s` executing itself.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use steppe_vm::control::{Message, Request, State};
use steppe_vm::plan::{Isolation, LaunchPlan, Visible};

use crate::figures::{Report, Samples, apart};
use crate::stage::{LIMIT, Running, Template, go, io, status, values};
use crate::{Bench, BenchError, cost, say};

/// A process that has used nothing for so long waits.
const REST: Duration = Duration::from_millis(4);

/// Pairs of the same with the same, for the spread.
const SAME_PAIRS: usize = 10;

/// Starts before anything is measured: files come into the page cache.
const WARM: usize = 2;

/// What QEMU is kept from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    All,
    Nothing,
    Namespaces,
    Landlock,
    Seccomp,
}

/// What is compared in each round.
const VARIANTS: [Variant; 5] = [
    Variant::All,
    Variant::Nothing,
    Variant::Namespaces,
    Variant::Landlock,
    Variant::Seccomp,
];

impl Variant {
    /// The part of an isolation that it has.
    fn of(self, isolation: &Isolation) -> Isolation {
        let has = |part| self == Self::All || self == part;
        Isolation {
            namespaces: has(Self::Namespaces),
            landlock: has(Self::Landlock),
            seccomp: has(Self::Seccomp),
            ..isolation.clone()
        }
    }
}

/// What one start with QEMU and one with `first.s` in its place showed, in ms of CPU.
#[derive(Debug, Clone, Copy)]
struct One {
    /// From the shim's exec to QEMU's answer, in the monitor.
    monitor: f64,
    /// The same in the supervisor.
    supervisor: f64,
    /// From the fork to the first instruction of the program.
    child: f64,
    /// From the fork to QEMU's answer.
    qemu: f64,
}

/// The plan with this part of its isolation, for QEMU or for `first.s`.
fn plan(template: &Template, variant: Variant, with_qemu: bool) -> LaunchPlan {
    let mut plan = template.plan.clone();
    plan.isolation = plan.isolation.as_ref().map(|all| variant.of(all));
    if !with_qemu {
        plan.program.clone_from(&template.first);
        plan.arguments = Vec::new();
        if let Some(isolation) = &mut plan.isolation {
            isolation.root.push(Visible::Execute(template.first.clone()));
        }
    }
    plan
}

/// What `first.s` has written.
fn said(bytes: &[u8]) -> Result<f64, BenchError> {
    let word = |at: usize| {
        let bytes = bytes.get(at..at + 8)?.try_into().ok()?;
        Some(u64::from_le_bytes(bytes))
    };
    match (word(0), word(8)) {
        (Some(0), Some(nanoseconds @ 1..)) => Ok(nanoseconds as f64 / 1e6),
        _ => Err(BenchError::Task(format!(
            "first.s wrote {:?}",
            String::from_utf8_lossy(bytes)
        ))),
    }
}

/// What it costs to execute `first.s`, ms.
fn exec_of_first(template: &Template) -> Result<f64, BenchError> {
    let mut child = Command::new(&template.first)
        .arg(&template.first)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(io("first.s can't be started"))?;
    let before_ns = go(child.id())?;
    let mut bytes = Vec::new();
    if let Some(mut pipe) = child.stderr.take() {
        pipe.read_to_end(&mut bytes)
            .map_err(io("first.s can't be read"))?;
    }
    let _status = child.wait().map_err(io("first.s can't be waited for"))?;
    Ok(said(&bytes)? - before_ns as f64 / 1e6)
}

/// Waits until processes wait, and returns what each has used by then, in ns.
fn at_rest(pids: &[u32]) -> Result<Vec<u64>, BenchError> {
    let used = || pids.iter().map(|pid| cost::cpu_ns(*pid)).collect::<Vec<_>>();
    let deadline = Instant::now() + LIMIT;
    let mut before = used();
    loop {
        std::thread::sleep(REST);
        let now = used();
        if now == before {
            return Ok(now);
        }
        if Instant::now() > deadline {
            return Err(BenchError::Late("rest of the shim's processes".to_owned()));
        }
        before = now;
    }
}

/// Whether QEMU and its monitor are kept from what they should be, so that nothing is compared with itself.
fn check(running: &Running<'_>, qemu: u32, plan: &LaunchPlan) -> Result<(), BenchError> {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let (isolation, pinned) = (plan.isolation.as_ref(), plan.cpus.first().map(u32::to_string));
    let filtered = status(running.monitor(), "Seccomp:") == "2";
    let apart = namespace(&qemu.to_string()) != namespace("self");
    let groups = fs::read_to_string(format!("/proc/{qemu}/cgroup")).unwrap_or_default();
    // A group's place in its hierarchy ends as its path does, whatever the hierarchy.
    let in_group = |path: &Path| {
        let names: Vec<_> = path.components().rev().take(2).collect();
        let tail: PathBuf = names.into_iter().rev().collect();
        groups.lines().any(|line| Path::new(line).ends_with(&tail))
    };
    let mut leaves = running.leaves.own().filter(|group| group.option == "--vm-cgroup");
    let wrong = [
        (
            filtered != isolation.is_some_and(|all| all.seccomp),
            "the monitor's filter",
        ),
        (
            apart != isolation.is_some_and(|all| all.namespaces),
            "QEMU's namespaces",
        ),
        (
            Some(status(qemu, "Cpus_allowed_list:")) != pinned,
            "QEMU's processors",
        ),
        (
            !leaves.all(|group| in_group(&group.path)),
            "QEMU's control groups",
        ),
    ];
    match wrong.iter().find(|(wrong, _)| *wrong) {
        Some((_, what)) => Err(BenchError::Task(format!("{what}: not as the launch plan says"))),
        None => Ok(()),
    }
}

/// One start with QEMU and one with `first.s`.
fn launch(template: &Template, variant: Variant) -> Result<One, BenchError> {
    let with_qemu = plan(template, variant, true);
    let mut running = Running::start(template, &with_qemu)?;
    let qemu = running.hear(|message| match message {
        Message::State {
            state: State::Prepared { qemu_pid },
        } => u32::try_from(*qemu_pid).ok(),
        _ => None,
    })?;
    let monitor = running.monitor();
    let supervisor = cost::running(&template.shim)
        .into_iter()
        .find(|(pid, arguments)| {
            let ours =
                || values(arguments, "--record").any(|path| Path::new(path).starts_with(&template.directory));
            *pid != monitor && ours()
        });
    let (supervisor, _) = supervisor.ok_or_else(|| BenchError::Task("no supervisor runs".to_owned()))?;
    let used = at_rest(&[monitor, supervisor, qemu])?;
    check(&running, qemu, &with_qemu)?;
    running.ask(Request::Continue)?;
    running.hear(|message| (*message == Message::Done).then_some(()))?;
    running.ask(Request::Kill)?;
    running.end()?;
    let before_ns = running.before_ns;
    drop(running);

    let mut running = Running::start(template, &plan(template, variant, false))?;
    running.end()?;
    let ms = |ns: u64| ns as f64 / 1e6;
    match used.as_slice() {
        [monitor, supervisor, qemu] => Ok(One {
            monitor: ms(monitor.saturating_sub(before_ns)),
            supervisor: ms(*supervisor),
            child: said(&running.messages)?,
            qemu: ms(*qemu),
        }),
        _ => Err(BenchError::Task("a process was not looked at".to_owned())),
    }
}

/// An order that differs from round to round, and is the same in each run: a generator of George Marsaglia's (xorshift).
#[derive(Debug)]
struct Shuffle(u64);

impl Shuffle {
    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            let other = usize::try_from(self.0 % (last as u64 + 1)).unwrap_or(0);
            items.swap(last, other);
        }
    }
}

/// The starts of some variants, a list for each, in rounds of one start of each.
fn rounds(
    template: &Template,
    variants: &[Variant],
    count: usize,
    exec: &mut Samples,
) -> Result<Vec<Vec<One>>, BenchError> {
    let mut starts: Vec<Vec<One>> = vec![Vec::new(); variants.len()];
    let mut order: Vec<usize> = (0..variants.len()).collect();
    let mut shuffle = Shuffle(88_172_645_463_325_252);
    for round in 0..count {
        shuffle.shuffle(&mut order);
        for place in &order {
            starts[*place].push(launch(template, variants[*place])?);
            exec.push(exec_of_first(template)?);
        }
        if (round + 1) % 10 == 0 {
            say(&format!("launches: {} of {count} rounds", round + 1));
        }
    }
    Ok(starts)
}

pub(crate) fn measure(bench: &Bench, count: usize, report: &mut Report) -> Result<(), BenchError> {
    let template = Template::take(bench)?;
    let mut exec = Samples::default();
    for _ in 0..WARM {
        for variant in VARIANTS {
            launch(&template, variant)?;
        }
    }
    let same = rounds(&template, &[Variant::All; 2], SAME_PAIRS.min(count), &mut exec)?;
    let starts = rounds(&template, &VARIANTS, count, &mut exec)?;
    let exec_ms = exec.median();
    let of = |variant: Variant| {
        let place = VARIANTS.iter().position(|other| *other == variant);
        place.map_or(&[][..], |place| starts[place].as_slice())
    };
    let samples = |starts: &[One], value: &dyn Fn(&One) -> f64| starts.iter().map(value).collect::<Samples>();
    let child = |one: &One| one.child - exec_ms;
    let shim = |one: &One| one.monitor + one.supervisor;
    let sum = |one: &One| shim(one) + child(one);
    let qemu = |one: &One| one.qemu - child(one);
    // What the same differs from itself, ms.
    let same_ms = |value: &dyn Fn(&One) -> f64| {
        let (a, b) = (samples(&same[0], value), samples(&same[1], value));
        (apart(&a, &b) * a.median(), apart(&a, &b))
    };

    say(&format!(
        "medians of {} launches of each kind:",
        of(Variant::All).len()
    ));
    let all = samples(of(Variant::All), &sum);
    report.add(
        "CPU from the shim's exec to `cont`",
        all.median(),
        "ms",
        Some(3.0),
        all.spread().max(same_ms(&sum).1),
    );
    for (name, part) in [
        (
            "of it, the monitor",
            samples(of(Variant::All), &|one| one.monitor),
        ),
        (
            "of it, the supervisor",
            samples(of(Variant::All), &|one| one.supervisor),
        ),
        (
            "of it, the child from fork to exec",
            samples(of(Variant::All), &child),
        ),
    ] {
        report.add(name, part.median(), "ms", None, part.spread());
    }
    report.add(
        "exec of a static program, not counted in the child's",
        exec_ms,
        "ms",
        None,
        exec.spread(),
    );
    let nothing = samples(of(Variant::Nothing), &sum);
    report.add(
        "CPU from the shim's exec to `cont`, not hardened",
        nothing.median(),
        "ms",
        None,
        nothing.spread(),
    );
    for (variant, name, goal) in [
        (Variant::All, "CPU of hardening in that", Some(2.0)),
        (Variant::Namespaces, "CPU of namespaces and root alone", None),
        (Variant::Landlock, "CPU of Landlock alone", None),
        (Variant::Seccomp, "CPU of seccomp alone", None),
    ] {
        // Both of one round, so that what slows a whole round down counts for neither.
        let pairs = of(variant).iter().zip(of(Variant::Nothing));
        let more: Samples = pairs.map(|(with, without)| sum(with) - sum(without)).collect();
        let spread = more.spread().max(same_ms(&sum).0 / more.median().abs());
        report.add(name, more.median(), "ms", goal, spread);
    }
    let with = samples(of(Variant::All), &qemu);
    report.add(
        "QEMU's CPU to its first answer",
        with.median(),
        "ms",
        None,
        with.spread(),
    );
    let ratios =
        |a: &[One], b: &[One]| -> Samples { a.iter().zip(b).map(|(a, b)| qemu(a) / qemu(b)).collect() };
    let ratio = ratios(of(Variant::All), of(Variant::Nothing));
    report.add(
        "QEMU's CPU to its first answer, ratio to not hardened",
        ratio.median(),
        "",
        Some(1.05),
        ratio
            .spread()
            .max((ratios(&same[0], &same[1]).median() - 1.0).abs()),
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_time_below_a_second_is_one() {
        let told = |seconds: u64, nanoseconds: u64| {
            let bytes = [seconds.to_le_bytes(), nanoseconds.to_le_bytes()].concat();
            said(&bytes).ok()
        };
        assert_eq!(told(0, 250_000), Some(0.25));
        assert_eq!(told(7, 250_000), None);
        assert_eq!(told(0, 0), None);
        assert!(said(b"microvm-shim: no").is_err());
        assert!(said(b"short").is_err());
    }

    #[test]
    fn each_order_has_everything_once_and_orders_differ() {
        let mut shuffle = Shuffle(88_172_645_463_325_252);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let mut order = [0, 1, 2, 3, 4];
            shuffle.shuffle(&mut order);
            let mut sorted = order;
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4]);
            seen.insert(order);
        }
        assert!(seen.len() > 80, "{} of 120 orders", seen.len());
    }
}
