//! What does this host offer, and how is it touched?

pub(crate) mod cgroup;
pub(crate) mod files;
pub(crate) mod fingerprint;
pub(crate) mod kvm;
pub(crate) mod records;
pub(crate) mod state_dir;
pub(crate) mod stats;
pub(crate) mod tsc;
pub(crate) mod uids;

use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) use steppe_vm::error::chain;

/// Now, in nanoseconds since 1970 (UTC).
pub(crate) fn unix_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
