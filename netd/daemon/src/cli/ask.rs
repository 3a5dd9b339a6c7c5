//! What does the daemon answer?

use std::path::PathBuf;
use std::time::Duration;

use steppe_daemon::client::{self, Silent};
use steppe_proto::net::network_client::NetworkClient;
use steppe_proto::{NET_API, speaks};
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::CliError;

/// How long an answer may take: nothing that is asked here waits for other hosts.
const DEADLINE: Duration = Duration::from_secs(5);

/// Why there is no answer to work with.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// Nobody answers.
    #[error(transparent)]
    Silent(#[from] Silent),
    /// The daemon refuses.
    #[error("{}", .0.message())]
    Refused(Box<Status>),
    /// The daemon is of another time.
    #[error(
        "netd at {path} is release {release} and speaks versions {min} to {max} of its API, this program version {NET_API}: \
         restart netd"
    )]
    Version {
        path: String,
        release: String,
        min: u32,
        max: u32,
    },
}

impl From<AskError> for CliError {
    fn from(error: AskError) -> Self {
        Self::failed(error.to_string())
    }
}

/// The daemon at a path.
#[derive(Debug)]
pub(super) struct Daemon {
    path: PathBuf,
    client: NetworkClient<Channel>,
    /// Its release.
    pub(super) release: String,
}

impl Daemon {
    /// Asks it for its version.
    pub(super) async fn find(path: PathBuf) -> Result<Self, AskError> {
        let client = NetworkClient::new(client::channel(&path));
        let mut daemon = Self {
            path,
            client,
            release: String::new(),
        };
        let asked = steppe_proto::net::VersionRequest {};
        let version = daemon
            .ask(asked, async |client, request| client.version(request).await)
            .await?;
        if !speaks(NET_API, version.min, version.max) {
            return Err(AskError::Version {
                path: daemon.path.to_string_lossy().into_owned(),
                release: version.release,
                min: version.min,
                max: version.max,
            });
        }
        daemon.release = version.release;
        Ok(daemon)
    }

    /// One call.
    pub(super) async fn ask<T, R>(
        &mut self,
        message: T,
        call: impl AsyncFnOnce(&mut NetworkClient<Channel>, Request<T>) -> Result<tonic::Response<R>, Status>,
    ) -> Result<R, AskError> {
        let request = client::request(message, DEADLINE);
        match call(&mut self.client, request).await {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => Err(match Silent::of("netd", &self.path, &status) {
                Some(silent) => silent.into(),
                None => AskError::Refused(Box::new(status)),
            }),
        }
    }
}

/// Runs what waits for the daemon.
pub(super) fn wait_for<R>(asking: impl Future<Output = R>) -> Result<R, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::failed(format!("no runtime can be had: {error}")))?;
    Ok(runtime.block_on(asking))
}
