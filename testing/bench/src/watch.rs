//! When exactly does a QEMU begin and end, and what had those around it used by then?
//!
//! The kernel's process events (`NETLINK_CONNECTOR`, `cn_proc`) come with the nanosecond at which they happened, so
//! nothing is lost to polling. CPU times are read when the event arrives; the thread that does it has real-time priority, so
//! that is well below a millisecond later. Those who wait at that moment (plugin, shim, executor) are counted exactly; of the
//! process that has just become QEMU the kernel may tell the time of its last tick, or some of QEMU's own.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::{BenchError, cost};

/// `CN_IDX_PROC` and `CN_VAL_PROC`, which are the same number, and the multicast group (linux/connector.h).
const CN_PROC: u32 = 1;
/// `PROC_CN_MCAST_LISTEN` (linux/cn_proc.h).
const LISTEN: u32 = 1;
/// `NLMSG_DONE`, the type of a connector's message.
const NLMSG_DONE: u16 = 3;
/// `struct nlmsghdr` and `struct cn_msg` before the event.
const HEADERS_BYTES: usize = 16 + 20;
/// Kinds of events (linux/cn_proc.h).
const FORK: u32 = 1;
const EXEC: u32 = 2;
const EXIT: u32 = 0x8000_0000;
/// Buffered events: builds and tests beside us start hundreds of processes a second.
const BUFFER_BYTES: usize = 4 << 20;

/// A QEMU that began.
#[derive(Debug, Clone)]
pub(crate) struct Began {
    pub(crate) pid: u32,
    /// When its program was executed, `CLOCK_MONOTONIC`.
    pub(crate) exec_ns: u64,
    /// Its arguments and environment.
    pub(crate) identity: String,
    /// What the process used until then, mostly between fork and exec.
    pub(crate) own_cpu_ns: u64,
    /// What its parent and its siblings had used by then: the shim's two processes, or Nomad's executor.
    pub(crate) helpers_cpu_ns: u64,
    /// What the process under observation (the plugin) used from the start of this task's logmon until then.
    pub(crate) observed_cpu_ns: u64,
}

#[derive(Debug, Default)]
struct Seen {
    began: Vec<Began>,
    ended_ns: HashMap<u32, u64>,
    observed: u32,
    /// What it had used when Nomad started a logmon last: after the agent has asked for schema and capabilities, and some
    /// 50 ms before StartTask.
    observed_before_ns: u64,
}

/// A thread that listens as long as the program runs.
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    /// The program of our Nomad.
    nomad: PathBuf,
    seen: Arc<(Mutex<Seen>, Condvar)>,
}

impl Watch {
    /// Begins to listen. Needs root in the host's own namespaces.
    pub(crate) fn start(nomad: PathBuf) -> Result<Self, BenchError> {
        let socket = listen().map_err(|error| {
            BenchError::Io(
                "the kernel's process events can't be had".to_owned(),
                error.into(),
            )
        })?;
        let watch = Self {
            nomad,
            seen: Arc::default(),
        };
        let shared = watch.clone();
        let _thread = std::thread::spawn(move || {
            hurry();
            shared.follow(&socket);
        });
        Ok(watch)
    }

    /// Says whose CPU time is read with each beginning.
    pub(crate) fn observe(&self, pid: u32) {
        self.lock().observed = pid;
    }

    /// Waits for the QEMU whose arguments or environment have this word.
    pub(crate) fn began(&self, word: &str, limit: Duration) -> Result<Began, BenchError> {
        self.wait(limit, |seen| {
            seen.began
                .iter()
                .find(|began| began.identity.contains(word))
                .cloned()
        })
        .ok_or_else(|| BenchError::Late(format!("the start of QEMU for {word}")))
    }

    /// Waits for the end of a QEMU that began.
    pub(crate) fn ended_ns(&self, pid: u32, limit: Duration) -> Result<u64, BenchError> {
        self.wait(limit, |seen| seen.ended_ns.get(&pid).copied())
            .ok_or_else(|| BenchError::Late(format!("the end of QEMU's process {pid}")))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<T>(&self, limit: Duration, mut look: impl FnMut(&Seen) -> Option<T>) -> Option<T> {
        let mut found = None;
        let _guard = self
            .seen
            .1
            .wait_timeout_while(self.lock(), limit, |seen| {
                found = look(seen);
                found.is_none()
            })
            .unwrap_or_else(PoisonError::into_inner);
        found
    }

    fn follow(&self, socket: &OwnedFd) {
        let mut parents = HashMap::<u32, u32>::new();
        let mut buffer = [0; 4096];
        loop {
            // An overflow (ENOBUFS) loses events; who waits for a lost one says so.
            let Ok((length, _)) = rustix::net::recv(socket, &mut buffer, RecvFlags::empty()) else {
                continue;
            };
            let event = buffer.get(HEADERS_BYTES..length).unwrap_or_default();
            let word = |index: usize| {
                event
                    .get(index * 4..index * 4 + 4)
                    .map_or(0, |b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
            };
            // what, cpu, timestamp (two words), then pids.
            let at_ns = u64::from(word(2)) | u64::from(word(3)) << 32;
            match word(0) {
                FORK if word(6) == word(7) => {
                    parents.insert(word(7), word(5));
                }
                EXEC => self.exec(word(5), at_ns, &parents),
                EXIT if word(4) == word(5) => {
                    parents.remove(&word(5));
                    let mut seen = self.lock();
                    if seen.began.iter().any(|began| began.pid == word(5)) {
                        seen.ended_ns.insert(word(5), at_ns);
                        self.seen.1.notify_all();
                    }
                }
                _ => {}
            }
        }
    }

    fn exec(&self, pid: u32, exec_ns: u64, parents: &HashMap<u32, u32>) {
        // First of all, because it runs.
        let own_cpu_ns = cost::cpu_ns(pid);
        let program = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let observed = self.lock().observed;
        let observed_cpu_ns = cost::cpu_ns(observed);
        if program == self.nomad && cost::arguments(pid).get(1).is_some_and(|word| word == "logmon") {
            self.lock().observed_before_ns = observed_cpu_ns;
        }
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with("qemu-system") {
            return;
        }
        let parent = parents.get(&pid).copied().unwrap_or(0);
        let siblings = parents
            .iter()
            .filter(|(child, of)| **of == parent && **child != pid);
        let helpers = siblings.map(|(child, _)| *child).chain([parent]);
        let helpers_cpu_ns = helpers.map(cost::cpu_ns).sum();
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let identity = cost::arguments(pid).join(" ") + " " + &String::from_utf8_lossy(&environment);
        // Nomad's drivers ask it for its version now and then.
        if identity.contains("--version") {
            return;
        }
        let mut seen = self.lock();
        let began = Began {
            pid,
            exec_ns,
            identity,
            own_cpu_ns,
            helpers_cpu_ns,
            observed_cpu_ns: observed_cpu_ns.saturating_sub(seen.observed_before_ns),
        };
        seen.began.push(began);
        drop(seen);
        self.seen.1.notify_all();
    }
}

/// Gives the calling thread the real-time priority that the program was started with, which threads do not inherit, because
/// its processes must not. Where there is none to be had, `run.sh` has said so.
fn hurry() {
    let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
    let mut chrt = std::process::Command::new("chrt");
    let quiet = std::process::Stdio::null;
    chrt.args(["--reset-on-fork", "--fifo", "--pid", "10", &thread]);
    drop(chrt.stdout(quiet()).stderr(quiet()).status());
}

fn listen() -> rustix::io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(netlink::CONNECTOR),
    )?;
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER_BYTES)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(std::process::id(), CN_PROC))?;
    let mut message = Vec::new();
    let length = u32::try_from(HEADERS_BYTES + 4).unwrap_or(0);
    message.extend(length.to_ne_bytes());
    message.extend(NLMSG_DONE.to_ne_bytes());
    message.extend(0u16.to_ne_bytes());
    // Sequence number and sender, then the connector's id, sequence number and acknowledgement.
    for word in [0, std::process::id(), CN_PROC, CN_PROC, 0, 0] {
        message.extend(word.to_ne_bytes());
    }
    message.extend(4u16.to_ne_bytes());
    message.extend(0u16.to_ne_bytes());
    message.extend(LISTEN.to_ne_bytes());
    rustix::net::send(&socket, &message, SendFlags::empty())?;
    Ok(socket)
}
