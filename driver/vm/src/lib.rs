//! What is a microVM to Steppe, apart from any hypervisor?
//!
//! Pure: no file, clock or socket is touched here. The modules, in reading order:
//!
//! * [`spec`]: what a task asks for, and the check that turns it into a [`Vm`];
//! * [`vm`]: the checked machine;
//! * [`plan`]: what the shim is told to do, exactly;
//! * [`record`]: what is written down about a task before anything is done for it;
//! * [`control`]: what the plugin and the shim say to each other;
//! * [`exit`]: how a VM ended, and what that means to Nomad;
//! * [`error`]: an error and its causes on one line.

pub mod spec;
pub mod vm;

pub mod plan;
pub mod record;

pub mod control;
pub mod exit;

pub mod error;

pub use vm::Vm;
