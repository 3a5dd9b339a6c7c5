//! How is it made sure that the end of a VM can be written down, whatever the disk is like by then?
//!
//! Room for the exit record and the last words of console and QEMU is taken before QEMU runs: a start on a full disk
//! fails, and an end on a full disk is written into that room.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use steppe_vm::exit::ExitRecord;

use crate::console::TAIL_BYTES;

/// Room for each file: a tail has at most as much, a record a tenth of it.
const ROOM_BYTES: usize = TAIL_BYTES;

/// The files of one task, each with its room.
#[derive(Debug)]
pub(crate) struct ExitFiles {
    directory: PathBuf,
    exit: File,
    console: File,
    stderr: File,
}

impl ExitFiles {
    /// Takes the room in a task's directory.
    pub(crate) fn reserve(directory: &Path) -> io::Result<Self> {
        let reserve = |name: &str| -> io::Result<File> {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(directory.join(name))?;
            match rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, ROOM_BYTES as u64) {
                Ok(()) => Ok(file),
                // A file system that can't promise room: then the bytes take it, which is as good on most of them.
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                    file.write_all_at(&[0; ROOM_BYTES], 0)?;
                    Ok(file)
                }
                Err(error) => Err(error.into()),
            }
        };
        Ok(Self {
            directory: directory.to_owned(),
            exit: reserve("exit.json.new")?,
            console: reserve("console.tail")?,
            stderr: reserve("stderr.tail")?,
        })
    }

    /// Writes the end down. The record comes last and in one piece, so whoever finds it finds the tails as well.
    pub(crate) fn write(mut self, record: &ExitRecord, console: &[u8], stderr: &[u8]) -> io::Result<()> {
        // The last words are welcome, the record is needed.
        let _ = fill(&mut self.console, console);
        let _ = fill(&mut self.stderr, stderr);
        fill(&mut self.exit, steppe_vm::record::line(record).as_bytes())?;
        self.exit.sync_all()?;
        std::fs::rename(
            self.directory.join("exit.json.new"),
            self.directory.join("exit.json"),
        )?;
        File::open(&self.directory)?.sync_all()
    }
}

/// From the beginning, into the room that is there; what was there before and is longer is cut off.
fn fill(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    file.write_all(bytes)?;
    file.set_len(bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use steppe_vm::exit::{Asked, EXIT_VERSION, Oom, Reason, WaitStatus};

    use super::*;

    #[test]
    fn an_end_is_written_into_its_room() {
        let directory = tempfile::tempdir().unwrap();
        let files = ExitFiles::reserve(directory.path()).unwrap();
        assert!(!directory.path().join("exit.json").exists());
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
        files.write(&record, b"console", b"").unwrap();
        let read = |name: &str| std::fs::read(directory.path().join(name)).unwrap();
        assert_eq!(
            serde_json::from_slice::<ExitRecord>(&read("exit.json")).unwrap(),
            record
        );
        assert_eq!(
            (read("console.tail"), read("stderr.tail")),
            (b"console".to_vec(), vec![])
        );
        assert!(!directory.path().join("exit.json.new").exists());
    }
}
