//! Triggers: what sets a schedule off.

use serde::{Deserialize, Serialize};

use super::{Entity, Field, Instant, KeyType, Kind, Owner, Record, Vocabulary};

/// Where a trigger comes from.
pub const KIND: Vocabulary = Vocabulary { words: &["cron", "manual", "conselier", "excitor"], older: &[] };

/// What happens to a firing that nobody was there for.
pub const MISFIRE_POLICY: Vocabulary = Vocabulary { words: &["fire-once", "skip"], older: &[] };

pub(super) const ENTITY: Entity = Entity {
    name: "triggers",
    key: KeyType::Text,
    fields: &[
        Field::required("tenantId", "tenant_id", Kind::Name),
        Field::new("scheduleId", "schedule_id", Kind::Name).refers_to("schedules"),
        Field::new("kind", "kind", Kind::Word(&KIND)),
        Field::new("cronExpression", "cron_expression", Kind::Text),
        Field::new("timezone", "timezone", Kind::Name),
        Field::new("enabled", "enabled", Kind::Bool),
        Field::new("nextFireAt", "next_fire_at", Kind::Instant),
        Field::new("lastFiredAt", "last_fired_at", Kind::Instant),
        Field::new("misfirePolicy", "misfire_policy", Kind::Word(&MISFIRE_POLICY)),
        Field::new("createdAt", "created_at", Kind::Instant),
        Field::new("updatedAt", "updated_at", Kind::Instant),
    ],
    indexes: &[&["tenantId", "scheduleId", "createdAt", "_id"], &["enabled", "nextFireAt", "_id"]],
    owner: Owner::Mirror,
};

/// One trigger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Trigger {
    #[serde(rename = "_id")]
    pub id: String,
    pub tenant_id: String,
    pub schedule_id: String,
    pub kind: TriggerKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cron_expression: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    pub enabled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_fire_at: Option<Instant>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_fired_at: Option<Instant>,
    pub misfire_policy: MisfirePolicy,
    pub created_at: Instant,
    pub updated_at: Instant,
}

impl Record for Trigger {
    const ENTITY: &'static Entity = &ENTITY;

    fn id(&self) -> String {
        self.id.clone()
    }

    fn tenant(&self) -> Option<&str> {
        Some(&self.tenant_id)
    }
}

/// Where a trigger comes from; the words are [`KIND`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TriggerKind {
    Cron,
    Manual,
    Conselier,
    Excitor,
}

/// What happens to a firing that nobody was there for; the words are [`MISFIRE_POLICY`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MisfirePolicy {
    FireOnce,
    Skip,
}
