//! How is it made sure that the end of a VM can be written down, whatever the disk is like by then?
//!
//! Room for the exit record and the last words of console and QEMU is taken before QEMU runs: a start on a full disk
//! fails, and an end on a full disk is written into that room. One file, because making one is what costs.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use steppe_vm::exit::{self, ExitRecord};
use steppe_vm::frame::TAIL_BYTES;

/// Room for two tails and the record, which has a few hundred bytes.
const ROOM_BYTES: usize = 2 * TAIL_BYTES + 4096;

/// Where it is written, and what it is called when it is whole.
const NAMES: (&str, &str) = ("exit.json.new", "exit.json");

/// The file of one task, with its room.
#[derive(Debug)]
pub(crate) struct ExitFile {
    directory: PathBuf,
    file: File,
}

impl ExitFile {
    /// Takes the room in a task's directory.
    pub(crate) fn reserve(directory: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(directory.join(NAMES.0))?;
        match rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, ROOM_BYTES as u64) {
            Ok(()) => {}
            // A file system that can't promise room: then the bytes take it, which is as good on most of them.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.write_all_at(&[0; ROOM_BYTES], 0)?,
            Err(error) => return Err(error.into()),
        }
        Ok(Self {
            directory: directory.to_owned(),
            file,
        })
    }

    /// Writes the end down, whole or not at all.
    pub(crate) fn write(mut self, record: ExitRecord, console: &[u8], stderr: &[u8]) -> io::Result<()> {
        // A reader of version 1 expects the record and nothing else.
        let (console, stderr) = if record.version < 2 {
            (&b""[..], &b""[..])
        } else {
            (console, stderr)
        };
        let bytes = exit::file(record, console, stderr);
        self.file.write_all(&bytes)?;
        self.file.set_len(bytes.len() as u64)?;
        self.file.sync_all()?;
        std::fs::rename(self.directory.join(NAMES.0), self.directory.join(NAMES.1))?;
        File::open(&self.directory)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use steppe_vm::exit::{Asked, EXIT_VERSION, Oom, Reason, WaitStatus};

    use super::*;

    #[test]
    fn an_end_is_written_into_its_room() {
        let record = ExitRecord {
            version: EXIT_VERSION,
            status: WaitStatus::Signaled(9),
            started: true,
            reason: Reason::None,
            complained: false,
            asked: Asked::Nothing,
            oom: Oom::Limit,
            ended_at_unix_ns: 1,
        };
        for (record, tails) in [
            (record.clone(), (&b"console"[..], &b"stderr"[..])),
            (record.in_version(1), (&b""[..], &b""[..])),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let file = ExitFile::reserve(directory.path()).unwrap();
            assert!(!directory.path().join("exit.json").exists());
            file.write(record.clone(), b"console", b"stderr").unwrap();
            let bytes = std::fs::read(directory.path().join("exit.json")).unwrap();
            assert_eq!(exit::parse_file(&bytes).unwrap(), (record, tails.0, tails.1));
            assert!(!directory.path().join("exit.json.new").exists());
        }
    }
}
