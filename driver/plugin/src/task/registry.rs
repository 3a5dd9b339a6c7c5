//! Which tasks does this process know?

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Task;

/// Tasks by Nomad's task id. Locked for look-ups only, never while anything is done to a task.
#[derive(Debug, Default)]
pub(crate) struct Registry(Mutex<HashMap<String, Arc<Task>>>);

impl Registry {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Task>>> {
        // A map operation that panics is out of memory; the map is whole either way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, id: &str) -> Option<Arc<Task>> {
        self.lock().get(id).cloned()
    }

    pub(crate) fn insert(&self, task: Arc<Task>) {
        let _previous = self.lock().insert(task.header.task_id.clone(), task);
    }

    pub(crate) fn remove(&self, id: &str) {
        let _task = self.lock().remove(id);
    }
}
