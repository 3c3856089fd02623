//! Run summaries: the last runs of one schedule and their counts.

use serde::{Deserialize, Serialize};

use super::runs::{RunState, Stats};
use super::{Entity, Field, Instant, KeyType, Kind, Owner, Record};

pub(super) const ENTITY: Entity = Entity {
    name: "run_summaries",
    key: KeyType::Text,
    fields: &[
        Field::required("tenantId", "tenant_id", Kind::Name),
        Field::new("scheduleId", "schedule_id", Kind::Name).refers_to("schedules"),
        Field::new("lastRun", "last_run", Kind::Json),
        Field::new("recent", "recent", Kind::Json),
        Field::new("counters", "counters", Kind::Json),
        Field::new("updatedAt", "updated_at", Kind::Instant),
    ],
    indexes: &[&["tenantId", "_id"]],
    owner: Owner::Mirror,
};

/// The summary of one schedule; its id is `tenant:schedule`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunSummary {
    #[serde(rename = "_id")]
    pub id: String,
    pub tenant_id: String,
    pub schedule_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_run: Option<RecentRun>,
    /// The last runs, newest first.
    pub recent: Vec<RecentRun>,
    pub counters: Counters,
    pub updated_at: Instant,
}

impl Record for RunSummary {
    const ENTITY: &'static Entity = &ENTITY;

    fn id(&self) -> String {
        self.id.clone()
    }

    fn tenant(&self) -> Option<&str> {
        Some(&self.tenant_id)
    }
}

/// A run as its schedule's summary remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecentRun {
    pub run_id: String,
    pub trigger: String,
    pub state: RunState,
    pub created_at: Instant,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Instant>,
    pub stats: Stats,
}

/// How many runs of the schedule are in which state, and what they found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    pub total: i32,
    pub planning: i32,
    pub queued: i32,
    pub running: i32,
    pub completed: i32,
    pub error: i32,
    pub cancelled: i32,
    pub deltas: i32,
    pub new_criticals: i32,
}
