//! When does a daemon end, and when does it read its configuration again?

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tonic::transport::server::Router;

use crate::socket::Connections;

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
}

/// The signals of a daemon. A signal that comes while nobody waits is not lost.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    /// Takes the signals over from the system, for which each of them ends the process.
    ///
    /// # Errors
    ///
    /// The system's, when it refuses.
    pub fn take() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::Stop,
            _ = self.interrupt.recv() => Wish::Stop,
            _ = self.hang_up.recv() => Wish::Reload,
        }
    }
}

/// Ends the daemon, from wherever it is called: all clones are one.
#[derive(Debug, Clone)]
pub struct Stopper(watch::Sender<bool>);

impl Stopper {
    /// Of a daemon that runs.
    #[must_use]
    pub fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    /// Begins the end. To call it again changes nothing.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }

    /// Waits until someone called [`stop`](Self::stop). Endless streams end then.
    pub fn stopped(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut state = self.0.subscribe();
        let keep = self.clone(); // the state outlives every waiter, so waiting can't fail
        async move {
            let _stopped = state.wait_for(|stopped| *stopped).await;
            drop(keep);
        }
    }
}

impl Default for Stopper {
    fn default() -> Self {
        Self::new()
    }
}

/// Serves until the stopper is called, and then for at most `grace` until the requests under way are answered.
///
/// # Errors
///
/// tonic's, of a server that can't go on.
pub async fn serve(
    router: Router,
    connections: Connections,
    stopper: &Stopper,
    grace: Duration,
) -> Result<(), tonic::transport::Error> {
    let served = router.serve_with_incoming_shutdown(connections, stopper.stopped());
    let over = async {
        stopper.stopped().await;
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        result = served => result,
        () = over => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn signals_are_wishes() {
        let mut signals = Signals::take().unwrap();
        let me = rustix::process::getpid();
        for (signal, wish) in [
            (rustix::process::Signal::HUP, Wish::Reload),
            (rustix::process::Signal::TERM, Wish::Stop),
            (rustix::process::Signal::INT, Wish::Stop),
        ] {
            rustix::process::kill_process(me, signal).unwrap();
            assert_eq!(signals.next().await, wish);
        }
    }

    #[tokio::test]
    async fn all_stoppers_are_one() {
        let stopper = Stopper::new();
        let early = stopper.stopped();
        stopper.clone().stop();
        early.await;
        stopper.stopped().await;
    }
}
