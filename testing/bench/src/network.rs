//! What does netd cost beside CNI's bridge plugin, and its filter beside none?
//!
//! All of it happens in network namespaces of its own; Nomad has no part in it. The kernel's lock on links is one for all of
//! them, so what is compared takes turns. In the same rounds:
//!
//! - an attach, as a driver asks for it, of one interface on a bridge: tap and filter;
//! - its steps alone, done in this process: what of them is the filter's, and what a request costs that does nothing, say what
//!   the attach would take without a filter;
//! - `ADD` of Debian's CNI plugin `bridge` without an address plugin: what a container gets, with no filter.

mod cni;
mod daemon;
mod filter;
mod links;
mod space;
mod steps;

use crate::figures::Report;
use crate::{Bench, BenchError, count};

pub(crate) fn measure(_bench: &Bench, report: &mut Report) -> Result<(), BenchError> {
    let pairs = count("STEPPE_BENCH_PAIRS", 40);
    // Threads are moved between namespaces, and this one stays where it is.
    std::thread::scope(|scope| {
        let links = scope.spawn(|| links::measure(pairs, report));
        join(links)
    })?;
    std::thread::scope(|scope| {
        let filter = scope.spawn(|| filter::measure(pairs, report));
        join(filter)
    })
}

fn join(thread: std::thread::ScopedJoinHandle<'_, Result<(), BenchError>>) -> Result<(), BenchError> {
    thread
        .join()
        .unwrap_or_else(|_| Err(BenchError::Task("a measurement of netd panicked".to_owned())))
}
