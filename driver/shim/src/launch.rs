//! In which order does a process become QEMU with exactly what its plan names?
//!
//! Everything that can fail by allocation or path is done before the fork; between fork and exec there are only system
//! calls. With [`crate::isolate`], the part of this program where `unsafe` is needed: fork, exec and what lies between.

#![expect(
    unsafe_code,
    reason = "fork, exec, and the calls between them have no safe form"
)]

use std::ffi::{CString, NulError};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};
use steppe_vm::plan::{Access, DESCRIPTOR_NUMBER_MAX, LaunchPlan, Limits, Place, Source};

use crate::filter::Secret;
use crate::isolate::{self, IsolateError, Isolated};
use crate::{memory, tap};

/// Why a process could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    /// A file of the plan can't be opened.
    #[error("{name}: {path} can't be opened beneath {beneath}")]
    Open {
        name: String,
        path: PathBuf,
        beneath: PathBuf,
        #[source]
        source: Errno,
    },
    /// A file of the plan isn't one.
    #[error("{name}: {path} is not a regular file")]
    NotAFile { name: String, path: PathBuf },
    /// Files can't be copied into memory.
    #[error("{name}: {path} can't be copied into memory for QEMU's user")]
    Copy {
        name: String,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The host has no tap devices, or not for this process.
    #[error(
        "{name}: {} can't be opened, without which there is no tap device",
        tap::DEVICE
    )]
    Tap {
        name: String,
        #[source]
        source: Errno,
    },
    /// A control group can't be joined.
    #[error("control group {path} can't be opened")]
    Cgroup {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// What the process is to be kept from can't be prepared.
    #[error(transparent)]
    Isolate(#[from] IsolateError),
    /// An argument can't be passed on.
    #[error("an argument of the plan contains a NUL byte")]
    Argument(#[from] NulError),
    /// A system call of our own failed.
    #[error("{what} failed")]
    System {
        what: &'static str,
        #[source]
        source: Errno,
    },
    /// The new process failed at a step before it became QEMU.
    #[error("{program}: {step} failed in the new process")]
    Child {
        program: PathBuf,
        step: &'static str,
        #[source]
        source: Errno,
    },
}

/// What the shim itself contributes to QEMU's descriptors.
#[derive(Debug)]
pub(crate) struct Channels {
    pub(crate) qmp: OwnedFd,
    pub(crate) console: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// Everything a new process needs, opened and allocated.
#[derive(Debug)]
pub(crate) struct Prepared {
    program: PathBuf,
    program_c: CString,
    /// What `argv` points to.
    _arguments: Vec<CString>,
    /// Ends in null, as the kernel wants it.
    argv: Vec<*const libc::c_char>,
    /// Empty: nothing but the null.
    envp: Vec<*const libc::c_char>,
    stdin: OwnedFd,
    stderr: OwnedFd,
    /// Our descriptor and its number in the new process.
    descriptors: Vec<(OwnedFd, RawFd)>,
    /// Places in them of tap devices, and which each becomes.
    taps: Vec<(usize, tap::Request)>,
    cgroups: Vec<OwnedFd>,
    limits: Limits,
    /// The processors that it may use, where the plan names any.
    cpus: Option<libc::cpu_set_t>,
    isolated: Option<Isolated>,
    /// What execve must carry to pass the filter.
    secret: Secret,
    uid: u32,
    gid: u32,
}

/// Opens everything the plan names. `network` is an empty network namespace, where there is one already.
pub(crate) fn prepare(
    plan: &LaunchPlan,
    channels: Channels,
    cgroups: &[PathBuf],
    network: Option<OwnedFd>,
) -> Result<Prepared, LaunchError> {
    let mut arguments = vec![CString::new(plan.program.as_os_str().as_bytes())?];
    for argument in &plan.arguments {
        arguments.push(CString::new(argument.as_str())?);
    }
    let program_c = CString::new(plan.program.as_os_str().as_bytes())?;
    let mut argv: Vec<*const libc::c_char> = arguments.iter().map(|argument| argument.as_ptr()).collect();
    argv.push(std::ptr::null());
    let envp: Vec<*const libc::c_char> = vec![std::ptr::null()];
    let (mut qmp, mut console) = (Some(channels.qmp), Some(channels.console));
    let mut descriptors = Vec::with_capacity(plan.descriptors.len());
    // Places in it of files that the program opens once more.
    let mut own = Vec::new();
    let mut taps = Vec::new();
    for descriptor in &plan.descriptors {
        let opened = match &descriptor.source {
            Source::Qmp => qmp.take(),
            Source::Console => console.take(),
            Source::File {
                beneath,
                path,
                access,
            } => {
                let (file, is_memory) = open(&descriptor.name, beneath, path, *access)?;
                if *access == Access::Load && !is_memory {
                    own.push(descriptors.len());
                }
                Some(file)
            }
            Source::Joined { files } => Some(join(&descriptor.name, files)?),
            Source::Tap { name, multi_queue } => {
                taps.push((descriptors.len(), tap::request(name, *multi_queue)));
                let opened = tap::open().map_err(|source| LaunchError::Tap {
                    name: descriptor.name.clone(),
                    source,
                })?;
                Some(opened)
            }
        };
        // The plan's check has made sure that both channels are named once.
        if let Some(opened) = opened {
            descriptors.push((above(opened)?, descriptor.number));
        }
    }
    let secret = random()?;
    let isolated = match &plan.isolation {
        None => None,
        Some(isolation) => {
            let own: Vec<&OwnedFd> = own
                .into_iter()
                .filter_map(|place| descriptors.get(place))
                .map(|(file, _): &(OwnedFd, RawFd)| file)
                .collect();
            let mut isolated = isolate::prepare(isolation, &own, network, secret)?;
            // Needed after the program's descriptors are in their places.
            isolated.landlock = isolated.landlock.map(above).transpose()?;
            Some(isolated)
        }
    };
    Ok(Prepared {
        program: plan.program.clone(),
        program_c,
        _arguments: arguments,
        argv,
        envp,
        stdin: above(open_null()?)?,
        stderr: above(channels.stderr)?,
        descriptors,
        taps,
        cgroups: cgroups
            .iter()
            .map(|leaf| open_cgroup(leaf))
            .collect::<Result<_, _>>()?,
        limits: plan.limits,
        cpus: (!plan.cpus.is_empty()).then(|| cpu_set(&plan.cpus)),
        isolated,
        secret,
        uid: plan.uid,
        gid: plan.gid,
    })
}

/// Numbers that nobody can guess.
fn random() -> Result<Secret, LaunchError> {
    let mut secret = [0; 3];
    // SAFETY: the kernel writes within the bounds given; of so few bytes all or none.
    let length = unsafe { libc::getrandom(secret.as_mut_ptr().cast(), size_of_val(&secret), 0) };
    if usize::try_from(length) == Ok(size_of_val(&secret)) {
        Ok(secret)
    } else {
        Err(system("getrandom")(Errno::AGAIN))
    }
}

/// The kernel's set of these processors.
fn cpu_set(cpus: &[u32]) -> libc::cpu_set_t {
    // SAFETY: a set is a plain array of bits, and the plan's check has made sure that none is beyond its end.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        for cpu in cpus.iter().filter_map(|cpu| usize::try_from(*cpu).ok()) {
            libc::CPU_SET(cpu, &mut set);
        }
        set
    }
}

fn system(what: &'static str) -> impl FnOnce(Errno) -> LaunchError {
    move |source| LaunchError::System { what, source }
}

/// Moves a descriptor above every number a plan may name, so that arranging them never overwrites a source.
fn above(fd: OwnedFd) -> Result<OwnedFd, LaunchError> {
    rustix::io::fcntl_dupfd_cloexec(&fd, DESCRIPTOR_NUMBER_MAX + 1)
        .map_err(system("duplicating a descriptor"))
}

fn open_null() -> Result<OwnedFd, LaunchError> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(system("opening /dev/null"))
}

/// Opens a file of the plan; says whether what was opened is a copy in memory.
fn open(name: &str, beneath: &Path, path: &Path, access: Access) -> Result<(OwnedFd, bool), LaunchError> {
    let failed = |source| LaunchError::Open {
        name: name.to_owned(),
        path: path.to_owned(),
        beneath: beneath.to_owned(),
        source,
    };
    let mode = match access {
        Access::Load | Access::Read => OFlags::RDONLY,
        Access::ReadWrite => OFlags::RDWR,
    };
    let directory = rustix::fs::open(
        beneath,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(failed)?;
    // NONBLOCK: a FIFO in a file's place must not hang us; it has no effect on a regular file.
    let file = rustix::fs::openat2(
        &directory,
        path,
        mode | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
    )
    .map_err(failed)?;
    let stat = rustix::fs::fstat(&file).map_err(failed)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(LaunchError::NotAFile {
            name: name.to_owned(),
            path: path.to_owned(),
        });
    }
    if access == Access::Load && stat.st_mode & Mode::ROTH.as_raw_mode() == 0 {
        let copied = memory::join(name, [file]).map_err(|source| LaunchError::Copy {
            name: name.to_owned(),
            path: path.to_owned(),
            source,
        })?;
        return Ok((copied, true));
    }
    Ok((file, false))
}

/// Copies files of the plan into memory, one behind the other.
fn join(name: &str, files: &[Place]) -> Result<OwnedFd, LaunchError> {
    let opened = |file: &Place| open(name, &file.beneath, &file.path, Access::Read).map(|(file, _)| file);
    let opened: Vec<OwnedFd> = files.iter().map(opened).collect::<Result<_, _>>()?;
    memory::join(name, opened).map_err(|source| LaunchError::Copy {
        name: name.to_owned(),
        path: files.first().map(|file| file.path.clone()).unwrap_or_default(),
        source,
    })
}

/// The file by which a process moves itself into a control group: `tasks` on version 1, where a write to
/// `cgroup.procs` would wait for the whole machine; `cgroup.procs` on version 2, which has no `tasks`.
pub(crate) fn open_cgroup(leaf: &Path) -> Result<OwnedFd, LaunchError> {
    let open = |name| File::options().write(true).open(leaf.join(name));
    open("tasks")
        .or_else(|_| open("cgroup.procs"))
        .map(OwnedFd::from)
        .map_err(|source| LaunchError::Cgroup {
            path: leaf.to_owned(),
            source,
        })
}

/// Steps of the new process, by the number it reports when one fails.
const STEPS: [&str; 12] = [
    "joining its control groups",
    "keeping to its processors",
    "moving to its own namespaces and root",
    "setting its limits",
    "arranging its descriptors",
    "changing its user",
    "opening its tap devices",
    "giving up new privileges",
    "giving up files by Landlock",
    "binding its life to the shim's",
    "giving up system calls by seccomp",
    "executing the program",
];

/// Starts the process: its id, and a descriptor that becomes readable when it ends.
///
/// Must be called from the process's only thread: the new process dies with the *thread* that forked it.
pub(crate) fn spawn(prepared: &Prepared) -> Result<(Pid, OwnedFd), LaunchError> {
    let (report_read, report_write) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(system("pipe"))?;
    let report_write = above(report_write)?;
    let parent = rustix::process::getpid();
    // SAFETY: this program has one thread, so the child's memory is consistent; the child only makes system calls and
    // ends in exec or _exit.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: we are the child of the fork above.
        let (step, errno) = unsafe { become_program(prepared, parent) };
        let mut report = [0; 5];
        report[0] = step;
        report[1..].copy_from_slice(&errno.to_ne_bytes());
        // SAFETY: plain system calls on a live descriptor and buffer; _exit runs no destructor of the parent's.
        unsafe {
            libc::write(report_write.as_raw_fd(), report.as_ptr().cast(), report.len());
            libc::_exit(126)
        }
    }
    let Some(pid) = Pid::from_raw(pid).filter(|_| pid > 0) else {
        return Err(system("fork")(
            Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::AGAIN),
        ));
    };
    drop(report_write);
    let mut report = [0; 5];
    // EOF means that exec has closed the pipe: the program runs.
    if rustix::io::retry_on_intr(|| rustix::io::read(&report_read, &mut report)) == Ok(report.len()) {
        reap(pid);
        let [step, errno @ ..] = report;
        return Err(LaunchError::Child {
            program: prepared.program.clone(),
            step: STEPS.get(usize::from(step)).copied().unwrap_or("an unknown step"),
            source: Errno::from_raw_os_error(i32::from_ne_bytes(errno)),
        });
    }
    // The process can't be reaped before we wait for it, so its id can't have been reused.
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(system("pidfd_open"))?;
    Ok((pid, pidfd))
}

/// Waits for a child that is known to end.
fn reap(pid: Pid) {
    let _ = rustix::io::retry_on_intr(|| {
        rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())
    });
}

/// The child's half, in the only order that works. Returns the failed step and its error number.
///
/// # Safety
/// To be called in a forked child of a single-threaded process.
unsafe fn become_program(prepared: &Prepared, parent: Pid) -> (u8, i32) {
    // SAFETY: system calls on values that outlive them; no allocation, no lock.
    unsafe {
        let mut empty: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut empty);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, std::ptr::null_mut());
        // Rust ignores SIGPIPE, and ignored signals stay ignored over exec.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        // A file at its limit is an error of the disk's, not the end.
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        libc::setsid();
        libc::umask(0o022);
        // An agent that the kernel must not kill would make QEMU unkillable too.
        let adjust = libc::open(
            c"/proc/self/oom_score_adj".as_ptr(),
            libc::O_WRONLY | libc::O_CLOEXEC,
        );
        libc::write(adjust, c"0".as_ptr().cast(), 1);
        for cgroup in &prepared.cgroups {
            if libc::write(cgroup.as_raw_fd(), c"0".as_ptr().cast(), 1) != 1 {
                return (0, errno());
            }
        }
        // Not before: a group that has processors of its own sets them anew.
        if let Some(cpus) = &prepared.cpus
            && libc::sched_setaffinity(0, size_of_val(cpus), cpus) != 0
        {
            return (1, errno());
        }
        if let Some(isolated) = &prepared.isolated
            && let Err(errno) = isolated.enter_root()
        {
            return (2, errno);
        }
        let limits = [
            (libc::RLIMIT_CORE, Some(prepared.limits.core_bytes)),
            (libc::RLIMIT_NOFILE, Some(prepared.limits.open_files)),
            (libc::RLIMIT_NPROC, Some(prepared.limits.processes)),
            (libc::RLIMIT_FSIZE, prepared.limits.file_bytes),
            (libc::RLIMIT_MEMLOCK, prepared.limits.locked_bytes),
        ];
        for (resource, value) in limits {
            let Some(value) = value else { continue };
            let limit = libc::rlimit {
                rlim_cur: value,
                rlim_max: value,
            };
            if libc::setrlimit(resource, &raw const limit) != 0 {
                return (3, errno());
            }
        }
        // Everything is closed at exec but what is put in place afterwards.
        let cloexec = libc::c_int::try_from(libc::CLOSE_RANGE_CLOEXEC).unwrap_or(4);
        if libc::close_range(3, libc::c_uint::MAX, cloexec) != 0 {
            return (4, errno());
        }
        let standard = [(&prepared.stdin, 0), (&prepared.stderr, 1), (&prepared.stderr, 2)];
        let named = prepared.descriptors.iter().map(|(fd, number)| (fd, *number));
        for (fd, number) in standard.into_iter().chain(named) {
            if libc::dup2(fd.as_raw_fd(), number) < 0 {
                return (4, errno());
            }
        }
        // Keys of whoever started us: in a session of its own there are none.
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_JOIN_SESSION_KEYRING,
            std::ptr::null::<libc::c_char>(),
        );
        // Groups first: without the user's power they could not be changed any more.
        if libc::setgroups(0, std::ptr::null()) != 0
            || libc::setresgid(prepared.gid, prepared.gid, prepared.gid) != 0
            || libc::setresuid(prepared.uid, prepared.uid, prepared.uid) != 0
            || drop_capabilities() != 0
        {
            return (5, errno());
        }
        // What belongs to this user needs no power over networks.
        for (place, request) in &prepared.taps {
            if let Some((device, _)) = prepared.descriptors.get(*place)
                && let Err(errno) = tap::attach(device, request)
            {
                return (6, errno);
            }
        }
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return (7, errno());
        }
        if let Some(isolated) = &prepared.isolated
            && let Err(errno) = isolated.enter_landlock()
        {
            return (8, errno);
        }
        // After the change of user, which clears it silently; then look whether the parent was gone before.
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
            return (9, errno());
        }
        if libc::getppid() != parent.as_raw_nonzero().get() {
            return (9, libc::ESRCH);
        }
        if let Some(isolated) = &prepared.isolated
            && let Err(errno) = isolated.enter_filter()
        {
            return (10, errno);
        }
        let [first, second, third] = prepared.secret;
        libc::syscall(
            libc::SYS_execve,
            prepared.program_c.as_ptr(),
            prepared.argv.as_ptr(),
            prepared.envp.as_ptr(),
            first,
            second,
            third,
        );
        (11, errno())
    }
}

/// Asks for an anonymous session keyring (linux/keyctl.h).
const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;

/// Takes every capability from the calling process. A change of user does so too, but not for a process that was started with
/// ambient ones, or with their keeping secured. Returns 0, or not and sets errno.
///
/// # Safety
/// May be called between fork and exec: system calls only.
unsafe fn drop_capabilities() -> libc::c_long {
    /// `_LINUX_CAPABILITY_VERSION_3`, and the calling process.
    const HEADER: [u32; 2] = [0x2008_0522, 0];
    // Effective, permitted and inheritable, twice 32 bits of each.
    let none = [0u32; 6];
    // SAFETY: system calls on arrays of the size that the kernel reads.
    unsafe {
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
        libc::syscall(libc::SYS_capset, HEADER.as_ptr(), none.as_ptr())
    }
}

/// Takes back what the caller's caller may have set for itself and the VM's processes would inherit: real-time scheduling,
/// priorities, an address space that is laid out the same each time. And the chance to ever gain a capability.
pub(crate) fn reset_inherited() {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // SAFETY: plain system calls. Where one is refused, the host's administrator has his reasons; the bounding set ends with
    // the kernel's last capability, and gives nothing to who has not the power to empty it.
    unsafe {
        let parameters: libc::sched_param = std::mem::zeroed();
        libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const parameters);
        libc::setpriority(libc::PRIO_PROCESS, 0, 0);
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, 0);
        libc::personality(0);
        let mut capability = 0;
        while capability <= CAPABILITY_MAX && libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) == 0 {
            capability += 1;
        }
    }
}

/// Closes every descriptor from 3 on but these: whoever started us may have left some open.
pub(crate) fn close_all_but(kept: &[RawFd]) {
    let mut kept: Vec<libc::c_uint> = kept.iter().filter_map(|fd| (*fd).try_into().ok()).collect();
    kept.sort_unstable();
    let mut from = 3;
    for fd in kept.into_iter().filter(|fd| *fd >= 3) {
        if from < fd {
            // SAFETY: nothing in this process has opened a descriptor yet.
            unsafe { libc::close_range(from, fd - 1, 0) };
        }
        from = fd.saturating_add(1);
    }
    // SAFETY: the same.
    unsafe { libc::close_range(from, libc::c_uint::MAX, 0) };
}

/// Whether a thread is one of a process's.
pub(crate) fn is_thread_of(process: Pid, thread: Pid) -> bool {
    // SAFETY: signal 0 is none: the kernel looks whether there is such a thread and no more.
    let found = unsafe {
        libc::syscall(
            libc::SYS_tgkill,
            process.as_raw_nonzero().get(),
            thread.as_raw_nonzero().get(),
            0,
        )
    };
    found == 0
}

/// Highest capability number that a kernel could have.
const CAPABILITY_MAX: libc::c_ulong = 63;

fn errno() -> i32 {
    // errno is thread-local and readable at any time.
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Forks the supervisor: `None` in it, its id and pidfd in the monitor.
///
/// Must be called from the process's only thread.
pub(crate) fn fork_supervisor() -> Result<Option<(Pid, OwnedFd)>, LaunchError> {
    // SAFETY: this program has one thread, so both sides go on with consistent memory.
    let pid = unsafe { libc::fork() };
    match Pid::from_raw(pid) {
        None => Ok(None),
        Some(pid) if pid.as_raw_nonzero().get() > 0 => {
            let pidfd =
                rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(system("pidfd_open"))?;
            Ok(Some((pid, pidfd)))
        }
        Some(_) => Err(system("fork")(
            Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::AGAIN),
        )),
    }
}

/// Gives up root for good: this user, no groups, no capabilities, none to come, no new privileges, dead when the monitor is.
pub(crate) fn become_unprivileged(uid: u32, monitor: Pid) -> Result<(), LaunchError> {
    let id = libc::id_t::from(uid);
    // SAFETY: plain system calls.
    let dropped = unsafe {
        libc::setgroups(0, std::ptr::null()) == 0
            && libc::setresgid(id, id, id) == 0
            && libc::setresuid(id, id, id) == 0
            && drop_capabilities() == 0
    };
    if !dropped {
        return Err(system("giving up root")(
            Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::PERM),
        ));
    }
    rustix::thread::set_no_new_privs(true).map_err(system("giving up new privileges"))?;
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(system("binding the supervisor's life to the monitor's"))?;
    if rustix::process::getppid() != Some(monitor) {
        return Err(system("binding the supervisor's life to the monitor's")(
            Errno::SRCH,
        ));
    }
    Ok(())
}

/// Signals that ask a program to end, as a descriptor that becomes readable; they do nothing else from now on, also in
/// processes forked later (QEMU's child takes that back).
pub(crate) fn catch_signals() -> Result<OwnedFd, LaunchError> {
    // SAFETY: plain system calls on a set of this function's own; the descriptor is new and nobody else's.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            libc::sigaddset(&raw mut set, signal);
        }
        let fd = if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) == 0 {
            libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        } else {
            -1
        };
        if fd < 0 {
            return Err(system("catching signals")(
                Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL),
            ));
        }
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Takes over a descriptor that the parent process passed by its number.
///
/// Returns `None` when there is no open descriptor of this number.
pub(crate) fn inherited(number: RawFd) -> Option<OwnedFd> {
    if number < 3 {
        return None;
    }
    // SAFETY: the number is asked of the kernel right here; main calls this once per number, before anything else opens
    // descriptors, so nothing in this process owns it yet.
    let fd = unsafe {
        if libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) != 0 {
            return None;
        }
        OwnedFd::from_raw_fd(number)
    };
    Some(fd)
}
