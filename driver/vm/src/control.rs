//! What do the plugin and the shim say to each other?
//!
//! JSON lines over a unix stream socket. The client speaks first, [`Request::Hello`], and is answered
//! [`Message::Hello`] with the version both use; requests are answered in order, and [`Message::State`] comes whenever
//! the machine's state changes. A line is at most [`LINE_MAX_BYTES`] long.

use serde::{Deserialize, Serialize};

use crate::exit::ExitRecord;

/// Oldest version this release speaks.
pub const VERSION_MIN: u32 = 1;

/// Newest version this release speaks.
///
/// Version 2 added [`Request::Reset`] and the member `ready` of [`State::Running`].
pub const VERSION_MAX: u32 = 2;

/// Longest line either side accepts. The largest message carries 4 KiB of text, each byte at worst six in JSON.
pub const LINE_MAX_BYTES: usize = 32 * 1024;

/// What the plugin says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// First of all: the versions the client speaks.
    Hello {
        /// Oldest.
        min: u32,
        /// Newest.
        max: u32,
    },
    /// Let the paused guest run.
    Continue,
    /// Press the power button.
    PowerButton,
    /// Press the reset button.
    Reset,
    /// End the machine now, with its disks flushed.
    Quit,
    /// End the machine's process.
    Kill,
}

/// What the shim says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "kebab-case")]
pub enum Message {
    /// Answer to Hello.
    Hello {
        /// The version both will use.
        version: u32,
        /// The state right now.
        state: State,
    },
    /// The request was carried out.
    Done,
    /// The request was not carried out.
    Refused {
        /// Why, one sentence.
        reason: String,
    },
    /// The state changed.
    State {
        /// The new state.
        state: State,
    },
}

/// State of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum State {
    /// QEMU was started and has not answered yet.
    Starting,
    /// QEMU answered; the guest is paused before its first instruction.
    Prepared {
        /// QEMU's process id.
        qemu_pid: i32,
    },
    /// The guest runs.
    Running {
        /// QEMU's process id.
        qemu_pid: i32,
        /// Whether it has shown what its plan waits for; true at once where the plan waits for nothing.
        #[serde(default)]
        ready: bool,
    },
    /// QEMU could not be started.
    Failed {
        /// What failed and why, one sentence.
        reason: String,
        /// Whether it may go well at another time.
        retryable: bool,
    },
    /// QEMU ended and the exit record is written.
    Exited {
        /// The record.
        exit: ExitRecord,
        /// The end of what QEMU wrote to stderr.
        stderr: String,
    },
}

impl State {
    /// The state in the words of a version of these lines.
    #[must_use]
    pub fn in_version(&self, version: u32) -> Self {
        match self {
            // Versions of the lines and of the exit record have gone up together so far.
            Self::Exited { exit, stderr } => Self::Exited {
                exit: exit.clone().in_version(version),
                stderr: stderr.clone(),
            },
            other => other.clone(),
        }
    }
}

/// The version both sides speak: the newest that is in both ranges.
#[must_use]
pub fn agree(min: u32, max: u32) -> Option<u32> {
    let newest = max.min(VERSION_MAX);
    (newest >= min.max(VERSION_MIN)).then_some(newest)
}

/// Why a line could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The peer sent more than [`LINE_MAX_BYTES`] bytes without a newline.
    #[error("a line of the control connection is longer than {LINE_MAX_BYTES} bytes")]
    TooLong,
    /// The line is not a message.
    #[error("a line of the control connection is not readable")]
    Syntax(#[source] serde_json::Error),
}

/// Collects bytes and hands out whole lines.
#[derive(Debug, Default)]
pub struct Lines {
    buffer: Vec<u8>,
    /// How much of it has no newline: a peer that sends single bytes must not make us look at all of them each time.
    searched: usize,
}

impl Lines {
    /// Adds bytes that arrived.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next message, if its line is complete.
    ///
    /// # Errors
    /// [`LineError`]: the connection is of no more use.
    pub fn take<T: serde::de::DeserializeOwned>(&mut self) -> Result<Option<T>, LineError> {
        let rest = self.buffer.get(self.searched..).unwrap_or_default();
        let end = rest
            .iter()
            .position(|byte| *byte == b'\n')
            .map(|at| self.searched + at);
        // Complete or not: what is refused must not depend on the pieces in which it arrives.
        if end.unwrap_or(self.buffer.len()) > LINE_MAX_BYTES {
            return Err(LineError::TooLong);
        }
        let Some(end) = end else {
            self.searched = self.buffer.len();
            return Ok(None);
        };
        self.searched = 0;
        let line: Vec<u8> = self.buffer.drain(..=end).collect();
        serde_json::from_slice(&line).map(Some).map_err(LineError::Syntax)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::{Asked, EXIT_VERSION, Oom, Reason, WaitStatus};
    use crate::record::line;

    #[test]
    fn versions_agree_on_the_newest_common_one() {
        assert_eq!(agree(1, 1), Some(1));
        assert_eq!(agree(1, 9), Some(2));
        assert_eq!(agree(2, 2), Some(2));
        assert_eq!(agree(0, 0), None);
        assert_eq!(agree(3, 9), None);
    }

    #[test]
    fn messages_come_back_in_any_pieces() {
        let exit = ExitRecord {
            version: EXIT_VERSION,
            status: WaitStatus::Signaled(9),
            started: true,
            reason: Reason::None,
            complained: false,
            asked: Asked::Kill,
            oom: Oom::None,
            ended_at_unix_ns: 5,
        };
        let sent = [
            Message::Hello {
                version: 1,
                state: State::Starting,
            },
            Message::State {
                state: State::Running {
                    qemu_pid: 7,
                    ready: true,
                },
            },
            Message::State {
                state: State::Exited {
                    exit,
                    stderr: "a\nb\"\u{1}".into(),
                },
            },
            Message::Refused { reason: "no".into() },
            Message::Done,
        ];
        let bytes: Vec<u8> = sent
            .iter()
            .flat_map(|message| line(message).into_bytes())
            .collect();
        for piece in [1, 3, 17, bytes.len()] {
            let mut lines = Lines::default();
            let mut got: Vec<Message> = Vec::new();
            for chunk in bytes.chunks(piece) {
                lines.feed(chunk);
                while let Some(message) = lines.take().unwrap() {
                    got.push(message);
                }
            }
            assert_eq!(got, sent);
        }
    }

    /// What a shim of the previous release says is understood: its VM outlives the upgrade.
    #[test]
    fn version_1_is_understood() {
        let mut lines = Lines::default();
        lines.feed(include_bytes!("fixtures/control.v1"));
        let mut got: Vec<Message> = Vec::new();
        while let Some(message) = lines.take().unwrap() {
            got.push(message);
        }
        assert_eq!(got.len(), 3);
        assert!(
            matches!(&got[2], Message::State { state: State::Exited { exit, .. } } if exit.oom == Oom::None && exit.version == 1)
        );
    }

    #[test]
    fn garbage_and_endless_lines_are_errors() {
        let mut lines = Lines::default();
        lines.feed(b"{\"request\":\"dance\"}\n");
        assert!(matches!(lines.take::<Request>(), Err(LineError::Syntax(_))));
        let mut lines = Lines::default();
        lines.feed(&vec![b'x'; LINE_MAX_BYTES + 1]);
        assert!(matches!(lines.take::<Request>(), Err(LineError::TooLong)));
    }
}
