//! What is asked of netd over gRPC?
//!
//! Conversions only: who may ask is looked up, requests become ours, and the owner of the state answers.

use std::collections::BTreeSet;
use std::time::Duration;

use netd_plan::{Config, Problem};
use steppe_daemon::peer::{Role, Roles};
use steppe_proto::NET_API;
use steppe_proto::net::{self, network_server::Network};
use tokio::runtime::Handle as Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::convert::{self, Refused};
use crate::counts::Counts;
use crate::state::{self, Command, StartError};
use crate::watch::WATCHERS_MAX;

/// So long a request waits at most.
const DEADLINE: Duration = Duration::from_secs(60);
/// Machines of one batch.
const BATCH_MAX: usize = 256;

/// netd at work: all clones are one.
#[derive(Debug, Clone)]
pub struct Netd {
    commands: mpsc::Sender<Command>,
    counts: Counts,
}

impl Netd {
    /// Starts with the links, filters and interfaces that are there.
    ///
    /// # Errors
    ///
    /// Without the kernel's or nftables' help nothing can be done.
    pub fn start(config: Config, runtime: &Runtime) -> Result<Self, StartError> {
        let counts = Counts::default();
        let commands = state::start(config, counts.clone(), runtime)?;
        Ok(Self { commands, counts })
    }

    /// What is counted.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Takes a new configuration, or says why machines that are attached can't follow it.
    ///
    /// # Errors
    ///
    /// The old configuration stays: everything that can't be followed, or that nobody answers.
    pub async fn reload(&self, config: Config) -> Result<(), Vec<Problem>> {
        let config = Box::new(config);
        let reloaded = self.ask(|answer| Command::Reload { config, answer }).await;
        reloaded.unwrap_or_else(|status| {
            Err(vec![Problem {
                place: "netd".to_owned(),
                sentence: status.message().to_owned(),
            }])
        })
    }

    /// The networks, and how much of their pools is used.
    ///
    /// # Errors
    ///
    /// Nobody answers.
    pub async fn networks(&self) -> Result<net::NetworksResponse, Status> {
        self.ask(|answer| Command::Networks { answer }).await
    }

    /// The interfaces of an instance, or all.
    ///
    /// # Errors
    ///
    /// Nobody answers.
    pub async fn interfaces(&self, instance: String) -> Result<Vec<net::Interface>, Status> {
        self.ask(|answer| Command::List { instance, answer }).await
    }

    /// Ends the streams of those who watch: netd is about to end.
    pub async fn end_watches(&self) {
        // Who can't be told has ended already.
        let _told = self.commands.send(Command::EndWatches).await;
    }

    /// Waits until netd's owner of all has ended, which it does only by a fault of its own.
    pub async fn ended(&self) {
        self.commands.closed().await;
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, Status> {
        let (sender, receiver) = oneshot::channel();
        let asked = async {
            self.commands.send(command(sender)).await.map_err(|_| ended())?;
            receiver.await.map_err(|_| ended())
        };
        let late = |_| {
            let sentence = format!("netd has not answered within {} s; ask again", DEADLINE.as_secs());
            Status::from(Refused::later("unavailable", sentence))
        };
        tokio::time::timeout(DEADLINE, asked).await.map_err(late)?
    }
}

fn ended() -> Status {
    Refused::later(
        "unavailable",
        "netd is ending; ask again when it is back".to_owned(),
    )
    .into()
}

/// The service, for peers with roles.
#[derive(Debug, Clone)]
pub struct Service {
    netd: Netd,
    roles: Roles,
}

impl Service {
    /// Of a netd at work.
    #[must_use]
    pub fn new(netd: Netd, roles: Roles) -> Self {
        Self { netd, roles }
    }
}

/// The versions that are spoken. A build for tests can pretend to be of another age.
fn versions() -> (u32, u32) {
    let pretended = if cfg!(feature = "crash-points") {
        std::env::var("STEPPE_NETD_API").ok()
    } else {
        None
    };
    let pretended = pretended.as_deref().and_then(|text| text.split_once('-'));
    let pretended = pretended.and_then(|(min, max)| Some((min.parse().ok()?, max.parse().ok()?)));
    pretended.unwrap_or((NET_API, NET_API))
}

#[tonic::async_trait]
impl Network for Service {
    async fn version(
        &self,
        request: Request<net::VersionRequest>,
    ) -> Result<Response<net::VersionResponse>, Status> {
        self.roles
            .allow(&request, Role::Reader, "ask for netd's version")?;
        let (min, max) = versions();
        Ok(Response::new(net::VersionResponse {
            min,
            max,
            release: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }

    async fn attach(
        &self,
        request: Request<net::AttachRequest>,
    ) -> Result<Response<net::AttachResponse>, Status> {
        self.roles.allow(&request, Role::Driver, "attach interfaces")?;
        let requests = vec![convert::request(request.into_inner()).map_err(Refused::from)?];
        let attached = self
            .netd
            .ask(|answer| Command::Attach { requests, answer })
            .await??;
        Ok(Response::new(net::AttachResponse {
            interfaces: attached.into_iter().flatten().collect(),
        }))
    }

    async fn attach_batch(
        &self,
        request: Request<net::AttachBatchRequest>,
    ) -> Result<Response<net::AttachBatchResponse>, Status> {
        self.roles.allow(&request, Role::Driver, "attach interfaces")?;
        let requests = request.into_inner().requests;
        if requests.len() > BATCH_MAX {
            let sentence = format!(
                "the batch has {} requests; give at most {BATCH_MAX}",
                requests.len()
            );
            return Err(Refused::from(netd_plan::Refusal::invalid("requests", sentence)).into());
        }
        let requests: Result<Vec<_>, _> = requests.into_iter().map(convert::request).collect();
        let requests = requests.map_err(Refused::from)?;
        let attached = self
            .netd
            .ask(|answer| Command::Attach { requests, answer })
            .await??;
        let responses = attached
            .into_iter()
            .map(|interfaces| net::AttachResponse { interfaces });
        Ok(Response::new(net::AttachBatchResponse {
            responses: responses.collect(),
        }))
    }

    async fn check(
        &self,
        request: Request<net::AttachRequest>,
    ) -> Result<Response<net::CheckResponse>, Status> {
        self.roles.allow(&request, Role::Reader, "check requests")?;
        let request = convert::request(request.into_inner()).map_err(Refused::from)?;
        let request = Box::new(request);
        let checked = self
            .netd
            .ask(|answer| Command::Check { request, answer })
            .await??;
        Ok(Response::new(checked))
    }

    async fn detach(
        &self,
        request: Request<net::DetachRequest>,
    ) -> Result<Response<net::DetachResponse>, Status> {
        self.roles.allow(&request, Role::Driver, "detach interfaces")?;
        let net::DetachRequest { owner, force } = request.into_inner();
        let owner = convert::owner(owner).map_err(Refused::from)?;
        let command = |answer| Command::Detach { owner, force, answer };
        let taps = self.netd.ask(command).await??;
        Ok(Response::new(net::DetachResponse { taps }))
    }

    async fn list(&self, request: Request<net::ListRequest>) -> Result<Response<net::ListResponse>, Status> {
        self.roles.allow(&request, Role::Reader, "list interfaces")?;
        let interfaces = self.netd.interfaces(request.into_inner().instance).await?;
        Ok(Response::new(net::ListResponse { interfaces }))
    }

    type WatchStream = std::pin::Pin<
        Box<dyn tokio_stream::Stream<Item = Result<net::WatchResponse, Status>> + Send + 'static>,
    >;

    async fn watch(
        &self,
        request: Request<net::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.roles.allow(&request, Role::Reader, "watch interfaces")?;
        let instance = request.into_inner().instance;
        let added = self
            .netd
            .ask(|answer| Command::Watch { instance, answer })
            .await?;
        let receiver = added.ok_or_else(|| {
            let sentence = format!("{WATCHERS_MAX} others watch already: end one of them");
            Status::resource_exhausted(sentence)
        })?;
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver).map(Ok))))
    }

    async fn sync(&self, request: Request<net::SyncRequest>) -> Result<Response<net::SyncResponse>, Status> {
        self.roles
            .allow(&request, Role::Driver, "say which machines live")?;
        let net::SyncRequest { instance, live } = request.into_inner();
        let mut ids = BTreeSet::new();
        for id in live {
            netd_plan::Owner::new(&instance, &id).map_err(Refused::from)?;
            ids.insert(id);
        }
        // Without a living one the instance is not checked yet.
        netd_plan::Owner::new(&instance, "any").map_err(Refused::from)?;
        let command = |answer| Command::Sync {
            instance,
            live: ids,
            answer,
        };
        Ok(Response::new(self.netd.ask(command).await??))
    }

    async fn networks(
        &self,
        request: Request<net::NetworksRequest>,
    ) -> Result<Response<net::NetworksResponse>, Status> {
        self.roles.allow(&request, Role::Reader, "list networks")?;
        Ok(Response::new(self.netd.networks().await?))
    }
}
