//! What does the filter say, as text for nftables?
//!
//! Two tables. `bridge netd` lets a port of a machine pass what its machine may send, and drops all else: a map leads
//! from the port to its machine's chain, and a port of ours that is not in the map passes nothing. `inet netd` is the
//! host's side: translation for networks of kind nat, and what keeps machines from the host and from each other's
//! networks.
//!
//! Each text is one transaction. Those that add and remove expect the tables to be what earlier ones made them; where
//! that is not so they fail as a whole, and [`whole`] puts things right.

mod frames;
mod host;

use std::fmt::{self, Write};

use crate::{Attachment, Config};

/// Both tables, declared anew: what was there goes in the same moment.
#[must_use]
pub fn whole<'a>(config: &Config, attachments: impl Iterator<Item = &'a Attachment> + Clone) -> String {
    let mut text = Text(purge());
    frames::whole(&mut text, attachments.clone());
    host::whole(&mut text, config, attachments);
    text.0
}

/// Lets new attachments through. `existing` are those that there are beside them.
#[must_use]
pub fn add<'a>(
    config: &Config,
    existing: impl Iterator<Item = &'a Attachment> + Clone,
    new: &[Attachment],
) -> String {
    let mut text = Text::default();
    frames::add(&mut text, new);
    host::add(&mut text, config, existing, new);
    text.0
}

/// Lets attachments' ports pass nothing any more. `remaining` are those that stay.
#[must_use]
pub fn remove<'a>(
    config: &Config,
    remaining: impl Iterator<Item = &'a Attachment> + Clone,
    gone: &[Attachment],
) -> String {
    let mut text = Text::default();
    frames::remove(&mut text, gone);
    host::remove(&mut text, config, remaining, gone);
    text.0
}

/// Takes both tables away.
#[must_use]
pub fn purge() -> String {
    // A table that isn't there can't be deleted, and one that is there can be added.
    ["bridge", "inet"]
        .map(|family| format!("add table {family} netd\ndelete table {family} netd\n"))
        .concat()
}

/// A text that grows line by line.
#[derive(Debug, Default)]
struct Text(String);

impl Text {
    fn line(&mut self, line: fmt::Arguments<'_>) {
        // Writing to a string never fails.
        let _ = self.0.write_fmt(line);
        self.0.push('\n');
    }

    fn lines(&mut self, lines: &str) {
        self.0.push_str(lines);
    }
}

#[cfg(test)]
mod tests;
