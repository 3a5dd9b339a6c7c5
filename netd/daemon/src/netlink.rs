//! What is asked of the kernel by netlink, and what does it answer?
//!
//! The kernel does the whole of a request inside `send`, so a blocking socket waits for nothing but the kernel's own lock,
//! and a request costs two system calls. Answers are handed on as bytes: whoever wants something of them reads what it
//! knows and passes over the rest, so that an alias of odd bytes on somebody's link spoils nothing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_packet_core::{
    NLA_HEADER_SIZE, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable, NlasIterator,
};
use netlink_sys::{Socket, SocketAddr};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

/// The kernel never needs more for one datagram of a dump.
const DATAGRAM_MAX: usize = 32 * 1024;

/// The kernel answers within `send`; this is only so that no wait is without a deadline.
const DEADLINE: Duration = Duration::from_secs(10);

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Why the kernel did not do what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{words}", io::Error::from(*errno))]
pub struct KernelError {
    /// The kernel's number of it.
    pub errno: Errno,
    /// What it says besides: empty, or in brackets.
    pub words: String,
}

impl From<Errno> for KernelError {
    fn from(errno: Errno) -> Self {
        Self {
            errno,
            words: String::new(),
        }
    }
}

impl From<io::Error> for KernelError {
    fn from(error: io::Error) -> Self {
        Self::from(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}

/// A socket to one of the kernel's parts, such as `NETLINK_ROUTE`, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    answer: Box<[u8]>,
}

impl Netlink {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// When the kernel gives none.
    pub fn open(part: isize) -> io::Result<Self> {
        let mut socket = Socket::new(part)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_ext_ack(true)?;
        // Of a refused request only the header comes back.
        socket.set_cap_ack(true)?;
        // Filters of a dump are obeyed, or refused.
        socket.set_netlink_get_strict_chk(true)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(DEADLINE))?;
        Ok(Self {
            socket,
            sequence: 0,
            answer: vec![0; DATAGRAM_MAX].into_boxed_slice(),
        })
    }

    /// For calls that take any socket of the namespace.
    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Makes a request that changes something.
    pub(crate) fn request(
        &mut self,
        message: impl NetlinkSerializable,
        flags: u16,
    ) -> Result<(), KernelError> {
        self.exchange(message, NLM_F_ACK | flags, &mut |_, _| {})
            .map(|_| ())
    }

    /// Asks for one thing; `visit` gets the answer's kind and bytes.
    pub(crate) fn get(
        &mut self,
        message: impl NetlinkSerializable,
        visit: &mut dyn FnMut(u16, &[u8]),
    ) -> Result<(), KernelError> {
        self.exchange(message, NLM_F_ACK, visit).map(|_| ())
    }

    /// Asks for all there is; whether things changed meanwhile, so that something may be missing or there twice.
    pub(crate) fn dump(
        &mut self,
        message: impl NetlinkSerializable,
        visit: &mut dyn FnMut(u16, &[u8]),
    ) -> Result<bool, KernelError> {
        self.exchange(message, NLM_F_DUMP, visit)
    }

    fn exchange(
        &mut self,
        message: impl NetlinkSerializable,
        flags: u16,
        visit: &mut dyn FnMut(u16, &[u8]),
    ) -> Result<bool, KernelError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message =
            NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(message));
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut interrupted = false;
        loop {
            let length = match self.socket.recv(&mut &mut self.answer[..], 0) {
                Ok(length) => length,
                // A signal ends a wait that has a deadline.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            let mut rest = self.answer.get(..length).unwrap_or_default();
            while let Ok(buffer) = NetlinkBuffer::new_checked(rest) {
                let (kind, flags, payload) = (buffer.message_type(), buffer.flags(), buffer.payload());
                // What is left of an exchange that was given up.
                let ours = buffer.sequence_number() == self.sequence;
                let next = (usize::try_from(buffer.length()).unwrap_or(usize::MAX)).next_multiple_of(4);
                rest = rest.get(next..).unwrap_or_default();
                if !ours {
                    continue;
                }
                interrupted |= flags & NLM_F_DUMP_INTR != 0;
                match kind {
                    NLMSG_ERROR => return ended(flags, payload, 20).map(|()| interrupted),
                    NLMSG_DONE => return ended(flags, payload, 4).map(|()| interrupted),
                    _ => visit(kind, payload),
                }
            }
        }
    }
}

/// What the last message of an exchange says: a negative error number or 0, and attributes from `attributes` on.
fn ended(flags: u16, payload: &[u8], attributes: usize) -> Result<(), KernelError> {
    let code = number(payload.get(..4)).map_or(0, u32::cast_signed);
    if code >= 0 {
        return Ok(());
    }
    let mut words = String::new();
    if flags & NLM_F_ACK_TLVS != 0 {
        for (kind, value) in self::attributes(payload.get(attributes..).unwrap_or_default()) {
            if kind == NLMSGERR_ATTR_MSG {
                words = format!(" ({})", text(value));
            }
        }
    }
    Err(KernelError {
        errno: Errno::from_raw_os_error(code.saturating_neg()),
        words,
    })
}

/// The attributes of a message or within an attribute, kind and value, up to the first that is malformed.
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(|attribute| {
        let attribute = attribute.ok()?;
        let (kind, end) = (attribute.kind(), usize::from(attribute.length()));
        Some((kind, attribute.into_inner().get(NLA_HEADER_SIZE..end)?))
    })
}

/// A number of four bytes, in the host's order.
pub(crate) fn number(bytes: Option<&[u8]>) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes?.try_into().ok()?))
}

/// Text that the kernel gives, with or without a final NUL; what is no UTF-8 is replaced.
pub(crate) fn text(bytes: &[u8]) -> String {
    let bytes = bytes.strip_suffix(&[0]).unwrap_or(bytes);
    String::from_utf8_lossy(bytes).into_owned()
}
