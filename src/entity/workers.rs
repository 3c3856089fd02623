//! Workers: the processes that execute jobs, and whether they still live.

use bson::Document;
use serde::{Deserialize, Serialize};

use super::{Entity, Field, Instant, KeyType, Kind, Owner, Record, Vocabulary, exact};

/// Whether a worker takes jobs.
pub const STATUS: Vocabulary = Vocabulary { words: &["active", "draining", "dead"], older: &[] };

pub(super) const ENTITY: Entity = Entity {
    name: "workers",
    key: KeyType::Text,
    fields: &[
        Field::new("tenantId", "tenant_id", Kind::Name),
        Field::new("hostname", "hostname", Kind::Name),
        Field::new("processId", "process_id", Kind::Int32),
        Field::required("status", "status", Kind::Word(&STATUS)),
        Field::new("jobTypes", "job_types", Kind::Json),
        Field::new("maxConcurrent", "max_concurrent", Kind::Int32),
        Field::new("currentJobs", "current_jobs", Kind::Int32),
        Field::new("registeredAt", "registered_at", Kind::Instant),
        Field::new("lastHeartbeatAt", "last_heartbeat_at", Kind::Instant),
        Field::new("metadata", "metadata", Kind::Json),
    ],
    indexes: &[&["status", "lastHeartbeatAt", "_id"]],
    owner: Owner::Mirror,
};

/// One worker process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Worker {
    #[serde(rename = "_id")]
    pub id: String,
    /// The only tenant it works for; a worker without one works for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<String>,
    pub hostname: String,
    pub process_id: i32,
    pub status: WorkerStatus,
    pub job_types: Vec<String>,
    pub max_concurrent: i32,
    pub current_jobs: i32,
    pub registered_at: Instant,
    pub last_heartbeat_at: Instant,
    #[serde(with = "exact", default)]
    pub metadata: Document,
}

impl Record for Worker {
    const ENTITY: &'static Entity = &ENTITY;

    fn id(&self) -> String {
        self.id.clone()
    }

    fn tenant(&self) -> Option<&str> {
        self.tenant_id.as_deref()
    }
}

/// Whether a worker takes jobs; the words are [`STATUS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkerStatus {
    Active,
    Draining,
    Dead,
}

impl WorkerStatus {
    /// Its word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Dead => "dead",
        }
    }
}
