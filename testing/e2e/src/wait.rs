//! How is something waited for?

use std::time::{Duration, Instant};

/// Pause after the first look.
const PAUSE_MIN: Duration = Duration::from_millis(30);

/// Pause between later looks: twenty waiting at once would otherwise keep Nomad busier than its work does.
const PAUSE_MAX: Duration = Duration::from_millis(400);

/// Looks again and again until there is an answer; panics at the deadline with what was seen last.
#[track_caller]
pub(crate) fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<T, String>) -> T {
    match try_until(limit, &mut look) {
        Ok(answer) => answer,
        Err(last) => panic!(
            "{what}: not within {:.1} s; seen last: {last}",
            limit.as_secs_f64()
        ),
    }
}

/// The same for those that live with what was seen last.
pub(crate) fn try_until<T>(
    limit: Duration,
    mut look: impl FnMut() -> Result<T, String>,
) -> Result<T, String> {
    let deadline = Instant::now() + limit;
    let mut pause = PAUSE_MIN;
    loop {
        match look() {
            Ok(answer) => return Ok(answer),
            Err(last) if Instant::now() >= deadline => return Err(last),
            Err(_) => std::thread::sleep(pause),
        }
        pause = (pause * 4 / 3).min(PAUSE_MAX);
    }
}

/// Seconds as a duration.
pub(crate) const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
