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
    /// The version that was agreed on, once it was.
    version: Option<u32>,
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
            version: None,
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
        // Who connects and says nothing must not keep the plugin out.
        if self.clients.len() >= CLIENTS_MAX
            && let Some(silent) = self.clients.iter().position(|client| client.version.is_none())
        {
            drop(self.clients.remove(silent));
        }
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
        for client in &mut self.clients {
            if let Some(version) = client.version {
                let state = state.in_version(version);
                client.send(&Message::State { state });
            }
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
            match (self.lines.take(), self.version.is_some()) {
                (Ok(None), _) => return true,
                (Err(_), _) => return false,
                (Ok(Some(Request::Hello { min, max })), false) => {
                    let Some(version) = agree(min, max) else {
                        let reason = format!("this shim speaks no version of {min} to {max}");
                        self.send(&Message::Refused { reason });
                        return false;
                    };
                    self.version = Some(version);
                    self.send(&Message::Hello {
                        version,
                        state: state.in_version(version),
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

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketType};

    use super::*;

    fn connected(owner_uid: u32) -> (Control, ClientId, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        let mut control = Control::new(None, owner_uid);
        let id = control.add(ours);
        (control, id, theirs)
    }

    fn say(socket: &OwnedFd, text: &str) {
        assert_eq!(rustix::io::write(socket, text.as_bytes()), Ok(text.len()));
    }

    fn heard(socket: &OwnedFd) -> String {
        let mut buffer = [0; 4096];
        let length = rustix::io::read(socket, &mut buffer).unwrap_or(0);
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    const HELLO: &str = "{\"request\":\"hello\",\"min\":1,\"max\":9}\n";

    #[test]
    fn hello_comes_first_and_once() {
        let (mut control, id, socket) = connected(0);
        say(&socket, HELLO);
        assert_eq!(control.read(id, &State::Starting), []);
        assert!(heard(&socket).starts_with("{\"message\":\"hello\",\"version\":2"));
        say(
            &socket,
            "{\"request\":\"power-button\"}\n{\"request\":\"quit\"}\n",
        );
        let asked: Vec<Request> = control
            .read(id, &State::Starting)
            .into_iter()
            .map(|asking| asking.request)
            .collect();
        assert_eq!(asked, [Request::PowerButton, Request::Quit]);
        say(&socket, HELLO);
        let _none = control.read(id, &State::Starting);
        assert!(!control.has(id));

        let (mut control, id, socket) = connected(0);
        say(&socket, "{\"request\":\"kill\"}\n");
        assert_eq!(control.read(id, &State::Starting), []);
        assert!(!control.has(id));
    }

    #[test]
    fn a_peer_of_another_version_is_told_so() {
        let (mut control, id, socket) = connected(0);
        say(&socket, "{\"request\":\"hello\",\"min\":7,\"max\":9}\n");
        let _none = control.read(id, &State::Starting);
        assert!(heard(&socket).contains("speaks no version of 7 to 9"));
        assert!(!control.has(id));
    }

    #[test]
    fn garbage_and_endless_lines_cut_a_client_off() {
        for text in ["garbage\n".to_owned(), "x".repeat(4096)] {
            let (mut control, id, socket) = connected(0);
            for _ in 0..100 {
                if control.has(id) {
                    let _written = rustix::io::write(&socket, text.as_bytes());
                    let _none = control.read(id, &State::Starting);
                }
            }
            assert!(!control.has(id));
        }
    }

    #[test]
    fn a_client_that_stalls_is_forgotten_and_others_are_not() {
        let (mut control, slow, slow_socket) = connected(0);
        say(&slow_socket, HELLO);
        let _none = control.read(slow, &State::Starting);
        let state = State::Failed {
            reason: "x".repeat(2000),
            retryable: false,
        };
        for _ in 0..1000 {
            control.announce(&state);
        }
        assert!(!control.has(slow));
    }
}
