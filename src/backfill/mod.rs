//! The backfill: streams collections into their tables, in parallel, restartable at any point (design 8).
//!
//! Invariants: progress moves only with the rows it speaks of; a row with a newer stamp stays; at the end of a
//! collection its documents are its rows and its quarantine, by key.

mod census;
mod ledger;
pub(crate) mod limit;
mod load;

mod progress;
mod read;
mod statements;
mod worker;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bson::Timestamp;
use sqlx::PgConnection;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use census::{Refused, TOLD, census};
pub use ledger::Tally;
pub use limit::{Limiter, Rate};

pub use progress::Progress;
pub use read::BATCH_BYTES;

use crate::anchor;
use crate::entity::Entity;
use crate::lock;
use crate::plan;
use crate::source::{Source, SourceError};
use crate::stamp::{Stamp, time_of};
use crate::target::{Target, TargetError};
use ledger::{Backfill, Ledger};
use statements::Statements;
use worker::{CHUNKS_PER_LOAD, Job, Patience, Shared};

/// How to run a backfill.
#[derive(Debug, Clone)]
pub struct Options {
    /// What to copy, parents before children.
    pub entities: Vec<&'static Entity>,
    /// What becomes of copies that are not finished.
    pub start: Start,
    /// How many batches this process loads at once.
    pub workers: usize,
    /// The rate all workers of this process share.
    pub rate: Rate,
    /// How long a chunk stays leased to a process that is not heard of.
    pub lease: Duration,
    /// How long a lost connection is tried again without any progress.
    pub patience: Duration,
    /// Bytes of one chunk, aimed at.
    pub chunk_bytes: i64,
    /// Bytes of BSON of one batch, aimed at.
    pub batch_bytes: u64,
}

/// What becomes of a copy that an earlier process has not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// It is carried on.
    CarryOn,
    /// It is given up: everything is copied anew, from a later anchor. What the mirror has not applied by then, it need not
    /// apply any more.
    Anew,
}

/// How long the work of a process that was killed waits for another, when nobody asks for another time.
pub const LEASE: Duration = Duration::from_secs(15);

/// [`Options::patience`] when nobody asks for another: a restart of either server fits in.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What became of one collection.
#[derive(Debug, Clone)]
pub struct Copied {
    /// The collection.
    pub collection: &'static str,
    /// What was read and what it became.
    pub tally: Tally,
    /// Rows removed because their documents are gone.
    pub removed: i64,
}

/// Why a backfill stopped.
#[derive(Debug, thiserror::Error)]
pub enum BackfillError {
    /// The source failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The target failed.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// PostgreSQL is the primary: its rows are newer than the documents.
    #[error("PostgreSQL is the primary in phase {phase}: a backfill would take it back")]
    Primary {
        /// The phase.
        phase: String,
    },
    /// A table was truncated after a part of it was copied.
    #[error("{collection} was truncated in PostgreSQL while it was copied")]
    Truncated {
        /// Which.
        collection: &'static str,
    },
    /// A row of the ledger cannot be read.
    #[error("column {column} of bridge.chunk holds no BSON document")]
    Ledger {
        /// Which one.
        column: String,
    },
    /// A bug: a task panicked. Its own report is in the log.
    #[error("a task of the backfill ended by itself")]
    Crashed,
    /// It was told to stop; what is committed stays, and the same command carries on.
    #[error("stopped before the end")]
    Interrupted,
}

/// A failure inside the backfill, with what was attempted.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("could not {attempted}")]
    Source { attempted: String, source: Box<mongodb::error::Error> },
    #[error("could not {attempted}")]
    Target { attempted: String, source: sqlx::Error },
    #[error("another process holds the chunk now")]
    LeaseLost,
    #[error("{collection} was truncated in PostgreSQL while it was copied")]
    Truncated { collection: &'static str },
    #[error("a task of the backfill ended by itself")]
    Crashed,
    #[error("column {column} of bridge.chunk holds no BSON document")]
    Ledger { column: String },
}

type Result<T> = std::result::Result<T, Fault>;

impl Fault {
    fn source(attempted: impl Into<String>) -> impl Fn(mongodb::error::Error) -> Self {
        let attempted = attempted.into();
        move |source| Self::Source { attempted: attempted.clone(), source: Box::new(source) }
    }

    fn target(attempted: impl Into<String>) -> impl Fn(sqlx::Error) -> Self {
        let attempted = attempted.into();
        move |source| Self::Target { attempted: attempted.clone(), source }
    }

    fn is_transient(&self) -> bool {
        match self {
            Self::Source { source, .. } => crate::source::transient(source),
            Self::Target { source, .. } => crate::target::transient(source),
            Self::LeaseLost | Self::Crashed | Self::Truncated { .. } | Self::Ledger { .. } => false,
        }
    }

    fn code(&self) -> Option<String> {
        let Self::Target { source, .. } = self else { return None };
        source.as_database_error().and_then(|error| error.code()).map(std::borrow::Cow::into_owned)
    }

    /// Whether the target refuses what the rows hold.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Target { source, .. } if crate::target::refuses_data(source))
    }

    /// Whether a row with one of the keys is there already.
    fn is_duplicate(&self) -> bool {
        self.code().as_deref() == Some("23505")
    }

    /// The reason of a quarantine.
    fn refusal(&self) -> String {
        format!("PostgreSQL refused it: {}", crate::error_text(self))
    }
}

impl From<Fault> for BackfillError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Source { attempted, source } => SourceError::of(attempted, *source).into(),
            Fault::Target { attempted, source } => TargetError::of(attempted, source).into(),
            Fault::Ledger { column } => Self::Ledger { column },
            Fault::Truncated { collection } => Self::Truncated { collection },
            Fault::LeaseLost => Self::Interrupted,
            Fault::Crashed => Self::Crashed,
        }
    }
}

/// Copies the collections of `options`, or carries on with the copy that an earlier or another process began. Progress
/// is told through `begun`, which gets one counter for each collection. Stops after the batches under way when
/// `cancel` is cancelled; dropping the future loses no more than those.
pub async fn run(
    source: &Source,
    target: &Target,
    options: &Options,
    begun: impl FnOnce(&[Arc<Progress>]),
    cancel: CancellationToken,
) -> std::result::Result<Vec<Copied>, BackfillError> {
    target.require_schema().await?;
    source.require_collections().await?;
    let epoch = require_secondary(target).await?;
    let patience = Patience { limit: options.patience, cancel: cancel.clone() };
    let backfills = patience.with(|| open(source, target, options, epoch)).await?;
    let progress: Vec<_> = backfills.iter().map(progress_of).collect();
    begun(&progress);

    let ledger = Ledger::new(target.pool().clone(), options.lease);
    let jobs = backfills.iter().zip(progress).map(|(backfill, progress)| {
        (backfill.id, Job::new(backfill.clone(), time_of(backfill.anchor.clock), progress))
    });
    let shared = Arc::new(Shared {
        source: source.clone(),
        ledger: ledger.clone(),
        limiter: Arc::new(Limiter::new(options.rate)),
        jobs: jobs.collect::<HashMap<_, _>>(),
        patience,
        batch_bytes: options.batch_bytes,
        loads: Semaphore::new(options.workers.max(1)),
        chunk_done: Notify::new(),
        cancel: cancel.clone(),
    });
    work(&shared, options.workers).await?;
    if cancel.is_cancelled() {
        return Err(BackfillError::Interrupted);
    }
    finish(&ledger, &shared, &backfills).await
}

fn progress_of(backfill: &Backfill) -> Arc<Progress> {
    let progress = Progress::new(backfill.entity.name);
    progress.estimated.store(backfill.estimated, std::sync::atomic::Ordering::Relaxed);
    progress.add(backfill.documents, 0);
    Arc::new(progress)
}

/// The epoch, when rows may come from MongoDB: PostgreSQL must be the secondary.
async fn require_secondary(target: &Target) -> std::result::Result<i32, BackfillError> {
    let (phase, epoch): (String, i32) = sqlx::query_as("select phase, epoch from bridge.fence")
        .fetch_one(target.pool())
        .await
        .map_err(|error| TargetError::of("read the phase", error))?;
    if phase.starts_with("postgres") { Err(BackfillError::Primary { phase }) } else { Ok(epoch) }
}

/// Finds the unfinished backfills of the collections, or begins new ones.
async fn open(source: &Source, target: &Target, options: &Options, epoch: i32) -> Result<Vec<Backfill>> {
    let mut transaction = target.pool().begin().await.map_err(Fault::target("begin a transaction"))?;
    Ledger::lock_planning(&mut transaction).await?;
    if options.start == Start::Anew {
        Ledger::give_up(&mut transaction, &options.entities).await?;
    }
    let mut backfills = Vec::new();
    let mut anchor = None;
    for entity in &options.entities {
        backfills.push(match Ledger::unfinished(&mut transaction, entity).await? {
            Some(backfill) => backfill,
            None => {
                let time = match anchor {
                    Some(time) => time,
                    None => *anchor.insert(take_anchor(source, &mut transaction).await?),
                };
                begin(source, options, entity, Stamp::of_oplog(epoch, time), &mut transaction).await?
            }
        });
    }
    if options.start == Start::Anew {
        anchor::skip_covered(&mut transaction).await.map_err(Fault::target("move the mirror's beginning on"))?;
    }
    transaction.commit().await.map_err(Fault::target("commit the plan"))?;
    Ok(backfills)
}

async fn take_anchor(source: &Source, connection: &mut PgConnection) -> Result<Timestamp> {
    let attempted = format!("write the anchor to {}", anchor::COLLECTION);
    let time = anchor::take(source.database()).await.map_err(Fault::source(attempted))?;
    anchor::keep_start(time, connection).await.map_err(Fault::target("store where the mirror begins"))?;
    Ok(time)
}

async fn begin(
    source: &Source,
    options: &Options,
    entity: &'static Entity,
    anchor: Stamp,
    connection: &mut PgConnection,
) -> Result<Backfill> {
    let attempted = format!("plan the chunks of {}", entity.name);
    let plan = plan::plan(source, entity.name, options.chunk_bytes).await.map_err(Fault::source(attempted))?;
    Ledger::begin(connection, entity, anchor, &plan).await
}

async fn work(shared: &Arc<Shared>, workers: usize) -> Result<()> {
    let done = CancellationToken::new();
    let mut renewing = JoinSet::new();
    renewing.spawn(shared.clone().renew(done.clone()));
    let mut tasks = JoinSet::new();
    (0..workers.max(1) * CHUNKS_PER_LOAD).for_each(|_| drop(tasks.spawn(shared.clone().work())));
    let mut worked = Ok(());
    while let Some(task) = tasks.join_next().await {
        let result = task.unwrap_or(Err(Fault::Crashed));
        if result.is_err() && worked.is_ok() {
            worked = result;
            shared.cancel.cancel(); // the others stop after their batch
        }
    }
    done.cancel();
    renewing.join_all().await;
    let released = shared.patience.with(|| shared.ledger.release()).await;
    worked.and(released)
}

async fn finish(
    ledger: &Ledger,
    shared: &Shared,
    backfills: &[Backfill],
) -> std::result::Result<Vec<Copied>, BackfillError> {
    let mut copied = Vec::new();
    for backfill in backfills {
        let Some(job) = shared.jobs.get(&backfill.id) else { continue };
        // A commit whose answer was lost is found in the ledger: the second time there is nothing to do.
        shared.patience.with(|| sweep(ledger, job)).await?;
        let (tally, removed) = shared.patience.with(|| ledger.total(backfill)).await?;
        copied.push(Copied { collection: backfill.entity.name, tally, removed });
    }
    Ok(copied)
}

/// The most rows that one statement of a sweep removes.
const SWEEP: i64 = 10_000;

/// Removes what an earlier copy left behind and this one did not find any more: every document that was there has a
/// row, or a place in the quarantine, with a stamp not before the anchor; what is older has no document.
async fn sweep(ledger: &Ledger, job: &Job) -> Result<()> {
    let backfill = &job.backfill;
    let attempted = format!("remove what is gone from {}", backfill.entity.name);
    let mut transaction = ledger.pool().begin().await.map_err(Fault::target("begin a transaction"))?;
    if !Ledger::is_to_finish(&mut transaction, backfill).await? {
        return Ok(()); // another process did it
    }
    sqlx::query("select pg_advisory_xact_lock($1)")
        .bind(lock::of_collection(backfill.entity.name))
        .execute(&mut *transaction)
        .await
        .map_err(Fault::target("lock the collection"))?;
    let mut removed = 0;
    for statement in [Statements::sweep, Statements::sweep_quarantine] {
        loop {
            let gone: i64 = sqlx::query_scalar(statement(&job.statements))
                .bind(backfill.entity.name)
                .bind(backfill.anchor.epoch)
                .bind(backfill.anchor.clock)
                .bind(SWEEP)
                .fetch_one(&mut *transaction)
                .await
                .map_err(Fault::target(&*attempted))?;
            removed += gone;
            if gone < SWEEP {
                break;
            }
        }
    }
    Ledger::finish(&mut transaction, backfill, removed).await?;
    transaction.commit().await.map_err(Fault::target(&*attempted))
}
