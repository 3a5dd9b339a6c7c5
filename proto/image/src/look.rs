//! What does a file that is not what it should be look like?
//!
//! Only for the text of an error: nothing is ever decided by it.

use std::fmt;

use crate::bytes::Fields;

/// How many bytes of a file's beginning are looked at.
pub(crate) const HEAD_BYTES: usize = 1024;

/// A guess at the content of a file, from its first bytes; its text is a noun with its article.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
    /// xz.
    Xz,
    /// bzip2.
    Bzip2,
    /// LZ4 in its frame format.
    Lz4Frame,
    /// LZ4 in its legacy format.
    Lz4Legacy,
    /// The old "lzma alone" format.
    Lzma,
    /// LZO as written by `lzop`.
    Lzo,
    /// An ELF file for this `e_machine`.
    Elf(u16),
    /// A Linux kernel for arm64.
    Arm64Kernel,
    /// A Linux kernel for x86 with a boot sector and header.
    BzImage,
    /// A DOS, Windows or EFI program.
    Pe,
    /// A U-Boot image.
    UBoot,
    /// A cpio archive.
    Cpio,
    /// A tar archive.
    Tar,
    /// A zip archive.
    Zip,
    /// A qcow2 or qcow image.
    Qcow,
    /// A VMDK image.
    Vmdk,
    /// A VHDX image.
    Vhdx,
    /// A VDI image.
    Vdi,
    /// A squashfs file system.
    Squashfs,
    /// A disk with a boot sector.
    BootSector,
    /// A file that begins with `#!`.
    Script,
    /// An HTML page; most often the error page of a download.
    Html,
    /// Printable text.
    Text,
    /// Nothing but zeros at the beginning.
    Zeros,
    /// None of the above.
    Unknown,
}

impl Look {
    /// Guesses from the first bytes of a file; a kibibyte is enough.
    #[must_use]
    pub fn at(head: &[u8]) -> Self {
        const MAGICS: &[(&[u8], Look)] = &[
            (&[0x1f, 0x8b], Look::Gzip),
            (&[0x28, 0xb5, 0x2f, 0xfd], Look::Zstd),
            (b"\xfd7zXZ\0", Look::Xz),
            (b"BZh", Look::Bzip2),
            (&[0x04, 0x22, 0x4d, 0x18], Look::Lz4Frame),
            (&[0x02, 0x21, 0x4c, 0x18], Look::Lz4Legacy),
            (&[0x5d, 0, 0], Look::Lzma),
            (&[0x89, b'L', b'Z', b'O'], Look::Lzo),
            (&[0x27, 0x05, 0x19, 0x56], Look::UBoot),
            (b"07070", Look::Cpio),
            (b"PK\x03\x04", Look::Zip),
            (b"QFI\xfb", Look::Qcow),
            (b"KDMV", Look::Vmdk),
            (b"# Disk DescriptorFile", Look::Vmdk),
            (b"vhdxfile", Look::Vhdx),
            (b"<<< ", Look::Vdi),
            (b"hsqs", Look::Squashfs),
            (b"#!", Look::Script),
        ];
        let fields = Fields(head);
        let has = |at: usize, magic: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(magic));
        if has(0, b"\x7fELF") {
            return Look::Elf(fields.u16_le(18));
        }
        if has(0x202, b"HdrS") {
            return Look::BzImage;
        }
        if has(0x38, b"ARM\x64") {
            return Look::Arm64Kernel;
        }
        if has(257, b"ustar") {
            return Look::Tar;
        }
        if let Some((_, look)) = MAGICS.iter().find(|(magic, _)| has(0, magic)) {
            return *look;
        }
        if has(0, b"MZ") {
            return Look::Pe;
        }
        if has(510, &[0x55, 0xaa]) {
            return Look::BootSector;
        }
        if !head.is_empty() && head.iter().all(|byte| *byte == 0) {
            return Look::Zeros;
        }
        text(head)
    }
}

fn text(head: &[u8]) -> Look {
    let printable = |byte: &u8| matches!(byte, b'\t' | b'\n' | b'\r' | 0x20..=0x7e | 0x80..);
    // Bytes above ASCII count as text only where they are UTF-8; the head may cut the last character.
    let utf8 = match std::str::from_utf8(head) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none(),
    };
    if head.is_empty() || !utf8 || !head.iter().all(printable) {
        return Look::Unknown;
    }
    let start = head.trim_ascii_start();
    let begins = |word: &[u8]| {
        start
            .get(..word.len())
            .is_some_and(|s| s.eq_ignore_ascii_case(word))
    };
    if begins(b"<!doctype html") || begins(b"<html") {
        Look::Html
    } else {
        Look::Text
    }
}

impl fmt::Display for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self {
            Look::Gzip => "gzip data",
            Look::Zstd => "zstd data",
            Look::Xz => "xz data",
            Look::Bzip2 => "bzip2 data",
            Look::Lz4Frame | Look::Lz4Legacy => "lz4 data",
            Look::Lzma => "lzma data",
            Look::Lzo => "lzo data",
            Look::Elf(machine) => return write!(f, "an ELF file for {}", machine_name(*machine)),
            Look::Arm64Kernel => "a Linux kernel for arm64",
            Look::BzImage => "a Linux kernel for x86",
            Look::Pe => "a Windows or EFI program",
            Look::UBoot => "a U-Boot image",
            Look::Cpio => "a cpio archive",
            Look::Tar => "a tar archive",
            Look::Zip => "a zip archive",
            Look::Qcow => "a qcow2 image",
            Look::Vmdk => "a VMDK image",
            Look::Vhdx => "a VHDX image",
            Look::Vdi => "a VDI image",
            Look::Squashfs => "a squashfs image",
            Look::BootSector => "a disk with a boot sector",
            Look::Script => "a script",
            Look::Html => "an HTML page",
            Look::Text => "text",
            Look::Zeros => "zeros",
            Look::Unknown => "data of an unknown kind",
        };
        f.write_str(words)
    }
}

/// A readable name for an ELF `e_machine`.
pub(crate) fn machine_name(machine: u16) -> String {
    let name = match machine {
        2 | 18 | 43 => "SPARC",
        3 => "32-bit x86",
        8 => "MIPS",
        20 => "PowerPC",
        21 => "64-bit PowerPC",
        22 => "s390",
        40 => "32-bit ARM",
        50 => "Itanium",
        62 => "x86-64",
        183 => "arm64",
        243 => "RISC-V",
        247 => "BPF",
        258 => "LoongArch",
        _ => return format!("machine number {machine}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks() {
        for (head, words) in [
            (&b"\x1f\x8b\x08\0"[..], "gzip data"),
            (b"#!/bin/sh\necho", "a script"),
            (b"  <!DOCTYPE html><html>404", "an HTML page"),
            (b"hello\nworld\xc3\xa9", "text"),
            (b"hello\xff", "data of an unknown kind"),
            (&[0; 600], "zeros"),
            (b"", "data of an unknown kind"),
            (b"MZ\x90\0", "a Windows or EFI program"),
            (b"QFI\xfb\0\0\0\x03", "a qcow2 image"),
            (
                b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xb7\0",
                "an ELF file for arm64",
            ),
        ] {
            assert_eq!(Look::at(head).to_string(), words, "{head:?}");
        }
    }
}
