//! What does nobody want any more?

use std::collections::BTreeSet;

use crate::Attachment;

/// What becomes of the attachments of one driver instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Synced {
    /// Number of interfaces of living owners.
    pub kept: u32,
    /// Ids of owners that were left out: what to give as `condemned` the next time.
    pub condemned: BTreeSet<String>,
    /// Ids of owners that are to be removed now.
    pub removed: BTreeSet<String>,
    /// Ids of living owners that have no interface.
    pub unknown: BTreeSet<String>,
}

/// Removes what two calls in a row leave out, and no process holds open. `condemned` is what the last call of this
/// instance answered; nothing after a restart. `carrier` says whether a process holds an attachment's tap open.
#[must_use]
pub fn sync<'a>(
    attachments: impl Iterator<Item = &'a Attachment>,
    carrier: impl Fn(&Attachment) -> bool,
    instance: &str,
    live: &BTreeSet<String>,
    condemned: &BTreeSet<String>,
) -> Synced {
    let mut synced = Synced::default();
    let mut known = BTreeSet::new();
    let mut held = BTreeSet::new();
    for attachment in attachments.filter(|attachment| attachment.owner.instance() == instance) {
        let id = attachment.owner.id();
        if live.contains(id) {
            synced.kept = synced.kept.saturating_add(1);
            known.insert(id);
        } else {
            if carrier(attachment) {
                held.insert(id);
            }
            synced.condemned.insert(id.to_owned());
        }
    }
    synced.unknown = live
        .iter()
        .filter(|id| !known.contains(id.as_str()))
        .cloned()
        .collect();
    synced.removed = synced
        .condemned
        .iter()
        .filter(|id| condemned.contains(*id) && !held.contains(id.as_str()))
        .cloned()
        .collect();
    synced.condemned.retain(|id| !synced.removed.contains(id));
    synced
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{attachments, owner};

    fn ids(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    #[test]
    fn two_calls_in_a_row_and_no_carrier_remove() {
        let all = attachments();
        let instance = "0123456789abcdef";
        let run = |live: &[&str], condemned: &BTreeSet<String>, carrier: &[&str]| {
            let held = |attachment: &Attachment| carrier.contains(&attachment.owner.id());
            sync(all.iter(), held, instance, &ids(live), condemned)
        };
        let all_live = run(&["a", "b", "c", "new"], &ids(&[]), &[]);
        assert_eq!(all_live.kept, 8);
        assert_eq!(all_live.unknown, ids(&["new"]));
        assert_eq!((all_live.condemned, all_live.removed), (ids(&[]), ids(&[])));

        let first = run(&["a"], &ids(&[]), &["c"]);
        assert_eq!(first.kept, 2);
        assert_eq!((&first.condemned, first.removed), (&ids(&["b", "c"]), ids(&[])));
        let second = run(&["a"], &first.condemned, &["c"]);
        assert_eq!((second.condemned, second.removed), (ids(&["c"]), ids(&["b"])));

        // Named again in between, it begins anew.
        let named = run(&["a", "b"], &first.condemned, &[]);
        assert_eq!((&named.condemned, named.removed), (&ids(&[]), ids(&["c"])));
        let again = run(&["a"], &named.condemned, &[]);
        assert_eq!((again.condemned, again.removed), (ids(&["b", "c"]), ids(&[])));
    }

    #[test]
    fn other_instances_are_left_alone() {
        let mut all = attachments();
        all[0].owner = crate::Owner::new("other", owner("a").id()).expect("a good owner");
        let synced = sync(all.iter(), |_| false, "other", &ids(&[]), &ids(&["a", "b", "c"]));
        assert_eq!((synced.kept, synced.removed), (0, ids(&["a"])));
        let nobody = sync(all.iter(), |_| false, "third", &ids(&["x"]), &ids(&["a"]));
        let expected = Synced {
            unknown: ids(&["x"]),
            ..Synced::default()
        };
        assert_eq!(nobody, expected);
    }
}
