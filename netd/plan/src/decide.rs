//! What becomes of a request?

mod wanted;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use steppe_config::quoted;

use crate::attachment::{NICS_MAX, QUEUES_MAX};
use crate::identity::ipv4_candidates;
use crate::name::{TAP, tap_name};
use crate::{
    Attachment, Config, Forward, Link, LinkKind, Mode, NetworkName, Observed, Owner, Refusal, Request,
    RequestNic, Vid,
};

use wanted::{Address, Place, Wanted};

/// Addresses for which another host answered: on which network, in which VLAN of it.
pub type Answered = BTreeSet<(NetworkName, Option<Vid>, Ipv4Addr)>;

/// Most ports of a bridge: the kernel's limit.
pub(crate) const BRIDGE_PORTS_MAX: usize = 1023;

/// The attachments of a request, in its order. Those that aren't among the existing ones are to be made: none of them
/// where the same request was carried out before, some where that was interrupted. The order of `existing` doesn't
/// matter.
///
/// Whether the networks can be had on this host is not asked here, but of [`crate::network()`].
///
/// # Errors
///
/// What is wrong with the request, or in its way.
pub fn decide<'a>(
    config: &Config,
    observed: &Observed,
    existing: impl Iterator<Item = &'a Attachment> + Clone,
    answered: &Answered,
    request: &Request,
) -> Result<Vec<Attachment>, Refusal> {
    check_machine(request)?;
    let own: Vec<&Attachment> = existing
        .clone()
        .filter(|attachment| attachment.owner == request.owner)
        .collect();
    if let Some(more) = own
        .iter()
        .find(|attachment| usize::try_from(attachment.index).is_ok_and(|index| index >= request.nics.len()))
    {
        return Err(other_spec(
            request,
            "nics",
            &format!("its interface {} is not in this request", more.index),
        ));
    }
    let mut decided: Vec<Attachment> = Vec::with_capacity(request.nics.len());
    for (index, nic) in (0..NICS_MAX).zip(&request.nics) {
        let place = Place { index };
        let wanted = Wanted::new(config, observed, request, place, nic)?;
        let same = |other: &Attachment| {
            other.network == wanted.network.name && other.mode.shares_segment(&wanted.mode)
        };
        if let Some(twin) = decided.iter().find(|other| same(other)) {
            return Err(Refusal::invalid(
                place.field("network"),
                format!(
                    "{} is {} a second time, after nics[{}]; a machine has one interface in each VLAN of a network",
                    place.field("network"),
                    wanted.network.name,
                    twin.index
                ),
            ));
        }
        let attachment = match own.iter().find(|attachment| attachment.index == index) {
            Some(there) => wanted
                .compare(request, place, nic, there)
                .map(|()| (*there).clone())?,
            None => {
                let before = decided
                    .iter()
                    .filter(|other| own.iter().all(|there| there.index != other.index));
                let others = existing
                    .clone()
                    .map(|other| -> &Attachment { other })
                    .chain(before);
                wanted.make(request, place, nic, observed, others, answered)?
            }
        };
        decided.push(attachment);
    }
    Ok(decided)
}

/// What a request says of the machine as a whole.
fn check_machine(request: &Request) -> Result<(), Refusal> {
    if request.uid == 0 || request.uid == u32::MAX {
        return Err(Refusal::invalid(
            "uid",
            format!(
                "uid is {}; interfaces are opened by a user of the machine's own, never by root: give its id",
                request.uid
            ),
        ));
    }
    if !(1..=QUEUES_MAX).contains(&request.queues) {
        return Err(Refusal::invalid(
            "queues",
            format!("queues is {}; give 1 to {QUEUES_MAX}", request.queues),
        ));
    }
    let nics = request.nics.len();
    if nics == 0 || u32::try_from(nics).map_or(true, |nics| nics > NICS_MAX) {
        return Err(Refusal::invalid(
            "nics",
            format!("the request has {nics} interfaces; give 1 to {NICS_MAX}"),
        ));
    }
    Ok(())
}

impl Wanted<'_> {
    /// Whether an interface that exists is what is wanted. What the request leaves to netd is as it was decided then.
    fn compare(
        &self,
        request: &Request,
        place: Place,
        nic: &RequestNic,
        there: &Attachment,
    ) -> Result<(), Refusal> {
        let differs = |key: &str, was: &dyn std::fmt::Display| {
            let (field, whole) = (place.field(key), matches!(key, "uid" | "queues" | "identity"));
            let field = if whole { key.to_owned() } else { field };
            Err(other_spec(request, &field, &format!("{field} was {was}")))
        };
        if there.network != self.network.name {
            return differs("network", &there.network);
        }
        if there.mode != self.mode {
            return match &there.mode {
                Mode::Plain => differs("vlan", &"none"),
                Mode::Access(vid) => differs("vlan", vid),
                Mode::Trunk(vids) => differs("trunk", vids),
            };
        }
        if there.mark != request.identity.mark() {
            return differs("identity", &"another");
        }
        if there.uid != request.uid {
            return differs("uid", &there.uid);
        }
        if there.queues != request.queues {
            return differs("queues", &there.queues);
        }
        if nic.mtu != 0 && there.mtu != nic.mtu {
            return differs("mtu", &there.mtu);
        }
        let same_address = match (self.address, there.ipv4) {
            (Address::None, None) | (Address::Auto, Some(_)) => true,
            (Address::Given(wanted), Some(net)) => wanted == net.addr(),
            (Address::None, Some(_)) | (Address::Auto | Address::Given(_), None) => false,
        };
        if !same_address {
            return match there.ipv4 {
                Some(net) => differs("ipv4", &net.addr()),
                None => differs("ipv4", &"none"),
            };
        }
        let ports: BTreeSet<_> = nic.ports.iter().collect();
        if ports != there.forwards.iter().collect() {
            return differs("ports", &"another set of ports");
        }
        Ok(())
    }

    /// The interface, if nobody else on this host has what it needs.
    fn make<'a>(
        &self,
        request: &Request,
        place: Place,
        nic: &RequestNic,
        observed: &Observed,
        others: impl Iterator<Item = &'a Attachment> + Clone,
        answered: &Answered,
    ) -> Result<Attachment, Refusal> {
        let network = &self.network.name;
        let tap = tap_name(&request.owner, place.index);
        let beside = others.clone().filter(|other| other.network == *network);
        if let Some(holder) = beside
            .clone()
            .find(|other| other.mac == self.mac && other.owner != request.owner)
        {
            return Err(Refusal {
                reason: "identity-held",
                field: "identity".to_owned(),
                sentence: format!(
                    "identity {} is held on network {network} by {}, which lives on this host; it is free when that one is \
                     detached, or give another identity",
                    quoted(request.identity.as_str()),
                    holder.owner
                ),
                holder: Some(holder.owner.clone()),
                retryable: true,
            });
        }
        if let Some(other) = others.clone().find(|other| other.tap == tap) {
            // Fifty bits of two hashes are the same: not seen by anybody so far.
            return Err(held(
                "identity-held",
                String::new(),
                format!("the name {tap} is held by {}; give another owner.id", other.owner),
                &other.owner,
            ));
        }
        self.check_room(place, observed, beside.clone())?;
        let forwards = self.forwards(place, nic, observed, others)?;
        Ok(Attachment {
            owner: request.owner.clone(),
            index: place.index,
            network: network.clone(),
            mode: self.mode.clone(),
            mark: request.identity.mark(),
            tap,
            uid: request.uid,
            queues: request.queues,
            mac: self.mac,
            ipv4: self.ipv4(request, place, observed, beside, answered)?,
            ipv6: self.ipv6,
            mtu: self.mtu,
            forwards,
        })
    }

    /// Whether the bridge has room for one more port.
    fn check_room<'a>(
        &self,
        place: Place,
        observed: &Observed,
        beside: impl Iterator<Item = &'a Attachment>,
    ) -> Result<(), Refusal> {
        let bridge = self.network.bridge();
        let index = observed.links.get(&bridge).map(|link| link.index);
        let of_others = observed
            .links
            .values()
            .filter(|link| index.is_some() && link.master == index)
            .filter(|link| !link.name.starts_with(TAP))
            .count();
        // An uplink that isn't a port yet will be one.
        let ports = of_others.max(usize::from(self.network.uplink().is_some())) + beside.count();
        if ports < BRIDGE_PORTS_MAX {
            return Ok(());
        }
        Err(Refusal {
            reason: "bridge-full",
            retryable: true,
            ..place.refuse("network", |field| {
                format!(
                    "{field}: bridge {bridge} of network {} has {ports} ports, and the kernel allows {BRIDGE_PORTS_MAX}; detach \
                     some, or take another network or host",
                    self.network.name
                )
            })
        })
    }

    /// The address: what was asked for, or the first candidate that nobody has.
    fn ipv4<'a>(
        &self,
        request: &Request,
        place: Place,
        observed: &Observed,
        beside: impl Iterator<Item = &'a Attachment>,
        answered: &Answered,
    ) -> Result<Option<Ipv4Net>, Refusal> {
        let Some(ipv4) = &self.network.ipv4 else {
            return Ok(None);
        };
        let name = &self.network.name;
        let mut held: Vec<(Ipv4Addr, &Owner)> = beside
            .filter(|other| other.mode.shares_segment(&self.mode))
            .filter_map(|other| Some((other.ipv4?.addr(), &other.owner)))
            .collect();
        held.sort_unstable();
        let holder = |address: Ipv4Addr| {
            let found = held.binary_search_by_key(&address, |(held, _)| *held);
            found.ok().and_then(|at| held.get(at)).map(|(_, owner)| *owner)
        };
        let vid = match self.mode {
            Mode::Access(vid) => Some(vid),
            Mode::Plain | Mode::Trunk(_) => None,
        };
        let answers =
            |address: Ipv4Addr| !answered.is_empty() && answered.contains(&(name.clone(), vid, address));
        let own = self.hosts_own(observed);
        let address = match self.address {
            Address::None => return Ok(None),
            Address::Given(address) => {
                if let Some(owner) = holder(address) {
                    return Err(self::held(
                        "address-taken",
                        place.field("ipv4"),
                        format!(
                            "{} is {address}, which {owner} has on network {name}; give another address, or detach that one",
                            place.field("ipv4")
                        ),
                        owner,
                    ));
                }
                if let Some(link) = own.get(&address) {
                    return Err(Refusal {
                        reason: "address-taken",
                        ..place.refuse("ipv4", |field| {
                            format!("{field} is {address}, which this host itself has, on {link}; give another address")
                        })
                    });
                }
                if answers(address) {
                    return Err(Refusal {
                        reason: "address-taken",
                        retryable: true,
                        ..place.refuse("ipv4", |field| {
                            format!(
                                "{field} is {address}, for which another host on network {name} answers; give another address, or \
                                 stop that one"
                            )
                        })
                    });
                }
                address
            }
            Address::Auto => ipv4_candidates(name, &self.mode, &request.identity, &ipv4.pool)
                .find(|candidate| {
                    let taken = holder(*candidate).is_some() || own.contains_key(candidate) || answers(*candidate);
                    ipv4.is_usable(*candidate) && !taken
                })
                .ok_or_else(|| Refusal {
                    reason: "pool-exhausted",
                    retryable: true,
                    ..place.refuse("ipv4", |field| {
                        format!(
                            "{field}: none of the {} addresses of network {name}'s pool ({}-{}) is free; detach a machine, or enlarge \
                             the pool",
                            ipv4.pool_size(),
                            ipv4.pool.start(),
                            ipv4.pool.end()
                        )
                    })
                })?,
        };
        // The length is the subnet's, which is one.
        Ok(Ipv4Net::new(address, ipv4.subnet.prefix_len()).ok())
    }

    /// The addresses that the host itself has on the network: on the operator's bridge, or in a VLAN of it. It wouldn't hear
    /// its own question for them.
    fn hosts_own<'o>(&self, observed: &'o Observed) -> BTreeMap<Ipv4Addr, &'o str> {
        let links = || observed.links.values();
        let name = self.network.bridge();
        let bridge = observed.links.get(&name).filter(|_| self.network.is_foreign());
        let on_it = |link: &&Link| match (bridge, &link.kind) {
            (Some(bridge), LinkKind::Vlan { parent, .. }) => *parent == bridge.index,
            (Some(bridge), _) => link.index == bridge.index,
            (None, _) => false,
        };
        let ipv4 = |address: &IpNet| match address {
            IpNet::V4(net) => Some(net.addr()),
            IpNet::V6(_) => None,
        };
        links()
            .filter(on_it)
            .flat_map(|link| {
                link.addresses
                    .iter()
                    .filter_map(ipv4)
                    .map(|address| (address, link.name.as_str()))
            })
            .collect()
    }

    /// The ports, in order, if each is free.
    fn forwards<'a>(
        &self,
        place: Place,
        nic: &RequestNic,
        observed: &Observed,
        others: impl Iterator<Item = &'a Attachment>,
    ) -> Result<Vec<Forward>, Refusal> {
        let mut forwards = nic.ports.clone();
        forwards.sort_unstable();
        let key = |forward: &Forward| (forward.protocol, forward.host_ip, forward.host_port);
        if let Some([twin, _]) = forwards
            .array_windows()
            .find(|[one, other]| key(one) == key(other))
        {
            return Err(place.refuse("ports", |field| {
                format!(
                    "{field} has {} port {} of {} twice; leave one out",
                    twin.protocol, twin.host_port, twin.host_ip
                )
            }));
        }
        let here = |address: Ipv4Addr| {
            let mut addresses = observed.links.values().flat_map(|link| &link.addresses);
            address.is_loopback() || addresses.any(|net| net.addr() == address)
        };
        if let Some(elsewhere) = forwards.iter().find(|forward| !here(forward.host_ip)) {
            return Err(Refusal {
                reason: "unavailable",
                retryable: true,
                ..place.refuse("ports", |field| {
                    format!(
                        "{field}: {} port {} is to be taken from {}, which this host doesn't have; give an address of it",
                        elsewhere.protocol, elsewhere.host_port, elsewhere.host_ip
                    )
                })
            });
        }
        for other in others {
            let taken = other
                .forwards
                .iter()
                .find(|taken| forwards.iter().any(|wanted| key(wanted) == key(taken)));
            if let Some(taken) = taken {
                let field = place.field("ports");
                let sentence = format!(
                    "{field}: {} port {} of {} leads to {}; take another port, or detach that one",
                    taken.protocol, taken.host_port, taken.host_ip, other.owner
                );
                return Err(held("port-taken", field, sentence, &other.owner));
            }
        }
        Ok(forwards)
    }
}

/// An owner that has interfaces asks for other ones.
fn other_spec(request: &Request, field: &str, what: &str) -> Refusal {
    Refusal {
        reason: "other-spec",
        ..Refusal::invalid(
            field,
            format!(
                "{} has interfaces of another request: {what}; detach it before it is attached otherwise",
                request.owner
            ),
        )
    }
}

/// Somebody has what is asked for, for now.
fn held(reason: &'static str, field: String, sentence: String, holder: &Owner) -> Refusal {
    Refusal {
        reason,
        field,
        sentence,
        holder: Some(holder.clone()),
        retryable: true,
    }
}

#[cfg(test)]
mod tests;
