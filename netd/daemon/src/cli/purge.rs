//! What is netd's on this host, and how does all of it go?

use netd::apply::Hands;
use netd::observe;
use netd_plan::filter;
use netd_plan::{Action, Config, Link, LinkKind, LinkName, Observed, alias, sweep};
use steppe_daemon::text::plain;
use steppe_daemon::{chain, socket};

use super::settings::needed;
use super::{Arguments, CliError, Outcome};

pub(super) fn run(arguments: &Arguments) -> Result<Outcome, CliError> {
    let loaded = needed(arguments)?;
    let failed = |error: &dyn std::error::Error| CliError::failed(chain(error));
    // A netd that runs would make again what it misses.
    let _reserved = socket::reserve(&loaded.socket(arguments), "netd").map_err(|error| failed(&error))?;
    let config = &loaded.config;
    let mut hands = Hands::open(config.link_group).map_err(|error| failed(&error))?;
    let look = |hands: &mut Hands| {
        let seen = observe::all(&mut hands.netlink);
        seen.map(|seen| seen.observed).map_err(|error| failed(&error))
    };
    let found = look(&mut hands)?;
    let open = open(config, &found);
    if !open.is_empty() && !arguments.force {
        let taps = open.join(", ");
        return Err(CliError::failed(format!(
            "machines are running on {taps}: stop them first, or end their traffic with --force; nothing was removed"
        )));
    }
    let apply = |hands: &mut Hands, actions: Vec<Action>| {
        actions
            .iter()
            .try_for_each(|action| hands.apply(action))
            .map_err(|error| failed(&error))
    };
    apply(&mut hands, out_of_the_way(config, &found))?;
    let trashed = look(&mut hands)?;
    apply(&mut hands, sweep(config, &trashed))?;
    // The filter last: as long as there is a port, it is filtered.
    let bridges = delete(config, &found);
    apply(&mut hands, bridges)?;
    let text = filter::purge();
    apply(&mut hands, vec![Action::Filter { text }])?;
    let left = ours(config, &look(&mut hands)?).count();
    if left > 0 {
        return Err(CliError::failed(format!(
            "{left} links of netd's are still there: somebody makes them again"
        )));
    }
    Ok(said(config, &found).into())
}

/// The links that are netd's, by name and group, whether they wait to be deleted or not.
fn ours<'a>(config: &Config, observed: &'a Observed) -> impl Iterator<Item = (LinkName, &'a Link)> {
    let groups = [config.link_group, config.trash_group()];
    observed.links.values().filter_map(move |link| {
        let name = link.name.parse::<LinkName>().ok()?;
        groups.contains(&link.group).then_some((name, link))
    })
}

/// Taps that a process holds open.
fn open(config: &Config, observed: &Observed) -> Vec<String> {
    ours(config, observed)
        .filter(|(name, link)| name.is_tap() && link.carrier)
        .map(|(name, _)| name.to_string())
        .collect()
}

/// Taps go as one group.
fn out_of_the_way(config: &Config, observed: &Observed) -> Vec<Action> {
    let taps = ours(config, observed).filter(|(name, _)| name.is_tap());
    taps.map(|(name, _)| Action::Trash {
        name,
        group: config.trash_group(),
        altnames: Vec::new(),
    })
    .collect()
}

/// VLANs before the bridges that they are ports of.
fn delete(config: &Config, observed: &Observed) -> Vec<Action> {
    let mut rest: Vec<LinkName> = ours(config, observed)
        .map(|(name, _)| name)
        .filter(|name| !name.is_tap())
        .collect();
    rest.sort_by_key(LinkName::is_bridge);
    rest.into_iter().map(|name| Action::DeleteLink { name }).collect()
}

/// One line for each link.
fn said(config: &Config, observed: &Observed) -> String {
    let mut text = String::new();
    for (name, link) in ours(config, observed) {
        let what = match &link.kind {
            LinkKind::Tap { .. } => "tap",
            LinkKind::Bridge { .. } => "bridge",
            LinkKind::Vlan { .. } => "VLAN",
            LinkKind::Other(_) => "link",
        };
        let owner = link.alias.as_deref().and_then(|text| {
            let attachment = alias::parse(&name, text, &link.altnames).ok()?;
            let owner = &attachment.owner;
            Some(format!(" of {}/{}", owner.instance(), owner.id()))
        });
        text.push_str(&plain(&format!(
            "removed {what} {name}{}",
            owner.unwrap_or_default()
        )));
        text.push('\n');
    }
    text + "nothing of netd's is left: no link, no filter\n"
}

#[cfg(test)]
mod tests {
    use netd_plan::Mac;

    use super::*;

    fn link(name: &str, group: u32, kind: LinkKind) -> Link {
        Link {
            index: 1,
            name: name.to_owned(),
            kind,
            group,
            alias: None,
            altnames: Vec::new(),
            mac: Some(Mac([2, 0, 0, 0, 0, 1])),
            mtu: 1500,
            up: true,
            carrier: name.ends_with("open"),
            master: None,
            port: None,
            vlans: Vec::new(),
            fdb: Default::default(),
            addresses: Default::default(),
        }
    }

    #[test]
    fn only_what_name_and_group_say_goes() {
        let (config, _) = Config::embedded();
        let (ours, trash) = (config.link_group, config.trash_group());
        let tap = || LinkKind::Tap {
            uid: Some(1),
            multi_queue: false,
            persistent: true,
        };
        let other = || LinkKind::Other("dummy".to_owned());
        let observed = Observed {
            links: [
                link("ndbdefault", ours, other()),
                link("ndtopen", ours, tap()),
                link("ndtshut", trash, tap()),
                link("ndv5.abcd", ours, other()),
                // The name alone, the group alone.
                link("ndtforeign", 0, tap()),
                link("eth0", ours, other()),
            ]
            .map(|link| (link.name.clone(), link))
            .into(),
        };
        assert_eq!(open(&config, &observed), ["ndtopen"]);
        let names = |actions: Vec<Action>| -> Vec<String> {
            let names = actions.into_iter().map(|action| match action {
                Action::Trash { name, .. } | Action::DeleteLink { name } => name.to_string(),
                other => panic!("{other}"),
            });
            names.collect()
        };
        assert_eq!(names(out_of_the_way(&config, &observed)), ["ndtopen", "ndtshut"]);
        assert_eq!(names(delete(&config, &observed)), ["ndv5.abcd", "ndbdefault"]);
        assert_eq!(
            said(&config, &observed).lines().collect::<Vec<_>>(),
            [
                "removed link ndbdefault",
                "removed tap ndtopen",
                "removed tap ndtshut",
                "removed link ndv5.abcd",
                "nothing of netd's is left: no link, no filter",
            ]
        );
    }
}
