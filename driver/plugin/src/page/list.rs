//! Which tasks have a record on this host, and what becomes of each?

use std::path::Path;

use serde::Serialize;
use steppe_vm::interface::Interface;
use steppe_vm::record::Record;

use super::seen::Seen;
use super::text::{self, UNKNOWN, plain};

/// Version of the JSON of `list` and `inspect`.
pub(super) const JSON_VERSION: u32 = 1;

/// What `list --json` prints; the table in [`super`] says what each member means.
#[derive(Debug, Serialize)]
struct List {
    version: u32,
    state_dir: String,
    tasks: Vec<Row>,
}

/// One task, as `list` has it.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    key: String,
    alloc_id: Option<String>,
    task: Option<String>,
    task_id: Option<String>,
    job: Option<String>,
    namespace: Option<String>,
    state: &'static str,
    cause: Option<&'static str>,
    since: Option<String>,
    uid: Option<u32>,
    qemu_pid: Option<i32>,
    shim_pid: Option<i32>,
    interfaces: Vec<Interface>,
    directory: String,
    problem: Option<String>,
}

impl Row {
    pub(super) fn of(seen: &Seen) -> Self {
        let header = seen.record().map(|record| &record.header);
        let state = seen.state();
        Self {
            key: seen.key.clone(),
            alloc_id: header.map(|header| header.alloc_id.clone()),
            task: header.map(|header| header.task_name.clone()),
            task_id: header.map(|header| header.task_id.clone()),
            job: header.map(|header| header.job_id.clone()),
            namespace: header.map(|header| header.namespace.clone()),
            state: state.word(),
            cause: state.cause(),
            since: text::time(seen.since_unix_ns()),
            uid: seen.record().and_then(Record::uids).map(|(qemu, _)| qemu),
            qemu_pid: seen.qemu_pid(),
            shim_pid: seen.shim_pid,
            interfaces: seen.record().map(Record::interfaces).unwrap_or_default().to_vec(),
            directory: seen.directory.to_string_lossy().into_owned(),
            problem: seen.problem(),
        }
    }
}

impl Row {
    /// The first address that netd gave it.
    fn address(&self) -> Option<&str> {
        let mut addresses = self.interfaces.iter().map(Interface::address);
        addresses.find(|address| !address.is_empty())
    }
}

/// As many characters as Nomad shows of an id.
const SHORT: usize = 8;

/// A key as Nomad shortens the allocation's id with which it begins.
pub(super) fn short(key: &str) -> String {
    plain(key).chars().take(SHORT).collect()
}

const HEAD: [&str; 9] = [
    "KEY", "TASK", "JOB", "STATE", "ADDRESS", "UID", "QEMU", "SHIM", "SINCE",
];

/// The table, and below it a sentence for each task with which something is not as it should be.
pub(super) fn table(state_dir: &Path, all: &[Seen]) -> String {
    if all.is_empty() {
        return format!(
            "no task has a record in {}\n",
            plain(&state_dir.to_string_lossy())
        );
    }
    let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
    let mut problems = String::new();
    for seen in all {
        let header = seen.record().map(|record| &record.header);
        let or_unknown = |text: Option<String>| text.unwrap_or_else(|| UNKNOWN.to_owned());
        let row = Row::of(seen);
        rows.push(vec![
            short(&seen.key),
            or_unknown(header.map(|header| plain(&header.task_name))),
            or_unknown(header.map(|header| plain(&header.job_id))),
            seen.state().words(),
            or_unknown(row.address().map(plain)),
            or_unknown(row.uid.map(|uid| uid.to_string())),
            or_unknown(row.qemu_pid.map(|pid| pid.to_string())),
            or_unknown(row.shim_pid.map(|pid| pid.to_string())),
            or_unknown(text::second(seen.since_unix_ns())),
        ]);
        if let Some(problem) = row.problem {
            problems.push_str(&format!("{}: {}\n", short(&seen.key), plain(&problem)));
        }
    }
    let gap = if problems.is_empty() { "" } else { "\n" };
    format!("{}{gap}{problems}", text::table(&rows))
}

/// The same as JSON.
pub(super) fn json(state_dir: &Path, all: &[Seen]) -> String {
    text::json(&List {
        version: JSON_VERSION,
        state_dir: state_dir.to_string_lossy().into_owned(),
        tasks: all.iter().map(Row::of).collect(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::seen::tests::{ALLOC, ended, networked, running, unreadable};
    use super::*;

    fn damaged() -> Seen {
        Seen {
            key: "evil\x1b[2Jdirectory".into(),
            ..unreadable("line 3 of the record\nis not \u{9b}readable")
        }
    }

    #[test]
    fn a_row_for_each_and_a_sentence_where_one_is_due() {
        let all = [ended(), running(false), networked(), damaged()];
        let expected = "\
KEY       TASK  JOB    STATE                ADDRESS   UID         QEMU  SHIM  SINCE
b2f8c3d4  vm    hello  ended out-of-memory  -         1900011482  -     -     2026-07-25T17:20:42Z
b2f8c3d4  vm    hello  running not ready    -         1900011482  4242  4240  2026-07-25T17:20:01Z
b2f8c3d4  vm    hello  running              10.1.0.7  1900011482  4242  4240  2026-07-25T17:20:01Z
evil[2Jd  -     -      unreadable           -         -           -     -     -

evil[2Jd: line 3 of the record is not readable
";
        assert_eq!(table(Path::new("/s"), &all), expected);
        assert_eq!(table(Path::new("/s"), &[]), "no task has a record in /s\n");
    }

    #[test]
    fn the_json_has_always_the_same_members() {
        let printed = super::json(Path::new("/s"), &[ended(), damaged()]);
        let value: Value = serde_json::from_str(&printed).unwrap();
        let directory = format!("/var/lib/steppe/driver/tasks/{ALLOC}.1d2c3b4a");
        let expected = json!({
            "version": 1,
            "state_dir": "/s",
            "tasks": [
                {
                    "key": format!("{ALLOC}.1d2c3b4a"),
                    "alloc_id": ALLOC,
                    "task": "vm",
                    "task_id": format!("{ALLOC}/vm/7e1f2a90"),
                    "job": "hello",
                    "namespace": "default",
                    "state": "ended",
                    "cause": "out-of-memory",
                    "since": "2026-07-25T17:20:42.000Z",
                    "uid": 1_900_011_482,
                    "qemu_pid": null,
                    "shim_pid": null,
                    "interfaces": [],
                    "directory": directory,
                    "problem": null,
                },
                {
                    "key": "evil\x1b[2Jdirectory",
                    "alloc_id": null,
                    "task": null,
                    "task_id": null,
                    "job": null,
                    "namespace": null,
                    "state": "unreadable",
                    "cause": null,
                    "since": null,
                    "uid": null,
                    "qemu_pid": null,
                    "shim_pid": null,
                    "interfaces": [],
                    "directory": directory,
                    "problem": "line 3 of the record\nis not \u{9b}readable",
                },
            ],
        });
        assert_eq!(value, expected);
        let printed = super::json(Path::new("/s"), &[networked()]);
        let value: Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(
            value["tasks"][0]["interfaces"],
            json!([{
                "network": "tenant-a",
                "kind": "vlan",
                "tap": "ndtk3f7q2m9xa",
                "queues": 1,
                "mac": "02:9b:3c:10:4e:51",
                "ipv4": "10.1.0.7/16",
                "ipv4_gateway": "10.1.0.1",
                "ipv6": "",
                "ipv6_gateway": "",
                "dns": ["10.1.0.1"],
                "mtu": 1500,
                "vlan": 0,
                "trunk": [],
            }])
        );
        assert!(!printed.contains(['\u{9b}', '\x1b']), "{printed}");
    }
}
