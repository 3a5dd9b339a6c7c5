//! Is this ELF file a vmlinux with a PVH entry point?

use std::io::{Read, Seek};

use super::{CMDLINE_BYTES_MAX, ElfDamage, Kernel, KernelError, KernelFormat};
use crate::bytes::{self, Fields};

const HEADER_BYTES: usize = 64;
const MACHINE_X86_64: u16 = 62;
const MACHINE_I386: u16 = 3;
const TYPE_EXEC: u16 = 2;
const TYPE_DYN: u16 = 3;
const PROGRAM_HEADER_BYTES: u16 = 56;
/// A kernel has five or so; the bound keeps the read small.
const PROGRAM_HEADERS_MAX: u16 = 128;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_NOTE: u32 = 4;
/// A kernel's notes take a few hundred bytes, the entry point among the first.
const NOTES_BYTES_MAX: usize = 64 * 1024;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: the 32-bit physical address at which a PVH loader enters the kernel.
const NOTE_PHYS32_ENTRY: u32 = 18;

pub(super) fn inspect(
    input: &mut (impl Read + Seek),
    head: &[u8],
    length: u64,
) -> Result<Kernel, KernelError> {
    if head.len() < HEADER_BYTES {
        return Err(KernelError::TooShort { bytes: length });
    }
    let header = Fields(head);
    let (class, order, machine) = (header.u8(4), header.u8(5), header.u16_le(18));
    if order != 1 || (class != 2 && machine == MACHINE_X86_64) {
        return Err(KernelError::Class);
    }
    if machine == MACHINE_I386 {
        return Err(KernelError::Not64Bit);
    }
    if machine != MACHINE_X86_64 {
        return Err(KernelError::Machine { machine });
    }
    let kind = header.u16_le(16);
    if kind != TYPE_EXEC && kind != TYPE_DYN {
        return Err(KernelError::NotExecutable { kind });
    }

    let mut memory_bytes: u64 = 0;
    let mut pvh_entry = false;
    for segment in segments(input, header, length)? {
        // Sizes first, so that an end can be compared.
        let end = segment
            .offset
            .checked_add(segment.file_bytes)
            .ok_or(damaged(ElfDamage::Segment))?;
        match segment.kind {
            SEGMENT_LOAD => {
                if segment.file_bytes > segment.memory_bytes {
                    return Err(damaged(ElfDamage::Segment));
                }
                if end > length {
                    return Err(KernelError::Truncated {
                        needed: end,
                        bytes: length,
                    });
                }
                memory_bytes = memory_bytes
                    .checked_add(segment.memory_bytes)
                    .ok_or(damaged(ElfDamage::Segment))?;
            }
            SEGMENT_NOTE if !pvh_entry => {
                let wanted = usize::try_from(segment.file_bytes).unwrap_or(usize::MAX);
                let notes = bytes::read_at(input, segment.offset, wanted.min(NOTES_BYTES_MAX))?;
                pvh_entry = has_pvh_entry(&notes, segment.align);
            }
            _ => {}
        }
    }
    if memory_bytes == 0 {
        return Err(damaged(ElfDamage::NothingToLoad));
    }
    if !pvh_entry {
        return Err(KernelError::NoPvhEntry);
    }
    Ok(Kernel {
        format: KernelFormat::Elf,
        memory_bytes,
        cmdline_bytes_max: CMDLINE_BYTES_MAX,
    })
}

fn damaged(what: ElfDamage) -> KernelError {
    KernelError::Damaged { what }
}

struct Segment {
    kind: u32,
    offset: u64,
    file_bytes: u64,
    memory_bytes: u64,
    align: u64,
}

fn segments(
    input: &mut (impl Read + Seek),
    header: Fields<'_>,
    length: u64,
) -> Result<Vec<Segment>, KernelError> {
    let (offset, size, count) = (header.u64_le(32), header.u16_le(54), header.u16_le(56));
    if size != PROGRAM_HEADER_BYTES || count == 0 || count > PROGRAM_HEADERS_MAX {
        return Err(damaged(ElfDamage::ProgramHeaders));
    }
    let table_bytes = usize::from(size) * usize::from(count);
    let end = offset
        .checked_add(u64::from(size) * u64::from(count))
        .ok_or(damaged(ElfDamage::ProgramHeaders))?;
    if end > length {
        return Err(KernelError::Truncated {
            needed: end,
            bytes: length,
        });
    }
    let table = bytes::read_at(input, offset, table_bytes)?;
    if table.len() < table_bytes {
        // The file shrank while it was read.
        return Err(KernelError::Truncated {
            needed: end,
            bytes: length,
        });
    }
    let segment = |entry: &[u8]| {
        let entry = Fields(entry);
        Segment {
            kind: entry.u32_le(0),
            offset: entry.u64_le(8),
            file_bytes: entry.u64_le(32),
            memory_bytes: entry.u64_le(40),
            align: entry.u64_le(48),
        }
    };
    Ok(table.chunks_exact(usize::from(size)).map(segment).collect())
}

/// Looks for Xen's note with the 32-bit entry point; QEMU takes an entry of zero for none.
fn has_pvh_entry(notes: &[u8], segment_align: u64) -> bool {
    // Notes are padded to 4 bytes, except in a segment aligned to 8.
    let align = if segment_align == 8 { 8 } else { 4 };
    let mut rest = notes;
    while rest.len() >= 12 {
        let header = Fields(rest);
        let (name_bytes, value_bytes, kind) = (header.u32_le(0), header.u32_le(4), header.u32_le(8));
        let Some((name, after_name)) = padded(&rest[12..], name_bytes, align) else {
            return false;
        };
        let Some((value, after_value)) = padded(after_name, value_bytes, align) else {
            return false;
        };
        if name == b"Xen\0" && kind == NOTE_PHYS32_ENTRY && value.len() >= 4 {
            return Fields(value).u32_le(0) != 0;
        }
        rest = after_value;
    }
    false
}

/// Splits a field of `bytes` bytes and its padding from the front; the padding at the very end may be missing.
fn padded(from: &[u8], bytes: u32, align: usize) -> Option<(&[u8], &[u8])> {
    let bytes = usize::try_from(bytes).ok()?;
    let field = from.get(..bytes)?;
    let next = bytes.checked_next_multiple_of(align)?.min(from.len());
    Some((field, from.get(next..)?))
}
