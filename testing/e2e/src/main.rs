//! How are the end-to-end checks called?
//!
//! `steppe-e2e [NAME…]` runs the checks whose name contains one of the words; see `--help`.

mod harness;

mod checks;

mod job;
mod world;

mod agent;
mod api;
mod host;

mod process;
mod scratch;
mod shim;
mod wait;

use std::process::ExitCode;

const HELP: &str = "\
steppe-e2e runs the product as a whole: a real Nomad server and client, real QEMU, real guests.

USAGE
  steppe-e2e [NAME…]      the checks whose name contains one of the words; all without a word
  steppe-e2e --list       their names
  steppe-e2e --help

ENVIRONMENT (testing/prepare.sh builds it all and sets the first five)
  STEPPE_PLUGIN_DIR       folder with nomad-driver-microvm and microvm-shim
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
go to target/logs/e2e. Each check prints one line: check NAME passed|failed SECONDS REASON.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["--help" | "-h"] => {
            harness::say(HELP.trim_end());
            ExitCode::SUCCESS
        }
        ["--list"] => {
            checks::TABLE.iter().for_each(|check| harness::say(check.name));
            ExitCode::SUCCESS
        }
        [scratch::WATCH, directory] => {
            scratch::watch(directory.as_ref());
            ExitCode::SUCCESS
        }
        [option, ..] if option.starts_with('-') => {
            harness::say(&format!("steppe-e2e: {option} is not known here: see --help"));
            ExitCode::from(64)
        }
        names => harness::run(checks::TABLE, names),
    }
}
