//! Names and moments that several collections agree on.

use chrono::DateTime;

use super::random::Random;
use crate::entity::Instant;

/// 2025-01-01T00:00:00Z.
const BEGIN: i64 = 1_735_689_600_000;

/// A run is planned every so many milliseconds.
const PACE: i64 = 30_000;

/// Runs of a schedule. With 15 % runs and 2 % schedules the schedule of every run exists.
pub(super) const RUNS_PER_SCHEDULE: u64 = 8;

/// One run in so many was made before ids were UUIDs.
const OLD_RUN: u64 = 64;

/// The tenant that owns schedule `schedule` and all that comes of it.
pub(super) fn tenant(schedule: u64) -> String {
    format!("tenant-{:02}", schedule * 7 % 40)
}

pub(super) fn schedule(schedule: u64) -> String {
    format!("sch_{schedule:08}")
}

pub(super) fn schedule_of_run(run: u64) -> u64 {
    run / RUNS_PER_SCHEDULE
}

/// The id of run `run`: UUIDv7 text, or a date and a number for the oldest kind.
pub(super) fn run(run: u64, seed: u64) -> String {
    if run % OLD_RUN == 5 {
        return format!("run:{}:{run:06}", at(run).0.format("%Y-%m-%d"));
    }
    let mut random = Random::of("run ids", run, seed);
    let (a, b) = (random.next(), random.next());
    let millis = at(run).0.timestamp_millis();
    let (high, low) = (millis >> 16, millis & 0xffff);
    format!("{high:08x}-{low:04x}-7{:03x}-{:04x}-{:012x}", a & 0xfff, 0x8000 | (b & 0x3fff), b >> 16)
}

/// The moment run `run` is planned; other collections take theirs from the run they belong to.
pub(super) fn at(run: u64) -> Instant {
    after(run, 0)
}

/// `millis` milliseconds after run `run` is planned.
pub(super) fn after(run: u64, millis: i64) -> Instant {
    let planned = i64::try_from(run).unwrap_or(0).saturating_mul(PACE).saturating_add(BEGIN);
    Instant(DateTime::from_timestamp_millis(planned.saturating_add(millis)).unwrap_or_default())
}
