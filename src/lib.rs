//! Moves a running job scheduler from MongoDB to PostgreSQL without stopping it and without losing a write.

pub mod entity;
pub mod mapping;
pub mod stamp;
