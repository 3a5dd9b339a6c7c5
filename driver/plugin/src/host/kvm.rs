//! Can guests really run on this host's KVM?
//!
//! Opening `/dev/kvm` proves nothing: on some nested hosts guest code is emulated instruction by instruction, a thousand
//! times too slowly, and only a loop shows it. So a loop is run.

#![expect(unsafe_code, reason = "guest memory is handed to the kernel by address")]

use std::os::unix::fs::MetadataExt;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_API_VERSION, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit};

const DEVICE: &str = "/dev/kvm";

/// Iterations of the loop. Hardware needs well under a millisecond for all of them.
const ITERATIONS: u32 = 1_000_000;

/// Iterations between two looks at the clock: at the emulated rate of one per microsecond, 20 ms.
const ITERATIONS_AT_ONCE: u32 = 20_000;

/// Time that all iterations may take.
const BUDGET: Duration = Duration::from_millis(50);

/// Time after which the probe is given up, whatever it hangs in.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes of the guest's only page.
const PAGE: usize = 4096;

/// Why KVM can't be used. No figures: the text becomes part of the node's description and must be stable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("/dev/kvm is missing or can't be opened")]
    Open,
    #[error("/dev/kvm is closed to QEMU's unprivileged user: give its group read and write permission")]
    Permission,
    #[error("/dev/kvm speaks another API version")]
    Version,
    #[error("a test guest can't be run on /dev/kvm")]
    Run,
    #[error("guests run far too slowly on /dev/kvm")]
    Slow,
}

/// The group that may use KVM; QEMU gets it as its own.
pub(crate) fn group() -> Option<u32> {
    std::fs::metadata(DEVICE)
        .ok()
        .map(|device| device.gid())
        .filter(|gid| *gid != 0)
}

/// Proves that KVM can be used, in at most [`TIMEOUT`].
pub(crate) fn prove() -> Result<(), Unusable> {
    let (done, result) = mpsc::channel();
    let probe = std::thread::Builder::new()
        .name("kvm-probe".into())
        .spawn(move || {
            // The receiver is gone only after its deadline.
            drop(done.send(run()));
        });
    let slow = probe.map_or(Err(Unusable::Run), |_| {
        result.recv_timeout(TIMEOUT).unwrap_or(Err(Unusable::Slow))
    });
    slow.and_then(|()| permitted())
}

/// What root may open is not yet open to QEMU.
fn permitted() -> Result<(), Unusable> {
    let device = std::fs::metadata(DEVICE).map_err(|_| Unusable::Open)?;
    let by_group = device.mode() & 0o060 == 0o060 && device.gid() != 0;
    if by_group || device.mode() & 0o006 == 0o006 {
        Ok(())
    } else {
        Err(Unusable::Permission)
    }
}

fn run() -> Result<(), Unusable> {
    let kvm = Kvm::new().map_err(|_| Unusable::Open)?;
    if u32::try_from(kvm.get_api_version()) != Ok(KVM_API_VERSION) {
        return Err(Unusable::Version);
    }
    let vm = kvm.create_vm().map_err(|_| Unusable::Run)?;
    // Real mode, at address 0:  dec ecx; jnz -3; hlt; jmp -3 (once more, after the next ecx).
    let code: [u8; 8] = [0x66, 0x49, 0x75, 0xfc, 0xf4, 0xeb, 0xfd, 0x90];
    // SAFETY: a fresh private mapping of one page that nothing else uses, unmapped after the machine is gone.
    let page = unsafe {
        rustix::mm::mmap_anonymous(
            std::ptr::null_mut(),
            PAGE,
            rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
            rustix::mm::MapFlags::PRIVATE,
        )
    }
    .map_err(|_| Unusable::Run)?;
    // SAFETY: the page has room for the code.
    unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), page.cast(), code.len()) };
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: PAGE as u64,
        userspace_addr: page as u64,
    };
    // SAFETY: the region is the page above, which outlives the machine.
    let mapped = unsafe { vm.set_user_memory_region(region) };
    let result = mapped.map_err(|_| Unusable::Run).and_then(|()| count(&vm));
    drop(vm);
    // SAFETY: the machine that used it is gone.
    let _ = unsafe { rustix::mm::munmap(page, PAGE) };
    result
}

fn count(vm: &kvm_ioctls::VmFd) -> Result<(), Unusable> {
    let failed = |_| Unusable::Run;
    let mut vcpu = vm.create_vcpu(0).map_err(failed)?;
    let mut segments = vcpu.get_sregs().map_err(failed)?;
    (segments.cs.base, segments.cs.selector) = (0, 0);
    vcpu.set_sregs(&segments).map_err(failed)?;
    let start = Instant::now();
    for _ in 0..ITERATIONS / ITERATIONS_AT_ONCE {
        let mut registers = vcpu.get_regs().map_err(failed)?;
        (registers.rip, registers.rflags, registers.rcx) = (0, 2, u64::from(ITERATIONS_AT_ONCE));
        vcpu.set_regs(&registers).map_err(failed)?;
        loop {
            match vcpu.run() {
                Ok(VcpuExit::Hlt) => break,
                // A signal for this process came between.
                Err(error) if error.errno() == rustix::io::Errno::INTR.raw_os_error() => {}
                _ => return Err(Unusable::Run),
            }
            if start.elapsed() > BUDGET {
                return Err(Unusable::Slow);
            }
        }
        if start.elapsed() > BUDGET {
            return Err(Unusable::Slow);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_answers_in_time() {
        let start = Instant::now();
        let answer = prove();
        assert!(start.elapsed() < TIMEOUT + Duration::from_secs(1), "{answer:?}");
        assert_eq!(answer, prove(), "the answer is stable");
    }
}
