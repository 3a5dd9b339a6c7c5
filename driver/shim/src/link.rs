//! What do monitor and supervisor say to each other?
//!
//! Frames of at most one packet over a sequenced-packet socket pair. The monitor is root and parses nothing: it looks at
//! the first byte, at fields of fixed place and size, and copies the console's tail unread.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use steppe_vm::exit::{Asked, Oom, Reason, WaitStatus};

use crate::console::TAIL_BYTES;

/// From supervisor to monitor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wish {
    /// End QEMU's process.
    Kill,
    /// Everything that was seen, after QEMU ended.
    Seen(Seen),
}

/// What the supervisor saw of a machine's life.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) started: bool,
    pub(crate) reason: Reason,
    pub(crate) complained: bool,
    pub(crate) asked: Asked,
    /// The end of what the console showed, at most [`TAIL_BYTES`].
    pub(crate) console: Vec<u8>,
    /// The end of what QEMU wrote to stderr, at most [`TAIL_BYTES`].
    pub(crate) stderr: Vec<u8>,
}

/// From monitor to supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fact {
    /// QEMU was executed.
    Executed {
        /// Its process id.
        pid: i32,
    },
    /// QEMU ended.
    Ended {
        /// How.
        status: WaitStatus,
        /// When, in nanoseconds since 1970.
        at_unix_ns: u64,
        /// Whether the kernel killed for want of memory.
        oom: Oom,
    },
    /// The exit record is on disk.
    Recorded,
}

/// Fields before the tails: kind, flags, reason, asked, length of the console's tail.
const SEEN_BYTES: usize = 4 + 2;

/// Largest packet: a wish with two whole tails.
const PACKET_MAX: usize = SEEN_BYTES + 2 * TAIL_BYTES;

/// The two ends, both closed on exec; the monitor's end blocks never.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}

/// Sends one wish. The packet fits the socket's buffer, and there are at most two in a machine's life.
pub(crate) fn send_wish(socket: &OwnedFd, wish: &Wish) -> Result<(), Errno> {
    let packet = match wish {
        Wish::Kill => vec![1],
        Wish::Seen(seen) => {
            let flags = u8::from(seen.started) | u8::from(seen.complained) << 1;
            let console = &seen.console[..seen.console.len().min(TAIL_BYTES)];
            let stderr = &seen.stderr[..seen.stderr.len().min(TAIL_BYTES)];
            let length = u16::try_from(console.len()).unwrap_or(0).to_le_bytes();
            let mut packet = vec![2, flags, seen.reason.to_byte(), seen.asked.to_byte()];
            packet.extend_from_slice(&length);
            packet.extend_from_slice(console);
            packet.extend_from_slice(stderr);
            packet
        }
    };
    rustix::net::send(socket, &packet, SendFlags::NOSIGNAL).map(drop)
}

/// Receives one wish; `None` when the supervisor is gone. A packet of no known kind is an error of its sender and
/// treated as its end.
pub(crate) fn receive_wish(socket: &OwnedFd) -> Result<Option<Wish>, Errno> {
    let mut packet = [0; PACKET_MAX];
    let (_, length) = rustix::net::recv(socket, &mut packet, RecvFlags::empty())?;
    Ok(read_wish(packet.get(..length).unwrap_or_default()))
}

fn read_wish(packet: &[u8]) -> Option<Wish> {
    match packet {
        [1] => Some(Wish::Kill),
        [2, flags @ 0..=3, reason, asked, low, high, tails @ ..] => {
            let (console, stderr) = tails.split_at_checked(usize::from(u16::from_le_bytes([*low, *high])))?;
            Some(Wish::Seen(Seen {
                started: flags & 1 != 0,
                reason: Reason::from_byte(*reason),
                complained: flags & 2 != 0,
                asked: Asked::from_byte(*asked),
                console: console.get(..console.len().min(TAIL_BYTES))?.to_vec(),
                stderr: stderr.get(..stderr.len().min(TAIL_BYTES))?.to_vec(),
            }))
        }
        _ => None,
    }
}

/// Sends one fact.
pub(crate) fn send_fact(socket: &OwnedFd, fact: Fact) -> Result<(), Errno> {
    let (kind, value, at, oom): (u8, i32, u64, Oom) = match fact {
        Fact::Executed { pid } => (1, pid, 0, Oom::None),
        Fact::Ended {
            status,
            at_unix_ns,
            oom,
        } => match status {
            WaitStatus::Exited(status) => (2, status, at_unix_ns, oom),
            WaitStatus::Signaled(signal) => (3, signal, at_unix_ns, oom),
            WaitStatus::Unknown => (4, 0, at_unix_ns, oom),
        },
        Fact::Recorded => (5, 0, 0, Oom::None),
    };
    let mut packet = [0; FACT_BYTES];
    packet[0] = kind;
    packet[1..5].copy_from_slice(&value.to_le_bytes());
    packet[5..13].copy_from_slice(&at.to_le_bytes());
    packet[13] = oom.to_byte();
    rustix::net::send(socket, &packet, SendFlags::NOSIGNAL).map(drop)
}

/// Kind, a number, a time, whose want of memory.
const FACT_BYTES: usize = 1 + 4 + 8 + 1;

/// Receives one fact; `None` when the monitor is gone.
pub(crate) fn receive_fact(socket: &OwnedFd) -> Result<Option<Fact>, Errno> {
    let mut packet = [0; FACT_BYTES];
    let (_, length) = rustix::net::recv(socket, &mut packet, RecvFlags::empty())?;
    if length != FACT_BYTES {
        return Ok(None);
    }
    let [kind, a, b, c, d, at @ .., oom] = packet;
    let (value, at_unix_ns) = (i32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(at));
    let ended = |status| Fact::Ended {
        status,
        at_unix_ns,
        oom: Oom::from_byte(oom),
    };
    Ok(match kind {
        1 => Some(Fact::Executed { pid: value }),
        2 => Some(ended(WaitStatus::Exited(value))),
        3 => Some(ended(WaitStatus::Signaled(value))),
        4 => Some(ended(WaitStatus::Unknown)),
        5 => Some(Fact::Recorded),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_back() {
        let (monitor, supervisor) = pair().unwrap();
        let seen = Seen {
            started: true,
            reason: Reason::GuestPanic,
            complained: true,
            asked: Asked::Quit,
            console: vec![0xff; TAIL_BYTES],
            stderr: vec![0; TAIL_BYTES],
        };
        for wish in [Wish::Kill, Wish::Seen(Seen::default()), Wish::Seen(seen)] {
            send_wish(&supervisor, &wish).unwrap();
            assert_eq!(receive_wish(&monitor).unwrap(), Some(wish));
        }
        for fact in [
            Fact::Executed { pid: 7 },
            Fact::Ended {
                status: WaitStatus::Signaled(9),
                at_unix_ns: u64::MAX,
                oom: Oom::Host,
            },
            Fact::Ended {
                status: WaitStatus::Exited(-1),
                at_unix_ns: 1,
                oom: Oom::None,
            },
            Fact::Ended {
                status: WaitStatus::Unknown,
                at_unix_ns: 1,
                oom: Oom::None,
            },
            Fact::Recorded,
        ] {
            send_fact(&monitor, fact).unwrap();
            assert_eq!(receive_fact(&supervisor).unwrap(), Some(fact));
        }
        drop(supervisor);
        assert_eq!(receive_wish(&monitor).unwrap(), None);
    }

    #[test]
    fn no_packet_makes_the_monitor_stumble() {
        for first in 0..=255u8 {
            for length in 0..6 {
                let packet: Vec<u8> = std::iter::once(first)
                    .chain((0..length).map(|n: u8| n.wrapping_mul(77)))
                    .collect();
                let wish = read_wish(&packet);
                assert!(first == 1 || first == 2 || wish.is_none());
            }
        }
        assert_eq!(read_wish(&[]), None);
    }
}
