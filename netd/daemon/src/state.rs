//! Who has what on this host's networks?
//!
//! One thread owns all of it and changes the host; requests, answers of other hosts and the kernel's events come to it one
//! after the other. It never waits for anybody but the kernel. What it knows, it read from the kernel, and would read again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use netd_plan::{
    Action, Attachment, Config, Kernel, LinkName, Network, NetworkName, Observed, Owner, Problem, Request,
    filter, name::vlan_link_name,
};
use steppe_proto::net;
use tokio::runtime::Handle as Runtime;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::apply::{Cause, Hands, StepError};
use crate::attach::{Asked, Job};
use crate::convert::Refused;
use crate::counts::{Counts, count};
use crate::defend::Defender;
use crate::events::{self, Change, Events};
use crate::sweep::Sweeper;
use crate::watch::Watchers;
use crate::{kernel, observe};

/// Commands that wait; whoever has one more waits with it.
const QUEUE: usize = 256;
/// Questions to other hosts at once.
const PROBES: usize = 64;
/// How long something that looks wrong has time to become right by itself.
const PATIENCE: Duration = Duration::from_millis(250);
/// After so long without requests memory is given back that many at once have taken.
const REST: Duration = Duration::from_secs(1);

/// What the owner is asked to do. Whoever asks may be gone when the answer comes.
#[derive(Debug)]
pub(crate) enum Command {
    Attach {
        requests: Vec<Request>,
        answer: oneshot::Sender<Result<Vec<Vec<net::Interface>>, Refused>>,
    },
    Check {
        request: Box<Request>,
        answer: oneshot::Sender<Result<net::CheckResponse, Refused>>,
    },
    Detach {
        owner: Owner,
        force: bool,
        answer: oneshot::Sender<Result<Vec<String>, Refused>>,
    },
    List {
        instance: String,
        answer: oneshot::Sender<Vec<net::Interface>>,
    },
    Networks {
        answer: oneshot::Sender<net::NetworksResponse>,
    },
    Watch {
        instance: String,
        answer: oneshot::Sender<Option<mpsc::Receiver<net::WatchResponse>>>,
    },
    Sync {
        instance: String,
        live: BTreeSet<String>,
        answer: oneshot::Sender<Result<net::SyncResponse, Refused>>,
    },
    Reload {
        config: Box<Config>,
        answer: oneshot::Sender<Result<(), Vec<Problem>>>,
    },
    /// What other hosts said to a job's questions.
    Probed { job: u64, asked: Vec<Asked> },
    /// The kernel tells of something.
    Happened(events::Event),
    /// netd ends, and with it the streams of those who watch.
    EndWatches,
    /// The patience is over.
    Look,
    /// It is time to remove what detached taps have left in the filter.
    Tidy,
    /// It is time to give memory back, unless requests have come meanwhile.
    Rest { requests: u64 },
}

/// An attachment, and how its tap is.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) attachment: Attachment,
    /// Whether a process holds it open.
    pub(crate) carrier: bool,
    /// What differs and can't be repaired.
    pub(crate) faults: Vec<String>,
}

/// Why netd can't begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Without sockets to the kernel or without nftables nothing can be done.
    #[error("the kernel's network can't be reached: {0}")]
    Reach(#[from] Cause),
    /// The filter is what everything begins with.
    #[error("the filter can't be loaded: {0}")]
    Filter(#[from] StepError),
    /// Links can't be read.
    #[error("the kernel's links can't be read: {0}")]
    Observe(#[from] crate::netlink::KernelError),
    /// A thread or a socket can't be had.
    #[error("netd can't begin: {0}")]
    System(#[from] std::io::Error),
}

/// The owner of all there is.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) hands: Hands,
    /// With the networks that are gone from the configuration and have attachments.
    pub(crate) config: Config,
    /// Those networks.
    pub(crate) retired: BTreeSet<NetworkName>,
    pub(crate) kernel: Kernel,
    pub(crate) attached: BTreeMap<LinkName, Attached>,
    /// Requests that wait for other hosts' answers; what they are to get is theirs already.
    pub(crate) jobs: BTreeMap<u64, Job>,
    pub(crate) next_job: u64,
    /// What the last sync of each instance left out.
    pub(crate) condemned: BTreeMap<String, BTreeSet<String>>,
    pub(crate) watchers: Watchers,
    /// What watchers were told of networks last.
    pub(crate) told: net::NetworksResponse,
    /// All links but taps of ours, as they were seen last.
    pub(crate) base: Observed,
    /// Networks that are as they should be, as long as none of their links is suspect.
    pub(crate) ready: BTreeSet<NetworkName>,
    /// Links of ours and of networks that were not as they should be when the kernel told of them.
    suspects: BTreeSet<String>,
    /// Carrier that the kernel told of, where it is another than the known.
    carriers: BTreeMap<LinkName, bool>,
    /// The patience has begun.
    pub(crate) looking: bool,
    /// Incomplete taps that were told of in the log.
    pub(crate) incomplete: BTreeSet<LinkName>,
    /// What was detached and still has its place in the filter, through which nothing comes any more.
    pub(crate) unfiltered: BTreeMap<LinkName, Attachment>,
    pub(crate) sweeper: Sweeper,
    /// Answers for machines whose guests can't yet.
    pub(crate) defender: Defender,
    /// Addresses of the host's changed since all was looked at.
    addresses: bool,
    /// How many requests changed something, and whether somebody looks whether more come.
    requests: u64,
    resting: bool,
    pub(crate) counts: Counts,
    pub(crate) runtime: Runtime,
    /// To itself. Once nobody else has one, it ends.
    pub(crate) commands: mpsc::WeakSender<Command>,
    pub(crate) probes: Arc<Semaphore>,
}

/// Starts: what is there is adopted and repaired before this returns.
///
/// # Errors
///
/// Without the kernel's or nftables' help nothing can be done.
pub(crate) fn start(
    config: Config,
    counts: Counts,
    runtime: &Runtime,
) -> Result<mpsc::Sender<Command>, StartError> {
    let (commands, mut waiting) = mpsc::channel(QUEUE);
    let mut hands = Hands::open(config.link_group)?;
    // Before the first look, so that nothing happens unseen between the two.
    let events = Events::open()?;
    let kernel = kernel::look(&mut hands.netlink);
    let mut state = State {
        hands,
        retired: BTreeSet::new(),
        kernel,
        attached: BTreeMap::new(),
        jobs: BTreeMap::new(),
        next_job: 0,
        condemned: BTreeMap::new(),
        watchers: Watchers::default(),
        told: net::NetworksResponse::default(),
        base: Observed::default(),
        ready: BTreeSet::new(),
        suspects: BTreeSet::new(),
        carriers: BTreeMap::new(),
        looking: false,
        incomplete: BTreeSet::new(),
        unfiltered: BTreeMap::new(),
        sweeper: Sweeper::start(config.clone(), counts.clone())?,
        defender: Defender::start()?,
        addresses: false,
        requests: 0,
        resting: false,
        counts,
        runtime: runtime.clone(),
        commands: commands.downgrade(),
        probes: Arc::new(Semaphore::new(PROBES)),
        config,
    };
    state.begin()?;
    let owner = move || {
        while let Some(command) = waiting.blocking_recv() {
            state.handle(command);
            state.catch_up();
        }
    };
    spawn("state", owner)?;
    let teller = commands.downgrade();
    let listener = move || {
        let tell = |event| {
            let teller = teller.upgrade();
            teller.is_some_and(|teller| teller.blocking_send(Command::Happened(event)).is_ok())
        };
        if let Err(error) = events.listen(tell) {
            tracing::error!(%error, "the kernel's events can't be read any more: restart netd");
        }
    };
    spawn("events", listener)?;
    Ok(commands)
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    let builder = thread::Builder::new().name(name.to_owned());
    builder.spawn(run).map(drop)
}

impl State {
    fn handle(&mut self, command: Command) {
        if matches!(command, Command::Attach { .. } | Command::Detach { .. }) {
            self.requests += 1;
            if !std::mem::replace(&mut self.resting, true) {
                let requests = self.requests;
                self.later(REST, Command::Rest { requests });
            }
        }
        match command {
            Command::Attach { requests, answer } => self.attach(Job::new(requests, answer)),
            Command::Probed { job, asked } => self.probed(job, asked),
            Command::Check { request, answer } => drop(answer.send(self.check(&request))),
            Command::Detach { owner, force, answer } => {
                let began = Instant::now();
                let detached = self.detach(&owner, force);
                let ended = detached
                    .as_ref()
                    .map_or_else(|refused| refused.refusal.reason, |_| "ok");
                count(&self.counts.detached, "result", ended);
                self.counts.detach_seconds.observe(began.elapsed().as_secs_f64());
                drop(answer.send(detached));
            }
            Command::List { instance, answer } => drop(answer.send(self.interfaces(&instance))),
            Command::Networks { answer } => drop(answer.send(self.networks())),
            Command::Watch { instance, answer } => drop(answer.send(self.watchers.add(instance))),
            Command::Sync {
                instance,
                live,
                answer,
            } => drop(answer.send(self.sync(&instance, &live))),
            Command::Reload { config, answer } => drop(answer.send(self.reload(*config))),
            Command::Happened(events::Event::Links(changes)) => self.links_changed(changes),
            Command::Happened(events::Event::Lost) => {
                self.counts.overruns.inc();
                self.resync();
            }
            Command::Happened(events::Event::Addresses) => {
                self.addresses = true;
                self.be_patient();
            }
            Command::Happened(events::Event::Tables) => self.tables_changed(),
            Command::Happened(events::Event::Nothing) => {
                self.tables_changed();
                self.resync();
                self.hands.rest();
            }
            Command::Rest { requests } if requests == self.requests => {
                self.resting = false;
                self.hands.rest();
            }
            Command::Rest { .. } => {
                let requests = self.requests;
                self.later(REST, Command::Rest { requests });
            }
            Command::EndWatches => self.watchers = Watchers::default(),
            Command::Look => self.look(),
            Command::Tidy => self.tidy(),
        }
    }

    /// All attachments that there are.
    pub(crate) fn there(&self) -> impl Iterator<Item = &Attachment> + Clone {
        self.attached.values().map(|attached| &attached.attachment)
    }

    /// Those, and what will be there if no other host has an address of it.
    pub(crate) fn promised(&self) -> impl Iterator<Item = &Attachment> + Clone {
        self.there().chain(self.jobs.values().flat_map(|job| &job.new))
    }

    /// The links that a network is made of, or on.
    pub(crate) fn links_of(network: &Network) -> impl Iterator<Item = String> + use<> {
        let vlan = match &network.kind {
            netd_plan::Kind::Vlan { uplink, vid } => Some(vlan_link_name(uplink, *vid).to_string()),
            _ => None,
        };
        let uplink = network.uplink().map(str::to_owned);
        [Some(network.bridge()), uplink, vlan].into_iter().flatten()
    }

    /// Does actions in order, up to the first that fails; its place, and why.
    pub(crate) fn run(&mut self, actions: &[Action]) -> Result<(), (usize, StepError)> {
        for (place, action) in actions.iter().enumerate() {
            let mut done = self.hands.apply(action);
            if let Err(error) = &done
                && self.clear_the_way(error)
            {
                done = self.hands.apply(action);
            }
            if let Err(error) = done {
                count(&self.counts.failed, "step", error.step);
                return Err((place, error));
            }
            if matches!(action, Action::Trash { .. }) {
                self.sweeper.add();
            }
        }
        Ok(())
    }

    /// Whether what a step failed for is out of its way now: tables that somebody flushed, or a tap of that name, or with that
    /// further name, that waits to be deleted.
    fn clear_the_way(&mut self, error: &StepError) -> bool {
        use rustix::io::Errno;
        let taken = matches!(error.cause.errno(), Some(Errno::EXIST | Errno::BUSY));
        match error.step {
            "filter" => {
                self.counts.redeclared.inc();
                self.redeclare().is_ok()
            }
            "make-tap" | "add-altname" if taken => {
                crate::sweep::once(&mut self.hands.netlink, &self.config, &self.counts).is_ok()
            }
            _ => false,
        }
    }

    /// Declares the whole filter anew.
    pub(crate) fn redeclare(&mut self) -> Result<(), StepError> {
        let text = filter::whole(&self.config, self.there());
        self.hands.declare(text)?;
        self.unfiltered.clear();
        Ok(())
    }

    /// Removes what detached taps have left in the filter.
    pub(crate) fn tidy(&mut self) {
        let gone = std::mem::take(&mut self.unfiltered).into_values();
        let gone: Vec<Attachment> = gone
            .filter(|gone| !self.attached.contains_key(&gone.tap))
            .collect();
        if gone.is_empty() {
            return;
        }
        let text = filter::remove(&self.config, self.there(), &gone);
        if let Err((_, error)) = self.run(&[Action::Filter { text }]) {
            tracing::warn!(%error, "the filter of interfaces that are gone stays for now");
        }
    }

    fn tables_changed(&mut self) {
        if self.hands.tables.look() == crate::tables::Found::Whole {
            return;
        }
        self.counts.redeclared.inc();
        match self.redeclare() {
            Ok(()) => {
                tracing::warn!("another program changed the tables of nftables; netd's were declared anew")
            }
            Err(error) => tracing::error!(%error, "the filter can't be declared anew"),
        }
    }

    /// What a message of the kernel's says of links is compared with what they should be. In between a link of ours is always
    /// wrong for a moment; so nothing is done before the patience is over.
    fn links_changed(&mut self, changes: Vec<Change>) {
        for Change { link, gone } in changes {
            let Ok(name) = link.name.parse::<LinkName>() else {
                self.suspect(&link.name, gone || !self.is_as_seen(&link));
                continue;
            };
            let Some(attached) = self.attached.get(&name) else {
                // A bridge or VLAN of ours; or a tap that is being made, or taken back.
                if !name.is_tap() {
                    self.suspect(&link.name, gone || !self.is_as_seen(&link));
                }
                continue;
            };
            if gone {
                self.suspect(&link.name, true);
                continue;
            }
            if attached.carrier == link.carrier {
                self.carriers.remove(&name);
            } else {
                self.carriers.insert(name, link.carrier);
            }
            let right = self.is_right(&link);
            self.suspect(&link.name, !right);
        }
        if !self.suspects.is_empty() || !self.carriers.is_empty() {
            self.be_patient();
        }
    }

    fn suspect(&mut self, name: &str, wrong: bool) {
        if wrong && self.matters(name) {
            self.suspects.insert(name.to_owned());
        } else {
            self.suspects.remove(name);
        }
    }

    /// Whether a link is ours or a network's.
    fn matters(&self, name: &str) -> bool {
        name.parse::<LinkName>().is_ok()
            || self
                .config
                .networks
                .values()
                .any(|network| Self::links_of(network).any(|link| link == name))
    }

    /// Whether a tap is as far as a message tells what it should be.
    fn is_right(&self, link: &netd_plan::Link) -> bool {
        let name = link.name.parse::<LinkName>().ok();
        let attached = name.and_then(|name| self.attached.get(&name));
        let network = attached.and_then(|attached| self.config.networks.get(&attached.attachment.network));
        let bridge = network.and_then(|network| self.base.links.get(&network.bridge()));
        let right = link.up && link.group == self.config.link_group && link.alias.is_some();
        right && link.master.is_some() && link.master == bridge.map(|bridge| bridge.index)
    }

    /// Whether a link is what it was when all was looked at.
    fn is_as_seen(&self, link: &netd_plan::Link) -> bool {
        self.base.links.get(&link.name).is_some_and(|seen| {
            let settings = |link: &netd_plan::Link| (link.index, link.up, link.mtu, link.master, link.group);
            settings(seen) == settings(link) && seen.alias == link.alias && seen.kind == link.kind
        })
    }

    /// Looks after a while.
    pub(crate) fn be_patient(&mut self) {
        if !std::mem::replace(&mut self.looking, true) {
            self.later(PATIENCE, Command::Look);
        }
    }

    /// Gives itself a command after a while.
    pub(crate) fn later(&self, rest: Duration, command: Command) {
        let commands = self.commands.clone();
        // It ends by itself.
        drop(self.runtime.spawn(async move {
            tokio::time::sleep(rest).await;
            if let Some(commands) = commands.upgrade() {
                let _sent = commands.send(command).await;
            }
        }));
    }

    fn look(&mut self) {
        self.looking = false;
        for (tap, carrier) in std::mem::take(&mut self.carriers) {
            if let Some(attached) = self.attached.get_mut(&tap) {
                attached.carrier = carrier;
                self.tell_changed(&tap);
            }
        }
        let mut wrong = std::mem::take(&mut self.addresses);
        for name in std::mem::take(&mut self.suspects) {
            let tap = name.parse::<LinkName>().ok().filter(LinkName::is_tap);
            if tap.as_ref().is_some_and(|tap| !self.attached.contains_key(tap)) {
                // It was detached meanwhile.
                continue;
            }
            wrong |= match observe::one(&mut self.hands.netlink, &name) {
                Ok(Some(link)) if tap.is_some() => !self.is_right(&link),
                Ok(Some(link)) => !self.is_as_seen(&link),
                Ok(None) | Err(_) => true,
            };
        }
        if wrong {
            self.resync();
        }
    }

    /// Whether a network is certainly as it should be.
    pub(crate) fn is_ready(&self, network: &Network) -> bool {
        let suspect = |name: String| self.suspects.contains(&name);
        self.ready.contains(&network.name) && !Self::links_of(network).any(suspect)
    }

    /// What was suspected is known now.
    pub(crate) fn forget_suspects(&mut self) {
        self.suspects.clear();
    }
}
