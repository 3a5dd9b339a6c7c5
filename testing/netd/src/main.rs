//! How are the checks of netd called?
//!
//! `netd-checks [NAME…]` runs the checks whose name contains one of the words; see `--help`.

mod checks;
mod confine;
mod harness;

mod guest;
mod host;
mod netd;
mod points;
mod space;
mod state;

mod frame;
mod ping;
mod system;
mod tap;
mod wait;

use std::process::ExitCode;

const HELP: &str = "\
netd-checks runs netd with real links, filters and frames: each check in a network namespace of its own.

USAGE
  netd-checks [NAME…]     the checks whose name contains one of the words; all that can run on this host without a word
  netd-checks --vlan [NAME…]   those that need 802.1Q and bridges that filter VLANs (testing/vm/test.sh runs them)
  netd-checks --list      the names of both
  netd-checks --help

ENVIRONMENT (testing/prepare.sh builds it all and sets the second and third)
  STEPPE_NETD_DIR         folder with netd; unless set:
  STEPPE_PLUGIN_DIR       the same
  STEPPE_POINTS_PLUGIN_DIR  folder with netd built with crash points: netd_crash_matrix needs it
  STEPPE_SEED             repeats what netd_random did; drawn, and printed, unless set
  STEPPE_OPERATIONS       how many operations netd_random does (1000)
  STEPPE_KEEP_LOGS        set: what netd said is printed of checks that passed, too

Root is needed, and the programs ip, bridge and nft. Each check prints one line: check NAME passed|failed SECONDS REASON.
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
        [harness::ALONE, name] => harness::alone(checks::TABLE, name),
        [confine::CONFINED, words @ ..] => confine::become_program(words),
        ["--vlan", names @ ..] => harness::run(checks::TABLE, harness::Place::Machine, names),
        [option, ..] if option.starts_with('-') => {
            harness::say(&format!("netd-checks: {option} is not known here: see --help"));
            ExitCode::from(64)
        }
        names => harness::run(checks::TABLE, harness::Place::Host, names),
    }
}
