//! Which hosts can't have a network, and does the rest work?

use std::sync::atomic::{AtomicBool, Ordering};

use steppe_proto::net;
use tonic::Code;

use super::{Row, Table};
use crate::host::{attach_one, machine, nic};
use crate::netd::Netd;
use crate::space::{self, Space};
use crate::state;
use crate::wait;

const CONFIG: &str = r#"
[network.default]
kind = "nat"
ipv4 = { subnet = "10.83.0.0/20", gateway = "10.83.0.1", pool = "10.83.0.2-10.83.15.254" }

[network.missing]
kind = "bridge"
uplink = "nosuch0"

[network.down]
kind = "bridge"
uplink = "down0"

[network.enslaved]
kind = "bridge"
uplink = "port0"

[network.foreign]
kind = "bridge"

[network.nobridge]
kind = "bridge"
bridge = "nosuchbr"

[network.nolink]
kind = "bridge"
bridge = "link0"

[network.low]
kind = "bridge"
uplink = "low0"
mtu = 1500

[network.vlan]
kind = "vlan"
uplink = "up0"
vid = 100

[network.aware]
kind = "vlan-aware"
uplink = "up1"
vids = ["100"]
"#;

pub(super) fn rows() -> Vec<Row> {
    let host = Space::new("host");
    let neighbour = Space::new("host-neighbour");
    for link in ["up0", "up1", "down0", "port0", "link0", "low0"] {
        space::join((&host, link), (&neighbour, link));
    }
    host.ip("link add others type bridge\n\
         link set others up\n\
         link set port0 master others\n\
         link set down0 down\n\
         link set low0 mtu 1400\n\
         link add ndbforeign type bridge");
    let netd = Netd::start(&host, CONFIG);
    attach_one(netd.client(), "works", nic("default"));
    let mut table = Table::new(&host);
    let reason = |name: &str| {
        let networks = netd.client().networks();
        let network = networks.into_iter().find(|network| network.name == name);
        network
            .unwrap_or_else(|| panic!("{name} is not listed"))
            .unavailable
    };
    let (_, checked) = netd.command_line(&["check"]);
    for (input, network, words) in [
        ("an uplink that is missing", "missing", &["nosuch0"][..]),
        ("an uplink that is down", "down", &["down0", "down"]),
        (
            "an uplink that is another bridge's port",
            "enslaved",
            &["port0", "others"],
        ),
        (
            "a bridge of that name that is not netd's",
            "foreign",
            &["ndbforeign"],
        ),
        ("a bridge that is missing", "nobridge", &["nosuchbr"]),
        ("a bridge that is none", "nolink", &["link0", "bridge"]),
        ("an mtu above the uplink's", "low", &["low0", "1400"]),
        ("a kernel without 802.1Q", "vlan", &["8021q"]),
        ("a kernel without VLAN filtering", "aware", &["filter"]),
    ] {
        let vlan = if network == "aware" { 100 } else { 0 };
        let wanted = net::Nic { vlan, ..nic(network) };
        let said = match netd.client().attach(&machine("bad", &[nic("default"), wanted])) {
            Ok(answer) => format!("NOT REFUSED: {answer:?}"),
            Err(refused) if refused.detail.reason != "unavailable" => {
                format!("NOT unavailable BUT {refused}")
            }
            Err(refused) if !matches!(refused.code, Code::Unavailable | Code::FailedPrecondition) => {
                format!("NOT UNAVAILABLE BUT {refused}")
            }
            Err(refused) => refused.sentence,
        };
        let why = reason(network);
        let mut words = words.to_vec();
        if network == "vlan" || network == "aware" {
            // In another kernel than most hosts': the check's own kernel may have them.
            if why.is_empty() {
                continue;
            }
        }
        words.push(&why);
        table.row(input, &said, &words);
        assert!(!why.is_empty(), "{network} is no network of this host's");
        assert!(
            checked.contains(&why),
            "netd check does not say {why:?}:\n{checked}"
        );
    }
    assert_eq!(reason("default"), "");
    drop(checked);
    // What was in the way goes, and the network is there, without anybody telling netd.
    host.ip("link set down0 up\nlink set port0 nomaster\nlink del ndbforeign");
    for network in ["down", "enslaved", "foreign"] {
        wait::until("the network is available", || {
            let why = reason(network);
            if why.is_empty() { Ok(()) } else { Err(why) }
        });
        attach_one(netd.client(), &format!("on-{network}"), nic(network));
    }
    let mut rows = table.rows;
    rows.push(interrupted(&host, netd));
    rows.push(full());
    rows
}

/// An operator's bridge that has as many ports as the kernel allows.
fn full() -> Row {
    let host = Space::new("full");
    host.ip("link add full0 type bridge");
    let pairs: String = (0..512)
        .map(|pair| format!("link add l{pair} type veth peer name r{pair}\nlink set l{pair} master full0\n"))
        .collect();
    host.ip(&pairs);
    let peers: String = (0..511)
        .map(|pair| format!("link set r{pair} master full0\n"))
        .collect();
    host.ip(&peers);
    let netd = Netd::start(
        &host,
        "[network.full]\nkind = \"bridge\"\nbridge = \"full0\"\nprobe = \"0s\"\n",
    );
    let refused = netd.client().attach(&machine("bad", &[nic("full")]));
    let refused = refused.expect_err("the kernel would take no port more");
    let mut faults = Vec::new();
    if (refused.code, refused.detail.reason.as_str()) != (Code::ResourceExhausted, "bridge-full") {
        faults.push(refused.to_string());
    }
    if !refused.sentence.contains("1023") || !state::taps(&host).is_empty() {
        faults.push("it does not say how many there may be, or a tap is there".to_owned());
    }
    Row {
        input: "port 1024 of a bridge".to_owned(),
        sentence: refused.sentence,
        faults,
    }
}

/// Says the end however it comes.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Links come and go all the while, so that no dump of them is in one piece.
fn interrupted(host: &Space, mut netd: Netd<'_>) -> Row {
    let before = netd.client().list();
    let whole = state::ours(host);
    let mut table = Table::new(host);
    let ends = AtomicBool::new(false);
    let said = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ends.load(Ordering::Relaxed) {
                host.ip(&"link add churn0 type veth peer name churn1\nlink del churn0\n".repeat(20));
            }
        });
        let _ends = End(&ends);
        for _ in 0..5 {
            netd.restart();
            let listed = netd.client().list();
            assert_eq!(listed, before, "what is listed after a restart");
            attach_one(netd.client(), "meanwhile", nic("default"));
            let meanwhile = crate::host::owner("meanwhile");
            netd.client()
                .detach(&meanwhile, false)
                .expect("nobody holds it open");
        }
        "five restarts between links that come and go: all is as it was".to_owned()
    });
    // Of the filter, too, a little later than the tap.
    wait::until("what was detached is deleted", || {
        let difference = state::difference(&whole, &state::ours(host));
        if difference.is_empty() {
            Ok(())
        } else {
            Err(difference)
        }
    });
    table.row("a dump of links that is interrupted", &said, &[]);
    table.rows.remove(0)
}
