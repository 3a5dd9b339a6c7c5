//! How is what others wrote shown on a terminal?

/// Characters that a terminal obeys, or that make a text look like another one: control characters, invisible ones, and
/// those that turn the direction of writing.
fn is_tricky(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// A text on one line, without characters that a terminal would obey.
#[must_use]
pub fn plain(text: &str) -> String {
    let shown = text.chars().filter_map(|c| match c {
        '\n' | '\t' => Some(' '),
        c if is_tricky(c) => None,
        c => Some(c),
    });
    shown.collect()
}

/// What stands where nothing is known.
pub const UNKNOWN: &str = "-";

/// Rows as columns, two spaces between; the first row is the head.
#[must_use]
pub fn table(rows: &[Vec<String>]) -> String {
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
#[must_use]
pub fn json(value: &impl serde::Serialize) -> String {
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
