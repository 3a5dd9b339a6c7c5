//! Is a tap device what its VM may use, and no more?

use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::addresses::{Addresses, wait_detached};
use crate::checks::escape::{Results, results};
use crate::hosts::{Host, Net};
use crate::job::Order;
use crate::process;
use crate::world::{replace, required};

/// How many attempts there are on a tap device: whoever takes one away says so here, too.
const TRIED: usize = 11;

/// What a guest that broke out into QEMU makes of its tap: `testing/inmate` in QEMU's place is refused what the same program can do
/// with one that it made itself.
pub(super) fn escape(net: &Net) {
    let folder = net.scratch.path().join("inmate");
    fs::create_dir(&folder).expect("a folder can be made in the scratch folder");
    let program = folder.join("qemu-inmate");
    replace(&required("STEPPE_INMATE", ""), &program);
    let hosts = net.own_hosts_with("e", 1, &format!("    qemu = {program:?}\n"));
    let [host] = hosts.as_slice() else {
        panic!("there is one host");
    };

    let output = Command::new(&program)
        .args(["control", "inmate.escape.kind=taps"])
        .stdin(Stdio::null())
        .output()
        .expect("the inmate can be started");
    let unconfined = results(&String::from_utf8_lossy(&output.stdout));

    let order = Order::stub("taps", "inmate.escape inmate.escape.kind=taps");
    let job = net.run(&order.tenant("auto").on(&host.client));
    let _ended = job.wait_terminal();
    let confined = results(&job.console());

    let judge = |how: &str, (tried, whole): &(Results, bool), wanted: &str| {
        assert!(*whole && tried.len() == TRIED, "{how}: {tried:?}");
        let others: Vec<_> = tried.iter().filter(|(_, result)| result != wanted).collect();
        assert!(others.is_empty(), "{how}, not {wanted}: {others:?}");
    };
    judge("unconfined", &unconfined, "done");
    // EPERM is the filter's answer: of the kernel's own, some would be others.
    judge("confined", &confined, "refused EPERM");
}

/// A VM with two virtual processors has two queues, and both are in use.
pub(super) fn multi_queue(net: &Net) {
    // Its own: Nomad takes the cores from all others on a host.
    let hosts = net.own_hosts("q", 1);
    let [host] = hosts.as_slice() else {
        panic!("there is one host");
    };
    let gateway = ["10.1.0.1", "fd00:1::1"];
    let words = gateway.map(|address| format!("steppe.ping={address}")).join(" ");
    let mut order = Order::guest("queues", &words).tenant("auto").on(&host.client);
    order.cores = 2;
    let job = net.run(&order);
    let guest = Addresses::of_guest(&job);
    for address in gateway {
        let console = job.wait_console(&format!("steppe-guest: ping {address}: "));
        assert!(
            console.contains(&format!("ping {address}: answered")),
            "{console}"
        );
    }
    let [interface] = host
        .netd
        .of(&job.allocation)
        .try_into()
        .expect("it has one interface");
    assert_eq!(guest, Addresses::of_netd(&interface));

    let (name, tap) = tap_of(host, &job.allocation);
    // Queues that the guest does not use are disabled.
    let wanted = (&Value::Bool(true), &Value::from(2), &Value::from(0));
    let seen = (&tap["multi_queue"], &tap["numqueues"], &tap["numdisabled"]);
    assert_eq!(seen, wanted, "{name}: {tap}");

    let qemu = job.qemu(&host.client);
    let arguments = process::one(qemu).expect("it runs").arguments;
    let after = |option: &str| {
        let at = arguments.iter().position(|argument| argument == option);
        at.and_then(|at| arguments.get(at + 1))
            .cloned()
            .unwrap_or_default()
    };
    assert_eq!(after("-smp"), "2", "{arguments:?}");
    let netdev: Value = serde_json::from_str(&after("-netdev")).unwrap_or_default();
    let queues: Vec<&str> = netdev["fds"].as_str().unwrap_or_default().split(':').collect();
    assert_eq!(queues.len(), 2, "{netdev}");
    for queue in queues {
        let text = fs::read_to_string(format!("/proc/{qemu}/fdinfo/{queue}")).unwrap_or_default();
        let of = text.lines().find_map(|line| line.strip_prefix("iff:"));
        assert_eq!(
            of.map(str::trim),
            Some(name.as_str()),
            "descriptor {queue}: {text}"
        );
    }

    let _ended = job.stop_and_wait();
    wait_detached(host, &job.allocation);
}

/// The name of an allocation's only tap, and what the kernel says of it as a tap.
#[track_caller]
fn tap_of(host: &Host, allocation: &str) -> (String, Value) {
    let text = host.namespace.run(&["ip", "-details", "-json", "link", "show"]);
    let links: Vec<Value> = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let is_its = |link: &&Value| {
        let alias = link["ifalias"].as_str().unwrap_or_default();
        alias.contains(allocation)
    };
    let [link] = links.iter().filter(is_its).collect::<Vec<_>>()[..] else {
        panic!("not one link of {allocation}: {text}");
    };
    let name = link["ifname"].as_str().unwrap_or_default().to_owned();
    (name, link["linkinfo"]["info_data"].clone())
}
