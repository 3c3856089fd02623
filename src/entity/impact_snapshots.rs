//! Impact snapshots: which images a run is about, frozen when it was planned.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::schedules::Selection;
use super::{Entity, Field, Instant, KeyType, Kind, Owner, Record};

pub(super) const ENTITY: Entity = Entity {
    name: "impact_snapshots",
    key: KeyType::Text,
    fields: &[
        Field::new("schemaVersion", "schema_version", Kind::Name),
        Field::required("tenantId", "tenant_id", Kind::Name),
        Field::new("runId", "run_id", Kind::Name).refers_to("runs"),
        Field::new("selector", "selector", Kind::Json),
        Field::new("images", "images", Kind::Json),
        Field::new("usageOnly", "usage_only", Kind::Bool),
        Field::new("generatedAt", "generated_at", Kind::Instant),
        Field::new("total", "total", Kind::Int32),
        Field::new("snapshotId", "snapshot_id", Kind::Name),
    ],
    indexes: &[&["tenantId", "runId", "generatedAt", "_id"], &["tenantId", "generatedAt", "_id"]],
    owner: Owner::Mirror,
};

/// One impact snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImpactSnapshot {
    #[serde(rename = "_id")]
    pub id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_version: Option<String>,
    pub tenant_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    pub selector: Selection,
    pub images: Vec<Image>,
    /// Whether only images whose entry point uses the component count.
    pub usage_only: bool,
    pub generated_at: Instant,
    pub total: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<String>,
}

impl Record for ImpactSnapshot {
    const ENTITY: &'static Entity = &ENTITY;

    fn id(&self) -> String {
        self.id.clone()
    }

    fn tenant(&self) -> Option<&str> {
        Some(&self.tenant_id)
    }
}

/// One image that is affected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    pub image_digest: String,
    pub registry: String,
    pub repository: String,
    pub namespaces: Vec<String>,
    pub tags: Vec<String>,
    pub used_by_entrypoint: bool,
    pub labels: BTreeMap<String, String>,
}
