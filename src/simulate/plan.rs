//! The planner: due triggers become runs, runs get their jobs.

use bson::{Document, doc};

use super::{Phases, Simulation, add};
use crate::entity::Instant;
use crate::entity::audit::{Actor, AuditRecord};
use crate::entity::graph_jobs::{GraphJob, GraphJobStatus, GraphJobType};
use crate::entity::impact_snapshots::{Image, ImpactSnapshot};
use crate::entity::policy_jobs::{Inputs, PolicyJob, PolicyJobStatus, PolicyMode, Priority};
use crate::entity::runs::{Reason, Run, RunState, Stats};
use crate::entity::schedules::{Mode, Schedule, Selection};
use crate::entity::triggers::{MisfirePolicy, Trigger, TriggerKind};
use crate::lock::Locks;
use crate::scheduler::records::{Records, creation};
use crate::scheduler::runs::{ListOptions, Progress, advanced};
use crate::scheduler::triggers::Claim;
use crate::scheduler::{Error, PageRequest, Tenant};
use crate::store::{Change, Store, StoreError};

/// How many of a kind are taken on at a time.
const BATCH: u32 = 50;

/// Policy jobs of a run; each run has one graph job beside them.
pub(super) const POLICY_JOBS: i32 = 2;

/// A worker that is silent for so long is taken to be dead.
const SILENCE: std::time::Duration = std::time::Duration::from_secs(3);

impl<S: Store, L: Locks> Simulation<S, L> {
    /// Puts schedules and triggers there. Those that an earlier process put there stay as they are.
    pub(super) async fn prepare(&self) -> Result<(), Error> {
        let now = self.now().await?;
        for tenant in self.tenants()? {
            for index in 1..=self.options.schedules {
                let schedule = schedule(&tenant, index, now);
                if matches!(self.scheduler.schedules.get(&tenant, &schedule.id).await, Err(Error::NotFound { .. })) {
                    self.scheduler.schedules.upsert(&schedule).await?;
                }
                let trigger = trigger(&schedule, now);
                if matches!(self.scheduler.triggers.get(&tenant, &trigger.id).await, Err(Error::NotFound { .. })) {
                    self.scheduler.triggers.upsert(&trigger).await?;
                }
            }
        }
        Ok(())
    }

    /// Turns due triggers into runs until the firing ends; the trigger's advance and the run are one write.
    pub(super) async fn fire(&self, index: u32, phases: &Phases) -> Result<(), Error> {
        let name = self.planner(index);
        while !phases.firing.is_cancelled() {
            if self.persist(phases, || self.fire_due(&name)).await? == Some(0) {
                phases.pause().await;
            }
        }
        Ok(())
    }

    /// Plans runs, and takes jobs back, until the work ends.
    pub(super) async fn plan(&self, index: u32, phases: &Phases) -> Result<(), Error> {
        let name = self.planner(index);
        while !phases.working.is_cancelled() {
            let round = || async {
                let mut done = 0;
                for tenant in self.tenants()? {
                    done += self.plan_runs(&tenant, &name).await?;
                }
                self.take_back().await?;
                Ok(done)
            };
            if self.persist(phases, round).await? == Some(0) {
                phases.pause().await;
            }
        }
        Ok(())
    }

    fn planner(&self, index: u32) -> String {
        format!("{}-planner-{index}", self.options.name)
    }

    async fn fire_due(&self, name: &str) -> Result<usize, Error> {
        let now = self.now().await?;
        let brings_about = |claim: &Claim| {
            let Some(fire_at) = claim.fire_at else { return Ok(Vec::new()) };
            let run = new_run(&claim.trigger, fire_at, now);
            let audit = audit(&run.tenant_id, ("run", &run.id), "fired", name, now);
            Ok(vec![creation(&run)?, creation(&audit)?])
        };
        let fired = self.scheduler.triggers.fire_due(now, BATCH, name, brings_about).await?;
        add(&self.totals.fired, fired.iter().filter(|claim| claim.fire_at.is_some()).count());
        Ok(fired.len())
    }

    async fn plan_runs(&self, tenant: &Tenant, name: &str) -> Result<usize, Error> {
        let options = ListOptions { state: Some(RunState::Planning), ..ListOptions::default() };
        let runs = self.scheduler.runs.list(tenant, &options, &PageRequest::first(BATCH)).await?.items;
        let mut planned = 0;
        for run in &runs {
            planned += usize::from(self.plan_run(tenant, &run.id, name).await?);
        }
        add(&self.totals.planned, planned);
        Ok(planned)
    }

    /// Gives a run its snapshot and its jobs, in one write with its transition: another planner finds it planned.
    async fn plan_run(&self, tenant: &Tenant, id: &str, name: &str) -> Result<bool, Error> {
        let now = self.now().await?;
        let held = Records::<S, Run>::new(self.store.clone()).of(tenant, id).await?;
        if held.record.state != RunState::Planning {
            return Ok(false);
        }
        let run = &held.record;
        let jobs = POLICY_JOBS + 1;
        let stats = Stats { candidates: jobs, queued: jobs, ..Stats::default() };
        let queued = advanced(run, &Progress { stats, ..Progress::to(RunState::Queued, now) })?;
        let mut changes: Vec<Change> = vec![held.replacement(&queued)?, creation(&snapshot(run, now))?];
        for index in 1..=POLICY_JOBS {
            changes.push(creation(&policy_job(run, index, now))?);
        }
        changes.push(creation(&graph_job(run, now))?);
        changes.push(creation(&audit(&run.tenant_id, ("run", &run.id), "planned", name, now))?);
        match self.store.apply(&changes).await {
            Ok(_) => Ok(true),
            Err(StoreError::Conflict { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes jobs back from workers that died, and from those that are too slow.
    async fn take_back(&self) -> Result<(), Error> {
        let reaped = self.scheduler.workers.reap(SILENCE, BATCH).await?;
        let returned = self.scheduler.policy_jobs.return_expired(BATCH).await?;
        add(&self.totals.returned, returned.len() + reaped.iter().map(|reaped| reaped.returned.len()).sum::<usize>());
        Ok(())
    }
}

fn schedule(tenant: &Tenant, index: u32, now: Instant) -> Schedule {
    Schedule {
        id: format!("{}-schedule-{index}", tenant.name()),
        schema_version: Some("scheduler.schedule@1".to_owned()),
        tenant_id: tenant.name().to_owned(),
        name: format!("Simulated {index}"),
        enabled: true,
        cron_expression: "*/2 * * * * *".to_owned(),
        timezone: "UTC".to_owned(),
        mode: Mode::AnalysisOnly,
        selection: selection(),
        only_if: None,
        notify: None,
        limits: None,
        subscribers: None,
        created_at: now,
        created_by: "simulate".to_owned(),
        updated_at: now,
        updated_by: "simulate".to_owned(),
        deleted_at: None,
        deleted_by: None,
    }
}

fn selection() -> Selection {
    Selection {
        scope: "all-images".to_owned(),
        namespaces: Vec::new(),
        repositories: Vec::new(),
        digests: Vec::new(),
        include_tags: vec!["latest".to_owned()],
        labels: Vec::new(),
        resolves_tags: true,
    }
}

fn trigger(schedule: &Schedule, now: Instant) -> Trigger {
    Trigger {
        id: format!("{}-trigger", schedule.id),
        tenant_id: schedule.tenant_id.clone(),
        schedule_id: schedule.id.clone(),
        kind: TriggerKind::Cron,
        cron_expression: Some(schedule.cron_expression.clone()),
        timezone: Some(schedule.timezone.clone()),
        enabled: true,
        next_fire_at: None,
        last_fired_at: None,
        misfire_policy: MisfirePolicy::FireOnce,
        created_at: now,
        updated_at: now,
    }
}

/// The run that a firing sets off; its reason says which firing, so that a second run of it would show.
fn new_run(trigger: &Trigger, fire_at: Instant, now: Instant) -> Run {
    let firing = format!("{}@{}", trigger.id, fire_at.0.timestamp_millis());
    Run {
        id: uuid::Uuid::now_v7().to_string(),
        schema_version: Some("scheduler.run@1".to_owned()),
        tenant_id: trigger.tenant_id.clone(),
        schedule_id: Some(trigger.schedule_id.clone()),
        trigger: "cron".to_owned(),
        state: RunState::Planning,
        stats: Stats::default(),
        reason: Reason { cursor: Some(firing), ..Reason::default() },
        created_at: now,
        started_at: None,
        finished_at: None,
        error: None,
        deltas: Vec::new(),
        retry_of: None,
        updated_at: now,
    }
}

fn snapshot(run: &Run, now: Instant) -> ImpactSnapshot {
    let image = Image {
        image_digest: format!("sha256:{:064x}", u128::from_be_bytes(*uuid::Uuid::new_v4().as_bytes())),
        registry: "registry.example".to_owned(),
        repository: "shop/api".to_owned(),
        namespaces: vec!["payments".to_owned()],
        tags: vec!["latest".to_owned()],
        used_by_entrypoint: true,
        labels: [("team".to_owned(), "core".to_owned())].into(),
    };
    ImpactSnapshot {
        id: format!("impact-{}", run.id),
        schema_version: Some("scheduler.impact@1".to_owned()),
        tenant_id: run.tenant_id.clone(),
        run_id: Some(run.id.clone()),
        selector: selection(),
        images: vec![image],
        usage_only: true,
        generated_at: now,
        total: 1,
        snapshot_id: None,
    }
}

fn policy_job(run: &Run, index: i32, now: Instant) -> PolicyJob {
    PolicyJob {
        id: format!("run:{}:{index}", run.id),
        schema_version: Some("scheduler.policyJob@1".to_owned()),
        tenant_id: run.tenant_id.clone(),
        policy_id: format!("P-{index}"),
        policy_version: Some(1),
        mode: PolicyMode::Incremental,
        priority: if index == 1 { Priority::High } else { Priority::Normal },
        status: PolicyJobStatus::Pending,
        run_id: None,
        requested_by: Some("simulate".to_owned()),
        correlation_id: Some(run.id.clone()),
        inputs: Inputs {
            sbom_set: vec!["sbom-1".to_owned()],
            advisory_cursor: None,
            vex_cursor: None,
            environment: [("region".to_owned(), "eu".to_owned())].into(),
            capture_explain: false,
        },
        attempt_count: 0,
        available_at: now,
        last_attempt_at: None,
        last_error: None,
        lease_owner: None,
        lease_expires_at: None,
        queued_at: now,
        submitted_at: None,
        completed_at: None,
        created_at: now,
        updated_at: now,
        metadata: doc! { "index": index },
    }
}

fn graph_job(run: &Run, now: Instant) -> GraphJob {
    GraphJob {
        id: format!("gbj_{}", run.id),
        schema_version: Some("scheduler.graphJob@1".to_owned()),
        tenant_id: run.tenant_id.clone(),
        job_type: GraphJobType::Build,
        status: GraphJobStatus::Pending,
        sbom_id: "sbom-1".to_owned(),
        sbom_version_id: None,
        sbom_digest: None,
        graph_snapshot_id: None,
        trigger: "run".to_owned(),
        attempts: 0,
        correlation_id: Some(run.id.clone()),
        created_at: now,
        updated_at: now,
        started_at: None,
        completed_at: None,
        error: None,
        metadata: Document::new(),
    }
}

/// An audit record of its own id each time: something done twice has two.
pub(super) fn audit(tenant: &str, (category, id): (&str, &str), action: &str, by: &str, now: Instant) -> AuditRecord {
    AuditRecord {
        id: uuid::Uuid::now_v7().to_string(),
        tenant_id: tenant.to_owned(),
        category: category.to_owned(),
        action: action.to_owned(),
        occurred_at: now,
        actor: Actor { actor_id: by.to_owned(), display_name: "simulate".to_owned(), kind: "system".to_owned() },
        entity_id: Some(id.to_owned()),
        schedule_id: None,
        run_id: None,
        correlation_id: None,
        message: None,
        metadata: Document::new(),
    }
}
