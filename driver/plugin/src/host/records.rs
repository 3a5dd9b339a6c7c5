//! How does a task's record get onto the disk and back?

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use steppe_vm::exit::{self, ExitRecord};
use steppe_vm::record::{
    Entry, Header, RECORD_FULL_BYTES, RECORD_MAX_BYTES, Record, RecordError, Step, line,
};

use super::state_dir::{make_private, sync_directory};

/// Name of the record in a task's directory.
const RECORD: &str = "record";

/// Name of the archive in a task's directory that its guest's initrd ends with.
pub(crate) const NETWORK_ARCHIVE: &str = "network.cpio";

/// Why a record can't be written or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordFileError {
    #[error("record {path} can't be used")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("record {path} can't be used")]
    Format {
        path: PathBuf,
        #[source]
        source: RecordError,
    },
    #[error(
        "record {path} is {what}, so nothing in it is believed: find out how it came there, and remove it by hand"
    )]
    Foreign { path: PathBuf, what: &'static str },
}

impl RecordFileError {
    /// Whether the record ends before its first line does: nothing was begun for its task.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(
            self,
            Self::Format {
                source: RecordError::Empty,
                ..
            }
        )
    }
}

/// A task's record, open for further steps.
#[derive(Debug)]
pub(crate) struct RecordFile {
    directory: PathBuf,
    file: File,
}

impl RecordFile {
    /// Writes the header of a new task, durably: from now on the task can be undone by whoever finds it.
    pub(crate) fn create(directory: &Path, header: &Header) -> Result<Self, RecordFileError> {
        let path = directory.join(RECORD);
        let create = || -> io::Result<File> {
            make_private(directory)?;
            let mut file = File::options()
                .append(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)?;
            file.write_all(line(header).as_bytes())?;
            file.sync_all()?;
            sync_directory(directory)?;
            sync_directory(directory.parent().unwrap_or(directory))?;
            Ok(file)
        };
        let file = create().map_err(|source| {
            // Such as on a full disk: nothing was begun, so nothing is left. A record that is there is somebody's.
            if source.kind() != io::ErrorKind::AlreadyExists {
                drop(std::fs::remove_dir_all(directory));
            }
            RecordFileError::Io {
                path: path.clone(),
                source,
            }
        })?;
        Ok(Self {
            directory: directory.to_owned(),
            file,
        })
    }

    /// Names a step before it is done. Not forced to disk: what these steps make doesn't outlive a crash of the host, only
    /// one of this process, which what the kernel holds does survive.
    pub(crate) fn name(&mut self, step: &Step) -> Result<(), RecordFileError> {
        append_line(&mut self.file, &now(step)).map_err(|source| RecordFileError::Io {
            path: self.directory.join(RECORD),
            source,
        })
    }
}

fn now(step: &Step) -> Entry {
    Entry {
        at_unix_ns: super::unix_ns(),
        step: step.clone(),
    }
}

/// Appends a line whole or not at all: half of one, followed by another, could not be read again. One writer at a time: a
/// stop, a recovery and an undo of the same task may meet.
fn append_line(file: &mut File, entry: &Entry) -> io::Result<()> {
    file.lock()?;
    let written = append_locked(file, entry);
    file.unlock()?;
    written
}

fn append_locked(file: &mut File, entry: &Entry) -> io::Result<()> {
    let length = file.metadata()?.len();
    file.write_all(line(entry).as_bytes()).inspect_err(|_| {
        // Best effort: a reader leaves out a last line that was cut.
        drop(file.set_len(length));
    })
}

/// Opens a file of a task for reading that was put there by whoever runs this process.
pub(crate) fn open_own(path: &Path) -> Result<File, RecordFileError> {
    open(path, false)
}

/// Opens a file that was put there by whoever runs this process, and by nobody else: what stands in it is done as root.
fn open(path: &Path, write: bool) -> Result<File, RecordFileError> {
    let foreign = |what| RecordFileError::Foreign {
        path: path.to_owned(),
        what,
    };
    let file = match super::open_warily(path, write) {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            return Err(foreign("a symbolic link"));
        }
        Err(source) => {
            return Err(RecordFileError::Io {
                path: path.to_owned(),
                source,
            });
        }
    };
    let data = file.metadata().map_err(|source| RecordFileError::Io {
        path: path.to_owned(),
        source,
    })?;
    if !data.is_file() {
        return Err(foreign("not a regular file"));
    }
    if data.uid() != rustix::process::geteuid().as_raw() {
        return Err(foreign("another user's file"));
    }
    if data.nlink() == 0 {
        // Removed since it was opened.
        return Err(RecordFileError::Io {
            path: path.to_owned(),
            source: io::ErrorKind::NotFound.into(),
        });
    }
    // The directory is root's alone, whatever the umask gave the other files in it.
    if path.ends_with(RECORD) && data.mode() & 0o022 != 0 {
        return Err(foreign("a file that others can write"));
    }
    Ok(file)
}

/// Reads a task's record; `None` if there is none.
pub(crate) fn read(directory: &Path) -> Result<Option<Record>, RecordFileError> {
    let path = directory.join(RECORD);
    let mut text = Vec::new();
    let file = match open(&path, false) {
        Ok(file) => file,
        Err(RecordFileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    // One byte more than is accepted, so that a longer one is noticed.
    if let Err(source) = file.take(RECORD_MAX_BYTES + 1).read_to_end(&mut text) {
        return Err(RecordFileError::Io { path, source });
    }
    Record::parse(&text)
        .map(Some)
        .map_err(|source| RecordFileError::Format { path, source })
}

/// Appends a step to a record that another process may have begun. What only tells the task's history is left out where
/// the record is long already, or of a version whose readers don't know it.
pub(crate) fn append(directory: &Path, step: &Step) -> Result<(), RecordFileError> {
    let path = directory.join(RECORD);
    let failed = |source| RecordFileError::Io {
        path: path.clone(),
        source,
    };
    let mut file = open(&path, true)?;
    file.lock().map_err(failed)?;
    let mut text = Vec::new();
    let _length = Read::by_ref(&mut file)
        .take(RECORD_MAX_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(failed)?;
    let record = Record::parse(&text).map_err(|source| RecordFileError::Format {
        path: path.clone(),
        source,
    })?;
    let full = text.len() as u64 > RECORD_FULL_BYTES;
    if step.is_history() && (full || record.header.version < 2) {
        return Ok(());
    }
    // What comes after the last whole line was never begun, and a new line must not be joined to it.
    let end = text
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    if end < text.len() {
        file.set_len(end as u64).map_err(failed)?;
    }
    append_locked(&mut file, &now(step)).map_err(failed)
}

/// Names of what else is in a task's directory, in the order in which they are removed: what a person needs to understand
/// the rest goes last. The tails are those of a shim of record version 1.
const OTHERS: [&str; 7] = [
    "console.tail.new",
    "console.tail",
    "shim.lock",
    "exit.json.new",
    "exit.json",
    NETWORK_ARCHIVE,
    "plan.json",
];

/// Removes a task's directory, the record last: until then the task can be undone once more. A file that nobody of us put
/// there keeps both.
pub(crate) fn remove(directory: &Path) -> Result<(), RecordFileError> {
    let remove = || -> io::Result<()> {
        for name in OTHERS {
            remove_if_there(&directory.join(name))?;
        }
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_name() != RECORD {
                let text = format!("{} is not ours", entry.path().display());
                return Err(io::Error::new(io::ErrorKind::DirectoryNotEmpty, text));
            }
        }
        remove_if_there(&directory.join(RECORD))?;
        std::fs::remove_dir(directory)
    };
    match remove() {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(RecordFileError::Io {
            path: directory.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Largest exit file that is read: a shim takes room for as much.
const EXIT_MAX_BYTES: u64 = 12 * 1024;

/// How a task ended, as its shim has written it.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) record: ExitRecord,
    /// The last bytes that the console showed.
    pub(crate) console: Vec<u8>,
    /// The last bytes that QEMU wrote to stderr.
    pub(crate) stderr: Vec<u8>,
}

/// Reads how a task ended; `None` if its shim has not written it, or what is there is no exit record.
///
/// # Errors
/// It is there and can't be read, such as for want of descriptors: nothing is known then.
pub(crate) fn read_exit(directory: &Path) -> Result<Option<Exit>, RecordFileError> {
    let path = directory.join("exit.json");
    let file = match open_own(&path) {
        Ok(file) => file,
        Err(RecordFileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(RecordFileError::Foreign { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    if let Err(source) = file.take(EXIT_MAX_BYTES).read_to_end(&mut bytes) {
        return Err(RecordFileError::Io { path, source });
    }
    Ok(exit::parse_file(&bytes).map(|(record, console, stderr)| Exit {
        record,
        console: console.to_vec(),
        stderr: stderr.to_vec(),
    }))
}

/// The kernel's id of the current boot; `None` while it can't be read. It stays the same, so it is read once.
pub(crate) fn boot_id() -> Option<&'static str> {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    if let Some(id) = BOOT_ID.get() {
        return Some(id);
    }
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let id = Some(text.trim()).filter(|id| !id.is_empty())?;
    Some(BOOT_ID.get_or_init(|| id.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn header() -> Header {
        Header {
            version: steppe_vm::record::RECORD_VERSION,
            instance: "i".into(),
            boot_id: "b".into(),
            task_id: "a/vm/1".into(),
            alloc_id: "a".into(),
            task_name: "vm".into(),
            job_id: "j".into(),
            namespace: "n".into(),
            created_at_unix_ns: 1,
        }
    }

    #[test]
    fn a_line_that_was_cut_is_replaced_and_never_joined() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("key");
        drop(RecordFile::create(&directory, &header()).unwrap());
        let path = directory.join(RECORD);
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str("{\"step\":\"ui");
        std::fs::write(&path, text).unwrap();
        append(&directory, &Step::Undo).unwrap();
        let record = read(&directory).unwrap().unwrap();
        assert_eq!(record.entries.len(), 1);
        assert!(record.undo_begun() && record.entries[0].at_unix_ns > 0);
    }

    #[test]
    fn a_record_of_version_1_gets_no_words_that_its_release_does_not_know() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("key");
        let old = Header {
            version: 1,
            ..header()
        };
        drop(RecordFile::create(&directory, &old).unwrap());
        append(&directory, &Step::Recover { plugin_pid: 1 }).unwrap();
        append(&directory, &Step::Undo).unwrap();
        let record = read(&directory).unwrap().unwrap();
        assert_eq!(record.entries.len(), 1);
    }

    #[test]
    fn writers_who_meet_lose_no_line() {
        const EACH: usize = 200;
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("key");
        drop(RecordFile::create(&directory, &header()).unwrap());
        let signal = String::new();
        std::thread::scope(|scope| {
            for step in [Step::Undo, Step::Stop { signal }] {
                let directory = &directory;
                scope.spawn(move || (0..EACH).for_each(|_| append(directory, &step).unwrap()));
            }
        });
        assert_eq!(read(&directory).unwrap().unwrap().entries.len(), 2 * EACH);
    }

    #[test]
    fn strange_files_keep_their_directory() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("key");
        drop(RecordFile::create(&directory, &header()).unwrap());
        std::fs::write(directory.join("plan.json"), "").unwrap();
        std::fs::write(directory.join("notes"), "").unwrap();
        assert!(remove(&directory).is_err());
        assert!(directory.join("notes").exists() && directory.join(RECORD).exists());
        std::fs::remove_file(directory.join("notes")).unwrap();
        remove(&directory).unwrap();
        assert!(!directory.exists());
    }

    #[test]
    fn history_ends_before_the_record_is_too_long() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("key");
        drop(RecordFile::create(&directory, &header()).unwrap());
        let reason = "x".repeat(9000);
        for _ in 0..20 {
            let step = Step::UndoFailed {
                what: "w".into(),
                reason: reason.clone(),
            };
            append(&directory, &step).unwrap();
        }
        append(&directory, &Step::Undo).unwrap();
        let length = std::fs::metadata(directory.join(RECORD)).unwrap().len();
        assert!(length < RECORD_MAX_BYTES, "{length}");
        assert!(read(&directory).unwrap().unwrap().undo_begun());
    }

    #[test]
    fn only_our_own_files_are_believed() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("key");
        drop(RecordFile::create(&directory, &header()).unwrap());
        let path = directory.join(RECORD);
        let refused = |wanted: &str| {
            let error = read(&directory).unwrap_err().to_string();
            assert!(error.contains(wanted) && !error.contains('\n'), "{error}");
            assert!(append(&directory, &Step::Undo).is_err());
        };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        refused("others can write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::rename(&path, directory.join("other")).unwrap();
        symlink(directory.join("other"), &path).unwrap();
        refused("a symbolic link");
        std::fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        refused("not a regular file");
        std::fs::remove_file(&path).unwrap();
        assert!(read(&directory).unwrap().is_none());
        if rustix::process::geteuid().is_root() {
            std::fs::write(&path, "").unwrap();
            std::os::unix::fs::chown(&path, Some(1), None).unwrap();
            refused("another user's file");
        }
    }
}
