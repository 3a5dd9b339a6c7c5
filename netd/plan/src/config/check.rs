//! Do the networks of a host go together?

use std::collections::BTreeMap;

use super::{Kind, Network};
use crate::{NetworkName, Vid};
use steppe_config::{Place, Problems};

/// A network, and where what may stand in another's way is said.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) network: Network,
    pub(super) at: Place,
    pub(super) ipv4: Place,
    pub(super) bridge: Place,
    pub(super) uplink: Place,
}

/// What a network takes an uplink for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Port,
    Vlan(Vid),
}

/// Adds what is wrong with networks only because of each other; of two, it is said of the later one.
pub(super) fn together(said: &BTreeMap<NetworkName, Said>, problems: &mut Problems) {
    let mut networks: Vec<&Said> = said.values().collect();
    networks.sort_by_key(|said| said.at);
    for (number, later) in networks.iter().enumerate() {
        for earlier in networks.iter().take(number) {
            for (what, sentence) in collisions(&earlier.network, &later.network) {
                let place = match what {
                    What::Subnet => later.ipv4,
                    What::Bridge => later.bridge,
                    What::Uplink => later.uplink,
                };
                problems.add(place, sentence);
            }
        }
    }
}

/// What two networks can't both have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Subnet,
    Bridge,
    Uplink,
}

/// What `later` has that `earlier` has, with a sentence each.
pub(super) fn collisions(earlier: &Network, later: &Network) -> impl Iterator<Item = (What, String)> {
    let found = [
        (What::Subnet, overlap(earlier, later)),
        (What::Bridge, same_bridge(earlier, later)),
        (What::Uplink, same_uplink(earlier, later)),
    ];
    found
        .into_iter()
        .filter_map(|(what, sentence)| Some((what, sentence?)))
}

/// The host routes into nat networks: each address must be in one of them only.
fn overlap(earlier: &Network, later: &Network) -> Option<String> {
    let subnet = |network: &Network| {
        let nat = matches!(network.kind, Kind::Nat { .. });
        network.ipv4.as_ref().filter(|_| nat).map(|ipv4| ipv4.subnet)
    };
    let (first, second) = (subnet(earlier)?, subnet(later)?);
    (first.contains(&second) || second.contains(&first)).then(|| {
        format!(
            "network {}'s subnet {second} overlaps network {}'s, {first}; give another",
            later.name, earlier.name
        )
    })
}

fn same_bridge(earlier: &Network, later: &Network) -> Option<String> {
    (later.is_foreign() && earlier.bridge() == later.bridge()).then(|| {
        format!(
            "network {} has the bridge {} that network {} has; one bridge is one network",
            later.name,
            later.bridge(),
            earlier.name
        )
    })
}

fn same_uplink(earlier: &Network, later: &Network) -> Option<String> {
    let ((first, taken), (second, wanted)) = (uplink(earlier)?, uplink(later)?);
    let (name, other) = (&later.name, &earlier.name);
    match (taken, wanted) {
        _ if first != second => None,
        (Use::Vlan(one), Use::Vlan(vid)) => (one == vid).then(|| {
            format!(
                "network {name} has VLAN {vid} of uplink {second} that network {other} has; give another VLAN"
            )
        }),
        // A port's frames go to its bridge, before sub-interfaces could see them.
        (Use::Port, Use::Port) => Some(format!(
            "network {name} has the uplink {second} that network {other} has; a link is a port of one bridge"
        )),
        (Use::Port, Use::Vlan(_)) | (Use::Vlan(_), Use::Port) => Some(format!(
            "network {name} and network {other} can't share the uplink {second}: as port of a bridge it has no VLAN \
             sub-interfaces; one network of kind vlan-aware serves both"
        )),
    }
}

fn uplink(network: &Network) -> Option<(&str, Use)> {
    match &network.kind {
        Kind::Nat { .. } => None,
        Kind::Bridge { uplink, .. } | Kind::VlanAware { uplink, .. } => Some((uplink.as_deref()?, Use::Port)),
        Kind::Vlan { uplink, vid } => Some((uplink, Use::Vlan(*vid))),
    }
}
