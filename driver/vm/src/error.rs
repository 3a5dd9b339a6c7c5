//! How is an error with its causes said in one line?

use std::error::Error;

/// An error and its causes, separated by colons. Error texts never contain their causes, so nothing is said twice.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
