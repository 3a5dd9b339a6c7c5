//! Is everything what it should be, and what is done where it isn't?
//!
//! At the start, every 30 seconds, and when something happened: all is looked at, and what differs is repaired. After a look
//! that may have missed something, nothing is taken away.

use std::collections::BTreeSet;

use netd_plan::{
    Action, Attachment, Config, Kind, LinkKind, Network, NetworkName, Observed, Problem, adopt, faults,
    filter, repair, sysctls,
};

use crate::apply::StepError;
use crate::convert::Refused;
use crate::counts::count;
use crate::kernel;
use crate::observe::{self, Seen};
use crate::state::{Attached, StartError, State};

impl State {
    /// At the start: adopts what is there, declares the filter, and repairs.
    pub(crate) fn begin(&mut self) -> Result<(), StartError> {
        let seen = self.look_at_all()?;
        for attachment in adopt(&self.config, &seen.observed).attachments {
            self.insert(attachment);
        }
        self.keep_networks(None);
        let text = filter::whole(&self.config, self.there());
        self.hands.declare(text)?;
        if !self.attached.is_empty() {
            tracing::info!("{} interfaces were there", self.attached.len());
        }
        self.repair(seen);
        // What the last netd put out of the way.
        self.sweeper.add();
        Ok(())
    }

    /// Looks at everything, and repairs.
    pub(crate) fn resync(&mut self) {
        match self.look_at_all() {
            Ok(seen) => self.repair(seen),
            Err(error) => tracing::error!(%error, "the kernel's links can't be read"),
        }
    }

    /// Looks at everything; nothing is repaired.
    pub(crate) fn see(&mut self) -> Result<(), Refused> {
        let seen = self.look_at_all().map_err(|error| {
            Refused::later("system", format!("the kernel's links can't be read: {error}"))
        })?;
        self.remember(seen.observed);
        Ok(())
    }

    fn look_at_all(&mut self) -> Result<Seen, crate::netlink::KernelError> {
        let seen = observe::all(&mut self.hands.netlink)?;
        self.counts.repeated.inc_by(u64::from(seen.repeated));
        if !seen.whole {
            self.counts.uncertain.inc();
            tracing::warn!("links change faster than they can be read: nothing is taken away for now");
        }
        Ok(seen)
    }

    /// Keeps what was seen of links other than taps of ours.
    fn remember(&mut self, mut observed: Observed) {
        observed.links.retain(|name, link| {
            !(matches!(link.kind, LinkKind::Tap { .. }) && name.starts_with(netd_plan::name::TAP))
        });
        if observed != self.base {
            // Whether networks are as they should be is asked again.
            self.ready.clear();
            self.base = observed;
        }
    }

    fn insert(&mut self, attachment: Attachment) {
        let attached = Attached {
            attachment,
            carrier: false,
            faults: Vec::new(),
        };
        self.attached.insert(attached.attachment.tap.clone(), attached);
    }

    fn repair(&mut self, seen: Seen) {
        self.forget_suspects();
        if !self.kernel.vlan || !self.kernel.vlan_filtering {
            // Somebody may have loaded the module.
            self.kernel = kernel::look(&mut self.hands.netlink);
        }
        let Seen {
            mut observed, whole, ..
        } = seen;
        self.adopt_missing(&observed);
        let found = repair(&self.config, self.there(), &observed, self.kernel);
        if whole {
            self.forget_vanished(&found.gone);
        }
        let unset = |action: &Action| match action {
            Action::Sysctl { path, value } => !crate::apply::is_set(path, value),
            _ => false,
        };
        let unset = sysctls(&self.config, &observed).into_iter().filter(unset);
        let mut repaired = false;
        for action in found.actions.iter().chain(&unset.collect::<Vec<_>>()) {
            // Taking away takes certainty.
            if !whole && takes_away(action) {
                continue;
            }
            repaired = true;
            match self.run(std::slice::from_ref(action)) {
                Ok(()) => {
                    count(&self.counts.repaired, "step", crate::apply::step(action));
                    tracing::info!("repaired: {action}");
                }
                Err((_, error)) => tracing::warn!(%error, "a repair failed"),
            }
        }
        if repaired && let Ok(seen) = self.look_at_all() {
            observed = seen.observed;
        }
        self.note(&observed);
        self.remember(observed);
        self.drop_retired();
        self.tell_networks();
    }

    /// Takes over taps that tell of attachments which are not known: a look may have missed them.
    fn adopt_missing(&mut self, observed: &Observed) {
        let found = adopt(&self.config, observed);
        let unknown = |attachment: &Attachment| !self.promised().any(|known| known.tap == attachment.tap);
        let missing: Vec<Attachment> = found.attachments.into_iter().filter(unknown).collect();
        if !missing.is_empty() {
            let text = filter::add(&self.config, self.there(), &missing);
            if let Err((_, error)) = self.run(&[Action::Filter { text }]) {
                tracing::error!(%error, "interfaces that were found pass nothing");
                return;
            }
            for attachment in missing {
                tracing::info!("found {} of {}", attachment.tap, attachment.owner);
                let tap = attachment.tap.clone();
                self.insert(attachment);
                self.tell_changed(&tap);
            }
        }
        let incomplete = found.incomplete.into_iter();
        let incomplete: Vec<_> = incomplete
            .filter(|tap| !self.promised().any(|known| known.tap == tap.tap))
            .collect();
        for tap in &incomplete {
            if !self.incomplete.contains(&tap.tap) {
                tracing::warn!("{} tells of no machine: {}; it passes nothing", tap.tap, tap.why);
            }
        }
        self.incomplete = incomplete.into_iter().map(|tap| tap.tap).collect();
    }

    /// Ends attachments whose taps somebody deleted.
    fn forget_vanished(&mut self, taps: &[netd_plan::LinkName]) {
        let gone: Vec<Attachment> = taps
            .iter()
            .filter_map(|tap| self.attached.remove(tap))
            .map(|attached| attached.attachment)
            .collect();
        if gone.is_empty() {
            return;
        }
        for attachment in &gone {
            tracing::warn!(
                "{} of {} was deleted by another program",
                attachment.tap,
                attachment.owner
            );
            self.counts.vanished.inc();
            self.tell_removed(attachment);
        }
        let gone = gone.into_iter();
        self.unfiltered
            .extend(gone.map(|attachment| (attachment.tap.clone(), attachment)));
        self.tidy();
    }

    /// Notes carriers, and what can't be repaired.
    fn note(&mut self, observed: &Observed) {
        let mut changed = Vec::new();
        for (tap, attached) in &mut self.attached {
            let link = observed.links.get(tap.as_str());
            let carrier = link.is_some_and(|link| link.carrier);
            let faults = faults(&attached.attachment, observed);
            if attached.carrier != carrier || attached.faults != faults {
                attached.carrier = carrier;
                attached.faults = faults;
                changed.push(tap.clone());
            }
        }
        for tap in changed {
            self.tell_changed(&tap);
        }
    }

    /// Takes a new configuration; what can't be followed while machines are attached is a problem, and the old one stays.
    pub(crate) fn reload(&mut self, config: Config) -> Result<(), Vec<Problem>> {
        let mut problems = Vec::new();
        let old = &self.config;
        if config.link_group != old.link_group {
            problems.push(Problem {
                place: "daemon.link_group".to_owned(),
                sentence: format!(
                    "it was {:#x} when netd started, and marks all that netd made; restart netd without machines to change it",
                    old.link_group
                ),
            });
        }
        for (name, network) in &config.networks {
            let living: Vec<&Attachment> = self
                .promised()
                .filter(|attachment| attachment.network == *name)
                .collect();
            if let Some(was) = old.networks.get(name).filter(|_| !living.is_empty())
                && let Some(why) = cannot_follow(was, network, &living)
            {
                problems.push(Problem {
                    place: format!("network.{name}"),
                    sentence: format!(
                        "{why} can't change while {} interfaces are attached; detach them first, or take another name",
                        living.len()
                    ),
                });
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let old = std::mem::replace(&mut self.config, config);
        self.keep_networks(Some(old));
        self.ready.clear();
        if let Err(error) = self.redeclare() {
            tracing::error!(%error, "the filter can't be declared for the new configuration");
        }
        self.resync();
        Ok(())
    }

    /// Keeps networks that are configured no more for as long as machines are attached to them.
    fn keep_networks(&mut self, old: Option<Config>) {
        let Some(old) = old else {
            return;
        };
        let used: BTreeSet<NetworkName> = self
            .promised()
            .map(|attachment| attachment.network.clone())
            .collect();
        self.retired = BTreeSet::new();
        for (name, network) in old.networks {
            if used.contains(&name) && !self.config.networks.contains_key(&name) {
                tracing::warn!("{}", Self::retired_sentence(&name));
                self.retired.insert(name.clone());
                self.config.networks.insert(name, network);
            }
        }
    }

    /// Lets retired networks go whose last machine is gone.
    pub(crate) fn drop_retired(&mut self) {
        if self.retired.is_empty() {
            return;
        }
        let used: BTreeSet<&NetworkName> = self.promised().map(|attachment| &attachment.network).collect();
        let over = self.retired.iter().filter(|name| !used.contains(name));
        let over: Vec<NetworkName> = over.cloned().collect();
        if over.is_empty() {
            return;
        }
        for name in &over {
            self.retired.remove(name);
            self.config.networks.remove(name);
        }
        let declared: Result<(), StepError> = self.redeclare();
        if let Err(error) = declared {
            tracing::error!(%error, "the filter can't be declared without the networks that ended");
        }
        // Their bridges are nobody's now.
        self.resync();
    }
}

/// Whether an action takes something away that a better look might find in its place.
fn takes_away(action: &Action) -> bool {
    matches!(
        action,
        Action::Trash { .. }
            | Action::DeleteGroup { .. }
            | Action::DeleteLink { .. }
            | Action::RemoveAddress { .. }
            | Action::RemoveAltname { .. }
            | Action::RemoveFdb { .. }
            | Action::RemovePortVlans { .. }
    )
}

/// What of a network can't become what it is to be while these are attached to it.
fn cannot_follow(was: &Network, is: &Network, living: &[&Attachment]) -> Option<&'static str> {
    let same_kind = match (&was.kind, &is.kind) {
        (Kind::Nat { .. }, Kind::Nat { .. }) => true,
        (
            Kind::VlanAware { bridge, uplink, .. },
            Kind::VlanAware {
                bridge: new_bridge,
                uplink: new_uplink,
                vids,
                ..
            },
        ) => {
            if living.iter().any(|attachment| !within(attachment, vids)) {
                return Some("vids");
            }
            bridge == new_bridge && uplink == new_uplink
        }
        (was, is) => was == is,
    };
    if !same_kind {
        return Some("what it is made of");
    }
    let subnet = |network: &Network| network.ipv4.as_ref().map(|ipv4| ipv4.subnet);
    if subnet(was) != subnet(is) && living.iter().any(|attachment| attachment.ipv4.is_some()) {
        return Some("ipv4.subnet");
    }
    let gateway = |network: &Network| network.ipv4.as_ref().and_then(|ipv4| ipv4.gateway);
    let taken = |attachment: &&Attachment| attachment.ipv4.map(|net| net.addr()) == gateway(is);
    if gateway(is).is_some() && living.iter().any(taken) {
        return Some("ipv4.gateway");
    }
    let prefix = |network: &Network| network.ipv6.as_ref().map(|ipv6| ipv6.prefix);
    if prefix(was) != prefix(is) && living.iter().any(|attachment| attachment.ipv6.is_some()) {
        return Some("ipv6.prefix");
    }
    if is
        .mtu
        .is_some_and(|mtu| living.iter().any(|attachment| attachment.mtu > mtu))
    {
        return Some("mtu");
    }
    None
}

fn within(attachment: &Attachment, vids: &netd_plan::Vids) -> bool {
    match &attachment.mode {
        netd_plan::Mode::Access(vid) => vids.contains(*vid),
        netd_plan::Mode::Trunk(trunk) => trunk.iter().all(|vid| vids.contains(vid)),
        netd_plan::Mode::Plain => true,
    }
}
