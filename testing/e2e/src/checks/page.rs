//! What does an operator see of a host's VMs, with and without agent and plugin?

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::witness::{terminate, the_vm, wait_nothing_left};
use crate::agent::{Client, PLUGIN};
use crate::api::TASK;
use crate::harness::say;
use crate::host::SHIM;
use crate::job::{Job, Order, STUB_READY};
use crate::process;
use crate::wait::{self, seconds};
use crate::world::World;

/// How long a table may take to be printed, beside what a silent shim costs. Some milliseconds were seen.
const LIST_LIMIT: Duration = seconds(3);

/// A user who is not root and owns nothing.
const NOBODY: u32 = 65534;

/// What a command printed, and its exit status.
#[derive(Debug)]
struct Printed {
    status: Option<i32>,
    out: String,
    err: String,
}

/// Runs the driver's program by hand.
fn run(world: &World, change: impl FnOnce(&mut Command)) -> Printed {
    let mut command = Command::new(world.plugins().join(PLUGIN));
    command.current_dir(world.scratch.path()).stdin(Stdio::null());
    change(&mut command);
    let output = command.output().expect("the driver's program can be started");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("it prints UTF-8");
    Printed {
        status: output.status.code(),
        out: text(&output.stdout),
        err: text(&output.stderr),
    }
}

/// Runs a command that must go well; what it printed.
#[track_caller]
fn page(world: &World, state_dir: &Path, words: &[&str]) -> String {
    let printed = run(world, |command| {
        command.args(words).arg("--state-dir").arg(state_dir);
    });
    assert_eq!(
        (printed.status, printed.err.as_str()),
        (Some(0), ""),
        "{words:?}: {printed:?}"
    );
    printed.out
}

/// The same as JSON.
#[track_caller]
pub(super) fn page_json(world: &World, state_dir: &Path, words: &[&str]) -> Value {
    let text = page(world, state_dir, &[words, &["--json"]].concat());
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(value["version"], 1);
    value
}

/// The state of each row of a table, by the job.
fn states(table: &str) -> BTreeMap<String, String> {
    let rows = table.lines().skip(1).take_while(|line| !line.is_empty());
    rows.map(|row| {
        let cells: Vec<&str> = row
            .split("  ")
            .map(str::trim)
            .filter(|cell| !cell.is_empty())
            .collect();
        (cells[2].to_owned(), cells[3].to_owned())
    })
    .collect()
}

/// Waits until the table says this of a job.
#[track_caller]
fn wait_state(world: &World, client: &Client, job: &Job<'_>, state: &str) -> String {
    wait::until(&format!("{} is {state}", job.id), seconds(30), || {
        let table = page(world, &client.state_dir(), &["list"]);
        if states(&table).get(&job.id).is_some_and(|now| now == state) {
            Ok(table)
        } else {
            Err(table)
        }
    })
}

/// Every file of a state directory but the logs, with its inode, size, and time of its last change.
fn files(directory: &Path) -> BTreeMap<PathBuf, (u64, u64, i64, i64)> {
    let mut found = BTreeMap::new();
    let mut open = vec![directory.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next)
            .expect("a state directory is readable")
            .flatten()
        {
            let data = entry.metadata().expect("a file has metadata");
            if data.is_dir() && entry.file_name() != "log" {
                open.push(entry.path());
            }
            if entry.file_name() != "log" {
                found.insert(
                    entry.path(),
                    (data.ino(), data.size(), data.ctime(), data.ctime_nsec()),
                );
            }
        }
    }
    found
}

pub(super) fn list_inspect(world: &World) {
    let client = world.own_client(&world.name("page"));
    let state_dir = client.state_dir();
    assert!(page(world, &state_dir, &["list"]).starts_with("no task has a record in "));
    let job = world.run(&Order::stub("page", "").on(&client));
    let _running = job.wait_running();
    let _console = job.wait_console(STUB_READY);
    let before = files(&state_dir);

    // With everything at work.
    let began = Instant::now();
    let table = page(world, &state_dir, &["list"]);
    let took = began.elapsed();
    say(&format!("    list after {:.0} ms:", took.as_secs_f64() * 1000.0));
    table.lines().for_each(|line| say(&format!("    {line}")));
    assert!(took < LIST_LIMIT, "{took:?}");
    let row = is_row_of(world, &client, &job, "running");
    is_refused_with_a_sentence(world, &client, &job);
    is_inspected(world, &client, &job, &row);
    assert_eq!(files(&state_dir), before, "who looked changed something");

    // A guest that isn't ready, as long as its start waits.
    let unready = Order::stub("unready", "")
        .set("ready", json!("console"))
        .set("ready_pattern", json!("never shown"))
        .set("ready_timeout", json!("10s"));
    let unready = world.run(&unready.on(&client));
    let table = wait_state(world, &client, &unready, "running not ready");
    assert_eq!(
        states(&table).get(&job.id).map(String::as_str),
        Some("running"),
        "{table}"
    );
    let _failed = unready.wait_terminal();

    // With a supervisor that says nothing.
    let vm = the_vm(&job, &client);
    let is_shim = |pid: &u32| process::one(*pid).is_some_and(|process| process.name() == SHIM);
    let supervisor = vm
        .others
        .iter()
        .copied()
        .find(is_shim)
        .expect("it has a supervisor");
    assert!(
        process::signal(supervisor, Signal::STOP),
        "the supervisor is gone"
    );
    let began = Instant::now();
    let silent = page(world, &state_dir, &["list"]);
    let took = began.elapsed();
    process::signal(supervisor, Signal::CONT);
    assert_eq!(
        states(&silent).get(&job.id).map(String::as_str),
        Some("shim silent"),
        "{silent}"
    );
    assert!(silent.contains("its shim does not answer within 1 s"), "{silent}");
    assert!(took < LIST_LIMIT, "{took:?}");

    // With neither agent nor plugin.
    terminate(&client);
    let alone = is_row_of(world, &client, &job, "running");
    assert_eq!(alone, row, "the VM is another one");
    is_inspected(world, &client, &job, &alone);
    damaged_records_are_rows(world, &client, &job);

    // QEMU is killed, and nobody watches.
    let qemu = u32::try_from(row["qemu_pid"].as_u64().unwrap_or_default()).unwrap_or_default();
    assert!(process::signal(qemu, Signal::KILL), "QEMU {qemu} is gone");
    let _table = wait_state(world, &client, &job, "ended signal");
    let text = page(world, &state_dir, &["inspect", &job.allocation]);
    for words in [
        "cause         signal\n",
        "QEMU was ended from outside by signal 9",
        "exit code 137, signal 9",
        "killed by signal 9",
        &format!("| {STUB_READY}\n"),
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let value = page_json(world, &state_dir, &["inspect", &job.allocation]);
    assert_eq!(
        (&value["state"], &value["cause"], &value["qemu_pid"]),
        (&json!("ended"), &json!("signal"), &Value::Null)
    );
    assert_eq!(
        (&value["end"]["exit_code"], &value["end"]["signal"]),
        (&json!(137), &json!(9)),
        "{value}"
    );
    assert!(
        value["console_tail"]
            .as_str()
            .is_some_and(|tail| tail.contains(STUB_READY)),
        "{value}"
    );

    // Once Nomad has learned of it, nothing is left to be seen.
    client.agent.start();
    client.wait_healthy(&world.api);
    let _ended = job.wait_terminal();
    wait_nothing_left(&client);
    assert!(page(world, &state_dir, &["list"]).starts_with("no task has a record in "));
}

/// Table and JSON say the same of a job, and both the truth; its row of the JSON.
#[track_caller]
fn is_row_of(world: &World, client: &Client, job: &Job<'_>, state: &str) -> Value {
    let vm = the_vm(job, client);
    let qemu = vm.qemu().expect("QEMU runs");
    let table = page(world, &client.state_dir(), &["list"]);
    let row = table
        .lines()
        .find(|row| row.contains(&job.id))
        .unwrap_or_else(|| panic!("{table}"));
    let uid = process::one(qemu)
        .and_then(|_| std::fs::metadata(format!("/proc/{qemu}")).ok())
        .map(|data| data.uid())
        .expect("QEMU runs");
    let cells: Vec<&str> = row.split_whitespace().collect();
    let wanted = [
        &job.allocation[..8],
        TASK,
        &job.id,
        state,
        // The address that netd gave it.
        "-",
        &uid.to_string(),
        &qemu.to_string(),
        &vm.shim.to_string(),
    ];
    assert_eq!(cells[..8], wanted, "{table}");

    let value = page_json(world, &client.state_dir(), &["list"]);
    let rows = value["tasks"].as_array().expect("it is a list");
    let row = rows
        .iter()
        .find(|row| row["job"] == job.id.as_str())
        .expect("it has a row");
    let since = row["since"].as_str().unwrap_or_default();
    assert!(
        since.ends_with('Z') && since.len() == 24 && since.starts_with(cells[8].trim_end_matches('Z')),
        "{row}"
    );
    let wanted = json!({
        "key": vm.key, "alloc_id": job.allocation, "task": TASK, "namespace": "default", "job": job.id,
        "state": state, "cause": null, "uid": uid, "qemu_pid": qemu, "shim_pid": vm.shim, "problem": null,
        "interfaces": [],
    });
    for (member, value) in wanted.as_object().expect("it is an object") {
        assert_eq!(&row[member], value, "{member}: {row}");
    }
    row.clone()
}

/// One task, by each of its names.
#[track_caller]
fn is_inspected(world: &World, client: &Client, job: &Job<'_>, row: &Value) {
    let state_dir = client.state_dir();
    let key = row["key"].as_str().expect("it has a key").to_owned();
    let text = page(world, &state_dir, &["inspect", &key]);
    let qemu = row["qemu_pid"].as_u64().expect("it has a QEMU");
    for words in [
        format!("TASK {key}\n"),
        "state         running since ".to_owned(),
        format!("job           {}, namespace default\n", job.id),
        format!("processes     QEMU {qemu}, shim {}\n", row["shim_pid"]),
        "memory limit  ".to_owned(),
        "boot          this one, ".to_owned(),
        "nomad alloc logs".to_owned(),
        format!("\n    {key},debug-threads=on\n"),
    ] {
        assert!(text.contains(&words), "{words}: {text}");
    }
    let prefix = &job.allocation[..8];
    let value = page_json(world, &state_dir, &["inspect", prefix]);
    for words in [
        format!("{prefix}/{TASK}"),
        job.allocation.clone(),
        format!("{}/{TASK}", job.allocation),
    ] {
        assert_eq!(
            page_json(world, &state_dir, &["inspect", &words]),
            value,
            "{words}"
        );
    }
    for (member, known) in row.as_object().expect("it is an object") {
        assert_eq!(&value[member], known, "{member}: {value}");
    }
    let steps: Vec<(u64, &str)> = value["steps"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|step| {
            (
                step["line"].as_u64().unwrap_or_default(),
                step["step"].as_str().unwrap_or_default(),
            )
        })
        .collect();
    // A line of the record each, in which the step's word stands.
    let record = state_dir.join("tasks").join(&key).join("record");
    let record = std::fs::read_to_string(record).expect("the record is readable");
    assert_eq!(steps.len() + 1, record.lines().count(), "{value}");
    for ((number, step), line) in steps.iter().zip(record.lines().skip(1)) {
        assert!(
            line.contains(&format!("\"step\":\"{step}\"")),
            "{number}: {step}: {line}"
        );
    }
    assert!(
        steps.first().is_some_and(|first| *first == (2, "uids"))
            && steps.iter().any(|step| step.1 == "running")
    );
    let limit = value["memory_limit_bytes"].as_u64().expect("it has a limit");
    let leaves = value["control_groups"].as_array().expect("it has control groups");
    let real = leaves.iter().filter_map(Value::as_str).find_map(|leaf| {
        let limit = ["memory.limit_in_bytes", "memory.max"]
            .map(|name| std::fs::read_to_string(format!("{leaf}/{name}")));
        limit.into_iter().flatten().next()?.trim().parse::<u64>().ok()
    });
    assert_eq!(real, Some(limit), "{leaves:?}");
    assert_eq!(value["plan"]["arguments"][0], "-name", "{value}");
    assert_eq!(
        (&value["end"], &value["console_tail"], &value["this_boot"]),
        (&Value::Null, &Value::Null, &json!(true))
    );
}

/// What can't be shown is said in one sentence, with the exit status that goes with it.
#[track_caller]
fn is_refused_with_a_sentence(world: &World, client: &Client, job: &Job<'_>) {
    let state_dir = client.state_dir().display().to_string();
    let somewhere = world.scratch.path().join("nowhere").display().to_string();
    let refused = |words: &[&str], user: Option<u32>, status: i32, wanted: &str| {
        let printed = run(world, |command| {
            command.args(words);
            if let Some(user) = user {
                command.uid(user).gid(user);
            }
        });
        assert_eq!(printed.status, Some(status), "{words:?}: {printed:?}");
        assert_eq!(printed.out, "", "{words:?}: {printed:?}");
        assert_eq!(printed.err.lines().count(), 1, "{words:?}: {printed:?}");
        assert!(printed.err.contains(wanted), "{words:?}: {printed:?}");
    };
    refused(
        &["list", "--state-dir", &somewhere],
        None,
        1,
        "there is no state directory",
    );
    refused(&["list", "--state-dir", &state_dir], Some(NOBODY), 1, "use sudo");
    refused(&["list", "--jsn"], None, 64, "list --help");
    refused(&["inspect"], None, 64, "needs the name of a task");
    let state_dir = ["--state-dir", &state_dir];
    let with = |words: &[&'static str]| [words, &state_dir].concat();
    refused(&with(&["inspect", "ffffffff/vm"]), None, 1, "no task in ");
    refused(&with(&["inspect", ""]), None, 1, "no task in ");
    let other = [&job.allocation[..8], "/other"].concat();
    refused(
        &[["inspect", &other].as_slice(), &state_dir].concat(),
        None,
        1,
        "no task in ",
    );
    for command in ["list", "inspect", "bundle"] {
        let help = run(world, |process| {
            process.args([command, "--help"]);
        });
        assert_eq!(help.status, Some(0));
        assert!(
            help.out
                .starts_with(&format!("NAME\n  nomad-driver-microvm {command} - ")),
            "{}",
            help.out
        );
    }
}

/// A record that can't be read is a row like any other. The state directory is copied for that.
#[track_caller]
fn damaged_records_are_rows(world: &World, client: &Client, job: &Job<'_>) {
    let copy = world.scratch.path().join(world.name("damaged"));
    let tasks = copy.join("tasks");
    let cp = |from: &Path, to: &Path| {
        let status = Command::new("cp").arg("-a").arg(from).arg(to).status();
        assert!(
            status.expect("cp can be started").success(),
            "{} to {}",
            from.display(),
            to.display()
        );
    };
    cp(&client.state_dir(), &copy);
    let key = the_vm(job, client).key;
    // Names that a task could have; others are none of the driver's.
    let name = |digit| format!("{digit}0000000-0000-4000-8000-000000000000.00000000");
    let [cut, garbage, newer, fifo, link] = [1, 2, 3, 4, 5].map(name);
    for (name, record) in [
        (&cut, "{\"version\":2,\"instance\":\"0"),
        (&garbage, "\u{1b}[2J garbage\n"),
        (&newer, "{\"version\":99}\n"),
        (&fifo, ""),
        (&link, ""),
    ] {
        cp(&tasks.join(&key), &tasks.join(name));
        std::fs::write(tasks.join(name).join("record"), record).expect("a record can be written");
    }
    let [fifo_record, link_record] = [&fifo, &link].map(|name| tasks.join(name).join("record"));
    for record in [&fifo_record, &link_record] {
        std::fs::remove_file(record).expect("a record can be removed");
    }
    let made = Command::new("mkfifo").arg(&fifo_record).status();
    assert!(made.expect("mkfifo can be started").success());
    std::os::unix::fs::symlink("/etc/shadow", &link_record).expect("a link can be made");
    let strange = name(6);
    cp(&tasks.join(&key), &tasks.join(&strange));
    std::fs::create_dir(tasks.join("lost+found")).expect("a folder can be made beside a record");

    let table = page(world, &copy, &["list"]);
    table.lines().for_each(|line| say(&format!("    {line}")));
    assert!(!table.contains('\u{1b}'), "{table:?}");
    let value = page_json(world, &copy, &["list"]);
    let rows: BTreeMap<&str, (&str, &str)> = value["tasks"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|row| {
            let text = |name: &str| row[name].as_str().unwrap_or_default();
            (text("key"), (text("state"), text("problem")))
        })
        .collect();
    assert_eq!(rows.len(), 7, "{table}");
    for (name, wanted) in [
        (&garbage, "first line is not readable"),
        (&newer, "has version 99"),
        (&fifo, "not a regular file"),
        (&link, "a symbolic link"),
        (&strange, "of another task than its directory"),
    ] {
        let (state, problem) = rows[name.as_str()];
        assert!(
            state == "unreadable" && problem.contains(wanted),
            "{name}: {state}: {problem}"
        );
        let text = page(world, &copy, &["inspect", name]);
        assert!(
            text.contains("state         unreadable\n") && text.contains(wanted),
            "{text}"
        );
    }
    assert_eq!(rows[cut.as_str()].0, "interrupted", "{table}");
    // Its shim holds the lock of the directory that was copied, not of the copy.
    assert_eq!(rows[key.as_str()].0, "ended", "{table}");
    // What is behind a link is handed out to nobody.
    let archive = page(world, &copy, &["bundle", &link, "-o", "link.tar"]);
    let bytes = std::fs::read(world.scratch.path().join(archive.trim())).expect("the archive is there");
    assert!(!has(&bytes, b"root:"), "/etc/shadow is in the archive");
}

fn has(bytes: &[u8], words: &[u8]) -> bool {
    bytes.windows(words.len()).any(|window| window == words)
}

/// An archive's files by name, as Debian's tar sees them.
fn unpacked(archive: &Path, into: &Path) -> BTreeMap<String, String> {
    std::fs::create_dir_all(into).expect("a folder can be made in the scratch folder");
    let status = Command::new("tar")
        .arg("-xf")
        .arg(archive)
        .arg("-C")
        .arg(into)
        .status();
    assert!(
        status.expect("tar can be started").success(),
        "{} can't be unpacked",
        archive.display()
    );
    let read = |path: &Path| std::fs::read_dir(path).expect("a folder is readable").flatten();
    let folders: Vec<PathBuf> = read(into).map(|entry| entry.path()).collect();
    let [folder] = folders.as_slice() else {
        panic!("{folders:?}")
    };
    read(folder)
        .map(|entry| {
            let bytes = std::fs::read(entry.path()).expect("an unpacked file is readable");
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, String::from_utf8_lossy(&bytes).into_owned())
        })
        .collect()
}

/// An archive has what helps, and not the secret that the job put on its guest's command line.
pub(super) fn bundle(world: &World) {
    const SECRET: &str = "Kx7-geheim-91f3";
    let client = world.own_client(&world.name("tar"));
    let state_dir = client.state_dir();
    // The guest prints words that it doesn't know.
    let job = world.run(&Order::with_http("bundle", &format!("steppe.password={SECRET}")).on(&client));
    let console = job.wait_ready();
    assert!(console.contains(SECRET), "the guest keeps its secret: {console}");
    let address = job.address();
    let port = address.rsplit(':').next().expect("it has a port");
    let vm = the_vm(&job, &client);
    let directory = state_dir.join("tasks").join(&vm.key);
    let has_no_secret = |archive: &Path| -> BTreeMap<String, String> {
        let bytes = std::fs::read(archive).expect("the archive is there");
        assert!(!has(&bytes, SECRET.as_bytes()), "the archive has the secret");
        for piece in SECRET.as_bytes().windows(8) {
            assert!(
                !has(&bytes, piece),
                "the archive has {:?}",
                String::from_utf8_lossy(piece)
            );
        }
        let mode = std::fs::metadata(archive)
            .expect("the archive is there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        unpacked(archive, &archive.with_extension("files"))
    };

    // While it runs.
    let name = page(world, &state_dir, &["bundle", &job.allocation]);
    assert_eq!(name, format!("steppe-{}.tar\n", vm.key));
    let files = has_no_secret(&world.scratch.path().join(name.trim()));
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "about.txt",
            "inspect.txt",
            "plan.json",
            "plugin.log",
            "record",
            "shim.log"
        ]
    );
    assert_eq!(
        files["record"],
        std::fs::read_to_string(directory.join("record")).unwrap_or_default()
    );
    let plan: Value = serde_json::from_str(&files["plan.json"]).expect("the plan is JSON");
    let real = process::one(vm.qemu().expect("QEMU runs"))
        .expect("QEMU runs")
        .arguments;
    let planned = plan["arguments"].as_array().expect("it has arguments");
    let differing: Vec<&str> = planned
        .iter()
        .filter_map(Value::as_str)
        .zip(&real[1..])
        .filter_map(|(planned, real)| (planned != real).then_some(planned))
        .collect();
    let [cmdline] = differing.as_slice() else {
        panic!("{differing:?} differ from QEMU's arguments")
    };
    assert!(
        cmdline.starts_with("console=ttyS0 ") && cmdline.ends_with(" bytes, left out)"),
        "{cmdline}"
    );
    assert!(
        files["plan.json"].contains(&format!(":{port}-")),
        "no port {port}: {}",
        files["plan.json"]
    );
    assert!(files["inspect.txt"].contains(cmdline), "{}", files["inspect.txt"]);
    let qemu = Command::new("qemu-system-x86_64")
        .arg("--version")
        .output()
        .expect("QEMU can be started");
    let version = String::from_utf8_lossy(&qemu.stdout);
    let version = version
        .split_whitespace()
        .nth(3)
        .expect("QEMU says its version")
        .to_owned();
    for wanted in [
        format!("QEMU    {version} ("),
        format!("driver  {}", env!("CARGO_PKG_VERSION")),
    ] {
        assert!(
            files["about.txt"].contains(&wanted),
            "{wanted}: {}",
            files["about.txt"]
        );
    }

    // A file that is there is somebody's.
    let kept = std::fs::read(world.scratch.path().join(name.trim())).expect("the archive is there");
    for output in [[].as_slice(), &["-o", name.trim()]] {
        let printed = run(world, |command| {
            command
                .args(["bundle", &job.allocation])
                .args(output)
                .arg("--state-dir")
                .arg(&state_dir);
        });
        assert_eq!(printed.status, Some(1), "{printed:?}");
        assert!(
            printed.err.contains("is there already") && printed.out.is_empty(),
            "{printed:?}"
        );
    }
    assert_eq!(
        std::fs::read(world.scratch.path().join(name.trim())).expect("the archive is there"),
        kept
    );

    // The plugin alone sees the end, and quotes the console in its log.
    let log = state_dir.join("log/plugin.log");
    client.agent.kill9();
    assert!(
        process::signal(vm.qemu().expect("QEMU runs"), Signal::KILL),
        "QEMU is gone"
    );
    wait::until("the end in the plugin's log", seconds(20), || {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        let quoted = log
            .lines()
            .any(|line| line.contains(SECRET) && line.contains(&job.allocation));
        if quoted { Ok(()) } else { Err(log) }
    });
    let tail = std::fs::read(directory.join("exit.json")).expect("the end is written");
    assert!(
        has(&tail, SECRET.as_bytes()),
        "the guest's last words have no secret"
    );
    let archive = world.scratch.path().join("end.tar");
    let name = page(
        world,
        &state_dir,
        &["bundle", &job.allocation, "-o", &archive.display().to_string()],
    );
    assert_eq!(Path::new(name.trim()), archive);
    let files = has_no_secret(&archive);
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    let all = [
        "about.txt",
        "console.tail",
        "exit.json",
        "inspect.txt",
        "plan.json",
        "plugin.log",
        "record",
        "shim.log",
        "stderr.tail",
    ];
    assert_eq!(names, all);
    assert!(
        files["console.tail"].contains("steppe-guest: unknown word (left out)"),
        "{}",
        files["console.tail"]
    );
    assert!(
        files["plugin.log"].contains("(left out)"),
        "{}",
        files["plugin.log"]
    );
    assert!(
        files["inspect.txt"].contains("cause         signal\n"),
        "{}",
        files["inspect.txt"]
    );
    files["about.txt"]
        .lines()
        .for_each(|line| say(&format!("    {line}")));

    client.agent.start();
    client.wait_healthy(&world.api);
    let _ended = job.wait_terminal();
    wait_nothing_left(&client);
}
