//! How do QMP's bytes move between QEMU's socket and the session?

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use steppe_qemu::qmp::{CommandId, Incoming, Session, SessionError};

/// Most bytes of commands that wait for QEMU to read them; a command of ours has some 60.
const OUTGOING_MAX_BYTES: usize = 64 * 1024;

/// The shim's end of the QMP connection. Non-blocking.
#[derive(Debug)]
pub(crate) struct Qmp {
    socket: OwnedFd,
    session: Session,
    outgoing: Vec<u8>,
}

/// QEMU doesn't read its commands any more.
#[derive(Debug, thiserror::Error)]
#[error("QEMU doesn't read its QMP commands")]
pub(crate) struct Stuck;

impl Qmp {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            session: Session::default(),
            outgoing: Vec::new(),
        }
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(crate) fn is_waiting(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Reads what is there; false at the end of the connection.
    pub(crate) fn fill(&mut self) -> bool {
        let mut buffer = [0; 16 * 1024];
        match rustix::io::read(&self.socket, &mut buffer) {
            Ok(0) => false,
            Ok(n) => {
                self.session.feed(buffer.get(..n).unwrap_or_default());
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => true,
            Err(_) => false,
        }
    }

    pub(crate) fn take(&mut self) -> Result<Option<Incoming>, SessionError> {
        self.session.take()
    }

    /// Sends a command, or as much of it as QEMU takes now.
    pub(crate) fn send<C: qapi_spec::Command>(&mut self, command: &C) -> Result<CommandId, Stuck> {
        if self.outgoing.len() > OUTGOING_MAX_BYTES {
            return Err(Stuck);
        }
        let (id, bytes) = self.session.command(command);
        self.outgoing.extend_from_slice(&bytes);
        self.flush();
        Ok(id)
    }

    pub(crate) fn flush(&mut self) {
        match rustix::net::send(&self.socket, &self.outgoing, rustix::net::SendFlags::NOSIGNAL) {
            Ok(written) => drop(self.outgoing.drain(..written)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // The end of the connection is seen by reading.
            Err(_) => self.outgoing.clear(),
        }
    }
}
