//! Who is connected to the control socket, and what do they ask?

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{SendFlags, SocketFlags};
use steppe_vm::control::{Lines, Message, Request, State, agree};
use steppe_vm::record::line;

/// Most clients at once: the plugin, its successor, and a person with two terminals.
const CLIENTS_MAX: usize = 8;

/// Most bytes that wait for a client to read them; one that falls behind further is cut off.
const OUTGOING_MAX_BYTES: usize = 64 * 1024;

/// Number of a client, never used twice.
pub(crate) type ClientId = u64;

/// One connection.
#[derive(Debug)]
struct Client {
    id: ClientId,
    socket: OwnedFd,
    lines: Lines,
    greeted: bool,
    outgoing: Vec<u8>,
}

/// All connections.
#[derive(Debug)]
pub(crate) struct Control {
    listener: Option<OwnedFd>,
    clients: Vec<Client>,
    last_id: ClientId,
    /// The only user that may ask for anything: the monitor's.
    owner_uid: u32,
}

/// What a client asks, after its Hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asking {
    pub(crate) client: ClientId,
    pub(crate) request: Request,
}

impl Control {
    pub(crate) fn new(listener: Option<OwnedFd>, owner_uid: u32) -> Self {
        Self {
            listener,
            clients: Vec::new(),
            last_id: 0,
            owner_uid,
        }
    }

    pub(crate) fn add(&mut self, socket: OwnedFd) -> ClientId {
        self.last_id += 1;
        let lines = Lines::default();
        self.clients.push(Client {
            id: self.last_id,
            socket,
            lines,
            greeted: false,
            outgoing: Vec::new(),
        });
        self.last_id
    }

    pub(crate) fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(AsFd::as_fd)
    }

    /// Every client's number and socket, and whether something waits to be written to it.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = (ClientId, BorrowedFd<'_>, bool)> {
        self.clients
            .iter()
            .map(|client| (client.id, client.socket.as_fd(), !client.outgoing.is_empty()))
    }

    pub(crate) fn has(&self, id: ClientId) -> bool {
        self.clients.iter().any(|client| client.id == id)
    }

    /// Takes one new connection, if its user is the owner and there is room.
    pub(crate) fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(socket) = rustix::net::accept_with(listener, flags) else {
            return;
        };
        let peer = rustix::net::sockopt::socket_peercred(&socket);
        if self.clients.len() < CLIENTS_MAX && peer.is_ok_and(|peer| peer.uid.as_raw() == self.owner_uid) {
            let _id = self.add(socket);
        }
    }

    /// Reads from a client and answers its Hello; the other requests are returned. A client that breaks the protocol or
    /// is gone is forgotten.
    pub(crate) fn read(&mut self, id: ClientId, state: &State) -> Vec<Asking> {
        let mut asked = Vec::new();
        let Some(client) = self.clients.iter_mut().find(|client| client.id == id) else {
            return asked;
        };
        let mut buffer = [0; 4096];
        let alive = match rustix::net::recv(&client.socket, &mut buffer, rustix::net::RecvFlags::empty()) {
            Ok((_, 0)) => false,
            Ok((_, n)) => {
                client.lines.feed(buffer.get(..n).unwrap_or_default());
                client.requests(state, &mut asked)
            }
            Err(Errno::AGAIN | Errno::INTR) => true,
            Err(_) => false,
        };
        if !alive {
            self.clients.retain(|client| client.id != id);
        }
        asked
    }

    pub(crate) fn answer(&mut self, id: ClientId, message: &Message) {
        if let Some(client) = self.clients.iter_mut().find(|client| client.id == id) {
            client.send(message);
        }
        self.forget_the_slow();
    }

    /// Tells every greeted client.
    pub(crate) fn announce(&mut self, state: &State) {
        for client in self.clients.iter_mut().filter(|client| client.greeted) {
            client.send(&Message::State { state: state.clone() });
        }
        self.forget_the_slow();
    }

    pub(crate) fn flush(&mut self, id: ClientId) {
        if let Some(client) = self.clients.iter_mut().find(|client| client.id == id) {
            client.flush();
        }
    }

    fn forget_the_slow(&mut self) {
        self.clients
            .retain(|client| client.outgoing.len() <= OUTGOING_MAX_BYTES);
    }
}

impl Client {
    /// Collects the complete requests; false if the client breaks the protocol.
    fn requests(&mut self, state: &State, asked: &mut Vec<Asking>) -> bool {
        loop {
            match (self.lines.take(), self.greeted) {
                (Ok(None), _) => return true,
                (Err(_), _) => return false,
                (Ok(Some(Request::Hello { min, max })), false) => {
                    let Some(version) = agree(min, max) else {
                        let reason = format!("this shim speaks no version of {min} to {max}");
                        self.send(&Message::Refused { reason });
                        return false;
                    };
                    self.greeted = true;
                    self.send(&Message::Hello {
                        version,
                        state: state.clone(),
                    });
                }
                (Ok(Some(Request::Hello { .. })), true) | (Ok(Some(_)), false) => return false,
                (Ok(Some(request)), true) => asked.push(Asking {
                    client: self.id,
                    request,
                }),
            }
        }
    }

    fn send(&mut self, message: &Message) {
        self.outgoing.extend_from_slice(line(message).as_bytes());
        self.flush();
    }

    fn flush(&mut self) {
        match rustix::net::send(
            &self.socket,
            &self.outgoing,
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        ) {
            Ok(written) => drop(self.outgoing.drain(..written)),
            Err(Errno::AGAIN | Errno::INTR) => {}
            // The end of the connection is seen by reading.
            Err(_) => self.outgoing.clear(),
        }
    }
}
