//! What do the daemons of a host share, and the programs that call them?
//!
//! netd and stord each serve gRPC at a unix socket to programs that they know by their user, are configured by a file with
//! drop-ins, and live under systemd. What they serve is theirs alone.

pub mod client;
pub mod config_files;
pub mod lifetime;
pub mod log;
pub mod metrics;
pub mod notify;
pub mod peer;
pub mod socket;
pub mod text;

use std::error::Error;

/// An error and its causes in one line, separated by colons.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
