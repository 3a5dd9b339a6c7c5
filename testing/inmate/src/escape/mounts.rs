//! Can the view of the host be changed: mounts, roots, namespaces?

use std::ffi::CStr;

use super::targets::{Targets, number};
use super::{Attempt, Outcome, any, attempt, done, longs, made, open, permitted};
use crate::system::{self, call};

pub(super) const ATTEMPTS: &[Attempt] = &[
    attempt("mount_tmpfs", |_| {
        any(PLACES, |place| mount(c"none", place, c"tmpfs", 0))
    }),
    attempt("mount_bind", |_| {
        any(PLACES, |place| mount(c"/", place, c"none", libc::MS_BIND))
    }),
    attempt("mount_proc", |_| {
        any(PLACES, |place| mount(c"proc", place, c"proc", 0))
    }),
    attempt("mount_writable_again", |_| {
        mount(c"none", c"/", c"none", libc::MS_REMOUNT | libc::MS_BIND)
    }),
    attempt("mount_shared", |_| mount(c"none", c"/", c"none", libc::MS_SLAVE)),
    attempt("unmount", |_| {
        any([c"/proc", c"/dev/fd", c"/dev/null", c"/dev", c"/"], |place| {
            done(call!(SYS_umount2, place, libc::MNT_DETACH))
        })
    }),
    attempt("pivot_root", |_| {
        any(PLACES, |place| {
            let _mounted = mount(c"none", place, c"tmpfs", 0);
            done(call!(SYS_pivot_root, place, place))
        })
    }),
    attempt("chroot", |_| done(call!(SYS_chroot, c"/"))),
    attempt("file_system_context", |_| made(call!(SYS_fsopen, c"tmpfs", 1))),
    attempt("file_system_pick", |_| {
        made(call!(SYS_fspick, libc::AT_FDCWD, c"/", 1))
    }),
    attempt("open_tree", |_| {
        // A detached copy, closed at exec.
        made(call!(SYS_open_tree, libc::AT_FDCWD, c"/", 1 | libc::O_CLOEXEC))
    }),
    attempt("open_tree_with_attributes", |_| {
        // A call of Linux 6.15, which the C library has no number for.
        let attributes = longs(&[0x80, 0, 0, 0]);
        let flags = 1 | libc::O_CLOEXEC;
        let tree = system::by_number(
            467,
            &mut [
                libc::AT_FDCWD.into(),
                c"/".into(),
                flags.into(),
                (&attributes).into(),
                attributes.len().into(),
            ],
        );
        made(tree)
    }),
    attempt("mount_attributes", |_| {
        // Access times of directories are not kept (MOUNT_ATTR_NODIRATIME): a flag that changes nothing here.
        let attributes = longs(&[0x80, 0, 0, 0]);
        done(call!(
            SYS_mount_setattr,
            libc::AT_FDCWD,
            c"/",
            0,
            &attributes,
            attributes.len()
        ))
    }),
    attempt("unshare_user", |_| unshare(libc::CLONE_NEWUSER)),
    attempt("unshare_mounts", |_| unshare(libc::CLONE_NEWNS)),
    attempt("unshare_network", |_| unshare(libc::CLONE_NEWNET)),
    attempt("unshare_processes", |_| unshare(libc::CLONE_NEWPID)),
    attempt("unshare_ipc", |_| unshare(libc::CLONE_NEWIPC)),
    attempt("unshare_host_name", |_| unshare(libc::CLONE_NEWUTS)),
    attempt("unshare_cgroups", |_| unshare(libc::CLONE_NEWCGROUP)),
    attempt("unshare_time", |_| unshare(0x80)),
    attempt("clone_user_namespace", |_| clone(libc::CLONE_NEWUSER)),
    attempt("clone_network_namespace", |_| clone(libc::CLONE_NEWNET)),
    attempt("enter_mounts_of_init", |_| {
        enter(c"/proc/1/ns/mnt", libc::CLONE_NEWNS)
    }),
    attempt("enter_network_of_init", |_| {
        enter(c"/proc/1/ns/net", libc::CLONE_NEWNET)
    }),
    attempt("enter_processes_of_init", |_| {
        enter(c"/proc/1/ns/pid", libc::CLONE_NEWPID)
    }),
    attempt("enter_host_name_of_init", |_| {
        enter(c"/proc/1/ns/uts", libc::CLONE_NEWUTS)
    }),
    attempt("enter_nothing", |on| {
        // Whoever finds no namespace's file does not get this far in those before.
        let image = on.image()?;
        permitted(
            call!(SYS_setns, number(&image), libc::CLONE_NEWNET),
            &[libc::EINVAL],
        )
    }),
    attempt("enter_by_process", enter_by_process),
];

const PLACES: [&CStr; 4] = [c"/tmp", c"/dev", c"/usr", c"/"];

fn mount(what: &CStr, place: &CStr, kind: &CStr, flags: libc::c_ulong) -> Outcome {
    done(call!(SYS_mount, what, place, kind, flags, 0))
}

fn unshare(what: i32) -> Outcome {
    done(call!(SYS_unshare, what))
}

/// A child of the kind; it ends at once.
fn clone(what: i32) -> Outcome {
    Ok(system::clone(what | libc::SIGCHLD)?)
}

fn enter(path: &CStr, kind: i32) -> Outcome {
    let namespace = open(path, libc::O_RDONLY)?;
    done(call!(SYS_setns, number(&namespace), kind))
}

/// By a descriptor of the monitor, which needs no file in /proc.
fn enter_by_process(on: &Targets) -> Outcome {
    let pidfd = system::own(call!(SYS_pidfd_open, on.parent(), 0)?)?;
    done(call!(SYS_setns, number(&pidfd), libc::CLONE_NEWNET))
}
