//! What came of each check, given what was promised and what the suites reported?

use std::time::Duration;

use serde::Serialize;

use crate::lines::{Outcome, Seen};
use crate::list::Listed;

/// How a suite came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// Its command succeeded.
    Succeeded,
    /// Its command ended otherwise.
    Failed {
        /// The exit status, as text.
        status: String,
    },
    /// It was ended because its time was over.
    TimedOut {
        /// The time that it had.
        limit: Duration,
    },
    /// Its command could not be started.
    NotStarted {
        /// Why.
        cause: String,
    },
}

/// What a suite reported.
#[derive(Debug, Clone)]
pub struct SuiteRun {
    /// The suite.
    pub suite: String,
    /// Its result lines.
    pub seen: Vec<Seen>,
    /// How it ended.
    pub ending: Ending,
    /// How long it took.
    pub seconds: f64,
}

/// An entry of `target/checks.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// The check's name: the listed one, or the suite's own with its crate.
    pub name: String,
    /// What came of it.
    pub result: Outcome,
    /// How long it took.
    pub seconds: f64,
    /// Why it was skipped or failed.
    pub reason: String,
}

impl Check {
    fn failed(name: &str, seconds: f64, reason: String) -> Self {
        Self {
            name: name.to_owned(),
            result: Outcome::Failed,
            seconds: rounded(seconds),
            reason,
        }
    }
}

/// Milliseconds are exact enough for a person.
fn rounded(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// Judges the listed checks of the suites that ran, everything else they reported, and the suites themselves.
#[must_use]
pub fn judge(listed: &[Listed], runs: &[SuiteRun]) -> Vec<Check> {
    let mut checks = Vec::new();
    for run in runs {
        let ours: Vec<&Listed> = listed.iter().filter(|listed| listed.suite == run.suite).collect();
        for listed in &ours {
            let results: Vec<&Seen> = run
                .seen
                .iter()
                .filter(|seen| is_named(seen, &listed.name))
                .collect();
            checks.push(judge_listed(&listed.name, &run.suite, &results));
        }
        let others = run
            .seen
            .iter()
            .filter(|seen| !ours.iter().any(|listed| is_named(seen, &listed.name)));
        checks.extend(others.map(|seen| judge_seen(&seen.name, seen)));
        checks.extend(judge_suite(run));
    }
    checks
}

/// A listed name is a test's whole name or the last part of its path.
fn is_named(seen: &Seen, name: &str) -> bool {
    seen.name.rsplit("::").next() == Some(name)
}

fn judge_listed(name: &str, suite: &str, results: &[&Seen]) -> Check {
    // A suite may report a check twice, say once with its time; the longer one is kept.
    let longest = results.iter().max_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let Some(longest) = longest else {
        let reason = format!("is listed in testing/checks.txt, but suite {suite} neither ran nor skipped it");
        return Check::failed(name, 0.0, reason);
    };
    if results.iter().any(|result| result.outcome != longest.outcome) {
        let reason = format!("was reported {} times with different results", results.len());
        return Check::failed(name, longest.seconds, reason);
    }
    judge_seen(name, longest)
}

fn judge_seen(name: &str, seen: &Seen) -> Check {
    if seen.outcome == Outcome::Skipped && seen.reason.is_empty() {
        return Check::failed(name, seen.seconds, "was skipped without a reason".to_owned());
    }
    Check {
        name: name.to_owned(),
        result: seen.outcome,
        seconds: rounded(seen.seconds),
        reason: seen.reason.clone(),
    }
}

/// A suite that ended badly is a failed check of its own, unless a failed test explains it.
fn judge_suite(run: &SuiteRun) -> Option<Check> {
    let explained = run.seen.iter().any(|seen| seen.outcome == Outcome::Failed);
    let reason = match &run.ending {
        Ending::Succeeded if run.seen.is_empty() => "reported no check at all".to_owned(),
        Ending::Succeeded => return None,
        Ending::Failed { .. } if explained => return None,
        Ending::Failed { status } => format!("ended with {status}, though no test failed"),
        Ending::TimedOut { limit } => format!("was ended after its time limit of {} s", limit.as_secs()),
        Ending::NotStarted { cause } => format!("could not be started: {cause}"),
    };
    Some(Check::failed(
        &format!("suite:{}", run.suite),
        run.seconds,
        reason,
    ))
}

/// The last line, and whether everything is well: nothing failed and something passed.
#[must_use]
pub fn summary(checks: &[Check]) -> (String, bool) {
    let count = |outcome| checks.iter().filter(|check| check.result == outcome).count();
    let (passed, failed, skipped) = (
        count(Outcome::Passed),
        count(Outcome::Failed),
        count(Outcome::Skipped),
    );
    (
        format!("{passed} passed, {failed} failed, {skipped} skipped"),
        failed == 0 && passed > 0,
    )
}
