//! How is QEMU's `microvm` machine told to be this machine?

use serde_json::json;
use steppe_vm::plan::{LaunchPlan, Limits, PLAN_VERSION, Ready, Start};
use steppe_vm::vm::{Accelerator, Nic, Vm};

use crate::Site;
use crate::options::Options;

/// I/O port of `isa-debug-exit`: a byte v written there ends QEMU with status 2v+1. 0x501 is QEMU's own default.
pub(crate) const DEBUG_EXIT_PORT: u16 = 0x501;

pub(crate) fn render(vm: &Vm, site: &Site<'_>) -> LaunchPlan {
    let mut options = Options::default();
    options.base(site, vm.reboot);
    options.pair("machine", machine(vm.accelerator));
    options.processor(vm.accelerator, vm.vcpus);
    options.memory(vm.memory_mib);
    options.channels();
    // qboot boots ELF and bzImage alike; with ACPI on, QEMU would choose SeaBIOS, under which no ELF kernel starts.
    options.pair("bios", "qboot.rom");
    options.boot(&vm.kernel, vm.initrd.as_ref(), &vm.cmdline, site);
    devices(vm, site, &mut options);
    LaunchPlan {
        version: PLAN_VERSION,
        owner: site.owner.clone(),
        start: Start::Boot,
        program: site.program.clone(),
        arguments: options.arguments,
        descriptors: options.descriptors,
        limits: Limits {
            file_bytes: site.file_bytes,
            ..Limits::default()
        },
        uid: site.uid,
        gid: site.gid,
        ready: vm.ready.as_ref().map(|ready| Ready {
            pattern: ready.pattern.clone(),
            timeout_ms: u64::try_from(ready.timeout.as_millis()).unwrap_or(u64::MAX),
        }),
        cpus: vm.cpus.clone(),
        isolation: site.isolation.clone(),
    }
}

/// ACPI is how Debian's kernels find virtio-mmio devices and the power button. The PIT and PIC are needed under
/// emulation only, where the guest has no clock of KVM's.
fn machine(accelerator: Accelerator) -> String {
    let legacy = match accelerator {
        Accelerator::Kvm => "off",
        Accelerator::Tcg { .. } => "on",
    };
    format!(
        "microvm,acpi=on,rtc=on,pit={legacy},pic={legacy},mem-merge=off,dump-guest-core=off,memory-backend=ram"
    )
}

/// First virtio-mmio slot that is used: interrupts of slot 0 don't reach the guest.
const SLOT_FIRST: u32 = 1;

/// Each virtio device is given its slot, so that the guest's order is the job's order: the guest finds them from the
/// highest slot down.
fn devices(vm: &Vm, site: &Site<'_>, options: &mut Options) {
    let last = SLOT_FIRST + u32::try_from(vm.disks.len() + vm.nics.len()).unwrap_or(u32::MAX - SLOT_FIRST);
    let mut slots = (SLOT_FIRST..=last)
        .rev()
        .map(|slot| format!("virtio-mmio-bus.{slot}"));
    let mut slot = || slots.next().unwrap_or_default();
    for disk in &vm.disks {
        let node = options.block_node(disk, site);
        options.json(
            "device",
            // An error is the guest's to see. QEMU would pause the machine where the host's disk is full, and nobody resumes it.
            &json!({
                "driver": "virtio-blk-device", "bus": slot(), "drive": node, "serial": disk.name,
                "werror": "report", "rerror": "report",
            }),
        );
    }
    let mut interfaces = site.interfaces.iter();
    for (index, nic) in vm.nics.iter().enumerate() {
        let id = format!("net{index}");
        let mut device = json!({"driver": "virtio-net-device", "bus": slot(), "netdev": id});
        match nic {
            Nic::User { forwards } => options.user_netdev(&id, forwards),
            Nic::Tap(_) => {
                // There are as many as taps: `interface::check` made sure of it.
                let Some(interface) = interfaces.next() else {
                    continue;
                };
                options.tap_netdev(&id, interface);
                device["mac"] = json!(interface.mac);
                device["host_mtu"] = json!(interface.mtu);
                device["mq"] = json!(interface.queues > 1);
            }
        }
        options.json("device", &device);
    }
    options.json("object", &json!({"qom-type": "rng-builtin", "id": "rng0"}));
    options.json(
        "device",
        &json!({"driver": "virtio-rng-device", "bus": slot(), "rng": "rng0"}),
    );
    options.json("device", &json!({"driver": "pvpanic"}));
    options.json(
        "device",
        &json!({"driver": "isa-debug-exit", "iobase": DEBUG_EXIT_PORT, "iosize": 2}),
    );
}
