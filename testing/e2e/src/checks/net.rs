//! Which checks are there of several hosts and their networks?

mod addresses;
mod away;
mod bad_networks;
mod canary;
mod ports;
mod stream;
mod taps;

use crate::harness::Beside::{Nothing, Others};
use crate::harness::{Check, check};
use crate::hosts::Net;

/// Every check of suite `net`, those that take longest first.
pub(crate) const TABLE: &[Check<Net>] = &[
    check("stream_over_restart", Others, stream::over_restart),
    check("e2e_address_stable", Others, addresses::stable),
    check("e2e_netd_away", Others, away::netd_away),
    check("skew_netd", Others, away::skew),
    check(
        "e2e_duplicate_identity_refused",
        Others,
        canary::duplicate_identity_refused,
    ),
    check("e2e_canary_alloc_identity", Others, canary::alloc_identity),
    check("bad_input_networks", Others, bad_networks::input),
    check(
        "e2e_service_driver_address",
        Others,
        ports::service_driver_address,
    ),
    check("e2e_ports_three_ways", Others, ports::three_ways),
    check("e2e_two_vms_ping", Others, addresses::two_vms_ping),
    check("escape_taps", Others, taps::escape),
    // Cores that are reserved are missed by whoever measures.
    check("e2e_multi_queue", Nothing, taps::multi_queue),
];
