//! How are suites started, followed and ended?
//!
//! A suite writes straight into its log, and the runner follows the log: no pipe can fill up, or be held open by a
//! process that outlives the suite. Each suite is started by `timeout`, which ends its whole process group when its
//! time is over, below `setpriv`, so that the group also ends with the runner (Ctrl-C, kill).

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use crate::judge::{Ending, SuiteRun};
use crate::lines::{Lines, Outcome, Seen};
use crate::suites::Suite;

/// How often a log is looked at: a person does not notice, a core neither.
const FOLLOW_EVERY: Duration = Duration::from_millis(100);
/// How often a suite that goes on says so.
const PROGRESS_EVERY: Duration = Duration::from_secs(30);
/// Between the polite end of a suite out of time and the other one; `timeout`'s argument.
const KILL_AFTER: &str = "--kill-after=30";
/// How much of a log is shown for one failed check, and for how many.
const EXCERPT_LINES_MAX: usize = 60;
const EXCERPTS_MAX: usize = 5;
/// A longer line is read as several; results are short.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Runs suites, stage by stage, with their logs in `logs`; progress goes to `out`.
///
/// # Errors
///
/// When a log or `out` cannot be written. That a suite fails is no error.
pub fn run(
    root: &Path,
    suites: &[Suite],
    logs: &Path,
    out: &mut (impl Write + Send),
) -> io::Result<Vec<SuiteRun>> {
    fs::create_dir_all(logs)?;
    let mut stages: Vec<u8> = suites.iter().map(|suite| suite.stage).collect();
    stages.sort_unstable();
    stages.dedup();
    let out = Mutex::new(out);
    let say = |line: &str| -> io::Result<()> {
        let mut out = out.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        writeln!(out, "{line}")?;
        out.flush()
    };
    let mut runs = Vec::new();
    for stage in stages {
        let of_stage = suites.iter().filter(|suite| suite.stage == stage);
        let finished: Vec<io::Result<SuiteRun>> = thread::scope(|scope| {
            let started: Vec<_> = of_stage
                .map(|suite| scope.spawn(|| run_suite(root, suite, logs, &say)))
                .collect();
            started
                .into_iter()
                .map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect()
        });
        for run in finished {
            runs.push(run?);
        }
    }
    Ok(runs)
}

fn run_suite(
    root: &Path,
    suite: &Suite,
    logs: &Path,
    say: &impl Fn(&str) -> io::Result<()>,
) -> io::Result<SuiteRun> {
    let path = logs.join(format!("{}.log", suite.name));
    let log = File::create(&path)?;
    say(&format!("{} … started, log in {}", suite.name, path.display()))?;
    let start = Instant::now();
    let (seen, ending) = match spawn(root, suite, log) {
        Ok(child) => follow(child, suite, &path, start, say)?,
        Err(error) => (
            Vec::new(),
            Ending::NotStarted {
                cause: error.to_string(),
            },
        ),
    };
    let run = SuiteRun {
        suite: suite.name.clone(),
        seen,
        ending,
        seconds: start.elapsed().as_secs_f64(),
    };
    let well = run.ending == Ending::Succeeded;
    say(&format!(
        "{} {} {}",
        run.suite,
        if well { "ended:" } else { "FAILED:" },
        tally(&run.seen, start)
    ))?;
    for excerpt in excerpts(&String::from_utf8_lossy(&fs::read(&path)?), &run) {
        say(&excerpt)?;
    }
    Ok(run)
}

fn spawn(root: &Path, suite: &Suite, log: File) -> io::Result<Child> {
    Command::new("setpriv")
        .args(["--pdeathsig", "TERM", "timeout", KILL_AFTER])
        .arg(suite.time_limit.as_secs_f64().to_string())
        .args(&suite.command)
        .current_dir(root)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
}

/// Reads the log until the suite has ended.
fn follow(
    mut child: Child,
    suite: &Suite,
    log: &Path,
    start: Instant,
    say: &impl Fn(&str) -> io::Result<()>,
) -> io::Result<(Vec<Seen>, Ending)> {
    let mut log = File::open(log)?;
    let mut lines = Lines::default();
    let mut rest = Vec::new();
    let mut said = start;
    let status = loop {
        // In this order, so that what was written before the end is read.
        let ended = child.try_wait()?;
        log.read_to_end(&mut rest)?;
        feed_lines(&mut lines, &mut rest, start.elapsed());
        if let Some(status) = ended {
            break status;
        }
        if said.elapsed() >= PROGRESS_EVERY {
            said = Instant::now();
            say(&format!("{} … {}", suite.name, tally(lines.seen(), start)))?;
        }
        thread::sleep(FOLLOW_EVERY);
    };
    if !rest.is_empty() {
        lines.feed(&String::from_utf8_lossy(&rest), start.elapsed());
    }
    Ok((lines.finish(), ending(status, suite.time_limit, start.elapsed())))
}

fn ending(status: ExitStatus, limit: Duration, elapsed: Duration) -> Ending {
    if status.success() {
        Ending::Succeeded
    } else if elapsed >= limit {
        Ending::TimedOut { limit }
    } else {
        Ending::Failed {
            status: status.to_string(),
        }
    }
}

/// Takes the complete lines from the front of what was read.
fn feed_lines(lines: &mut Lines, rest: &mut Vec<u8>, at: Duration) {
    let mut taken = 0;
    while let Some(unread) = rest.get(taken..) {
        let end = match unread.iter().position(|byte| *byte == b'\n') {
            Some(end) => end + 1,
            None if unread.len() > LINE_BYTES_MAX => LINE_BYTES_MAX,
            None => break,
        };
        lines.feed(&String::from_utf8_lossy(&unread[..end]), at);
        taken += end;
    }
    rest.drain(..taken);
}

/// `12 passed, 1 failed (35 s)`.
fn tally(seen: &[Seen], start: Instant) -> String {
    let mut words = Vec::new();
    for (outcome, word) in [
        (Outcome::Passed, "passed"),
        (Outcome::Failed, "failed"),
        (Outcome::Skipped, "skipped"),
    ] {
        let count = seen.iter().filter(|seen| seen.outcome == outcome).count();
        if count > 0 || outcome == Outcome::Passed {
            words.push(format!("{count} {word}"));
        }
    }
    format!("{} ({} s)", words.join(", "), start.elapsed().as_secs())
}

/// What a person needs to see of the log: the output of failed tests, or the end of it.
fn excerpts(log: &str, run: &SuiteRun) -> Vec<String> {
    let lines: Vec<&str> = log.lines().collect();
    let failed: Vec<&Seen> = run
        .seen
        .iter()
        .filter(|seen| seen.outcome == Outcome::Failed)
        .collect();
    let mut excerpts: Vec<String> = failed
        .iter()
        .take(EXCERPTS_MAX)
        .map(|seen| excerpt(&format!("{}: {}", run.suite, seen.name), output_of(&lines, seen)))
        .collect();
    if failed.len() > EXCERPTS_MAX {
        excerpts.push(format!(
            "{}: {} more failed",
            run.suite,
            failed.len() - EXCERPTS_MAX
        ));
    }
    if run.ending != Ending::Succeeded && failed.is_empty() {
        excerpts.push(excerpt(&run.suite, &lines));
    }
    excerpts
}

/// The lines that belong to a failed test.
fn output_of<'a>(lines: &'a [&'a str], seen: &Seen) -> &'a [&'a str] {
    // libtest collects a test's output below such a line, libtest-mimic its message.
    let titles = [
        format!("---- {} stdout ----", seen.spelled),
        format!("---- {} ----", seen.spelled),
    ];
    let after = lines.get(seen.line..).unwrap_or_default();
    if let Some(title) = after
        .iter()
        .position(|line| titles.iter().any(|title| title == line))
    {
        let section = &after[title + 1..];
        let is_end = |line: &&str| line.starts_with("---- ") || **line == *"failures:";
        return &section[..section.iter().position(is_end).unwrap_or(section.len())];
    }
    // Elsewhere the output stands before the result; Go puts the failed sub-tests after it.
    let indented = after
        .iter()
        .skip(1)
        .take_while(|line| line.starts_with("    "))
        .count();
    &lines[..(seen.line + 1 + indented).min(lines.len())]
}

fn excerpt(title: &str, lines: &[&str]) -> String {
    let shown = &lines[lines.len().saturating_sub(EXCERPT_LINES_MAX)..];
    let mut text = format!("──── {title}");
    if shown.len() < lines.len() {
        text.push_str(" (the end of it)");
    }
    for line in shown {
        text.push_str("\n  ");
        text.extend(line.chars().take(400));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excerpts_of(log: &str) -> Vec<String> {
        let mut lines = Lines::default();
        for line in log.lines() {
            lines.feed(line, Duration::ZERO);
        }
        let ending = Ending::Failed {
            status: "exit status: 1".to_owned(),
        };
        excerpts(
            log,
            &SuiteRun {
                suite: "s".to_owned(),
                seen: lines.finish(),
                ending,
                seconds: 0.0,
            },
        )
    }

    #[test]
    fn excerpt_of_libtest_is_the_tests_own_output() {
        let log = "test a ... FAILED\ntest b ... FAILED\n\nfailures:\n\n---- a stdout ----\nout of a\n---- b stdout ----\nout of b\n\nfailures:\n    a\n";
        assert_eq!(
            excerpts_of(log),
            ["──── s: a\n  out of a", "──── s: b\n  out of b\n  "]
        );
    }

    #[test]
    fn excerpt_elsewhere_is_what_stands_before() {
        let go = "noise\n--- FAIL: TestBad (0.00s)\n    --- FAIL: TestBad/x (0.00s)\nFAIL";
        let shown = "──── s: bad\n  noise\n  --- FAIL: TestBad (0.00s)\n      --- FAIL: TestBad/x (0.00s)";
        assert_eq!(excerpts_of(go), [shown]);
        let long = "line\n".repeat(100);
        let shown = excerpts_of(&long);
        assert_eq!(shown.len(), 1);
        assert_eq!(shown[0].lines().count(), EXCERPT_LINES_MAX + 1);
    }

    #[test]
    fn lines_arrive_in_pieces() {
        let mut lines = Lines::default();
        let mut rest = b"test a ... o".to_vec();
        feed_lines(&mut lines, &mut rest, Duration::ZERO);
        assert!(lines.seen().is_empty());
        rest.extend(b"k\ntest b");
        feed_lines(&mut lines, &mut rest, Duration::ZERO);
        assert_eq!((lines.seen().len(), rest.as_slice()), (1, &b"test b"[..]));
        rest.resize(3 * LINE_BYTES_MAX, b'x');
        feed_lines(&mut lines, &mut rest, Duration::ZERO);
        assert!(rest.len() <= LINE_BYTES_MAX);
    }
}
