//! How does QEMU get a network interface without any power over networks?
//!
//! A tap device that is there may be opened by the user it belongs to. So the monitor opens the device of all of them, in the
//! host's network namespace, and the new process says which one it means, once it is that user: it needs no capability, and a
//! device that isn't its own, or isn't there, is refused by the kernel.

#![expect(unsafe_code, reason = "the kernel knows tap devices by ioctl alone")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// `struct ifreq` (linux/if.h) as TUNSETIFF takes it.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// What is asked of the kernel for a queue of this device: frames of Ethernet, with nothing but virtio's header before each.
pub(crate) fn request(name: &str, multi_queue: bool) -> Request {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let mut request = Request {
        name: [0; libc::IFNAMSIZ],
        // 15 bits hold them all.
        flags: flags.try_into().unwrap_or_default(),
        rest: [0; 22],
    };
    // The plan's check has made sure that the name is shorter; the last byte stays zero in any case.
    let room = request.name.iter_mut().take(libc::IFNAMSIZ - 1);
    for (place, byte) in room.zip(name.bytes()) {
        *place = byte;
    }
    request
}

/// The device of all tap devices.
pub(crate) const DEVICE: &str = "/dev/net/tun";

/// Opens it: the network namespace that this process is in is the one in which the tap is looked for.
pub(crate) fn open() -> Result<OwnedFd, Errno> {
    rustix::fs::open(
        DEVICE,
        OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
    )
}

/// Makes an open device one queue of the tap.
///
/// # Safety
/// May be called between fork and exec: a system call only.
pub(crate) unsafe fn attach(device: &OwnedFd, request: &Request) -> Result<(), i32> {
    // The kernel writes to it.
    let mut request = *request;
    // SAFETY: the kernel reads and writes a `struct ifreq`, whose size and layout the type has.
    if unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_what_the_kernel_reads() {
        assert_eq!(size_of::<Request>(), size_of::<libc::ifreq>());
        let one = request("ndtabcdefghij", false);
        assert_eq!(&one.name, b"ndtabcdefghij\0\0\0");
        assert_eq!((one.flags, request("x", true).flags), (0x5002, 0x5102));
        assert_eq!(request(&"x".repeat(99), false).name[14..], *b"x\0");
    }
}
