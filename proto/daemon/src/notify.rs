//! What does systemd hear of a daemon?
//!
//! Without systemd (no `NOTIFY_SOCKET`) all of it is nothing. A message that can't be sent is no reason for a daemon to fail:
//! it is logged.

use std::time::Duration;

use sd_notify::NotifyState;

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd can't be told how this daemon is");
    }
}

/// It serves; also after a reload.
pub fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// It reads its configuration again; [`ready`] ends that.
pub fn reloading() {
    let mut states = vec![NotifyState::Reloading];
    states.extend(NotifyState::monotonic_usec_now());
    send(&states);
}

/// It ends.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// Tells systemd's watchdog, where the unit has one, that the daemon is alive, as often as it must hear that and only
/// while `alive` answers. Never returns where there is a watchdog; returns at once where there is none.
pub async fn watchdog<F: Future<Output = ()>>(alive: impl Fn() -> F) {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    let interval = limit / 2;
    loop {
        if tokio::time::timeout(interval, alive()).await.is_ok() {
            send(&[NotifyState::Watchdog]);
        }
        tokio::time::sleep(interval.max(Duration::from_millis(1))).await;
    }
}
