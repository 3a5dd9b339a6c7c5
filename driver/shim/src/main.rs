//! How is the shim called?
//!
//! `microvm-shim supervise …` is how the driver calls it; `microvm-shim run plan.json` boots a VM by hand.

mod monitor;

mod isolate;
mod launch;
mod memory;
mod tap;

mod confine;
mod filter;
mod link;

mod supervise;

mod exit_file;
mod oom;

mod console;
mod control;
mod qmp;
mod ready;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use steppe_vm::error::chain;
use steppe_vm::plan::LaunchPlan;

const HELP: &str = "\
microvm-shim starts one QEMU from a launch plan, holds its QMP connection and console, and writes down how it ended.

USAGE
  microvm-shim run PLAN
      Boots the VM of a plan by hand, without Nomad. The console goes to stdout, QEMU's messages to stderr; the exit
      status is the VM's. Needs root, because the plan says which unprivileged user QEMU becomes. Ctrl-C ends it.
      The plan of a task is <state_dir>/tasks/<task>/plan.json.
  microvm-shim supervise --plan PLAN --record DIR --control SOCKET --stdout FIFO --stderr FIFO --uid UID
                         [--vm-cgroup DIR]… [--shim-cgroup DIR]… [--client-fd N] [--lock-fd N] [--net-fd N]
      What the driver runs for each task. The exit record is written to DIR/exit.json. QEMU's network namespace is the one
      that --net-fd names, else a new one.
  microvm-shim kernel
      Says as JSON what this kernel can keep QEMU from, and then waits for its input to end, in an empty network namespace.
  microvm-shim --version | --help
";

/// Largest plan that is read: 24 disks with paths of a kilobyte each take a tenth of it.
const PLAN_MAX_BYTES: u64 = 1 << 20;

/// Exit status for a wrong command line (sysexits' EX_USAGE).
const STATUS_USAGE: u8 = 64;

#[derive(Debug, thiserror::Error)]
enum UsageError {
    #[error("{0:?} is not known here: see microvm-shim --help")]
    Unknown(String),
    #[error("{0} needs a value: see microvm-shim --help")]
    NoValue(String),
    #[error("{0} is missing: see microvm-shim --help")]
    Missing(&'static str),
    #[error("{0} {1:?} is not a number it can be")]
    Number(&'static str, String),
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Usage(#[from] UsageError),
    #[error("plan {path} can't be read")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("plan {path} can't be used")]
    Plan {
        path: PathBuf,
        #[source]
        source: steppe_vm::plan::PlanError,
    },
    #[error("root is needed, because the plan says which unprivileged user QEMU becomes: run it with sudo")]
    NotRoot,
    #[error("standard output or error can't be used")]
    Standard(#[source] rustix::io::Errno),
    #[error(transparent)]
    Monitor(#[from] monitor::MonitorError),
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["--help" | "-h"] => say(HELP),
        ["--version" | "-V"] => say(concat!("microvm-shim ", env!("CARGO_PKG_VERSION"), "\n")),
        ["run", plan] => run(Path::new(plan)),
        ["supervise", options @ ..] => supervise(options),
        ["kernel"] => kernel(),
        [] => Err(UsageError::Missing("a command").into()),
        [other, ..] => Err(UsageError::Unknown((*other).to_owned()).into()),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            complain(&error);
            ExitCode::from(if matches!(error, Error::Usage(_)) {
                STATUS_USAGE
            } else {
                1
            })
        }
    }
}

fn say(text: &str) -> Result<u8, Error> {
    // A reader that has gone needs no help.
    drop(std::io::stdout().write_all(text.as_bytes()));
    Ok(0)
}

/// Says what the kernel can do.
fn kernel() -> Result<u8, Error> {
    let kernel = isolate::kernel();
    let code = say(&steppe_vm::record::line(&kernel))?;
    let _end = std::io::stdin().read(&mut [0]);
    Ok(code)
}

/// Boots a VM by hand.
fn run(path: &Path) -> Result<u8, Error> {
    launch::close_all_but(&[]);
    launch::reset_inherited();
    let plan = read_plan(path)?;
    if !rustix::process::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    let own =
        |fd: std::os::fd::BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, 3).map_err(Error::Standard);
    let surroundings = monitor::Surroundings {
        record_directory: None,
        control: None,
        lock: None,
        client: None,
        stdout: own(std::io::stdout().as_fd())?,
        stderr: own(std::io::stderr().as_fd())?,
        // The plan's user ids come in pairs: QEMU's, then the supervisor's.
        supervisor_uid: plan.uid.saturating_add(1),
        vm_cgroups: Vec::new(),
        shim_cgroups: Vec::new(),
        network: None,
        continue_at_once: true,
    };
    let outcome = monitor::run(&plan, surroundings, &mut None)?.outcome();
    if outcome.exit_code != 0 {
        drop(writeln!(std::io::stderr(), "microvm-shim: {}", outcome.sentence));
    }
    Ok(u8::try_from(outcome.exit_code).unwrap_or(1))
}

/// Runs a task's VM for the driver. A failure before QEMU runs is told to the driver over its connection.
fn supervise(options: &[&str]) -> Result<u8, Error> {
    let mut options = Options::read(options)?;
    launch::close_all_but(&options.descriptors());
    launch::reset_inherited();
    // Signals for the agent's terminal are not for the VM. Fails only where this is a session of its own already.
    let _ = rustix::process::setsid();
    let lock = options.inherited("--lock-fd")?;
    let client = options.inherited("--client-fd")?;
    let network = options.inherited("--net-fd")?;
    let mut teller = client
        .as_ref()
        .and_then(|client| client.try_clone().ok())
        .map(File::from);
    let run = |teller: &mut Option<File>| -> Result<u8, Error> {
        if let Some(lock) = &lock {
            let pid = format!("{}\n", rustix::process::getpid());
            let _ = rustix::io::write(lock, pid.as_bytes());
        }
        let plan = read_plan(Path::new(&options.one("--plan")?))?;
        let uid = options.one("--uid")?;
        let surroundings = monitor::Surroundings {
            record_directory: Some(options.one("--record")?.into()),
            control: Some(options.one("--control")?.into()),
            lock,
            client,
            stdout: monitor::open_log(Path::new(&options.one("--stdout")?))?,
            stderr: monitor::open_log(Path::new(&options.one("--stderr")?))?,
            supervisor_uid: uid.parse().map_err(|_| UsageError::Number("--uid", uid))?,
            vm_cgroups: options.all("--vm-cgroup"),
            shim_cgroups: options.all("--shim-cgroup"),
            network,
            continue_at_once: false,
        };
        let _record = monitor::run(&plan, surroundings, teller)?;
        Ok(0)
    };
    let result = run(&mut teller);
    if let (Err(error), Some(teller)) = (&result, &mut teller) {
        let state = steppe_vm::control::State::Failed {
            reason: chain(error),
            retryable: may_pass(error),
        };
        let message = steppe_vm::control::Message::State { state };
        drop(teller.write_all(steppe_vm::record::line(&message).as_bytes()));
    }
    result
}

/// Whether an error is of a kind that goes away by itself: no room, no memory, too many files or processes.
fn may_pass(error: &(dyn std::error::Error + 'static)) -> bool {
    use rustix::io::Errno;
    std::iter::successors(Some(error), |error| error.source()).any(|error| {
        let errno = error.downcast_ref::<Errno>().copied();
        let errno = errno.or_else(|| Errno::from_io_error(error.downcast_ref::<std::io::Error>()?));
        matches!(
            errno,
            Some(Errno::NOSPC | Errno::DQUOT | Errno::NOMEM | Errno::AGAIN | Errno::MFILE | Errno::NFILE)
        )
    })
}

fn read_plan(path: &Path) -> Result<LaunchPlan, Error> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut text = Vec::new();
        let _length = File::open(path)?.take(PLAN_MAX_BYTES).read_to_end(&mut text)?;
        Ok(text)
    };
    let text = read().map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    LaunchPlan::parse(&text).map_err(|source| Error::Plan {
        path: path.to_owned(),
        source,
    })
}

/// Options of the form `--name value`, each any number of times.
#[derive(Debug)]
struct Options(BTreeMap<String, Vec<String>>);

const OPTION_NAMES: [&str; 11] = [
    "--plan",
    "--record",
    "--control",
    "--stdout",
    "--stderr",
    "--uid",
    "--vm-cgroup",
    "--shim-cgroup",
    "--client-fd",
    "--lock-fd",
    "--net-fd",
];

impl Options {
    fn read(words: &[&str]) -> Result<Self, UsageError> {
        let mut options = BTreeMap::<String, Vec<String>>::new();
        for pair in words.chunks(2) {
            let name = pair.first().copied().unwrap_or_default();
            if !OPTION_NAMES.contains(&name) {
                return Err(UsageError::Unknown(name.to_owned()));
            }
            let value = pair.get(1).ok_or_else(|| UsageError::NoValue(name.to_owned()))?;
            options
                .entry(name.to_owned())
                .or_default()
                .push((*value).to_owned());
        }
        Ok(Self(options))
    }

    fn one(&mut self, name: &'static str) -> Result<String, UsageError> {
        self.0
            .remove(name)
            .and_then(|mut values| values.pop())
            .ok_or(UsageError::Missing(name))
    }

    fn all(&mut self, name: &str) -> Vec<PathBuf> {
        self.0
            .remove(name)
            .unwrap_or_default()
            .into_iter()
            .map(PathBuf::from)
            .collect()
    }

    /// The numbers of the descriptors that the options name.
    fn descriptors(&self) -> Vec<i32> {
        let named = self.0.iter().filter(|(name, _)| name.ends_with("-fd"));
        named
            .flat_map(|(_, values)| values)
            .filter_map(|value| value.parse().ok())
            .collect()
    }

    fn inherited(&mut self, name: &'static str) -> Result<Option<OwnedFd>, UsageError> {
        let Ok(text) = self.one(name) else { return Ok(None) };
        let number = text.parse().ok();
        let fd = number
            .and_then(launch::inherited)
            .ok_or(UsageError::Number(name, text))?;
        debug_assert!(fd.as_raw_fd() >= 3);
        Ok(Some(fd))
    }
}

fn complain(error: &dyn std::error::Error) {
    drop(writeln!(std::io::stderr(), "microvm-shim: {}", chain(error)));
}

/// Ends a forked process without running what belongs to its parent.
#[expect(clippy::exit, reason = "the supervisor's life ends here by design")]
fn end(code: i32) -> ! {
    std::process::exit(code)
}
