//! What of a text did a job mean for its guest alone?
//!
//! A kernel prints its command line on the console, programs print what they were given, and events quote the console.
//! So the words of a job's command line are looked for in every text, whole and in pieces: a line that was cut or wrapped
//! still has parts of them.

use std::collections::HashSet;

/// What stands in a text where something was left out.
const MARK: &[u8] = b"(left out)";

/// Length of the pieces in bytes by which a longer secret is known.
const PIECE_BYTES: usize = 8;

/// Shortest word or value that is looked for alone: shorter ones (`quiet`, `3`) stand everywhere and hide nothing.
const ALONE_MIN_BYTES: usize = 6;

/// What is looked for.
#[derive(Debug, Default)]
pub(super) struct LeaveOut {
    /// Each `name=value`, and values shorter than a piece.
    whole: HashSet<Vec<u8>>,
    /// Every piece of longer values.
    pieces: HashSet<[u8; PIECE_BYTES]>,
}

impl LeaveOut {
    /// The words of a job's part of a kernel command line.
    pub(super) fn words_of(cmdline: &str) -> Self {
        let mut leave_out = Self::default();
        let quoted = words(cmdline);
        for word in quoted
            .iter()
            .map(String::as_str)
            .chain(cmdline.split_whitespace())
        {
            leave_out.add_word(word);
            leave_out.add_word(&word.replace('"', ""));
        }
        leave_out
    }

    fn add_word(&mut self, word: &str) {
        match word.split_once('=') {
            Some((_, value)) if !value.is_empty() => {
                self.add(word, Self::add_whole);
                self.add(value, Self::add_value);
            }
            _ => self.add(word, Self::add_value),
        }
    }

    /// Adds a text as it is, and as JSON has it.
    fn add(&mut self, text: &str, add: fn(&mut Self, &[u8])) {
        add(self, text.as_bytes());
        let json = serde_json::Value::from(text).to_string();
        let inside = json.get(1..json.len() - 1).unwrap_or_default();
        add(self, inside.as_bytes());
    }

    fn add_whole(&mut self, text: &[u8]) {
        self.whole.insert(text.to_vec());
    }

    fn add_value(&mut self, value: &[u8]) {
        // A disk's name in the guest is in every line about it.
        if value.len() < ALONE_MIN_BYTES || value.starts_with(b"/dev/") {
            return;
        }
        if value.len() < PIECE_BYTES {
            self.whole.insert(value.to_vec());
        }
        self.pieces.extend(value.array_windows::<PIECE_BYTES>().copied());
    }

    /// The text without them.
    pub(super) fn leave_out(&self, text: &[u8]) -> Vec<u8> {
        let mut hidden = vec![false; text.len()];
        let mut hide = |at: usize, length: usize| {
            if let Some(range) = hidden.get_mut(at..at + length) {
                range.fill(true);
            }
        };
        for (at, piece) in text.array_windows::<PIECE_BYTES>().enumerate() {
            if self.pieces.contains(piece) {
                hide(at, PIECE_BYTES);
            }
        }
        for whole in &self.whole {
            for (at, window) in text.windows(whole.len().max(1)).enumerate() {
                if window == whole {
                    hide(at, whole.len());
                }
            }
        }
        let mut kept = Vec::with_capacity(text.len());
        let mut before = false;
        for (byte, hidden) in text.iter().zip(hidden) {
            if !hidden {
                kept.push(*byte);
            } else if !before {
                kept.extend_from_slice(MARK);
            }
            before = hidden;
        }
        kept
    }
}

/// The words of a kernel command line, in which quotes hold spaces together.
fn words(cmdline: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in cmdline.chars() {
        quoted ^= c == '"';
        match words.last_mut() {
            Some(word) if quoted || !c.is_whitespace() => word.push(c),
            _ => words.push(String::new()),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn without(cmdline: &str, text: &str) -> String {
        String::from_utf8(LeaveOut::words_of(cmdline).leave_out(text.as_bytes())).unwrap()
    }

    const CMDLINE: &str =
        "quiet root=/dev/vda n=3 token=Abcdefghijklmnop pin=1234 key=\"top secret words\" debugshell";

    #[test]
    fn words_and_values_are_left_out_and_the_rest_stays() {
        let table = [
            (
                "[    0.0] Command line: console=ttyS0 quiet root=/dev/vda n=3 token=Abcdefghijklmnop pin=1234 \
                 key=\"top secret words\" debugshell",
                "[    0.0] Command line: console=ttyS0 quiet (left out) (left out) (left out) (left out) (left out) (left out)",
            ),
            (
                "EXT4-fs (/dev/vda): mounted, 3 times, quiet",
                "EXT4-fs (/dev/vda): mounted, 3 times, quiet",
            ),
            ("    key=top secret words", "    (left out)"),
            ("got <Abcdefghijklmnop>", "got <(left out)>"),
            // Cut at either end, or wrapped.
            ("…defghijklmnop\nnext", "…(left out)\nnext"),
            ("token=Abcdefghij…", "token=(left out)…"),
            ("Abcdefgh\nijklmnop", "(left out)\n(left out)"),
            ("pin 1234", "pin 1234"),
            ("", ""),
        ];
        for (text, wanted) in table {
            assert_eq!(without(CMDLINE, text), wanted);
        }
        assert_eq!(without("", "token=x"), "token=x");
    }

    #[test]
    fn what_json_escapes_is_found_in_json() {
        let cmdline = "p=\\se\"c\\ret";
        let line = serde_json::json!({ "message": format!("x {cmdline} y") }).to_string();
        assert_eq!(without(cmdline, &line), "{\"message\":\"x (left out) y\"}");
    }

    #[test]
    fn bytes_that_are_no_text_are_no_obstacle() {
        let leave_out = LeaveOut::words_of("token=ÄÖÜsecret1");
        let text = [b"\xff\xfe".as_slice(), "token=ÄÖÜsecret1".as_bytes(), b"\xff"].concat();
        assert_eq!(leave_out.leave_out(&text), b"\xff\xfe(left out)\xff");
    }
}
