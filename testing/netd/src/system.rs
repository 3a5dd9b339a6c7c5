//! Which calls of the kernel have no safe function?

#![expect(unsafe_code, reason = "calls of the kernel that no library of ours offers")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use rustix::thread::UnshareFlags;

fn checked(answer: libc::c_long) -> io::Result<libc::c_long> {
    if answer < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(answer)
    }
}

/// Takes this thread, and it alone, into a new network namespace.
pub(crate) fn leave_network_namespace() -> io::Result<()> {
    // SAFETY: no memory and no descriptor table is unshared.
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?)
}

/// Makes this thread, and it alone, another user's, without capabilities.
pub(crate) fn become_user(uid: u32) -> io::Result<()> {
    let uid = libc::c_long::from(uid);
    // SAFETY: the system call takes three numbers. libc's function would change every thread.
    checked(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })?;
    Ok(())
}

/// Attaches a descriptor of /dev/net/tun to a tap device.
pub(crate) fn attach_tap(tun: &File, name: &str, multi_queue: bool) -> io::Result<()> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: libc::c_short::try_from(flags).expect("flags of a tap fit"),
        },
    };
    let bytes = name.as_bytes();
    assert!(bytes.len() < libc::IFNAMSIZ, "{name} is no name of a link");
    for (place, byte) in request.ifr_name.iter_mut().zip(bytes) {
        *place = libc::c_char::from_ne_bytes([*byte]);
    }
    // SAFETY: the kernel reads and writes an ifreq, which the request is.
    let answer = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    checked(answer.into())?;
    Ok(())
}
