//! Audit: who did what to which record. Append-only.

use bson::Document;
use serde::{Deserialize, Serialize};

use super::{Entity, Field, Instant, KeyType, Kind, Owner, Record, exact};

pub(super) const ENTITY: Entity = Entity {
    name: "audit",
    key: KeyType::Text,
    fields: &[
        Field::required("tenantId", "tenant_id", Kind::Name),
        Field::new("category", "category", Kind::Name),
        Field::new("action", "action", Kind::Name),
        Field::new("occurredAt", "occurred_at", Kind::Instant),
        Field::new("actor", "actor", Kind::Json),
        Field::new("entityId", "entity_id", Kind::Name),
        // No references: a record outlives what it is about.
        Field::new("scheduleId", "schedule_id", Kind::Name),
        Field::new("runId", "run_id", Kind::Name),
        Field::new("correlationId", "correlation_id", Kind::Name),
        Field::new("message", "message", Kind::Text),
        Field::new("metadata", "metadata", Kind::Json),
    ],
    indexes: &[&["tenantId", "entityId", "occurredAt", "_id"], &["tenantId", "occurredAt", "_id"]],
    owner: Owner::Mirror,
};

/// One audit record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditRecord {
    #[serde(rename = "_id")]
    pub id: String,
    pub tenant_id: String,
    pub category: String,
    pub action: String,
    pub occurred_at: Instant,
    pub actor: Actor,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entity_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    #[serde(with = "exact", default)]
    pub metadata: Document,
}

impl Record for AuditRecord {
    const ENTITY: &'static Entity = &ENTITY;

    fn id(&self) -> String {
        self.id.clone()
    }

    fn tenant(&self) -> Option<&str> {
        Some(&self.tenant_id)
    }
}

/// Who acted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Actor {
    pub actor_id: String,
    pub display_name: String,
    pub kind: String,
}
