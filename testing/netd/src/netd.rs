//! How is a netd started, asked, killed and started again?

use std::fmt;
use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use steppe_proto::net;
use steppe_proto::net::network_client::NetworkClient;
use tokio::runtime::Runtime;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::harness::SCRATCH;
use crate::space::Space;
use crate::wait;

/// A nat network, and a bridge with an uplink on which nobody is asked whether an address is taken.
pub(crate) const CONFIG: &str = r#"
[network.default]
kind = "nat"
ipv4 = { subnet = "10.83.0.0/20", gateway = "10.83.0.1", pool = "10.83.0.2-10.83.15.254" }

[network.lan]
kind = "bridge"
uplink = "up0"
ipv4 = { subnet = "10.1.0.0/16", pool = "10.1.1.0-10.1.1.255" }
ipv6 = { prefix = "fd00:1::/64" }
probe = "0s"
"#;

/// A netd of one host, and its files.
#[derive(Debug)]
pub(crate) struct Netd<'a> {
    space: &'a Space,
    folder: PathBuf,
    how: How,
    child: Option<Child>,
    client: Client,
}

/// How a netd is started.
#[derive(Debug, Clone, Default)]
pub(crate) struct How {
    /// Built with crash points.
    pub(crate) points: bool,
    /// A program and its arguments before netd's.
    pub(crate) through: Vec<String>,
    /// Further variables.
    pub(crate) variables: Vec<(String, String)>,
}

/// The folder of a program that testing/prepare.sh built.
fn folder_of(variables: &[&str]) -> PathBuf {
    let found = variables.iter().find_map(std::env::var_os);
    PathBuf::from(found.unwrap_or_else(|| {
        panic!(
            "{} is not set: testing/prepare.sh does, or see --help",
            variables.join(" or ")
        )
    }))
}

/// The program itself.
pub(crate) fn program(points: bool) -> PathBuf {
    let folder = if points {
        folder_of(&["STEPPE_POINTS_PLUGIN_DIR"])
    } else {
        folder_of(&["STEPPE_NETD_DIR", "STEPPE_PLUGIN_DIR"])
    };
    let program = folder.join("netd");
    assert!(program.exists(), "there is no {}", program.display());
    program
}

/// The same program where any user can run it.
pub(crate) fn for_everybody(program: &Path) -> PathBuf {
    let copy = Path::new(SCRATCH).join(program.file_name().expect("a program has a name"));
    if !copy.exists() {
        std::fs::copy(program, &copy).expect("a program can be copied");
    }
    copy
}

impl<'a> Netd<'a> {
    /// Starts one with this configuration, and waits until it answers.
    #[track_caller]
    pub(crate) fn start(space: &'a Space, config: &str) -> Self {
        let mut netd = Self::new(space, config, How::default());
        netd.begin();
        netd
    }

    /// The files of one that is not started yet.
    pub(crate) fn new(space: &'a Space, config: &str, how: How) -> Self {
        let folder = Path::new(SCRATCH).join(space.name());
        std::fs::create_dir_all(&folder).expect("a folder can be made");
        let client = Client::new(&folder.join("netd.sock"));
        let netd = Self {
            space,
            folder,
            how,
            child: None,
            client,
        };
        netd.write_config(config);
        netd
    }

    /// Replaces its configuration; it reads that when it starts, or when told to reload.
    pub(crate) fn write_config(&self, config: &str) {
        std::fs::write(self.folder.join("netd.toml"), config).expect("a file can be written");
    }

    /// Where its files are.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().expect("netd runs"))
    }

    /// Another way to start it from now on.
    pub(crate) fn set_how(&mut self, how: How) {
        self.how = how;
    }

    /// The command that starts it, or asks it something.
    fn command(&self, arguments: &[&str]) -> Command {
        let program = program(self.how.points);
        let mut command = match self.how.through.split_first() {
            None => Command::new(program),
            Some((before, rest)) => {
                let mut command = Command::new(before);
                command.args(rest).arg(for_everybody(&program));
                command
            }
        };
        command.args(arguments);
        command.arg("--config").arg(self.folder.join("netd.toml"));
        command.arg("--socket").arg(self.folder.join("netd.sock"));
        command.envs(self.how.variables.iter().cloned());
        command.stdin(Stdio::null());
        command
    }

    /// Starts it, and waits until it answers.
    #[track_caller]
    pub(crate) fn begin(&mut self) {
        self.spawn();
        wait::until("netd answers", || {
            let child = self.child.as_mut().expect("it was just started");
            if let Some(status) = child.try_wait().expect("a child can be waited for") {
                panic!("netd ended with {status}: {}", self.log_end());
            }
            self.client.version().map_err(|refusal| refusal.to_string())
        });
    }

    /// Starts it without waiting.
    pub(crate) fn spawn(&mut self) {
        assert!(self.child.is_none(), "netd runs already");
        let log = self.open_log();
        let mut command = self.command(&["serve"]);
        command.stdout(log.try_clone().expect("a file can be shared"));
        command.stderr(log);
        // A terminal's interrupt is for the check.
        command.process_group(0);
        let child = self.space.enter(|| command.spawn());
        self.child = Some(child.unwrap_or_else(|error| panic!("netd can't be started: {error}")));
    }

    /// Runs `netd COMMAND` beside it; stdout and stderr together with whether it succeeded.
    pub(crate) fn command_line(&self, arguments: &[&str]) -> (bool, String) {
        let mut command = self.command(arguments);
        let output = self.space.enter(|| command.output());
        let output = output.unwrap_or_else(|error| panic!("netd can't be started: {error}"));
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }

    fn open_log(&self) -> File {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder.join("log"))
            .expect("a file can be written")
    }

    /// All that it ever said.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(3)..].join(" / ")
    }

    /// Whether it runs no more.
    pub(crate) fn has_ended(&mut self) -> bool {
        let child = self.child.as_mut().expect("netd was started");
        child.try_wait().expect("a child can be waited for").is_some()
    }

    /// Kills it outright.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("netd runs");
        // It may have been killed by a crash point.
        drop(child.kill());
        child.wait().expect("a child can be waited for");
    }

    /// Kills it outright and starts it again.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.begin();
    }

    /// Waits for its end; whether that was a success.
    #[track_caller]
    pub(crate) fn ended(&mut self) -> bool {
        let mut child = self.child.take().expect("netd was started");
        wait::until("netd ends", || {
            let status = child.try_wait().expect("a child can be waited for");
            status.ok_or_else(|| "it runs".to_owned())
        })
        .success()
    }

    /// Tells it to end, and waits for that.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        self.signal(Signal::TERM);
        assert!(self.ended(), "netd ends well: {}", self.log_end());
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).expect("netd runs");
    }

    /// Whom to ask.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// One more connection, for another thread.
    pub(crate) fn another_client(&self) -> Client {
        Client::new(&self.folder.join("netd.sock"))
    }
}

impl Drop for Netd<'_> {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.kill();
        }
    }
}

/// A connection to a netd.
#[derive(Debug)]
pub(crate) struct Client {
    runtime: Runtime,
    client: NetworkClient<Channel>,
}

/// What netd answered against a request.
#[derive(Debug, Clone)]
pub(crate) struct Refused {
    pub(crate) code: Code,
    pub(crate) sentence: String,
    pub(crate) detail: Box<net::ErrorDetail>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ({}): {}", self.code, self.detail.reason, self.sentence)
    }
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        Self {
            code: status.code(),
            sentence: status.message().to_owned(),
            detail: Box::new(steppe_proto::detail(&status).unwrap_or_default()),
        }
    }
}

impl Client {
    fn new(socket: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime can be made");
        let channel = {
            let _entered = runtime.enter();
            steppe_daemon::client::channel(socket)
        };
        Self {
            runtime,
            client: NetworkClient::new(channel),
        }
    }

    /// Asks, with a limit of time.
    pub(crate) fn ask<Q, A>(
        &self,
        request: Q,
        call: impl AsyncFnOnce(&mut NetworkClient<Channel>, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A, Refused> {
        /// A thousand interfaces at once take a while.
        const LIMIT: Duration = Duration::from_secs(60);
        let mut client = self.client.clone();
        let asked = async { tokio::time::timeout(LIMIT, call(&mut client, Request::new(request))).await };
        match self.runtime.block_on(asked) {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(status.into()),
            Err(_late) => panic!("netd did not answer within {} s", LIMIT.as_secs()),
        }
    }

    /// Whether it answers at all.
    pub(crate) fn version(&self) -> Result<(), Refused> {
        self.ask(net::VersionRequest {}, async |client, request| {
            client.version(request).await
        })
        .map(drop)
    }

    pub(crate) fn attach(&self, request: &net::AttachRequest) -> Result<Vec<net::Interface>, Refused> {
        self.ask(request.clone(), async |client, request| {
            client.attach(request).await
        })
        .map(|answer| answer.interfaces)
    }

    pub(crate) fn attach_batch(
        &self,
        requests: &[net::AttachRequest],
    ) -> Result<Vec<Vec<net::Interface>>, Refused> {
        let request = net::AttachBatchRequest {
            requests: requests.to_vec(),
        };
        self.ask(request, async |client, request| {
            client.attach_batch(request).await
        })
        .map(|answer| {
            answer
                .responses
                .into_iter()
                .map(|response| response.interfaces)
                .collect()
        })
    }

    pub(crate) fn check(&self, request: &net::AttachRequest) -> Result<net::CheckResponse, Refused> {
        self.ask(request.clone(), async |client, request| {
            client.check(request).await
        })
    }

    pub(crate) fn detach(&self, owner: &net::Owner, force: bool) -> Result<Vec<String>, Refused> {
        let request = net::DetachRequest {
            owner: Some(owner.clone()),
            force,
        };
        self.ask(request, async |client, request| client.detach(request).await)
            .map(|answer| answer.taps)
    }

    /// Everything that there is, by machine and position.
    pub(crate) fn try_list(&self) -> Result<Vec<net::Interface>, Refused> {
        let request = net::ListRequest {
            instance: String::new(),
        };
        let answer = self.ask(request, async |client, request| client.list(request).await)?;
        let mut interfaces = answer.interfaces;
        let place = |one: &net::Interface| (one.owner.clone().unwrap_or_default().id, one.index);
        interfaces.sort_by_key(place);
        Ok(interfaces)
    }

    /// The same where nothing is in the way.
    #[track_caller]
    pub(crate) fn list(&self) -> Vec<net::Interface> {
        self.try_list()
            .unwrap_or_else(|refused| panic!("List: {refused}"))
    }

    pub(crate) fn sync<I: Into<String> + Clone>(
        &self,
        instance: &str,
        live: &[I],
    ) -> Result<net::SyncResponse, Refused> {
        let request = net::SyncRequest {
            instance: instance.to_owned(),
            live: live.iter().cloned().map(Into::into).collect(),
        };
        self.ask(request, async |client, request| client.sync(request).await)
    }

    pub(crate) fn try_networks(&self) -> Result<Vec<net::NetworkInfo>, Refused> {
        self.ask(net::NetworksRequest {}, async |client, request| {
            client.networks(request).await
        })
        .map(|answer| answer.networks)
    }

    #[track_caller]
    pub(crate) fn networks(&self) -> Vec<net::NetworkInfo> {
        self.try_networks()
            .unwrap_or_else(|refused| panic!("Networks: {refused}"))
    }
}
