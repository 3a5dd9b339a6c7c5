//! Which VLANs are there?

use std::fmt;
use std::str::FromStr;

/// A VLAN's number, 1 to 4094: 0 marks a frame that has only a priority, 4095 is reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vid(u16);

impl Vid {
    /// Largest number of a VLAN.
    pub const MAX: u16 = 4094;

    /// The VLAN of that number, if there can be one.
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        let number = u16::try_from(number).ok()?;
        (1..=Self::MAX).contains(&number).then_some(Self(number))
    }

    /// Its number.
    #[must_use]
    pub fn get(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Vid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The text is no number or range of VLANs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no VLAN and no range of VLANs: they are numbered 1 to 4094, and a range is \"100-120\"")]
pub struct BadVids(String);

/// A set of VLANs. Its text is in order and as short as can be: `100-120,200`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vids(
    /// First and last of each range, in order; between two is at least one that is not in the set.
    Vec<(Vid, Vid)>,
);

impl Vids {
    /// What several texts name together, each a number, a range, or several of them with commas.
    ///
    /// # Errors
    ///
    /// The first that is none of these.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self, BadVids> {
        let mut ranges = Vec::new();
        for part in texts.iter().flat_map(|text| text.as_ref().split(',')) {
            let bad = || BadVids(part.chars().take(40).collect());
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let (from, to) = (number(from).ok_or_else(bad)?, number(to).ok_or_else(bad)?);
            if from > to {
                return Err(bad());
            }
            ranges.push((from, to));
        }
        Ok(Self::of(ranges))
    }

    /// What ranges have together.
    fn of(mut ranges: Vec<(Vid, Vid)>) -> Self {
        ranges.sort_unstable();
        let mut merged: Vec<(Vid, Vid)> = Vec::with_capacity(ranges.len());
        for (from, to) in ranges {
            match merged.last_mut() {
                Some((_, last)) if from.0 <= last.0.saturating_add(1) => *last = to.max(*last),
                _ => merged.push((from, to)),
            }
        }
        Self(merged)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it is among them.
    #[must_use]
    pub fn contains(&self, vid: Vid) -> bool {
        let behind = self.0.partition_point(|(from, _)| *from <= vid);
        let range = behind.checked_sub(1).and_then(|at| self.0.get(at));
        range.is_some_and(|(_, to)| vid <= *to)
    }

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = Vid> + '_ {
        self.0.iter().flat_map(|(from, to)| (from.0..=to.0).map(Vid))
    }

    /// As ranges from the first to the last, in order.
    #[must_use]
    pub fn ranges(&self) -> &[(Vid, Vid)] {
        &self.0
    }
}

impl FromIterator<Vid> for Vids {
    fn from_iter<I: IntoIterator<Item = Vid>>(vids: I) -> Self {
        Self::of(vids.into_iter().map(|vid| (vid, vid)).collect())
    }
}

impl FromStr for Vids {
    type Err = BadVids;

    fn from_str(text: &str) -> Result<Self, BadVids> {
        Self::parse(&[text])
    }
}

impl fmt::Display for Vids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (first, last)) in self.0.iter().enumerate() {
            if place > 0 {
                f.write_str(",")?;
            }
            if first == last {
                write!(f, "{first}")?;
            } else {
                write!(f, "{first}-{last}")?;
            }
        }
        Ok(())
    }
}

/// Digits only: Rust's numbers would take a sign.
fn number(text: &str) -> Option<Vid> {
    let text = text.trim();
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().and_then(Vid::new)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sets_parse_and_print() {
        for (texts, printed) in [
            (&["100-120", "200"][..], "100-120,200"),
            (&["200,100-102"], "100-102,200"),
            (&["3", "1", "2", "2"], "1-3"),
            (&["1-4094"], "1-4094"),
            (&[" 7 - 8 "], "7-8"),
            (&[], ""),
        ] {
            let vids = Vids::parse(texts).expect("good");
            assert_eq!(vids.to_string(), printed, "{texts:?}");
        }
        for text in [
            "", "0", "4095", "65636", "-1", "+1", "1-", "-", "2-1", "0-5", "1-4095", "a", "1;2", "1--2",
            "1,,2",
        ] {
            assert!(text.parse::<Vids>().is_err(), "{text:?}");
        }
        let long = "x".repeat(1000).parse::<Vids>().expect_err("bad");
        assert!(long.to_string().len() < 200);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

        #[test]
        fn printed_sets_parse_to_themselves(numbers in prop::collection::btree_set(1_u32..=4094, 1..60)) {
            let vids: Vids = numbers.iter().copied().filter_map(Vid::new).collect();
            prop_assert_eq!(&vids.to_string().parse::<Vids>().expect("its own text"), &vids);
            prop_assert!((1..=4094).all(|number| vids.contains(Vid(number)) == numbers.contains(&number.into())));
            prop_assert_eq!(vids.iter().map(|vid| vid.0.into()).collect::<std::collections::BTreeSet<u32>>(), numbers);
        }

        #[test]
        fn garbage_never_panics(text in "[-0-9, a]{0,20}") {
            let _ = text.parse::<Vids>();
        }
    }
}
