//! How is a task's shim started, and spoken with?

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use command_fds::CommandFdExt;
use command_fds::FdMapping;
use steppe_vm::control::{LineError, Lines, Message, Request, State, VERSION_MAX, VERSION_MIN};
use steppe_vm::record::line;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};

use super::undo::is_unlocked;

/// Requests that may wait for their turn: start and stop never have more than one each under way.
const REQUESTS_MAX: usize = 16;

/// How long the shim may take to answer a request. It answers when QEMU has, which takes milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause between two tries to reach a shim that lives.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(100);

/// Numbers of the descriptors that the shim inherits, as its options name them.
const CLIENT_FD: i32 = 3;
const LOCK_FD: i32 = 4;
const NETWORK_FD: i32 = 5;

/// What the plugin knows of a VM through its shim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum View {
    /// What the shim said last.
    Is(State),
    /// The connection is gone before the shim said how the VM ended.
    Lost,
}

impl View {
    /// Whether nothing more will come that matters: a failed start is not overwritten by the end that follows it.
    pub(crate) fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Lost | Self::Is(State::Exited { .. } | State::Failed { .. })
        )
    }
}

/// A connection to a shim, kept by a task of its own for as long as the shim lives.
#[derive(Debug, Clone)]
pub(crate) struct Shim {
    requests: mpsc::Sender<Asked>,
    pub(crate) view: watch::Receiver<View>,
}

/// Where a shim is found.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    /// Its control socket.
    pub(crate) control: PathBuf,
    /// The file it holds locked.
    pub(crate) lock: PathBuf,
}

#[derive(Debug)]
struct Asked {
    request: Request,
    answer: oneshot::Sender<Result<(), String>>,
}

/// Why a request to a shim was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("{0}")]
    Refused(String),
    #[error("the VM's shim is gone")]
    Gone,
    #[error("the VM's shim did not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Silent,
}

/// Why no connection to a shim could be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("the shim's socket {path} can't be reached")]
    Socket {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the connection to the shim broke")]
    Broken(#[source] io::Error),
    #[error("the shim ended the connection")]
    Ended,
    #[error("the shim's words can't be read")]
    Line(#[from] LineError),
    #[error("the shim speaks another version: {0}")]
    Version(String),
    #[error("the shim did not say hello within {} s", ANSWER_TIMEOUT.as_secs())]
    Silent,
}

/// What a shim needs to be started.
#[derive(Debug)]
pub(crate) struct Command<'a> {
    pub(crate) program: &'a Path,
    pub(crate) plan: &'a Path,
    pub(crate) record: &'a Path,
    pub(crate) stdout: &'a str,
    pub(crate) stderr: &'a str,
    pub(crate) uid: u32,
    pub(crate) vm_cgroups: Vec<&'a PathBuf>,
    pub(crate) shim_cgroups: Vec<&'a PathBuf>,
    /// Its own messages; Nomad's pipes must not be inherited.
    pub(crate) log: File,
    /// A locked file, which stays locked as long as the shim lives.
    pub(crate) lock: OwnedFd,
    /// An empty network namespace for QEMU.
    pub(crate) network: Option<&'a OwnedFd>,
}

impl Shim {
    /// Starts a shim and connects to it. The shim ends the VM if this process dies before the guest runs.
    pub(crate) fn spawn(command: Command<'_>, address: Address) -> io::Result<Self> {
        let (mut ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        // The socket keeps it until the shim listens.
        ours.write_all(line(&HELLO).as_bytes())?;
        let mut process = tokio::process::Command::new(command.program);
        process
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(command.log)
            .kill_on_drop(false)
            .envs(steppe_points::environment())
            .arg("supervise");
        for (name, value) in [
            ("--plan", command.plan),
            ("--record", command.record),
            ("--control", &address.control),
        ] {
            process.arg(name).arg(value);
        }
        process.args([
            "--stdout",
            command.stdout,
            "--stderr",
            command.stderr,
            "--uid",
            &command.uid.to_string(),
        ]);
        process.args([
            "--client-fd",
            &CLIENT_FD.to_string(),
            "--lock-fd",
            &LOCK_FD.to_string(),
        ]);
        for (name, leaves) in [
            ("--vm-cgroup", command.vm_cgroups),
            ("--shim-cgroup", command.shim_cgroups),
        ] {
            for leaf in leaves {
                process.arg(name).arg(leaf);
            }
        }
        let mut mappings = vec![
            FdMapping {
                parent_fd: theirs.into(),
                child_fd: CLIENT_FD,
            },
            FdMapping {
                parent_fd: command.lock,
                child_fd: LOCK_FD,
            },
        ];
        if let Some(network) = command.network {
            process.args(["--net-fd", &NETWORK_FD.to_string()]);
            mappings.push(FdMapping {
                parent_fd: network.try_clone()?,
                child_fd: NETWORK_FD,
            });
        }
        process
            .fd_mappings(mappings)
            .map_err(|error| io::Error::other(error.to_string()))?;
        let mut child = process.spawn()?;
        // Only so that it leaves no zombie; how the VM ended is in its exit record.
        drop(tokio::spawn(async move {
            let _status = child.wait().await;
        }));
        ours.set_nonblocking(true)?;
        let connection = Connection {
            stream: UnixStream::from_std(ours)?,
            lines: Lines::default(),
        };
        Ok(Self::follow(connection, address, State::Starting))
    }

    /// Connects to a shim that is there already.
    pub(crate) async fn connect(address: Address) -> Result<Self, ConnectError> {
        let (connection, state) = Connection::open(&address.control).await?;
        Ok(Self::follow(connection, address, state))
    }

    fn follow(connection: Connection, address: Address, state: State) -> Self {
        let (requests, asked) = mpsc::channel(REQUESTS_MAX);
        let (sender, view) = watch::channel(View::Is(state));
        let follower = Follower {
            address,
            asked: Some(asked),
            waiting: None,
            view: sender,
        };
        drop(tokio::spawn(follower.run(connection)));
        Self { requests, view }
    }

    /// Asks the shim for something and waits for its answer.
    pub(crate) async fn ask(&self, request: Request) -> Result<(), RequestError> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.requests
                .send(Asked { request, answer })
                .await
                .map_err(|_| RequestError::Gone)?;
            match answered.await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(reason)) => Err(RequestError::Refused(reason)),
                Err(_) => Err(RequestError::Gone),
            }
        };
        tokio::time::timeout(ANSWER_TIMEOUT, asked)
            .await
            .unwrap_or(Err(RequestError::Silent))
    }

    /// Waits until the view has a quality, at most so long.
    pub(crate) async fn wait_until(
        &self,
        timeout: Duration,
        quality: impl FnMut(&View) -> bool,
    ) -> Option<View> {
        let mut view = self.view.clone();
        let waited = tokio::time::timeout(timeout, view.wait_for(quality)).await;
        waited.ok()?.ok().map(|view| view.clone())
    }

    pub(crate) fn qemu_pid(&self) -> Option<i32> {
        match &*self.view.borrow() {
            View::Is(State::Prepared { qemu_pid } | State::Running { qemu_pid, .. }) => Some(*qemu_pid),
            _ => None,
        }
    }
}

/// The bytes of one connection.
#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    lines: Lines,
}

impl Connection {
    /// Connects and says hello; the state is the shim's answer.
    async fn open(path: &Path) -> Result<(Self, State), ConnectError> {
        let open = async {
            let stream = UnixStream::connect(path)
                .await
                .map_err(|source| ConnectError::Socket {
                    path: path.to_owned(),
                    source,
                })?;
            let mut connection = Self {
                stream,
                lines: Lines::default(),
            };
            connection.say(&HELLO).await?;
            match connection.hear().await? {
                Message::Hello { state, .. } => Ok((connection, state)),
                Message::Refused { reason } => Err(ConnectError::Version(reason)),
                Message::Done | Message::State { .. } => Err(ConnectError::Ended),
            }
        };
        tokio::time::timeout(ANSWER_TIMEOUT, open)
            .await
            .unwrap_or(Err(ConnectError::Silent))
    }

    async fn say(&mut self, request: &Request) -> Result<(), ConnectError> {
        self.stream
            .write_all(line(request).as_bytes())
            .await
            .map_err(ConnectError::Broken)
    }

    async fn hear(&mut self) -> Result<Message, ConnectError> {
        loop {
            if let Some(message) = self.lines.take()? {
                return Ok(message);
            }
            let mut buffer = [0; 4096];
            // Cancel safe: what was read is in `lines` before the next wait.
            let length = self
                .stream
                .read(&mut buffer)
                .await
                .map_err(ConnectError::Broken)?;
            if length == 0 {
                return Err(ConnectError::Ended);
            }
            self.lines.feed(buffer.get(..length).unwrap_or_default());
        }
    }
}

/// The first thing that is said.
pub(super) const HELLO: Request = Request::Hello {
    min: VERSION_MIN,
    max: VERSION_MAX,
};

/// Keeps up the connection to one shim, and publishes its state at each change.
struct Follower {
    address: Address,
    /// `None` once nobody can ask any more.
    asked: Option<mpsc::Receiver<Asked>>,
    /// Whoever waits for an answer: one request is under way at a time.
    waiting: Option<oneshot::Sender<Result<(), String>>>,
    view: watch::Sender<View>,
}

impl Follower {
    async fn run(mut self, mut connection: Connection) {
        loop {
            let error = self.follow(&mut connection).await;
            self.answer(Err("the connection to the VM's shim broke".to_owned()));
            if self.view.borrow().is_final() {
                return;
            }
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "the connection to a shim ended"
            );
            // A connection that broke is not the VM's end: only a free lock is.
            match self.reconnect().await {
                Some(again) => connection = again,
                None => {
                    self.view.send_replace(View::Lost);
                    return;
                }
            }
        }
    }

    /// Carries requests there and states back until the connection ends.
    async fn follow(&mut self, connection: &mut Connection) -> ConnectError {
        loop {
            let may_ask = self.waiting.is_none();
            let request = async {
                match &mut self.asked {
                    Some(asked) if may_ask => asked.recv().await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                // Both are cancel safe: a message half read stays in `lines`, a request is taken whole.
                message = connection.hear() => match message {
                    Ok(Message::Hello { state, .. } | Message::State { state }) => self.enter(state),
                    Ok(Message::Done) => self.answer(Ok(())),
                    Ok(Message::Refused { reason }) => self.answer(Err(reason)),
                    Err(error) => return error,
                },
                request = request => match request {
                    Some(Asked { request, answer }) => {
                        self.waiting = Some(answer);
                        if let Err(error) = connection.say(&request).await {
                            return error;
                        }
                    }
                    None => self.asked = None,
                },
            }
        }
    }

    async fn reconnect(&mut self) -> Option<Connection> {
        loop {
            let lock = self.address.lock.clone();
            let gone = tokio::task::spawn_blocking(move || is_unlocked(&lock))
                .await
                .unwrap_or(false);
            if gone {
                return None;
            }
            let opened = Connection::open(&self.address.control).await;
            // In any case: a connection that breaks at once must not be made a thousand times a second.
            tokio::time::sleep(RECONNECT_INTERVAL).await;
            if let Ok((connection, state)) = opened {
                self.enter(state);
                return Some(connection);
            }
        }
    }

    fn enter(&self, state: State) {
        let _changed = self.view.send_if_modified(|view| {
            let open = !view.is_final();
            if open {
                *view = View::Is(state);
            }
            open
        });
    }

    fn answer(&mut self, result: Result<(), String>) {
        if let Some(waiting) = self.waiting.take() {
            // Whoever asked may have given up.
            let _unheard = waiting.send(result);
        }
    }
}
