//! The verifier: compares every document with its row, and gates the cutover (design 12).
//!
//! Generation 0 looks at everything once ([`generation`]), then at what the mirror wrote meanwhile ([`queue`]); whatever
//! differs is looked at again until it is settled ([`settle`]). How far it is, is kept in PostgreSQL ([`ledger`]).
//!
//! Invariant: a difference is reported only after both sides were read again, and nothing compared is never a pass.

pub mod canonical;
mod digest;
mod error;
mod generation;
mod html;
mod ledger;
mod longest;
pub mod proof;
mod queue;
pub mod reads;
mod recheck;
mod redact;
pub mod repair;
mod report;
mod rows;
#[cfg(test)]
pub mod sample;
mod settle;
mod stores;
mod surroundings;
mod turn;
pub mod words;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bson::{RawDocumentBuf, Timestamp};
use futures::{StreamExt, TryStreamExt};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use canonical::{equal, text};
pub use error::VerifyError;
pub use html::page;
pub use redact::Redaction;
pub use report::{
    Counts, Gate, IrregularField, Kind, Longest, Mismatch, Report, Sides, Surroundings, Verdict, unified,
};

use crate::backfill::{Limiter, Rate};
use crate::entity::{ENTITIES, Entity};
use crate::mapping::Mapping;
use crate::plan;
use crate::scan::{self, Range};
use crate::source::Source;
use crate::target::Target;
use error::Result;
use generation::{Generation, Order, Outcome, Share};
use ledger::{Carried, Ledger, Planned, Settled};
use longest::LongestQuery;
use queue::Queue;
use rows::Scope;
use settle::Settling;
use stores::Stores;
use turn::Turn;

/// How long the mirror may take to pass a mark.
const MIRROR_WAIT: Duration = Duration::from_secs(60);

/// How often it is looked whether what is waited for has come.
const LOOK: Duration = Duration::from_millis(50);

/// Bytes of documents that a report keeps, for the differences that it shows in full.
const SHOWN_BYTES: usize = 32 << 20;

/// How to verify.
#[derive(Debug, Clone)]
pub struct Options {
    /// What to compare.
    pub entities: Vec<&'static Entity>,
    /// Whether to go on with a verification of the same scope that was not finished.
    pub start: Start,
    /// The part of the ranges that is compared, drawn at random, at least one a collection; nothing is all.
    pub sample: Option<f64>,
    /// How long a difference must last while a mirror keeps the stores level. Without one nothing is on its way, and what
    /// differs twice differs.
    pub tolerance: Duration,
    /// How many ranges are compared at once.
    pub workers: usize,
    /// How fast the source is read.
    pub rate: Rate,
    /// How many mismatches are listed, at most.
    pub listed: usize,
    /// Of how many mismatches of each kind both sides are kept.
    pub shown: usize,
    /// The size of a range that is aimed at, in bytes of documents; [`plan::CHUNK_BYTES`] unless a test cuts finer.
    pub chunk_bytes: i64,
    /// How long this process is taken to be at it after it was heard of last.
    pub lease: Duration,
    /// Who it is, for people.
    pub name: String,
}

/// How long a difference must last when nothing else is said.
pub const TOLERANCE: Duration = Duration::from_secs(10);

/// Where a verification begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Where the last one of the same scope and epoch ended, if it was not finished.
    CarryOn,
    /// At the beginning.
    Anew,
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

/// Compares the collections of `options`, and keeps the report. Progress is told through `begun`, which gets one counter for
/// each collection. May be dropped at any point, and killed: the same call goes on where it ended.
///
/// # Errors
/// [`VerifyError`].
pub async fn run(
    source: &Source,
    target: &Target,
    options: &Options,
    begun: impl FnOnce(&[Arc<Progress>]),
    cancel: CancellationToken,
) -> Result<Report> {
    target.require_schema().await?;
    source.require_collections().await?;
    let turn = Turn::now(source, target).await?;
    let stores = Stores::new(source, target, &options.entities, turn.phase.primary());
    let opened = cancel.run_until_cancelled(open(&stores, options, turn)).await;
    let ledger = opened.ok_or(VerifyError::Interrupted)??;
    let verification = Verification { stores, ledger: ledger.clone(), turn, options, longest: Arc::default() };
    let done = tokio::select! {
        done = cancel.run_until_cancelled(verification.run(begun)) => done,
        lost = keep(&ledger) => Some(Err(lost)),
    };
    match done {
        Some(Ok(report)) => Ok(report),
        Some(Err(error)) => {
            // The first error is the one to tell.
            drop(ledger.release().await);
            Err(error)
        }
        None => {
            ledger.release().await?;
            Err(VerifyError::Interrupted)
        }
    }
}

/// The ledger to go on with, or that of a new verification.
async fn open(stores: &Stores, options: &Options, turn: Turn) -> Result<Ledger> {
    if options.start == Start::CarryOn
        && let Some(ledger) = carried_on(stores, options, turn).await?
    {
        return Ok(ledger);
    }
    let mut shares = Vec::new();
    for entity in &options.entities {
        shares.extend(shares_of(stores, entity, options).await?.into_iter().map(|share| (*entity, share)));
    }
    Ledger::begin(stores.pool(), options, turn, &shares).await
}

/// The ledger to go on with, if there is one. Whoever was killed at it renews its lease no more, which is waited for.
async fn carried_on(stores: &Stores, options: &Options, turn: Turn) -> Result<Option<Ledger>> {
    let mut theirs = None;
    loop {
        match Ledger::carry_on(stores.pool(), options, turn).await? {
            Carried::Mine(ledger) => return Ok(Some(ledger)),
            Carried::Nothing => return Ok(None),
            Carried::Theirs { by, until } if theirs.is_some_and(|seen| seen != until) => {
                return Err(VerifyError::UnderWay { by });
            }
            Carried::Theirs { until, .. } => theirs = Some(until),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Renews the lease for as long as it is this process's; why it is so no more.
async fn keep(ledger: &Ledger) -> VerifyError {
    loop {
        tokio::time::sleep(ledger.renewal()).await;
        match ledger.renew().await {
            Err(VerifyError::TakenOver) => return VerifyError::TakenOver,
            // What is to be written fails by itself.
            Err(error) => tracing::warn!(error = %crate::error_text(&error), "the lease was not renewed"),
            Ok(()) => {}
        }
    }
}

async fn shares_of(stores: &Stores, entity: &'static Entity, options: &Options) -> Result<Vec<Share>> {
    let fault = |error| VerifyError::source(format!("plan the verification of {}", entity.name), error);
    let order = stores.order(entity).await?;
    let plan = plan::plan(&stores.source, entity.name, options.chunk_bytes).await.map_err(fault)?;
    let rest = if order == Order::Bytes { Scope::Marked } else { Scope::All };
    // Rows are cut where documents are, so only where both stores have the same order.
    let is_plain = |bound: &RawDocumentBuf| generation::plain_text(Mapping::new(entity), bound).is_some();
    let cuts = plan.chunks.into_iter().filter_map(|chunk| chunk.lower);
    let cuts: Vec<_> = cuts.filter(|cut| order == Order::Bytes && is_plain(cut)).collect();
    let ranges = sampled(Range::between(cuts), options.sample).into_iter().map(Share::Range);
    Ok(ranges.chain([Share::Rows(rest), Share::Quarantine]).collect())
}

/// The part of `ranges` that is compared.
fn sampled(mut ranges: Vec<Range>, sample: Option<f64>) -> Vec<Range> {
    let Some(part) = sample else { return ranges };
    ranges.sort_by_cached_key(|_| Uuid::new_v4());
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "a part")]
    let wanted = (ranges.len() as f64 * part).ceil() as usize;
    ranges.truncate(wanted.max(1));
    ranges
}

/// Compares every key that waits in the queue, once, and takes those that are level out of it; the first of those that are
/// not, and how many were compared. May be dropped at any point.
///
/// # Errors
/// [`VerifyError`].
pub async fn compare_queue(source: &Source, target: &Target) -> Result<(Vec<String>, u64)> {
    /// How many keys are named.
    const NAMED: usize = 5;
    let turn = Turn::now(source, target).await?;
    let stores = Stores::new(source, target, ENTITIES, turn.phase.primary());
    let mut queue = Queue::new(&stores, ENTITIES, target.now().await?);
    let (mut differing, mut compared) = (Vec::new(), 0);
    while let Some(step) = queue.next().await? {
        let name = |one: &recheck::Difference| format!("{} {}", step.entity.name, one.suspect.key.text());
        differing.extend(step.found.iter().map(name).take(NAMED - differing.len().min(NAMED)));
        compared += step.compared;
    }
    Ok((differing, compared))
}

/// A verification under way.
struct Verification<'a> {
    stores: Stores,
    ledger: Ledger,
    turn: Turn,
    options: &'a Options,
    longest: Arc<LongestQuery>,
}

/// What the shares of one collection have in common.
struct Collection {
    generation: Generation,
    progress: Arc<Progress>,
}

impl Verification<'_> {
    async fn run(&self, begun: impl FnOnce(&[Arc<Progress>])) -> Result<Report> {
        let collections = self.collections().await?;
        begun(&collections.iter().map(|one| one.progress.clone()).collect::<Vec<_>>());
        self.look_at_everything(&collections).await?;
        fail::fail_point!("verify::compared");
        self.look_at_what_was_written().await?;
        let Self { stores, ledger, turn, options, .. } = self;
        Settling { stores, ledger, turn: *turn, tolerance: options.tolerance }.settle().await?;
        fail::fail_point!("verify::settled");
        let report = self.report().await?;
        self.ledger.finish(&report).await?;
        Ok(report)
    }

    async fn collections(&self) -> Result<Vec<Collection>> {
        let (counts, _) = self.ledger.counts(&self.options.entities).await?;
        let limiter = Arc::new(Limiter::new(self.options.rate));
        let mut collections = Vec::new();
        for (entity, counts) in self.options.entities.iter().zip(counts) {
            let fault = |error| VerifyError::source(format!("plan the verification of {}", entity.name), error);
            let after: Timestamp = scan::committed_time(&self.stores.source, entity.name, None).await.map_err(fault)?;
            let estimated = plan::size(&self.stores.source, entity.name).await.map_err(fault)?.0;
            let generation = Generation {
                recheck: self.stores.recheck(entity)?.clone(),
                ledger: self.ledger.clone(),
                order: self.stores.order(entity).await?,
                after,
                limiter: limiter.clone(),
                longest: self.longest.clone(),
            };
            let progress = Progress {
                collection: entity.name,
                estimated: u64::try_from(estimated).unwrap_or_default(),
                documents: AtomicU64::new(counts.documents),
                mismatches: AtomicU64::new(0),
            };
            collections.push(Collection { generation, progress: Arc::new(progress) });
        }
        Ok(collections)
    }

    /// Generation 0: each share that is not done.
    async fn look_at_everything(&self, collections: &[Collection]) -> Result<()> {
        let shares = self.ledger.open().await?;
        let of = |planned: Planned| {
            let collection = collections.iter().find(|one| one.progress.collection == planned.entity.name);
            collection.map(|collection| compare(collection, planned)).ok_or(VerifyError::Unreadable { what: "a share" })
        };
        let shares: Vec<_> = shares.into_iter().map(of).collect::<Result<_>>()?;
        futures::stream::iter(shares).buffer_unordered(self.options.workers.max(1)).try_collect().await
    }

    /// Keys that the mirror wrote until generation 0 was done, or that shadow reads found different.
    async fn look_at_what_was_written(&self) -> Result<()> {
        let until = self.ledger.queued_until().await?;
        let mut queue = Queue::new(&self.stores, &self.options.entities, until);
        while let Some(step) = queue.next().await? {
            self.ledger.note(step.entity, &step.found).await?;
            self.ledger.rechecked(step.compared).await?;
        }
        Ok(())
    }

    async fn report(&self) -> Result<Report> {
        let (counts, unsettled) = self.ledger.counts(&self.options.entities).await?;
        let (started_at, rechecked) = self.ledger.begun().await?;
        let mismatches = self.mismatches().await?;
        let finished_at = self.stores.target.now().await?;
        let verdict = Verdict::of(&counts, unsettled);
        let found: u64 = counts.iter().map(Counts::mismatches).sum();
        let listed = u64::try_from(mismatches.len()).unwrap_or(u64::MAX);
        Ok(Report {
            verdict,
            number: self.ledger.number,
            phase: self.turn.phase,
            epoch: self.turn.epoch,
            sample: self.options.sample,
            tolerance_seconds: self.options.tolerance.as_secs_f64(),
            collections: counts,
            mismatches,
            unlisted: found.saturating_sub(listed),
            unsettled,
            rechecked,
            longest_query: self.longest.both(),
            started_at,
            finished_at,
        })
    }

    /// The mismatches that are listed; both sides of the first of each kind, as they are now.
    async fn mismatches(&self) -> Result<Vec<Mismatch>> {
        let (mut mismatches, mut shown, mut bytes) = (Vec::new(), HashMap::new(), 0);
        let mut walk = self.ledger.noted(Some(Settled::Lasting));
        while mismatches.len() < self.options.listed {
            let noted = walk.next((self.options.listed - mismatches.len()).min(generation::SUSPECTS)).await?;
            if noted.is_empty() {
                break;
            }
            for noted in noted {
                let shown = shown.entry(noted.kind).or_insert(0_usize);
                *shown += 1;
                let mut sides = None;
                if *shown <= self.options.shown && bytes < SHOWN_BYTES {
                    let found = self.stores.recheck(noted.entity)?.sides(&noted.suspect).await?;
                    bytes += found.bytes();
                    sides = Some(found);
                }
                mismatches.push(mismatch(noted, sides));
            }
        }
        Ok(mismatches)
    }
}

async fn compare(collection: &Collection, planned: Planned) -> Result<()> {
    let (generation, progress) = (collection.generation.clone(), collection.progress.clone());
    // A task of its own, so that ranges are compared on all processors.
    let task = tokio::spawn(async move {
        let begun = std::time::Instant::now();
        let seen = |documents| {
            progress.documents.fetch_add(documents, Ordering::Relaxed);
        };
        let Outcome { mut counts, differences, found, .. } = generation.compare(&planned.share, seen).await?;
        counts.seconds = begun.elapsed().as_secs_f64();
        generation.ledger.done(&planned, &counts, &differences).await?;
        progress.mismatches.fetch_add(found, Ordering::Relaxed);
        Ok(())
    });
    tokio_util::task::AbortOnDropHandle::new(task).await.map_err(|_| VerifyError::Crashed)?
}

fn mismatch(noted: ledger::Noted, sides: Option<Sides>) -> Mismatch {
    // A key that extended JSON cannot say is a JSON text by itself.
    let text = || serde_json::from_str(noted.suspect.key.text()).unwrap_or_default();
    Mismatch {
        collection: noted.entity.name,
        id: canonical::id(&noted.suspect.id).unwrap_or_else(text),
        kind: noted.kind,
        since: noted.since,
        reason: noted.reason,
        sides,
    }
}
