//! How is one action done?
//!
//! Each is one message to the kernel, one ioctl or one transaction of nftables. Nothing is chosen here: an action says what
//! shall be, and where it is so already, that is as good.

mod links;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;

use netd_plan::{Action, Link, LinkName};
use netlink_sys::protocols::NETLINK_ROUTE;
use rustix::io::Errno;

use crate::netlink::{KernelError, Netlink};
use crate::nft::{Nft, NftError};
use crate::tables::Tables;
use crate::{observe, tap};

pub(crate) use links::{delete_group, delete_link};

/// Why an action is not done.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {cause}")]
pub struct StepError {
    /// Which kind of action, as in the names of crash points.
    pub step: &'static str,
    /// The action, for a person.
    pub action: String,
    /// Why.
    #[source]
    pub cause: Cause,
}

/// Why an action is not done.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The kernel refuses.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// nftables refuses.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// A sysctl can't be written.
    #[error("/proc/sys/{path} can't be written: {source}")]
    Sysctl {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The name is taken by a link that is not ours.
    #[error("link {0} exists and is not netd's: rename or remove it")]
    Foreign(String),
    /// It was done, and is not so.
    #[error(
        "link {0} is not what it was made: another program on this host sets it, which must leave links nd* alone"
    )]
    Changed(String),
    /// Somebody made it a port of another bridge.
    #[error("link {0} is a port of another bridge: take it out of there")]
    Enslaved(String),
}

impl From<Errno> for Cause {
    fn from(errno: Errno) -> Self {
        Self::Kernel(errno.into())
    }
}

impl Cause {
    /// The kernel's error number, where it is one of those.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Kernel(error) => Some(error.errno),
            _ => None,
        }
    }
}

/// What does the actions: a socket to the kernel, nftables, and taps that are not finished.
#[derive(Debug)]
pub struct Hands {
    /// To the kernel's links.
    pub netlink: Netlink,
    /// To nftables.
    nft: Nft,
    /// What was seen of our tables.
    pub(crate) tables: Tables,
    /// Taps that go with netd until they are made persistent.
    taps: BTreeMap<LinkName, OwnedFd>,
    /// Group of what is ours.
    group: u32,
}

impl Hands {
    /// Opens what it takes.
    ///
    /// # Errors
    ///
    /// Without sockets, or without libnftables.
    pub fn open(group: u32) -> Result<Self, Cause> {
        Ok(Self {
            netlink: Netlink::open(NETLINK_ROUTE).map_err(KernelError::from)?,
            nft: Nft::open(false)?,
            tables: Tables::open().map_err(KernelError::from)?,
            taps: BTreeMap::new(),
            group,
        })
    }

    /// Does one action.
    ///
    /// # Errors
    ///
    /// It was not done.
    pub fn apply(&mut self, action: &Action) -> Result<(), StepError> {
        let (step, object) = name(action);
        steppe_points::reach(&format!("netd.{step}.before"), object);
        let done = self.step(action).map_err(|cause| StepError {
            step,
            action: action.to_string(),
            cause,
        });
        steppe_points::reach(&format!("netd.{step}.after"), object);
        done
    }

    /// Gives back what memory was taken and is needed no more.
    pub(crate) fn rest(&mut self) {
        if let Err(error) = self.nft.forget() {
            tracing::debug!(%error, "memory is not given back");
        }
    }

    /// Declares the whole filter anew.
    ///
    /// # Errors
    ///
    /// It is as it was, and the next look at the tables finds that.
    pub(crate) fn declare(&mut self, text: String) -> Result<(), StepError> {
        let before = self.tables.before();
        let declared = self.apply(&Action::Filter { text });
        match declared {
            Ok(()) => self.tables.changed(before, true),
            Err(_) => self.tables.doubt(),
        }
        declared
    }

    /// Whether the links are what actions on them said, as far as those are a tap's.
    ///
    /// # Errors
    ///
    /// One is not, or is gone.
    pub(crate) fn read_back(&mut self, actions: &[Action]) -> Result<(), StepError> {
        let mut seen: BTreeMap<&str, Link> = BTreeMap::new();
        for action in actions {
            let (step, object) = name(action);
            let fault = |cause: Cause| StepError {
                step: "read-back",
                action: action.to_string(),
                cause,
            };
            if !matches!(step, "set-link" | "set-alias" | "set-port" | "enslave" | "up") {
                continue;
            }
            if !seen.contains_key(object) {
                let link = observe::one(&mut self.netlink, object);
                let link = link.map_err(|error| fault(error.into()))?;
                seen.insert(object, link.ok_or_else(|| fault(Errno::NODEV.into()))?);
            }
            let is_so = match (action, seen.get(object)) {
                (Action::SetLink { mac, mtu, group, .. }, Some(link)) => {
                    link.mac == Some(*mac) && link.mtu == *mtu && link.group == *group
                }
                (Action::SetAlias { alias, .. }, Some(link)) => link.alias.as_ref() == Some(alias),
                (Action::SetPort { flags, .. }, Some(link)) => link.port == Some(*flags),
                (Action::Enslave { master, .. }, Some(link)) => link.master == self.index(master).ok(),
                (_, Some(link)) => link.up,
                (_, None) => false,
            };
            if !is_so {
                return Err(fault(Cause::Changed(object.to_owned())));
            }
        }
        Ok(())
    }

    /// Lets go of the taps that are not finished: with that, they are gone.
    pub fn let_go(&mut self) {
        self.taps.clear();
    }

    fn step(&mut self, action: &Action) -> Result<(), Cause> {
        match action {
            Action::MakeBridge {
                name,
                mac,
                mtu,
                vlan_filtering,
                group,
            } => self.make_bridge(name.as_str(), *mac, *mtu, *vlan_filtering, *group),
            Action::PinMtu { name, mtu } => self.pin_mtu(name.as_str(), *mtu),
            Action::MakeVlan {
                name,
                parent,
                vid,
                master,
                mtu,
                group,
            } => self.make_vlan(name.as_str(), parent, *vid, master.as_str(), *mtu, *group),
            Action::SetAlias { name, alias } => self.set_alias(name.as_str(), alias),
            Action::AddAltname { name, altname } => self.add_altname(name.as_str(), altname),
            Action::RemoveAltname { name, altname } => self.remove_altname(name.as_str(), altname),
            Action::Enslave { name, master } => self.enslave(name, master),
            Action::Release { name, master } => self.release(name, master),
            Action::AddAddress { name, address } => self.add_address(name.as_str(), *address),
            Action::RemoveAddress { name, address } => self.remove_address(name.as_str(), *address),
            Action::Sysctl { path, value } => sysctl(path, value),
            Action::MakeTap {
                name,
                uid,
                multi_queue,
            } => {
                let tap = tap::make(name.as_str(), *multi_queue)?;
                steppe_points::reach("netd.make-tap.owner", name.as_str());
                tap::set_owner(&tap, *uid)?;
                self.taps.insert(name.clone(), tap);
                Ok(())
            }
            Action::SetLink {
                name,
                mac,
                mtu,
                group,
            } => self.set_link(name.as_str(), *mac, *mtu, *group),
            Action::SetPort { name, flags } => self.set_port(name.as_str(), *flags),
            Action::AddPortVlans { name, vids, untagged } => self.add_port_vlans(name, vids, *untagged),
            Action::RemovePortVlans { name, vids } => self.remove_port_vlans(name, vids),
            Action::AddFdb { name, mac } => self.add_fdb(name.as_str(), *mac),
            Action::RemoveFdb { name, mac } => self.remove_fdb(name.as_str(), *mac),
            Action::Up { name } => self.up(name.as_str()),
            Action::PersistTap { name } => {
                let tap = self.taps.get(name).ok_or(Errno::BADF)?;
                tap::persist(tap)?;
                self.taps.remove(name);
                Ok(())
            }
            Action::Filter { text } => {
                let before = self.tables.before();
                self.nft.run(text)?;
                self.tables.changed(before, false);
                Ok(())
            }
            Action::Trash {
                name,
                group,
                altnames,
            } => self.trash(name.as_str(), *group, altnames),
            Action::DeleteGroup { group } => Ok(delete_group(&mut self.netlink, *group)?),
            Action::DeleteLink { name } => self.delete_link(name.as_str()),
        }
    }
}

/// Whether a sysctl has its value.
pub(crate) fn is_set(path: &str, value: &str) -> bool {
    fs::read_to_string(format!("/proc/sys/{path}")).is_ok_and(|found| found.trim_end() == value)
}

/// A sysctl that has its value already is not written: another program's policy may forbid that.
fn sysctl(path: &str, value: &str) -> Result<(), Cause> {
    if is_set(path, value) {
        return Ok(());
    }
    fs::write(format!("/proc/sys/{path}"), value).map_err(|source| Cause::Sysctl {
        path: path.to_owned(),
        source,
    })
}

/// What an action is called where it is a crash point, and the object that it is done to.
fn name(action: &Action) -> (&'static str, &str) {
    match action {
        Action::MakeBridge { name, .. } => ("make-bridge", name.as_str()),
        Action::PinMtu { name, .. } => ("pin-mtu", name.as_str()),
        Action::MakeVlan { name, .. } => ("make-vlan", name.as_str()),
        Action::SetAlias { name, .. } => ("set-alias", name.as_str()),
        Action::AddAltname { name, .. } => ("add-altname", name.as_str()),
        Action::RemoveAltname { name, .. } => ("remove-altname", name.as_str()),
        Action::Enslave { name, .. } => ("enslave", name),
        Action::Release { name, .. } => ("release", name),
        Action::RemoveAddress { name, .. } => ("remove-address", name.as_str()),
        Action::AddAddress { name, .. } => ("add-address", name.as_str()),
        Action::Sysctl { path, .. } => ("sysctl", path),
        Action::MakeTap { name, .. } => ("make-tap", name.as_str()),
        Action::SetLink { name, .. } => ("set-link", name.as_str()),
        Action::SetPort { name, .. } => ("set-port", name.as_str()),
        Action::AddPortVlans { name, .. } => ("add-port-vlans", name),
        Action::RemovePortVlans { name, .. } => ("remove-port-vlans", name),
        Action::AddFdb { name, .. } => ("add-fdb", name.as_str()),
        Action::RemoveFdb { name, .. } => ("remove-fdb", name.as_str()),
        Action::Up { name } => ("up", name.as_str()),
        Action::PersistTap { name } => ("persist-tap", name.as_str()),
        Action::Filter { .. } => ("filter", "nftables"),
        Action::Trash { name, .. } => ("trash", name.as_str()),
        Action::DeleteGroup { .. } => ("delete-group", "trash"),
        Action::DeleteLink { name } => ("delete-link", name.as_str()),
    }
}

/// The kind of an action, as it is counted.
pub(crate) fn step(action: &Action) -> &'static str {
    name(action).0
}
