//! How far the mirror is, for those who look on.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use bson::Timestamp;

use crate::metrics;
use crate::stamp::clock;

/// How far the secondary is behind the primary.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Lag {
    /// Seconds between the last event applied and the newest write that MongoDB told of; the age of the oldest write in
    /// the outbox, with PostgreSQL as the primary. 0 when nothing is left to apply.
    pub seconds: f64,
    /// Events read and not applied yet: how many MongoDB holds beyond these it does not tell. All writes in the outbox,
    /// with PostgreSQL as the primary.
    pub events: i64,
}

/// Counters of one mirror, which others may read at any time.
#[derive(Debug, Default)]
pub struct Progress {
    active: AtomicBool,
    read: AtomicU64,
    applied: AtomicU64,
    strays: AtomicU64,
    clock: AtomicI64,
    source_clock: AtomicI64,
    is_drained: AtomicBool,
    /// What is left in the outbox, while that is what is mirrored.
    outbox: Mutex<Option<Lag>>,
}

impl Progress {
    /// Whether this process is the active one.
    pub fn is_active(&self) -> bool {
        self.active.load(Relaxed)
    }

    /// Events applied by this process.
    pub fn applied(&self) -> u64 {
        self.applied.load(Relaxed)
    }

    /// Stray writes that this process has found and undone: writes to MongoDB while it follows that are not the mirror's.
    pub fn strays(&self) -> u64 {
        self.strays.load(Relaxed)
    }

    /// Counts stray writes.
    pub(super) fn strayed(&self, strays: usize) {
        let strays = u64::try_from(strays).unwrap_or(u64::MAX);
        self.strays.fetch_add(strays, Relaxed);
        metrics::STRAY_WRITES.add(strays);
    }

    /// The clock of the last event applied.
    pub fn clock(&self) -> i64 {
        self.clock.load(Relaxed)
    }

    /// How far the secondary is behind, as far as this process knows; nothing while it stands by.
    pub fn lag(&self) -> Option<Lag> {
        let outbox = *self.outbox.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_active().then(|| outbox.unwrap_or_else(|| self.lag_behind(self.clock(), 0)))
    }

    /// What is left in the outbox.
    pub(super) fn left(&self, lag: Lag) {
        *self.outbox.lock().unwrap_or_else(PoisonError::into_inner) = Some(lag);
        self.export();
    }

    /// The lag once `events` more are applied, the last of them at `clock`.
    pub(super) fn lag_behind(&self, clock: i64, events: u64) -> Lag {
        let left = self.read.load(Relaxed).saturating_sub(self.applied.load(Relaxed) + events);
        if left == 0 && self.is_drained.load(Relaxed) {
            return Lag::default();
        }
        let seconds = (self.source_clock.load(Relaxed) >> 32) - (clock >> 32);
        let seconds = i32::try_from(seconds.max(0)).unwrap_or(i32::MAX).into();
        Lag { seconds, events: i64::try_from(left).unwrap_or(i64::MAX) }
    }

    pub(super) fn activate(&self, clock: i64) {
        self.clock.store(clock, Relaxed);
        self.source_clock.store(clock, Relaxed);
        self.is_drained.store(false, Relaxed);
        self.active.store(true, Relaxed);
        self.export();
    }

    /// What was read and not applied is read again by whoever comes next.
    pub(super) fn deactivate(&self) {
        self.active.store(false, Relaxed);
        self.read.store(self.applied(), Relaxed);
        *self.outbox.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.export();
    }

    /// Counts an answer of `events`; a short one shows that the server had no more.
    pub(super) fn answered(&self, events: usize, now: Option<Timestamp>, is_short: bool) {
        self.read.fetch_add(u64::try_from(events).unwrap_or_default(), Relaxed);
        self.source_clock.fetch_max(now.map_or(0, clock), Relaxed);
        self.is_drained.store(is_short, Relaxed);
        self.export();
    }

    /// Counts events that are committed.
    pub(super) fn committed(&self, events: u64, clock: i64) {
        self.applied.fetch_add(events, Relaxed);
        self.clock.fetch_max(clock, Relaxed);
        metrics::MIRROR_EVENTS.add(events);
        self.export();
    }

    /// Tells the metrics how far the mirror is.
    pub(super) fn export(&self) {
        let lag = self.lag();
        metrics::MIRROR_ACTIVE.set(if lag.is_some() { 1.0 } else { 0.0 });
        metrics::MIRROR_LAG_SECONDS.set(lag.map_or(f64::NAN, |lag| lag.seconds));
        metrics::MIRROR_LAG_EVENTS.set(lag.map_or(f64::NAN, |lag| lag.events as f64));
    }
}

#[cfg(test)]
mod tests {
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};

    use super::*;

    #[test]
    fn the_gauges_say_how_far_it_is_while_it_is_the_active_one() {
        let recorder = DebuggingRecorder::new();
        let told = recorder.snapshotter();
        let gauges = || -> Vec<f64> {
            let told = told.snapshot().into_vec().into_iter().filter_map(|(.., value)| match value {
                DebugValue::Gauge(now) => Some(now.into_inner()),
                DebugValue::Counter(_) | DebugValue::Histogram(_) => None,
            });
            told.collect()
        };
        ::metrics::with_local_recorder(&recorder, || {
            let (progress, at) = (Progress::default(), |time| Timestamp { time, increment: 1 });
            progress.export();
            assert!(matches!(gauges()[..], [0.0, seconds, events] if seconds.is_nan() && events.is_nan()));
            progress.activate(clock(at(100)));
            progress.answered(10, Some(at(107)), false);
            assert_eq!(gauges(), [1.0, 7.0, 10.0]);
            progress.committed(4, clock(at(105)));
            assert_eq!(gauges(), [1.0, 2.0, 6.0]);
            progress.committed(6, clock(at(107)));
            progress.answered(0, Some(at(108)), true);
            assert_eq!(gauges(), [1.0, 0.0, 0.0]);
            progress.left(Lag { seconds: 0.5, events: 3 });
            assert_eq!(gauges(), [1.0, 0.5, 3.0]);
            progress.deactivate();
            assert!(matches!(gauges()[..], [0.0, seconds, events] if seconds.is_nan() && events.is_nan()));
        });
    }
}
