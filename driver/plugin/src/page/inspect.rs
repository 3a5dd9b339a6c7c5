//! What is there to know about one task?

use std::io::{self, Read};
use std::path::Path;

use serde::Serialize;
use steppe_vm::exit::WaitStatus;
use steppe_vm::interface::Interface;
use steppe_vm::plan::LaunchPlan;
use steppe_vm::record::{Entry, Record, Step};

use super::PageError;
use super::list::{JSON_VERSION, Row};
use super::seen::{self, End, Seen, directories, key_of};
use super::text::{self, UNKNOWN, plain};
use crate::host::{chain, records};

/// Largest launch plan that is read: 24 disks with paths of a kilobyte each take a tenth of it.
const PLAN_MAX_BYTES: u64 = 1 << 20;

/// Size of a tail that may have lost its beginning.
pub(super) const TAIL_MAX_BYTES: u64 = 4096;

/// One task with everything that its directory has.
#[derive(Debug, Clone)]
pub(super) struct Inspection {
    pub(super) seen: Seen,
    /// What QEMU was started with; `None` where its start did not get so far, else why it can't be shown.
    pub(super) plan: Result<Option<LaunchPlan>, String>,
    /// The end of the console; written when the VM ends.
    pub(super) console: Option<Vec<u8>>,
    /// The end of what QEMU wrote to stderr; written when the VM ends.
    pub(super) messages: Option<Vec<u8>>,
}

/// Looks at one task; `None` if it is gone by now.
pub(super) fn look(state_dir: &Path, directory: &Path) -> Option<Inspection> {
    let (seen, exit) = seen::look_with_exit(directory, seen::instance(state_dir).as_deref())?;
    let (console, messages) = exit.map(|exit| (exit.console, exit.stderr)).unzip();
    Some(Inspection {
        plan: read_plan(&directory.join("plan.json")),
        console,
        messages,
        seen,
    })
}

fn read_plan(path: &Path) -> Result<Option<LaunchPlan>, String> {
    let file = match records::open_own(path) {
        Ok(file) => file,
        Err(records::RecordFileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) => return Err(format!("the launch plan can't be used: {}", chain(&error))),
    };
    let mut text = Vec::new();
    if let Err(error) = file.take(PLAN_MAX_BYTES).read_to_end(&mut text) {
        return Err(format!("the launch plan can't be read: {error}"));
    }
    // Without its cause, which quotes the plan, and with it what a job may have put there.
    LaunchPlan::parse(&text)
        .map(Some)
        .map_err(|error| error.to_string())
}

/// The directory of the one task that these words name: a key, the beginning of one or of an allocation's id, or such a
/// beginning, a slash and the task's name.
pub(super) fn find(state_dir: &Path, words: &str) -> Result<std::path::PathBuf, PageError> {
    let named = |directory: &Path| {
        let record = records::read(directory).ok().flatten();
        Named {
            key: key_of(directory),
            alloc_id: record.as_ref().map(|record| record.header.alloc_id.clone()),
            task: record.map(|record| record.header.task_name),
        }
    };
    let directories = directories(state_dir)?;
    let tasks: Vec<Named> = directories.iter().map(|directory| named(directory)).collect();
    let index = choose(&tasks, words).map_err(|matches| match matches.as_slice() {
        [] => PageError::NoTask {
            words: plain(words),
            state_dir: state_dir.to_owned(),
        },
        several => PageError::Ambiguous {
            words: plain(words),
            matches: several
                .iter()
                .map(|task| {
                    plain(&format!(
                        "{} (task {})",
                        task.key,
                        task.task.as_deref().unwrap_or(UNKNOWN)
                    ))
                })
                .collect::<Vec<_>>()
                .join(", "),
        },
    })?;
    directories.get(index).cloned().ok_or_else(|| PageError::NoTask {
        words: plain(words),
        state_dir: state_dir.to_owned(),
    })
}

/// A task and the names by which it may be called.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    key: String,
    alloc_id: Option<String>,
    task: Option<String>,
}

/// Which of the tasks is meant, else all that could be.
fn choose<'a>(tasks: &'a [Named], words: &str) -> Result<usize, Vec<&'a Named>> {
    let begins = |task: &Named, prefix: &str| {
        let alloc_id = task.alloc_id.as_deref().unwrap_or_default();
        !prefix.is_empty() && (task.key.starts_with(prefix) || alloc_id.starts_with(prefix))
    };
    let fits = |task: &Named| {
        let (prefix, name) = words.split_once('/').unzip();
        let has_name = name.is_some() && task.task.as_deref() == name;
        task.key == words || begins(task, words) || (has_name && begins(task, prefix.unwrap_or_default()))
    };
    let found: Vec<usize> = (0..tasks.len()).filter(|index| fits(&tasks[*index])).collect();
    let exactly = found.iter().find(|index| tasks[**index].key == words);
    match (exactly, found.as_slice()) {
        (Some(index), _) | (None, [index]) => Ok(*index),
        (None, several) => Err(several.iter().map(|index| &tasks[*index]).collect()),
    }
}

/// Control group leaves and memory limit, once they were named.
fn memory_bytes(record: &Record) -> Option<u64> {
    record.entries.iter().find_map(|entry| match entry.step {
        Step::Cgroups { memory_bytes, .. } => memory_bytes,
        _ => None,
    })
}

/// A step in a person's words, without its name.
fn details(step: &Step) -> String {
    match step {
        Step::Uids { uid } => format!("{uid} for QEMU, {} for its supervisor", uid.saturating_add(1)),
        Step::User { uid } => format!("{uid}, which Nomad leased, for QEMU instead"),
        Step::RunDirectory { path } => path.display().to_string(),
        Step::Network { socket } => format!("of netd at {}", socket.display()),
        Step::Interfaces { interfaces } => {
            let sentences: Vec<String> = interfaces.iter().map(Interface::sentence).collect();
            sentences.join("; ")
        }
        Step::Cgroups { leaves, memory_bytes } => {
            let limit = memory_bytes.map_or_else(String::new, |bytes| {
                format!(", memory limit {}", mebibytes(bytes))
            });
            format!("{} leaves{limit}", leaves.len())
        }
        Step::Shim | Step::Running { .. } | Step::Kill | Step::Undo => String::new(),
        Step::Stop { signal } => signal.clone(),
        Step::Recover { plugin_pid } => format!("by plugin process {plugin_pid}"),
        Step::UndoFailed { what, reason } => format!("{what}: {reason}"),
    }
}

/// Bytes in MiB with one decimal.
fn mebibytes(bytes: u64) -> String {
    const MIB: u64 = 1 << 20;
    format!("{}.{} MiB", bytes / MIB, bytes % MIB * 10 / MIB)
}

/// Every entry and the number of its line: the first line is the header.
fn numbered(record: &Record) -> impl Iterator<Item = (usize, &Entry)> {
    record.entries.iter().enumerate().map(|(n, entry)| (n + 2, entry))
}

fn status_words(status: WaitStatus) -> String {
    match status {
        WaitStatus::Exited(code) => format!("exited with status {code}"),
        WaitStatus::Signaled(signal) => format!("killed by signal {signal}"),
        WaitStatus::Unknown => "not known".to_owned(),
    }
}

/// The word that a value has in JSON.
fn word(value: impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

/// What `inspect --json` prints; the table in [`super`] says what each member means.
#[derive(Debug, Serialize)]
struct Json<'a> {
    version: u32,
    state_dir: String,
    #[serde(flatten)]
    row: Row,
    record_version: Option<u32>,
    instance: Option<&'a str>,
    boot_id: Option<&'a str>,
    this_boot: bool,
    created_at: Option<String>,
    started_at: Option<String>,
    supervisor_uid: Option<u32>,
    run_directory: Option<String>,
    control_groups: Vec<String>,
    memory_limit_bytes: Option<u64>,
    steps: Vec<JsonStep>,
    undo_failures: Vec<JsonFailure<'a>>,
    end: Option<JsonEnd>,
    console_tail: Option<String>,
    qemu_messages: Option<String>,
    plan: Option<&'a LaunchPlan>,
    plan_problem: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct JsonStep {
    line: usize,
    at: Option<String>,
    step: &'static str,
    details: String,
}

#[derive(Debug, Serialize)]
struct JsonFailure<'a> {
    line: usize,
    at: Option<String>,
    what: &'a str,
    reason: &'a str,
}

#[derive(Debug, Serialize)]
struct JsonEnd {
    cause: &'static str,
    sentence: String,
    exit_code: i32,
    signal: i32,
    oom_killed: bool,
    at: Option<String>,
    qemu_status: Option<String>,
    qmp_reason: Option<String>,
    asked: Option<String>,
    guest_started: Option<bool>,
}

impl JsonEnd {
    fn of(end: End) -> Self {
        let exit = end.exit.as_ref();
        Self {
            cause: end.outcome.name,
            exit_code: end.outcome.exit_code,
            signal: end.outcome.signal,
            oom_killed: end.outcome.oom_killed,
            at: exit.and_then(|exit| text::time(exit.ended_at_unix_ns)),
            qemu_status: exit.map(|exit| status_words(exit.status)),
            qmp_reason: exit.map(|exit| word(exit.reason)),
            asked: exit.map(|exit| word(exit.asked)),
            guest_started: exit.map(|exit| exit.started),
            sentence: end.outcome.sentence,
        }
    }
}

/// Everything as JSON.
pub(super) fn json(state_dir: &Path, inspection: &Inspection) -> String {
    let seen = &inspection.seen;
    let record = seen.record();
    let header = record.map(|record| &record.header);
    let entries = || record.into_iter().flat_map(numbered);
    let lossy = |tail: &Option<Vec<u8>>| {
        tail.as_ref()
            .map(|tail| String::from_utf8_lossy(tail).into_owned())
    };
    let path = |path: &Path| path.to_string_lossy().into_owned();
    text::json(&Json {
        version: JSON_VERSION,
        state_dir: path(state_dir),
        row: Row::of(seen),
        record_version: header.map(|header| header.version),
        instance: header.map(|header| header.instance.as_str()),
        boot_id: header.map(|header| header.boot_id.as_str()),
        this_boot: seen.this_boot,
        created_at: header.and_then(|header| text::time(header.created_at_unix_ns)),
        started_at: record.and_then(Record::started_at_unix_ns).and_then(text::time),
        supervisor_uid: record.and_then(Record::uids).map(|(_, supervisor)| supervisor),
        run_directory: record.and_then(Record::run_directory).map(path),
        control_groups: record
            .map(Record::leaves)
            .unwrap_or_default()
            .iter()
            .map(|leaf| path(leaf))
            .collect(),
        memory_limit_bytes: record.and_then(memory_bytes),
        steps: entries()
            .map(|(line, entry)| JsonStep {
                line,
                at: text::time(entry.at_unix_ns),
                step: entry.step.name(),
                details: details(&entry.step),
            })
            .collect(),
        undo_failures: entries()
            .filter_map(|(line, entry)| match &entry.step {
                Step::UndoFailed { what, reason } => Some(JsonFailure {
                    line,
                    at: text::time(entry.at_unix_ns),
                    what,
                    reason,
                }),
                _ => None,
            })
            .collect(),
        end: seen.end().map(JsonEnd::of),
        console_tail: lossy(&inspection.console),
        qemu_messages: lossy(&inspection.messages),
        plan: inspection.plan.as_ref().ok().and_then(Option::as_ref),
        plan_problem: inspection.plan.as_ref().err().map(String::as_str),
    })
}

/// A text that grows by lines.
#[derive(Debug, Default)]
struct Page(String);

impl Page {
    fn head(&mut self, title: &str) {
        self.0.push_str(&format!("\n{title}\n"));
    }

    fn line(&mut self, line: &str) {
        self.0.push_str(format!("  {line}").trim_end());
        self.0.push('\n');
    }

    /// A name and what it is; nothing where that is empty.
    fn pair(&mut self, name: &str, value: &str) {
        if !value.is_empty() {
            self.line(&format!("{name:<14}{}", plain(value)));
        }
    }

    fn rows(&mut self, rows: &[Vec<String>]) {
        for line in text::table(rows).lines() {
            self.line(line);
        }
    }
}

/// Everything for a person.
pub(super) fn page(inspection: &Inspection) -> String {
    let mut page = Page(format!("TASK {}\n", plain(&inspection.seen.key)));
    whose(&mut page, &inspection.seen);
    if let Some(record) = inspection.seen.record() {
        steps(&mut page, record);
    }
    end(&mut page, inspection);
    page.head("LAUNCH PLAN");
    match &inspection.plan {
        Ok(Some(plan)) => plan.to_string().lines().for_each(|line| page.line(&plain(line))),
        Ok(None) => page.line("none was written: the start did not get so far"),
        Err(reason) => page.line(&plain(reason)),
    }
    page.0
}

fn whose(page: &mut Page, seen: &Seen) {
    let time = |at: u64| text::time(at).unwrap_or_default();
    let number = |number: Option<String>| number.unwrap_or_else(|| UNKNOWN.to_owned());
    let since = text::time(seen.since_unix_ns()).map_or_else(String::new, |at| format!(" since {at}"));
    page.pair("state", &format!("{}{since}", seen.state().words()));
    page.pair("problem", &seen.problem().unwrap_or_default());
    let header = seen.record().map(|record| &record.header);
    if let Some(header) = header {
        page.pair("task", &header.task_name);
        page.pair(
            "job",
            &format!("{}, namespace {}", header.job_id, header.namespace),
        );
        page.pair("allocation", &header.alloc_id);
        page.pair("task id", &header.task_id);
    }
    let pids = [
        ("QEMU", number(seen.qemu_pid().map(|pid| pid.to_string()))),
        ("shim", number(seen.shim_pid.map(|pid| pid.to_string()))),
    ];
    page.pair(
        "processes",
        &pids.map(|(name, pid)| format!("{name} {pid}")).join(", "),
    );
    if let Some(record) = seen.record() {
        if let Some((qemu, supervisor)) = record.uids() {
            page.pair("user ids", &format!("{qemu} QEMU, {supervisor} its supervisor"));
        }
        let limit = memory_bytes(record).map(|bytes| format!("{} ({bytes} bytes)", mebibytes(bytes)));
        page.pair("memory limit", &number(limit));
        for interface in record.interfaces() {
            page.pair(
                "network",
                &format!("{}, tap {}", interface.sentence(), interface.tap),
            );
        }
        page.pair("created", &time(record.header.created_at_unix_ns));
        page.pair("started", &time(record.started_at_unix_ns().unwrap_or_default()));
        let boot = if seen.this_boot { "this one" } else { "another one" };
        page.pair("boot", &format!("{boot}, {}", record.header.boot_id));
        page.pair("instance", &record.header.instance);
    }
    page.pair("directory", &seen.directory.display().to_string());
    let run_directory = seen.record().and_then(Record::run_directory);
    page.pair(
        "sockets",
        &run_directory
            .map(|path| path.display().to_string())
            .unwrap_or_default(),
    );
    for leaf in seen.record().map(Record::leaves).unwrap_or_default() {
        page.pair("control group", &leaf.display().to_string());
    }
}

fn steps(page: &mut Page, record: &Record) {
    let time = |at: u64| text::time(at).unwrap_or_else(|| UNKNOWN.to_owned());
    page.head("STEPS, each written down before it was done");
    let header = &record.header;
    let mut rows = vec![vec![
        "1".to_owned(),
        time(header.created_at_unix_ns),
        "record".to_owned(),
        format!("version {}", header.version),
    ]];
    rows.extend(numbered(record).map(|(line, entry)| {
        vec![
            line.to_string(),
            time(entry.at_unix_ns),
            entry.step.name().to_owned(),
            plain(&details(&entry.step)),
        ]
    }));
    page.rows(&rows);
    let failures = numbered(record).filter(|(_, entry)| matches!(entry.step, Step::UndoFailed { .. }));
    let failures: Vec<String> = failures.map(|(line, _)| line.to_string()).collect();
    if !failures.is_empty() {
        page.line(&format!(
            "Taking it back failed at line {}; everything else is done, and what failed is tried again.",
            failures.join(", ")
        ));
    }
}

fn end(page: &mut Page, inspection: &Inspection) {
    page.head("END");
    let Some(End { outcome, exit }) = inspection.seen.end() else {
        page.line("none yet");
        page.head("CONSOLE and MESSAGES OF QEMU");
        page.line(
            "The shim writes down the last of both when the VM ends; until then: nomad alloc logs [-stderr].",
        );
        return;
    };
    page.pair("cause", outcome.name);
    page.pair("sentence", &outcome.sentence);
    let oom = if outcome.oom_killed { ", OOM killed" } else { "" };
    page.pair(
        "Nomad is told",
        &format!("exit code {}, signal {}{oom}", outcome.exit_code, outcome.signal),
    );
    match &exit {
        Some(exit) => {
            page.pair("at", &text::time(exit.ended_at_unix_ns).unwrap_or_default());
            page.pair("QEMU", &status_words(exit.status));
            page.pair("QMP's reason", &word(exit.reason));
            page.pair("asked before", &word(exit.asked));
            page.pair("guest started", if exit.started { "yes" } else { "no" });
        }
        None => page.pair("at", "not known: its shim is gone and wrote nothing down"),
    }
    for (title, tail) in [
        (
            "CONSOLE, its last lines; these are the guest's words",
            &inspection.console,
        ),
        ("MESSAGES OF QEMU, the last lines", &inspection.messages),
    ] {
        page.head(title);
        match tail {
            None => page.line("none were written down"),
            Some(tail) if tail.is_empty() => page.line("there were none"),
            Some(tail) => text::lines(tail)
                .iter()
                .for_each(|line| page.line(&format!("| {line}"))),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::Value;

    use super::super::seen::tests::{ALLOC, ended, networked, running, seen, unreadable};
    use super::*;

    pub(in crate::page) fn plan() -> LaunchPlan {
        LaunchPlan {
            version: steppe_vm::plan::PLAN_VERSION,
            owner: format!("{ALLOC}.vm"),
            start: steppe_vm::plan::Start::Boot,
            program: "/usr/bin/qemu-system-x86_64".into(),
            arguments: ["-append", "console=ttyS0 quiet token=geheim\u{9b}"]
                .map(str::to_owned)
                .to_vec(),
            descriptors: Vec::new(),
            limits: steppe_vm::plan::Limits::default(),
            uid: 1_900_011_482,
            gid: 108,
            ready: None,
            cpus: Vec::new(),
            isolation: None,
        }
    }

    fn inspection(seen: Seen) -> Inspection {
        Inspection {
            seen,
            plan: Ok(Some(plan())),
            console: None,
            messages: None,
        }
    }

    #[test]
    fn the_page_of_a_running_vm() {
        let expected = format!(
            "\
TASK {ALLOC}.1d2c3b4a
  state         running since 2026-07-25T17:20:01.000Z
  task          vm
  job           hello, namespace default
  allocation    {ALLOC}
  task id       {ALLOC}/vm/7e1f2a90
  processes     QEMU 4242, shim 4240
  user ids      1900011482 QEMU, 1900011483 its supervisor
  memory limit  261.0 MiB (273678336 bytes)
  created       2026-07-25T17:20:00.000Z
  started       2026-07-25T17:20:01.000Z
  boot          this one, 7c5d4f6e
  instance      1f0c9a7be2d34455
  directory     /var/lib/steppe/driver/tasks/{ALLOC}.1d2c3b4a
  sockets       /run/steppe/i/k
  control group /sys/fs/cgroup/memory/nomad/a.vm/vm
  control group /sys/fs/cgroup/memory/nomad/a.vm/shim

STEPS, each written down before it was done
  1  2026-07-25T17:20:00.000Z  record         version 4
  2  2026-07-25T17:20:01.000Z  uids           1900011482 for QEMU, 1900011483 for its supervisor
  3  2026-07-25T17:20:02.000Z  run-directory  /run/steppe/i/k
  4  2026-07-25T17:20:03.000Z  cgroups        2 leaves, memory limit 261.0 MiB
  5  2026-07-25T17:20:04.000Z  shim
  6  2026-07-25T17:20:05.000Z  running

END
  none yet

CONSOLE and MESSAGES OF QEMU
  The shim writes down the last of both when the VM ends; until then: nomad alloc logs [-stderr].

LAUNCH PLAN
  /usr/bin/qemu-system-x86_64 (uid 1900011482 gid 108)
    -append
    console=ttyS0 quiet token=geheim
  not isolated
"
        );
        assert_eq!(page(&inspection(running(true))), expected);
    }

    #[test]
    fn the_page_of_an_end_and_of_an_undo_that_failed() {
        let text = page(&Inspection {
            console: Some(b"\r\n\x1b[31mOut of memory\x1b[0m\r\n\r\nbye\r\n".to_vec()),
            messages: Some(Vec::new()),
            ..inspection(ended())
        });
        let wanted = "\
END
  cause         out-of-memory
  sentence      QEMU needed more than the VM's memory limit and was killed by the kernel; raise resources.memory
  Nomad is told exit code 137, signal 9, OOM killed
  at            2026-07-25T17:20:42.000Z
  QEMU          killed by signal 9
  QMP's reason  none
  asked before  nothing
  guest started yes

CONSOLE, its last lines; these are the guest's words
  | [31mOut of memory[0m
  |
  | bye

MESSAGES OF QEMU, the last lines
  there were none
";
        assert!(text.contains(wanted), "{text}");
        let text = page(&Inspection {
            plan: Ok(None),
            ..inspection(seen(9))
        });
        for wanted in [
            "state         being taken back since 2026-07-25T17:20:08.000Z\n  problem       remove-cgroups: busy\n",
            "  10  2026-07-25T17:20:09.000Z  undo-failed    remove-cgroups: busy\n",
            "Taking it back failed at line 10;",
            "none was written: the start did not get so far",
        ] {
            assert!(text.contains(wanted), "{wanted}: {text}");
        }
        let text = page(&inspection(networked()));
        for wanted in [
            "  network       tenant-a: 10.1.0.7/16, 02:9b:3c:10:4e:51, tap ndtk3f7q2m9xa\n",
            "  network        of netd at /run/netd/netd.sock\n",
            "  interfaces     tenant-a: 10.1.0.7/16, 02:9b:3c:10:4e:51\n",
        ] {
            assert!(text.contains(wanted), "{wanted}: {text}");
        }
        let text = page(&inspection(seen(5)));
        assert!(
            text.contains("cause         shim-lost") && text.contains("wrote nothing down"),
            "{text}"
        );
        let text = page(&inspection(unreadable("record /r is a symbolic link")));
        assert!(
            text.contains("state         unreadable\n  problem       record /r is a symbolic link\n"),
            "{text}"
        );
    }

    #[test]
    fn the_json_has_always_the_same_members() {
        let members = |inspection: &Inspection| -> Vec<String> {
            let value: Value = serde_json::from_str(&json(Path::new("/s"), inspection)).unwrap();
            value.as_object().unwrap().keys().cloned().collect()
        };
        let unreadable = Inspection {
            plan: Err("no".into()),
            ..inspection(unreadable("no"))
        };
        let all = members(&inspection(running(true)));
        assert_eq!(members(&unreadable), all);
        assert_eq!(all.len(), 34, "{all:?}");

        let text = json(
            Path::new("/s"),
            &Inspection {
                console: Some(b"a\xff\x1b[2J".to_vec()),
                ..inspection(ended())
            },
        );
        assert!(!text.contains(['\x1b', '\u{9b}']), "{text}");
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&value["version"], &value["state"], &value["end"]["signal"]),
            (&1.into(), &"ended".into(), &9.into())
        );
        assert_eq!(value["console_tail"], "a\u{fffd}\x1b[2J");
        assert_eq!(value["qemu_messages"], Value::Null);
        assert_eq!(value["plan"]["arguments"][0], "-append");
        assert_eq!(
            value["steps"][0],
            serde_json::json!({
                "line": 2,
                "at": "2026-07-25T17:20:01.000Z",
                "step": "uids",
                "details": "1900011482 for QEMU, 1900011483 for its supervisor",
            })
        );
        let value: Value = serde_json::from_str(&json(Path::new("/s"), &inspection(seen(9)))).unwrap();
        assert_eq!(value["undo_failures"][0]["line"], 10);
        assert_eq!(value["undo_failures"][0]["what"], "remove-cgroups");
    }

    #[test]
    fn a_task_is_named_by_what_is_its_own() {
        let named = |key: &str, alloc_id: &str, task: &str| Named {
            key: key.into(),
            alloc_id: Some(alloc_id.into()),
            task: Some(task.into()),
        };
        let tasks = [
            named("aa11-x.01", "aa11-x", "vm"),
            named("aa11-x.02", "aa11-x", "vm2"),
            named("aa22-x.03", "aa22-x", "vm"),
            named("99ff.04", "no uuid", "a/b"),
            Named {
                key: "damaged".into(),
                alloc_id: None,
                task: None,
            },
            named("aa11-x.010", "aa11-x", "vm3"),
        ];
        let chosen = |words: &str| choose(&tasks, words).map_err(|several| several.len());
        assert_eq!(chosen("aa11-x.01"), Ok(0), "a whole key is exact");
        assert_eq!(chosen("aa2"), Ok(2));
        assert_eq!(chosen("aa11/vm"), Ok(0));
        assert_eq!(chosen("aa11/vm2"), Ok(1));
        assert_eq!(chosen("aa/vm"), Err(2));
        assert_eq!(chosen("aa1"), Err(3));
        assert_eq!(chosen("no u"), Ok(3));
        assert_eq!(chosen("99/a/b"), Ok(3));
        assert_eq!(chosen("dama"), Ok(4));
        for nothing in ["", "/", "/vm", "vm", "aa11/v", "aa33", "aa11/"] {
            assert_eq!(chosen(nothing), Err(0), "{nothing:?}");
        }
    }
}
