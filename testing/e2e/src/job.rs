//! What does a check ask Nomad to run, and what came of it?

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::agent::Client;
use crate::api::{self, Allocation, Api, TASK};
use crate::host::{self, Vm};
use crate::wait::{self, seconds};
use crate::world::STUB;

/// How long a guest may take from its start to its "ready": 2 s of CPU, shared with others on this machine.
const BOOT_LIMIT: Duration = seconds(90);

/// How long Nomad may take to place a job and show the first state.
const PLACE_LIMIT: Duration = seconds(30);

/// What the guest prints when it is up.
pub(crate) const READY: &str = "steppe-guest: ready";

/// What the stub guest prints when it is up.
pub(crate) const STUB_READY: &str = "stub: ready";

/// A job to be: one group with one VM. The default is the test guest, which idles.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) name: String,
    /// The clients on one of which it may run: the name of one, or several by a star.
    pub(crate) datacenter: String,
    /// The `config` block.
    pub(crate) config: Map<String, Value>,
    pub(crate) memory_mib: u32,
    /// Processor time in MHz.
    pub(crate) cpu_mhz: u32,
    /// Cores of the task's own; none: it has its share of time instead.
    pub(crate) cores: u32,
    /// Ports of the group that Nomad chooses: label and port in the guest.
    pub(crate) ports: Vec<(String, u16)>,
    /// Ports of the group on the host.
    pub(crate) fixed_ports: Vec<(String, u16)>,
    pub(crate) kill_timeout: Duration,
    pub(crate) kill_signal: String,
    /// How often Nomad may start the task again, and how long it waits before.
    pub(crate) restarts: u32,
    pub(crate) restart_delay: Duration,
    /// Whether Nomad collects the task's logs.
    pub(crate) logs: bool,
    /// How many files Nomad keeps of each log, and how many MiB each of them has.
    pub(crate) log_files: [u32; 2],
    /// Files in the task's folder: absolute path of the source and where it goes.
    pub(crate) files: Vec<(String, String)>,
    /// The user to whom these files belong, who alone may open them; none: they are root's, and everybody may.
    pub(crate) files_of: Option<u32>,
    /// Whatever else the job, its group, the task and the task's resources say, in the words of Nomad's API.
    pub(crate) further: Further,
}

/// Further keys of a job's parts.
#[derive(Debug, Clone, Default)]
pub(crate) struct Further {
    pub(crate) job: Map<String, Value>,
    pub(crate) group: Map<String, Value>,
    pub(crate) task: Map<String, Value>,
    pub(crate) resources: Map<String, Value>,
}

impl Order {
    /// The test guest with these words on its kernel command line.
    pub(crate) fn guest(name: &str, words: &str) -> Self {
        let config =
            json!({ "kernel": "vmlinux", "initrd": "initrd.img", "cmdline": format!("quiet {words}") });
        Self {
            name: name.to_owned(),
            datacenter: "main".to_owned(),
            config: config.as_object().cloned().unwrap_or_default(),
            memory_mib: 128,
            cpu_mhz: 20,
            cores: 0,
            ports: Vec::new(),
            fixed_ports: Vec::new(),
            kill_timeout: seconds(20),
            kill_signal: String::new(),
            restarts: 0,
            restart_delay: seconds(1),
            logs: true,
            log_files: [5, 4],
            files: Vec::new(),
            files_of: None,
            further: Further::default(),
        }
    }

    /// The stub guest, there at once, with these words on its command line.
    pub(crate) fn stub(name: &str, words: &str) -> Self {
        let mut order = Self::guest(name, "");
        let config = json!({ "kernel": STUB, "cmdline": words });
        order.config = config.as_object().cloned().unwrap_or_default();
        order.memory_mib = 64;
        order
    }

    /// The same as [`Order::guest`], with HTTP into the guest.
    pub(crate) fn with_http(name: &str, words: &str) -> Self {
        Self::guest(name, &format!("steppe.httpd {words}")).http("user")
    }

    /// Asks for a port of the host that leads to the guest's HTTP, by this network.
    pub(crate) fn http(mut self, network: &str) -> Self {
        self.ports.push(("http".to_owned(), 80));
        self.network(json!({ "name": network, "ports": ["http"] }))
    }

    /// Adds a network interface.
    pub(crate) fn network(mut self, network: Value) -> Self {
        let networks = self.config.entry("network").or_insert_with(|| json!([]));
        networks.as_array_mut().expect("it is a list").push(network);
        self
    }

    /// Makes it a service: it has no end of its own.
    pub(crate) fn service(mut self) -> Self {
        self.further.job.insert("Type".to_owned(), json!("service"));
        self
    }

    /// The same for another client than the shared one.
    pub(crate) fn on(mut self, client: &Client) -> Self {
        self.datacenter.clone_from(&client.name);
        self
    }

    /// Sets a key of the `config` block.
    pub(crate) fn set(mut self, key: &str, value: Value) -> Self {
        self.config.insert(key.to_owned(), value);
        self
    }

    /// The job as Nomad's API takes it.
    pub(crate) fn json(&self, id: &str) -> Value {
        let ns = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let dynamic: Vec<Value> = self
            .ports
            .iter()
            .map(|(label, to)| json!({ "Label": label, "To": to }))
            .collect();
        let fixed: Vec<Value> = self
            .fixed_ports
            .iter()
            .map(|(label, port)| json!({ "Label": label, "Value": port, "To": 80 }))
            .collect();
        let networks = if dynamic.is_empty() && fixed.is_empty() {
            json!([])
        } else {
            json!([{ "Mode": "host", "DynamicPorts": dynamic, "ReservedPorts": fixed }])
        };
        let templates: Vec<Value> = self
            .files
            .iter()
            .map(|(source, to)| {
                let perms = if self.files_of.is_some() { "0600" } else { "0666" };
                json!({
                    "SourcePath": source, "DestPath": to, "ChangeMode": "noop",
                    "Perms": perms, "Uid": self.files_of, "Gid": self.files_of
                })
            })
            .collect();
        let mut resources = json!({ "CPU": self.cpu_mhz, "MemoryMB": self.memory_mib });
        if self.cores > 0 {
            resources = json!({ "Cores": self.cores, "MemoryMB": self.memory_mib });
        }
        let mut task = json!({
            "Name": TASK, "Driver": "microvm", "Config": self.config, "Templates": templates,
            "KillTimeout": ns(self.kill_timeout), "KillSignal": self.kill_signal,
            "LogConfig": {
                "MaxFiles": self.log_files[0], "MaxFileSizeMB": self.log_files[1], "Disabled": !self.logs
            },
        });
        with(&mut resources, &self.further.resources);
        task["Resources"] = resources;
        with(&mut task, &self.further.task);
        let mut group = json!({
            "Name": "vm", "Count": 1, "Networks": networks,
            "EphemeralDisk": { "SizeMB": 30 },
            "ReschedulePolicy": { "Attempts": 0, "Unlimited": false },
            "RestartPolicy": {
                "Attempts": self.restarts, "Mode": "fail",
                "Interval": ns(seconds(600)), "Delay": ns(self.restart_delay)
            },
            "Tasks": [task]
        });
        with(&mut group, &self.further.group);
        let mut job = json!({
            "ID": id, "Name": id, "Type": "batch", "Datacenters": [self.datacenter], "TaskGroups": [group]
        });
        with(&mut job, &self.further.job);
        job
    }
}

/// Adds keys to an object.
fn with(object: &mut Value, further: &Map<String, Value>) {
    for (key, value) in further {
        object[key] = value.clone();
    }
}

/// A job that Nomad has; it is purged when this value goes.
#[derive(Debug)]
pub(crate) struct Job<'w> {
    api: &'w Api,
    pub(crate) id: String,
    /// The id of its allocation.
    pub(crate) allocation: String,
}

impl<'w> Job<'w> {
    pub(crate) fn hand_in(api: &'w Api, order: &Order, number: u32) -> Self {
        let id = format!("{}-{number}", order.name);
        let job = Self {
            api,
            id,
            allocation: String::new(),
        };
        api.register(&order.json(&job.id))
            .unwrap_or_else(|error| panic!("{}: {error}", job.id));
        job
    }

    pub(crate) fn run(api: &'w Api, order: &Order, number: u32) -> Self {
        Self::hand_in(api, order, number).placed()
    }

    /// Hands in a job as Nomad read it from a file.
    pub(crate) fn parsed(api: &'w Api, job: &Value) -> Self {
        let id = job["ID"].as_str().unwrap_or_default().to_owned();
        api.register(job).unwrap_or_else(|error| panic!("{id}: {error}"));
        Self {
            api,
            id,
            allocation: String::new(),
        }
        .placed()
    }

    /// One of the allocations of a job that Nomad has.
    pub(crate) fn known(api: &'w Api, id: &str, allocation: &str) -> Self {
        Self {
            api,
            id: id.to_owned(),
            allocation: allocation.to_owned(),
        }
    }

    fn placed(mut self) -> Self {
        self.allocation = wait::until(&format!("an allocation of {}", self.id), PLACE_LIMIT, || {
            let found = self.api.allocations(&self.id)?.into_iter().next();
            found
                .map(|allocation| allocation.id)
                .ok_or_else(|| "none".to_owned())
        });
        self
    }

    pub(crate) fn look(&self) -> Allocation {
        self.api
            .allocation(&self.allocation)
            .unwrap_or_else(|error| panic!("{}: {error}", self.id))
    }

    /// All allocations Nomad made for this job: one, unless something went wrong.
    pub(crate) fn allocations(&self) -> usize {
        self.api
            .allocations(&self.id)
            .map_or(0, |allocations| allocations.len())
    }

    #[track_caller]
    fn until(&self, what: &str, limit: Duration, quality: impl Fn(&Allocation) -> bool) -> Allocation {
        wait::until(&format!("{}: {what}", self.id), limit, || {
            let allocation = self.api.allocation(&self.allocation)?;
            if quality(&allocation) {
                Ok(allocation)
            } else {
                Err(allocation.story())
            }
        })
    }

    #[track_caller]
    pub(crate) fn wait_running(&self) -> Allocation {
        let running = |allocation: &Allocation| {
            assert!(
                !allocation.is_terminal(),
                "{} ended: {}",
                self.id,
                allocation.story()
            );
            allocation.client_status == "running"
        };
        self.until("running", BOOT_LIMIT, running)
    }

    #[track_caller]
    pub(crate) fn wait_terminal(&self) -> Allocation {
        self.until("ended", BOOT_LIMIT, Allocation::is_terminal)
    }

    /// The same for those that live with a task that goes on: the last look, ended or not.
    pub(crate) fn terminal_within(&self, limit: Duration) -> Allocation {
        let ended = wait::try_until(limit, || {
            let allocation = self.api.allocation(&self.allocation)?;
            if allocation.is_terminal() {
                Ok(allocation)
            } else {
                Err(String::new())
            }
        });
        ended.unwrap_or_else(|_| self.look())
    }

    /// Waits until an event of a type is there that has these words.
    #[track_caller]
    pub(crate) fn wait_event(&self, kind: &str, words: &str) -> api::Event {
        wait::until(
            &format!("{}: event {kind} with {words:?}", self.id),
            seconds(15),
            || {
                let allocation = self.api.allocation(&self.allocation)?;
                let fits = |event: &&api::Event| event.kind == kind && event.display_message.contains(words);
                let found = allocation.events().iter().find(fits).cloned();
                found.ok_or_else(|| allocation.story())
            },
        )
    }

    /// Waits until the console has these words; gives all of it.
    #[track_caller]
    pub(crate) fn wait_console(&self, words: &str) -> String {
        wait::until(&format!("{}: {words:?} in the log", self.id), BOOT_LIMIT, || {
            let log = self.api.log(&self.allocation, "stdout");
            let log = log.map_err(|error| format!("{error}; {}", self.look().story()))?;
            if log.contains(words) {
                return Ok(log);
            }
            let end: String = log
                .chars()
                .rev()
                .take(200)
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
                .collect();
            Err(format!(
                "{} bytes, the last: {end:?}; {}",
                log.len(),
                self.look().story()
            ))
        })
    }

    #[track_caller]
    pub(crate) fn wait_ready(&self) -> String {
        self.wait_console(READY)
    }

    pub(crate) fn console(&self) -> String {
        self.api
            .log(&self.allocation, "stdout")
            .unwrap_or_else(|error| panic!("{}: {error}", self.id))
    }

    pub(crate) fn messages(&self) -> String {
        self.api
            .log(&self.allocation, "stderr")
            .unwrap_or_else(|error| panic!("{}: {error}", self.id))
    }

    pub(crate) fn stop(&self) {
        self.api.stop(&self.id).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Stops the job and waits until its task has ended; gives the last look.
    #[track_caller]
    pub(crate) fn stop_and_wait(&self) -> Allocation {
        self.stop();
        self.wait_terminal()
    }

    /// The guest's address as Nomad registered it.
    pub(crate) fn address(&self) -> String {
        let ports = self.registered();
        let port = ports
            .into_iter()
            .find(|port| port.label == "http")
            .expect("the job has a port http");
        format!("{}:{}", port.host_ip, port.value)
    }

    /// The ports that Nomad gave it on the host.
    pub(crate) fn ports(&self) -> Vec<u16> {
        self.registered().into_iter().map(|port| port.value).collect()
    }

    fn registered(&self) -> Vec<api::Port> {
        let resources = self.look().allocated_resources;
        resources
            .and_then(|resources| resources.shared.ports)
            .unwrap_or_default()
    }

    /// Asks the guest's HTTP server.
    pub(crate) fn ask(&self, path: &str) -> Result<String, String> {
        let http = api::client(seconds(5));
        let (status, body) = api::get(&http, &format!("http://{}{path}", self.address()))?;
        let body = String::from_utf8_lossy(&body).into_owned();
        if status == 200 {
            Ok(body)
        } else {
            Err(format!("status {status}: {body}"))
        }
    }

    /// The guest's seconds since its boot.
    #[track_caller]
    pub(crate) fn uptime(&self) -> f64 {
        wait::until(&format!("{}: the guest's uptime", self.id), BOOT_LIMIT, || {
            let body = self.ask("/cgi-bin/status")?;
            let status: Value = serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))?;
            let uptime = &status["uptime"];
            let number = uptime.as_f64().or_else(|| uptime.as_str()?.parse().ok());
            number.ok_or_else(|| format!("no uptime in {body}"))
        })
    }

    /// Its VMs on the host: one, unless something went wrong.
    pub(crate) fn vms(&self, client: &Client) -> Vec<Vm> {
        host::vms(client)
            .into_iter()
            .filter(|vm| vm.key.starts_with(&self.allocation))
            .collect()
    }

    /// The process id of its QEMU.
    #[track_caller]
    pub(crate) fn qemu(&self, client: &Client) -> u32 {
        wait::until(&format!("{}: its QEMU", self.id), seconds(10), || {
            match self.vms(client).as_slice() {
                [vm] => vm.qemu().ok_or_else(|| format!("no QEMU: {vm:?}")),
                other => Err(format!("{} VMs: {other:?}", other.len())),
            }
        })
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        // The server may be gone already, and the sweep takes what remains.
        drop(self.api.purge(&self.id));
    }
}
