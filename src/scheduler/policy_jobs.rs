//! Policy jobs: their states follow [`POLICY_JOB`]; a job in dispatch belongs to the worker that holds its lease.
//!
//! Leases are given, and run out, by the database's clock.

use std::time::Duration;

use chrono::TimeDelta;

use super::Error;
use super::records::{Held, Listing, PageRequest, Records, Tenant, address, date, named, of_tenant};
use super::state::POLICY_JOB;
use crate::entity::policy_jobs::{PolicyJob, PolicyJobStatus, Priority};
use crate::entity::{Instant, Record};
use crate::store::{Change, Direction, Filter, Query, Store};

/// The policy jobs in a store.
#[derive(Debug, Clone)]
pub struct PolicyJobs<S> {
    records: Records<S, PolicyJob>,
}

/// What became of a leased job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conclusion {
    /// It was handed to the policy engine, as the run of this id; the lease ends.
    Submitted {
        /// The run.
        run_id: String,
    },
    /// It is done.
    Completed,
    /// It failed for good.
    Failed {
        /// Why.
        error: String,
    },
    /// It failed and is to be tried again after a pause.
    Again {
        /// Why.
        error: String,
        /// The pause.
        after: Duration,
    },
}

impl<S: Store> PolicyJobs<S> {
    /// The policy jobs in `store`.
    pub fn new(store: S) -> Self {
        Self { records: Records::new(store) }
    }

    /// Puts a new job.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the id is taken, [`Error::Invalid`] for a job that does not wait.
    pub async fn create(&self, job: &PolicyJob) -> Result<(), Error> {
        Tenant::new(job.tenant_id.as_str())?;
        if job.status != PolicyJobStatus::Pending {
            return Err(Error::invalid("the new policy job", format!("it is {} already", job.status.word())));
        }
        self.records.create(job).await
    }

    /// The job.
    pub async fn get(&self, tenant: &Tenant, id: &str) -> Result<PolicyJob, Error> {
        Ok(self.records.of(tenant, id).await?.record)
    }

    /// The tenant's jobs by creation: all of them, or those in one state.
    pub async fn list(
        &self,
        tenant: &Tenant,
        status: Option<PolicyJobStatus>,
        page: &PageRequest,
    ) -> Result<Listing<PolicyJob>, Error> {
        let query = Query::of(PolicyJob::ENTITY)
            .only(of_tenant(tenant))
            .only_if(status.map(|status| named("status", status.word())))
            .by("createdAt", Direction::Ascending);
        self.records.page(query, page).await
    }

    /// Puts `job` in the place of the one with its id, if that is still in state `expected`.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it is in another state, [`Error::Illegal`] when `job`'s may not follow.
    pub async fn replace(&self, job: &PolicyJob, expected: PolicyJobStatus) -> Result<PolicyJob, Error> {
        let tenant = Tenant::new(job.tenant_id.as_str())?;
        let replaced = |held: &PolicyJob| {
            if held.status != expected {
                return Err(conflict(&job.id));
            }
            step(held, job.status)?;
            Ok(Some(PolicyJob { created_at: held.created_at, ..job.clone() }))
        };
        Ok(self.records.update(&tenant, &job.id, replaced).await?.record())
    }

    /// Leases up to `limit` jobs of all tenants that are available, to `owner` for `lease`: emergencies first, then by the
    /// time since when they are available. Each goes to one caller only.
    pub async fn lease(&self, owner: &str, lease: Duration, limit: u32) -> Result<Vec<PolicyJob>, Error> {
        let now = self.now().await?;
        let until = later(now, lease)?;
        let mut leased = Vec::new();
        for priority in [Priority::Emergency, Priority::High, Priority::Normal] {
            let wanted = limit.saturating_sub(u32::try_from(leased.len()).unwrap_or(u32::MAX));
            if wanted > 0 {
                let (found, _) = self.records.find(&available(priority, now).limit(wanted)).await?;
                leased.extend(self.change_each(found, |job| dispatched(job, owner, (now, until))).await?);
            }
        }
        Ok(leased)
    }

    /// Prolongs a lease that `owner` holds.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it is another's by now, or has run out.
    pub async fn renew(&self, tenant: &Tenant, id: &str, owner: &str, lease: Duration) -> Result<PolicyJob, Error> {
        let now = self.now().await?;
        let until = later(now, lease)?;
        let renewed = |job: &PolicyJob| {
            require_lease(job, owner, now)?;
            Ok(Some(PolicyJob { lease_expires_at: Some(until), updated_at: now, ..job.clone() }))
        };
        Ok(self.records.update(tenant, id, renewed).await?.record())
    }

    /// Ends a lease that `owner` holds with what became of the job. A job that was submitted has no lease: whoever hears of
    /// its end completes it.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the lease is another's by now, or has run out; [`Error::Illegal`] when the job is over.
    pub async fn complete(
        &self,
        tenant: &Tenant,
        id: &str,
        owner: &str,
        conclusion: &Conclusion,
    ) -> Result<PolicyJob, Error> {
        let now = self.now().await?;
        let concluded = |job: &PolicyJob| concluded(job, owner, conclusion, now).map(Some);
        Ok(self.records.update(tenant, id, concluded).await?.record())
    }

    /// [`PolicyJobs::complete`] together with what it brings about, in one transaction.
    pub async fn complete_with(
        &self,
        (tenant, id): (&Tenant, &str),
        owner: &str,
        conclusion: &Conclusion,
        brings_about: Vec<Change>,
    ) -> Result<(), Error> {
        let now = self.now().await?;
        let held = self.records.of(tenant, id).await?;
        let job = concluded(&held.record, owner, conclusion, now)?;
        let mut changes = vec![held.replacement(&job)?];
        changes.extend(brings_about);
        self.records.store().apply(&changes).await?;
        Ok(())
    }

    /// Returns up to `limit` jobs whose leases have run out to the queue.
    pub async fn return_expired(&self, limit: u32) -> Result<Vec<PolicyJob>, Error> {
        let now = self.now().await?;
        let query = Query::of(PolicyJob::ENTITY)
            .only(named("status", PolicyJobStatus::Dispatching.word()))
            .only(Filter::Below("leaseExpiresAt", date(now)))
            .by("leaseExpiresAt", Direction::Ascending)
            .limit(limit);
        let (found, _) = self.records.find(&query).await?;
        self.change_each(found, |job| returned(job, now)).await
    }

    /// Puts what `change` makes of each job; those that somebody else was first with are left out.
    async fn change_each(
        &self,
        jobs: Vec<Held<PolicyJob>>,
        change: impl Fn(&PolicyJob) -> PolicyJob,
    ) -> Result<Vec<PolicyJob>, Error> {
        let changes: Vec<Change> =
            jobs.iter().map(|held| held.replacement(&change(&held.record))).collect::<Result<_, _>>()?;
        let done = self.records.store().apply_each(&changes).await?;
        done.into_iter().flatten().map(|after| Ok(Held::of_after(after)?.record)).collect()
    }

    async fn now(&self) -> Result<Instant, Error> {
        Ok(Instant(self.records.store().now().await?))
    }
}

/// The jobs that `owner` holds leases of.
pub(crate) fn leased_by(owner: &str) -> Query {
    Query::of(PolicyJob::ENTITY).only(named("leaseOwner", owner))
}

/// The job back in the queue.
pub(super) fn returned(job: &PolicyJob, now: Instant) -> PolicyJob {
    PolicyJob {
        status: PolicyJobStatus::Pending,
        lease_owner: None,
        lease_expires_at: None,
        updated_at: job.updated_at.max(now),
        ..job.clone()
    }
}

fn available(priority: Priority, now: Instant) -> Query {
    Query::of(PolicyJob::ENTITY)
        .only(named("status", PolicyJobStatus::Pending.word()))
        .only(named("priority", priority.word()))
        .only(Filter::UpTo("availableAt", date(now)))
        .by("availableAt", Direction::Ascending)
}

fn dispatched(job: &PolicyJob, owner: &str, (now, until): (Instant, Instant)) -> PolicyJob {
    PolicyJob {
        status: PolicyJobStatus::Dispatching,
        lease_owner: Some(owner.to_owned()),
        lease_expires_at: Some(until),
        attempt_count: job.attempt_count.saturating_add(1),
        last_attempt_at: Some(now),
        updated_at: job.updated_at.max(now),
        ..job.clone()
    }
}

fn concluded(job: &PolicyJob, owner: &str, conclusion: &Conclusion, now: Instant) -> Result<PolicyJob, Error> {
    if job.status == PolicyJobStatus::Dispatching {
        require_lease(job, owner, now)?;
    }
    let mut next = PolicyJob { lease_owner: None, lease_expires_at: None, ..job.clone() };
    next.updated_at = job.updated_at.max(now);
    next.status = match conclusion {
        Conclusion::Submitted { run_id } => {
            (next.run_id, next.submitted_at) = (Some(run_id.clone()), Some(now));
            PolicyJobStatus::Submitted
        }
        Conclusion::Completed => {
            next.completed_at = Some(now);
            PolicyJobStatus::Completed
        }
        Conclusion::Failed { error } => {
            (next.last_error, next.completed_at) = (Some(error.clone()), Some(now));
            PolicyJobStatus::Failed
        }
        Conclusion::Again { error, after } => {
            (next.last_error, next.available_at) = (Some(error.clone()), later(now, *after)?);
            PolicyJobStatus::Pending
        }
    };
    step(job, next.status)?;
    Ok(next)
}

fn require_lease(job: &PolicyJob, owner: &str, now: Instant) -> Result<(), Error> {
    let is_held = job.lease_owner.as_deref() == Some(owner) && job.lease_expires_at >= Some(now);
    if is_held { Ok(()) } else { Err(conflict(&job.id)) }
}

fn step(job: &PolicyJob, to: PolicyJobStatus) -> Result<(), Error> {
    let step = POLICY_JOB.step(job.status.word(), to.word());
    step.map(|_| ()).map_err(|source| Error::Illegal { address: address::<PolicyJob>(&job.id), source })
}

fn conflict(id: &str) -> Error {
    Error::Conflict { address: address::<PolicyJob>(id) }
}

fn later(now: Instant, by: Duration) -> Result<Instant, Error> {
    let by = TimeDelta::from_std(by).ok().and_then(|by| now.0.checked_add_signed(by));
    by.map(Instant).ok_or_else(|| Error::invalid("the lease", "it is longer than time goes"))
}
