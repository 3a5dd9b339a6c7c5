//! In which order is a VM stopped, and its task forgotten?

use std::sync::Arc;
use std::time::Duration;

use steppe_points::reach;
use steppe_vm::control::Request;
use steppe_vm::record::Step;

use super::registry::names_in;
use super::undo::{self, Undo, undo_of};
use super::{Failure, Task, blocking};
use crate::host::unix_ns;
use crate::service::Driver;

/// How long QEMU may take to quit: it writes its disks out first.
const QUIT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a killed QEMU may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Most characters of a signal's name that are noted.
const SIGNAL_MAX_CHARS: usize = 20;

/// Signals that mean "now": whoever names one doesn't want the guest to be asked.
const HARD_SIGNALS: [&str; 2] = ["SIGKILL", "SIGQUIT"];

/// Stops a VM: power button, then after `timeout` quit, then kill.
pub(crate) async fn stop(task: &Task, timeout: Duration, signal: &str) -> Result<(), Failure> {
    if task.ended().is_some() {
        return Ok(());
    }
    let Some(shim) = &task.shim else { return Ok(()) };
    note(
        task,
        Step::Stop {
            signal: signal.chars().take(SIGNAL_MAX_CHARS).collect(),
        },
    )
    .await;
    let key = task.undo.key();
    if !HARD_SIGNALS.contains(&signal) {
        // A shim that refuses has a machine that isn't running; quit settles that.
        reach("stop.power-button.before", &key);
        let pressed = shim.ask(Request::PowerButton).await;
        reach("stop.power-button.after", &key);
        if pressed.is_ok() && ends_within(task, timeout).await {
            return Ok(());
        }
    }
    end(task).await
}

/// Notes in the record what is done.
async fn note(task: &Task, step: Step) {
    let undo = Arc::clone(&task.undo);
    let noted = blocking(move || {
        undo.note(&step);
        Ok(())
    });
    drop(noted.await);
}

/// Ends a VM without asking the guest.
async fn end(task: &Task) -> Result<(), Failure> {
    let Some(shim) = &task.shim else { return Ok(()) };
    let key = task.undo.key();
    for (request, name, timeout) in [
        (Request::Quit, "quit", QUIT_TIMEOUT),
        (Request::Kill, "kill", KILL_TIMEOUT),
    ] {
        let ended = async {
            reach(&format!("stop.{name}.before"), &key);
            if let Err(error) = shim.ask(request).await {
                tracing::debug!(task = task.header.task_id, error = %error, "a shim did not take a request");
            }
            reach(&format!("stop.{name}.after"), &key);
            task.wait().await
        };
        if tokio::time::timeout(timeout, ended).await.is_ok() {
            return Ok(());
        }
    }
    // The shim itself stands still: its end is QEMU's.
    note(task, Step::Kill).await;
    undo::kill_holder(&task.undo.lock());
    if ends_within(task, KILL_TIMEOUT).await {
        return Ok(());
    }
    Err(Failure::Retryable(
        "the VM does not end although it was killed: see the driver's log".to_owned(),
    ))
}

async fn ends_within(task: &Task, timeout: Duration) -> bool {
    tokio::time::timeout(timeout, task.wait()).await.is_ok()
}

/// Removes every trace of a task, running or not; a task that nobody knows has none.
pub(crate) async fn destroy(driver: &Arc<Driver>, task_id: &str) -> Result<(), Failure> {
    let gate = match driver.tasks.get(task_id) {
        Some(task) => driver.tasks.gate(&task.header.alloc_id, &task.header.task_name),
        None => driver.tasks.gate_of(task_id),
    };
    let _turn = gate.lock().await;
    let undo = match driver.tasks.get(task_id) {
        Some(task) => {
            if task.ended().is_none()
                && let Err(Failure::Denied(reason) | Failure::Retryable(reason)) = end(&task).await
            {
                tracing::warn!(
                    task = task_id,
                    reason,
                    "a VM is destroyed without having been stopped"
                );
            }
            Some(Arc::clone(&task.undo))
        }
        None => left_behind(driver, task_id).await?,
    };
    if let Some(undo) = undo {
        let failed = blocking(move || undo.run().map_err(|error| Failure::retryable(&error)));
        if let Err(failure) = failed.await {
            // Nomad ignores the error: the reaper comes back to it, and the task's events say so.
            if let (Some(task), Failure::Retryable(reason)) = (driver.tasks.get(task_id), &failure) {
                driver.events.say(&task.header, reason, unix_ns());
            }
            driver.tasks.remove(task_id);
            return Err(failure);
        }
    }
    driver.tasks.remove(task_id);
    Ok(())
}

/// What an earlier process left of a task that was never recovered, such as after a reboot.
async fn left_behind(driver: &Arc<Driver>, task_id: &str) -> Result<Option<Arc<Undo>>, Failure> {
    let Ok(instance) = driver.instance() else {
        return Ok(None);
    };
    let id = task_id.to_owned();
    blocking(move || {
        let state = instance.state().map_err(|error| Failure::retryable(&error))?;
        let (alloc_id, _) = names_in(&id);
        let undo = undo_of(&instance, &state, &steppe_vm::record::task_key(alloc_id, &id));
        Ok(undo.directory.exists().then(|| Arc::new(undo)))
    })
    .await
}
