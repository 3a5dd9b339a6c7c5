//! Are the promised figures held, measured beside Nomad's built-in qemu driver in one run?
//!
//! `run.sh` starts the agents and calls this program. The order: an A/A run (ours against ours) for the spread, pairs of
//! ours and the built-in one, stops, the launch by itself, many machines at once, the console, and netd beside CNI.
//! Everything is told as one line per figure and written to `target/bench.json`.

mod series;

mod network;

mod console;
mod crowd;
mod launch;
mod one;
mod stage;

mod cost;
mod figures;
mod log;
mod nomad;
mod watch;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Why a measurement could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// `run.sh` sets the variables.
    #[error("the variable {0} is not set: run make bench")]
    Variable(&'static str),
    /// Nomad's API did not answer as it should.
    #[error("{what}")]
    Nomad {
        what: String,
        #[source]
        source: Option<Box<ureq::Error>>,
    },
    /// A file or a process could not be used.
    #[error("{0}")]
    Io(String, #[source] std::io::Error),
    /// Something did not happen in time.
    #[error("{0} did not happen in time")]
    Late(String),
    /// A task ended otherwise than it should.
    #[error("{0}")]
    Task(String),
}

/// What the run has to do with.
#[derive(Debug)]
pub(crate) struct Bench {
    /// Nomad's API.
    pub(crate) api: nomad::Api,
    /// The agents' directory, as `testing/demo/lib.sh` lays it out.
    pub(crate) agents: PathBuf,
    /// The test guest's images.
    pub(crate) guest: PathBuf,
    /// Empty disk images `tiny-<n>.qcow2`, which the built-in driver insists on.
    pub(crate) images: PathBuf,
    /// The kernel's process events.
    pub(crate) watch: watch::Watch,
}

fn variable(name: &'static str) -> Result<String, BenchError> {
    std::env::var(name).map_err(|_| BenchError::Variable(name))
}

/// A count from the environment, for a short trial.
fn count(name: &str, default: usize) -> usize {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// What is measured, in this order, and each by its name.
type Part = fn(&Bench, &mut figures::Report) -> Result<(), BenchError>;
const PARTS: [(&str, Part); 5] = [
    ("series", |bench, report| {
        series::measure(bench, count("STEPPE_BENCH_PAIRS", 40), report)
    }),
    ("launch", |bench, report| {
        launch::measure(bench, count("STEPPE_BENCH_PAIRS", 40), report)
    }),
    ("crowd", |bench, report| {
        let idle = Duration::from_secs(count("STEPPE_BENCH_IDLE_SECONDS", 60) as u64);
        crowd::measure(bench, count("STEPPE_BENCH_VMS", 40), idle, report)
    }),
    ("console", |bench, report| {
        console::measure(bench, count("STEPPE_BENCH_BYTES", 400), report)
    }),
    ("netd", network::measure),
];

fn run() -> Result<(), BenchError> {
    let agents = PathBuf::from(variable("STEPPE_BENCH_AGENTS")?);
    let bench = Bench {
        api: nomad::Api::new(&variable("STEPPE_BENCH_ADDRESS")?),
        guest: variable("STEPPE_GUEST_DIR")?.into(),
        images: variable("STEPPE_BENCH_IMAGES")?.into(),
        watch: watch::Watch::start(agents.join("bin/nomad"))?,
        agents,
    };
    let only = std::env::var("STEPPE_BENCH_ONLY").unwrap_or_default();
    let mut report = figures::Report::default();
    for (name, part) in PARTS {
        if only.is_empty() || only.split(' ').any(|word| word == name) {
            part(&bench, &mut report)?;
        }
    }
    let path = PathBuf::from(variable("STEPPE_BENCH_OUTPUT")?);
    report
        .write(&path)
        .map_err(|error| BenchError::Io(format!("{} can't be written", path.display()), error))?;
    say(&format!("written to {}", path.display()));
    Ok(())
}

/// Prints a line; a reader that has gone needs no help.
pub(crate) fn say(line: &str) {
    drop(writeln!(std::io::stdout(), "{line}"));
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                text.push_str(&format!(": {cause}"));
                source = cause.source();
            }
            drop(writeln!(std::io::stderr(), "steppe-bench: {text}"));
            ExitCode::FAILURE
        }
    }
}
