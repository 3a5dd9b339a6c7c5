//! Do Nomad's ports lead to a guest, and do its services have the right address?

use serde_json::{Value, json};

use super::addresses::{Addresses, answers};
use crate::api;
use crate::hosts::{Host, Net, SWITCH};
use crate::job::Order;
use crate::wait::{self, seconds};

/// The first page of the guest's, at an address.
fn page(address: &str) -> Result<(), String> {
    let http = api::client(seconds(3));
    let (status, body) = api::get(&http, &format!("http://{address}/"))?;
    let body = String::from_utf8_lossy(&body).into_owned();
    if status == 200 && body.starts_with("Hello") {
        Ok(())
    } else {
        Err(format!("status {status}: {body}"))
    }
}

/// The same from a host. Where many guests boot, one may be too slow for the first question.
fn reached(host: &Host, address: &str) -> Result<(), String> {
    host.namespace
        .inside(|| wait::try_until(seconds(20), || page(address)))
}

/// From another host, from the host itself, and there by 127.0.0.1; a check of Nomad's passes, and the guest reaches out.
pub(super) fn three_ways(net: &Net) {
    let [host, other, ..] = net.hosts.as_slice() else {
        panic!("there are hosts");
    };
    let mut order = Order::guest("ports", &format!("steppe.httpd steppe.ping={SWITCH}"));
    let check = json!({
        "Name": "page", "Type": "http", "Path": "/", "Interval": 1_000_000_000u64, "Timeout": 1_000_000_000u64
    });
    order = order.http("default").service().on(&host.client).group(
        "Services",
        json!([{ "Name": "ports", "Provider": "nomad", "PortLabel": "http", "Checks": [check] }]),
    );
    let job = net.run(&order);
    let _console = job.wait_ready();
    let address = job.address();
    let port = address.rsplit(':').next().expect("it has a port").to_owned();
    assert_eq!(
        address,
        format!("{}:{port}", host.client.address()),
        "the port is not the host's"
    );
    let from_other = reached(other, &address);
    let from_host = reached(host, &address);
    let from_loopback = reached(host, &format!("127.0.0.1:{port}"));
    assert_eq!(
        [from_other, from_host, from_loopback],
        [Ok(()), Ok(()), Ok(())],
        "from another host, from the host, from 127.0.0.1; netd:\n{}",
        host.netd.log()
    );
    wait::until("the check passes", seconds(20), || {
        let checks: Value = host
            .client
            .agent
            .api()
            .get(&format!("/client/allocation/{}/checks", job.allocation))?;
        let states: Vec<&Value> = checks
            .as_object()
            .into_iter()
            .flatten()
            .map(|(_, check)| &check["Status"])
            .collect();
        if states == ["success"] {
            Ok(())
        } else {
            Err(checks.to_string())
        }
    });
    let console = job.wait_console(&format!("steppe-guest: ping {SWITCH}: "));
    assert!(console.contains(&format!("ping {SWITCH}: answered")), "{console}");

    let _ended = job.stop_and_wait();
    let refused = host.namespace.inside(|| page(&format!("127.0.0.1:{port}")));
    assert!(refused.is_err(), "the port still leads somewhere");
}

/// Services with the guest's own address and port, however they ask for it; they are gone before the guest powers off.
pub(super) fn service_driver_address(net: &Net) {
    // Address mode and port: a number of the guest's, or a label of the group's with `to`. "auto" is the same on such a network.
    const SERVICES: [(&str, &str); 3] = [("driver", "80"), ("driver", "http"), ("auto", "http")];
    let mut order = Order::guest("service", "steppe.httpd")
        .on(&net.hosts[0].client)
        .service();
    order.ports.push(("http".to_owned(), 80));
    order = order.tenant("auto");
    let name = |(mode, port): (&str, &str)| format!("own-{mode}-{port}");
    let service = |(mode, port)| {
        let name = name((mode, port));
        json!({ "Name": name, "Provider": "nomad", "PortLabel": port, "AddressMode": mode })
    };
    let services = SERVICES.map(service);
    order.further.task.insert("Services".to_owned(), json!(services));
    let job = net.run(&order);
    let guest = Addresses::of_guest(&job);
    let registered = |service| -> Result<Vec<(String, u64)>, String> {
        let all: Value = net.api.get(&format!("/service/{}", name(service)))?;
        let one = |entry: &Value| {
            let address = entry["Address"].as_str().unwrap_or_default().to_owned();
            (address, entry["Port"].as_u64().unwrap_or_default())
        };
        Ok(all.as_array().into_iter().flatten().map(one).collect())
    };
    for service in SERVICES {
        wait::until(&name(service), seconds(10), || {
            let found = registered(service)?;
            if found == [(guest.ipv4.clone(), 80)] {
                Ok(())
            } else {
                Err(format!("{found:?}, and not {guest:?}"))
            }
        });
    }
    answers(&guest.ipv4);

    job.stop();
    // When the guest says this, it has seen its power button: the services must have gone before.
    let _console = job.wait_console("steppe-guest: powering off");
    for service in SERVICES {
        assert_eq!(
            registered(service),
            Ok(Vec::new()),
            "{} outlived its guest",
            name(service)
        );
    }
    let _ended = job.wait_terminal();
}
