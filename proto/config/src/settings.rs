//! What does the `[daemon]` table say in every daemon?

use std::net::SocketAddr;
use std::str::FromStr;

use crate::{Problems, Table, quoted};

/// Longest path of a unix socket: `sun_path` less the final NUL.
const SOCKET_PATH_MAX: usize = 107;
const LOG_LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// How a daemon is reached, by whom, and what it tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Path of the socket.
    pub socket: String,
    /// Users, by name or id, that may do everything; root always may.
    pub drivers: Vec<String>,
    /// Users, by name or id, that may look.
    pub readers: Vec<String>,
    /// Address at which metrics are served; where it is absent, they aren't.
    pub metrics: Option<String>,
    /// The least important messages that are logged: `error`, `warn`, `info`, `debug` or `trace`.
    pub log_level: String,
}

impl Settings {
    /// The keys of `[daemon]` that it reads.
    pub const KEYS: [&str; 5] = ["socket", "drivers", "readers", "metrics", "log_level"];

    /// What holds where nothing is said, with the daemon's own socket.
    #[must_use]
    pub fn at(socket: &str) -> Self {
        Self {
            socket: socket.to_owned(),
            drivers: vec!["root".to_owned()],
            readers: Vec::new(),
            metrics: None,
            log_level: "info".to_owned(),
        }
    }

    /// Takes over what `[daemon]` says; what it doesn't say stays.
    pub fn read(&mut self, table: &Table<'_, '_>, problems: &mut Problems) {
        if let Some((socket, at)) = table.text("socket", problems) {
            if !socket.starts_with('/') || socket.len() > SOCKET_PATH_MAX || socket.contains('\0') {
                let sentence = format!(
                    "daemon.socket is {}; give an absolute path of at most {SOCKET_PATH_MAX} bytes",
                    quoted(socket)
                );
                problems.add(at, sentence);
            } else {
                self.socket = socket.to_owned();
            }
        }
        for (key, users) in [("drivers", &mut self.drivers), ("readers", &mut self.readers)] {
            if let Some(said) = table.texts(key, true, problems) {
                for (user, at) in &said {
                    if user.is_empty()
                        || user.contains(|c: char| c.is_control() || c.is_whitespace() || c == ':')
                    {
                        problems.add(
                            *at,
                            format!("daemon.{key} has {}, which is no user's name or id", quoted(user)),
                        );
                    }
                }
                *users = said.into_iter().map(|(user, _)| user).collect();
            }
        }
        if let Some((address, at)) = table.text("metrics", problems) {
            if SocketAddr::from_str(address).is_ok() {
                self.metrics = Some(address.to_owned());
            } else {
                let sentence = format!(
                    "daemon.metrics is {}; give an address and a port, such as \"127.0.0.1:9470\"",
                    quoted(address)
                );
                problems.add(at, sentence);
            }
        }
        if let Some((level, at)) = table.text("log_level", problems) {
            if LOG_LEVELS.contains(&level) {
                self.log_level = level.to_owned();
            } else {
                let sentence = format!(
                    "daemon.log_level is {}; give one of {}",
                    quoted(level),
                    LOG_LEVELS.join(", ")
                );
                problems.add(at, sentence);
            }
        }
    }
}
