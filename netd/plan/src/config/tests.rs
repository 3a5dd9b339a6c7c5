//! Is each mistake of the operator's told, all at once, with its place?

use super::*;

fn parse(texts: &[&str]) -> Result<(Config, Settings), Vec<String>> {
    let files: Vec<(String, String)> = texts
        .iter()
        .enumerate()
        .map(|(number, text)| (format!("f{number}"), (*text).to_owned()))
        .collect();
    Config::parse(&files).map_err(|problems| problems.iter().map(Problem::to_string).collect())
}

#[test]
fn nothing_said_is_what_is_embedded() {
    let embedded = Config::embedded();
    for texts in [&[][..], &[""], &["", "# a comment\n"], &["[daemon]\n"]] {
        assert_eq!(parse(texts), Ok(embedded.clone()));
    }
    let said = "[network.default]\nkind = 'nat'\nipv4 = { subnet = '10.83.0.0/20' }\n";
    assert_eq!(parse(&[said]), Ok(embedded.clone()));
    let (config, settings) = embedded;
    assert_eq!((config.link_group, config.trash_group()), (0x6e64, 0x6e65));
    assert_eq!(settings, Settings::at(SOCKET));
    assert_eq!(settings.socket, "/run/netd/netd.sock");
}

#[test]
fn everything_that_can_be_said() {
    let text = r#"
[daemon]
socket = "/run/other.sock"
drivers = ["nomad", 1001]
readers = ["prometheus"]
metrics = "[::1]:9470"
log_level = "debug"
link_group = 0x77

[network.nat]
kind = "nat"
mtu = 9000
ipv4 = { subnet = "172.16.0.0/24", gateway = "172.16.0.254", pool = "172.16.0.10 - 172.16.0.20" }
dns = ["1.1.1.1", "2606:4700::1111"]
isolated = true
host_access = true

[network.made]
kind = "bridge"

[network.lan]
kind = "bridge"
uplink = "eth1.7"
probe = "1s"
ipv4 = { subnet = "172.16.0.0/24" }
ipv6 = { prefix = "fd00:1::/64", gateway = "fe80::1" }

[network.v]
kind = "vlan"
uplink = "eth0"
vid = 100
probe = "0"

[network.aware]
kind = "vlan-aware"
bridge = "br0"
vids = [7, "100-120", "200,201"]
vid = 7
"#;
    let (config, settings) = parse(&[text]).expect("good");
    assert_eq!(
        settings,
        Settings {
            socket: "/run/other.sock".to_owned(),
            drivers: vec!["nomad".to_owned(), "1001".to_owned()],
            readers: vec!["prometheus".to_owned()],
            metrics: Some("[::1]:9470".to_owned()),
            log_level: "debug".to_owned(),
        }
    );
    assert_eq!(config.link_group, 0x77);
    let network = |name: &str| {
        let found = config
            .networks
            .values()
            .find(|network| network.name.as_str() == name);
        found.cloned().expect("it was said")
    };
    let nat = network("nat");
    assert_eq!(nat.kind, Kind::Nat { host_access: true });
    assert_eq!(
        (nat.mtu, nat.isolated, nat.probe, nat.dns.len()),
        (Some(9000), true, Duration::ZERO, 2)
    );
    let ipv4 = nat.ipv4.as_ref().expect("said");
    assert_eq!(ipv4.gateway, Some([172, 16, 0, 254].into()));
    assert_eq!(
        (ipv4.pool.clone(), ipv4.pool_size()),
        ([172, 16, 0, 10].into()..=[172, 16, 0, 20].into(), 11)
    );
    assert_eq!(
        (nat.bridge().as_str(), nat.is_foreign(), nat.uplink()),
        ("ndbnat", false, None)
    );
    assert_eq!(
        network("made").kind,
        Kind::Bridge {
            bridge: None,
            uplink: None
        }
    );
    let lan = network("lan");
    assert_eq!(
        (lan.uplink(), lan.probe, lan.kind_name()),
        (Some("eth1.7"), Duration::from_secs(1), "bridge")
    );
    let ipv4 = lan.ipv4.as_ref().expect("said");
    assert_eq!(
        (ipv4.gateway, ipv4.pool.clone()),
        (None, [172, 16, 0, 1].into()..=[172, 16, 0, 254].into())
    );
    assert_eq!(
        lan.ipv6.as_ref().and_then(|ipv6| ipv6.gateway),
        Some("fe80::1".parse().expect("good"))
    );
    let vlan = network("v");
    assert_eq!((vlan.kind_name(), vlan.probe), ("vlan", Duration::ZERO));
    let aware = network("aware");
    assert_eq!(
        (aware.bridge().as_str(), aware.is_foreign(), aware.probe),
        ("br0", true, Duration::from_millis(300))
    );
    assert!(
        matches!(aware.kind, Kind::VlanAware { vids, vid: Some(vid), .. } if vids.to_string() == "7,100-120,200-201" && vid.get() == 7)
    );
}

#[test]
fn drop_ins_override_and_add() {
    let (config, settings) = parse(&[
        "[daemon]\nlog_level = 'debug'\ndrivers = ['a']\n[network.a]\nkind = 'bridge'\n",
        "[daemon]\ndrivers = []\n",
        "[network.b]\nkind = 'bridge'\n",
    ])
    .expect("good");
    assert_eq!(
        (settings.log_level.as_str(), settings.drivers.len()),
        ("debug", 0)
    );
    let names: Vec<&str> = config.networks.keys().map(NetworkName::as_str).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(
        parse(&[
            "[network.a]\nkind = 'bridge'\n",
            "\n[network.a]\nkind = 'bridge'\n"
        ]),
        Err(vec![
            "f1:2: network a is said a second time, first at f0:1: leave one of them out".to_owned()
        ])
    );
}

#[test]
fn each_mistake_has_its_line_and_sentence() {
    let nat = "[network.a]\nkind = 'nat'\n";
    let lan = "[network.a]\nkind = 'bridge'\n";
    let aware = "[network.a]\nkind = 'vlan-aware'\n";
    let cases = [
        (
            "",
            "deamon = 1",
            "f0:1: \"deamon\" is no key here; keys are daemon, network",
        ),
        ("", "daemon = 1", "f0:1: daemon is of type integer; give a table"),
        (
            "[daemon]\n",
            "sockt = ''",
            "f0:2: \"daemon.sockt\" is no key here; keys of [daemon] are socket, drivers, readers, metrics, log_level, link_group",
        ),
        (
            "[daemon]\n",
            "socket = 'netd.sock'",
            "f0:2: daemon.socket is \"netd.sock\"; give an absolute path of at most 107 bytes",
        ),
        (
            "[daemon]\n",
            "socket = 7",
            "f0:2: daemon.socket is of type integer; give a text in quotes",
        ),
        (
            "[daemon]\n",
            "drivers = 'root'",
            "f0:2: daemon.drivers is of type string; give a list of texts in quotes",
        ),
        (
            "[daemon]\n",
            "drivers = [1.5]",
            "f0:2: daemon.drivers is of type float; give a list of texts in quotes",
        ),
        (
            "[daemon]\n",
            "drivers = ['a b']",
            "f0:2: daemon.drivers has \"a b\", which is no user's name or id",
        ),
        (
            "[daemon]\n",
            "metrics = '9470'",
            "f0:2: daemon.metrics is \"9470\"; give an address and a port, such as \"127.0.0.1:9470\"",
        ),
        (
            "[daemon]\n",
            "log_level = 'loud'",
            "f0:2: daemon.log_level is \"loud\"; give one of error, warn, info, debug, trace",
        ),
        (
            "[daemon]\n",
            "link_group = 0",
            "f0:2: daemon.link_group is 0; give 1 to 4294967294",
        ),
        (
            "[daemon]\n",
            "link_group = -1",
            "f0:2: daemon.link_group is -1; give 1 to 4294967294",
        ),
        (
            "",
            "[network.a]\n",
            "f0:1: network a has no kind; give one of nat, bridge, vlan, vlan-aware",
        ),
        (
            "",
            "[network.a]\nkind = 'vxlan'",
            "f0:2: network.a.kind is \"vxlan\"; give one of nat, bridge, vlan, vlan-aware",
        ),
        (
            "",
            "[network.a]\nkind = 1",
            "f0:2: network.a.kind is of type integer; give a text in quotes",
        ),
        (
            "",
            "[network.abcdefghijklm]\nkind = 'bridge'",
            "f0:1: network \"abcdefghijklm\" can't be named so: give 1 to 12 characters of a-z, 0-9 and -, beginning with a letter, so \
             that its bridge's name has at most 15",
        ),
        (
            "",
            "[network.\"A b\"]\nkind = 'bridge'",
            "f0:1: network \"A b\" can't be named so",
        ),
        (
            "",
            "network.a = 5",
            "f0:1: network.a is of type integer; give a table",
        ),
        (
            "",
            "[network.a]\nkind = 'nat'",
            "f0:1: network a of kind nat has no ipv4; give it one",
        ),
        (
            nat,
            "ipv4 = {}",
            "f0:3: network.a.ipv4 has no subnet; give one, such as \"10.1.0.0/16\"",
        ),
        (
            nat,
            "ipv4 = { subnet = '10.1.0.0' }",
            "f0:3: network.a.ipv4.subnet is \"10.1.0.0\"; give a subnet such as",
        ),
        (
            nat,
            "ipv4 = { subnet = '10.1.0.7/16' }",
            "f0:3: network.a.ipv4.subnet is 10.1.0.7/16, which is an address in a subnet; the subnet is 10.1.0.0/16",
        ),
        (
            nat,
            "ipv4 = { subnet = '10.1.0.0/31' }",
            "f0:3: network.a.ipv4.subnet is 10.1.0.0/31; the prefix length of a subnet of machines is 8 to 30",
        ),
        (
            nat,
            "ipv4 = { subnet = '127.0.0.0/8' }",
            "f0:3: network.a.ipv4.subnet is 127.0.0.0/8, which no machine can have",
        ),
        (
            nat,
            "ipv4 = { subnet = '239.0.0.0/8' }",
            "which no machine can have",
        ),
        (
            nat,
            "ipv4 = { subnet = '10.1.0.0/24', gateway = '10.1.1.1' }",
            "f0:3: network.a.ipv4.gateway is 10.1.1.1; give an address of 10.1.0.0/24, from 10.1.0.1 to 10.1.0.254",
        ),
        (
            nat,
            "ipv4 = { subnet = '10.1.0.0/24', gateway = '10.1.0.0' }",
            "network.a.ipv4.gateway is 10.1.0.0; give an address of",
        ),
        (
            nat,
            "ipv4 = { subnet = '10.1.0.0/24', gateway = '10.1.0.255' }",
            "network.a.ipv4.gateway is 10.1.0.255; give an address of",
        ),
        (
            nat,
            "ipv4 = { subnet = '10.1.0.0/24', gateway = 'gw' }",
            "network.a.ipv4.gateway is \"gw\"; give an IPv4 address",
        ),
        (
            nat,
            "ipv4 = { subnet = '10.1.0.0/24', pool = '10.1.0.200-10.1.1.5' }",
            "f0:3: network.a.ipv4.pool is \"10.1.0.200-10.1.1.5\", which is not within 10.1.0.0/24: give addresses from 10.1.0.1 to \
             10.1.0.254",
        ),
        (
            nat,
            "ipv4 = { subnet = '10.1.0.0/24', pool = '10.1.0.0-10.1.0.9' }",
            "which is not within 10.1.0.0/24",
        ),
        (
            nat,
            "ipv4 = { subnet = '10.1.0.0/24', pool = '10.1.0.9-10.1.0.5' }",
            "network.a.ipv4.pool ends before it begins: give \"10.1.0.5-10.1.0.9\"",
        ),
        (
            nat,
            "ipv4 = { subnet = '10.1.0.0/24', pool = '10.1.0.9' }",
            "give two addresses such as \"10.1.1.0-10.1.1.255\"",
        ),
        (
            nat,
            "ipv4 = { subnet = '10.1.0.0/24', dhcp = 1 }",
            "\"network.a.ipv4.dhcp\" is no key here; keys of network.a.ipv4 are subnet, gateway, pool",
        ),
        (
            nat,
            "ipv4 = { subnet = '10.1.0.0/24' }\nipv6 = { prefix = 'fd00::/64' }",
            "f0:4: \"network.a.ipv6\" is no key here; keys of networks of kind nat are kind, mtu, ipv4, dns, isolated, host_access",
        ),
        (
            nat,
            "ipv4 = { subnet = '10.1.0.0/24' }\nprobe = '0'",
            "f0:4: \"network.a.probe\" is no key here",
        ),
        (lan, "mtu = 67", "f0:3: network.a.mtu is 67; give 68 to 65535"),
        (
            lan,
            "mtu = 65536",
            "f0:3: network.a.mtu is 65536; give 68 to 65535",
        ),
        (
            lan,
            "mtu = '1500'",
            "f0:3: network.a.mtu is of type string; give a number",
        ),
        (
            lan,
            "mtu = 1279\nipv6 = { prefix = 'fd00::/64' }",
            "f0:3: network.a.mtu is 1279; IPv6 needs 1280 or more",
        ),
        (lan, "ipv6 = {}", "f0:3: network.a.ipv6 has no prefix; give one"),
        (
            lan,
            "ipv6 = { prefix = 'fd00::/48' }",
            "f0:3: network.a.ipv6.prefix is \"fd00::/48\"; give a prefix of 64 bits",
        ),
        (
            lan,
            "ipv6 = { prefix = 'fd00::1/64' }",
            "give a prefix of 64 bits",
        ),
        (lan, "ipv6 = { prefix = 'ff02::/64' }", "give a prefix of 64 bits"),
        (lan, "ipv6 = { prefix = 'fe80::/64' }", "give a prefix of 64 bits"),
        (
            lan,
            "ipv6 = { prefix = 'fd00::/64', gateway = 'fd01::1' }",
            "network.a.ipv6.gateway is \"fd01::1\"; give an address of fd00::/64 or of fe80::/10",
        ),
        (
            lan,
            "dns = ['dns.example']",
            "f0:3: network.a.dns has \"dns.example\"; give addresses of name servers",
        ),
        (
            lan,
            "dns = ['127.0.0.1']",
            "f0:3: network.a.dns has \"127.0.0.1\"; give addresses of name servers",
        ),
        (
            lan,
            "isolated = 1",
            "f0:3: network.a.isolated is of type integer; give true or false",
        ),
        (
            lan,
            "probe = '11s'",
            "f0:3: network.a.probe is \"11s\"; give a time such as \"300ms\", at most \"10s\", or \"0\"",
        ),
        (lan, "probe = '5'", "network.a.probe is \"5\"; give a time"),
        (lan, "probe = '-1s'", "network.a.probe is \"-1s\"; give a time"),
        (lan, "probe = '99999999999999999999s'", "give a time"),
        (
            lan,
            "bridge = 'br0'\nuplink = 'eth0'",
            "f0:3: network a has both a bridge, which exists, and an uplink for one that is made",
        ),
        (
            lan,
            "uplink = 'a-name-of-16-ch'\nmtu = 1",
            "f0:4: network.a.mtu is 1",
        ),
        (
            lan,
            "uplink = 'a-name-of-16-chr'",
            "f0:3: network.a.uplink is \"a-name-of-16-chr\", which no link can be named",
        ),
        (lan, "uplink = 'a/b'", "which no link can be named"),
        (lan, "uplink = '..'", "which no link can be named"),
        (
            lan,
            "uplink = 'lo'",
            "f0:3: network.a.uplink is lo, which is no link of the operator's; give another",
        ),
        (
            lan,
            "bridge = 'ndbdefault'",
            "f0:3: network.a.bridge is ndbdefault, which is no link of the operator's",
        ),
        (
            lan,
            "vid = 5",
            "f0:3: \"network.a.vid\" is no key here; keys of networks of kind bridge are",
        ),
        (
            "[network.a]\nkind = 'vlan'\n",
            "vid = 5",
            "f0:1: network a of kind vlan has no uplink; give it one",
        ),
        (
            "[network.a]\nkind = 'vlan'\n",
            "uplink = 'eth0'",
            "f0:1: network a of kind vlan has no vid; give it one",
        ),
        (
            "[network.a]\nkind = 'vlan'\nuplink = 'e'\n",
            "vid = 0",
            "f0:4: network.a.vid is 0; give 1 to 4094",
        ),
        (
            "[network.a]\nkind = 'vlan'\nuplink = 'e'\n",
            "vid = 4095",
            "f0:4: network.a.vid is 4095; give 1 to 4094",
        ),
        (
            aware,
            "",
            "f0:1: network a of kind vlan-aware has no vids; give those that jobs may ask for",
        ),
        (aware, "vids = []", "f0:3: network.a.vids names no VLAN"),
        (
            aware,
            "vids = ['0']",
            "f0:3: network.a.vids: \"0\" is no VLAN and no range of VLANs",
        ),
        (
            aware,
            "vids = ['5-4095']",
            "network.a.vids: \"5-4095\" is no VLAN and no range of VLANs",
        ),
        (
            aware,
            "vids = ['120-100']",
            "network.a.vids: \"120-100\" is no VLAN",
        ),
        (
            aware,
            "vids = ['100']\nvid = 101",
            "f0:4: network.a.vid is 101, which is not among vids (100)",
        ),
    ];
    for (before, text, sentence) in cases {
        let problems = parse(&[&format!("{before}{text}")]).expect_err(text);
        assert!(
            problems.iter().any(|problem| problem.contains(sentence)),
            "{text}\n{problems:#?}\n{sentence}"
        );
    }
}

#[test]
fn what_is_no_toml_is_told_with_its_line() {
    for (text, place) in [
        ("[network.a\n", "f0:1: "),
        ("a = 1\n\nb = \n", "f0:3: "),
        ("[daemon]\nsocket = '/a'\nsocket = '/b'\n", "f0:3: "),
    ] {
        let problems = parse(&[text, "x = 1"]).expect_err(text);
        assert!(problems[0].starts_with(place), "{problems:?}");
        assert!(
            problems.iter().all(|problem| !problem.contains('\n')),
            "{problems:?}"
        );
        // The other file is looked at all the same.
        assert!(
            problems
                .last()
                .is_some_and(|problem| problem.starts_with("f1:1: ")),
            "{problems:?}"
        );
    }
}

#[test]
fn networks_that_do_not_go_together() {
    let text = "
[network.a]
kind = 'nat'
ipv4 = { subnet = '10.1.0.0/16' }
[network.b]
kind = 'nat'
ipv4 = { subnet = '10.1.128.0/20' }
[network.c]
kind = 'bridge'
ipv4 = { subnet = '10.1.0.0/16' }
bridge = 'br0'
[network.d]
kind = 'vlan-aware'
bridge = 'br0'
vids = ['1-5']
[network.e]
kind = 'vlan'
uplink = 'eth0'
vid = 7
[network.f]
kind = 'vlan'
uplink = 'eth0'
vid = 7
[network.g]
kind = 'vlan'
uplink = 'eth0'
vid = 8
[network.h]
kind = 'bridge'
uplink = 'eth0'
[network.i]
kind = 'vlan-aware'
uplink = 'eth1'
vids = ['1']
[network.j]
kind = 'bridge'
uplink = 'eth1'
";
    let shared = "can't share the uplink eth0: as port of a bridge it has no VLAN sub-interfaces; one network of kind vlan-aware \
                  serves both";
    assert_eq!(
        parse(&[text]).expect_err("wrong"),
        [
            "f0:7: network b's subnet 10.1.128.0/20 overlaps network a's, 10.1.0.0/16; give another"
                .to_owned(),
            "f0:14: network d has the bridge br0 that network c has; one bridge is one network".to_owned(),
            "f0:22: network f has VLAN 7 of uplink eth0 that network e has; give another VLAN".to_owned(),
            format!("f0:30: network h and network e {shared}"),
            format!("f0:30: network h and network f {shared}"),
            format!("f0:30: network h and network g {shared}"),
            "f0:37: network j has the uplink eth1 that network i has; a link is a port of one bridge"
                .to_owned(),
        ]
    );
}

#[test]
fn all_problems_come_at_once_in_order() {
    let problems = parse(&[
        "[network.a]\nkind = 'vlan'\nvid = 0\nmtu = 1\nfoo = 1\n[daemon]\nlog_level = 1\n",
        "[network.b]\nkind = 'x'\n",
    ])
    .expect_err("wrong");
    let places: Vec<&str> = problems
        .iter()
        .filter_map(|problem| problem.split(' ').next())
        .collect();
    assert_eq!(places, ["f0:1:", "f0:3:", "f0:4:", "f0:5:", "f0:7:", "f1:2:"]);
}

proptest::proptest! {
    #[test]
    fn garbage_never_panics(text in "\\PC{0,60}", key in "[a-z_0-9]{1,8}", value in "[-a-z0-9'\\[\\]{}., :/]{0,30}") {
        let _ = parse(&[&text]);
        for kind in ["nat", "bridge", "vlan", "vlan-aware"] {
            let _ = parse(&[&format!("[network.{key}]\nkind = '{kind}'\n{key} = {value}\nipv4 = {{ subnet = '{value}' }}\n")]);
        }
    }
}
