//! Which tasks does this process know?

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use steppe_vm::record::key_is_of;

use super::Task;

/// Whoever holds it may change a task of an allocation.
type Gate = Arc<tokio::sync::Mutex<()>>;

/// Allocation and task in one of Nomad's task ids, `<alloc id>/<task name>/<random>`; a gate's name begins likewise.
pub(super) fn names_in(task_id: &str) -> (&str, &str) {
    let mut parts = task_id.split('/');
    (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
}

/// Tasks by Nomad's task id. Locked for look-ups only, never while anything is done to a task.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    tasks: Mutex<HashMap<String, Arc<Task>>>,
    gates: Mutex<HashMap<String, Gate>>,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Task>>> {
        // A map operation that panics is out of memory; the map is whole either way.
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, id: &str) -> Option<Arc<Task>> {
        self.lock().get(id).cloned()
    }

    pub(crate) fn insert(&self, task: Arc<Task>) {
        let _previous = self.lock().insert(task.header.task_id.clone(), task);
    }

    /// Whether some call of Nomad's waits for the task with this key.
    pub(crate) fn is_waited_for(&self, key: &str) -> bool {
        self.lock()
            .values()
            .any(|task| task.is_waited_for() && task.undo.directory.ends_with(key))
    }

    /// Whether something is done right now to a task of the allocation whose id begins a key.
    pub(crate) fn is_busy(&self, key: &str) -> bool {
        let gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        gates.iter().any(|(name, gate)| {
            let (alloc_id, _) = names_in(name);
            key_is_of(key, alloc_id) && gate.try_lock().is_err()
        })
    }

    pub(crate) fn remove(&self, id: &str) {
        let _task = self.lock().remove(id);
    }

    /// The gate of the task with this id.
    pub(crate) fn gate_of(&self, task_id: &str) -> Gate {
        let (alloc_id, task_name) = names_in(task_id);
        self.gate(alloc_id, task_name)
    }

    /// The gate of a task of an allocation, to be held while it is started, recovered or destroyed.
    pub(crate) fn gate(&self, alloc_id: &str, task_name: &str) -> Gate {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody holds or waits for are of no more use.
        gates.retain(|_, gate| Arc::strong_count(gate) > 1);
        Arc::clone(gates.entry(format!("{alloc_id}/{task_name}")).or_default())
    }
}
