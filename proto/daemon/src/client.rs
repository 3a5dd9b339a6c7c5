//! How is a daemon asked?

use std::error::Error;
use std::io;
use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, TimeoutExpired};

/// How long a connection may take: the other end is on this host.
const CONNECT_DEADLINE: Duration = Duration::from_secs(1);
/// How often a daemon is asked for a sign of life, and how long it may take: a stream of events on which nothing
/// comes must not hide that the daemon hangs.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_DEADLINE: Duration = Duration::from_secs(5);

/// A daemon that does not answer; what it answers, errors included, is another matter.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{program} at {path} does not answer: {cause}")]
pub struct Silent {
    /// Which daemon.
    pub program: &'static str,
    /// The path of its socket.
    pub path: String,
    /// Why.
    pub cause: String,
}

impl Silent {
    /// What a failed call says about the daemon; `None` where the daemon itself refused.
    #[must_use]
    pub fn of(program: &'static str, path: &Path, status: &Status) -> Option<Self> {
        cause(status).map(|cause| Self {
            program,
            path: path.to_string_lossy().into_owned(),
            cause,
        })
    }
}

/// A channel to the daemon that listens at a path. It connects when it is first used, and again after the daemon was away.
#[must_use]
pub fn channel(path: &Path) -> Channel {
    let path = path.to_owned();
    // The name is only for headers: the connector below knows the way.
    let endpoint = Endpoint::from_static("http://localhost")
        .connect_timeout(CONNECT_DEADLINE)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_DEADLINE)
        .keep_alive_while_idle(true);
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    }))
}

/// A request that must be answered within a deadline; of a stream, its beginning.
pub fn request<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

/// Why no answer came. A status that came from the daemon has no source.
fn cause(status: &Status) -> Option<String> {
    let mut error: &(dyn Error + 'static) = status.source()?;
    loop {
        if error.is::<TimeoutExpired>() {
            return Some("no answer before the deadline".to_owned());
        }
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(match error.kind() {
                io::ErrorKind::NotFound => "there is no socket, so it does not run".to_owned(),
                io::ErrorKind::ConnectionRefused => "nobody listens, so it does not run".to_owned(),
                io::ErrorKind::TimedOut => "no connection before the deadline".to_owned(),
                _ => error.to_string(),
            });
        }
        match error.source() {
            Some(source) => error = source,
            None => return Some(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;

    use super::*;
    use crate::lifetime::{Stopper, serve};
    use crate::peer::Roles;
    use crate::socket::Socket;

    async fn check(path: &Path, client: &mut HealthClient<Channel>) -> Result<(), String> {
        let request = request(HealthCheckRequest::default(), Duration::from_millis(200));
        match client.check(request).await {
            Ok(_) => Ok(()),
            Err(status) => Err(Silent::of("netd", path, &status)
                .unwrap_or_else(|| panic!("{status:?}"))
                .to_string()),
        }
    }

    #[tokio::test]
    async fn a_daemon_that_comes_and_goes_is_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("netd.sock");
        let mut client = HealthClient::new(channel(&path));
        let silent = format!("netd at {} does not answer: ", path.display());
        assert_eq!(
            check(&path, &mut client).await,
            Err(format!("{silent}there is no socket, so it does not run"))
        );

        for _ in 0..2 {
            let connections = Socket::bind(&path, "netd").unwrap().connections(Roles::default());
            let (_, health) = tonic_health::server::health_reporter();
            let router = tonic::transport::Server::builder().add_service(health);
            let stopper = Stopper::new();
            let served = {
                let stopper = stopper.clone();
                tokio::spawn(
                    async move { serve(router, connections, &stopper, Duration::from_millis(20)).await },
                )
            };
            check(&path, &mut client).await.unwrap();
            stopper.stop();
            served.await.unwrap().unwrap();
            // The first call may still find the old connection closing.
            let _old = check(&path, &mut client).await;
            assert_eq!(
                check(&path, &mut client).await,
                Err(format!("{silent}there is no socket, so it does not run"))
            );
        }
    }

    #[tokio::test]
    async fn a_daemon_that_hangs_or_is_gone_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("netd.sock");
        let silent = format!("netd at {} does not answer: ", path.display());
        let hangs = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mut client = HealthClient::new(channel(&path));
        assert_eq!(
            check(&path, &mut client).await,
            Err(format!("{silent}no answer before the deadline"))
        );
        drop(hangs);
        let mut client = HealthClient::new(channel(&path));
        assert_eq!(
            check(&path, &mut client).await,
            Err(format!("{silent}nobody listens, so it does not run"))
        );
    }

    #[test]
    fn what_the_daemon_says_is_no_silence() {
        let path = Path::new("/run/netd/netd.sock");
        assert!(Silent::of("netd", path, &Status::unavailable("netd is busy")).is_none());
    }
}
