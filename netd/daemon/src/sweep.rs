//! When are taps deleted that were put out of the way?
//!
//! Deleting a link takes the kernel 15 ms, a thousand at once half a second; so many wait for each other, and nobody waits for
//! them. It has a thread and a socket of its own.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use netd_plan::{Action, Config, sweep};
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::apply::{delete_group, delete_link};
use crate::counts::Counts;
use crate::netlink::{KernelError, Netlink};
use crate::observe;

/// So long a tap waits for others at most.
const REST: Duration = Duration::from_millis(100);
/// So many don't wait for more.
const MANY: usize = 64;
/// Messages that may wait; each says only that there is something to do.
const QUEUE: usize = 1024;

/// Tells the thread that deletes.
#[derive(Debug)]
pub(crate) struct Sweeper(SyncSender<()>);

impl Sweeper {
    /// Starts it for the links of this configuration's groups.
    pub(crate) fn start(config: Config, counts: Counts) -> std::io::Result<Self> {
        let netlink = Netlink::open(NETLINK_ROUTE)?;
        let (sender, receiver) = sync_channel(QUEUE);
        let run = move || run(netlink, &config, &counts, &receiver);
        thread::Builder::new()
            .name("sweep".to_owned())
            .stack_size(256 * 1024)
            .spawn(run)?;
        Ok(Self(sender))
    }

    /// One more waits. Where the queue is full, the thread has enough to do without this word.
    pub(crate) fn add(&self) {
        match self.0.try_send(()) {
            Ok(()) | Err(TrySendError::Full(())) => {}
            Err(TrySendError::Disconnected(())) => {
                tracing::error!("the thread that deletes taps has ended; restart netd");
            }
        }
    }
}

fn run(mut netlink: Netlink, config: &Config, counts: &Counts, waiting: &Receiver<()>) {
    while waiting.recv().is_ok() {
        let until = Instant::now() + REST;
        let mut many = 1;
        while many < MANY {
            match waiting.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(()) => many += 1,
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        if let Err(error) = once(&mut netlink, config, counts) {
            // They stay in their group; the next sweep takes them along.
            tracing::warn!(%error, "taps that were put out of the way can't be deleted");
        }
    }
}

/// Deletes what is there to be deleted.
pub(crate) fn once(netlink: &mut Netlink, config: &Config, counts: &Counts) -> Result<(), KernelError> {
    let observed = observe::links(netlink)?.observed;
    let trash = observed
        .links
        .values()
        .filter(|link| link.group == config.trash_group())
        .count();
    for action in sweep(config, &observed) {
        let object = config.trash_group().to_string();
        steppe_points::reach("netd.sweep.before", &object);
        match &action {
            Action::DeleteGroup { group } => delete_group(netlink, *group)?,
            Action::DeleteLink { name } => delete_link(netlink, name.as_str())?,
            // There is nothing else that deletes.
            _ => {}
        }
        steppe_points::reach("netd.sweep.after", &object);
        counts.sweeps.inc();
    }
    counts.swept.inc_by(u64::try_from(trash).unwrap_or_default());
    Ok(())
}
