//! How are frames sent out of a link, and answers to a probe heard there?
//!
//! A packet socket hears a frame before a bridge takes it from its port. The kernel hands over only ARP and the two messages of
//! neighbour discovery that matter, and only of the one VLAN.

#![expect(unsafe_code, reason = "packet sockets have no safe form")]

use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};

/// Of a frame nothing beyond this is looked at: a neighbour message with its options.
pub(crate) const FRAME_MAX: usize = 128;

// Numbers of linux/filter.h: where the kernel keeps what is not in the frame itself.
const SKF_AD_OFF: u32 = 0xffff_f000;
const SKF_AD_VLAN_TAG: u32 = SKF_AD_OFF + 44;
const SKF_AD_VLAN_TAG_PRESENT: u32 = SKF_AD_OFF + 48;
const VLAN_VID_MASK: u32 = 0xfff;
// Of linux/bpf_common.h.
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const AND: u16 = 0x54;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// A socket on one link that hears answers of one VLAN, or such without a tag.
#[derive(Debug)]
pub(crate) struct Packet(OwnedFd);

impl Packet {
    pub(crate) fn open(index: u32, vid: Option<u16>) -> Result<Self, Errno> {
        // Without a protocol it hears nothing until it is bound, when the filter is there.
        let socket = socket_with(
            AddressFamily::PACKET,
            SocketType::RAW,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        let mut filter = filter(vid);
        let program = libc::sock_fprog {
            len: u16::try_from(filter.len()).map_err(|_| Errno::INVAL)?,
            filter: filter.as_mut_ptr(),
        };
        set(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
        set(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1_i32)?;
        // SAFETY: all-zero bytes are a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).map_err(|_| Errno::INVAL)?;
        address.sll_protocol = u16::try_from(libc::ETH_P_ALL).map_err(|_| Errno::INVAL)?.to_be();
        address.sll_ifindex = i32::try_from(index).map_err(|_| Errno::NODEV)?;
        let length = libc::socklen_t::try_from(size_of_val(&address)).map_err(|_| Errno::INVAL)?;
        // SAFETY: the pointer and the length are those of `address`.
        let code = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
        if code == 0 { Ok(Self(socket)) } else { Err(last()) }
    }

    pub(crate) fn send(&self, frame: &[u8]) -> Result<(), Errno> {
        send(&self.0, frame, SendFlags::empty()).map(|_| ())
    }

    /// The next frame that waits.
    pub(crate) fn receive<'a>(&self, room: &'a mut [u8; FRAME_MAX]) -> Result<Option<&'a [u8]>, Errno> {
        match recv(&self.0, &mut room[..], RecvFlags::empty()) {
            Ok((length, _)) => Ok(Some(room.get(..length).unwrap_or_default())),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Packet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn set<T>(socket: &OwnedFd, level: i32, option: i32, value: &T) -> Result<(), Errno> {
    let length = libc::socklen_t::try_from(size_of::<T>()).map_err(|_| Errno::INVAL)?;
    // SAFETY: the pointer and the length are those of `value`, which outlives the call.
    let code = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            length,
        )
    };
    if code == 0 { Ok(()) } else { Err(last()) }
}

fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// ARP, and neighbour solicitations and advertisements, of the VLAN.
fn filter(vid: Option<u16>) -> Vec<libc::sock_filter> {
    // Jumps are counted from the next instruction; a frame that is not wanted goes to the last but one.
    let tag: Vec<(u16, u32)> = match vid {
        Some(vid) => vec![
            (LOAD_WORD, SKF_AD_VLAN_TAG_PRESENT),
            (JUMP_EQUAL, 1),
            (LOAD_WORD, SKF_AD_VLAN_TAG),
            (AND, VLAN_VID_MASK),
            (JUMP_EQUAL, u32::from(vid)),
        ],
        None => vec![(LOAD_WORD, SKF_AD_VLAN_TAG_PRESENT), (JUMP_EQUAL, 0)],
    };
    let mut program = Vec::new();
    let rest = 10;
    let length = u8::try_from(tag.len()).unwrap_or(u8::MAX);
    for (place, (code, operand)) in (0_u8..).zip(tag) {
        let away = (length - place - 1) + rest - 2;
        program.push(instruction(
            code,
            0,
            if code == JUMP_EQUAL { away } else { 0 },
            operand,
        ));
    }
    program.extend([
        instruction(LOAD_HALF, 0, 0, 12),
        instruction(JUMP_EQUAL, 7, 0, 0x0806),
        instruction(JUMP_EQUAL, 0, 5, 0x86dd),
        instruction(LOAD_BYTE, 0, 0, 20),
        instruction(JUMP_EQUAL, 0, 3, 58),
        instruction(LOAD_BYTE, 0, 0, 54),
        instruction(JUMP_EQUAL, 2, 0, 135),
        instruction(JUMP_EQUAL, 1, 0, 136),
        instruction(RETURN, 0, 0, 0),
        instruction(RETURN, 0, 0, u32::try_from(FRAME_MAX).unwrap_or_default()),
    ]);
    program
}

fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}
