//! How does a task's record get onto the disk and back?

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use steppe_vm::exit::{EXIT_VERSION, ExitRecord};
use steppe_vm::record::{Header, RECORD_MAX_BYTES, Record, RecordError, Step, line};

use super::state_dir::{make_private, sync_directory};

/// Name of the record in a task's directory.
const RECORD: &str = "record";

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
        append_line(&mut self.file, step).map_err(|source| RecordFileError::Io {
            path: self.directory.join(RECORD),
            source,
        })
    }
}

/// Appends a line whole or not at all: half of one, followed by another, could not be read again.
fn append_line(file: &mut File, step: &Step) -> io::Result<()> {
    let length = file.metadata()?.len();
    file.write_all(line(step).as_bytes()).inspect_err(|_| {
        // Best effort: a reader leaves out a last line that was cut.
        drop(file.set_len(length));
    })
}

/// Reads a task's record; `None` if there is none.
pub(crate) fn read(directory: &Path) -> Result<Option<Record>, RecordFileError> {
    let path = directory.join(RECORD);
    let mut text = Vec::new();
    match File::open(&path).and_then(|file| file.take(RECORD_MAX_BYTES).read_to_end(&mut text)) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(RecordFileError::Io { path, source }),
    }
    let text = String::from_utf8_lossy(&text);
    Record::parse(&text)
        .map(Some)
        .map_err(|source| RecordFileError::Format { path, source })
}

/// Appends a step to a record that another process may have begun.
pub(crate) fn append(directory: &Path, step: &Step) -> Result<(), RecordFileError> {
    let path = directory.join(RECORD);
    let append = || append_line(&mut File::options().append(true).open(&path)?, step);
    append().map_err(|source| RecordFileError::Io {
        path: path.clone(),
        source,
    })
}

/// Removes a task's directory, the record last: until then the task can be undone once more.
pub(crate) fn remove(directory: &Path) -> Result<(), RecordFileError> {
    let remove = || -> io::Result<()> {
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name != RECORD) {
                remove_if_there(&path)?;
            }
        }
        std::fs::remove_dir_all(directory)
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

/// Reads how a task ended, if the shim has written it.
pub(crate) fn read_exit(directory: &Path) -> Option<ExitRecord> {
    let text = std::fs::read(directory.join("exit.json")).ok()?;
    let exit: ExitRecord = serde_json::from_slice(&text).ok()?;
    (exit.version == EXIT_VERSION).then_some(exit)
}

/// The kernel's id of the current boot.
pub(crate) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}
