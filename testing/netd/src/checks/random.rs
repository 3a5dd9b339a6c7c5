//! Whatever is asked, changed by hand and killed in whatever order: is what there is what should be?

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fastrand::Rng;
use rustix::process::Signal;
use steppe_proto::net::{self, Protocol};

use crate::guest;
use crate::harness::{OPERATIONS, say};
use crate::host::{INSTANCE, machine, nic, owner, port};
use crate::netd::{Netd, Refused};
use crate::space::{self, Space};
use crate::state;
use crate::tap::Tap;
use crate::wait;

use super::drift;
use super::races::{becomes, idle};

const CONFIG: &str = r#"
[network.default]
kind = "nat"
ipv4 = { subnet = "10.83.0.0/20", gateway = "10.83.0.1", pool = "10.83.0.2-10.83.15.254" }

[network.lan]
kind = "bridge"
uplink = "up0"
ipv4 = { subnet = "10.1.0.0/16", pool = "10.1.1.0-10.1.1.255" }
ipv6 = { prefix = "fd00:1::/64" }
probe = "0s"

[network.alone]
kind = "bridge"
isolated = true
ipv4 = { subnet = "10.2.0.0/16", pool = "10.2.1.0-10.2.1.63" }
probe = "0s"
"#;

const NETWORKS: [&str; 3] = ["default", "lan", "alone"];

/// Few names, addresses and ports: they are often somebody's already.
const MACHINES: usize = 40;
const ADDRESSES: u8 = 12;
const PORTS: u32 = 8;

/// How often everything is compared.
const COMPARED_EVERY: usize = 25;

/// What should be, as far as the answers of netd tell.
#[derive(Debug, Default)]
struct Shadow {
    machines: BTreeMap<String, Machine>,
    /// Machines that the last call of Sync left out.
    condemned: BTreeSet<String>,
}

#[derive(Debug)]
struct Machine {
    request: net::AttachRequest,
    interfaces: Vec<net::Interface>,
    /// Its guest runs: the taps are held open.
    running: BTreeMap<String, Tap>,
}

fn id_of(request: &net::AttachRequest) -> String {
    request.owner.clone().unwrap_or_default().id
}

impl Machine {
    /// The addresses of its interfaces, without lengths.
    fn addresses(&self) -> impl Iterator<Item = String> {
        let without_length = |one: &net::Interface| one.ipv4.split('/').next().unwrap_or_default().to_owned();
        self.interfaces.iter().map(without_length)
    }

    /// Whether a request is for this, and perhaps more: then the rest is made, as after an attach that was interrupted. What it
    /// leaves to netd is as it was decided.
    fn is(&self, request: &net::AttachRequest) -> bool {
        let same_nic = |(asked, (before, one)): (&net::Nic, (&net::Nic, &net::Interface))| {
            let same_address = asked.ipv4 == "auto" || one.ipv4.starts_with(&format!("{}/", asked.ipv4));
            asked.network == before.network && same_address && asked.ports == before.ports
        };
        let mut nics = request
            .nics
            .iter()
            .zip(self.request.nics.iter().zip(&self.interfaces));
        request.nics.len() >= self.interfaces.len()
            && (request.identity == self.request.identity && request.queues == self.request.queues)
            && nics.all(same_nic)
    }
}

impl Shadow {
    /// Reasons that a new machine can be refused for; empty where it can't.
    fn refusals(
        &self,
        request: &net::AttachRequest,
        beside: &[net::AttachRequest],
    ) -> BTreeSet<&'static str> {
        let mut reasons = BTreeSet::new();
        let there = self.machines.get(&id_of(request));
        if there.is_some_and(|there| !there.is(request)) {
            reasons.insert("other-spec");
            return reasons;
        }
        let new = there.map_or(0, |there| there.interfaces.len());
        let machines = self.machines.values();
        let others = machines.flat_map(|machine| {
            machine
                .request
                .nics
                .iter()
                .zip(machine.addresses())
                .map(|(nic, address)| (&machine.request, nic, address))
        });
        let beside = beside.iter().flat_map(|request| {
            request
                .nics
                .iter()
                .map(move |nic| (request, nic, nic.ipv4.clone()))
        });
        for (other, theirs, address) in others
            .chain(beside)
            .filter(|(other, ..)| other.owner != request.owner)
        {
            for mine in &request.nics[new..] {
                if mine.network == theirs.network {
                    if request.identity == other.identity {
                        reasons.insert("identity-held");
                    }
                    if mine.ipv4 == address && mine.ipv4 != "auto" {
                        reasons.insert("address-taken");
                    }
                }
                let taken = |wanted: &net::Port| {
                    let same =
                        |it: &net::Port| (it.protocol, it.host_port) == (wanted.protocol, wanted.host_port);
                    theirs.ports.iter().any(same)
                };
                if mine.ports.iter().any(taken) {
                    reasons.insert("port-taken");
                }
            }
        }
        reasons
    }

    fn is_running(&self, id: &str) -> bool {
        self.machines
            .get(id)
            .is_some_and(|machine| !machine.running.is_empty())
    }

    /// Every interface there should be, by tap.
    fn interfaces(&self) -> BTreeMap<String, net::Interface> {
        let mut all = BTreeMap::new();
        for machine in self.machines.values() {
            for one in &machine.interfaces {
                let carrier = machine.running.contains_key(&one.tap);
                all.insert(
                    one.tap.clone(),
                    net::Interface {
                        carrier,
                        ..one.clone()
                    },
                );
            }
        }
        all
    }
}

/// What a refusal is for, as the model knows it.
#[track_caller]
fn refused(refused: &Refused, reasons: &BTreeSet<&str>) {
    assert!(
        reasons.contains(refused.detail.reason.as_str()),
        "{refused}; the model knows {reasons:?}"
    );
}

struct Play<'a> {
    rng: Rng,
    host: &'a Space,
    netd: Netd<'a>,
    shadow: Shadow,
    counts: BTreeMap<&'static str, usize>,
}

impl Play<'_> {
    fn some_id(&mut self) -> String {
        format!("m{}", self.rng.usize(..MACHINES))
    }

    fn some_request(&mut self) -> net::AttachRequest {
        let id = self.some_id();
        let mut networks = NETWORKS;
        self.rng.shuffle(&mut networks);
        let count = if self.rng.u8(..4) == 0 { 2 } else { 1 };
        let mut nics = Vec::new();
        for network in &networks[..count] {
            let mut nic = nic(network);
            nic.ipv4 = match (*network, self.rng.u8(..4)) {
                ("lan", 0) => format!("10.1.0.{}", self.rng.u8(1..=ADDRESSES)),
                _ => "auto".to_owned(),
            };
            if *network == "default" && self.rng.bool() {
                let protocol = if self.rng.bool() {
                    Protocol::Tcp
                } else {
                    Protocol::Udp
                };
                nic.ports = vec![port(protocol, "192.0.2.1", 8000 + self.rng.u32(..PORTS), 80)];
            }
            nics.push(nic);
        }
        let mut request = machine(&id, &nics);
        request.queues = if self.rng.u8(..4) == 0 { 2 } else { 1 };
        if self.rng.u8(..12) == 0 {
            request.identity = format!("default/checks/group/{}/0", self.some_id());
        }
        request
    }

    fn attach(&mut self) {
        let request = match self.rng.u8(..5) {
            0 => {
                let known: Vec<_> = self
                    .shadow
                    .machines
                    .values()
                    .map(|it| it.request.clone())
                    .collect();
                match self.rng.choice(known) {
                    Some(request) => request,
                    None => return,
                }
            }
            _ => self.some_request(),
        };
        let reasons = self.shadow.refusals(&request, &[]);
        let answer = self.netd.client().attach(&request);
        self.attached(vec![request], &reasons, answer.map(|interfaces| vec![interfaces]));
    }

    fn batch(&mut self) {
        let count = self.rng.usize(2..6);
        let mut requests: Vec<net::AttachRequest> = Vec::new();
        while requests.len() < count {
            let request = self.some_request();
            if requests.iter().all(|other| other.owner != request.owner) {
                requests.push(request);
            }
        }
        let reasons: BTreeSet<&str> = requests
            .iter()
            .flat_map(|request| self.shadow.refusals(request, &requests))
            .collect();
        let answer = self.netd.client().attach_batch(&requests);
        self.attached(requests, &reasons, answer);
    }

    fn attached(
        &mut self,
        requests: Vec<net::AttachRequest>,
        reasons: &BTreeSet<&'static str>,
        answer: Result<Vec<Vec<net::Interface>>, Refused>,
    ) {
        let answers = match answer {
            Ok(answers) => answers,
            Err(answer) => return refused(&answer, reasons),
        };
        assert!(reasons.is_empty(), "{requests:?} is not refused for {reasons:?}");
        assert_eq!(answers.len(), requests.len());
        for (request, interfaces) in requests.into_iter().zip(answers) {
            assert_eq!(interfaces.len(), request.nics.len());
            let id = id_of(&request);
            if let Some(same) = self.shadow.machines.get_mut(&id) {
                // What an interface is; its carrier is told a little later.
                let still = |one: &net::Interface| net::Interface {
                    carrier: false,
                    ..one.clone()
                };
                let (before, after) = interfaces.split_at(same.interfaces.len());
                assert_eq!(
                    before.iter().map(still).collect::<Vec<_>>(),
                    same.interfaces,
                    "{id} once more"
                );
                same.interfaces.extend(after.iter().map(still));
                same.request = request;
                continue;
            }
            for one in &interfaces {
                let twin = self.shadow.interfaces().into_values().find(|other| {
                    other.tap == one.tap || (other.network == one.network && other.ipv4 == one.ipv4)
                });
                assert!(twin.is_none(), "{one:?} has what {twin:?} has");
            }
            let machine = Machine {
                request,
                interfaces,
                running: BTreeMap::new(),
            };
            self.shadow.machines.insert(id, machine);
        }
    }

    fn detach(&mut self) {
        let id = self.some_id();
        let force = self.rng.u8(..4) == 0;
        match self.netd.client().detach(&owner(&id), force) {
            Ok(taps) => {
                assert!(force || !self.shadow.is_running(&id), "{id} runs");
                let machine = self.shadow.machines.remove(&id);
                let interfaces = machine.iter().flat_map(|machine| &machine.interfaces);
                let known: BTreeSet<_> = interfaces.map(|one| one.tap.clone()).collect();
                assert_eq!(taps.into_iter().collect::<BTreeSet<_>>(), known, "{id}");
            }
            Err(answer) => {
                assert!(self.shadow.is_running(&id), "{id}: {answer}");
                refused(&answer, &["in-use"].into());
            }
        }
    }

    fn sync(&mut self) {
        let forgets = self.rng.u8(..3);
        let known: Vec<String> = self.shadow.machines.keys().cloned().collect();
        let mut live: BTreeSet<String> = BTreeSet::new();
        for id in known {
            if self.rng.u8(..10) >= forgets {
                live.insert(id);
            }
        }
        if self.rng.u8(..4) == 0 {
            live.insert("nobody".to_owned());
        }
        let live: Vec<String> = live.into_iter().collect();
        let answer = self.netd.client().sync(INSTANCE, &live);
        let answer = answer.unwrap_or_else(|refused| panic!("Sync: {refused}"));
        let (kept, left): (Vec<String>, Vec<String>) = self
            .shadow
            .machines
            .keys()
            .cloned()
            .partition(|id| live.contains(id));
        let removed: BTreeSet<String> = left
            .iter()
            .filter(|id| self.shadow.condemned.contains(*id) && !self.shadow.is_running(id))
            .cloned()
            .collect();
        let condemned: BTreeSet<String> = left.into_iter().filter(|id| !removed.contains(id)).collect();
        let unknown: BTreeSet<String> = live.into_iter().filter(|id| !kept.contains(id)).collect();
        let kept: usize = kept
            .iter()
            .map(|id| self.shadow.machines[id].interfaces.len())
            .sum();
        let set = |ids: Vec<String>| ids.into_iter().collect::<BTreeSet<_>>();
        assert_eq!(
            (
                answer.kept as usize,
                set(answer.condemned),
                set(answer.removed),
                set(answer.unknown)
            ),
            (kept, condemned.clone(), removed.clone(), unknown),
            "kept, condemned, removed, unknown"
        );
        self.shadow.machines.retain(|id, _| !removed.contains(id));
        self.shadow.condemned = condemned;
    }

    fn restart(&mut self) {
        // Being told to end, it waits for connections a while.
        if self.rng.u8(..6) > 0 {
            self.netd.restart();
        } else {
            self.netd.stop();
            self.netd.begin();
        }
        self.shadow.condemned.clear();
    }

    /// Killed while it does what is asked, and asked once more.
    fn interrupted(&mut self) {
        let patience = Duration::from_micros(self.rng.u64(..4000));
        let client = self.netd.another_client();
        let detaches = self.rng.u8(..3) == 0;
        let (request, id) = (self.some_request(), self.some_id());
        std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                if detaches {
                    client.detach(&owner(&id), false).map(drop)
                } else {
                    client.attach(&request).map(drop)
                }
            });
            std::thread::sleep(patience);
            self.netd.restart();
            // Whatever came of it, the caller can't know.
            drop(asking.join());
        });
        self.shadow.condemned.clear();
        if detaches && !self.shadow.is_running(&id) {
            self.netd
                .client()
                .detach(&owner(&id), false)
                .expect("nobody holds it open");
            self.shadow.machines.remove(&id);
        } else if !detaches {
            let reasons = self.shadow.refusals(&request, &[]);
            let answer = self.netd.client().attach(&request);
            self.attached(vec![request], &reasons, answer.map(|interfaces| vec![interfaces]));
        }
    }

    fn some_tap(&mut self) -> Option<net::Interface> {
        let interfaces: Vec<_> = self.shadow.interfaces().into_values().collect();
        self.rng.choice(interfaces)
    }

    /// Somebody changes a tap by hand.
    fn drift(&mut self) {
        let Some(one) = self.some_tap() else { return };
        let found = drift::FOUND_OF_A_TAP.into_iter();
        let all: Vec<&str> = found.chain(drift::HEARD_OF_A_TAP).collect();
        let words = self.rng.choice(all).unwrap_or_default();
        let words = words.replace("TAP", &one.tap).replace("MAC", &one.mac);
        // What was changed before may be on its way back.
        drop(drift::try_drift(self.host, &words));
    }

    /// Somebody deletes what is netd's.
    fn destroy(&mut self) {
        match self.rng.u8(..3) {
            0 => self.host.nft("flush ruleset"),
            1 => {
                let network = self.rng.choice(NETWORKS).unwrap_or_default();
                drop(
                    self.host
                        .try_run("ip", &["link", "set", &format!("ndb{network}"), "down"], ""),
                );
            }
            _ => {
                let Some(one) = self.some_tap() else { return };
                let id = one.owner.clone().unwrap_or_default().id;
                if self.shadow.machines[&id].interfaces.len() > 1 {
                    return;
                }
                self.host.ip(&format!("link del {}", one.tap));
                // That was its end.
                self.shadow.machines.remove(&id);
                wait::until("netd notices that a tap is gone", || {
                    let there = self
                        .netd
                        .client()
                        .list()
                        .into_iter()
                        .any(|other| other.tap == one.tap);
                    if there { Err(one.tap.clone()) } else { Ok(()) }
                });
            }
        }
    }

    /// A guest starts or ends.
    fn run_or_end(&mut self) {
        let id = self.some_id();
        let host = self.host;
        if let Some(machine) = self.shadow.machines.get_mut(&id) {
            if machine.running.is_empty() {
                let opened = machine
                    .interfaces
                    .iter()
                    .map(|one| (one.tap.clone(), guest::open(host, one)));
                machine.running = opened.collect();
            } else {
                machine.running.clear();
            }
        }
    }

    fn operation(&mut self) {
        let (name, run): (_, fn(&mut Self)) = match self.rng.u8(..100) {
            0..30 => ("attach", Self::attach),
            30..38 => ("batch", Self::batch),
            38..62 => ("detach", Self::detach),
            62..70 => ("sync", Self::sync),
            70..75 => ("restart", Self::restart),
            75..84 => ("drift", Self::drift),
            84..87 => ("destroy", Self::destroy),
            87..91 => ("interrupted", Self::interrupted),
            91..93 => ("reload", |play| play.netd.signal(Signal::HUP)),
            _ => ("guest", Self::run_or_end),
        };
        *self.counts.entry(name).or_default() += 1;
        run(self);
    }

    /// netd, the kernel and the model agree.
    fn compare(&self) {
        let should = self.shadow.interfaces();
        wait::until("netd lists what there should be", || {
            let listed = self.netd.client().list().into_iter();
            let listed: BTreeMap<_, _> = listed.map(|one| (one.tap.clone(), one)).collect();
            if listed == should {
                return Ok(());
            }
            let differs = |tap: &&String| listed.get(*tap) != should.get(*tap);
            let taps: BTreeSet<&String> = listed.keys().chain(should.keys()).filter(differs).collect();
            let each = taps
                .iter()
                .map(|tap| format!("{:?} should be {:?}", listed.get(*tap), should.get(*tap)));
            Err(each.collect::<Vec<_>>().join("\n"))
        });
        wait::until("the taps are those that there should be", || {
            let there = state::taps(self.host);
            if there.iter().eq(should.keys()) {
                Ok(())
            } else {
                Err(format!("{there:?}"))
            }
        });
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is a number, not {text:?}")),
    )
}

/// Random requests, changes and kills, beside a model; nothing is left at the end.
pub(crate) fn netd_random() {
    let seed = number("STEPPE_SEED").unwrap_or_else(|| u64::from(fastrand::u32(..)));
    let operations = number(OPERATIONS).unwrap_or(1000);
    say(&format!(
        "netd_random: STEPPE_SEED={seed}, {operations} operations"
    ));
    let host = Space::new("host");
    let neighbour = Space::new("neighbour");
    space::join((&host, "up0"), (&neighbour, "eth0"));
    host.ip("address add 192.0.2.1/24 dev lo");
    let netd = Netd::start(&host, CONFIG);
    let mut play = Play {
        rng: Rng::with_seed(seed),
        host: &host,
        netd,
        shadow: Shadow::default(),
        counts: BTreeMap::new(),
    };
    let idle = idle(&host, &play.netd, &NETWORKS);
    let foreign = state::foreign(&host);
    for done in 1..=operations {
        play.operation();
        if done % COMPARED_EVERY as u64 == 0 {
            play.compare();
        }
    }
    play.compare();
    say(&format!(
        "{:?}; at the end {} machines",
        play.counts,
        play.shadow.machines.len()
    ));
    play.shadow
        .machines
        .values_mut()
        .for_each(|machine| machine.running.clear());
    wait::until("no process holds a tap open", || {
        let listed = play.netd.client().list();
        if listed.iter().any(|one| one.carrier) {
            Err(format!("{listed:?}"))
        } else {
            Ok(())
        }
    });
    for _ in 0..2 {
        play.netd
            .client()
            .sync::<&str>(INSTANCE, &[])
            .expect("no machine lives");
    }
    assert_eq!(play.netd.client().list(), []);
    // What is not heard of is found when everything is looked at.
    play.netd.signal(Signal::HUP);
    becomes(&host, &idle);
    // `flush ruleset` took others' tables too, of which there were none.
    state::assert_same("what is not netd's", &foreign, &state::foreign(&host));
}
