//! A small scheduler built only on the repositories (design 14): the load for demonstrations, soaks and fault tests.
//!
//! Planners turn due triggers into runs, and runs into impact snapshots, policy jobs and graph jobs; workers execute the
//! jobs, log, and finish the runs; summaries and the audit follow. Any number of processes may do this at once, and any of
//! them may die at any point. Invariants, which [`check`] compares with the store afterwards: every acknowledged write
//! is there; each firing has one run; each job is done once.

pub mod check;
pub mod journal;
mod plan;
mod work;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::entity::runs::RunState;
use crate::entity::schedules::Schedule;
use crate::entity::{Instant, Record};
use crate::lock::Locks;
use crate::scheduler::records::Records;
use crate::scheduler::runs::ListOptions;
use crate::scheduler::{Error, PageRequest, Scheduler, Tenant};
use crate::store::{Query, Store};

/// The pause of a planner or worker that found nothing to do.
const PAUSE: Duration = Duration::from_millis(50);

/// How the names of the simulation's tenants begin.
const TENANT: &str = "simulated-";

/// How many schedules are looked at to find one that is not the simulation's.
const STRANGERS: u32 = 1_000;

/// How long the work after the last trigger may stand still. Leases of workers that died run out within seconds; but a
/// transaction that a process left open when it died keeps its documents in MongoDB until the server ends it: after
/// `transactionLifetimeLimitSeconds` (60 unless set), looked at twice in that time, so within 90 seconds.
pub const DRAIN_WAIT: Duration = Duration::from_secs(150);

/// What to simulate.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many tenants.
    pub tenants: u32,
    /// How many schedules each tenant has; each fires every other second.
    pub schedules: u32,
    /// How many planners this process runs.
    pub planners: u32,
    /// How many workers this process runs.
    pub workers: u32,
    /// How long triggers fire.
    pub duration: Duration,
    /// The name of this process in the records; no other process may have it.
    pub name: String,
}

/// What was done, by this process.
#[derive(Debug, Default)]
pub struct Totals {
    /// Triggers that set off a run.
    pub fired: AtomicU64,
    /// Runs that got their jobs.
    pub planned: AtomicU64,
    /// Jobs done.
    pub executed: AtomicU64,
    /// Runs that came to their end.
    pub completed: AtomicU64,
    /// Jobs taken back from workers that died or were too slow.
    pub returned: AtomicU64,
}

impl Totals {
    fn sum(&self) -> u64 {
        let all = [&self.fired, &self.planned, &self.executed, &self.completed, &self.returned];
        all.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

/// What ends in turn: the firing of triggers, the work on what they set off; or everything at once.
#[derive(Debug, Clone)]
struct Phases {
    firing: CancellationToken,
    working: CancellationToken,
    stop: CancellationToken,
}

impl Phases {
    /// A pause that the end of the work cuts short.
    async fn pause(&self) {
        self.working.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
    }
}

/// A simulation over one store.
#[derive(Debug)]
pub struct Simulation<S, L> {
    store: S,
    scheduler: Scheduler<S>,
    locks: L,
    options: Options,
    totals: Totals,
}

impl<S: Store, L: Locks> Simulation<S, L> {
    /// A simulation in `store`, which locks by `locks`.
    pub fn new(store: S, locks: L, options: Options) -> Self {
        Self { scheduler: Scheduler::new(&store), store, locks, options, totals: Totals::default() }
    }

    /// What was done so far.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Puts the schedules there, lets their triggers fire for the time asked for, and ends when all runs are over, or
    /// when `stop` is cancelled. Whatever is dropped on the way is done by other processes, or by the next one.
    ///
    /// # Errors
    /// The first error that is not a store that is away for a while.
    pub async fn run(self: &std::sync::Arc<Self>, stop: &CancellationToken) -> Result<(), Error> {
        let phases = Phases { firing: stop.child_token(), working: stop.child_token(), stop: stop.clone() };
        self.persist(&phases, || self.prepare()).await?;
        let (mut triggers, mut tasks) = (JoinSet::new(), JoinSet::new());
        for index in 0..self.options.planners {
            let (this, its) = (self.clone(), phases.clone());
            triggers.spawn(async move { this.fire(index, &its).await });
            let (this, its) = (self.clone(), phases.clone());
            tasks.spawn(async move { this.plan(index, &its).await });
        }
        for index in 0..self.options.workers {
            let (this, its) = (self.clone(), phases.clone());
            tasks.spawn(async move { this.work(index, &its).await });
        }
        let ended = self.conduct(&phases, &mut triggers, &mut tasks).await;
        phases.firing.cancel();
        phases.working.cancel();
        let (fired, done) = (joined(&mut triggers).await, joined(&mut tasks).await);
        ended.and(fired).and(done)
    }

    /// Waits for the end of the firing, and then for that of all runs.
    async fn conduct(
        &self,
        phases: &Phases,
        triggers: &mut JoinSet<Result<(), Error>>,
        tasks: &mut JoinSet<Result<(), Error>>,
    ) -> Result<(), Error> {
        let drained = async {
            phases.firing.run_until_cancelled(tokio::time::sleep(self.options.duration)).await;
            phases.firing.cancel();
            // Before the last firing has ended no look at the runs says that there are none left.
            joined(triggers).await?;
            let (mut done, mut since) = (self.totals.sum(), tokio::time::Instant::now());
            while since.elapsed() < DRAIN_WAIT && !phases.stop.is_cancelled() {
                if self.persist(phases, || self.is_quiet()).await?.unwrap_or(true) {
                    return Ok(());
                }
                tokio::time::sleep(PAUSE).await;
                // A busy machine is slow, and gets there: only work that stands still is given up.
                if self.totals.sum() != done {
                    (done, since) = (self.totals.sum(), tokio::time::Instant::now());
                }
            }
            Ok(())
        };
        tokio::select! {
            done = drained => done,
            // Planners and workers end only with an error before they are asked to.
            Some(done) = tasks.join_next(), if !tasks.is_empty() => {
                done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
            }
        }
    }

    /// Whose schedule is there beside the simulation's own; nothing when the store is free for it.
    ///
    /// A simulation in a store that is in use would set off other people's triggers.
    pub async fn stranger(&self) -> Result<Option<String>, Error> {
        let records: Records<S, Schedule> = Records::new(self.store.clone());
        let (schedules, _) = records.find(&Query::of(Schedule::ENTITY).limit(STRANGERS)).await?;
        let mut tenants = schedules.into_iter().map(|held| held.record.tenant_id);
        Ok(tenants.find(|tenant| !tenant.starts_with(TENANT)))
    }

    /// Whether every run is over.
    pub async fn is_quiet(&self) -> Result<bool, Error> {
        for tenant in self.tenants()? {
            for state in [RunState::Planning, RunState::Queued, RunState::Running] {
                let options = ListOptions { state: Some(state), ..ListOptions::default() };
                let found = self.scheduler.runs.list(&tenant, &options, &PageRequest::first(1)).await?;
                if !found.items.is_empty() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Does `work` until it is done, a lasting error stops it, or the simulation is stopped (nothing then). A store that
    /// is away comes back; when the work is over nobody waits for it.
    ///
    /// Only a stop cuts work off: what is under way when the last run ends (its summary) is finished.
    async fn persist<T, F>(&self, phases: &Phases, work: impl Fn() -> F) -> Result<Option<T>, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        loop {
            match phases.stop.run_until_cancelled(work()).await {
                None => return Ok(None),
                Some(Err(Error::Unavailable { .. })) if !phases.working.is_cancelled() => phases.pause().await,
                Some(done) => return done.map(Some),
            }
        }
    }

    fn tenants(&self) -> Result<Vec<Tenant>, Error> {
        tenants(self.options.tenants)
    }

    async fn now(&self) -> Result<Instant, Error> {
        Ok(Instant(self.store.now().await?))
    }
}

/// The tenants of a simulation.
pub fn tenants(count: u32) -> Result<Vec<Tenant>, Error> {
    (1..=count).map(|index| Tenant::new(format!("{TENANT}{index}"))).collect()
}

/// Waits for every task; the first error of any.
async fn joined(tasks: &mut JoinSet<Result<(), Error>>) -> Result<(), Error> {
    let mut all = Ok(());
    while let Some(done) = tasks.join_next().await {
        all = all.and(done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())));
    }
    all
}

fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
}
