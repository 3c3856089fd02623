//! Execution logs: what a run said, in order. Append-only.

use bson::Document;
use bson::oid::ObjectId;
use serde::{Deserialize, Serialize};

use super::{Entity, Field, Instant, KeyType, Kind, Owner, Record, exact};

pub(super) const ENTITY: Entity = Entity {
    name: "execution_logs",
    key: KeyType::ObjectId,
    fields: &[
        Field::required("tenantId", "tenant_id", Kind::Name),
        Field::new("runId", "run_id", Kind::Name).refers_to("runs"),
        Field::new("sequence", "sequence", Kind::Int64),
        Field::new("level", "level", Kind::Name),
        Field::new("eventType", "event_type", Kind::Name),
        Field::new("message", "message", Kind::Text),
        Field::new("stepId", "step_id", Kind::Name),
        Field::new("timestamp", "timestamp", Kind::Instant),
        Field::new("metadata", "metadata", Kind::Json),
    ],
    indexes: &[&["tenantId", "runId", "sequence", "_id"]],
    owner: Owner::Mirror,
};

/// One line of a run's log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecutionLog {
    #[serde(rename = "_id")]
    pub id: ObjectId,
    pub tenant_id: String,
    pub run_id: String,
    /// The line's place in its run's log, rising from 1.
    pub sequence: i64,
    pub level: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_id: Option<String>,
    pub timestamp: Instant,
    #[serde(with = "exact", default)]
    pub metadata: Document,
}

impl Record for ExecutionLog {
    const ENTITY: &'static Entity = &ENTITY;

    fn id(&self) -> String {
        self.id.to_hex()
    }

    fn tenant(&self) -> Option<&str> {
        Some(&self.tenant_id)
    }
}
