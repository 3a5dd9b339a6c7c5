//! How does the process behave towards signals, and towards the person who starts it by hand?

use std::io::{self, Write};

use tokio::signal::unix::{SignalKind, signal};

use crate::Stopper;

/// Takes over the signals that reach a plugin without being meant for it.
///
/// * SIGINT is swallowed: Ctrl-C at the host's terminal goes to its whole process group, and the host still needs its
///   plugins to end in order. It is caught rather than ignored, since children would inherit being ignored.
/// * SIGTERM ends the plugin in order.
/// * SIGPIPE was ignored by Rust's own start code: writing to a host that is gone must be an error, not our death.
pub(crate) fn handle_signals(stopper: &Stopper) -> io::Result<()> {
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut terminations = signal(SignalKind::terminate())?;
    let stopper = stopper.clone();
    tokio::spawn(async move {
        loop {
            // Both arms may be dropped: a signal that came stays noted.
            tokio::select! {
                _ = interrupts.recv() => tracing::debug!("interrupt ignored: the host decides when a plugin ends"),
                _ = terminations.recv() => {
                    tracing::info!("terminated by signal");
                    stopper.stop();
                }
            }
        }
    });
    Ok(())
}

/// Says one sentence to whoever looks at stderr; if nobody does, that is no error.
pub(crate) fn tell(message: &dyn std::fmt::Display) {
    drop(writeln!(io::stderr(), "{message}"));
}
