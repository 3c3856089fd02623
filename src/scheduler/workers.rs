//! Workers: their states follow [`WORKER`]; who lives is decided by the database's clock.

use std::time::Duration;

use chrono::TimeDelta;

use super::Error;
use super::policy_jobs::{leased_by, returned};
use super::records::{Held, Records, address, date};
use super::state::WORKER;
use crate::entity::policy_jobs::PolicyJob;
use crate::entity::workers::{Worker, WorkerStatus};
use crate::entity::{Instant, Record};
use crate::store::{Change, Direction, Filter, Query, Store, StoreError};

/// How many leases of a dead worker are returned in one transaction.
const BATCH: u32 = 200;

/// The workers in a store.
#[derive(Debug, Clone)]
pub struct Workers<S> {
    records: Records<S, Worker>,
    jobs: Records<S, PolicyJob>,
}

/// A worker that was found dead, and what it left behind.
#[derive(Debug, Clone, PartialEq)]
pub struct Reaped {
    /// The worker.
    pub worker: Worker,
    /// The jobs that went back to the queue.
    pub returned: Vec<PolicyJob>,
}

impl<S: Store> Workers<S> {
    /// The workers in `store`.
    pub fn new(store: S) -> Self {
        Self { records: Records::new(store.clone()), jobs: Records::new(store) }
    }

    /// The worker.
    pub async fn get(&self, id: &str) -> Result<Worker, Error> {
        Ok(self.records.any(id).await?.record)
    }

    /// Registers a worker, active from now on; one that was registered before, dead or alive, begins anew.
    pub async fn register(&self, worker: &Worker) -> Result<Worker, Error> {
        let now = self.now().await?;
        let fresh =
            Worker { status: WorkerStatus::Active, registered_at: now, last_heartbeat_at: now, ..worker.clone() };
        self.records.upsert(&fresh, |_| Some(fresh.clone())).await
    }

    /// Notes that a worker lives, and how many jobs it is at.
    ///
    /// # Errors
    /// [`Error::Illegal`] when it was declared dead: its jobs are others' now, and it has to register again.
    pub async fn heartbeat(&self, id: &str, current_jobs: i32) -> Result<Worker, Error> {
        let now = self.now().await?;
        let alive = |worker: &Worker| {
            require_alive(worker)?;
            let last_heartbeat_at = worker.last_heartbeat_at.max(now);
            Ok(Some(Worker { last_heartbeat_at, current_jobs, ..worker.clone() }))
        };
        Ok(self.records.update_any(id, alive).await?.record())
    }

    /// Takes a worker out of service: it finishes what it has and takes no more. One that drains already stays so.
    pub async fn drain(&self, id: &str) -> Result<Worker, Error> {
        let draining = |worker: &Worker| {
            if worker.status == WorkerStatus::Draining {
                return Ok(None);
            }
            require_step(worker, WorkerStatus::Draining)?;
            Ok(Some(Worker { status: WorkerStatus::Draining, ..worker.clone() }))
        };
        Ok(self.records.update_any(id, draining).await?.record())
    }

    /// Up to `limit` workers that have not been heard of for longer than `silence`, the longest silent first.
    pub async fn dead(&self, silence: Duration, limit: u32) -> Result<Vec<Worker>, Error> {
        Ok(self.silent(silence, limit).await?.0.into_iter().map(|held| held.record).collect())
    }

    /// Declares up to `limit` such workers dead and returns their leased jobs to the queue. A worker that is heard of in
    /// the meantime is left alone; of several reapers one gets each.
    pub async fn reap(&self, silence: Duration, limit: u32) -> Result<Vec<Reaped>, Error> {
        let (silent, now) = self.silent(silence, limit).await?;
        let mut reaped = Vec::new();
        for worker in silent {
            reaped.extend(self.bury(&worker, now).await?);
        }
        Ok(reaped)
    }

    /// The worker's death and the return of its leases are one transaction; leases beyond the first ones follow, and if
    /// this process dies before that, they run out by themselves.
    async fn bury(&self, worker: &Held<Worker>, now: Instant) -> Result<Option<Reaped>, Error> {
        let dead = Worker { status: WorkerStatus::Dead, current_jobs: 0, ..worker.record.clone() };
        let mut reaped = Reaped { worker: dead, returned: Vec::new() };
        let mut death = Some(worker.replacement(&reaped.worker)?);
        loop {
            let (leased, more) = self.jobs.find(&leased_by(&worker.record.id).limit(BATCH)).await?;
            let jobs: Vec<PolicyJob> = leased.iter().map(|held| returned(&held.record, now)).collect();
            let changes = leased.iter().zip(&jobs).map(|(held, job)| held.replacement(job));
            let changes: Vec<Change> = death.clone().map(Ok).into_iter().chain(changes).collect::<Result<_, _>>()?;
            match self.records.store().apply(&changes).await {
                Ok(_) => death = None,
                Err(StoreError::Conflict { address }) if address.entity == Worker::ENTITY => return Ok(None),
                // A job has moved on meanwhile: look again.
                Err(StoreError::Conflict { .. }) => continue,
                Err(error) => return Err(error.into()),
            }
            reaped.returned.extend(jobs);
            if more.is_none() {
                return Ok(Some(reaped));
            }
        }
    }

    async fn silent(&self, silence: Duration, limit: u32) -> Result<(Vec<Held<Worker>>, Instant), Error> {
        let now = self.now().await?;
        let since = TimeDelta::from_std(silence).ok().and_then(|silence| now.0.checked_sub_signed(silence));
        let since = since.ok_or_else(|| Error::invalid("the silence", "it is longer than time goes"))?;
        let living = [WorkerStatus::Active, WorkerStatus::Draining].map(|status| status.word().into());
        let query = Query::of(Worker::ENTITY)
            .only(Filter::In("status", living.to_vec()))
            .only(Filter::Below("lastHeartbeatAt", date(Instant(since))))
            .by("lastHeartbeatAt", Direction::Ascending)
            .limit(limit);
        Ok((self.records.find(&query).await?.0, now))
    }

    async fn now(&self) -> Result<Instant, Error> {
        Ok(Instant(self.records.store().now().await?))
    }
}

fn require_alive(worker: &Worker) -> Result<(), Error> {
    if worker.status == WorkerStatus::Dead { require_step(worker, WorkerStatus::Draining) } else { Ok(()) }
}

fn require_step(worker: &Worker, to: WorkerStatus) -> Result<(), Error> {
    let step = WORKER.step(worker.status.word(), to.word());
    step.map(|_| ()).map_err(|source| Error::Illegal { address: address::<Worker>(&worker.id), source })
}
