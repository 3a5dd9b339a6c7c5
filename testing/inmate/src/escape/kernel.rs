//! Which large or seldom used parts of the kernel answer?

use super::targets::{Targets, number};
use super::{Attempt, Outcome, address, any, attempt, done, longs, made, open, permitted, words};
use crate::system::{self, call};

pub(super) const ATTEMPTS: &[Attempt] = &[
    attempt("keyring", |_| {
        // The id of the user's keyring, made if there is none (KEYCTL_GET_KEYRING_ID, KEY_SPEC_USER_KEYRING).
        done(call!(SYS_keyctl, 0, -4, 1))
    }),
    attempt("keyring_session", |_| {
        // A new session keyring (KEYCTL_JOIN_SESSION_KEYRING).
        done(call!(SYS_keyctl, 1, 0))
    }),
    attempt("key_add", |_| {
        // Into the keyring of this process, which ends with it (KEY_SPEC_PROCESS_KEYRING).
        done(call!(SYS_add_key, c"user", c"steppe-inmate", b"x", 1, -2))
    }),
    attempt("key_request", |_| {
        permitted(
            call!(SYS_request_key, c"user", c"steppe-inmate-none", 0, 0),
            &[libc::ENOKEY],
        )
    }),
    attempt("bpf_map", |_| {
        // An array of one small element (BPF_MAP_CREATE).
        let map = words(&[2, 4, 4, 1]);
        made(call!(SYS_bpf, 0, &map, map.len()))
    }),
    attempt("bpf_program", |_| {
        // r0 = 0; exit.
        let program = longs(&[0xb7, 0x95]);
        // A socket filter of two instructions (BPF_PROG_LOAD).
        let load = [
            words(&[1, 2]),
            longs(&[address(&program), address(c"GPL".to_bytes_with_nul())]),
            vec![0; 24],
        ]
        .concat();
        made(call!(SYS_bpf, 5, &load, load.len()))
    }),
    attempt("performance_event", |_| {
        // struct perf_event_attr of a clock of this process alone, kernel and hypervisor left out.
        let mut event = words(&[1, 64]);
        event.resize(40, 0);
        event.extend(longs(&[1 << 5 | 1 << 6]));
        event.resize(64, 0);
        made(call!(SYS_perf_event_open, &event, 0, -1, -1, 0))
    }),
    attempt("io_uring", |_| {
        let mut parameters = [0; 120];
        made(call!(SYS_io_uring_setup, 1, &mut parameters))
    }),
    attempt("fault_handler", |_| {
        // For faults of user mode only, which nobody needs a capability for.
        made(call!(SYS_userfaultfd, libc::O_CLOEXEC | 1))
    }),
    attempt("file_watch", |_| {
        // fanotify, by file ids (FAN_REPORT_FID), which nobody needs a capability for.
        made(call!(SYS_fanotify_init, 0x201, libc::O_RDONLY))
    }),
    attempt("huge_page_file", |_| {
        // Of the host's pool, which no memory limit of a VM counts.
        made(call!(
            SYS_memfd_create,
            c"inmate",
            libc::MFD_HUGETLB | libc::MFD_CLOEXEC
        ))
    }),
    attempt("huge_page_memory", |_| {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;
        // The pool may be empty.
        permitted(
            call!(SYS_mmap, 0, 2 << 20, libc::PROT_READ, flags, -1, 0),
            &[libc::ENOMEM],
        )
    }),
    attempt("sync_every_disk", |_| done(call!(SYS_sync))),
    attempt("open_by_handle", |_| open_by_handle()),
    attempt("personality", |_| {
        done(call!(SYS_personality, libc::ADDR_NO_RANDOMIZE))
    }),
    attempt("port_level", |_| done(call!(SYS_iopl, 3))),
    attempt("port_permission", |_| done(call!(SYS_ioperm, 0x80, 1, 1))),
    attempt("local_descriptor_table", |_| {
        // An entry that is empty: not present, and read only.
        let entry = words(&[0, 0, 0, 1 << 5 | 1 << 3]);
        done(call!(SYS_modify_ldt, 1, &entry, entry.len()))
    }),
    attempt("swap_on", |_| {
        permitted(call!(SYS_swapon, NOWHERE, 0), &[libc::ENOENT, libc::EINVAL])
    }),
    attempt("swap_off", |_| {
        permitted(call!(SYS_swapoff, NOWHERE), &[libc::ENOENT, libc::EINVAL])
    }),
    attempt("reboot", |_| {
        // Without the numbers that it takes to mean it.
        permitted(call!(SYS_reboot, 0, 0, 0, 0), &[libc::EINVAL])
    }),
    attempt("kexec_load", |_| {
        permitted(call!(SYS_kexec_load, 0, 0, 0, -1), &[libc::EINVAL])
    }),
    attempt("kexec_file", |_| {
        permitted(
            call!(SYS_kexec_file_load, -1, -1, 0, 0, 0),
            &[libc::EBADF, libc::EINVAL],
        )
    }),
    attempt("module_load", |_| {
        permitted(
            call!(SYS_init_module, b"none", 4, c""),
            &[libc::ENOEXEC, libc::EINVAL],
        )
    }),
    attempt("module_load_file", |_| {
        permitted(call!(SYS_finit_module, -1, c"", 0), &[libc::EBADF])
    }),
    attempt("module_unload", |_| {
        permitted(
            call!(SYS_delete_module, c"steppe_inmate_none", libc::O_NONBLOCK),
            &[libc::ENOENT],
        )
    }),
    attempt("time_zone", |_| {
        let mut zone = [0; 8];
        call!(SYS_gettimeofday, 0, &mut zone)?;
        done(call!(SYS_settimeofday, 0, &zone))
    }),
    attempt("clock_set", |_| {
        let mut now = [0; 16];
        call!(SYS_clock_gettime, libc::CLOCK_REALTIME, &mut now)?;
        done(call!(SYS_clock_settime, libc::CLOCK_REALTIME, &now))
    }),
    attempt("clock_rate", |_| {
        let mut state = [0; 208];
        call!(SYS_adjtimex, &mut state)?;
        // The length of a tick (ADJ_TICK), as it is.
        state[..4].copy_from_slice(&0x4000_u32.to_ne_bytes());
        done(call!(SYS_adjtimex, &mut state))
    }),
    attempt("host_name", |_| {
        let name = host_name(1)?;
        done(call!(SYS_sethostname, &name, name.len()))
    }),
    attempt("domain_name", |_| {
        let name = host_name(5)?;
        done(call!(SYS_setdomainname, &name, name.len()))
    }),
    attempt("kernel_log", |_| {
        let mut room = [0; 256];
        // Reads the last of it (SYSLOG_ACTION_READ_ALL).
        done(call!(SYS_syslog, 3, &mut room, 256))
    }),
    attempt("accounting", |_| {
        permitted(call!(SYS_acct, NOWHERE), &[libc::ENOENT])
    }),
    attempt("terminal_hangup", |_| done(call!(SYS_vhangup))),
    attempt("terminal_input", |_| type_a_key(libc::TIOCSTI)),
    attempt("terminal_input_wide", |_| {
        // The kernel looks at the lower half of a request only: so must whoever refuses it.
        type_a_key(1 << 32 | libc::TIOCSTI)
    }),
    attempt("terminal_selection", |_| {
        // Asks for the state of shift (TIOCLINUX), on a virtual console where there is one.
        let console = open(c"/dev/tty0", libc::O_RDWR);
        let console = console.as_ref().map_or(0, number);
        done(call!(SYS_ioctl, console, libc::TIOCLINUX, &mut [6_u8; 1]))
    }),
    attempt("memory_map_fields", |_| {
        // The program break at an address where none can be (PR_SET_MM, PR_SET_MM_START_BRK).
        permitted(call!(SYS_prctl, libc::PR_SET_MM, 6, 0, 0, 0), &[libc::EINVAL])
    }),
    attempt("outlive_monitor", |_| {
        done(call!(SYS_prctl, libc::PR_SET_PDEATHSIG, 0, 0, 0, 0))
    }),
];

const NOWHERE: &std::ffi::CStr = c"/steppe-inmate-none";

/// A file by its number instead of its name. Where no number can be asked for, that of a root folder is guessed.
fn open_by_handle() -> Outcome {
    // struct file_handle: room, kind, then the handle itself: inode 2, first generation.
    let mut handle = words(&[128, 0]);
    handle.resize(8 + 128, 0);
    let mut mount = [0; 4];
    let asked = call!(
        SYS_name_to_handle_at,
        libc::AT_FDCWD,
        c"/",
        &mut handle[..],
        &mut mount,
        0
    );
    if asked.is_err() {
        handle = words(&[8, 1, 2, 0]);
    }
    made(call!(
        SYS_open_by_handle_at,
        libc::AT_FDCWD,
        &handle,
        libc::O_RDONLY | libc::O_CLOEXEC
    ))
}

/// A name of struct utsname, which has six of 65 bytes.
fn host_name(index: usize) -> Result<Vec<u8>, system::Errno> {
    let mut names = [0; 6 * 65];
    call!(SYS_uname, &mut names)?;
    let name = names.get(index * 65..(index + 1) * 65).unwrap_or_default();
    Ok(name.iter().copied().take_while(|byte| *byte != 0).collect())
}

/// Types into this process's terminal, or into any that it has open.
fn type_a_key(request: libc::Ioctl) -> Outcome {
    let terminal = open(c"/dev/tty", libc::O_RDWR);
    let own = terminal.as_ref().map(|terminal| i64::from(number(terminal)));
    let descriptors = own.into_iter().chain(Targets::every_descriptor());
    any(descriptors, |descriptor| {
        done(call!(SYS_ioctl, descriptor, request, b" "))
    })
}
