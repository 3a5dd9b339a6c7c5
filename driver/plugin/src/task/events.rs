//! How do sentences about a task reach its events?
//!
//! Nomad shows them in `nomad alloc status` and keeps the last ten, so only what a person must know is sent.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use nomad_proto::drivers::DriverTaskEvent;
use steppe_vm::record::Header;
use tokio::sync::broadcast;

/// Events that wait for a subscriber: Nomad subscribes within milliseconds of a plugin's start.
const WAITING_MAX: usize = 256;

/// The stream of all tasks' events.
#[derive(Debug, Clone)]
pub(crate) struct Events(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sender: broadcast::Sender<DriverTaskEvent>,
    /// What was said while nobody listened.
    waiting: Mutex<VecDeque<DriverTaskEvent>>,
}

impl Events {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner {
            sender: broadcast::channel(WAITING_MAX).0,
            waiting: Mutex::default(),
        }))
    }

    /// Says a sentence about a task, as of a time in nanoseconds since 1970.
    pub(crate) fn say(&self, task: &Header, message: &str, at_unix_ns: u64) {
        self.send(task, message, HashMap::new(), at_unix_ns);
    }

    /// Says how a task ended; the cause's word is an annotation, for scripts.
    pub(crate) fn say_cause(&self, task: &Header, message: &str, cause: &str, at_unix_ns: u64) {
        let annotations = HashMap::from([("cause".to_owned(), cause.to_owned())]);
        self.send(task, message, annotations, at_unix_ns);
    }

    fn send(&self, task: &Header, message: &str, annotations: HashMap<String, String>, at_unix_ns: u64) {
        let event = DriverTaskEvent {
            task_id: task.task_id.clone(),
            alloc_id: task.alloc_id.clone(),
            task_name: task.task_name.clone(),
            timestamp: Some(crate::service::timestamp(at_unix_ns)),
            message: message.to_owned(),
            annotations,
        };
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(unheard) = self.0.sender.send(event) {
            waiting.push_back(unheard.0);
            if waiting.len() > WAITING_MAX {
                let _oldest = waiting.pop_front();
            }
        }
    }

    /// What was said before, and what will be said.
    pub(crate) fn listen(&self) -> (Vec<DriverTaskEvent>, broadcast::Receiver<DriverTaskEvent>) {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        (waiting.drain(..).collect(), self.0.sender.subscribe())
    }
}
