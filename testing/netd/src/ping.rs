//! Does an address answer to an echo request?
//!
//! By a socket of the kernel's, which any namespace answers: no program is needed on either side.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, sockopt};

use crate::space::Space;
use crate::wait::PATIENCE;

/// Data of an echo request whose size does not matter.
pub(crate) const SIZE: usize = 32;

/// Until the next try: a neighbour's address may be resolved only after the first.
const PAUSE: Duration = Duration::from_millis(200);

/// Headers of IP and ICMP before the data.
pub(crate) const fn headers(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(_) => 20 + 8,
        IpAddr::V6(_) => 40 + 8,
    }
}

/// Asks until there is an answer; the packets are never fragmented. False where the way takes no packet of this size.
pub(crate) fn answers(space: &Space, address: IpAddr, size: usize) -> bool {
    let deadline = Instant::now() + PATIENCE;
    match try_until(space, address, size, deadline) {
        Ok(()) => true,
        Err(Errno::MSGSIZE | Errno::TIMEDOUT) => false,
        Err(error) => panic!("{} asks {address}: {error}", space.name()),
    }
}

fn try_until(space: &Space, address: IpAddr, size: usize, deadline: Instant) -> Result<(), Errno> {
    // Who may use such sockets is a matter of groups.
    space.set("ipv4/ping_group_range", "0 2147483647");
    let (family, protocol, kind) = match address {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128),
    };
    let socket = space.enter(|| {
        rustix::net::socket_with(
            family,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            Some(protocol),
        )
    })?;
    match address {
        IpAddr::V4(_) => sockopt::set_ip_mtu_discover(&socket, sockopt::Ipv4PathMtuDiscovery::DO),
        IpAddr::V6(_) => sockopt::set_ipv6_mtu_discover(&socket, sockopt::Ipv6PathMtuDiscovery::DO),
    }?;
    rustix::net::connect(&socket, &SocketAddr::new(address, 0))?;
    let mut request = vec![kind, 0, 0, 0, 0, 0, 0, 1];
    request.resize(8 + size, b'.');
    loop {
        match rustix::net::send(&socket, &request, SendFlags::empty()) {
            // No neighbour of this address has answered so far.
            Ok(_) | Err(Errno::HOSTUNREACH) => {}
            Err(error) => return Err(error),
        }
        let until = Instant::now() + PAUSE;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            let left = Timespec::try_from(left).expect("a short time");
            let mut waiting = [PollFd::new(&socket, PollFlags::IN)];
            rustix::event::poll(&mut waiting, Some(&left)).expect("poll works");
            let mut answer = [0; 64];
            match rustix::net::recv(&socket, &mut answer, RecvFlags::TRUNC) {
                Ok(_) => return Ok(()),
                Err(Errno::AGAIN | Errno::HOSTUNREACH) => {}
                Err(error) => return Err(error),
            }
        }
        if Instant::now() > deadline {
            return Err(Errno::TIMEDOUT);
        }
    }
}
