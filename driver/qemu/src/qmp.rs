//! What is said over QMP, apart from the socket it is said over?
//!
//! [`Session`] is fed bytes and asked for messages; commands come out as bytes. It tolerates what it doesn't know (new
//! events, new values), and a reply that nobody waits for any more is simply a reply with a number that nobody knows.
//! Commands are the generated types of `qapi-qmp`, so a name or argument can't be misspelled; the session is ours because
//! the async client of that family aborts the process when a command is given up.

use serde::Deserialize;
use serde_json::Value;

pub use qapi_qmp::{
    cont, qmp_capabilities, query_cpus_fast, query_status, quit, system_powerdown, system_reset,
};

/// Longest message accepted. QEMU's largest answers (schema dumps) stay below it; a line without end must not.
pub const MESSAGE_MAX_BYTES: usize = 1 << 20;

/// Number of a command, echoed in its reply.
pub type CommandId = u64;

/// A message from QEMU.
#[derive(Debug, Clone, PartialEq)]
pub enum Incoming {
    /// The first message; commands may be sent now, [`qmp_capabilities`] first.
    Greeting,
    /// Answer to a command.
    Reply {
        /// The command's number.
        id: CommandId,
        /// What it returned, or QEMU's description of what went wrong.
        result: Result<Value, String>,
    },
    /// Something happened.
    Event {
        /// Its name, such as `SHUTDOWN`.
        name: String,
        /// Its data, null where it has none.
        data: Value,
    },
}

/// Why a session can't go on.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// A message has no end.
    #[error("QEMU sent a QMP message longer than {MESSAGE_MAX_BYTES} bytes")]
    TooLong,
    /// A line isn't JSON.
    #[error("QEMU sent a QMP line that isn't JSON")]
    Syntax(#[source] serde_json::Error),
    /// A JSON line that is no greeting, reply or event.
    #[error("QEMU sent a QMP message that is no greeting, reply or event")]
    Unknown,
}

/// The threads of the machine's virtual processors in their order, from the answer to [`query_cpus_fast`]; `None` if it
/// isn't one.
#[must_use]
pub fn vcpu_threads(answer: &Value) -> Option<Vec<i32>> {
    // Each number is a processor's own: "props" has more of the same name.
    let cpu = |cpu: &Value| {
        let index = cpu.get("cpu-index")?.as_u64()?;
        let thread = i32::try_from(cpu.get("thread-id")?.as_i64()?).ok()?;
        Some((index, thread))
    };
    let mut cpus: Vec<(u64, i32)> = answer.as_array()?.iter().map(cpu).collect::<Option<_>>()?;
    cpus.sort_unstable();
    let in_order = cpus.iter().zip(0..).all(|((index, _), n)| *index == n);
    in_order.then(|| cpus.into_iter().map(|(_, thread)| thread).collect())
}

/// One QMP connection.
#[derive(Debug, Default)]
pub struct Session {
    buffer: Vec<u8>,
    /// How much of it has no newline: a peer that sends single bytes must not make us look at all of them each time.
    searched: usize,
    last_id: CommandId,
}

#[derive(Deserialize)]
struct Wire {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    #[serde(rename = "return")]
    returned: Option<Value>,
    error: Option<WireError>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
    id: Option<CommandId>,
}

#[derive(Deserialize)]
struct WireError {
    #[serde(default)]
    desc: String,
}

impl Session {
    /// Adds bytes that arrived.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next message, if one is complete.
    ///
    /// # Errors
    /// [`SessionError`]: the connection is of no more use.
    pub fn take(&mut self) -> Result<Option<Incoming>, SessionError> {
        loop {
            let rest = self.buffer.get(self.searched..).unwrap_or_default();
            let end = rest
                .iter()
                .position(|byte| *byte == b'\n')
                .map(|at| self.searched + at);
            // Complete or not: what is refused must not depend on the pieces in which it arrives.
            if end.unwrap_or(self.buffer.len()) > MESSAGE_MAX_BYTES {
                return Err(SessionError::TooLong);
            }
            let Some(end) = end else {
                self.searched = self.buffer.len();
                return Ok(None);
            };
            self.searched = 0;
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            if !line.trim_ascii().is_empty() {
                return read(&line).map(Some);
            }
        }
    }

    /// The bytes of a command, and the number that its reply will carry.
    pub fn command<C: qapi_spec::Command>(&mut self, command: &C) -> (CommandId, Vec<u8>) {
        self.last_id += 1;
        let message = serde_json::json!({"execute": C::NAME, "arguments": command, "id": self.last_id});
        let mut bytes = message.to_string().into_bytes();
        bytes.push(b'\n');
        (self.last_id, bytes)
    }
}

fn read(line: &[u8]) -> Result<Incoming, SessionError> {
    let wire: Wire = serde_json::from_slice(line).map_err(SessionError::Syntax)?;
    // An error without a number answers a line that QEMU couldn't read; no command of ours has the number 0.
    let id = wire.id.unwrap_or(0);
    match wire {
        Wire {
            greeting: Some(_), ..
        } => Ok(Incoming::Greeting),
        Wire {
            event: Some(name),
            data,
            ..
        } => Ok(Incoming::Event { name, data }),
        Wire {
            error: Some(error), ..
        } => Ok(Incoming::Reply {
            id,
            result: Err(error.desc),
        }),
        Wire {
            returned: Some(value),
            ..
        } => Ok(Incoming::Reply {
            id,
            result: Ok(value),
        }),
        _ => Err(SessionError::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TALK: &str = concat!(
        "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}}, \"capabilities\": [\"oob\"]}}\r\n",
        "{\"return\": {}, \"id\": 1}\r\n",
        "{\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}, \"event\": \"INVENTED_LATER\", \"data\": {\"x\": [1]}}\r\n",
        "{\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}, \"event\": \"STOP\"}\r\n",
        "{\"id\": 2, \"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\r\n",
        "{\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}, \"event\": \"SHUTDOWN\", ",
        "\"data\": {\"guest\": true, \"reason\": \"invented-later\"}}\r\n",
    );

    fn expected() -> Vec<Incoming> {
        let event = |name: &str, data| Incoming::Event {
            name: name.into(),
            data,
        };
        vec![
            Incoming::Greeting,
            Incoming::Reply {
                id: 1,
                result: Ok(serde_json::json!({})),
            },
            event("INVENTED_LATER", serde_json::json!({"x": [1]})),
            event("STOP", Value::Null),
            Incoming::Reply {
                id: 2,
                result: Err("no".into()),
            },
            event(
                "SHUTDOWN",
                serde_json::json!({"guest": true, "reason": "invented-later"}),
            ),
        ]
    }

    #[test]
    fn threads_of_processors_are_found_in_their_order() {
        // Shortened from QEMU 7.2's own answer.
        let answer = serde_json::json!([
            {"thread-id": 4712, "props": {"thread-id": 0}, "qom-path": "/machine/unattached/device[3]", "cpu-index": 1, "target": "x86_64"},
            {"thread-id": 4711, "props": {"thread-id": 0}, "qom-path": "/machine/unattached/device[0]", "cpu-index": 0, "target": "x86_64"},
        ]);
        assert_eq!(vcpu_threads(&answer), Some(vec![4711, 4712]));
        assert_eq!(vcpu_threads(&serde_json::json!([])), Some(vec![]));
        for wrong in [
            serde_json::json!({}),
            serde_json::json!([{"cpu-index": 0}]),
            serde_json::json!([{"cpu-index": 0, "thread-id": "4711"}]),
            serde_json::json!([{"cpu-index": 0, "thread-id": 1u64 << 40}]),
            serde_json::json!([{"cpu-index": 1, "thread-id": 4711}]),
        ] {
            assert_eq!(vcpu_threads(&wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_talk_is_understood_in_any_pieces() {
        for piece in [1, 2, 7, 4096] {
            let mut session = Session::default();
            let mut got = Vec::new();
            for chunk in TALK.as_bytes().chunks(piece) {
                session.feed(chunk);
                while let Some(message) = session.take().unwrap() {
                    got.push(message);
                }
            }
            assert_eq!(got, expected());
        }
    }

    #[test]
    fn commands_are_numbered_and_spelled_by_their_types() {
        let mut session = Session::default();
        let (first, bytes) = session.command(&qmp_capabilities { enable: None });
        assert_eq!(first, 1);
        assert_eq!(
            serde_json::from_slice::<Value>(&bytes).unwrap(),
            serde_json::json!({"execute": "qmp_capabilities", "arguments": {}, "id": 1})
        );
        assert_eq!(session.command(&cont {}).0, 2);
        let text = String::from_utf8(session.command(&system_powerdown {}).1).unwrap();
        assert!(text.contains("system_powerdown") && text.ends_with('\n'));
    }

    #[test]
    fn nonsense_ends_the_session() {
        for (bytes, wanted) in [
            ("nonsense\n", "isn't JSON"),
            ("{}\n", "no greeting"),
            ("[1]\n", "isn't JSON"),
        ] {
            let mut session = Session::default();
            session.feed(bytes.as_bytes());
            assert!(
                session.take().unwrap_err().to_string().contains(wanted),
                "{bytes}"
            );
        }
        let mut session = Session::default();
        session.feed(&vec![b' '; MESSAGE_MAX_BYTES + 1]);
        assert!(matches!(session.take(), Err(SessionError::TooLong)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut session = Session::default();
            session.feed(&bytes);
            while let Ok(Some(_)) = session.take() {}
        }
    }
}
