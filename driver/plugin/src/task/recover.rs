//! How is a task found again that an earlier process started?

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use steppe_points::reach;
use steppe_vm::record::{Record, Step, task_key};
use tokio::sync::watch;

use super::follow::{follow, settle};
use super::shim::{ConnectError, Shim};
use super::undo::{self, Undo, is_unlocked, undo_of};
use super::{Ended, Failure, Task, blocking};
use crate::host::chain;
use crate::service::Driver;

/// Version of a handle's `driver_state`.
pub(crate) const HANDLE_VERSION: i32 = 1;

/// What Nomad keeps for us: only where the record is. Everything else about a task is in it.
#[derive(serde::Serialize, serde::Deserialize)]
struct DriverState {
    /// The task's key.
    record: String,
}

/// The bytes of a handle's `driver_state`.
pub(crate) fn driver_state(task: &Task) -> Vec<u8> {
    let record = task_key(&task.header.alloc_id, &task.header.task_id);
    steppe_vm::record::line(&DriverState { record }).into_bytes()
}

/// The key in a handle's `driver_state`, if it is one that could be ours: it becomes part of a path.
fn record_key(driver_state: &[u8]) -> Option<String> {
    let state: DriverState = serde_json::from_slice(driver_state).ok()?;
    let plain = |byte: u8| byte.is_ascii_hexdigit() || byte == b'-' || byte == b'.';
    (state.record.len() > 8 && !state.record.starts_with('.') && state.record.bytes().all(plain))
        .then_some(state.record)
}

/// Takes a task back. A VM that ended meanwhile is taken back too, with its end.
pub(crate) async fn recover(
    driver: &Arc<Driver>,
    task_id: &str,
    version: i32,
    driver_state: &[u8],
) -> Result<(), Failure> {
    if version != HANDLE_VERSION {
        return Err(Failure::Denied(format!(
            "the task was started by another release (handle version {version}, this one reads {HANDLE_VERSION}); the VM \
             is left alone"
        )));
    }
    if driver.tasks.get(task_id).is_some() {
        return Ok(());
    }
    let Some(key) = record_key(driver_state) else {
        return Err(Failure::Denied(
            "the handle does not say where the task's record is".to_owned(),
        ));
    };
    // Held before the record is read: whoever stops or takes back the VM meanwhile changes it.
    let gate = driver.tasks.gate_of(task_id);
    let _turn = gate.lock().await;
    if driver.tasks.get(task_id).is_some() {
        return Ok(());
    }
    let (record, undo) = find(driver, key).await?;
    if record.header.task_id != task_id {
        return Err(Failure::Denied(format!(
            "the record is that of another task, {:?}",
            record.header.task_id
        )));
    }
    if undo::is_of_this_boot(&record, &undo.lock()) == Some(false) {
        return Err(Failure::Denied(
            "the host was restarted since (or the record is another host's), and the VM ended with that"
                .to_owned(),
        ));
    }
    if record.started_at_unix_ns().is_none() {
        return Err(Failure::Denied(
            "the task's start was interrupted before the guest ran".to_owned(),
        ));
    }
    if record.undo_begun() {
        return Err(Failure::Denied(
            "the VM was stopped and is being taken back".to_owned(),
        ));
    }
    let task = take_back(record, undo).await?;
    driver.tasks.insert(task);
    Ok(())
}

/// Finds the VM of a started task, running or ended. To be called with the task's gate held.
pub(super) async fn take_back(record: Record, undo: Arc<Undo>) -> Result<Arc<Task>, Failure> {
    let key = undo.key();
    let started_at_unix_ns = record.started_at_unix_ns().unwrap_or_default();
    reach("recover.connect.before", &key);
    // Whatever listens in a dead shim's place is not it.
    let connected = if is_unlocked(&undo.lock()) {
        Err(ConnectError::Ended)
    } else {
        Shim::connect(undo.shim()).await
    };
    reach("recover.connect.after", &key);
    reach("recover.adopt.before", &key);
    let task = match connected {
        Ok(shim) => {
            tracing::info!(task = record.header.task_id, "a VM is found again");
            follow(record.header, started_at_unix_ns, shim, undo)
        }
        // It speaks, or stands still: it is not about to leave.
        Err(error @ (ConnectError::Line(_) | ConnectError::Version(_) | ConnectError::Silent)) => {
            return Err(Failure::Denied(format!("the VM runs, but {}", chain(&error))));
        }
        Err(error) => {
            let Some(ended) = settle(&undo).await else {
                return Err(Failure::Denied(format!("the VM runs, but {}", chain(&error))));
            };
            tracing::info!(
                task = record.header.task_id,
                cause = ended.outcome.name,
                sentence = ended.sentence(),
                "a VM ended while nobody watched"
            );
            Arc::new(ended_task(record, started_at_unix_ns, ended, undo))
        }
    };
    reach("recover.adopt.after", &key);
    Ok(task)
}

async fn find(driver: &Arc<Driver>, key: String) -> Result<(Record, Arc<Undo>), Failure> {
    let instance = driver.instance()?;
    blocking(move || {
        let state = instance.state().map_err(|error| Failure::retryable(&error))?;
        let undo = undo_of(&instance, &state, &key);
        reach("recover.read.before", &key);
        let record = match undo.record() {
            Ok(Some(record)) => record,
            Ok(None) => {
                return Err(Failure::Denied(format!(
                    "nothing is known of the task: no record in {}",
                    undo.directory.display()
                )));
            }
            Err(error) => {
                return Err(Failure::Denied(format!(
                    "the VM is left alone: {}",
                    chain(&error)
                )));
            }
        };
        reach("recover.read.after", &key);
        let undo = undo.at(&record);
        undo.note(&Step::Recover {
            plugin_pid: std::process::id(),
        });
        Ok((record, Arc::new(undo)))
    })
    .await
}

fn ended_task(record: Record, started_at_unix_ns: u64, ended: Ended, undo: Arc<Undo>) -> Task {
    let (_sender, ended) = watch::channel(Some(ended));
    Task {
        header: record.header,
        started_at_unix_ns,
        shim: None,
        ended,
        said: AtomicBool::new(false),
        waiting: AtomicUsize::new(0),
        undo,
    }
}
