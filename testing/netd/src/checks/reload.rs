//! What becomes of networks whose configuration is another one than before?

use std::net::Ipv4Addr;

use rustix::process::Signal;
use tonic::Code;

use crate::guest::{self, Guest};
use crate::host::{attach_one, machine, nic, owner};
use crate::netd::Netd;
use crate::space::{self, Space};
use crate::state;
use crate::wait;

/// A network that nobody is on.
const OTHER: &str = "[network.empty]\nkind = \"bridge\"\n";

/// Network lan with an uplink.
fn lan(uplink: &str) -> String {
    format!(
        "[network.lan]\nkind = \"bridge\"\nuplink = \"{uplink}\"\nprobe = \"0s\"\n\
         ipv4 = {{ subnet = \"10.1.0.0/16\", pool = \"10.1.1.0-10.1.1.255\" }}\n"
    )
}

/// A network of kind nat.
fn nat(name: &str, subnet: &str, gateway: &str) -> String {
    format!("[network.{name}]\nkind = \"nat\"\nipv4 = {{ subnet = \"{subnet}\", gateway = \"{gateway}\" }}\n")
}

/// The links that are ports of a bridge, but for taps; none if there is no such bridge.
fn uplinks(host: &Space, bridge: &str) -> Vec<String> {
    let listed = host.json("ip", &["-j", "link", "show"]);
    let listed = listed.as_array().into_iter().flatten();
    let ports = listed.filter(|link| state::text(link, "master") == bridge);
    let names = ports.map(|link| state::text(link, "ifname").to_owned());
    names.filter(|name| !name.starts_with("ndt")).collect()
}

#[track_caller]
fn uplinks_become(host: &Space, bridge: &str, wanted: &[&str]) {
    wait::until("a network has its uplink", || {
        let found = uplinks(host, bridge);
        if found == wanted {
            Ok(())
        } else {
            Err(format!("{found:?}, and not {wanted:?}"))
        }
    });
}

/// A machine is attached, reaches somebody, and goes.
#[track_caller]
fn visit(host: &Space, netd: &Netd<'_>, address: Ipv4Addr) {
    let interface = attach_one(netd.client(), "visitor", nic("lan"));
    let guest = Guest::boot(host, &interface);
    assert!(guest.reaches(address), "nobody answers at {address}");
    drop(guest);
    wait::until("a visitor goes", || {
        let gone = netd.client().detach(&owner("visitor"), false);
        gone.map_err(|refused| refused.to_string())
    });
}

/// Another uplink, or none: a network never has that of before beside its own, and leaves no link of the operator's behind.
pub(crate) fn netd_uplink_changes() {
    let host = Space::new("host");
    let sides = [Space::new("first"), Space::new("second")];
    let there = [Ipv4Addr::new(10, 1, 0, 8), Ipv4Addr::new(10, 1, 0, 9)];
    for (number, (side, address)) in sides.iter().zip(there).enumerate() {
        space::join((&host, &format!("up{number}")), (side, "eth0"));
        side.ip(&format!("address add {address}/16 dev eth0"));
    }
    let before = state::foreign(&host);
    let mut netd = Netd::start(&host, &lan("up0"));
    visit(&host, &netd, there[0]);
    assert_eq!(uplinks(&host, "ndblan"), ["up0"]);

    // While netd runs.
    netd.write_config(&lan("up1"));
    netd.signal(Signal::HUP);
    uplinks_become(&host, "ndblan", &["up1"]);
    visit(&host, &netd, there[1]);
    // While it does not.
    netd.stop();
    netd.write_config(&lan("up0"));
    netd.begin();
    uplinks_become(&host, "ndblan", &["up0"]);
    visit(&host, &netd, there[0]);
    // Another kind of the same name.
    netd.write_config(&nat("lan", "10.7.0.0/24", "10.7.0.1"));
    netd.signal(Signal::HUP);
    uplinks_become(&host, "ndblan", &[]);
    visit(&host, &netd, Ipv4Addr::new(10, 7, 0, 1));
    netd.write_config(&lan("up1"));
    netd.signal(Signal::HUP);
    uplinks_become(&host, "ndblan", &["up1"]);
    visit(&host, &netd, there[1]);
    let addresses = host.json("ip", &["-j", "address", "show", "ndblan"]);
    let addresses = addresses[0]["addr_info"].as_array().map_or(0, Vec::len);
    assert_eq!(addresses, 0, "the host is still on the network that was nat");

    // A machine keeps it where it is.
    let stays = attach_one(netd.client(), "stays", nic("lan"));
    netd.write_config(&lan("up0"));
    refused(&netd, "network.lan:", &["what it is made of"]);
    assert_eq!(uplinks(&host, "ndblan"), ["up1"]);
    assert_eq!(netd.client().list(), [stays]);
    netd.client()
        .detach(&owner("stays"), false)
        .expect("nobody holds it open");

    netd.write_config(OTHER);
    netd.signal(Signal::HUP);
    wait::until("the network is gone", || {
        let links = state::links(&host);
        let left = links.keys().find(|name| name.starts_with("ndblan"));
        left.map_or(Ok(()), |name| Err(name.clone()))
    });
    // Of the host's own, forwarding stays on, which the kernel then says of every link.
    let unchanged = |line: &String| !line.contains("/proc/sys/");
    let [before, after] =
        [before, state::foreign(&host)].map(|lines| lines.into_iter().filter(unchanged).collect());
    state::assert_same("links of the operator's", &before, &after);
}

/// Has netd read its configuration again: it says why it doesn't take it, in one line with these words.
#[track_caller]
fn refused(netd: &Netd<'_>, place: &str, words: &[&str]) -> String {
    let said = netd.log().len();
    netd.signal(Signal::HUP);
    let line = wait::until("netd refuses a configuration", || {
        let log = netd.log();
        let line = log[said..].lines().find(|line| line.contains(place));
        line.map(str::to_owned).ok_or_else(|| log[said..].to_owned())
    });
    for word in words {
        assert!(line.contains(word), "{line}: it does not say {word}");
    }
    line
}

/// A nat network goes from the configuration, or gets other addresses, and its machine stays: with its way out, or as it was.
pub(crate) fn netd_network_vanishes() {
    let host = Space::new("host");
    let outside = Space::new("outside");
    space::join((&host, "eth0"), (&outside, "eth0"));
    host.ip("address add 198.51.100.1/24 dev eth0");
    outside.ip("address add 198.51.100.9/24 dev eth0");
    let out = Ipv4Addr::new(198, 51, 100, 9);
    let first = nat("default", "10.83.0.0/20", "10.83.0.1");
    let mut netd = Netd::start(&host, &first);
    let interface = attach_one(netd.client(), "stays", nic("default"));
    let guest = Guest::boot(&host, &interface);
    assert!(guest.reaches(out));
    let taps = state::taps(&host);
    let listed = |netd: &Netd<'_>| {
        let [one] = <[_; 1]>::try_from(netd.client().list()).expect("there is one machine");
        (one.tap, one.mac, one.ipv4, one.ipv4_gateway)
    };
    let before = listed(&netd);

    // Under another name it would be two networks.
    netd.write_config(&nat("other", "10.83.0.0/20", "10.83.0.1"));
    let words = ["10.83.0.0/20", "overlaps", "default", "detach the machines"];
    refused(&netd, "network.other:", &words);
    let names: Vec<String> = netd
        .client()
        .networks()
        .into_iter()
        .map(|network| network.name)
        .collect();
    assert_eq!(names, ["default"]);
    // Nor has a running machine another gateway.
    netd.write_config(&nat("default", "10.83.0.0/20", "10.83.0.9"));
    refused(&netd, "network.default:", &["ipv4.gateway"]);
    assert!(guest.reaches(out));
    assert_eq!(listed(&netd), before);

    // Gone while netd was away: its bridge tells of it.
    netd.kill();
    netd.write_config(OTHER);
    netd.begin();
    assert!(guest.reaches(out), "a machine has lost its way out");
    assert!(guest.reaches(Ipv4Addr::new(10, 83, 0, 1)));
    assert_eq!(listed(&netd), before);
    let refused = netd
        .client()
        .attach(&machine("late", &[nic("default")]))
        .expect_err("the network is not configured any more");
    assert_eq!(refused.code, Code::Unavailable, "{refused}");
    // Nobody says any more that the host itself may be reached, so it may not.
    let listener = host.enter(|| std::net::TcpListener::bind("0.0.0.0:8000"));
    let listener = listener.expect("a socket can be made");
    assert!(!connects(&guest, "10.83.0.1:8000"), "a machine reaches its host");
    drop(listener);

    // With other addresses: the machine keeps those that it has, and nothing is thrown away.
    netd.kill();
    netd.write_config(&nat("default", "10.84.0.0/20", "10.84.0.1"));
    netd.begin();
    netd.signal(Signal::HUP);
    let sane = attach_one(netd.client(), "new", nic("default"));
    assert!(
        guest::ipv4(&sane).octets().starts_with(&[10, 84]),
        "{}",
        sane.ipv4
    );
    netd.client()
        .detach(&owner("new"), false)
        .expect("nobody holds it open");
    let kept = listed(&netd);
    assert_eq!((&kept.0, &kept.1, &kept.2), (&before.0, &before.1, &before.2));
    wait::until("only the machine's tap is there", || {
        let found = state::taps(&host);
        if found == taps {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    });
    // With the old ones back, so is its way out.
    netd.kill();
    netd.write_config(&first);
    netd.begin();
    assert!(guest.reaches(out));
    assert_eq!(listed(&netd), before);

    // When the last machine of one that is not configured any more goes, it goes, too.
    netd.kill();
    netd.write_config(OTHER);
    netd.begin();
    assert!(guest.reaches(out));
    drop(guest);
    wait::until("the machine goes", || {
        let gone = netd.client().detach(&owner("stays"), false);
        gone.map_err(|refused| refused.to_string())
    });
    wait::until("what it had is gone", || {
        let left = state::ours(&host);
        let line = left
            .iter()
            .find(|line| line.contains("default") || line.contains(" ndt"));
        line.map_or(Ok(()), |line| Err(line.clone()))
    });
}

/// Whether a guest's connection to an address comes about within a second.
fn connects(guest: &Guest, address: &str) -> bool {
    let address = address.parse().expect("an address");
    let connect = || std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_secs(1));
    guest.space.enter(connect).is_ok()
}
