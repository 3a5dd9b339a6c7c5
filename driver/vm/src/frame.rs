//! What do the shim's two processes say to each other?
//!
//! Frames of at most one packet. The monitor is root and parses nothing: it looks at the first byte, at fields of fixed
//! place and size, and copies the tails unread. What is not exactly a frame is an error of its sender and ends it.

use crate::exit::{Asked, EXIT_VERSION, ExitRecord, Oom, Reason, WaitStatus};

/// Most bytes of a tail: what is kept of the end of console and messages for the exit record, some fifty lines.
pub const TAIL_BYTES: usize = 4096;

/// Largest packet: a wish with two whole tails.
pub const WISH_MAX_BYTES: usize = SEEN_BYTES + 2 * TAIL_BYTES;

/// Size of every fact: kind, a number, a time, whose want of memory.
pub const FACT_BYTES: usize = 1 + 4 + 8 + 1;

/// Fields before the tails: kind, flags, reason, asked, length of the console's tail.
const SEEN_BYTES: usize = 4 + 2;

/// From supervisor to monitor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// End QEMU's process.
    Kill,
    /// Let a thread of QEMU's run on one processor only.
    Pin {
        /// The thread's id.
        thread: i32,
        /// Which of the plan's processors.
        index: u16,
    },
    /// Everything that was seen, after QEMU ended.
    Seen(Seen),
}

/// What the supervisor saw of a machine's life.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Whether the guest ran.
    pub started: bool,
    /// What QMP said of the end.
    pub reason: Reason,
    /// Whether QEMU wrote an error while the guest ran.
    pub complained: bool,
    /// What the machine was asked to do.
    pub asked: Asked,
    /// The end of what the console showed, at most [`TAIL_BYTES`].
    pub console: Vec<u8>,
    /// The end of what QEMU wrote to stderr, at most [`TAIL_BYTES`].
    pub stderr: Vec<u8>,
}

impl Seen {
    /// What there is to record of an end, together with what the monitor knows of it.
    #[must_use]
    pub fn record(&self, status: WaitStatus, oom: Oom, ended_at_unix_ns: u64) -> ExitRecord {
        ExitRecord {
            version: EXIT_VERSION,
            status,
            started: self.started,
            reason: self.reason,
            complained: self.complained,
            asked: self.asked,
            oom,
            ended_at_unix_ns,
        }
    }
}

impl Wish {
    /// The wish as one packet.
    #[must_use]
    pub fn to_packet(&self) -> Vec<u8> {
        match self {
            Self::Kill => vec![1],
            Self::Seen(seen) => {
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
            Self::Pin { thread, index } => {
                let mut packet = vec![3];
                packet.extend_from_slice(&thread.to_le_bytes());
                packet.extend_from_slice(&index.to_le_bytes());
                packet
            }
        }
    }

    /// Reads a packet; `None` if it is no wish.
    #[must_use]
    pub fn from_packet(packet: &[u8]) -> Option<Self> {
        match packet {
            [1] => Some(Self::Kill),
            [2, flags @ 0..=3, reason, asked, low, high, tails @ ..] => {
                let (console, stderr) =
                    tails.split_at_checked(usize::from(u16::from_le_bytes([*low, *high])))?;
                if console.len() > TAIL_BYTES || stderr.len() > TAIL_BYTES {
                    return None;
                }
                Some(Self::Seen(Seen {
                    started: flags & 1 != 0,
                    reason: Reason::from_byte(*reason),
                    complained: flags & 2 != 0,
                    asked: Asked::from_byte(*asked),
                    console: console.to_vec(),
                    stderr: stderr.to_vec(),
                }))
            }
            [3, a, b, c, d, low, high] => Some(Self::Pin {
                thread: i32::from_le_bytes([*a, *b, *c, *d]),
                index: u16::from_le_bytes([*low, *high]),
            }),
            _ => None,
        }
    }
}

/// From monitor to supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fact {
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
    /// The answer to [`Wish::Pin`].
    Pinned {
        /// 0, or the kernel's error number.
        errno: i32,
    },
}

impl Fact {
    /// The fact as one packet.
    #[must_use]
    pub fn to_packet(self) -> [u8; FACT_BYTES] {
        let (kind, value, at, oom): (u8, i32, u64, Oom) = match self {
            Self::Executed { pid } => (1, pid, 0, Oom::None),
            Self::Ended {
                status,
                at_unix_ns,
                oom,
            } => match status {
                WaitStatus::Exited(status) => (2, status, at_unix_ns, oom),
                WaitStatus::Signaled(signal) => (3, signal, at_unix_ns, oom),
                WaitStatus::Unknown => (4, 0, at_unix_ns, oom),
            },
            Self::Recorded => (5, 0, 0, Oom::None),
            Self::Pinned { errno } => (6, errno, 0, Oom::None),
        };
        let mut packet = [0; FACT_BYTES];
        packet[0] = kind;
        packet[1..5].copy_from_slice(&value.to_le_bytes());
        packet[5..13].copy_from_slice(&at.to_le_bytes());
        packet[13] = oom.to_byte();
        packet
    }

    /// Reads a packet; `None` if it is no fact.
    #[must_use]
    pub fn from_packet(packet: &[u8]) -> Option<Self> {
        let [kind, a, b, c, d, at @ .., oom] = <[u8; FACT_BYTES]>::try_from(packet).ok()?;
        let (value, at_unix_ns) = (i32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(at));
        let ended = |status| Self::Ended {
            status,
            at_unix_ns,
            oom: Oom::from_byte(oom),
        };
        match kind {
            1 => Some(Self::Executed { pid: value }),
            2 => Some(ended(WaitStatus::Exited(value))),
            3 => Some(ended(WaitStatus::Signaled(value))),
            4 => Some(ended(WaitStatus::Unknown)),
            5 => Some(Self::Recorded),
            6 => Some(Self::Pinned { errno: value }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_come_back() {
        let seen = Seen {
            started: true,
            reason: Reason::GuestPanic,
            complained: true,
            asked: Asked::Quit,
            console: vec![0xff; TAIL_BYTES],
            stderr: vec![0; TAIL_BYTES],
        };
        let pin = Wish::Pin {
            thread: 77,
            index: 287,
        };
        for wish in [Wish::Kill, pin, Wish::Seen(Seen::default()), Wish::Seen(seen)] {
            let packet = wish.to_packet();
            assert!(packet.len() <= WISH_MAX_BYTES);
            assert_eq!(Wish::from_packet(&packet), Some(wish));
        }
        let ended = |status, at_unix_ns, oom| Fact::Ended {
            status,
            at_unix_ns,
            oom,
        };
        for fact in [
            Fact::Executed { pid: 7 },
            ended(WaitStatus::Signaled(9), u64::MAX, Oom::Host),
            ended(WaitStatus::Exited(-1), 1, Oom::None),
            ended(WaitStatus::Unknown, 1, Oom::None),
            Fact::Recorded,
            Fact::Pinned { errno: 22 },
        ] {
            assert_eq!(Fact::from_packet(&fact.to_packet()), Some(fact));
        }
    }

    #[test]
    fn what_is_no_frame_is_nothing() {
        for first in 0..=255u8 {
            for length in 0..20 {
                let rest = (0..length).map(|n: u8| n.wrapping_mul(77));
                let packet: Vec<u8> = std::iter::once(first).chain(rest).collect();
                let wish = Wish::from_packet(&packet);
                assert!((1..=3).contains(&first) || wish.is_none());
                assert!(Fact::from_packet(&packet).is_none() || packet.len() == FACT_BYTES);
            }
        }
        assert_eq!(Wish::from_packet(&[]), None);
        let mut long = Wish::Seen(Seen::default()).to_packet();
        long.extend(std::iter::repeat_n(0, TAIL_BYTES + 1));
        assert_eq!(Wish::from_packet(&long), None);
    }
}
