//! Read parity (design 12): what the repositories' queries answer, all pages, is the same on both stores.
//!
//! Invariants: the queries are those that the repositories ask; a difference is told only when it [stands
//! still](crate::parity::Standstill) with whatever the mirror had to bring behind it; nothing compared is never a pass.
//! Writes nothing but its report.

mod arguments;
mod difference;
mod questions;
mod record;
mod report;
mod stores;
mod tenants;
mod walk;

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub use self::difference::Difference;
pub use self::record::{Latest, latest};
pub use self::report::{Counts, ReadReport};

use self::arguments::Arguments;
use self::report::Tally;
use self::stores::Stores;
use crate::anchor::MarkError;
use crate::backfill::Rate;
use crate::fence::FenceError;
use crate::parity::Read;
use crate::phase::{Backend, Phase};
use crate::scheduler::Tenant;
use crate::source::{Source, SourceError};
use crate::store::StoreError;
use crate::target::{Target, TargetError};

/// How to compare reads.
#[derive(Debug, Clone)]
pub struct Options {
    /// Of how many tenants, drawn at random; nothing is all of them.
    pub tenants: Option<NonZeroU64>,
    /// How many tenants' queries are asked at once.
    pub workers: usize,
    /// The rate all of them share.
    pub rate: Rate,
    /// How many differences are listed, at most.
    pub listed: usize,
    /// Of how many differences a diff is kept.
    pub shown: usize,
}

/// How far it is.
#[derive(Debug, Default)]
pub struct Progress {
    /// How many tenants there are to look at; 0 until that is known.
    pub tenants: AtomicU64,
    /// Tenants that are done with.
    pub done: AtomicU64,
    /// Queries asked.
    pub queries: AtomicU64,
    /// Differences found.
    pub differences: AtomicU64,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// MongoDB failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// PostgreSQL failed.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A store failed to answer.
    #[error("{backend} did not answer a query")]
    Store {
        /// Which.
        backend: Backend,
        /// What was attempted.
        source: StoreError,
    },
    /// The phase is not known.
    #[error(transparent)]
    Phase(#[from] FenceError),
    /// A value of the data cannot be asked for.
    #[error("a query could not be made")]
    Query(#[from] crate::scheduler::Error),
    /// In the last phase nobody brings MongoDB level.
    #[error("in phase postgres MongoDB follows no more, so its answers are old")]
    Alone,
    /// A switch is half way.
    #[error("no store takes writes: a switch is under way, or has ended half way")]
    Half,
    /// The phase has changed meanwhile.
    #[error("the phase has changed from {from} to {to} meanwhile, or was turned forth and back")]
    Turned {
        /// The phase in which it began.
        from: Phase,
        /// The phase now.
        to: Phase,
    },
    /// A mirror runs, and does not keep up.
    #[error("the mirror has not brought {secondary} level in time, so nothing can be said of what differs")]
    Behind {
        /// Which store.
        secondary: Backend,
    },
    /// A bug: a task panicked. Its own report is in the log.
    #[error("a task of the comparison ended by itself")]
    Crashed,
    /// It was told to stop.
    #[error("stopped before the end")]
    Interrupted,
}

type Result<T> = std::result::Result<T, ReadError>;

impl ReadError {
    fn of_mark(error: MarkError) -> Self {
        match error {
            MarkError::Source(error) => SourceError::of("write a mark for the mirror", error).into(),
            MarkError::Target(error) => TargetError::of("look into the outbox", error).into(),
        }
    }
}

/// What a task compares with.
struct Work {
    stores: Stores,
    options: Options,
    progress: Arc<Progress>,
}

/// Compares what the queries of the repositories answer on both stores, and keeps the report. Dropping the future, or
/// cancelling it, leaves nothing behind.
pub async fn run(
    source: &Source,
    target: &Target,
    options: &Options,
    progress: Arc<Progress>,
    cancel: CancellationToken,
) -> Result<ReadReport> {
    let work = async {
        target.require_schema().await?;
        source.require_collections().await?;
        let stores = Stores::open(source, target, options.rate).await?;
        let work = Arc::new(Work { stores, options: options.clone(), progress });
        let report = work.compare(source, target).await?;
        record::keep(target.pool(), &report).await?;
        Ok(report)
    };
    cancel.run_until_cancelled(work).await.unwrap_or(Err(ReadError::Interrupted))
}

impl Work {
    async fn compare(self: &Arc<Self>, source: &Source, target: &Target) -> Result<ReadReport> {
        let started_at = target.now().await?;
        let census = tenants::count(source, target, self.options.tenants).await?;
        let (in_all, sampled) = (census.count, census.drawn.is_some());
        let tenants = census.drawn.as_ref().map_or(in_all, |drawn| u64::try_from(drawn.len()).unwrap_or(u64::MAX));
        self.progress.tenants.store(tenants, Relaxed);
        let mut tally = self.across(started_at).await?;
        match census.drawn {
            Some(drawn) => self.each(drawn, &mut tally).await?,
            None => {
                let mut after = String::new();
                while let Some(page) = tenants::after_name(source, target, &mut after).await? {
                    self.each(page, &mut tally).await?;
                }
            }
        }
        self.stores.require_same_phase().await?;
        let finished_at = target.now().await?;
        // Those that are shown first.
        let place = |one: &Difference| (one.diff.is_none(), one.collection, one.tenant.clone(), one.query.clone());
        tally.differences.sort_by_cached_key(place);
        let listed = u64::try_from(tally.differences.len()).unwrap_or(u64::MAX);
        Ok(ReadReport {
            verdict: tally.verdict(),
            phase: self.stores.phase,
            epoch: self.stores.epoch,
            tenants,
            tenants_in_all: in_all,
            sampled,
            queries: tally.sum(|one| one.queries),
            pages: tally.sum(|one| one.pages),
            records: tally.sum(|one| one.records),
            rechecked: tally.sum(|one| one.rechecked),
            unsettled: tally.sum(|one| one.unsettled),
            unlisted: tally.sum(|one| one.differences).saturating_sub(listed),
            collections: tally.collections,
            differences: tally.differences,
            started_at,
            finished_at,
        })
    }

    /// The queries of each of `tenants`, several at once.
    async fn each(self: &Arc<Self>, tenants: Vec<Tenant>, tally: &mut Tally) -> Result<()> {
        let ask = |tenant: Tenant| {
            let this = self.clone();
            // A task of its own, so that tenants are compared on all processors.
            let task = tokio::spawn(async move { this.tenant(&tenant).await });
            async { AbortOnDropHandle::new(task).await.map_err(|_| ReadError::Crashed)? }
        };
        let mut found = futures::stream::iter(tenants).map(ask).buffer_unordered(self.options.workers.max(1));
        while let Some(other) = found.try_next().await? {
            tally.add(other, self.most());
            self.progress.done.fetch_add(1, Relaxed);
        }
        Ok(())
    }

    /// First what needs no arguments; then everything, with arguments from what was answered.
    async fn tenant(&self, tenant: &Tenant) -> Result<Tally> {
        let (mut tally, mut known) = (Tally::new(), Arguments::default());
        let plain = questions::of_tenant(tenant, &known).await?;
        self.ask(&plain, Some(tenant), (&mut tally, &mut known)).await?;
        let further = questions::of_tenant(tenant, &known).await?;
        let further: Vec<Read> = further.into_iter().filter(|read| !plain.contains(read)).collect();
        self.ask(&further, Some(tenant), (&mut tally, &mut Arguments::default())).await?;
        Ok(tally)
    }

    /// The same across tenants.
    async fn across(&self, now: DateTime<Utc>) -> Result<Tally> {
        let (mut tally, mut known) = (Tally::new(), Arguments::default());
        let plain = questions::across(now, &known).await?;
        self.ask(&plain, None, (&mut tally, &mut known)).await?;
        let further = questions::across(now, &known).await?;
        let further: Vec<Read> = further.into_iter().filter(|read| !plain.contains(read)).collect();
        self.ask(&further, None, (&mut tally, &mut Arguments::default())).await?;
        Ok(tally)
    }

    async fn ask(
        &self,
        reads: &[Read],
        tenant: Option<&Tenant>,
        (tally, known): (&mut Tally, &mut Arguments),
    ) -> Result<()> {
        for read in reads {
            let entity = read.entity();
            let seen = |seen: &crate::parity::Seen| {
                seen.items.iter().for_each(|item| known.note(entity, &item.document));
            };
            let walked = walk::walk(&self.stores, read, seen).await?;
            self.progress.queries.fetch_add(1, Relaxed);
            if let Some(lasting) = &walked.lasting {
                let difference = difference::describe(&self.stores, tenant.map(Tenant::name), read, lasting).await?;
                // Across a switch the stores may well differ.
                self.stores.require_same_phase().await?;
                self.progress.differences.fetch_add(1, Relaxed);
                tally.keep(difference, self.most());
            }
            if let Some(counts) = tally.of(entity) {
                counts.queries += 1;
                counts.pages += walked.pages;
                counts.records += walked.records;
                counts.rechecked += walked.rechecked;
                counts.unsettled += u64::from(walked.is_unsettled);
                counts.differences += u64::from(walked.lasting.is_some());
            }
        }
        Ok(())
    }

    fn most(&self) -> (usize, usize) {
        (self.options.listed, self.options.shown)
    }
}
