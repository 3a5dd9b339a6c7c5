//! What if the host was restarted?
//!
//! The host itself can't be: all processes are killed, what a restart empties is emptied, and the agent comes back in a
//! mount namespace in which the kernel names another boot.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::mount::UnmountFlags;
use rustix::process::Signal;
use serde_json::Value;

use super::stop::assert_exit;
use super::witness::{Witness, starts, the_vm, wait_nothing_left};
use crate::agent::Client;
use crate::host;
use crate::job::Order;
use crate::wait::{self, seconds};
use crate::world::World;
use crate::{process, scratch};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The boot after this one.
const NEXT_BOOT: &str = "5ee55ee5-0000-4000-8000-5ee55ee55ee5";

/// Shows another boot id to Nomad and all that it starts, and to nobody else; then becomes Nomad.
const IN_NEXT_BOOT: &str = "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"";

/// An allocation that nobody knows.
const FORGOTTEN: &str = "f0f0f0f0-0000-4000-8000-f0f0f0f0f0f0";

pub(super) fn host_reboot(world: &World) {
    let this_boot = std::fs::read_to_string(BOOT_ID).expect("the kernel has a boot id");
    // So soon a record that no agent asks about is taken back; a minute unless told otherwise.
    let options = world.options() + "\n    orphan_grace = \"8s\"\n";
    let client = world.client("boot", &options);
    client.agent.start();
    client.wait_healthy(&world.api);
    let lives = world.run(&Witness::order("lives", &client));
    let unwanted = world.run(&Order::guest("unwanted", "").on(&client));
    let _running = unwanted.wait_running();
    let lives = Witness::new(lives, &client);
    let tasks = client.state_dir().join("tasks");
    let old_keys = keys(&tasks);
    assert_eq!(old_keys.len(), 2, "{old_keys:?}");

    power_off(&client);
    // While the host is down, one job is stopped; and one record is of an allocation that Nomad has long forgotten.
    unwanted.stop();
    let of_lives = lives.record(&client);
    forget(of_lives.parent().expect("it has a folder"), &lives.job.allocation);

    let next_boot = client.directory().join("boot_id");
    std::fs::write(&next_boot, format!("{NEXT_BOOT}\n"))
        .expect("a file can be written in the scratch folder");
    let next_boot = next_boot.display().to_string();
    client.agent.start_by(&[
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        IN_NEXT_BOOT,
        &next_boot,
    ]);
    client.wait_healthy(&world.api);

    // The task is started anew, once.
    let vm = wait::until("a new VM", seconds(60), || {
        match lives.job.vms(&client).as_slice() {
            [vm] if vm.qemu().is_some() => Ok(vm.clone()),
            other => Err(format!("{other:?}; {}", lives.job.look().story())),
        }
    });
    assert!(!old_keys.contains(&vm.key), "the task has its old id");
    wait::until("the new guest's first words", seconds(60), || {
        let console = lives.job.console();
        match console.matches(crate::job::READY).count() {
            2 => Ok(()),
            other => Err(format!("{other} guests; {}", lives.job.look().story())),
        }
    });
    let running = lives.job.wait_running();
    assert_eq!(lives.job.allocations(), 1, "Nomad made another allocation");
    assert_eq!(starts(&running), 2, "{}", running.story());
    let record = tasks.join(&vm.key).join("record");
    let record = std::fs::read_to_string(record).expect("the VM has a record");
    assert!(
        record.contains(NEXT_BOOT),
        "the agent saw the boot before: {record}"
    );

    // Of the boot before, nothing is left; of this one, one VM.
    wait::until("one record", seconds(40), || {
        let keys = keys(&tasks);
        if keys == BTreeSet::from([vm.key.clone()]) {
            Ok(())
        } else {
            Err(format!("{keys:?}"))
        }
    });
    assert_eq!(host::vms(&client).len(), 1, "{:?}", host::vms(&client));
    assert_eq!(the_vm(&lives.job, &client), vm, "another VM");
    let stale: Vec<String> = host::leavings(&client)
        .into_iter()
        .filter(|line| !line.contains(&lives.job.allocation))
        .collect();
    assert!(stale.is_empty(), "{}", stale.join("\n"));

    let ended = lives.job.stop_and_wait();
    assert_exit(&ended, 0, 0);
    wait_nothing_left(&client);
    assert_eq!(
        std::fs::read_to_string(BOOT_ID).expect("the kernel has a boot id"),
        this_boot,
        "the real host was told another boot id"
    );
}

/// The records that are there.
fn keys(tasks: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(tasks).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// What a restart of the host takes away: every process, mounts, control groups, and what is in memory.
fn power_off(client: &Client) {
    client.agent.kill9();
    wait::until("the end of all processes", seconds(10), || {
        let all = process::all();
        let own = all
            .iter()
            .filter(|process| scratch::owns(client.directory(), process))
            .map(|process| process.pid);
        let roots = own.chain(host::vms(client).into_iter().map(|vm| vm.shim));
        let found = process::with_descendants(roots, &all);
        for pid in &found {
            process::signal(*pid, Signal::KILL);
        }
        if found.is_empty() {
            Ok(())
        } else {
            Err(format!("{} remain", found.len()))
        }
    });
    for mount in host::mounts_beneath(client.directory()) {
        rustix::mount::unmount(&mount, UnmountFlags::DETACH)
            .unwrap_or_else(|error| panic!("{}: {error}", mount.display()));
    }
    for group in host::task_groups(client.directory()) {
        scratch::remove_groups(&group);
    }
    std::fs::remove_dir_all(client.run_dir()).expect("the folder of the sockets can be removed");
}

/// Makes the record of an allocation that nobody knows out of another one, beside it.
fn forget(directory: &Path, allocation: &str) {
    let header = std::fs::read_to_string(directory.join("record")).expect("a record is readable");
    let header: Value =
        serde_json::from_str(header.lines().next().unwrap_or_default()).expect("it has a header");
    let task = header["task_id"].as_str().expect("it has a task id");
    // A folder's name is made of the allocation and eight digits of the task id's SHA-256.
    let digits = sha256(&task.replace(allocation, FORGOTTEN));
    let key = format!("{FORGOTTEN}.{}", &digits[..8]);
    let forgotten = directory.with_file_name(&key);
    let old_key = directory.file_name().unwrap_or_default().to_string_lossy();
    std::fs::create_dir(&forgotten).expect("a folder can be made beside a record");
    for entry in std::fs::read_dir(directory)
        .expect("a record's folder is readable")
        .flatten()
    {
        let bytes = std::fs::read(entry.path()).expect("a record's file is readable");
        let text = String::from_utf8_lossy(&bytes)
            .replace(&*old_key, &key)
            .replace(allocation, FORGOTTEN);
        std::fs::write(forgotten.join(entry.file_name()), text)
            .expect("a file can be written beside a record");
    }
}

fn sha256(text: &str) -> String {
    let mut program = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sha256sum is part of coreutils");
    let mut input = program.stdin.take().expect("it was piped");
    input.write_all(text.as_bytes()).expect("sha256sum reads");
    drop(input);
    let output = program.wait_with_output().expect("sha256sum ends");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
