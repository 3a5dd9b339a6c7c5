//! How long does each part of an attach take, without a daemon?

use std::time::{Duration, Instant};

use netd::apply::Hands;
use netd::{kernel, observe};
use netd_plan::{
    Action, Answered, Attachment, Config, Identity, Observed, Owner, Request, RequestNic, attach, decide,
    detach, filter, network, sweep,
};

use crate::BenchError;

use super::daemon::{CONFIG, NETWORK};

/// The network, made by hand in the namespace of the thread that made it, which alone may use it.
#[derive(Debug)]
pub(super) struct Bridge {
    config: Config,
    hands: Hands,
    observed: Observed,
}

/// What of an attach the filter took, and what its links.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts {
    pub(super) filter: Duration,
    pub(super) links: Duration,
}

fn failed(what: impl std::fmt::Display) -> BenchError {
    BenchError::Task(format!("netd's steps: {what}"))
}

/// The configuration of all measurements.
pub(super) fn config() -> Result<Config, BenchError> {
    let files = [("bench".to_owned(), CONFIG.to_owned())];
    let parsed = Config::parse(&files);
    parsed.map(|(config, _)| config).map_err(|problems| {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        failed(problems.join("; "))
    })
}

/// What a machine would get beside others.
pub(super) fn decided(
    config: &Config,
    observed: &Observed,
    existing: &[Attachment],
    id: &str,
) -> Result<Vec<Attachment>, BenchError> {
    let request = Request {
        owner: Owner::new("bench", id).map_err(failed)?,
        identity: Identity::new(&format!("default/bench/vm/vm/{id}")).map_err(failed)?,
        uid: 65_533,
        queues: 1,
        nics: vec![RequestNic {
            network: NETWORK.to_owned(),
            ..RequestNic::default()
        }],
    };
    decide(config, observed, existing.iter(), &Answered::new(), &request).map_err(failed)
}

impl Bridge {
    /// Makes it, with an empty filter.
    pub(super) fn new() -> Result<Self, BenchError> {
        let config = config()?;
        let mut hands = Hands::open(config.link_group).map_err(failed)?;
        let kernel = kernel::look(&mut hands.netlink);
        let observed = observe::all(&mut hands.netlink).map_err(failed)?.observed;
        for one in config.networks.values() {
            for action in network(&config, one, &observed, kernel).map_err(failed)? {
                hands.apply(&action).map_err(failed)?;
            }
        }
        let text = filter::whole(&config, std::iter::empty());
        hands.apply(&Action::Filter { text }).map_err(failed)?;
        let observed = observe::all(&mut hands.netlink).map_err(failed)?.observed;
        Ok(Self {
            config,
            hands,
            observed,
        })
    }

    /// Attaches these machines one after the other, what each took, and takes all of them back.
    pub(super) fn burst(&mut self, ids: &[String]) -> Result<Vec<Parts>, BenchError> {
        let mut all: Vec<Attachment> = Vec::new();
        let mut parts = Vec::new();
        for id in ids {
            let new = decided(&self.config, &self.observed, &all, id)?;
            let mut part = Parts {
                filter: Duration::ZERO,
                links: Duration::ZERO,
            };
            for action in attach(&self.config, &self.observed, all.iter(), &new) {
                let began = Instant::now();
                self.hands.apply(&action).map_err(failed)?;
                match action {
                    Action::Filter { .. } => part.filter += began.elapsed(),
                    _ => part.links += began.elapsed(),
                }
            }
            parts.push(part);
            all.extend(new);
        }
        for action in detach(&self.config, std::iter::empty(), &all) {
            self.hands.apply(&action).map_err(failed)?;
        }
        let observed = observe::all(&mut self.hands.netlink).map_err(failed)?.observed;
        for action in sweep(&self.config, &observed) {
            self.hands.apply(&action).map_err(failed)?;
        }
        Ok(parts)
    }
}
