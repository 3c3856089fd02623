//! Moves a running job scheduler from MongoDB to PostgreSQL without stopping it and without losing a write.

pub mod anchor;
pub mod backend;
pub mod backfill;
mod backoff;
pub mod cli;
pub mod condition;
pub mod connect;
pub mod dataset;
pub mod embedded;
pub mod entity;
pub mod escape;
pub mod fence;
pub mod finalize;
pub mod layout;
pub mod lock;
pub mod mapping;
pub mod metrics;
pub mod migrate;
pub mod mirror;
pub mod parity;
pub mod phase;
pub mod plan;
pub mod quarantine;
pub mod scan;
pub mod scheduler;
pub mod secondary;
pub mod secret;
pub mod simulate;
pub mod source;
pub mod stamp;
pub mod status;
pub mod store;
pub mod stray;
pub mod switch;
pub mod target;
pub mod verify;

/// The machine's name, for people.
fn machine() -> String {
    rustix::system::uname().nodename().to_string_lossy().chars().take(100).collect()
}

/// An error and its sources, joined by colons.
pub fn error_text(error: &dyn std::error::Error) -> String {
    std::iter::successors(error.source(), |error| error.source())
        .fold(error.to_string(), |text, source| format!("{text}: {source}"))
}
