//! What is told of interfaces and networks, to those who ask and to those who watch?

use netd_plan::{Attachment, LinkName, Network, NetworkName};
use steppe_proto::net;
use steppe_proto::net::watch_response::Event;

use crate::convert;
use crate::state::{Attached, State};

impl State {
    /// The interfaces of an instance, or all.
    pub(crate) fn interfaces(&self, instance: &str) -> Vec<net::Interface> {
        let wanted =
            |attached: &&Attached| instance.is_empty() || attached.attachment.owner.instance() == instance;
        let attached = self.attached.values().filter(wanted);
        attached.map(|attached| self.interface(attached)).collect()
    }

    pub(crate) fn interface(&self, attached: &Attached) -> net::Interface {
        convert::interface(
            &self.config,
            &attached.attachment,
            attached.carrier,
            &attached.faults,
        )
    }

    /// The networks, as they were seen last.
    pub(crate) fn networks(&self) -> net::NetworksResponse {
        let networks = self.config.networks.values();
        net::NetworksResponse {
            networks: networks.map(|network| self.network_info(network)).collect(),
        }
    }

    fn network_info(&self, network: &Network) -> net::NetworkInfo {
        let available = netd_plan::network(&self.config, network, &self.base, self.kernel);
        let unavailable = if self.retired.contains(&network.name) {
            Self::retired_sentence(&network.name)
        } else {
            available
                .err()
                .map(|unavailable| unavailable.sentence)
                .unwrap_or_default()
        };
        let pool = network.ipv4.as_ref().map(|ipv4| &ipv4.pool);
        let of_pool = self.there().filter(|attachment| {
            let address = attachment.ipv4.filter(|_| attachment.network == network.name);
            address
                .zip(pool)
                .is_some_and(|(address, pool)| pool.contains(&address.addr()))
        });
        net::NetworkInfo {
            name: network.name.to_string(),
            kind: network.kind_name().to_owned(),
            mtu: netd_plan::effective_mtu(network, &self.base),
            unavailable,
            ipv4: network
                .ipv4
                .as_ref()
                .map(|ipv4| ipv4.subnet.to_string())
                .unwrap_or_default(),
            ipv6: network
                .ipv6
                .as_ref()
                .map(|ipv6| ipv6.prefix.to_string())
                .unwrap_or_default(),
            pool: network.ipv4.as_ref().map_or(0, netd_plan::Ipv4::pool_size),
            used: u64::try_from(of_pool.count()).unwrap_or_default(),
        }
    }

    pub(crate) fn retired_sentence(network: &NetworkName) -> String {
        format!(
            "network {network} is configured no more, and ends with the last machine that is attached to it"
        )
    }

    /// Tells watchers of an interface that is new or changed.
    pub(crate) fn tell_changed(&mut self, tap: &LinkName) {
        if self.watchers.is_empty() {
            return;
        }
        let Some(attached) = self.attached.get(tap) else {
            return;
        };
        let event = Event::Changed(self.interface(attached));
        let instance = attached.attachment.owner.instance().to_owned();
        self.watchers.tell(Some(&instance), &event);
    }

    /// Tells watchers of an interface that is gone.
    pub(crate) fn tell_removed(&mut self, attachment: &Attachment) {
        let event = Event::Removed(convert::removed(attachment));
        self.watchers.tell(Some(attachment.owner.instance()), &event);
    }

    /// Tells watchers of the networks, where they have changed in more than the number of used addresses.
    pub(crate) fn tell_networks(&mut self) {
        let now = self.networks();
        let same = |one: &net::NetworkInfo, other: &net::NetworkInfo| {
            let used = one.used;
            *one == net::NetworkInfo {
                used,
                ..other.clone()
            }
        };
        let unchanged = now.networks.len() == self.told.networks.len()
            && now
                .networks
                .iter()
                .zip(&self.told.networks)
                .all(|(one, other)| same(one, other));
        if !unchanged {
            for network in &now.networks {
                let known = self
                    .told
                    .networks
                    .iter()
                    .any(|told| told.unavailable == network.unavailable);
                if !network.unavailable.is_empty() && !known {
                    tracing::warn!("{}", network.unavailable);
                }
            }
            self.watchers.tell(None, &Event::Networks(now.clone()));
            self.told = now;
        }
    }

    /// Gives everything to watchers that are new or lost something.
    pub(crate) fn catch_up(&mut self) {
        let mut watchers = std::mem::take(&mut self.watchers);
        let left = watchers.catch_up(|instance| {
            Event::Snapshot(net::Snapshot {
                interfaces: self.interfaces(instance),
                networks: Some(self.networks()),
            })
        });
        self.watchers = watchers;
        if left {
            self.be_patient();
        }
    }
}
