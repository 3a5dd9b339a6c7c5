//! How is an input made from others?

use std::ops::Range;

use serde_json::Value;

/// Numbers that follow from a seed alone (SplitMix64).
#[derive(Debug)]
pub struct Rng(u64);

impl Rng {
    /// The numbers of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number, below `end`; 0 where that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % end.max(1) as u64).unwrap_or_default()
    }
}

/// The input as a stream could bring it: the same pieces for the same input, about 4000 or fewer of up to 16 KiB.
#[must_use]
pub fn pieces(input: &[u8]) -> Vec<&[u8]> {
    let hash = |hash: usize, byte: &u8| hash.wrapping_mul(31).wrapping_add(usize::from(*byte));
    let mut rng = Rng::new(input.iter().take(512).fold(input.len(), hash) as u64);
    let most = [1, 2, 1 << rng.below(15), 16 * 1024][rng.below(4)];
    let (mut rest, mut pieces) = (input, Vec::new());
    while !rest.is_empty() {
        let length = 1 + (input.len() >> 12) + rng.below(most);
        let (piece, others) = rest.split_at(length.min(rest.len()));
        pieces.push(piece);
        rest = others;
    }
    pieces
}

/// Values at the limits of their types, and of other types.
const VALUES: &str = r#"[0, 1, -1, 8, 127, 128, 255, 256, 2147483647, 2147483648, -2147483648, 4294967295, 4294967296,
    9223372036854775807, -9223372036854775808, 18446744073709551615, 18446744073709551616, 0.5, -0.0, 1e308, null, true,
    false, "", [], {}, "\u0000\u001b[31m\u0085\u2028\ufffd", "a\nb\r\n", "..", "é😀"]"#;

/// What readers stumble over: bytes that aren't UTF-8, ends of lines, half an escape, nesting, a number too large.
#[rustfmt::skip]
const AWKWARD: [&[u8]; 12] = [
    b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\0", b"\n", b"\r\n", b"\"", b"\\", b"\\ud800", b"[[[[", b"1e999", b" ",
];

/// A changed copy of one of the first `among` examples.
pub(crate) fn mutate(rng: &mut Rng, among: usize, examples: &[Vec<u8>], limit: usize) -> Vec<u8> {
    let mut input = examples[rng.below(among)].clone();
    loop {
        let other = &examples[rng.below(examples.len())];
        let (range, theirs) = (range(rng, &input), range(rng, other));
        let at = range.start;
        match rng.below(16) {
            0 => {
                let bit = 1 << rng.below(8);
                input.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= bit);
            }
            1 => drop(input.splice(at..at, AWKWARD[rng.below(AWKWARD.len())].iter().copied())),
            2 => drop(input.drain(range)),
            3 => input.truncate(at),
            4 => drop(input.splice(range.clone(), input[range].repeat(1 << rng.below(6)))),
            5 => drop(input.splice(at..at, other[theirs].iter().copied())),
            6 => drop(input.splice(at.., other[theirs.start..].iter().copied())),
            7 if rng.below(8) == 0 => long_line(rng, &mut input, limit),
            _ => json(rng, &mut input, other),
        }
        input.truncate(2 * limit);
        if rng.below(3) == 0 {
            return input;
        }
    }
}

/// A line with its end, where there is any.
fn line(rng: &mut Rng, input: &[u8]) -> Range<usize> {
    let (before, after) = input.split_at(rng.below(input.len()));
    let start = before.iter().rposition(|byte| *byte == b'\n');
    let end = after.iter().position(|byte| *byte == b'\n');
    start.map_or(0, |at| at + 1)..end.map_or(input.len(), |end| before.len() + end + 1)
}

/// A line, or any other part.
fn range(rng: &mut Rng, input: &[u8]) -> Range<usize> {
    let (start, most) = (rng.below(input.len() + 1), 1 << rng.below(11));
    let part = start..(start + rng.below(most)).min(input.len());
    [line(rng, input), part][rng.below(2)].clone()
}

/// Makes a line as long as may be, or a bit shorter, or longer; with blanks it means what it meant.
fn long_line(rng: &mut Rng, input: &mut Vec<u8>, limit: usize) {
    let Range { start, mut end } = line(rng, input);
    end -= usize::from(input[start..end].ends_with(b"\n"));
    let most = [5, 4096][rng.below(2)];
    let missing = (limit + rng.below(most)).saturating_sub(end - start + 2);
    let fill = std::iter::repeat_n(b"  x"[rng.below(3)], missing);
    drop(input.splice(end..end, fill));
}

fn within(value: &Value) -> usize {
    let items = value.as_array().map_or(0, |items| items.iter().map(within).sum());
    let members = value
        .as_object()
        .map_or(0, |members| members.values().map(within).sum());
    1 + items + members
}

/// The value itself, or the `n`th within it.
fn nth<'a>(value: &'a mut Value, n: &mut usize) -> Option<&'a mut Value> {
    if *n == 0 {
        return Some(value);
    }
    *n -= 1;
    match value {
        Value::Array(items) => items.iter_mut().find_map(|item| nth(item, n)),
        Value::Object(members) => members.values_mut().find_map(|member| nth(member, n)),
        _ => None,
    }
}

fn any<'a>(rng: &mut Rng, value: &'a mut Value) -> &'a mut Value {
    let mut n = rng.below(within(value));
    nth(value, &mut n).expect("it has so many")
}

/// Changes a value in a line that is JSON, so that it still is.
fn json(rng: &mut Rng, input: &mut Vec<u8>, other: &[u8]) {
    let range = line(rng, input);
    let Ok(mut whole) = serde_json::from_slice(&input[range.clone()]) else {
        return;
    };
    let value = any(rng, &mut whole);
    match (rng.below(8), &mut *value) {
        (0, Value::Object(members)) => members.retain(|_, _| rng.below(4) > 0),
        (0, Value::String(text)) => *text = text.repeat(1 << rng.below(8)),
        (0..=2, Value::Number(number)) => {
            let near = number.as_i64().unwrap_or_default();
            *value = near.wrapping_add([-1, 1][rng.below(2)]).into();
        }
        (0..=4, _) => {
            // What stands elsewhere: a step's word, a reason, a whole member.
            let mut foreign = serde_json::from_slice(&other[line(rng, other)]).unwrap_or_default();
            *value = any(rng, &mut foreign).take();
        }
        (5, _) => (0..rng.below(200)).for_each(|_| *value = vec![value.take()].into()),
        _ => {
            let mut values: Vec<Value> = serde_json::from_str(VALUES).expect("it is JSON");
            *value = values.swap_remove(rng.below(values.len()));
        }
    }
    drop(input.splice(range, format!("{whole}\n").into_bytes()));
}
