//! What is known of a task right now, from its files and its shim alone?
//!
//! Nothing is locked, not even for a moment: a start would take the one who looks for a shim. Whether a shim lives is
//! seen by the process that it names in its lock file, if that process has this very file open.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::Pid;
use steppe_vm::control;
use steppe_vm::exit::{Asked, Cause, ExitRecord, Outcome};
use steppe_vm::record::{Record, Step, is_key};

use super::PageError;
use crate::host::records::{self, Exit};
use crate::host::{chain, open_warily, unix_ns};
use crate::task::ask::{Answer, AskError, ask};
use crate::task::undo;

/// What becomes of a VM, in one word or a few.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Starting,
    Interrupted,
    Running,
    NotReady,
    Silent,
    Ended(Cause),
    TakenBack,
    OtherBoot,
    Unreadable,
}

impl State {
    /// Every word, for the manual's test.
    #[cfg(test)]
    pub(super) const WORDS: [&str; 9] = [
        "starting",
        "interrupted",
        "running",
        "running not ready",
        "shim silent",
        "ended",
        "being taken back",
        "other boot",
        "unreadable",
    ];

    /// The state as it is printed, without an end's cause.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Interrupted => "interrupted",
            Self::Running => "running",
            Self::NotReady => "running not ready",
            Self::Silent => "shim silent",
            Self::Ended(_) => "ended",
            Self::TakenBack => "being taken back",
            Self::OtherBoot => "other boot",
            Self::Unreadable => "unreadable",
        }
    }

    /// The word of an end's cause.
    pub(super) fn cause(self) -> Option<&'static str> {
        match self {
            Self::Ended(cause) => Some(cause.name()),
            _ => None,
        }
    }

    /// The state with an end's cause.
    pub(super) fn words(self) -> String {
        match self.cause() {
            Some(cause) => format!("{} {cause}", self.word()),
            None => self.word().to_owned(),
        }
    }
}

/// One task and what was seen of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    /// The name of its directory.
    pub(super) key: String,
    /// The directory of its record.
    pub(super) directory: PathBuf,
    /// Its record; `None` where nothing was begun for it, else why it can't be read.
    pub(super) record: Result<Option<Record>, Unreadable>,
    /// Whether the host still runs the boot in which the record was written.
    pub(super) this_boot: bool,
    /// The process id of its shim, if that lives.
    pub(super) shim_pid: Option<i32>,
    /// What the shim said, or why it said nothing; `None` where none was asked.
    pub(super) answer: Option<Result<Answer, String>>,
    /// How the VM ended, where that is written down.
    pub(super) exit: Option<ExitRecord>,
    /// When this was seen, in nanoseconds since 1970.
    pub(super) at_unix_ns: u64,
}

/// Why a record can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unreadable {
    /// One sentence.
    pub(super) reason: String,
    /// Whether it isn't even a file of ours.
    pub(super) is_foreign: bool,
}

/// How a VM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    /// What Nomad is told.
    pub(super) outcome: Outcome,
    /// What was written down; nothing where the shim was lost.
    pub(super) exit: Option<ExitRecord>,
}

const NO_RECORD: &str = "it has no record that names it, but a shim lives in its directory";

/// How long a record may be without a shim while its start goes on. Some milliseconds were seen.
const SHIM_TIMEOUT: Duration = Duration::from_secs(2);

impl Seen {
    pub(super) fn record(&self) -> Option<&Record> {
        self.record.as_ref().ok().and_then(Option::as_ref)
    }

    /// What the shim said, if it said anything.
    fn said(&self) -> Option<&Answer> {
        self.answer.as_ref().and_then(|answer| answer.as_ref().ok())
    }

    /// The state that follows from what was seen.
    pub(super) fn state(&self) -> State {
        let lives = self.shim_pid.is_some();
        let record = match &self.record {
            Ok(Some(record)) => record,
            // Before its header is on disk nothing is begun for a task.
            Ok(None) if !lives => return State::Interrupted,
            Ok(None) | Err(_) => return State::Unreadable,
        };
        if record.undo_begun() {
            return State::TakenBack;
        }
        if !self.this_boot {
            return State::OtherBoot;
        }
        if record.started_at_unix_ns().is_none() {
            let age = self.at_unix_ns.checked_sub(last_step_at(record));
            let is_young = age.is_some_and(|age| Duration::from_nanos(age) < SHIM_TIMEOUT);
            return match lives {
                _ if is_young => State::Starting,
                // The end of the record is missing, and with it what the VM has.
                true if !record.may_have_shim() => State::Unreadable,
                true => State::Starting,
                false => State::Interrupted,
            };
        }
        if let Some(exit) = &self.exit {
            return State::Ended(exit.cause());
        }
        match self.said() {
            _ if !lives && record.shim_was_killed() => State::Ended(Cause::Killed),
            _ if !lives => State::Ended(Cause::ShimLost),
            None => State::Silent,
            Some(Answer { version, state }) => match state {
                // Version 1 knows of no readiness.
                control::State::Running { ready: false, .. } if *version > 1 => State::NotReady,
                control::State::Running { .. } => State::Running,
                control::State::Exited { exit, .. } => State::Ended(exit.cause()),
                control::State::Starting
                | control::State::Prepared { .. }
                | control::State::Failed { .. } => State::Starting,
            },
        }
    }

    /// QEMU's process id, as its shim says.
    pub(super) fn qemu_pid(&self) -> Option<i32> {
        match self.said()?.state {
            control::State::Prepared { qemu_pid } | control::State::Running { qemu_pid, .. } => {
                Some(qemu_pid)
            }
            _ => None,
        }
    }

    /// How it ended, as far as that is known.
    pub(super) fn end(&self) -> Option<End> {
        let said = match self.said() {
            Some(Answer {
                state: control::State::Exited { exit, .. },
                ..
            }) => Some(exit),
            _ => None,
        };
        let exit = self.exit.as_ref().or(said);
        match (exit, self.state()) {
            (Some(exit), _) => Some(End {
                outcome: exit.outcome(),
                exit: Some(exit.clone()),
            }),
            (None, State::Ended(cause)) => Some(End {
                outcome: cause.outcome(Asked::Nothing),
                exit: None,
            }),
            (None, _) => None,
        }
    }

    /// When the state began, in nanoseconds since 1970; 0 where that is not known.
    pub(super) fn since_unix_ns(&self) -> u64 {
        let Some(record) = self.record() else { return 0 };
        match self.state() {
            State::Running | State::NotReady | State::Silent => {
                record.started_at_unix_ns().unwrap_or_default()
            }
            State::Ended(_) => self.exit.as_ref().map_or(0, |exit| exit.ended_at_unix_ns),
            State::TakenBack => {
                let undo = record.entries.iter().find(|entry| entry.step == Step::Undo);
                undo.map_or(0, |entry| entry.at_unix_ns)
            }
            State::Starting | State::Interrupted | State::OtherBoot => record.header.created_at_unix_ns,
            State::Unreadable => 0,
        }
    }

    /// One sentence about what is not as it should be, if anything.
    pub(super) fn problem(&self) -> Option<String> {
        let record = match &self.record {
            Ok(Some(_)) if self.state() == State::Unreadable => return Some(NO_RECORD.to_owned()),
            Ok(Some(record)) => record,
            Ok(None) if self.shim_pid.is_some() => return Some(NO_RECORD.to_owned()),
            Ok(None) => return Some("it has no whole record: nothing was begun for it".to_owned()),
            Err(unreadable) => return Some(unreadable.reason.clone()),
        };
        if let (State::TakenBack, Some((what, reason))) = (self.state(), record.last_failure()) {
            return Some(format!("{what}: {reason}"));
        }
        match self.answer.as_ref()? {
            Err(reason) if self.exit.is_none() => Some(reason.clone()),
            Ok(Answer {
                state: control::State::Failed { reason, .. },
                ..
            }) => Some(reason.clone()),
            _ => None,
        }
    }
}

/// When the last step was named; the record itself counts as the first.
fn last_step_at(record: &Record) -> u64 {
    let last = record.entries.last().map_or(0, |entry| entry.at_unix_ns);
    last.max(record.header.created_at_unix_ns)
}

/// Shims that are asked at a time: one that is stuck costs a second.
const ASKED_AT_ONCE: usize = 32;

/// Looks at every task of a state directory, in the order of their keys.
pub(super) fn look_at_all(state_dir: &Path) -> Result<Vec<Seen>, PageError> {
    let instance = instance(state_dir);
    let queue: Mutex<VecDeque<PathBuf>> = Mutex::new(directories(state_dir)?.into());
    let threads = queue
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .len()
        .min(ASKED_AT_ONCE);
    let found = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    // Nothing panics with a lock held.
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(directory) = next else { return };
                    let seen = look(&directory, instance.as_deref());
                    found.lock().unwrap_or_else(PoisonError::into_inner).extend(seen);
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_by(|a: &Seen, b| a.key.cmp(&b.key));
    Ok(found)
}

/// The directories of all tasks, in order. What isn't named like one is none of the driver's, such as `lost+found`.
pub(super) fn directories(state_dir: &Path) -> Result<Vec<PathBuf>, PageError> {
    let path = state_dir.join("tasks");
    let failed = |source: io::Error| PageError::state_dir(state_dir, source);
    let mut directories = Vec::new();
    for entry in std::fs::read_dir(&path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().to_str().is_some_and(is_key) {
            directories.push(entry.path());
        }
    }
    directories.sort();
    Ok(directories)
}

/// The key of the task with this directory.
pub(super) fn key_of(directory: &Path) -> String {
    let name = directory.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// The id of the driver instance that the state directory belongs to, if it can be read.
pub(super) fn instance(state_dir: &Path) -> Option<String> {
    const INSTANCE_MAX_BYTES: u64 = 4096;
    #[derive(serde::Deserialize)]
    struct Instance {
        instance: String,
    }
    let text = read_bounded(&state_dir.join("instance"), INSTANCE_MAX_BYTES).ok()?;
    let file: Instance = serde_json::from_slice(&text).ok()?;
    Some(file.instance)
}

/// Looks at one task of a driver instance; `None` if it is gone by now.
fn look(directory: &Path, instance: Option<&str>) -> Option<Seen> {
    look_with_exit(directory, instance).map(|(seen, _)| seen)
}

/// The same with its exit file, if there is one.
pub(super) fn look_with_exit(directory: &Path, instance: Option<&str>) -> Option<(Seen, Option<Exit>)> {
    let at_unix_ns = unix_ns();
    let record = match records::read(directory) {
        Ok(record) => belongs(record, directory, instance),
        Err(error) if error.is_empty() => Ok(None),
        Err(error) => Err(Unreadable {
            is_foreign: matches!(error, records::RecordFileError::Foreign { .. }),
            reason: chain(&error),
        }),
    };
    let mut shim_pid = living_shim(directory);
    let socket = record
        .as_ref()
        .ok()
        .and_then(Option::as_ref)
        .and_then(Record::run_directory);
    let answer = match (shim_pid, socket) {
        (Some(_), Some(path)) => {
            Some(ask(&path.join("control.sock")).map_err(|error: AskError| chain(&error)))
        }
        _ => None,
    };
    if let Some(Err(_)) = answer {
        // It may have ended meanwhile, which is no silence.
        shim_pid = living_shim(directory);
    }
    // Last of all: a shim writes it before it goes.
    let exit = records::read_exit(directory).ok().flatten();
    if std::fs::symlink_metadata(directory).is_err() {
        return None;
    }
    let seen = Seen {
        key: key_of(directory),
        directory: directory.to_owned(),
        this_boot: record.as_ref().is_ok_and(|record| {
            record
                .as_ref()
                .is_some_and(|record| records::boot_id().is_none_or(|id| record.header.boot_id == id))
        }),
        record,
        shim_pid: shim_pid.map(|pid| pid.as_raw_nonzero().get()),
        answer: answer.filter(|answer| answer.is_ok() || shim_pid.is_some()),
        exit: exit.as_ref().map(|exit| exit.record.clone()),
        at_unix_ns,
    };
    Some((seen, exit))
}

/// A record that the driver believes: of this instance, and of the task that its directory is named after.
fn belongs(
    record: Option<Record>,
    directory: &Path,
    instance: Option<&str>,
) -> Result<Option<Record>, Unreadable> {
    let whose = record.as_ref().and_then(|record| {
        // Where the directory's own id can't be read, nobody is a stranger for that.
        let instance = instance.unwrap_or(&record.header.instance);
        record.stranger(instance, &key_of(directory))
    });
    match whose {
        None => Ok(record),
        Some(whose) => Err(Unreadable {
            reason: format!("its record is {whose}: find out how it came there, and remove it by hand"),
            is_foreign: false,
        }),
    }
}

/// The shim that names itself in a task's lock file, if it is there and has that very file open.
fn living_shim(directory: &Path) -> Option<Pid> {
    const NUMBER_MAX_BYTES: u64 = 32;
    let lock = directory.join(undo::LOCK);
    let text = String::from_utf8(read_bounded(&lock, NUMBER_MAX_BYTES).ok()?).ok()?;
    let pid = Pid::from_raw(text.trim().parse().ok()?)?;
    undo::has_open(pid, &lock).then_some(pid)
}

/// The beginning of a regular file; never a link's target, and never waiting for the writer of a FIFO.
pub(super) fn read_bounded(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let _length = open(path)?.take(max_bytes).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Opens a regular file for reading, with the same care.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let file = open_warily(path, false)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use steppe_vm::exit::{EXIT_VERSION, Oom, Reason, WaitStatus};
    use steppe_vm::interface::Interface;
    use steppe_vm::record::{Entry, Header, RECORD_VERSION, task_key};

    use super::*;

    pub(in crate::page) const ALLOC: &str = "b2f8c3d4-5b1e-4a77-9c66-0d2f6f1f2a33";
    const SECOND: u64 = 1_000_000_000;
    const CREATED: u64 = 1_785_000_000 * SECOND;

    fn steps() -> Vec<Step> {
        vec![
            Step::Uids { uid: 1_900_011_482 },
            Step::RunDirectory {
                path: "/run/steppe/i/k".into(),
            },
            Step::Cgroups {
                leaves: vec![
                    "/sys/fs/cgroup/memory/nomad/a.vm/vm".into(),
                    "/sys/fs/cgroup/memory/nomad/a.vm/shim".into(),
                ],
                memory_bytes: Some(273_678_336),
            },
            Step::Shim,
            Step::Running {
                started_at_unix_ns: CREATED + SECOND,
            },
            Step::Recover { plugin_pid: 4711 },
            Step::Stop {
                signal: "SIGTERM".into(),
            },
            Step::Undo,
            Step::UndoFailed {
                what: "remove-cgroups".into(),
                reason: "busy".into(),
            },
        ]
    }

    /// A task whose record has so many of the steps of a life, one each second.
    pub(in crate::page) fn seen(count: u64) -> Seen {
        let header = Header {
            version: RECORD_VERSION,
            instance: "1f0c9a7be2d34455".into(),
            boot_id: "7c5d4f6e".into(),
            task_id: format!("{ALLOC}/vm/7e1f2a90"),
            alloc_id: ALLOC.into(),
            task_name: "vm".into(),
            job_id: "hello".into(),
            namespace: "default".into(),
            created_at_unix_ns: CREATED,
        };
        let entries = steps().into_iter().zip(1..=count).map(|(step, number)| Entry {
            at_unix_ns: CREATED + number * SECOND,
            step,
        });
        Seen {
            key: format!("{ALLOC}.1d2c3b4a"),
            directory: format!("/var/lib/steppe/driver/tasks/{ALLOC}.1d2c3b4a").into(),
            record: Ok(Some(Record {
                header,
                entries: entries.collect(),
            })),
            this_boot: true,
            shim_pid: None,
            answer: None,
            exit: None,
            at_unix_ns: CREATED + 3600 * SECOND,
        }
    }

    pub(in crate::page) fn unreadable(reason: &str) -> Seen {
        Seen {
            record: Err(Unreadable {
                reason: reason.into(),
                is_foreign: false,
            }),
            ..seen(0)
        }
    }

    pub(in crate::page) fn running(ready: bool) -> Seen {
        let state = control::State::Running {
            qemu_pid: 4242,
            ready,
        };
        Seen {
            shim_pid: Some(4240),
            answer: Some(Ok(Answer { version: 2, state })),
            ..seen(5)
        }
    }

    /// A running VM that netd gave an interface.
    pub(in crate::page) fn networked() -> Seen {
        let mut seen = running(true);
        let interface = Interface {
            network: "tenant-a".into(),
            kind: "vlan".into(),
            tap: "ndtk3f7q2m9xa".into(),
            queues: 1,
            mac: "02:9b:3c:10:4e:51".into(),
            ipv4: "10.1.0.7/16".into(),
            ipv4_gateway: "10.1.0.1".into(),
            dns: vec!["10.1.0.1".into()],
            mtu: 1500,
            ..Interface::default()
        };
        let steps = [
            Step::Network {
                socket: "/run/netd/netd.sock".into(),
            },
            Step::Interfaces {
                interfaces: vec![interface],
            },
        ];
        if let Ok(Some(record)) = &mut seen.record {
            record.entries.extend(steps.map(|step| Entry {
                at_unix_ns: CREATED + 6 * SECOND,
                step,
            }));
        }
        seen
    }

    pub(in crate::page) fn exit() -> ExitRecord {
        ExitRecord {
            version: EXIT_VERSION,
            status: WaitStatus::Signaled(9),
            started: true,
            reason: Reason::None,
            complained: false,
            asked: Asked::Nothing,
            oom: Oom::Limit,
            ended_at_unix_ns: CREATED + 42 * SECOND,
        }
    }

    pub(in crate::page) fn ended() -> Seen {
        Seen {
            exit: Some(exit()),
            ..seen(6)
        }
    }

    #[test]
    fn each_state_follows_from_what_was_seen() {
        let said = |state| {
            let answer = Some(Ok(Answer { version: 2, state }));
            Seen {
                answer,
                ..running(true)
            }
        };
        let old = Answer {
            version: 1,
            state: control::State::Running {
                qemu_pid: 1,
                ready: false,
            },
        };
        let young = Seen {
            at_unix_ns: CREATED + 3 * SECOND,
            ..seen(2)
        };
        let clock_set_back = Seen {
            at_unix_ns: CREATED - SECOND,
            ..seen(2)
        };
        let silent = Seen {
            answer: Some(Err("its shim does not answer within 1 s".into())),
            ..running(true)
        };
        let damaged = unreadable("line 3 of the record is not readable");
        let nothing = Seen {
            record: Ok(None),
            ..seen(0)
        };
        let mut killed = seen(6);
        if let Ok(Some(record)) = &mut killed.record {
            record.entries.push(Entry {
                at_unix_ns: CREATED + 9 * SECOND,
                step: Step::Kill,
            });
        }
        let failed = control::State::Failed {
            reason: "no room".into(),
            retryable: true,
        };
        let exited = control::State::Exited {
            exit: exit(),
            stderr: String::new(),
        };
        let table = [
            (young, "starting", 0),
            (
                Seen {
                    shim_pid: Some(1),
                    ..seen(4)
                },
                "starting",
                0,
            ),
            (
                Seen {
                    shim_pid: Some(1),
                    ..seen(3)
                },
                "unreadable",
                0,
            ),
            (seen(4), "interrupted", 0),
            (clock_set_back, "interrupted", 0),
            (
                Seen {
                    exit: Some(exit()),
                    ..seen(4)
                },
                "interrupted",
                0,
            ),
            (running(true), "running", 1),
            (running(false), "running not ready", 1),
            (
                Seen {
                    answer: Some(Ok(old)),
                    ..running(true)
                },
                "running",
                1,
            ),
            (said(control::State::Prepared { qemu_pid: 1 }), "starting", 0),
            (said(failed.clone()), "starting", 0),
            (said(exited), "ended out-of-memory", 0),
            (silent.clone(), "shim silent", 1),
            (
                Seen {
                    exit: Some(exit()),
                    ..silent.clone()
                },
                "ended out-of-memory",
                42,
            ),
            (ended(), "ended out-of-memory", 42),
            (seen(6), "ended shim-lost", 0),
            (killed, "ended killed", 0),
            (seen(8), "being taken back", 8),
            (
                Seen {
                    this_boot: false,
                    ..seen(5)
                },
                "other boot",
                0,
            ),
            (
                Seen {
                    this_boot: false,
                    ..seen(9)
                },
                "being taken back",
                8,
            ),
            (damaged.clone(), "unreadable", 0),
            (nothing.clone(), "interrupted", 0),
            (
                Seen {
                    shim_pid: Some(1),
                    ..nothing.clone()
                },
                "unreadable",
                0,
            ),
        ];
        for (seen, words, since) in table {
            assert_eq!(seen.state().words(), words, "{seen:?}");
            assert!(State::WORDS.contains(&seen.state().word()), "{words}");
            if since > 0 {
                assert_eq!(seen.since_unix_ns(), CREATED + since * SECOND, "{words}");
            }
        }
        assert_eq!(running(true).qemu_pid(), Some(4242));
        assert_eq!((silent.qemu_pid(), seen(5).qemu_pid()), (None, None));
        let problems = [
            (running(true), None),
            (ended(), None),
            (silent, Some("its shim does not answer within 1 s")),
            (damaged, Some("line 3 of the record is not readable")),
            (nothing, Some("it has no whole record: nothing was begun for it")),
            (
                Seen {
                    shim_pid: Some(1),
                    ..seen(3)
                },
                Some(NO_RECORD),
            ),
            (said(failed), Some("no room")),
            (seen(8), None),
            (seen(9), Some("remove-cgroups: busy")),
        ];
        for (seen, problem) in problems {
            assert_eq!(seen.problem().as_deref(), problem, "{seen:?}");
        }
    }

    /// A state directory in which a task has its record and nothing else.
    fn host() -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let mut header = seen(0).record().unwrap().header.clone();
        let key = task_key(&header.alloc_id, &header.task_id);
        let directory = root.path().join("tasks").join(key);
        header.boot_id = records::boot_id().unwrap().into();
        let mut record = records::RecordFile::create(&directory, &header).unwrap();
        for step in steps().into_iter().take(5) {
            let step = match step {
                Step::RunDirectory { .. } => Step::RunDirectory {
                    path: root.path().join("run"),
                },
                other => other,
            };
            record.name(&step).unwrap();
        }
        (root, directory)
    }

    #[test]
    fn a_shim_lives_only_as_the_holder_of_its_lock() {
        let (root, directory) = host();
        assert_eq!(look(&directory, None).unwrap().state().words(), "ended shim-lost");
        let path = directory.join(undo::LOCK);
        let lock = File::create(&path).unwrap();
        std::fs::write(&path, format!("{}\n", std::process::id())).unwrap();
        let seen = look(&directory, None).unwrap();
        assert_eq!(seen.state(), State::Silent);
        assert_eq!(seen.shim_pid.map(i32::cast_unsigned), Some(std::process::id()));
        assert!(seen.problem().unwrap().contains("can't be reached"), "{seen:?}");
        // A start locks this file a moment after it made it: whoever looks must not be in its way.
        let looking = std::sync::atomic::AtomicBool::new(true);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while looking.load(std::sync::atomic::Ordering::Relaxed) {
                    assert!(living_shim(&directory).is_some());
                }
            });
            let locked = (0..100_000).all(|_| lock.try_lock().is_ok() && lock.unlock().is_ok());
            looking.store(false, std::sync::atomic::Ordering::Relaxed);
            assert!(locked, "a look took the lock");
        });
        drop(lock);
        assert_eq!(look(&directory, None).unwrap().state().words(), "ended shim-lost");
        assert_eq!(look_at_all(root.path()).unwrap().len(), 1);
    }

    #[test]
    fn what_can_not_be_read_is_seen_and_nothing_is_waited_for() {
        let (root, directory) = host();
        let tasks = root.path().join("tasks");
        let fifo = |path: &Path| {
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        };
        fifo(&directory.join(undo::LOCK));
        let key = |digit: &str| format!("{digit}0000000-0000-4000-8000-000000000000.00000000");
        let place = |digit: &str| tasks.join(key(digit));
        for digit in ["c", "d", "e", "f"] {
            std::fs::create_dir(place(digit)).unwrap();
        }
        std::fs::create_dir(place("b")).unwrap();
        std::fs::copy(directory.join("record"), place("b").join("record")).unwrap();
        fifo(&place("c").join("record"));
        std::os::unix::fs::symlink(directory.join("record"), place("d").join("record")).unwrap();
        std::fs::write(place("e").join("record"), "{\"version\":9}\n").unwrap();
        std::fs::write(place("1"), "").unwrap();
        std::fs::create_dir(tasks.join("lost+found")).unwrap();
        let found = look_at_all(root.path()).unwrap();
        let states: Vec<_> = found
            .iter()
            .map(|seen| (seen.key.clone(), seen.state().words()))
            .collect();
        let expected = [
            (key("1"), "unreadable"),
            (key("b"), "unreadable"),
            (key_of(&directory), "ended shim-lost"),
            (key("c"), "unreadable"),
            (key("d"), "unreadable"),
            (key("e"), "unreadable"),
            (key("f"), "interrupted"),
        ];
        assert_eq!(states, expected.map(|(key, state)| (key, state.to_owned())));
        for (seen, wanted) in found.iter().zip([
            "Not a directory",
            "of another task than its directory",
            "",
            "not a regular file",
            "a symbolic link",
            "has version 9",
            "no whole record",
        ]) {
            let problem = seen.problem().unwrap_or_default();
            assert!(problem.contains(wanted), "{problem}");
        }
        assert!(look(&place("0"), None).is_none());
        let own = seen(0).record().unwrap().header.instance.clone();
        for (instance, wanted) in [(own, "ended"), ("0".repeat(16), "unreadable")] {
            let file = format!("{{\"version\":1,\"instance\":\"{instance}\"}}\n");
            std::fs::write(root.path().join("instance"), file).unwrap();
            let found = look_at_all(root.path()).unwrap();
            assert_eq!(found[2].state().word(), wanted);
        }
        let problem = look_at_all(root.path()).unwrap()[2].problem().unwrap();
        assert!(problem.contains("another driver instance's"), "{problem}");
    }
}
