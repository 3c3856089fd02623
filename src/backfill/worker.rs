//! Workers: each leases a chunk, copies it, and leases the next, until every chunk is done.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bson::Timestamp;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::ledger::{Backfill, Lease, Ledger};
use super::limit::Limiter;
use super::load::Loader;
use super::progress::Progress;
use super::read::{Batch, BatchSize, Reader, count};
use super::statements::Statements;
use super::{Fault, Result};
use crate::entity::Entity;
use crate::mapping::Mapping;
use crate::source::Source;

/// What all workers of a process share.
pub struct Shared {
    pub source: Source,
    pub ledger: Ledger,
    pub limiter: Arc<Limiter>,
    pub jobs: HashMap<i64, Job>,
    pub patience: Patience,
    /// Bytes of BSON of one batch, aimed at.
    pub batch_bytes: u64,
    /// As many loads at once as there are workers, see [`CHUNKS_PER_LOAD`].
    pub loads: Semaphore,
    /// Told whenever a chunk of this process is done, for those who wait for the last ones.
    pub chunk_done: Notify,
    pub cancel: CancellationToken,
}

/// Chunks under way for each load at a time: while one is loaded, the next of the other is read, so that the target
/// waits neither for a read nor for a new chunk.
pub const CHUNKS_PER_LOAD: usize = 2;

/// Repeats what failed for a reason that passes.
#[derive(Debug, Clone)]
pub struct Patience {
    /// How long a transient fault may last without any progress.
    pub limit: Duration,
    /// Ends all patience.
    pub cancel: CancellationToken,
}

impl Patience {
    /// Repeats an operation that changes nothing twice while its faults are transient.
    pub async fn with<T, F: Future<Output = Result<T>>>(&self, operation: impl Fn() -> F) -> Result<T> {
        let mut waits = waits(self.limit);
        loop {
            match operation().await {
                Err(fault) if fault.is_transient() && !self.cancel.is_cancelled() => match waits.next() {
                    Some(wait) => self.retry(&fault, wait).await,
                    None => return Err(fault),
                },
                done => return done,
            }
        }
    }

    async fn retry(&self, fault: &Fault, wait: Duration) {
        tracing::warn!(error = %crate::error_text(fault), ?wait, "will try again");
        self.pause(wait).await;
    }

    async fn pause(&self, wait: Duration) {
        self.cancel.run_until_cancelled(tokio::time::sleep(wait)).await;
    }
}

/// A backfill and all that is needed to work on it.
pub struct Job {
    pub backfill: Backfill,
    pub after: Timestamp,
    pub statements: Statements,
    pub progress: Arc<Progress>,
}

impl Job {
    pub fn new(backfill: Backfill, after: Timestamp, progress: Arc<Progress>) -> Self {
        let entity = backfill.entity;
        Self { statements: Statements::new(entity), backfill, after, progress }
    }

    fn entity(&self) -> &'static Entity {
        self.backfill.entity
    }
}

impl Shared {
    /// Works until every chunk is done or the process is to stop.
    pub async fn work(self: Arc<Self>) -> Result<()> {
        let ids: Vec<i64> = self.jobs.keys().copied().collect();
        let size = Arc::new(BatchSize::new(self.limiter.rate().batch(), self.batch_bytes));
        while !self.cancel.is_cancelled() {
            // Made before the look at the ledger, so that no end of a chunk is missed.
            let chunk_done = self.chunk_done.notified();
            let leased = self.patience.with(|| self.ledger.lease(&ids)).await?;
            match leased {
                Some(lease) => {
                    let copied = self.copy_patiently(lease, &size).await;
                    self.chunk_done.notify_waiters();
                    copied?;
                }
                None => match self.patience.with(|| self.ledger.wait(&ids)).await? {
                    // Others are at the rest; one of them may die, so this one stays until they are done.
                    Some(wait) => {
                        let wait = wait.clamp(Duration::from_millis(50), Duration::from_secs(1));
                        let _either = tokio::time::timeout(wait, self.cancel.run_until_cancelled(chunk_done)).await;
                    }
                    None => break,
                },
            }
        }
        Ok(())
    }

    /// Renews the leases until cancelled. A renewal that fails is not repeated at once: the next one comes in time.
    pub async fn renew(self: Arc<Self>, done: CancellationToken) {
        while done.run_until_cancelled(tokio::time::sleep(self.ledger.renewal())).await.is_some() {
            if let Err(fault) = self.ledger.renew().await {
                tracing::warn!(error = %fault, "the leases were not renewed");
            }
        }
    }

    /// Copies a chunk; after a transient fault goes on from where the ledger says, which knows whether a commit whose
    /// answer was lost took place. Patience begins anew with every progress.
    async fn copy_patiently(&self, lease: Lease, size: &Arc<BatchSize>) -> Result<()> {
        let (mut lease, mut waits) = (lease, waits(self.patience.limit));
        loop {
            let fault = match self.copy(&lease, size).await {
                Ok(()) => return Ok(()),
                Err(Fault::LeaseLost) => return Ok(()), // another worker is at it
                Err(fault) if !fault.is_transient() || self.cancel.is_cancelled() => return Err(fault),
                Err(fault) => fault,
            };
            match waits.next() {
                Some(wait) => self.patience.retry(&fault, wait).await,
                None => return Err(fault),
            }
            let Some(held) = self.patience.with(|| self.ledger.held(&lease)).await? else { return Ok(()) };
            if held.rest != lease.rest {
                waits = self::waits(self.patience.limit);
            }
            lease = held;
        }
    }

    /// Copies the rest of a chunk. Reading and encoding the next batch overlaps with loading this one.
    async fn copy(&self, lease: &Lease, size: &Arc<BatchSize>) -> Result<()> {
        let job = self.jobs.get(&lease.backfill).ok_or(Fault::LeaseLost)?;
        let reader = Reader {
            source: self.source.clone(),
            mapping: Mapping::new(job.entity()),
            after: Some(job.after),
            epoch: job.backfill.anchor.epoch,
            limiter: self.limiter.clone(),
            size: size.clone(),
        };
        // One batch waits while one is loaded.
        let (sender, mut batches) = mpsc::channel(1);
        let reading = AbortOnDropHandle::new(tokio::spawn(reader.read(lease.rest.clone(), lease.resumed, sender)));
        let loader = Loader { ledger: &self.ledger, lease, entity: job.entity(), statements: &job.statements };
        while let Some(batch) = batches.recv().await {
            self.load(&loader, job, &batch, size).await?;
            if self.cancel.is_cancelled() {
                return Ok(());
            }
        }
        reading.await.map_err(|_| Fault::Crashed)??;
        self.ledger.finish_chunk(lease).await
    }

    async fn load(&self, loader: &Loader<'_>, job: &Job, batch: &Batch, size: &BatchSize) -> Result<()> {
        let turn = self.loads.acquire().await.map_err(|_| Fault::Crashed)?;
        let started = Instant::now();
        let tally = loader.load(batch).await?;
        drop(turn);
        let (documents, bytes) = (count(batch.items.len()), u64::try_from(tally.bytes).unwrap_or_default());
        size.observe(documents, bytes, started.elapsed());
        job.progress.add(documents, bytes);
        Ok(())
    }
}

/// The pauses between attempts, `patience` in all.
fn waits(patience: Duration) -> impl Iterator<Item = Duration> {
    let mut left = patience;
    crate::backoff::waits().take_while(move |wait| {
        let is_left = !left.is_zero();
        left = left.saturating_sub(*wait);
        is_left
    })
}
