//! Bringing the secondary level (design 7): guarded writes of whole documents under their stamps.
//!
//! Invariant: whatever the order, the repetition or the concurrency of these writes, each key ends at the one with the
//! greatest stamp. Backfill, mirror and dual store write to the secondary by these statements and no others.

mod mongo;
mod postgres;
mod statements;

pub use mongo::{MongoSecondary, WriteError};
pub use postgres::{Item, Level, Secondary, State};
pub use statements::{Replaces, merge, quarantine};
