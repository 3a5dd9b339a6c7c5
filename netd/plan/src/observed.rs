//! What does the kernel say there is?

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use crate::{Mac, PortFlags, Vid};

/// The links of a network namespace, as far as they matter here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// By name. Foreign ones as well: an uplink is one.
    pub links: BTreeMap<String, Link>,
}

/// A link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number of it.
    pub index: u32,
    /// Its name. Of a foreign link it may be anything the kernel allows.
    pub name: String,
    /// What it is.
    pub kind: LinkKind,
    /// Its group (`ip link set group`).
    pub group: u32,
    /// Its alias, bytes that anybody may have written.
    pub alias: Option<String>,
    /// Its further names.
    pub altnames: Vec<String>,
    /// Its hardware address, where it has one of six bytes.
    pub mac: Option<Mac>,
    /// Its MTU.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it has carrier; of a tap: whether a process holds it open.
    pub carrier: bool,
    /// Index of the bridge that it is a port of.
    pub master: Option<u32>,
    /// How it is set as a port; `None` for what is no bridge port.
    pub port: Option<PortFlags>,
    /// VLANs of the port on its bridge, where that filters VLANs.
    pub vlans: Vec<PortVlan>,
    /// Static entries (NUD_NOARP) of the bridge's forwarding table that lead to it, and whether each is sticky (NTF_STICKY):
    /// without that, it moves to where another frame with that address comes from. Not its own address, and none that was
    /// learned.
    pub fdb: BTreeMap<(Mac, Option<Vid>), bool>,
    /// Its addresses.
    pub addresses: BTreeSet<IpNet>,
}

/// What a link is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// A tap device.
    Tap {
        /// The user that may open it.
        uid: Option<u32>,
        /// Whether it takes several queues.
        multi_queue: bool,
        /// Whether it outlives the process that made it.
        persistent: bool,
    },
    /// A bridge.
    Bridge {
        /// Whether it filters VLANs.
        vlan_filtering: bool,
        /// The VLAN that each new port gets by itself, where it filters VLANs.
        default_pvid: Option<Vid>,
    },
    /// A VLAN sub-interface.
    Vlan {
        /// Index of the link it is on.
        parent: u32,
        /// Its VLAN.
        vid: u16,
    },
    /// Something else, with the kernel's word for it; empty for a physical device.
    Other(String),
}

/// A VLAN of a bridge port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortVlan {
    /// Which.
    pub vid: Vid,
    /// Whether untagged frames belong to it.
    pub pvid: bool,
    /// Whether its frames leave untagged.
    pub untagged: bool,
}
