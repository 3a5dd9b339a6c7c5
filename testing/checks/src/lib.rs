//! Did every check that the project promises run, and what came of it?
//!
//! `testing/checks.txt` lists the promised checks and the suite of each. The runner starts the suites ([`suites`]),
//! follows their output ([`run`]), reads the result lines in it ([`lines`]) and judges ([`judge`]): a listed check that
//! neither ran nor was skipped with a reason has failed. No check is skipped in silence.

pub mod judge;
pub mod lines;
pub mod list;
pub mod run;
pub mod suites;
