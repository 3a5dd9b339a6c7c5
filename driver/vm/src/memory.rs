//! How much memory does a VM need on its host, beside what its guest gets?

use crate::vm::{Accelerator, Disk, DiskFormat, Mib, Vm};

/// QEMU itself with its device set, its stacks and the blobs it loads, under KVM.
const BASE_KVM_MIB: Mib = 64;

/// The same under emulation, with the translation cache of 32 MiB that the driver asks for and the tables beside it.
const BASE_TCG_MIB: Mib = 128;

/// A virtual processor: its thread and, under emulation, its own tables.
const VCPU_MIB: Mib = 4;

/// A raw disk: threads and buffers of requests under way.
const DISK_RAW_MIB: Mib = 4;

/// A qcow2 disk besides: QEMU caches up to 32 MiB of its tables.
const DISK_QCOW2_MIB: Mib = 36;

/// One part in so many of guest memory: the page tables that map it take 8 bytes per page of 4 KiB, once in QEMU's process
/// and once more under KVM, and as much again is kept for what comes with it.
const GUEST_SHARE: Mib = 128;

/// Memory in MiB that a VM may take besides its guest's: the difference between its control group's limit and
/// `resources.memory`. A pure function of accelerator, processors, disks and guest memory.
#[must_use]
pub fn overhead_mib(vm: &Vm) -> Mib {
    let disk = |disk: &Disk| match disk.format {
        DiskFormat::Raw => DISK_RAW_MIB,
        DiskFormat::Qcow2 => DISK_QCOW2_MIB,
    };
    let disks: Mib = vm.disks.iter().map(disk).sum();
    base_mib(vm.accelerator) + vm.vcpus * VCPU_MIB + disks + vm.memory_mib / GUEST_SHARE
}

/// The part that every VM with this accelerator has.
#[must_use]
pub fn base_mib(accelerator: Accelerator) -> Mib {
    match accelerator {
        Accelerator::Kvm => BASE_KVM_MIB,
        Accelerator::Tcg { .. } => BASE_TCG_MIB,
    }
}

/// The limit of QEMU's control group in bytes.
#[must_use]
pub fn limit_bytes(vm: &Vm) -> u64 {
    u64::from(vm.memory_mib + overhead_mib(vm)) << 20
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::{FileName, FileRoot, Machine, Reboot};

    #[test]
    fn what_a_vm_has_adds_up() {
        let file = FileName {
            root: FileRoot::Images,
            path: "vmlinux".into(),
        };
        let disk = |format| Disk {
            name: "d".into(),
            file: file.clone(),
            format,
            read_only: false,
        };
        let small = Vm {
            machine: Machine::Microvm,
            accelerator: Accelerator::Tcg { tsc_khz: 1 },
            vcpus: 1,
            cpus: Vec::new(),
            memory_mib: 128,
            kernel: file.clone(),
            initrd: None,
            cmdline: String::new(),
            disks: Vec::new(),
            nics: Vec::new(),
            identity: String::new(),
            reboot: Reboot::Reset,
            ready: None,
        };
        assert_eq!(overhead_mib(&small), 128 + 4 + 1);
        assert_eq!(limit_bytes(&small), (128 + 133) << 20);
        let large = Vm {
            accelerator: Accelerator::Kvm,
            vcpus: 4,
            memory_mib: 8192,
            disks: vec![disk(DiskFormat::Raw), disk(DiskFormat::Qcow2)],
            ..small
        };
        assert_eq!(overhead_mib(&large), 64 + 16 + 40 + 64);
    }
}
