//! How does a program get what a unit of systemd says about its system calls?
//!
//! systemd itself is not at hand where checks run. Of its sets of system calls those that a unit forbids are spelled here,
//! after systemd.exec(5); a list of what is allowed isn't.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use rustix::fs::Mode;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use crate::harness::say;

/// The argument that makes this program confine itself and become another: umask, `SystemCallFilter`,
/// `RestrictAddressFamilies`, the program and its arguments follow.
pub(crate) const CONFINED: &str = "--confined";

/// What netd might make of `@privileged`.
const PRIVILEGED: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_capset,
    libc::SYS_chown,
    libc::SYS_chroot,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_mark,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_kexec_load,
    libc::SYS_lchown,
    libc::SYS_open_by_handle_at,
    libc::SYS_pivot_root,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_setdomainname,
    libc::SYS_setfsgid,
    libc::SYS_setfsuid,
    libc::SYS_setgroups,
    libc::SYS_sethostname,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_setreuid,
    libc::SYS_settimeofday,
    libc::SYS_setuid,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_vhangup,
];

/// `@resources`.
const RESOURCES: &[libc::c_long] = &[
    libc::SYS_ioprio_set,
    libc::SYS_mbind,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_prlimit64,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    libc::SYS_set_mempolicy,
    libc::SYS_setpriority,
    libc::SYS_setrlimit,
];

/// `libc`'s number of an address family, by its name in a unit.
fn family(name: &str) -> u64 {
    let number = match name {
        "AF_UNIX" => libc::AF_UNIX,
        "AF_INET" => libc::AF_INET,
        "AF_INET6" => libc::AF_INET6,
        "AF_NETLINK" => libc::AF_NETLINK,
        "AF_PACKET" => libc::AF_PACKET,
        other => panic!("{other} is not known here"),
    };
    u64::try_from(number).expect("families have positive numbers")
}

/// Calls that a unit forbids: what its lines say one after the other, each to allow or, after `~`, to forbid.
fn forbidden(filter: &str) -> Vec<libc::c_long> {
    let mut calls = Vec::new();
    for line in filter.lines() {
        match line.strip_prefix('~') {
            Some(words) => calls.extend(words.split_whitespace().flat_map(calls_of)),
            // The sets that are allowed come first, and allow what nothing here forbids.
            None => {
                let single = line.split_whitespace().filter(|word| !word.starts_with('@'));
                for call in single.flat_map(calls_of) {
                    calls.retain(|forbidden| forbidden != call);
                }
            }
        }
    }
    calls
}

fn calls_of(set: &str) -> &'static [libc::c_long] {
    match set {
        "@privileged" => PRIVILEGED,
        "@resources" => RESOURCES,
        "capset" => &[libc::SYS_capset],
        other => panic!("{other} is not known here"),
    }
}

/// Confines this process, and becomes the program.
pub(crate) fn become_program(words: &[&str]) -> ExitCode {
    let [umask, filter, families, program, arguments @ ..] = words else {
        say("netd-checks: --confined lacks words");
        return ExitCode::from(64);
    };
    let mask = u32::from_str_radix(umask, 8).expect("an umask is octal");
    rustix::process::umask(Mode::from_raw_mode(mask));
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = forbidden(filter)
        .into_iter()
        .map(|call| (call, Vec::new()))
        .collect();
    let others = families.split_whitespace().map(|name| {
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, family(name))
            .expect("system calls have a first argument")
    });
    let rule = SeccompRule::new(others.collect()).expect("there are families");
    rules.insert(libc::SYS_socket, vec![rule]);
    let refused = SeccompAction::Errno(libc::EPERM.cast_unsigned());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, TargetArch::x86_64)
        .expect("the rules are well formed");
    let program_text: BpfProgram = filter.try_into().expect("the rules are few");
    seccompiler::apply_filter(&program_text).expect("a filter can be set with no new privileges");
    let error = Command::new(program).args(arguments).exec();
    panic!("{program} can't be run: {error}");
}
