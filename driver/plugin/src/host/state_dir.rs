//! Which driver instance is this, and is it the only one on its state directory?

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use steppe_vm::record::{is_key, key_is_of};

/// Version of the `instance` file.
const INSTANCE_VERSION: u32 = 1;

/// Bytes of randomness in an instance id; sixteen hex digits.
const INSTANCE_BYTES: usize = 8;

/// A state directory that this process has locked.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    instance: String,
    /// Held as long as the process lives; the kernel gives it back at its death.
    _lock: File,
}

/// Why a state directory can't be used. The text becomes the driver's health description.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("state_dir: {path} can't be used")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "state_dir {path} is in use by another agent's driver (process {holder}): give each agent a state_dir of its own; if \
         that agent is gone, its driver ends within 5 min"
    )]
    Locked { path: PathBuf, holder: String },
    #[error(
        "state_dir: {path} is not readable as version {INSTANCE_VERSION}: a newer release wrote it, or it is damaged"
    )]
    Instance { path: PathBuf },
}

#[derive(serde::Serialize, serde::Deserialize)]
struct InstanceFile {
    version: u32,
    instance: String,
}

impl StateDir {
    /// Makes the directory where it is missing, locks it, and reads or makes the instance id.
    pub(crate) fn open(path: &Path) -> Result<Self, StateError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| StateError::Io { path, source }
        };
        for directory in [path.to_owned(), path.join("tasks"), path.join("log")] {
            make_private(&directory).map_err(failed(&directory))?;
        }
        let lock_path = path.join("lock");
        let mut lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(failed(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _length = lock.read_to_string(&mut holder).map_err(failed(&lock_path))?;
                return Err(StateError::Locked {
                    path: path.to_owned(),
                    holder: holder.trim().to_owned(),
                });
            }
            Err(TryLockError::Error(source)) => {
                return Err(StateError::Io {
                    path: lock_path,
                    source,
                });
            }
        }
        let write_holder = |lock: &mut File| -> io::Result<()> {
            lock.set_len(0)?;
            lock.rewind()?;
            writeln!(lock, "{}", rustix::process::getpid())
        };
        write_holder(&mut lock).map_err(failed(&lock_path))?;
        let instance = instance(&path.join("instance"))?;
        Ok(Self {
            path: path.to_owned(),
            instance,
            _lock: lock,
        })
    }

    /// The random id of this instance, sixteen hex digits.
    pub(crate) fn instance(&self) -> &str {
        &self.instance
    }

    /// Keys of the tasks of an allocation that have a directory.
    pub(crate) fn tasks_of(&self, alloc_id: &str) -> Result<Vec<String>, StateError> {
        let mut keys = self.tasks()?;
        keys.retain(|key| key_is_of(key, alloc_id));
        Ok(keys)
    }

    /// Keys of all tasks that have a directory.
    pub(crate) fn tasks(&self) -> Result<Vec<String>, StateError> {
        let path = self.path.join("tasks");
        let failed = |source| StateError::Io {
            path: path.clone(),
            source,
        };
        let mut keys = Vec::new();
        for entry in std::fs::read_dir(&path).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            // Whatever else is there is not ours.
            keys.extend(name.to_str().filter(|name| is_key(name)).map(str::to_owned));
        }
        Ok(keys)
    }

    /// The directory of a task's record.
    pub(crate) fn task(&self, key: &str) -> PathBuf {
        self.path.join("tasks").join(key)
    }
}

/// The directory of a driver's logs.
pub(crate) fn log_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("log")
}

/// Makes a directory, and those above it, that only root may enter.
pub(crate) fn make_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn instance(path: &Path) -> Result<String, StateError> {
    let failed = |source| StateError::Io {
        path: path.to_owned(),
        source,
    };
    match std::fs::read_to_string(path) {
        Ok(text) => {
            let file: Option<InstanceFile> = serde_json::from_str(&text).ok();
            let valid = file.filter(|file| {
                file.version == INSTANCE_VERSION
                    && file.instance.len() == INSTANCE_BYTES * 2
                    && file.instance.bytes().all(|byte| byte.is_ascii_hexdigit())
            });
            valid
                .map(|file| file.instance)
                .ok_or_else(|| StateError::Instance {
                    path: path.to_owned(),
                })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut random = [0; INSTANCE_BYTES];
            getrandom::fill(&mut random).map_err(|error| failed(error.into()))?;
            let instance: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
            let text = steppe_vm::record::line(&InstanceFile {
                version: INSTANCE_VERSION,
                instance: instance.clone(),
            });
            write_durably(path, text.as_bytes()).map_err(failed)?;
            Ok(instance)
        }
        Err(source) => Err(failed(source)),
    }
}

/// Writes a file whole or not at all, and makes sure that it is on disk.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    sync_directory(path.parent().unwrap_or(path))
}

/// Makes sure that the names in a directory are on disk.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time_and_one_id_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        let first = StateDir::open(&path).unwrap();
        let id = first.instance().to_owned();
        let error = StateDir::open(&path).unwrap_err().to_string();
        assert!(
            error.contains(&format!("process {}", std::process::id())),
            "{error}"
        );
        drop(first);
        assert_eq!(StateDir::open(&path).unwrap().instance(), id);
    }

    #[test]
    fn a_damaged_id_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(
            directory.path().join("instance"),
            "{\"version\":2,\"instance\":\"0\"}",
        )
        .unwrap();
        assert!(matches!(
            StateDir::open(directory.path()),
            Err(StateError::Instance { .. })
        ));
    }
}
