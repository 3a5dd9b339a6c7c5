//! Which kernels are taken, and with which sentence is everything else refused?

use std::io::Cursor;

use super::*;
use crate::bytes::read_at;

/// Each case goes through here: the input, and the kernel or the error's text.
fn check(input: &[u8], expected: Result<Kernel, &str>) {
    let seen = inspect(&mut Cursor::new(input)).map_err(|error| error.to_string());
    assert_eq!(seen, expected.map_err(str::to_owned));
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn note(name: &[u8], kind: u32, value: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    let bytes = |field: &[u8]| u32::try_from(field.len()).expect("a short field");
    for number in [bytes(name), bytes(value), kind] {
        note.extend(number.to_le_bytes());
    }
    for field in [name, value] {
        note.extend(field);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

fn elf(notes: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 0x1000];
    put(&mut file, 0, b"\x7fELF\x02\x01\x01");
    put(&mut file, 16, &2u16.to_le_bytes());
    put(&mut file, 18, &62u16.to_le_bytes());
    put(&mut file, 32, &64u64.to_le_bytes());
    put(&mut file, 54, &56u16.to_le_bytes());
    put(&mut file, 56, &3u16.to_le_bytes());
    let segments = [
        (1u32, 0u64, 0x800u64, 0x10_0000u64),
        (1, 0x800, 0x100, 0x200),
        (4, 0x900, notes.len() as u64, notes.len() as u64),
    ];
    for (index, (kind, offset, file_bytes, memory_bytes)) in segments.into_iter().enumerate() {
        let at = 64 + index * 56;
        put(&mut file, at, &kind.to_le_bytes());
        put(&mut file, at + 8, &offset.to_le_bytes());
        put(&mut file, at + 32, &file_bytes.to_le_bytes());
        put(&mut file, at + 40, &memory_bytes.to_le_bytes());
        put(&mut file, at + 48, &4u64.to_le_bytes());
    }
    put(&mut file, 0x900, notes);
    file
}

fn vmlinux() -> Vec<u8> {
    let mut notes = note(b"GNU\0", 3, &[7; 20]);
    notes.extend(note(b"Xen\0", 18, &0x100_0000u64.to_le_bytes()));
    elf(&notes)
}

fn bzimage() -> Vec<u8> {
    let mut file = vec![0; 512 * 3 + 160];
    put(&mut file, 0, b"MZ");
    put(&mut file, 0x1f1, &[2]);
    put(&mut file, 0x1f4, &10u32.to_le_bytes());
    put(&mut file, 0x1fe, &0xaa55u16.to_le_bytes());
    put(&mut file, 0x202, b"HdrS");
    put(&mut file, 0x206, &0x020fu16.to_le_bytes());
    put(&mut file, 0x211, &[1]);
    put(&mut file, 0x236, &0x3fu16.to_le_bytes());
    put(&mut file, 0x238, &2047u32.to_le_bytes());
    put(&mut file, 0x260, &0x30_0000u32.to_le_bytes());
    file
}

fn with(mut file: Vec<u8>, at: usize, value: &[u8]) -> Vec<u8> {
    put(&mut file, at, value);
    file
}

#[test]
fn vmlinux_is_taken() {
    let expected = Kernel {
        format: KernelFormat::Elf,
        memory_bytes: 0x10_0200,
        cmdline_bytes_max: 2047,
    };
    check(&vmlinux(), Ok(expected));
}

#[test]
fn bzimage_is_taken() {
    let format = KernelFormat::BzImage { protocol: (2, 15) };
    check(
        &bzimage(),
        Ok(Kernel {
            format,
            memory_bytes: 0x30_0000,
            cmdline_bytes_max: 2047,
        }),
    );
}

#[test]
fn what_is_no_kernel() {
    check(b"", Err("is empty"));
    check(b"\x01\x02", Err("is no kernel: it has only 2 bytes"));
    check(b"\x7fELF\x02\x01", Err("is no kernel: it has only 6 bytes"));
    check(&[0; 4096], Err("is no x86-64 kernel: it looks like zeros"));
    check(
        b"\x1f\x8b\x08\0\0\0",
        Err("is no x86-64 kernel: it looks like gzip data"),
    );
    check(b"#!/bin/sh\n", Err("is no x86-64 kernel: it looks like a script"));
    check(b"hello\n", Err("is no x86-64 kernel: it looks like text"));
    check(
        &[1; 4096],
        Err("is no x86-64 kernel: it looks like data of an unknown kind"),
    );
}

#[test]
fn wrong_elf() {
    let no_pvh = "has no PVH entry point: it is no Linux kernel, or one built without CONFIG_PVH";
    let file = vmlinux();
    check(
        &with(file.clone(), 18, &183u16.to_le_bytes()),
        Err("is an ELF file for arm64, not for x86-64"),
    );
    check(
        &with(file.clone(), 18, &9999u16.to_le_bytes()),
        Err("is an ELF file for machine number 9999, not for x86-64"),
    );
    check(
        &with(file.clone(), 18, &3u16.to_le_bytes()),
        Err("is a 32-bit x86 kernel, not an x86-64 one"),
    );
    check(
        &with(file.clone(), 4, &[1]),
        Err("is no 64-bit little-endian ELF file"),
    );
    check(
        &with(file.clone(), 16, &1u16.to_le_bytes()),
        Err("is an ELF file of type 1, no executable"),
    );
    let headers = "is a damaged ELF file: its program headers have an impossible size or number";
    check(&with(file.clone(), 56, &0u16.to_le_bytes()), Err(headers));
    check(&with(file.clone(), 56, &0xffffu16.to_le_bytes()), Err(headers));
    check(&with(file.clone(), 32, &u64::MAX.to_le_bytes()), Err(headers));
    let segment = "is a damaged ELF file: a segment has an impossible size";
    check(&with(file.clone(), 64 + 8, &u64::MAX.to_le_bytes()), Err(segment));
    check(&with(file.clone(), 64 + 40, &1u64.to_le_bytes()), Err(segment));
    check(
        &with(file.clone(), 64 + 40, &u64::MAX.to_le_bytes()),
        Err(segment),
    );
    check(
        &file[..0x850],
        Err("is cut short: 2304 bytes belong to it, 2128 are there"),
    );
    check(&elf(&[]), Err(no_pvh));
    check(&elf(&note(b"Xen\0", 18, &[0; 8])), Err(no_pvh));
    check(&elf(&note(b"GNU\0", 18, &[1; 8])), Err(no_pvh));
    check(&elf(&[0xff; 64]), Err(no_pvh));
}

#[test]
fn wrong_bzimage() {
    let file = bzimage();
    check(&file[..0x210], Err("is no kernel: it has only 528 bytes"));
    check(
        &file[..0x300],
        Err("is cut short: 1696 bytes belong to it, 768 are there"),
    );
    check(
        &with(file.clone(), 0x1fe, &[0, 0]),
        Err("has a damaged boot header: the boot flag 0xaa55 is missing"),
    );
    check(
        &with(file.clone(), 0x206, &0x0205u16.to_le_bytes()),
        Err("speaks boot protocol 2.5; 2.12 (Linux 3.8) or newer is needed"),
    );
    check(
        &with(file.clone(), 0x211, &[0]),
        Err("is a zImage, which loads below 1 MiB; a bzImage is needed"),
    );
    check(
        &with(file, 0x236, &[0]),
        Err("is a 32-bit x86 kernel, not an x86-64 one"),
    );
}

#[test]
fn reads_are_bounded() {
    assert_eq!(
        read_at(&mut Cursor::new([1, 2, 3]), 1, 1).expect("in memory"),
        [2]
    );
    assert_eq!(
        read_at(&mut Cursor::new([1, 2, 3]), u64::MAX, 9).expect("in memory"),
        [0; 0]
    );
}
