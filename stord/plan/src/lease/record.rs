//! How is a lease written down, and what of what is found is believed?

use serde::{Deserialize, Serialize};

use super::{Lease, State};

/// Version of what is written. Others are not read.
const VERSION: u32 = 1;

/// A record is never longer: what is, was not written by us.
pub const RECORD_BYTES_MAX: usize = 64 * 1024;

/// Most addresses and victims; each is an open client of one volume.
const ADDRESSES_MAX: usize = 256;
/// Longest text in a record: a host's name has at most 253 characters.
const TEXT_MAX: usize = 255;

/// Why what is stored is no lease. Nobody is given the volume on such grounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Not ours at all.
    #[error("the lease is no record of stord: {0}; look at it, and break it if nobody has the volume")]
    Garbage(String),
    /// Of another release.
    #[error(
        "the lease is of version {0}, and this stord reads version {VERSION}: install the release that wrote it"
    )]
    Version(u64),
}

#[derive(Serialize, Deserialize)]
struct Written<L> {
    version: u64,
    lease: L,
}

/// Only the version, whatever else there is.
#[derive(Deserialize)]
struct Versioned {
    version: u64,
}

impl Lease {
    /// The text that is stored: JSON, one line.
    #[must_use]
    pub fn to_record(&self) -> String {
        let written = Written {
            version: u64::from(VERSION),
            lease: self,
        };
        // Maps have no keys other than texts here, so writing to a string doesn't fail.
        let mut text = serde_json::to_string(&written).unwrap_or_default();
        text.push('\n');
        text
    }

    /// The lease that is stored.
    ///
    /// # Errors
    ///
    /// It is none, or of another version.
    pub fn from_record(bytes: &[u8]) -> Result<Self, RecordError> {
        let garbage = |why: String| RecordError::Garbage(why);
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(garbage(format!("it has {} bytes", bytes.len())));
        }
        let versioned: Versioned =
            serde_json::from_slice(bytes).map_err(|error| garbage(error.to_string()))?;
        if versioned.version != u64::from(VERSION) {
            return Err(RecordError::Version(versioned.version));
        }
        let Written { lease, .. }: Written<Self> =
            serde_json::from_slice(bytes).map_err(|error| garbage(error.to_string()))?;
        lease.check().map_err(garbage)?;
        Ok(lease)
    }

    /// Whether a record could have been written by us.
    fn check(&self) -> Result<(), String> {
        let to = match &self.state {
            State::Handover { to, .. } => Some(to),
            _ => None,
        };
        let holders = [Some(&self.holder), to].into_iter().flatten();
        let names = holders.flat_map(|holder| [&holder.host, &holder.boot, &holder.owner]);
        for text in names.chain(&self.addresses).chain(&self.victims) {
            if text.is_empty() || text.len() > TEXT_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(format!(
                    "one of its texts is {:?}",
                    text.chars().take(64).collect::<String>()
                ));
            }
        }
        let clients = self.addresses.len().max(self.victims.len());
        if clients > ADDRESSES_MAX {
            return Err(format!("it names {clients} clients"));
        }
        if self.revision == 0 || self.epoch == 0 || self.epoch > self.revision {
            return Err(format!(
                "it has revision {} and epoch {}",
                self.revision, self.epoch
            ));
        }
        let writes = matches!(self.state, State::Attached | State::Handover { .. });
        if !writes && !self.addresses.is_empty() {
            return Err(format!("it is {} and has clients", self.state.name()));
        }
        Ok(())
    }
}
