//! What does a table of a text say, where, and what is wrong with it?

use std::ops::RangeInclusive;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::quoted;

/// Something wrong in a configuration: what, where, the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {sentence}")]
pub struct Problem {
    /// File and line, or the key, such as `/etc/netd/netd.toml:7`.
    pub place: String,
    /// For a person.
    pub sentence: String,
}

/// Where something is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Which of the texts, from 0.
    pub file: usize,
    /// Which line of it, from 1.
    pub line: usize,
}

/// What is wrong, as it is found.
#[derive(Debug, Default)]
pub struct Problems(Vec<(Place, String)>);

impl Problems {
    /// One more.
    pub fn add(&mut self, place: Place, sentence: impl Into<String>) {
        self.0.push((place, sentence.into()));
    }

    /// Whether there are none so far.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// In the order of the texts, which have these names.
    #[must_use]
    pub fn finish(mut self, files: &[(String, String)]) -> Vec<Problem> {
        self.0.sort();
        let name = |place: Place| files.get(place.file).map_or("", |(name, _)| name.as_str());
        self.0
            .into_iter()
            .map(|(place, sentence)| Problem {
                place: format!("{}:{}", name(place), place.line),
                sentence,
            })
            .collect()
    }
}

/// The parser's message on one line.
fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Reads texts, each with its name, such as its path: the whole of each goes to `read`, but for those that are no TOML.
pub fn each(
    files: &[(String, String)],
    problems: &mut Problems,
    mut read: impl FnMut(&Table<'_, '_>, &mut Problems),
) {
    for (file, (_, text)) in files.iter().enumerate() {
        let text = Text { file, text };
        let (document, errors) = DeTable::parse_recoverable(text.text);
        for error in &errors {
            let start = error.span().map_or(0, |span| span.start);
            problems.add(text.place(start), one_line(error.message()));
        }
        // What is left of a text with errors would only make for more of them.
        if errors.is_empty() {
            let at = Place { file, line: 1 };
            read(&Table::new(text, String::new(), document.get_ref(), at), problems);
        }
    }
}

/// One of the texts.
#[derive(Debug, Clone, Copy)]
struct Text<'t> {
    file: usize,
    text: &'t str,
}

impl Text<'_> {
    fn place(self, offset: usize) -> Place {
        let before = self.text.as_bytes().iter().take(offset);
        Place {
            file: self.file,
            line: 1 + before.filter(|byte| **byte == b'\n').count(),
        }
    }
}

/// A table of a text, with the path of keys that leads to it.
#[derive(Debug)]
pub struct Table<'t, 'i> {
    text: Text<'t>,
    /// The keys that lead to it, joined by dots; empty at the top.
    pub path: String,
    table: &'t DeTable<'i>,
    /// Where it begins.
    pub at: Place,
}

type Value<'t, 'i> = &'t Spanned<DeValue<'i>>;

impl<'t, 'i> Table<'t, 'i> {
    fn new(text: Text<'t>, path: String, table: &'t DeTable<'i>, at: Place) -> Self {
        Self {
            text,
            path,
            table,
            at,
        }
    }

    /// A key as the operator would say it, from the top.
    #[must_use]
    pub fn key(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    fn get(&self, key: &str) -> Option<(Value<'t, 'i>, Place)> {
        let (_, value) = self.table.iter().find(|(known, _)| known.get_ref() == key)?;
        Some((value, self.text.place(value.span().start)))
    }

    /// The keys that are said, each with its place.
    pub fn keys(&self) -> impl Iterator<Item = (&'t str, Place)> + use<'t, 'i> {
        let text = self.text;
        let keys = self.table.iter();
        keys.map(move |(key, _)| (key.get_ref().as_ref(), text.place(key.span().start)))
    }

    /// Where the key is said.
    #[must_use]
    pub fn place(&self, key: &str) -> Option<Place> {
        self.get(key).map(|(_, place)| place)
    }

    /// Every key that is not one of these is a problem.
    pub fn refuse_unknown(&self, which: &str, known: &[&str], problems: &mut Problems) {
        for (key, place) in self.keys().filter(|(key, _)| !known.contains(key)) {
            let sentence = format!(
                "{} is no key here; {which} are {}",
                quoted(&self.key(key)),
                known.join(", ")
            );
            problems.add(place, sentence);
        }
    }

    /// A value that isn't what it should be.
    fn wrong(&self, key: &str, value: &DeValue<'_>, place: Place, wanted: &str, problems: &mut Problems) {
        let sentence = format!("{} is of type {}; give {wanted}", self.key(key), value.type_str());
        problems.add(place, sentence);
    }

    /// A table beneath this one; of another type it is a problem.
    pub fn table(&self, key: &str, problems: &mut Problems) -> Option<Table<'t, 'i>> {
        let (value, place) = self.get(key)?;
        if let DeValue::Table(table) = value.get_ref() {
            Some(Table::new(self.text, self.key(key), table, place))
        } else {
            self.wrong(key, value.get_ref(), place, "a table", problems);
            None
        }
    }

    /// A text, and where.
    pub fn text(&self, key: &str, problems: &mut Problems) -> Option<(&'t str, Place)> {
        let (value, place) = self.get(key)?;
        if let DeValue::String(text) = value.get_ref() {
            Some((text.as_ref(), place))
        } else {
            self.wrong(key, value.get_ref(), place, "a text in quotes", problems);
            None
        }
    }

    /// Whether something is so.
    pub fn flag(&self, key: &str, problems: &mut Problems) -> Option<bool> {
        let (value, place) = self.get(key)?;
        if let DeValue::Boolean(flag) = value.get_ref() {
            Some(*flag)
        } else {
            self.wrong(key, value.get_ref(), place, "true or false", problems);
            None
        }
    }

    /// A number within bounds, and where.
    pub fn number(
        &self,
        key: &str,
        within: RangeInclusive<u32>,
        problems: &mut Problems,
    ) -> Option<(u32, Place)> {
        let (value, place) = self.get(key)?;
        let DeValue::Integer(said) = value.get_ref() else {
            self.wrong(key, value.get_ref(), place, "a number", problems);
            return None;
        };
        let number = u32::from_str_radix(said.as_str(), said.radix()).ok();
        let number = number.filter(|number| within.contains(number));
        if number.is_none() {
            let (least, most) = (within.start(), within.end());
            problems.add(
                place,
                format!("{} is {said}; give {least} to {most}", self.key(key)),
            );
        }
        number.map(|number| (number, place))
    }

    /// A list of texts; also of numbers, where these are as good.
    pub fn texts(&self, key: &str, numbers: bool, problems: &mut Problems) -> Option<Vec<(String, Place)>> {
        let wanted = "a list of texts in quotes";
        let (value, place) = self.get(key)?;
        let DeValue::Array(list) = value.get_ref() else {
            self.wrong(key, value.get_ref(), place, wanted, problems);
            return None;
        };
        let mut texts = Vec::new();
        for item in list.iter() {
            let place = self.text.place(item.span().start);
            match item.get_ref() {
                DeValue::String(text) => texts.push((text.clone().into_owned(), place)),
                DeValue::Integer(number) if numbers => texts.push((number.to_string(), place)),
                other => self.wrong(key, other, place, wanted, problems),
            }
        }
        Some(texts)
    }
}
