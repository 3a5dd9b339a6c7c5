//! How does a machine get its interfaces, and how are they taken back?
//!
//! A request is decided, other hosts are asked about its addresses where that takes asking, and it is decided again with what
//! they said. Meanwhile its addresses are reserved and others are served; what is done to the host is done in one go.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netd_plan::{
    Action, Answered, Attachment, Kind, LinkKind, LinkName, Mode, Network, NetworkName, Owner, Refusal,
    Request,
};
use rustix::io::Errno;
use steppe_proto::net;
use tokio::sync::oneshot;

use crate::convert::Refused;
use crate::counts::count;
use crate::observe;
use crate::probe::{self, Holder, Place, Question};
use crate::state::{Attached, Command, State};

/// Candidates that other hosts are asked for before a machine is told to try again.
const ROUNDS: u32 = 16;
/// So long what a detached tap leaves in the filter waits for that of others.
const TIDY_REST: Duration = Duration::from_millis(100);
/// VLANs of a trunk port in which its identity is asked for.
const TRUNK_VIDS: usize = 8;

/// A request that is being carried out.
#[derive(Debug)]
pub(crate) struct Job {
    requests: Vec<Request>,
    answer: oneshot::Sender<Result<Vec<Vec<net::Interface>>, Refused>>,
    began: Instant,
    /// Addresses that other hosts have.
    answered: Answered,
    /// Taps whose address and identity nobody has.
    free: BTreeSet<(LinkName, Option<Ipv4Addr>)>,
    rounds: u32,
    /// What was done to the host for it.
    done: Vec<Action>,
    /// What it is to get, as was decided last.
    pub(crate) new: Vec<Attachment>,
    /// Its owner took it back.
    dropped: bool,
}

/// What other hosts said of an attachment.
#[derive(Debug)]
pub(crate) struct Asked {
    tap: LinkName,
    said: Result<Option<Holder>, Errno>,
}

/// How far a job came.
enum Advanced {
    /// Its interfaces are there.
    Done(Vec<Vec<net::Interface>>),
    /// Other hosts are to be asked this.
    Ask(Vec<(LinkName, Question)>),
}

impl Job {
    pub(crate) fn new(
        requests: Vec<Request>,
        answer: oneshot::Sender<Result<Vec<Vec<net::Interface>>, Refused>>,
    ) -> Self {
        Self {
            requests,
            answer,
            began: Instant::now(),
            answered: Answered::new(),
            free: BTreeSet::new(),
            rounds: 0,
            done: Vec::new(),
            new: Vec::new(),
            dropped: false,
        }
    }

    fn is_for(&self, owner: &Owner) -> bool {
        self.requests.iter().any(|request| request.owner == *owner)
    }
}

impl State {
    /// Carries a request out as far as can be without waiting. One whose asker has given up meanwhile is not begun.
    pub(crate) fn attach(&mut self, mut job: Job) {
        let advanced = if job.answer.is_closed() {
            Err(Refused::later(
                "unavailable",
                "nobody waits for the answer".to_owned(),
            ))
        } else {
            self.advance(&mut job)
        };
        match advanced {
            Ok(Advanced::Done(interfaces)) => self.end(job, Ok(interfaces)),
            Ok(Advanced::Ask(questions)) => self.ask(job, questions),
            Err(refused) => {
                self.take_back(&job.new, &job.done);
                self.end(job, Err(refused));
            }
        }
    }

    fn end(&self, job: Job, result: Result<Vec<Vec<net::Interface>>, Refused>) {
        let ended = result
            .as_ref()
            .map_or_else(|refused| refused.refusal.reason, |_| "ok");
        count(&self.counts.attached, "result", ended);
        self.counts
            .attach_seconds
            .observe(job.began.elapsed().as_secs_f64());
        // Who asked may be gone: what is done stays done, and the same request gets the same answer.
        drop(job.answer.send(result));
    }

    /// Decides, and does it if nobody is left to be asked.
    fn advance(&mut self, job: &mut Job) -> Result<Advanced, Refused> {
        for request in &job.requests {
            if self.jobs.values().any(|other| other.is_for(&request.owner)) {
                return Err(Refused::under_way(&request.owner));
            }
        }
        // A network's MTU, which depends on its links, goes into what is decided.
        self.freshen(&job.requests)?;
        let (decided, new) = self.decide(&job.requests, &job.answered)?;
        job.new = new;
        if job.new.is_empty() {
            return Ok(Advanced::Done(self.answer(&decided)));
        }
        let networks: BTreeSet<NetworkName> = job.new.iter().map(|new| new.network.clone()).collect();
        for network in &networks {
            self.ensure(network, &mut job.done)?;
        }
        let questions = self.questions(job);
        if !questions.is_empty() {
            return Ok(Advanced::Ask(questions));
        }
        self.make(job)?;
        Ok(Advanced::Done(self.answer(&decided)))
    }

    /// Attachments of each request, and those of them that aren't there yet.
    fn decide(
        &self,
        requests: &[Request],
        answered: &Answered,
    ) -> Result<(Vec<Vec<Attachment>>, Vec<Attachment>), Refused> {
        let mut decided = Vec::with_capacity(requests.len());
        let mut new: Vec<Attachment> = Vec::new();
        for request in requests {
            let promised = self.promised().chain(&new);
            let attachments = netd_plan::decide(&self.config, &self.base, promised, answered, request)
                .map_err(|refusal| self.because_retired(request, refusal))?;
            for attachment in &attachments {
                let known = self.attached.contains_key(&attachment.tap)
                    || new.iter().any(|other| other.tap == attachment.tap);
                if known {
                    continue;
                }
                if self.retired.contains(&attachment.network) {
                    return Err(Refused::later(
                        "unavailable",
                        Self::retired_sentence(&attachment.network),
                    ));
                }
                new.push(attachment.clone());
            }
            decided.push(attachments);
        }
        Ok((decided, new))
    }

    /// Of a network that its bridge alone tells of, nobody knows the pool.
    fn because_retired(&self, request: &Request, refusal: Refusal) -> Refused {
        let mut names = request.nics.iter().filter_map(|nic| nic.network.parse().ok());
        match names.find(|name: &NetworkName| self.retired.contains(name)) {
            Some(name) if refusal.reason == "pool-exhausted" => {
                Refused::later("unavailable", Self::retired_sentence(&name))
            }
            _ => refusal.into(),
        }
    }

    fn answer(&self, decided: &[Vec<Attachment>]) -> Vec<Vec<net::Interface>> {
        let interface = |attachment: &Attachment| {
            let attached = self.attached.get(&attachment.tap);
            attached.map(|attached| self.interface(attached))
        };
        let request = |attachments: &Vec<Attachment>| attachments.iter().filter_map(interface).collect();
        decided.iter().map(request).collect()
    }

    /// Looks at all links again where those of a request's networks may be others than was seen.
    fn freshen(&mut self, requests: &[Request]) -> Result<(), Refused> {
        let mut names = requests.iter().flat_map(|request| &request.nics);
        let stale = names.any(|nic| {
            let name: Option<NetworkName> = nic.network.parse().ok();
            let network = name.and_then(|name| self.config.networks.get(&name));
            network.is_some_and(|network| !self.is_ready(network))
        });
        if stale { self.see() } else { Ok(()) }
    }

    /// Makes a network what it should be; what was done for that.
    fn ensure(&mut self, name: &NetworkName, done: &mut Vec<Action>) -> Result<(), Refused> {
        let Some(network) = self.config.networks.get(name).cloned() else {
            return Ok(());
        };
        if self.is_ready(&network) {
            return Ok(());
        }
        let actions =
            netd_plan::network(&self.config, &network, &self.base, self.kernel).map_err(Refusal::from)?;
        if !actions.is_empty() {
            let ran = self.run(&actions);
            let reached = ran
                .as_ref()
                .map_or_else(|(place, _)| place + 1, |()| actions.len());
            done.extend(actions.into_iter().take(reached));
            ran.map_err(|(_, error)| error)?;
            self.see()?;
        }
        self.ready.insert(name.clone());
        Ok(())
    }

    /// Makes what is new; everything, or the host is as it was.
    fn make(&mut self, job: &mut Job) -> Result<(), Refused> {
        let actions = netd_plan::attach(&self.config, &self.base, self.there(), &job.new);
        let last = |action: &Action| matches!(action, Action::PersistTap { .. });
        let (setting, lasting) = actions.split_at(actions.iter().position(last).unwrap_or(actions.len()));
        let made = self
            .run(setting)
            .and_then(|()| {
                let read = self.hands.read_back(setting);
                read.map_err(|error| (setting.len(), error))
            })
            .and_then(|()| {
                let persisted = self.run(lasting);
                persisted.map_err(|(place, error)| (setting.len() + place, error))
            });
        if let Err((place, error)) = made {
            job.done.extend(actions.into_iter().take(place + 1));
            return Err(error.into());
        }
        for attachment in &job.new {
            let attached = Attached {
                attachment: attachment.clone(),
                carrier: false,
                faults: Vec::new(),
            };
            self.attached.insert(attachment.tap.clone(), attached);
        }
        for attachment in &job.new {
            self.tell_changed(&attachment.tap);
            if let Some(question) = self.question(attachment) {
                self.defender
                    .add(attachment.tap.clone(), attachment.mac, question);
            }
        }
        Ok(())
    }

    /// Takes back what was done for a job. What can't be is left to the next look at everything.
    fn take_back(&mut self, new: &[Attachment], done: &[Action]) {
        if done.is_empty() {
            return;
        }
        self.hands.let_go();
        let actions = netd_plan::take_back(&self.config, self.there(), new, done);
        for action in &actions {
            if let Err((_, error)) = self.run(std::slice::from_ref(action)) {
                tracing::warn!(%error, "a step of a failed request can't be taken back yet");
                self.be_patient();
            }
        }
        for attachment in new {
            self.ready.remove(&attachment.network);
        }
    }

    /// What other hosts are to be asked for a job: for each new interface whose network asks, unless that was done.
    fn questions(&self, job: &Job) -> Vec<(LinkName, Question)> {
        let key = |new: &Attachment| (new.tap.clone(), new.ipv4.map(|net| net.addr()));
        let unknown = job.new.iter().filter(|new| !job.free.contains(&key(new)));
        unknown
            .filter_map(|new| Some((new.tap.clone(), self.question(new)?)))
            .collect()
    }

    /// What other hosts ask and are asked of an attachment, where there are any on its network.
    fn question(&self, attachment: &Attachment) -> Option<Question> {
        let network = self.config.networks.get(&attachment.network)?;
        if network.probe.is_zero() {
            return None;
        }
        let places = self.places(network, &attachment.mode);
        (!places.is_empty()).then(|| Question {
            places,
            ipv4: attachment.ipv4.map(|net| net.addr()),
            link_local: attachment.mac.link_local(),
            time: network.probe,
        })
    }

    /// The links where other hosts of a network are reached, with the tag that frames have there.
    fn places(&self, network: &Network, mode: &Mode) -> Vec<Place> {
        let place = |link: &netd_plan::Link, tag| {
            let mac = link.mac?;
            Some(Place {
                index: link.index,
                mac,
                tag,
            })
        };
        let untagged = |name: &str| {
            let link = self.base.links.get(name);
            link.and_then(|link| place(link, None)).into_iter().collect()
        };
        match &network.kind {
            Kind::Nat { .. } => Vec::new(),
            Kind::Bridge {
                bridge: Some(bridge), ..
            } => untagged(bridge),
            Kind::Bridge { uplink, .. } => uplink.as_deref().map(untagged).unwrap_or_default(),
            Kind::Vlan { uplink, vid } => untagged(netd_plan::name::vlan_link_name(uplink, *vid).as_str()),
            Kind::VlanAware { .. } => {
                let bridge = self.base.links.get(&network.bridge());
                let Some(bridge) = bridge.filter(|link| matches!(link.kind, LinkKind::Bridge { .. })) else {
                    return Vec::new();
                };
                let vids: Vec<_> = match mode {
                    Mode::Access(vid) => vec![*vid],
                    Mode::Trunk(vids) => vids.iter().take(TRUNK_VIDS).collect(),
                    Mode::Plain => Vec::new(),
                };
                let ports = self.base.links.values();
                let ports = ports.filter(|link| link.master == Some(bridge.index));
                ports
                    .flat_map(|link| link.vlans.iter().map(move |vlan| (link, vlan)))
                    .filter(|(_, vlan)| vids.contains(&vlan.vid))
                    .filter_map(|(link, vlan)| place(link, (!vlan.untagged).then_some(vlan.vid.get())))
                    .collect()
            }
        }
    }

    /// Asks other hosts, on other threads, and lets the job wait for the answers.
    fn ask(&mut self, mut job: Job, questions: Vec<(LinkName, Question)>) {
        job.rounds += 1;
        if job.rounds > ROUNDS {
            let sentence =
                format!("other hosts answered for {ROUNDS} addresses that could have been taken; ask again");
            self.take_back(&job.new, &job.done);
            return self.end(job, Err(Refused::later("pool-exhausted", sentence)));
        }
        let number = self.next_job;
        self.next_job += 1;
        self.jobs.insert(number, job);
        let (commands, probes) = (self.commands.clone(), Arc::clone(&self.probes));
        // It ends when all have answered, or their time is over.
        drop(self.runtime.spawn(async move {
            let mut waiting = Vec::with_capacity(questions.len());
            for (tap, question) in questions {
                let Ok(permit) = Arc::clone(&probes).acquire_owned().await else {
                    break;
                };
                let asking = move || {
                    let said = probe::ask(&question);
                    drop(permit);
                    Asked { tap, said }
                };
                waiting.push(tokio::task::spawn_blocking(asking));
            }
            let mut asked = Vec::with_capacity(waiting.len());
            for answer in waiting {
                asked.extend(answer.await);
            }
            if let Some(commands) = commands.upgrade() {
                let _sent = commands.send(Command::Probed { job: number, asked }).await;
            }
        }));
    }

    /// Goes on with a job whose questions are answered.
    pub(crate) fn probed(&mut self, number: u64, asked: Vec<Asked>) {
        let Some(mut job) = self.jobs.remove(&number) else {
            return;
        };
        let heard = if job.dropped {
            Err(Refused::later(
                "unavailable",
                "the owner was detached meanwhile; ask again".to_owned(),
            ))
        } else {
            self.hear(&mut job, asked)
        };
        match heard {
            Ok(()) => self.attach(job),
            Err(refused) => {
                self.take_back(&job.new, &job.done);
                self.end(job, Err(refused));
            }
        }
    }

    /// Notes what other hosts said.
    fn hear(&self, job: &mut Job, asked: Vec<Asked>) -> Result<(), Refused> {
        for Asked { tap, said } in asked {
            let Some(attachment) = job.new.iter().find(|attachment| attachment.tap == tap) else {
                continue;
            };
            let address = attachment.ipv4.map(|net| net.addr());
            let network = &attachment.network;
            let result = match &said {
                Ok(None) => "free",
                Ok(Some(_)) => "held",
                Err(_) => "failed",
            };
            count(&self.counts.probed, "result", result);
            let by = match said {
                Ok(None) => {
                    job.free.insert((tap, address));
                    continue;
                }
                Ok(Some(Holder::LinkLocal(_))) => attachment.mac.link_local().to_string(),
                Ok(Some(Holder::Ipv4(mac))) if mac == attachment.mac => {
                    address.map(|address| address.to_string()).unwrap_or_default()
                }
                Ok(Some(Holder::Ipv4(mac))) => {
                    if let Some(address) = address {
                        tracing::info!("on network {network}, {mac} answers for {address}");
                        job.answered.insert((network.clone(), attachment.vid(), address));
                    }
                    continue;
                }
                Err(errno) => {
                    let sentence = format!(
                        "other hosts of network {network} can't be asked for the address of {}: {}",
                        attachment.owner,
                        std::io::Error::from(errno)
                    );
                    return Err(Refused::later("unavailable", sentence));
                }
            };
            let sentence = format!(
                "the identity of {} is held on network {network} by a machine on another host, with {}, which answers at {by}; \
                 it is free when that one has ended, or give another identity",
                attachment.owner, attachment.mac
            );
            return Err(Refused::later("identity-held", sentence));
        }
        Ok(())
    }

    /// What attaching would answer and do; nothing is done.
    pub(crate) fn check(&mut self, request: &Request) -> Result<net::CheckResponse, Refused> {
        let requests = std::slice::from_ref(request);
        self.freshen(requests)?;
        let (decided, new) = self.decide(requests, &Answered::new())?;
        let mut actions = Vec::new();
        let networks: BTreeSet<&NetworkName> = new.iter().map(|new| &new.network).collect();
        for network in networks.iter().filter_map(|name| self.config.networks.get(*name)) {
            let needed = netd_plan::network(&self.config, network, &self.base, self.kernel);
            actions.extend(needed.map_err(Refusal::from)?);
        }
        if !new.is_empty() {
            actions.extend(netd_plan::attach(&self.config, &self.base, self.there(), &new));
        }
        let interface = |attachment: &Attachment| match self.attached.get(&attachment.tap) {
            Some(attached) => self.interface(attached),
            None => crate::convert::interface(&self.config, attachment, false, &[]),
        };
        Ok(net::CheckResponse {
            interfaces: decided.iter().flatten().map(interface).collect(),
            actions: actions.iter().map(ToString::to_string).collect(),
        })
    }

    /// Takes all interfaces of an owner back; their names.
    pub(crate) fn detach(&mut self, owner: &Owner, force: bool) -> Result<Vec<String>, Refused> {
        for job in self.jobs.values_mut().filter(|job| job.is_for(owner)) {
            job.dropped = true;
        }
        let gone: Vec<Attachment> = self
            .there()
            .filter(|attachment| attachment.owner == *owner)
            .cloned()
            .collect();
        if gone.is_empty() {
            return Ok(Vec::new());
        }
        if !force && let Some(held) = gone.iter().find(|attachment| self.has_carrier(&attachment.tap)) {
            let tap = &held.tap;
            return Err(Refusal {
                reason: "in-use",
                field: String::new(),
                sentence: format!("a process holds {tap} of {owner} open; end it first, or say force"),
                holder: Some(owner.clone()),
                retryable: true,
            }
            .into());
        }
        let remaining = self.there().filter(|attachment| attachment.owner != *owner);
        let mut actions = netd_plan::detach(&self.config, remaining, &gone);
        // A transaction takes the longer the more machines there are, so one is made for many. A tap that is down and of no bridge
        // passes nothing anyway; only ports of the host that led to it must be free at once.
        let later = gone.iter().all(|attachment| attachment.forwards.is_empty());
        if later {
            actions.retain(|action| !matches!(action, Action::Filter { .. }));
        }
        self.run(&actions).map_err(|(_, error)| error)?;
        for attachment in &gone {
            self.defender.remove(&attachment.tap);
            self.attached.remove(&attachment.tap);
            self.tell_removed(attachment);
        }
        if later {
            if self.unfiltered.is_empty() {
                self.later(TIDY_REST, Command::Tidy);
            }
            let gone = gone.iter().cloned();
            self.unfiltered
                .extend(gone.map(|attachment| (attachment.tap.clone(), attachment)));
        }
        self.drop_retired();
        Ok(gone.iter().map(|attachment| attachment.tap.to_string()).collect())
    }

    /// Whether a process holds a tap open. One that can't be asked is not taken away.
    fn has_carrier(&mut self, tap: &LinkName) -> bool {
        match observe::one(&mut self.hands.netlink, tap.as_str()) {
            Ok(link) => link.is_some_and(|link| link.carrier),
            Err(_) => true,
        }
    }

    /// Removes what two calls in a row leave out.
    pub(crate) fn sync(
        &mut self,
        instance: &str,
        live: &BTreeSet<String>,
    ) -> Result<net::SyncResponse, Refused> {
        let left_out: Vec<LinkName> = self
            .there()
            .filter(|attachment| attachment.owner.instance() == instance)
            .filter(|attachment| !live.contains(attachment.owner.id()))
            .map(|attachment| attachment.tap.clone())
            .collect();
        let carriers: BTreeSet<LinkName> = left_out.into_iter().filter(|tap| self.has_carrier(tap)).collect();
        let none = BTreeSet::new();
        let synced = netd_plan::sync(
            self.there(),
            |attachment| carriers.contains(&attachment.tap),
            instance,
            live,
            self.condemned.get(instance).unwrap_or(&none),
        );
        let (mut removed, mut condemned) = (Vec::new(), synced.condemned);
        for id in &synced.removed {
            let owner = Owner::new(instance, id)?;
            let taps = match self.detach(&owner, false) {
                Ok(taps) => taps,
                Err(refused) => {
                    tracing::warn!(
                        "the interfaces of {owner} can't be removed yet: {}",
                        refused.refusal.sentence
                    );
                    condemned.insert(id.clone());
                    continue;
                }
            };
            self.counts
                .collected
                .inc_by(u64::try_from(taps.len()).unwrap_or_default());
            tracing::info!("removed the interfaces of {owner}, which two syncs in a row left out");
            removed.push(id.clone());
        }
        let response = net::SyncResponse {
            kept: synced.kept,
            condemned: condemned.iter().cloned().collect(),
            removed,
            unknown: synced.unknown.into_iter().collect(),
        };
        if condemned.is_empty() {
            self.condemned.remove(instance);
        } else {
            self.condemned.insert(instance.to_owned(), condemned);
        }
        Ok(response)
    }
}
