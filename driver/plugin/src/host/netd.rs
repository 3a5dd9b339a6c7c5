//! How is netd asked?
//!
//! Each question has a connection of its own: a start that finds an old one closing, because netd was restarted, would fail for
//! nothing. Every question has a deadline.

use std::path::Path;
use std::time::Duration;

use steppe_daemon::client::{Silent, channel, request};
use steppe_proto::net::network_client::NetworkClient;
use steppe_proto::net::{
    AttachRequest, DetachRequest, Interface as Made, NetworkInfo, Owner, SyncRequest, SyncResponse,
    VersionRequest, WatchRequest, WatchResponse, watch_response,
};
use steppe_proto::{NET_API, detail, speaks};
use steppe_vm::interface::{Interface, InterfaceError};
use steppe_vm::spec::KnownNetwork;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// How the daemon is called in sentences.
const NAME: &str = "netd";

/// How long netd may take to say what it is, or what there is: it only has to look at itself.
const TELL_TIMEOUT: Duration = Duration::from_secs(2);

/// How long it may take to make interfaces, to take them back, or to compare all there are: each kind of work waits for the
/// one before it, and a network may be asked whether an address is free.
const WORK_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a netd that is away is waited for where something must be given back: as long as its restart takes.
const RESTART_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause between two tries.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// What is known of netd.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) state: State,
    /// Its networks, as it said last.
    pub(crate) networks: Vec<Network>,
}

/// Whether netd is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum State {
    /// It was not asked yet.
    #[default]
    Unknown,
    /// It answers.
    There,
    /// It doesn't, and why.
    Away(String),
}

/// A network of netd's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Network {
    pub(crate) name: String,
    pub(crate) kind: String,
    /// Whether a VM can be on it, on this host.
    pub(crate) is_available: bool,
}

impl View {
    /// The networks that a job may name.
    pub(crate) fn known(&self) -> Vec<KnownNetwork> {
        let known = |network: &Network| KnownNetwork {
            name: network.name.clone(),
            kind: network.kind.clone(),
        };
        self.networks.iter().map(known).collect()
    }

    /// Why netd, which listens there, can't be counted on.
    pub(crate) fn problem(&self, socket: &Path) -> Option<String> {
        match &self.state {
            State::There => None,
            State::Unknown => Some(format!("netd at {} has not answered yet", socket.display())),
            State::Away(reason) => Some(reason.clone()),
        }
    }
}

impl From<NetworkInfo> for Network {
    fn from(info: NetworkInfo) -> Self {
        Self {
            is_available: info.unavailable.is_empty(),
            name: info.name,
            kind: info.kind,
        }
    }
}

/// Why netd did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetdError {
    #[error(transparent)]
    Silent(#[from] Silent),
    #[error("netd refuses: {sentence}")]
    Refused { sentence: String, retryable: bool },
    #[error("netd at {path} can't be believed: {source}; install netd and driver of one release")]
    Answer { path: String, source: InterfaceError },
    #[error("{0}")]
    Version(String),
}

impl NetdError {
    fn of(socket: &Path, status: &Status) -> Self {
        if let Some(silent) = Silent::of(NAME, socket, status) {
            return Self::Silent(silent);
        }
        let retryable = match detail(status) {
            Some(detail) => detail.retryable,
            // netd is about to end, or busy with others.
            None => matches!(
                status.code(),
                Code::Unavailable
                    | Code::DeadlineExceeded
                    | Code::Aborted
                    | Code::Cancelled
                    | Code::ResourceExhausted
            ),
        };
        Self::Refused {
            sentence: status.message().to_owned(),
            retryable,
        }
    }

    /// Whether the same may go well later.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Silent(_) | Self::Version(_) => true,
            Self::Refused { retryable, .. } => *retryable,
            Self::Answer { .. } => false,
        }
    }
}

/// A connection to the netd that listens at a path.
#[derive(Debug)]
pub(crate) struct Netd<'a> {
    socket: &'a Path,
    client: NetworkClient<Channel>,
}

impl<'a> Netd<'a> {
    pub(crate) fn at(socket: &'a Path) -> Self {
        Self {
            socket,
            client: NetworkClient::new(channel(socket)),
        }
    }

    fn error(&self, status: &Status) -> NetdError {
        NetdError::of(self.socket, status)
    }

    /// Whether it speaks a version that this driver can work with.
    pub(crate) async fn greet(&mut self) -> Result<(), NetdError> {
        let asked = self
            .client
            .version(request(VersionRequest {}, TELL_TIMEOUT))
            .await;
        let says = asked.map_err(|status| self.error(&status))?.into_inner();
        if speaks(NET_API, says.min, says.max) {
            return Ok(());
        }
        Err(NetdError::Version(format!(
            "netd at {} (release {}) speaks versions {} to {} of its interface, this driver (release {}) version {NET_API}: \
             install releases that lie closer together",
            self.socket.display(),
            says.release,
            says.min,
            says.max,
            env!("CARGO_PKG_VERSION")
        )))
    }

    /// Has all of a VM's interfaces made.
    pub(crate) async fn attach(&mut self, asked: AttachRequest) -> Result<Vec<Interface>, NetdError> {
        let answer = self.client.attach(request(asked, WORK_TIMEOUT)).await;
        let answer = answer.map_err(|status| self.error(&status))?.into_inner();
        Ok(answer.interfaces.into_iter().map(interface).collect())
    }

    /// Gives all of a VM's interfaces back; that there are none is no error.
    async fn detach(&mut self, owner: Owner) -> Result<(), NetdError> {
        let asked = DetachRequest {
            owner: Some(owner),
            force: false,
        };
        let answer = self.client.detach(request(asked, WORK_TIMEOUT)).await;
        answer.map(drop).map_err(|status| self.error(&status))
    }

    /// Says which VMs live.
    pub(crate) async fn sync(
        &mut self,
        instance: String,
        live: Vec<String>,
    ) -> Result<SyncResponse, NetdError> {
        let asked = SyncRequest { instance, live };
        let answer = self.client.sync(request(asked, WORK_TIMEOUT)).await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status| self.error(&status))
    }

    /// What there is, and each change.
    pub(crate) async fn watch(&mut self, instance: String) -> Result<Events<'a>, NetdError> {
        let answer = self.client.watch(WatchRequest { instance });
        let beginning = tokio::time::timeout(TELL_TIMEOUT, answer).await;
        let answer =
            beginning.unwrap_or_else(|_| Err(Status::deadline_exceeded("no stream of events comes")));
        Ok(Events {
            socket: self.socket,
            stream: answer.map_err(|status| self.error(&status))?.into_inner(),
        })
    }

    /// Does not answer: what a stream's end means.
    fn gone(socket: &Path) -> NetdError {
        NetdError::Silent(Silent {
            program: NAME,
            path: socket.to_string_lossy().into_owned(),
            cause: "it has ended its stream of events".to_owned(),
        })
    }
}

/// What netd says without being asked.
#[derive(Debug)]
pub(crate) struct Events<'a> {
    socket: &'a Path,
    stream: Streaming<WatchResponse>,
}

impl Events<'_> {
    /// The networks, at first and whenever they change. Cancel safe.
    pub(crate) async fn networks(&mut self) -> Result<Vec<NetworkInfo>, NetdError> {
        loop {
            let event = match self.stream.message().await {
                Ok(Some(event)) => event.event,
                Ok(None) => return Err(Netd::gone(self.socket)),
                Err(status) => return Err(NetdError::of(self.socket, &status)),
            };
            match event {
                Some(watch_response::Event::Snapshot(snapshot)) => {
                    return Ok(snapshot.networks.unwrap_or_default().networks);
                }
                Some(watch_response::Event::Networks(networks)) => return Ok(networks.networks),
                // Which interfaces there are is in the records of those who have them.
                Some(watch_response::Event::Changed(_) | watch_response::Event::Removed(_)) | None => {}
            }
        }
    }
}

/// Gives all of a VM's interfaces back. A netd that is being restarted is waited for; `moved` is where it may listen by now.
pub(crate) async fn detach(socket: &Path, moved: Option<&Path>, owner: Owner) -> Result<(), NetdError> {
    let deadline = tokio::time::Instant::now() + RESTART_TIMEOUT;
    loop {
        let detached = match (Netd::at(socket).detach(owner.clone()).await, moved) {
            (Err(NetdError::Silent(_)), Some(moved)) => Netd::at(moved).detach(owner.clone()).await,
            (detached, _) => detached,
        };
        let error = match detached {
            Err(error @ NetdError::Silent(_)) if tokio::time::Instant::now() < deadline => error,
            done => return done,
        };
        tracing::debug!(error = crate::host::chain(&error), "netd is asked again");
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// An interface in our words.
fn interface(made: Made) -> Interface {
    Interface {
        network: made.network,
        kind: made.kind,
        tap: made.tap,
        queues: made.queues,
        mac: made.mac,
        ipv4: made.ipv4,
        ipv4_gateway: made.ipv4_gateway,
        ipv6: made.ipv6,
        ipv6_gateway: made.ipv6_gateway,
        dns: made.dns,
        mtu: made.mtu,
        vlan: made.vlan,
        trunk: made.trunk,
    }
}

#[cfg(test)]
mod tests {
    use steppe_proto::net::ErrorDetail;
    use steppe_proto::status;

    use super::*;

    #[test]
    fn what_netd_says_may_pass_or_not() {
        let path = Path::new("/run/netd/netd.sock");
        let error = |status: &Status| NetdError::of(path, status);
        let detailed = |retryable| {
            let detail = ErrorDetail {
                reason: "identity-held".to_owned(),
                retryable,
                ..ErrorDetail::default()
            };
            error(&status(Code::FailedPrecondition, "it is held", &detail))
        };
        assert!(detailed(true).may_pass() && !detailed(false).may_pass());
        assert_eq!(detailed(true).to_string(), "netd refuses: it is held");
        for (code, passes) in [
            (Code::Unavailable, true),
            (Code::DeadlineExceeded, true),
            (Code::PermissionDenied, false),
            (Code::InvalidArgument, false),
            (Code::Unimplemented, false),
        ] {
            assert_eq!(error(&Status::new(code, "x")).may_pass(), passes, "{code}");
        }
    }

    #[tokio::test]
    async fn a_netd_that_is_not_there_is_named() {
        let path = Path::new("/does/not/exist/netd.sock");
        let error = Netd::at(path).greet().await.unwrap_err();
        assert!(error.may_pass());
        let wanted = "netd at /does/not/exist/netd.sock does not answer: ";
        assert!(error.to_string().starts_with(wanted), "{error}");
    }
}
