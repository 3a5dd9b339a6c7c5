//! Which tasks that nobody asks about are left alone, reported, or taken back?
//!
//! Nomad ignores the error of a DestroyTask and forgets tasks when its own state is lost, so somebody else must come back
//! to them. [`judge`] decides for one task from what was seen of it; how long nobody asked is counted by the caller, and
//! only while an agent is connected.

use std::time::Duration;

/// How long after its plugin's death an interrupted start is left to its successor: Nomad starts the task again within
/// seconds, and the shim holds the task's logs open for 30 s for that.
pub const INTERRUPTED_GRACE: Duration = Duration::from_secs(60);

/// What was seen of a task that has a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Taking it back was begun, and is not done.
    Undoing,
    /// The host was restarted since: only files are left of it.
    OtherBoot,
    /// Its start was interrupted before the guest ran.
    Interrupted,
    /// Its guest was started: it runs, or its end waits to be asked for.
    Started,
    /// Its record can't be read: nothing is known, so nothing is done.
    Unreadable,
}

/// What is to be done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing yet.
    Leave,
    /// Say that it is there and that nobody asks about it.
    Report,
    /// Take it back.
    TakeBack,
}

/// Decides about one task that nobody has asked about for `unasked`.
#[must_use]
pub fn judge(seen: Seen, unasked: Duration, orphan_grace: Duration) -> Verdict {
    let (report, take_back) = match seen {
        Seen::Undoing => (Duration::ZERO, Duration::ZERO),
        // The agent is told first that its task is gone, by a better sentence than "no record".
        Seen::OtherBoot | Seen::Interrupted => {
            let grace = INTERRUPTED_GRACE.min(orphan_grace);
            (grace, grace)
        }
        // A short while, so that an agent's restart alone is no report.
        Seen::Started => (INTERRUPTED_GRACE.min(orphan_grace / 4), orphan_grace),
        Seen::Unreadable => (Duration::ZERO, Duration::MAX),
    };
    if unasked >= take_back {
        Verdict::TakeBack
    } else if unasked >= report {
        Verdict::Report
    } else {
        Verdict::Leave
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_time() {
        const HOUR: Duration = Duration::from_secs(3600);
        let second = Duration::from_secs(1);
        let table = [
            (Seen::Undoing, Duration::ZERO, Verdict::TakeBack),
            (Seen::OtherBoot, second, Verdict::Leave),
            (Seen::OtherBoot, INTERRUPTED_GRACE, Verdict::TakeBack),
            (Seen::Interrupted, INTERRUPTED_GRACE - second, Verdict::Leave),
            (Seen::Interrupted, INTERRUPTED_GRACE, Verdict::TakeBack),
            (Seen::Started, INTERRUPTED_GRACE - second, Verdict::Leave),
            (Seen::Started, INTERRUPTED_GRACE, Verdict::Report),
            (Seen::Started, HOUR - second, Verdict::Report),
            (Seen::Started, HOUR, Verdict::TakeBack),
            (Seen::Unreadable, Duration::ZERO, Verdict::Report),
            (Seen::Unreadable, HOUR * 9999, Verdict::Report),
        ];
        for (seen, unasked, verdict) in table {
            assert_eq!(judge(seen, unasked, HOUR), verdict, "{seen:?} {unasked:?}");
        }
        let grace = Duration::from_secs(4);
        assert_eq!(judge(Seen::Started, second, grace), Verdict::Report);
        assert_eq!(judge(Seen::Started, grace, grace), Verdict::TakeBack);
        assert_eq!(judge(Seen::Interrupted, grace, grace), Verdict::TakeBack);
    }
}
