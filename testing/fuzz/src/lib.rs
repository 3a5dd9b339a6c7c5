//! Which input makes a reader break its promises?
//!
//! [`fuzz`] tries the examples of a committed folder, then changes of them, until its time is over. An input whose
//! outcome is new becomes an example too, so the search goes on from where it got. No coverage guides it: that needs
//! another build of everything (and mostly another toolchain), apart from `cargo test`. What the libraries for stable
//! Rust change is bytes or typed values; our readers take lines of JSON, and nothing gets past their first check but
//! JSON that is nearly right.

mod mutate;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

pub use mutate::{Rng, pieces};

/// What is tried: panics if the input breaks a promise, and answers with what became of it. The first word of that
/// outcome is its kind.
pub type Check = fn(&[u8]) -> String;

/// CPU time that one input may take.
const INPUT_TIME_MAX: Duration = Duration::from_secs(1);

/// Time after which an input that is still tried will never end. Long, because a busy machine counts here.
const INPUT_HANGS: Duration = Duration::from_secs(60);

/// Inputs that are tried at least, however slow the machine: no kind of outcome is missed by chance.
const INPUTS_MIN: usize = 3000;

/// How many inputs are kept for their new outcome, and how long each may be.
const KEPT_MAX: (usize, usize) = (1000, 16 * 1024);

/// The input that is tried, and its number.
type Current = Mutex<(usize, Vec<u8>)>;

/// Searches from the examples in `corpus/<name>`, for `STEPPE_FUZZ_SECONDS` (default 10). Every input follows from
/// `STEPPE_SEED`; without it one is drawn. Some inputs have a line about as long as `limit`, at which the reader's
/// behaviour changes. Answers how many inputs came to each kind of outcome.
///
/// # Panics
/// If a promise was broken; the input is written to the folder `failures`.
#[must_use]
pub fn fuzz(name: &str, failures: &Path, limit: usize, check: Check) -> BTreeMap<String, usize> {
    let number = |name| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().expect("the variable is a number"))
    };
    let drawn = || RandomState::new().build_hasher().finish() >> 32;
    let seed = number("STEPPE_SEED").unwrap_or_else(drawn);
    let time = Duration::from_secs(number("STEPPE_FUZZ_SECONDS").unwrap_or(10));
    let corpus: PathBuf = [env!("CARGO_MANIFEST_DIR"), "corpus", name].iter().collect();
    let current = Arc::new(Current::default());
    let (examples, shared) = (corpus.clone(), Arc::clone(&current));
    // In a thread of its own, so that an input that never ends is seen, too.
    let worker = std::thread::spawn(move || search(&examples, seed, time, limit, check, &shared));
    let locked = || current.lock().expect("nothing panics that holds it");
    let mut last = (0, Instant::now());
    while !worker.is_finished() && last.1.elapsed() < INPUT_HANGS {
        std::thread::sleep(Duration::from_millis(20));
        let tried = locked().0;
        if tried != last.0 {
            last = (tried, Instant::now());
        }
    }
    let broken = match worker.is_finished().then(|| worker.join()) {
        Some(Ok(Ok(kinds))) => {
            let tried: usize = kinds.values().sum();
            #[expect(
                clippy::print_stdout,
                reason = "kept by libtest, whose own lines it would tear apart"
            )]
            {
                println!("fuzz_{name}: {tried} inputs, {kinds:?}, STEPPE_SEED={seed}");
            }
            return kinds;
        }
        Some(Ok(Err(took))) => format!("it takes {took:?}"),
        Some(Err(_)) => "the panic shown above".to_owned(),
        None => "it does not end".to_owned(),
    };
    let (tried, input) = &*locked();
    let path = failures.join(format!("{seed}-{tried}"));
    let written = std::fs::create_dir_all(failures).and_then(|()| std::fs::write(&path, input));
    let (corpus, path) = (corpus.display(), path.display());
    panic!(
        "STEPPE_SEED={seed}, input {tried}, {path} (a copy in {corpus} is tried first; {written:?}): {broken}"
    );
}

fn search(
    corpus: &Path,
    seed: u64,
    time: Duration,
    limit: usize,
    check: Check,
    current: &Current,
) -> Result<BTreeMap<String, usize>, Duration> {
    let files = std::fs::read_dir(corpus).expect("the folder of examples is readable");
    let paths: BTreeSet<PathBuf> = files.flatten().map(|file| file.path()).collect();
    let read = |path| std::fs::read(path).expect("an example is readable");
    let mut examples: Vec<Vec<u8>> = paths.into_iter().map(read).collect();
    let (committed, begin) = (examples.len(), Instant::now());
    let (mut rng, mut seen, mut kinds) = (Rng::new(seed), BTreeSet::new(), BTreeMap::new());
    let mut tried = 0;
    while tried < INPUTS_MIN || begin.elapsed() < time {
        let input = if tried < committed {
            examples[tried].clone()
        } else {
            // Half of the changes are made to committed examples: the others are many.
            let among = [committed, examples.len()][rng.below(2)];
            mutate::mutate(&mut rng, among, &examples, limit)
        };
        tried += 1;
        *current.lock().expect("nothing panics that holds it") = (tried, input.clone());
        // Of this thread alone: what else the machine does must not count.
        let start = clock_gettime(ClockId::ThreadCPUTime);
        let outcome = check(&input);
        let took = Duration::try_from(clock_gettime(ClockId::ThreadCPUTime) - start).unwrap_or_default();
        if took > INPUT_TIME_MAX {
            return Err(took);
        }
        let kind = outcome.split(' ').next().unwrap_or_default().to_owned();
        *kinds.entry(kind).or_insert(0) += 1;
        if seen.insert(outcome) && examples.len() < KEPT_MAX.0 && input.len() <= KEPT_MAX.1 {
            examples.push(input);
        }
    }
    Ok(kinds)
}
