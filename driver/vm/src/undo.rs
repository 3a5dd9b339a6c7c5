//! What must be done, in which order, to take back everything that a task's record names?
//!
//! [`steps`] reads the record and answers with a list; whoever does it makes no choices. Each step does nothing where its
//! work is done already, so an undo that was interrupted is simply done again.

use std::path::PathBuf;

use crate::lease::Lease;
use crate::record::Record;

/// One step of an undo. Idempotent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UndoStep {
    /// End the shim that holds the task's lock, and with it QEMU.
    EndShim {
        /// Whether the guest had been started: then a shim whose VM has ended is given time to hand out its logs.
        had_guest: bool,
    },
    /// Kill what is in QEMU's control groups and wait until they are empty.
    KillCgroups {
        /// The task's leaves.
        leaves: Vec<PathBuf>,
    },
    /// Wait until no process has one of the task's user ids: what says that QEMU is dead where there are no control groups.
    WaitUids {
        /// What it holds.
        leases: Vec<Lease>,
    },
    /// Remove the control groups.
    RemoveCgroups {
        /// The task's leaves.
        leaves: Vec<PathBuf>,
    },
    /// Give the network interfaces back.
    DetachNetwork {
        /// Where the netd listens that made them.
        socket: PathBuf,
    },
    /// Remove the directory of the task's sockets.
    RemoveRunDirectory {
        /// Where.
        path: PathBuf,
    },
    /// Give the user ids back.
    ReleaseUids {
        /// What it holds.
        leases: Vec<Lease>,
    },
    /// Remove the record, and with it the task's directory: only when everything else is done.
    RemoveRecord,
}

impl UndoStep {
    /// Whether it is left for later where an earlier step failed.
    #[must_use]
    pub fn waits_for(&self, failed: &Self) -> bool {
        match self {
            Self::RemoveRecord => true,
            // An interface that is left belongs to a user, who must not be the next VM's.
            Self::ReleaseUids { .. } if matches!(failed, Self::DetachNetwork { .. }) => true,
            step => failed.ends_processes() && !step.ends_processes(),
        }
    }

    /// Whether it ends processes, and its success proves that they are dead. Where such a step failed, nothing is given
    /// back that a living VM still uses: not its sockets, and least of all its user ids.
    fn ends_processes(&self) -> bool {
        matches!(
            self,
            Self::EndShim { .. }
                | Self::KillCgroups { .. }
                | Self::WaitUids { .. }
                | Self::RemoveCgroups { .. }
        )
    }

    /// The step's word in records, events and messages.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::EndShim { .. } => "end-shim",
            Self::KillCgroups { .. } => "kill-cgroups",
            Self::WaitUids { .. } => "wait-uids",
            Self::RemoveCgroups { .. } => "remove-cgroups",
            Self::DetachNetwork { .. } => "detach-network",
            Self::RemoveRunDirectory { .. } => "remove-run-directory",
            Self::ReleaseUids { .. } => "release-uids",
            Self::RemoveRecord => "remove-record",
        }
    }
}

/// The undo of what a record names, newest first. `None` for a task whose record was never written whole: nothing was
/// begun for it.
///
/// `this_boot` says whether the host still runs the boot in which the record was written. If not, no process and no
/// control group of the task exists, and one that looks like it (the same user id, the same name) is somebody else's; of its
/// network interfaces nothing is left either.
#[must_use]
pub fn steps(record: Option<&Record>, this_boot: bool) -> Vec<UndoStep> {
    let mut steps = Vec::new();
    let Some(record) = record else {
        return vec![UndoStep::RemoveRecord];
    };
    let (leaves, leases) = (record.leaves().to_vec(), record.leases());
    if this_boot {
        steps.push(UndoStep::EndShim {
            had_guest: record.started_at_unix_ns().is_some(),
        });
        if !leaves.is_empty() {
            steps.push(UndoStep::KillCgroups {
                leaves: leaves.clone(),
            });
            steps.push(UndoStep::RemoveCgroups { leaves });
        } else if !leases.is_empty() {
            steps.push(UndoStep::WaitUids {
                leases: leases.clone(),
            });
        }
        if let Some(socket) = record.netd() {
            steps.push(UndoStep::DetachNetwork {
                socket: socket.to_owned(),
            });
        }
    }
    if let Some(path) = record.run_directory() {
        steps.push(UndoStep::RemoveRunDirectory {
            path: path.to_owned(),
        });
    }
    // Not every pair that was named: an earlier one turned out to be somebody else's, who keeps it.
    if !leases.is_empty() {
        steps.push(UndoStep::ReleaseUids { leases });
    }
    steps.push(UndoStep::RemoveRecord);
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(steps: &[UndoStep]) -> Vec<&'static str> {
        steps.iter().map(UndoStep::name).collect()
    }

    #[test]
    fn newest_first_and_the_record_last() {
        let text = include_str!("fixtures/record.v4");
        let record = Record::parse(text.as_bytes()).unwrap();
        assert_eq!(
            names(&steps(Some(&record), true)),
            [
                "end-shim",
                "kill-cgroups",
                "remove-cgroups",
                "detach-network",
                "remove-run-directory",
                "release-uids",
                "remove-record"
            ]
        );
        assert_eq!(
            names(&steps(Some(&record), false)),
            ["remove-run-directory", "release-uids", "remove-record"]
        );
    }

    #[test]
    fn what_may_still_be_used_is_not_given_back() {
        let record = Record::parse(include_bytes!("fixtures/record.v4")).unwrap();
        let steps = steps(Some(&record), true);
        let left = |failed: &str| {
            let failed = steps.iter().find(|step| step.name() == failed).unwrap();
            let left: Vec<UndoStep> = steps
                .iter()
                .filter(|step| step.waits_for(failed))
                .cloned()
                .collect();
            names(&left)
        };
        let all = [
            "detach-network",
            "remove-run-directory",
            "release-uids",
            "remove-record",
        ];
        for kills in ["end-shim", "kill-cgroups", "remove-cgroups"] {
            assert_eq!(left(kills), all);
        }
        assert_eq!(left("detach-network"), ["release-uids", "remove-record"]);
        assert_eq!(left("remove-run-directory"), ["remove-record"]);
        assert_eq!(left("release-uids"), ["remove-record"]);
    }

    #[test]
    fn only_what_was_named_is_taken_back() {
        let text = include_str!("fixtures/record.v4");
        let ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at + 1).collect();
        let of = |lines: usize| {
            names(&steps(
                Record::parse(&text.as_bytes()[..ends[lines - 1]]).ok().as_ref(),
                true,
            ))
        };
        assert_eq!(of(1), ["end-shim", "remove-record"]);
        assert_eq!(of(2), ["end-shim", "wait-uids", "release-uids", "remove-record"]);
        assert_eq!(of(3), of(2));
        assert_eq!(
            of(4),
            [
                "end-shim",
                "wait-uids",
                "remove-run-directory",
                "release-uids",
                "remove-record"
            ]
        );
        assert_eq!(
            of(5),
            [
                "end-shim",
                "wait-uids",
                "detach-network",
                "remove-run-directory",
                "release-uids",
                "remove-record"
            ]
        );
        assert_eq!(of(6), of(5));
        assert_eq!(names(&steps(None, true)), ["remove-record"]);
    }
}
