//! What is a host of its own on this machine?

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::thread::LinkNameSpaceType;

use crate::scratch::{self, MARK};

/// Its own network, /sys and control groups, held by a process that ends with ours (`host.sh`). What is in them, links above
/// all, goes with the last process there.
#[derive(Debug)]
pub(crate) struct Namespace {
    first: Child,
    /// The name of its control groups, which [`scratch`] removes.
    part: String,
    /// Where its processes work, beneath the scratch folder: by that they are known as the run's.
    directory: PathBuf,
    /// Its first interface's.
    pub(crate) address: Ipv4Addr,
}

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/host.sh");

impl Namespace {
    /// Makes one without links. `name` is also that of its folder.
    pub(crate) fn new(scratch: &Path, name: &str, address: Ipv4Addr) -> Self {
        let directory = scratch.join(name);
        std::fs::create_dir_all(&directory).expect("a folder can be made in the scratch folder");
        let part = scratch::part(scratch, name);
        let mut first = Command::new(SCRIPT)
            .args(["first", &part])
            .current_dir(&directory)
            .env(MARK, &directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{SCRIPT}: {error}"));
        let mut said = String::new();
        let heard = BufReader::new(first.stdout.take().expect("it was asked for")).read_line(&mut said);
        assert!(
            heard.is_ok() && said == "ready\n",
            "{SCRIPT} can't make a host: {heard:?} {said:?}"
        );
        Self {
            first,
            part,
            directory,
            address,
        }
    }

    /// Its first process.
    pub(crate) fn pid(&self) -> u32 {
        self.first.id()
    }

    /// The words that, put before a command, have it run there.
    pub(crate) fn words(&self) -> Vec<String> {
        let (pid, directory) = (self.pid().to_string(), self.directory.display().to_string());
        [SCRIPT, "in", &pid, &self.part, &directory]
            .map(str::to_owned)
            .into()
    }

    /// A command there.
    pub(crate) fn command(&self, program: &str) -> Command {
        let words = self.words();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(program).env(MARK, &self.directory);
        command
    }

    /// Runs a command there to its end; gives what it prints.
    #[track_caller]
    pub(crate) fn run(&self, words: &[&str]) -> String {
        output(self.command(words[0]).args(&words[1..]))
    }

    /// Does something in its network, in this process.
    pub(crate) fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let network = File::open(format!("/proc/{}/ns/net", self.pid())).expect("its first process is there");
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // A thread's network is its own, and ends with it.
                rustix::thread::move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("root may enter it");
                act()
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.first.stdin.take());
        drop(self.first.wait());
    }
}

/// The links that a process sees.
pub(crate) fn links(pid: u32) -> Vec<String> {
    // Two lines of head; then `name: counters`.
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    let names = table.lines().skip(2).filter_map(|line| line.split_once(':'));
    names.map(|(name, _)| name.trim().to_owned()).collect()
}

/// Runs a command to its end; gives what it prints.
#[track_caller]
pub(crate) fn output(command: &mut Command) -> String {
    let done = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    assert!(
        done.status.success(),
        "{command:?}: {}: {} {}",
        done.status,
        text(&done.stdout),
        text(&done.stderr)
    );
    text(&done.stdout)
}
