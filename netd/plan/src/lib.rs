//! What should a host's links, addresses and filters be, and what takes them there?
//!
//! Pure: configuration text, requests and what was observed come in as values; refusals, attachments, filter text and
//! [`Action`]s go out as values. Nothing here reads a clock, a file or a socket. In reading order:
//!
//! * `config`: what the operator said, and whether it is right;
//! * [`identity`], [`name`]: which addresses and names a machine has, whichever host it is on;
//! * `observed`: what the kernel says there is;
//! * `decide`: what becomes of a request: attachments, or a refusal;
//! * [`alias`]: how an attachment is written on its tap, and read back;
//! * `network`, `attach`, `repair`: the steps from what is to what should be;
//! * `adopt`, `sync`: what is ours after a restart, and what nobody wants any more;
//! * [`filter`]: the text of the filter.

mod action;
mod adopt;
pub mod alias;
mod attach;
mod attachment;
mod config;
mod decide;
pub mod filter;
pub mod identity;
pub mod name;
mod network;
mod observed;
mod repair;
mod sync;
#[cfg(test)]
mod testing;
mod vlan;

pub use action::{Action, PortFlags};
pub use adopt::{Adopted, Incomplete, adopt, orphaned};
pub use attach::{attach, detach, port_flags, take_back};
pub use attachment::{
    Attachment, Forward, Mark, Mode, Owner, Protocol, QUEUES_MAX, Refusal, Request, RequestNic,
};
pub use config::{Config, Ipv4, Ipv6, Kind, LINK_GROUP, Network, Problem, SOCKET, Settings};
pub use decide::{Answered, decide};
pub use identity::{Identity, Mac};
pub use name::{LinkName, NetworkName};
pub use network::{Kernel, Unavailable, effective_mtu, network, sysctls};
pub use observed::{Link, LinkKind, Observed, PortVlan};
pub use repair::{Repair, faults, repair, sweep};
pub use sync::{Synced, sync};
pub use vlan::{Vid, Vids};
