//! What did the operator say, and is it right?

mod address;
mod check;
mod read;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::{Ipv4Net, Ipv6Net};
pub use steppe_config::{Problem, Settings};

use crate::name::bridge_name;
use crate::{NetworkName, Vid, Vids};

/// Where netd listens unless the operator says otherwise.
pub const SOCKET: &str = "/run/netd/netd.sock";

/// Group of every link of ours unless the operator says otherwise: "nd".
pub const LINK_GROUP: u32 = 0x6e64;

/// MTUs that a network may have: IPv4's least, and the most that an IPv4 packet can have.
pub(crate) const MTU: RangeInclusive<u32> = 68..=65_535;

/// The least that IPv6 wants of a link.
pub(crate) const MTU_MIN_IPV6: u32 = 1280;

/// The networks of a host and how netd marks what it makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Group of every link of ours; the next number is the group of what is to be deleted.
    pub link_group: u32,
    /// The networks.
    pub networks: BTreeMap<NetworkName, Network>,
}

/// A network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its name.
    pub name: NetworkName,
    /// What it is made of.
    pub kind: Kind,
    /// Its MTU; where it is absent, the uplink's or the existing bridge's, or 1500.
    pub mtu: Option<u32>,
    /// Its IPv4 addresses.
    pub ipv4: Option<Ipv4>,
    /// Its IPv6 addresses.
    pub ipv6: Option<Ipv6>,
    /// Name servers that the guest is told.
    pub dns: Vec<IpAddr>,
    /// Whether its machines are kept from each other on this host.
    pub isolated: bool,
    /// How long other hosts are given to say that they have an address; zero: they are not asked.
    pub probe: Duration,
}

/// What a network is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A bridge of the host's own, behind its address.
    Nat {
        /// Whether machines reach the host's own services.
        host_access: bool,
    },
    /// A bridge.
    Bridge {
        /// One that exists and is the operator's; otherwise `ndb<name>` is made.
        bridge: Option<String>,
        /// The link that becomes a port of the made one.
        uplink: Option<String>,
    },
    /// A VLAN sub-interface of an uplink, and a bridge with it.
    Vlan {
        /// The uplink.
        uplink: String,
        /// The VLAN.
        vid: Vid,
    },
    /// One bridge that filters VLANs, with access and trunk ports.
    VlanAware {
        /// One that exists and is the operator's; otherwise `ndb<name>` is made.
        bridge: Option<String>,
        /// The link that becomes a trunk port of the made one.
        uplink: Option<String>,
        /// VLANs that jobs may ask for.
        vids: Vids,
        /// VLAN of a port whose job names none.
        vid: Option<Vid>,
    },
}

/// IPv4 of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ipv4 {
    /// The subnet.
    pub subnet: Ipv4Net,
    /// The gateway that the guest is told; of a nat network the bridge's own address.
    pub gateway: Option<Ipv4Addr>,
    /// Where `auto` looks for a free address.
    pub pool: RangeInclusive<Ipv4Addr>,
}

/// IPv6 of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ipv6 {
    /// The prefix, of 64 bits.
    pub prefix: Ipv6Net,
    /// The gateway that the guest is told.
    pub gateway: Option<Ipv6Addr>,
}

impl Config {
    /// What several texts say together: the file first, then its drop-ins in order, each with its place, such as its
    /// path. Later ones override keys of `[daemon]`; a network is said once. Where no network is said, there is
    /// [`Config::embedded`]'s.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with them, in their order.
    pub fn parse(files: &[(String, String)]) -> Result<(Self, Settings), Vec<Problem>> {
        read::read(files)
    }

    /// What holds where there is no file: one network that works on any host.
    #[must_use]
    pub fn embedded() -> (Self, Settings) {
        let subnet = const { Ipv4Net::new_assert(Ipv4Addr::new(10, 83, 0, 0), 20) };
        let network = Network {
            name: NetworkName("default".to_owned()),
            kind: Kind::Nat { host_access: false },
            mtu: None,
            ipv4: Some(Ipv4 {
                subnet,
                gateway: Some(Ipv4Addr::new(10, 83, 0, 1)),
                pool: Ipv4Addr::new(10, 83, 0, 2)..=Ipv4Addr::new(10, 83, 15, 254),
            }),
            ipv6: None,
            dns: Vec::new(),
            isolated: false,
            probe: Duration::ZERO,
        };
        let config = Self {
            link_group: LINK_GROUP,
            networks: BTreeMap::from([(network.name.clone(), network)]),
        };
        (config, Settings::at(SOCKET))
    }

    /// Group of what is to be deleted.
    #[must_use]
    pub fn trash_group(&self) -> u32 {
        self.link_group.saturating_add(1)
    }
}

impl Network {
    /// The kind's word.
    #[must_use]
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Nat { .. } => "nat",
            Kind::Bridge { .. } => "bridge",
            Kind::Vlan { .. } => "vlan",
            Kind::VlanAware { .. } => "vlan-aware",
        }
    }

    /// Name of its bridge: the operator's, or the one that is made.
    #[must_use]
    pub fn bridge(&self) -> String {
        match &self.kind {
            Kind::Bridge {
                bridge: Some(bridge), ..
            }
            | Kind::VlanAware {
                bridge: Some(bridge), ..
            } => bridge.clone(),
            _ => bridge_name(&self.name).to_string(),
        }
    }

    /// The link of the operator's that it is on, where it isn't the bridge.
    #[must_use]
    pub fn uplink(&self) -> Option<&str> {
        match &self.kind {
            Kind::Nat { .. } => None,
            Kind::Bridge { uplink, .. } | Kind::VlanAware { uplink, .. } => uplink.as_deref(),
            Kind::Vlan { uplink, .. } => Some(uplink),
        }
    }

    /// The link of the operator's that is a port of its bridge.
    #[must_use]
    pub fn port(&self) -> Option<&str> {
        let own = matches!(self.kind, Kind::Bridge { .. } | Kind::VlanAware { .. });
        self.uplink().filter(|_| own)
    }

    /// What this network and another can't both have on one host, for a person.
    pub fn collisions(&self, other: &Self) -> impl Iterator<Item = String> {
        check::collisions(other, self).map(|(_, sentence)| sentence)
    }

    /// Whether its bridge is the operator's.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        matches!(
            &self.kind,
            Kind::Bridge { bridge: Some(_), .. } | Kind::VlanAware { bridge: Some(_), .. }
        )
    }
}

impl Ipv4 {
    /// Whether a machine may have an address: one of the subnet, not its first or last, which are the network itself
    /// and everybody, and not the gateway's.
    #[must_use]
    pub fn is_usable(&self, address: Ipv4Addr) -> bool {
        self.subnet.contains(&address)
            && address != self.subnet.network()
            && address != self.subnet.broadcast()
            && self.gateway != Some(address)
    }

    /// Number of addresses of the pool.
    #[must_use]
    pub fn pool_size(&self) -> u64 {
        let (first, last) = (u32::from(*self.pool.start()), u32::from(*self.pool.end()));
        u64::from(last.saturating_sub(first)) + 1
    }
}
