//! On what are the attempts tried?

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, OwnedFd};

use super::{Outcome, Refusal};
use crate::arguments::Arguments;
use crate::system::{self, Errno, call};

/// What is known of the host, mostly from words such as `inmate.victim.pid=3`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Targets {
    words: BTreeMap<String, String>,
    /// This program's own path.
    program: CString,
    /// Whoever started it: the shim's monitor.
    parent: i32,
    /// This process, of which an attempt may be a child.
    id: i32,
    /// Descriptors that were open at its start, and those of them that the command line explains.
    open: Vec<i64>,
    explained: Vec<i64>,
    /// Kernel and initrd.
    images: Vec<i64>,
    disks: Vec<i64>,
    /// Queues of its tap devices.
    taps: Vec<i64>,
}

/// A path or another word as the kernel wants it.
pub(crate) fn text(word: &str) -> CString {
    CString::new(word).unwrap_or_default()
}

impl Targets {
    /// Looks at this process as it was started: nothing may have been opened yet.
    pub(crate) fn new(given: &Arguments, words: &[String]) -> Self {
        let words = words.iter().filter_map(|word| {
            let (name, value) = word.strip_prefix("inmate.")?.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        });
        let open = |number: &i64| call!(SYS_fcntl, *number, libc::F_GETFD).is_ok();
        Self {
            words: words.collect(),
            program: text(&std::env::args().next().unwrap_or_default()),
            parent: std::os::unix::process::parent_id().try_into().unwrap_or(0),
            id: std::process::id().try_into().unwrap_or(0),
            open: (0..1024).filter(open).collect(),
            explained: given.descriptors(),
            images: given.images.clone(),
            disks: given.disks.clone(),
            taps: given.taps.clone(),
        }
    }

    /// A word's value; without it nothing is proven by an attempt.
    pub(crate) fn word(&self, name: &'static str) -> Result<&str, Refusal> {
        self.words
            .get(name)
            .map(String::as_str)
            .ok_or(Refusal::Unknown(name))
    }

    pub(crate) fn path(&self, name: &'static str) -> Result<CString, Refusal> {
        self.word(name).map(text)
    }

    pub(crate) fn number(&self, name: &'static str) -> Result<i32, Refusal> {
        self.word(name)?.parse().map_err(|_| Refusal::Unknown(name))
    }

    /// The other VM's process.
    pub(crate) fn victim(&self) -> Result<i32, Refusal> {
        self.number("victim.pid")
    }

    pub(crate) fn parent(&self) -> i32 {
        self.parent
    }

    pub(crate) fn own_id(&self) -> i32 {
        self.id
    }

    pub(crate) fn program(&self) -> &CStr {
        &self.program
    }

    /// A file of the other VM's record.
    pub(crate) fn record(&self, file: &str) -> Result<CString, Refusal> {
        let (state, key) = (self.word("host.state")?, self.word("victim.key")?);
        Ok(text(&format!("{state}/tasks/{key}/{file}")))
    }

    /// A file of this VM's own allocation.
    pub(crate) fn own(&self, file: &str) -> Result<CString, Refusal> {
        let (data, allocation) = (self.word("host.data")?, self.word("own.allocation")?);
        Ok(text(&format!("{data}/alloc/{allocation}/{file}")))
    }

    /// A file that is the operator's, open for reading: the guest's kernel, or one that was made for this.
    pub(crate) fn image(&self) -> Result<OwnedFd, Refusal> {
        let image = match self.images.first() {
            Some(number) => call!(SYS_dup, *number),
            None => {
                let path = self.path("bait.image")?;
                call!(
                    SYS_openat,
                    libc::AT_FDCWD,
                    path.as_c_str(),
                    libc::O_RDONLY | libc::O_CLOEXEC
                )
            }
        };
        Ok(system::own(image?)?)
    }

    /// A file that this program may write to, as its disk, and its length.
    pub(crate) fn disk(&self) -> Result<(OwnedFd, i64), Refusal> {
        let disk = match self.disks.first() {
            Some(number) => call!(SYS_dup, *number),
            None => {
                let path = self.path("bait.disk")?;
                call!(
                    SYS_openat,
                    libc::AT_FDCWD,
                    path.as_c_str(),
                    libc::O_RDWR | libc::O_CLOEXEC
                )
            }
        };
        let disk = system::own(disk?)?;
        let length = call!(SYS_lseek, number(&disk), 0, libc::SEEK_END)?;
        Ok((disk, length))
    }

    /// A queue of this VM's tap device, as it was inherited.
    pub(crate) fn tap(&self) -> Option<Result<OwnedFd, Errno>> {
        let number = self.taps.first()?;
        Some(call!(SYS_dup, *number).and_then(system::own))
    }

    /// Whether more was open than there should be.
    pub(crate) fn unexplained(&self) -> Outcome {
        let expected = |number: &&i64| **number < 3 || self.explained.contains(number);
        match self.open.iter().find(|number| !expected(number)) {
            Some(_) => Ok(()),
            None => Err(Errno(libc::EBADF).into()),
        }
    }

    /// Every descriptor that is open now.
    pub(crate) fn every_descriptor() -> impl Iterator<Item = i64> {
        (0..1024).filter(|number| call!(SYS_fcntl, *number, libc::F_GETFD).is_ok())
    }
}

/// A descriptor's number, to be passed to a call.
pub(crate) fn number(descriptor: &OwnedFd) -> i32 {
    descriptor.as_raw_fd()
}
