//! Is each bad wish for a network refused with one sentence, as Nomad shows it, and is the host then as before?

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::checks::bad_input::{Row, show};
use crate::checks::bad_jobs::judge_on;
use crate::harness::side_by_side;
use crate::host::Snapshot;
use crate::hosts::{Host, Net};
use crate::job::Order;
use crate::wait::{self, seconds};

/// Tasks at a time: none of them starts a guest.
const PARALLEL: usize = 6;

/// A job that is to be refused, and what the sentence must have.
struct Case {
    input: String,
    order: Order,
    words: Vec<&'static str>,
}

fn case(input: &str, order: Order, words: &[&'static str]) -> Case {
    Case {
        input: input.to_owned(),
        order,
        words: words.to_vec(),
    }
}

/// The stub guest with one network.
fn one(input: &str, network: Value, words: &[&'static str]) -> Case {
    case(input, Order::stub("bad", "").network(network), words)
}

fn cases() -> Vec<Case> {
    let with = |name: &str, key: &str, value: Value| {
        let mut network = json!({ "name": name });
        network[key] = value;
        network
    };
    let tenant = |key: &str, value: Value| with("tenant", key, value);
    let aware = |key: &str, value: Value| with("aware", key, value);
    let ipv4 = |input: &str, address: &'static str, words: &[&'static str]| {
        one(
            input,
            tenant("ipv4", json!(address)),
            &[&[address], words].concat(),
        )
    };
    let twice = Order::stub("bad", "").tenant("auto").tenant("none");
    let port = Order::stub("bad", "").http("tenant");
    let identity = Order::stub("bad", "")
        .tenant("auto")
        .set("identity", json!("node"));
    let both = json!({ "name": "aware", "vlan": 100, "trunk": ["100"] });
    vec![
        one(
            "a network that nobody knows",
            json!({ "name": "tenat" }),
            &["tenat", "default", "tenant"],
        ),
        one(
            "a network whose uplink is missing",
            json!({ "name": "far" }),
            &["far", "eth9"],
        ),
        case("a network twice", twice, &["tenant", "twice"]),
        ipv4(
            "an address outside the subnet",
            "10.2.0.7",
            &["outside", "10.1.0.0/16"],
        ),
        ipv4("the network's address", "10.1.0.0", &["10.1.0.0/16"]),
        ipv4("the broadcast address", "10.1.255.255", &["10.1.0.0/16"]),
        ipv4("the gateway's address", "10.1.0.1", &["gateway"]),
        ipv4("half an address", "10.1.0", &["+index"]),
        ipv4("a sum that is none", "10.1.0.10+answer", &["+index"]),
        one(
            "a sum that is no address for a VM",
            tenant("ipv4", json!("10.1.255.255+index")),
            &["10.1.255.255", "10.1.0.0/16"],
        ),
        one(
            "IPv4 where there is none",
            with("plain", "ipv4", json!("10.1.0.7")),
            &["plain", "10.1.0.7", "no IPv4"],
        ),
        one(
            "a VLAN on a network without",
            tenant("vlan", json!(100)),
            &["vlan", "tenant"],
        ),
        one(
            "a trunk on a network without",
            tenant("trunk", json!(["100-120"])),
            &["trunk", "tenant"],
        ),
        one("VLAN 0", aware("vlan", json!(0)), &["vlan", "0", "1 to 4094"]),
        one(
            "VLAN 4095",
            aware("vlan", json!(4095)),
            &["vlan", "4095", "1 to 4094"],
        ),
        one(
            "a trunk backwards",
            aware("trunk", json!(["120-100"])),
            &["trunk", "120-100"],
        ),
        one("a VLAN and a trunk", both, &["vlan", "trunk"]),
        one(
            "an MTU above the network's",
            tenant("mtu", json!(9000)),
            &["9000", "1500"],
        ),
        one(
            "an MTU that is too small",
            tenant("mtu", json!(60)),
            &["60", "68"],
        ),
        case(
            "a port on a network with own addresses",
            port,
            &["ports", "tenant"],
        ),
        case(
            "an identity of a third kind",
            identity,
            &["identity", "node", "alloc", "job"],
        ),
    ]
}

/// On a host of its own: links and rules are counted.
pub(super) fn input(net: &Net) {
    let [host] = net.own_hosts("b", 1).try_into().expect("one was asked for");
    // The first VM on a network makes what stays: bridges, the rules of NAT.
    let mut rows = taken(net, &host);
    let (before, filter) = (Snapshot::of(&host.client), rules(&host));
    rows.extend(side_by_side(PARALLEL, &cases(), |case| refused(net, &host, case)));
    let left = Snapshot::of(&host.client).since(&before);
    let made = rules(&host).difference(&filter).cloned().collect::<Vec<String>>();
    rows.push(Row {
        input: "all refusals together".to_owned(),
        sentence: "(links, rules, mounts and what belongs to no allocation)".to_owned(),
        left: left.into_iter().chain(made).collect(),
        fault: String::new(),
    });
    show("bad-input-networks.txt", &rows);
}

fn refused(net: &Net, host: &Host, case: &Case) -> Row {
    let ended = net.run(&case.order.clone().on(&host.client)).wait_terminal();
    judge_on(&case.input, &ended, &case.words, left(host, &ended.id))
}

/// What is left of an allocation, a moment later.
fn left(host: &Host, allocation: &str) -> Vec<String> {
    let gone = wait::try_until(seconds(5), || {
        let mut left = Snapshot::of(&host.client).about(allocation);
        left.extend(
            host.netd
                .of(allocation)
                .iter()
                .map(|interface| format!("{interface:?}")),
        );
        if left.is_empty() {
            Ok(())
        } else {
            Err(left.join("; "))
        }
    });
    gone.err().into_iter().collect()
}

/// What somebody else has: an address, here and on another host, and a pool's last one.
fn taken(net: &Net, host: &Host) -> Vec<Row> {
    let other = &net.hosts[0];
    let holder = net.run(&Order::stub("holder", "").tenant("10.1.0.70").on(&host.client));
    // It must answer for its address itself.
    let elsewhere = net.run(
        &Order::guest("elsewhere", "")
            .tenant("10.1.0.71")
            .on(&other.client),
    );
    let last = json!({ "name": "tiny" });
    let pool = net.run(&Order::stub("pool", "").network(last.clone()).on(&host.client));
    let _consoles = (
        holder.wait_console(crate::job::STUB_READY),
        pool.wait_console(crate::job::STUB_READY),
        elsewhere.wait_ready(),
    );
    let owner = host.netd.of(&holder.allocation)[0].id.clone();
    let cases = [
        case(
            "an address that a VM of this host has",
            Order::stub("bad", "").tenant("10.1.0.70"),
            &["10.1.0.70"],
        ),
        case(
            "an address that a VM of another host has",
            Order::stub("bad", "").tenant("10.1.0.71"),
            &["10.1.0.71"],
        ),
        case(
            "a pool of one address, which is taken",
            Order::stub("bad", "").network(last),
            &["tiny", "10.84.0.7"],
        ),
    ];
    let mut rows = side_by_side(PARALLEL, &cases, |case| refused(net, host, case));
    if !rows[0].sentence.contains(&owner) {
        rows[0]
            .fault
            .push_str(&format!(" the sentence does not name {owner}"));
    }
    for job in [holder, elsewhere, pool] {
        let _ended = job.stop_and_wait();
    }
    rows
}

/// The lines of netd's filter, without what is counted.
fn rules(host: &Host) -> BTreeSet<String> {
    let rules = host.namespace.run(&["nft", "--stateless", "list", "ruleset"]);
    rules.lines().map(|line| line.trim().to_owned()).collect()
}
