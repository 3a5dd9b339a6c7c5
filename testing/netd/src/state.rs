//! What is there in a network namespace, in a form that two looks can be compared in?

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::space::Space;

/// Group of netd's links.
pub(crate) const GROUP: u64 = 0x6e64;

/// Group of what it is about to delete.
pub(crate) const TRASH: u64 = GROUP + 1;

/// All links with their addresses and VLANs, by name.
pub(crate) fn links(space: &Space) -> BTreeMap<String, Value> {
    let listed = space.json("ip", &["-d", "-j", "address", "show"]);
    let listed = listed.as_array().expect("ip lists links").clone();
    let mut links: BTreeMap<String, Value> = listed
        .into_iter()
        .filter(|link| link.get("ifname").is_some())
        .map(|link| (text(&link, "ifname").to_owned(), link))
        .collect();
    let vlans = space.json("bridge", &["-j", "vlan", "show"]);
    for port in vlans.as_array().into_iter().flatten() {
        if let Some(link) = links.get_mut(text(port, "ifname")) {
            link["vlans"] = port["vlans"].clone();
        }
    }
    let entries = space.json("bridge", &["-j", "fdb", "show"]);
    for entry in entries.as_array().into_iter().flatten() {
        // What the bridge has learned comes and goes, and so do the groups that the kernel itself listens to.
        let group = text(entry, "mac").starts_with("33:33:") || text(entry, "mac").starts_with("01:00:5e:");
        let lasting = !group && matches!(entry["state"].as_str(), Some("static" | "permanent"));
        if let Some(link) = links.get_mut(text(entry, "ifname")).filter(|_| lasting) {
            let list = link
                .as_object_mut()
                .expect("it is one")
                .entry("fdb")
                .or_insert(json!([]));
            list.as_array_mut().expect("it was made").push(entry.clone());
        }
    }
    for link in links.values_mut() {
        settle(link);
    }
    links
}

/// A field of a JSON object as text, empty where there is none.
pub(crate) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// Takes out of a link what changes by itself, and orders what has no order.
fn settle(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, _| !CHANGING.contains(&key.as_str()) && !key.ends_with("_timer"));
            if let Some(Value::Object(port)) = map.get_mut("info_slave_data") {
                port.retain(|key, _| !PORT_NUMBERS.contains(&key.as_str()));
            }
            if let Some(Value::Array(flags)) = map.get_mut("flags") {
                flags.retain(|flag| !CARRIER.contains(&flag.as_str().unwrap_or_default()));
            }
            map.values_mut().for_each(settle);
        }
        Value::Array(list) => {
            list.iter_mut().for_each(settle);
            list.sort_by_key(ToString::to_string);
        }
        _ => {}
    }
}

/// Numbers that the kernel counts up or draws, and states that follow from others' doing.
const CHANGING: [&str; 14] = [
    "operstate",
    "root_port",
    "ifindex",
    "link_index",
    "handle",
    "packets",
    "bytes",
    "hello_timer",
    "topology_change",
    "topology_change_detected",
    "valid_life_time",
    "preferred_life_time",
    "tentative",
    "config_pending",
];

/// Flags of links that tell what others do.
const CARRIER: [&str; 2] = ["LOWER_UP", "NO-CARRIER"];

/// What of a port follows from the order in which ports came, and from its carrier.
const PORT_NUMBERS: [&str; 4] = ["id", "no", "designated_port", "state"];

/// Whether a link is netd's: by name and group.
pub(crate) fn is_ours(link: &Value) -> bool {
    let group = match &link["group"] {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    text(link, "ifname").starts_with("nd") && matches!(group, Some(GROUP | TRASH))
}

/// What the rules of a chain are called here.
const RULES: &str = "rules of ";

/// The tables of nftables, by family and name; each chain and map in order of its name, without counts.
pub(crate) fn tables(space: &Space) -> BTreeMap<String, Value> {
    let listed = space.json("nft", &["-j", "list", "ruleset"]);
    let mut tables: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    for object in listed["nftables"].as_array().into_iter().flatten() {
        let Some((kind, object)) = object.as_object().and_then(|object| object.iter().next()) else {
            continue;
        };
        if kind == "metainfo" {
            continue;
        }
        let family = text(object, "family").to_owned();
        let table = text(object, if kind == "table" { "name" } else { "table" }).to_owned();
        let entries = tables.entry(format!("{family} {table}")).or_default();
        let mut object = object.clone();
        if kind == "rule" {
            // Rules of a chain have an order.
            let chain = format!("{RULES}{}", text(&object, "chain"));
            strip(&mut object);
            let rules = entries.entry(chain).or_insert(json!([]));
            rules.as_array_mut().expect("it was made").push(object);
        } else {
            settle(&mut object);
            entries.insert(format!("{kind} {}", text(&object, "name")), object);
        }
    }
    tables
        .into_iter()
        .map(|(name, entries)| (name, Value::Object(entries)))
        .collect()
}

/// Takes counts and handles out of a rule.
fn strip(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, _| !CHANGING.contains(&key.as_str()));
            map.values_mut().for_each(strip);
        }
        Value::Array(list) => list.iter_mut().for_each(strip),
        _ => {}
    }
}

/// Whether a table is netd's.
fn is_our_table(name: &str) -> bool {
    name.ends_with(" netd")
}

/// Sysctls of which netd sets some: those of every link that is not its own, and the namespace's.
const SYSCTLS: [&str; 6] = [
    "ipv4/conf",
    "ipv6/conf",
    "ipv4/ip_forward",
    "ipv4/ip_unprivileged_port_start",
    "ipv4/neigh",
    "bridge",
];

fn sysctls(space: &Space, ours: &BTreeSet<String>) -> BTreeMap<String, String> {
    space.enter(|| {
        let mut found = BTreeMap::new();
        for path in SYSCTLS {
            read_sysctls(format!("/proc/sys/net/{path}"), ours, &mut found);
        }
        found
    })
}

fn read_sysctls(path: String, ours: &BTreeSet<String>, found: &mut BTreeMap<String, String>) {
    if let Ok(entries) = std::fs::read_dir(&path) {
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !ours.contains(&name) {
                read_sysctls(format!("{path}/{name}"), ours, found);
            }
        }
    } else if let Ok(text) = std::fs::read_to_string(&path) {
        found.insert(path, text.trim().to_owned());
    }
}

/// A JSON value as lines, so that two looks differ in few of them. Of lists the order doesn't matter, but that of rules does.
fn flatten(path: &str, value: &Value, lines: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => map
            .iter()
            .for_each(|(key, value)| flatten(&format!("{path} {key}"), value, lines)),
        Value::Array(list) => {
            for (number, value) in list.iter().enumerate() {
                let number = if path.contains(RULES) {
                    number.to_string()
                } else {
                    String::new()
                };
                lines.insert(format!("{path}[{number}] {value}"));
            }
        }
        value => drop(lines.insert(format!("{path} {value}"))),
    }
}

/// Everything in a namespace that is not netd's, line by line.
pub(crate) fn foreign(space: &Space) -> BTreeSet<String> {
    let all = links(space);
    let (ours, others): (BTreeMap<_, _>, BTreeMap<_, _>) =
        all.into_iter().partition(|(_, link)| is_ours(link));
    let ours: BTreeSet<String> = ours.into_keys().collect();
    let mut lines = BTreeSet::new();
    for (name, link) in &others {
        flatten(&format!("link {name}"), link, &mut lines);
    }
    for (name, table) in tables(space).iter().filter(|(name, _)| !is_our_table(name)) {
        flatten(&format!("table {name}"), table, &mut lines);
    }
    for family in ["-4", "-6"] {
        let routes = space.run("ip", &[family, "route", "show", "table", "all"]);
        let of_ours = |line: &str| {
            let mut words = line.split_whitespace();
            words.any(|word| word == "dev") && words.next().is_some_and(|name| ours.contains(name))
        };
        // The kernel makes routes for multicast when it finds the time.
        let routes = routes
            .lines()
            .filter(|line| !of_ours(line) && !line.starts_with("multicast "));
        let settled = |line: &str| line.replace(" linkdown", "").trim().to_owned();
        lines.extend(routes.map(|line| format!("route {}", settled(line))));
    }
    let values = sysctls(space, &ours);
    lines.extend(
        values
            .into_iter()
            .map(|(path, value)| format!("{path} = {value}")),
    );
    lines
}

/// Everything in a namespace that is netd's, line by line.
pub(crate) fn ours(space: &Space) -> BTreeSet<String> {
    let links = links(space);
    let mut lines = BTreeSet::new();
    for (name, link) in links.iter().filter(|(_, link)| is_ours(link)) {
        flatten(&format!("link {name}"), link, &mut lines);
    }
    for (name, table) in tables(space).iter().filter(|(name, _)| is_our_table(name)) {
        flatten(&format!("table {name}"), table, &mut lines);
    }
    lines
}

/// Names of netd's taps, in use and about to be deleted.
pub(crate) fn taps(space: &Space) -> BTreeSet<String> {
    let listed = space.json("ip", &["-j", "link", "show"]);
    let listed = listed.as_array().into_iter().flatten();
    let taps = listed.filter(|link| is_ours(link) && text(link, "ifname").starts_with("ndt"));
    taps.map(|link| text(link, "ifname").to_owned()).collect()
}

/// What differs between two looks, for a person; empty where nothing does.
pub(crate) fn difference(before: &BTreeSet<String>, after: &BTreeSet<String>) -> String {
    let gone = before.difference(after).map(|line| format!("- {line}"));
    let come = after.difference(before).map(|line| format!("+ {line}"));
    gone.chain(come).collect::<Vec<_>>().join("\n")
}

/// Panics where two looks differ.
#[track_caller]
pub(crate) fn assert_same(what: &str, before: &BTreeSet<String>, after: &BTreeSet<String>) {
    let difference = difference(before, after);
    assert!(difference.is_empty(), "{what}:\n{difference}");
}
