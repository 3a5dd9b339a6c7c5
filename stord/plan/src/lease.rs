//! Who holds a volume, and who may have it next?
//!
//! Each volume has one record, the *lease*. It is changed by compare and set only: a [`Change`] says what must be stored for it to
//! hold, and what is stored then. Whoever loses the comparison has lost its claim. Nothing ends by time: a holder that is silent
//! may be frozen, and write again when it thaws.
//!
//! The order in which a volume is attached, and why it is safe:
//!
//! 1. [`claim`] writes `attaching` with an epoch of its own. An older claim can't confirm any more.
//! 2. The new client (QEMU, stopped before its first instruction) opens the volume, and [`confirm`] writes its addresses. Only then
//!    may it run: a writer's address is always in the record before it can write.
//! 3. [`release`] empties the record once the client is dead.
//!
//! To take it from a host that is lost, [`claim`] writes `fencing` first, and with it the old client's addresses as *victims*. From
//! then on that client can't confirm, so whoever can write is among the victims or was seen afterwards. They are fenced; [`fenced`]
//! clears them and goes on with 1. Victims stay in the record until then, whoever else fences meanwhile.
//!
//! A *handover* moves a volume between two living clients: both are in the record, and the record says which of them runs.

mod record;

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use record::{RECORD_BYTES_MAX, RecordError};

/// Address of a storage client, as its storage writes it (Ceph: `IP:0/nonce`). Local storage has none.
pub type Address = String;

/// Who holds a volume.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holder {
    /// The host.
    pub host: String,
    /// Which boot of it (`/proc/sys/kernel/random/boot_id`): no process outlives that.
    pub boot: String,
    /// Whose the volume is there: a driver's instance and one of its machines, as `instance/id`.
    pub owner: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on host {}", self.owner, self.host)
    }
}

/// What its holder does with it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum State {
    /// Nobody has it.
    Released,
    /// The holder keeps the old clients from writing; nobody opens it before that is done.
    Fencing,
    /// The holder's client opens it and may not write yet.
    Attaching,
    /// The holder's client writes.
    Attached,
    /// The holder's client writes; the other one's opens it, and is to have it.
    Handover {
        /// Who is to have it.
        to: Holder,
        /// Whether its client has opened it, and is in the record.
        accepted: bool,
    },
}

impl State {
    /// Its word.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Fencing => "fencing",
            Self::Attaching => "attaching",
            Self::Attached => "attached",
            Self::Handover { .. } => "handover",
        }
    }
}

/// What is stored of a volume.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// Grows with each change.
    pub revision: u64,
    /// Grows with each claim.
    pub epoch: u64,
    /// Who has it, or had it last.
    pub holder: Holder,
    /// What for.
    pub state: State,
    /// Clients of the holder, and in a handover of both, that can write or are about to.
    pub addresses: BTreeSet<Address>,
    /// Clients that must be fenced before anybody opens the volume.
    pub victims: BTreeSet<Address>,
    /// Since when the holder has it, in seconds since 1970 by that host's clock. For a person: nothing is decided by it.
    pub since: u64,
}

/// What must be stored for a change to hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Expect {
    /// Nothing.
    Absent,
    /// Exactly this.
    Stored(Box<Lease>),
}

/// A change of what is stored: all of it, or nothing where it is not as expected.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Change {
    /// What must be stored.
    pub expect: Expect,
    /// What is stored then.
    pub write: Lease,
}

impl Change {
    /// Whether the comparison is won.
    #[must_use]
    pub fn holds(&self, stored: Option<&Lease>) -> bool {
        match (&self.expect, stored) {
            (Expect::Absent, None) => true,
            (Expect::Stored(expected), Some(stored)) => **expected == *stored,
            _ => false,
        }
    }

    /// Of a lease that is stored. Its revision makes even two changes to the same content differ.
    fn of(before: &Lease, change: impl FnOnce(&mut Lease)) -> Self {
        let mut write = before.clone();
        change(&mut write);
        write.revision = before.revision.saturating_add(1);
        Self {
            expect: Expect::Stored(Box::new(before.clone())),
            write,
        }
    }
}

/// What to do where somebody else has the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OnConflict {
    /// To say who. Whether that is waited for is for whoever asks.
    Refuse,
    /// To take it from another host, whose clients are fenced first. From a machine on this host, whose death can be seen, it is
    /// never taken.
    Fence,
}

/// Somebody else has the volume.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{holder} has it ({state})")]
pub struct Held {
    /// Who.
    pub holder: Holder,
    /// What for: [`State::name`].
    pub state: &'static str,
    /// Since when, in seconds since 1970 by that host's clock.
    pub since: u64,
}

impl Held {
    fn by(lease: &Lease) -> Self {
        Self {
            holder: lease.holder.clone(),
            state: lease.state.name(),
            since: lease.since,
        }
    }
}

/// What a claim comes to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Claim {
    /// With this change it is ours, and a client may open it.
    Attach(Change),
    /// With this change nobody else can begin to write any more. The old clients are to be fenced; see [`fenced`].
    Fence(Change),
    /// Somebody else has it.
    Held(Held),
}

/// What it takes to have a volume for a new client. `now` is in seconds since 1970.
///
/// Where this holder's own client has it, or may have it, that client ends first, and the volume is given back.
#[must_use]
pub fn claim(stored: Option<&Lease>, me: &Holder, conflict: OnConflict, now: u64) -> Claim {
    let Some(lease) = stored else {
        return Claim::Attach(Change {
            expect: Expect::Absent,
            write: Lease {
                revision: 1,
                epoch: 1,
                holder: me.clone(),
                state: State::Attaching,
                addresses: BTreeSet::new(),
                victims: BTreeSet::new(),
                since: now,
            },
        });
    };
    let same_host = lease.holder.host == me.host;
    let same_boot = same_host && lease.holder.boot == me.boot;
    match &lease.state {
        State::Released => take(lease, me, now),
        // What was begun and not confirmed is begun anew; what was begun then can't be confirmed any more.
        State::Attaching | State::Fencing if lease.holder == *me => take(lease, me, now),
        // Of this host before it booted nothing lives; but its clients may still be among the storage's.
        _ if same_host && !same_boot => take(lease, me, now),
        _ if !same_host && conflict == OnConflict::Fence => take(lease, me, now),
        _ => Claim::Held(Held::by(lease)),
    }
}

/// A claim that is justified. Where there are clients that might still write, they come first.
fn take(lease: &Lease, me: &Holder, now: u64) -> Claim {
    let victims: BTreeSet<Address> = lease.victims.union(&lease.addresses).cloned().collect();
    // On another host somebody may be about to begin; on this one it is known whether somebody lives.
    let known = match lease.state {
        State::Released => true,
        State::Fencing => false,
        State::Attaching | State::Attached | State::Handover { .. } => lease.holder.host == me.host,
    };
    let fence = !known || !victims.is_empty();
    let state = if fence { State::Fencing } else { State::Attaching };
    let change = Change::of(lease, |write| {
        write.epoch = write.epoch.saturating_add(1);
        write.holder = me.clone();
        (write.state, write.addresses, write.victims) = (state, BTreeSet::new(), victims);
        write.since = now;
    });
    if fence {
        Claim::Fence(change)
    } else {
        Claim::Attach(change)
    }
}

/// Whom a fencer must keep from writing: the victims, and every client that it sees at the volume (watchers, lockers) but its own.
/// It looks only after its claim is written: who begins later can't confirm.
#[must_use]
pub fn to_fence(claimed: &Lease, seen: &BTreeSet<Address>, own: &BTreeSet<Address>) -> BTreeSet<Address> {
    claimed
        .victims
        .union(seen)
        .filter(|address| !own.contains(*address))
        .cloned()
        .collect()
}

/// After all of [`to_fence`] were fenced, and that was read back: from exactly the claim that was written, on to attaching.
#[must_use]
pub fn fenced(claimed: &Lease) -> Change {
    Change::of(claimed, |write| {
        write.state = State::Attaching;
        write.victims = BTreeSet::new();
    })
}

/// Records the clients that have opened the volume, before any of them runs; from exactly the claim that was written. A holder
/// whose change doesn't hold kills its client.
#[must_use]
pub fn confirm(claimed: &Lease, clients: BTreeSet<Address>) -> Change {
    Change::of(claimed, |write| {
        write.state = State::Attached;
        write.addresses = clients;
    })
}

/// Whether this holder has the volume still, as after a restart of whoever keeps its leases. Nothing changes.
///
/// # Errors
///
/// Somebody else has it, or nobody.
pub fn adopt(stored: &Lease, me: &Holder) -> Result<(), Held> {
    match stored.state {
        State::Attached | State::Handover { .. } if stored.holder == *me => Ok(()),
        _ => Err(Held::by(stored)),
    }
}

/// What it takes to give a volume back; nothing where it is not this holder's, or not any more. Only after all its clients are
/// dead, or never ran.
///
/// Victims that were not fenced yet stay for whoever comes next. In a handover that is not passed yet, the other one's client stays
/// one that must be fenced.
#[must_use]
pub fn release(stored: Option<&Lease>, me: &Holder) -> Option<Change> {
    let lease = stored.filter(|lease| lease.holder == *me && lease.state != State::Released)?;
    Some(Change::of(lease, |write| {
        let clients = std::mem::take(&mut write.addresses);
        // Whose address is whose is not recorded: to fence a dead client does no harm.
        if let State::Handover { .. } = lease.state {
            write.victims.extend(clients);
        }
        write.state = State::Released;
    }))
}

/// The holder lets another one open the volume beside it.
///
/// # Errors
///
/// It doesn't have it, or has promised it already.
pub fn offer(stored: &Lease, me: &Holder, to: &Holder) -> Result<Change, Held> {
    if stored.holder != *me || stored.state != State::Attached {
        return Err(Held::by(stored));
    }
    Ok(Change::of(stored, |write| {
        let to = to.clone();
        write.state = State::Handover { to, accepted: false };
    }))
}

/// The other one's client has opened the volume and doesn't run.
///
/// # Errors
///
/// It was offered to nobody, or to somebody else.
pub fn accept(stored: &Lease, me: &Holder, clients: &BTreeSet<Address>) -> Result<Change, Held> {
    match &stored.state {
        State::Handover { to, .. } if to == me => Ok(Change::of(stored, |write| {
            let to = to.clone();
            write.state = State::Handover { to, accepted: true };
            write.addresses.extend(clients.iter().cloned());
        })),
        _ => Err(Held::by(stored)),
    }
}

/// The holder's client has stopped for good: from now on the other one's may run. The addresses of both stay, because the stopped
/// one still has the volume open.
///
/// # Errors
///
/// The holder has offered it to nobody, or the other one's client isn't there yet.
pub fn pass(stored: &Lease, me: &Holder) -> Result<Change, Held> {
    match &stored.state {
        State::Handover { to, accepted: true } if stored.holder == *me => {
            let to = to.clone();
            Ok(Change::of(stored, |write| {
                write.epoch = write.epoch.saturating_add(1);
                write.holder = to;
                write.state = State::Attached;
            }))
        }
        _ => Err(Held::by(stored)),
    }
}

/// The holder takes its offer back, and its client may run again. The other one's address stays: it may still have the volume open.
///
/// # Errors
///
/// The holder has offered it to nobody.
pub fn withdraw(stored: &Lease, me: &Holder) -> Result<Change, Held> {
    match &stored.state {
        State::Handover { .. } if stored.holder == *me => {
            Ok(Change::of(stored, |write| write.state = State::Attached))
        }
        _ => Err(Held::by(stored)),
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
