//! Which bad inputs are an operator's or the host's, and what does the agent say to them?

use std::path::Path;

use super::bad_input::Row;
use super::bad_jobs;
use crate::agent::SCRIPT_PATHS;
use crate::harness::side_by_side;
use crate::host::{self, Snapshot};
use crate::job::Order;
use crate::wait::{self, seconds};
use crate::world::World;

/// Agents at a time.
const PARALLEL: usize = 2;

pub(super) fn rows(world: &World) -> Vec<Row> {
    let mut rows = options(world);
    rows.extend(unhealthy(world));
    rows.extend(broken_qemus(world));
    rows
}

const PLACES: &str = "state_dir = \"DIRECTORY/state\"\nrun_dir = \"DIRECTORY/run\"\naccelerator = \"tcg\"\n";

/// Plugin options that the agent refuses to start with.
fn options(world: &World) -> Vec<Row> {
    let cases: &[OptionCase] = &[
        (
            "option accelerator = foo",
            "accelerator = \"foo\"",
            &["plugin option accelerator = \"foo\" is not known", "kvm"],
        ),
        (
            "option log_level = loud",
            "log_level = \"loud\"",
            &["plugin option log_level = \"loud\""],
        ),
        (
            "option vm_uids = 0-10",
            "vm_uids = \"0-10\"",
            &["plugin option vm_uids = \"0-10\" is not a range"],
        ),
        (
            "option state_dir relative",
            "state_dir = \"state\"",
            &["plugin option state_dir = \"state\" is not an absolute path"],
        ),
        (
            "option run_dir too long",
            "run_dir = \"/run/0123456789/0123456789/0123456789\"",
            &["plugin option run_dir", "longer than 30 bytes"],
        ),
        (
            "option image_paths with ..",
            "image_paths = [\"/a/../b\"]",
            &["plugin option image_paths = \"/a/../b\""],
        ),
        ("option unknown", "imagepath = \"/x\"", &["\"imagepath\""]),
        (
            "option of a wrong type",
            "user_network = \"perhaps\"",
            &["user_network"],
        ),
    ];
    refused_options(world, cases)
}

/// What is wrong, the options as HCL, the words of the refusal.
pub(super) type OptionCase = (&'static str, &'static str, &'static [&'static str]);

/// Starts an agent for each, which must end by itself.
pub(super) fn refused_options(world: &World, cases: &[OptionCase]) -> Vec<Row> {
    side_by_side(PARALLEL, cases, |(input, options, words)| {
        let client = world.client(&world.name("option"), options);
        client.agent.start();
        let status = client.agent.wait_end();
        let log = client.agent.log();
        let first = log
            .lines()
            .find(|line| words.iter().all(|word| line.contains(word)));
        let shown = first.or_else(|| log.lines().last()).unwrap_or_default();
        // The plugin is no one's after the agent's end: it must have ended by itself.
        let left = wait::try_until(seconds(3), || match client.plugins().as_slice() {
            [] => Ok(()),
            left => Err(format!("{} plugin processes", left.len())),
        });
        let mut row = Row::judged(input, shown.trim(), words, left.err().into_iter().collect());
        if status.success() {
            row.fault.push_str(" the agent ended with success");
        }
        row
    })
}

/// Hosts on which the driver is there and can't work: the node says why, and nothing is placed.
fn unhealthy(world: &World) -> Vec<Row> {
    let main = world.main.state_dir().display().to_string();
    let lent = format!("state_dir = \"{main}\"\nrun_dir = \"DIRECTORY/run\"\naccelerator = \"tcg\"\n");
    let holder = world.main.plugin().expect("the plugin runs").pid.to_string();
    let cases: [(&str, String, Vec<&str>); 4] = [
        (
            "QEMU missing",
            format!("{PLACES}qemu = \"/nonexistent/qemu\""),
            vec!["QEMU is missing", "/nonexistent/qemu"],
        ),
        (
            "shim missing",
            format!("{PLACES}shim = \"/nonexistent/shim\""),
            vec!["microvm-shim is missing"],
        ),
        (
            "state_dir unwritable",
            "state_dir = \"/proc/steppe\"\nrun_dir = \"DIRECTORY/run\"\naccelerator = \"tcg\"\n".to_owned(),
            vec!["state_dir", "/proc/steppe"],
        ),
        (
            "state_dir of another agent",
            lent,
            vec!["in use by another agent's driver", &holder],
        ),
    ];
    side_by_side(PARALLEL, &cases, |(input, options, words)| {
        let client = world.client(&world.name("sick"), options);
        client.agent.start();
        let said = client.wait_driver(&world.api, "the driver is unhealthy", |node| {
            match node.drivers.get("microvm") {
                Some(driver)
                    if !driver.healthy
                        && words.iter().all(|word| driver.health_description.contains(word)) =>
                {
                    Ok(driver.health_description.clone())
                }
                other => Err(format!("{other:?}")),
            }
        });
        let mut row = Row::judged(input, &said, words, Vec::new());
        row.left = host::leavings(&client);
        client.agent.terminate();
        row
    })
}

/// QEMUs that don't do what a QEMU does, run directories that can't be written, and what the operator has not allowed.
fn broken_qemus(world: &World) -> Vec<Row> {
    let fakes = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fakes");
    let fake = |name: &str| {
        // Where an unprivileged user can reach it.
        let to = world.scratch.path().join(name);
        std::fs::copy(fakes.join(name), &to).unwrap_or_else(|error| panic!("{name}: {error}"));
        format!(
            "{PLACES}{SCRIPT_PATHS}image_paths = [\"{}\"]\nqemu = \"{}\"\n",
            world.guest.display(),
            to.display()
        )
    };
    let images = format!("image_paths = [\"{}\"]\n", world.guest.display());
    let no_run = format!(
        "state_dir = \"DIRECTORY/state\"\nrun_dir = \"/proc/steppe\"\naccelerator = \"tcg\"\n{images}"
    );
    let plain = Order::guest("bad", "");
    let networked = Order::guest("bad", "").set("network", serde_json::json!([{ "name": "user" }]));
    let cases: [(&str, String, Order, &[&str]); 5] = [
        (
            "QEMU that ends at once",
            fake("qemu-ends-at-once"),
            plain.clone(),
            &[
                "QEMU ended with status 3 before the guest was started",
                "no such machine today",
            ],
        ),
        (
            "QEMU that never answers QMP",
            fake("qemu-never-answers"),
            plain.clone(),
            &["did not answer"],
        ),
        ("run_dir unwritable", no_run, plain.clone(), &["/proc/steppe"]),
        (
            "network user, not allowed",
            format!("{PLACES}{images}"),
            networked,
            &[
                "network \"user\" is not allowed on this node",
                "user_network is false",
            ],
        ),
        (
            "KVM where the operator allows emulation only",
            format!("{PLACES}{images}"),
            plain.set("accelerator", "kvm".into()),
            &[
                "accelerator = \"kvm\" can't be used on this node",
                "plugin option accelerator is \"tcg\"",
            ],
        ),
    ];
    side_by_side(PARALLEL, &cases, |(input, options, order, words)| {
        let client = world.client(&world.name("odd"), options);
        client.agent.start();
        client.wait_healthy(&world.api);
        let job = world.run(&order.clone().on(&client));
        let ended = job.wait_terminal();
        let left = wait::try_until(seconds(5), || {
            let about = Snapshot::of(&client).about(&job.allocation);
            if about.is_empty() {
                Ok(())
            } else {
                Err(about.join("; "))
            }
        });
        let row = bad_jobs::judge_on(input, &ended, words, left.err().into_iter().collect());
        client.agent.terminate();
        row
    })
}
