//! How is something done in another network namespace?

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::thread::LinkNameSpaceType;
use serde_json::Value;

use crate::system;

/// A network namespace: a host, a guest, a switch.
#[derive(Debug)]
pub(crate) struct Space {
    name: String,
    handle: OwnedFd,
}

fn of_this_thread() -> OwnedFd {
    rustix::fs::open(
        "/proc/thread-self/ns/net",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .expect("a thread's own network namespace can be opened")
}

impl Space {
    /// A new one, with its loopback device up.
    pub(crate) fn new(name: &str) -> Self {
        let space = Self::empty(name);
        space.ip("link set lo up");
        space
    }

    /// A new one, in which nothing is up.
    pub(crate) fn empty(name: &str) -> Self {
        let made = std::thread::spawn(|| {
            system::leave_network_namespace().expect("a network namespace can be made");
            of_this_thread()
        });
        let handle = made.join().expect("a network namespace can be made");
        let space = Self {
            name: name.to_owned(),
            handle,
        };
        // Addresses are there at once, and none comes later.
        space.set("ipv6/conf/default/accept_dad", "0");
        space
    }

    /// What it was called.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its path, as `ip link set … netns` takes it.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.handle.as_raw_fd())
    }

    /// Does something in it: a thread of its own enters it.
    pub(crate) fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let entered = || {
            rustix::thread::move_into_link_name_space(self.handle.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("a network namespace of ours can be entered");
            work()
        };
        std::thread::scope(|scope| scope.spawn(entered).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs a program in it, with this on its stdin; its stdout, or what it says against it.
    pub(crate) fn try_run(&self, program: &str, arguments: &[&str], input: &str) -> Result<String, String> {
        let output = self.enter(|| {
            let mut child = Command::new(program)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap_or_else(|error| panic!("{program} can't be run: {error}"));
            let mut stdin = child.stdin.take().expect("it is piped");
            // A program that reads nothing needs no help.
            drop(stdin.write_all(input.as_bytes()));
            drop(stdin);
            child.wait_with_output().expect("a child can be waited for")
        });
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        if output.status.success() {
            Ok(text(output.stdout))
        } else {
            Err(format!(
                "in {}: {program} {}: {}{}",
                self.name,
                arguments.join(" "),
                text(output.stderr),
                input
            ))
        }
    }

    /// Runs a program in it that must succeed.
    #[track_caller]
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> String {
        self.try_run(program, arguments, "")
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Commands of `ip`, a line each.
    #[track_caller]
    pub(crate) fn ip(&self, commands: &str) {
        let done = self.try_run("ip", &["-batch", "-"], commands);
        done.unwrap_or_else(|error| panic!("{error}"));
    }

    /// A transaction of nftables.
    #[track_caller]
    pub(crate) fn nft(&self, text: &str) {
        let done = self.try_run("nft", &["-f", "-"], text);
        done.unwrap_or_else(|error| panic!("{error}"));
    }

    /// What a program says in JSON; nothing is an empty list.
    #[track_caller]
    pub(crate) fn json(&self, program: &str, arguments: &[&str]) -> Value {
        let text = self.run(program, arguments);
        if text.trim().is_empty() {
            return Value::Array(Vec::new());
        }
        // Programs pass control characters of an alias on as they are.
        let text = text.replace(|c: char| c.is_control(), " ");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{program} {arguments:?}: {error}: {text}"))
    }

    /// Writes a sysctl beneath /proc/sys/net that may not be there; whether it is.
    pub(crate) fn try_set(&self, path: &str, value: &str) -> bool {
        self.enter(|| std::fs::write(format!("/proc/sys/net/{path}"), value))
            .is_ok()
    }

    /// Writes a sysctl beneath /proc/sys/net.
    #[track_caller]
    pub(crate) fn set(&self, path: &str, value: &str) {
        let path = format!("/proc/sys/net/{path}");
        self.enter(|| std::fs::write(&path, value))
            .unwrap_or_else(|error| panic!("{path} = {value} in {}: {error}", self.name));
    }
}

/// Joins two namespaces by a cable: a link in each, both up.
pub(crate) fn join(one: (&Space, &str), other: (&Space, &str)) {
    one.0.ip(&format!(
        "link add {} type veth peer name {} netns {}\nlink set {} up",
        one.1,
        other.1,
        other.0.path(),
        one.1
    ));
    other.0.ip(&format!("link set {} up", other.1));
}
