//! Runs: one execution of a schedule, or of a request made by hand.

use serde::{Deserialize, Serialize};

use super::{Entity, Field, Instant, KeyType, Kind, Owner, Record, Vocabulary};

/// Where a run is in its life. Its older writers said `pending` for `queued` and `failed` for `error`.
pub const STATE: Vocabulary = Vocabulary {
    words: &["planning", "queued", "running", "completed", "error", "cancelled"],
    older: &[("pending", "queued"), ("succeeded", "completed"), ("failed", "error"), ("canceled", "cancelled")],
};

pub(super) const ENTITY: Entity = Entity {
    name: "runs",
    key: KeyType::Text,
    fields: &[
        Field::new("schemaVersion", "schema_version", Kind::Name),
        Field::required("tenantId", "tenant_id", Kind::Name),
        Field::new("scheduleId", "schedule_id", Kind::Name).refers_to("schedules"),
        Field::new("trigger", "trigger", Kind::Name),
        Field::required("state", "state", Kind::Word(&STATE)),
        Field::new("stats", "stats", Kind::Json),
        Field::new("reason", "reason", Kind::Json),
        Field::new("createdAt", "created_at", Kind::Instant),
        Field::new("startedAt", "started_at", Kind::Instant),
        Field::new("finishedAt", "finished_at", Kind::Instant),
        Field::new("error", "error", Kind::Text),
        Field::new("deltas", "deltas", Kind::Json),
        // No reference: the run that was repeated may be cleared away before its repetition.
        Field::new("retryOf", "retry_of", Kind::Name),
        Field::new("updatedAt", "updated_at", Kind::Instant),
    ],
    indexes: &[
        &["tenantId", "createdAt", "_id"],
        &["tenantId", "state", "createdAt", "_id"],
        &["tenantId", "scheduleId", "createdAt", "_id"],
    ],
    owner: Owner::Mirror,
};

/// One run. New ids are UUIDv7 text; old ones are anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    #[serde(rename = "_id")]
    pub id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_version: Option<String>,
    pub tenant_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule_id: Option<String>,
    pub trigger: String,
    pub state: RunState,
    #[serde(default)]
    pub stats: Stats,
    #[serde(default)]
    pub reason: Reason,
    pub created_at: Instant,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Instant>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Instant>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deltas: Vec<Delta>,
    /// The id of the run that this one repeats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<String>,
    pub updated_at: Instant,
}

impl Record for Run {
    const ENTITY: &'static Entity = &ENTITY;

    fn id(&self) -> String {
        self.id.clone()
    }

    fn tenant(&self) -> Option<&str> {
        Some(&self.tenant_id)
    }
}

/// Where a run is in its life; the words are [`STATE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    Planning,
    #[serde(alias = "pending")]
    Queued,
    Running,
    #[serde(alias = "succeeded")]
    Completed,
    #[serde(alias = "failed")]
    Error,
    #[serde(alias = "canceled")]
    Cancelled,
}

impl RunState {
    /// The word of the state.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Planning => "planning",
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Error => "error",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What a run has counted so far; no count ever falls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Stats {
    pub candidates: i32,
    pub deduped: i32,
    pub queued: i32,
    pub completed: i32,
    pub deltas: i32,
    pub new_criticals: i32,
    pub new_high: i32,
    pub new_medium: i32,
    pub new_low: i32,
}

impl Stats {
    /// The greater of each pair of counts.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            candidates: self.candidates.max(other.candidates),
            deduped: self.deduped.max(other.deduped),
            queued: self.queued.max(other.queued),
            completed: self.completed.max(other.completed),
            deltas: self.deltas.max(other.deltas),
            new_criticals: self.new_criticals.max(other.new_criticals),
            new_high: self.new_high.max(other.new_high),
            new_medium: self.new_medium.max(other.new_medium),
            new_low: self.new_low.max(other.new_low),
        }
    }
}

/// Why a run came to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Reason {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manual_reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conselier_export_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub excitor_export_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub impact_window_from: Option<Instant>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub impact_window_to: Option<Instant>,
}

/// What a run found new in one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Delta {
    pub image_digest: String,
    pub new_findings: i32,
    pub new_criticals: i32,
    pub new_high: i32,
    pub new_medium: i32,
    pub new_low: i32,
    /// Findings of the catalogue of known exploited vulnerabilities.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kev_hits: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detected_at: Option<Instant>,
}
