//! Which system calls may QEMU, the supervisor and the monitor still make?
//!
//! QEMU is too large for a list of what it needs: its filter names what it never needs, on top of what its own
//! `-sandbox` refuses. The shim's two processes make few calls, and theirs are listed. A refused call fails with EPERM and
//! ends nothing: a list that misses a rare call must not cost a VM. Only a call by the numbers of another architecture ends
//! its process.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};
use steppe_vm::plan::Network;

/// What the launch's own execve carries in the three registers that the call doesn't use, so that nobody else's passes: random
/// numbers, of which nothing is left once the program is another.
pub(crate) type Secret = [u64; 3];

/// The error of a refused call.
const REFUSED: SeccompAction = SeccompAction::Errno(libc::EPERM.cast_unsigned());

/// Calls that are refused to QEMU whatever their arguments.
const DENIED: &[libc::c_long] = &[
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_process_mrelease,
    libc::SYS_kcmp,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    // More processes, and other programs in them.
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_execveat,
    // Its share of the host.
    libc::SYS_setrlimit,
    libc::SYS_setpriority,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    libc::SYS_ioprio_set,
    // Its user.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    libc::SYS_setsid,
    libc::SYS_setpgid,
    // Its place in the file tree, and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mknod,
    libc::SYS_mknodat,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_fanotify_init,
    // Much code of the kernel's that no part of QEMU uses.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_personality,
    libc::SYS_modify_ldt,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_lookup_dcookie,
    libc::SYS_vhangup,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_sysfs,
    libc::SYS__sysctl,
    libc::SYS_nfsservctl,
    // What others on the host may find: System V's and POSIX's queues and memory.
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semctl,
    libc::SYS_semtimedop,
    libc::SYS_msgget,
    libc::SYS_msgsnd,
    libc::SYS_msgrcv,
    libc::SYS_msgctl,
    libc::SYS_mq_open,
    libc::SYS_mq_unlink,
    // The host as a whole.
    libc::SYS_reboot,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    // All of its disks at once.
    libc::SYS_sync,
    libc::SYS_syncfs,
    // What it is kept from, and what is mounted.
    libc::SYS_capget,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_restrict_self,
    libc::SYS_memfd_secret,
    CACHESTAT,
    STATMOUNT,
    LISTMOUNT,
    LSM_GET_SELF_ATTR,
    LSM_SET_SELF_ATTR,
    LSM_LIST_MODULES,
];

/// System calls that the C library's headers don't name yet (arch/x86/entry/syscalls/syscall_64.tbl).
const CACHESTAT: libc::c_long = 451;
const STATMOUNT: libc::c_long = 457;
const LISTMOUNT: libc::c_long = 458;
const LSM_GET_SELF_ATTR: libc::c_long = 459;
const LSM_SET_SELF_ATTR: libc::c_long = 460;
const LSM_LIST_MODULES: libc::c_long = 461;

/// The highest number that the lists here were made with (mseal). What a kernel adds later, it is to deny knowing.
const HIGHEST: u32 = 462;

/// Flags of clone(2) that make a namespace. Without them and with CLONE_THREAD it makes a thread, which QEMU needs.
const NAMESPACE_FLAGS: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// Options of prctl(2) that would loosen what the launch has set: first of all the bond to the shim's life.
const PRCTL_DENIED: [libc::c_int; 9] = [
    libc::PR_SET_PDEATHSIG,
    libc::PR_SET_KEEPCAPS,
    libc::PR_SET_SECUREBITS,
    libc::PR_SET_MM,
    libc::PR_SET_PTRACER,
    libc::PR_CAP_AMBIENT,
    libc::PR_SET_CHILD_SUBREAPER,
    libc::PR_SCHED_CORE,
    PR_SET_MEMORY_MERGE,
];

/// Lets all memory be merged with others' (linux/prctl.h).
const PR_SET_MEMORY_MERGE: libc::c_int = 67;

/// Requests of ioctl(2) that put words into a terminal's input.
const IOCTL_DENIED: [u64; 2] = [libc::TIOCSTI, libc::TIOCLINUX];

/// Requests of ioctl(2) for tap devices, by mask and value, of which QEMU needs none for one that is open: becoming another
/// device, belonging to another user or to nobody, another kind of link, filters and programs in the kernel, the carrier
/// (linux/if_tun.h, from 200 on). What is left says and sets what a queue can do. TUNSETSTEERINGEBPF is among it: QEMU takes a
/// program away with it that was never there, and has none to set.
const IOCTL_TAP: [(u64, u64); 9] = [
    // TUNSETNOCSUM, TUNSETDEBUG, TUNSETIFF, TUNSETPERSIST
    (0xfffc, 0x54c8),
    // TUNSETOWNER, TUNSETLINK
    (0xfffe, 0x54cc),
    // TUNSETGROUP
    (0xffff, 0x54ce),
    // TUNSETTXFILTER
    (0xffff, 0x54d1),
    // TUNATTACHFILTER
    (0xffff, 0x54d5),
    // TUNDETACHFILTER
    (0xffff, 0x54d6),
    // TUNSETIFINDEX, TUNGETFILTER
    (0xfffe, 0x54da),
    // TUNSETFILTEREBPF
    (0xffff, 0x54e1),
    // TUNSETCARRIER, TUNGETDEVNETNS
    (0xfffe, 0x54e2),
];

/// Requests of ioctl(2) for sockets, all but the last byte: also a unix socket answers for the network in which it was made.
const IOCTL_SOCKETS: (u64, u64) = (0xffff_ff00, 0x8900);

/// Options of a socket that attach a program to it (SOL_SOCKET: SO_ATTACH_FILTER, SO_ATTACH_BPF, and for groups of sockets).
const SOCKET_PROGRAMS: [libc::c_int; 4] = [
    libc::SO_ATTACH_FILTER,
    libc::SO_ATTACH_BPF,
    libc::SO_ATTACH_REUSEPORT_CBPF,
    libc::SO_ATTACH_REUSEPORT_EBPF,
];

/// Calls that say something of another process, by the argument that is 0 where it is the caller.
const OF_OTHERS: [(libc::c_long, u8); 9] = [
    (libc::SYS_prlimit64, 0),
    (libc::SYS_sched_getscheduler, 0),
    (libc::SYS_sched_getparam, 0),
    (libc::SYS_sched_getattr, 0),
    (libc::SYS_sched_rr_get_interval, 0),
    (libc::SYS_ioprio_get, 1),
    (libc::SYS_getpriority, 1),
    (libc::SYS_getpgid, 0),
    (libc::SYS_getsid, 0),
];

/// Calls that take a clock: those of processes and threads, also of others, have negative numbers.
const OF_CLOCKS: [libc::c_long; 4] = [
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_timer_create,
];

/// What the monitor does once QEMU runs: it waits, kills, pins threads, and writes the exit record.
const MONITOR: &[libc::c_long] = &[
    libc::SYS_sched_setaffinity,
    libc::SYS_pidfd_send_signal,
    libc::SYS_wait4,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_access,
    libc::SYS_openat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_lseek,
];

/// What the supervisor does: it reads and writes sockets and pipes, and takes new connections.
const SUPERVISOR: &[libc::c_long] = &[
    libc::SYS_accept4,
    libc::SYS_getsockopt,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
    libc::SYS_shutdown,
];

/// What both do, their memory and signals included.
const BOTH: &[libc::c_long] = &[
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_close,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mprotect,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // A crash point in builds for tests connects to its test.
    #[cfg(feature = "crash-points")]
    libc::SYS_socket,
    #[cfg(feature = "crash-points")]
    libc::SYS_connect,
];

/// QEMU's filter. Of all calls of execve only the launch's own passes.
pub(crate) fn qemu(secret: Secret, network: Network) -> Result<BpfProgram, BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    use SeccompCmpOp::{Eq, Gt, MaskedEq, Ne};
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        DENIED.iter().map(|number| (*number, Vec::new())).collect();
    let mut refuse = |number: libc::c_long, argument, length, operator, value| {
        let rule = SeccompRule::new(vec![SeccompCondition::new(argument, length, operator, value)?])?;
        rules.entry(number).or_default().push(rule);
        Ok(())
    };
    let word = |value: libc::c_int| u64::from(value.cast_unsigned());
    let thread = word(libc::CLONE_THREAD);
    refuse(libc::SYS_clone, 0, Qword, MaskedEq(thread), 0)?;
    for flag in NAMESPACE_FLAGS.map(word) {
        refuse(libc::SYS_clone, 0, Qword, MaskedEq(flag), flag)?;
    }
    for (argument, number) in (3..).zip(secret) {
        refuse(libc::SYS_execve, argument, Qword, Ne, number)?;
    }
    for option in PRCTL_DENIED.map(word) {
        refuse(libc::SYS_prctl, 0, Dword, Eq, option)?;
    }
    for request in IOCTL_DENIED {
        refuse(libc::SYS_ioctl, 1, Dword, Eq, request)?;
    }
    for (mask, requests) in IOCTL_TAP.into_iter().chain([IOCTL_SOCKETS]) {
        refuse(libc::SYS_ioctl, 1, Dword, MaskedEq(mask), requests)?;
    }
    for option in SOCKET_PROGRAMS.map(word) {
        refuse(libc::SYS_setsockopt, 2, Dword, Eq, option)?;
    }
    let merge = word(libc::MADV_MERGEABLE);
    refuse(libc::SYS_madvise, 2, Dword, Eq, merge)?;
    for (number, argument) in OF_OTHERS {
        refuse(number, argument, Dword, Ne, 0)?;
    }
    for number in OF_CLOCKS {
        refuse(number, 0, Dword, Gt, word(libc::c_int::MAX))?;
    }
    // The host's pool of huge pages, which no memory limit counts.
    let huge = u64::from(libc::MFD_HUGETLB);
    refuse(libc::SYS_memfd_create, 1, Dword, MaskedEq(huge), huge)?;
    let huge = word(libc::MAP_HUGETLB);
    refuse(libc::SYS_mmap, 3, Dword, MaskedEq(huge), huge)?;
    // Room behind a file's end, which no limit of its length counts. QEMU punches holes so, and nothing else.
    let (keep, hole) = (word(libc::FALLOC_FL_KEEP_SIZE), word(libc::FALLOC_FL_PUNCH_HOLE));
    refuse(libc::SYS_fallocate, 1, Dword, MaskedEq(keep | hole), keep)?;
    // Its own limits are for reading.
    refuse(libc::SYS_prlimit64, 2, Qword, Ne, 0)?;
    refuse(libc::SYS_socket, 0, Dword, Ne, word(libc::AF_INET))?;
    if network == Network::Tcp {
        // Every kind of socket but SOCK_STREAM, which is 1, has one of these bits.
        for bit in [2, 4, 8] {
            refuse(libc::SYS_socket, 1, Dword, MaskedEq(bit), bit)?;
        }
    }
    // 0 is the usual protocol of its kind. Others, such as SCTP, connect by sending.
    let mut protocols = vec![0, libc::IPPROTO_TCP];
    if network == Network::Host {
        protocols.push(libc::IPPROTO_UDP);
    }
    let other = |protocol: libc::c_int| SeccompCondition::new(2, Dword, Ne, word(protocol));
    let others: Vec<_> = protocols.into_iter().map(other).collect::<Result<_, _>>()?;
    rules
        .entry(libc::SYS_socket)
        .or_default()
        .push(SeccompRule::new(others)?);
    let mut refuse = |number: libc::c_long, argument, length, operator, value| {
        let rule = SeccompRule::new(vec![SeccompCondition::new(argument, length, operator, value)?])?;
        rules.entry(number).or_default().push(rule);
        Ok::<_, BackendError>(())
    };
    // It is connected to, through forwarded ports; it connects to nobody, by no call.
    for (number, argument) in [
        (libc::SYS_sendto, 3),
        (libc::SYS_sendmsg, 2),
        (libc::SYS_sendmmsg, 3),
    ] {
        let flag = word(libc::MSG_FASTOPEN);
        refuse(number, argument, Dword, MaskedEq(flag), flag)?;
    }
    // A pair of sockets is sockets without asking for them: unconnected ones could still be named.
    let mut never = vec![libc::SYS_connect, libc::SYS_socketpair];
    if network == Network::None {
        never.extend([libc::SYS_socket, libc::SYS_bind, libc::SYS_listen]);
    }
    for number in never {
        let _some = rules.insert(number, Vec::new());
    }
    let mut program = prologue();
    program.extend(compile(rules, SeccompAction::Allow, REFUSED)?);
    Ok(program)
}

/// The monitor's filter, once QEMU runs.
pub(crate) fn monitor() -> Result<BpfProgram, BackendError> {
    allow(MONITOR)
}

/// The supervisor's filter.
pub(crate) fn supervisor() -> Result<BpfProgram, BackendError> {
    allow(SUPERVISOR)
}

fn allow(own: &[libc::c_long]) -> Result<BpfProgram, BackendError> {
    let rules = own.iter().chain(BOTH).map(|number| (*number, Vec::new()));
    compile(rules.collect(), REFUSED, SeccompAction::Allow)
}

/// A program that finds a call's number by halving: the kernel runs it once for each number when it is set, to know which
/// calls it never has to ask about, and a list in a row made that the dearest step of a start.
fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    let code = |action: &SeccompAction| match action {
        SeccompAction::Allow => libc::SECCOMP_RET_ALLOW,
        SeccompAction::Errno(errno) => libc::SECCOMP_RET_ERRNO | errno,
        _ => libc::SECCOMP_RET_KILL_PROCESS,
    };
    // Where each run of numbers with the same answer begins.
    let mut runs: Vec<(u32, Leaf)> = vec![(0, Leaf::Answer(code(&otherwise)))];
    for (number, conditions) in &rules {
        let number = u32::try_from(*number).unwrap_or(u32::MAX);
        let leaf = if conditions.is_empty() {
            Leaf::Answer(code(&listed))
        } else {
            Leaf::Conditions
        };
        let _superseded = runs.pop_if(|(from, _)| *from == number);
        if runs.last().is_none_or(|(_, last)| *last != leaf) {
            runs.push((number, leaf));
        }
        runs.push((number + 1, Leaf::Answer(code(&otherwise))));
    }
    let mut tree = Vec::new();
    decide(&runs, &mut tree);
    // Calls with conditions go on behind the tree.
    let length = tree.len();
    for (at, instruction) in tree.iter_mut().enumerate() {
        if *instruction == CONDITIONS {
            instruction.k = u32::try_from(length - at - 1).unwrap_or_default();
        }
    }
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let mut program = vec![
        // struct seccomp_data: the number at 0, the architecture at 4 (AUDIT_ARCH_X86_64).
        instruction(load, 0, 0, 4),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0, 0xC000_003E),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
        instruction(load, 0, 0, 0),
    ];
    program.extend(tree);
    let conditional: BTreeMap<_, _> = rules.into_iter().filter(|(_, rules)| !rules.is_empty()).collect();
    if !conditional.is_empty() {
        let rest: BpfProgram =
            SeccompFilter::new(conditional, otherwise, listed, TargetArch::x86_64)?.try_into()?;
        program.extend(rest);
    }
    Ok(program)
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaf {
    Answer(u32),
    Conditions,
}

/// A jump whose distance is not known yet.
const CONDITIONS: sock_filter = sock_filter {
    code: 0x05, // BPF_JMP | BPF_JA
    jt: 0,
    jf: 0,
    k: u32::MAX,
};

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter {
        // Classic BPF's codes have 8 bits.
        code: u16::try_from(code).unwrap_or_default(),
        jt,
        jf,
        k,
    }
}

/// Adds what decides between runs of numbers.
fn decide(runs: &[(u32, Leaf)], program: &mut BpfProgram) {
    if let [(_, leaf)] = runs {
        program.push(match leaf {
            Leaf::Answer(answer) => instruction(libc::BPF_RET | libc::BPF_K, 0, 0, *answer),
            Leaf::Conditions => CONDITIONS,
        });
        return;
    }
    let (low, high) = runs.split_at(runs.len() / 2);
    let Some((from, _)) = high.first() else { return };
    let mut lower = Vec::new();
    decide(low, &mut lower);
    let at_least = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    if let Ok(length) = u8::try_from(lower.len()) {
        program.push(instruction(at_least, length, 0, *from));
    } else {
        program.push(instruction(at_least, 0, 1, *from));
        let length = u32::try_from(lower.len()).unwrap_or_default();
        program.push(instruction(libc::BPF_JMP | libc::BPF_JA, 0, 0, length));
    }
    program.extend(lower);
    decide(high, program);
}

/// Calls that a kernel is to deny knowing, before the list is looked at. clone3 keeps its flags in memory, where no filter
/// sees them: the C library falls back to clone. Beyond the highest number come calls that nobody here knows, and, with a bit
/// of their own, x32's, which are the same calls once more.
fn prologue() -> BpfProgram {
    const CLONE3: u32 = 435;
    let unknown = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();
    let jump = libc::BPF_JMP | libc::BPF_K;
    vec![
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(jump | libc::BPF_JGT, 1, 0, HIGHEST),
        instruction(jump | libc::BPF_JEQ, 0, 1, CLONE3),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, unknown),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_are_programs_that_the_kernel_takes() {
        // linux/filter.h: BPF_MAXINSNS.
        const LENGTH_MAX: usize = 4096;
        for program in [
            qemu([1, 2, 3], Network::None),
            qemu([u64::MAX; 3], Network::Tcp),
            qemu([u64::MAX; 3], Network::Host),
            monitor(),
            supervisor(),
        ] {
            let program = program.unwrap();
            assert!((20..LENGTH_MAX).contains(&program.len()), "{}", program.len());
        }
    }

    #[test]
    fn a_tap_device_stays_what_and_whose_it_is() {
        let refused = |request: u64| IOCTL_TAP.iter().any(|(mask, value)| request & mask == *value);
        for request in [
            libc::TUNSETIFF,
            libc::TUNSETPERSIST,
            libc::TUNSETOWNER,
            libc::TUNSETGROUP,
            libc::TUNSETLINK,
            libc::TUNSETTXFILTER,
            libc::TUNATTACHFILTER,
            libc::TUNDETACHFILTER,
            libc::TUNGETFILTER,
            libc::TUNSETIFINDEX,
            libc::TUNSETFILTEREBPF,
            libc::TUNSETCARRIER,
            libc::TUNGETDEVNETNS,
        ] {
            assert!(refused(request), "{request:x}");
        }
        // What QEMU 7.2 asks and sets (net/tap-linux.c).
        for request in [
            libc::TUNGETIFF,
            libc::TUNGETFEATURES,
            libc::TUNSETOFFLOAD,
            libc::TUNSETSNDBUF,
            libc::TUNGETVNETHDRSZ,
            libc::TUNSETVNETHDRSZ,
            libc::TUNSETQUEUE,
            libc::TUNSETVNETLE,
            libc::TUNSETVNETBE,
            libc::TUNSETSTEERINGEBPF,
        ] {
            assert!(!refused(request), "{request:x}");
        }
    }

    #[test]
    fn clone3_is_where_the_prologue_says() {
        assert_eq!(libc::SYS_clone3, 435);
    }
}
