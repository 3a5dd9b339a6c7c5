//! How is a tap made so that a crash leaves either none or a finished one?
//!
//! A tap that a process opened goes with that process until `TUNSETPERSIST`. netd holds it open while it sets it up, and
//! makes it persistent last.

#![expect(unsafe_code, reason = "the ioctls of taps have no safe form")]

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Opcode, Updater, ioctl};

// Numbers of linux/if_tun.h.
const TUNSETIFF: Opcode = 0x4004_54ca;
const TUNSETPERSIST: Opcode = 0x4004_54cb;
const TUNSETOWNER: Opcode = 0x4004_54cc;
const IFF_TAP: u16 = 0x0002;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
/// Never opens one that exists: that would be somebody else's.
const IFF_TUN_EXCL: u16 = 0x8000;

/// `struct ifreq`, as far as `TUNSETIFF` looks at it: a name that ends in NUL, and flags.
#[repr(C)]
struct Request {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// Makes a tap, which is gone when the descriptor is closed.
pub(crate) fn make(name: &str, multi_queue: bool) -> Result<OwnedFd, Errno> {
    let mut request = Request {
        name: [0; 16],
        flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL,
        rest: [0; 22],
    };
    if multi_queue {
        request.flags |= IFF_MULTI_QUEUE;
    }
    // The last byte stays NUL.
    let room = request.name.get_mut(..name.len()).filter(|room| room.len() < 16);
    room.ok_or(Errno::NAMETOOLONG)?.copy_from_slice(name.as_bytes());
    let tap = rustix::fs::open("/dev/net/tun", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: TUNSETIFF reads and writes an ifreq, whose size and layout `Request` has.
    unsafe { ioctl(&tap, Updater::<TUNSETIFF, Request>::new(&mut request)) }?;
    Ok(tap)
}

/// Lets one user open it; without an owner any user could.
pub(crate) fn set_owner(tap: impl AsFd, uid: u32) -> Result<(), Errno> {
    let uid = usize::try_from(uid).map_err(|_| Errno::INVAL)?;
    // SAFETY: TUNSETOWNER takes a number.
    unsafe { ioctl(tap, IntegerSetter::<TUNSETOWNER>::new_usize(uid)) }
}

/// Makes it outlive its descriptor.
pub(crate) fn persist(tap: impl AsFd) -> Result<(), Errno> {
    // SAFETY: TUNSETPERSIST takes a number.
    unsafe { ioctl(tap, IntegerSetter::<TUNSETPERSIST>::new_usize(1)) }
}
