//! Is this file a Linux kernel that QEMU boots directly on x86-64, and how much memory does it need at least?

mod bzimage;
mod elf;

use std::io::{self, Read, Seek};

use crate::bytes;
use crate::look::{HEAD_BYTES, Look, machine_name};

/// Linux on x86 keeps 2048 bytes for its command line, the last of them a zero (`COMMAND_LINE_SIZE`).
const CMDLINE_BYTES_MAX: u32 = 2047;

/// A kernel that can be booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// How the kernel is packed.
    pub format: KernelFormat,
    /// The guest memory that the kernel's image takes once it is unpacked: a lower bound of what it needs to run.
    pub memory_bytes: u64,
    /// The longest command line that the kernel reads, without the zero at its end.
    pub cmdline_bytes_max: u32,
}

/// How a kernel is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelFormat {
    /// An uncompressed ELF `vmlinux` with a PVH entry point.
    Elf,
    /// A compressed `bzImage`, commonly named `vmlinuz`.
    BzImage {
        /// The version of the Linux/x86 boot protocol, major and minor.
        protocol: (u8, u8),
    },
}

/// Why a file cannot be booted as a kernel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// Reading failed; the source says why.
    #[error("cannot be read")]
    Read(#[from] io::Error),
    /// The file has no content.
    #[error("is empty")]
    Empty,
    /// The file ends before its headers do.
    #[error("is no kernel: it has only {bytes} bytes")]
    TooShort {
        /// The length of the file.
        bytes: u64,
    },
    /// The file is something else.
    #[error("is no x86-64 kernel: it looks like {looks}")]
    NotKernel {
        /// What it looks like.
        looks: Look,
    },
    /// The file is an ELF file for another processor.
    #[error("is an ELF file for {}, not for x86-64", machine_name(*machine))]
    Machine {
        /// The ELF `e_machine`.
        machine: u16,
    },
    /// The file is an x86 ELF file of the wrong class or byte order.
    #[error("is no 64-bit little-endian ELF file")]
    Class,
    /// The file is an ELF object, library or core, not an executable.
    #[error("is an ELF file of type {kind}, no executable")]
    NotExecutable {
        /// The ELF `e_type`.
        kind: u16,
    },
    /// The ELF program headers contradict themselves.
    #[error("is a damaged ELF file: {what}")]
    Damaged {
        /// Which of its headers is wrong.
        what: ElfDamage,
    },
    /// The file is an ELF executable without the note by which QEMU finds the kernel's entry.
    #[error("has no PVH entry point: it is no Linux kernel, or one built without CONFIG_PVH")]
    NoPvhEntry,
    /// The headers name more bytes than the file has.
    #[error("is cut short: {needed} bytes belong to it, {bytes} are there")]
    Truncated {
        /// Where the content should end.
        needed: u64,
        /// The length of the file.
        bytes: u64,
    },
    /// The kernel's boot header lacks its end mark.
    #[error("has a damaged boot header: the boot flag 0xaa55 is missing")]
    NoBootFlag,
    /// The kernel speaks a boot protocol that cannot tell whether it is 64-bit.
    #[error("speaks boot protocol {}.{}; 2.12 (Linux 3.8) or newer is needed", protocol.0, protocol.1)]
    ProtocolTooOld {
        /// The version of the boot protocol.
        protocol: (u8, u8),
    },
    /// The kernel is a zImage, to be loaded below 1 MiB.
    #[error("is a zImage, which loads below 1 MiB; a bzImage is needed")]
    LoadedLow,
    /// The kernel has no 64-bit entry point.
    #[error("is a 32-bit x86 kernel, not an x86-64 one")]
    Not64Bit,
}

/// What is wrong with an ELF file's program headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ElfDamage {
    /// The program headers have an impossible size or number.
    #[error("its program headers have an impossible size or number")]
    ProgramHeaders,
    /// A segment is larger in the file than in memory, or its end overflows.
    #[error("a segment has an impossible size")]
    Segment,
    /// No segment would be loaded.
    #[error("it has nothing to load")]
    NothingToLoad,
}

/// Says what kernel this is, from its headers; reads at most about 100 KiB.
///
/// # Errors
///
/// When the input is no kernel that QEMU boots directly on x86-64, or cannot be read.
pub fn inspect(input: &mut (impl Read + Seek)) -> Result<Kernel, KernelError> {
    let length = bytes::length(input)?;
    if length == 0 {
        return Err(KernelError::Empty);
    }
    let head = bytes::read_at(input, 0, HEAD_BYTES)?;
    match Look::at(&head) {
        Look::Elf(_) => elf::inspect(input, &head, length),
        Look::BzImage => bzimage::inspect(&head, length),
        Look::Unknown if length < 64 => Err(KernelError::TooShort { bytes: length }),
        looks => Err(KernelError::NotKernel { looks }),
    }
}

#[cfg(test)]
mod tests;
