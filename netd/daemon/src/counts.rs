//! What does netd count?

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// A counter for each value of one label.
type Labelled = Family<[(&'static str, &'static str); 1], Counter>;

/// Seconds, from a tenth of a millisecond up.
const BUCKETS: [f64; 12] = [
    0.0001, 0.0003, 0.001, 0.002, 0.005, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0,
];

/// What is counted; all clones are one.
#[derive(Debug, Clone)]
pub struct Counts {
    /// Attachments asked for, by how it ended: `ok`, or the reason of the refusal.
    pub attached: Labelled,
    /// Detachments asked for, likewise.
    pub detached: Labelled,
    /// How long attaching took in netd, waiting for other hosts' answers included.
    pub attach_seconds: Histogram,
    /// How long detaching took.
    pub detach_seconds: Histogram,
    /// Steps that failed, by step.
    pub failed: Labelled,
    /// Steps that repaired what somebody else changed, by step.
    pub repaired: Labelled,
    /// Interfaces whose tap somebody else deleted.
    pub vanished: Counter,
    /// How often the filter was declared anew because somebody else may have changed it.
    pub redeclared: Counter,
    /// Questions to other hosts, by answer: `free`, `held` or `failed`.
    pub probed: Labelled,
    /// Dumps that were repeated because links changed meanwhile.
    pub repeated: Counter,
    /// Looks at everything that remained uncertain after all repetitions.
    pub uncertain: Counter,
    /// How often the kernel had more to tell of links than was listened to.
    pub overruns: Counter,
    /// Taps that were deleted.
    pub swept: Counter,
    /// Messages that deleted them.
    pub sweeps: Counter,
    /// Interfaces that a sync removed.
    pub collected: Counter,
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            attached: Family::default(),
            detached: Family::default(),
            attach_seconds: Histogram::new(BUCKETS),
            detach_seconds: Histogram::new(BUCKETS),
            failed: Family::default(),
            repaired: Family::default(),
            vanished: Counter::default(),
            redeclared: Counter::default(),
            probed: Family::default(),
            repeated: Counter::default(),
            uncertain: Counter::default(),
            overruns: Counter::default(),
            swept: Counter::default(),
            sweeps: Counter::default(),
            collected: Counter::default(),
        }
    }
}

impl Counts {
    /// Names them for whoever reads figures.
    pub fn register(&self, registry: &mut Registry) {
        let mut add = |name, help, metric: &Counter| registry.register(name, help, metric.clone());
        add(
            "netd_vanished",
            "Interfaces whose tap somebody else deleted",
            &self.vanished,
        );
        add(
            "netd_filter_redeclared",
            "Declarations of the whole filter because somebody else may have changed it",
            &self.redeclared,
        );
        add(
            "netd_dumps_repeated",
            "Dumps repeated because links changed meanwhile",
            &self.repeated,
        );
        add(
            "netd_looks_uncertain",
            "Looks at everything that remained uncertain: nothing is deleted after them",
            &self.uncertain,
        );
        add(
            "netd_overruns",
            "Times that the kernel's events of links were lost",
            &self.overruns,
        );
        add("netd_taps_deleted", "Taps that were deleted", &self.swept);
        add("netd_sweeps", "Messages that deleted taps", &self.sweeps);
        add(
            "netd_collected",
            "Interfaces that a sync removed",
            &self.collected,
        );
        let mut add = |name, help, metric: &Labelled| registry.register(name, help, metric.clone());
        add(
            "netd_attaches",
            "Attachments asked for, by how it ended",
            &self.attached,
        );
        add(
            "netd_detaches",
            "Detachments asked for, by how it ended",
            &self.detached,
        );
        add("netd_steps_failed", "Steps that failed", &self.failed);
        add(
            "netd_repairs",
            "Steps that repaired what somebody else changed",
            &self.repaired,
        );
        add("netd_probes", "Questions to other hosts, by answer", &self.probed);
        registry.register(
            "netd_attach_seconds",
            "How long attaching took, waiting for other hosts' answers included",
            self.attach_seconds.clone(),
        );
        registry.register(
            "netd_detach_seconds",
            "How long detaching took",
            self.detach_seconds.clone(),
        );
    }
}

/// Counts one more with a label of this value.
pub(crate) fn count(counters: &Labelled, key: &'static str, value: &'static str) {
    counters.get_or_create(&[(key, value)]).inc();
}
