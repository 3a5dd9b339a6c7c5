//! How is a task's shim started, and spoken with?

use std::fs::File;
use std::io;
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

/// Requests that may wait for their turn: start and stop never have more than one each under way.
const REQUESTS_MAX: usize = 16;

/// How long the shim may take to answer a request. It answers when QEMU has, which takes milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Numbers of the descriptors that the shim inherits, as its options name them.
const CLIENT_FD: i32 = 3;
const LOCK_FD: i32 = 4;

/// What the plugin knows of a VM through its shim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum View {
    /// What the shim said last.
    Is(State),
    /// The connection is gone before the shim said how the VM ended.
    Lost,
}

impl View {
    /// Whether nothing more will come.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, Self::Lost | Self::Is(State::Exited { .. }))
    }
}

/// A connection to a shim, kept by a task of its own.
#[derive(Debug, Clone)]
pub(crate) struct Shim {
    requests: mpsc::Sender<Asked>,
    pub(crate) view: watch::Receiver<View>,
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
    pub(crate) control: &'a Path,
    pub(crate) stdout: &'a str,
    pub(crate) stderr: &'a str,
    pub(crate) uid: u32,
    pub(crate) vm_cgroups: Vec<&'a PathBuf>,
    pub(crate) shim_cgroups: Vec<&'a PathBuf>,
    /// Its own messages; Nomad's pipes must not be inherited.
    pub(crate) log: File,
    /// A locked file, which stays locked as long as the shim lives.
    pub(crate) lock: OwnedFd,
}

impl Shim {
    /// Starts a shim and connects to it. The shim ends the VM if this process dies before the guest runs.
    pub(crate) fn spawn(command: Command<'_>) -> io::Result<Self> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        let mut process = tokio::process::Command::new(command.program);
        process
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(command.log)
            .kill_on_drop(false)
            .arg("supervise");
        for (name, value) in [
            ("--plan", command.plan),
            ("--record", command.record),
            ("--control", command.control),
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
        let mappings = vec![
            FdMapping {
                parent_fd: theirs.into(),
                child_fd: CLIENT_FD,
            },
            FdMapping {
                parent_fd: command.lock,
                child_fd: LOCK_FD,
            },
        ];
        process
            .fd_mappings(mappings)
            .map_err(|error| io::Error::other(error.to_string()))?;
        let mut child = process.spawn()?;
        // Only so that it leaves no zombie; how the VM ended is in its exit record.
        drop(tokio::spawn(async move {
            let _status = child.wait().await;
        }));
        ours.set_nonblocking(true)?;
        Ok(Self::follow(
            UnixStream::from_std(ours)?,
            Lines::default(),
            State::Starting,
            true,
        ))
    }

    /// Connects to a shim that is there already.
    pub(crate) async fn connect(path: &Path) -> Result<Self, ConnectError> {
        let connect = async {
            let mut stream = UnixStream::connect(path)
                .await
                .map_err(|source| ConnectError::Socket {
                    path: path.to_owned(),
                    source,
                })?;
            stream
                .write_all(hello().as_bytes())
                .await
                .map_err(ConnectError::Broken)?;
            let mut lines = Lines::default();
            match read(&mut stream, &mut lines).await? {
                Message::Hello { state, .. } => Ok(Self::follow(stream, lines, state, false)),
                Message::Refused { reason } => Err(ConnectError::Version(reason)),
                Message::Done | Message::State { .. } => Err(ConnectError::Ended),
            }
        };
        tokio::time::timeout(ANSWER_TIMEOUT, connect)
            .await
            .unwrap_or(Err(ConnectError::Silent))
    }

    fn follow(stream: UnixStream, lines: Lines, state: State, say_hello: bool) -> Self {
        let (requests, asked) = mpsc::channel(REQUESTS_MAX);
        let (sender, view) = watch::channel(View::Is(state));
        drop(tokio::spawn(follow(stream, lines, say_hello, asked, sender)));
        Self { requests, view }
    }

    /// Asks the shim for something and waits for its answer.
    pub(crate) async fn ask(&self, request: Request) -> Result<(), RequestError> {
        let (answer, answered) = oneshot::channel();
        let asked = Asked { request, answer };
        self.requests.send(asked).await.map_err(|_| RequestError::Gone)?;
        match tokio::time::timeout(ANSWER_TIMEOUT, answered).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(reason))) => Err(RequestError::Refused(reason)),
            Ok(Err(_)) => Err(RequestError::Gone),
            Err(_) => Err(RequestError::Silent),
        }
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
            View::Is(State::Prepared { qemu_pid } | State::Running { qemu_pid }) => Some(*qemu_pid),
            _ => None,
        }
    }
}

fn hello() -> String {
    line(&Request::Hello {
        min: VERSION_MIN,
        max: VERSION_MAX,
    })
}

async fn read(stream: &mut UnixStream, lines: &mut Lines) -> Result<Message, ConnectError> {
    loop {
        if let Some(message) = lines.take()? {
            return Ok(message);
        }
        let mut buffer = [0; 4096];
        // Cancel safe: what was read is in `lines` before the next wait.
        let length = stream.read(&mut buffer).await.map_err(ConnectError::Broken)?;
        if length == 0 {
            return Err(ConnectError::Ended);
        }
        lines.feed(buffer.get(..length).unwrap_or_default());
    }
}

/// Keeps the connection until its end: one request under way at a time, the state published at each change.
async fn follow(
    mut stream: UnixStream,
    mut lines: Lines,
    say_hello: bool,
    mut asked: mpsc::Receiver<Asked>,
    view: watch::Sender<View>,
) {
    let mut waiting: Option<oneshot::Sender<Result<(), String>>> = None;
    let mut open = true;
    if say_hello && stream.write_all(hello().as_bytes()).await.is_err() {
        view.send_replace(View::Lost);
        return;
    }
    loop {
        tokio::select! {
            // Both are cancel safe: a message half read stays in `lines`, a request is taken whole.
            message = read(&mut stream, &mut lines) => match message {
                Ok(Message::Hello { state, .. } | Message::State { state }) => {
                    view.send_replace(View::Is(state));
                }
                Ok(Message::Done) => answer(&mut waiting, Ok(())),
                Ok(Message::Refused { reason }) => answer(&mut waiting, Err(reason)),
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "the connection to a shim ended");
                    break;
                }
            },
            request = asked.recv(), if open && waiting.is_none() => match request {
                Some(Asked { request, answer }) => {
                    waiting = Some(answer);
                    if stream.write_all(line(&request).as_bytes()).await.is_err() {
                        break;
                    }
                }
                // Nobody can ask any more, but the VM's end is still to be heard of.
                None => open = false,
            },
        }
    }
    if !view.borrow().is_final() {
        view.send_replace(View::Lost);
    }
}

fn answer(waiting: &mut Option<oneshot::Sender<Result<(), String>>>, result: Result<(), String>) {
    if let Some(waiting) = waiting.take() {
        // Whoever asked may have given up.
        let _unheard = waiting.send(result);
    }
}
