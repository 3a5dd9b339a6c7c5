//! When does the plugin end?

use std::time::Duration;

use tokio::sync::watch;

/// How long requests under way may take to be answered once the plugin was told to stop. A host kills a plugin that is
/// still there two seconds after it asked; the answer to that very question is what must get through.
pub const STOP_GRACE: Duration = Duration::from_millis(100);

/// Ends the process, from wherever it is called: all clones are one.
///
/// A service may call it before it returns its own answer; that answer reaches the host as long as it is given within
/// [`STOP_GRACE`].
#[derive(Debug, Clone)]
pub struct Stopper(watch::Sender<bool>);

impl Stopper {
    /// A process that runs.
    #[must_use]
    pub fn new() -> Stopper {
        Stopper(watch::Sender::new(false))
    }

    /// Begins the end. To call it again changes nothing.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }

    /// Waits until someone called [`stop`](Stopper::stop). Endless streams should end then.
    pub fn stopped(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut state = self.0.subscribe();
        let keep = self.clone(); // the state outlives every waiter, so waiting can't fail
        async move {
            let result = state.wait_for(|stopped| *stopped).await;
            drop(keep);
            debug_assert!(result.is_ok(), "the sender lives as long as its waiters");
        }
    }

    /// Waits until the end began and the grace is over.
    pub(crate) async fn grace_over(&self) {
        self.stopped().await;
        tokio::time::sleep(STOP_GRACE).await;
    }
}

impl Default for Stopper {
    fn default() -> Stopper {
        Stopper::new()
    }
}
