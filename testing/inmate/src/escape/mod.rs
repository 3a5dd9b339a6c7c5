//! What can be reached from inside, thing by thing?
//!
//! The same attempts are run twice: in QEMU's place, where each must be refused, and unconfined as root, where most must
//! succeed, or a refusal would prove nothing. So an attempt does no harm when it succeeds: it puts back what it changed,
//! sets what was set before, or only asks for something that is looked at after the permission.

mod runner;
pub(crate) use runner::{confined, control};

mod targets;
pub(crate) use targets::Targets;

mod bait;
pub(crate) use bait::bait;

mod files;
mod ids;
mod kernel;
mod mounts;
mod proc;
mod processes;
mod programs;
mod sockets;
mod taps;

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use crate::system::{self, Errno, call};

/// One thing to try.
pub(crate) struct Attempt {
    pub(crate) name: &'static str,
    run: fn(&Targets) -> Outcome,
}

/// Whether it was done.
pub(crate) type Outcome = Result<(), Refusal>;

/// Why it was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The kernel said so.
    Errno(Errno),
    /// Nobody said on what to try it: no refusal at all.
    Unknown(&'static str),
}

impl From<Errno> for Refusal {
    fn from(error: Errno) -> Self {
        Self::Errno(error)
    }
}

const fn attempt(name: &'static str, run: fn(&Targets) -> Outcome) -> Attempt {
    Attempt { name, run }
}

/// Those of the kind that a word asks for: what can be made of a tap device, or, without the word, all others.
pub(crate) fn attempts(targets: &Targets) -> impl Iterator<Item = &'static Attempt> {
    let taps = targets.word("escape.kind").is_ok_and(|kind| kind == "taps");
    let others = (!taps).then(others).into_iter().flatten();
    others.chain(taps.then_some(taps::ATTEMPTS).into_iter().flatten())
}

/// All but taps. Those that would end this program, if they succeed where it can't fork, come last.
fn others() -> impl Iterator<Item = &'static Attempt> {
    [
        files::ATTEMPTS,
        proc::ATTEMPTS,
        sockets::ATTEMPTS,
        processes::ATTEMPTS,
        mounts::ATTEMPTS,
        kernel::ATTEMPTS,
        ids::ATTEMPTS,
        programs::ATTEMPTS,
    ]
    .into_iter()
    .flatten()
}

/// For a call of which nothing is kept but whether it was done.
fn done(result: Result<i64, Errno>) -> Outcome {
    Ok(result.map(drop)?)
}

/// The same for a call that makes a descriptor.
fn made(result: Result<i64, Errno>) -> Outcome {
    system::own(result?)?;
    Ok(())
}

/// For a call that is made with nonsense: these errors are met only by those who are permitted.
fn permitted(result: Result<i64, Errno>, errors: &[i32]) -> Outcome {
    match result {
        Err(Errno(error)) if errors.contains(&error) => Ok(()),
        other => done(other),
    }
}

/// Tries one after the other. Of several refusals the one is told that isn't just for lack of the object.
fn any<T>(items: impl IntoIterator<Item = T>, mut run: impl FnMut(T) -> Outcome) -> Outcome {
    let mut refusal = Refusal::Errno(Errno(libc::ENOENT));
    for item in items {
        match run(item) {
            Ok(()) => return Ok(()),
            Err(Refusal::Errno(Errno(libc::ENOENT | libc::ENOTDIR | libc::ESRCH))) => {}
            Err(other) => refusal = other,
        }
    }
    Err(refusal)
}

/// Opens, and never waits for anybody.
fn open(path: &CStr, flags: i32) -> Result<OwnedFd, Errno> {
    let flags = flags | libc::O_CLOEXEC | libc::O_NOCTTY | libc::O_NONBLOCK;
    system::own(call!(SYS_openat, libc::AT_FDCWD, path, flags, 0o600)?)
}

/// Opens and reads a little: some files refuse only that.
fn read(path: &CStr) -> Outcome {
    let file = open(path, libc::O_RDONLY)?;
    read_from(&file)
}

fn read_from(file: &OwnedFd) -> Outcome {
    // The kernel's log gives whole entries only.
    let mut room = [0; 8192];
    match call!(SYS_read, targets::number(file), &mut room, 8192) {
        // Nobody has written yet: it was opened all the same.
        Err(Errno(libc::EAGAIN)) => Ok(()),
        other => done(other),
    }
}

/// Looks what is in a directory.
fn list(path: &CStr) -> Outcome {
    let directory = open(path, libc::O_RDONLY | libc::O_DIRECTORY)?;
    let mut room = [0; 1024];
    done(call!(
        SYS_getdents64,
        targets::number(&directory),
        &mut room,
        1024
    ))
}

fn writable(path: &CStr) -> Outcome {
    open(path, libc::O_WRONLY)?;
    Ok(())
}

/// The address of bytes, for a structure that has it.
fn address(bytes: &[u8]) -> u64 {
    bytes.as_ptr() as u64
}

/// Numbers as the kernel's structures have them.
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The same for wide ones.
fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_ne_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_words_and_unique() {
        let mut seen = BTreeSet::new();
        for Attempt { name, .. } in others().chain(taps::ATTEMPTS) {
            let plain = name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
            assert!(plain, "{name}");
            assert!(seen.insert(name), "{name} is there twice");
        }
        assert!(seen.len() >= 70, "{} attempts", seen.len());
    }

    #[test]
    fn the_telling_refusal_is_told() {
        let refused = |error| Err(Refusal::Errno(Errno(error)));
        assert_eq!(any([libc::EPERM, libc::ENOENT], refused), refused(libc::EPERM));
        assert_eq!(any([libc::ENOENT], refused), refused(libc::ENOENT));
        assert_eq!(
            any([1, 2], |item| if item == 2 { Ok(()) } else { refused(1) }),
            Ok(())
        );
    }

    #[test]
    fn only_what_comes_after_the_permission_counts() {
        assert_eq!(permitted(Err(Errno(libc::EINVAL)), &[libc::EINVAL]), Ok(()));
        assert!(permitted(Err(Errno(libc::EPERM)), &[libc::EINVAL]).is_err());
    }
}
