//! What can be made of a tap device that is open?

use std::os::fd::OwnedFd;

use super::targets::{Targets, number};
use super::{Attempt, Outcome, address, attempt, done, longs, open, permitted};
use crate::system::{Errno, call};

pub(super) const ATTEMPTS: &[Attempt] = &[
    attempt("tap_other_device", |on| {
        // One that is open is no other's, which is said to those only who may ask.
        let asked = call!(SYS_ioctl, number(&tap(on)?), libc::TUNSETIFF, &request());
        permitted(asked, &[libc::EEXIST])
    }),
    attempt("tap_persistent", |on| set(on, libc::TUNSETPERSIST, 1)),
    attempt("tap_owner", |on| set(on, libc::TUNSETOWNER, user())),
    attempt("tap_owner_wide", |on| {
        // The kernel looks at the lower half of a request only: so must whoever refuses it.
        set(on, 1 << 32 | libc::TUNSETOWNER, user())
    }),
    attempt("tap_group", |on| set(on, libc::TUNSETGROUP, 0)),
    attempt("tap_kind_of_link", |on| {
        // Ethernet, as it is (ARPHRD_ETHER); not while the link is up.
        let asked = call!(SYS_ioctl, number(&tap(on)?), libc::TUNSETLINK, 1);
        permitted(asked, &[libc::EBUSY])
    }),
    attempt("tap_addresses", |on| {
        // struct tun_filter: no flags, no address: everything passes.
        done(call!(SYS_ioctl, number(&tap(on)?), libc::TUNSETTXFILTER, &[0; 4]))
    }),
    attempt("tap_filter", |on| {
        // struct sock_fprog of one instruction, which returns 65535: everything passes.
        let program = 0xffff_0000_0006_u64.to_ne_bytes();
        let filter = longs(&[1, address(&program)]);
        done(call!(
            SYS_ioctl,
            number(&tap(on)?),
            libc::TUNATTACHFILTER,
            &filter
        ))
    }),
    attempt("tap_no_filter", |on| {
        done(call!(
            SYS_ioctl,
            number(&tap(on)?),
            libc::TUNDETACHFILTER,
            &[0; 16]
        ))
    }),
    attempt("tap_carrier", |on| {
        done(call!(
            SYS_ioctl,
            number(&tap(on)?),
            libc::TUNSETCARRIER,
            &1_i32.to_ne_bytes()
        ))
    }),
    attempt("tap_network", |on| {
        // A descriptor of the network namespace that it is in.
        super::made(call!(SYS_ioctl, number(&tap(on)?), libc::TUNGETDEVNETNS))
    }),
];

/// This VM's; where it has none, one that is made, in a network of its own.
fn tap(on: &Targets) -> Result<OwnedFd, Errno> {
    if let Some(tap) = on.tap() {
        return tap;
    }
    call!(SYS_unshare, libc::CLONE_NEWNET)?;
    let tap = open(c"/dev/net/tun", libc::O_RDWR)?;
    call!(SYS_ioctl, number(&tap), libc::TUNSETIFF, &request())?;
    Ok(tap)
}

/// struct ifreq: a name, then flags.
fn request() -> Vec<u8> {
    let flags = u16::try_from(libc::IFF_TAP | libc::IFF_NO_PI).unwrap_or(0);
    let mut request = b"inmate0".to_vec();
    request.resize(libc::IFNAMSIZ, 0);
    request.extend(flags.to_ne_bytes());
    request.resize(40, 0);
    request
}

/// This process's user, to whom a VM's tap belongs.
fn user() -> i64 {
    call!(SYS_geteuid).unwrap_or(0)
}

fn set(on: &Targets, request: libc::Ioctl, value: i64) -> Outcome {
    done(call!(SYS_ioctl, number(&tap(on)?), request, value))
}
