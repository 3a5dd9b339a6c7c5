//! How is the netd of a host started, killed, replaced and asked?

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::Signal;
use serde::Deserialize;

use crate::namespace::{Namespace, output};
use crate::process;
use crate::scratch::MARK;
use crate::wait::{self, seconds};
use crate::world::replace;

/// What its program is called.
pub(crate) const NETD: &str = "netd";

/// How long it may take to answer, or to end.
const LIMIT: Duration = seconds(15);

/// A network for each thing that checks need. `DIRECTORY` stands for the host's folder.
const CONFIG: &str = r#"
[daemon]
socket    = "DIRECTORY/netd.sock"
log_level = "debug"

# What netd has where nobody says anything.
[network.default]
kind = "nat"
ipv4 = { subnet = "10.83.0.0/20", gateway = "10.83.0.1" }

[network.tenant]
kind   = "bridge"
uplink = "eth1"
ipv4   = { subnet = "10.1.0.0/16", gateway = "10.1.0.1", pool = "10.1.1.0-10.1.1.255" }
ipv6   = { prefix = "fd00:1::/64", gateway = "fd00:1::1" }
dns    = ["10.1.0.1"]

# For bad input: all of its pool is one address; nobody's; and what no host here has.
[network.tiny]
kind = "nat"
ipv4 = { subnet = "10.84.0.0/24", gateway = "10.84.0.1", pool = "10.84.0.7-10.84.0.7" }

[network.plain]
kind = "bridge"

[network.far]
kind   = "bridge"
uplink = "eth9"

[network.aware]
kind   = "vlan-aware"
uplink = "eth8"
vids   = ["100-120"]
"#;

/// The process, its program and its socket.
#[derive(Debug)]
pub(crate) struct Netd {
    directory: PathBuf,
    /// The words that, put before a command, have it run on its host.
    words: Vec<String>,
    child: Mutex<Option<Child>>,
}

/// An interface, as `netd list --json` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Interface {
    /// Whose it is, in the driver's words: a task's key, which begins with its allocation.
    pub(crate) id: String,
    pub(crate) index: u32,
    pub(crate) mac: String,
    pub(crate) ipv4: Option<String>,
    pub(crate) ipv6: Option<String>,
    /// Whether a process holds it open.
    pub(crate) carrier: bool,
}

#[derive(Debug, Deserialize)]
struct List {
    interfaces: Vec<Interface>,
}

impl Netd {
    /// One that is not started yet, with the program from a folder of its own.
    pub(crate) fn new(host: &Namespace, directory: &Path, programs: &Path) -> Self {
        let netd = Self {
            directory: directory.to_owned(),
            words: host.words(),
            child: Mutex::new(None),
        };
        let config = CONFIG.replace("DIRECTORY", &directory.display().to_string());
        std::fs::write(netd.config(), config).expect("a file can be written in the scratch folder");
        netd.install(programs);
        netd
    }

    /// Puts another release's program in the place of its own, as a package manager does.
    pub(crate) fn install(&self, programs: &Path) {
        replace(&programs.join(NETD), &self.program());
    }

    fn program(&self) -> PathBuf {
        self.directory.join(NETD)
    }

    fn config(&self) -> PathBuf {
        self.directory.join("netd.toml")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.join("netd.sock")
    }

    /// A command on its host.
    fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]).arg(self.program()).arg(subcommand);
        command
            .arg("--config")
            .arg(self.config())
            .env(MARK, &self.directory);
        command
    }

    /// Starts it, and waits until it answers.
    pub(crate) fn start(&self) {
        self.start_with(&[]);
    }

    /// The same with variables in its environment.
    pub(crate) fn start_with(&self, variables: &[(&str, &str)]) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.join("netd.log"))
            .expect("a file can be written in the scratch folder");
        let child = self
            .command("serve")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor can be copied"))
            .stderr(log)
            // Ctrl-C is ours to handle.
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("netd can't be started: {error}"));
        *self.child() = Some(child);
        wait::until("netd answers", LIMIT, || {
            let child = self
                .child()
                .as_mut()
                .and_then(|child| child.try_wait().ok().flatten());
            if let Some(status) = child {
                panic!("netd has ended: {status}; its log:\n{}", self.log());
            }
            UnixStream::connect(self.socket())
                .map(drop)
                .map_err(|error| error.to_string())
        });
    }

    fn child(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.child.lock().expect("no check panics with the lock held")
    }

    /// Ends it as a service manager does.
    pub(crate) fn terminate(&self) {
        self.end(Signal::TERM);
    }

    /// Ends it at once.
    pub(crate) fn kill9(&self) {
        self.end(Signal::KILL);
    }

    fn end(&self, signal: Signal) {
        let Some(mut child) = self.child().take() else {
            return;
        };
        process::signal(child.id(), signal);
        let ended = wait::try_until(LIMIT, || match child.try_wait() {
            Ok(Some(_)) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        if ended.is_err() {
            drop(child.kill());
            drop(child.wait());
            panic!("netd did not end; its log:\n{}", self.log());
        }
    }

    /// Its interfaces.
    pub(crate) fn list(&self) -> Vec<Interface> {
        let text = output(self.command("list").arg("--json"));
        let list: List =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("netd list --json: {error}: {text}"));
        list.interfaces
    }

    /// Those of an allocation's VM, in their order.
    pub(crate) fn of(&self, allocation: &str) -> Vec<Interface> {
        let mut own = self.list();
        own.retain(|interface| interface.id.starts_with(allocation));
        own.sort_by_key(|interface| interface.index);
        own
    }

    /// Everything it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("netd.log")).unwrap_or_default()
    }
}

impl Drop for Netd {
    fn drop(&mut self) {
        if let Some(mut child) = self.child().take() {
            process::signal(child.id(), Signal::TERM);
            drop(wait::try_until(LIMIT, || match child.try_wait() {
                Ok(Some(_)) => Ok(()),
                other => Err(format!("{other:?}")),
            }));
            drop(child.kill());
            drop(child.wait());
        }
    }
}
