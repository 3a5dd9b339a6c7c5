//! Can another program or process be begun?

use std::ffi::CStr;

use super::targets::{number, text};
use super::{Attempt, Outcome, address, any, attempt, done, longs};
use crate::system::{self, Errno, call};

pub(super) const ATTEMPTS: &[Attempt] = &[
    attempt("fork", |_| Ok(system::fork_call()?)),
    attempt("vfork", |_| Ok(system::vfork()?)),
    attempt("clone_process", |_| clone(0)),
    attempt("clone_process_sharing_files", |_| {
        clone(libc::CLONE_FILES | libc::CLONE_FS)
    }),
    attempt("clone_sibling", |_| clone(libc::CLONE_PARENT)),
    attempt("clone3_process", |_| Ok(system::clone3()?)),
    attempt("fork_by_old_gate", |_| Ok(system::by_old_gate(OLD_FORK, 0)?)),
    attempt("unshare_by_old_gate", |_| {
        let flags = libc::CLONE_NEWNS.cast_unsigned();
        Ok(system::by_old_gate(OLD_UNSHARE, flags)?)
    }),
    attempt("unshare_by_x32", |_| {
        // The same calls under other numbers.
        done(system::by_number(
            0x4000_0000 | libc::SYS_unshare,
            &mut [libc::CLONE_NEWNS.into()],
        ))
    }),
    attempt("run_shell", |_| {
        let shells = [c"/bin/sh", c"/usr/bin/sh", c"/bin/bash", c"/bin/busybox"];
        any(shells, |shell| run(shell, &[shell, c"-c", c":"]))
    }),
    attempt("run_id", |_| run(c"/usr/bin/id", &[c"id"])),
    attempt("run_setuid_program", |_| {
        any([c"/bin/su", c"/usr/bin/su", c"/usr/bin/passwd"], |program| {
            run(program, &[program, c"--help"])
        })
    }),
    attempt("run_itself", |on| {
        run(on.program(), &[on.program(), c"--version"])
    }),
    attempt("run_itself_by_proc", |_| {
        run(c"/proc/self/exe", &[c"qemu", c"--version"])
    }),
    attempt("run_loader", |on| {
        any(LOADERS, |loader| {
            any([c"/bin/true", on.program()], |program| {
                run(loader, &[loader, program, c"--version"])
            })
        })
    }),
    attempt("run_from_memory", |_| {
        let program = in_memory()?;
        let arguments = pointers(&[c"x"]);
        done(call!(
            SYS_execveat,
            number(&program),
            c"",
            &arguments,
            &NOTHING,
            libc::AT_EMPTY_PATH
        ))
    }),
    attempt("run_from_memory_by_path", |_| {
        let program = in_memory()?;
        any(["/dev/fd", "/proc/self/fd"], |folder| {
            run(&text(&format!("{folder}/{}", number(&program))), &[c"x"])
        })
    }),
];

/// Numbers of fork and unshare for 32-bit programs.
const OLD_FORK: u32 = 2;
const OLD_UNSHARE: u32 = 310;

const LOADERS: [&CStr; 3] = [
    c"/lib64/ld-linux-x86-64.so.2",
    c"/usr/lib64/ld-linux-x86-64.so.2",
    c"/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
];

/// A list without an element.
const NOTHING: [u8; 8] = [0; 8];

fn clone(flags: i32) -> Outcome {
    Ok(system::clone(flags | libc::SIGCHLD)?)
}

/// A list of texts as execve(2) takes it.
fn pointers(texts: &[&CStr]) -> Vec<u8> {
    let addresses: Vec<u64> = texts
        .iter()
        .map(|text| address(text.to_bytes_with_nul()))
        .chain([0])
        .collect();
    longs(&addresses)
}

/// Becomes another program. Where it is done, this process ends with that program's status.
fn run(program: &CStr, arguments: &[&CStr]) -> Outcome {
    // What it would say is not for the list.
    for output in [1, 2] {
        call!(SYS_fcntl, output, libc::F_SETFD, libc::FD_CLOEXEC)?;
    }
    done(call!(SYS_execve, program, &pointers(arguments), &NOTHING))
}

/// A program that is no file: it ends at once.
fn in_memory() -> Result<std::os::fd::OwnedFd, Errno> {
    // An executable of 64 bits, whose header says where its only segment and its first instruction are.
    const BASE: u64 = 0x40_0000;
    // xor edi, edi; mov eax, 60 (exit); syscall.
    let code = [0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05];
    let length = 64 + 56 + code.len() as u64;
    let program = [
        b"\x7fELF\x02\x01\x01".as_slice(),
        &[0; 9],
        // An executable (2) for x86-64 (62), version 1; entry, program headers, no sections, flags.
        &[2, 0, 62, 0, 1, 0, 0, 0],
        &longs(&[BASE + 120, 64, 0]),
        &[0; 4],
        // Sizes of the header and of its one program header; no section header.
        &[64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        // One segment to be loaded (1), to be read and executed (5): offset, addresses, lengths, alignment.
        &[1, 0, 0, 0, 5, 0, 0, 0],
        &longs(&[0, BASE, BASE, length, length, 4096]),
        &code,
    ]
    .concat();
    let memory = system::own(call!(SYS_memfd_create, c"inmate", libc::MFD_CLOEXEC)?)?;
    // A limit of a file's length may forbid even that; whether it would be run shows all the same.
    let _written = call!(SYS_write, number(&memory), &program, program.len());
    Ok(memory)
}
