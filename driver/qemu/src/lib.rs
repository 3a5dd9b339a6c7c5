//! How is QEMU told to be a given machine, and what does it say back?
//!
//! Pure: the only crate that spells a QEMU option or a QMP message; another hypervisor would be its sibling.
//! [`render`] turns a machine into a launch plan; [`qmp`] is the protocol without a socket; [`redact`] knows what of a plan
//! must not be shown to everybody.

pub mod qmp;
pub mod redact;

mod microvm;
mod options;

use std::path::PathBuf;

use steppe_vm::interface::Interface;
use steppe_vm::plan::{Isolation, LaunchPlan, Place};
use steppe_vm::vm::{FileName, Machine, Vm};

/// What the host contributes to a plan.
pub struct Site<'a> {
    /// `<alloc id>.<task name>`, for messages.
    pub owner: String,
    /// The task's key: the machine's name in QEMU and in the process list.
    pub key: String,
    /// Absolute path of `qemu-system-x86_64`.
    pub program: PathBuf,
    /// QEMU's user id.
    pub uid: u32,
    /// QEMU's group id.
    pub gid: u32,
    /// What QEMU is kept from; nothing where it is absent.
    pub isolation: Option<Isolation>,
    /// Largest size of a file that it may write, where that is known.
    pub file_bytes: Option<u64>,
    /// What netd made of the machine's networks, in the machine's order.
    pub interfaces: &'a [Interface],
    /// An archive that the guest's initrd ends with.
    pub archive: Option<Place>,
    /// The directory beneath which a named file was found.
    pub place: &'a dyn Fn(&FileName) -> PathBuf,
}

impl std::fmt::Debug for Site<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Site")
            .field("owner", &self.owner)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// The plan that makes QEMU this machine.
#[must_use]
pub fn render(vm: &Vm, site: &Site<'_>) -> LaunchPlan {
    match vm.machine {
        Machine::Microvm => microvm::render(vm, site),
    }
}

#[cfg(test)]
mod tests;
