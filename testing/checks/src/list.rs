//! Which checks does the project promise, and in which suite is each?

use crate::suites::Suite;

/// A line of `testing/checks.txt`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The check.
    pub name: String,
    /// The suite that runs it.
    pub suite: String,
}

/// Why a list cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// A line is not `name suite`.
    #[error("line {line}: expected `<name> <suite>`, found `{text}`")]
    Malformed {
        /// The number of the line, from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// A line names a suite that does not exist.
    #[error("line {line}: there is no suite `{suite}`")]
    UnknownSuite {
        /// The number of the line, from 1.
        line: usize,
        /// The suite.
        suite: String,
    },
    /// A check is listed twice.
    #[error("line {line}: `{name}` is listed a second time")]
    Twice {
        /// The number of the line, from 1.
        line: usize,
        /// The check.
        name: String,
    },
}

/// Reads a list: one `<name> <suite>` per line; `#` begins a comment.
///
/// # Errors
///
/// When a line is malformed, names an unknown suite, or repeats a name.
pub fn parse(text: &str, suites: &[Suite]) -> Result<Vec<Listed>, ListError> {
    let mut listed: Vec<Listed> = Vec::new();
    for (index, text) in text.lines().enumerate() {
        let line = index + 1;
        let content = text.split('#').next().unwrap_or_default();
        let words: Vec<&str> = content.split_whitespace().collect();
        let (name, suite) = match words.as_slice() {
            [] => continue,
            [name, suite] => ((*name).to_owned(), (*suite).to_owned()),
            _ => {
                return Err(ListError::Malformed {
                    line,
                    text: text.to_owned(),
                });
            }
        };
        if !suites.iter().any(|known| known.name == suite) {
            return Err(ListError::UnknownSuite { line, suite });
        }
        if listed.iter().any(|other| other.name == name) {
            return Err(ListError::Twice { line, name });
        }
        listed.push(Listed { name, suite });
    }
    Ok(listed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<&[(&str, &str)], &str>) {
        let seen = parse(text, &crate::suites::table())
            .map(|listed| listed.into_iter().map(|l| (l.name, l.suite)).collect::<Vec<_>>())
            .map_err(|error| error.to_string());
        let expected = expected
            .map(|list| {
                list.iter()
                    .map(|(n, s)| ((*n).to_owned(), (*s).to_owned()))
                    .collect::<Vec<_>>()
            })
            .map_err(str::to_owned);
        assert_eq!(seen, expected);
    }

    #[test]
    fn lists() {
        check(
            "# all\n\na_b  cargo # why\nc e2e\n",
            Ok(&[("a_b", "cargo"), ("c", "e2e")]),
        );
        check("a", Err("line 1: expected `<name> <suite>`, found `a`"));
        check("\na b c", Err("line 2: expected `<name> <suite>`, found `a b c`"));
        check("a nowhere", Err("line 1: there is no suite `nowhere`"));
        check("a cargo\na e2e", Err("line 2: `a` is listed a second time"));
    }
}
