//! How much memory does the daemon keep to itself?

#![expect(unsafe_code, reason = "glibc's setting has no safe form")]

/// Has all threads allocate from one place, of which what is free goes back to the system. Nearly everything is done by one
/// thread, and glibc's way of a place for each thread, none of which it gives back, costs a third more.
pub(super) fn share() {
    // SAFETY: mallopt only sets numbers of the allocator's.
    let _set = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}
