//! Has the console shown what its plan waits for?

use std::time::{Duration, Instant};

use steppe_vm::plan::Ready;

/// Looks for a text in a console's bytes, within one line. What it keeps is shorter than the text.
#[derive(Debug)]
pub(crate) struct Watch {
    pattern: Vec<u8>,
    timeout: Duration,
    /// End of the current line, in which the text may have begun.
    begun: Vec<u8>,
    deadline: Option<Instant>,
}

impl Watch {
    pub(crate) fn new(ready: &Ready) -> Self {
        Self {
            pattern: ready.pattern.clone().into_bytes(),
            timeout: Duration::from_millis(ready.timeout_ms),
            begun: Vec::new(),
            deadline: None,
        }
    }

    /// The guest runs: from now on the time counts.
    pub(crate) fn start(&mut self) {
        self.deadline = Some(Instant::now() + self.timeout);
    }

    /// When the time is over, once the guest runs.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Takes in what the console showed next; true if the text is complete.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> bool {
        self.begun.extend_from_slice(bytes);
        let length = self.pattern.len().max(1);
        let found = self
            .begun
            .split(|byte| *byte == b'\n')
            .any(|line| line.windows(length).any(|part| part == self.pattern));
        let line = self
            .begun
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        let kept = line.max(self.begun.len().saturating_sub(length - 1));
        drop(self.begun.drain(..kept));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(pattern: &str, chunks: &[&[u8]]) -> bool {
        let mut watch = Watch::new(&Ready {
            pattern: pattern.into(),
            timeout_ms: 1,
        });
        let mut found = false;
        for chunk in chunks {
            found |= watch.feed(chunk);
            assert!(watch.begun.len() < pattern.len().max(1));
        }
        found
    }

    #[test]
    fn a_text_is_found_in_any_pieces_of_one_line() {
        let text = b"boot\r\nhello login: \xff\0";
        for size in 1..text.len() {
            let chunks: Vec<&[u8]> = text.chunks(size).collect();
            assert!(found("login:", &chunks), "{size}");
            assert!(found("b", &chunks) && found("hello login: ", &chunks));
            assert!(!found("boothello", &chunks) && !found("logout:", &chunks));
        }
        assert!(!found("boot", &[b"bo", b"\n", b"ot"]));
    }
}
