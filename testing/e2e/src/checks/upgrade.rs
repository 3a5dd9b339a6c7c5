//! Do running VMs, and what they leave, go over from one release's files to another's?

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::stop::{assert_exit, terminated};
use super::witness::{Witness, client_with_files, terminate, the_vm, wait_nothing_left};
use crate::agent::{Client, PLUGIN};
use crate::api;
use crate::harness::say;
use crate::host::{self, SHIM};
use crate::job::{Job, Order};
use crate::process;
use crate::wait::{self, seconds};
use crate::world::{World, place, replace};

/// How long a QEMU may take to be gone.
const END_LIMIT: Duration = seconds(20);

/// The agent comes back with today's files, to VMs of an earlier release: one that runs on, and two that ended meanwhile.
pub(super) fn previous_release(world: &World) {
    let folders = std::env::var("STEPPE_RELEASES").unwrap_or_default();
    assert!(
        !folders.is_empty(),
        "STEPPE_RELEASES is not set: run this through testing/prepare.sh, see --help"
    );
    for (number, folder) in folders.split(':').enumerate() {
        say(&format!("    from {folder}"));
        from_release(world, &format!("old{number}"), Path::new(folder));
    }
}

fn from_release(world: &World, name: &str, release: &Path) {
    let client = client_with_files(world, name, &world.options(), release);
    client.agent.start();
    client.wait_healthy(&world.api);
    let lives = world.run(&Witness::order("lives", &client));
    let ends = world.run(&Order::with_http("ends", "").on(&client));
    let killed = world.run(&Order::guest("killed", "").on(&client));
    let _console = ends.wait_ready();
    let _console = killed.wait_ready();
    let lives = Witness::new(lives, &client);
    let (ends_qemu, killed_qemu) = (ends.qemu(&client), killed.qemu(&client));
    let address = ends.address();

    terminate(&client);
    api::get(
        &api::client(seconds(5)),
        &format!("http://{address}/cgi-bin/exit?5"),
    )
    .unwrap_or_else(|error| panic!("{error}"));
    assert!(process::signal(killed_qemu, Signal::KILL), "QEMU is gone");
    for qemu in [ends_qemu, killed_qemu] {
        wait::until("QEMU's end", END_LIMIT, || match process::one(qemu) {
            None => Ok(()),
            Some(_) => Err("it runs".to_owned()),
        });
    }
    place(&world.plugins(), &client.plugins);
    client.agent.start();
    client.wait_healthy(&world.api);
    assert!(
        client
            .plugin()
            .expect("the plugin runs")
            .runs(&world_plugin(&client)),
        "the plugin is not today's"
    );

    // What ended has its true cause.
    let ended = ends.wait_terminal();
    assert_exit(&ended, 5, 0);
    ends.wait_event("Driver", "exit code 5");
    let ended = killed.wait_terminal();
    assert_exit(&ended, 137, 9);
    killed.wait_event("Driver", "from outside by signal 9");

    // What runs is the same, by the old shim, and today's plugin speaks with it.
    let _uptime = lives.untouched(&client);
    let shim = process::one(lives.shim()).expect("the shim runs");
    assert!(
        !shim.runs(&client.plugins.join(SHIM)),
        "the old VM's shim is today's: nothing was tested"
    );
    lives.ticks_on();

    let new = world.run(&Order::guest("new", "").on(&client));
    let _console = new.wait_ready();
    assert_runs_new(&new, &client, None);
    let ended = new.stop_and_wait();
    assert_eq!(terminated(&ended).exit_code, 0, "{}", ended.story());
    let _uptime = lives.untouched(&client);
    lives.stop();
    wait_nothing_left(&client);
}

fn world_plugin(client: &Client) -> PathBuf {
    client.plugins.join(PLUGIN)
}

/// Whether the processes of a job's VM are those of the files that are there now.
#[track_caller]
fn assert_runs_new(job: &Job<'_>, client: &Client, qemu: Option<&Path>) {
    let vm = wait::until("its QEMU", seconds(10), || {
        let vm = the_vm(job, client);
        vm.qemu().map(|_| vm).ok_or_else(|| "none".to_owned())
    });
    let runs = |pid: u32, file: &Path| process::one(pid).is_some_and(|process| process.runs(file));
    assert!(
        runs(vm.shim, &client.plugins.join(SHIM)),
        "{}: another shim than {}",
        job.id,
        client.plugins.join(SHIM).display()
    );
    if let Some(qemu) = qemu {
        let pid = vm.qemu().expect("it was seen");
        assert!(
            runs(pid, qemu),
            "{}: another QEMU than {}",
            job.id,
            qemu.display()
        );
    }
}

/// Files are replaced while their processes run, as `apt` and `make install` do it, and no agent is told.
pub(super) fn files_under_vm(world: &World) {
    let installed = installed_qemu();
    let qemu = own_qemu(world, &installed);
    let options = format!("{}\n    qemu = \"{}\"\n", world.options(), qemu.display());
    let client = client_with_files(world, "files", &options, &world.plugins());
    client.agent.start();
    client.wait_healthy(&world.api);
    let lives = Witness::new(world.run(&Witness::order("lives", &client)), &client);
    let old = client.plugin().expect("the plugin runs");

    replace(&installed, &qemu);
    place(&world.plugins(), &client.plugins);
    let runs = |pid: u32, file: &Path| process::one(pid).is_some_and(|process| process.runs(file));
    assert!(
        !runs(lives.qemu(), &qemu) && !runs(lives.shim(), &client.plugins.join(SHIM)),
        "the files were not replaced"
    );
    // The agent is not told: the old plugin starts the new files.
    let soon = start_hard(world, &client, "soon");
    assert_runs_new(&soon, &client, Some(&qemu));
    let _ended = soon.stop_and_wait();
    assert!(
        !old.runs(&world_plugin(&client)),
        "the plugin is the new file already"
    );

    assert!(process::signal(old.pid, Signal::KILL), "the plugin is gone");
    wait::until("a new plugin", seconds(20), || match client.plugin() {
        Some(plugin) if plugin.pid != old.pid => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let plugin = client.plugin().expect("the plugin runs");
    assert!(plugin.runs(&world_plugin(&client)), "the plugin is the old file");
    let _uptime = lives.untouched(&client);
    lives.ticks_on();

    let later = world.run(&Order::guest("later", "").on(&client));
    let _console = later.wait_ready();
    assert_runs_new(&later, &client, Some(&qemu));
    let ended = later.stop_and_wait();
    assert_eq!(terminated(&ended).exit_code, 0, "{}", ended.story());
    let _uptime = lives.untouched(&client);
    lives.stop();
    wait_nothing_left(&client);
}

const QEMU: &str = "qemu-system-x86_64";

/// The host's QEMU.
fn installed_qemu() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join(QEMU))
        .find(|program| program.exists());
    let found = found.expect("QEMU is installed, see testing/packages.txt");
    found.canonicalize().expect("it was found")
}

/// A copy of the host's QEMU that may be replaced. It looks for its firmware and its modules beside its own folder, as the
/// host's does.
fn own_qemu(world: &World, installed: &Path) -> PathBuf {
    let prefix = world.scratch.path().join("usr");
    let bin = prefix.join("bin");
    std::fs::create_dir_all(&bin).expect("a folder can be made in the scratch folder");
    let theirs = installed.ancestors().nth(2).expect("it is in <prefix>/bin");
    for folder in ["share", "lib"] {
        std::os::unix::fs::symlink(theirs.join(folder), prefix.join(folder))
            .expect("a link can be made in the scratch folder");
    }
    replace(installed, &bin.join(QEMU));
    bin.join(QEMU)
}

/// Starts a VM that is to be switched off without its guest having to boot.
fn start_hard<'w>(world: &'w World, client: &Client, name: &str) -> Job<'w> {
    let mut order = Order::guest(name, "").on(client);
    order.kill_signal = "SIGKILL".to_owned();
    let job = world.run(&order);
    let _running = job.wait_running();
    job
}

/// A version that no release has.
const NEWER: &str = "\"version\":99";

/// A newer release's record under a running VM: whatever Nomad asks of the older one, the VM is left alone.
pub(super) fn downgrade_refused(world: &World) {
    /// Long enough for the restarts of the job and for several times the grace of orphans.
    const LEFT_ALONE_FOR: Duration = seconds(12);
    /// How long the end may take once the record can be read: the agent's start, the grace, the undo.
    const CLEAN_LIMIT: Duration = seconds(60);
    let options = world.options() + "\n    orphan_grace = \"2s\"\n";
    let client = world.client("down", &options);
    client.agent.start();
    client.wait_healthy(&world.api);
    let mut order = Witness::order("lives", &client);
    order.restarts = 2;
    let lives = Witness::new(world.run(&order), &client);

    terminate(&client);
    let record = lives.record(&client);
    let own = version_of(&record);
    set_version(&record, &own, NEWER);
    client.agent.start();
    client.wait_healthy(&world.api);

    let told = lives
        .job
        .wait_event("Driver Failure", "version 99")
        .display_message;
    assert!(
        told.contains("install the release that wrote it"),
        "no remedy: {told}"
    );
    say(&format!("    said: {told}"));
    client.wait_driver(&world.api, "the VM is told on the node", |node| {
        let orphans = node.attributes.get("driver.microvm.orphans");
        match orphans {
            Some(orphans) if orphans.contains(&lives.job.allocation) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let began = Instant::now();
    while began.elapsed() < LEFT_ALONE_FOR {
        let vms = host::vms(&client);
        assert_eq!(vms.len(), 1, "{}: {vms:?}", lives.job.look().story());
        let _uptime = lives.untouched(&client);
        std::thread::sleep(seconds(1));
    }

    // The newer release, or whoever is to clean up, reads it again.
    terminate(&client);
    let _uptime = lives.untouched(&client);
    set_version(&record, NEWER, &own);
    lives.job.stop();
    client.agent.start();
    client.wait_healthy(&world.api);
    wait::until(
        "the end of what was left",
        CLEAN_LIMIT,
        || match host::leavings(&client).as_slice() {
            [] => Ok(()),
            left => Err(left.join("\n")),
        },
    );
    assert!(process::one(lives.qemu()).is_none(), "QEMU is still there");
}

/// `"version":N` of a record's first line.
fn version_of(record: &Path) -> String {
    let text =
        std::fs::read_to_string(record).unwrap_or_else(|error| panic!("{}: {error}", record.display()));
    let header: serde_json::Value = serde_json::from_str(text.lines().next().unwrap_or_default())
        .unwrap_or_else(|error| panic!("{}: {error}", record.display()));
    format!("\"version\":{}", header["version"])
}

/// Changes the version in a record's first line, and nothing else.
fn set_version(record: &Path, from: &str, to: &str) {
    let text =
        std::fs::read_to_string(record).unwrap_or_else(|error| panic!("{}: {error}", record.display()));
    let (first, rest) = text.split_once('\n').expect("a record has a first line");
    assert!(first.contains(from), "{first}");
    let changed = format!("{}\n{rest}", first.replacen(from, to, 1));
    std::fs::write(record, changed).unwrap_or_else(|error| panic!("{}: {error}", record.display()));
}
