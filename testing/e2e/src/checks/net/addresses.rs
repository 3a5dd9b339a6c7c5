//! Do VMs on different hosts reach each other, and does each keep its address?

use serde_json::{Value, json};

use crate::api;
use crate::checks::witness;
use crate::hosts::{Host, Net};
use crate::job::{Job, Order};
use crate::netd::Interface;
use crate::wait::{self, seconds};

/// What a guest says of its first interface, without its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) mac: String,
    /// Without their prefix lengths.
    pub(super) ipv4: String,
    pub(super) ipv6: String,
}

impl Addresses {
    /// As the guest learned them from the file that the driver gave it.
    #[track_caller]
    pub(super) fn of_guest(job: &Job<'_>) -> Self {
        let console = job.wait_ready();
        let line = console
            .lines()
            .rev()
            .find_map(|line| line.strip_prefix("steppe-guest: eth0 on "))
            .unwrap_or_else(|| panic!("{}: no interface: {console}", job.id));
        // `tenant, 02:…, IPv4 10.1.1.7/16, IPv6 fd00:1::7/64, MTU 1500`
        let words: Vec<&str> = line.split(", ").map(str::trim).collect();
        let [_, mac, ipv4, ipv6, ..] = words.as_slice() else {
            panic!("{}: {line}", job.id);
        };
        Self::new(
            mac,
            ipv4.trim_start_matches("IPv4 "),
            ipv6.trim_start_matches("IPv6 "),
        )
    }

    fn new(mac: &str, ipv4: &str, ipv6: &str) -> Self {
        let bare = |text: &str| text.split('/').next().unwrap_or_default().to_owned();
        Self {
            mac: mac.to_owned(),
            ipv4: bare(ipv4),
            ipv6: bare(ipv6),
        }
    }

    pub(super) fn of_netd(interface: &Interface) -> Self {
        let text = |address: &Option<String>| address.clone().unwrap_or_else(|| "none".to_owned());
        Self::new(&interface.mac, &text(&interface.ipv4), &text(&interface.ipv6))
    }
}

/// Two VMs on two hosts, by IPv4 and IPv6; the addresses are those that netd has.
pub(super) fn two_vms_ping(net: &Net) {
    let [first, second, ..] = net.hosts.as_slice() else {
        panic!("there are hosts");
    };
    let answers = net.run(&Order::guest("answers", "").tenant("auto").on(&second.client));
    let there = Addresses::of_guest(&answers);
    let [interface] = second
        .netd
        .of(&answers.allocation)
        .try_into()
        .expect("it has one interface");
    assert_eq!(there, Addresses::of_netd(&interface), "{interface:?}");
    assert!(interface.carrier, "{interface:?}");

    let words = format!("steppe.ping={} steppe.ping={}", there.ipv4, there.ipv6);
    let asks = net.run(&Order::guest("asks", &words).tenant("auto").on(&first.client));
    for address in [&there.ipv4, &there.ipv6] {
        let console = asks.wait_console(&format!("steppe-guest: ping {address}: "));
        assert!(
            console.contains(&format!("ping {address}: answered")),
            "{console}"
        );
    }

    // What was attached is detached.
    for (job, host) in [(asks, first), (answers, second)] {
        let _ended = job.stop_and_wait();
        wait_detached(host, &job.allocation);
    }
}

/// Waits until an allocation's VM has no interface on a host.
#[track_caller]
pub(super) fn wait_detached(host: &Host, allocation: &str) {
    wait::until("it is detached", seconds(10), || {
        let left = host.netd.of(allocation);
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    });
}

/// The newest allocation of a job that isn't among those known, and the host that it is on.
fn next<'h>(net: &Net, hosts: &'h [Host], job: &mut Job<'_>, known: &mut Vec<String>) -> &'h Host {
    let found = wait::until(
        &format!("{}: a new allocation that runs", job.id),
        seconds(60),
        || {
            let all = net.api.allocations(&job.id)?;
            let new = all.iter().find(|allocation| !known.contains(&allocation.id));
            let new = new.ok_or_else(|| format!("none but {known:?}"))?;
            if new.client_status == "running" {
                Ok(new.clone())
            } else {
                Err(net.api.allocation(&new.id)?.story())
            }
        },
    );
    known.push(found.id.clone());
    job.allocation = found.id;
    let node = net.api.allocation(&job.allocation).expect("it is there").node_id;
    hosts
        .iter()
        .find(|host| host.client.node() == node)
        .expect("it is on one of the hosts")
}

/// Stop and start, a failure that is rescheduled, a restart of the agent, a move to another host: the same addresses.
pub(super) fn stable(net: &Net) {
    let hosts = net.own_hosts("s", 2);
    let order = Order::guest("stable", "steppe.httpd")
        .tenant("auto")
        .on_any("s")
        .service();
    // Nomad's shortest delay.
    let again = json!({ "Unlimited": true, "Delay": 5_000_000_000u64, "DelayFunction": "constant" });
    let order = order.group("ReschedulePolicy", again);
    let mut known = Vec::new();
    let mut job = net.run(&order);
    let mut host = next(net, &hosts, &mut job, &mut known);
    let first = Addresses::of_guest(&job);
    let same = |what: &str, job: &Job<'_>, host: &Host| {
        assert_eq!(Addresses::of_guest(job), first, "after {what}");
        let listed = host.netd.of(&job.allocation);
        let listed: Vec<Addresses> = listed.iter().map(Addresses::of_netd).collect();
        assert_eq!(listed, std::slice::from_ref(&first), "netd, after {what}");
        answers(&first.ipv4);
    };
    same("the start", &job, host);

    let qemu = job.qemu(&host.client);
    witness::terminate(&host.client);
    host.client.agent.start();
    host.client.wait_healthy(&net.api);
    same("the agent's restart", &job, host);
    assert_eq!(job.qemu(&host.client), qemu, "another QEMU");

    assert!(
        crate::process::signal(qemu, rustix::process::Signal::KILL),
        "QEMU is gone"
    );
    host = next(net, &hosts, &mut job, &mut known);
    same("a failure", &job, host);

    let before = job.allocation.clone();
    drain(net, host, true);
    let other = next(net, &hosts, &mut job, &mut known);
    assert_ne!(other.client.name, host.client.name, "it was not moved");
    same("a move", &job, other);
    wait_detached(host, &before);
    drain(net, host, false);

    job.stop();
    wait::until("all has ended", seconds(60), || {
        match other.netd.list().as_slice() {
            [] => Ok(()),
            left => Err(format!("{left:?}")),
        }
    });
    net.api
        .register(&order.json(&job.id))
        .expect("Nomad takes the job again");
    host = next(net, &hosts, &mut job, &mut known);
    same("a stop and a start", &job, host);
}

/// Has Nomad move away what runs on a host, or allows it to use the host again.
fn drain(net: &Net, host: &Host, away: bool) {
    let node = host.client.node();
    let spec = if away {
        json!({ "Deadline": 60_000_000_000u64 })
    } else {
        Value::Null
    };
    let request = json!({ "DrainSpec": spec, "MarkEligible": !away });
    net.api
        .post(&format!("/node/{node}/drain"), request.to_string().as_bytes())
        .expect("Nomad drains a node");
}

/// A machine on the tenants' network, which we are, gets the guest's page.
#[track_caller]
pub(super) fn answers(address: &str) {
    let http = api::client(seconds(3));
    wait::until(&format!("{address} answers"), seconds(20), || {
        let (status, _) = api::get(&http, &format!("http://{address}/"))?;
        if status == 200 {
            Ok(())
        } else {
            Err(format!("status {status}"))
        }
    });
}
