//! Where does this process listen?
//!
//! Each process makes a directory of its own, since several run at once while a host starts, and listens on a socket in
//! it. The directory is locked (flock) for the life of the process and removed at its end. A process that was killed
//! leaves its directory behind, but not its lock: whoever starts next removes the directories that nobody holds. A lock,
//! unlike a process id in a name, is right across reused ids and across containers that share a directory.
//!
//! `PLUGIN_UNIX_SOCKET_DIR` is honoured. `PLUGIN_UNIX_SOCKET_GROUP` is not: host and plugin run as the same user, and
//! only that user gets in.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use tokio::net::UnixListener;

/// Names the directories of all plugins served by this crate.
const DIR_PREFIX: &str = "go-plugin-";
const SOCKET_NAME: &str = "socket";
/// The kernel's limit for a socket's path (`sun_path`), less the closing zero.
const PATH_BYTES_MAX: usize = 107;
/// Names tried before giving up; each is only lost to another process that took it first.
const NAMES_TRIED_MAX: u32 = 100;
/// Directories looked at in one start, so that a start takes bounded time; the next one removes more.
const STALE_LOOKED_AT_MAX: usize = 256;

/// Why there is no socket to listen on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The path doesn't fit into a socket address.
    #[error(
        "socket path {path} is longer than {PATH_BYTES_MAX} bytes; \
         set PLUGIN_UNIX_SOCKET_DIR or TMPDIR to a shorter directory"
    )]
    PathTooLong {
        /// The path that was wanted.
        path: PathBuf,
    },
    /// No directory could be made.
    #[error("cannot make a directory for the socket in {base}")]
    Directory {
        /// Where.
        base: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket could not be made.
    #[error("cannot listen on {path}")]
    Bind {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A socket and its directory; both are removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Socket {
    dir: LockedDir,
    path: PathBuf,
}

impl Socket {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.dir.remove();
    }
}

/// Listens where the environment says.
pub(crate) fn listen() -> Result<(Socket, UnixListener), SocketError> {
    let base = std::env::var_os("PLUGIN_UNIX_SOCKET_DIR").filter(|dir| !dir.is_empty());
    listen_in(&base.map_or_else(std::env::temp_dir, PathBuf::from))
}

fn listen_in(base: &Path) -> Result<(Socket, UnixListener), SocketError> {
    remove_stale(base);
    let dir = LockedDir::create(base).map_err(|source| SocketError::Directory {
        base: base.to_owned(),
        source: source.into(),
    })?;
    let path = dir.path.join(SOCKET_NAME);
    let socket = Socket { dir, path };
    let path = &socket.path;
    if path.as_os_str().len() > PATH_BYTES_MAX {
        return Err(SocketError::PathTooLong { path: path.clone() });
    }
    let listener = UnixListener::bind(path).map_err(|source| SocketError::Bind {
        path: path.clone(),
        source,
    })?;
    Ok((socket, listener))
}

/// Removes the directories that no living process holds. Only ours to remove are directories, of our name, that belong
/// to our user; what fails is left for the next start.
fn remove_stale(base: &Path) {
    let Ok(entries) = std::fs::read_dir(base) else {
        return;
    };
    let ours = entries.flatten().filter(|entry| {
        entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(DIR_PREFIX.as_bytes())
    });
    for entry in ours.take(STALE_LOOKED_AT_MAX) {
        if let Ok(dir) = LockedDir::lock(entry.path()) {
            dir.remove();
        }
    }
}

/// A directory that no other process holds.
#[derive(Debug)]
struct LockedDir {
    path: PathBuf,
    /// Holds the lock until it is closed.
    dir: OwnedFd,
}

impl LockedDir {
    fn create(base: &Path) -> Result<LockedDir, Errno> {
        for n in 0..NAMES_TRIED_MAX {
            let path = base.join(format!("{DIR_PREFIX}{}-{n}", std::process::id()));
            match rustix::fs::mkdir(&path, Mode::RWXU) {
                Ok(()) => {}
                Err(Errno::EXIST) => continue,
                Err(error) => return Err(error),
            }
            // Between the two steps another starting process can take it for a leftover: then take the next name.
            match LockedDir::lock(path) {
                Ok(dir) => return Ok(dir),
                Err(Errno::WOULDBLOCK | Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Errno::EXIST)
    }

    /// Fails with `WOULDBLOCK` when it is held, with `NOENT` when it is gone.
    fn lock(path: PathBuf) -> Result<LockedDir, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&path, flags, Mode::empty())?;
        rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive)?;
        let stat = rustix::fs::fstat(&dir)?;
        if stat.st_uid != rustix::process::geteuid().as_raw() {
            return Err(Errno::PERM);
        }
        if stat.st_nlink == 0 {
            return Err(Errno::NOENT); // removed while we waited for the lock
        }
        Ok(LockedDir { path, dir })
    }

    /// Nothing is left to do about a failure: the next start tries again.
    fn remove(&self) {
        rustix::fs::unlinkat(&self.dir, SOCKET_NAME, AtFlags::empty()).ok();
        rustix::fs::rmdir(&self.path).ok();
    }
}

#[cfg(test)]
mod tests;
