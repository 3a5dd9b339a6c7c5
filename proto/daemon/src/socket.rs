//! Where does a daemon listen, and who is let in?
//!
//! Anybody may connect (the file's mode is 0666): which user asks is known from the kernel, and the answer to one that
//! may not is a sentence instead of "permission denied" from somewhere. Users without a role share a few connections, so
//! that they keep nobody else out.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_stream::Stream;
use tonic::transport::server::Connected;

use crate::peer::{Peer, Roles};

/// The kernel's limit for a socket's path (`sun_path`), less the closing zero.
const PATH_BYTES_MAX: usize = 107;
/// Connections of all users without a role together.
const STRANGERS_MAX: usize = 16;
/// How long accepting rests after it failed: for want of descriptors it fails until some are closed.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// Bytes of a lock file that are read: a process id.
const PID_BYTES_MAX: usize = 16;

/// Why there is no socket to listen on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The path doesn't fit into a socket address.
    #[error("socket path {path} is longer than {PATH_BYTES_MAX} bytes: name a shorter one")]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// The directory is missing and can't be made.
    #[error("can't make directory {path} for the socket")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The lock file can't be used.
    #[error("can't use lock file {path}")]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another daemon listens there.
    #[error("socket path {path} is in use by another {program}{}: stop that one, or name another path", said(*.pid))]
    InUse {
        /// The path.
        path: PathBuf,
        /// Which daemon.
        program: &'static str,
        /// Its process, if it is known.
        pid: Option<u32>,
    },
    /// Another program listens there.
    #[error("socket path {path} is in use by another program: stop that one, or name another path")]
    Foreign {
        /// The path.
        path: PathBuf,
    },
    /// Something is there that is no socket.
    #[error("{path} is there and no socket: remove it, or name another path")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The socket can't be made.
    #[error("can't listen on {path}")]
    Listen {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn said(pid: Option<u32>) -> String {
    pid.map(|pid| format!(", pid {pid}")).unwrap_or_default()
}

/// A socket that this process alone listens on; its file is removed when it is dropped.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Locked until it is closed.
    _lock: OwnedFd,
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Nothing is left to do about a failure: the next start replaces the file.
        let _gone = std::fs::remove_file(&self.path);
    }
}

impl Socket {
    /// Listens at a path, for `program` (its name is said to whoever finds the path in use).
    ///
    /// # Errors
    ///
    /// [`SocketError`]; nothing is left behind but the directory and the lock file.
    pub fn bind(path: &Path, program: &'static str) -> Result<Self, SocketError> {
        if path.as_os_str().len() > PATH_BYTES_MAX {
            return Err(SocketError::PathTooLong {
                path: path.to_owned(),
            });
        }
        make_directory(path)?;
        let lock = lock(path, program)?;
        clear(path)?;
        let listen = || -> io::Result<UnixListener> {
            let listener = UnixListener::bind(path)?;
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o666))?;
            Ok(listener)
        };
        let listener = listen().map_err(|source| SocketError::Listen {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// The connections that come, for tonic's `serve_with_incoming`. A request's extensions have the [`Peer`].
    #[must_use]
    pub fn connections(self, roles: Roles) -> Connections {
        Connections {
            socket: self,
            roles,
            strangers: Arc::new(Semaphore::new(STRANGERS_MAX)),
            rest: None,
        }
    }
}

fn make_directory(path: &Path) -> Result<(), SocketError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    directory.map_or(Ok(()), |directory| {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .map_err(|source| SocketError::Directory {
                path: directory.to_owned(),
                source,
            })
    })
}

/// Keeps a daemon from beginning to listen at a path, as long as it lives.
#[derive(Debug)]
pub struct Reserved {
    /// Locked until it is closed; `None` where no daemon has ever listened.
    _lock: Option<OwnedFd>,
}

/// Reserves a path for something that must not happen beside a daemon.
///
/// # Errors
///
/// [`SocketError::InUse`] where one listens, [`SocketError::Lock`] where that can't be known.
pub fn reserve(path: &Path, program: &'static str) -> Result<Reserved, SocketError> {
    if !lock_path(path).exists() {
        return Ok(Reserved { _lock: None });
    }
    let lock = lock(path, program)?;
    Ok(Reserved { _lock: Some(lock) })
}

/// The file beside the socket whose lock says that a daemon lives; it stays, because a file that comes and goes can be
/// locked by two.
fn lock_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

fn lock(path: &Path, program: &'static str) -> Result<OwnedFd, SocketError> {
    let name = lock_path(path);
    let failed = |errno: Errno| SocketError::Lock {
        path: name.clone(),
        source: errno.into(),
    };
    // Nobody else's to read: a lock takes no more than that.
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let lock = rustix::fs::open(&name, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            return Err(SocketError::InUse {
                path: path.to_owned(),
                program,
                pid: holder(&lock),
            });
        }
        Err(errno) => return Err(failed(errno)),
    }
    rustix::fs::ftruncate(&lock, 0).map_err(failed)?;
    let mut file = std::fs::File::from(lock);
    writeln!(file, "{}", std::process::id()).map_err(|source| SocketError::Lock {
        path: name.clone(),
        source,
    })?;
    Ok(file.into())
}

fn holder(lock: &OwnedFd) -> Option<u32> {
    let mut bytes = [0; PID_BYTES_MAX];
    let length = rustix::io::pread(lock, &mut bytes[..], 0).ok()?;
    std::str::from_utf8(bytes.get(..length)?)
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// Removes the socket of a daemon that was killed.
fn clear(path: &Path) -> Result<(), SocketError> {
    let listen = |source: io::Error| SocketError::Listen {
        path: path.to_owned(),
        source,
    };
    let kind = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(listen(error)),
    };
    if !kind.is_socket() {
        return Err(SocketError::NotASocket {
            path: path.to_owned(),
        });
    }
    // Our lock says that no daemon of ours is there; somebody else's socket would not know of it.
    if is_served(path).map_err(|errno| listen(errno.into()))? {
        return Err(SocketError::Foreign {
            path: path.to_owned(),
        });
    }
    std::fs::remove_file(path).map_err(listen)
}

fn is_served(path: &Path) -> Result<bool, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let probe = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&probe, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        // Connected, no room in the queue, another type, or not for us to know: somebody's in any case.
        _ => Ok(true),
    }
}

/// A stream of connections that doesn't end.
#[derive(Debug)]
pub struct Connections {
    socket: Socket,
    roles: Roles,
    strangers: Arc<Semaphore>,
    rest: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Connections {
    /// A connection with its peer; `None` for one that is closed at once.
    fn admit(&self, stream: UnixStream) -> Option<Connection> {
        let cred = stream.peer_cred().ok()?;
        let peer = Peer {
            uid: cred.uid(),
            pid: cred.pid(),
        };
        let place = match self.roles.of(peer.uid) {
            Some(_) => None,
            None => Some(Arc::clone(&self.strangers).try_acquire_owned().ok()?),
        };
        Some(Connection {
            stream,
            peer,
            _place: place,
        })
    }
}

impl Stream for Connections {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(rest) = &mut self.rest {
                std::task::ready!(rest.as_mut().poll(context));
                self.rest = None;
            }
            match std::task::ready!(self.socket.listener.poll_accept(context)) {
                Ok((stream, _)) => {
                    if let Some(connection) = self.admit(stream) {
                        return Poll::Ready(Some(Ok(connection)));
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection can't be accepted");
                    self.rest = Some(Box::pin(tokio::time::sleep(ACCEPT_REST)));
                }
            }
        }
    }
}

/// A connection and who is at its other end.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    peer: Peer,
    _place: Option<OwnedSemaphorePermit>,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests;
