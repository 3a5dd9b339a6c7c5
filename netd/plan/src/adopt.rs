//! What is ours after a restart?

use std::collections::HashSet;

use crate::alias::parse;
use crate::{Attachment, Config, Link, LinkKind, LinkName, Observed};

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
/// Of a network that isn't configured any more they stay: machines live on them.
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

/// Whether the attachment's addresses are the network's, as far as it is known.
fn fits(config: &Config, attachment: &Attachment) -> Result<(), String> {
    let Some(network) = config.networks.get(&attachment.network) else {
        return Ok(());
    };
    if let (Some(net), Some(ipv4)) = (attachment.ipv4, &network.ipv4)
        && (!ipv4.is_usable(net.addr()) || net.prefix_len() != ipv4.subnet.prefix_len())
    {
        return Err(format!(
            "its alias says {net}, which no machine of network {} ({}) has",
            network.name, ipv4.subnet
        ));
    }
    if let (Some(net), Some(ipv6)) = (attachment.ipv6, &network.ipv6)
        && net.trunc() != ipv6.prefix
    {
        return Err(format!(
            "its alias says {net}, which no machine of network {} ({}) has",
            network.name, ipv6.prefix
        ));
    }
    Ok(())
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
        assert_eq!(
            why(0, &replace(&address.to_string(), "10.84.0.5/20")),
            said("its alias says 10.84.0.5/20, which no machine of network default (10.83.0.0/20) has")
        );
        let prefix = "its alias says fd00:9::";
        let (said, _) = why(1, &replace("fd00:1::", "fd00:9::")).expect("it is incomplete");
        assert!(said.starts_with(prefix), "{said}");
        // Put away, or not in our group, or no tap: not ours.
        assert_eq!(why(0, &|link| link.group = config().trash_group()), None);
        assert_eq!(why(0, &|link| link.group = 0), None);
        assert_eq!(
            why(0, &|link| link.kind = LinkKind::Other("veth".to_owned())),
            None
        );
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
