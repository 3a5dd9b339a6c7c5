//! Which checks does a suite's output report, and with which result?
//!
//! Three kinds of lines are read, from any suite:
//!
//! - `test NAME ... ok`, `FAILED`, `ignored, REASON` or `ignored (REASON)`: libtest, rustdoc and libtest-mimic. The
//!   crate's name is put before a test of cargo's.
//! - `--- PASS: TestName (1.2s)`, `FAIL`, `SKIP`: Go. `TestName` becomes `name`; a sub-test belongs to its parent.
//! - `check NAME passed|failed|skipped SECONDS REASON…`: everything else.

use std::time::Duration;

use serde::Serialize;

/// What came of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It ran and held.
    Passed,
    /// It ran and did not hold, or should have run and did not.
    Failed,
    /// It did not run, for the reason given.
    Skipped,
}

/// A result line.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// The check, with its crate before it where cargo said which.
    pub name: String,
    /// The name as the suite spelled it, by which its output is found in the log.
    pub spelled: String,
    /// The result.
    pub outcome: Outcome,
    /// How long it took. libtest does not say: then the time since the result before it.
    pub seconds: f64,
    /// Why it was skipped or failed; often empty.
    pub reason: String,
    /// The number of the line, from 0.
    pub line: usize,
}

/// A reader of a suite's output, line by line.
#[derive(Debug, Default)]
pub struct Lines {
    seen: Vec<Seen>,
    line: usize,
    /// The crate or test target whose tests follow, as cargo announced it.
    target: Option<String>,
    /// A libtest line without its result: something else printed into it.
    unfinished: Option<String>,
    /// Within libtest's section of failures: what stands there is the output of tests.
    in_failures: bool,
    /// When the result before, or the beginning of a test binary, was seen.
    since: Duration,
    /// The last message of a Go test, which is the reason if it is then skipped.
    go_message: Option<String>,
    /// A Go test was skipped, and its reason may follow.
    go_skipped: bool,
}

impl Lines {
    /// Reads one line, seen this long after the suite's start.
    pub fn feed(&mut self, line: &str, at: Duration) {
        let line = line.trim_end();
        if self.go_line(line) || self.check_line(line) {
            self.since = at;
        } else {
            self.libtest_line(line, at);
        }
        self.line += 1;
    }

    /// The results seen so far.
    #[must_use]
    pub fn seen(&self) -> &[Seen] {
        &self.seen
    }

    /// Ends the reading; a test that began and never ended has failed.
    #[must_use]
    pub fn finish(mut self) -> Vec<Seen> {
        if let Some(name) = self.unfinished.take() {
            self.push(name, Outcome::Failed, 0.0, "began and did not end".to_owned());
        }
        self.seen
    }

    fn push(&mut self, spelled: String, outcome: Outcome, seconds: f64, reason: String) {
        let name = match &self.target {
            Some(target) => format!("{target}::{spelled}"),
            None => spelled.clone(),
        };
        self.seen.push(Seen {
            name,
            spelled,
            outcome,
            seconds,
            reason,
            line: self.line,
        });
    }

    fn libtest_line(&mut self, line: &str, at: Duration) {
        let plain = line.trim_start();
        if let Some(target) = cargo_target(plain) {
            self.target = Some(target);
            self.in_failures = false;
        } else if plain.starts_with("test result:") {
            self.in_failures = false;
        } else if line == "failures:" {
            self.in_failures = true;
        } else if plain.starts_with("running ") && plain.contains(" test") {
            self.since = at;
        }
        if self.in_failures {
            return;
        }
        let begun = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... "));
        let (name, result) = match (begun, self.unfinished.take()) {
            (Some((name, result)), _) => (test_name(name), result),
            (None, Some(name)) => (name, line),
            (None, None) => {
                // A name alone at the end of a line lost its last space.
                if let Some(name) = line
                    .strip_prefix("test ")
                    .and_then(|rest| rest.strip_suffix(" ..."))
                {
                    self.unfinished = Some(test_name(name));
                }
                return;
            }
        };
        match libtest_result(result) {
            Some((outcome, seconds, reason)) => {
                let gap = at.saturating_sub(self.since).as_secs_f64();
                self.since = at;
                self.push(name, outcome, seconds.unwrap_or(gap), reason);
            }
            None => self.unfinished = Some(name),
        }
    }

    /// Reads a line of Go's verbose output; says whether it was a result.
    fn go_line(&mut self, line: &str) -> bool {
        if let Some(message) = go_message(line) {
            if std::mem::take(&mut self.go_skipped)
                && let Some(last) = self.seen.last_mut()
                && last.reason.is_empty()
            {
                last.reason = message;
            } else {
                self.go_message = Some(message);
            }
            return false;
        }
        if line.starts_with("=== ") {
            self.go_message = None;
            self.go_skipped = false;
            return false;
        }
        if let Some((Outcome::Skipped, name, _)) = go_result(line.trim_start())
            && line.starts_with(' ')
        {
            // A sub-test: not counted, yet not skipped in silence.
            if let Some(parent) = self
                .seen
                .last_mut()
                .filter(|parent| parent.outcome == Outcome::Passed)
            {
                let separator = if parent.reason.is_empty() {
                    "skipped within: "
                } else {
                    ", "
                };
                parent.reason = format!("{}{separator}{name}", parent.reason);
            }
            return false;
        }
        let Some((outcome, name, seconds)) = go_result(line) else {
            return false;
        };
        let reason = match (outcome, self.go_message.take()) {
            (Outcome::Skipped, Some(message)) => message,
            _ => String::new(),
        };
        self.go_skipped = outcome == Outcome::Skipped && reason.is_empty();
        self.target = None;
        self.push(go_name(name), outcome, seconds, reason);
        if let Some(last) = self.seen.last_mut() {
            name.clone_into(&mut last.spelled);
        }
        true
    }

    /// Reads a `check` line; says whether it was one.
    fn check_line(&mut self, line: &str) -> bool {
        let mut words = line.splitn(5, ' ');
        if self.in_failures || words.next() != Some("check") {
            return false;
        }
        let (Some(name), Some(outcome), seconds) = (words.next(), words.next(), words.next()) else {
            return false;
        };
        let outcome = match outcome {
            "passed" => Outcome::Passed,
            "failed" => Outcome::Failed,
            "skipped" => Outcome::Skipped,
            _ => return false,
        };
        let Some(seconds) = seconds
            .and_then(|text| text.parse().ok())
            .filter(|s: &f64| s.is_finite())
        else {
            return false;
        };
        self.seen.push(Seen {
            name: name.to_owned(),
            spelled: name.to_owned(),
            outcome,
            seconds,
            reason: words.next().unwrap_or_default().trim().to_owned(),
            line: self.line,
        });
        true
    }
}

/// The target in cargo's `Running unittests src/lib.rs (target/debug/deps/name-hash)` or `Doc-tests name`.
fn cargo_target(line: &str) -> Option<String> {
    if let Some(name) = line.strip_prefix("Doc-tests ") {
        return Some(name.to_owned());
    }
    let path = line
        .strip_prefix("Running ")?
        .strip_suffix(')')?
        .rsplit_once('(')?
        .1;
    let file = path.rsplit('/').next()?;
    Some(
        file.rsplit_once('-')
            .map_or(file, |(name, _hash)| name)
            .to_owned(),
    )
}

/// A test's name without what libtest adds to it and libtest-mimic's padding.
fn test_name(name: &str) -> String {
    let name = name.trim();
    name.strip_suffix(" - should panic").unwrap_or(name).to_owned()
}

/// The result at the end of a libtest line, with the time some runners add: `ok`, `ok <1.2s>`, `ignored, why`.
fn libtest_result(result: &str) -> Option<(Outcome, Option<f64>, String)> {
    let result = result.trim();
    if let Some(rest) = result.strip_prefix("ignored") {
        let rest = rest.trim();
        let bracketed = || rest.strip_prefix('(').and_then(|rest| rest.strip_suffix(')'));
        let reason = if rest.is_empty() {
            ""
        } else {
            rest.strip_prefix(',').or_else(bracketed)?
        };
        return Some((Outcome::Skipped, None, reason.trim().to_owned()));
    }
    let (word, time) = result.split_once(' ').unwrap_or((result, ""));
    let outcome = match word {
        "ok" => Outcome::Passed,
        "FAILED" => Outcome::Failed,
        _ => return None,
    };
    let seconds = match time {
        "" => None,
        time => Some(time.strip_prefix('<')?.strip_suffix("s>")?.parse().ok()?),
    };
    Some((outcome, seconds, String::new()))
}

/// The message in `    file_test.go:12: message`.
fn go_message(line: &str) -> Option<String> {
    let (place, message) = line.strip_prefix("    ")?.split_once(": ")?;
    let (file, number) = place.rsplit_once(':')?;
    let is_place = file.ends_with(".go") && !file.contains(' ') && number.parse::<u32>().is_ok();
    is_place.then(|| message.trim().to_owned())
}

/// The result in `--- PASS: TestName (1.2s)`.
fn go_result(line: &str) -> Option<(Outcome, &str, f64)> {
    let (outcome, rest) = line.strip_prefix("--- ")?.split_once(": ")?;
    let outcome = match outcome {
        "PASS" => Outcome::Passed,
        "FAIL" => Outcome::Failed,
        "SKIP" => Outcome::Skipped,
        _ => return None,
    };
    let (name, time) = rest.rsplit_once(" (")?;
    Some((outcome, name, time.strip_suffix("s)")?.parse().ok()?))
}

/// `TestConformanceLoader` as `conformance_loader`, `TestQMPSession` as `qmp_session`.
fn go_name(name: &str) -> String {
    let letters: Vec<char> = name.strip_prefix("Test").unwrap_or(name).chars().collect();
    let mut snake = String::new();
    for (index, letter) in letters.iter().enumerate() {
        let before = index.checked_sub(1).and_then(|before| letters.get(before));
        let after_word = before.is_some_and(|c| c.is_lowercase() || c.is_ascii_digit());
        let ends_acronym = before.is_some_and(|c| c.is_uppercase())
            && letters.get(index + 1).is_some_and(|c| c.is_lowercase());
        if letter.is_uppercase() && (after_word || ends_acronym) {
            snake.push('_');
        }
        snake.extend(letter.to_lowercase());
    }
    snake.trim_start_matches('_').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each case goes through here: the output, and the results as `name outcome reason`.
    fn check(output: &str, expected: &[&str]) {
        let mut lines = Lines::default();
        for line in output.lines() {
            lines.feed(line, Duration::ZERO);
        }
        let seen: Vec<String> = lines
            .finish()
            .into_iter()
            .map(|seen| {
                format!("{} {:?} {}", seen.name, seen.outcome, seen.reason)
                    .trim()
                    .to_owned()
            })
            .collect();
        assert_eq!(seen, expected, "{output}");
    }

    #[test]
    fn libtest() {
        check(
            "running 4 tests\ntest a::tests::b ... ok\ntest c - should panic ... ok\ntest d ... FAILED\ntest e ... ignored, no KVM\n",
            &["a::tests::b Passed", "c Passed", "d Failed", "e Skipped no KVM"],
        );
        check("test a ... ignored", &["a Skipped"]);
        check("test a ... ok <1.250s>", &["a Passed"]);
        check("test result: ok. 4 passed; 0 failed; 0 ignored", &[]);
        check(
            "test src/lib.rs - f (line 3) - compile ... ok",
            &["src/lib.rs - f (line 3) - compile Passed"],
        );
    }

    #[test]
    fn cargo_says_which_crate() {
        check(
            "     Running unittests src/lib.rs (/t/debug/deps/steppe_vm-0a1b)\ntest t::x ... ok\n     Running tests/tidy.rs (target/debug/deps/tidy-00ff)\ntest tidy_x ... ok\n   Doc-tests go_plugin\ntest driver/go-plugin/src/lib.rs - x (line 1) ... ok",
            &[
                "steppe_vm::t::x Passed",
                "tidy::tidy_x Passed",
                "go_plugin::driver/go-plugin/src/lib.rs - x (line 1) Passed",
            ],
        );
    }

    #[test]
    fn libtest_mimic() {
        check(
            "test e2e_a         ... ok\ntest e2e_longer    ... ignored (no /dev/kvm)\ntest e2e_b ... ignored",
            &["e2e_a Passed", "e2e_longer Skipped no /dev/kvm", "e2e_b Skipped"],
        );
    }

    #[test]
    fn a_result_torn_from_its_name() {
        check(
            "test a ... agent: started\nmore noise\nok\ntest b ... ok",
            &["a Passed", "b Passed"],
        );
        check("test a ...\nFAILED", &["a Failed"]);
        check(
            "test a ... and then it crashed",
            &["a Failed began and did not end"],
        );
    }

    #[test]
    fn output_of_failed_tests_is_no_result() {
        check(
            "test a ... FAILED\n\nfailures:\n\n---- a stdout ----\ntest inner ... ok\ncheck inner passed 1\n\nfailures:\n    a\n\ntest result: FAILED. 0 passed\n\ntest b ... ok",
            &["a Failed", "b Passed"],
        );
    }

    #[test]
    fn go() {
        check(
            "=== RUN   TestConformanceLoader\n    a_test.go:3: hello\n--- PASS: TestConformanceLoader (1.25s)\n    --- PASS: TestConformanceLoader/sub (0.00s)\n    --- SKIP: TestConformanceLoader/other (0.00s)\n--- FAIL: TestBad (0.00s)\n    --- FAIL: TestBad/x (0.00s)\nFAIL",
            &[
                "conformance_loader Passed skipped within: TestConformanceLoader/other",
                "bad Failed",
            ],
        );
        // Verbose output has the reason before the result, older Go and quiet output after it.
        check(
            "=== RUN   TestA\n    a_test.go:4: first\n    a_test.go:5: no kvm: really\n--- SKIP: TestA (0.00s)\n=== RUN   TestB\n--- SKIP: TestB (0.00s)\n    b_test.go:7: not root\n=== RUN   TestC\n--- SKIP: TestC (0.00s)\n=== RUN   TestD\n    d_test.go:1: talk\n--- PASS: TestD (0.00s)",
            &[
                "a Skipped no kvm: really",
                "b Skipped not root",
                "c Skipped",
                "d Passed",
            ],
        );
    }

    #[test]
    fn go_names() {
        for (go, ours) in [
            ("TestConformanceLoader", "conformance_loader"),
            ("TestQMPSession", "qmp_session"),
            ("TestE2eKill9", "e2e_kill9"),
            ("Test_under_score", "under_score"),
        ] {
            assert_eq!(go_name(go), ours);
        }
    }

    #[test]
    fn check_lines() {
        check(
            "check jobs_run passed 12.5\ncheck jobs_fmt failed 0 disk.nomad.hcl is not formatted\ncheck demo skipped 0 no network",
            &[
                "jobs_run Passed",
                "jobs_fmt Failed disk.nomad.hcl is not formatted",
                "demo Skipped no network",
            ],
        );
        check(
            "check that this works\ncheck it passed well\ncheck a passed NaN\nchecks a passed 1",
            &[],
        );
    }

    #[test]
    fn seconds() {
        let mut lines = Lines::default();
        for (line, at) in [
            ("running 2 tests", 10),
            ("test a ... ok", 13),
            ("test b ... ok <0.5s>", 20),
            ("check c passed 2.5", 21),
            ("--- PASS: TestD (1.5s)", 30),
        ] {
            lines.feed(line, Duration::from_secs(at));
        }
        let seconds: Vec<f64> = lines.seen().iter().map(|seen| seen.seconds).collect();
        assert_eq!(seconds, [3.0, 0.5, 2.5, 1.5]);
    }
}
