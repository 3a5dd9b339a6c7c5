//! When did the agent call StartTask?
//!
//! The same moment for every driver: the task runner's trace line "finished prestart hooks", whose `end` has nanoseconds. The
//! next thing that it does is to build the task's configuration, some tenths of a millisecond, and to call StartTask
//! (`client/allocrunner/taskrunner/task_runner.go`). A driver's own log line would be another place in each driver.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::BenchError;

/// The agent writes through a buffer of its own.
const LIMIT: Duration = Duration::from_secs(10);

/// The moment before StartTask for an allocation, in nanoseconds since 1970.
pub(crate) fn prestart_end_unix_ns(log: &Path, allocation: &str) -> Result<u64, BenchError> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let text = std::fs::read_to_string(log)
            .map_err(|error| BenchError::Io(format!("{} can't be read", log.display()), error))?;
        let is_it = |line: &&str| line.contains("finished prestart hooks") && line.contains(allocation);
        if let Some(line) = text.lines().rev().find(is_it) {
            let value: Value = serde_json::from_str(line).unwrap_or_default();
            return value["end"]
                .as_str()
                .and_then(unix_ns)
                .ok_or_else(|| BenchError::Task(format!("the agent's log has another form: {line}")));
        }
        if Instant::now() > deadline {
            return Err(BenchError::Late(format!(
                "the line of the agent's log about {allocation}"
            )));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Reads RFC 3339, such as `2026-11-21T14:52:44.013123456+01:00`.
pub(crate) fn unix_ns(text: &str) -> Option<u64> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let rest = text.get(19..)?;
    let zone = rest.find(['Z', '+', '-'])?;
    let fraction = rest.get(1..zone).unwrap_or_default();
    let nanoseconds: i64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    let offset = match rest.get(zone..)? {
        "Z" => 0,
        zone => {
            let minutes = zone.get(1..3)?.parse::<i64>().ok()? * 60 + zone.get(4..6)?.parse::<i64>().ok()?;
            if zone.starts_with('-') { -minutes } else { minutes }
        }
    };
    // Days since 1970 of a date: years that begin in March have the leap day at their end.
    let (y, m) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    let seconds = ((days * 24 + hour) * 60 + minute - offset) * 60 + second;
    u64::try_from(seconds * 1_000_000_000 + nanoseconds).ok()
}

#[cfg(test)]
mod tests {
    use super::unix_ns;

    #[test]
    fn times_are_read() {
        assert_eq!(unix_ns("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(unix_ns("2026-11-21T14:52:44.5Z"), Some(1_795_272_764_500_000_000));
        assert_eq!(
            unix_ns("2026-11-21T15:52:44.000000001+01:00"),
            Some(1_795_272_764_000_000_001)
        );
        assert_eq!(
            unix_ns("2024-02-29T00:00:00-00:30"),
            Some(1_709_166_600_000_000_000)
        );
        assert_eq!(unix_ns("yesterday"), None);
    }
}
