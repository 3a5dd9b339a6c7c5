//! Which configurations are refused?

use rustix::process::Signal;

use super::{Row, Table};
use crate::host::{attach_one, nic};
use crate::netd::{How, Netd};
use crate::space::Space;
use crate::wait;

const GOOD: &str = "[network.lan]\nkind = \"bridge\"\nprobe = \"0s\"\n";

/// Files, each with what is wrong in it: the line, and words of the sentence.
const FILES: [(&str, &str, &[&str]); 22] = [
    ("no TOML", "[network.lan\nkind = \"bridge\"\n", &[":1"]),
    (
        "an unknown table",
        "[netwrk.lan]\nkind = \"bridge\"\n",
        &[":1", "netwrk", "network"],
    ),
    (
        "an unknown key",
        "[network.lan]\nkind = \"bridge\"\nvlan = 5\n",
        &[":3", "vlan", "uplink"],
    ),
    (
        "a key of another kind",
        "[network.n]\nkind = \"nat\"\nipv4 = { subnet = \"10.9.0.0/24\" }\nuplink = \"up0\"\n",
        &[":4", "uplink", "nat"],
    ),
    (
        "no kind",
        "[network.lan]\nmtu = 1500\n",
        &["lan", "kind", "vlan-aware"],
    ),
    (
        "kind vxlan",
        "[network.lan]\nkind = \"vxlan\"\n",
        &[":2", "vxlan", "vlan-aware"],
    ),
    (
        "a text where a number is wanted",
        "[network.lan]\nkind = \"bridge\"\nmtu = \"1500\"\n",
        &[":3", "mtu"],
    ),
    (
        "mtu 67",
        "[network.lan]\nkind = \"bridge\"\nmtu = 67\n",
        &[":3", "mtu", "67"],
    ),
    (
        "a name of 13 characters",
        "[network.abcdefghijklm]\nkind = \"bridge\"\n",
        &[":1", "abcdefghijklm", "12"],
    ),
    (
        "a name in capitals",
        "[network.Lan]\nkind = \"bridge\"\n",
        &[":1", "Lan"],
    ),
    (
        "an uplink of 16 characters",
        "[network.lan]\nkind = \"bridge\"\nuplink = \"abcdefghijklmnop\"\n",
        &[":3", "abcdefghijklmnop"],
    ),
    (
        "an uplink with a slash",
        "[network.lan]\nkind = \"bridge\"\nuplink = \"../up0\"\n",
        &[":3", "uplink"],
    ),
    (
        "vid 4095",
        "[network.lan]\nkind = \"vlan\"\nuplink = \"up0\"\nvid = 4095\n",
        &[":4", "4095", "4094"],
    ),
    (
        "vid 0",
        "[network.lan]\nkind = \"vlan\"\nuplink = \"up0\"\nvid = 0\n",
        &[":4", "vid"],
    ),
    (
        "one VLAN twice",
        "[network.a]\nkind = \"vlan\"\nuplink = \"up0\"\nvid = 5\n[network.b]\nkind = \"vlan\"\nuplink = \"up0\"\nvid = 5\n",
        &["VLAN 5", "up0"],
    ),
    (
        "one uplink for two bridges",
        "[network.a]\nkind = \"bridge\"\nuplink = \"up0\"\n[network.b]\nkind = \"bridge\"\nuplink = \"up0\"\n",
        &["up0"],
    ),
    (
        "a port that is a VLAN's parent, too",
        "[network.a]\nkind = \"bridge\"\nuplink = \"up0\"\n[network.b]\nkind = \"vlan\"\nuplink = \"up0\"\nvid = 5\n",
        &["up0"],
    ),
    (
        "subnets that overlap",
        "[network.a]\nkind = \"nat\"\nipv4 = { subnet = \"10.9.0.0/16\" }\n[network.b]\nkind = \"nat\"\nipv4 = { subnet = \"10.9.1.0/24\" }\n",
        &["10.9.1.0/24", "10.9.0.0/16"],
    ),
    (
        "a gateway outside the subnet",
        "[network.a]\nkind = \"nat\"\nipv4 = { subnet = \"10.9.0.0/24\", gateway = \"10.8.0.1\" }\n",
        &[":3", "gateway"],
    ),
    (
        "a pool that ends before it begins",
        "[network.a]\nkind = \"nat\"\nipv4 = { subnet = \"10.9.0.0/24\", pool = \"10.9.0.9-10.9.0.5\" }\n",
        &[":3", "pool"],
    ),
    (
        "IPv6 on nat",
        "[network.a]\nkind = \"nat\"\nipv4 = { subnet = \"10.9.0.0/24\" }\nipv6 = { prefix = \"fd00::/64\" }\n",
        &[":4", "ipv6", "nat"],
    ),
    (
        "an IPv6 prefix of 48 bits",
        "[network.a]\nkind = \"bridge\"\nipv6 = { prefix = \"fd00::/48\" }\n",
        &[":3", "64"],
    ),
];

pub(super) fn rows() -> Vec<Row> {
    let host = Space::new("config");
    let mut table = Table::new(&host);
    let mut whole = String::new();
    for (input, text, words) in FILES {
        let netd = Netd::new(&host, text, How::default());
        let (good, said) = netd.command_line(&["check"]);
        let said = if good {
            format!("NOT REFUSED: {said}")
        } else {
            one_problem(&said)
        };
        let mut words = words.to_vec();
        words.push("netd.toml");
        table.row(&format!("config with {input}"), &said, &words);
        if input != "no TOML"
            && !input.contains("one ")
            && !input.contains("overlap")
            && !input.contains("port that")
        {
            whole.push_str(
                &text
                    .replace("[network.lan]", &format!("[network.n{}]", table.rows.len()))
                    .replace("[network.a]", &format!("[network.n{}]", table.rows.len())),
            );
        }
    }

    // All of them in one file: all are said, and the daemon does not start.
    let mut netd = Netd::new(&host, &whole, How::default());
    netd.spawn();
    let failed = !netd.ended();
    let lines = netd
        .log()
        .lines()
        .filter(|line| line.contains("netd.toml:"))
        .count();
    let said = format!(
        "netd ends {}, after {lines} lines of problems",
        if failed { "with an error" } else { "well" }
    );
    table.row("config with all of these mistakes", &said, &["with an error"]);
    assert!(lines >= 14, "only {lines} problems are said:\n{}", netd.log());

    // A mistake at a reload: what was is kept.
    let mut netd = Netd::start(&host, GOOD);
    attach_one(netd.client(), "m", nic("lan"));
    table.changed();
    netd.write_config("[network.lan]\nkind = \"brigde\"\n");
    netd.signal(Signal::HUP);
    let said = wait::until("netd says what is wrong at a reload", || {
        let log = netd.log();
        let found = log.lines().rev().find(|line| line.contains("brigde"));
        found.map(said_by_log).ok_or(log.clone())
    });
    table.row(
        "reloading a config with a mistake",
        &said,
        &["netd.toml:2", "brigde"],
    );
    assert_eq!(netd.client().networks().len(), 1);

    // Where somebody listens already.
    netd.write_config(GOOD);
    let (good, said) = netd.command_line(&["serve"]);
    let said = if good {
        format!("NOT REFUSED: {said}")
    } else {
        last_line(&said)
    };
    table.row("a socket path in use", &said, &["netd.sock", "in use"]);
    assert_eq!(netd.client().list().len(), 1, "the first one goes on");
    netd.kill();
    let socket = netd.folder().join("netd.sock");
    drop(std::fs::remove_file(&socket));
    std::fs::write(&socket, "a file").expect("a file can be written");
    let (good, said) = netd.command_line(&["serve"]);
    let said = if good {
        format!("NOT REFUSED: {said}")
    } else {
        last_line(&said)
    };
    table.row("a socket path that is a file", &said, &["netd.sock"]);
    let kept = std::fs::read_to_string(&socket).expect("a file can be read");
    assert_eq!(kept, "a file", "somebody's file is not removed");
    table.rows
}

/// The only problem that is said.
fn one_problem(said: &str) -> String {
    let mut lines = said.lines().filter(|line| line.contains("netd.toml"));
    match (lines.next(), lines.next()) {
        (Some(line), None) => line.trim().to_owned(),
        (Some(_), Some(_)) => format!("MORE THAN ONE: {}", said.replace('\n', " / ")),
        (None, _) => format!("NO FILE: {}", said.replace('\n', " / ")),
    }
}

/// A line of netd's log without its time.
pub(super) fn said_by_log(line: &str) -> String {
    let words = line.split_once(' ').map_or(line, |(_time, words)| words);
    words.trim().to_owned()
}

fn last_line(said: &str) -> String {
    said.lines().last().unwrap_or_default().trim().to_owned()
}
