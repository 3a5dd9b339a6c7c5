//! How do frames pass between monitor and supervisor?
//!
//! Over a sequenced-packet socket pair: one frame, one packet.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use steppe_vm::frame::{FACT_BYTES, Fact, WISH_MAX_BYTES, Wish};

/// The two ends, both closed on exec; neither ever blocks.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}

/// Sends one wish. The packet fits the socket's buffer, and there are few in a machine's life.
pub(crate) fn send_wish(socket: &OwnedFd, wish: &Wish) -> Result<(), Errno> {
    rustix::net::send(socket, &wish.to_packet(), SendFlags::NOSIGNAL).map(drop)
}

/// Receives one wish; `None` when the supervisor is gone, or sent what is no wish and counts as gone.
pub(crate) fn receive_wish(socket: &OwnedFd) -> Result<Option<Wish>, Errno> {
    // One more than the largest: a longer packet is cut there and doesn't look like one that fits.
    let mut packet = [0; WISH_MAX_BYTES + 1];
    let (_, length) = rustix::net::recv(socket, &mut packet, RecvFlags::empty())?;
    Ok(Wish::from_packet(packet.get(..length).unwrap_or_default()))
}

/// Sends one fact.
pub(crate) fn send_fact(socket: &OwnedFd, fact: Fact) -> Result<(), Errno> {
    rustix::net::send(socket, &fact.to_packet(), SendFlags::NOSIGNAL).map(drop)
}

/// Receives one fact; `None` when the monitor is gone.
pub(crate) fn receive_fact(socket: &OwnedFd) -> Result<Option<Fact>, Errno> {
    let mut packet = [0; FACT_BYTES + 1];
    let (_, length) = rustix::net::recv(socket, &mut packet, RecvFlags::empty())?;
    Ok(Fact::from_packet(packet.get(..length).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_side_hears_the_other_and_its_end() {
        let (monitor, supervisor) = pair().unwrap();
        send_wish(&supervisor, &Wish::Kill).unwrap();
        assert_eq!(receive_wish(&monitor), Ok(Some(Wish::Kill)));
        assert_eq!(receive_wish(&monitor), Err(Errno::AGAIN));
        send_fact(&monitor, Fact::Recorded).unwrap();
        assert_eq!(receive_fact(&supervisor), Ok(Some(Fact::Recorded)));
        // A packet that is too long is not read as its own beginning.
        let long = vec![1; WISH_MAX_BYTES + 5];
        rustix::net::send(&supervisor, &long, SendFlags::NOSIGNAL).unwrap();
        assert_eq!(receive_wish(&monitor), Ok(None));
        drop(supervisor);
        assert_eq!(receive_wish(&monitor), Ok(None));
    }
}
