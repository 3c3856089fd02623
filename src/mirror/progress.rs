//! How far the mirror is, for those who look on.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use bson::Timestamp;

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
        self.strays.fetch_add(u64::try_from(strays).unwrap_or(u64::MAX), Relaxed);
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
    }

    /// What was read and not applied is read again by whoever comes next.
    pub(super) fn deactivate(&self) {
        self.active.store(false, Relaxed);
        self.read.store(self.applied(), Relaxed);
        *self.outbox.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Counts an answer of `events`; a short one shows that the server had no more.
    pub(super) fn answered(&self, events: usize, now: Option<Timestamp>, is_short: bool) {
        self.read.fetch_add(u64::try_from(events).unwrap_or_default(), Relaxed);
        self.source_clock.fetch_max(now.map_or(0, clock), Relaxed);
        self.is_drained.store(is_short, Relaxed);
    }

    /// Counts events that are committed.
    pub(super) fn committed(&self, events: u64, clock: i64) {
        self.applied.fetch_add(events, Relaxed);
        self.clock.fetch_max(clock, Relaxed);
    }
}
