//! How long does a byte of the console take from QEMU to the log's pipe?
//!
//! When QEMU writes a byte can't be seen from outside. So the real shim is given a plan whose program writes the time to the
//! console instead, line by line, and speaks just as much QMP as is needed to be told to run. A FIFO is the same kernel
//! object as the pipe used here.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use steppe_vm::plan::{
    Descriptor, Isolation, LaunchPlan, Limits, Network, PLAN_VERSION, Source, Start, Visible,
};

use crate::figures::{Report, Samples};
use crate::{Bench, BenchError};

/// Answers QMP on descriptor 3 until it is told to continue, then writes the time to descriptor 4, at pauses that keep
/// no step with anything. `read -t` waits without starting a process.
const SCRIPT: &str = r#"
printf '{"QMP":{}}\n' >&3
while read -r line <&3; do
    [[ $line =~ \"id\":\ *([0-9]+) ]]
    printf '{"return":{},"id":%s}\n' "${BASH_REMATCH[1]}" >&3
    [[ $line != *'"cont"'* ]] || break
done
for ((n = 0; n < $0; n++)); do
    read -r -t "0.0$((RANDOM % 19 + 1))" <&3
    printf '%s\n' "$EPOCHREALTIME" >&4
done
"#;

/// Its interpreter, with its true path: beside it there are no links in a root of its own.
const BASH: &str = "/usr/bin/bash";

/// A user that nobody else has.
const UID: u32 = 1_912_000_000;

pub(crate) fn measure(bench: &Bench, bytes: usize, report: &mut Report) -> Result<(), BenchError> {
    let channel = |number: i32, name: &str, source: Source| Descriptor {
        number,
        name: name.to_owned(),
        source,
    };
    let link = |path: &str, target: &str| Visible::Link {
        path: path.into(),
        target: target.into(),
    };
    let plan = LaunchPlan {
        version: PLAN_VERSION,
        owner: "bench.console".to_owned(),
        start: Start::Boot,
        program: BASH.into(),
        arguments: vec!["-c".to_owned(), SCRIPT.to_owned(), bytes.to_string()],
        descriptors: vec![
            channel(3, "qmp", Source::Qmp),
            channel(4, "console", Source::Console),
        ],
        limits: Limits::default(),
        uid: UID,
        gid: UID,
        ready: None,
        cpus: Vec::new(),
        isolation: Some(Isolation {
            namespaces: true,
            landlock: true,
            seccomp: true,
            network: Network::None,
            root: vec![
                Visible::Device("/dev/null".into()),
                Visible::Execute(BASH.into()),
                // The loader is there too.
                Visible::Execute("/usr/lib".into()),
                Visible::Read("/usr/lib64".into()),
                link("/lib", "usr/lib"),
                link("/lib64", "usr/lib64"),
            ],
        }),
    };
    let path = bench.agents.join("console-plan.json");
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error| BenchError::Io(what, error)
    };
    std::fs::write(&path, plan.to_json()).map_err(failed("the console's plan can't be written"))?;
    let mut shim = Command::new(bench.agents.join("bin/plugins/microvm-shim"))
        .arg("run")
        .arg(&path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // It reports an end without a word of QMP's, which here is no failure.
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed("the shim can't be started"))?;
    let mut latency = Samples::default();
    if let Some(pipe) = shim.stdout.take() {
        for line in BufReader::new(pipe).lines() {
            let line = line.map_err(failed("the shim's pipe can't be read"))?;
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs_f64();
            let written: f64 = line.trim().parse().unwrap_or(f64::NAN);
            latency.push((now - written) * 1000.0);
        }
    }
    let _status = shim.wait().map_err(failed("the shim can't be waited for"))?;
    if latency.len() != bytes {
        return Err(BenchError::Task(format!(
            "{} of {bytes} lines came through the console",
            latency.len()
        )));
    }
    report.add(
        "console byte from QEMU to the FIFO",
        latency.median(),
        "ms",
        Some(10.0),
        latency.spread(),
    );
    report.add(
        "the same, 99 of 100 bytes",
        latency.quantile(0.99),
        "ms",
        None,
        latency.spread(),
    );
    Ok(())
}
