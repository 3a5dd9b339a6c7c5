//! What does a table of a text say, and where?

use std::ops::RangeInclusive;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Problem;
use crate::attachment::quoted;

/// Where something is said: which of the texts, and where in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) file: usize,
    pub(super) line: usize,
}

/// What is wrong, as it is found.
#[derive(Debug, Default)]
pub(super) struct Problems(Vec<(Place, String)>);

impl Problems {
    pub(super) fn add(&mut self, place: Place, sentence: impl Into<String>) {
        self.0.push((place, sentence.into()));
    }

    /// How many there are so far.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// In the order of the texts.
    pub(super) fn finish(mut self, files: &[(String, String)]) -> Vec<Problem> {
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
pub(super) fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// One of the texts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Text<'t> {
    pub(super) file: usize,
    pub(super) text: &'t str,
}

impl Text<'_> {
    pub(super) fn place(self, offset: usize) -> Place {
        let before = self.text.as_bytes().iter().take(offset);
        Place {
            file: self.file,
            line: 1 + before.filter(|byte| **byte == b'\n').count(),
        }
    }
}

/// A table of a text, with the path of keys that leads to it.
#[derive(Debug)]
pub(super) struct Table<'t, 'i> {
    text: Text<'t>,
    pub(super) path: String,
    pub(super) table: &'t DeTable<'i>,
    pub(super) at: Place,
}

type Value<'t, 'i> = &'t Spanned<DeValue<'i>>;

impl<'t, 'i> Table<'t, 'i> {
    pub(super) fn new(text: Text<'t>, path: String, table: &'t DeTable<'i>, at: Place) -> Self {
        Self {
            text,
            path,
            table,
            at,
        }
    }

    /// A key as the operator would say it, from the top.
    pub(super) fn key(&self, key: &str) -> String {
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

    /// Where the key is said.
    pub(super) fn place(&self, key: &str) -> Option<Place> {
        self.get(key).map(|(_, place)| place)
    }

    pub(super) fn refuse_unknown(&self, which: &str, known: &[&str], problems: &mut Problems) {
        for (key, _) in self.table {
            if !known.contains(&key.get_ref().as_ref()) {
                problems.add(
                    self.text.place(key.span().start),
                    format!(
                        "{} is no key here; {which} are {}",
                        quoted(&self.key(key.get_ref())),
                        known.join(", ")
                    ),
                );
            }
        }
    }

    /// A value that isn't what it should be.
    fn wrong(&self, key: &str, value: &DeValue<'_>, place: Place, wanted: &str, problems: &mut Problems) {
        let sentence = format!("{} is of type {}; give {wanted}", self.key(key), value.type_str());
        problems.add(place, sentence);
    }

    pub(super) fn table(&self, key: &str, problems: &mut Problems) -> Option<Table<'t, 'i>> {
        let (value, place) = self.get(key)?;
        if let DeValue::Table(table) = value.get_ref() {
            Some(Table::new(self.text, self.key(key), table, place))
        } else {
            self.wrong(key, value.get_ref(), place, "a table", problems);
            None
        }
    }

    pub(super) fn text(&self, key: &str, problems: &mut Problems) -> Option<(&'t str, Place)> {
        let (value, place) = self.get(key)?;
        if let DeValue::String(text) = value.get_ref() {
            Some((text.as_ref(), place))
        } else {
            self.wrong(key, value.get_ref(), place, "a text in quotes", problems);
            None
        }
    }

    pub(super) fn flag(&self, key: &str, problems: &mut Problems) -> Option<bool> {
        let (value, place) = self.get(key)?;
        if let DeValue::Boolean(flag) = value.get_ref() {
            Some(*flag)
        } else {
            self.wrong(key, value.get_ref(), place, "true or false", problems);
            None
        }
    }

    pub(super) fn number(
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
    pub(super) fn texts(
        &self,
        key: &str,
        numbers: bool,
        problems: &mut Problems,
    ) -> Option<Vec<(String, Place)>> {
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
