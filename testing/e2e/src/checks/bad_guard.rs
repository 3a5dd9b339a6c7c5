//! What do a guest, a job and an operator get who want more of the host than there is for them?

mod guests;
mod swaps;

use serde_json::{Map, Value, json};

use super::bad_input::{self, Group, Row};
use super::truth::at_the_end;
use super::{bad_agents, bad_jobs};
use crate::agent::Client;
use crate::api::Allocation;
use crate::harness::side_by_side;
use crate::host::Snapshot;
use crate::job::{Further, Job, Order};
use crate::wait::{self, seconds};
use crate::world::{IMAGES, World};

/// How long what a task made may still be there after its end. A shim holds a log for its reader up to 5 s.
const GONE_LIMIT: std::time::Duration = seconds(30);

/// Jobs at a time: most of them wait for Nomad.
const PARALLEL: usize = 4;

pub(super) fn input(world: &World) {
    let groups: [Group; 5] = [
        ("what a guest does", guests::rows),
        ("what QEMU tries", guests::probes),
        ("files that are swapped", swaps::rows),
        ("what a job asks for", asked),
        ("what an operator says", options),
    ];
    bad_input::show("bad-input-guard.txt", &bad_input::side_by_side(world, &groups));
}

/// What is left of an allocation, after a while.
fn left_of(client: &Client, allocation: &str) -> Vec<String> {
    let gone = wait::try_until(GONE_LIMIT, || {
        match Snapshot::of(client).about(allocation).as_slice() {
            [] => Ok(()),
            left => Err(left.join("; ")),
        }
    });
    gone.err().into_iter().collect()
}

/// Judges a refusal: the sentence, nothing started, nothing left of the allocation.
fn judge(client: &Client, input: &str, ended: &Allocation, words: &[&str]) -> Row {
    bad_jobs::judge_on(input, ended, words, left_of(client, &ended.id))
}

/// An object, without its braces.
fn keys(object: &Value) -> Map<String, Value> {
    object.as_object().cloned().unwrap_or_default()
}

/// A job that the driver or Nomad's client refuses.
type Case = (&'static str, Order, &'static [&'static str]);

/// The name of a volume that the client has, and offers to every job.
const VOLUME: &str = "shared";

/// A client that has a volume for jobs.
fn with_volume(world: &World) -> Client {
    let client = world.client(&world.name("ask"), &world.options());
    let volume = client.directory().join(VOLUME);
    std::fs::create_dir_all(&volume).expect("a folder can be made in the scratch folder");
    let interface = "network_interface = \"lo\"";
    let with = format!(
        "{interface}\n  host_volume \"{VOLUME}\" {{\n    path = \"{}\"\n  }}",
        volume.display()
    );
    client.agent.reconfigure(interface, &with);
    client.agent.start();
    client.wait_healthy(&world.api);
    client
}

fn asked(world: &World) -> Vec<Row> {
    let client = &with_volume(world);
    let order = || Order::stub("asks", "").on(client);
    let set = |key: &str, value: Value| order().set(key, value);
    let task = |further: Value| {
        let mut order = order();
        order.further.task = keys(&further);
        order
    };
    let disk = |file: &str| set("disk", json!([{ "name": "data", "file": file, "format": "raw" }]));
    let linked = world.scratch.path().join(IMAGES).join("guard-link");
    std::os::unix::fs::symlink(world.guest.join("vmlinux"), &linked)
        .expect("a link can be made in the scratch folder");
    let mut volume = task(json!({ "VolumeMounts": [{ "Volume": VOLUME, "Destination": "/data" }] }));
    volume.further.group = keys(&json!({
        "Volumes": { VOLUME: { "Name": VOLUME, "Type": "host", "Source": VOLUME } }
    }));
    let cases: [Case; 16] = [
        (
            "raw arguments of QEMU: qemu_args",
            set("qemu_args", json!(["-monitor", "stdio"])),
            &["\"qemu_args\""],
        ),
        (
            "raw arguments of QEMU: args",
            set("args", json!(["-s"])),
            &["\"args\""],
        ),
        (
            "options in the machine's name",
            set("machine", json!("microvm,dump-guest-core=on")),
            &["machine = \"microvm,dump-guest-core=on\" is not known here"],
        ),
        (
            "options in a disk's format",
            disk_with_format(&order(), "raw,file.filename=/etc/shadow"),
            &["format = \"raw,file.filename=/etc/shadow\" is not known here"],
        ),
        (
            "device nodes: a key devices",
            set("devices", json!(["/dev/kvm"])),
            &["\"devices\""],
        ),
        (
            "the host's disk",
            disk("/dev/vda"),
            &["\"/dev/vda\" leaves its directory"],
        ),
        (
            "the host's password file as a disk",
            disk("/etc/shadow"),
            &["\"/etc/shadow\" leaves its directory"],
        ),
        (
            "a disk two folders up",
            disk("local/../../../secret"),
            &["\"local/../../../secret\" leaves its directory"],
        ),
        (
            "a disk in the operator's image_paths",
            disk("stub"),
            &["\"stub\" is not in the task's or allocation's directory"],
        ),
        (
            "a kernel by its absolute path",
            set("kernel", json!(world.guest.join("vmlinux"))),
            &["leaves its directory"],
        ),
        (
            "a kernel through a link out of image_paths",
            set("kernel", json!("guard-link")),
            &["\"guard-link\" leaves its directory through a symbolic link"],
        ),
        (
            "the driver's own socket as an initrd",
            set("initrd", json!("/run/steppe")),
            &["\"/run/steppe\" leaves its directory"],
        ),
        (
            "a volume of the host (Nomad refuses it)",
            volume,
            &["does not support host volumes"],
        ),
        (
            "user = root",
            task(json!({ "User": "root" })),
            &["user = \"root\" can't be had: each VM has a user of its own"],
        ),
        (
            "user = nomad-33, that is nobody's lease",
            task(json!({ "User": "nomad-33" })),
            &["user = \"nomad-33\" can't be had"],
        ),
        (
            "user = nomad-1900000000, that is another VM's perhaps",
            task(json!({ "User": "nomad-1900000000" })),
            &["user = \"nomad-1900000000\" can't be had"],
        ),
    ];
    let mut rows = side_by_side(PARALLEL, &cases, |(input, order, words)| {
        let ended = world.run(order).wait_terminal();
        judge(client, input, &ended, words)
    });
    rows.extend(nomads_own(world, client));
    rows.push(memory_max_above(world, client));
    rows.push(at_the_end(client));
    rows
}

fn disk_with_format(order: &Order, format: &str) -> Order {
    let disk = json!([{ "name": "data", "file": "local/data", "format": format }]);
    order.clone().set("disk", disk)
}

/// What Nomad itself refuses: our driver never sees it.
fn nomads_own(world: &World, client: &Client) -> Vec<Row> {
    let order = |resources: Value| {
        let mut order = Order::stub("asks", "").on(client);
        order.further.resources = keys(&resources);
        order
    };
    let below = order(json!({ "MemoryMaxMB": 32 }));
    let refused = world.api.register(&below.json("below"));
    let refused = Row::judged(
        "memory_max below memory",
        &refused.err().unwrap_or_default(),
        &["MemoryMaxMB value (32) should be larger than MemoryMB value (64)"],
        Vec::new(),
    );

    let attributes = world
        .api
        .node(&client.node())
        .expect("the server answers")
        .attributes;
    let there: u32 = attributes["cpu.reservablecores"]
        .parse()
        .expect("Nomad counts the cores");
    let mut cores = Order::stub("asks", "").on(client);
    cores.cores = there + 1;
    let device = order(json!({ "Devices": [{ "Name": "nvidia/gpu", "Count": 1 }] }));
    let cases = [
        ("one core more than there are", cores, "cores"),
        ("a device of the host", device, "missing devices"),
    ];
    let mut rows = side_by_side(cases.len(), &cases, |(input, order, words)| {
        let job = world.hand_in(order);
        let said = scheduler(world, &job);
        let mut row = Row::judged(input, &said, &[words], Vec::new());
        if job.allocations() > 0 {
            row.fault.push_str(" it was placed");
        }
        row
    });
    rows.insert(0, refused);
    rows
}

/// Why Nomad's scheduler places nothing.
fn scheduler(world: &World, job: &Job<'_>) -> String {
    let said = wait::try_until(seconds(15), || {
        let evaluations: Vec<Value> = world.api.get(&format!("/job/{}/evaluations", job.id))?;
        let failed = evaluations.iter().map(|one| &one["FailedTGAllocs"]["vm"]);
        let failed = failed.clone().find(|failed| !failed.is_null());
        failed
            .map(|failed| {
                format!(
                    "(Nomad's scheduler) exhausted: {}, filtered: {}",
                    failed["DimensionExhausted"], failed["ConstraintFiltered"]
                )
            })
            .ok_or_else(|| format!("{evaluations:?}"))
    });
    said.unwrap_or_else(|seen| seen)
}

/// Served: the guest gets `memory`, and an event says so.
fn memory_max_above(world: &World, client: &Client) -> Row {
    // Without this Nomad leaves memory_max out.
    let path = "/operator/scheduler/configuration";
    let mut config: Value = world.api.get(path).unwrap_or_else(|error| panic!("{error}"));
    config["SchedulerConfig"]["MemoryOversubscriptionEnabled"] = true.into();
    let changed = world
        .api
        .post(path, config["SchedulerConfig"].to_string().as_bytes());
    changed.unwrap_or_else(|error| panic!("{error}"));

    let mut order = Order::stub("asks", "stub.exit=0").on(client);
    order.further = Further {
        resources: keys(&json!({ "MemoryMaxMB": 256 })),
        ..Further::default()
    };
    let job = world.run(&order);
    let ended = job.wait_terminal();
    let event = job.wait_event("Driver", "memory_max");
    let mut row = Row::judged(
        "memory_max above memory (served)",
        &event.display_message,
        &["memory_max = 256 MiB has no effect: the guest gets memory = 64 MiB"],
        left_of(client, &job.allocation),
    );
    if ended.client_status != "complete" {
        row.fault.push_str(&ended.story());
    }
    row
}

/// The guard's own options.
fn options(world: &World) -> Vec<Row> {
    bad_agents::refused_options(
        world,
        &[
            (
                "option hardening = maybe",
                "hardening = \"maybe\"",
                &["plugin option hardening = \"maybe\" is not known: use \"required\" or \"best\""],
            ),
            (
                "option qemu_paths relative",
                "qemu_paths = [\"lib\"]",
                &["plugin option qemu_paths = \"lib\" is not an absolute path"],
            ),
            (
                "option qemu_paths with ..",
                "qemu_paths = [\"/opt/../etc\"]",
                &["plugin option qemu_paths = \"/opt/../etc\""],
            ),
            (
                "option workload_uids = 0-10, that is the host's own",
                "workload_uids = \"0-10\"",
                &["plugin option workload_uids = \"0-10\" is not a range"],
            ),
            (
                "option workload_uids over vm_uids",
                "vm_uids = \"80000-90000\"",
                &["plugin options vm_uids and workload_uids overlap"],
            ),
        ],
    )
}
