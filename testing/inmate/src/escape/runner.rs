//! How is everything tried, one after the other, so that no attempt changes what the next one meets?
//!
//! Each attempt gets a process of its own. Where none can be made, as it should be, it is made in this one.

use std::fmt;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};

use super::targets::Targets;
use super::{Attempt, Outcome, Refusal, attempts, open};
use crate::machine::{Console, Error};
use crate::system::{self, Errno, call};

/// How long an attempt may take.
const LIMIT_SECONDS: u32 = 5;

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Result {
    Done,
    Refused(Errno),
    /// It would have been ended by this signal.
    Killed(i32),
    Hung,
    /// A word is missing.
    Unknown(String),
}

impl From<Outcome> for Result {
    fn from(outcome: Outcome) -> Self {
        heard(&report(outcome))
    }
}

impl fmt::Display for Result {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::Refused(error) => write!(f, "refused {error}"),
            Self::Killed(libc::SIGSYS) => f.write_str("refused SIGSYS"),
            Self::Killed(libc::SIGSEGV) => f.write_str("refused SIGSEGV"),
            Self::Killed(signal) => write!(f, "killed {signal}"),
            Self::Hung => f.write_str("hung"),
            Self::Unknown(word) => write!(f, "unknown inmate.{word}"),
        }
    }
}

/// Tries everything from inside. To be called while this process has one thread.
pub(crate) fn confined(console: &Console, targets: &Targets) {
    system::interrupt_on_alarm();
    let mut tried = 0;
    let first = targets.word("escape.from").ok();
    for attempt in attempts(targets).skip_while(|attempt| first.is_some_and(|first| first != attempt.name)) {
        // Whoever can make a process may as well be seen as many.
        let result = in_child(attempt, targets, || {}).unwrap_or_else(|_refused| in_place(attempt, targets));
        console.say(&format!("escape {} {result}", attempt.name));
        tried += 1;
    }
    console.say(&format!("escape end {tried}"));
}

/// Tries everything unconfined.
pub(crate) fn control(targets: &Targets) -> std::result::Result<(), Error> {
    let mut tried = 0;
    for attempt in attempts(targets) {
        let result = in_child(attempt, targets, stand_apart)
            .map_err(|error| format!("{}: no process for it: {error}", attempt.name))?;
        writeln!(std::io::stdout(), "escape {} {result}", attempt.name)?;
        tried += 1;
    }
    writeln!(std::io::stdout(), "escape end {tried}")?;
    Ok(())
}

fn in_place(attempt: &Attempt, targets: &Targets) -> Result {
    system::alarm(LIMIT_SECONDS);
    let outcome = (attempt.run)(targets);
    system::alarm(0);
    outcome.into()
}

/// The error is that of making a process.
fn in_child(
    attempt: &Attempt,
    targets: &Targets,
    prepare: impl FnOnce(),
) -> std::result::Result<Result, Errno> {
    let (mut reader, writer) = std::io::pipe()?;
    let child = system::fork(|| {
        system::end_on_alarm();
        system::alarm(LIMIT_SECONDS);
        prepare();
        let mut writer = &writer;
        drop(writer.write_all(&report((attempt.run)(targets))));
        0
    })?;
    drop(writer);
    let mut said = Vec::new();
    let _length = reader.read_to_end(&mut said)?;
    Ok(match system::wait(child)? & 0x7f {
        0 => heard(&said),
        libc::SIGALRM => Result::Hung,
        signal => Result::Killed(signal),
    })
}

/// A child's report: an error number, 0 for none, or the word that is missing.
fn report(outcome: Outcome) -> Vec<u8> {
    match outcome {
        Ok(()) => 0_i32.to_ne_bytes().to_vec(),
        Err(Refusal::Errno(Errno(error))) => error.to_ne_bytes().to_vec(),
        Err(Refusal::Unknown(word)) => [&[0xff; 4], word.as_bytes()].concat(),
    }
}

fn heard(report: &[u8]) -> Result {
    match report.split_first_chunk::<4>() {
        // It became another program, which said nothing and has ended.
        None => Result::Done,
        Some((error, word)) => match i32::from_ne_bytes(*error) {
            0 => Result::Done,
            libc::EINTR => Result::Hung,
            -1 => Result::Unknown(String::from_utf8_lossy(word).into_owned()),
            error => Result::Refused(Errno(error)),
        },
    }
}

/// Unconfined, much succeeds: so it is done to mounts and a host name of its own, and on a terminal of its own.
fn stand_apart() {
    let apart = call!(SYS_unshare, libc::CLONE_NEWNS | libc::CLONE_NEWUTS);
    let private = call!(
        SYS_mount,
        c"none",
        c"/",
        c"none",
        libc::MS_REC | libc::MS_PRIVATE,
        0
    );
    let _session = call!(SYS_setsid);
    // The terminal goes away with the descriptor: at exec, or at a hangup.
    system::ignore(libc::SIGHUP);
    if apart.and(private).is_err() || terminal().is_err() {
        // Nothing may be tried on the host itself.
        system::end_self(libc::SIGABRT);
    }
}

/// Makes a terminal and gives it to this session.
fn terminal() -> std::result::Result<(), Errno> {
    let master = open(c"/dev/ptmx", libc::O_RDWR)?;
    let number = master.as_raw_fd();
    call!(SYS_ioctl, number, libc::TIOCSPTLCK, &[0; 4])?;
    let slave = call!(
        SYS_ioctl,
        number,
        libc::TIOCGPTPEER,
        libc::O_RDWR | libc::O_NOCTTY
    )?;
    let slave: OwnedFd = system::own(slave)?;
    call!(SYS_ioctl, slave.as_raw_fd(), libc::TIOCSCTTY, 0)?;
    // It is there as long as this process is.
    std::mem::forget(master);
    std::mem::forget(slave);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_child_reports_is_heard() {
        for (outcome, wanted) in [
            (Ok(()), "done"),
            (Err(Refusal::Errno(Errno(libc::EPERM))), "refused EPERM"),
            (Err(Refusal::Errno(Errno(libc::EINTR))), "hung"),
            (Err(Refusal::Unknown("victim.pid")), "unknown inmate.victim.pid"),
        ] {
            assert_eq!(Result::from(outcome).to_string(), wanted);
        }
        assert_eq!(heard(&[]), Result::Done);
    }
}
