//! What do the kernel's own file systems tell, and let be set?

use super::targets::{Targets, text};
use super::{Attempt, Outcome, Refusal, any, attempt, done, list, open, read, targets, writable};
use crate::system::call;

pub(super) const ATTEMPTS: &[Attempt] = &[
    attempt("proc_list", |_| list(c"/proc")),
    attempt("proc_init_environ", |_| read(c"/proc/1/environ")),
    attempt("proc_init_maps", |_| read(c"/proc/1/maps")),
    attempt("proc_init_mem", |_| {
        open(c"/proc/1/mem", libc::O_RDWR)?;
        Ok(())
    }),
    attempt("proc_init_root", |_| list(c"/proc/1/root/etc")),
    attempt("proc_init_namespaces", |_| list(c"/proc/1/ns")),
    attempt("proc_monitor_environ", |on| {
        read(&text(&format!("/proc/{}/environ", on.parent())))
    }),
    attempt("proc_monitor_descriptors", |on| {
        list(&text(&format!("/proc/{}/fd", on.parent())))
    }),
    attempt("proc_monitor_mem", |on| {
        open(&text(&format!("/proc/{}/mem", on.parent())), libc::O_RDWR)?;
        Ok(())
    }),
    attempt("proc_victim_command_line", |on| read(&of_victim(on, "cmdline")?)),
    attempt("proc_victim_environ", |on| read(&of_victim(on, "environ")?)),
    attempt("proc_victim_maps", |on| read(&of_victim(on, "maps")?)),
    attempt("proc_victim_mem", |on| {
        open(&of_victim(on, "mem")?, libc::O_RDWR)?;
        Ok(())
    }),
    attempt("proc_victim_descriptors", |on| list(&of_victim(on, "fd")?)),
    attempt("proc_victim_root", |on| list(&of_victim(on, "root/")?)),
    attempt("proc_victim_oom_score", |on| {
        writable(&of_victim(on, "oom_score_adj")?)
    }),
    attempt("proc_own_mem", |_| {
        open(c"/proc/self/mem", libc::O_RDWR)?;
        Ok(())
    }),
    attempt("proc_own_oom_score", |_| {
        let file = open(c"/proc/self/oom_score_adj", libc::O_WRONLY)?;
        done(call!(SYS_write, targets::number(&file), b"-500", 4))
    }),
    attempt("proc_command_line", |_| read(c"/proc/cmdline")),
    attempt("proc_mounts", |_| read(c"/proc/self/mountinfo")),
    attempt("proc_network", |_| read(c"/proc/net/tcp")),
    attempt("proc_symbols", |_| read(c"/proc/kallsyms")),
    attempt("proc_kernel_memory", |_| read(c"/proc/kcore")),
    attempt("proc_keys", |_| read(c"/proc/keys")),
    attempt("proc_hostname_write", |_| writable(c"/proc/sys/kernel/hostname")),
    attempt("proc_core_pattern_read", |_| {
        read(c"/proc/sys/kernel/core_pattern")
    }),
    attempt("proc_core_pattern_write", |_| {
        writable(c"/proc/sys/kernel/core_pattern")
    }),
    attempt("proc_sysrq", |_| writable(c"/proc/sysrq-trigger")),
    attempt("sys_list", |_| list(c"/sys")),
    attempt("sys_block_list", |_| list(c"/sys/block")),
    attempt("sys_network_list", |_| list(c"/sys/class/net")),
    attempt("cgroup_leave", |_| {
        let roots = [c"/sys/fs/cgroup/memory/tasks", c"/sys/fs/cgroup/cgroup.procs"];
        any(roots, |path| {
            let file = open(path, libc::O_WRONLY)?;
            done(call!(SYS_write, targets::number(&file), b"0", 1))
        })
    }),
    attempt("cgroup_memory_limit", |on| {
        let group = on.word("victim.group")?;
        any(["memory.limit_in_bytes", "memory.max"], |file| {
            writable(&text(&format!("{group}/{file}")))
        })
    }),
    attempt("cgroup_victim_processes", join_victim),
];

fn of_victim(on: &Targets, file: &str) -> Result<std::ffi::CString, Refusal> {
    Ok(text(&format!("/proc/{}/{file}", on.victim()?)))
}

/// Opens the list of processes of the other VM's group: whoever may write it may put any process there.
fn join_victim(on: &Targets) -> Outcome {
    let group = on.word("victim.group")?;
    any(["tasks", "cgroup.procs"], |file| {
        writable(&text(&format!("{group}/{file}")))
    })
}
