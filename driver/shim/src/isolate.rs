//! How does a new process lose sight of the host?
//!
//! [`prepare`] opens and allocates in the parent; the rest are the child's steps, system calls only, in the order in which
//! [`crate::launch`] takes them.

#![expect(unsafe_code, reason = "between fork and exec there are only raw system calls")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use seccompiler::BpfProgram;
use steppe_vm::plan::{Isolation, Kernel, Network, Visible};

use crate::filter::{self, Secret};

/// The newest Landlock that the rules below were written for. A kernel with an older one does what it knows.
const LANDLOCK: ABI = ABI::V6;

/// Where the new root is put together: a directory of every host in which nothing lies that QEMU needs.
const BASE: &std::ffi::CStr = c"/sys";

/// What the process may be told the host is called.
const HOST_NAME: &std::ffi::CStr = c"microvm";

/// Why a process could not be isolated.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IsolateError {
    /// Something of the host that the program needs can't be opened.
    #[error("{path}, which the program is to see, can't be opened")]
    Visible {
        path: PathBuf,
        #[source]
        source: Errno,
    },
    /// A path has a NUL byte.
    #[error("a path of the program's root contains a NUL byte")]
    Path(#[from] std::ffi::NulError),
    /// Landlock refused its rules.
    #[error("Landlock's rules can't be made")]
    Landlock(#[from] RulesetError),
    /// The kernel has no Landlock, and the plan wants it.
    #[error("this kernel has no Landlock")]
    NoLandlock,
    /// A filter can't be made.
    #[error("the filter of system calls can't be made")]
    Filter(#[from] seccompiler::BackendError),
}

/// What the child's steps need.
#[derive(Debug)]
pub(crate) struct Isolated {
    root: Option<Root>,
    /// Landlock's rules.
    pub(crate) landlock: Option<OwnedFd>,
    filter: Option<BpfProgram>,
}

#[derive(Debug)]
struct Root {
    /// Namespaces to make.
    unshare: libc::c_int,
    /// A network namespace to enter.
    network: Option<OwnedFd>,
    steps: Vec<RootStep>,
}

/// A step of putting the new root together, with paths relative to it.
#[derive(Debug)]
enum RootStep {
    Directory(CString),
    File(CString),
    Link { target: CString, path: CString },
    Bind { source: CString, path: CString },
}

/// Asks for the interface's version instead of making rules (linux/landlock.h: `LANDLOCK_CREATE_RULESET_VERSION`).
const LANDLOCK_VERSION: u32 = 1;

/// Namespaces that every isolated process gets.
const NAMESPACES: libc::c_int = libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;

/// What this kernel can do for who we are, found by doing it: the calling process is isolated afterwards, as far as it can be.
pub(crate) fn kernel() -> Kernel {
    // SAFETY: a system call on numbers.
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0,
            LANDLOCK_VERSION,
        )
    };
    let abi = u32::try_from(abi).unwrap_or(0);
    let alone = |part: &dyn Fn(&mut Isolation)| {
        let mut isolation = Isolation {
            namespaces: false,
            landlock: false,
            seccomp: false,
            network: Network::None,
            root: vec![Visible::Device("/dev/null".into())],
        };
        part(&mut isolation);
        prepare(&isolation, &[], None, [0; 3]).ok()
    };
    let landlock = alone(&|isolation| isolation.landlock = true);
    let root = alone(&|isolation| isolation.namespaces = true);
    let filter = alone(&|isolation| isolation.seccomp = true);
    // SAFETY: system calls only; this program has one thread.
    unsafe {
        let namespaces = root.is_some_and(|isolated| isolated.enter_root().is_ok());
        let landlock = landlock.is_some_and(|isolated| isolated.enter_landlock().is_ok());
        let seccomp = filter.is_some_and(|isolated| isolated.enter_filter().is_ok());
        Kernel {
            namespaces,
            landlock_abi: if landlock { abi } else { 0 },
            seccomp,
        }
    }
}

/// Opens and allocates what the steps need. `own` are open files that the program opens once more by their numbers;
/// `network` is an empty network namespace, where the parent has one.
pub(crate) fn prepare(
    isolation: &Isolation,
    own: &[&OwnedFd],
    network: Option<OwnedFd>,
    secret: Secret,
) -> Result<Isolated, IsolateError> {
    Ok(Isolated {
        root: isolation
            .namespaces
            .then(|| root(isolation, network))
            .transpose()?,
        landlock: isolation.landlock.then(|| landlock(isolation, own)).transpose()?,
        filter: isolation
            .seccomp
            .then(|| filter::qemu(secret, isolation.network))
            .transpose()?,
    })
}

fn root(isolation: &Isolation, network: Option<OwnedFd>) -> Result<Root, IsolateError> {
    let mut unshare = NAMESPACES;
    let network = match isolation.network {
        Network::Tcp | Network::Host => None,
        Network::None => {
            if network.is_none() {
                unshare |= libc::CLONE_NEWNET;
            }
            network
        }
    };
    // The program's own descriptors as files; without /proc they are nowhere else.
    let mut steps = vec![
        RootStep::Directory(c"dev".to_owned()),
        RootStep::Directory(c"dev/fd".to_owned()),
        RootStep::Bind {
            source: c"/proc/self/fd".to_owned(),
            path: c"dev/fd".to_owned(),
        },
    ];
    let mut made: Vec<&Path> = vec![Path::new("/dev")];
    let mut placed: Vec<&Path> = vec![Path::new("/dev/fd")];
    let mut visible: Vec<&Visible> = isolation.root.iter().collect();
    visible.sort_by_key(|visible| visible.path().components().count());
    for visible in visible {
        let path = visible.path();
        // What lies beneath something that is there already is there with it; making it would write to the host's.
        if placed.iter().any(|placed| path.starts_with(placed)) {
            continue;
        }
        let parents = path
            .ancestors()
            .skip(1)
            .filter(|parent| parent.parent().is_some());
        for parent in parents.collect::<Vec<_>>().into_iter().rev() {
            if !made.contains(&parent) {
                steps.push(RootStep::Directory(relative(parent)?));
                made.push(parent);
            }
        }
        if let Visible::Link { target, .. } = visible {
            steps.push(RootStep::Link {
                target: CString::new(target.as_os_str().as_bytes())?,
                path: relative(path)?,
            });
        } else {
            let (kind, _) = open(path)?;
            steps.push(match kind {
                FileType::Directory => RootStep::Directory(relative(path)?),
                _ => RootStep::File(relative(path)?),
            });
            steps.push(RootStep::Bind {
                source: CString::new(path.as_os_str().as_bytes())?,
                path: relative(path)?,
            });
        }
        placed.push(path);
    }
    Ok(Root {
        unshare,
        network,
        steps,
    })
}

fn relative(path: &Path) -> Result<CString, IsolateError> {
    let path = path.strip_prefix("/").unwrap_or(path);
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn open(path: &Path) -> Result<(FileType, OwnedFd), IsolateError> {
    let failed = |source| IsolateError::Visible {
        path: path.to_owned(),
        source,
    };
    let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let stat = rustix::fs::fstat(&file).map_err(failed)?;
    Ok((FileType::from_raw_mode(stat.st_mode), file))
}

fn landlock(isolation: &Isolation, own: &[&OwnedFd]) -> Result<OwnedFd, IsolateError> {
    let mut ruleset = ruleset(isolation.network == Network::None)?;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    for visible in &isolation.root {
        let access = match visible {
            Visible::Read(_) => read,
            Visible::Execute(_) => read | AccessFs::Execute,
            Visible::Device(_) => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev,
            Visible::Link { .. } => continue,
        };
        let (kind, file) = open(visible.path())?;
        ruleset = ruleset.add_rule(PathBeneath::new(file, of_kind(access, kind)))?;
    }
    for file in own {
        ruleset = ruleset.add_rule(PathBeneath::new(*file, AccessFs::ReadFile))?;
    }
    Option::from(ruleset).ok_or(IsolateError::NoLandlock)
}

/// A directory's rights mean nothing for a file, and the kernel refuses them there.
fn of_kind(access: BitFlags<AccessFs>, kind: FileType) -> BitFlags<AccessFs> {
    if kind == FileType::Directory {
        access
    } else {
        access & AccessFs::from_file(LANDLOCK)
    }
}

/// Rules that refuse everything to do with files, and to one who has no network, ports too; abstract sockets and signals
/// of those outside in any case.
fn ruleset(no_network: bool) -> Result<RulesetCreated, IsolateError> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?;
    if no_network {
        ruleset = ruleset.handle_access(AccessNet::from_all(LANDLOCK))?;
    }
    Ok(ruleset.create()?)
}

/// Takes every file from the calling process, for good, but what lies beneath one directory, for reading and writing, and
/// beneath others, for reading.
pub(crate) fn restrict_self(own: Option<&Path>, others: &[PathBuf]) -> Result<(), IsolateError> {
    // No scopes: a process that can't signal can't end its children by its own death either.
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .create()?;
    let all = AccessFs::from_all(LANDLOCK) & !AccessFs::Execute;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let own = own.map(|path| (path, all));
    for (path, access) in own
        .into_iter()
        .chain(others.iter().map(|path| (path.as_path(), read)))
    {
        let (kind, file) = open(path)?;
        ruleset = ruleset.add_rule(PathBeneath::new(file, of_kind(access, kind)))?;
    }
    let _status = ruleset.restrict_self()?;
    Ok(())
}

impl Isolated {
    /// The child's own namespaces and root. As root, and before its limits.
    ///
    /// # Safety
    /// To be called between fork and exec: system calls only.
    pub(crate) unsafe fn enter_root(&self) -> Result<(), i32> {
        let Some(root) = &self.root else { return Ok(()) };
        // SAFETY: system calls on strings and numbers that outlive them.
        unsafe {
            check(libc::unshare(root.unshare))?;
            if let Some(network) = &root.network {
                check(libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET))?;
            }
            check(libc::sethostname(HOST_NAME.as_ptr(), HOST_NAME.count_bytes()))?;
            let none = std::ptr::null();
            // Nothing that is mounted from here on is seen outside.
            check(libc::mount(
                none,
                c"/".as_ptr(),
                none,
                libc::MS_REC | libc::MS_PRIVATE,
                none.cast(),
            ))?;
            let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
            let options = c"mode=755,size=64k".as_ptr().cast();
            check(libc::mount(
                c"tmpfs".as_ptr(),
                BASE.as_ptr(),
                c"tmpfs".as_ptr(),
                flags,
                options,
            ))?;
            check(libc::chdir(BASE.as_ptr()))?;
            for step in &root.steps {
                take(step)?;
            }
            // All of it at once: for reading, and no program in it gives privileges.
            const ATTRIBUTES: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID;
            let attributes: [u64; 4] = [ATTRIBUTES, 0, 0, 0];
            let done = libc::syscall(
                libc::SYS_mount_setattr,
                libc::AT_FDCWD,
                c".".as_ptr(),
                libc::AT_RECURSIVE,
                attributes.as_ptr(),
                size_of_val(&attributes),
            );
            if done != 0 {
                return Err(errno());
            }
            // The old root is put over the new one, and taken away from there.
            let pivoted = libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr());
            if pivoted != 0 {
                return Err(errno());
            }
            check(libc::umount2(c".".as_ptr(), libc::MNT_DETACH))?;
            check(libc::chdir(c"/".as_ptr()))
        }
    }

    /// The child's rules for files. After the change of user and without new privileges: a domain can't mount any more.
    ///
    /// # Safety
    /// To be called between fork and exec: system calls only.
    pub(crate) unsafe fn enter_landlock(&self) -> Result<(), i32> {
        let Some(rules) = &self.landlock else {
            return Ok(());
        };
        // SAFETY: a system call on a live descriptor.
        match unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules.as_raw_fd(), 0) } {
            0 => Ok(()),
            _ => Err(errno()),
        }
    }

    /// The child's filter of system calls: last of all but exec, for which it leaves room.
    ///
    /// # Safety
    /// To be called between fork and exec: system calls only.
    pub(crate) unsafe fn enter_filter(&self) -> Result<(), i32> {
        let Some(filter) = &self.filter else { return Ok(()) };
        let program = libc::sock_fprog {
            // linux/filter.h: at most 4096 instructions.
            len: u16::try_from(filter.len()).unwrap_or(u16::MAX),
            filter: filter.as_ptr().cast_mut().cast(),
        };
        // SAFETY: `program` points to the filter's instructions, which have the kernel's layout and outlive the call.
        let set = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0,
                &raw const program,
            )
        };
        if set == 0 { Ok(()) } else { Err(errno()) }
    }
}

/// # Safety
/// To be called between fork and exec, in the new root's directory.
unsafe fn take(step: &RootStep) -> Result<(), i32> {
    const MODE: libc::mode_t = 0o755;
    // SAFETY: system calls on strings that outlive them.
    unsafe {
        match step {
            RootStep::Directory(path) => check(libc::mkdir(path.as_ptr(), MODE)),
            RootStep::File(path) => check(libc::mknod(path.as_ptr(), libc::S_IFREG | 0o644, 0)),
            RootStep::Link { target, path } => check(libc::symlink(target.as_ptr(), path.as_ptr())),
            RootStep::Bind { source, path } => check(libc::mount(
                source.as_ptr(),
                path.as_ptr(),
                std::ptr::null(),
                libc::MS_BIND,
                std::ptr::null(),
            )),
        }
    }
}

fn check(result: libc::c_int) -> Result<(), i32> {
    if result == 0 { Ok(()) } else { Err(errno()) }
}

fn errno() -> i32 {
    // errno is thread-local and readable at any time.
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}
