//! What does the root process of a VM do from its start to its exit record?
//!
//! The monitor opens what the plan names, forks the supervisor and QEMU, and waits. It parses nothing that a guest could
//! have written. It ends with its task: QEMU dead, record written, logs read out.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal, WaitOptions};
use steppe_vm::exit::{ExitRecord, WaitStatus};
use steppe_vm::frame::{Fact, Seen, Wish};
use steppe_vm::plan::LaunchPlan;

use crate::confine::{self, ConfineError};
use crate::exit_file::ExitFile;
use crate::launch::{self, Channels, LaunchError, Prepared};
use crate::link;
use crate::oom;
use crate::supervise;

/// How long the supervisor may take to tell what it saw after QEMU ended. It only empties buffers, but a host may be busy.
const SEEN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long QEMU may take to end in order after a signal told this process to: it writes its disks out. A shutdown of
/// the host waits much longer (systemd: 90 s).
const TERMINATE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the supervisor may hold the logs open for their reader or for a successor, and a little more.
const SUPERVISOR_END_TIMEOUT: Duration = Duration::from_secs(35);

/// Pending connections of the control socket: the plugin and a person or two.
const CONTROL_BACKLOG: i32 = 8;

/// What surrounds a plan when the plugin runs it; by hand, most of it is absent.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// Directory for the exit record.
    pub(crate) record_directory: Option<PathBuf>,
    /// Path of the control socket.
    pub(crate) control: Option<PathBuf>,
    /// A locked file: held by the monitor alone, so whoever can lock it knows that the monitor, and with it everything
    /// else of this VM, is gone. Its text is the monitor's process id, so nobody without privilege may write to it.
    pub(crate) lock: Option<OwnedFd>,
    /// A connection that is there already; the VM isn't started for good before it said Continue.
    pub(crate) client: Option<OwnedFd>,
    /// Where the console goes.
    pub(crate) stdout: OwnedFd,
    /// Where QEMU's messages go.
    pub(crate) stderr: OwnedFd,
    /// User of the supervisor.
    pub(crate) supervisor_uid: u32,
    /// Control group leaves for QEMU.
    pub(crate) vm_cgroups: Vec<PathBuf>,
    /// Control group leaves for the shim itself.
    pub(crate) shim_cgroups: Vec<PathBuf>,
    /// An empty network namespace for QEMU; without one, it gets a new one.
    pub(crate) network: Option<OwnedFd>,
    /// Let the guest run as soon as QEMU answers.
    pub(crate) continue_at_once: bool,
}

/// Why a VM could not be run to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MonitorError {
    /// Something could not be set up, or QEMU could not be executed.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// This process can't give up what it doesn't need any more.
    #[error("the monitor can't be confined")]
    Confine(#[from] ConfineError),
    /// A log named by the plugin is no FIFO and not the null device.
    #[error("log {0} is neither a FIFO nor /dev/null")]
    Log(PathBuf),
    /// A path can't be used.
    #[error("{what} {path} failed")]
    Path {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: Errno,
    },
    /// The end of the VM could not be provided for, or not be written down.
    #[error("the exit record in {path} can't be written")]
    Room {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A system call failed.
    #[error("{what} failed")]
    System {
        what: &'static str,
        #[source]
        source: Errno,
    },
}

fn system(what: &'static str) -> impl FnOnce(Errno) -> MonitorError {
    move |source| MonitorError::System { what, source }
}

/// Opens one of Nomad's log FIFOs: for reading too, so that it never breaks when its reader goes and comes, and never
/// through a link that a task may have put in its place.
pub(crate) fn open_log(path: &Path) -> Result<OwnedFd, MonitorError> {
    let failed = |source| match source {
        // A link in its place.
        Errno::LOOP => MonitorError::Log(path.to_owned()),
        source => MonitorError::Path {
            what: "opening log",
            path: path.to_owned(),
            source,
        },
    };
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY;
    let log = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
    let stat = rustix::fs::fstat(&log).map_err(failed)?;
    // Nomad gives the null device where a job has its logs disabled: major 1, minor 3.
    let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) == (1, 3);
    if is_null || FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
        return Ok(log);
    }
    Err(MonitorError::Log(path.to_owned()))
}

/// Runs a VM to its end. In the supervisor's process this never returns.
///
/// `teller` is a second descriptor of the client's connection, for failures before QEMU runs; it is closed once it does.
pub(crate) fn run(
    plan: &LaunchPlan,
    surroundings: Surroundings,
    teller: &mut Option<File>,
) -> Result<ExitRecord, MonitorError> {
    // What tests stop at: the task's key is the name of its directory.
    let reach = |point: &str| {
        if let Some(name) = surroundings.record_directory.as_deref().and_then(Path::file_name) {
            steppe_points::reach(point, &name.to_string_lossy());
        }
    };
    confine::has_power(!plan.cpus.is_empty())?;
    reach("shim.cgroups.before");
    for leaf in &surroundings.shim_cgroups {
        let tasks = launch::open_cgroup(leaf)?;
        let _written = rustix::io::write(&tasks, b"0").map_err(|source| MonitorError::Path {
            what: "joining control group",
            path: leaf.clone(),
            source,
        })?;
    }
    reach("shim.cgroups.after");
    let directory = surroundings.record_directory.as_deref();
    let exit_file = directory
        .map(ExitFile::reserve)
        .transpose()
        .map_err(|source| MonitorError::Room {
            path: directory.unwrap_or(Path::new("")).to_owned(),
            source,
        })?;
    let (qmp, qemu_qmp) = stream_pair()?;
    let (console, qemu_console) = stream_pair()?;
    let (messages, qemu_stderr) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(system("pipe"))?;
    let channels = Channels {
        qmp: qemu_qmp,
        console: qemu_console,
        stderr: qemu_stderr,
    };
    let prepared = launch::prepare(plan, channels, &surroundings.vm_cgroups, surroundings.network)?;
    reach("shim.listen.before");
    let listener = surroundings.control.as_deref().map(listen).transpose()?;
    reach("shim.listen.after");
    let signals = launch::catch_signals()?;
    let (link, supervisor_link) = link::pair().map_err(system("socketpair"))?;

    reach("shim.supervisor.before");
    let monitor = rustix::process::getpid();
    let Some((supervisor_pid, supervisor)) = launch::fork_supervisor()? else {
        // In the supervisor: nothing of the plan's files and of the monitor's side stays open here.
        drop((
            prepared,
            link,
            surroundings.lock,
            teller.take(),
            exit_file,
            signals,
        ));
        supervise::main(supervise::Inherited {
            monitor,
            uid: surroundings.supervisor_uid,
            link: supervisor_link,
            qmp,
            console,
            messages,
            stdout: surroundings.stdout,
            stderr: surroundings.stderr,
            listener,
            client: surroundings.client,
            continue_at_once: surroundings.continue_at_once,
            ready: plan.ready.as_ref(),
            cpus: &plan.cpus,
            isolation: plan.isolation.as_ref(),
        });
    };
    reach("shim.supervisor.after");
    drop((supervisor_link, qmp, console, messages, listener));
    drop((surroundings.stdout, surroundings.stderr, surroundings.client));
    let helper = Helper {
        pid: supervisor_pid,
        pidfd: supervisor,
        link,
    };
    let machine = Machine {
        plan,
        record_directory: directory,
        vm_cgroups: &surroundings.vm_cgroups,
    };
    let watched = watch(prepared, &machine, &helper, &signals, teller, &reach);
    if let (Ok(watched), Some(file)) = (&watched, exit_file) {
        reach("shim.exit-record.before");
        // A plan of an older release comes from a plugin that reads the records of its own time.
        let record = watched.record.clone().in_version(plan.version);
        // The room was taken at the start; should it fail all the same, those who are connected still learn the end.
        if let Err(source) = file.write(record, &watched.seen.console, &watched.seen.stderr) {
            crate::complain(&MonitorError::Room {
                path: directory.unwrap_or(Path::new("")).to_owned(),
                source,
            });
        }
        reach("shim.exit-record.after");
    }
    helper.tell(Fact::Recorded);
    // Without a QEMU there is nothing that the supervisor would have to bring to an end, and one that stands still won't.
    let timeout = match &watched {
        Ok(Watched { told: true, .. }) => SUPERVISOR_END_TIMEOUT,
        _ => Duration::ZERO,
    };
    reach("shim.end.before");
    helper.end(timeout, &signals);
    reach("shim.end.after");
    watched.map(|watched| watched.record)
}

fn stream_pair() -> Result<(OwnedFd, OwnedFd), MonitorError> {
    // QEMU sets its own end non-blocking; ours must never block the supervisor.
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(system("socketpair"))?;
    rustix::io::ioctl_fionbio(&ours, true).map_err(system("making a socket non-blocking"))?;
    Ok((ours, theirs))
}

fn listen(path: &Path) -> Result<OwnedFd, MonitorError> {
    let failed = |source| MonitorError::Path {
        what: "listening on",
        path: path.to_owned(),
        source,
    };
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
    .map_err(failed)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path).map_err(failed)?).map_err(failed)?;
    rustix::net::listen(&socket, CONTROL_BACKLOG).map_err(failed)?;
    Ok(socket)
}

/// Size of what a signal's descriptor gives for each (`struct signalfd_siginfo`).
const SIGNAL_BYTES: usize = 128;

/// The supervisor as the monitor sees it.
struct Helper {
    pid: Pid,
    pidfd: OwnedFd,
    link: OwnedFd,
}

impl Helper {
    fn tell(&self, fact: Fact) {
        // A supervisor that is gone is noticed by its pidfd.
        let _ = link::send_fact(&self.link, fact);
    }

    /// Lets the supervisor empty the logs, then makes sure that it is gone. A signal that comes now means that there is no
    /// time; one that ended QEMU has had its effect.
    fn end(self, timeout: Duration, signals: &OwnedFd) {
        let mut taken = [0; SIGNAL_BYTES];
        while rustix::io::read(signals, &mut taken).is_ok_and(|length| length > 0) {}
        if !wait_readable(
            &[self.pidfd.as_fd(), signals.as_fd()],
            Some(Instant::now() + timeout),
        )[0]
        {
            let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        }
        let _ = rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(self.pid), WaitOptions::empty()));
    }
}

/// A QEMU's life as the monitor saw it.
struct Watched {
    record: ExitRecord,
    seen: Seen,
    /// Whether the supervisor told what it saw.
    told: bool,
}

/// What the monitor has to know of the machine that it watches.
struct Machine<'a> {
    plan: &'a LaunchPlan,
    record_directory: Option<&'a Path>,
    vm_cgroups: &'a [PathBuf],
}

impl Machine<'_> {
    /// Gives up what is of no more use to this process once QEMU was executed.
    fn confine(&self) -> Result<(), ConfineError> {
        confine::monitor(
            self.plan.isolation.as_ref(),
            self.record_directory,
            self.vm_cgroups,
            !self.plan.cpus.is_empty(),
        )
    }

    /// Lets one of QEMU's threads run on one of the plan's processors only; the kernel's error number if it can't be.
    fn pin(&self, qemu: Pid, thread: i32, index: u16) -> i32 {
        let Some(cpu) = self.plan.cpus.get(usize::from(index)) else {
            return Errno::INVAL.raw_os_error();
        };
        // The supervisor's word is not believed: a thread of anybody else is nobody's business here.
        let thread = Pid::from_raw(thread).filter(|thread| launch::is_thread_of(qemu, *thread));
        let Some(thread) = thread else {
            return Errno::SRCH.raw_os_error();
        };
        let mut cpus = rustix::thread::CpuSet::new();
        // The plan's check has made sure that the number is one of a set's.
        cpus.set(usize::try_from(*cpu).unwrap_or_default());
        match rustix::thread::sched_setaffinity(Some(thread), &cpus) {
            Ok(()) => 0,
            Err(error) => error.raw_os_error(),
        }
    }
}

/// From QEMU's exec to its end: what there is to record of it, and what the supervisor saw.
fn watch(
    prepared: Prepared,
    machine: &Machine<'_>,
    helper: &Helper,
    signals: &OwnedFd,
    teller: &mut Option<File>,
    reach: &dyn Fn(&str),
) -> Result<Watched, MonitorError> {
    reach("shim.execute.before");
    let (qemu_pid, qemu) = launch::spawn(&prepared)?;
    // QEMU's locks on its disks belong to the open files: our copies must not keep them alive.
    drop(prepared);
    if let Err(error) = machine.confine() {
        // Nothing has run yet that would be worth to be kept.
        kill(&qemu);
        let _status = wait_status(qemu_pid);
        return Err(error.into());
    }
    drop(teller.take());
    helper.tell(Fact::Executed {
        pid: qemu_pid.as_raw_nonzero().get(),
    });
    reach("shim.execute.after");

    let ended = wait_for_end(qemu_pid, &qemu, machine, helper, signals);
    let supervised = ended.supervised;
    let status = wait_status(qemu_pid);
    let (ended_at_unix_ns, oom) = (unix_ns(), oom::happened(machine.vm_cgroups));
    helper.tell(Fact::Ended {
        status,
        at_unix_ns: ended_at_unix_ns,
        oom,
    });
    let seen = if supervised { receive_seen(helper) } else { None };
    let status = match (&seen, status) {
        // shim-lost: where QEMU was killed because nobody spoke for it, how it ended is our own doing and says nothing.
        _ if !supervised => WaitStatus::Unknown,
        // A status means something only together with what QMP said before it.
        (None, WaitStatus::Exited(_)) => WaitStatus::Unknown,
        // So does a kill of our own.
        (None, WaitStatus::Signaled(_)) if ended.killed => WaitStatus::Unknown,
        (_, status) => status,
    };
    let told = seen.is_some();
    let seen = seen.unwrap_or(Seen {
        started: true,
        ..Seen::default()
    });
    let record = seen.record(status, oom, ended_at_unix_ns);
    Ok(Watched { record, seen, told })
}

/// What the monitor knows of a QEMU's end.
struct End {
    /// Whether the supervisor was there to see it.
    supervised: bool,
    /// Whether the monitor itself killed it.
    killed: bool,
}

/// Waits until QEMU is dead.
fn wait_for_end(pid: Pid, qemu: &OwnedFd, machine: &Machine<'_>, helper: &Helper, signals: &OwnedFd) -> End {
    let mut terminated_at: Option<Instant> = None;
    let mut killed = false;
    loop {
        let deadline = terminated_at.map(|at| at + TERMINATE_TIMEOUT).filter(|_| !killed);
        let watched = [
            qemu.as_fd(),
            helper.pidfd.as_fd(),
            helper.link.as_fd(),
            signals.as_fd(),
        ];
        // Once is enough: a signal that was seen is not waited for again.
        let count = if terminated_at.is_some() { 3 } else { 4 };
        let ready = wait_readable(&watched[..count], deadline);
        let mut supervised = !ready[1];
        if ready[2] {
            match link::receive_wish(&helper.link) {
                Ok(Some(Wish::Kill)) => {
                    kill(qemu);
                    killed = true;
                }
                Ok(Some(Wish::Pin { thread, index })) => helper.tell(Fact::Pinned {
                    errno: machine.pin(pid, thread, index),
                }),
                Ok(Some(Wish::Seen(_))) | Err(Errno::AGAIN | Errno::INTR) => {}
                Ok(None) | Err(_) => supervised = false,
            }
        }
        if !supervised {
            // Nobody speaks for this VM any more.
            kill(qemu);
            let _gone = wait_readable(&[qemu.as_fd()], None);
            killed = true;
        }
        if ready[0] || !supervised {
            return End { supervised, killed };
        }
        if ready.get(3) == Some(&true) {
            // The host is shut down, or somebody wants this VM to end: QEMU writes its disks out and says why it ends.
            let _ = rustix::process::pidfd_send_signal(qemu, Signal::TERM);
            terminated_at = Some(Instant::now());
        } else if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            kill(qemu);
            killed = true;
        }
    }
}

fn kill(pidfd: &OwnedFd) {
    // The only failure is a process that ended just now, which is what was wanted.
    let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
}

fn wait_status(pid: Pid) -> WaitStatus {
    match rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(pid), WaitOptions::empty())) {
        Ok(Some((_, status))) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => WaitStatus::Exited(code),
            (None, Some(signal)) => WaitStatus::Signaled(signal),
            (None, None) => WaitStatus::Unknown,
        },
        _ => WaitStatus::Unknown,
    }
}

fn receive_seen(helper: &Helper) -> Option<Seen> {
    let deadline = Instant::now() + SEEN_TIMEOUT;
    loop {
        let ready = wait_readable(&[helper.link.as_fd(), helper.pidfd.as_fd()], Some(deadline));
        if ready[0] {
            match link::receive_wish(&helper.link) {
                Ok(Some(Wish::Seen(seen))) => return Some(seen),
                Ok(Some(Wish::Kill | Wish::Pin { .. })) | Err(Errno::AGAIN | Errno::INTR) => {}
                Ok(None) | Err(_) => return None,
            }
        } else if ready[1] || Instant::now() >= deadline {
            return None;
        }
    }
}

/// Waits until one of the descriptors is readable (or hung up), at most until the deadline; says which are.
fn wait_readable(descriptors: &[BorrowedFd<'_>], deadline: Option<Instant>) -> Vec<bool> {
    let mut polled: Vec<PollFd<'_>> = descriptors
        .iter()
        .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
        .collect();
    loop {
        let timeout = deadline.map(|deadline| timespec(deadline.saturating_duration_since(Instant::now())));
        match rustix::event::poll(&mut polled, timeout.as_ref()) {
            Err(Errno::INTR) => {}
            _ => return polled.iter().map(|fd| !fd.revents().is_empty()).collect(),
        }
    }
}

/// A duration as the kernel takes it.
pub(crate) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

fn unix_ns() -> u64 {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
