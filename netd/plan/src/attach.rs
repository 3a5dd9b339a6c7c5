//! Which steps make an attachment, and which take it back?

use std::collections::{BTreeMap, BTreeSet};

use crate::alias::{alias, altnames, port_altnames};
use crate::filter;
use crate::{
    Action, Attachment, Config, Link, LinkKind, LinkName, Mac, Mode, Network, Observed, PortFlags, PortVlan,
    Vid, Vids, effective_mtu,
};

/// How the port of a machine behaves: the bridge knows its one address and learns none, and sends it what is for that
/// address or for everybody.
#[must_use]
pub fn port_flags(isolated: bool) -> PortFlags {
    PortFlags {
        isolated,
        learning: false,
        unicast_flood: false,
        multicast_flood: true,
        broadcast_flood: true,
        bpdu_guard: true,
    }
}

/// The steps that make attachments whose networks are what they should be (see [`crate::network()`]): one transaction of
/// the filter, then each tap, and as the last steps each tap's persistence. `existing` are those that there are beside
/// the new ones.
#[must_use]
pub fn attach<'a>(
    config: &Config,
    observed: &Observed,
    existing: impl Iterator<Item = &'a Attachment> + Clone,
    new: &[Attachment],
) -> Vec<Action> {
    if new.is_empty() {
        return Vec::new();
    }
    let mut actions = vec![Action::Filter {
        text: filter::add(config, existing, new),
    }];
    for attachment in new {
        actions.push(Action::MakeTap {
            name: attachment.tap.clone(),
            uid: attachment.uid,
            multi_queue: attachment.queues > 1,
        });
        if let Some(network) = config.networks.get(&attachment.network) {
            actions.extend(Port::new(config, network, observed, attachment).steps(None));
        }
    }
    actions.extend(new.iter().map(|attachment| Action::PersistTap {
        name: attachment.tap.clone(),
    }));
    actions
}

/// The steps that put attachments out of the way: the filter first, from when on their ports pass nothing, then the
/// taps into the group of what is to be deleted. `remaining` are those that stay.
#[must_use]
pub fn detach<'a>(
    config: &Config,
    remaining: impl Iterator<Item = &'a Attachment> + Clone,
    gone: &[Attachment],
) -> Vec<Action> {
    if gone.is_empty() {
        return Vec::new();
    }
    let mut actions = vec![Action::Filter {
        text: filter::remove(config, remaining, gone),
    }];
    actions.extend(gone.iter().map(|attachment| trash(config, attachment)));
    actions
}

/// The steps that take back an [`attach()`] of which the steps `done` were tried; the last of them is the one that
/// failed. Before that, its taps are closed: those that aren't persistent yet vanish with that.
#[must_use]
pub fn take_back<'a>(
    config: &Config,
    remaining: impl Iterator<Item = &'a Attachment> + Clone,
    new: &[Attachment],
    done: &[Action],
) -> Vec<Action> {
    let mut actions = Vec::new();
    let (_, succeeded) = done.split_last().unzip();
    if succeeded
        .is_some_and(|done: &[Action]| done.iter().any(|action| matches!(action, Action::Filter { .. })))
    {
        actions.push(Action::Filter {
            text: filter::remove(config, remaining, new),
        });
    }
    // Of a step that failed, nobody knows how far it came.
    let persistent = |tap: &LinkName| {
        done.iter()
            .any(|action| matches!(action, Action::PersistTap { name } if name == tap))
    };
    let stays = new.iter().filter(|attachment| persistent(&attachment.tap));
    actions.extend(stays.map(|attachment| trash(config, attachment)));
    actions
}

fn trash(config: &Config, attachment: &Attachment) -> Action {
    Action::Trash {
        name: attachment.tap.clone(),
        group: config.trash_group(),
        altnames: port_altnames(attachment).collect(),
    }
}

/// A tap and its port as they should be.
#[derive(Debug)]
pub(crate) struct Port<'p> {
    attachment: &'p Attachment,
    bridge: String,
    /// The bridge, where it is there already.
    bridge_link: Option<&'p Link>,
    /// The bridge's: a guest may be told less, but frames of another one's size don't end here.
    mtu: u32,
    group: u32,
    isolated: bool,
}

impl<'p> Port<'p> {
    pub(crate) fn new(
        config: &Config,
        network: &Network,
        observed: &'p Observed,
        attachment: &'p Attachment,
    ) -> Self {
        let bridge = network.bridge();
        Self {
            attachment,
            bridge_link: observed.links.get(&bridge),
            bridge,
            mtu: effective_mtu(network, observed),
            group: config.link_group,
            isolated: network.isolated,
        }
    }

    /// The steps from what was found to what should be; from nothing, all of them. The filter holds already, and the
    /// link comes up last.
    pub(crate) fn steps(&self, found: Option<&Link>) -> Vec<Action> {
        let mut actions = Vec::new();
        self.link(found, &mut actions);
        self.port(found, &mut actions);
        if !found.is_some_and(|link| link.up) {
            actions.push(Action::Up {
                name: self.attachment.tap.clone(),
            });
        }
        actions
    }

    fn link(&self, found: Option<&Link>, actions: &mut Vec<Action>) {
        let name = &self.attachment.tap;
        let mac = self.attachment.mac.host_side();
        let right = |link: &Link| link.mac == Some(mac) && link.mtu == self.mtu && link.group == self.group;
        if !found.is_some_and(right) {
            actions.push(Action::SetLink {
                name: name.clone(),
                mac,
                mtu: self.mtu,
                group: self.group,
            });
        }
        let alias = alias(self.attachment);
        if found.and_then(|link| link.alias.as_ref()) != Some(&alias) {
            actions.push(Action::SetAlias {
                name: name.clone(),
                alias,
            });
        }
        let wanted = altnames(self.attachment);
        let there = found.map_or(&[][..], |link| &link.altnames);
        // Names of others' choice may stay, but not those that say something of an attachment.
        let lies = |name: &&String| name.starts_with("nd.") || name.starts_with("ndp.");
        for altname in there.iter().filter(lies).filter(|name| !wanted.contains(name)) {
            actions.push(Action::RemoveAltname {
                name: name.clone(),
                altname: altname.clone(),
            });
        }
        for altname in wanted.into_iter().filter(|name| !there.contains(name)) {
            actions.push(Action::AddAltname {
                name: name.clone(),
                altname,
            });
        }
    }

    fn port(&self, found: Option<&Link>, actions: &mut Vec<Action>) {
        let name = &self.attachment.tap;
        let is_port = |link: &Link| {
            self.bridge_link
                .is_some_and(|bridge| link.master == Some(bridge.index))
        };
        let there = found.filter(|link| is_port(link));
        if there.is_none() {
            actions.push(Action::Enslave {
                name: name.to_string(),
                master: self.bridge.clone(),
            });
        }
        let flags = port_flags(self.isolated);
        if there.and_then(|link| link.port) != Some(flags) {
            actions.push(Action::SetPort {
                name: name.clone(),
                flags,
            });
        }
        self.vlans(there, actions);
        self.fdb(there, actions);
    }

    /// The VLANs of the port, each with whether it is untagged there; `None` where the bridge's own rules hold.
    fn wanted_vlans(&self) -> Option<(Vids, bool)> {
        match &self.attachment.mode {
            Mode::Plain => None,
            Mode::Access(vid) => Some((Vids::from_iter([*vid]), true)),
            Mode::Trunk(vids) => Some((vids.clone(), false)),
        }
    }

    fn vlans(&self, there: Option<&Link>, actions: &mut Vec<Action>) {
        let Some((wanted, untagged)) = self.wanted_vlans() else {
            return;
        };
        let name = self.attachment.tap.to_string();
        // An operator's bridge gives each new port a VLAN by itself.
        let given = match self.bridge_link.map(|bridge| &bridge.kind) {
            Some(LinkKind::Bridge { default_pvid, .. }) => *default_pvid,
            _ => None,
        };
        let given: Vec<PortVlan> = given
            .into_iter()
            .map(|vid| PortVlan {
                vid,
                pvid: true,
                untagged: true,
            })
            .collect();
        let vlans = there.map_or(given.as_slice(), |link| &link.vlans);
        let foreign: Vids = vlans
            .iter()
            .map(|vlan| vlan.vid)
            .filter(|vid| !wanted.contains(*vid))
            .collect();
        let right: BTreeSet<Vid> = vlans
            .iter()
            .filter(|vlan| vlan.pvid == untagged && vlan.untagged == untagged)
            .map(|vlan| vlan.vid)
            .collect();
        let missing: Vids = wanted.iter().filter(|vid| !right.contains(vid)).collect();
        if !foreign.is_empty() {
            actions.push(Action::RemovePortVlans {
                name: name.clone(),
                vids: foreign,
            });
        }
        if !missing.is_empty() {
            actions.push(Action::AddPortVlans {
                name,
                vids: missing,
                untagged,
            });
        }
    }

    fn fdb(&self, there: Option<&Link>, actions: &mut Vec<Action>) {
        let name = &self.attachment.tap;
        let mac = self.attachment.mac;
        let empty = BTreeMap::new();
        let entries = there.map_or(&empty, |link| &link.fdb);
        let others: BTreeSet<Mac> = entries
            .keys()
            .map(|(entry, _)| *entry)
            .filter(|entry| *entry != mac)
            .collect();
        actions.extend(others.into_iter().map(|mac| Action::RemoveFdb {
            name: name.clone(),
            mac,
        }));
        let stays = |vid| entries.get(&(mac, vid)) == Some(&true);
        let complete = match self.wanted_vlans() {
            Some((vids, _)) => vids.iter().all(|vid| stays(Some(vid))),
            None => stays(None),
        };
        if !complete {
            actions.push(Action::AddFdb {
                name: name.clone(),
                mac,
            });
        }
    }
}

#[cfg(test)]
mod tests;
