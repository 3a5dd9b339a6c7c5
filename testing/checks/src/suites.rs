//! Which suites are there, which command is each, and which may run side by side?

use std::time::Duration;

/// A command that runs checks and prints a line for each.
#[derive(Debug, Clone)]
pub struct Suite {
    /// The name used in `testing/checks.txt` and for the log.
    pub name: String,
    /// The program and its arguments, started in the root of the tree.
    pub command: Vec<String>,
    /// Suites of one stage run side by side; stages run one after the other, the lowest first.
    pub stage: u8,
    /// After this time the suite is ended, which is a failure.
    pub time_limit: Duration,
}

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(minutes * 60)
}

/// Every suite.
///
/// The stages suit a machine with two cores. Everything that measures time or counts processes and links of the host
/// (`e2e`, `net`, `jobs`, `demo`) runs alone; what only compiles and computes runs beside one other.
///
/// | suite | what it is | prints |
/// |---|---|---|
/// | tidy | formatting, lints | `check …` lines |
/// | conformance | Nomad's own loader, harness and descriptors, in Go | Go's `--- PASS: …` |
/// | cargo | unit, golden, property and tidy tests of all crates | libtest's `test … ok` |
/// | vm | what needs another kernel than the host's, in a machine that runs Debian's | `check …` lines |
/// | netd | netd with real links, filters and frames, in network namespaces | `check …` lines |
/// | e2e | a real Nomad agent, real QEMU, real guests | `check …` lines |
/// | net | the same with netd, on three hosts that are network namespaces | `check …` lines |
/// | jobs | the examples in `jobs/`, run as they stand | `check …` lines |
/// | demo | `make demo` in a clean clone | `check …` lines |
#[must_use]
pub fn table() -> Vec<Suite> {
    const CARGO: &str = "cargo test --workspace --exclude steppe-e2e --no-fail-fast --locked";
    const NETD: &str = "cargo run --quiet --locked --package steppe-netd-checks";
    const E2E: &str = "cargo run --quiet --locked --package steppe-e2e";
    const NET: &str = "cargo run --quiet --locked --package steppe-e2e -- --net";
    [
        ("tidy", "testing/checks/tidy.sh", 0, minutes(20)),
        ("conformance", "testing/nomad/test.sh", 0, minutes(20)),
        ("cargo", CARGO, 1, minutes(30)),
        ("vm", "testing/vm/test.sh", 1, minutes(20)),
        ("netd", NETD, 1, minutes(10)),
        ("e2e", E2E, 2, minutes(60)),
        ("net", NET, 3, minutes(20)),
        ("jobs", "testing/jobs/test.sh", 4, minutes(20)),
        ("demo", "testing/demo/test.sh", 5, minutes(30)),
    ]
    .map(|(name, command, stage, time_limit)| Suite {
        name: name.to_owned(),
        command: command.split(' ').map(str::to_owned).collect(),
        stage,
        time_limit,
    })
    .into()
}
