//! Is there an order of events in which two write?
//!
//! All states are looked through that two hosts can come to with one volume: starts, stops, handovers, deaths of the daemon and of
//! the host, freezes and thaws between any two steps, up to a number of each. A state in which two clients can write that are not
//! fenced, or one that the record doesn't name, ends the search with the way to it. Mistakes that others made, or that would
//! be easy to make, each lead to two that write.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::*;

/// How often each thing may happen on one way.
const CLAIMS: u64 = 3;
const CLIENTS: u8 = 3;
const DEATHS: u8 = 1;
const FREEZES: u8 = 1;
const OFFERS: u8 = 1;

/// A mistake that somebody could make, to see that it would be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    /// The client runs before its address is in the record.
    ConfirmAfterCont,
    /// A holder that is silent has lost the volume.
    ExpiryByTime,
    /// Whom to fence is looked up before the claim is written.
    LookBeforeClaim,
    /// A claim in the middle of another one's fencing begins anew.
    VictimsForgotten,
    /// The other one's client runs as soon as it is in the record.
    RunBeforePass,
}

/// Takes what could happen: its name, and what it makes of a world, unless it can't happen there.
type Take<'t> = dyn FnMut(&str, &dyn Fn(&mut World) -> bool) + 't;

/// Where a host's daemon is with its one machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Step {
    Idle,
    /// It has read the record, and, where that is its mistake, looked.
    Read(Option<Lease>, BTreeSet<Address>),
    /// It fences; whom, once it has looked.
    Fencing(Lease, Option<BTreeSet<Address>>),
    /// It may start a client.
    Claimed(Lease),
    /// The client is there and stopped.
    Opened(Lease),
    Confirmed,
    Running,
    /// Its client is stopped, and the other one's may be there.
    Passing,
    /// It is to get the volume from the other one; its client is there and stopped.
    Receiving,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Client {
    address: Address,
    runs: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Host {
    boot: u8,
    frozen: bool,
    step: Step,
    client: Option<Client>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    stored: Option<Lease>,
    blocklist: BTreeSet<Address>,
    hosts: [Host; 2],
    clients: u8,
    deaths: u8,
    freezes: u8,
    offers: u8,
}

impl World {
    fn new() -> Self {
        let host = || Host {
            boot: 0,
            frozen: false,
            step: Step::Idle,
            client: None,
        };
        Self {
            stored: None,
            blocklist: BTreeSet::new(),
            hosts: [host(), host()],
            clients: 0,
            deaths: 0,
            freezes: 0,
            offers: 0,
        }
    }

    fn me(&self, host: usize) -> Holder {
        Holder {
            host: ["a", "b"][host].to_owned(),
            boot: self.hosts[host].boot.to_string(),
            owner: "vm".to_owned(),
        }
    }

    /// Addresses of clients that the storage sees. One that was frozen for long is not among them any more.
    fn seen(&self) -> BTreeSet<Address> {
        let clients = self.hosts.iter().filter(|host| !host.frozen);
        clients
            .filter_map(|host| Some(host.client.as_ref()?.address.clone()))
            .collect()
    }

    /// Clients that can write, now or when their host thaws.
    fn writers(&self) -> Vec<&Client> {
        let clients = self.hosts.iter().filter_map(|host| host.client.as_ref());
        clients
            .filter(|client| client.runs && !self.blocklist.contains(&client.address))
            .collect()
    }

    /// Whether somebody can write whom the record doesn't name: whoever takes the volume would not know whom to fence.
    fn has_a_nameless_writer(&self) -> bool {
        let named = |client: &&Client| {
            self.stored.as_ref().is_some_and(|lease| {
                lease.addresses.contains(&client.address) || lease.victims.contains(&client.address)
            })
        };
        !self.writers().iter().all(named)
    }

    /// Compares and sets.
    fn set(&mut self, change: &Change) -> bool {
        let holds = change.holds(self.stored.as_ref());
        if holds {
            self.stored = Some(change.write.clone());
        }
        holds
    }

    fn kill(&mut self, host: usize) {
        (self.hosts[host].client, self.hosts[host].step) = (None, Step::Idle);
    }

    fn open(&mut self, host: usize) -> bool {
        if self.clients == CLIENTS {
            return false;
        }
        self.clients += 1;
        let address = self.clients.to_string();
        self.hosts[host].client = Some(Client { address, runs: false });
        true
    }

    fn runs(&mut self, host: usize, runs: bool) {
        if let Some(client) = &mut self.hosts[host].client {
            client.runs = runs;
        }
    }

    fn own(&self, host: usize) -> BTreeSet<Address> {
        let client = self.hosts[host].client.as_ref();
        client.map(|client| client.address.clone()).into_iter().collect()
    }

    /// Everything that can happen next, with its name.
    fn next(&self, mistake: Mistake) -> Vec<(String, Self)> {
        let mut found = Vec::new();
        for host in 0..2 {
            let mut take = |what: &str, step: &dyn Fn(&mut Self) -> bool| {
                let mut next = self.clone();
                if step(&mut next) {
                    found.push((format!("{}: {what}", ["a", "b"][host]), next));
                }
            };
            let here = &self.hosts[host];
            if here.frozen {
                take("thaws", &|next| {
                    next.hosts[host].frozen = false;
                    true
                });
                continue;
            }
            if self.freezes < FREEZES {
                take("freezes", &|next| {
                    next.freezes += 1;
                    next.hosts[host].frozen = true;
                    true
                });
            }
            if self.deaths < DEATHS {
                take("boots", &|next| {
                    next.deaths += 1;
                    next.hosts[host].boot += 1;
                    next.kill(host);
                    true
                });
                take("its daemon dies", &|next| {
                    next.deaths += 1;
                    next.restarted(host);
                    true
                });
            }
            self.steps(host, mistake, &mut take);
        }
        found
    }

    /// A daemon that begins anew: what runs, runs; of what doesn't, the machine's start is taken back.
    fn restarted(&mut self, host: usize) {
        let runs = self.hosts[host].client.as_ref().is_some_and(|client| client.runs);
        if runs {
            self.hosts[host].step = Step::Running;
        } else {
            self.kill(host);
            self.give_back(host);
        }
    }

    /// Its client is dead.
    fn give_back(&mut self, host: usize) {
        let me = self.me(host);
        if let Some(change) = release(self.stored.as_ref(), &me) {
            assert!(self.set(&change));
        }
    }

    fn steps(&self, host: usize, mistake: Mistake, take: &mut Take<'_>) {
        let me = self.me(host);
        match &self.hosts[host].step {
            Step::Idle => {
                take("reads", &|next| {
                    let claims = next.stored.as_ref().map_or(0, |lease| lease.epoch);
                    let looked = next.seen();
                    next.hosts[host].step = Step::Read(next.stored.clone(), looked);
                    claims < CLAIMS
                });
                if let Some(Lease {
                    state: State::Handover { to, accepted: false },
                    ..
                }) = &self.stored
                    && *to == me
                {
                    take("opens what it is offered", &|next| {
                        next.hosts[host].step = Step::Receiving;
                        next.open(host)
                    });
                }
            }
            Step::Read(read, looked) => take("claims", &|next| {
                next.claims(host, mistake, read.as_ref(), looked)
            }),
            Step::Fencing(lease, None) => take("looks", &|next| {
                let fence = to_fence(lease, &next.seen(), &next.own(host));
                next.hosts[host].step = Step::Fencing(lease.clone(), Some(fence));
                true
            }),
            Step::Fencing(lease, Some(left)) => match left.first() {
                Some(address) => take("fences one", &|next| {
                    next.blocklist.insert(address.clone());
                    let mut left = left.clone();
                    left.remove(address);
                    next.hosts[host].step = Step::Fencing(lease.clone(), Some(left));
                    true
                }),
                None => take("has fenced", &|next| {
                    let change = fenced(lease);
                    next.hosts[host].step = if next.set(&change) {
                        Step::Claimed(change.write.clone())
                    } else {
                        Step::Idle
                    };
                    true
                }),
            },
            Step::Claimed(lease) => take("opens", &|next| {
                next.hosts[host].step = Step::Opened(lease.clone());
                next.open(host)
            }),
            Step::Opened(lease) => {
                let confirms = |next: &mut Self| {
                    let change = confirm(lease, next.own(host));
                    if next.set(&change) {
                        next.hosts[host].step = Step::Confirmed;
                    } else {
                        next.kill(host);
                    }
                    true
                };
                take("confirms", &confirms);
                if mistake == Mistake::ConfirmAfterCont {
                    take("runs too early", &|next| {
                        next.runs(host, true);
                        true
                    });
                }
            }
            Step::Confirmed => take("runs", &|next| {
                next.runs(host, true);
                next.hosts[host].step = Step::Running;
                true
            }),
            Step::Running => {
                take("ends", &|next| {
                    next.kill(host);
                    next.give_back(host);
                    true
                });
                take("offers", &|next| {
                    let to = next.me(1 - host);
                    let stored = next.stored.clone();
                    let change = stored.and_then(|stored| offer(&stored, &me, &to).ok());
                    next.offers += 1;
                    next.offers <= OFFERS && change.is_some_and(|change| next.set(&change))
                });
                take("stops to pass", &|next| {
                    next.runs(host, false);
                    next.hosts[host].step = Step::Passing;
                    matches!(&next.stored, Some(Lease { state: State::Handover { .. }, holder, .. }) if *holder == me)
                });
            }
            Step::Passing => {
                take("passes", &|next| {
                    let change = next.stored.clone().and_then(|stored| pass(&stored, &me).ok());
                    let passed = change.is_some_and(|change| next.set(&change));
                    if passed {
                        next.kill(host);
                    }
                    passed
                });
                take("withdraws", &|next| {
                    let change = next.stored.clone().and_then(|stored| withdraw(&stored, &me).ok());
                    if change.is_some_and(|change| next.set(&change)) {
                        next.runs(host, true);
                        next.hosts[host].step = Step::Running;
                    } else {
                        next.kill(host);
                    }
                    true
                });
            }
            Step::Receiving => {
                take("accepts", &|next| {
                    let own = next.own(host);
                    if next
                        .stored
                        .as_ref()
                        .is_some_and(|stored| own.is_subset(&stored.addresses))
                    {
                        return false;
                    }
                    let change = next
                        .stored
                        .clone()
                        .and_then(|stored| accept(&stored, &me, &own).ok());
                    let accepted = change.is_some_and(|change| next.set(&change));
                    if accepted && mistake == Mistake::RunBeforePass {
                        next.runs(host, true);
                    }
                    accepted
                });
                take("runs what it was passed", &|next| {
                    let passed = next
                        .stored
                        .as_ref()
                        .is_some_and(|stored| stored.state == State::Attached && adopt(stored, &me).is_ok());
                    next.runs(host, true);
                    next.hosts[host].step = Step::Running;
                    passed
                });
                take("gives up", &|next| {
                    next.kill(host);
                    next.give_back(host);
                    true
                });
            }
        }
    }

    /// The second half of a claim, with what was read.
    fn claims(
        &mut self,
        host: usize,
        mistake: Mistake,
        read: Option<&Lease>,
        looked: &BTreeSet<Address>,
    ) -> bool {
        let me = self.me(host);
        let fresh = self.stored.clone();
        let read = match mistake {
            // The claim reads anew, what is fenced was read before.
            Mistake::LookBeforeClaim => fresh.as_ref(),
            _ => read,
        };
        let claimed = match (claim(read, &me, OnConflict::Fence, 0), mistake) {
            (Claim::Fence(mut change), Mistake::ExpiryByTime) => {
                change.write.state = State::Attaching;
                change.write.victims.clear();
                Claim::Attach(change)
            }
            (Claim::Fence(mut change), Mistake::VictimsForgotten) => {
                let before = read.map(|lease| lease.addresses.clone());
                change.write.victims = before.unwrap_or_default();
                Claim::Fence(change)
            }
            (claimed, _) => claimed,
        };
        let (change, fence) = match &claimed {
            Claim::Attach(change) => (change, false),
            Claim::Fence(change) => (change, true),
            Claim::Held(_) => {
                self.hosts[host].step = Step::Idle;
                return true;
            }
        };
        if !self.set(change) {
            self.hosts[host].step = Step::Idle;
            return true;
        }
        let lease = change.write.clone();
        self.hosts[host].step = match (fence, mistake) {
            (false, _) => Step::Claimed(lease),
            (true, Mistake::LookBeforeClaim) => Step::Fencing(lease, Some(looked.clone())),
            (true, _) => Step::Fencing(lease, None),
        };
        true
    }
}

/// How far the search came.
struct Searched {
    states: usize,
    steps: usize,
    /// What was seen of the storage's states.
    seen: BTreeMap<&'static str, usize>,
    /// The way to the first state that is wrong.
    wrong: Option<Vec<String>>,
}

/// Looks through all states, the nearest first, until one is wrong.
fn search(mistake: Mistake, is_wrong: impl Fn(&World) -> bool) -> Searched {
    let first = World::new();
    let mut known: HashMap<World, Option<(usize, String)>> = HashMap::from([(first.clone(), None)]);
    let mut order = vec![first];
    let mut waiting = VecDeque::from([0]);
    let mut searched = Searched {
        states: 0,
        steps: 0,
        seen: BTreeMap::new(),
        wrong: None,
    };
    while let Some(number) = waiting.pop_front() {
        let world = order[number].clone();
        let name = world.stored.as_ref().map_or("absent", |lease| lease.state.name());
        *searched.seen.entry(name).or_default() += 1;
        if is_wrong(&world) {
            let mut way = Vec::new();
            let mut at = &world;
            while let Some((before, what)) = &known[at] {
                way.push(what.clone());
                at = &order[*before];
            }
            way.reverse();
            searched.wrong = Some(way);
            break;
        }
        for (what, next) in world.next(mistake) {
            searched.steps += 1;
            if !known.contains_key(&next) {
                known.insert(next.clone(), Some((number, what)));
                order.push(next);
                waiting.push_back(order.len() - 1);
            }
        }
    }
    searched.states = order.len();
    searched
}

/// Where the size of the search and the ways to its finds are written, for a person.
const REPORT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/lease-model.txt");

#[test]
fn lease_model() {
    let two_write = |world: &World| world.writers().len() > 1;
    let searched = search(Mistake::None, |world| {
        two_write(world) || world.has_a_nameless_writer()
    });
    let mut report = format!(
        "{} states, {} steps between them, none of them wrong; with the record {:?}\n",
        searched.states, searched.steps, searched.seen
    );
    assert_eq!(searched.wrong, None);
    // It went everywhere.
    let all = [
        "absent",
        "attached",
        "attaching",
        "fencing",
        "handover",
        "released",
    ];
    assert_eq!(searched.seen.keys().copied().collect::<Vec<_>>(), all);
    for mistake in [
        Mistake::ConfirmAfterCont,
        Mistake::ExpiryByTime,
        Mistake::LookBeforeClaim,
        Mistake::VictimsForgotten,
        Mistake::RunBeforePass,
    ] {
        let searched = search(mistake, two_write);
        let way = searched
            .wrong
            .unwrap_or_else(|| panic!("{mistake:?} is not found"));
        let states = searched.states;
        report.push_str(&format!(
            "{mistake:?}: two write, after {states} states: {}\n",
            way.join("; ")
        ));
    }
    print!("{report}");
    // Without a folder for it there is no report.
    let _written = std::fs::write(REPORT, report);
}
