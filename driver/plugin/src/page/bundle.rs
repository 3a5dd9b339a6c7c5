//! What of a task may a supporter have, in one file?
//!
//! Everything is read before anything is written, so that an archive is whole or not there. A job's words for its guest's
//! kernel are left out wherever they stand; where they can't be known, nothing is taken in that could repeat them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use steppe_vm::plan::LaunchPlan;
use steppe_vm::record::RECORD_MAX_BYTES;

use super::PageError;
use super::inspect::{self, Inspection, TAIL_MAX_BYTES};
use super::leave_out::LeaveOut;
use super::seen::{Seen, open, read_bounded};
use super::text;
use crate::host::fingerprint::ask_version;
use crate::host::state_dir::log_dir;
use crate::host::unix_ns;

/// Largest part of a log that is taken into an archive: its end.
const LINES_MAX_BYTES: usize = 256 * 1024;

/// Largest part of a log that is looked through. Logs are put aside at 4 MiB, one that is put aside late is larger.
const LOG_MAX_BYTES: u64 = 16 << 20;

/// One file of an archive.
type Entry = (&'static str, Vec<u8>);

/// Name of a task's archive, without its ending, and of the one folder in it.
pub(super) fn name(key: &str) -> String {
    let harmless = |c: char| {
        if c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_') {
            c
        } else {
            '_'
        }
    };
    format!("steppe-{}", key.chars().map(harmless).collect::<String>())
}

/// Everything of a task that goes into its archive.
pub(super) fn collect(state_dir: &Path, inspection: &Inspection) -> Vec<Entry> {
    let mut notes = Vec::new();
    let mut entries = Vec::new();
    let directory = &inspection.seen.directory;
    // Only a start that did not come to its plan has none.
    let never_had_plan = matches!(&inspection.seen.record, Ok(Some(record)) if !record.may_have_shim());
    let plan = match &inspection.plan {
        Ok(None) if !never_had_plan => Err("the launch plan is gone".to_owned()),
        plan => plan.clone(),
    };
    let leave_out = match &plan {
        Ok(plan) => {
            let cmdline = plan.as_ref().map_or("", steppe_qemu::redact::cmdline);
            if !cmdline.is_empty() {
                notes.push(format!(
                    "the job's {} bytes of the kernel command line, and its words wherever else they stand: \"(left out)\"",
                    cmdline.len()
                ));
            }
            Some(LeaveOut::words_of(cmdline))
        }
        Err(reason) => {
            notes.push(format!(
                "console, messages of QEMU and logs: they may repeat the job's kernel command line, and {reason}"
            ));
            None
        }
    };
    let shown = presentable(inspection, leave_out.as_ref());

    entries.push(("inspect.txt", inspect::page(&shown).into_bytes()));
    // A link or somebody else's file is not ours to hand out; `inspect.txt` says what it is.
    if !matches!(&shown.seen.record, Err(unreadable) if unreadable.is_foreign) {
        entries.extend(file(directory, "record", RECORD_MAX_BYTES));
    }
    if let Ok(Some(plan)) = &shown.plan {
        entries.push(("plan.json", plan.to_json().into_bytes()));
    }
    // The file itself has the last words too, as they are.
    let exit = shown
        .seen
        .exit
        .as_ref()
        .map(|exit| steppe_vm::record::line(exit).into_bytes());
    entries.extend(exit.map(|exit| ("exit.json", exit)));
    entries.extend(shown.console.clone().map(|tail| ("console.tail", tail)));
    entries.extend(shown.messages.clone().map(|tail| ("stderr.tail", tail)));
    if let Some(leave_out) = &leave_out {
        let names = names_in_logs(&shown.seen);
        for name in ["plugin.log", "shim.log"] {
            let lines = log_lines(&log_dir(state_dir).join(name), &names);
            entries.push((name, leave_out.leave_out(&lines)));
        }
    }
    if shown.seen.end().is_none() {
        notes.push(
            "the console's last lines and QEMU's messages: they are written down when the VM ends".to_owned(),
        );
    }
    let about = about(&shown, &entries, &notes);
    entries.insert(0, ("about.txt", about.into_bytes()));
    entries
}

/// What was seen, without what a job meant for its guest alone.
fn presentable(inspection: &Inspection, leave_out: Option<&LeaveOut>) -> Inspection {
    let tail = |tail: &Option<Vec<u8>>| match (tail, leave_out) {
        (Some(tail), Some(leave_out)) => Some(leave_out.leave_out(whole_lines(tail))),
        _ => None,
    };
    Inspection {
        seen: inspection.seen.clone(),
        plan: inspection
            .plan
            .as_ref()
            .map(|plan: &Option<LaunchPlan>| plan.as_ref().map(steppe_qemu::redact::without_cmdline))
            .map_err(Clone::clone),
        console: tail(&inspection.console),
        messages: tail(&inspection.messages),
    }
}

/// A tail without its first line, if that may have lost its beginning: half a word could not be recognized.
fn whole_lines(tail: &[u8]) -> &[u8] {
    if (tail.len() as u64) < TAIL_MAX_BYTES {
        return tail;
    }
    let end = tail.iter().position(|byte| *byte == b'\n');
    end.and_then(|end| tail.get(end + 1..)).unwrap_or_default()
}

fn file(directory: &Path, name: &'static str, max_bytes: u64) -> Option<Entry> {
    read_bounded(&directory.join(name), max_bytes)
        .ok()
        .map(|bytes| (name, bytes))
}

/// The words by which a log line is known to be about a task: its key, Nomad's id of it, and how the reaper calls it. All
/// of them as they stand in JSON, which is what the plugin's log is made of.
fn names_in_logs(seen: &Seen) -> Vec<Vec<u8>> {
    let quoted = |text: &str| serde_json::Value::from(text).to_string().into_bytes();
    let mut names = vec![seen.key.clone().into_bytes()];
    if let Some(record) = seen.record() {
        let header = &record.header;
        names.push(quoted(&header.task_id));
        names.push(quoted(&format!("{}/{}", header.alloc_id, header.task_name)));
    }
    names
}

/// The last lines of a log, and of the one before it, that have one of these names.
fn log_lines(path: &Path, names: &[Vec<u8>]) -> Vec<u8> {
    let mut earlier = path.as_os_str().to_owned();
    earlier.push(".1");
    let mut kept = Tail::default();
    for path in [Path::new(&earlier), path] {
        let Ok(file) = open(path) else { continue };
        keep_lines(&mut BufReader::new(file.take(LOG_MAX_BYTES)), names, &mut kept);
    }
    kept.lines.into_iter().flatten().collect()
}

/// The last lines that fit.
#[derive(Debug, Default)]
struct Tail {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
}

fn keep_lines(log: &mut impl BufRead, names: &[Vec<u8>], kept: &mut Tail) {
    let has = |line: &[u8], name: &[u8]| line.windows(name.len().max(1)).any(|window| window == name);
    loop {
        let mut line = Vec::new();
        if !matches!(log.read_until(b'\n', &mut line), Ok(1..)) {
            return;
        }
        if names.iter().any(|name| has(&line, name)) {
            kept.bytes += line.len();
            kept.lines.push_back(line);
        }
        while kept.bytes > LINES_MAX_BYTES {
            let gone = kept.lines.pop_front().unwrap_or_default();
            kept.bytes -= gone.len();
        }
    }
}

fn about(inspection: &Inspection, entries: &[Entry], notes: &[String]) -> String {
    let mut about = format!(
        "Support archive of task {}\nmade {} by nomad-driver-microvm {}\n\n",
        text::plain(&inspection.seen.key),
        text::time(unix_ns()).unwrap_or_default(),
        env!("CARGO_PKG_VERSION")
    );
    about.push_str(&format!("driver  {}\n", env!("CARGO_PKG_VERSION")));
    about.push_str(&format!("QEMU    {}\n", qemu_version(inspection)));
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    about.push_str(&format!("kernel  {}\n\nHere is\n", kernel.trim()));
    for (name, bytes) in entries {
        about.push_str(&format!(
            "  {name:<14}{} ({} bytes)\n",
            meaning(name),
            bytes.len()
        ));
    }
    about.push_str("\nLeft out is\n");
    for note in notes {
        about.push_str(&format!("  {}\n", text::plain(note)));
    }
    about.push_str(
        "  disks, memory and environment of the VM; lines of the logs that do not name this task\n",
    );
    about
}

/// What a file of an archive is.
fn meaning(name: &str) -> &'static str {
    match name {
        "inspect.txt" => "what `inspect` shows",
        "record" => "the task's record, one step a line",
        "plan.json" => "the launch plan",
        "exit.json" => "how QEMU ended",
        "console.tail" => "the console's last lines: the guest's words",
        "stderr.tail" => "QEMU's last messages",
        "plugin.log" => "the driver's lines about this task",
        "shim.log" => "the shim's lines about this task",
        _ => "",
    }
}

/// The version of the plan's QEMU as it is installed now. A program that others than this user may have written is not
/// started to learn it.
fn qemu_version(inspection: &Inspection) -> String {
    let Ok(Some(plan)) = &inspection.plan else {
        return "not known without a launch plan".to_owned();
    };
    let program = text::plain(&plan.program.to_string_lossy());
    let own = rustix::process::geteuid().as_raw();
    let is_qemu = plan
        .program
        .file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with("qemu-system-"));
    let is_trusted = is_qemu
        && inspection.seen.record.is_ok()
        && std::fs::metadata(&plan.program)
            .is_ok_and(|data| (data.uid() == 0 || data.uid() == own) && data.mode() & 0o022 == 0);
    let version = is_trusted.then(|| ask_version(&plan.program)).flatten();
    match version {
        Some(version) => format!("{} ({program} as it is installed now)", text::plain(&version)),
        None => format!("does not say its version: {program}"),
    }
}

/// The archive's bytes: everything in one folder, dated to the second.
fn archive(folder: &Path, entries: &[Entry], at_unix_s: u64) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(at_unix_s);
        header.set_uid(0);
        header.set_gid(0);
        archive.append_data(&mut header, folder.join(name), bytes.as_slice())?;
    }
    archive.into_inner()
}

/// Writes an archive into a file that is not there yet.
pub(super) fn write(path: &Path, folder: &str, entries: &[Entry]) -> Result<(), PageError> {
    let failed = |source| PageError::Write {
        path: path.to_owned(),
        source,
    };
    let bytes = archive(Path::new(folder), entries, unix_ns() / 1_000_000_000).map_err(failed)?;
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => PageError::Exists {
                path: path.to_owned(),
            },
            _ => failed(source),
        })?;
    file.write_all(&bytes)
        .and_then(|()| file.sync_all())
        .map_err(|source| {
            // Half an archive helps nobody, and would be in the way of the next one.
            drop(std::fs::remove_file(path));
            failed(source)
        })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::super::seen::Unreadable;
    use super::super::seen::tests::{ALLOC, ended};
    use super::*;

    const SECRET: &str = "geheim-9137";

    fn plan() -> LaunchPlan {
        LaunchPlan {
            arguments: ["-append", &format!("console=ttyS0 quiet token={SECRET}")]
                .map(str::to_owned)
                .to_vec(),
            program: "/does/not/exist".into(),
            ..super::super::inspect::tests::plan()
        }
    }

    /// A state directory with one task that has ended, and logs that tell of it and of others.
    fn host() -> (tempfile::TempDir, Inspection) {
        let root = tempfile::tempdir().unwrap();
        let mut seen = ended();
        seen.directory = root.path().join("tasks").join(&seen.key);
        let log = root.path().join("log");
        std::fs::create_dir_all(&seen.directory).unwrap();
        std::fs::create_dir_all(&log).unwrap();
        let write = |name: &str, text: &str| std::fs::write(root.path().join(name), text).unwrap();
        for (name, text) in [("record", "{}\n"), ("exit.json", "{}\n"), ("plan.json", SECRET)] {
            std::fs::write(seen.directory.join(name), text).unwrap();
        }
        let line = |task: &str, words: &str| {
            serde_json::json!({ "task": task, "@message": words }).to_string() + "\n"
        };
        let task_id = &seen.record().unwrap().header.task_id;
        write("log/plugin.log.1", &line(task_id, "before"));
        write(
            "log/plugin.log",
            &(line(task_id, &format!("the console ended with: token={SECRET}"))
                + &line(&format!("{ALLOC}/vm"), "reaper")
                + &line(&format!("{ALLOC}/vm2"), "another task")
                + &line(&format!("{ALLOC}/vm/other"), "an earlier start")),
        );
        write(
            "log/shim.log",
            &format!(
                "microvm-shim: {}: no room\nmicrovm-shim: other\n",
                seen.directory.display()
            ),
        );
        let inspection = Inspection {
            seen,
            plan: Ok(Some(plan())),
            console: Some(format!("Command line: token={SECRET}\r\nlogin:\r\n").into_bytes()),
            messages: Some(Vec::new()),
        };
        (root, inspection)
    }

    fn texts(entries: &[Entry]) -> BTreeMap<&str, String> {
        let text = |(name, bytes): &Entry| (*name, String::from_utf8(bytes.clone()).unwrap());
        entries.iter().map(text).collect()
    }

    #[test]
    fn all_that_helps_is_there_and_no_secret_is() {
        let (root, inspection) = host();
        let entries = collect(root.path(), &inspection);
        let texts = texts(&entries);
        let names: Vec<&str> = entries.iter().map(|(name, _)| *name).collect();
        assert_eq!(
            names,
            [
                "about.txt",
                "inspect.txt",
                "record",
                "plan.json",
                "exit.json",
                "console.tail",
                "stderr.tail",
                "plugin.log",
                "shim.log"
            ]
        );
        for (name, text) in &texts {
            assert!(!text.contains(SECRET) && !text.contains("9137"), "{name}: {text}");
        }
        assert_eq!(texts["console.tail"], "Command line: (left out)\r\nlogin:\r\n");
        assert!(
            texts["plan.json"].contains("console=ttyS0 (23 bytes, left out)"),
            "{}",
            texts["plan.json"]
        );
        assert!(
            texts["inspect.txt"].contains("console=ttyS0 (23 bytes, left out)"),
            "{}",
            texts["inspect.txt"]
        );
        assert!(
            texts["inspect.txt"].contains("| Command line: (left out)\n"),
            "{}",
            texts["inspect.txt"]
        );
        let lines: Vec<&str> = texts["plugin.log"].lines().collect();
        assert_eq!(lines.len(), 3, "{lines:?}");
        for (line, wanted) in lines.iter().zip(["before", "ended with: (left out)", "reaper"]) {
            assert!(line.contains(wanted), "{line}");
        }
        assert!(texts["shim.log"].contains("no room") && !texts["shim.log"].contains("other"));
        for (name, _) in &entries[1..] {
            assert!(
                !meaning(name).is_empty() && texts["about.txt"].contains(&format!("  {name:<14}")),
                "{name}"
            );
        }
        assert!(
            texts["about.txt"].contains("the job's 23 bytes of the kernel command line"),
            "{}",
            texts["about.txt"]
        );
    }

    #[test]
    fn without_a_plan_nothing_that_could_repeat_it_is_taken() {
        let (root, mut inspection) = host();
        inspection.plan = Err("the launch plan is not readable".into());
        inspection.seen.record = Err(Unreadable {
            reason: "record /r is a symbolic link".into(),
            is_foreign: true,
        });
        let entries = collect(root.path(), &inspection);
        let texts = texts(&entries);
        let names: Vec<&str> = entries.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["about.txt", "inspect.txt", "exit.json"]);
        assert!(!texts.values().any(|text| text.contains(SECRET)));
        assert!(
            texts["about.txt"].contains("the launch plan is not readable"),
            "{}",
            texts["about.txt"]
        );
    }

    #[test]
    fn a_tail_that_was_cut_begins_at_a_line() {
        let mut tail = vec![b'x'; 4096];
        assert_eq!(whole_lines(&tail), b"");
        tail[4000] = b'\n';
        assert_eq!(whole_lines(&tail).len(), 95);
        assert_eq!(whole_lines(b"short\nline"), b"short\nline");
    }

    #[test]
    fn of_many_lines_the_last_are_kept() {
        let log: String = (0..20_000)
            .map(|n| format!("key {n:06} xxxxxxxxxxxxxxxxxxxx\nother\n"))
            .collect();
        let mut kept = Tail::default();
        keep_lines(&mut log.as_bytes(), &[b"key".to_vec()], &mut kept);
        let text = String::from_utf8(kept.lines.into_iter().flatten().collect()).unwrap();
        assert!(text.len() <= LINES_MAX_BYTES && text.len() > LINES_MAX_BYTES - 100);
        assert!(text.ends_with("key 019999 xxxxxxxxxxxxxxxxxxxx\n") && !text.contains("other"));
    }

    #[test]
    fn an_archive_is_ours_alone_and_replaces_nothing() {
        let root = tempfile::tempdir().unwrap();
        let folder = name("a/b\x1b.0");
        assert_eq!(folder, "steppe-a_b_.0");
        let path = root.path().join("some.tar");
        let entries = [("about.txt", b"hello".to_vec()), ("record", Vec::new())];
        write(&path, &folder, &entries).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let mut archive = tar::Archive::new(File::open(&path).unwrap());
        let found: Vec<(PathBuf, u64)> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.path().unwrap().into_owned(), entry.size()))
            .collect();
        let inside = |name| Path::new(&folder).join(name);
        assert_eq!(found, [(inside("about.txt"), 5), (inside("record"), 0)]);
        assert!(matches!(
            write(&path, &folder, &entries),
            Err(PageError::Exists { .. })
        ));
        let link = root.path().join("link.tar");
        std::os::unix::fs::symlink(root.path().join("elsewhere"), &link).unwrap();
        assert!(matches!(
            write(&link, &folder, &entries),
            Err(PageError::Exists { .. })
        ));
        let nowhere = root.path().join("no/where.tar");
        assert!(matches!(
            write(&nowhere, &folder, &entries),
            Err(PageError::Write { .. })
        ));
    }
}
