//! What does a living shim say of its VM?
//!
//! Its answer to a Hello has the VM's state; nothing else is asked. Blocking and short: a shim that is stuck, or whose
//! queue of connections is full, costs one deadline.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use steppe_vm::control::{LineError, Lines, Message, State};
use steppe_vm::record::line;

use super::shim::HELLO;

/// How long one shim may take for everything. It answers within a millisecond.
const TIMEOUT: Duration = Duration::from_secs(1);

/// What a shim answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The version of the control protocol that it chose.
    pub(crate) version: u32,
    pub(crate) state: State,
}

/// Why a shim that lives is not understood.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("its shim's socket can't be reached")]
    Connect(#[source] io::Error),
    #[error("its shim does not answer within {} s", TIMEOUT.as_secs())]
    Silent,
    #[error("its shim ended the connection")]
    Ended,
    #[error("the connection to its shim broke")]
    Broken(#[source] io::Error),
    #[error("its shim's words can't be read")]
    Line(#[from] LineError),
    #[error("its shim speaks another version: {0}")]
    Version(String),
    #[error("its shim did not say hello")]
    Rude,
}

/// Asks the shim that listens on this socket.
pub(crate) fn ask(socket: &Path) -> Result<Answer, AskError> {
    let deadline = Instant::now() + TIMEOUT;
    let mut stream = connect(socket)?;
    stream
        .set_write_timeout(Some(TIMEOUT))
        .map_err(AskError::Broken)?;
    stream.write_all(line(&HELLO).as_bytes()).map_err(broken)?;
    let mut lines = Lines::default();
    loop {
        match lines.take()? {
            Some(Message::Hello { version, state }) => return Ok(Answer { version, state }),
            Some(Message::Refused { reason }) => return Err(AskError::Version(reason)),
            Some(Message::Done | Message::State { .. }) => return Err(AskError::Rude),
            None => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(AskError::Silent);
        }
        stream.set_read_timeout(Some(left)).map_err(AskError::Broken)?;
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer) {
            Ok(0) => return Err(AskError::Ended),
            Ok(length) => lines.feed(buffer.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(broken(error)),
        }
    }
}

/// Connects without waiting: where nobody accepts and the queue is full, connect(2) would wait for ever.
fn connect(socket: &Path) -> Result<UnixStream, AskError> {
    let connect = || -> rustix::io::Result<_> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&fd, &SocketAddrUnix::new(socket)?)?;
        Ok(fd)
    };
    let stream = match connect() {
        Ok(fd) => UnixStream::from(fd),
        Err(rustix::io::Errno::AGAIN) => return Err(AskError::Silent),
        Err(error) => return Err(AskError::Connect(error.into())),
    };
    stream.set_nonblocking(false).map_err(AskError::Broken)?;
    Ok(stream)
}

fn broken(error: io::Error) -> AskError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => AskError::Silent,
        _ => AskError::Broken(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;

    use super::*;

    /// A peer that hears one connection's first bytes and then does as it is told.
    fn peer(act: impl FnOnce(UnixStream) + Send + 'static) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 256];
            let length = stream.read(&mut buffer).unwrap();
            assert!(buffer[..length].starts_with(b"{\"request\":\"hello\""));
            act(stream);
        });
        (directory, path)
    }

    #[test]
    fn an_answer_is_read_in_any_pieces() {
        let said = Message::Hello {
            version: 2,
            state: State::Running {
                qemu_pid: 7,
                ready: false,
            },
        };
        let (_directory, path) = peer(move |mut stream| {
            for byte in line(&said).into_bytes() {
                stream.write_all(&[byte]).unwrap();
            }
        });
        let answer = ask(&path).unwrap();
        assert_eq!(answer.version, 2);
        assert!(matches!(
            answer.state,
            State::Running {
                qemu_pid: 7,
                ready: false
            }
        ));
    }

    #[test]
    fn whatever_a_peer_does_there_is_an_end() {
        let (_a, garbage) = peer(|mut stream| stream.write_all(b"garbage\n").unwrap());
        assert!(matches!(ask(&garbage), Err(AskError::Line(_))));
        let (_b, endless) = peer(|mut stream| while stream.write_all(&[b'x'; 4096]).is_ok() {});
        assert!(matches!(ask(&endless), Err(AskError::Line(LineError::TooLong))));
        let (_c, newer) = peer(|mut stream| {
            let reason = "this shim speaks no version of 1 to 2".into();
            stream
                .write_all(line(&Message::Refused { reason }).as_bytes())
                .unwrap();
        });
        assert!(matches!(ask(&newer), Err(AskError::Version(_))));
        let (_d, gone) = peer(drop);
        assert!(matches!(ask(&gone), Err(AskError::Ended | AskError::Broken(_))));
        assert!(matches!(
            ask(Path::new("/does/not/exist")),
            Err(AskError::Connect(_))
        ));
    }

    #[test]
    fn a_peer_that_stalls_costs_one_deadline() {
        let began = Instant::now();
        let (_a, slow) = peer(|mut stream| {
            // A byte now and then must not prolong it.
            while stream.write_all(b" ").is_ok() {
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        assert!(matches!(ask(&slow), Err(AskError::Silent)));
        // Nobody accepts, and the queue is full.
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let listener = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let mut waiting = Vec::new();
        while let Ok(stream) = connect(&path) {
            waiting.push(stream);
            assert!(waiting.len() < 10_000, "the queue is never full");
        }
        assert!(matches!(ask(&path), Err(AskError::Silent)));
        assert!(began.elapsed() < TIMEOUT * 3, "{:?}", began.elapsed());
    }
}
