//! How are the end-to-end checks called?
//!
//! `steppe-e2e [NAME…]` runs the checks whose name contains one of the words; see `--help`.

mod harness;

mod checks;

mod hosts;
mod job;
mod world;

mod agent;
mod api;
mod host;
mod namespace;
mod netd;

mod process;
mod scratch;
mod shim;
mod wait;

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use crate::hosts::Net;
use crate::world::World;

const HELP: &str = "\
steppe-e2e runs the product as a whole: a real Nomad server and client, real QEMU, real guests.

USAGE
  steppe-e2e [NAME…]      the checks whose name contains one of the words; all without a word
  steppe-e2e --list       their names
  steppe-e2e --net …      the same for the checks on three hosts, which are this one's: each has its network, netd and client
  steppe-e2e --help

ENVIRONMENT (testing/prepare.sh builds it all and sets the first six)
  STEPPE_PLUGIN_DIR       folder with nomad-driver-microvm, microvm-shim and netd
  STEPPE_POINTS_PLUGIN_DIR  the same, built with crash points
  STEPPE_NOMAD            the nomad program
  STEPPE_GUEST_DIR        folder with the test guest's vmlinux and initrd.img
  STEPPE_RELEASES         folders with the programs of earlier releases, a colon between two
  STEPPE_INMATE           the program that tests run in QEMU's place
  STEPPE_STUB_DIR         folder with the stub guest's kernel; what testing/guest/stub/build.sh prints, unless set
  STEPPE_CYCLES           start/stop cycles of e2e_cycles, 40 unless set
  STEPPE_PARALLEL         how many of them at a time, 8 unless set
  STEPPE_WITHOUT          a capability that unit_privileges leaves out, to see what it is there for, such as CAP_KILL
  STEPPE_KEEP             set: the scratch folder in /tmp stays, without processes and mounts

Root is needed. All that a run makes is taken away at its end, however it ends. The logs of the agents, plugins and shims
go to target/logs/e2e, or net. Each check prints one line: check NAME passed|failed SECONDS REASON.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["--help" | "-h"] => {
            harness::say(HELP.trim_end());
            ExitCode::SUCCESS
        }
        ["--list"] => harness::list(checks::TABLE),
        ["--net", "--list"] => harness::list(checks::net::TABLE),
        ["--net", ..] => in_own_network(&words[1..]),
        [OWN_NETWORK, names @ ..] => harness::run(checks::net::TABLE, names, Net::new),
        [scratch::WATCH, suite, directory] => {
            scratch::watch(suite, directory.as_ref());
            ExitCode::SUCCESS
        }
        [option, ..] if option.starts_with('-') => {
            harness::say(&format!("steppe-e2e: {option} is not known here: see --help"));
            ExitCode::from(64)
        }
        names => harness::run(checks::TABLE, names, World::new),
    }
}

/// The argument of a process whose network is its own.
const OWN_NETWORK: &str = "--in-own-network";

/// Becomes such a process. Its network goes with the last process that is in it.
fn in_own_network(names: &[&str]) -> ExitCode {
    let own = std::env::current_exe().expect("this program has a path");
    let mut command = Command::new("unshare");
    command
        .args(["--net", "--"])
        .arg(own)
        .arg(OWN_NETWORK)
        .args(names);
    let error = command.exec();
    harness::say(&format!("steppe-e2e: {command:?}: {error}"));
    ExitCode::FAILURE
}
