//! Which messages does Nomad exchange with a task driver?
//!
//! Nomad's plugin protocol, written in our own words in `proto/*.proto`; `src/generated` is what the generator makes of
//! them (`tests/generated.rs` keeps the two together, and rewrites the code when it runs with `UPDATE=1`). There is no
//! logic here. Messages, fields, numbers and types are those of the released module that the conformance test compares
//! them with; what that module doesn't have yet stands in [`EXTRAS`].
//!
//! The services of go-plugin itself (package `plugin`) are in the crate `go-plugin`, which knows no Nomad.

mod extras;
#[expect(
    clippy::allow_attributes_without_reason,
    missing_docs,
    unreachable_pub,
    reason = "generated code"
)]
mod generated;

pub use extras::{EXTRAS, Extra};
pub use generated::google::rpc;
pub use generated::hashicorp::nomad::plugins::base::proto as base;
pub use generated::hashicorp::nomad::plugins::drivers::proto as drivers;
pub use generated::hashicorp::nomad::plugins::shared::{hclspec, structs};
