//! The verifier: compares every document with its row, and gates the cutover (design 12).
//!
//! Invariant: a difference is reported only after both sides were read again, and nothing compared is never a pass.

pub mod canonical;
mod digest;
mod generation;
pub mod reads;
mod recheck;
mod report;
mod rows;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bson::{RawDocumentBuf, Timestamp, doc};
use chrono::Utc;
use futures::{StreamExt, TryStreamExt};
use tokio_util::sync::CancellationToken;

pub use canonical::{equal, text};
pub use report::{
    Counts, Gate, IrregularField, Kind, Longest, Mismatch, Report, Sides, Surroundings, Verdict, unified,
};

use crate::entity::Entity;
use crate::mapping::Mapping;
use crate::plan::{self, Plan};
use crate::scan::{self, Range};
use crate::source::{Source, SourceError};
use crate::target::{Target, TargetError};
use generation::{Generation, Order, Outcome, Share};
use recheck::{Difference, Recheck};
use rows::{Rows, Scope};

/// How to verify.
#[derive(Debug, Clone)]
pub struct Options {
    /// What to compare.
    pub entities: Vec<&'static Entity>,
    /// How many ranges are compared at once.
    pub workers: usize,
    /// How many mismatches are listed, at most.
    pub listed: usize,
    /// Of how many mismatches of each kind both sides are kept.
    pub shown: usize,
    /// The size of a range that is aimed at, in bytes of documents; [`plan::CHUNK_BYTES`] unless a test cuts finer.
    pub chunk_bytes: i64,
}

/// How far the verification of one collection is.
#[derive(Debug)]
pub struct Progress {
    /// The collection.
    pub collection: &'static str,
    /// How many documents it is believed to have.
    pub estimated: u64,
    /// Documents compared.
    pub documents: AtomicU64,
    /// Mismatches found.
    pub mismatches: AtomicU64,
}

/// Why a verification has no result.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The source failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The target failed.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A bug: a task panicked. Its own report is in the log.
    #[error("a task of the verification ended by itself")]
    Crashed,
    /// It was told to stop.
    #[error("stopped before the end")]
    Interrupted,
}

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("could not {attempted}")]
    Source { attempted: String, source: Box<mongodb::error::Error> },
    #[error("could not {attempted}")]
    Target { attempted: String, source: sqlx::Error },
    #[error("a task of the verification ended by itself")]
    Crashed,
}

type Result<T> = std::result::Result<T, Fault>;

impl Fault {
    fn source(attempted: String, source: mongodb::error::Error) -> Self {
        Self::Source { attempted, source: Box::new(source) }
    }

    fn target(attempted: String, source: sqlx::Error) -> Self {
        Self::Target { attempted, source }
    }
}

impl From<Fault> for VerifyError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Source { attempted, source } => SourceError::of(attempted, *source).into(),
            Fault::Target { attempted, source } => TargetError::of(attempted, source).into(),
            Fault::Crashed => Self::Crashed,
        }
    }
}

/// One collection, planned.
struct Planned {
    entity: &'static Entity,
    generation: Generation,
    shares: Vec<Share>,
    progress: Arc<Progress>,
}

/// Compares the collections of `options`. Writes nothing. Progress is told through `begun`, which gets one counter for
/// each collection. May be dropped at any point.
pub async fn run(
    source: &Source,
    target: &Target,
    options: &Options,
    begun: impl FnOnce(&[Arc<Progress>]),
    cancel: CancellationToken,
) -> std::result::Result<Report, VerifyError> {
    target.require_schema().await?;
    source.require_collections().await?;
    let started_at = Utc::now();
    let mut planned = Vec::new();
    for entity in &options.entities {
        planned.push(plan(source, target, entity, options).await?);
    }
    begun(&planned.iter().map(|planned| planned.progress.clone()).collect::<Vec<_>>());
    let compared = compare(&planned, options.workers);
    let outcomes = cancel.run_until_cancelled(compared).await.ok_or(VerifyError::Interrupted)??;
    Ok(report(started_at, options, &planned, outcomes))
}

async fn plan(source: &Source, target: &Target, entity: &'static Entity, options: &Options) -> Result<Planned> {
    let fault = |error| Fault::source(format!("plan the verification of {}", entity.name), error);
    let order = order(source, entity.name).await.map_err(fault)?;
    let plan = plan::plan(source, entity.name, options.chunk_bytes).await.map_err(fault)?;
    let after: Timestamp = scan::committed_time(source, entity.name, None).await.map_err(fault)?;
    let estimated = u64::try_from(plan.estimated_documents).unwrap_or_default();
    let recheck = Recheck { source: source.clone(), pool: target.pool().clone(), entity, rows: Rows::new(entity) };
    let zero = || AtomicU64::new(0);
    Ok(Planned {
        entity,
        generation: Generation { recheck, order, after, kept: options.listed, shown: options.shown * 3 },
        shares: shares(entity, plan, order),
        progress: Arc::new(Progress { collection: entity.name, estimated, documents: zero(), mismatches: zero() }),
    })
}

/// A collection made with a collation has its `_id` index in that order.
async fn order(source: &Source, collection: &str) -> mongodb::error::Result<Order> {
    let listed = source.database().list_collections().filter(doc! { "name": collection }).await?;
    let specifications: Vec<_> = listed.try_collect().await?;
    let collated = specifications.iter().any(|specification| specification.options.collation.is_some());
    Ok(if collated { Order::Collation } else { Order::Bytes })
}

fn shares(entity: &'static Entity, plan: Plan, order: Order) -> Vec<Share> {
    let rest = if order == Order::Bytes { Scope::Marked } else { Scope::All };
    // Rows are cut where documents are, so only where both stores have the same order.
    let is_plain = |bound: &RawDocumentBuf| generation::plain_text(Mapping::new(entity), bound).is_some();
    let cuts = plan.chunks.into_iter().filter_map(|chunk| chunk.lower);
    let cuts: Vec<_> = cuts.filter(|cut| order == Order::Bytes && is_plain(cut)).collect();
    let ranges = Range::between(cuts).into_iter().map(Share::Range);
    ranges.chain([Share::Rows(rest), Share::Quarantine]).collect()
}

async fn compare(planned: &[Planned], workers: usize) -> Result<Vec<(usize, Outcome)>> {
    let shares = planned.iter().enumerate().flat_map(|(index, planned)| {
        planned.shares.iter().map(move |share| compare_share(index, planned, share.clone()))
    });
    futures::stream::iter(shares.collect::<Vec<_>>()).buffer_unordered(workers.max(1)).try_collect().await
}

async fn compare_share(index: usize, planned: &Planned, share: Share) -> Result<(usize, Outcome)> {
    let (generation, progress) = (planned.generation.clone(), planned.progress.clone());
    // A task of its own, so that ranges are compared on all processors.
    let task = tokio::spawn(async move {
        let seen = |documents| {
            progress.documents.fetch_add(documents, Ordering::Relaxed);
        };
        let outcome = generation.compare(&share, seen).await?;
        progress.mismatches.fetch_add(outcome.counts.mismatches(), Ordering::Relaxed);
        Ok(outcome)
    });
    let outcome = tokio_util::task::AbortOnDropHandle::new(task).await.map_err(|_| Fault::Crashed)??;
    Ok((index, outcome))
}

fn report(
    started_at: chrono::DateTime<Utc>,
    options: &Options,
    planned: &[Planned],
    outcomes: Vec<(usize, Outcome)>,
) -> Report {
    let mut counts: Vec<_> =
        planned.iter().map(|planned| Counts { name: planned.entity.name, ..Counts::default() }).collect();
    let mut mismatches: Vec<Mismatch> = Vec::new();
    let mut shown = std::collections::HashMap::new();
    for (index, outcome) in outcomes {
        counts[index].add(&outcome.counts);
        for difference in outcome.differences {
            let shown = shown.entry(difference.kind).or_insert(0_usize);
            *shown += 1;
            if mismatches.len() < options.listed {
                mismatches.push(mismatch(planned[index].entity.name, difference, *shown <= options.shown));
            }
        }
    }
    Report::new(started_at, counts, mismatches)
}

fn mismatch(collection: &'static str, difference: Difference, show: bool) -> Mismatch {
    // A key that extended JSON cannot say is a JSON text by itself.
    let text = || serde_json::from_str(difference.suspect.key.text()).unwrap_or_default();
    Mismatch {
        collection,
        id: canonical::id(&difference.suspect.id).unwrap_or_else(text),
        kind: difference.kind,
        since: Utc::now(),
        reason: difference.reason,
        sides: show.then_some(difference.sides),
    }
}
