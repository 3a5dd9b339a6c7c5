//! What is written down about a task before anything is done for it?
//!
//! One file per task: JSON lines, the first the [`Header`], each further one an [`Entry`]: a [`Step`] that is named
//! *before* it is done, and when. The number of its line is the step's number. Lines are only ever appended, so a crash
//! can at worst cut the last one short, and a step whose line was cut was never begun. Everything the undo needs is in
//! the lines; nothing is recomputed.
//!
//! Version 2 added the times, the memory limit, and the steps from [`Step::Stop`] on; version 3 added [`Step::User`]; version 4
//! [`Step::Network`] and [`Step::Interfaces`]. All earlier ones are read as well.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::interface::Interface;
use crate::lease::Lease;

/// Version written into new records.
pub const RECORD_VERSION: u32 = 4;

/// Oldest version that is read.
pub const RECORD_VERSION_MIN: u32 = 1;

/// Largest record that is read, in bytes: a header and a dozen steps take about 2 KiB, 22 network interfaces 10 more.
pub const RECORD_MAX_BYTES: u64 = 256 * 1024;

/// Size in bytes from which on nothing is appended that an undo doesn't need: a VM that is recovered every minute for a
/// week must not outgrow [`RECORD_MAX_BYTES`].
pub const RECORD_FULL_BYTES: u64 = 64 * 1024;

/// First line of a record: whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// [`RECORD_VERSION`].
    pub version: u32,
    /// Random id of the driver instance (one per state directory) that wrote it.
    pub instance: String,
    /// The kernel's boot id when it was written: nothing of a VM survives a reboot.
    pub boot_id: String,
    /// Nomad's task id, new for every start.
    pub task_id: String,
    /// The allocation.
    pub alloc_id: String,
    /// The task's name.
    pub task_name: String,
    /// The job.
    pub job_id: String,
    /// The job's namespace.
    pub namespace: String,
    /// When it was written, in nanoseconds since 1970 (UTC).
    pub created_at_unix_ns: u64,
}

/// A step and when it was named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When, in nanoseconds since 1970 (UTC); 0 in records of version 1.
    #[serde(default)]
    pub at_unix_ns: u64,
    /// The step.
    #[serde(flatten)]
    pub step: Step,
}

/// A step of a task's life, named before it is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// A pair of user ids is leased: this one is QEMU's, unless [`Step::User`] names another; the next is the supervisor's.
    Uids {
        /// The first of the pair.
        uid: u32,
    },
    /// The user id that Nomad leased for the task becomes QEMU's.
    User {
        /// QEMU's user id.
        uid: u32,
    },
    /// The directory of the task's sockets is made.
    RunDirectory {
        /// Where.
        path: PathBuf,
    },
    /// netd is asked for the task's network interfaces. Their owner is this instance and the task's key.
    Network {
        /// Where it listens.
        socket: PathBuf,
    },
    /// netd has made them.
    Interfaces {
        /// In the guest's order.
        interfaces: Vec<Interface>,
    },
    /// Control group leaves are made.
    Cgroups {
        /// Leaf directories in the order they are made.
        leaves: Vec<PathBuf>,
        /// Memory limit of QEMU's leaf in bytes; none in records of version 1.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        memory_bytes: Option<u64>,
    },
    /// The launch plan is written and the shim is started.
    Shim,
    /// The guest is told to run.
    Running {
        /// When, in nanoseconds since 1970 (UTC).
        started_at_unix_ns: u64,
    },
    /// The VM is stopped.
    Stop {
        /// The signal that Nomad named, may be empty.
        signal: String,
    },
    /// The shim is killed, and QEMU with it: it didn't answer.
    Kill,
    /// A later process of the plugin found the VM again.
    Recover {
        /// That process's id.
        plugin_pid: u32,
    },
    /// Everything is taken back, newest first.
    Undo,
    /// A step of the undo failed; the others were done all the same, and this one is tried again.
    UndoFailed {
        /// Which.
        what: String,
        /// Why.
        reason: String,
    },
}

impl Step {
    /// The step's word in the record.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Uids { .. } => "uids",
            Self::User { .. } => "user",
            Self::RunDirectory { .. } => "run-directory",
            Self::Network { .. } => "network",
            Self::Interfaces { .. } => "interfaces",
            Self::Cgroups { .. } => "cgroups",
            Self::Shim => "shim",
            Self::Running { .. } => "running",
            Self::Stop { .. } => "stop",
            Self::Kill => "kill",
            Self::Recover { .. } => "recover",
            Self::Undo => "undo",
            Self::UndoFailed { .. } => "undo-failed",
        }
    }

    /// Whether an undo can do without it: it only tells the task's history. Version 1 knows none of these.
    #[must_use]
    pub fn is_history(&self) -> bool {
        matches!(
            self,
            Self::Stop { .. } | Self::Kill | Self::Recover { .. } | Self::UndoFailed { .. }
        )
    }
}

/// A record as read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Whose it is.
    pub header: Header,
    /// Steps in the order they were named.
    pub entries: Vec<Entry>,
}

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// There is no complete first line.
    #[error("the record is empty or cut off in its first line")]
    Empty,
    /// It is longer than [`RECORD_MAX_BYTES`].
    #[error("the record is longer than {RECORD_MAX_BYTES} bytes")]
    TooLong,
    /// It isn't text.
    #[error("the record is not UTF-8 text")]
    Text,
    /// The first line is not a header.
    #[error("the record's first line is not readable")]
    Header(#[source] serde_json::Error),
    /// A complete line is not a step.
    #[error("line {line} of the record is not readable")]
    Step {
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// Another release wrote it.
    #[error(
        "the record has version {0}, this release reads versions {RECORD_VERSION_MIN} to {RECORD_VERSION}: install the \
         release that wrote it again"
    )]
    Version(u32),
}

impl Record {
    /// Reads a record from its bytes. A last line without its newline was never begun and is left out.
    ///
    /// # Errors
    /// [`RecordError`] says what is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        if bytes.len() as u64 > RECORD_MAX_BYTES {
            return Err(RecordError::TooLong);
        }
        let end = bytes.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
        let complete = std::str::from_utf8(&bytes[..end]).map_err(|_| RecordError::Text)?;
        let mut lines = complete.split('\n');
        let first = lines
            .next()
            .filter(|line| !line.is_empty())
            .ok_or(RecordError::Empty)?;
        let Version { version } = serde_json::from_str(first).map_err(RecordError::Header)?;
        if !(RECORD_VERSION_MIN..=RECORD_VERSION).contains(&version) {
            return Err(RecordError::Version(version));
        }
        let header = serde_json::from_str(first).map_err(RecordError::Header)?;
        let entries = lines
            .enumerate()
            .map(|(n, line)| {
                serde_json::from_str(line).map_err(|source| RecordError::Step { line: n + 2, source })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { header, entries })
    }

    fn steps(&self) -> impl DoubleEndedIterator<Item = &Step> {
        self.entries.iter().map(|entry| &entry.step)
    }

    /// The pair of user ids, once it was named. The last one named counts: an earlier one turned out to be taken.
    fn pair(&self) -> Option<u32> {
        self.steps().rev().find_map(|step| match step {
            Step::Uids { uid } => Some(*uid),
            _ => None,
        })
    }

    /// The user id that Nomad leased, once it was named.
    fn user(&self) -> Option<u32> {
        self.steps().find_map(|step| match step {
            Step::User { uid } => Some(*uid),
            _ => None,
        })
    }

    /// QEMU's user id and its supervisor's, once they were named.
    #[must_use]
    pub fn uids(&self) -> Option<(u32, u32)> {
        let pair = self.pair()?;
        Some((self.user().unwrap_or(pair), pair.saturating_add(1)))
    }

    /// What was leased of user ids.
    #[must_use]
    pub fn leases(&self) -> Vec<Lease> {
        let user = self.user().map(Lease::User);
        user.into_iter().chain(self.pair().map(Lease::Pair)).collect()
    }

    /// The control group leaves, once they were named.
    #[must_use]
    pub fn leaves(&self) -> &[PathBuf] {
        self.steps()
            .find_map(|step| match step {
                Step::Cgroups { leaves, .. } => Some(leaves.as_slice()),
                _ => None,
            })
            .unwrap_or_default()
    }

    /// When the guest was told to run, if it was.
    #[must_use]
    pub fn started_at_unix_ns(&self) -> Option<u64> {
        self.steps().find_map(|step| match step {
            Step::Running { started_at_unix_ns } => Some(*started_at_unix_ns),
            _ => None,
        })
    }
}

impl Record {
    /// The directory of the task's sockets, once it was named.
    #[must_use]
    pub fn run_directory(&self) -> Option<&Path> {
        self.steps().find_map(|step| match step {
            Step::RunDirectory { path } => Some(path.as_path()),
            _ => None,
        })
    }

    /// Where the netd listens that was asked for the task's network interfaces, once it was named.
    #[must_use]
    pub fn netd(&self) -> Option<&Path> {
        self.steps().find_map(|step| match step {
            Step::Network { socket } => Some(socket.as_path()),
            _ => None,
        })
    }

    /// The interfaces that netd has made.
    #[must_use]
    pub fn interfaces(&self) -> &[Interface] {
        self.steps()
            .find_map(|step| match step {
                Step::Interfaces { interfaces } => Some(interfaces.as_slice()),
                _ => None,
            })
            .unwrap_or_default()
    }

    /// Whether taking everything back was begun.
    #[must_use]
    pub fn undo_begun(&self) -> bool {
        self.steps().any(|step| *step == Step::Undo)
    }

    /// Whose the record is, where it is not that of this driver instance and of the task whose directory has this name.
    /// What is returned completes the sentence "the record is …".
    #[must_use]
    pub fn stranger(&self, instance: &str, key: &str) -> Option<&'static str> {
        if self.header.instance != instance {
            Some("another driver instance's")
        } else if task_key(&self.header.alloc_id, &self.header.task_id) != key {
            Some("of another task than its directory")
        } else {
            None
        }
    }

    /// Whether a shim may live for the task: it is started only after this was named.
    #[must_use]
    pub fn may_have_shim(&self) -> bool {
        self.steps().any(|step| *step == Step::Shim)
    }

    /// Whether the shim was killed because it didn't answer.
    #[must_use]
    pub fn shim_was_killed(&self) -> bool {
        self.steps().any(|step| *step == Step::Kill)
    }

    /// The last step of the undo that failed, and why.
    #[must_use]
    pub fn last_failure(&self) -> Option<(&str, &str)> {
        self.steps().rev().find_map(|step| match step {
            Step::UndoFailed { what, reason } => Some((what.as_str(), reason.as_str())),
            _ => None,
        })
    }
}

/// One line of a record, newline included.
#[must_use]
pub fn line(value: &impl Serialize) -> String {
    // Our own types have string keys and finite numbers only, so they always serialize.
    let mut line = serde_json::to_string(value).unwrap_or_default();
    line.push('\n');
    line
}

/// Length of an allocation id (a UUID in text).
const ALLOC_ID_LENGTH: usize = 36;

/// Length of the task's part of a key.
const TASK_HASH_LENGTH: usize = 8;

/// The name of a task's directories: the allocation id, so that an operator finds it, and eight hex digits of the task
/// id's SHA-256, because an allocation has several tasks and a task several starts. Short enough for a socket's path
/// (108 bytes), and safe as a file name whatever the ids are.
#[must_use]
pub fn task_key(alloc_id: &str, task_id: &str) -> String {
    format!(
        "{}.{}",
        alloc_part(alloc_id),
        &hex(&Sha256::digest(task_id.as_bytes()))[..TASK_HASH_LENGTH]
    )
}

/// Whether a name has the form of a [`task_key`].
#[must_use]
pub fn is_key(name: &str) -> bool {
    let hex = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    name.split_once('.').is_some_and(|(alloc, task)| {
        alloc.len() == ALLOC_ID_LENGTH
            && alloc.split('-').all(hex)
            && task.len() == TASK_HASH_LENGTH
            && hex(task)
    })
}

/// Whether a key is of a task of this allocation.
#[must_use]
pub fn key_is_of(key: &str, alloc_id: &str) -> bool {
    key.split_once('.')
        .is_some_and(|(alloc, _)| alloc == alloc_part(alloc_id))
}

fn alloc_part(alloc_id: &str) -> String {
    let is_uuid =
        alloc_id.len() == ALLOC_ID_LENGTH && alloc_id.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    if is_uuid {
        return alloc_id.to_owned();
    }
    hex(&Sha256::digest(alloc_id.as_bytes()))[..ALLOC_ID_LENGTH].to_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interface::tests::interface;

    fn header() -> Header {
        Header {
            version: RECORD_VERSION,
            instance: "0123456789abcdef".into(),
            boot_id: "b".into(),
            task_id: "a/vm/12345678".into(),
            alloc_id: "a".into(),
            task_name: "vm".into(),
            job_id: "hello".into(),
            namespace: "default".into(),
            created_at_unix_ns: 1_700_000_000_000_000_000,
        }
    }

    fn entry(step: Step) -> Entry {
        Entry { at_unix_ns: 3, step }
    }

    fn life() -> Vec<Step> {
        vec![
            Step::Uids { uid: 1_900_000_000 },
            Step::User { uid: 80_017 },
            Step::RunDirectory {
                path: "/run/steppe/i/k".into(),
            },
            Step::Network {
                socket: "/run/netd/netd.sock".into(),
            },
            Step::Interfaces {
                interfaces: vec![interface("tenant-a", "vlan")],
            },
            Step::Cgroups {
                leaves: vec!["/sys/fs/cgroup/memory/nomad/a.vm/vm".into()],
                memory_bytes: Some(1 << 30),
            },
            Step::Shim,
            Step::Running {
                started_at_unix_ns: 7,
            },
            Step::Recover { plugin_pid: 9 },
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

    #[test]
    fn lines_come_back() {
        let entries: Vec<Entry> = life().into_iter().map(entry).collect();
        let mut text = line(&header());
        for entry in &entries {
            text.push_str(&line(entry));
            assert!(line(entry).contains(&format!("\"step\":\"{}\"", entry.step.name())));
        }
        let record = Record::parse(text.as_bytes()).unwrap();
        assert_eq!(
            record,
            Record {
                header: header(),
                entries
            }
        );
        assert_eq!(record.uids(), Some((80_017, 1_900_000_001)));
        assert_eq!(record.leases(), [Lease::User(80_017), Lease::Pair(1_900_000_000)]);
        assert_eq!(record.started_at_unix_ns(), Some(7));
        assert_eq!(record.leaves().len(), 1);
        assert_eq!(record.run_directory(), Some(Path::new("/run/steppe/i/k")));
        assert_eq!(record.netd(), Some(Path::new("/run/netd/netd.sock")));
        assert_eq!(record.interfaces(), [interface("tenant-a", "vlan")]);
        assert!(record.undo_begun());
        assert_eq!(record.last_failure(), Some(("remove-cgroups", "busy")));
    }

    /// Files as each version wrote them: what is on hosts today is read tomorrow.
    #[test]
    fn fixtures_of_each_version_are_read() {
        let old = Record::parse(include_bytes!("fixtures/record.v1")).unwrap();
        let uids = |uid| Some((uid, uid + 1));
        assert_eq!((old.header.version, old.uids()), (1, uids(1_900_007_544)));
        assert_eq!(old.leaves().len(), 6);
        assert!(old.started_at_unix_ns().is_some() && !old.undo_begun());
        assert!(old.entries.iter().all(|entry| entry.at_unix_ns == 0));
        let before = Record::parse(include_bytes!("fixtures/record.v2")).unwrap();
        assert_eq!((before.header.version, before.uids()), (2, uids(1_900_011_482)));
        let third = Record::parse(include_bytes!("fixtures/record.v3")).unwrap();
        assert_eq!(
            (third.header.version, third.uids()),
            (3, Some((80_017, 1_900_011_483)))
        );
        assert!(third.netd().is_none() && third.interfaces().is_empty());
        let new = Record::parse(include_bytes!("fixtures/record.v4")).unwrap();
        assert_eq!((new.header.version, new.entries.len()), (4, life().len()));
        assert_eq!(new.interfaces()[0].address(), "10.1.0.7");
        for (entry, step) in new.entries.iter().zip(life()) {
            assert_eq!(entry.step.name(), step.name());
        }
    }

    #[test]
    fn a_cut_last_line_was_never_begun() {
        let whole = line(&header()) + &line(&entry(Step::Uids { uid: 5 }));
        for end in line(&header()).len()..whole.len() {
            let record = Record::parse(&whole.as_bytes()[..end]).unwrap();
            assert_eq!(record.entries, [], "cut at {end}");
        }
        for end in 0..line(&header()).len() {
            assert!(
                matches!(Record::parse(&whole.as_bytes()[..end]), Err(RecordError::Empty)),
                "cut at {end}"
            );
        }
    }

    #[test]
    fn other_versions_and_garbage_are_refused() {
        let version = |number: u32| format!("\"version\":{number}");
        for other in [0, RECORD_VERSION + 1] {
            let text = line(&header()).replacen(&version(RECORD_VERSION), &version(other), 1);
            assert!(
                matches!(Record::parse(text.as_bytes()), Err(RecordError::Version(version)) if version == other)
            );
        }
        assert!(matches!(Record::parse(b"garbage\n"), Err(RecordError::Header(_))));
        assert!(matches!(
            Record::parse((line(&header()) + "garbage\n").as_bytes()),
            Err(RecordError::Step { line: 2, .. })
        ));
        let mut bytes = line(&header()).into_bytes();
        bytes.extend(b"{\"step\":\"run-directory\",\"path\":\"/run/\xff\"}\n");
        assert!(matches!(Record::parse(&bytes), Err(RecordError::Text)));
        // A cut line may end anywhere, within a character too.
        let _newline = bytes.pop();
        assert_eq!(Record::parse(&bytes).unwrap().entries, []);
        let long = vec![b'\n'; 256 * 1024 + 1];
        assert!(matches!(Record::parse(&long), Err(RecordError::TooLong)));
    }

    #[test]
    fn keys_are_short_safe_and_distinct() {
        let alloc = "b2f8c3d4-0000-1111-2222-333344445555";
        let key = task_key(alloc, "one");
        assert!(key.starts_with(alloc));
        assert_ne!(key, task_key(alloc, "two"));
        assert_ne!(task_key("x", "one"), task_key("y", "one"));
        for (alloc, task) in [
            (alloc, "t"),
            ("", ""),
            ("../..", "a/b"),
            ("\n", "\0"),
            (&"z".repeat(999), "t"),
        ] {
            let key = task_key(alloc, task);
            assert_eq!(key.len(), 45, "{key}");
            assert!(
                key.bytes()
                    .all(|b| b.is_ascii_hexdigit() || b == b'-' || b == b'.'),
                "{key}"
            );
            assert!(!key.starts_with('.'));
            assert!(key_is_of(&key, alloc) && !key_is_of(&key, "other"));
            assert!(is_key(&key), "{key}");
        }
        for other in [
            "lost+found",
            "record",
            "",
            ".",
            "..",
            &key[1..],
            &format!("{key}.old"),
        ] {
            assert!(!is_key(other), "{other}");
        }
    }
}
