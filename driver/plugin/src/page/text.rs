//! How is what others wrote, and when, shown on a terminal?

use std::time::{Duration, UNIX_EPOCH};

pub(super) use steppe_daemon::text::{UNKNOWN, json, plain, table};

/// The lines of what a guest or a program wrote, each made [`plain`]; empty lines at both ends are left out.
pub(super) fn lines(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let mut lines: Vec<String> = text
        .lines()
        .map(|line| plain(line).trim_end().to_owned())
        .collect();
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    let blank = lines.iter().take_while(|line| line.is_empty()).count();
    lines.split_off(blank)
}

/// A time in nanoseconds since 1970 as RFC 3339 has it, in UTC with milliseconds; `None` for 0, which says "not known".
pub(super) fn time(unix_ns: u64) -> Option<String> {
    let at = UNIX_EPOCH + Duration::from_nanos(unix_ns);
    (unix_ns > 0).then(|| humantime::format_rfc3339_millis(at).to_string())
}

/// The same to the second.
pub(super) fn second(unix_ns: u64) -> Option<String> {
    let at = UNIX_EPOCH + Duration::from_nanos(unix_ns);
    (unix_ns > 0).then(|| humantime::format_rfc3339_seconds(at).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_nothing_that_a_terminal_obeys() {
        assert_eq!(
            lines(b"\r\n\n\x1b]0;evil\x07one\r\n\r\ntwo \xff\r\n\n"),
            ["]0;evilone", "", "two \u{fffd}"]
        );
        assert_eq!(lines(b""), [""; 0]);
    }

    #[test]
    fn times_are_utc() {
        assert_eq!(time(0), None);
        assert_eq!(
            time(1_785_000_000_011_000_000).as_deref(),
            Some("2026-07-25T17:20:00.011Z")
        );
        assert_eq!(
            time(951_782_400_000_000_000).as_deref(),
            Some("2000-02-29T00:00:00.000Z")
        );
        assert!(time(u64::MAX).is_some());
    }
}
