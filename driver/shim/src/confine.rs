//! What may the shim's own two processes still do?
//!
//! The supervisor, who reads what guests write, nothing but use the descriptors that it has. The monitor, once QEMU runs,
//! what its VM's end takes: it stays root by name, because the record is root's, with as few of root's powers as that needs.

use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};
use steppe_vm::plan::Isolation;

use crate::filter;
use crate::isolate::{self, IsolateError};

/// Why a process could not be confined.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfineError {
    /// The process could not end what it is about to start, or not pin its threads.
    #[error("this process has not the capability {0}, without which it can't {1}")]
    Powerless(&'static str, &'static str),
    /// A capability can't be given up.
    #[error("capabilities can't be given up")]
    Capabilities(#[source] Errno),
    /// New privileges can't be given up.
    #[error("new privileges can't be given up")]
    Privileges(#[source] Errno),
    /// Files can't be given up.
    #[error("files can't be given up")]
    Files(#[from] IsolateError),
    /// A filter of system calls can't be made.
    #[error("the filter of system calls can't be made")]
    Filter(#[from] seccompiler::BackendError),
    /// A filter of system calls can't be set.
    #[error("system calls can't be given up")]
    SystemCalls(#[from] seccompiler::Error),
}

/// The supervisor, when it is nobody already.
pub(crate) fn supervisor(isolation: Option<&Isolation>) -> Result<(), ConfineError> {
    let Some(isolation) = isolation else { return Ok(()) };
    if isolation.landlock {
        isolate::restrict_self(None, &[])?;
    }
    if isolation.seccomp {
        seccompiler::apply_filter(&filter::supervisor()?)?;
    }
    Ok(())
}

/// What the monitor can't do without, by capability.
const NEEDED: [(CapabilitySet, &str, &str); 2] = [
    (CapabilitySet::KILL, "CAP_KILL", "end QEMU"),
    (CapabilitySet::SYS_NICE, "CAP_SYS_NICE", "pin virtual processors"),
];

/// The capabilities that the monitor keeps. Without the power to kill, its death would not be QEMU's: the kernel asks as for any
/// signal.
fn kept(pins: bool) -> CapabilitySet {
    let mut kept = CapabilitySet::KILL;
    kept.set(CapabilitySet::SYS_NICE, pins);
    kept
}

/// Whether the monitor has the powers that it will need, asked before there is a QEMU.
pub(crate) fn has_power(pins: bool) -> Result<(), ConfineError> {
    let sets = rustix::thread::capabilities(None).map_err(ConfineError::Capabilities)?;
    let lacking = |(capability, ..): &&(CapabilitySet, _, _)| {
        kept(pins).contains(*capability) && !sets.effective.contains(*capability)
    };
    match NEEDED.iter().find(lacking) {
        Some((_, name, what)) => Err(ConfineError::Powerless(name, what)),
        None => Ok(()),
    }
}

/// The monitor, once QEMU was executed. It writes to `record` and reads `groups`; it pins threads if `pins`.
pub(crate) fn monitor(
    isolation: Option<&Isolation>,
    record: Option<&Path>,
    groups: &[PathBuf],
    pins: bool,
) -> Result<(), ConfineError> {
    let kept = kept(pins);
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).map_err(ConfineError::Capabilities)?;
    rustix::thread::set_no_new_privs(true).map_err(ConfineError::Privileges)?;
    let Some(isolation) = isolation else { return Ok(()) };
    if isolation.landlock {
        // Besides the record: whether the kernel killed for want of memory.
        isolate::restrict_self(record, groups)?;
    }
    if isolation.seccomp {
        seccompiler::apply_filter(&filter::monitor()?)?;
    }
    Ok(())
}
