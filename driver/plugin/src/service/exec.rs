//! What is answered to requests that need something inside the guest?

use tonic::Status;

/// `nomad alloc exec`, script checks, template scripts.
pub(super) fn no_exec() -> Status {
    Status::unimplemented(
        "commands can't be run in this VM: its guest has no agent that Steppe could ask; log in over the network instead",
    )
}

/// `nomad alloc signal`, template signals.
pub(super) fn no_signal(signal: &str) -> Status {
    Status::unimplemented(format!(
        "{signal} can't be sent into a VM: its guest has no agent that Steppe could ask; `nomad alloc stop` presses the \
         power button"
    ))
}
