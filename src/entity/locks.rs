//! Locks: who holds what, until when, and the fencing token.

use serde::{Deserialize, Serialize};

use super::{Entity, Field, Instant, KeyType, Kind, Owner, Record};

pub(super) const ENTITY: Entity = Entity {
    name: "locks",
    key: KeyType::Text,
    fields: &[
        Field::new("owner", "owner", Kind::Name),
        Field::new("token", "token", Kind::Int64),
        Field::new("acquiredAt", "acquired_at", Kind::Instant),
        Field::new("expiresAt", "expires_at", Kind::Instant),
    ],
    indexes: &[],
    owner: Owner::Application { rising: "token" },
};

/// One lock; its id is the lock key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lock {
    #[serde(rename = "_id")]
    pub id: String,
    pub owner: String,
    /// The fencing token. It never falls, also across backends.
    pub token: i64,
    pub acquired_at: Instant,
    pub expires_at: Instant,
}

impl Record for Lock {
    const ENTITY: &'static Entity = &ENTITY;

    fn id(&self) -> String {
        self.id.clone()
    }

    fn tenant(&self) -> Option<&str> {
        None
    }
}
