//! What does a guest that broke out into QEMU do next?
//!
//! This program is started in QEMU's place by the same code that starts QEMU, so it has what QEMU has. It speaks QMP as far
//! as the driver asks, and acts by the words of the guest's command line.

mod arguments;
mod machine;

mod acts;
mod escape;

mod system;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use arguments::Arguments;
use escape::Targets;

const HELP: &str = "\
qemu-inmate runs in QEMU's place and does what a guest would do that broke out into QEMU.

USAGE
  qemu-inmate -chardev socket,id=qmp,fd=N -chardev socket,id=console,fd=N [-smp N] [-append WORDS] …
      As QEMU is called. Options that are not named here are taken and mean nothing. Once it is told to continue, it acts
      by the words of -append, all of them at once:
        inmate.busy          each vCPU uses its processor fully
        inmate.hog=MIB       takes memory, one MiB after the other
        inmate.flood=MIB     writes numbered lines to the console
        inmate.fork          makes 100 processes and 2000 threads
        inmate.write=MIB     writes to its first disk
      Without a word it idles. What it did is said on the console, on lines that begin with `inmate: `.
        inmate.escape        tries to get out and does nothing else. Each attempt is a line on the console,
                             `escape NAME refused ERROR` or `escape NAME done`; the last one is `escape end NUMBER`,
                             then the machine shuts down. On what it is tried is told by more words:
                             inmate.host.state, .run, .data (folders of the driver and of Nomad), inmate.victim.pid,
                             .uid, .key, .disk, .fifo, .log, .control, .group (of another VM), inmate.own.allocation,
                             and those that `bait` prints.
                             inmate.escape.from=NAME begins there: an attempt may end this program.
                             inmate.escape.kind=taps tries only what can be made of a tap device, nothing of which is
                             tried otherwise.
  qemu-inmate control WORDS…
      Tries the same unconfined, as root: that something was refused means something only where this does it. Each attempt
      has a process, mounts, a host name and a terminal of its own. One more word: inmate.supervisor.pid.
  qemu-inmate bait DIRECTORY
      Sets up sockets, files and memory that everybody may use, prints the words by which they are found, and takes them
      away when standard input ends.
  qemu-inmate --version | --help
";

fn main() -> ExitCode {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = given.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["--help" | "-h"] => say(HELP),
        // What the driver reads of QEMU's answer is this beginning.
        ["--version"] => say("QEMU emulator version 7.2.0 (inmate)\n"),
        ["control", ..] => ended(escape::control(&Targets::new(&Arguments::default(), &given))),
        ["bait", folder] => ended(escape::bait(Path::new(folder))),
        _ => ended(machine::run(&Arguments::read(&given))),
    }
}

fn ended(result: Result<(), machine::Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            drop(writeln!(std::io::stderr(), "qemu-inmate: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn say(text: &str) -> ExitCode {
    // A reader that has gone needs no help.
    drop(std::io::stdout().write_all(text.as_bytes()));
    ExitCode::SUCCESS
}
