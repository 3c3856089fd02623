//! Graph jobs: building the graph of an SBOM, or an overlay of one.

use bson::Document;
use serde::{Deserialize, Serialize};

use super::{Entity, Field, Instant, KeyType, Kind, Owner, Record, Vocabulary, exact};

/// What a graph job makes.
pub const TYPE: Vocabulary = Vocabulary { words: &["build", "overlay"], older: &[] };

/// Where a graph job is in its life. `pending` and `queued` are both words here.
pub const STATUS: Vocabulary = Vocabulary {
    words: &["pending", "queued", "running", "completed", "failed", "cancelled"],
    older: &[("succeeded", "completed"), ("error", "failed"), ("canceled", "cancelled")],
};

pub(super) const ENTITY: Entity = Entity {
    name: "graph_jobs",
    key: KeyType::Text,
    fields: &[
        Field::new("schemaVersion", "schema_version", Kind::Name),
        Field::required("tenantId", "tenant_id", Kind::Name),
        Field::new("type", "type", Kind::Word(&TYPE)),
        Field::required("status", "status", Kind::Word(&STATUS)),
        Field::new("sbomId", "sbom_id", Kind::Name),
        Field::new("sbomVersionId", "sbom_version_id", Kind::Name),
        Field::new("sbomDigest", "sbom_digest", Kind::Name),
        Field::new("graphSnapshotId", "graph_snapshot_id", Kind::Name),
        Field::new("trigger", "trigger", Kind::Name),
        Field::new("attempts", "attempts", Kind::Int32),
        Field::new("correlationId", "correlation_id", Kind::Name),
        Field::new("createdAt", "created_at", Kind::Instant),
        Field::new("updatedAt", "updated_at", Kind::Instant),
        Field::new("startedAt", "started_at", Kind::Instant),
        Field::new("completedAt", "completed_at", Kind::Instant),
        Field::new("error", "error", Kind::Text),
        Field::new("metadata", "metadata", Kind::Json),
    ],
    indexes: &[&["tenantId", "createdAt", "_id"], &["tenantId", "status", "createdAt", "_id"]],
    owner: Owner::Mirror,
};

/// One graph job. Ids of builds start with `gbj_`, those of overlays with `goj_`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GraphJob {
    #[serde(rename = "_id")]
    pub id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_version: Option<String>,
    pub tenant_id: String,
    #[serde(rename = "type")]
    pub job_type: GraphJobType,
    pub status: GraphJobStatus,
    pub sbom_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sbom_version_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sbom_digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub graph_snapshot_id: Option<String>,
    pub trigger: String,
    pub attempts: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    pub created_at: Instant,
    pub updated_at: Instant,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Instant>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Instant>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(with = "exact", default)]
    pub metadata: Document,
}

impl Record for GraphJob {
    const ENTITY: &'static Entity = &ENTITY;

    fn id(&self) -> String {
        self.id.clone()
    }

    fn tenant(&self) -> Option<&str> {
        Some(&self.tenant_id)
    }
}

/// What a graph job makes; the words are [`TYPE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GraphJobType {
    Build,
    Overlay,
}

/// Where a graph job is in its life; the words are [`STATUS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GraphJobStatus {
    Pending,
    Queued,
    Running,
    #[serde(alias = "succeeded")]
    Completed,
    #[serde(alias = "error")]
    Failed,
    #[serde(alias = "canceled")]
    Cancelled,
}

impl GraphJobStatus {
    /// Its word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}
