//! Records that tests put into stores.

use bson::{Document, oid::ObjectId};
use chrono::{DateTime, Utc};
use scheduler_bridge::entity::Instant;
use scheduler_bridge::entity::audit::{Actor, AuditRecord};
use scheduler_bridge::entity::execution_logs::ExecutionLog;
use scheduler_bridge::entity::graph_jobs::{GraphJob, GraphJobStatus, GraphJobType};
use scheduler_bridge::entity::impact_snapshots::ImpactSnapshot;
use scheduler_bridge::entity::policy_jobs::{Inputs, PolicyJob, PolicyJobStatus, PolicyMode, Priority};
use scheduler_bridge::entity::runs::{Reason, Run, RunState, Stats};
use scheduler_bridge::entity::schedules::{Mode, Schedule, Selection};
use scheduler_bridge::entity::triggers::{MisfirePolicy, Trigger, TriggerKind};
use scheduler_bridge::entity::workers::{Worker, WorkerStatus};
use scheduler_bridge::scheduler::Tenant;

/// A moment, in seconds after one that all samples share.
pub fn at(seconds: i64) -> Instant {
    Instant(DateTime::<Utc>::from_timestamp(1_790_000_000 + seconds, 0).expect("a moment"))
}

pub fn tenant(name: &str) -> Tenant {
    Tenant::new(name).expect("a tenant")
}

pub fn selection() -> Selection {
    Selection {
        scope: "all-images".to_owned(),
        namespaces: vec!["payments".to_owned()],
        repositories: Vec::new(),
        digests: Vec::new(),
        include_tags: Vec::new(),
        labels: Vec::new(),
        resolves_tags: false,
    }
}

pub fn schedule(tenant: &str, id: &str) -> Schedule {
    Schedule {
        id: id.to_owned(),
        schema_version: Some("scheduler.schedule@1".to_owned()),
        tenant_id: tenant.to_owned(),
        name: "Nightly".to_owned(),
        enabled: true,
        cron_expression: "0 2 * * *".to_owned(),
        timezone: "Europe/Berlin".to_owned(),
        mode: Mode::AnalysisOnly,
        selection: selection(),
        only_if: None,
        notify: None,
        limits: None,
        subscribers: None,
        created_at: at(0),
        created_by: "ana".to_owned(),
        updated_at: at(0),
        updated_by: "ana".to_owned(),
        deleted_at: None,
        deleted_by: None,
    }
}

pub fn trigger(tenant: &str, id: &str, schedule_id: &str) -> Trigger {
    Trigger {
        id: id.to_owned(),
        tenant_id: tenant.to_owned(),
        schedule_id: schedule_id.to_owned(),
        kind: TriggerKind::Cron,
        cron_expression: Some("0 * * * *".to_owned()),
        timezone: Some("UTC".to_owned()),
        enabled: true,
        next_fire_at: Some(at(0)),
        last_fired_at: None,
        misfire_policy: MisfirePolicy::FireOnce,
        created_at: at(0),
        updated_at: at(0),
    }
}

pub fn run(tenant: &str, id: &str) -> Run {
    Run {
        id: id.to_owned(),
        schema_version: Some("scheduler.run@1".to_owned()),
        tenant_id: tenant.to_owned(),
        schedule_id: Some("nightly".to_owned()),
        trigger: "cron".to_owned(),
        state: RunState::Planning,
        stats: Stats::default(),
        reason: Reason::default(),
        created_at: at(0),
        started_at: None,
        finished_at: None,
        error: None,
        deltas: Vec::new(),
        retry_of: None,
        updated_at: at(0),
    }
}

pub fn graph_job(tenant: &str, id: &str) -> GraphJob {
    GraphJob {
        id: id.to_owned(),
        schema_version: None,
        tenant_id: tenant.to_owned(),
        job_type: GraphJobType::Build,
        status: GraphJobStatus::Pending,
        sbom_id: "sbom-1".to_owned(),
        sbom_version_id: None,
        sbom_digest: None,
        graph_snapshot_id: None,
        trigger: "sbom-version".to_owned(),
        attempts: 0,
        correlation_id: None,
        created_at: at(0),
        updated_at: at(0),
        started_at: None,
        completed_at: None,
        error: None,
        metadata: Document::new(),
    }
}

pub fn policy_job(tenant: &str, id: &str) -> PolicyJob {
    PolicyJob {
        id: id.to_owned(),
        schema_version: None,
        tenant_id: tenant.to_owned(),
        policy_id: "P-7".to_owned(),
        policy_version: Some(4),
        mode: PolicyMode::Incremental,
        priority: Priority::Normal,
        status: PolicyJobStatus::Pending,
        run_id: None,
        requested_by: None,
        correlation_id: None,
        inputs: Inputs {
            sbom_set: vec!["sbom-1".to_owned()],
            advisory_cursor: None,
            vex_cursor: None,
            environment: [("region".to_owned(), "eu".to_owned())].into(),
            capture_explain: false,
        },
        attempt_count: 0,
        available_at: at(0),
        last_attempt_at: None,
        last_error: None,
        lease_owner: None,
        lease_expires_at: None,
        queued_at: at(0),
        submitted_at: None,
        completed_at: None,
        created_at: at(0),
        updated_at: at(0),
        metadata: Document::new(),
    }
}

pub fn snapshot(tenant: &str, id: &str, run_id: &str) -> ImpactSnapshot {
    ImpactSnapshot {
        id: id.to_owned(),
        schema_version: None,
        tenant_id: tenant.to_owned(),
        run_id: Some(run_id.to_owned()),
        selector: selection(),
        images: Vec::new(),
        usage_only: true,
        generated_at: at(0),
        total: 0,
        snapshot_id: None,
    }
}

pub fn worker(id: &str) -> Worker {
    Worker {
        id: id.to_owned(),
        tenant_id: None,
        hostname: "host-1".to_owned(),
        process_id: 4_711,
        status: WorkerStatus::Active,
        job_types: vec!["policy".to_owned()],
        max_concurrent: 4,
        current_jobs: 0,
        registered_at: at(0),
        last_heartbeat_at: at(0),
        metadata: Document::new(),
    }
}

pub fn log_line(tenant: &str, run_id: &str, sequence: i64) -> ExecutionLog {
    ExecutionLog {
        id: ObjectId::new(),
        tenant_id: tenant.to_owned(),
        run_id: run_id.to_owned(),
        sequence,
        level: "info".to_owned(),
        event_type: None,
        message: format!("step {sequence}"),
        step_id: None,
        timestamp: at(sequence),
        metadata: Document::new(),
    }
}

pub fn audit(tenant: &str, id: &str, entity_id: &str) -> AuditRecord {
    AuditRecord {
        id: id.to_owned(),
        tenant_id: tenant.to_owned(),
        category: "scheduler".to_owned(),
        action: "create".to_owned(),
        occurred_at: at(0),
        actor: Actor { actor_id: "u1".to_owned(), display_name: "Ana".to_owned(), kind: "user".to_owned() },
        entity_id: Some(entity_id.to_owned()),
        schedule_id: None,
        run_id: None,
        correlation_id: None,
        message: None,
        metadata: Document::new(),
    }
}
