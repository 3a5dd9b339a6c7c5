//! Which checks are there?

mod bad;
mod crash;
mod drift;
mod nat;
mod privileges;
mod probe;
mod races;
mod random;
mod reload;
mod spoof;
mod vlan;

use crate::harness::{Check, Place};

/// All of them, those that take longest first.
pub(crate) const TABLE: &[Check] = &[
    host("netd_crash_matrix", crash::netd_crash_matrix),
    host("netd_random", random::netd_random),
    host("bad_input_netd", bad::bad_input_netd),
    host("netd_bridge_full", races::netd_bridge_full),
    host("netd_drift", drift::netd_drift),
    host("nat_ports", nat::nat_ports),
    host("duplicate_address_probe", probe::duplicate_address_probe),
    host("netd_attach_at_once", races::netd_attach_at_once),
    host("unit_privileges_netd", privileges::unit_privileges_netd),
    host("netd_network_vanishes", reload::netd_network_vanishes),
    host("netd_uplink_changes", reload::netd_uplink_changes),
    host("address_defended", probe::address_defended),
    host("netd_flushed_ruleset", races::netd_flushed_ruleset),
    host("spoof_frames_host", spoof::spoof_frames_host),
    machine("spoof_frames", spoof::spoof_frames),
    machine("vlan_isolation", vlan::vlan_isolation),
    machine("vlan_trunk", vlan::vlan_trunk),
    machine("vlan_aware_access", vlan::vlan_aware_access),
    machine("mtu_dont_fragment", vlan::mtu_dont_fragment),
    machine("netd_crash_matrix_vlan", crash::netd_crash_matrix_vlan),
];

const fn host(name: &'static str, run: fn()) -> Check {
    Check {
        name,
        place: Place::Host,
        run,
    }
}

const fn machine(name: &'static str, run: fn()) -> Check {
    Check {
        name,
        place: Place::Machine,
        run,
    }
}
