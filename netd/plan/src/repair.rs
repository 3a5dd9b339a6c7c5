//! What differs from what it should be, and which steps repair it?

use std::collections::BTreeSet;

use crate::adopt::{adopt, our_taps};
use crate::attach::Port;
use crate::name::{TAP, bridge_name, vlan_link_name};
use crate::network::known_mtu;
use crate::{
    Action, Attachment, Config, Kernel, Kind, Link, LinkKind, LinkName, NetworkName, Observed, network,
};

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Repair {
    /// The steps; none where all is as it should be.
    pub actions: Vec<Action>,
    /// Taps of attachments that aren't there any more: those attachments have ended.
    pub gone: Vec<LinkName>,
}

/// What it takes to make all links of ours what they should be. `attachments` are all there are. The filter is not
/// looked at.
///
/// Networks are made when a machine is attached to them first, and stay; a network that can't be had now is left as it
/// is. Deleted is what is left of networks that aren't configured any more, once no machine is attached, and taps that
/// tell of no attachment and that no process holds open.
#[must_use]
pub fn repair<'a>(
    config: &Config,
    attachments: impl Iterator<Item = &'a Attachment> + Clone,
    observed: &Observed,
    kernel: Kernel,
) -> Repair {
    let mut repair = Repair::default();
    let names: BTreeSet<&LinkName> = attachments.clone().map(|attachment| &attachment.tap).collect();
    repair.actions.extend(discarded(config, observed, &names));
    repair.actions.extend(leftovers(config, observed));
    let used: BTreeSet<&NetworkName> = attachments
        .clone()
        .map(|attachment| &attachment.network)
        .collect();
    let mut known = BTreeSet::new();
    for one in config.networks.values() {
        let bridge = observed.links.contains_key(&one.bridge());
        if !used.contains(&one.name) && (one.is_foreign() || !bridge) {
            continue;
        }
        match network(config, one, observed, kernel) {
            Ok(steps) => {
                repair.actions.extend(steps);
                known.insert(&one.name);
            }
            // The uplink may be down, say: the ports are what they are all the same.
            Err(_) if bridge && known_mtu(one, observed).is_some() => {
                known.insert(&one.name);
            }
            Err(_) => {}
        }
    }
    for attachment in attachments {
        let Some(link) = tap_of(config, attachment, observed) else {
            repair.gone.push(attachment.tap.clone());
            continue;
        };
        // Where the network isn't configured any more, nobody can say what its ports should be.
        if let Some(one) = config
            .networks
            .get(&attachment.network)
            .filter(|one| known.contains(&one.name))
        {
            let steps = Port::new(config, one, observed, attachment).steps(Some(link));
            repair.actions.extend(steps);
        }
    }
    repair
}

/// What differs at an attachment from what it should be and can't be repaired.
#[must_use]
pub fn faults(attachment: &Attachment, observed: &Observed) -> Vec<String> {
    let tap = &attachment.tap;
    let Some(link) = observed.links.get(tap.as_str()) else {
        return vec![format!("tap {tap} is gone")];
    };
    let LinkKind::Tap {
        uid,
        multi_queue,
        persistent,
    } = link.kind
    else {
        return vec![format!("{tap} is no tap")];
    };
    let mut faults = Vec::new();
    if uid != Some(attachment.uid) {
        let who = uid.map_or_else(|| "anybody".to_owned(), |uid| format!("user {uid}"));
        faults.push(format!(
            "tap {tap} may be opened by {who}, not by user {}",
            attachment.uid
        ));
    }
    if multi_queue != (attachment.queues > 1) {
        let has = if multi_queue {
            "several queues"
        } else {
            "one queue"
        };
        faults.push(format!(
            "tap {tap} has {has}, and {} were asked for",
            attachment.queues
        ));
    }
    if !persistent {
        faults.push(format!("tap {tap} is not persistent"));
    }
    faults
}

/// The steps that delete what was put out of the way: one for the whole group, unless a foreign link is in it.
#[must_use]
pub fn sweep(config: &Config, observed: &Observed) -> Vec<Action> {
    let group = config.trash_group();
    let links = || observed.links.values().filter(|link| link.group == group);
    let ours = |link: &Link| {
        let name = link.name.parse().ok().filter(LinkName::is_tap);
        name.filter(|_| matches!(link.kind, LinkKind::Tap { .. }))
    };
    if links().next().is_some() && links().all(|link| ours(link).is_some()) {
        return vec![Action::DeleteGroup { group }];
    }
    links()
        .filter_map(ours)
        .map(|name| Action::DeleteLink { name })
        .collect()
}

/// The tap of an attachment, if the link of that name is it: by its group, or by what is written on it.
fn tap_of<'o>(config: &Config, attachment: &Attachment, observed: &'o Observed) -> Option<&'o Link> {
    let link = observed.links.get(attachment.tap.as_str())?;
    let is_tap = matches!(link.kind, LinkKind::Tap { .. });
    let marked =
        link.group == config.link_group || link.alias.as_ref() == Some(&crate::alias::alias(attachment));
    (is_tap && marked && link.group != config.trash_group()).then_some(link)
}

/// Puts taps out of the way that tell of no attachment. One that isn't persistent is being made, or will vanish by
/// itself.
fn discarded(config: &Config, observed: &Observed, attached: &BTreeSet<&LinkName>) -> Vec<Action> {
    let unknown = |tap: &LinkName, link: &Link| {
        !attached.contains(tap)
            && !link.carrier
            && matches!(link.kind, LinkKind::Tap { persistent: true, .. })
    };
    // Reading all aliases takes longer than to see that there is no such tap.
    if !our_taps(config, observed).any(|(tap, link)| unknown(&tap, link)) {
        return Vec::new();
    }
    let incomplete = adopt(config, observed).incomplete;
    incomplete
        .into_iter()
        .filter_map(|one| Some((observed.links.get(one.tap.as_str())?, one.tap)))
        .filter(|(link, tap)| unknown(tap, link))
        .map(|(link, tap)| Action::Trash {
            name: tap,
            group: config.trash_group(),
            altnames: link
                .altnames
                .iter()
                .filter(|name| name.starts_with("ndp."))
                .cloned()
                .collect(),
        })
        .collect()
}

/// Deletes bridges and VLANs of ours that no configured network has, and to which no machine is attached.
fn leftovers(config: &Config, observed: &Observed) -> Vec<Action> {
    let mut wanted = BTreeSet::new();
    for one in config.networks.values() {
        if !one.is_foreign() {
            wanted.insert(bridge_name(&one.name));
        }
        if let Kind::Vlan { uplink, vid } = &one.kind {
            wanted.insert(vlan_link_name(uplink, *vid));
        }
    }
    // What a VLAN does at a bridge that a network has is for that network to say.
    let links = || observed.links.values();
    let in_use: BTreeSet<u32> = links()
        .filter(|link| link.name.starts_with(TAP))
        .filter_map(|link| link.master)
        .chain(
            links()
                .filter(|link| is_ours(config, link).is_some_and(|name| wanted.contains(&name)))
                .map(|link| link.index),
        )
        .collect();
    links()
        .filter_map(|link| Some((link, is_ours(config, link)?)))
        .filter(|(_, name)| !wanted.contains(name))
        .filter(|(link, name)| {
            let bridge = if name.is_vlan() {
                link.master
            } else {
                Some(link.index)
            };
            !bridge.is_some_and(|bridge| in_use.contains(&bridge))
        })
        .map(|(_, name)| Action::DeleteLink { name })
        .collect()
}

/// The name of a bridge or VLAN of ours.
fn is_ours(config: &Config, link: &Link) -> Option<LinkName> {
    let fits: fn(&LinkName) -> bool = match link.kind {
        LinkKind::Bridge { .. } => LinkName::is_bridge,
        LinkKind::Vlan { .. } => LinkName::is_vlan,
        LinkKind::Tap { .. } | LinkKind::Other(_) => return None,
    };
    link.name
        .parse()
        .ok()
        .filter(|name| link.group == config.link_group && fits(name))
}

#[cfg(test)]
mod tests;
