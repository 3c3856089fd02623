//! Every metric there is, said once. They go to the recorder that the application has installed (crate `metrics`); without
//! one they go nowhere. A series begins at 0 with whoever counts in it.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use tokio::time::Instant;

/// What a metric is called, and what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// How it moves.
    pub kind: Kind,
    /// What it counts.
    pub unit: Unit,
    /// What it says.
    pub description: &'static str,
}

/// How a metric moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only rises.
    Counter,
    /// It rises and falls.
    Gauge,
    /// A distribution.
    Histogram,
}

/// A metric that only rises.
#[derive(Debug, Clone, Copy)]
pub struct Counter(Metric);

/// A metric that rises and falls.
#[derive(Debug, Clone, Copy)]
pub struct Gauge(Metric);

/// How long something took, each time.
#[derive(Debug, Clone, Copy)]
pub struct Histogram(Metric);

// What each one says is its description; of SECONDARY_WRITES each outcome has a `Tally`.

pub const SECONDARY_WRITES: Counter = Counter::new(
    "bridge_secondary_writes_total",
    "writes that were to follow in PostgreSQL at once, by outcome: level, failed, skipped",
);
pub const SECONDARY_SECONDS: Histogram = Histogram::new(
    "bridge_secondary_seconds",
    "how long PostgreSQL took for a write that followed, or was waited for in vain",
);
pub const BREAKER_OPEN: Gauge =
    Gauge::new("bridge_breaker_open", Unit::Count, "1 while PostgreSQL is passed over since it has failed, else 0");
pub const BREAKER_OPENINGS: Counter =
    Counter::new("bridge_breaker_openings_total", "how often PostgreSQL began to be passed over");
pub const BREAKER_PROBES: Counter = Counter::new(
    "bridge_breaker_probes_total",
    "writes that were tried in the background while PostgreSQL was passed over",
);
pub const SHADOW_READS: Counter = Counter::new(
    "bridge_shadow_reads_total",
    "shadow reads and the suspicions that they raised, by outcome: compared, noise, differed, lasting …",
);
pub const MIRROR_ACTIVE: Gauge =
    Gauge::new("bridge_mirror_active", Unit::Count, "1 while this process is the active mirror, else 0");
pub const MIRROR_LAG_SECONDS: Gauge = Gauge::new(
    "bridge_mirror_lag_seconds",
    Unit::Seconds,
    "how far the secondary is behind the primary; NaN while this process is not the active mirror",
);
pub const MIRROR_LAG_EVENTS: Gauge = Gauge::new(
    "bridge_mirror_lag_events",
    Unit::Count,
    "events that are not applied yet; NaN while this process is not the active mirror",
);
pub const MIRROR_EVENTS: Counter =
    Counter::new("bridge_mirror_events_total", "events that this process has brought to the secondary");
pub const STRAY_WRITES: Counter =
    Counter::new("bridge_stray_writes_total", "writes to a store that was not the primary any more, by others");
pub const SWITCH_PAUSE: Histogram = Histogram::new(
    "bridge_switch_pause_seconds",
    "for how long no store took writes in a switch that this process made",
);
pub const GATE_WAITING: Gauge =
    Gauge::new("bridge_gate_waiting", Unit::Count, "operations that wait until a store takes them, as in a switch");
pub const GATE_WAIT: Histogram =
    Histogram::new("bridge_gate_wait_seconds", "how long an operation waited until a store took it, or in vain");

/// All of them.
pub const ALL: [Metric; 14] = [
    SECONDARY_WRITES.0,
    SECONDARY_SECONDS.0,
    BREAKER_OPEN.0,
    BREAKER_OPENINGS.0,
    BREAKER_PROBES.0,
    SHADOW_READS.0,
    MIRROR_ACTIVE.0,
    MIRROR_LAG_SECONDS.0,
    MIRROR_LAG_EVENTS.0,
    MIRROR_EVENTS.0,
    STRAY_WRITES.0,
    SWITCH_PAUSE.0,
    GATE_WAITING.0,
    GATE_WAIT.0,
];

/// Tells the recorder that is installed what each metric says. An application calls it once, after it has installed one.
pub fn describe() {
    for Metric { name, kind, unit, description } in ALL {
        match kind {
            Kind::Counter => describe_counter!(name, unit, description),
            Kind::Gauge => describe_gauge!(name, unit, description),
            Kind::Histogram => describe_histogram!(name, unit, description),
        }
    }
}

impl Counter {
    const fn new(name: &'static str, description: &'static str) -> Self {
        Self(Metric { name, kind: Kind::Counter, unit: Unit::Count, description })
    }

    /// Adds `count`; 0 begins the series.
    pub fn add(self, count: u64) {
        counter!(self.0.name).increment(count);
    }
}

impl Gauge {
    const fn new(name: &'static str, unit: Unit, description: &'static str) -> Self {
        Self(Metric { name, kind: Kind::Gauge, unit, description })
    }

    /// Says what it is now.
    pub fn set(self, value: f64) {
        gauge!(self.0.name).set(value);
    }
}

impl Histogram {
    const fn new(name: &'static str, description: &'static str) -> Self {
        Self(Metric { name, kind: Kind::Histogram, unit: Unit::Seconds, description })
    }

    /// Adds how long it took once.
    pub fn record(self, took: Duration) {
        histogram!(self.0.name).record(took);
    }
}

/// How often one owner came to one outcome: for the metric, and for those who ask the owner.
#[derive(Debug)]
pub struct Tally {
    counter: Counter,
    outcome: &'static str,
    count: AtomicU64,
}

impl Tally {
    /// None so far.
    pub fn new(counter: Counter, outcome: &'static str) -> Self {
        let tally = Self { counter, outcome, count: AtomicU64::new(0) };
        tally.add(0);
        tally
    }

    /// Once more.
    pub fn one(&self) {
        self.add(1);
    }

    /// How often so far.
    pub fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// That many times more.
    pub fn add(&self, count: u64) {
        self.count.fetch_add(count, Relaxed);
        counter!(self.counter.0.name, "outcome" => self.outcome).increment(count);
    }
}

/// An operation that waits at the gate, until this is dropped.
#[derive(Debug)]
pub struct Waiting {
    since: Instant,
}

impl Waiting {
    /// It begins to wait.
    pub fn begin() -> Self {
        gauge!(GATE_WAITING.0.name).increment(1.0);
        Self { since: Instant::now() }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        gauge!(GATE_WAITING.0.name).decrement(1.0);
        GATE_WAIT.record(self.since.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use metrics_util::debugging::DebuggingRecorder;

    use super::*;

    #[test]
    fn each_metric_has_a_name_of_its_own_and_a_line_in_the_readme() {
        let names: HashSet<&str> = ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), ALL.len());
        for Metric { name, kind, unit, description } in ALL {
            let kind = format!("{kind:?}").to_lowercase();
            let seconds = if unit == Unit::Seconds { ", seconds" } else { "" };
            let line = format!("| `{name}` | {kind}{seconds} | {description} |");
            assert!(include_str!("../README.md").contains(&line), "{line}");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{name}");
            assert_eq!(name.contains("_seconds"), unit == Unit::Seconds, "{name}");
        }
    }

    #[test]
    fn a_recorder_is_told_what_each_metric_says() {
        let recorder = DebuggingRecorder::new();
        let told = recorder.snapshotter();
        metrics::with_local_recorder(&recorder, || {
            describe();
            for metric in ALL {
                match metric.kind {
                    Kind::Counter => Counter(metric).add(0),
                    Kind::Gauge => Gauge(metric).set(0.0),
                    Kind::Histogram => Histogram(metric).record(Duration::ZERO),
                }
            }
        });
        let told: Vec<_> = told.snapshot().into_vec();
        let found: Vec<_> =
            told.iter().map(|(key, unit, description, _)| (key.key().name(), *unit, description.as_deref())).collect();
        let expected = ALL.map(|metric| (metric.name, Some(metric.unit), Some(metric.description)));
        assert_eq!(found, expected);
    }
}
