//! How is a real Nomad agent started, killed and started again?

use std::ffi::OsStr;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::api::{Api, Node};
use crate::harness::say;
use crate::host;
use crate::namespace::{self, Namespace};
use crate::process::{self, Process};
use crate::scratch::MARK;
use crate::wait::{self, seconds};

/// How long a server may take to its keyring, or a client to a healthy driver. 2 s were seen on an idle machine.
const READY_LIMIT: Duration = seconds(60);

/// How long an agent may take to end after SIGTERM. 1.5 s were seen.
const END_LIMIT: Duration = seconds(20);

/// Dynamic ports of one client; each has a range of its own, because all are on one host.
const DYNAMIC_PORTS: u16 = 120;

/// Below the kernel's own range (32768…), so that no connection takes one between our look and its use.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Longest `run_dir` that the plugin takes.
const RUN_DIR_MAX_BYTES: usize = 30;

/// What a shell script in QEMU's place needs to see: its interpreter. `/bin` is a link on most hosts.
pub(crate) const SCRIPT_PATHS: &str = "qemu_paths = [\"/bin\", \"/usr/bin\"]\n";

/// What the plugin's program is called.
pub(crate) const PLUGIN: &str = "nomad-driver-microvm";

/// Where an agent runs.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// Where it listens.
    pub(crate) address: Ipv4Addr,
    /// The interface whose address its tasks' ports have.
    pub(crate) interface: &'static str,
    /// The words that, put before a command, have it run there.
    pub(crate) words: Vec<String>,
    /// A process that sees the links there.
    pub(crate) witness: u32,
}

impl Place {
    /// This process's own host.
    pub(crate) fn here() -> Self {
        Self {
            address: Ipv4Addr::LOCALHOST,
            interface: "lo",
            words: Vec::new(),
            witness: std::process::id(),
        }
    }

    /// A host of its own, whose first interface has its address.
    pub(crate) fn on(namespace: &Namespace) -> Self {
        Self {
            address: namespace.address,
            interface: "eth0",
            words: namespace.words(),
            witness: namespace.pid(),
        }
    }
}

/// An agent's process, its folder, its place and its ports.
#[derive(Debug)]
pub(crate) struct Agent {
    nomad: PathBuf,
    directory: PathBuf,
    place: Place,
    http: u16,
    rpc: u16,
    /// Whether it is server and client in one, with its state in memory.
    dev: bool,
    child: Mutex<Option<Child>>,
}

impl Agent {
    fn new(
        nomad: &Path,
        directory: PathBuf,
        place: Place,
        dev: bool,
        config: impl FnOnce([u16; 3]) -> String,
    ) -> Self {
        std::fs::create_dir_all(&directory).expect("a folder can be made in the scratch folder");
        let [http, rpc, serf] = [(); 3].map(|()| ports(1));
        std::fs::write(directory.join("agent.hcl"), config([http, rpc, serf]))
            .expect("a file can be written in the scratch folder");
        Self {
            nomad: nomad.to_owned(),
            directory,
            place,
            http,
            rpc,
            dev,
            child: Mutex::new(None),
        }
    }

    pub(crate) fn api(&self) -> Api {
        Api::new(self.place.address, self.http)
    }

    /// Changes its configuration, for the next start.
    pub(crate) fn reconfigure(&self, from: &str, to: &str) {
        let file = self.directory.join("agent.hcl");
        let text = std::fs::read_to_string(&file).expect("it was written");
        assert!(text.contains(from), "the configuration has no {from}");
        std::fs::write(&file, text.replace(from, to)).expect("a file can be written in the scratch folder");
    }

    /// Starts the process; the log of an earlier one is continued.
    pub(crate) fn start(&self) {
        self.start_by(&[]);
    }

    /// Starts the process by another program, whose last arguments are Nomad and its own, and which becomes it.
    pub(crate) fn start_by(&self, wrapper: &[&str]) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.join("agent.log"))
            .expect("a file can be written in the scratch folder");
        let place = self.place.words.iter().map(OsStr::new);
        let mut words: Vec<&OsStr> = place.chain(wrapper.iter().map(OsStr::new)).collect();
        words.push(self.nomad.as_os_str());
        words.push(OsStr::new("agent"));
        if self.dev {
            words.push(OsStr::new("-dev"));
        }
        words.extend([OsStr::new("-config"), OsStr::new("agent.hcl")]);
        let child = Command::new(words[0])
            .args(&words[1..])
            .current_dir(&self.directory)
            .env(MARK, &self.directory)
            // Whoever runs the tests may have a Nomad of their own.
            .env_remove("NOMAD_ADDR")
            .env_remove("NOMAD_TOKEN")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor can be copied"))
            .stderr(log)
            // Ctrl-C is ours to handle.
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{} can't be started: {error}", self.nomad.display()));
        *self.child() = Some(child);
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.child.lock().expect("no check panics with the lock held")
    }

    /// Ends the process at once.
    pub(crate) fn kill9(&self) {
        self.end(Signal::KILL);
    }

    /// Ends the process as a service manager does.
    pub(crate) fn terminate(&self) {
        self.end(Signal::TERM);
    }

    /// Does what a terminal does at ctrl-c: the agent and all that is still in its process group get SIGINT.
    pub(crate) fn interrupt(&self) {
        let pid = self.child().as_ref().map(Child::id).expect("it was started");
        assert!(process::signal_group(pid, Signal::INT), "the agent is gone");
    }

    fn end(&self, signal: Signal) {
        let Some(mut child) = self.child().take() else {
            return;
        };
        process::signal(child.id(), signal);
        let ended = wait::try_until(END_LIMIT, || ended(&mut child));
        if ended.is_err() {
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// Waits until the process ends by itself.
    pub(crate) fn wait_end(&self) -> ExitStatus {
        let mut child = self.child().take().expect("it was started");
        let status = wait::try_until(READY_LIMIT, || ended(&mut child));
        if status.is_err() {
            drop(child.kill());
            drop(child.wait());
        }
        status.unwrap_or_else(|_| panic!("the agent runs on; end of its log:\n{}", self.last_lines()))
    }

    /// Everything it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("agent.log")).unwrap_or_default()
    }

    /// The last lines of it, for whoever looks for a reason.
    fn last_lines(&self) -> String {
        const LINES: usize = 15;
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.terminate();
    }
}

fn ended(child: &mut Child) -> Result<ExitStatus, String> {
    child
        .try_wait()
        .map_err(|error| error.to_string())?
        .ok_or_else(|| "it runs".to_owned())
}

/// So many free ports in a row; none is given out twice.
pub(crate) fn ports(count: u16) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let span = PORTS.end - PORTS.start;
    // Two runs at once begin at different places.
    let offset = u16::try_from(std::process::id() * 37 % u32::from(span)).unwrap_or(0);
    for _ in 0..span {
        let taken = NEXT.fetch_add(count, Ordering::Relaxed);
        let first = PORTS.start + (offset + taken % span) % span;
        let mut row = first..first.saturating_add(count);
        if row.end < PORTS.end && row.all(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()) {
            return first;
        }
    }
    panic!("no free ports between {} and {}", PORTS.start, PORTS.end);
}

fn common(name: &str, address: Ipv4Addr, [http, rpc, serf]: [u16; 3]) -> String {
    format!(
        r#"
name                 = "{name}"
data_dir             = "DIRECTORY/data"
bind_addr            = "{address}"
log_level            = "DEBUG"
disable_update_check = true
advertise {{
  http = "{address}"
  rpc  = "{address}"
  serf = "{address}"
}}
ports {{
  http = {http}
  rpc  = {rpc}
  serf = {serf}
}}
consul {{
  auto_advertise   = false
  server_auto_join = false
  client_auto_join = false
}}
"#
    )
}

/// The server of all clients.
#[derive(Debug)]
pub(crate) struct Server(Agent);

impl Server {
    /// Starts it and waits for its keyring: a client that registers earlier is ready only half a minute later.
    ///
    /// Its clients reach it at this address of ours.
    pub(crate) fn start(nomad: &Path, scratch: &Path, address: Ipv4Addr) -> Self {
        let directory = scratch.join("server");
        let place = Place {
            address,
            ..Place::here()
        };
        let server = Self(Agent::new(nomad, directory.clone(), place, false, |ports| {
            let config = common("server", address, ports)
                + r#"
server {
  enabled          = true
  bootstrap_expect = 1
  raft_multiplier  = 1
  # A client that is down for some seconds is not lost.
  heartbeat_grace  = "60s"
}
"#;
            config.replace("DIRECTORY", &directory.display().to_string())
        }));
        server.0.start();
        let api = server.api();
        wait::until("the server's keyring", READY_LIMIT, || {
            match api
                .get::<Value>("/operator/keyring/keys")?
                .as_array()
                .map(Vec::len)
            {
                None | Some(0) => Err("no key".to_owned()),
                Some(_) => Ok(()),
            }
        });
        server
    }

    pub(crate) fn api(&self) -> Api {
        self.0.api()
    }
}

/// A client with the driver; jobs reach it by its datacenter, which has its name.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) agent: Agent,
    pub(crate) name: String,
    /// The folder of the plugin that it launches.
    pub(crate) plugins: PathBuf,
    run_dir: PathBuf,
    node: Mutex<Option<String>>,
}

/// An agent that ends leaves its VMs alone. What a check leaves behind, failed or not, would be in the way of the next.
impl Drop for Client {
    fn drop(&mut self) {
        self.agent.terminate();
        let vms = host::vms(self);
        for vm in &vms {
            process::signal(vm.shim, Signal::KILL);
        }
        let pids = || {
            vms.iter()
                .flat_map(|vm| vm.others.iter().copied().chain([vm.shim]))
        };
        let gone = wait::try_until(END_LIMIT, || {
            let left: Vec<_> = pids().filter_map(process::one).collect();
            if left.is_empty() {
                Ok(())
            } else {
                Err(format!("{left:?}"))
            }
        });
        if let Err(left) = gone {
            say(&format!(
                "    of the VMs of client {}, these live on: {left}",
                self.name
            ));
        }
    }
}

/// What a client is started with.
#[derive(Debug)]
pub(crate) struct Setup<'a> {
    pub(crate) nomad: &'a Path,
    pub(crate) scratch: &'a Path,
    pub(crate) server: &'a Server,
    pub(crate) name: &'a str,
    /// The plugin's options as HCL; `DIRECTORY` stands for the client's folder.
    pub(crate) options: &'a str,
    /// Its `plugin_dir`.
    pub(crate) plugins: PathBuf,
    /// Where the options put `run_dir`, if not into the client's folder.
    pub(crate) run_dir: Option<PathBuf>,
    /// Whether it is an agent that is its own server, and keeps nothing: `nomad agent -dev`.
    pub(crate) dev: bool,
    pub(crate) place: Place,
}

impl Client {
    /// Makes a client that is not started yet.
    pub(crate) fn new(setup: &Setup<'_>) -> Self {
        let directory = setup.scratch.join(setup.name);
        let run_dir = setup.run_dir.clone().unwrap_or_else(|| directory.join("run"));
        assert!(
            run_dir.as_os_str().len() <= RUN_DIR_MAX_BYTES || !setup.options.contains("DIRECTORY/run"),
            "the client's name {:?} is too long: run_dir would be {}",
            setup.name,
            run_dir.display()
        );
        let place = setup.place.clone();
        let agent = Agent::new(setup.nomad, directory.clone(), place, setup.dev, |own| {
            let server = &setup.server.0;
            let servers = format!("servers = [\"{}:{}\"]", server.place.address, server.rpc);
            let from = ports(DYNAMIC_PORTS);
            let config = common(setup.name, setup.place.address, own)
                + &format!(
                    r#"
datacenter = "{name}"
plugin_dir = "{plugins}"
client {{
  enabled           = true
  {servers}
  network_interface = "{interface}"
  max_kill_timeout  = "60s"
  min_dynamic_port  = {from}
  max_dynamic_port  = {to}
  # The logs of ended allocations are read.
  gc_max_allocs            = 1000
  gc_disk_usage_threshold  = 99
  gc_inode_usage_threshold = 99
  options = {{
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
    "driver.allowlist"     = "microvm"
  }}
  # Templates bring the disks of bad-input jobs.
  template {{
    disable_file_sandbox = true
  }}
}}
telemetry {{
  publish_allocation_metrics = true
}}
plugin "{PLUGIN}" {{
  config {{
{options}
  }}
}}
"#,
                    name = setup.name,
                    plugins = setup.plugins.display(),
                    interface = setup.place.interface,
                    servers = if setup.dev { "" } else { &servers },
                    to = from + DYNAMIC_PORTS - 1,
                    options = setup.options,
                );
            config.replace("DIRECTORY", &directory.display().to_string())
        });
        Self {
            agent,
            name: setup.name.to_owned(),
            plugins: setup.plugins.clone(),
            run_dir,
            node: Mutex::new(None),
        }
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.agent.directory
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.directory().join("data")
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.directory().join("state")
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.run_dir.clone()
    }

    /// Where its tasks' ports are.
    pub(crate) fn address(&self) -> Ipv4Addr {
        self.agent.place.address
    }

    /// The links of the host that it is on.
    pub(crate) fn links(&self) -> Vec<String> {
        namespace::links(self.agent.place.witness)
    }

    /// Waits until the client itself has registered and says something about the driver that satisfies `look`.
    pub(crate) fn wait_driver<T>(
        &self,
        server: &Api,
        what: &str,
        look: impl Fn(&Node) -> Result<T, String>,
    ) -> T {
        let own = self.agent.api();
        let ready = wait::try_until(READY_LIMIT, || {
            // The server's entry may be that of the process before: the client is asked.
            let about: Value = own.get("/agent/self")?;
            let stats = &about["stats"]["client"];
            let beat = stats["last_heartbeat"].as_str().unwrap_or_default();
            if beat.is_empty() || beat.starts_with("2562047h") {
                return Err(format!("no heartbeat: {beat:?}"));
            }
            let id = stats["node_id"].as_str().unwrap_or_default();
            let node = server.node(id)?;
            let answer = look(&node)?;
            *self.node.lock().expect("nothing panics with the lock held") = Some(id.to_owned());
            if node.status == "ready" {
                Ok(answer)
            } else {
                Err(format!("the node is {}", node.status))
            }
        });
        ready.unwrap_or_else(|last| {
            panic!(
                "client {}: {what}: seen last: {last}; end of its log:\n{}",
                self.name,
                self.agent.last_lines()
            );
        })
    }

    /// Waits until jobs can be run.
    pub(crate) fn wait_healthy(&self, server: &Api) {
        self.wait_driver(server, "the driver is healthy", |node| {
            match node.drivers.get("microvm") {
                Some(driver) if driver.detected && driver.healthy => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }

    /// The id of its node.
    pub(crate) fn node(&self) -> String {
        self.node
            .lock()
            .expect("nothing panics with the lock held")
            .clone()
            .expect("the client was ready once")
    }

    /// The plugin that works for this client: Nomad launches it three times, the last one holds the state directory.
    pub(crate) fn plugin(&self) -> Option<Process> {
        let holder = std::fs::read_to_string(self.state_dir().join("lock")).ok()?;
        process::one(holder.trim().parse().ok()?).filter(|process| process.name() == PLUGIN)
    }

    /// Every plugin process that was started by this client's agents.
    pub(crate) fn plugins(&self) -> Vec<Process> {
        let is_own = |process: &Process| {
            process.name() == PLUGIN
                && process
                    .variable(MARK)
                    .is_some_and(|mark| Path::new(&mark) == self.directory())
        };
        process::all().into_iter().filter(is_own).collect()
    }
}
