//! What does a request ask of its networks, and do they have it?

use std::net::Ipv4Addr;

use ipnet::Ipv6Net;
use steppe_config::quoted;

use crate::alias::TRUNK_TEXT_MAX;
use crate::attachment::FORWARDS_MAX;
use crate::config::{MTU, MTU_MIN_IPV6};
use crate::identity::{ipv6, mac};
use crate::{
    Config, Ipv4, Kind, Mac, Mode, Network, NetworkName, Observed, Refusal, Request, RequestNic, Vid, Vids,
    effective_mtu,
};

/// Which interface of the request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) index: u32,
}

impl Place {
    pub(super) fn field(self, key: &str) -> String {
        format!("nics[{}].{key}", self.index)
    }

    pub(super) fn refuse(self, key: &str, sentence: impl FnOnce(&str) -> String) -> Refusal {
        let field = self.field(key);
        let sentence = sentence(&field);
        Refusal::invalid(field, sentence)
    }
}

/// What is asked for as IPv4 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Address {
    None,
    Auto,
    Given(Ipv4Addr),
}

/// One interface as it is asked for, checked against its network alone.
#[derive(Debug)]
pub(super) struct Wanted<'c> {
    pub(super) network: &'c Network,
    pub(super) mode: Mode,
    pub(super) address: Address,
    pub(super) mtu: u32,
    pub(super) mac: Mac,
    pub(super) ipv6: Option<Ipv6Net>,
}

impl<'c> Wanted<'c> {
    pub(super) fn new(
        config: &'c Config,
        observed: &Observed,
        request: &Request,
        place: Place,
        nic: &RequestNic,
    ) -> Result<Self, Refusal> {
        let name: Option<NetworkName> = nic.network.parse().ok();
        let Some(network) = name.and_then(|name| config.networks.get(&name)) else {
            let known: Vec<&str> = config.networks.keys().map(NetworkName::as_str).collect();
            return Err(Refusal {
                reason: "unknown-network",
                ..place.refuse("network", |field| {
                    format!(
                        "{field} is {}, a network that this host doesn't have; its networks are {}",
                        quoted(&nic.network),
                        known.join(", ")
                    )
                })
            });
        };
        let mode = wanted_mode(network, place, nic)?;
        let trunk = matches!(mode, Mode::Trunk(_));
        let mac = mac(&network.name, &mode, &request.identity);
        let prefix = network.ipv6.as_ref().filter(|_| !trunk).map(|ipv6| ipv6.prefix);
        // The length is the prefix's, which is one.
        let ipv6 = prefix.and_then(|prefix| Ipv6Net::new(ipv6(prefix, mac), prefix.prefix_len()).ok());
        let wanted = Self {
            address: wanted_address(network, trunk, place, nic)?,
            mtu: wanted_mtu(network, observed, ipv6.is_some(), place, nic)?,
            network,
            mode,
            mac,
            ipv6,
        };
        wanted.check_ports(place, nic)?;
        Ok(wanted)
    }

    fn check_ports(&self, place: Place, nic: &RequestNic) -> Result<(), Refusal> {
        if nic.ports.is_empty() {
            return Ok(());
        }
        let refuse = |sentence: &dyn Fn(&str) -> String| Err(place.refuse("ports", sentence));
        if !matches!(self.network.kind, Kind::Nat { .. }) {
            return refuse(&|field| {
                format!(
                    "{field}: network {} is of kind {}, where a machine is reached at its own address; leave ports out, or take \
                     a network of kind nat",
                    self.network.name,
                    self.network.kind_name()
                )
            });
        }
        if self.address == Address::None {
            return refuse(&|field| {
                format!("{field}: ports lead to an IPv4 address, and ipv4 is \"none\"; give one")
            });
        }
        if nic.ports.len() > FORWARDS_MAX {
            return refuse(&|field| {
                format!(
                    "{field} has {} ports; give at most {FORWARDS_MAX}",
                    nic.ports.len()
                )
            });
        }
        Ok(())
    }
}

/// Which VLANs of its network an interface shall be in.
fn wanted_mode(network: &Network, place: Place, nic: &RequestNic) -> Result<Mode, Refusal> {
    let name = &network.name;
    let Kind::VlanAware {
        vids: allowed, vid, ..
    } = &network.kind
    else {
        for (key, said) in [("vlan", nic.vlan != 0), ("trunk", !nic.trunk.is_empty())] {
            if said {
                return Err(place.refuse(key, |field| {
                    format!(
                        "{field}: network {name} is of kind {} and has no VLANs to choose from; leave {key} out",
                        network.kind_name()
                    )
                }));
            }
        }
        return Ok(Mode::Plain);
    };
    if nic.vlan != 0 && !nic.trunk.is_empty() {
        return Err(place.refuse("trunk", |field| {
            format!("{field} and vlan exclude each other: a port has one VLAN without tags, or several with; leave one out")
        }));
    }
    if !nic.trunk.is_empty() {
        return wanted_trunk(name, allowed, place, nic);
    }
    let not_allowed = |field: &str, what: &str| {
        format!("{field} is {what}; network {name} allows the VLANs {allowed}: give one of them")
    };
    if nic.vlan == 0 {
        return vid
            .map(Mode::Access)
            .ok_or_else(|| place.refuse("vlan", |field| not_allowed(field, "0, which is none")));
    }
    let vid = Vid::new(nic.vlan).filter(|vid| allowed.contains(*vid));
    vid.map(Mode::Access)
        .ok_or_else(|| place.refuse("vlan", |field| not_allowed(field, &nic.vlan.to_string())))
}

fn wanted_trunk(name: &NetworkName, allowed: &Vids, place: Place, nic: &RequestNic) -> Result<Mode, Refusal> {
    let vids =
        Vids::parse(&nic.trunk).map_err(|bad| place.refuse("trunk", |field| format!("{field}: {bad}")))?;
    if let Some(vid) = vids.iter().find(|vid| !allowed.contains(*vid)) {
        return Err(place.refuse("trunk", |field| {
            format!("{field} has {vid}; network {name} allows the VLANs {allowed}: leave it out")
        }));
    }
    let text = vids.to_string();
    if text.len() > TRUNK_TEXT_MAX {
        return Err(place.refuse("trunk", |field| {
            format!("{field} is {text}, longer than {TRUNK_TEXT_MAX} characters; give fewer ranges, or a second interface")
        }));
    }
    Ok(Mode::Trunk(vids))
}

fn wanted_address(
    network: &Network,
    trunk: bool,
    place: Place,
    nic: &RequestNic,
) -> Result<Address, Refusal> {
    let name = &network.name;
    let ipv4 = network.ipv4.as_ref().filter(|_| !trunk);
    let Some(ipv4) = ipv4 else {
        return match nic.ipv4.as_str() {
            "" | "none" => Ok(Address::None),
            other => Err(place.refuse("ipv4", |field| {
                let why = if trunk {
                    "a trunk port has no address of its own"
                } else {
                    "the network has no IPv4"
                };
                format!(
                    "{field} is {} on network {name}, but {why}; leave ipv4 out",
                    quoted(other)
                )
            })),
        };
    };
    match nic.ipv4.as_str() {
        "" | "auto" => Ok(Address::Auto),
        "none" => Ok(Address::None),
        text => given(ipv4, name, text)
            .map(Address::Given)
            .map_err(|why| place.refuse("ipv4", |field| format!("{field} is {}, {why}", quoted(text)))),
    }
}

/// The address that a request gives, or what is wrong with it.
fn given(ipv4: &Ipv4, network: &NetworkName, text: &str) -> Result<Ipv4Addr, String> {
    let subnet = ipv4.subnet;
    let Ok(address) = text.parse::<Ipv4Addr>() else {
        return Err(format!(
            "which is no IPv4 address; give \"auto\", \"none\" or an address of {subnet}"
        ));
    };
    let what = if !subnet.contains(&address) {
        "which is outside"
    } else if address == subnet.network() {
        "which is the network address of"
    } else if address == subnet.broadcast() {
        "which is the broadcast address of"
    } else if ipv4.gateway == Some(address) {
        "which is the gateway of"
    } else {
        return Ok(address);
    };
    Err(format!(
        "{what} network {network}'s subnet {subnet}; give another address of it"
    ))
}

fn wanted_mtu(
    network: &Network,
    observed: &Observed,
    ipv6: bool,
    place: Place,
    nic: &RequestNic,
) -> Result<u32, Refusal> {
    let most = effective_mtu(network, observed);
    let least = if ipv6 { MTU_MIN_IPV6 } else { *MTU.start() };
    match nic.mtu {
        0 => Ok(most),
        mtu if mtu > most => Err(place.refuse("mtu", |field| {
            format!(
                "{field} is {mtu}, more than the {most} of network {}; give at most that",
                network.name
            )
        })),
        mtu if mtu < least => Err(place.refuse("mtu", |field| {
            let why = if ipv6 { " where there is IPv6" } else { "" };
            format!("{field} is {mtu}; give {least} to {most}{why}")
        })),
        mtu => Ok(mtu),
    }
}
