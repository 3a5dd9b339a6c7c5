//! Do Nomad's ports lead to a guest, and do its services have the right address?

use std::io::{BufRead, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};

use serde_json::{Value, json};

use super::addresses::{Addresses, answers};
use crate::agent::PLUGIN;
use crate::api;
use crate::checks::witness::terminate;
use crate::hosts::{Host, Net, SWITCH};
use crate::job::Order;
use crate::wait::{self, seconds};
use crate::world::{place, required};

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

/// Where the plugin is about to have a guest's power button pressed.
const BEFORE_POWER_BUTTON: &str = "stop.power-button.before";

/// Has a client launch the plugin that was built with crash points. What comes is held at this one until it is dropped; all
/// others are passed.
fn hold_at(net: &Net, host: &Host, point: &'static str) -> Receiver<UnixStream> {
    let scratch = net.scratch.path();
    let (programs, path) = (scratch.join("points"), scratch.join("points.sock"));
    place(&required("STEPPE_POINTS_PLUGIN_DIR", PLUGIN), &programs);
    let listener = UnixListener::bind(&path).expect("a socket can be made in the scratch folder");
    let (tell, held) = channel();
    // It ends with the run.
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let mut line = String::new();
            // It says its name at once, or has been killed.
            if BufReader::new(&connection).read_line(&mut line).is_ok() && line.starts_with(point) {
                // Whoever held it may be gone.
                drop(tell.send(connection));
            }
        }
    });
    let client = &host.client;
    terminate(client);
    let option = |programs: &Path| format!("plugin_dir = \"{}\"", programs.display());
    client
        .agent
        .reconfigure(&option(&client.plugins), &option(&programs));
    client
        .agent
        .start_by(&["env", &format!("STEPPE_POINTS={}", path.display())]);
    client.wait_healthy(&net.api);
    held
}

/// Services with the guest's own address and port, however they ask for it; they are gone before the guest is asked to power
/// off.
pub(super) fn service_driver_address(net: &Net) {
    let [host] = net.own_hosts("p", 1).try_into().expect("one was asked for");
    let held = hold_at(net, &host, BEFORE_POWER_BUTTON);
    // Address mode and port: a number of the guest's, or a label of the group's with `to`. "auto" is the same on such a network.
    const SERVICES: [(&str, &str); 3] = [("driver", "80"), ("driver", "http"), ("auto", "http")];
    let mut order = Order::guest("service", "steppe.httpd").on(&host.client).service();
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
    let asked = held
        .recv_timeout(seconds(60))
        .expect("the driver is about to press the power button");
    // Nothing was asked of the guest yet.
    for service in SERVICES {
        assert_eq!(
            registered(service),
            Ok(Vec::new()),
            "{} is there when its guest is asked to power off",
            name(service)
        );
    }
    answers(&guest.ipv4);
    assert!(
        !job.console().contains("powering off"),
        "the guest was asked already"
    );
    drop(asked);
    let _console = job.wait_console("steppe-guest: powering off");
    let _ended = job.wait_terminal();
}
