//! The longest single query on either side: what a verification costs others at most at once.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::report::Longest;

/// The longest query of each store so far, in microseconds.
#[derive(Debug, Default)]
pub struct LongestQuery {
    mongo: AtomicU64,
    postgres: AtomicU64,
}

impl LongestQuery {
    /// An answer of MongoDB took so long.
    pub fn mongo(&self, took: Duration) {
        self.mongo.fetch_max(micros(took), Relaxed);
    }

    /// A query of PostgreSQL took so long.
    pub fn postgres(&self, took: Duration) {
        self.postgres.fetch_max(micros(took), Relaxed);
    }

    /// Both.
    pub fn both(&self) -> Longest {
        let millis = |of: &AtomicU64| Duration::from_micros(of.load(Relaxed)).as_secs_f64() * 1_000.0;
        Longest { mongodb_milliseconds: millis(&self.mongo), postgresql_milliseconds: millis(&self.postgres) }
    }
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}
