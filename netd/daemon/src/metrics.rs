//! What do metrics tell?
//!
//! What netd counts ([`Counts`]), and what there is at the moment of reading. "Guest sent" is what the guest sent, which the
//! host's side of a tap calls received.

use std::collections::BTreeMap;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use steppe_proto::net::{Interface, NetworkInfo};

use crate::counts::Counts;
use crate::stats::Stats;

/// Everything as OpenMetrics text: what was counted, and what there is.
#[must_use]
pub fn text(counts: &Counts, now: &Now) -> String {
    let mut registry = Registry::default();
    counts.register(&mut registry);
    now.register(&mut registry);
    steppe_daemon::metrics::text(&registry)
}

/// What there is at this moment.
#[derive(Debug, Clone, Default)]
pub struct Now {
    /// The networks.
    pub networks: Vec<NetworkInfo>,
    /// The interfaces.
    pub interfaces: Vec<Interface>,
    /// What went through taps, by name.
    pub stats: BTreeMap<String, Stats>,
    /// Frames that the filter dropped, by reason.
    pub drops: BTreeMap<String, u64>,
}

/// Names and values of labels.
type Labels<const N: usize> = [(&'static str, String); N];

/// Name, meaning and place of a figure of each interface.
type Figure = (&'static str, &'static str, fn(&Stats) -> u64);

impl Now {
    fn register(&self, registry: &mut Registry) {
        self.of_networks(registry);
        self.of_interfaces(registry);
        let drops = Family::<Labels<1>, Counter>::default();
        for (reason, frames) in &self.drops {
            let _before = drops.get_or_create(&[("reason", reason.clone())]).inc_by(*frames);
        }
        registry.register(
            "netd_filter_dropped_frames",
            "Frames of machines that the filter dropped",
            drops,
        );
    }

    fn of_networks(&self, registry: &mut Registry) {
        let available = Family::<Labels<2>, Gauge>::default();
        let attached = Family::<Labels<2>, Gauge>::default();
        let pool = Family::<Labels<1>, Gauge>::default();
        let used = Family::<Labels<1>, Gauge>::default();
        for network in &self.networks {
            let name = ("network", network.name.clone());
            let labels = [name.clone(), ("kind", network.kind.clone())];
            let here = i64::from(network.unavailable.is_empty());
            let _before = available.get_or_create(&labels).set(here);
            // There from the beginning, so that a rise from nothing is seen.
            let _before = attached.get_or_create(&labels).set(0);
            if network.pool > 0 {
                let label = [name];
                let _before = pool.get_or_create(&label).set(signed(network.pool));
                let _before = used.get_or_create(&label).set(signed(network.used));
            }
        }
        for interface in &self.interfaces {
            let labels = [
                ("network", interface.network.clone()),
                ("kind", interface.kind.clone()),
            ];
            let _before = attached.get_or_create(&labels).inc();
        }
        registry.register(
            "netd_network_available",
            "Whether this host can have a network",
            available,
        );
        registry.register("netd_interfaces", "Interfaces of machines", attached);
        registry.register("netd_pool_addresses", "IPv4 addresses of a network's pool", pool);
        registry.register(
            "netd_pool_used_addresses",
            "IPv4 addresses of the pool that machines of this host have",
            used,
        );
    }

    fn of_interfaces(&self, registry: &mut Registry) {
        let figures: [Figure; 6] = [
            ("guest_sent_bytes", "Bytes that the guest sent", |of| {
                of.guest_sent_bytes
            }),
            ("guest_sent_packets", "Packets that the guest sent", |of| {
                of.guest_sent_packets
            }),
            (
                "guest_sent_dropped_packets",
                "Packets of the guest that the host had no room for",
                |of| of.guest_sent_dropped,
            ),
            ("guest_received_bytes", "Bytes for the guest", |of| {
                of.guest_received_bytes
            }),
            ("guest_received_packets", "Packets for the guest", |of| {
                of.guest_received_packets
            }),
            (
                "guest_received_dropped_packets",
                "Packets for the guest that it did not take in time",
                |of| of.guest_received_dropped,
            ),
        ];
        for (name, help, value) in figures {
            let family = Family::<Labels<5>, Counter>::default();
            for interface in &self.interfaces {
                let Some(stats) = self.stats.get(&interface.tap) else {
                    continue;
                };
                let owner = interface.owner.clone().unwrap_or_default();
                let labels = [
                    ("network", interface.network.clone()),
                    ("instance", owner.instance),
                    ("id", owner.id),
                    ("index", interface.index.to_string()),
                    ("tap", interface.tap.clone()),
                ];
                let _before = family.get_or_create(&labels).inc_by(value(stats));
            }
            registry.register(format!("netd_interface_{name}"), help, family);
        }
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use steppe_proto::net::Owner;

    use super::*;

    #[test]
    fn everything_is_told() {
        let counts = Counts::default();
        counts.overruns.inc();
        let now = Now {
            networks: vec![NetworkInfo {
                name: "default".to_owned(),
                kind: "nat".to_owned(),
                pool: 4093,
                used: 1,
                ..NetworkInfo::default()
            }],
            interfaces: vec![Interface {
                owner: Some(Owner {
                    instance: "i".to_owned(),
                    id: "x".to_owned(),
                }),
                network: "default".to_owned(),
                kind: "nat".to_owned(),
                tap: "ndta".to_owned(),
                ..Interface::default()
            }],
            stats: BTreeMap::from([(
                "ndta".to_owned(),
                Stats {
                    guest_sent_bytes: 7,
                    ..Stats::default()
                },
            )]),
            drops: BTreeMap::from([("mac".to_owned(), 9)]),
        };
        let text = text(&counts, &now);
        for line in [
            "netd_overruns_total 1",
            r#"netd_network_available{network="default",kind="nat"} 1"#,
            r#"netd_interfaces{network="default",kind="nat"} 1"#,
            r#"netd_pool_addresses{network="default"} 4093"#,
            r#"netd_pool_used_addresses{network="default"} 1"#,
            r#"netd_interface_guest_sent_bytes_total{network="default",instance="i",id="x",index="0",tap="ndta"} 7"#,
            r#"netd_filter_dropped_frames_total{reason="mac"} 9"#,
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line} in\n{text}");
        }
        assert_eq!(text.matches("# EOF").count(), 1);
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
