//! What do the programs of Steppe ask of each other?
//!
//! Written in `proto/*.proto`; `src/generated` is what the generator makes of them (`tests/generated.rs` keeps the two
//! together, and rewrites the code when it runs with `UPDATE=1`). Of logic there is only how a detail travels in an error.

mod error;
#[expect(
    clippy::allow_attributes_without_reason,
    missing_docs,
    unreachable_pub,
    reason = "generated code"
)]
mod generated;

pub use error::{detail, status};
pub use generated::net::v1 as net;

/// Version of the API `net.v1` that this release speaks. A release works with daemons and clients whose version is this
/// one, the one before, or the next.
pub const NET_API: u32 = 1;

/// Whether a program that speaks `ours` can work with one that speaks `min` to `max`: one version of difference is bridged
/// by the rules of protobuf (fields are only ever added, and an unknown one is left out).
#[must_use]
pub fn speaks(ours: u32, min: u32, max: u32) -> bool {
    min <= max && max.saturating_add(1) >= ours && min <= ours.saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::speaks;

    #[test]
    fn one_version_of_difference_is_bridged() {
        for (min, max, works) in [
            (4, 4, true),
            (3, 3, true),
            (5, 5, true),
            (2, 2, false),
            (6, 6, false),
            (1, 9, true),
            (1, 3, true),
            (5, 9, true),
            (5, 3, false),
        ] {
            assert_eq!(speaks(4, min, max), works, "{min} to {max}");
        }
        assert!(speaks(1, 0, 0) && speaks(u32::MAX, u32::MAX, u32::MAX));
    }
}
