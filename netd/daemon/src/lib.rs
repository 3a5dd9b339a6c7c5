//! Which links, addresses and filters does a host have, and who asked for them?
//!
//! What is decided is decided in `netd-plan`; here it is looked at and done. In reading order: [`netlink`], [`observe`],
//! [`kernel`] look; [`apply`] with [`nft`] and `tap` does; `probe` asks other hosts; `state` owns all of it, with `attach`,
//! `resync`, `sweep`, `tell`, `watch`, and `events`, which tells it what others did; [`service`] answers.

pub mod apply;
mod attach;
mod convert;
pub mod counts;
mod defend;
mod events;
pub mod kernel;
pub mod metrics;
pub mod netlink;
pub mod nft;
pub mod observe;
mod packet;
mod probe;
mod resync;
pub mod service;
mod state;
pub mod stats;
mod sweep;
mod tables;
mod tap;
mod tell;
mod watch;

pub use service::{Netd, Service};
pub use state::StartError;
