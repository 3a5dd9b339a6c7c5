//! Is each bad input refused with one sentence, and is the host then as before?

mod aliases;
mod config;
mod host;
mod requests;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use crate::harness::say;
use crate::space::Space;
use crate::state;

/// What came of one bad input.
#[derive(Debug)]
struct Row {
    input: String,
    /// What netd says.
    sentence: String,
    /// What is not as it should be; empty if all is well.
    faults: Vec<String>,
}

/// The rows that were made so far, and the host that must stay as it is.
#[derive(Debug)]
struct Table<'a> {
    host: &'a Space,
    state: (BTreeSet<String>, BTreeSet<String>),
    rows: Vec<Row>,
}

impl<'a> Table<'a> {
    fn new(host: &'a Space) -> Self {
        Self {
            host,
            state: look(host),
            rows: Vec::new(),
        }
    }

    /// The host was changed on purpose.
    fn changed(&mut self) {
        self.state = look(self.host);
    }

    /// Adds a row: the sentence must have these words, be one line, and the host must be as before.
    fn row(&mut self, input: &str, sentence: &str, words: &[&str]) {
        let mut faults = Vec::new();
        let missing: Vec<&&str> = words.iter().filter(|word| !sentence.contains(**word)).collect();
        if !missing.is_empty() {
            faults.push(format!("the sentence lacks {missing:?}"));
        }
        if sentence.chars().any(char::is_control) {
            faults.push("it is not one printable line".to_owned());
        }
        let after = look(self.host);
        for (before, after) in [(&self.state.0, &after.0), (&self.state.1, &after.1)] {
            let difference = state::difference(before, after);
            if !difference.is_empty() {
                faults.push(difference);
            }
        }
        self.state = after;
        self.rows.push(Row {
            input: input.to_owned(),
            sentence: sentence.to_owned(),
            faults,
        });
    }
}

fn look(host: &Space) -> (BTreeSet<String>, BTreeSet<String>) {
    (state::ours(host), state::foreign(host))
}

/// Where the table is kept.
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/bad-input-netd.txt");

/// One row for each input that the issue of netd lists, and those beside them.
pub(crate) fn bad_input_netd() {
    let groups: [fn() -> Vec<Row>; 4] = [requests::rows, config::rows, host::rows, aliases::rows];
    let rows: Vec<Row> = groups.into_iter().flat_map(|rows| rows()).collect();
    let table = table(&rows);
    table.lines().for_each(say);
    let path = Path::new(FILE);
    std::fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder can be made");
    std::fs::write(path, &table).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let faulty: Vec<String> = rows
        .iter()
        .filter(|row| !row.faults.is_empty())
        .map(|row| format!("{}: {}\n    {}", row.input, row.faults.join("; "), row.sentence))
        .collect();
    assert!(
        faulty.is_empty(),
        "{} of {} rows:\n{}",
        faulty.len(),
        rows.len(),
        faulty.join("\n")
    );
}

fn table(rows: &[Row]) -> String {
    let lengths = rows.iter().map(|row| row.input.chars().count());
    let width = lengths.max().unwrap_or_default();
    let mut text = format!("{:<3} {:<width$}  {:<9}  sentence\n", "", "bad input", "host");
    for (number, row) in (1..).zip(rows) {
        let verdict = if row.faults.is_empty() {
            "unchanged"
        } else {
            "FAULTY"
        };
        writeln!(
            text,
            "{number:<3} {:<width$}  {verdict:<9}  {}",
            row.input, row.sentence
        )
        .expect("a text takes everything");
    }
    text
}
