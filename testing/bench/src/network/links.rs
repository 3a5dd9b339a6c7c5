//! How long do attaching and detaching take, alone, many at once, and a thousand together?

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use netd::apply::Hands;
use netd_plan::Action;
use tokio::task::JoinSet;

use crate::figures::{Report, Samples, apart};
use crate::{BenchError, say, variable};

use super::cni::Container;
use super::daemon::{Daemon, attach, detach};
use super::space::Space;
use super::steps::{Bridge, config};

/// So many come one after the other before it is the other's turn: as many as a job of that count brings. The first of them
/// finds caches that the other used.
const BURST: usize = 10;

/// Pairs of bursts of ours with ours, for the spread.
const SAME_PAIRS: usize = 2;

/// Requests under way at a time, where many are, and plugins that run at a time.
const AT_ONCE: usize = 8;

/// Rounds of what takes long. In each, netd attaches and detaches this many machines, and CNI that many containers. The last
/// links of netd's wait a tenth of a second for others, which is little beside so many.
const ROUNDS: usize = 6;

/// netd gives back what many requests at once have taken, when none has come for a second.
const REST: Duration = Duration::from_secs(3);
const MACHINES: usize = 640;
const CONTAINERS: usize = 24;

/// Attaches alone, in each round, beside those while others are detached.
const ALONE: usize = 10;

/// Machines that are detached while others are attached.
const VICTIMS: usize = 200;

/// The promise is about so many.
const THOUSAND: usize = 1000;

/// Links are deleted one by one in so many groups, for the spread.
const GROUPS: usize = 10;

/// Namespaces, the daemon and the plugin's container.
#[derive(Debug)]
struct Field {
    /// Where netd and the plugin work.
    host: Space,
    /// Where netd's steps are done without a daemon.
    bare: Space,
    /// Where containers are.
    _inside: Space,
    containers: PathBuf,
    program: PathBuf,
    daemon: Daemon,
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

pub(super) fn measure(pairs: usize, report: &mut Report) -> Result<(), BenchError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| BenchError::Io("no runtime can be had".to_owned(), error))?;
    runtime.block_on(async {
        let mut field = Field::new().await?;
        one_by_one(&mut field, pairs, report).await?;
        rates(&mut field, report).await?;
        beside_deletes(&mut field, report).await?;
        a_thousand(&mut field, report).await
    })
}

impl Field {
    async fn new() -> Result<Self, BenchError> {
        let (host, bare, inside) = (Space::new("host")?, Space::new("bare")?, Space::new("inside")?);
        for space in [&host, &bare] {
            space.ip("link add up0 type veth peer name up1\nlink set up0 up\nlink set up1 up\n")?;
        }
        host.enter()?;
        let program = Path::new(&variable("STEPPE_PLUGIN_DIR")?).join("netd");
        let folder = Path::new(&variable("STEPPE_BENCH_AGENTS")?).join("netd");
        let daemon = Daemon::start(&program, &folder).await?;
        Ok(Self {
            host,
            bare,
            containers: inside.path(),
            _inside: inside,
            program,
            daemon,
        })
    }

    fn container(&self, number: usize) -> Container<'_> {
        Container {
            namespace: &self.containers,
            number,
        }
    }

    /// Machines come one after the other, and go; how long each took to come.
    async fn burst(&mut self, name: &str) -> Result<Vec<f64>, BenchError> {
        let (mut taps, mut took) = (BTreeSet::new(), Vec::new());
        for id in ids(name) {
            let (tap, time) = self.daemon.attach(&id).await?;
            taps.insert(tap);
            took.push(ms(time));
        }
        for id in ids(name) {
            detach(&mut self.daemon.client, &id).await?;
        }
        self.daemon.gone(&taps).await?;
        Ok(took)
    }

    /// The same of containers.
    fn burst_of_cni(&self) -> Result<Vec<f64>, BenchError> {
        let containers = || (0..BURST).map(|number| self.container(number));
        let took = containers().map(|container| container.add().map(ms));
        let took: Vec<f64> = took.collect::<Result<_, _>>()?;
        containers().try_for_each(|container| container.del().map(drop))?;
        Ok(took)
    }
}

/// Names of the machines of a burst.
fn ids(name: &str) -> Vec<String> {
    (0..BURST).map(|number| format!("{name}-{number}")).collect()
}

/// What attaching takes, in times of one attach each.
#[derive(Debug, Default)]
struct Attaches {
    whole: Samples,
    links: Samples,
    filter: Samples,
    asking: Samples,
    bare: Samples,
    cni: Samples,
}

impl Attaches {
    /// A burst of ours: as a driver asks for it, and its steps without a daemon.
    async fn ours(&mut self, field: &mut Field, bridge: &mut Bridge, name: &str) -> Result<(), BenchError> {
        field
            .burst(name)
            .await?
            .into_iter()
            .for_each(|took| self.whole.push(took));
        field.bare.enter()?;
        let parts = bridge.burst(&ids(name));
        field.host.enter()?;
        for part in parts? {
            let asked = field.daemon.version().await?;
            self.filter.push(ms(part.filter));
            self.links.push(ms(part.links));
            self.asking.push(ms(asked));
            self.bare.push(ms(part.links + asked));
        }
        Ok(())
    }

    fn theirs(&mut self, field: &Field) -> Result<(), BenchError> {
        field
            .burst_of_cni()?
            .into_iter()
            .for_each(|took| self.cni.push(took));
        Ok(())
    }
}

/// Attaches one after the other, beside the plugin's ADD and the steps alone.
async fn one_by_one(field: &mut Field, pairs: usize, report: &mut Report) -> Result<(), BenchError> {
    field.bare.enter()?;
    let bridge = Bridge::new();
    field.host.enter()?;
    let mut bridge = bridge?;
    let (mut a, mut b, mut all) = (Samples::default(), Samples::default(), Attaches::default());
    // Files come into the page cache, the bridges are there.
    let _warm = (field.burst("warm").await?, field.burst_of_cni()?);
    for number in 0..SAME_PAIRS {
        for (name, samples) in [("a", &mut a), ("b", &mut b)] {
            let took = field.burst(&format!("{name}-{number}")).await?;
            took.into_iter().for_each(|took| samples.push(took));
        }
    }
    for number in 0..pairs.div_ceil(BURST).max(2) {
        let name = format!("pair-{number}");
        if number % 2 == 0 {
            all.ours(field, &mut bridge, &name).await?;
            all.theirs(field)?;
        } else {
            all.theirs(field)?;
            all.ours(field, &mut bridge, &name).await?;
        }
    }
    let same = apart(&a, &b);
    report.add(
        "netd: attach, with its filter",
        all.whole.median(),
        "ms",
        None,
        all.whole.spread().max(same),
    );
    for (name, part) in [
        ("netd: links of an attach", &all.links),
        ("netd: filter of an attach", &all.filter),
        ("netd: a request that does nothing", &all.asking),
        ("CNI bridge plugin: ADD", &all.cni),
    ] {
        report.add(name, part.median(), "ms", None, part.spread());
    }
    for (name, samples, goal) in [
        ("netd: attach without filter, ratio to CNI's ADD", &all.bare, 0.1),
        (
            "netd: attach with its filter, ratio to CNI's ADD",
            &all.whole,
            0.2,
        ),
    ] {
        report.add(
            name,
            samples.median() / all.cni.median(),
            "",
            Some(goal),
            samples.spread().max(same) + all.cni.spread(),
        );
    }
    Ok(())
}

/// Attaches and detaches this many machines, so many at a time; until the last link is gone.
async fn churn(field: &mut Field, round: usize, at_once: usize) -> Result<Duration, BenchError> {
    let began = Instant::now();
    let mut workers = JoinSet::new();
    for worker in 0..at_once {
        let mut client = field.daemon.client.clone();
        workers.spawn(async move {
            let mut taps = BTreeSet::new();
            for number in 0..MACHINES / at_once {
                let id = format!("churn-{at_once}-{round}-{worker}-{number}");
                let (tap, _) = attach(&mut client, &id).await?;
                detach(&mut client, &id).await?;
                taps.insert(tap);
            }
            Ok::<_, BenchError>(taps)
        });
    }
    let mut taps = BTreeSet::new();
    while let Some(done) = workers.join_next().await {
        let done = done.map_err(|error| BenchError::Task(format!("a worker failed: {error}")))?;
        taps.extend(done?);
    }
    field.daemon.gone(&taps).await?;
    Ok(began.elapsed())
}

/// The same of containers, with as many plugins at a time. DEL returns when the link is gone.
fn churn_of_cni(field: &Field, at_once: usize) -> Result<Duration, BenchError> {
    let began = Instant::now();
    // Threads begin in the namespace of the one that starts them.
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once)
            .map(|worker| {
                scope.spawn(move || -> Result<(), BenchError> {
                    for number in 0..CONTAINERS / at_once {
                        let container = field.container(worker * CONTAINERS + number);
                        let _took = (container.add()?, container.del()?);
                    }
                    Ok(())
                })
            })
            .collect();
        workers.into_iter().try_for_each(super::join)
    })?;
    Ok(began.elapsed())
}

/// Rates, one at a time on both sides, and many at a time on both sides.
async fn rates(field: &mut Field, report: &mut Report) -> Result<(), BenchError> {
    for (at_once, names, goal) in [
        (
            1,
            [
                "netd: attach and detach, until the link is gone",
                "CNI bridge plugin: ADD and DEL",
                "netd: attach and detach, ratio to CNI's ADD and DEL",
            ],
            Some(0.1),
        ),
        (
            AT_ONCE,
            [
                "netd: attach and detach, 8 at a time",
                "CNI bridge plugin: ADD and DEL, 8 at a time",
                "netd: attach and detach, 8 at a time, ratio to CNI's",
            ],
            None,
        ),
    ] {
        let (mut ours, mut theirs) = (Samples::default(), Samples::default());
        for round in 0..ROUNDS {
            ours.push(ms(churn(field, round, at_once).await?) / MACHINES as f64);
            theirs.push(ms(churn_of_cni(field, at_once)?) / CONTAINERS as f64);
        }
        let [our_name, their_name, ratio] = names;
        report.add(our_name, ours.median(), "ms", None, ours.spread());
        report.add(their_name, theirs.median(), "ms", None, theirs.spread());
        report.add(
            ratio,
            ours.median() / theirs.median(),
            "",
            goal,
            ours.spread() + theirs.spread(),
        );
    }
    Ok(())
}

/// Attaches while others are detached and their links deleted.
async fn beside_deletes(field: &mut Field, report: &mut Report) -> Result<(), BenchError> {
    let (mut alone, mut beside) = (Samples::default(), Samples::default());
    for round in 0..ROUNDS {
        let mut victims = Vec::new();
        for number in 0..VICTIMS {
            let id = format!("victim-{round}-{number}");
            let (tap, _) = field.daemon.attach(&id).await?;
            victims.push((id, tap));
        }
        let mut came = Vec::new();
        for number in 0..ALONE {
            let id = format!("alone-{round}-{number}");
            let (tap, took) = field.daemon.attach(&id).await?;
            alone.push(ms(took));
            came.push((id, tap));
        }
        let mut client = field.daemon.client.clone();
        let ids: Vec<String> = victims.iter().map(|(id, _)| id.clone()).collect();
        let detaching = tokio::spawn(async move {
            for id in ids {
                detach(&mut client, &id).await?;
            }
            Ok::<_, BenchError>(())
        });
        let mut number = 0;
        while !detaching.is_finished() {
            let id = format!("beside-{round}-{number}");
            let (tap, took) = field.daemon.attach(&id).await?;
            beside.push(ms(took));
            came.push((id, tap));
            number += 1;
        }
        let detached = detaching.await;
        detached.map_err(|error| BenchError::Task(format!("detaching failed: {error}")))??;
        let mut taps: BTreeSet<String> = victims.into_iter().map(|(_, tap)| tap).collect();
        for (id, tap) in came {
            detach(&mut field.daemon.client, &id).await?;
            taps.insert(tap);
        }
        field.daemon.gone(&taps).await?;
    }
    say(&format!(
        "{} attaches alone, {} while {} machines were detached",
        alone.len(),
        beside.len(),
        ROUNDS * VICTIMS
    ));
    report.add(
        "netd: attach while others are detached, ratio to alone",
        beside.median() / alone.median(),
        "",
        Some(3.0),
        alone.spread() + beside.spread(),
    );
    Ok(())
}

/// A thousand interfaces: what netd needs of memory, and how fast they go.
async fn a_thousand(field: &mut Field, report: &mut Report) -> Result<(), BenchError> {
    let (mut memory, mut most) = (Samples::default(), Samples::default());
    let mut together = Samples::default();
    for round in 0..ROUNDS {
        let machines = a_thousand_attached(field, round).await?;
        most.push(field.daemon.resident_mib());
        tokio::time::sleep(REST).await;
        memory.push(field.daemon.resident_mib());
        let taps = machines.iter().map(|(_, tap)| tap.clone()).collect();
        let began = Instant::now();
        for part in machines.chunks(THOUSAND / AT_ONCE) {
            // One connection: the next request goes before the last is answered.
            let mut asked = JoinSet::new();
            for (id, _) in part {
                let (mut client, id) = (field.daemon.client.clone(), id.clone());
                asked.spawn(async move { detach(&mut client, &id).await });
            }
            while let Some(done) = asked.join_next().await {
                done.map_err(|error| BenchError::Task(format!("a worker failed: {error}")))??;
            }
        }
        field.daemon.gone(&taps).await?;
        together.push(ms(began.elapsed()));
    }
    let machines = a_thousand_attached(field, ROUNDS).await?;
    // The daemon would see that links of its own vanish.
    field.daemon.stop()?;
    let config = config()?;
    let failed = |what: String| BenchError::Task(format!("a link can't be deleted: {what}"));
    let mut hands = Hands::open(config.link_group).map_err(|error| failed(error.to_string()))?;
    let mut each = Samples::default();
    for part in machines.chunks(THOUSAND / GROUPS) {
        let began = Instant::now();
        for (_, tap) in part {
            let name = tap
                .parse()
                .map_err(|_| failed(format!("{tap} is no name of netd's")))?;
            hands
                .apply(&Action::DeleteLink { name })
                .map_err(|error| failed(error.to_string()))?;
        }
        each.push(ms(began.elapsed()) * GROUPS as f64);
    }
    field.daemon.begin(&field.program).await?;
    report.add(
        "netd: memory right after 1000 attaches",
        most.median(),
        "MiB",
        None,
        most.spread(),
    );
    report.add(
        "netd: memory with 1000 interfaces",
        memory.median(),
        "MiB",
        Some(15.0),
        memory.spread(),
    );
    report.add(
        "netd: 1000 interfaces removed, until the last link is gone",
        together.median(),
        "ms",
        None,
        together.spread(),
    );
    report.add(
        "1000 links deleted one by one",
        each.mean(),
        "ms",
        None,
        each.spread(),
    );
    report.add(
        "netd: 1000 interfaces removed, ratio to one by one",
        together.median() / each.mean(),
        "",
        Some(0.1),
        together.spread() + each.spread(),
    );
    Ok(())
}

async fn a_thousand_attached(field: &mut Field, round: usize) -> Result<Vec<(String, String)>, BenchError> {
    let mut machines = Vec::new();
    for number in 0..THOUSAND {
        let id = format!("thousand-{round}-{number}");
        let (tap, _) = field.daemon.attach(&id).await?;
        machines.push((id, tap));
    }
    Ok(machines)
}
