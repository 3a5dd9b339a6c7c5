//! How is something waited for?

use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(10);

/// Longest time that something which takes a moment may take on a very busy host.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Looks again and again until there is an answer; panics at the deadline with what was seen last.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(answer) => return answer,
            Err(last) if Instant::now() >= deadline => {
                panic!("{what}: not within {} s; seen last: {last}", PATIENCE.as_secs())
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}
