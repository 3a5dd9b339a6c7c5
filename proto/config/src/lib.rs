//! What did the operator say?
//!
//! Pure: texts come in with their names, values and problems go out. All that is wrong is said at once, each with its file and line,
//! so that one look mends it. Which keys there are is for each program to say; what every daemon has is in [`Settings`].

mod settings;
mod table;

pub use settings::Settings;
pub use table::{Place, Problem, Problems, Table, each};

/// A text of somebody else's, cut and with its control characters escaped, for a sentence.
#[must_use]
pub fn quoted(text: &str) -> String {
    const SHOWN: usize = 60;
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}
