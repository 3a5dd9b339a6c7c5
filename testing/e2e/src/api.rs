//! What do we ask Nomad's HTTP API, and what does it answer?

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Nomad answers at once; a log of several megabytes takes longest.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// Largest answer that is read: a flooded log.
const ANSWER_MAX_BYTES: u64 = 64 << 20;

/// An agent's API.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    base: String,
    http: ureq::Agent,
}

/// One look at a URL: the status and the body.
pub(crate) fn get(http: &ureq::Agent, url: &str) -> Result<(u16, Vec<u8>), String> {
    let mut answer = http
        .get(url)
        .call()
        .map_err(|error| format!("GET {url}: {error}"))?;
    let body = answer
        .body_mut()
        .with_config()
        .limit(ANSWER_MAX_BYTES)
        .read_to_vec();
    Ok((
        answer.status().as_u16(),
        body.map_err(|error| format!("GET {url}: {error}"))?,
    ))
}

/// A client without proxy and with a deadline.
pub(crate) fn client(limit: Duration) -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_global(Some(limit))
        .http_status_as_error(false)
        .proxy(None)
        .build()
        .new_agent()
}

impl Api {
    pub(crate) fn new(address: Ipv4Addr, port: u16) -> Self {
        Self {
            base: format!("http://{address}:{port}/v1"),
            http: client(ANSWER_LIMIT),
        }
    }

    /// Gets a document.
    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, String> {
        let body = self.text(path)?;
        serde_json::from_str(&body).map_err(|error| format!("{path}: {error}: {body}"))
    }

    /// Gets a text.
    pub(crate) fn text(&self, path: &str) -> Result<String, String> {
        let (status, body) = get(&self.http, &format!("{}{path}", self.base))?;
        let body = String::from_utf8_lossy(&body).into_owned();
        if status == 200 {
            Ok(body)
        } else {
            Err(format!("{path}: status {status}: {}", body.trim()))
        }
    }

    /// Posts a document as it is, even if it isn't JSON that a serializer would write.
    pub(crate) fn post(&self, path: &str, body: &[u8]) -> Result<Value, String> {
        let url = format!("{}{path}", self.base);
        let mut answer = self
            .http
            .post(&url)
            .send(body)
            .map_err(|error| format!("POST {path}: {error}"))?;
        let status = answer.status().as_u16();
        let body = answer
            .body_mut()
            .read_to_string()
            .map_err(|error| format!("POST {path}: {error}"))?;
        if status != 200 {
            return Err(format!("POST {path}: status {status}: {}", body.trim()));
        }
        serde_json::from_str(&body).map_err(|error| format!("POST {path}: {error}: {body}"))
    }

    /// Puts a document.
    pub(crate) fn put(&self, path: &str, body: &Value) -> Result<(), String> {
        let url = format!("{}{path}", self.base);
        let answer = self.http.put(&url).send(body.to_string().as_bytes());
        let status = answer
            .map_err(|error| format!("PUT {path}: {error}"))?
            .status()
            .as_u16();
        if status == 200 {
            Ok(())
        } else {
            Err(format!("PUT {path}: status {status}"))
        }
    }

    fn delete(&self, path: &str) -> Result<(), String> {
        let url = format!("{}{path}", self.base);
        let answer = self
            .http
            .delete(&url)
            .call()
            .map_err(|error| format!("DELETE {path}: {error}"))?;
        if answer.status().as_u16() == 200 {
            Ok(())
        } else {
            Err(format!("DELETE {path}: {}", answer.status()))
        }
    }

    /// Nomad's own reading of a job file.
    pub(crate) fn parse(&self, hcl: &str) -> Result<Value, String> {
        let request = json!({ "JobHCL": hcl, "Canonicalize": true });
        self.post("/jobs/parse", request.to_string().as_bytes())
    }

    /// Hands in a job.
    pub(crate) fn register(&self, job: &Value) -> Result<(), String> {
        self.post("/jobs", json!({ "Job": job }).to_string().as_bytes())
            .map(drop)
    }

    /// Stops a job.
    pub(crate) fn stop(&self, job: &str) -> Result<(), String> {
        self.delete(&format!("/job/{job}"))
    }

    /// Stops a job and forgets it.
    pub(crate) fn purge(&self, job: &str) -> Result<(), String> {
        self.delete(&format!("/job/{job}?purge=true"))
    }

    /// The allocations of a job.
    pub(crate) fn allocations(&self, job: &str) -> Result<Vec<Allocation>, String> {
        self.get(&format!("/job/{job}/allocations?all=true"))
    }

    /// One allocation with everything about it.
    pub(crate) fn allocation(&self, id: &str) -> Result<Allocation, String> {
        self.get(&format!("/allocation/{id}"))
    }

    /// A log of the task from its beginning: `stdout` or `stderr`.
    pub(crate) fn log(&self, allocation: &str, stream: &str) -> Result<String, String> {
        self.text(&format!(
            "/client/fs/logs/{allocation}?task={TASK}&type={stream}&plain=true&follow=false&origin=start&offset=0"
        ))
    }

    /// The last bytes of the task's console.
    pub(crate) fn log_end(&self, allocation: &str, bytes: u64) -> Result<String, String> {
        self.text(&format!(
            "/client/fs/logs/{allocation}?task={TASK}&type=stdout&plain=true&follow=false&origin=end&offset={bytes}"
        ))
    }

    /// A node.
    pub(crate) fn node(&self, id: &str) -> Result<Node, String> {
        self.get(&format!("/node/{id}"))
    }
}

/// The name of the task in each of our jobs.
pub(crate) const TASK: &str = "vm";

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Allocation {
    #[serde(rename = "ID")]
    pub(crate) id: String,
    #[serde(rename = "NodeID")]
    pub(crate) node_id: String,
    pub(crate) client_status: String,
    pub(crate) task_states: Option<BTreeMap<String, TaskState>>,
    #[serde(default)]
    pub(crate) allocated_resources: Option<Allocated>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Allocated {
    pub(crate) shared: Shared,
    #[serde(default)]
    pub(crate) tasks: BTreeMap<String, AllocatedTask>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct AllocatedTask {
    pub(crate) cpu: AllocatedCpu,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct AllocatedCpu {
    /// MHz.
    pub(crate) cpu_shares: u64,
    /// The cores that nobody else has.
    pub(crate) reserved_cores: Option<Vec<u32>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Shared {
    pub(crate) ports: Option<Vec<Port>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Port {
    pub(crate) label: String,
    pub(crate) value: u16,
    #[serde(rename = "HostIP")]
    pub(crate) host_ip: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct TaskState {
    pub(crate) restarts: u64,
    pub(crate) events: Option<Vec<Event>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Event {
    #[serde(rename = "Type")]
    pub(crate) kind: String,
    /// Nanoseconds since 1970.
    pub(crate) time: i64,
    pub(crate) display_message: String,
    pub(crate) exit_code: i64,
    pub(crate) signal: i64,
    /// What else is known: the driver's annotations, whether memory was lacking.
    pub(crate) details: Option<BTreeMap<String, String>>,
}

impl Event {
    /// One of its details; empty if it has none of that name.
    pub(crate) fn detail(&self, name: &str) -> &str {
        let details = self.details.as_ref();
        details
            .and_then(|details| details.get(name))
            .map_or("", String::as_str)
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Node {
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) drivers: BTreeMap<String, Driver>,
    pub(crate) status: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Driver {
    pub(crate) detected: bool,
    pub(crate) healthy: bool,
    pub(crate) health_description: String,
}

impl Allocation {
    /// Our task's state, once Nomad's client has one.
    pub(crate) fn task(&self) -> Option<&TaskState> {
        self.task_states.as_ref()?.get(TASK)
    }

    /// The task's events, oldest first.
    pub(crate) fn events(&self) -> &[Event] {
        self.task()
            .and_then(|task| task.events.as_deref())
            .unwrap_or_default()
    }

    /// The last event of a type.
    pub(crate) fn event(&self, kind: &str) -> Option<&Event> {
        self.events().iter().rev().find(|event| event.kind == kind)
    }

    pub(crate) fn is_terminal(&self) -> bool {
        matches!(self.client_status.as_str(), "complete" | "failed" | "lost")
    }

    /// Status and events on one line.
    pub(crate) fn story(&self) -> String {
        let mut story = self.client_status.clone();
        for event in self.events() {
            story.push_str(&format!("; {}: {}", event.kind, event.display_message));
        }
        story
    }
}

/// The time on this host's clock, as events have it.
pub(crate) fn now_ns() -> i64 {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}
