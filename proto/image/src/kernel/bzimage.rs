//! Is this bzImage a 64-bit kernel, and how much memory does it unpack into?
//!
//! The header is described in the kernel's `Documentation/arch/x86/boot.rst`.

use super::{Kernel, KernelError, KernelFormat};
use crate::bytes::Fields;

/// The header up to and including `init_size`.
const HEADER_BYTES: usize = 0x264;
const BOOT_FLAG: u16 = 0xaa55;
/// The first version with `xloadflags`, without which nobody can tell a 32-bit kernel from a 64-bit one.
const PROTOCOL_MIN: (u8, u8) = (2, 12);
const LOADFLAGS_LOADED_HIGH: u8 = 1;
const XLOADFLAGS_KERNEL_64: u16 = 1;

pub(super) fn inspect(head: &[u8], length: u64) -> Result<Kernel, KernelError> {
    if head.len() < HEADER_BYTES {
        return Err(KernelError::TooShort { bytes: length });
    }
    let header = Fields(head);
    if header.u16_le(0x1fe) != BOOT_FLAG {
        return Err(KernelError::NoBootFlag);
    }
    let [minor, major] = header.u16_le(0x206).to_le_bytes();
    let protocol = (major, minor);
    if protocol < PROTOCOL_MIN {
        return Err(KernelError::ProtocolTooOld { protocol });
    }
    if header.u8(0x211) & LOADFLAGS_LOADED_HIGH == 0 {
        return Err(KernelError::LoadedLow);
    }
    if header.u16_le(0x236) & XLOADFLAGS_KERNEL_64 == 0 {
        return Err(KernelError::Not64Bit);
    }

    // Zero means four, by the protocol. The boot sector itself is not counted.
    let setup_sectors = match header.u8(0x1f1) {
        0 => 4,
        sectors => u64::from(sectors),
    };
    // Neither sum can overflow: the first is below 2^17, the second below 2^36.
    let needed = (setup_sectors + 1) * 512 + u64::from(header.u32_le(0x1f4)) * 16;
    if needed > length {
        return Err(KernelError::Truncated {
            needed,
            bytes: length,
        });
    }
    Ok(Kernel {
        format: KernelFormat::BzImage { protocol },
        memory_bytes: u64::from(header.u32_le(0x260)),
        cmdline_bytes_max: header.u32_le(0x238),
    })
}
