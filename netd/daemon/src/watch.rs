//! Who wants to know of changes, and what if it doesn't listen?

use steppe_proto::net::{WatchResponse, watch_response::Event};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

/// Changes that wait for one watcher; one more, and it gets everything anew once it has read these.
const QUEUE: usize = 64;
/// Watchers at once.
pub(crate) const WATCHERS_MAX: usize = 128;

/// Someone who watches.
#[derive(Debug)]
struct Watcher {
    /// Only of this instance, where it is not empty.
    instance: String,
    sender: mpsc::Sender<WatchResponse>,
    /// It has lost changes.
    behind: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Watchers(Vec<Watcher>);

impl Watchers {
    /// One more, who gets everything first; none where there are enough.
    pub(crate) fn add(&mut self, instance: String) -> Option<mpsc::Receiver<WatchResponse>> {
        self.0.retain(|watcher| !watcher.sender.is_closed());
        if self.0.len() >= WATCHERS_MAX {
            return None;
        }
        let (sender, receiver) = mpsc::channel(QUEUE);
        self.0.push(Watcher {
            instance,
            sender,
            behind: true,
        });
        Some(receiver)
    }

    /// Whether there are any.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tells of a change; of an instance, or of all where there is none.
    pub(crate) fn tell(&mut self, instance: Option<&str>, event: &Event) {
        self.0.retain_mut(|watcher| {
            let other =
                instance.is_some_and(|instance| !watcher.instance.is_empty() && watcher.instance != instance);
            if watcher.behind || other {
                return !watcher.sender.is_closed();
            }
            let response = WatchResponse {
                event: Some(event.clone()),
            };
            match watcher.sender.try_send(response) {
                Ok(()) => true,
                Err(TrySendError::Full(_)) => {
                    watcher.behind = true;
                    true
                }
                Err(TrySendError::Closed(_)) => false,
            }
        });
    }

    /// Gives everything to those that lost changes and have read what they had. Whether some are left that haven't.
    pub(crate) fn catch_up(&mut self, snapshot: impl Fn(&str) -> Event) -> bool {
        let mut left = false;
        self.0.retain_mut(|watcher| {
            if !watcher.behind {
                return true;
            }
            if watcher.sender.capacity() < watcher.sender.max_capacity() {
                left = true;
                return !watcher.sender.is_closed();
            }
            let response = WatchResponse {
                event: Some(snapshot(&watcher.instance)),
            };
            watcher.behind = false;
            !matches!(watcher.sender.try_send(response), Err(TrySendError::Closed(_)))
        });
        left
    }
}

#[cfg(test)]
mod tests {
    use steppe_proto::net::{Interface, Snapshot};

    use super::*;

    fn snapshot(_instance: &str) -> Event {
        Event::Snapshot(Snapshot::default())
    }

    fn is_snapshot(response: &WatchResponse) -> bool {
        matches!(response.event, Some(Event::Snapshot(_)))
    }

    #[test]
    fn a_slow_watcher_gets_everything_anew() {
        let change = Event::Changed(Interface::default());
        let mut watchers = Watchers::default();
        let mut receiver = watchers.add("a".to_owned()).unwrap();
        assert!(!watchers.catch_up(snapshot));
        watchers.tell(Some("b"), &change);
        for _ in 0..QUEUE {
            watchers.tell(Some("a"), &change);
        }
        // The snapshot and the others wait: the last one is lost, and so is all that follows.
        assert!(watchers.catch_up(snapshot));
        watchers.tell(None, &change);
        assert!(is_snapshot(&receiver.try_recv().unwrap()));
        assert!(watchers.catch_up(snapshot));
        for _ in 1..QUEUE {
            assert!(!is_snapshot(&receiver.try_recv().unwrap()));
        }
        assert!(!watchers.catch_up(snapshot));
        assert!(is_snapshot(&receiver.try_recv().unwrap()));
        watchers.tell(None, &change);
        assert!(!is_snapshot(&receiver.try_recv().unwrap()));
        drop(receiver);
        watchers.tell(None, &change);
        assert!(watchers.is_empty());
    }

    #[test]
    fn there_are_not_too_many() {
        let mut watchers = Watchers::default();
        let mut receivers: Vec<_> = (0..WATCHERS_MAX)
            .map(|_| watchers.add(String::new()).unwrap())
            .collect();
        assert!(watchers.add(String::new()).is_none());
        receivers.pop();
        assert!(watchers.add(String::new()).is_some());
    }
}
