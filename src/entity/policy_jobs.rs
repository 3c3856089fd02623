//! Policy jobs: evaluations of a policy, leased by the workers that submit them.

use std::collections::BTreeMap;

use bson::Document;
use serde::{Deserialize, Serialize};

use super::{Entity, Field, Instant, KeyType, Kind, Owner, Record, Vocabulary, exact};

/// How much a policy job evaluates.
pub const MODE: Vocabulary = Vocabulary { words: &["full", "incremental", "simulate"], older: &[] };

/// How soon a policy job is wanted.
pub const PRIORITY: Vocabulary = Vocabulary { words: &["normal", "high", "emergency"], older: &[] };

/// Where a policy job is in its life. Its older writers said `queued` for `pending`.
pub const STATUS: Vocabulary = Vocabulary {
    words: &["pending", "dispatching", "submitted", "completed", "failed", "cancelled"],
    older: &[("queued", "pending"), ("succeeded", "completed"), ("error", "failed"), ("canceled", "cancelled")],
};

pub(super) const ENTITY: Entity = Entity {
    name: "policy_jobs",
    key: KeyType::Text,
    fields: &[
        Field::new("schemaVersion", "schema_version", Kind::Name),
        Field::required("tenantId", "tenant_id", Kind::Name),
        Field::new("policyId", "policy_id", Kind::Name),
        Field::new("policyVersion", "policy_version", Kind::Int32),
        Field::new("mode", "mode", Kind::Word(&MODE)),
        Field::new("priority", "priority", Kind::Word(&PRIORITY)),
        Field::required("status", "status", Kind::Word(&STATUS)),
        // No reference: it is the engine's own run, by the id that it gave when the job was submitted.
        Field::new("runId", "run_id", Kind::Name),
        Field::new("requestedBy", "requested_by", Kind::Name),
        Field::new("correlationId", "correlation_id", Kind::Name),
        Field::new("inputs", "inputs", Kind::Json),
        Field::new("attemptCount", "attempt_count", Kind::Int32),
        Field::new("availableAt", "available_at", Kind::Instant),
        Field::new("lastAttemptAt", "last_attempt_at", Kind::Instant),
        Field::new("lastError", "last_error", Kind::Text),
        Field::new("leaseOwner", "lease_owner", Kind::Name),
        Field::new("leaseExpiresAt", "lease_expires_at", Kind::Instant),
        Field::new("queuedAt", "queued_at", Kind::Instant),
        Field::new("submittedAt", "submitted_at", Kind::Instant),
        Field::new("completedAt", "completed_at", Kind::Instant),
        Field::new("createdAt", "created_at", Kind::Instant),
        Field::new("updatedAt", "updated_at", Kind::Instant),
        Field::new("metadata", "metadata", Kind::Json),
    ],
    indexes: &[
        &["tenantId", "createdAt", "_id"],
        &["tenantId", "status", "createdAt", "_id"],
        &["status", "priority", "availableAt", "_id"],
        &["status", "leaseExpiresAt", "_id"],
        &["leaseOwner", "_id"],
    ],
    owner: Owner::Mirror,
};

/// One policy job. Ids read `run:P-7:2025-10-26:auto`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyJob {
    #[serde(rename = "_id")]
    pub id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_version: Option<String>,
    pub tenant_id: String,
    pub policy_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_version: Option<i32>,
    pub mode: PolicyMode,
    pub priority: Priority,
    pub status: PolicyJobStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    pub inputs: Inputs,
    pub attempt_count: i32,
    pub available_at: Instant,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_attempt_at: Option<Instant>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_owner: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_expires_at: Option<Instant>,
    pub queued_at: Instant,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub submitted_at: Option<Instant>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Instant>,
    pub created_at: Instant,
    pub updated_at: Instant,
    #[serde(with = "exact", default)]
    pub metadata: Document,
}

impl Record for PolicyJob {
    const ENTITY: &'static Entity = &ENTITY;

    fn id(&self) -> String {
        self.id.clone()
    }

    fn tenant(&self) -> Option<&str> {
        Some(&self.tenant_id)
    }
}

/// How much a policy job evaluates; the words are [`MODE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyMode {
    Full,
    Incremental,
    Simulate,
}

/// How soon a policy job is wanted; the words are [`PRIORITY`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    Normal,
    High,
    Emergency,
}

impl Priority {
    /// Its word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::High => "high",
            Self::Emergency => "emergency",
        }
    }
}

/// Where a policy job is in its life; the words are [`STATUS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyJobStatus {
    #[serde(alias = "queued")]
    Pending,
    Dispatching,
    Submitted,
    #[serde(alias = "succeeded")]
    Completed,
    #[serde(alias = "error")]
    Failed,
    #[serde(alias = "canceled")]
    Cancelled,
}

impl PolicyJobStatus {
    /// Its word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Dispatching => "dispatching",
            Self::Submitted => "submitted",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What a policy job evaluates the policy against.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inputs {
    pub sbom_set: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advisory_cursor: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vex_cursor: Option<String>,
    pub environment: BTreeMap<String, String>,
    pub capture_explain: bool,
}
