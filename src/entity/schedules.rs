//! Schedules: what is to be run, and when.

use serde::{Deserialize, Serialize};

use super::{Entity, Field, Instant, KeyType, Kind, Owner, Record, Vocabulary};

/// What a run of the schedule does.
pub const MODE: Vocabulary = Vocabulary { words: &["analysis-only", "content-refresh"], older: &[] };

pub(super) const ENTITY: Entity = Entity {
    name: "schedules",
    key: KeyType::Text,
    fields: &[
        Field::new("schemaVersion", "schema_version", Kind::Name),
        Field::required("tenantId", "tenant_id", Kind::Name),
        Field::new("name", "name", Kind::Name),
        Field::new("enabled", "enabled", Kind::Bool),
        Field::new("cronExpression", "cron_expression", Kind::Text).older(&["whenCron"]),
        Field::new("timezone", "timezone", Kind::Name),
        Field::new("mode", "mode", Kind::Word(&MODE)),
        Field::new("selection", "selection", Kind::Json),
        Field::new("onlyIf", "only_if", Kind::Json),
        Field::new("notify", "notify", Kind::Json),
        Field::new("limits", "limits", Kind::Json),
        Field::new("subscribers", "subscribers", Kind::Json),
        Field::new("createdAt", "created_at", Kind::Instant),
        Field::new("createdBy", "created_by", Kind::Name),
        Field::new("updatedAt", "updated_at", Kind::Instant),
        Field::new("updatedBy", "updated_by", Kind::Name),
        Field::new("deletedAt", "deleted_at", Kind::Instant),
        Field::new("deletedBy", "deleted_by", Kind::Name),
    ],
    indexes: &[&["tenantId", "createdAt", "_id"]],
    owner: Owner::Mirror,
};

/// One schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Schedule {
    #[serde(rename = "_id")]
    pub id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_version: Option<String>,
    pub tenant_id: String,
    pub name: String,
    pub enabled: bool,
    /// Five or six cron fields, evaluated in `timezone`.
    #[serde(alias = "whenCron")]
    pub cron_expression: String,
    /// An IANA zone.
    pub timezone: String,
    pub mode: Mode,
    pub selection: Selection,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub only_if: Option<OnlyIf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notify: Option<Notify>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscribers: Option<Vec<String>>,
    pub created_at: Instant,
    pub created_by: String,
    pub updated_at: Instant,
    pub updated_by: String,
    /// Set on a schedule that was deleted softly; it is kept for the runs that refer to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<Instant>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deleted_by: Option<String>,
}

impl Record for Schedule {
    const ENTITY: &'static Entity = &ENTITY;

    fn id(&self) -> String {
        self.id.clone()
    }

    fn tenant(&self) -> Option<&str> {
        Some(&self.tenant_id)
    }
}

/// What a run of the schedule does; the words are [`MODE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    AnalysisOnly,
    ContentRefresh,
}

/// Which images a schedule or an impact snapshot is about. Empty filters stay empty arrays.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Selection {
    pub scope: String,
    pub namespaces: Vec<String>,
    pub repositories: Vec<String>,
    pub digests: Vec<String>,
    pub include_tags: Vec<String>,
    pub labels: Vec<Label>,
    pub resolves_tags: bool,
}

/// A label and the values of it that are selected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Label {
    pub key: String,
    pub values: Vec<String>,
}

/// When a schedule that is due is skipped all the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OnlyIf {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_report_older_than_days: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_revision: Option<String>,
}

/// Who hears of a run's findings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Notify {
    pub on_new_findings: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_severity: Option<String>,
    pub include_kev: bool,
}

/// How hard a run may work; a limit that is absent does not bind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_jobs: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_per_second: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallelism: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<i32>,
}
