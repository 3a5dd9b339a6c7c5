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

/// Pairs of an attach with an attach, for the spread.
const SAME_PAIRS: usize = 10;

/// Requests under way at a time, where many are, and plugins that run at a time.
const AT_ONCE: usize = 8;

/// Rounds of what takes long. In each, netd attaches and detaches this many machines, and CNI that many containers. The last
/// links of netd's wait a tenth of a second for others, which is little beside so many.
const ROUNDS: usize = 6;
const MACHINES: usize = 640;
const CONTAINERS: usize = 24;

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
        at_once(&mut field, report).await?;
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

    /// One machine comes and goes; how long it took to come.
    async fn round(&mut self, id: &str) -> Result<f64, BenchError> {
        let (tap, took) = self.daemon.attach(id).await?;
        detach(&mut self.daemon.client, id).await?;
        self.daemon.gone(&BTreeSet::from([tap])).await?;
        Ok(ms(took))
    }
}

/// One attach at a time, beside the plugin's ADD and the steps alone.
async fn one_by_one(field: &mut Field, pairs: usize, report: &mut Report) -> Result<(), BenchError> {
    field.bare.enter()?;
    let mut bridge = Bridge::new()?;
    field.host.enter()?;
    let (mut a, mut b) = (Samples::default(), Samples::default());
    let (mut whole, mut bare) = (Samples::default(), Samples::default());
    let (mut filter, mut links, mut asking, mut cni) = (
        Samples::default(),
        Samples::default(),
        Samples::default(),
        Samples::default(),
    );
    for number in 0..3 {
        // Files come into the page cache, the bridges are there.
        let _warm = field.round(&format!("warm-{number}")).await?;
        let container = field.container(number);
        let _warm = (container.add()?, container.del()?);
    }
    for number in 0..SAME_PAIRS.min(pairs) {
        a.push(field.round(&format!("a-{number}")).await?);
        b.push(field.round(&format!("b-{number}")).await?);
    }
    for number in 0..pairs {
        let mut ours = async |field: &mut Field| -> Result<(), BenchError> {
            whole.push(field.round(&format!("pair-{number}")).await?);
            field.bare.enter()?;
            let parts = bridge.round(&format!("pair-{number}"))?;
            field.host.enter()?;
            let asked = field.daemon.version().await?;
            filter.push(ms(parts.filter));
            links.push(ms(parts.links));
            asking.push(ms(asked));
            bare.push(ms(parts.links + asked));
            Ok(())
        };
        let mut theirs = |field: &Field| -> Result<(), BenchError> {
            let container = field.container(number);
            cni.push(ms(container.add()?));
            let _took = container.del()?;
            Ok(())
        };
        if number % 2 == 0 {
            ours(field).await?;
            theirs(field)?;
        } else {
            theirs(field)?;
            ours(field).await?;
        }
    }
    let spread = apart(&a, &b).max(whole.spread());
    let both = spread + cni.spread();
    report.add(
        "netd: attach, with its filter",
        whole.median(),
        "ms",
        None,
        spread,
    );
    for (name, part) in [
        ("netd: links of an attach", &links),
        ("netd: filter of an attach", &filter),
        ("netd: a request that does nothing", &asking),
        ("CNI bridge plugin: ADD", &cni),
    ] {
        report.add(name, part.median(), "ms", None, part.spread());
    }
    report.add(
        "netd: attach without filter, ratio to CNI's ADD",
        bare.median() / cni.median(),
        "",
        Some(0.1),
        bare.spread().max(apart(&a, &b)) + cni.spread(),
    );
    report.add(
        "netd: attach with its filter, ratio to CNI's ADD",
        whole.median() / cni.median(),
        "",
        Some(0.2),
        both,
    );
    Ok(())
}

/// Attaches and detaches this many machines, some at a time; until the last link is gone.
async fn churn(field: &mut Field, round: usize) -> Result<Duration, BenchError> {
    let began = Instant::now();
    let mut workers = JoinSet::new();
    for worker in 0..AT_ONCE {
        let mut client = field.daemon.client.clone();
        workers.spawn(async move {
            let mut taps = BTreeSet::new();
            for number in 0..MACHINES / AT_ONCE {
                let id = format!("churn-{round}-{worker}-{number}");
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
fn churn_of_cni(field: &Field) -> Result<Duration, BenchError> {
    let began = Instant::now();
    // Threads begin in the namespace of the one that starts them.
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE)
            .map(|worker| {
                scope.spawn(move || -> Result<(), BenchError> {
                    for number in 0..CONTAINERS / AT_ONCE {
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

async fn at_once(field: &mut Field, report: &mut Report) -> Result<(), BenchError> {
    let (mut ours, mut theirs) = (Samples::default(), Samples::default());
    for round in 0..ROUNDS {
        ours.push(ms(churn(field, round).await?) / MACHINES as f64);
        theirs.push(ms(churn_of_cni(field)?) / CONTAINERS as f64);
    }
    for (name, samples) in [
        ("netd: attach and detach, of many, until the link is gone", &ours),
        ("CNI bridge plugin: ADD and DEL, of many", &theirs),
    ] {
        report.add(name, samples.median(), "ms", None, samples.spread());
    }
    report.add(
        "netd: attach and detach, of many, ratio to CNI's ADD and DEL",
        ours.median() / theirs.median(),
        "",
        Some(0.1),
        ours.spread() + theirs.spread(),
    );
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
        for number in 0..SAME_PAIRS {
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
    let (mut memory, mut together) = (Samples::default(), Samples::default());
    for round in 0..3 {
        let machines = a_thousand_attached(field, round).await?;
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
    let machines = a_thousand_attached(field, 3).await?;
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
