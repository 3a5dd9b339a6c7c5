//! Can more rights be had?

use super::{Attempt, Outcome, attempt, done, words};
use crate::system::call;

pub(super) const ATTEMPTS: &[Attempt] = &[
    attempt("user_root", |_| done(call!(SYS_setuid, 0))),
    attempt("user_root_of_files", |_| {
        // The call's answer is the value before: only a second one tells.
        call!(SYS_setfsuid, 0)?;
        match call!(SYS_setfsuid, -1)? {
            0 => Ok(()),
            _ => Err(crate::system::Errno(libc::EPERM).into()),
        }
    }),
    attempt("user_of_victim", |on| {
        let user = on.number("victim.uid")?;
        done(call!(SYS_setresuid, user, user, user))
    }),
    attempt("group_root", |_| done(call!(SYS_setgid, 0))),
    attempt("groups", |_| done(call!(SYS_setgroups, 1, &words(&[6])))),
    attempt("capabilities", |_| capabilities(1 << SYS_ADMIN, 0)),
    attempt("capabilities_ambient", |_| {
        let _inherited = capabilities(1 << SYS_ADMIN, 1 << SYS_ADMIN);
        let raise = libc::PR_CAP_AMBIENT_RAISE;
        done(call!(SYS_prctl, libc::PR_CAP_AMBIENT, raise, SYS_ADMIN, 0, 0))
    }),
    attempt("capabilities_bound", |_| {
        // One less; that nobody has it any more does no harm to anybody here.
        done(call!(SYS_prctl, libc::PR_CAPBSET_DROP, 27, 0, 0, 0))
    }),
    attempt("secure_bits", |_| {
        // Capabilities stay over a change of user (SECBIT_KEEP_CAPS, by the call that sets all bits).
        done(call!(SYS_prctl, libc::PR_SET_SECUREBITS, 1 << 4, 0, 0, 0))
    }),
];

/// CAP_SYS_ADMIN.
const SYS_ADMIN: u32 = 21;

/// Sets this thread's capabilities to these.
fn capabilities(effective: u32, inheritable: u32) -> Outcome {
    // Version 3, this thread; then effective, permitted and inheritable, in two halves.
    let header = words(&[0x2008_0522, 0]);
    let data = words(&[effective, effective, inheritable, 0, 0, 0]);
    done(call!(SYS_capset, &header, &data))
}
