//! Do the readers of records, control frames, QMP and the shim's own frames keep their promises, whatever they are given?

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::Path;

use serde::de::DeserializeOwned;
use steppe_fuzz::{Check, Rng, fuzz, pieces};
use steppe_qemu::qmp::{Incoming, MESSAGE_MAX_BYTES, Session, cont};
use steppe_vm::control::{LINE_MAX_BYTES, Lines, Message, Request, State};
use steppe_vm::exit::{self, Cause, ExitRecord, Oom, WaitStatus, last_lines};
use steppe_vm::frame::{FACT_BYTES, Fact, Seen, WISH_MAX_BYTES, Wish};
use steppe_vm::record::{Record, RecordError, line};
use steppe_vm::undo::{self, UndoStep};

/// Searches, and sees that no kind of outcome was missed: a search that never gets past the first check finds nothing.
fn search(name: &str, limit: usize, kinds: &[&str], check: Check) {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("fuzz");
    let seen = fuzz(name, &target.join(name), limit, check);
    assert!(seen.keys().eq(kinds), "{seen:?}");
}

/// The first word of what `Debug` says.
fn word(value: &impl Debug) -> String {
    let text = format!("{value:?}");
    let mut words = text.split(|c: char| !c.is_alphanumeric());
    words.find(|word| !word.is_empty()).unwrap_or_default().to_owned()
}

fn words<T: Debug>(values: &[T]) -> BTreeSet<String> {
    values.iter().map(word).collect()
}

#[test]
fn fuzz_record() {
    // There is no longest line; this is longer than any that is written.
    search(
        "record",
        16 * 1024,
        &["Empty", "Header", "Step", "Text", "Version", "read"],
        record,
    );
}

fn record(input: &[u8]) -> String {
    let parse = Record::parse;
    let record = match parse(input) {
        Ok(record) => record,
        Err(error) => return word(&error),
    };
    let lines: String = record.entries.iter().map(line).collect();
    let again = Record::parse((line(&record.header) + &lines).as_bytes());
    assert_eq!(again.expect("what is printed is read"), record);
    let mut names = Vec::new();
    for this_boot in [true, false] {
        names.extend(undo::steps(Some(&record), this_boot).iter().map(UndoStep::name));
        assert_eq!(names.last(), Some(&"remove-record"), "{names:?}");
    }
    let removals = names.iter().filter(|name| **name == "remove-record");
    assert_eq!(removals.count(), 2, "{names:?}");
    let mut rng = Rng::new(input.len() as u64);
    for at in [0; 8].map(|_| rng.below(input.len() + 1)) {
        // Anywhere, and beside the end of a line.
        let end = input[at..]
            .iter()
            .position(|byte| *byte == b'\n')
            .unwrap_or_default();
        for at in [at, at + end, (at + end + 1).min(input.len())] {
            match parse(&input[..at]) {
                Ok(cut) => {
                    assert_eq!(cut.header, record.header, "cut at {at}");
                    assert!(record.entries.starts_with(&cut.entries), "cut at {at}: {cut:?}");
                }
                Err(error) => assert!(matches!(error, RecordError::Empty), "cut at {at}: {error:?}"),
            }
        }
    }
    format!("read {names:?} {}", record.entries.len().min(20))
}

/// Gives a reader a piece, and takes what it reads from it.
type Take<R, T> = fn(&mut R, &[u8], &mut Vec<T>) -> Result<(), String>;

/// What a stream's reader gives, and how that ends: the same for any pieces. What it keeps is bounded: no more than `max`
/// bytes without an end are taken in without an error.
fn hear<R: Default, T: PartialEq>(input: &[u8], max: usize, take: Take<R, T>) -> (Vec<T>, String) {
    let talk = |pieces: &[&[u8]]| {
        let (mut reader, mut heard, mut open) = (R::default(), Vec::new(), 0);
        for piece in pieces {
            if let Err(error) = take(&mut reader, piece, &mut heard) {
                return (heard, error);
            }
            let end = piece.iter().rposition(|byte| *byte == b'\n');
            open = end.map_or(open + piece.len(), |at| piece.len() - at - 1);
            assert!(open <= max, "{open} bytes without an end are kept");
        }
        (heard, "more".to_owned())
    };
    let heard = talk(&pieces(input));
    // The largest that our programs read at once.
    let large: Vec<&[u8]> = input.chunks(16 * 1024).collect();
    assert!(heard == talk(&large), "other pieces are heard differently");
    heard
}

#[test]
fn fuzz_control() {
    search("control", LINE_MAX_BYTES, &["Syntax", "TooLong", "more"], control);
}

fn take_lines<T: DeserializeOwned>(
    lines: &mut Lines,
    piece: &[u8],
    heard: &mut Vec<T>,
) -> Result<(), String> {
    lines.feed(piece);
    while let Some(message) = lines.take().map_err(|error| format!("{error:?}"))? {
        heard.push(message);
    }
    Ok(())
}

/// What may stand in an event: one line of bounded length.
fn fits_an_event(text: &str) {
    assert!(
        text.chars().count() < 400 && !text.contains(char::is_control),
        "{text:?}"
    );
}

fn control(input: &[u8]) -> String {
    let (requests, requests_end) = hear(input, LINE_MAX_BYTES, take_lines::<Request>);
    let (messages, end) = hear(input, LINE_MAX_BYTES, take_lines::<Message>);
    for request in &requests {
        assert_eq!(
            serde_json::from_str::<Request>(&line(request)).ok(),
            Some(*request)
        );
    }
    let mut causes = BTreeSet::new();
    for message in &messages {
        assert_eq!(
            serde_json::from_str::<Message>(&line(message)).ok().as_ref(),
            Some(message)
        );
        if let Message::Hello { state, .. } | Message::State { state } = message
            && let State::Exited { exit, stderr } = state
        {
            causes.insert(cause(exit));
            fits_an_event(&last_lines(stderr.as_bytes()));
        }
    }
    fits_an_event(&last_lines(input));
    let (requests, messages) = (words(&requests), words(&messages));
    format!(
        "{} {} {requests:?} {messages:?} {causes:?}",
        word(&end),
        word(&requests_end)
    )
}

fn cause(exit: &ExitRecord) -> &'static str {
    let outcome = exit.outcome();
    fits_an_event(&outcome.sentence);
    assert!(
        !outcome.sentence.is_empty() && outcome.name == exit.cause().name(),
        "{exit:?}"
    );
    assert!(
        Cause::EXAMPLES.iter().any(|cause| cause.name() == outcome.name),
        "{exit:?}"
    );
    // What a shell can show, and what wait(2) can tell.
    let numbers = (0..=255).contains(&outcome.exit_code) && (0..=127).contains(&outcome.signal);
    assert!(
        numbers && (!outcome.oom_killed || outcome.signal == 9),
        "{exit:?}: {outcome:?}"
    );
    outcome.name
}

#[test]
fn fuzz_qmp() {
    search(
        "qmp",
        MESSAGE_MAX_BYTES,
        &["Syntax", "TooLong", "Unknown", "more"],
        qmp,
    );
}

/// A session, and the numbers of the commands that were sent in it, one after each of the first pieces.
type Talk = (Session, BTreeSet<u64>);

fn take_qmp((session, ids): &mut Talk, piece: &[u8], heard: &mut Vec<Incoming>) -> Result<(), String> {
    session.feed(piece);
    while let Some(message) = session.take().map_err(|error| format!("{error:?}"))? {
        heard.push(message);
    }
    if ids.len() < 50 {
        let (id, bytes) = session.command(&cont {});
        let sent: serde_json::Value = serde_json::from_slice(&bytes).expect("a command is JSON");
        assert!(sent["id"] == id && id != 0 && ids.insert(id), "{sent}");
    }
    Ok(())
}

fn qmp(input: &[u8]) -> String {
    let (heard, end) = hear(input, MESSAGE_MAX_BYTES, take_qmp);
    format!("{} {:?} {}", word(&end), words(&heard), heard.len().min(20))
}

#[test]
fn fuzz_link() {
    search(
        "link",
        WISH_MAX_BYTES,
        &[
            "Ended", "Executed", "Kill", "Pin", "Pinned", "Recorded", "Seen", "nothing",
        ],
        packet,
    );
}

/// One packet between the shim's two processes. The monitor is root: what the supervisor says must not become anything
/// that the supervisor didn't say, nor anything larger.
fn packet(input: &[u8]) -> String {
    // Read into a buffer of one byte more than the largest wish: what doesn't fit must not become its own beginning.
    let cut = &input[..input.len().min(WISH_MAX_BYTES + 1)];
    let (wish, fact) = (Wish::from_packet(cut), Fact::from_packet(input));
    assert!(Wish::from_packet(input) == wish, "cut, it is another wish");
    let mut outcomes = Vec::new();
    if let Some(wish) = &wish {
        let again = wish.to_packet();
        assert!(input.len() <= WISH_MAX_BYTES);
        assert!(Wish::from_packet(&again).as_ref() == Some(wish), "{again:?}");
        assert_eq!(again.len(), input.len());
        // Two bytes, the reason and what was asked, have values without a meaning, which are read as one that has.
        let meant = |at: usize| !matches!(wish, Wish::Seen(_)) || !(2..=3).contains(&at);
        let changed = (0..input.len()).find(|at| meant(*at) && again[*at] != input[*at]);
        assert_eq!(changed, None, "{again:?}");
        outcomes.push(word(wish));
        if let Wish::Seen(seen) = wish {
            outcomes.push(ends(seen));
        }
    }
    if let Some(fact) = fact {
        let again = fact.to_packet();
        assert_eq!((input.len(), Fact::from_packet(&again)), (FACT_BYTES, Some(fact)));
        assert_eq!(again[0], input[0], "{fact:?}");
        outcomes.push(word(&fact));
        if let Fact::Ended {
            status,
            oom,
            at_unix_ns,
        } = fact
        {
            outcomes.push(cause(&Seen::default().record(status, oom, at_unix_ns)).to_owned());
        }
    }
    if outcomes.is_empty() {
        outcomes.push("nothing".to_owned());
    }
    outcomes.join(" ")
}

/// What the monitor writes down of what was seen, and every cause that may come of it.
fn ends(seen: &Seen) -> String {
    let mut causes = BTreeSet::new();
    for status in [
        WaitStatus::Exited(0),
        WaitStatus::Exited(1),
        WaitStatus::Signaled(9),
        WaitStatus::Unknown,
    ] {
        for oom in [Oom::None, Oom::Limit, Oom::Host] {
            let record = seen.record(status, oom, u64::MAX);
            causes.insert(cause(&record));
            let file = exit::file(record.clone(), &seen.console, &seen.stderr);
            let read = exit::parse_file(&file);
            assert!(read == Some((record, &seen.console, &seen.stderr)), "{seen:?}");
        }
    }
    fits_an_event(&last_lines(&seen.console));
    fits_an_event(&last_lines(&seen.stderr));
    let lengths = [seen.console.len(), seen.stderr.len()].map(usize::checked_ilog2);
    format!("{causes:?} {lengths:?}")
}
