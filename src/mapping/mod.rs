//! A document as a row, and back, without loss (design 6).
//!
//! Invariant: for every document that [`Mapping::encode`] does not refuse, [`Mapping::rebuild`] of the row that
//! PostgreSQL returns equals the document up to the order of fields. COPY, upsert, verification and repositories all use
//! these two, so what is copied, what is written live and what is compared cannot drift apart.

mod column;
mod encode;
mod instant;
mod json;
mod key;
pub mod raw;
mod rebuild;
mod regular;
pub mod tuple;

pub use column::of_value;
pub use encode::{Encoded, Refusal};
pub use key::{Key, NotAKey, hex, unhex};
pub use rebuild::RebuildError;

use crate::entity::Entity;

/// The fields of a residue: what the document has, and what it lacks though a column is filled.
const SET: &str = "set";
const UNSET: &str = "unset";

/// The columns that every table has for the move alone, and that `bridge finalize` drops: what the others cannot reproduce
/// of the document, and the stamp.
pub const BRIDGE_COLUMNS: [&str; 3] = ["residue", "epoch", "clock"];

/// The mapping of one entity.
#[derive(Debug, Clone, Copy)]
pub struct Mapping {
    entity: &'static Entity,
}

impl Mapping {
    /// The mapping of `entity`.
    pub const fn new(entity: &'static Entity) -> Self {
        Self { entity }
    }

    /// The entity.
    pub const fn entity(&self) -> &'static Entity {
        self.entity
    }

    /// The columns of a row, in order: key, fields, residue, stamp.
    pub fn columns(&self) -> impl Iterator<Item = &'static str> {
        let fields = self.entity.fields.iter().map(|field| field.column);
        std::iter::once("id").chain(fields).chain(BRIDGE_COLUMNS)
    }
}
