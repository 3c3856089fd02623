//! Shadow reads (design 10): a share of the reads is repeated on the secondary, in the background, and compared.
//!
//! Invariants: a read is answered before anything here begins, and waits for nothing here; what is kept for later is
//! bounded, in number and in bytes, and what finds no room is dropped and counted. A store that fails is left alone for a
//! while, in which the room fills up.

mod findings;
mod recheck;
mod stores;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use mongodb::{Client, Database};
use sqlx::PgPool;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::findings::Outcome;
pub use self::findings::{Counters, Difference, Findings};
use self::recheck::{Suspicion, Suspicions};
use self::stores::Stores;
use super::Tuning;
use crate::fence::gate::{Gate, Turn};
pub use crate::parity::Kind;
use crate::parity::{Read, Seen};
use crate::phase::Phase;
use crate::store::{Cause, Cursor, Stored};

/// How many reads may wait.
const JOBS: usize = 256;

/// The bytes of documents that may wait with them.
const BYTES: usize = 16 << 20;

/// A read and what it was answered.
struct Job {
    turn: Turn,
    read: Read,
    seen: Seen,
    /// The bytes of the answer.
    _room: OwnedSemaphorePermit,
}

/// The shadow reads of one dual store. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Shadow {
    tuning: watch::Receiver<Tuning>,
    sampler: Sampler,
    jobs: mpsc::Sender<Job>,
    room: Arc<Semaphore>,
    findings: Arc<Findings>,
    stop: CancellationToken,
    task: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl Shadow {
    /// Shadow reads between MongoDB and the PostgreSQL that `pool` leads to, which gives none of its connections for them.
    pub fn start(gate: Gate, mongo: (Client, Database), pool: &PgPool, tuning: watch::Receiver<Tuning>) -> Self {
        let (jobs, queue) = mpsc::channel(JOBS);
        let (suspicions, suspected) = Suspicions::new();
        let (findings, stop) = (Arc::new(Findings::new(suspicions)), CancellationToken::new());
        let worker = Worker {
            stores: Stores::new(gate, mongo.0, mongo.1, pool),
            tuning: tuning.clone(),
            findings: findings.clone(),
            is_failing: AtomicBool::new(false),
        };
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            // Nothing here must finish.
            stopped.run_until_cancelled(worker.run(queue, suspected)).await;
        });
        let task = Mutex::new(Some(AbortOnDropHandle::new(task)));
        let (sampler, room) = (Sampler::default(), Arc::new(Semaphore::new(BYTES)));
        Self { tuning, sampler, jobs, room, findings, stop, task }
    }

    /// What was found so far.
    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    /// Has `read`, which was answered with `items` in `turn`, repeated if it is its turn and there is room.
    pub fn offer<'a>(
        &self,
        turn: Turn,
        read: impl FnOnce() -> Read,
        items: impl Iterator<Item = &'a Stored> + Clone,
        next: Option<&Cursor>,
    ) {
        // In phase `postgres` nobody brings MongoDB level.
        if turn.phase == Phase::Postgres || !self.sampler.takes(self.tuning.borrow().shadow_fraction) {
            return;
        }
        let bytes = items.clone().map(|item| item.document.as_bytes().len()).sum::<usize>();
        let room = u32::try_from(bytes).ok().and_then(|bytes| self.room.clone().try_acquire_many_owned(bytes).ok());
        let (Ok(place), Some(room)) = (self.jobs.try_reserve(), room) else {
            return self.findings.count(Outcome::Dropped);
        };
        let seen = Seen { items: items.cloned().collect(), next: next.cloned(), unreadable: None };
        place.send(Job { turn, read: read(), seen, _room: room });
    }

    /// Ends the task, whatever it is at.
    pub async fn close(&self) {
        self.stop.cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the shadow reads had ended by themselves");
        }
    }
}

/// Takes a share of the reads, evenly spread and without a period in which the application's own reads could stand: the
/// multiples of the golden ratio fill the numbers from 0 to 1 as evenly as any.
#[derive(Debug, Default)]
struct Sampler {
    place: AtomicU32,
}

impl Sampler {
    /// 2^32 divided by the golden ratio.
    const STEP: u32 = 0x9E37_79B9;

    fn takes(&self, fraction: f64) -> bool {
        let place = self.place.fetch_add(Self::STEP, Relaxed);
        f64::from(place) < fraction * 2_f64.powi(32)
    }
}

/// What the task does its work with.
struct Worker {
    stores: Stores,
    tuning: watch::Receiver<Tuning>,
    findings: Arc<Findings>,
    is_failing: AtomicBool,
}

impl Worker {
    /// Compares two reads at a time, and looks at suspicions beside that.
    async fn run(&self, jobs: mpsc::Receiver<Job>, suspected: mpsc::Receiver<Suspicion>) {
        let jobs = tokio::sync::Mutex::new(jobs);
        tokio::join!(self.work(&jobs), self.work(&jobs), self.recheck(suspected));
    }

    async fn work(&self, jobs: &tokio::sync::Mutex<mpsc::Receiver<Job>>) {
        loop {
            let next = jobs.lock().await.recv().await;
            let Some(job) = next else { return };
            self.done(self.compare(job).await).await;
        }
    }

    /// Repeats a read on both stores at once, so that what the primary answers is as old as what the secondary does.
    async fn compare(&self, Job { turn, read, seen, .. }: Job) -> Result<(), Cause> {
        let primary = turn.phase.primary();
        let (again, other) =
            tokio::try_join!(self.stores.read(&read, primary), self.stores.read(&read, primary.other()))?;
        if !self.stores.is_now(turn).await {
            self.findings.count(Outcome::Overtaken);
            return Ok(());
        }
        let (is_noise, differs) = (!seen.equals(&again), !seen.equals(&other));
        let outcomes: [(bool, Outcome); 3] =
            [(true, Outcome::Compared), (is_noise, Outcome::Noise), (differs, Outcome::Differed)];
        outcomes.into_iter().filter(|(is_so, _)| *is_so).for_each(|(_, outcome)| self.findings.count(outcome));
        if differs {
            self.suspect(turn, read, (&seen, &other));
        }
        Ok(())
    }

    /// Leaves the stores alone for a while when one of them has failed. The first failure in a row is told.
    async fn done(&self, done: Result<(), Cause>) {
        let was_failing = self.is_failing.swap(done.is_err(), Relaxed);
        match done {
            Ok(()) if was_failing => tracing::info!("shadow reads go on"),
            Ok(()) => {}
            Err(error) => {
                self.findings.count(Outcome::Failed);
                if !was_failing {
                    tracing::warn!(error = crate::error_text(&*error), "a shadow read failed");
                }
                let pause = self.tuning.borrow().protection.pause;
                tokio::time::sleep(pause).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_the_fraction_is_taken_whatever_the_period_of_the_reads() {
        let sampler = Sampler::default();
        let taken =
            |fraction: f64, every: u32| (0..40_000_u32).filter(|n| sampler.takes(fraction) && n % every == 0).count();
        for (fraction, every, expected) in [
            (0.0, 1, 0),
            (-1.0, 1, 0),
            (f64::NAN, 1, 0),
            (0.25, 1, 10_000),
            (0.25, 4, 2_500),
            (0.01, 1, 400),
            (1.0, 1, 40_000),
            (7.0, 1, 40_000),
        ] {
            let found = taken(fraction, every);
            assert!(found.abs_diff(expected) <= 4, "{fraction} of every {every}: {found}");
        }
    }
}
