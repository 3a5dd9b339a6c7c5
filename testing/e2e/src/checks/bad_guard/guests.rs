//! What does a guest get that wants all of its host, and a QEMU that looks around?

use std::fs::File;
use std::path::Path;
use std::process::Command;

use rustix::mount::{MountFlags, mount};
use serde_json::json;

use super::super::bad_input::Row;
use super::super::escape;
use super::super::flood::with_inmate;
use super::super::stop::assert_exit;
use super::super::witness::the_vm;
use super::{at_the_end, left_of};
use crate::agent::Client;
use crate::harness::side_by_side;
use crate::job::{Job, Order};
use crate::process;
use crate::wait::{self, seconds};
use crate::world::{IMAGES, World};

/// What each of these machines has.
const MEMORY_MIB: u32 = 64;

/// How large a raw disk is, and the size that a qcow2 file says its disk has.
const RAW_BYTES: u64 = 32 * 1024;
const QCOW2_MIB: u64 = 1;

/// How large a qcow2 file of that size may become: its disk, an eighth of it and 64 MiB for tables.
const QCOW2_MOST_BYTES: u64 = (QCOW2_MIB << 20) + (QCOW2_MIB << 20) / 8 + (64 << 20);

/// Something that a program in QEMU's place does, and what it says of it.
struct Act {
    input: &'static str,
    order: Order,
    /// The beginning of the line of its console that tells how it went.
    line: &'static str,
    words: &'static [&'static str],
}

pub(super) fn rows(world: &World) -> Vec<Row> {
    let client = &with_inmate(world);
    // Somebody to be disturbed.
    let beside = world.run(&Order::stub("beside", "").on(client));
    let _running = beside.wait_running();
    let vm = the_vm(&beside, client);
    let acts = acts(world);
    let mut rows = side_by_side(acts.len(), &acts, |act| act_out(world, client, act));
    rows.extend(side_by_side(3, &[hog, reset_loop, full_file_system], |row| {
        row(world, client)
    }));
    let mut last = Row::judged("the VM beside all of these", "it runs as before", &[], Vec::new());
    if the_vm(&beside, client) != vm {
        last.fault = beside.look().story();
    }
    let ended = beside.stop_and_wait();
    assert_exit(&ended, 0, 0);
    rows.extend([last, at_the_end(client)]);
    rows
}

fn acts(world: &World) -> Vec<Act> {
    let stub = |words: &str| Order::stub("acts", words);
    vec![
        Act {
            input: "memory at exactly the limit (served)",
            order: stub(&format!("inmate.hog={MEMORY_MIB}")),
            line: "inmate: hog done",
            words: &["hog done at 64 MiB"],
        },
        Act {
            input: "a guest that forks",
            order: stub("inmate.fork"),
            line: "inmate: 0 of 100 processes",
            words: &["refused EPERM"],
        },
        Act {
            input: "a guest that makes threads",
            order: stub("inmate.fork"),
            line: "threads, refused",
            words: &[" of 2000 threads, refused EAGAIN"],
        },
        Act {
            input: "a guest that floods its console (more: console_flood)",
            order: stub("inmate.flood=20"),
            line: "inmate: flood done",
            words: &["longest stall"],
        },
        Act {
            input: "a guest that writes its raw disk full",
            order: with_disk(world, "full.raw", "raw", "inmate.write=64"),
            line: "inmate: write stopped",
            words: &["after 32768 bytes: EFBIG"],
        },
        Act {
            input: "a guest that blows up its qcow2 disk",
            order: with_disk(world, "small.qcow2", "qcow2", "inmate.write=80"),
            line: "inmate: write stopped",
            words: &["after 68288512 bytes: EFBIG"],
        },
    ]
}

/// A machine with one disk.
fn with_disk(world: &World, name: &str, format: &str, words: &str) -> Order {
    let path = world.scratch.path().join(IMAGES).join(format!("guard-{name}"));
    let length = if format == "raw" {
        format!("{RAW_BYTES}")
    } else {
        format!("{QCOW2_MIB}M")
    };
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", format])
        .arg(&path)
        .arg(length)
        .status();
    assert!(made.is_ok_and(|status| status.success()), "qemu-img makes {name}");
    let file = format!("local/{name}");
    let mut order = Order::stub("acts", words).set(
        "disk",
        json!([{ "name": "data", "file": file, "format": format }]),
    );
    order.files = vec![(path.display().to_string(), file)];
    order
}

/// A file of a task.
fn in_task(client: &Client, job: &Job<'_>, file: &str) -> std::path::PathBuf {
    let allocation = client.data_dir().join("alloc").join(&job.allocation);
    allocation.join("vm").join(file)
}

fn act_out(world: &World, client: &Client, act: &Act) -> Row {
    let job = world.run(&act.order.clone().on(client));
    let line = wait::try_until(seconds(60), || {
        let console = world.api.log(&job.allocation, "stdout")?;
        let line = console.lines().find(|line| line.contains(act.line));
        line.map(str::to_owned).ok_or_else(|| job.look().story())
    });
    let line = line.unwrap_or_else(|seen| seen);
    let mut row = Row::judged(act.input, &line, act.words, Vec::new());
    if let Some((_, file)) = act.order.files.first() {
        let length = std::fs::metadata(in_task(client, &job, file)).map_or(0, |data| data.len());
        let most = if file.ends_with(".raw") {
            RAW_BYTES
        } else {
            QCOW2_MOST_BYTES
        };
        if length > most {
            row.fault
                .push_str(&format!(" the file has grown to {length} bytes"));
        }
    }
    let made = line.split_once(" of 2000 threads").map(|(number, _)| number);
    let made = made.and_then(|number| number.trim_start_matches("inmate: ").parse::<u64>().ok());
    if made.is_some_and(|made| made >= 512) {
        row.fault.push_str(" more threads than its limit of 512");
    }
    // It runs on, and ends as ever.
    let _running = job.wait_running();
    let ended = job.stop_and_wait();
    if ended.client_status != "complete" {
        row.fault.push_str(&ended.story());
    }
    row.left = left_of(client, &job.allocation);
    row
}

/// What ended a VM by itself, as an event tells it.
fn ended(client: &Client, job: &Job<'_>, input: &str, words: &[&str]) -> Row {
    let ended = job.wait_terminal();
    let event = wait::try_until(seconds(5), || {
        let event = job.look().event("Driver").cloned();
        event.ok_or_else(|| ended.story())
    });
    let sentence = event.map_or_else(|seen| seen, |event| event.display_message);
    let mut row = Row::judged(input, &sentence, words, left_of(client, &job.allocation));
    if ended.client_status != "failed" {
        row.fault.push_str(&ended.story());
    }
    row
}

fn hog(world: &World, client: &Client) -> Row {
    let job = world.run(&Order::stub("hog", "inmate.hog=1000").on(client));
    ended(
        client,
        &job,
        "a guest that takes all memory",
        &["QEMU needed more than the VM's memory limit and was killed by the kernel"],
    )
}

fn reset_loop(world: &World, _: &Client) -> Row {
    let client = &world.main;
    let job = world.run(&Order::stub("resets", "stub.reset"));
    ended(
        client,
        &job,
        "a guest that resets in a loop",
        &["the guest reset itself over and over and was killed"],
    )
}

/// The file system on which its disk lies is full: between two tries of a start it is put there.
fn full_file_system(world: &World, _: &Client) -> Row {
    let client = &world.main;
    // What is free may be taken before it is held.
    let hold = |_| {
        let port = crate::agent::ports(1);
        let held = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, port));
        held.ok().map(|held| (port, held))
    };
    let (port, held) = (0..10).find_map(hold).expect("one of ten ports is free");
    let small = with_disk(world, "full.qcow2", "qcow2", "");
    let mut order = Order::guest("full", "steppe.disk")
        .set("disk", small.config["disk"].clone())
        .set("network", json!([{ "name": "user", "ports": ["http"] }]));
    order.files = small.files;
    order.fixed_ports.push(("http".to_owned(), port));
    order.restarts = 1;
    order.restart_delay = seconds(3);
    let job = world.run(&order);
    let _first = job.wait_event("Driver Failure", "a port of the task is in use");
    let image = in_task(client, &job, "local/full.qcow2");
    fill(&image);
    drop(held);
    let line = wait::try_until(seconds(60), || {
        let console = world.api.log(&job.allocation, "stdout")?;
        let line = console
            .lines()
            .find(|line| line.contains("disk cannot be written"));
        line.map(str::to_owned)
            .ok_or_else(|| format!("{} {console}", job.look().story()))
    });
    let mut row = Row::judged(
        "a guest that writes to a qcow2 disk on a full file system",
        line.as_ref().map_or_else(String::as_str, String::as_str).trim(),
        &["disk cannot be written"],
        Vec::new(),
    );
    let ended = job.stop_and_wait();
    if ended.client_status != "complete" {
        row.fault.push_str(&ended.story());
    }
    row.left = left_of(client, &job.allocation);
    row
}

/// Puts a file onto a file system of its own that has no room left.
fn fill(image: &Path) {
    let folder = image.parent().expect("it is in a folder");
    let bytes = std::fs::read(image).unwrap_or_else(|error| panic!("{}: {error}", image.display()));
    // The scratch folder's sweep takes it away, whatever happens here.
    mount(
        "tmpfs",
        folder,
        "tmpfs",
        MountFlags::empty(),
        c"size=1m,mode=0777",
    )
    .unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    std::fs::write(image, bytes).expect("there is room for it");
    let mut filler = File::create(folder.join("filler")).expect("there is room for a name");
    let full = std::io::copy(&mut std::io::repeat(7), &mut filler);
    assert!(full.is_err(), "the file system is not full");
}

/// What each of these finds is another's, or the host's.
const PROBES: &[(&str, &[&str])] = &[
    ("/proc, from QEMU's user", &["proc_"]),
    ("/sys and control groups, from QEMU's user", &["sys_", "cgroup_"]),
    (
        "the run directory of another task",
        &["run_directory_", "lock_", "tasks_"],
    ),
    (
        "the record and plan of another task",
        &["victim_record_", "victim_plan_"],
    ),
    ("the disk of another task", &["victim_disk_"]),
    (
        "the log FIFO and log of another task",
        &["victim_console_", "victim_log_"],
    ),
    ("the control socket of another task", &["connect_victim_"]),
    (
        "the process of another task",
        &["signal_victim", "ptrace_", "memory_"],
    ),
];

/// A part of what `escape_table` tries, with the control to it.
pub(super) fn probes(world: &World) -> Vec<Row> {
    let client = &with_inmate(world);
    let victim = world.run(&escape::with_disk(world, "victim", "").on(client));
    let _running = victim.wait_running();
    let vm = the_vm(&victim, client);
    let words = format!(
        "inmate.escape {} inmate.own.allocation=${{NOMAD_ALLOC_ID}}",
        escape::targets(client, &victim, &vm)
    );
    let job = world.run(&escape::with_disk(world, "probe", &words).on(client));
    let ended = job.wait_terminal();
    let (results, _) = escape::results(&job.console());
    let left = left_of(client, &job.allocation);
    let mut rows: Vec<Row> = PROBES
        .iter()
        .map(|(input, prefixes)| {
            let of_row = |name: &str| prefixes.iter().any(|prefix| name.starts_with(prefix));
            let tried: Vec<_> = results.iter().filter(|(name, _)| of_row(name)).collect();
            let mut errors: Vec<&str> = tried
                .iter()
                .filter_map(|(_, result)| result.strip_prefix("refused "))
                .collect();
            let refused = errors.len();
            errors.sort_unstable();
            errors.dedup();
            let sentence = format!(
                "{refused} of {} tried: refused, {}",
                tried.len(),
                errors.join(" or ")
            );
            let mut row = Row::judged(input, &sentence, &[], left.clone());
            if refused == 0 || refused < tried.len() {
                row.fault = format!(" {tried:?} {}", ended.story());
            }
            row
        })
        .collect();
    for pid in vm.others.iter().chain([&vm.shim]) {
        if process::one(*pid).is_none() {
            rows.push(Row::judged(
                "the other task",
                &format!("process {pid} is gone"),
                &["runs"],
                Vec::new(),
            ));
        }
    }
    let ended = victim.stop_and_wait();
    assert_exit(&ended, 0, 0);
    rows.push(at_the_end(client));
    rows
}
