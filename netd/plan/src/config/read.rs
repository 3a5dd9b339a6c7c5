//! What do the texts say, key by key?

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use steppe_config::{Place, Problems, Table, each, quoted};

use super::address;
use super::check::{self, Said};
use super::{Config, Kind, MTU, MTU_MIN_IPV6, Network, Problem, Settings};
use crate::name::{BRIDGE, LINK_NAME_MAX, NETWORK_NAME_MAX, TAP, VLAN};
use crate::{NetworkName, Vid, Vids};

const PROBE: Duration = Duration::from_millis(300);
const PROBE_MAX: Duration = Duration::from_secs(10);

const TOP: &[&str] = &["daemon", "network"];
/// Each kind of network with its keys.
const KINDS: &[(&str, &[&str])] = &[
    ("nat", &["kind", "mtu", "ipv4", "dns", "isolated", "host_access"]),
    (
        "bridge",
        &[
            "kind", "mtu", "ipv4", "ipv6", "dns", "isolated", "probe", "bridge", "uplink",
        ],
    ),
    (
        "vlan",
        &[
            "kind", "mtu", "ipv4", "ipv6", "dns", "isolated", "probe", "uplink", "vid",
        ],
    ),
    (
        "vlan-aware",
        &[
            "kind", "mtu", "ipv4", "ipv6", "dns", "isolated", "probe", "bridge", "uplink", "vids", "vid",
        ],
    ),
];

pub(super) fn read(files: &[(String, String)]) -> Result<(Config, Settings), Vec<Problem>> {
    let mut problems = Problems::default();
    let (embedded, mut settings) = Config::embedded();
    let mut link_group = embedded.link_group;
    let mut said: BTreeMap<NetworkName, Said> = BTreeMap::new();
    let mut names_networks = false;
    each(files, &mut problems, |top, problems| {
        top.refuse_unknown("keys", TOP, problems);
        if let Some(daemon) = top.table("daemon", problems) {
            read_daemon(&daemon, &mut settings, &mut link_group, problems);
        }
        let Some(networks) = top.table("network", problems) else {
            return;
        };
        for (key, at) in networks.keys() {
            names_networks = true;
            let Ok(name) = NetworkName::from_str(key) else {
                problems.add(
                    at,
                    format!(
                        "network {} can't be named so: give 1 to {NETWORK_NAME_MAX} characters of a-z, 0-9 and -, \
                         beginning with a letter, so that its bridge's name has at most {LINK_NAME_MAX}",
                        quoted(key)
                    ),
                );
                continue;
            };
            if let Some(first) = said.get(&name) {
                let file = files.get(first.at.file).map_or("", |(name, _)| name.as_str());
                let line = first.at.line;
                problems.add(
                    at,
                    format!(
                        "network {name} is said a second time, first at {file}:{line}: leave one of them out"
                    ),
                );
                continue;
            }
            if let Some(table) = networks.table(key, problems)
                && let Some(one) = read_network(&table, &name, at, problems)
            {
                said.insert(name, one);
            }
        }
    });
    check::together(&said, &mut problems);
    if !problems.is_empty() {
        return Err(problems.finish(files));
    }
    let networks = if names_networks {
        said.into_iter()
            .map(|(name, said)| (name, said.network))
            .collect()
    } else {
        embedded.networks
    };
    Ok((Config { link_group, networks }, settings))
}

fn read_daemon(
    table: &Table<'_, '_>,
    settings: &mut Settings,
    link_group: &mut u32,
    problems: &mut Problems,
) {
    let keys: Vec<&str> = Settings::KEYS.into_iter().chain(["link_group"]).collect();
    table.refuse_unknown("keys of [daemon]", &keys, problems);
    settings.read(table, problems);
    // Group 0 is every other link's, and one more than the group must be a group as well.
    if let Some((group, _)) = table.number("link_group", 1..=u32::MAX - 1, problems) {
        *link_group = group;
    }
}

/// One `[network.NAME]` table, if it makes sense.
fn read_network(
    table: &Table<'_, '_>,
    name: &NetworkName,
    at: Place,
    problems: &mut Problems,
) -> Option<Said> {
    let names = || KINDS.iter().map(|(kind, _)| *kind).collect::<Vec<_>>().join(", ");
    let Some((kind, kind_at)) = table.text("kind", problems) else {
        if table.place("kind").is_none() {
            problems.add(at, format!("network {name} has no kind; give one of {}", names()));
        }
        return None;
    };
    let Some((kind, keys)) = KINDS.iter().find(|(known, _)| *known == kind) else {
        problems.add(
            kind_at,
            format!(
                "{} is {}; give one of {}",
                table.key("kind"),
                quoted(kind),
                names()
            ),
        );
        return None;
    };
    table.refuse_unknown(&format!("keys of networks of kind {kind}"), keys, problems);
    let before = problems.len();
    let nat = *kind == "nat";
    let mtu = table.number("mtu", MTU, problems).map(|(mtu, _)| mtu);
    let ipv4 = match table.table("ipv4", problems) {
        Some(ipv4) => address::ipv4(&ipv4, nat, problems),
        None => None,
    };
    if nat && table.place("ipv4").is_none() {
        problems.add(
            at,
            format!("network {name} of kind nat has no ipv4; give it one, such as ipv4 = {{ subnet = \"10.84.0.0/20\" }}"),
        );
    }
    let ipv6 = match table.table("ipv6", problems) {
        Some(ipv6) if keys.contains(&"ipv6") => address::ipv6(&ipv6, problems),
        _ => None,
    };
    if let (Some(mtu), Some(_), Some(place)) = (mtu, &ipv6, table.place("mtu"))
        && mtu < MTU_MIN_IPV6
    {
        problems.add(
            place,
            format!(
                "{} is {mtu}; IPv6 needs {MTU_MIN_IPV6} or more: raise it or leave ipv6 out",
                table.key("mtu")
            ),
        );
    }
    let dns = read_dns(table, problems);
    let isolated = table.flag("isolated", problems).unwrap_or(false);
    let probe = if nat {
        Duration::ZERO
    } else {
        read_probe(table, problems)
    };
    let uplink = read_link(table, "uplink", problems);
    let bridge = read_link(table, "bridge", problems);
    if let (Some(_), Some(_), Some(place)) = (&uplink, &bridge, table.place("bridge")) {
        problems.add(
            place,
            format!("network {name} has both a bridge, which exists, and an uplink for one that is made: leave one out"),
        );
    }
    let vid = table
        .number("vid", 1..=u32::from(Vid::MAX), problems)
        .and_then(|(vid, _)| Vid::new(vid));
    let kind = match *kind {
        "nat" => Kind::Nat {
            host_access: table.flag("host_access", problems).unwrap_or(false),
        },
        "bridge" => Kind::Bridge { bridge, uplink },
        "vlan" => {
            for key in ["uplink", "vid"] {
                if table.place(key).is_none() {
                    problems.add(
                        at,
                        format!("network {name} of kind vlan has no {key}; give it one"),
                    );
                }
            }
            match (uplink, vid) {
                (Some(uplink), Some(vid)) => Kind::Vlan { uplink, vid },
                _ => return None,
            }
        }
        _ => Kind::VlanAware {
            bridge,
            uplink,
            vids: read_vids(table, name, at, vid, problems),
            vid,
        },
    };
    let network = Network {
        name: name.clone(),
        kind,
        mtu,
        ipv4,
        ipv6,
        dns,
        isolated,
        probe,
    };
    let place = |key| table.place(key).unwrap_or(at);
    let said = Said {
        at,
        ipv4: place("ipv4"),
        bridge: place("bridge"),
        uplink: place("uplink"),
        network,
    };
    (problems.len() == before).then_some(said)
}

fn read_dns(table: &Table<'_, '_>, problems: &mut Problems) -> Vec<IpAddr> {
    let mut servers = Vec::new();
    for (text, at) in table.texts("dns", false, problems).unwrap_or_default() {
        match IpAddr::from_str(&text) {
            Ok(address) if !address.is_unspecified() && !address.is_multicast() && !address.is_loopback() => {
                servers.push(address);
            }
            _ => problems.add(
                at,
                format!(
                    "{} has {}; give addresses of name servers",
                    table.key("dns"),
                    quoted(&text)
                ),
            ),
        }
    }
    servers
}

/// `probe`: a number with `ms` or `s`, or "0".
fn read_probe(table: &Table<'_, '_>, problems: &mut Problems) -> Duration {
    let Some((text, at)) = table.text("probe", problems) else {
        return PROBE;
    };
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number: Option<u64> = plain.then(|| digits.parse().ok()).flatten();
    let probe = number.and_then(|number| match &text[digits.len()..] {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "" if number == 0 => Some(Duration::ZERO),
        _ => None,
    });
    probe.filter(|probe| *probe <= PROBE_MAX).unwrap_or_else(|| {
        problems.add(
            at,
            format!(
                "{} is {}; give a time such as \"300ms\", at most \"{}s\", or \"0\"",
                table.key("probe"),
                quoted(text),
                PROBE_MAX.as_secs()
            ),
        );
        PROBE
    })
}

/// Name of a link of the operator's.
fn read_link(table: &Table<'_, '_>, key: &str, problems: &mut Problems) -> Option<String> {
    let (text, at) = table.text(key, problems)?;
    let possible = (1..=LINK_NAME_MAX).contains(&text.len())
        && text != "."
        && text != ".."
        && !text.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%'));
    if !possible {
        problems.add(
            at,
            format!(
                "{} is {}, which no link can be named; give the name of one that exists, of at most {LINK_NAME_MAX} bytes",
                table.key(key),
                quoted(text)
            ),
        );
        return None;
    }
    if text == "lo" || [TAP, BRIDGE, VLAN].iter().any(|ours| text.starts_with(ours)) {
        problems.add(
            at,
            format!(
                "{} is {text}, which is no link of the operator's; give another",
                table.key(key)
            ),
        );
        return None;
    }
    Some(text.to_owned())
}

fn read_vids(
    table: &Table<'_, '_>,
    name: &NetworkName,
    at: Place,
    vid: Option<Vid>,
    problems: &mut Problems,
) -> Vids {
    let said = table.texts("vids", true, problems);
    let Some(place) = table.place("vids") else {
        problems.add(
            at,
            format!("network {name} of kind vlan-aware has no vids; give those that jobs may ask for, such as [\"100-120\"]"),
        );
        return Vids::default();
    };
    let mut vids = BTreeSet::new();
    for (text, at) in said.unwrap_or_default() {
        match Vids::parse(&[&text]) {
            Ok(some) => vids.extend(some.iter()),
            Err(bad) => problems.add(at, format!("{}: {bad}", table.key("vids"))),
        }
    }
    let vids = Vids::from_iter(vids);
    if vids.is_empty() {
        problems.add(place, format!("{} names no VLAN", table.key("vids")));
    } else if let Some(vid) = vid.filter(|vid| !vids.contains(*vid)) {
        problems.add(
            table.place("vid").unwrap_or(at),
            format!("{} is {vid}, which is not among vids ({vids})", table.key("vid")),
        );
    }
    vids
}
