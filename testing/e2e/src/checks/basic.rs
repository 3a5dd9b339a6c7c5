//! Is the driver there, and does it say at once what it will not do?

use std::time::Duration;

use serde_json::{Map, Value};

use crate::api::now_ns;
use crate::job::{Job, Order};
use crate::wait::seconds;
use crate::world::World;

/// A little more than the driver's pause between two looks at the host.
const STABLE_FOR: Duration = seconds(33);

/// Nomad's client registers once more some seconds after its start, when all first fingerprints are in, whatever they are.
const SETTLES_WITHIN: Duration = seconds(12);

/// The driver is listed as healthy, with attributes, and the node isn't registered anew all the time.
///
/// On a client of its own: whatever an allocation does changes its node's index.
pub(super) fn driver_healthy(world: &World) {
    let options = "state_dir = \"DIRECTORY/state\"\nrun_dir = \"DIRECTORY/run\"\nuser_network = true";
    let client = world.client("idle", options);
    client.agent.start();
    client.wait_healthy(&world.api);
    let first = world.api.node(&client.node()).expect("the server answers");
    let driver = first.drivers.get("microvm").expect("the node lists the driver");
    assert!(driver.detected && driver.healthy, "{driver:?}");
    assert!(driver.health_description.contains("Healthy"), "{driver:?}");
    for (attribute, known) in [
        ("driver.microvm", "1"),
        ("driver.microvm.version", ""),
        ("driver.microvm.qemu.version", ""),
        ("driver.microvm.accelerator", ""),
        ("driver.microvm.machine.microvm", "1"),
        ("driver.microvm.tsc_mhz", ""),
        ("driver.microvm.network.user", "user"),
    ] {
        let value = first.attributes.get(attribute);
        let value = value.unwrap_or_else(|| panic!("no attribute {attribute}: {:?}", first.attributes));
        assert!(
            !value.is_empty() && (known.is_empty() || value == known || value == "true"),
            "{attribute} = {value:?}"
        );
    }
    std::thread::sleep(SETTLES_WITHIN);
    let all = || -> Map<String, Value> {
        world
            .api
            .get(&format!("/node/{}", client.node()))
            .expect("the server answers")
    };
    let before = all();
    std::thread::sleep(STABLE_FOR);
    let after = all();
    let differences: Vec<String> = after
        .iter()
        .filter(|(key, value)| before.get(*key) != Some(value))
        .map(|(key, value)| {
            format!(
                "{key}: {} became {value}",
                before.get(key).unwrap_or(&Value::Null)
            )
        })
        .collect();
    assert!(
        differences.is_empty(),
        "the node changes by itself:\n{}",
        differences.join("\n")
    );
    client.agent.terminate();
}

/// A wrong key fails the allocation with the key's name.
pub(super) fn config_typo(world: &World) {
    let file = r#"
job "typo" {
  type        = "batch"
  datacenters = ["main"]
  group "vm" {
    restart {
      attempts = 0
    }
    reschedule {
      attempts  = 0
      unlimited = false
    }
    task "vm" {
      driver = "microvm"
      config {
        kernle = "vmlinux"
      }
      resources {
        memory = 128
      }
    }
  }
}
"#;
    let parsed = world.api.parse(file).unwrap_or_else(|error| panic!("{error}"));
    let ended = Job::parsed(&world.api, &parsed).wait_terminal();
    assert_eq!(ended.client_status, "failed", "{}", ended.story());
    let event = ended
        .event("Failed Validation")
        .unwrap_or_else(|| panic!("{}", ended.story()));
    assert!(
        event.display_message.contains("\"kernle\""),
        "{}",
        event.display_message
    );
    assert!(ended.event("Started").is_none(), "{}", ended.story());
}

/// A refused start is terminal at once: the log FIFOs were opened before anything could fail.
pub(super) fn failed_start_is_fast(world: &World) {
    let job = world.run(&Order::guest("refused", "").set("kernel", "local/nothing-there".into()));
    let ended = job.wait_terminal();
    let seen = now_ns();
    let refused = ended
        .event("Driver Failure")
        .unwrap_or_else(|| panic!("{}", ended.story()));
    let took = Duration::from_nanos(u64::try_from(seen - refused.time).unwrap_or(0));
    assert!(
        took <= seconds(2),
        "terminal {:.2} s after the refusal: {}",
        took.as_secs_f64(),
        ended.story()
    );
}
