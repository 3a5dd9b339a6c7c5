//! What does a network need on this host, and can it be had?

use ipnet::{IpNet, Ipv4Net};

use crate::alias::{network_alias, uplink_of_alias};
use crate::config::MTU_MIN_IPV6;
use crate::identity::bridge_mac;
use crate::name::{TAP, bridge_name, vlan_link_name};
use crate::{Action, Config, Kind, Link, LinkKind, LinkName, Network, Observed, Refusal, Vid, Vids};

/// The MTU of a network whose operator names none, and which is on nobody's link.
const DEFAULT_MTU: u32 = 1500;

/// What the kernel can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// VLAN sub-interfaces (module 8021q).
    pub vlan: bool,
    /// Bridges that filter VLANs (`CONFIG_BRIDGE_VLAN_FILTERING`).
    pub vlan_filtering: bool,
}

/// Why no machine can be attached to a network on this host: what, where, the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct Unavailable {
    /// For a person.
    pub sentence: String,
}

impl From<Unavailable> for Refusal {
    fn from(unavailable: Unavailable) -> Self {
        Self {
            reason: "unavailable",
            field: String::new(),
            sentence: unavailable.sentence,
            holder: None,
            retryable: true,
        }
    }
}

/// A network's MTU: what the operator said, else its uplink's or the operator's bridge's, else 1500.
#[must_use]
pub fn effective_mtu(network: &Network, observed: &Observed) -> u32 {
    known_mtu(network, observed).unwrap_or(DEFAULT_MTU)
}

/// The same; `None` where it depends on a link that isn't there.
pub(crate) fn known_mtu(network: &Network, observed: &Observed) -> Option<u32> {
    let bridge = network.is_foreign().then(|| network.bridge());
    let below = bridge.as_deref().or(network.uplink());
    match (network.mtu, below) {
        (Some(mtu), _) => Some(mtu),
        (None, Some(name)) => observed.links.get(name).map(|link| link.mtu),
        (None, None) => Some(DEFAULT_MTU),
    }
}

/// The steps that make a network what it should be on this host; none where it is.
///
/// # Errors
///
/// It can't be had.
pub fn network(
    config: &Config,
    network: &Network,
    observed: &Observed,
    kernel: Kernel,
) -> Result<Vec<Action>, Unavailable> {
    let site = Site {
        config,
        network,
        observed,
        mtu: effective_mtu(network, observed),
    };
    // Only what the configuration had before, and machines still have, is in the way of what it has now.
    let mut others = config
        .networks
        .values()
        .filter(|other| other.name != network.name);
    if let Some(collision) = others.find_map(|other| network.collisions(other).next()) {
        return Err(site.unavailable(&format!("{collision}, or wait for the end of its machines")));
    }
    let vlan_aware = matches!(network.kind, Kind::VlanAware { .. });
    if matches!(network.kind, Kind::Vlan { .. }) && !kernel.vlan {
        return Err(site.unavailable("the kernel has no VLANs: load the module 8021q"));
    }
    if vlan_aware && !kernel.vlan_filtering {
        return Err(site.unavailable(
            "the kernel's bridges can't filter VLANs: boot one with CONFIG_BRIDGE_VLAN_FILTERING, or take kind vlan",
        ));
    }
    if network.is_foreign() {
        site.foreign_bridge(&network.bridge(), vlan_aware)?;
        return Ok(Vec::new());
    }
    match &network.kind {
        Kind::Nat { .. } | Kind::Bridge { uplink: None, .. } | Kind::VlanAware { uplink: None, .. } => {
            site.made(vlan_aware, |_| Ok(Vec::new()))
        }
        Kind::Bridge {
            uplink: Some(uplink), ..
        } => site.made(false, |made| site.port(uplink, made, None)),
        Kind::VlanAware {
            uplink: Some(uplink),
            vids,
            ..
        } => site.made(true, |made| site.port(uplink, made, Some(vids))),
        Kind::Vlan { uplink, vid } => site.made(false, |made| site.vlan(uplink, *vid, made)),
    }
}

/// Where a network shall be.
#[derive(Debug, Clone, Copy)]
struct Site<'s> {
    config: &'s Config,
    network: &'s Network,
    observed: &'s Observed,
    mtu: u32,
}

/// The bridge of a network, of ours: its link, where it is there and stays.
#[derive(Debug, Clone, Copy)]
struct Made<'s> {
    found: Option<&'s Link>,
}

impl Made<'_> {
    fn has(self, port: &Link) -> bool {
        self.found.is_some_and(|bridge| port.master == Some(bridge.index))
    }
}

impl<'s> Site<'s> {
    fn unavailable(&self, why: &str) -> Unavailable {
        Unavailable {
            sentence: format!("network {} can't be had on this host: {why}", self.network.name),
        }
    }

    /// Whether the operator's bridge can be used.
    fn foreign_bridge(&self, name: &str, vlan_aware: bool) -> Result<(), Unavailable> {
        let Some(link) = self.observed.links.get(name) else {
            return Err(self.unavailable(&format!("there is no bridge {name}; make it, or name another")));
        };
        let LinkKind::Bridge { vlan_filtering, .. } = link.kind else {
            return Err(self.unavailable(&format!("{name} is no bridge; name one")));
        };
        if !link.up {
            return Err(self.unavailable(&format!("bridge {name} is down; ip link set {name} up")));
        }
        if vlan_aware && !vlan_filtering {
            return Err(self.unavailable(&format!(
                "bridge {name} doesn't filter VLANs; ip link set {name} type bridge vlan_filtering 1"
            )));
        }
        self.check_mtu("bridge", name, link)
    }

    /// Whether the link below carries the network's packets.
    fn check_mtu(&self, what: &str, name: &str, link: &Link) -> Result<(), Unavailable> {
        if link.mtu < self.mtu {
            return Err(self.unavailable(&format!(
                "{what} {name} has MTU {}, less than the network's {}; raise the one or lower the other",
                link.mtu, self.mtu
            )));
        }
        if self.network.ipv6.is_some() && self.mtu < MTU_MIN_IPV6 {
            return Err(self.unavailable(&format!(
                "{what} {name} has MTU {}, and IPv6 needs {MTU_MIN_IPV6}; raise it, or leave ipv6 out",
                link.mtu
            )));
        }
        Ok(())
    }

    /// Whether the uplink can be used at all.
    fn uplink(&self, name: &str) -> Result<&'s Link, Unavailable> {
        let Some(link) = self.observed.links.get(name) else {
            return Err(self.unavailable(&format!("there is no uplink {name}; make it, or name another")));
        };
        if !link.up {
            return Err(self.unavailable(&format!("uplink {name} is down; ip link set {name} up")));
        }
        self.check_mtu("uplink", name, link)?;
        Ok(link)
    }

    /// Whose port the uplink is.
    fn master_name(&self, link: &Link) -> &'s str {
        let mut links = self.observed.links.values();
        let master = links.find(|other| Some(other.index) == link.master);
        master.map_or("another link", |link| link.name.as_str())
    }

    /// A bridge of ours, with what `ports` says. Its alias comes after what can't be seen of it: a bridge without one is one
    /// whose making was interrupted. It comes before the ports, because it says which link is the operator's.
    fn made(
        &self,
        vlan_filtering: bool,
        ports: impl FnOnce(Made<'s>) -> Result<Vec<Action>, Unavailable>,
    ) -> Result<Vec<Action>, Unavailable> {
        let name = bridge_name(&self.network.name);
        let mut actions = Vec::new();
        let found = match self.observed.links.get(name.as_str()) {
            Some(link) => self.ours(&name, link, vlan_filtering, &mut actions)?,
            None => None,
        };
        let ports = ports(Made { found })?;
        actions.extend(self.old_vlans(found));
        actions.extend(self.old_uplink(found));
        let alias = network_alias(&self.network.name, self.network.port());
        let complete = found.is_some_and(|link| link.alias.as_ref() == Some(&alias));
        let (mac, mtu, group) = (bridge_mac(&self.network.name), self.mtu, self.config.link_group);
        match found {
            None => actions.push(Action::MakeBridge {
                name: name.clone(),
                mac,
                mtu,
                vlan_filtering,
                group,
            }),
            // It also says that the kernel gives it no IPv6 address, which its making does as a second step.
            Some(link) if !complete || link.mac != Some(mac) => actions.push(Action::SetLink {
                name: name.clone(),
                mac,
                mtu: link.mtu,
                group,
            }),
            Some(_) => {}
        }
        if !complete || found.is_some_and(|link| link.mtu != mtu) {
            let name = name.clone();
            actions.push(Action::PinMtu { name, mtu });
        }
        self.addresses(&name, found, complete, &mut actions);
        if !complete {
            actions.extend(sysctls_of(self.network, &name));
        }
        if !found.is_some_and(|link| link.up) {
            actions.push(Action::Up { name: name.clone() });
        }
        if !complete {
            actions.push(Action::SetAlias { name, alias });
        }
        actions.extend(ports);
        Ok(actions)
    }

    /// Releases the uplink that the bridge was made for, where the network has another one now, or none.
    fn old_uplink(&self, bridge: Option<&'s Link>) -> Option<Action> {
        let bridge = bridge?;
        let old = uplink_of_alias(&self.network.name, bridge.alias.as_deref()?)?;
        let link = self.observed.links.get(old)?;
        let stays = self.network.port() == Some(old);
        (!stays && link.master == Some(bridge.index)).then(|| Action::Release {
            name: old.to_owned(),
            master: bridge.name.clone(),
        })
    }

    /// Deletes VLANs of ours that are ports of the bridge though the network has another one now, or none: they would
    /// join the two.
    fn old_vlans(&self, bridge: Option<&'s Link>) -> impl Iterator<Item = Action> {
        let wanted = match &self.network.kind {
            Kind::Vlan { uplink, vid } => Some(vlan_link_name(uplink, *vid)),
            _ => None,
        };
        let group = self.config.link_group;
        self.observed
            .links
            .values()
            .filter(move |link| {
                link.group == group && bridge.is_some_and(|bridge| link.master == Some(bridge.index))
            })
            .filter(|link| matches!(link.kind, LinkKind::Vlan { .. }))
            .filter_map(|link| link.name.parse().ok())
            .filter(move |name: &LinkName| name.is_vlan() && wanted.as_ref() != Some(name))
            .map(|name| Action::DeleteLink { name })
    }

    /// The bridge as it is found, if it may stay.
    fn ours(
        &self,
        name: &LinkName,
        link: &'s Link,
        vlan_filtering: bool,
        actions: &mut Vec<Action>,
    ) -> Result<Option<&'s Link>, Unavailable> {
        let LinkKind::Bridge {
            vlan_filtering: filters,
            ..
        } = link.kind
        else {
            return Err(self.unavailable(&format!("{name} exists and is no bridge; delete or rename it")));
        };
        if link.group != self.config.link_group {
            return Err(self.unavailable(&format!(
                "bridge {name} exists and is not netd's: its group is {:#x}, not {:#x}; delete or rename it",
                link.group, self.config.link_group
            )));
        }
        if filters == vlan_filtering {
            return Ok(Some(link));
        }
        if self.taps(link).next().is_some() {
            return Err(self.unavailable(&format!(
                "bridge {name} was made for another kind of network, and machines are attached to it; detach them first"
            )));
        }
        actions.push(Action::DeleteLink { name: name.clone() });
        Ok(None)
    }

    fn taps(&self, bridge: &'s Link) -> impl Iterator<Item = &'s Link> {
        let links = self.observed.links.values();
        links.filter(|link| link.master == Some(bridge.index) && link.name.starts_with(TAP))
    }

    /// Of a nat network: the host is the gateway. Of another one, a bridge that was made for something else is let go of what it
    /// had; later on, what an operator gives it is left alone.
    fn addresses(&self, name: &LinkName, found: Option<&Link>, complete: bool, actions: &mut Vec<Action>) {
        let nat = matches!(self.network.kind, Kind::Nat { .. });
        if !nat && complete {
            return;
        }
        let wanted = self.network.ipv4.as_ref().filter(|_| nat).and_then(|ipv4| {
            // The length is the subnet's, which is one.
            Ipv4Net::new(ipv4.gateway?, ipv4.subnet.prefix_len()).ok()
        });
        let wanted = wanted.map(IpNet::V4);
        let there = found.into_iter().flat_map(|link| &link.addresses).copied();
        for address in there.clone().filter(|address| matches!(address, IpNet::V4(_))) {
            if Some(address) != wanted {
                let name = name.clone();
                actions.push(Action::RemoveAddress { name, address });
            }
        }
        if let Some(address) = wanted.filter(|wanted| !there.clone().any(|address| address == *wanted)) {
            let name = name.clone();
            actions.push(Action::AddAddress { name, address });
        }
    }

    /// The uplink as port of the bridge.
    fn port(&self, uplink: &str, bridge: Made<'_>, vids: Option<&Vids>) -> Result<Vec<Action>, Unavailable> {
        let link = self.uplink(uplink)?;
        let mut actions = Vec::new();
        let enslaved = bridge.has(link);
        if !enslaved {
            self.check_port(uplink, link)?;
            actions.push(Action::Enslave {
                name: uplink.to_owned(),
                master: bridge_name(&self.network.name).to_string(),
            });
        }
        let Some(vids) = vids else {
            return Ok(actions);
        };
        let there = if enslaved { link.vlans.as_slice() } else { &[] };
        let foreign: Vids = there
            .iter()
            .map(|vlan| vlan.vid)
            .filter(|vid| !vids.contains(*vid))
            .collect();
        let right: Vids = there
            .iter()
            .filter(|vlan| !vlan.pvid && !vlan.untagged)
            .map(|vlan| vlan.vid)
            .collect();
        let missing: Vids = vids.iter().filter(|vid| !right.contains(*vid)).collect();
        if !foreign.is_empty() {
            actions.push(Action::RemovePortVlans {
                name: uplink.to_owned(),
                vids: foreign,
            });
        }
        if !missing.is_empty() {
            actions.push(Action::AddPortVlans {
                name: uplink.to_owned(),
                vids: missing,
                untagged: false,
            });
        }
        Ok(actions)
    }

    /// Whether the host loses nothing when the uplink becomes a port.
    fn check_port(&self, uplink: &str, link: &Link) -> Result<(), Unavailable> {
        // Of a bridge of this network that is about to be deleted, it is free by then.
        let name = bridge_name(&self.network.name);
        if link.master.is_some() && self.master_name(link) != name.as_str() {
            return Err(self.unavailable(&format!(
                "uplink {uplink} is a port of {} already; take it away there, or name another",
                self.master_name(link)
            )));
        }
        if matches!(link.kind, LinkKind::Bridge { .. }) {
            return Err(self.unavailable(&format!(
                "uplink {uplink} is a bridge, which can't be a port of one; name it as bridge instead"
            )));
        }
        let link_local = |address: &IpNet| match address {
            IpNet::V4(_) => false,
            IpNet::V6(net) => net.addr().is_unicast_link_local(),
        };
        if let Some(address) = link.addresses.iter().find(|address| !link_local(address)) {
            return Err(self.unavailable(&format!(
                "uplink {uplink} has the address {address}, which the host would lose; take it away, or make a bridge with that \
                 address yourself and name it as bridge"
            )));
        }
        let mut links = self.observed.links.values();
        let above =
            links.find(|other| matches!(other.kind, LinkKind::Vlan { parent, .. } if parent == link.index));
        if let Some(above) = above {
            return Err(self.unavailable(&format!(
                "uplink {uplink} has the VLAN sub-interface {}, which would receive nothing any more; delete that",
                above.name
            )));
        }
        Ok(())
    }

    /// The uplink's VLAN as port of the bridge.
    fn vlan(&self, uplink: &str, vid: Vid, bridge: Made<'_>) -> Result<Vec<Action>, Unavailable> {
        let parent = self.uplink(uplink)?;
        if parent.master.is_some() {
            return Err(self.unavailable(&format!(
                "uplink {uplink} is a port of {}, so that its VLANs receive nothing; take it away there, or name another",
                self.master_name(parent)
            )));
        }
        let name = vlan_link_name(uplink, vid);
        let group = self.config.link_group;
        let is_it = |link: &Link| {
            link.kind
                == LinkKind::Vlan {
                    parent: parent.index,
                    vid: vid.get(),
                }
        };
        let mut links = self.observed.links.values();
        if let Some(other) = links.find(|link| is_it(link) && link.name != name.as_str()) {
            return Err(self.unavailable(&format!(
                "VLAN {vid} of {uplink} exists as {} and is not netd's; delete it, or make a bridge with it and name that as bridge",
                other.name
            )));
        }
        let mut actions = Vec::new();
        let master = bridge_name(&self.network.name);
        let alias = network_alias(&self.network.name, None);
        let found = self.observed.links.get(name.as_str());
        if found.is_some_and(|link| link.group != group) {
            return Err(self.unavailable(&format!("{name} exists and is not netd's; delete or rename it")));
        }
        match found.filter(|link| is_it(link)) {
            Some(link) => {
                if let Some(mac) = link.mac.filter(|_| link.mtu != self.mtu) {
                    let (name, mtu) = (name.clone(), self.mtu);
                    actions.push(Action::SetLink {
                        name,
                        mac,
                        mtu,
                        group,
                    });
                }
                if !bridge.has(link) {
                    actions.push(Action::Enslave {
                        name: name.to_string(),
                        master: master.to_string(),
                    });
                }
                if !link.up {
                    actions.push(Action::Up { name: name.clone() });
                }
                if link.alias.as_ref() != Some(&alias) {
                    actions.push(Action::SetAlias { name, alias });
                }
            }
            None => {
                if found.is_some() {
                    actions.push(Action::DeleteLink { name: name.clone() });
                }
                actions.push(Action::MakeVlan {
                    name: name.clone(),
                    parent: uplink.to_owned(),
                    vid,
                    master,
                    mtu: self.mtu,
                    group,
                });
                actions.push(Action::SetAlias { name, alias });
            }
        }
        Ok(actions)
    }
}

fn sysctls_of(network: &Network, bridge: &LinkName) -> Vec<Action> {
    let write = |path: String, value: &str| Action::Sysctl {
        path,
        value: value.to_owned(),
    };
    if matches!(network.kind, Kind::Nat { .. }) {
        vec![
            write("net/ipv4/ip_forward".to_owned(), "1"),
            // For forwarded ports at 127.0.0.1; the filter keeps machines' packets from that address.
            write(format!("net/ipv4/conf/{bridge}/route_localnet"), "1"),
            write(format!("net/ipv4/conf/{bridge}/arp_ignore"), "0"),
        ]
    } else {
        // The host has no address there, and answers for none of those that it has elsewhere.
        vec![write(format!("net/ipv4/conf/{bridge}/arp_ignore"), "8")]
    }
}

/// The sysctls of all bridges of ours that there are. They are seen where they are written: no message of the kernel's tells of
/// them, so whoever applies these leaves those out that are as they should be.
#[must_use]
pub fn sysctls(config: &Config, observed: &Observed) -> Vec<Action> {
    let made = config.networks.values().filter_map(|network| {
        let name = bridge_name(&network.name);
        let link = observed.links.get(name.as_str())?;
        let alias = network_alias(&network.name, network.port());
        let ours = link.group == config.link_group && link.alias.as_ref() == Some(&alias);
        ours.then(|| sysctls_of(network, &name))
    });
    made.flatten().collect()
}

#[cfg(test)]
mod tests;
