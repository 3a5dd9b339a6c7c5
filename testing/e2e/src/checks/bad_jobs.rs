//! Which bad inputs can a job bring, and which words must the refusal have?

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::bad_input::Row;
use crate::agent::Client;
use crate::api::Allocation;
use crate::harness::side_by_side;
use crate::host::Snapshot;
use crate::job::Order;
use crate::wait::{self, seconds};
use crate::world::{IMAGES, World};

/// Jobs at a time.
const PARALLEL: usize = 4;

/// The events whose text is a refusal.
const REFUSALS: [&str; 4] = [
    "Driver Failure",
    "Failed Validation",
    "Setup Failure",
    "Task hook failed",
];

/// A job that is refused: what is wrong with it, the job, the words of the sentence.
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

/// The test guest with one key of its `config` block set.
fn set(input: &str, key: &str, value: impl Into<Value>, words: &[&'static str]) -> Case {
    case(input, Order::guest("bad", "").set(key, value.into()), words)
}

fn disk(name: &str, file: &str, format: &str) -> Value {
    json!({ "name": name, "file": file, "format": format })
}

pub(super) fn rows(world: &World) -> Vec<Row> {
    let client = &world.own_client("bad");
    make_files(world);
    // The first start ever makes folders for good.
    let served = served(world, client);
    let before = Snapshot::of(client);
    let cases: Vec<Case> = [keys(world, client), files(), disks(world), networks()]
        .into_iter()
        .flatten()
        .collect();
    let mut rows = side_by_side(PARALLEL, &cases, |case| {
        let ended = world.run(&case.order.clone().on(client)).wait_terminal();
        judge(client, &case.input, &ended, &case.words)
    });
    rows.extend(port_in_use_then_symlink(world, client));
    rows.push(too_large_for_the_node(world));
    rows.extend(served);
    // Links, mounts, and whatever belongs to no allocation.
    let left = Snapshot::of(client).since(&before);
    rows.push(Row {
        input: "all of the above together".to_owned(),
        sentence: "(links, mounts and what belongs to no allocation)".to_owned(),
        left,
        fault: String::new(),
    });
    rows
}

/// Judges a refusal: the sentence, nothing started, nothing left of the allocation.
fn judge(client: &Client, input: &str, ended: &Allocation, words: &[&str]) -> Row {
    let left = wait::try_until(seconds(5), || {
        match Snapshot::of(client).about(&ended.id).as_slice() {
            [] => Ok(()),
            left => Err(left.join("; ")),
        }
    });
    judge_on(input, ended, words, left.err().into_iter().collect())
}

/// The same where somebody else has looked at the host.
pub(in crate::checks) fn judge_on(input: &str, ended: &Allocation, words: &[&str], left: Vec<String>) -> Row {
    let refusal = ended
        .events()
        .iter()
        .rev()
        .find(|event| REFUSALS.contains(&event.kind.as_str()));
    let sentence = refusal.map_or_else(|| ended.story(), |event| event.display_message.clone());
    let mut row = Row::judged(input, &sentence, words, left);
    if ended.client_status != "failed" {
        row.fault
            .push_str(&format!(" it is not failed: {}", ended.story()));
    }
    if ended.event("Started").is_some() {
        row.fault
            .push_str(&format!(" something was started: {}", ended.story()));
    }
    row
}

fn images(world: &World) -> std::path::PathBuf {
    world.scratch.path().join(IMAGES)
}

/// Files with something wrong about them.
fn make_files(world: &World) {
    let images = images(world);
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(images.join(name), bytes).expect("a file can be written in the scratch folder");
    };
    write("empty", b"");
    write(
        "text",
        "not a kernel, not an initrd, not a disk\n".repeat(20).as_bytes(),
    );
    write("odd", &[7; 1000]);
    // The beginning of a cpio archive, as large as no guest of ours.
    let mut cpio = b"070701".to_vec();
    cpio.resize(512, b'0');
    write("huge-initrd", &cpio);
    let huge = std::fs::File::options()
        .write(true)
        .open(images.join("huge-initrd"));
    huge.and_then(|file| file.set_len(300 << 20))
        .expect("a file can be lengthened");
    let link = |target: &Path, name: &str| {
        std::os::unix::fs::symlink(target, images.join(name))
            .expect("a link can be made in the scratch folder");
    };
    link(&world.guest.join("vmlinux"), "linked-out");
    std::fs::copy(world.guest.join("vmlinux"), images.join("with,comma=kernel"))
        .expect("a file can be copied");
    let qemu_img = |arguments: &[&str]| {
        let made = Command::new("qemu-img")
            .args(arguments)
            .current_dir(&images)
            .output();
        let made = made.expect("qemu-img runs, see testing/packages.txt");
        assert!(
            made.status.success(),
            "qemu-img {arguments:?}: {}",
            String::from_utf8_lossy(&made.stderr)
        );
    };
    qemu_img(&["create", "-q", "-f", "raw", "base.raw", "1M"]);
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "/etc/hostname",
        "-F",
        "raw",
        "backed.qcow2",
        "1M",
    ]);
    qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        "data_file=outside.raw,data_file_raw=on",
        "data.qcow2",
        "1M",
    ]);
    qemu_img(&["create", "-q", "-f", "vmdk", "vmware.vmdk", "1M"]);
}

fn keys(world: &World, client: &Client) -> Vec<Case> {
    let missing = |key: &str| {
        let mut order = Order::guest("bad", "");
        order.config.remove(key);
        order
    };
    let mut small = Order::guest("bad", "");
    small.memory_mib = 32;
    let mut tight = Order::guest("bad", "").set("initrd", "huge-initrd".into());
    tight.memory_mib = 128;
    let mut cases = vec![
        set("unknown key", "imagepath", "x", &["\"imagepath\""]),
        set(
            "unknown key in a disk block",
            "disk",
            json!([{ "name": "a", "file": "local/a", "format": "raw", "bus": "ide" }]),
            &["\"bus\""],
        ),
        set(
            "wrong type: a list as cmdline",
            "cmdline",
            json!(["a", "b"]),
            &["cmdline", "string required"],
        ),
        set("wrong type: a text as disk", "disk", "data.raw", &["disk"]),
        case("no kernel", missing("kernel"), &["kernel", "required"]),
        set(
            "machine = q35",
            "machine",
            "q35",
            &["machine = \"q35\"", "not built yet"],
        ),
        set(
            "machine = pc",
            "machine",
            "pc",
            &["machine = \"pc\" is not known here: use \"microvm\""],
        ),
        set(
            "accelerator = foo",
            "accelerator",
            "foo",
            &["accelerator = \"foo\"", "\"auto\", \"kvm\" or \"tcg\""],
        ),
        case(
            "32 MiB",
            small,
            &["memory = 32 MiB is outside 64 to", "change resources.memory"],
        ),
        case(
            "memory below kernel and unpacked initrd",
            tight,
            &[
                "memory = 128 MiB is too little",
                "unpacked initrd",
                "raise resources.memory",
            ],
        ),
        set(
            "cmdline of 2100 bytes",
            "cmdline",
            "x".repeat(2100),
            &["cmdline has", "the kernel takes 2047", "shorten it"],
        ),
        set(
            "newline in cmdline",
            "cmdline",
            "quiet\ninit=/bin/sh",
            &["cmdline = \"quiet\\n", "control character"],
        ),
        set(
            "newline in kernel",
            "kernel",
            "vm\nlinux",
            &["kernel = \"vm\\nlinux\"", "control character"],
        ),
        set(
            "newline in initrd",
            "initrd",
            "init\nrd",
            &["initrd = \"init\\nrd\"", "control character"],
        ),
        set(
            "newline in machine",
            "machine",
            "micro\nvm",
            &["machine = \"micro\\nvm\" is not known here"],
        ),
        set(
            "newline in accelerator",
            "accelerator",
            "t\ncg",
            &["accelerator = \"t\\ncg\" is not known here"],
        ),
        set(
            "comma in machine",
            "machine",
            "microvm,acpi=off",
            &["machine = \"microvm,acpi=off\" is not known here"],
        ),
        set(
            "comma in accelerator",
            "accelerator",
            "tcg,thread=multi",
            &["accelerator = \"tcg,thread=multi\" is not known here"],
        ),
    ];
    // Where KVM proves to work, asking for it is no bad input.
    let node = world.api.node(&client.node()).expect("the server answers");
    if node
        .attributes
        .get("driver.microvm.accelerator")
        .is_some_and(|accelerator| accelerator == "tcg")
    {
        cases.push(set(
            "KVM where it is unusable",
            "accelerator",
            "kvm",
            &[
                "accelerator = \"kvm\" can't be used on this node",
                "use \"auto\" or \"tcg\"",
            ],
        ));
    }
    cases
}

fn files() -> Vec<Case> {
    // Nomad's reader of JSON puts U+FFFD in the place of what is no UTF-8: so it can't arrive as anything else.
    let replaced = "vm\u{fffd}linux";
    vec![
        set(
            "kernel missing in image_paths",
            "kernel",
            "nothing",
            &[
                "kernel \"nothing\" does not exist",
                "the operator's image_paths",
                "images",
            ],
        ),
        set(
            "kernel missing in the task",
            "kernel",
            "local/nothing",
            &["kernel \"local/nothing\" does not exist", "artifact block"],
        ),
        set("kernel empty", "kernel", "empty", &["kernel \"empty\" is empty"]),
        set("kernel = \"\"", "kernel", "", &["kernel is empty: name a kernel"]),
        set(
            "kernel that is no x86 image",
            "kernel",
            "text",
            &["kernel \"text\" is no x86-64 kernel"],
        ),
        set(
            "kernel that is a folder",
            "kernel",
            "alloc/data",
            &["kernel \"alloc/data\" is not a regular file"],
        ),
        set(
            "kernel = /etc/hostname",
            "kernel",
            "/etc/hostname",
            &["kernel = \"/etc/hostname\" leaves its directory"],
        ),
        set(
            "kernel = local/../../x",
            "kernel",
            "local/../../x",
            &["leaves its directory", "without \"..\""],
        ),
        set(
            "kernel through a symlink out of image_paths",
            "kernel",
            "linked-out",
            &["kernel \"linked-out\" leaves its directory through a symbolic link"],
        ),
        set(
            "kernel not UTF-8 (Nomad replaces it)",
            "kernel",
            replaced,
            &["does not exist"],
        ),
        set(
            "comma in kernel, file missing",
            "kernel",
            "a,file=/etc/hostname",
            &["kernel \"a,file=/etc/hostname\" does not exist"],
        ),
        set(
            "initrd missing",
            "initrd",
            "local/nothing",
            &["initrd \"local/nothing\" does not exist"],
        ),
        set("initrd empty", "initrd", "empty", &["initrd \"empty\" is empty"]),
        set("initrd = \"\"", "initrd", "", &["initrd is empty: leave it out"]),
        set(
            "initrd that is none",
            "initrd",
            "text",
            &["initrd \"text\" is no initrd"],
        ),
        set(
            "kernel of 1100 bytes' name",
            "kernel",
            "k".repeat(1100),
            &["kernel has 1100 bytes, the limit is 1024"],
        ),
    ]
}

fn disks(world: &World) -> Vec<Case> {
    let with = |files: &[&str], disks: Value| {
        let mut order = Order::guest("bad", "").set("disk", disks);
        let images = images(world);
        let placed = files
            .iter()
            .map(|name| (images.join(name).display().to_string(), format!("local/{name}")));
        order.files = placed.collect();
        order
    };
    let one =
        |file: &str, format: &str| with(&[file], json!([disk("data", &format!("local/{file}"), format)]));
    let row = |input: &str, name: &str, file: &str, format: &str, words: &[&'static str]| {
        case(input, with(&[], json!([disk(name, file, format)])), words)
    };
    let many: Vec<Value> = (0..25)
        .map(|number| disk(&format!("d{number}"), "local/d", "raw"))
        .collect();
    vec![
        case(
            "raw disk of 1000 bytes",
            one("odd", "raw"),
            &["disk \"data\"", "\"local/odd\"", "no multiple of a sector's 512"],
        ),
        case(
            "raw disk, empty",
            one("empty", "raw"),
            &["disk \"data\"", "is empty"],
        ),
        case(
            "garbage as qcow2",
            one("text", "qcow2"),
            &["disk \"data\"", "\"local/text\" is no qcow2 image"],
        ),
        case(
            "vmdk as qcow2",
            one("vmware.vmdk", "qcow2"),
            &["\"local/vmware.vmdk\" is no qcow2 image"],
        ),
        case(
            "qcow2 with a backing file",
            one("backed.qcow2", "qcow2"),
            &[
                "refers to another file (backing file \"/etc/hostname\")",
                "qemu-img convert",
            ],
        ),
        case(
            "qcow2 with a data file",
            one("data.qcow2", "qcow2"),
            &["refers to another file (data file \"outside.raw\")"],
        ),
        row(
            "disk missing",
            "data",
            "local/nothing",
            "raw",
            &["disk \"data\": \"local/nothing\" does not exist"],
        ),
        row(
            "disk that is a folder",
            "data",
            "alloc/data",
            "raw",
            &["\"alloc/data\" is not a regular file"],
        ),
        row(
            "disk leaves the task's folder",
            "data",
            "local/../../../x",
            "raw",
            &["disk \"data\": file = \"local/../../../x\" leaves its directory"],
        ),
        row(
            "disk = /dev/vda",
            "data",
            "/dev/vda",
            "raw",
            &["\"/dev/vda\" leaves its directory"],
        ),
        row(
            "disk in image_paths",
            "data",
            "base.raw",
            "raw",
            &["\"base.raw\" is not in the task's or allocation's directory"],
        ),
        row(
            "disk format nvme",
            "data",
            "local/x",
            "nvme",
            &["disk \"data\": format = \"nvme\" is not known here: use \"raw\" or \"qcow2\""],
        ),
        row(
            "newline in a disk's format",
            "data",
            "local/x",
            "ra\nw",
            &["format = \"ra\\nw\" is not known here"],
        ),
        row(
            "newline in a disk's file",
            "data",
            "local/x\ny",
            "raw",
            &["control character"],
        ),
        row(
            "newline in a disk's name",
            "da\nta",
            "local/x",
            "raw",
            &["disk 1 has the name \"da\\nta\""],
        ),
        row(
            "comma in a disk's name",
            "a,b",
            "local/x",
            "raw",
            &["disk 1 has the name \"a,b\": use 1 to 20 characters"],
        ),
        row(
            "comma in a disk's file, missing",
            "data",
            "local/x,readonly=on",
            "raw",
            &["\"local/x,readonly=on\" does not exist"],
        ),
        case(
            "two disks of one name",
            with(
                &["base.raw"],
                json!([
                    disk("a", "local/base.raw", "raw"),
                    disk("a", "local/base.raw", "raw")
                ]),
            ),
            &["disk name \"a\" is used twice"],
        ),
        case(
            "25 disks",
            with(&[], many.into()),
            &["25 disks", "do not fit", "room for"],
        ),
    ]
}

fn networks() -> Vec<Case> {
    let with = |network: Value| {
        let mut order = Order::guest("bad", "").set("network", network);
        order.ports.push(("http".to_owned(), 80));
        order
    };
    let rows = [
        (
            "network = tenant-a",
            json!([{ "name": "tenant-a" }]),
            ["network \"tenant-a\" is not known on this node"],
        ),
        (
            "newline in a network's name",
            json!([{ "name": "us\ner" }]),
            ["network \"us\\ner\" is not known on this node"],
        ),
        (
            "network user twice",
            json!([{ "name": "user" }, { "name": "user" }]),
            ["network \"user\" is given twice"],
        ),
        (
            "port not declared",
            json!([{ "name": "user", "ports": ["web"] }]),
            ["port \"web\" is not declared in the job's network block: declared are http"],
        ),
        (
            "port listed twice",
            json!([{ "name": "user", "ports": ["http", "http"] }]),
            ["port \"http\" is listed twice"],
        ),
        (
            "port with another protocol",
            json!([{ "name": "user", "ports": ["http/sctp"] }]),
            ["\"http/sctp\" is not known here"],
        ),
        (
            "newline in a port",
            json!([{ "name": "user", "ports": ["ht\ntp"] }]),
            ["port \"ht\\ntp\" is not declared"],
        ),
        (
            "port_map of an unknown port",
            json!([{ "name": "user", "ports": ["http"], "port_map": { "web": 80 } }]),
            ["port_map names \"web\", which is not in ports"],
        ),
        (
            "port_map to 70000",
            json!([{ "name": "user", "ports": ["http"], "port_map": { "http": 70000 } }]),
            ["port \"http\" leads to guest port 70000: use 1 to 65535"],
        ),
    ];
    rows.into_iter()
        .map(|(input, network, words)| case(input, with(network), &words))
        .collect()
}

/// Somebody else listens where Nomad thinks that nobody does. That may pass, so Nomad's restart policy applies: before the
/// second attempt the task's disk is replaced by a link out of its folder.
fn port_in_use_then_symlink(world: &World, client: &Client) -> [Row; 2] {
    let port = crate::agent::ports(1);
    let _held =
        std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, port)).expect("it was free just now");
    let image = images(world).join("base.raw");
    let mut order = Order::guest("bad", "")
        .set("network", json!([{ "name": "user", "ports": ["http"] }]))
        .set("disk", json!([disk("data", "local/base.raw", "raw")]))
        .on(client);
    order.fixed_ports.push(("http".to_owned(), port));
    order
        .files
        .push((image.display().to_string(), "local/base.raw".to_owned()));
    order.restarts = 1;
    order.restart_delay = seconds(3);
    let job = world.run(&order);
    let first = job.wait_event("Driver Failure", "");
    let left = Snapshot::of(client).about(&job.allocation);
    let words = ["a port of the task is in use", "host forwarding rule"];
    let in_use = Row::judged("port in use on the host", &first.display_message, &words, left);

    let local = client
        .data_dir()
        .join("alloc")
        .join(&job.allocation)
        .join("vm/local/base.raw");
    std::fs::remove_file(&local)
        .and_then(|()| std::os::unix::fs::symlink(&image, &local))
        .unwrap_or_else(|error| panic!("{}: {error}", local.display()));
    let ended = job.wait_terminal();
    let words = ["disk \"data\": \"local/base.raw\" leaves its directory through a symbolic link"];
    [
        in_use,
        judge(client, "disk in the task through a symlink", &ended, &words),
    ]
}

/// Not ours to refuse: Nomad's scheduler does.
fn too_large_for_the_node(world: &World) -> Row {
    let mut order = Order::guest("bad", "");
    // 1 PiB.
    order.memory_mib = 1 << 30;
    let job = world.hand_in(&order);
    let sentence = wait::until("the scheduler's word", seconds(15), || {
        let evaluations: Value = world.api.get(&format!("/job/{}/evaluations", job.id))?;
        let text = evaluations.to_string();
        if text.contains("DimensionExhausted") && text.contains("\"memory\":") {
            Ok(
                "Dimension \"memory\" exhausted (Nomad's scheduler; the job waits, nothing is placed)"
                    .to_owned(),
            )
        } else {
            Err(text)
        }
    });
    Row::judged("1 PiB of memory", &sentence, &["memory"], Vec::new())
}

/// Inputs that look bad and are served: what they became is shown.
fn served(world: &World, client: &Client) -> Vec<Row> {
    let mut hole = Order::guest("bad", "steppe.exit=0").on(client);
    hole.memory_mib = 2048;
    let job = world.run(&hole);
    let ended = job.wait_terminal();
    let event = job.wait_event("Driver", "2047 MiB");
    let mut two_gib = Row::judged(
        "2048 MiB on microvm (served)",
        &event.display_message,
        &["2048 MiB never boots", "the guest gets 2047 MiB"],
        Vec::new(),
    );
    if ended.client_status != "complete" {
        two_gib.fault = ended.story();
    }
    let order = Order::guest("bad", "steppe.exit=0 a,b=c")
        .set("kernel", "with,comma=kernel".into())
        .on(client);
    let ended = world.run(&order).wait_terminal();
    let mut comma = Row::judged(
        "commas in kernel and cmdline (served)",
        &ended.story(),
        &["Started"],
        Vec::new(),
    );
    comma.sentence = format!("it boots: {}", ended.client_status);
    if ended.client_status != "complete" {
        comma.fault = ended.story();
    }
    vec![two_gib, comma]
}
