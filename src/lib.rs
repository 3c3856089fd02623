//! Moves a running job scheduler from MongoDB to PostgreSQL without stopping it and without losing a write.

pub mod embedded;
pub mod entity;
