//! What is a microVM to Steppe, apart from any hypervisor?
//!
//! Pure: no file, clock or socket is touched here. The modules, in reading order:
//!
//! * [`spec`]: what a task asks for, and the check that turns it into a [`Vm`];
//! * [`vm`]: the checked machine;
//! * [`interface`]: what netd made of the networks that it asks for, and what guest and services learn of that;
//! * [`plan`]: what the shim is told to do, exactly;
//! * [`memory`]: what a VM needs on its host beside its guest's memory;
//! * [`lease`]: which user ids a VM holds;
//! * [`record`]: what is written down about a task before anything is done for it;
//! * [`undo`]: what must be done to take back what a record names;
//! * [`reap`]: what becomes of tasks that nobody asks about;
//! * [`control`]: what the plugin and the shim say to each other;
//! * [`frame`]: what the shim's two processes say to each other;
//! * [`exit`]: how a VM ended, and what that means to Nomad;
//! * [`error`]: an error and its causes on one line.

pub mod spec;
pub mod vm;

pub mod interface;

pub mod memory;
pub mod plan;

pub mod lease;
pub mod reap;
pub mod record;
pub mod undo;

pub mod control;
pub mod exit;
pub mod frame;

pub mod error;

pub use vm::Vm;
