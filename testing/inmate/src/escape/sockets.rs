//! With whom can be spoken?

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use super::targets::{Targets, number};
use super::{Attempt, Outcome, Refusal, address, any, attempt, done, longs, made, permitted, words};
use crate::system::{self, Errno, call};

pub(super) const ATTEMPTS: &[Attempt] = &[
    attempt("socket_inet_stream", |_| {
        socket(libc::AF_INET, libc::SOCK_STREAM, 0)
    }),
    attempt("socket_inet_datagram", |_| {
        socket(libc::AF_INET, libc::SOCK_DGRAM, 0)
    }),
    attempt("socket_inet6_stream", |_| {
        socket(libc::AF_INET6, libc::SOCK_STREAM, 0)
    }),
    attempt("socket_inet6_datagram", |_| {
        socket(libc::AF_INET6, libc::SOCK_DGRAM, 0)
    }),
    attempt("socket_raw", |_| {
        socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)
    }),
    attempt("socket_packet", |_| {
        // Every protocol, in network order.
        socket(libc::AF_PACKET, libc::SOCK_RAW, 0x0300)
    }),
    attempt("socket_netlink_route", |_| {
        socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)
    }),
    attempt("socket_netlink_audit", |_| {
        socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_AUDIT)
    }),
    attempt("socket_netlink_uevent", |_| {
        socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_KOBJECT_UEVENT)
    }),
    attempt("socket_vsock", |_| socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0)),
    attempt("socket_crypto", |_| socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0)),
    attempt("socket_bluetooth", |_| {
        socket(libc::AF_BLUETOOTH, libc::SOCK_RAW, 1)
    }),
    attempt("socket_xdp", |_| socket(libc::AF_XDP, libc::SOCK_RAW, 0)),
    attempt("socket_other_families", |_| other_families()),
    attempt("socket_unix", |_| socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)),
    attempt("connect_path", |on| {
        connect_unix(&[on.word("bait.socket")?.as_bytes(), b"\0"].concat())
    }),
    attempt("connect_abstract", |on| {
        connect_unix(&[b"\0", on.word("bait.abstract")?.as_bytes()].concat())
    }),
    attempt("connect_victim_control", |on| {
        connect_unix(&[on.word("victim.control")?.as_bytes(), b"\0"].concat())
    }),
    attempt("connect_loopback", connect_loopback),
    attempt("connect_loopback_with_data", connect_with_data),
    attempt("datagram_to_path", |on| {
        datagram(&[on.word("bait.datagram")?.as_bytes(), b"\0"].concat())
    }),
    attempt("datagram_to_abstract", |on| {
        let name = format!("{}-datagram", on.word("bait.abstract")?);
        datagram(&[b"\0", name.as_bytes()].concat())
    }),
    attempt("datagram_to_loopback", |on| {
        let socket = open(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
        let name = loopback(port(on)?);
        done(call!(SYS_sendto, number(&socket), b"x", 1, 0, &name, name.len()))
    }),
    attempt("listen", |_| {
        let socket = inet()?;
        call!(SYS_bind, number(&socket), &loopback(0), 16)?;
        done(call!(SYS_listen, number(&socket), 1))
    }),
    attempt("forge_credentials", forge_credentials),
    attempt("shared_memory_segment", |on| {
        let id = call!(SYS_shmget, on.number("bait.shm")?, 0, 0)?;
        done(call!(SYS_shmat, id, 0, 0))
    }),
    attempt("shared_memory_new", |_| {
        let id = call!(SYS_shmget, libc::IPC_PRIVATE, 4096, libc::IPC_CREAT | 0o600)?;
        done(call!(SYS_shmctl, id, libc::IPC_RMID, 0))
    }),
    attempt("semaphore", |on| {
        let id = call!(SYS_semget, on.number("bait.sem")?, 1, 0)?;
        done(call!(SYS_semctl, id, 0, libc::GETVAL, 0))
    }),
    attempt("message_queue", |on| {
        let id = call!(SYS_msgget, on.number("bait.msg")?, 0)?;
        // The message's type, then one byte of text.
        let message = [&longs(&[1])[..], b"x"].concat();
        done(call!(SYS_msgsnd, id, &message, 1, libc::IPC_NOWAIT))
    }),
    attempt("posix_queue", |on| {
        let name = on.path("bait.queue")?;
        let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
        made(call!(SYS_mq_open, name.as_c_str(), flags, 0, 0))
    }),
];

fn open(family: i32, kind: i32, protocol: i32) -> Result<OwnedFd, Errno> {
    let kind = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    system::own(call!(SYS_socket, family, kind, protocol)?)
}

fn socket(family: i32, kind: i32, protocol: i32) -> Outcome {
    open(family, kind, protocol)?;
    Ok(())
}

/// The families that no other attempt names.
fn other_families() -> Outcome {
    let named = [
        libc::AF_UNIX,
        libc::AF_INET,
        libc::AF_INET6,
        libc::AF_NETLINK,
        libc::AF_PACKET,
        libc::AF_VSOCK,
        libc::AF_ALG,
        libc::AF_BLUETOOTH,
        libc::AF_XDP,
    ];
    let others = (0..=50).filter(|family| !named.contains(family));
    any(others, |family| {
        let kinds = [libc::SOCK_DGRAM, libc::SOCK_STREAM, libc::SOCK_RAW];
        let tried = any(kinds, |kind| socket(family, kind, 0));
        tried.map_err(|refusal| match refusal {
            // The kernel has no such family: said only where none is refused for another reason.
            Refusal::Errno(Errno(libc::EAFNOSUPPORT)) => Errno(libc::ENOENT).into(),
            other => other,
        })
    })
}

fn connect_unix(path: &[u8]) -> Outcome {
    let socket = open(libc::AF_UNIX, libc::SOCK_STREAM, 0)?;
    let name = unix_name(path);
    done(call!(SYS_connect, number(&socket), &name, name.len()))
}

fn inet() -> Result<OwnedFd, Errno> {
    open(libc::AF_INET, libc::SOCK_STREAM, 0)
}

/// struct sockaddr_in of 127.0.0.1.
fn loopback(port: u16) -> Vec<u8> {
    let family = u16::try_from(libc::AF_INET).unwrap_or(2).to_ne_bytes();
    [&family[..], &port.to_be_bytes(), &[127, 0, 0, 1], &[0; 8]].concat()
}

fn port(on: &Targets) -> Result<u16, Refusal> {
    let port = on.number("bait.port")?;
    u16::try_from(port).map_err(|_| Refusal::Unknown("bait.port"))
}

/// Without the call that is made for it: sent with the first bytes (MSG_FASTOPEN).
fn connect_with_data(on: &Targets) -> Outcome {
    let name = loopback(port(on)?);
    let socket = inet()?;
    let flags = libc::MSG_FASTOPEN | libc::MSG_NOSIGNAL;
    let sent = call!(SYS_sendto, number(&socket), b"x", 1, flags, &name, name.len());
    // It is on its way.
    permitted(sent, &[libc::EINPROGRESS])
}

/// From one of a pair, which is made without socket(2), to somebody else.
fn datagram(path: &[u8]) -> Outcome {
    let pair = pair(libc::SOCK_DGRAM)?;
    let name = unix_name(path);
    any(&pair, |end| {
        done(call!(
            SYS_sendto,
            number(end),
            b"x",
            1,
            libc::MSG_DONTWAIT,
            &name,
            name.len()
        ))
    })
}

fn pair(kind: i32) -> Result<Vec<OwnedFd>, Errno> {
    let mut pair = [0; 8];
    call!(
        SYS_socketpair,
        libc::AF_UNIX,
        kind | libc::SOCK_CLOEXEC,
        0,
        &mut pair
    )?;
    let ends = pair.as_chunks::<4>().0;
    ends.iter()
        .map(|end| system::own(i32::from_ne_bytes(*end).into()))
        .collect()
}

/// struct sockaddr_un of a path, or of a name of the abstract kind after its zero.
fn unix_name(path: &[u8]) -> Vec<u8> {
    let family = u16::try_from(libc::AF_UNIX).unwrap_or(1).to_ne_bytes();
    [&family[..], path].concat()
}

fn connect_loopback(on: &Targets) -> Outcome {
    let name = loopback(port(on)?);
    let socket = inet()?;
    match call!(SYS_connect, number(&socket), &name, name.len()) {
        Err(Errno(libc::EINPROGRESS)) => {}
        other => return done(other),
    }
    let mut poll = words(&[number(&socket).cast_unsigned(), 4]);
    call!(SYS_poll, &mut poll[..], 1, 1000)?;
    // Once more: the answer is what became of the first.
    match call!(SYS_connect, number(&socket), &name, name.len()) {
        Err(Errno(libc::EISCONN)) => Ok(()),
        other => done(other),
    }
}

/// Says to be the other VM's user.
fn forge_credentials(on: &Targets) -> Outcome {
    let ends = pair(libc::SOCK_STREAM)?;
    let Some(end) = ends.first() else {
        return Err(Errno(libc::EBADF).into());
    };
    let user = on.number("victim.uid")?.cast_unsigned();
    let text = b"x";
    let vector = longs(&[address(text), 1]);
    // struct cmsghdr (length, level, type), then struct ucred (pid, uid, gid).
    let control = [
        longs(&[28]),
        words(&[
            libc::SOL_SOCKET.cast_unsigned(),
            libc::SCM_CREDENTIALS.cast_unsigned(),
        ]),
        words(&[std::process::id(), user, user, 0]),
    ]
    .concat();
    // struct msghdr: name, its length, vector, its length, control, its length, flags.
    let message = longs(&[0, 0, address(&vector), 1, address(&control), 28, 0]);
    done(call!(SYS_sendmsg, number(end), &message, libc::MSG_NOSIGNAL))
}

/// The same, for what is set up to be found: a stream socket that listens, or a datagram socket.
pub(super) fn abstract_socket(name: &str, kind: i32) -> Result<OwnedFd, Errno> {
    let socket = open(libc::AF_UNIX, kind, 0)?;
    let name = unix_name(&[b"\0", name.as_bytes()].concat());
    call!(SYS_bind, number(&socket), &name, name.len())?;
    if kind == libc::SOCK_STREAM {
        call!(SYS_listen, number(&socket), 16)?;
    }
    Ok(socket)
}

/// A message queue that everybody may open.
pub(super) fn make_queue(name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC;
    system::own(call!(SYS_mq_open, name, flags, 0o666, 0)?)
}
