//! Is each bad input refused with one sentence, and is the host then as before?

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use super::{bad_agents, bad_jobs};
use crate::harness::{self, say, take_panic};
use crate::scratch;
use crate::world::World;

/// What came of one bad input.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) input: String,
    /// What Nomad or the agent shows.
    pub(super) sentence: String,
    /// What is on the host that was not there before.
    pub(super) left: Vec<String>,
    /// What else is not as it should be; empty if all is well.
    pub(super) fault: String,
}

impl Row {
    /// Judges a sentence by the words it must have.
    pub(super) fn judged(input: &str, sentence: &str, words: &[&str], left: Vec<String>) -> Self {
        let missing: Vec<&str> = words
            .iter()
            .copied()
            .filter(|word| !sentence.contains(word))
            .collect();
        let fault = if missing.is_empty() {
            String::new()
        } else {
            format!("the sentence lacks {missing:?}")
        };
        Self {
            input: input.to_owned(),
            sentence: sentence.to_owned(),
            left,
            fault,
        }
    }
}

pub(super) fn line(world: &World) {
    let mut rows = bad_jobs::rows(world);
    rows.extend(bad_agents::rows(world));
    show("bad-input.txt", &rows);
}

/// Rows that are made together, and what they are about.
pub(super) type Group = (&'static str, fn(&World) -> Vec<Row>);

/// Makes the rows of several groups at once. What one group could not do doesn't hide the rows of the others.
pub(super) fn side_by_side(world: &World, groups: &[Group]) -> Vec<Row> {
    let rows = harness::side_by_side(groups.len(), groups, |(name, rows)| {
        let began = Instant::now();
        let rows = catch_unwind(AssertUnwindSafe(|| rows(world)));
        say(&format!("    {name}: {:.1} s", began.elapsed().as_secs_f64()));
        rows.unwrap_or_else(|_| {
            vec![Row {
                input: (*name).to_owned(),
                sentence: String::new(),
                left: Vec::new(),
                fault: take_panic(),
            }]
        })
    });
    rows.concat()
}

/// Prints the rows, keeps them in a file of this name, and fails where one is not as it should be.
pub(super) fn show(file: &str, rows: &[Row]) {
    let table = table(rows);
    table.lines().for_each(say);
    let path = scratch::output().join(file);
    std::fs::write(&path, &table).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let faulty: Vec<String> = rows
        .iter()
        .filter(|row| !row.fault.is_empty() || !row.left.is_empty())
        .map(|row| {
            format!(
                "{}: {} {}\n    {}",
                row.input,
                row.fault,
                row.left.join(", "),
                row.sentence
            )
        })
        .collect();
    assert_none_faulty(&faulty, rows.len());
}

/// Fails with the faulty rows of a table, if there are any.
#[track_caller]
pub(super) fn assert_none_faulty(faulty: &[String], rows: usize) {
    assert!(
        faulty.is_empty(),
        "{} of {rows} rows:\n{}",
        faulty.len(),
        faulty.join("\n")
    );
}

fn table(rows: &[Row]) -> String {
    let width = rows
        .iter()
        .map(|row| row.input.chars().count())
        .max()
        .unwrap_or(0);
    let mut text = format!("{:<3} {:<width$}  {:<9}  sentence\n", "", "bad input", "host");
    for (index, row) in rows.iter().enumerate() {
        let host = if row.left.is_empty() {
            "unchanged"
        } else {
            "CHANGED"
        };
        let fault = if row.fault.is_empty() {
            String::new()
        } else {
            format!("  FAULT: {}", row.fault)
        };
        let sentence = row.sentence.split_whitespace().collect::<Vec<_>>().join(" ");
        // Writing to a String never fails.
        let _ok = writeln!(
            text,
            "{:<3} {:<width$}  {host:<9}  {sentence}{fault}",
            index + 1,
            row.input
        );
    }
    text
}
