//! What is this kernel, initrd or disk image, what does it refer to, and how much memory does it need at least?
//!
//! Pure: the input is anything that reads and seeks, never a path; nothing is opened, logged or spawned here. Every
//! byte is taken as written by a stranger: each read has a bound, each sum is checked, no input panics. An error's text
//! is the rest of a sentence that the caller begins with the file's name: "`local/vmlinuz` is empty".
//!
//! The format of a disk is **stated by the job, never probed**: a guest can write any header into its raw disk, so
//! believing a header would let a guest choose what the host opens next. See [`disk`].

pub mod disk;
pub mod initrd;
pub mod kernel;
pub mod look;

mod bytes;
