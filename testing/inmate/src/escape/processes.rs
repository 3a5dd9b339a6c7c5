//! What can be done to other processes, and to what the kernel grants this one?

use super::targets::{Targets, number};
use super::{Attempt, Outcome, Refusal, address, any, attempt, done, longs, permitted, words};
use crate::system::{self, Errno, call};

pub(super) const ATTEMPTS: &[Attempt] = &[
    attempt("signal_victim", |on| done(call!(SYS_kill, on.victim()?, 0))),
    attempt("signal_victim_thread", |on| {
        let victim = on.victim()?;
        done(call!(SYS_tgkill, victim, victim, 0))
    }),
    attempt("signal_victim_queued", |on| {
        // struct siginfo: signal, errno, code; the code of sigqueue(3) is -1.
        let mut info = words(&[0, 0, u32::MAX]);
        info.resize(128, 0);
        done(call!(SYS_rt_sigqueueinfo, on.victim()?, 0, &info))
    }),
    attempt("signal_victim_by_descriptor", |on| {
        let pidfd = system::own(call!(SYS_pidfd_open, on.victim()?, 0)?)?;
        done(call!(SYS_pidfd_send_signal, number(&pidfd), 0, 0, 0))
    }),
    attempt("signal_monitor", |on| done(call!(SYS_kill, on.parent(), 0))),
    attempt("signal_supervisor", |on| {
        any(neighbours(on), |process| done(call!(SYS_kill, process, 0)))
    }),
    // The call that a thread ends itself with, which is left to everybody.
    attempt("signal_monitor_thread", |on| {
        done(call!(SYS_tgkill, on.parent(), on.parent(), 0))
    }),
    attempt("signal_supervisor_thread", |on| {
        any(neighbours(on), |process| {
            done(call!(SYS_tgkill, process, process, 0))
        })
    }),
    attempt("signal_init_thread", |_| done(call!(SYS_tgkill, 1, 1, 0))),
    attempt("signal_init", |_| done(call!(SYS_kill, 1, 0))),
    attempt("signal_everybody", |_| done(call!(SYS_kill, -1, 0))),
    attempt("ptrace_victim", |on| {
        let victim = on.victim()?;
        call!(SYS_ptrace, libc::PTRACE_ATTACH, victim, 0, 0)?;
        // It can be let go once it stands.
        call!(SYS_wait4, victim, 0, libc::__WALL, 0)?;
        done(call!(SYS_ptrace, libc::PTRACE_DETACH, victim, 0, 0))
    }),
    attempt("ptrace_seize_victim", |on| {
        done(call!(SYS_ptrace, libc::PTRACE_SEIZE, on.victim()?, 0, 0))
    }),
    attempt("ptrace_seize_monitor", |on| {
        done(call!(SYS_ptrace, libc::PTRACE_SEIZE, on.parent(), 0, 0))
    }),
    attempt("ptrace_seize_supervisor", |on| {
        any(neighbours(on), |process| {
            done(call!(SYS_ptrace, libc::PTRACE_SEIZE, process, 0, 0))
        })
    }),
    attempt("ptrace_be_traced", |_| {
        done(call!(SYS_ptrace, libc::PTRACE_TRACEME, 0, 0, 0))
    }),
    attempt("memory_read_victim", |on| memory(libc::SYS_process_vm_readv, on)),
    attempt("memory_write_victim", |on| {
        memory(libc::SYS_process_vm_writev, on)
    }),
    attempt("take_descriptor_of_victim", |on| take_descriptor(on.victim()?)),
    attempt("take_descriptor_of_monitor", |on| take_descriptor(on.parent())),
    attempt("take_descriptor_of_nobody", |_| {
        // Whoever gets no descriptor of a process does not get this far in the two before.
        permitted(call!(SYS_pidfd_getfd, -1, 0, 0), &[libc::EBADF])
    }),
    attempt("compare_with_victim", |on| {
        // Whether both have the same memory (KCMP_VM).
        done(call!(SYS_kcmp, std::process::id(), on.victim()?, 1, 0, 0))
    }),
    attempt("robust_list_of_victim", |on| {
        let (mut head, mut length) = ([0; 8], [0; 8]);
        done(call!(SYS_get_robust_list, on.victim()?, &mut head, &mut length))
    }),
    attempt("move_pages_of_victim", |on| {
        // From node 0 to node 0.
        let node = longs(&[1]);
        done(call!(SYS_migrate_pages, on.victim()?, 64, &node, &node))
    }),
    attempt("priority_of_victim", |on| {
        let victim = on.victim()?;
        // The call's answer is 20 less the value.
        let value = 20 - call!(SYS_getpriority, libc::PRIO_PROCESS, victim)?;
        done(call!(SYS_setpriority, libc::PRIO_PROCESS, victim, value))
    }),
    attempt("priority_raise", |_| {
        done(call!(SYS_setpriority, libc::PRIO_PROCESS, 0, -20))
    }),
    attempt("affinity_of_victim", |on| {
        let victim = on.victim()?;
        let mut set = [0; 128];
        let length = call!(SYS_sched_getaffinity, victim, set.len(), &mut set)?;
        done(call!(SYS_sched_setaffinity, victim, length, &set))
    }),
    attempt("affinity_widen", |_| {
        done(call!(SYS_sched_setaffinity, 0, 128, &[0xff; 128]))
    }),
    attempt("scheduler_of_victim", |on| {
        let ordinary = words(&[0]);
        done(call!(
            SYS_sched_setscheduler,
            on.victim()?,
            libc::SCHED_OTHER,
            &ordinary
        ))
    }),
    attempt("scheduler_real_time", |_| {
        let lowest = words(&[1]);
        done(call!(SYS_sched_setscheduler, 0, libc::SCHED_FIFO, &lowest))
    }),
    attempt("scheduler_attributes_of_victim", |on| {
        // struct sched_attr: its size, policy; all else as a process begins.
        let mut attributes = words(&[48, 0]);
        attributes.resize(48, 0);
        done(call!(SYS_sched_setattr, on.victim()?, &attributes, 0))
    }),
    attempt("io_priority_of_victim", |on| {
        // Best effort, in the middle.
        done(call!(SYS_ioprio_set, 1, on.victim()?, 2 << 13 | 4))
    }),
    attempt("io_priority_real_time", |_| {
        done(call!(SYS_ioprio_set, 1, 0, 1 << 13))
    }),
    attempt("look_scheduler_of_victim", |on| {
        done(call!(SYS_sched_getscheduler, on.victim()?))
    }),
    attempt("look_scheduler_attributes_of_victim", |on| {
        done(call!(SYS_sched_getattr, on.victim()?, &mut [0; 56], 56, 0))
    }),
    attempt("look_priority_of_victim", |on| {
        done(call!(SYS_getpriority, libc::PRIO_PROCESS, on.victim()?))
    }),
    attempt("look_io_priority_of_victim", |on| {
        done(call!(SYS_ioprio_get, 1, on.victim()?))
    }),
    attempt("look_session_of_victim", |on| {
        done(call!(SYS_getsid, on.victim()?))
    }),
    attempt("look_group_of_victim", |on| {
        done(call!(SYS_getpgid, on.victim()?))
    }),
    attempt("look_processor_time_of_victim", |on| {
        // Every process has a clock, by its id (CPUCLOCK_SCHED): how busy the neighbour is, to the nanosecond.
        let clock = !on.victim()? << 3 | 2;
        done(call!(SYS_clock_gettime, clock, &mut [0; 16]))
    }),
    attempt("limits_of_victim", |on| {
        let victim = on.victim()?;
        let mut limit = [0; 16];
        call!(SYS_prlimit64, victim, libc::RLIMIT_NOFILE, 0, &mut limit)?;
        done(call!(SYS_prlimit64, victim, libc::RLIMIT_NOFILE, &limit, 0))
    }),
    attempt("limit_open_files_raise", |_| raise(libc::RLIMIT_NOFILE)),
    attempt("limit_processes_raise", |_| raise(libc::RLIMIT_NPROC)),
    attempt("limit_core_raise", |_| raise(libc::RLIMIT_CORE)),
    attempt("limit_locked_memory_raise", |_| raise(libc::RLIMIT_MEMLOCK)),
    attempt("lock_memory", |_| {
        let page = [0; 4096];
        done(call!(SYS_mlock, &page, page.len()))
    }),
];

/// The supervisor has an id between those of the monitor, which made it, and this process, which was made after it.
/// Unconfined, a word tells it.
fn neighbours(on: &Targets) -> Vec<i32> {
    match on.number("supervisor.pid") {
        Ok(known) => vec![known],
        Err(_) => {
            let own = on.own_id();
            // Ids are given out in a circle; where it was closed in between, all that is near is tried.
            let first = if on.parent() < own {
                on.parent() + 1
            } else {
                own - 100
            };
            (first.max(2)..own).collect()
        }
    }
}

/// At an address where nobody has memory: this is found out only by those who may look.
fn memory(call: libc::c_long, on: &Targets) -> Outcome {
    let mut room = [0; 8];
    let own = longs(&[address(&room), 8]);
    let theirs = longs(&[0x1000, 8]);
    let result = system::by_number(
        call,
        &mut [
            on.victim()?.into(),
            (&own).into(),
            1.into(),
            (&theirs).into(),
            1.into(),
            0.into(),
        ],
    );
    std::hint::black_box(&mut room);
    permitted(result, &[libc::EFAULT])
}

fn take_descriptor(process: i32) -> Outcome {
    let pidfd = system::own(call!(SYS_pidfd_open, process, 0)?)?;
    super::made(call!(SYS_pidfd_getfd, number(&pidfd), 0, 0))
}

/// Lowers a limit for good, where there is one to lower, then raises it.
fn raise(resource: libc::__rlimit_resource_t) -> Outcome {
    let mut limit = [0; 16];
    call!(SYS_prlimit64, 0, resource, 0, &mut limit)?;
    let (_, hard) = limit.split_at(8);
    let Ok(hard) = <[u8; 8]>::try_from(hard).map(u64::from_ne_bytes) else {
        return Err(Refusal::Errno(Errno(libc::EINVAL)));
    };
    let hard = match hard {
        u64::MAX => {
            let finite = 1 << 16;
            call!(SYS_prlimit64, 0, resource, &longs(&[finite, finite]), 0)?;
            finite
        }
        finite => finite,
    };
    done(call!(SYS_prlimit64, 0, resource, &longs(&[hard, hard + 1]), 0))
}
