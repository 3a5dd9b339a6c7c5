//! Do the networks of a host go together?

use std::collections::BTreeMap;

use super::table::{Place, Problems};
use super::{Kind, Network};
use crate::{NetworkName, Vid};

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
            overlap(earlier, later, problems);
            same_bridge(earlier, later, problems);
            same_uplink(earlier, later, problems);
        }
    }
}

/// The host routes into nat networks: each address must be in one of them only.
fn overlap(earlier: &Said, later: &Said, problems: &mut Problems) {
    let subnet = |said: &Said| {
        let nat = matches!(said.network.kind, Kind::Nat { .. });
        said.network.ipv4.as_ref().filter(|_| nat).map(|ipv4| ipv4.subnet)
    };
    if let (Some(first), Some(second)) = (subnet(earlier), subnet(later))
        && (first.contains(&second) || second.contains(&first))
    {
        problems.add(
            later.ipv4,
            format!(
                "network {}'s subnet {second} overlaps network {}'s, {first}; give another",
                later.network.name, earlier.network.name
            ),
        );
    }
}

fn same_bridge(earlier: &Said, later: &Said, problems: &mut Problems) {
    if later.network.is_foreign() && earlier.network.bridge() == later.network.bridge() {
        problems.add(
            later.bridge,
            format!(
                "network {} has the bridge {} that network {} has; one bridge is one network",
                later.network.name,
                later.network.bridge(),
                earlier.network.name
            ),
        );
    }
}

fn same_uplink(earlier: &Said, later: &Said, problems: &mut Problems) {
    let (Some((first, taken)), Some((second, wanted))) = (uplink(&earlier.network), uplink(&later.network))
    else {
        return;
    };
    let collides = first == second
        && match (taken, wanted) {
            (Use::Vlan(one), Use::Vlan(other)) => one == other,
            // A port's frames go to its bridge, before sub-interfaces could see them.
            (Use::Port, _) | (_, Use::Port) => true,
        };
    if collides {
        let (name, other) = (&later.network.name, &earlier.network.name);
        let sentence = match (taken, wanted) {
            (Use::Vlan(vid), Use::Vlan(_)) => {
                format!(
                    "network {name} has VLAN {vid} of uplink {second} that network {other} has; give another VLAN"
                )
            }
            (Use::Port, Use::Port) => {
                format!(
                    "network {name} has the uplink {second} that network {other} has; a link is a port of one bridge"
                )
            }
            (Use::Port, Use::Vlan(_)) | (Use::Vlan(_), Use::Port) => format!(
                "network {name} and network {other} can't share the uplink {second}: as port of a bridge it has no VLAN \
                 sub-interfaces; one network of kind vlan-aware serves both"
            ),
        };
        problems.add(later.uplink, sentence);
    }
}

fn uplink(network: &Network) -> Option<(&str, Use)> {
    match &network.kind {
        Kind::Nat { .. } => None,
        Kind::Bridge { uplink, .. } | Kind::VlanAware { uplink, .. } => Some((uplink.as_deref()?, Use::Port)),
        Kind::Vlan { uplink, vid } => Some((uplink, Use::Vlan(*vid))),
    }
}
