//! What may the daemon still do?
//!
//! Started by its unit it has no more than it needs; started by root it gives the rest up. It stays the user it is, because
//! the socket's folder is that user's.

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

/// Why the daemon can't be confined, or has too little power.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfineError {
    /// Without it there are no links.
    #[error("CAP_NET_ADMIN is missing: start netd by its unit, or as root")]
    Powerless,
    /// Capabilities can't be read or given up.
    #[error("capabilities can't be given up")]
    Capabilities(#[source] Errno),
    /// New privileges can't be given up.
    #[error("new privileges can't be given up")]
    Privileges(#[source] Errno),
}

/// Gives up what netd doesn't need, for good; to be called before there are threads. Whether it may send packets of its own
/// making, to ask whether an address is taken, is told.
pub(super) fn confine() -> Result<bool, ConfineError> {
    let had = rustix::thread::capabilities(None).map_err(ConfineError::Capabilities)?;
    let kept = had.effective & (CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW);
    if !kept.contains(CapabilitySet::NET_ADMIN) {
        return Err(ConfineError::Powerless);
    }
    rustix::thread::clear_ambient_capability_set().map_err(ConfineError::Capabilities)?;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).map_err(ConfineError::Capabilities)?;
    // The bounding set is of no use any more: nothing is executed, and with this nothing executed could gain anything.
    rustix::thread::set_no_new_privs(true).map_err(ConfineError::Privileges)?;
    Ok(kept.contains(CapabilitySet::NET_RAW))
}
