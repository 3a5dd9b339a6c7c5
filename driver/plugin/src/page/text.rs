//! How is what others wrote, and when, shown on a terminal?

use std::time::{Duration, UNIX_EPOCH};

/// Characters that a terminal obeys, or that make a text look like another one: control characters, invisible ones, and
/// those that turn the direction of writing.
fn is_tricky(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// A text on one line, without characters that a terminal would obey.
pub(super) fn plain(text: &str) -> String {
    let shown = text.chars().filter_map(|c| match c {
        '\n' | '\t' => Some(' '),
        c if is_tricky(c) => None,
        c => Some(c),
    });
    shown.collect()
}

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

/// What stands where nothing is known.
pub(super) const UNKNOWN: &str = "-";

/// Rows as columns, two spaces between; the first row is the head.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A value as indented JSON. Nothing is lost, but what a terminal would obey is escaped: JSON itself asks that only of some.
pub(super) fn json(value: &impl serde::Serialize) -> String {
    // Our own types have string keys and finite numbers only, so they always serialize.
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        // Line ends outside of strings are the only ones there are.
        if c != '\n' && is_tricky(c) {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                escaped.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            escaped.push(c);
        }
    }
    escaped.push('\n');
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_finds_nothing_to_obey() {
        assert_eq!(
            plain("a\x1b[2Jb\u{9b}31mc\u{7f}\r\nd\te\u{202e}f\u{feff}"),
            "a[2Jb31mc d ef"
        );
        assert_eq!(plain("Grüße, 世界"), "Grüße, 世界");
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

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let rows = [["A", "LONG", "C"], ["ää", "b", ""]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows), "A   LONG  C\nää  b\n");
        assert_eq!(table(&[]), "");
    }

    #[test]
    fn json_is_lossless_and_harmless() {
        let value = serde_json::json!({ "text": "a\u{9b}\u{7f}\x1b\n\u{202e}ü" });
        let text = json(&value);
        assert_eq!(text, "{\n  \"text\": \"a\\u009b\\u007f\\u001b\\n\\u202eü\"\n}\n");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }
}
