//! How are a daemon's figures read?
//!
//! As OpenMetrics text over HTTP, at an address that the configuration names. Whoever reads them is not trusted: there are
//! few connections at once, each is one request, and each ends at its deadline.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Connections at once; one more waits in the kernel's queue.
const CONNECTIONS_MAX: usize = 8;
/// How long a connection may take, from the first byte to the last.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long accepting rests after it failed.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// Bytes of a request that are read at most.
const REQUEST_BYTES_MAX: usize = 8192;

const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Why figures can't be read.
#[derive(Debug, thiserror::Error)]
#[error("metrics can't be served at {address}")]
pub struct MetricsError {
    address: SocketAddr,
    source: std::io::Error,
}

/// Serves figures until it is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Serves what `source` says at each request.
    ///
    /// # Errors
    ///
    /// The address can't be listened at.
    pub async fn start<S, F>(address: SocketAddr, source: S) -> Result<Self, MetricsError>
    where
        S: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = String> + Send + 'static,
    {
        let failed = |source| MetricsError { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let task = tokio::spawn(accept(listener, Arc::new(source)));
        Ok(Self { address, task })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// The text of a registry.
#[must_use]
pub fn text(registry: &Registry) -> String {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, registry) {
        Ok(()) => text,
        // Writing to a string doesn't fail; a collector of ours might.
        Err(_) => String::new(),
    }
}

async fn accept<S, F>(listener: TcpListener, source: Arc<S>)
where
    S: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = String> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Nobody closes the semaphore.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let source = Arc::clone(&source);
                // The task ends at its deadline.
                drop(tokio::spawn(async move {
                    let _in_time = tokio::time::timeout(DEADLINE, converse(stream, source)).await;
                    drop(place);
                }));
            }
            Err(error) => {
                tracing::warn!(%error, "a reader of metrics can't be accepted");
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
}

async fn converse<S, F>(stream: TcpStream, source: Arc<S>)
where
    S: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = String> + Send + 'static,
{
    let service = service_fn(|request| answer(request, Arc::clone(&source)));
    let connection = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(REQUEST_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a reader of metrics went away");
    }
}

async fn answer<S, F>(request: Request<Incoming>, source: Arc<S>) -> Result<Response<Full<Bytes>>, Infallible>
where
    S: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = String> + Send + 'static,
{
    let plain = |status: StatusCode, text: &'static str| {
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return Ok(plain(StatusCode::NOT_FOUND, "only /metrics is here\n"));
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "metrics are only read\n");
        response
            .headers_mut()
            .insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
        return Ok(response);
    }
    let mut response = Response::new(Full::from(source().await));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(TYPE));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn figures_are_read_and_nothing_else() {
        let mut registry = Registry::default();
        let counter = Counter::<u64>::default();
        registry.register("netd_repairs", "Repairs", counter.clone());
        counter.inc();
        let registry = Arc::new(registry);
        let any = "127.0.0.1:0".parse().unwrap();
        let server = Server::start(any, move || {
            let registry = Arc::clone(&registry);
            async move { text(&registry) }
        })
        .await
        .unwrap();

        let text = ask(server.address(), "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(
            text.contains("\r\nconnection: close\r\n") && text.contains(TYPE),
            "{text}"
        );
        assert!(text.contains("netd_repairs_total 1\n# EOF\n"), "{text}");

        let text = ask(server.address(), "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(text.starts_with("HTTP/1.1 404 "), "{text}");
        let text = ask(server.address(), "POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(text.starts_with("HTTP/1.1 405 "), "{text}");
        let text = ask(server.address(), "nonsense\r\n\r\n").await;
        assert!(text.starts_with("HTTP/1.1 400 "), "{text}");

        let taken = Server::start(server.address(), || async { String::new() }).await;
        let said = crate::chain(&taken.unwrap_err());
        assert!(
            said.starts_with("metrics can't be served at 127.0.0.1:"),
            "{said}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_reader_is_cut_off() {
        let any = "127.0.0.1:0".parse().unwrap();
        let server = Server::start(any, || async { String::new() }).await.unwrap();
        let mut streams = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            streams.push(TcpStream::connect(server.address()).await.unwrap());
        }
        for mut stream in streams {
            let mut text = Vec::new();
            // The end, and not an answer: a clock that runs by itself jumps to the deadline.
            assert!(stream.read_to_end(&mut text).await.is_err() || text.is_empty());
        }
        let text = ask(server.address(), "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    }
}
