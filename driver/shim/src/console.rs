//! How do the guest's console bytes reach a log that may be slow, absent or gone?
//!
//! Bytes go through a bounded ring: when the log doesn't take them, the oldest are dropped and counted, and the guest
//! never waits. The last few KiB are kept besides, for the exit record.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use steppe_vm::frame::TAIL_BYTES;

/// Bytes kept for a log that doesn't read: as much again as a Linux pipe holds (16 pages of 4 KiB).
pub(crate) const RING_BYTES: usize = 64 * 1024;

/// Most bytes written at once: a pipe that polls as writable takes at least this many without blocking (`PIPE_BUF`).
const WRITE_BYTES: usize = 4096;

/// Most writes in a row: together as much as the ring holds.
const WRITES_MAX: usize = RING_BYTES / WRITE_BYTES;

/// Whether a sink takes [`WRITE_BYTES`] without blocking, now.
fn is_writable(sink: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(sink, PollFlags::OUT)];
    rustix::event::poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}

/// One stream on its way into one log.
#[derive(Debug)]
pub(crate) struct Stream {
    sink: OwnedFd,
    ring: VecDeque<u8>,
    tail: VecDeque<u8>,
    dropped: u64,
}

impl Stream {
    pub(crate) fn new(sink: OwnedFd) -> Self {
        Self {
            sink,
            ring: VecDeque::new(),
            tail: VecDeque::new(),
            dropped: 0,
        }
    }

    pub(crate) fn sink(&self) -> BorrowedFd<'_> {
        self.sink.as_fd()
    }

    /// Whether there is something to write.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.ring.is_empty()
    }

    /// Takes bytes in; never blocks, never grows beyond its bounds.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        push_bounded(&mut self.tail, bytes, TAIL_BYTES);
        self.dropped += push_bounded(&mut self.ring, bytes, RING_BYTES);
    }

    /// Writes what the log takes now. An error of the log is the log's loss, not the guest's.
    pub(crate) fn flush(&mut self) {
        if self.dropped > 0 {
            let note = format!(
                "\n[steppe: {} bytes were dropped here, the log was not read]\n",
                self.dropped
            );
            // Shorter than PIPE_BUF, so a pipe takes it whole or not at all.
            match rustix::io::write(&self.sink, note.as_bytes()) {
                Ok(_) => self.dropped = 0,
                Err(_) => return,
            }
        }
        for _ in 0..WRITES_MAX {
            let (front, _) = self.ring.as_slices();
            let front = &front[..front.len().min(WRITE_BYTES)];
            match rustix::io::write(&self.sink, front) {
                Ok(written) => drop(self.ring.drain(..written)),
                Err(Errno::AGAIN | Errno::INTR) => return,
                Err(_) => self.ring.clear(),
            }
            if self.ring.is_empty() || !is_writable(&self.sink) {
                return;
            }
        }
    }

    /// Whether everything was written and, where the log is a pipe, read.
    pub(crate) fn is_read_out(&self) -> bool {
        self.ring.is_empty() && rustix::io::ioctl_fionread(&self.sink).map_or(true, |unread| unread == 0)
    }

    /// The end of the stream.
    pub(crate) fn tail(&self) -> Vec<u8> {
        self.tail.iter().copied().collect()
    }
}

/// Appends bytes and drops the oldest beyond the limit; says how many were dropped.
fn push_bounded(ring: &mut VecDeque<u8>, bytes: &[u8], limit: usize) -> u64 {
    ring.extend(bytes);
    let excess = ring.len().saturating_sub(limit);
    drop(ring.drain(..excess));
    excess as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe() -> (OwnedFd, OwnedFd) {
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap()
    }

    fn read_all(reader: &OwnedFd) -> Vec<u8> {
        let mut all = Vec::new();
        let mut buffer = [0; 8192];
        while let Ok(n @ 1..) = rustix::io::read(reader, &mut buffer) {
            all.extend_from_slice(&buffer[..n]);
        }
        all
    }

    #[test]
    fn a_reading_log_gets_every_byte() {
        let (reader, writer) = pipe();
        let mut stream = Stream::new(writer);
        let mut got = Vec::new();
        let text: Vec<u8> = (0..300_000u32).flat_map(|n| (n % 251).to_le_bytes()).collect();
        for chunk in text.chunks(5000) {
            stream.push(chunk);
            while stream.is_waiting() {
                stream.flush();
                got.extend(read_all(&reader));
            }
        }
        assert!(got == text);
        assert!(stream.is_read_out());
        assert_eq!(stream.tail(), text[text.len() - TAIL_BYTES..]);
    }

    #[test]
    fn a_stalled_log_costs_the_oldest_bytes_and_says_so() {
        let (reader, writer) = pipe();
        let mut stream = Stream::new(writer);
        for n in 0..100_000 {
            stream.push(format!("{n}\n").as_bytes());
            stream.flush();
        }
        assert!(stream.ring.len() <= RING_BYTES);
        assert!(!stream.is_read_out());
        let mut got = Vec::new();
        while !stream.is_read_out() {
            got.extend(read_all(&reader));
            stream.flush();
        }
        let text = String::from_utf8(got).unwrap();
        assert!(text.contains("bytes were dropped here"));
        assert!(text.ends_with("99999\n"));
    }
}
