//! The worker: leases policy jobs, locks graph jobs, executes both, and finishes their runs.
//!
//! What a job brings about (its log, its audit record, the run's progress) is one write with the job's end, and that is
//! guarded by the lease, or by the lock's token: of two workers that took the same job, one has that write.

use std::time::Duration;

use bson::oid::ObjectId;
use bson::{Document, doc};

use super::plan::audit;
use super::{Phases, Simulation, add};
use crate::entity::Instant;
use crate::entity::execution_logs::ExecutionLog;
use crate::entity::graph_jobs::{GraphJob, GraphJobStatus};
use crate::entity::policy_jobs::PolicyJob;
use crate::entity::runs::{Run, RunState, Stats};
use crate::entity::workers::{Worker, WorkerStatus};
use crate::lock::{Held, LockKey, Locks};
use crate::scheduler::policy_jobs::Conclusion;
use crate::scheduler::records::{Records, creation};
use crate::scheduler::runs::{Progress, advanced};
use crate::scheduler::{Error, PageRequest, Tenant};
use crate::store::{Change, Store, StoreError};

/// How long a job is a worker's.
const LEASE: Duration = Duration::from_secs(5);

/// How many jobs a worker takes at a time.
const BATCH: u32 = 4;

/// Lines that a job writes to the log of its run.
const LINES: i64 = 5;

/// How often a worker says that it lives.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// What a job has done, as its run sees it.
struct Done<'a> {
    tenant: &'a Tenant,
    run_id: &'a str,
    job_id: &'a str,
    worker: &'a str,
    /// The place of the job among those of its run.
    ordinal: i64,
}

impl<S: Store, L: Locks> Simulation<S, L> {
    /// Works until the work ends.
    pub(super) async fn work(&self, index: u32, phases: &Phases) -> Result<(), Error> {
        let id = format!("{}-worker-{index}", self.options.name);
        self.persist(phases, || self.register(&id)).await?;
        let mut said = tokio::time::Instant::now();
        while !phases.working.is_cancelled() {
            if said.elapsed() >= HEARTBEAT {
                self.persist(phases, || self.say_alive(&id)).await?;
                said = tokio::time::Instant::now();
            }
            let round = || async { Ok(self.policy_jobs(&id).await? + self.graph_jobs(&id).await?) };
            if self.persist(phases, round).await? == Some(0) {
                phases.pause().await;
            }
        }
        match self.scheduler.workers.drain(&id).await {
            // It was declared dead, or the store is away: nobody waits for this worker.
            Ok(_) | Err(Error::Illegal { .. } | Error::Unavailable { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn register(&self, id: &str) -> Result<(), Error> {
        let now = self.now().await?;
        let worker = Worker {
            id: id.to_owned(),
            tenant_id: None,
            hostname: "simulate".to_owned(),
            process_id: i32::try_from(std::process::id()).unwrap_or(i32::MAX),
            status: WorkerStatus::Active,
            job_types: vec!["policy".to_owned(), "graph".to_owned()],
            max_concurrent: 1,
            current_jobs: 0,
            registered_at: now,
            last_heartbeat_at: now,
            metadata: Document::new(),
        };
        self.scheduler.workers.register(&worker).await?;
        Ok(())
    }

    async fn say_alive(&self, id: &str) -> Result<(), Error> {
        match self.scheduler.workers.heartbeat(id, 1).await {
            // It was silent for too long, and is another one from now on.
            Err(Error::Illegal { .. }) => self.register(id).await,
            done => done.map(|_| ()),
        }
    }

    async fn policy_jobs(&self, worker: &str) -> Result<usize, Error> {
        let leased = self.scheduler.policy_jobs.lease(worker, LEASE, BATCH).await?;
        let mut executed = 0;
        for job in &leased {
            executed += usize::from(self.policy_job(job, worker).await?);
        }
        add(&self.totals.executed, executed);
        Ok(leased.len())
    }

    async fn policy_job(&self, job: &PolicyJob, worker: &str) -> Result<bool, Error> {
        let Some(run_id) = job.correlation_id.as_deref() else { return Ok(false) };
        let tenant = Tenant::new(job.tenant_id.as_str())?;
        let ordinal = job.metadata.get_i32("index").unwrap_or_default().into();
        let done = Done { tenant: &tenant, run_id, job_id: &job.id, worker, ordinal };
        loop {
            let (changes, is_last) = self.effects(&done).await?;
            let jobs = &self.scheduler.policy_jobs;
            match jobs.complete_with((&tenant, &job.id), worker, &Conclusion::Completed, changes).await {
                Ok(()) => return self.told(&done, is_last).await.map(|()| true),
                // Either the run has moved on, or the job is no longer this worker's.
                Err(Error::Conflict { address }) if address.entity.name == "runs" => {}
                Err(Error::Conflict { .. } | Error::Illegal { .. }) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    async fn graph_jobs(&self, worker: &str) -> Result<usize, Error> {
        let mut executed = 0;
        for tenant in self.tenants()? {
            // Those that are running may have lost their worker: the lock tells.
            for status in [GraphJobStatus::Running, GraphJobStatus::Pending] {
                let found = self.scheduler.graph_jobs.list(&tenant, Some(status), &PageRequest::first(BATCH)).await?;
                for job in &found.items {
                    executed += usize::from(self.graph_job(&tenant, job, worker).await?);
                }
            }
        }
        add(&self.totals.executed, executed);
        Ok(executed)
    }

    /// Executes a job under its lock; not, when another worker has that.
    async fn graph_job(&self, tenant: &Tenant, job: &GraphJob, worker: &str) -> Result<bool, Error> {
        let key =
            LockKey::new(tenant.name(), &job.id).map_err(|error| Error::invalid("the lock", error.to_string()))?;
        let Some(held) = self.locks.try_acquire(&key, LEASE).await.map_err(Error::of_lock)? else { return Ok(false) };
        let done = self.locked_graph_job(tenant, job, (worker, &key, held.token())).await;
        held.release().await.map_err(Error::of_lock)?;
        done
    }

    async fn locked_graph_job(
        &self,
        tenant: &Tenant,
        job: &GraphJob,
        (worker, key, token): (&str, &LockKey, i64),
    ) -> Result<bool, Error> {
        let Some(run_id) = job.correlation_id.as_deref() else { return Ok(false) };
        let done = Done { tenant, run_id, job_id: &job.id, worker, ordinal: 9 };
        let records: Records<S, GraphJob> = Records::new(self.store.clone());
        loop {
            let held = records.of(tenant, &job.id).await?;
            let now = self.now().await?;
            let check = match self.scheduler.fences.check(key.id(), token).await {
                // It was lost, or has run out while a switch was waited for.
                Err(Error::Conflict { .. }) => return Ok(false),
                check => check?,
            };
            let mut changes = vec![check];
            let next = match held.record.status {
                GraphJobStatus::Pending => GraphJob {
                    status: GraphJobStatus::Running,
                    attempts: held.record.attempts.saturating_add(1),
                    started_at: Some(now),
                    updated_at: now,
                    ..held.record.clone()
                },
                GraphJobStatus::Running => GraphJob {
                    status: GraphJobStatus::Completed,
                    completed_at: Some(now),
                    updated_at: now,
                    ..held.record.clone()
                },
                _ => return Ok(false),
            };
            changes.push(held.replacement(&next)?);
            let is_over = next.status == GraphJobStatus::Completed;
            let mut is_last = false;
            if is_over {
                let (effects, last) = match self.effects(&done).await {
                    // The job was read before, and the run after, somebody else has ended them.
                    Err(Error::Illegal { .. }) => return Ok(false),
                    effects => effects?,
                };
                changes.extend(effects);
                is_last = last;
            }
            match self.store.apply(&changes).await {
                Ok(_) if is_over => return self.told(&done, is_last).await.map(|()| true),
                Ok(_) => {}
                Err(StoreError::Conflict { address }) if address.entity.name == "runs" => {}
                // The lock, or the job, is another's by now.
                Err(StoreError::Conflict { .. }) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What the end of a job brings about, and whether it is the end of its run.
    async fn effects(&self, done: &Done<'_>) -> Result<(Vec<Change>, bool), Error> {
        let now = self.now().await?;
        let held = Records::<S, Run>::new(self.store.clone()).of(done.tenant, done.run_id).await?;
        let run = &held.record;
        let stats = Stats { completed: run.stats.completed + 1, ..run.stats };
        let is_last = stats.completed >= run.stats.queued;
        let state = if is_last && run.state == RunState::Running { RunState::Completed } else { RunState::Running };
        let next = advanced(run, &Progress { stats, ..Progress::to(state, now) })?;
        let tenant = done.tenant.name();
        let mut changes = vec![held.replacement(&next)?];
        changes.push(creation(&audit(tenant, ("job", done.job_id), "completed", done.worker, now))?);
        for line in 1..=LINES {
            changes.push(creation(&log_line(done, line, now))?);
        }
        if state == RunState::Completed {
            changes.push(creation(&audit(tenant, ("run", done.run_id), "completed", done.worker, now))?);
        }
        Ok((changes, is_last))
    }

    /// Folds the run into its schedule's summary. If this process dies before, the next projection makes up for it.
    async fn told(&self, done: &Done<'_>, is_last: bool) -> Result<(), Error> {
        let run = self.scheduler.runs.get(done.tenant, done.run_id).await?;
        self.scheduler.run_summaries.project(&run).await?;
        add(&self.totals.completed, usize::from(is_last));
        Ok(())
    }
}

fn log_line(done: &Done<'_>, line: i64, now: Instant) -> ExecutionLog {
    ExecutionLog {
        id: ObjectId::new(),
        tenant_id: done.tenant.name().to_owned(),
        run_id: done.run_id.to_owned(),
        sequence: done.ordinal * 1_000 + line,
        level: "info".to_owned(),
        event_type: Some("job".to_owned()),
        message: format!("{}: step {line} of {LINES}", done.job_id),
        step_id: Some(format!("step-{line}")),
        timestamp: now,
        metadata: doc! { "worker": done.worker },
    }
}
