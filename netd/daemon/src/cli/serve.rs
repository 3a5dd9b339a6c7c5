//! How does the daemon live: begin, read its configuration again, end?

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use netd::metrics::{self, Now};
use netd::netlink::Netlink;
use netd::{Netd, Service, stats};
use netd_plan::Settings;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use steppe_daemon::lifetime::{Signals, Stopper, Wish, serve};
use steppe_daemon::log::Log;
use steppe_daemon::metrics::Server;
use steppe_daemon::peer::Roles;
use steppe_daemon::socket::Socket;
use steppe_daemon::{chain, notify};
use steppe_proto::net::network_server::NetworkServer;

use super::confine::confine;
use super::memory;
use super::settings::{Loaded, Wrong, load, needed};
use super::{Arguments, CliError, Outcome};

/// How long requests under way may take once netd was told to end. What is cut off is whole or not there at all.
const GRACE: Duration = Duration::from_secs(1);

pub(super) fn run(arguments: &Arguments) -> Result<Outcome, CliError> {
    memory::share();
    let loaded = needed(arguments)?;
    let log = Log::start("netd", &loaded.settings.log_level);
    let log = log.map_err(|error| CliError::failed(error.to_string()))?;
    let asks = confine().map_err(|error| CliError::failed(chain(&error)))?;
    if !asks {
        tracing::warn!("CAP_NET_RAW is missing: on networks with probe, attaching fails");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::failed(format!("no runtime can be had: {error}")))?;
    runtime.block_on(live(arguments, loaded, &log))?;
    Ok(String::new().into())
}

/// From the first look at the host to the end.
async fn live(arguments: &Arguments, loaded: Loaded, log: &Log) -> Result<(), CliError> {
    let failed = |error: &dyn std::error::Error| CliError::failed(chain(error));
    // Before anything else is done: a signal that comes early is not lost.
    let mut signals = Signals::take().map_err(|error| failed(&error))?;
    let roles = Roles::default();
    set_roles(&roles, &loaded.settings)?;
    let path = loaded.socket(arguments);
    // The socket's lock keeps two of us from working on the same links, so it comes first; who connects has to wait.
    let socket = Socket::bind(&path, "netd").map_err(|error| failed(&error))?;
    let mut kept = Kept {
        socket: path,
        metrics: None,
        address: None,
    };
    let networks = loaded.config.networks.len();
    let netd =
        Netd::start(loaded.config, &tokio::runtime::Handle::current()).map_err(|error| failed(&error))?;
    kept.serve_metrics(&loaded.settings, &netd).await?;

    let stopper = Stopper::new();
    let service = NetworkServer::new(Service::new(netd.clone(), roles.clone()));
    let router = tonic::transport::Server::builder().add_service(service);
    let connections = socket.connections(roles.clone());
    let served = serve(router, connections, &stopper, GRACE);
    tokio::pin!(served);
    let watchdog = notify::watchdog(|| async {
        // Whoever answers this has its hands free.
        let _answer = netd.networks().await;
    });
    tokio::pin!(watchdog);
    let mut watched = true;
    notify::ready(&format!("{networks} networks"));
    tracing::info!(socket = %kept.socket.display(), networks, release = env!("CARGO_PKG_VERSION"), "netd is ready");
    loop {
        tokio::select! {
            wish = signals.next() => match wish {
                Wish::Stop => {
                    notify::stopping();
                    tracing::info!("netd ends; links and filters stay");
                    stopper.stop();
                    netd.end_watches().await;
                    return served.await.map_err(|error| failed(&error));
                }
                Wish::Reload => {
                    notify::reloading();
                    let status = kept.reload(arguments, &netd, &roles, log).await;
                    notify::ready(&status);
                }
            },
            () = &mut watchdog, if watched => watched = false,
            () = netd.ended() => return Err(CliError::failed("netd has failed inside; it begins anew by being started again")),
            ended = &mut served => return ended.map_err(|error| failed(&error)),
        }
    }
}

fn set_roles(roles: &Roles, settings: &Settings) -> Result<(), CliError> {
    let set = roles.set(&settings.drivers, &settings.readers);
    set.map_err(|errors| CliError::Failed(errors.iter().map(|error| chain(error)).collect()))
}

/// What holds from one configuration to the next.
#[derive(Debug)]
struct Kept {
    socket: PathBuf,
    /// Where metrics are served, as the configuration says it.
    address: Option<String>,
    metrics: Option<Server>,
}

impl Kept {
    /// Takes a new configuration, all of it or nothing; what there is to say of that.
    async fn reload(&mut self, arguments: &Arguments, netd: &Netd, roles: &Roles, log: &Log) -> String {
        match self.follow(arguments, netd, roles, log).await {
            Ok(networks) => {
                tracing::info!(networks, "the configuration was read again");
                format!("{networks} networks")
            }
            Err(wrong) => {
                for wrong in &wrong {
                    tracing::error!("{}", wrong.line());
                }
                let what = match wrong.len() {
                    1 => "the configuration has a problem".to_owned(),
                    count => format!("the configuration has {count} problems"),
                };
                tracing::error!("{what}: the one before goes on");
                format!("{what}: the one before goes on")
            }
        }
    }

    async fn follow(
        &mut self,
        arguments: &Arguments,
        netd: &Netd,
        roles: &Roles,
        log: &Log,
    ) -> Result<usize, Vec<Wrong>> {
        let loaded = load(arguments)?;
        let settings = &loaded.settings;
        let networks = loaded.config.networks.len();
        if loaded.socket(arguments) != self.socket {
            tracing::warn!("another socket takes a restart: the one before goes on");
        }
        netd.reload(loaded.config)
            .await
            .map_err(|problems| problems.into_iter().map(Wrong::from).collect::<Vec<_>>())?;
        // The networks are the new ones now, so what else fails is said and passed over.
        for failed in [
            set_roles(roles, settings).map_err(|error| error.to_string()),
            log.set_level(&settings.log_level)
                .map_err(|error| error.to_string()),
            self.serve_metrics(settings, netd)
                .await
                .map_err(|error| error.to_string()),
        ]
        .into_iter()
        .filter_map(Result::err)
        {
            tracing::error!("{failed}");
        }
        Ok(networks)
    }

    /// Serves metrics where the configuration says so now.
    async fn serve_metrics(&mut self, settings: &Settings, netd: &Netd) -> Result<(), CliError> {
        if settings.metrics == self.address {
            return Ok(());
        }
        let server = match &settings.metrics {
            None => None,
            Some(address) => Some(server(address, netd).await?),
        };
        self.metrics = server;
        self.address.clone_from(&settings.metrics);
        Ok(())
    }
}

async fn server(address: &str, netd: &Netd) -> Result<Server, CliError> {
    let failed = |error: &dyn std::error::Error| CliError::failed(chain(error));
    let address: SocketAddr = address
        .parse()
        .map_err(|_| CliError::failed(format!("metrics {address:?} is no address with a port")))?;
    let eyes = Arc::new(Mutex::new(Eyes::open().map_err(|error| failed(&error))?));
    let netd = netd.clone();
    let source = move || {
        let (netd, eyes) = (netd.clone(), Arc::clone(&eyes));
        async move {
            let mut now = Now::default();
            if let (Ok(networks), Ok(interfaces)) =
                (netd.networks().await, netd.interfaces(String::new()).await)
            {
                now.networks = networks.networks;
                now.interfaces = interfaces;
            }
            // The kernel is asked elsewhere than requests are answered.
            let looked = tokio::task::spawn_blocking(move || {
                let mut eyes = eyes.lock().unwrap_or_else(PoisonError::into_inner);
                eyes.look(&mut now);
                now
            });
            let now = looked.await.unwrap_or_default();
            metrics::text(netd.counts(), &now)
        }
    };
    Server::start(address, source)
        .await
        .map_err(|error| failed(&error))
}

/// What looks at the kernel for metrics, and for nothing else.
#[derive(Debug)]
struct Eyes {
    links: Netlink,
    filter: Netlink,
}

impl Eyes {
    fn open() -> std::io::Result<Self> {
        Ok(Self {
            links: Netlink::open(NETLINK_ROUTE)?,
            filter: Netlink::open(NETLINK_NETFILTER)?,
        })
    }

    fn look(&mut self, now: &mut Now) {
        match stats::of_taps(&mut self.links) {
            Ok(stats) => now.stats = stats,
            Err(error) => tracing::warn!(%error, "metrics have no figures of interfaces"),
        }
        match stats::of_filter(&mut self.filter) {
            Ok(drops) => now.drops = drops,
            Err(error) => tracing::warn!(%error, "metrics have no figures of the filter"),
        }
    }
}
