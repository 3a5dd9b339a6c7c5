//! Which descriptors does the process keep of those it inherited?
//!
//! Only 0, 1 and 2. Whoever started the host may have left others open, and they come through the host to us: a socket
//! or pipe kept here would seem alive for as long as the plugin lives, which may be longer than its host. Everything
//! that is opened later is opened close-on-exec (std, tokio and the calls in this crate all do), so a child gets nothing
//! but what it is given.
//!
//! The only module with unsafe code: no safe interface closes descriptors that nobody in the process owns.

/// Closes every descriptor above 2. For the first moment of `main`, when this process has opened none of its own.
#[expect(unsafe_code, reason = "closes descriptors by number")]
pub(crate) fn close_inherited() {
    const FIRST: libc::c_uint = 3;
    const NO_FLAGS: libc::c_uint = 0;
    // Kernels before 5.9 refuse. Then the descriptors stay open, which is untidy but breaks nothing of ours.
    // SAFETY: the call touches no memory. It may break the owner of a descriptor; nobody owns one above 2 yet: std opens
    // none before `main`, and `run`, the only caller, is documented to come before anything that does.
    unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, NO_FLAGS) };
}
