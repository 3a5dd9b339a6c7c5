//! Does the runner catch a suite that lies, crashes, hangs or leaves a promised check out?

use std::time::{Duration, Instant};

use steppe_checks::judge::{Check, judge, summary};
use steppe_checks::lines::Outcome;
use steppe_checks::list::Listed;
use steppe_checks::run;
use steppe_checks::suites::Suite;

fn suite(name: &str, stage: u8, script: &str) -> Suite {
    let command = ["sh", "-c", script].map(str::to_owned).into();
    Suite {
        name: name.to_owned(),
        command,
        stage,
        time_limit: Duration::from_secs(60),
    }
}

fn execute(listed: &[&str], suites: &[Suite]) -> (Vec<Check>, String) {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let listed: Vec<Listed> = listed
        .iter()
        .map(|name| Listed {
            name: (*name).to_owned(),
            suite: "fake".to_owned(),
        })
        .collect();
    let mut out = Vec::new();
    let runs = run::run(folder.path(), suites, &folder.path().join("logs"), &mut out).expect("logs");
    (judge(&listed, &runs), String::from_utf8(out).expect("text"))
}

/// Each case goes through here: what is listed, the suite's script, and `name: reason` of all that failed.
fn check(listed: &[&str], script: &str, failed: &[&str]) {
    let (checks, out) = execute(listed, &[suite("fake", 0, script)]);
    let seen: Vec<String> = checks
        .iter()
        .filter(|check| check.result == Outcome::Failed)
        .map(|check| format!("{}: {}", check.name, check.reason))
        .collect();
    assert_eq!(seen, failed, "{out}");
}

#[test]
fn all_is_well() {
    let script =
        "echo 'test tests::one ... ok'; echo 'check two passed 1.5'; echo '--- PASS: TestThree (0.1s)'";
    let (checks, _) = execute(&["one", "two", "three"], &[suite("fake", 0, script)]);
    assert_eq!(
        summary(&checks),
        ("3 passed, 0 failed, 0 skipped".to_owned(), true)
    );
    assert_eq!(
        checks[1],
        Check {
            name: "two".to_owned(),
            result: Outcome::Passed,
            seconds: 1.5,
            reason: String::new()
        }
    );
    check(&["one"], "echo 'check one skipped 0 no KVM'", &[]);
}

#[test]
fn skipped_alone_is_not_well() {
    let (checks, _) = execute(&["one"], &[suite("fake", 0, "echo 'check one skipped 0 no KVM'")]);
    assert_eq!(
        summary(&checks),
        ("0 passed, 0 failed, 1 skipped".to_owned(), false)
    );
}

#[test]
fn listed_but_missing() {
    check(
        &["one", "two"],
        "echo 'test one ... ok'",
        &["two: is listed in testing/checks.txt, but suite fake neither ran nor skipped it"],
    );
}

#[test]
fn skipped_without_a_reason() {
    check(
        &["one"],
        "echo 'test one ... ignored'",
        &["one: was skipped without a reason"],
    );
    check(
        &[],
        "echo '--- SKIP: TestOne (0.00s)'",
        &["one: was skipped without a reason"],
    );
}

#[test]
fn reported_twice() {
    check(&["one"], "echo 'test one ... ok'; echo 'check one passed 3'", &[]);
    check(
        &["one"],
        "echo 'test one ... ok'; echo 'check one failed 3'",
        &["one: was reported 2 times with different results"],
    );
}

#[test]
fn crash() {
    check(
        &[],
        "echo 'test one ... ok'; exit 3",
        &["suite:fake: ended with exit status: 3, though no test failed"],
    );
    check(&[], "echo 'test one ... FAILED'; exit 3", &["one: "]);
    check(
        &[],
        "printf 'test one ... '; kill -9 $$",
        &["one: began and did not end"],
    );
    check(&[], "true", &["suite:fake: reported no check at all"]);
}

#[test]
fn failed_test_and_clean_exit() {
    check(&["one"], "echo 'test one ... FAILED'", &["one: "]);
}

#[test]
fn command_that_is_not_there() {
    let missing = Suite {
        command: vec!["./no-such-command".to_owned()],
        ..suite("fake", 0, "")
    };
    let (checks, out) = execute(&[], &[missing]);
    assert_eq!(
        checks[0].reason,
        "ended with exit status: 127, though no test failed"
    );
    assert!(out.contains("no-such-command"), "{out}");
}

#[test]
fn out_of_time() {
    let start = Instant::now();
    // The sleeper in the background is ended as well; it would hold on to the log.
    let slow = suite("fake", 0, "echo 'test one ... ok'; sleep 300 & sleep 300");
    let (checks, _) = execute(
        &["one"],
        &[Suite {
            time_limit: Duration::from_secs(1),
            ..slow
        }],
    );
    assert_eq!(checks[0].result, Outcome::Passed);
    assert_eq!(checks[1].reason, "was ended after its time limit of 1 s");
    assert!(start.elapsed() < Duration::from_secs(60));
}

#[test]
fn stages() {
    // Side by side in one stage, each waits for the other's file; the next stage finds both.
    let meet = |mine: &str, other: &str| {
        format!(
            "touch {mine}; for i in $(seq 300); do test -e {other} && break; sleep 0.1; done; test -e {other} && echo 'check {mine} passed 0'"
        )
    };
    let suites = [
        suite("fake", 1, "test -e a && test -e b && echo 'check c passed 0'"),
        suite("a", 0, &meet("a", "b")),
        suite("b", 0, &meet("b", "a")),
    ];
    let (checks, out) = execute(&["c"], &suites);
    assert_eq!(
        summary(&checks),
        ("3 passed, 0 failed, 0 skipped".to_owned(), true),
        "{out}"
    );
}

#[test]
fn failure_shows_the_log() {
    let (_, out) = execute(
        &[],
        &[suite("fake", 0, "echo a clue; echo 'check one failed 0'; exit 1")],
    );
    assert!(out.contains("──── fake: one\n  a clue\n"), "{out}");
    assert!(out.contains("fake FAILED: 0 passed, 1 failed ("), "{out}");
}
