//! How far the backfill is, for whoever wants to show it.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one collection; they only rise.
#[derive(Debug)]
pub struct Progress {
    /// The collection.
    pub collection: &'static str,
    /// How many documents it is believed to have.
    pub estimated: AtomicU64,
    /// Documents copied or quarantined, by every process and every earlier attempt.
    pub documents: AtomicU64,
    /// Bytes of BSON copied by this process.
    pub bytes: AtomicU64,
}

impl Progress {
    /// Nothing done.
    pub fn new(collection: &'static str) -> Self {
        let zero = || AtomicU64::new(0);
        Self { collection, estimated: zero(), documents: zero(), bytes: zero() }
    }

    /// Counts a batch that is committed.
    pub fn add(&self, documents: u64, bytes: u64) {
        self.documents.fetch_add(documents, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}
