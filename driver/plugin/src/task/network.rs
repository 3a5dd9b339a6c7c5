//! How does a VM come to its network interfaces, and who keeps in touch with netd?
//!
//! netd is known by one stream of events: while it lasts, the networks are known and jobs are placed here; when it ends, the
//! driver is unhealthy until it is there again. No VM depends on that. Every half minute netd is told whose interfaces are still
//! needed: those of every task that has a record, recovered or not.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use steppe_points::reach;
use steppe_proto::net::{AttachRequest, Nic, Owner, Port, Protocol as Wire};
use steppe_vm::Vm;
use steppe_vm::interface::{GUEST_FILE, Interface, check, guest_file};
use steppe_vm::plan::Place;
use steppe_vm::record::Step;
use steppe_vm::spec::{Spec, USER_NETWORK};
use steppe_vm::vm::{Protocol, TapRequest};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

use super::undo::Undo;
use super::{Failure, blocking};
use crate::host::netd::{Netd, NetdError, Network, State, View};
use crate::host::records::{self, NETWORK_ARCHIVE, RecordFile};
use crate::host::state_dir::{StateDir, StateError};
use crate::host::{archive, chain};
use crate::instance::Instance;
use crate::service::Driver;

/// Pause between two times at which netd is told whose interfaces are still needed.
const SYNC_INTERVAL: Duration = Duration::from_secs(30);

/// How long netd may be away before that is the driver's health: a restart takes less, and is nobody's business.
const AWAY_GRACE: Duration = Duration::from_secs(3);

/// Pause between two tries to reach it: while it may be back any moment, and later.
const RETRY_INTERVAL: Duration = Duration::from_millis(150);
const RETRY_INTERVAL_AWAY: Duration = Duration::from_millis(500);

/// How long whoever needs the networks waits until it is known whether there are any.
const FIRST_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a start waits for a netd that is away: it may just be back, and nobody has noticed.
const BACK_TIMEOUT: Duration = Duration::from_secs(1);

/// What is known of netd, and who finds it out.
#[derive(Debug)]
pub(crate) struct Networks {
    view: watch::Sender<View>,
    begun: AtomicBool,
    /// The options may name another netd.
    configured: Notify,
}

impl Default for Networks {
    fn default() -> Self {
        Self {
            view: watch::channel(View::default()).0,
            begun: AtomicBool::new(false),
            configured: Notify::new(),
        }
    }
}

impl Networks {
    pub(crate) fn view(&self) -> watch::Receiver<View> {
        self.view.subscribe()
    }

    /// What is known, once anything is, or nothing comes.
    pub(crate) async fn first_view(&self) -> View {
        let mut view = self.view();
        let known = view.wait_for(|view| view.state != State::Unknown);
        drop(tokio::time::timeout(FIRST_TIMEOUT, known).await);
        self.view.borrow().clone()
    }

    /// The same for a start: what is away may just be back.
    pub(crate) async fn view_for_start(&self) -> View {
        let first = self.first_view().await;
        if !matches!(first.state, State::Away(_)) {
            return first;
        }
        let mut view = self.view();
        let back = view.wait_for(|view| !matches!(view.state, State::Away(_)));
        drop(tokio::time::timeout(BACK_TIMEOUT, back).await);
        self.view.borrow().clone()
    }

    fn set(&self, change: impl FnOnce(&mut View)) {
        let _changed = self.view.send_if_modified(|view| {
            let before = view.clone();
            change(view);
            *view != before
        });
    }
}

/// Keeps in touch with the netd that the options name, from the first configuration on.
pub(crate) fn begin(driver: &Arc<Driver>) {
    driver.networks.configured.notify_one();
    if !driver.networks.begun.swap(true, Ordering::Relaxed) {
        let driver = Arc::clone(driver);
        drop(tokio::spawn(async move {
            let stopped = driver.plugin.stopper.stopped();
            tokio::select! {
                () = stopped => {}
                () = run(&driver) => {}
            }
        }));
    }
}

/// Where the options say that netd listens.
fn configured(driver: &Driver) -> Option<PathBuf> {
    driver.instance().ok()?.options.netd.clone()
}

async fn run(driver: &Arc<Driver>) {
    let mut last_there = Instant::now();
    loop {
        let Some(socket) = configured(driver) else {
            driver.networks.set(|view| *view = View::default());
            driver.networks.configured.notified().await;
            last_there = Instant::now();
            continue;
        };
        let Err(error) = follow(driver, &socket, &mut last_there).await else {
            driver.networks.set(|view| *view = View::default());
            continue;
        };
        if last_there.elapsed() < AWAY_GRACE {
            tokio::time::sleep(RETRY_INTERVAL).await;
            continue;
        }
        let state = State::Away(chain(&error));
        driver.networks.set(|view| {
            if view.state != state {
                tracing::warn!(error = chain(&error), "netd is away");
                view.state = state;
            }
        });
        tokio::time::sleep(RETRY_INTERVAL_AWAY).await;
    }
}

/// Listens to netd, and tells it whose interfaces are needed, until it is gone, or the options name another one.
async fn follow(driver: &Arc<Driver>, socket: &Path, last_there: &mut Instant) -> Result<(), NetdError> {
    let mut netd = Netd::at(socket);
    netd.greet().await?;
    // Others' interfaces are none of this driver's business; without an id of its own it hears of all.
    let state = driver.instance().ok().and_then(|instance| instance.state().ok());
    let own = state.map_or_else(String::new, |state| state.instance().to_owned());
    let mut events = netd.watch(own).await?;
    let mut networks = events.networks().await?;
    let mut missing = BTreeSet::new();
    let mut next_sync = tokio::time::Instant::now();
    loop {
        driver.networks.set(|view| {
            if let State::Away(_) = view.state {
                tracing::info!("netd is back");
            }
            view.state = State::There;
            // A job that says "user" means QEMU's own network.
            let networks = networks.drain(..).filter(|network| network.name != USER_NETWORK);
            view.networks = networks.map(Network::from).collect();
        });
        loop {
            tokio::select! {
                // All are cancel safe: a message is taken whole, and the time of the next sync is kept.
                said = events.networks() => match said {
                    Ok(said) => {
                        networks = said;
                        break;
                    }
                    Err(error) => {
                        *last_there = Instant::now();
                        return Err(error);
                    }
                },
                () = driver.networks.configured.notified() => {
                    if configured(driver).as_deref() != Some(socket) {
                        return Ok(());
                    }
                }
                () = tokio::time::sleep_until(next_sync) => {
                    sync(driver, &mut netd, &mut missing).await;
                    next_sync = tokio::time::Instant::now() + SYNC_INTERVAL;
                }
            }
        }
    }
}

/// Whose interfaces are needed: of every task that asked for some, and of those whose records say nothing.
#[derive(Debug, Default)]
struct Live {
    instance: String,
    keys: Vec<String>,
    /// Those who were given theirs.
    attached: BTreeSet<String>,
}

fn live(state: &StateDir) -> Result<Live, StateError> {
    let mut live = Live {
        instance: state.instance().to_owned(),
        ..Live::default()
    };
    for key in state.tasks()? {
        match records::read(&state.task(&key)) {
            Ok(Some(record)) if record.netd().is_some() => {
                if !record.interfaces().is_empty() && !record.undo_begun() {
                    let _new = live.attached.insert(key.clone());
                }
                live.keys.push(key);
            }
            Ok(_) => {}
            // Nothing was begun for it.
            Err(error) if error.is_empty() => {}
            Err(_) => live.keys.push(key),
        }
    }
    Ok(live)
}

/// Tells netd whose interfaces are needed. The records are looked through after netd's last answer, so an owner that two calls in
/// a row leave out is gone.
async fn sync(driver: &Arc<Driver>, netd: &mut Netd<'_>, missing: &mut BTreeSet<String>) {
    let looked = {
        let driver = Arc::clone(driver);
        let look = move || {
            let state = driver.instance()?.state();
            state
                .and_then(|state| live(&state))
                .map_err(|error| Failure::retryable(&error))
        };
        blocking(look).await
    };
    let live = match looked {
        Ok(live) => live,
        Err(Failure::Denied(reason) | Failure::Retryable(reason)) => {
            tracing::debug!(reason, "netd is not told whose interfaces are needed");
            return;
        }
    };
    match netd.sync(live.instance, live.keys).await {
        Ok(answer) => {
            let unknown = answer.unknown.into_iter();
            let gone: BTreeSet<String> = unknown.filter(|key| live.attached.contains(key)).collect();
            for key in gone.difference(missing) {
                tracing::warn!(record = key, "netd has no interface of a VM that was given some");
            }
            *missing = gone;
            if !answer.removed.is_empty() {
                tracing::info!(
                    owners = answer.removed.join(" "),
                    "netd removed interfaces that nobody needs"
                );
            }
        }
        Err(error) => tracing::warn!(
            error = chain(&error),
            "netd does not take which interfaces are needed"
        ),
    }
}

/// Fails where a job needs a netd that isn't there: what it asks for can't even be checked.
pub(super) fn is_there(netd: &View, spec: &Spec, instance: &Instance) -> Result<(), Failure> {
    let needs_netd = spec.networks.iter().any(|network| network.name != USER_NETWORK);
    match &instance.options.netd {
        Some(socket) if needs_netd => netd
            .problem(socket)
            .map_or(Ok(()), |reason| Err(Failure::Retryable(reason))),
        _ => Ok(()),
    }
}

/// Has a VM's interfaces made, and what its guest is told of them written down. Blocks.
pub(super) fn attach(
    socket: &Path,
    undo: &Undo,
    vm: &Vm,
    uid: u32,
    record: &mut RecordFile,
) -> Result<Vec<Interface>, Failure> {
    let key = undo.key();
    reach("start.network.before", &key);
    record
        .name(&Step::Network {
            socket: socket.to_owned(),
        })
        .map_err(|error| Failure::retryable(&error))?;
    let asked = asked(undo.netd_owner(), vm, uid);
    let attached = Handle::current().block_on(async { Netd::at(socket).attach(asked).await });
    let made = attached.and_then(|made| match check(vm, &made) {
        Ok(()) => Ok(made),
        Err(source) => Err(NetdError::Answer {
            path: socket.to_string_lossy().into_owned(),
            source,
        }),
    });
    let interfaces = made.map_err(|error| {
        if error.may_pass() {
            Failure::retryable(&error)
        } else {
            Failure::denied(&error)
        }
    })?;
    record
        .name(&Step::Interfaces {
            interfaces: interfaces.clone(),
        })
        .map_err(|error| Failure::retryable(&error))?;
    let path = undo.directory.join(NETWORK_ARCHIVE);
    archive::of_file(GUEST_FILE, &guest_file(&interfaces))
        .and_then(|archive| std::fs::write(&path, archive))
        .map_err(|error| Failure::Retryable(format!("{} can't be written: {error}", path.display())))?;
    reach("start.network.after", &key);
    Ok(interfaces)
}

/// Where the archive is that a VM's initrd ends with.
pub(super) fn place_of_archive(undo: &Undo) -> Place {
    Place {
        beneath: undo.directory.clone(),
        path: NETWORK_ARCHIVE.into(),
    }
}

/// The request in netd's words.
fn asked(owner: Owner, vm: &Vm, uid: u32) -> AttachRequest {
    AttachRequest {
        owner: Some(owner),
        identity: vm.identity.clone(),
        uid,
        queues: vm.queues(),
        nics: vm.taps().map(nic).collect(),
    }
}

fn nic(tap: &TapRequest) -> Nic {
    let port = |forward: &steppe_vm::vm::Forward| Port {
        protocol: match forward.protocol {
            Protocol::Tcp => Wire::Tcp,
            Protocol::Udp => Wire::Udp,
        }
        .into(),
        host_ip: forward.host.ip().to_string(),
        host_port: forward.host.port().into(),
        guest_port: forward.guest_port.into(),
    };
    Nic {
        network: tap.network.clone(),
        ipv4: tap.ipv4.clone(),
        vlan: tap.vlan,
        trunk: tap.trunk.clone(),
        mtu: tap.mtu,
        ports: tap.forwards.iter().map(port).collect(),
    }
}

#[cfg(test)]
mod tests {
    use steppe_vm::record::{Header, RECORD_VERSION, task_key};

    use super::*;

    #[test]
    fn every_task_that_may_have_interfaces_lives() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        let network = Step::Network {
            socket: "/run/netd/netd.sock".into(),
        };
        let interfaces = Step::Interfaces {
            interfaces: vec![Interface::default()],
        };
        let task = |task_id: &str, steps: &[&Step]| {
            let key = task_key("a", task_id);
            let header = Header {
                version: RECORD_VERSION,
                instance: state.instance().to_owned(),
                boot_id: "b".into(),
                task_id: task_id.into(),
                alloc_id: "a".into(),
                task_name: "vm".into(),
                job_id: "j".into(),
                namespace: "n".into(),
                created_at_unix_ns: 1,
            };
            let mut record = RecordFile::create(&state.task(&key), &header).unwrap();
            for step in steps {
                record.name(step).unwrap();
            }
            key
        };
        let _without = task("without", &[&Step::Shim]);
        let asked = task("asked", &[&network]);
        let has = task("has", &[&network, &interfaces]);
        let gives_back = task("gives back", &[&network, &interfaces, &Step::Undo]);
        let damaged = task("damaged", &[]);
        std::fs::write(state.task(&damaged).join("record"), "garbage\n").unwrap();
        let begun = task("begun", &[]);
        std::fs::write(state.task(&begun).join("record"), "").unwrap();

        let mut live = live(&state).unwrap();
        let mut wanted = vec![asked, has.clone(), gives_back, damaged];
        live.keys.sort();
        wanted.sort();
        assert_eq!(live.keys, wanted);
        assert_eq!(live.attached, BTreeSet::from([has]));
        assert_eq!(live.instance, state.instance());
    }
}
