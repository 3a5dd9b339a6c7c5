//! Is everything what it should be, and what is done where it isn't?
//!
//! At the start, every 30 seconds, and when something happened: all is looked at, and what differs is repaired. After a look
//! that may have missed something, nothing is taken away.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use netd_plan::{
    Action, Attachment, Config, Kind, LinkKind, Network, NetworkName, Observed, Problem, adopt,
    effective_mtu, faults, filter, orphaned, repair, sysctls,
};

use crate::apply::StepError;
use crate::convert::Refused;
use crate::counts::count;
use crate::kernel;
use crate::observe::{self, Seen};
use crate::state::{Attached, StartError, State};

/// How often a host whose links change is looked at before netd begins with what was seen.
const LOOKS_AT_START: u32 = 5;
const LOOK_REST: Duration = Duration::from_millis(100);

impl State {
    /// At the start: adopts what is there, declares the filter, and repairs.
    pub(crate) fn begin(&mut self) -> Result<(), StartError> {
        let mut seen = self.look_at_all()?;
        // What a look misses would pass nothing until the next one.
        for _ in 0..LOOKS_AT_START {
            if seen.whole {
                break;
            }
            std::thread::sleep(LOOK_REST);
            seen = self.look_at_all()?;
        }
        for attachment in adopt(&self.config, &seen.observed).attachments {
            self.insert(attachment);
        }
        for network in orphaned(&self.config, self.there(), &seen.observed) {
            tracing::warn!("{}", Self::retired_sentence(&network.name));
            self.retired.insert(network.name.clone());
            self.config.networks.insert(network.name.clone(), network);
        }
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
            self.defender.remove(&attachment.tap);
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
                && let Some(why) = cannot_follow(was, network, &living, &self.base)
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
        let retired = self.to_retire(&config);
        for old in retired.values() {
            for new in config.networks.values() {
                problems.extend(new.collisions(old).map(|sentence| Problem {
                    place: format!("network.{}", new.name),
                    sentence: format!("{sentence}, or detach the machines of network {}", old.name),
                }));
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        self.config = config;
        self.retired = retired.keys().cloned().collect();
        for (name, network) in retired {
            tracing::warn!("{}", Self::retired_sentence(&name));
            self.config.networks.insert(name, network);
        }
        self.ready.clear();
        if let Err(error) = self.redeclare() {
            tracing::error!(%error, "the filter can't be declared for the new configuration yet");
        }
        self.resync();
        Ok(())
    }

    /// The networks that a configuration has no more and to which machines are attached: they are kept for as long.
    fn to_retire(&self, config: &Config) -> BTreeMap<NetworkName, Network> {
        let used = self.promised().map(|attachment| &attachment.network);
        let gone = used.filter(|name| !config.networks.contains_key(*name));
        gone.filter_map(|name| self.config.networks.get_key_value(name))
            .map(|(name, network)| (name.clone(), network.clone()))
            .collect()
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
            | Action::Release { .. }
            | Action::RemoveAddress { .. }
            | Action::RemoveAltname { .. }
            | Action::RemoveFdb { .. }
            | Action::RemovePortVlans { .. }
    )
}

/// What of a network can't become what it is to be while these are attached to it.
fn cannot_follow(
    was: &Network,
    is: &Network,
    living: &[&Attachment],
    observed: &Observed,
) -> Option<&'static str> {
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
    // On a nat network the host is the gateway, and machines were told of it when they started.
    let told = matches!(is.kind, Kind::Nat { .. }) && gateway(was) != gateway(is);
    if told || (gateway(is).is_some() && living.iter().any(taken)) {
        return Some("ipv4.gateway");
    }
    let prefix = |network: &Network| network.ipv6.as_ref().map(|ipv6| ipv6.prefix);
    if prefix(was) != prefix(is) && living.iter().any(|attachment| attachment.ipv6.is_some()) {
        return Some("ipv6.prefix");
    }
    let mtu = effective_mtu(is, observed);
    if living.iter().any(|attachment| attachment.mtu > mtu) {
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
