//! Moves a running job scheduler from MongoDB to PostgreSQL without stopping it and without losing a write.

pub mod backfill;
pub mod cli;
pub mod entity;
pub mod mapping;
pub mod migrate;
pub mod secret;
pub mod source;
pub mod stamp;
pub mod target;
