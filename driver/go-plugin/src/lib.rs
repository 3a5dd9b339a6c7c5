//! How does a Rust program serve a host that uses HashiCorp's go-plugin?
//!
//! [`run`] is the whole life of a plugin process: check the magic cookie, tidy up what the process inherited, log the
//! way the host reads, listen on a socket of its own, print the handshake line, serve the product's gRPC services beside
//! go-plugin's own, and end when asked. This crate knows no particular host and none of the product's services.
//!
//! What a product must keep:
//!
//! * **No child may inherit stdout or stderr.** A host takes a plugin for alive as long as anyone holds their pipes: it
//!   would wait for the child at each shutdown, and would not notice a crash. Stdout is made safe here (it
//!   becomes the null device after the handshake); stderr can't be, so give every child its own.
//! * Raise [`MAX_MESSAGE_BYTES`] on each service: hosts send messages larger than tonic's default limit of 4 MiB.
//! * End endless streams when [`Stopper::stopped`] says so, or each end of the process takes [`STOP_GRACE`] in full.
//!
//! Not here: TLS (a host that demands AutoMTLS is refused by name), network listeners, net/rpc, brokered connections.
//!
//! Why not `grr-plugin`, the one crate that does this: version 0.2 is built on tonic 0.6, prost 0.9 and hyper 0.14, whose
//! servers can't carry services of today's tonic, and it redirects stdout and stderr for its stdio service. It also does
//! nothing about signals, inherited descriptors, stale sockets or the host's log format, which is most of what is here.
//!
//! # Modules
//!
//! In reading order: `handshake` (the cookie and the line), `socket` (where to listen), `services` (go-plugin's own),
//! `stop` (when to end), `hclog` (the lines that the host reads), `sink` (where they go), `process` (what was inherited),
//! `descriptors` (the only unsafe code), `proto` (package `plugin`, generated from `proto/`).

mod handshake;
mod socket;

mod services;
mod stop;

mod hclog;
mod sink;

mod descriptors;
mod process;

#[expect(
    clippy::allow_attributes_without_reason,
    missing_docs,
    reason = "generated code"
)]
mod generated;

use std::process::ExitCode;

use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::Routes;
use tracing::level_filters::LevelFilter;

pub use generated::plugin as proto;
pub use handshake::NotStartedByHost;
pub use sink::LogSink;
pub use socket::SocketError;
pub use stop::{STOP_GRACE, Stopper};

/// What a service should allow for one message, in both directions: what Go hosts allow.
pub const MAX_MESSAGE_BYTES: usize = i32::MAX as usize;

/// Threads for requests. A plugin waits more than it computes, and a runtime's default of one thread per processor
/// would make hundreds on a large host.
const WORKER_THREADS: usize = 4;

/// What host and plugin agreed on before either was started.
#[derive(Debug, Clone, Copy)]
pub struct ServeConfig {
    /// Name of the program, for the person who starts it by hand.
    pub name: &'static str,
    /// How to use it instead: a sentence for the same person.
    pub usage: &'static str,
    /// Environment variable by which a host shows that it is one.
    pub magic_cookie_key: &'static str,
    /// Its value.
    pub magic_cookie_value: &'static str,
    /// Version of the product's protocol, the second field of the handshake line.
    pub app_protocol_version: u32,
}

/// What a product gets before it builds its services.
#[derive(Debug, Clone)]
pub struct Plugin {
    /// Ends the process, and tells when it ends.
    pub stopper: Stopper,
    /// Where log lines go; the product adds a file and a level once it knows its configuration.
    pub log: LogSink,
}

/// Why a plugin could not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The host wants a TLS connection.
    #[error("the host asks for AutoMTLS (PLUGIN_CLIENT_CERT is set), which this plugin does not support")]
    MutualTls,
    /// No socket to listen on.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Signals could not be taken over.
    #[error("cannot handle signals")]
    Signals(#[source] std::io::Error),
    /// The host can't be told the address.
    #[error("cannot print the handshake line")]
    Announce(#[source] std::io::Error),
    /// The server broke.
    #[error("the gRPC server failed")]
    Transport(#[from] tonic::transport::Error),
}

/// Is the plugin from start to end. Must be the first thing that `main` does after looking at its arguments: it closes
/// every descriptor above 2, and replaces the global subscriber of `tracing` and the panic hook.
///
/// `routes` is called inside the runtime, before the host is told the address. The result is the exit code of the
/// process: 1 when it was not started by a host or could not serve. When this returns the runtime is gone, and threads
/// that still block were left behind rather than waited for.
pub fn run(config: &ServeConfig, routes: impl FnOnce(&Plugin) -> Routes) -> ExitCode {
    if let Err(error) = handshake::check_cookie(config) {
        process::tell(&error);
        return ExitCode::FAILURE;
    }
    descriptors::close_inherited();
    let log = LogSink::install(LevelFilter::INFO);
    let plugin = Plugin {
        stopper: Stopper::new(),
        log,
    };

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "cannot start the runtime"
            );
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(async { serve(config, routes(&plugin), &plugin.stopper).await });
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "cannot serve");
            ExitCode::FAILURE
        }
    }
}

/// Serves `routes` and go-plugin's own services until `stopper` is used, the host asks for the end, or SIGTERM comes.
/// The part of [`run`] that needs a runtime and leaves the process as a whole alone, but for stdout and the signals.
///
/// # Errors
///
/// When the host asks for what isn't here, when there is no socket to listen on, or when the handshake line can't be
/// printed.
pub async fn serve(config: &ServeConfig, routes: Routes, stopper: &Stopper) -> Result<(), ServeError> {
    handshake::check_transport()?;
    process::handle_signals(stopper).map_err(ServeError::Signals)?;
    // Held until the end: dropping it removes the socket.
    let (socket, listener) = socket::listen()?;
    let server = tonic::transport::Server::builder()
        .add_routes(services::add_to(routes, stopper).await)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stopper.stopped());
    handshake::announce(config.app_protocol_version, socket.path()).map_err(ServeError::Announce)?;
    tokio::select! {
        // Ends by itself when it was stopped and all requests are answered.
        result = server => Ok(result?),
        // Endless streams are cut off; so is whoever has not answered by now.
        () = stopper.grace_over() => Ok(()),
    }
}
