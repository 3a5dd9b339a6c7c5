//! What happens to links and tables without our doing?
//!
//! The kernel tells of it; what it told of while nobody listened is lost, and then everything has to be looked at.

use std::io;
use std::time::{Duration, Instant};

use netd_plan::Link;
use netlink_packet_core::NetlinkBuffer;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use crate::observe;

// Numbers of linux/rtnetlink.h and linux/netfilter/nfnetlink.h.
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const NFNLGRP_NFTABLES: u32 = 7;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const AF_UNSPEC: u8 = 0;

/// Enough for what a thousand links do at once.
const BUFFER: usize = 4 << 20;
/// Told of at once.
const CHANGES_MAX: usize = 256;
/// How often everything is looked at.
const PERIOD: Duration = Duration::from_secs(30);
/// Transactions of nftables that follow another one closely are told of together: each of ours is one, too.
const TABLES_REST: Duration = Duration::from_millis(100);

/// Something happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// To links.
    Links(Vec<Change>),
    /// To links, and nobody knows what.
    Lost,
    /// To addresses of the host's links.
    Addresses,
    /// To tables of nftables, ours or not.
    Tables,
    /// Nothing that is known of; but it is time to look at everything.
    Nothing,
}

/// What became of a link.
#[derive(Debug)]
pub(crate) struct Change {
    /// What it is now.
    pub(crate) link: Link,
    /// It is gone.
    pub(crate) gone: bool,
}

/// Sockets that hear of links and of tables.
#[derive(Debug)]
pub(crate) struct Events {
    links: Socket,
    addresses: Socket,
    tables: Socket,
}

impl Events {
    /// From now on nothing is missed.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self {
            links: open(NETLINK_ROUTE, RTNLGRP_LINK)?,
            addresses: open(NETLINK_ROUTE, RTNLGRP_IPV4_IFADDR)?,
            tables: open(NETLINK_NETFILTER, NFNLGRP_NFTABLES)?,
        })
    }

    /// Tells of what happens until `tell` says that nobody wants to know.
    pub(crate) fn listen(self, mut tell: impl FnMut(Event) -> bool) -> io::Result<()> {
        let mut room = vec![0; 32 * 1024];
        let mut period = Instant::now() + PERIOD;
        // When tables may be told of again, and whether they are to be.
        let (mut rested, mut due) = (Instant::now(), false);
        loop {
            let until = if due { rested.min(period) } else { period };
            let wait = until.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(wait).ok();
            let sockets = [&self.links, &self.addresses, &self.tables];
            let mut ready = sockets.map(|socket| PollFd::new(socket, PollFlags::IN));
            match poll(&mut ready, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let [links, addresses, tables] = ready.map(|fd| !fd.revents().is_empty());
            if links && !tell(self.links(&mut room)?) {
                return Ok(());
            }
            if addresses {
                drain(&self.addresses)?;
                if !tell(Event::Addresses) {
                    return Ok(());
                }
            }
            if tables {
                drain(&self.tables)?;
                due = true;
            }
            let now = Instant::now();
            if due && rested <= now {
                (rested, due) = (now + TABLES_REST, false);
                if !tell(Event::Tables) {
                    return Ok(());
                }
            }
            if period <= now {
                period = now + PERIOD;
                if !tell(Event::Nothing) {
                    return Ok(());
                }
            }
        }
    }

    fn links(&self, room: &mut [u8]) -> io::Result<Event> {
        let mut changes = Vec::new();
        while changes.len() < CHANGES_MAX {
            match self.links.recv(&mut &mut *room, 0) {
                Ok(length) => read(room.get(..length).unwrap_or_default(), &mut changes),
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::AGAIN | Errno::INTR) => break,
                    Some(Errno::NOBUFS) => return Ok(Event::Lost),
                    _ => return Err(error),
                },
            }
        }
        Ok(Event::Links(changes))
    }
}

/// What these events say is not read, and losing some is no matter.
fn drain(socket: &Socket) -> io::Result<()> {
    let mut room = [0; 16];
    loop {
        match socket.recv(&mut &mut room[..], 0) {
            Ok(_) => {}
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::AGAIN | Errno::INTR) => return Ok(()),
                Some(Errno::NOBUFS) => {}
                _ => return Err(error),
            },
        }
    }
}

fn open(part: isize, group: u32) -> io::Result<Socket> {
    let mut socket = Socket::new(part)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    // Without the privilege it stays as small as it is.
    let _enlarged = set_socket_recv_buffer_size_force(&socket, BUFFER);
    socket.add_membership(group)?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

fn read(mut rest: &[u8], changes: &mut Vec<Change>) {
    while let Ok(buffer) = NetlinkBuffer::new_checked(rest) {
        let (kind, payload) = (buffer.message_type(), buffer.payload());
        // What a bridge says of its ports comes as another family.
        if matches!(kind, RTM_NEWLINK | RTM_DELLINK)
            && payload.first() == Some(&AF_UNSPEC)
            && let Some(link) = observe::link(payload)
        {
            let gone = kind == RTM_DELLINK;
            changes.push(Change { link, gone });
        }
        let length = usize::try_from(buffer.length()).unwrap_or(usize::MAX);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}
