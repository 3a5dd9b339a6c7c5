//! What does this host offer, and how is it touched?

pub(crate) mod archive;
pub(crate) mod cgroup;
pub(crate) mod files;
pub(crate) mod fingerprint;
pub(crate) mod isolation;
pub(crate) mod kvm;
pub(crate) mod memory;
pub(crate) mod netd;
pub(crate) mod records;
pub(crate) mod state_dir;
pub(crate) mod stats;
pub(crate) mod tsc;
pub(crate) mod uids;

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::OFlags;

pub(crate) use steppe_vm::error::chain;

/// Opens a file that somebody may have put another thing in place of: never a link's target, and a FIFO doesn't hang us. For
/// reading, and for appending where that is asked.
pub(crate) fn open_warily(path: &Path, append: bool) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    File::options()
        .read(true)
        .append(append)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
}

/// Most bytes of a line that another program says about itself.
const LINE_MAX_BYTES: u64 = 4096;

/// Waits at most so long for the first line that another program says.
pub(crate) fn first_line(output: impl io::Read + Send + 'static, timeout: Duration) -> Option<String> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let _reader = std::thread::Builder::new()
        .name("first-line".into())
        .spawn(move || {
            let mut line = Vec::new();
            let _length = BufReader::new(output.take(LINE_MAX_BYTES)).read_until(b'\n', &mut line);
            drop(sender.send(line));
        });
    let line = receiver.recv_timeout(timeout).ok()?;
    Some(String::from_utf8_lossy(&line).into_owned())
}

/// Now, in nanoseconds since 1970 (UTC).
pub(crate) fn unix_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
