//! Which single things can be done to a host?
//!
//! Each is one message to the kernel, or one transaction of nftables, and thus done or not done. Each says what shall
//! be, so that doing it again changes nothing.

use std::fmt;

use ipnet::IpNet;

use crate::{LinkName, Mac, Vid, Vids};

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Makes a bridge with all that is said here, no multicast snooping and no IPv6 address of
    /// its own, in one message. It is down. One of that name that is ours is as good.
    MakeBridge {
        /// Its name.
        name: LinkName,
        /// Its address, given at once: udev leaves such a one alone.
        mac: Mac,
        /// Its MTU.
        mtu: u32,
        /// Whether it filters VLANs; then no VLAN is its ports' by default (default_pvid 0).
        vlan_filtering: bool,
        /// Its group.
        group: u32,
    },
    /// Sets the MTU once to another value and back: only an MTU that was set keeps the bridge from taking its ports'
    /// lowest.
    PinMtu {
        /// Which bridge.
        name: LinkName,
        /// The MTU.
        mtu: u32,
    },
    /// Makes a VLAN sub-interface as port of a bridge, up, in one message.
    MakeVlan {
        /// Its name.
        name: LinkName,
        /// The link it is on; a foreign one.
        parent: String,
        /// Its VLAN.
        vid: Vid,
        /// The bridge.
        master: LinkName,
        /// Its MTU.
        mtu: u32,
        /// Its group.
        group: u32,
    },
    /// Writes a link's alias.
    SetAlias {
        /// Which link.
        name: LinkName,
        /// The alias.
        alias: String,
    },
    /// Gives a link a further name.
    AddAltname {
        /// Which link.
        name: LinkName,
        /// The further name.
        altname: String,
    },
    /// Takes a further name away; one that is gone already is as good.
    RemoveAltname {
        /// Which link.
        name: LinkName,
        /// The further name.
        altname: String,
    },
    /// Makes a link, ours or the operator's uplink, a port of a bridge, ours or the operator's.
    Enslave {
        /// Which link.
        name: String,
        /// The bridge.
        master: String,
    },
    /// Makes an uplink of the operator's no port of a bridge of ours any more; of another bridge it stays one.
    Release {
        /// Which link.
        name: String,
        /// The bridge.
        master: String,
    },
    /// Gives a bridge of ours an address.
    AddAddress {
        /// Which bridge.
        name: LinkName,
        /// The address with its prefix length.
        address: IpNet,
    },
    /// Takes an address away from a bridge of ours; one that is gone already is as good.
    RemoveAddress {
        /// Which bridge.
        name: LinkName,
        /// The address with its prefix length.
        address: IpNet,
    },
    /// Writes a sysctl beneath /proc/sys.
    Sysctl {
        /// Its path, with slashes.
        path: String,
        /// What is written.
        value: String,
    },
    /// Opens a new tap that vanishes with netd until [`Action::PersistTap`]; as single steps: make it, set its owner.
    MakeTap {
        /// Its name.
        name: LinkName,
        /// The user that may open it.
        uid: u32,
        /// Whether it takes several queues.
        multi_queue: bool,
    },
    /// Sets a link's own properties in one message; it gets no IPv6 address of its own.
    SetLink {
        /// Which link.
        name: LinkName,
        /// Its address on the host's side.
        mac: Mac,
        /// Its MTU.
        mtu: u32,
        /// Its group.
        group: u32,
    },
    /// Sets how a bridge port behaves.
    SetPort {
        /// Which port.
        name: LinkName,
        /// How.
        flags: PortFlags,
    },
    /// Gives a port of a bridge that filters VLANs some VLANs, in one message.
    AddPortVlans {
        /// Which port; the operator's uplink as well.
        name: String,
        /// Which VLANs.
        vids: Vids,
        /// Whether they are untagged on this port, and untagged frames from it are theirs: of an access port, one VLAN.
        untagged: bool,
    },
    /// Takes some away, in one message.
    RemovePortVlans {
        /// Which port.
        name: String,
        /// Which VLANs.
        vids: Vids,
    },
    /// Adds a static entry to a bridge's forwarding table. Without a VLAN in the message it is one for each VLAN of
    /// the port.
    AddFdb {
        /// The port it leads to.
        name: LinkName,
        /// The address.
        mac: Mac,
    },
    /// Removes static entries, likewise for each VLAN of the port.
    RemoveFdb {
        /// The port it leads to.
        name: LinkName,
        /// The address.
        mac: Mac,
    },
    /// Sets a link up.
    Up {
        /// Which link.
        name: LinkName,
    },
    /// Makes the tap outlive netd: the last step, before which a crash leaves nothing.
    PersistTap {
        /// Which tap.
        name: LinkName,
    },
    /// One transaction of nftables, as text.
    Filter {
        /// The text.
        text: String,
    },
    /// Puts a tap out of the way: down, of no bridge, in the group of what is to be deleted, and without the further
    /// names that others may want.
    Trash {
        /// Which tap.
        name: LinkName,
        /// That group.
        group: u32,
        /// Those names; one that is gone already is as good.
        altnames: Vec<String>,
    },
    /// Deletes every link of a group in one message.
    DeleteGroup {
        /// Which group.
        group: u32,
    },
    /// Deletes one link of ours.
    DeleteLink {
        /// Which link.
        name: LinkName,
    },
}

impl fmt::Display for Action {
    /// One line, as it stands in a dry run.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MakeBridge {
                name,
                mac,
                mtu,
                vlan_filtering,
                group,
            } => {
                let filtering = if *vlan_filtering { ", filtering VLANs" } else { "" };
                write!(
                    f,
                    "make bridge {name} with MAC {mac}, MTU {mtu}, group {group:#x}{filtering}"
                )
            }
            Self::PinMtu { name, mtu } => write!(f, "pin the MTU of {name} to {mtu}"),
            Self::MakeVlan {
                name,
                parent,
                vid,
                master,
                mtu,
                group,
            } => write!(
                f,
                "make {name}, VLAN {vid} of {parent}, port of {master}, with MTU {mtu}, group {group:#x}"
            ),
            Self::SetAlias { name, alias } => write!(f, "set the alias of {name} to {alias}"),
            Self::AddAltname { name, altname } => write!(f, "give {name} the further name {altname}"),
            Self::RemoveAltname { name, altname } => {
                write!(f, "take the further name {altname:?} from {name}")
            }
            Self::Enslave { name, master } => write!(f, "make {name} a port of {master}"),
            Self::Release { name, master } => write!(f, "take {name} out of {master}"),
            Self::AddAddress { name, address } => write!(f, "give {name} the address {address}"),
            Self::RemoveAddress { name, address } => write!(f, "take the address {address} from {name}"),
            Self::Sysctl { path, value } => write!(f, "write {value} to /proc/sys/{path}"),
            Self::MakeTap {
                name,
                uid,
                multi_queue,
            } => {
                let queues = if *multi_queue { ", with several queues" } else { "" };
                write!(f, "make tap {name} for user {uid}{queues}")
            }
            Self::SetLink {
                name,
                mac,
                mtu,
                group,
            } => write!(f, "set {name} to MAC {mac}, MTU {mtu}, group {group:#x}"),
            Self::SetPort { name, flags } => write!(f, "set port {name} to {flags}"),
            Self::AddPortVlans { name, vids, untagged } => {
                let how = if *untagged { "without tags" } else { "with tags" };
                write!(f, "put port {name} into VLAN {vids} {how}")
            }
            Self::RemovePortVlans { name, vids } => write!(f, "take port {name} out of VLAN {vids}"),
            Self::AddFdb { name, mac } => write!(f, "send frames to {mac} to port {name}"),
            Self::RemoveFdb { name, mac } => write!(f, "send frames to {mac} to port {name} no more"),
            Self::Up { name } => write!(f, "set {name} up"),
            Self::PersistTap { name } => write!(f, "make tap {name} persistent"),
            Self::Filter { text } => write!(f, "load {} lines of filter", text.lines().count()),
            Self::Trash { name, group, .. } => {
                write!(
                    f,
                    "put {name} out of the way: down, of no bridge, group {group:#x}"
                )
            }
            Self::DeleteGroup { group } => write!(f, "delete all links of group {group:#x}"),
            Self::DeleteLink { name } => write!(f, "delete {name}"),
        }
    }
}

impl fmt::Display for PortFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = |on: bool| if on { "on" } else { "off" };
        write!(
            f,
            "isolated {}, learning {}, flood {}, mcast_flood {}, bcast_flood {}, guard {}",
            on(self.isolated),
            on(self.learning),
            on(self.unicast_flood),
            on(self.multicast_flood),
            on(self.broadcast_flood),
            on(self.bpdu_guard)
        )
    }
}

/// How a bridge port behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortFlags {
    /// Whether it reaches only ports that are not isolated.
    pub isolated: bool,
    /// Whether the bridge learns addresses from it.
    pub learning: bool,
    /// Whether frames to unknown addresses are sent to it.
    pub unicast_flood: bool,
    /// Whether multicast is flooded to it: neighbour discovery needs that.
    pub multicast_flood: bool,
    /// Whether broadcast is flooded to it: ARP needs that.
    pub broadcast_flood: bool,
    /// Whether BPDUs from it are dropped.
    pub bpdu_guard: bool,
}
