//! What do we ask of Nomad?

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::BenchError;

/// Nomad answers at once, or something is wrong.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// Pause between two looks; during a start nothing is asked at all.
const PAUSE: Duration = Duration::from_millis(50);

/// The server's API.
#[derive(Debug)]
pub(crate) struct Api {
    base: String,
    http: ureq::Agent,
}

/// A task of one of the drivers.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub(crate) driver: &'static str,
    pub(crate) config: Value,
    pub(crate) memory_mib: u32,
    /// Nomad makes shares of it, which on a busy machine decide how long a boot takes.
    pub(crate) cpu_mhz: u32,
    pub(crate) count: usize,
}

impl Api {
    pub(crate) fn new(address: &str) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(ANSWER_LIMIT))
            .proxy(None);
        Self {
            base: format!("{address}/v1"),
            http: config.build().new_agent(),
        }
    }

    fn failed(what: String) -> impl FnOnce(ureq::Error) -> BenchError {
        move |error| BenchError::Nomad {
            what,
            source: Some(Box::new(error)),
        }
    }

    /// The text of an answer.
    pub(crate) fn text(&self, path: &str) -> Result<String, BenchError> {
        let failed = || Self::failed(format!("GET {path}"));
        let mut answer = self
            .http
            .get(format!("{}{path}", self.base))
            .call()
            .map_err(failed())?;
        answer.body_mut().read_to_string().map_err(failed())
    }

    pub(crate) fn get(&self, path: &str) -> Result<Value, BenchError> {
        serde_json::from_str(&self.text(path)?).map_err(|error| BenchError::Nomad {
            what: format!("GET {path}: {error}"),
            source: None,
        })
    }

    /// Submits a job of one task, which is neither restarted nor rescheduled.
    pub(crate) fn submit(&self, id: &str, task: &Task) -> Result<(), BenchError> {
        let job = json!({"Job": {
            "ID": id, "Name": id, "Type": "batch", "Datacenters": ["*"],
            "TaskGroups": [{
                "Name": "g", "Count": task.count,
                "RestartPolicy": {"Attempts": 0, "Mode": "fail"},
                "ReschedulePolicy": {"Attempts": 0, "Unlimited": false},
                "EphemeralDisk": {"SizeMB": 10},
                "Tasks": [{
                    "Name": "vm", "Driver": task.driver, "Config": task.config,
                    "KillTimeout": 20_000_000_000u64,
                    "LogConfig": {"MaxFiles": 1, "MaxFileSizeMB": 1},
                    "Resources": {"CPU": task.cpu_mhz, "MemoryMB": task.memory_mib},
                }],
            }],
        }});
        let failed = || Self::failed(format!("submitting job {id}"));
        let mut answer = self
            .http
            .post(format!("{}/jobs", self.base))
            .send(job.to_string())
            .map_err(failed())?;
        answer.body_mut().read_to_string().map(drop).map_err(failed())
    }

    /// Stops a job.
    pub(crate) fn stop(&self, id: &str) -> Result<(), BenchError> {
        self.delete(&format!("/job/{id}"))
    }

    /// Stops and forgets a job.
    pub(crate) fn purge(&self, id: &str) -> Result<(), BenchError> {
        self.delete(&format!("/job/{id}?purge=true"))
    }

    fn delete(&self, path: &str) -> Result<(), BenchError> {
        let answer = self.http.delete(format!("{}{path}", self.base)).call();
        answer.map(drop).map_err(Self::failed(format!("DELETE {path}")))
    }

    /// The ids of a job's allocations, once there are so many.
    pub(crate) fn allocations(&self, job: &str, count: usize) -> Result<Vec<String>, BenchError> {
        until(
            &format!("the placement of job {job}"),
            Duration::from_secs(30),
            || {
                let list = self.get(&format!("/job/{job}/allocations"))?;
                let ids = list
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|a| Some(a["ID"].as_str()?.to_owned()));
                let ids: Vec<String> = ids.collect();
                Ok((ids.len() >= count).then_some(ids))
            },
        )
    }

    /// The state of an allocation's task, once it is this one.
    pub(crate) fn task_state(
        &self,
        allocation: &str,
        state: &str,
        limit: Duration,
    ) -> Result<TaskState, BenchError> {
        until(&format!("state {state} of {allocation}"), limit, || {
            let found = TaskState(self.get(&format!("/allocation/{allocation}"))?["TaskStates"]["vm"].take());
            if state == "running" && found.0["State"] == "dead" {
                return Err(BenchError::Task(format!("a task has ended: {}", found.told())));
            }
            Ok((found.0["State"] == state).then_some(found))
        })
    }

    /// Says with an error what has become of an allocation's task, which is likely to be the reason.
    pub(crate) fn explain(&self, allocation: &str, error: BenchError) -> BenchError {
        let path = format!("/allocation/{allocation}");
        match self.get(&path) {
            Ok(mut found) => {
                let told = TaskState(found["TaskStates"]["vm"].take()).told();
                BenchError::Task(format!("{error}; the task's events: {told}"))
            }
            Err(_) => error,
        }
    }

    /// Waits until a task's log has this text.
    pub(crate) fn log_says(&self, allocation: &str, text: &str, limit: Duration) -> Result<(), BenchError> {
        let path = format!("/client/fs/logs/{allocation}?task=vm&type=stdout&plain=true");
        until(&format!("{text:?} in the log of {allocation}"), limit, || {
            Ok(self.text(&path).is_ok_and(|log| log.contains(text)).then_some(()))
        })
    }
}

/// A task's state with its events.
#[derive(Debug)]
pub(crate) struct TaskState(Value);

impl TaskState {
    /// When an event of this kind was, in nanoseconds since 1970.
    pub(crate) fn event_unix_ns(&self, kind: &str) -> Result<u64, BenchError> {
        let mut events = self.0["Events"].as_array().into_iter().flatten();
        let event = events.find(|event| event["Type"] == kind);
        event
            .and_then(|event| event["Time"].as_u64())
            .ok_or_else(|| BenchError::Task(format!("there is no event {kind:?}: {}", self.told())))
    }

    fn told(&self) -> String {
        let events = self.0["Events"].as_array().into_iter().flatten();
        let sentences = events.filter_map(|event| event["DisplayMessage"].as_str());
        sentences.collect::<Vec<_>>().join("; ")
    }
}

/// Looks again and again until there is an answer.
pub(crate) fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>, BenchError>,
) -> Result<T, BenchError> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            return Err(BenchError::Late(what.to_owned()));
        }
        std::thread::sleep(PAUSE);
    }
}
