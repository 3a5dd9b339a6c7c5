//! What somebody changed by hand: is it put right?

use rustix::process::Signal;

use crate::guest::Guest;
use crate::host::{attach_one, nic};
use crate::netd::Netd;
use crate::space::{self, Space};
use crate::state;
use crate::wait;

const CONFIG: &str = r#"
[network.default]
kind = "nat"
ipv4 = { subnet = "10.83.0.0/20", gateway = "10.83.0.1", pool = "10.83.0.2-10.83.15.254" }

[network.lan]
kind = "bridge"
uplink = "up0"
isolated = true
ipv4 = { subnet = "10.1.0.0/16", pool = "10.1.1.0-10.1.1.255" }
ipv6 = { prefix = "fd00:1::/64" }
probe = "0s"
"#;

/// What can be done to a tap of a bridge by hand, `TAP` and `MAC` standing for its name and its guest's address. The kernel tells
/// of it in a way that netd hears at once.
pub(crate) const HEARD_OF_A_TAP: [&str; 2] = ["ip link set TAP down", "ip link set TAP nomaster"];

/// The same that is found when everything is looked at: twice a minute, and when the configuration is reloaded.
pub(crate) const FOUND_OF_A_TAP: [&str; 10] = [
    "ip link set TAP mtu 1300",
    "ip link set TAP address 02:00:00:00:00:99",
    "ip link set TAP type bridge_slave isolated off",
    "ip link set TAP type bridge_slave learning on",
    "ip link set TAP type bridge_slave flood on",
    "ip link set TAP type bridge_slave bcast_flood off",
    "ip link set TAP type bridge_slave mcast_flood off",
    "ip link set TAP type bridge_slave guard off",
    "bridge fdb del MAC dev TAP master",
    "bridge fdb add 02:00:00:00:00:98 dev TAP master static",
];

/// What netd's memory is. Were it restarted now, it would not know whose the tap is.
const RECORD_OF_A_TAP: &str = "ip link set TAP alias somebody";

/// The same of bridges, of uplinks and of what is not a link.
const HEARD_OF_A_HOST: [&str; 6] = [
    "ip link set ndblan down",
    "ip link set ndblan mtu 1300",
    "ip link set ndbdefault down",
    "ip link set up0 nomaster",
    "nft delete table bridge netd",
    "nft delete table inet netd",
];
const FOUND_OF_A_HOST: [&str; 4] = [
    "ip link set ndblan address 02:00:00:00:00:97",
    "ip address del 10.83.0.1/20 dev ndbdefault",
    "sysctl ipv4/ip_forward 0",
    "sysctl ipv4/conf/ndbdefault/route_localnet 0",
];

/// Does one of these.
pub(crate) fn try_drift(host: &Space, words: &str) -> Result<String, String> {
    let words: Vec<&str> = words.split(' ').collect();
    let (program, rest) = words.split_first().expect("a program");
    host.try_run(program, rest, "")
}

/// Does one of these, which must be possible.
#[track_caller]
fn change(host: &Space, words: &str) {
    match words.strip_prefix("sysctl ").and_then(|set| set.split_once(' ')) {
        Some((path, value)) => host.set(path, value),
        None => drop(try_drift(host, words).unwrap_or_else(|error| panic!("{error}"))),
    }
}

/// Every change by hand to what is netd's is taken back soon, and counted; the guest works on.
pub(crate) fn netd_drift() {
    let host = Space::new("host");
    let neighbour = Space::new("neighbour");
    space::join((&host, "up0"), (&neighbour, "eth0"));
    neighbour.ip("address add 10.1.0.9/16 dev eth0");
    let netd = Netd::start(&host, CONFIG);
    let interface = attach_one(netd.client(), "one", nic("lan"));
    let other = attach_one(netd.client(), "other", nic("default"));
    let guest = Guest::boot(&host, &interface);
    let _other = Guest::boot(&host, &other);
    assert!(guest.reaches([10, 1, 0, 9]));
    let whole = state::ours(&host);
    let foreign = state::foreign(&host);
    let repaired = |what: &str| {
        wait::until(what, || {
            let ours = state::difference(&whole, &state::ours(&host));
            let others = state::difference(&foreign, &state::foreign(&host));
            if ours.is_empty() && others.is_empty() {
                Ok(())
            } else {
                Err(ours + &others)
            }
        });
    };
    let of_the_tap = |words: &&str| {
        words
            .replace("TAP", &interface.tap)
            .replace("MAC", &interface.mac)
    };
    let of_a_host = HEARD_OF_A_HOST.iter().map(ToString::to_string);
    for words in HEARD_OF_A_TAP.iter().map(of_the_tap).chain(of_a_host) {
        change(&host, &words);
        repaired(&words);
    }
    let of_a_host = FOUND_OF_A_HOST.iter().map(ToString::to_string);
    let of_the_tap = FOUND_OF_A_TAP.iter().chain([&RECORD_OF_A_TAP]).map(of_the_tap);
    for words in of_the_tap.chain(of_a_host) {
        change(&host, &words);
        netd.signal(Signal::HUP);
        repaired(&words);
    }
    assert!(guest.reaches([10, 1, 0, 9]));
    assert_eq!(netd.client().list().len(), 2);
}
