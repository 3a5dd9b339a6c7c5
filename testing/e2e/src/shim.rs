//! How is a VM's shim spoken with by hand, as the plugin does?

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

use crate::wait::seconds;

/// A connection to a control socket.
#[derive(Debug)]
pub(crate) struct Shim {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Shim {
    /// Connects, and says nothing yet.
    #[track_caller]
    pub(crate) fn connect(socket: &Path) -> Self {
        let stream =
            UnixStream::connect(socket).unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
        stream
            .set_read_timeout(Some(seconds(10)))
            .and_then(|()| stream.set_write_timeout(Some(seconds(10))))
            .expect("a socket takes a deadline");
        let lines = BufReader::new(stream.try_clone().expect("a descriptor can be copied"));
        Self { stream, lines }
    }

    /// Sends bytes; whether the shim took them.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// The next line; empty at the connection's end.
    pub(crate) fn hear(&mut self) -> String {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(_) => line.trim().to_owned(),
            // A peer that had more to say than was read is cut off so.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => String::new(),
            Err(error) => panic!("the shim does not answer: {error}"),
        }
    }

    /// Says hello as this release's plugin does, then asks for something; panics unless it is done.
    #[track_caller]
    pub(crate) fn ask(&mut self, request: &str) {
        for (words, wanted) in [
            (json!({ "request": "hello", "min": 1, "max": 2 }), "hello"),
            (json!({ "request": request }), "done"),
        ] {
            assert!(
                self.send(format!("{words}\n").as_bytes()),
                "{request}: the shim hung up"
            );
            let answer = loop {
                let line = self.hear();
                let answer: Value = serde_json::from_str(&line)
                    .unwrap_or_else(|error| panic!("{request}: {line:?}: {error}"));
                // The state may change at any time.
                if answer["message"] != "state" {
                    break answer;
                }
            };
            assert_eq!(answer["message"], wanted, "{request}: {answer}");
        }
    }
}
