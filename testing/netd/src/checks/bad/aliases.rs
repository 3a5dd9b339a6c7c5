//! What does netd make of links that somebody else gave its marks?

use super::config::said_by_log;
use super::{Row, Table};
use crate::host::{attach_one, nic};
use crate::netd::Netd;
use crate::space::Space;
use crate::state::{self, GROUP};
use crate::wait;

const CONFIG: &str = r#"
[network.default]
kind = "nat"
ipv4 = { subnet = "10.83.0.0/20", gateway = "10.83.0.1", pool = "10.83.0.2-10.83.15.254" }

[network.lan]
kind = "bridge"
ipv4 = { subnet = "10.1.0.0/16", pool = "10.1.1.0-10.1.1.255" }
probe = "0s"
"#;

pub(super) fn rows() -> Vec<Row> {
    let host = Space::new("aliases");
    let mut netd = Netd::start(&host, CONFIG);
    let good = attach_one(netd.client(), "good", nic("lan"));
    let record = host.json("ip", &["-j", "link", "show", &good.tap]);
    let record = record[0]["ifalias"]
        .as_str()
        .expect("a tap has its record")
        .to_owned();
    let listed = netd.client().list();
    let fields: Vec<&str> = record.split('|').collect();
    let with = |place: usize, text: &str| {
        let mut fields = fields.clone();
        fields[place] = text;
        fields.join("|")
    };
    let long = "x".repeat(255);
    let mut table = Table::new(&host);
    for (input, alias) in [
        ("no alias at all", String::new()),
        ("a text of somebody else's", "uplink to the moon".to_owned()),
        ("a text as long as can be", long.clone()),
        (
            "terminal escapes and a newline",
            "netd1|\u{1b}[2J\n\r\u{7}".to_owned(),
        ),
        ("only the version", "netd1".to_owned()),
        ("another version", with(0, "netd9")),
        ("a field too few", fields[1..].join("|")),
        ("a field too many", format!("{record}|x")),
        ("another tap's record", record.clone()),
        ("an owner with a quote", with(2, "a\"; flush ruleset; \"")),
        ("a network that is not known", with(4, "nosuch")),
        ("a network with a brace", with(4, "lan } drop {")),
        ("no hardware address", with(7, "02:00:00:00:00:zz")),
        ("a group's hardware address", with(7, "ff:ff:ff:ff:ff:ff")),
        ("an address outside the network", with(8, "192.168.0.1")),
        ("user 0", with(10, "0")),
        ("a number that is too large", with(11, "99999999999999999999")),
    ] {
        // Made while netd is away: it finds it at its start.
        netd.kill();
        host.ip("tuntap add dev ndtforged mode tap user 65534 vnet_hdr");
        host.ip(&format!(
            "link set ndtforged group {GROUP}\nlink set ndtforged master ndblan up"
        ));
        if !alias.is_empty() {
            // `ip` passes it on as it is; `ip -batch` would read it.
            host.run("ip", &["link", "set", "ndtforged", "alias", &alias]);
        }
        let said_before = netd.log().len();
        netd.begin();
        assert_eq!(netd.client().list(), listed, "{input}");
        wait::until("a forged tap is removed", || {
            let taps = state::taps(&host);
            if taps.contains("ndtforged") {
                Err(format!("{taps:?}"))
            } else {
                Ok(())
            }
        });
        let log = netd.log();
        let said = log[said_before..].lines().find(|line| line.contains("ndtforged"));
        table.row(
            &format!("alias: {input}"),
            &said.map_or("nothing".to_owned(), said_by_log),
            &["ndtforged"],
        );
    }
    // Without the group it is somebody else's, whatever it is called.
    netd.kill();
    host.ip("tuntap add dev ndtforged mode tap user 65534 vnet_hdr");
    host.run("ip", &["link", "set", "ndtforged", "alias", &record]);
    table.changed();
    netd.begin();
    assert_eq!(netd.client().list(), listed);
    table.row(
        "alias: a record on a link without the group",
        "it is left alone",
        &[],
    );
    table.rows
}
