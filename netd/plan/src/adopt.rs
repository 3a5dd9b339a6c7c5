//! What is ours after a restart?

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use ipnet::IpNet;

use crate::alias::parse;
use crate::name::bridge_name;
use crate::{Attachment, Config, Ipv4, Kind, Link, LinkKind, LinkName, Network, NetworkName, Observed};

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Adopted {
    /// The attachments that taps of ours tell of.
    pub attachments: Vec<Attachment>,
    /// Taps of ours that tell of none. Their ports pass nothing; [`crate::repair()`] removes those that no process holds
    /// open.
    pub incomplete: Vec<Incomplete>,
}

/// A tap of ours that tells of no attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incomplete {
    /// Which.
    pub tap: LinkName,
    /// Why.
    pub why: String,
    /// Whether a process holds it open.
    pub carrier: bool,
}

/// The attachments there are, read from the links themselves. A tap is ours by its name and its group.
///
/// Of a network that isn't configured any more they stay, and with the addresses that they were given where a network has other
/// ones now: machines live on them.
#[must_use]
pub fn adopt(config: &Config, observed: &Observed) -> Adopted {
    let mut adopted = Adopted::default();
    let mut seen = Seen::default();
    for (tap, link) in our_taps(config, observed) {
        let read = read(&tap, link).and_then(|attachment| {
            fits(config, &attachment)?;
            seen.first(&attachment)?;
            Ok(attachment)
        });
        match read {
            Ok(attachment) => adopted.attachments.push(attachment),
            Err(why) => adopted.incomplete.push(Incomplete {
                tap,
                why,
                carrier: link.carrier,
            }),
        }
    }
    adopted
}

/// The taps that are ours, by name and group, and aren't out of the way already.
pub(crate) fn our_taps<'o>(
    config: &Config,
    observed: &'o Observed,
) -> impl Iterator<Item = (LinkName, &'o Link)> {
    let group = config.link_group;
    observed.links.values().filter_map(move |link| {
        let ours = matches!(link.kind, LinkKind::Tap { .. }) && link.group == group;
        let name = link
            .name
            .parse()
            .ok()
            .filter(|name: &LinkName| ours && name.is_tap())?;
        Some((name, link))
    })
}

fn read(tap: &LinkName, link: &Link) -> Result<Attachment, String> {
    match link.alias.as_deref() {
        None | Some("") => Err("it has no alias".to_owned()),
        Some(alias) => parse(tap, alias, &link.altnames),
    }
}

/// Whether a machine of the attachment's network can have its address. What is not of the network's subnet was given when that
/// was another one.
fn fits(config: &Config, attachment: &Attachment) -> Result<(), String> {
    let network = config.networks.get(&attachment.network);
    if let (Some(net), Some(ipv4)) = (attachment.ipv4, network.and_then(|network| network.ipv4.as_ref()))
        && ipv4.subnet.contains(&net.addr())
        && !ipv4.is_usable(net.addr())
    {
        return Err(format!(
            "its alias says {net}, which no machine of network {} ({}) has",
            attachment.network, ipv4.subnet
        ));
    }
    Ok(())
}

/// The networks of kind nat that aren't configured any more and on which machines live, as far as their bridges tell of them:
/// with the address that the host has there. What else the operator said of them is lost, and is taken as most guarded.
///
/// Of the other kinds nothing is needed: what their bridges have, they keep.
#[must_use]
pub fn orphaned<'a>(
    config: &Config,
    attachments: impl Iterator<Item = &'a Attachment>,
    observed: &Observed,
) -> Vec<Network> {
    let names: BTreeSet<&NetworkName> = attachments
        .map(|attachment| &attachment.network)
        .filter(|name| !config.networks.contains_key(*name))
        .collect();
    let nat = |name: &NetworkName| {
        let bridge = observed.links.get(bridge_name(name).as_str())?;
        let ours = matches!(bridge.kind, LinkKind::Bridge { .. }) && bridge.group == config.link_group;
        let gateway = bridge
            .addresses
            .iter()
            .filter(|_| ours)
            .find_map(|address| match address {
                IpNet::V4(net) if net.prefix_len() <= 30 => Some(*net),
                _ => None,
            })?;
        Some(Network {
            name: name.clone(),
            kind: Kind::Nat { host_access: false },
            ipv4: Some(Ipv4 {
                subnet: gateway.trunc(),
                gateway: Some(gateway.addr()),
                // Nobody is attached to it any more.
                pool: gateway.network()..=gateway.broadcast(),
            }),
            ipv6: None,
            dns: Vec::new(),
            mtu: Some(bridge.mtu),
            isolated: true,
            probe: Duration::ZERO,
        })
    };
    names.into_iter().filter_map(nat).collect()
}

/// What only one attachment can have.
#[derive(Debug, Default)]
struct Seen(HashSet<String>);

impl Seen {
    fn first(&mut self, attachment: &Attachment) -> Result<(), String> {
        let network = &attachment.network;
        let segment = attachment.mode.segment();
        let mut keys = vec![format!("MAC {} on network {network}", attachment.mac)];
        if let Some(net) = attachment.ipv4 {
            let address = net.addr();
            let vlan = if segment.is_empty() {
                String::new()
            } else {
                format!(", VLAN {segment}")
            };
            keys.push(format!("address {address} on network {network}{vlan}"));
        }
        for forward in &attachment.forwards {
            let (protocol, host, port) = (forward.protocol, forward.host_ip, forward.host_port);
            keys.push(format!("{protocol} port {port} of {host}"));
        }
        if let Some(twice) = keys.iter().find(|key| self.0.contains(*key)) {
            return Err(format!("another tap has its {twice}"));
        }
        self.0.extend(keys);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{attached, attachments, config, config_of, host};

    #[test]
    fn what_was_attached_is_found_again() {
        let mut all = attachments();
        let mut adopted = adopt(config(), &attached(config(), &all));
        assert_eq!(adopted.incomplete, []);
        all.sort_by(|one, other| one.tap.cmp(&other.tap));
        adopted.attachments.sort_by(|one, other| one.tap.cmp(&other.tap));
        assert_eq!(adopted.attachments, all);
        assert_eq!(adopt(config(), &host()), Adopted::default());
        // A network that isn't configured any more has no say.
        let bare = config_of("[network.x]\nkind = 'bridge'\n");
        assert_eq!(
            adopt(&bare, &attached(config(), &all)).attachments.len(),
            all.len()
        );
    }

    #[test]
    fn what_tells_of_nothing_is_named_with_its_reason() {
        let all = attachments();
        let why = |number: usize, change: &dyn Fn(&mut Link)| {
            let mut observed = attached(config(), &all);
            let tap = &all[number].tap;
            change(observed.links.get_mut(tap.as_str()).expect("it is there"));
            let adopted = adopt(config(), &observed);
            assert_eq!(adopted.attachments.len(), all.len() - 1);
            let found = adopted.incomplete.into_iter().find(|one| one.tap == *tap);
            found.map(|one| (one.why, one.carrier))
        };
        let replace = |from: &str, to: &str| {
            let (from, to) = (from.to_owned(), to.to_owned());
            move |link: &mut Link| link.alias = link.alias.as_ref().map(|alias| alias.replace(&from, &to))
        };
        let said = |why: &str| Some((why.to_owned(), false));
        assert_eq!(why(0, &|link| link.alias = None), said("it has no alias"));
        assert_eq!(
            why(0, &|link| link.alias = Some(String::new())),
            said("it has no alias")
        );
        assert_eq!(
            why(0, &|link| (link.alias, link.carrier) =
                (Some("x".to_owned()), true)),
            Some(("its alias is \"x\", not one of netd1".to_owned(), true))
        );
        let address = all[0].ipv4.expect("it has one");
        assert_eq!(
            why(0, &replace(&address.to_string(), "10.83.0.1/20")),
            said("its alias says 10.83.0.1/20, which no machine of network default (10.83.0.0/20) has")
        );
        // Put away, or not in our group, or no tap: not ours.
        assert_eq!(why(0, &|link| link.group = config().trash_group()), None);
        assert_eq!(why(0, &|link| link.group = 0), None);
        assert_eq!(
            why(0, &|link| link.kind = LinkKind::Other("veth".to_owned())),
            None
        );
    }

    #[test]
    fn addresses_of_before_are_kept() {
        let all = attachments();
        let mut observed = attached(config(), &all);
        for (tap, from, to) in [
            (&all[0].tap, "|10.83.", "|10.84."),
            (&all[1].tap, "fd00:1::", "fd00:9::"),
        ] {
            let link = observed.links.get_mut(tap.as_str()).expect("it is there");
            link.alias = link.alias.as_ref().map(|alias| alias.replace(from, to));
        }
        let adopted = adopt(config(), &observed);
        assert_eq!(adopted.incomplete, []);
        let of = |tap: &LinkName| adopted.attachments.iter().find(|one| one.tap == *tap);
        let ipv4 = of(&all[0].tap).and_then(|one| one.ipv4).expect("it has one");
        assert!(ipv4.to_string().starts_with("10.84."), "{ipv4}");
    }

    #[test]
    fn a_nat_network_that_is_not_configured_any_more_is_known_by_its_bridge() {
        let all = attachments();
        let observed = attached(config(), &all);
        let bare = config_of("[network.x]\nkind = 'bridge'\n");
        let found = orphaned(&bare, all.iter(), &observed);
        let [network] = found.as_slice() else {
            panic!("{found:?}");
        };
        let was = &config().networks[&network.name];
        assert_eq!(network.name.as_str(), "default");
        assert_eq!(network.kind, Kind::Nat { host_access: false });
        let subnet = |network: &Network| network.ipv4.as_ref().map(|ipv4| (ipv4.subnet, ipv4.gateway));
        assert_eq!(subnet(network), subnet(was));
        assert_eq!(orphaned(config(), all.iter(), &observed), []);
        assert_eq!(orphaned(&bare, [].iter(), &observed), []);
        // A bridge of that name that somebody else made says nothing.
        let mut foreign = observed.clone();
        foreign.links.get_mut("ndbdefault").expect("it is there").group = 0;
        assert_eq!(orphaned(&bare, all.iter(), &foreign), []);
    }

    #[test]
    fn two_that_claim_one_address_are_not_both_believed() {
        let all = attachments();
        // Two machines of one network: the second says that it has the first one's address.
        let (first, second) = (&all[1], &all[2]);
        let mut observed = attached(config(), &all);
        let (own, claimed) = (second.ipv4.expect("it has one"), first.ipv4.expect("it has one"));
        let link = observed.links.get_mut(second.tap.as_str()).expect("it is there");
        link.alias = link
            .alias
            .as_ref()
            .map(|alias| alias.replace(&own.to_string(), &claimed.to_string()));
        let adopted = adopt(config(), &observed);
        assert_eq!(adopted.incomplete.len(), 1);
        assert_eq!(
            adopted.incomplete[0].why,
            format!("another tap has its address {} on network lan", claimed.addr())
        );
    }
}
