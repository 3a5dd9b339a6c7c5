//! Which files are within reach?

use std::ffi::{CStr, CString};

use super::targets::{self, Targets, text};
use super::{Attempt, Outcome, any, attempt, done, list, longs, open, read, writable};
use crate::system::call;

pub(super) const ATTEMPTS: &[Attempt] = &[
    attempt("read_passwd", |_| read(c"/etc/passwd")),
    attempt("read_shadow", |_| read(c"/etc/shadow")),
    attempt("read_hostname", |_| read(c"/etc/hostname")),
    attempt("list_root_home", |_| list(c"/root")),
    attempt("list_homes", |_| list(c"/home")),
    attempt("list_logs", |_| list(c"/var/log")),
    attempt("list_tmp", |_| list(c"/tmp")),
    attempt("list_run", |_| list(c"/run")),
    attempt("climb_from_working_directory", |_| {
        read(c"../../../../../../../../etc/passwd")
    }),
    attempt("climb_from_list_of_descriptors", |_| {
        // The list is one of /proc's folders, of which all others are near.
        let near = [
            c"/dev/fd/../environ",
            c"/dev/fd/../../1/comm",
            c"/dev/fd/../root/etc/passwd",
        ];
        any(near, read)
    }),
    attempt("climb_from_descriptors", |_| climb()),
    attempt("unexplained_descriptor", Targets::unexplained),
    attempt("victim_disk_read", |on| read(&on.path("victim.disk")?)),
    attempt("victim_disk_write", |on| writable(&on.path("victim.disk")?)),
    attempt("victim_plan_read", |on| read(&on.record("plan.json")?)),
    attempt("victim_record_read", |on| read(&on.record("record")?)),
    attempt("victim_record_write", |on| writable(&on.record("record")?)),
    attempt("victim_record_list", |on| list(&on.record("")?)),
    attempt("victim_console_write", |on| writable(&on.path("victim.fifo")?)),
    attempt("victim_log_read", |on| read(&on.path("victim.log")?)),
    attempt("tasks_list", |on| {
        list(&text(&format!("{}/tasks", on.word("host.state")?)))
    }),
    attempt("lock_open", |on| {
        open(&text(&format!("{}/lock", on.word("host.state")?)), libc::O_RDWR)?;
        Ok(())
    }),
    attempt("run_directory_list", |on| list(&on.path("host.run")?)),
    attempt("nomad_state_read", |on| {
        read(&text(&format!("{}/client/state.db", on.word("host.data")?)))
    }),
    attempt("own_allocation_list", |on| list(&on.own("")?)),
    attempt("own_secrets_list", |on| list(&on.own("vm/secrets")?)),
    attempt("own_log_read", |on| read(&on.own("alloc/logs/vm.stdout.0")?)),
    attempt("own_log_fifo_write", |on| {
        writable(&on.own("alloc/logs/.vm.stdout.fifo")?)
    }),
    attempt("create_in_root", |_| create(c"/")),
    attempt("create_in_tmp", |_| create(c"/tmp")),
    attempt("create_in_dev_shm", |_| create(c"/dev/shm")),
    attempt("create_in_run", |_| create(c"/run")),
    attempt("create_in_dev", |_| create(c"/dev")),
    attempt("create_beside_program", |on| create(&folder(on.program()))),
    attempt("make_directory", |_| {
        anywhere(|path| done(call!(SYS_mkdir, path, 0o700)))
    }),
    attempt("make_character_device", |_| {
        // The null device, by its number.
        anywhere(|path| done(call!(SYS_mknod, path, libc::S_IFCHR | 0o600, 1 << 8 | 3)))
    }),
    attempt("make_block_device", |_| {
        // The first loop device.
        anywhere(|path| done(call!(SYS_mknod, path, libc::S_IFBLK | 0o600, 7 << 8)))
    }),
    attempt("make_fifo", |_| {
        anywhere(|path| done(call!(SYS_mknod, path, libc::S_IFIFO | 0o600, 0)))
    }),
    attempt("make_symbolic_link", |_| {
        anywhere(|path| done(call!(SYS_symlink, c"/etc/shadow", path)))
    }),
    attempt("make_hard_link", |on| {
        any([c"/etc/hostname", on.program()], |file| {
            anywhere(|path| done(call!(SYS_link, file, path)))
        })
    }),
    attempt("write_library", |_| any(LIBRARIES, writable)),
    attempt("change_mode_of_program", |on| {
        done(call!(SYS_chmod, on.program(), 0o755))
    }),
    attempt("change_times_of_library", |_| any(LIBRARIES, same_times)),
    attempt("reopen_image_for_writing", |on| {
        let image = on.image()?;
        let number = targets::number(&image);
        any(["/dev/fd", "/proc/self/fd"], |folder| {
            open(&text(&format!("{folder}/{number}")), libc::O_RDWR)?;
            Ok(())
        })
    }),
    attempt("change_mode_of_image", |on| {
        done(call!(SYS_fchmod, targets::number(&on.image()?), 0o644))
    }),
    attempt("change_owner_of_image", |on| {
        done(call!(SYS_fchown, targets::number(&on.image()?), 0, 0))
    }),
    attempt("change_times_of_image", |on| {
        // Nanoseconds that mean now, for both.
        const NOW: u64 = (1 << 30) - 1;
        let now = longs(&[0, NOW, 0, NOW]);
        done(call!(SYS_utimensat, targets::number(&on.image()?), 0, &now, 0))
    }),
    attempt("attribute_of_image", |on| {
        let image = on.image()?;
        let number = targets::number(&image);
        let name = c"user.inmate-was-here";
        call!(SYS_fsetxattr, number, name, b"x", 1, 0)?;
        done(call!(SYS_fremovexattr, number, name))
    }),
    attempt("lease_on_image", |on| {
        let image = on.image()?;
        let number = targets::number(&image);
        call!(SYS_fcntl, number, libc::F_SETLEASE, libc::F_RDLCK)?;
        done(call!(SYS_fcntl, number, libc::F_SETLEASE, libc::F_UNLCK))
    }),
    attempt("thaw_file_system", |on| {
        // Of whoever may freeze it (FITHAW), this one is told that it isn't frozen.
        let image = on.image()?;
        super::permitted(
            call!(SYS_ioctl, targets::number(&image), 0xc004_5878_u32, 0),
            &[libc::EINVAL],
        )
    }),
    attempt("disk_write_beyond_end", |on| {
        let (disk, length) = on.disk()?;
        call!(SYS_pwrite64, targets::number(&disk), b"x", 1, length)?;
        done(call!(SYS_ftruncate, targets::number(&disk), length))
    }),
    attempt("disk_grow", |on| {
        let (disk, length) = on.disk()?;
        call!(SYS_ftruncate, targets::number(&disk), length + 4096)?;
        done(call!(SYS_ftruncate, targets::number(&disk), length))
    }),
    attempt("disk_take_room_beyond_end", |on| {
        // Without being longer, which no limit of a file's length sees (FALLOC_FL_KEEP_SIZE).
        let (disk, length) = on.disk()?;
        done(call!(
            SYS_fallocate,
            targets::number(&disk),
            1,
            length + 4096,
            4096
        ))
    }),
    attempt("disk_take_zeroed_room_beyond_end", |on| {
        // The same (FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE).
        let (disk, length) = on.disk()?;
        done(call!(
            SYS_fallocate,
            targets::number(&disk),
            0x11,
            length + 4096,
            4096
        ))
    }),
    attempt("device_mem", |_| read(c"/dev/mem")),
    attempt("device_kmsg_read", |_| read(c"/dev/kmsg")),
    attempt("device_kmsg_write", |_| writable(c"/dev/kmsg")),
    attempt("device_disk", |_| {
        any([c"/dev/vda", c"/dev/sda", c"/dev/nvme0n1", c"/dev/loop0"], read)
    }),
    attempt("device_loop_control", |_| {
        open(c"/dev/loop-control", libc::O_RDWR)
            .map(drop)
            .map_err(Into::into)
    }),
    attempt("device_tun", |_| {
        open(c"/dev/net/tun", libc::O_RDWR).map(drop).map_err(Into::into)
    }),
    attempt("device_fuse", |_| {
        open(c"/dev/fuse", libc::O_RDWR).map(drop).map_err(Into::into)
    }),
    attempt("device_ptmx", |_| {
        open(c"/dev/ptmx", libc::O_RDWR).map(drop).map_err(Into::into)
    }),
    attempt("device_tty", |_| {
        open(c"/dev/tty", libc::O_RDWR).map(drop).map_err(Into::into)
    }),
    attempt("device_console", |_| writable(c"/dev/console")),
    attempt("device_latency", |_| writable(c"/dev/cpu_dma_latency")),
    attempt("shared_memory_file", |on| {
        open(&on.path("bait.file")?, libc::O_RDWR)?;
        Ok(())
    }),
];

const LIBRARIES: [&CStr; 3] = [
    c"/usr/lib/x86_64-linux-gnu/libc.so.6",
    c"/lib/x86_64-linux-gnu/libc.so.6",
    c"/usr/lib64/libc.so.6",
];

/// A name that nothing has.
fn name(folder: &CStr) -> CString {
    let folder = folder.to_string_lossy();
    let id = std::process::id();
    text(&format!("{}/inmate-was-here-{id}", folder.trim_end_matches('/')))
}

fn folder(path: &CStr) -> CString {
    let path = path.to_string_lossy();
    text(path.rsplit_once('/').map_or(".", |(folder, _)| folder))
}

fn create(folder: &CStr) -> Outcome {
    let path = name(folder);
    open(&path, libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL)?;
    remove(&path);
    Ok(())
}

fn remove(path: &CStr) {
    let _file = call!(SYS_unlink, path).or_else(|_| call!(SYS_rmdir, path));
}

/// Makes something wherever it can be made, and takes it away.
fn anywhere(make: impl Fn(&CStr) -> Outcome) -> Outcome {
    let folders = [c"/tmp", c"/", c"/dev", c"/dev/shm", c"/run", c"/var/tmp", c"."];
    any(folders, |folder| {
        let path = name(folder);
        make(&path)?;
        remove(&path);
        Ok(())
    })
}

/// Sets a file's times to what they are.
fn same_times(path: &CStr) -> Outcome {
    // struct stat: the access time is at 72 and the modification time at 88, each of two longs.
    let mut status = [0; 144];
    call!(SYS_stat, path, &mut status)?;
    let mut times = [0; 32];
    if let (Some(access), Some(change)) = (status.get(72..88), status.get(88..104)) {
        times[..16].copy_from_slice(access);
        times[16..].copy_from_slice(change);
    }
    done(call!(SYS_utimensat, libc::AT_FDCWD, path, &times, 0))
}

/// From each directory that is open, the root among them.
fn climb() -> Outcome {
    let root = open(c"/", libc::O_PATH | libc::O_DIRECTORY);
    let path = c"../../../../../../../../etc/passwd";
    let found = any(Targets::every_descriptor(), |directory| {
        super::made(call!(SYS_openat, directory, path, libc::O_RDONLY))
    });
    drop(root);
    found
}
