//! How is netd called?
//!
//! `netd serve` is the daemon; the other commands are for a person on the host, and for scripts.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run(std::env::args_os().skip(1).collect())
}
