//! `bridge backfill [COLLECTION…]`.

use std::num::NonZeroU64;

use clap::Args;

use super::progress::Display;
use super::settings::{Limits, Pace, collection};
use super::summary::Summary;
use super::{Context, Exit, Failure, follow};
use crate::backfill::{self, BackfillError, Copied, Options, Refused, Start};
use crate::entity::{ENTITIES, Entity};

/// Arguments of `bridge backfill`.
#[derive(Debug, Default, Args)]
pub(super) struct BackfillArgs {
    /// The collections to copy; all eleven when none is named
    #[arg(value_name = "COLLECTION", value_parser = collection())]
    pub collections: Vec<&'static Entity>,
    /// Map every document and report what would become of it, but write nothing; needs no PostgreSQL
    #[arg(long, conflicts_with_all = ["follow", "resync"])]
    pub dry_run: bool,
    /// Copy from the beginning, also what an earlier copy has not finished: after history was lost, or a collection dropped,
    /// renamed or truncated
    #[arg(long)]
    pub resync: bool,
    /// Mirror live writes meanwhile, say when the stores are level, and keep them so until told to stop
    #[arg(long)]
    pub follow: bool,
    #[command(flatten)]
    pub pace: Pace,
}

pub(super) async fn run(args: BackfillArgs, context: &Context) -> Result<Exit, Failure> {
    let limits = args.pace.settled(&context.settings);
    let start = if args.resync { Start::Anew } else { Start::CarryOn };
    let options = options(&args.collections, start, &limits);
    if args.follow {
        return follow::run(&options, &limits, context).await;
    }
    let display = Display::new(context.output);
    let (copied, refused) = if args.dry_run {
        census(&options, &display, context).await?
    } else {
        (copy(&options, &display, &limits, context).await?, Vec::new())
    };
    let (read, taken) = display.done();
    drop(display);
    Summary { copied: &copied, refused: &refused, read, taken, dry_run: args.dry_run }.print(context.output)?;
    Ok(Exit::Clean)
}

/// The engine's options: the collections in the order of the entities, each once.
fn options(collections: &[&'static Entity], start: Start, limits: &Limits) -> Options {
    let is_named = |entity: &Entity| collections.is_empty() || collections.iter().any(|one| one.name == entity.name);
    Options {
        entities: ENTITIES.iter().copied().filter(|entity| is_named(entity)).collect(),
        start,
        workers: limits.workers.get(),
        rate: limits.rate,
        lease: limits.lease,
        patience: limits.patience.unwrap_or(backfill::PATIENCE),
        chunk_bytes: limits.chunk_bytes.map_or(crate::plan::CHUNK_BYTES, |bytes| bytes.get().into()),
        batch_bytes: limits.batch_bytes.map_or(backfill::BATCH_BYTES, NonZeroU64::get),
    }
}

async fn copy(
    options: &Options,
    display: &Display,
    limits: &Limits,
    context: &Context,
) -> Result<Vec<Copied>, Failure> {
    let stores = context.until_stopped(context.stores(limits.workers)).await?;
    // A token of our own: a worker that fails stops the others, not whatever the process does next.
    let stop = context.stop.child_token();
    let begun = |progress: &[_]| display.begin(progress);
    let work = backfill::run(&stores.source, &stores.target, options, begun, stop.clone());
    Ok(display.during(work, &stop).await.unwrap_or(Err(BackfillError::Interrupted))?)
}

async fn census(
    options: &Options,
    display: &Display,
    context: &Context,
) -> Result<(Vec<Copied>, Vec<Refused>), Failure> {
    let source = context.until_stopped(context.source()).await?;
    let begun = |progress: &[_]| display.begin(progress);
    let work = backfill::census(&source, options, begun, context.stop.clone());
    Ok(display.during(work, &context.stop).await.unwrap_or(Err(BackfillError::Interrupted))?)
}

impl From<BackfillError> for Failure {
    fn from(error: BackfillError) -> Self {
        let (exit, hint) = match error {
            BackfillError::Source(error) => return error.into(),
            BackfillError::Target(error) => return error.into(),
            BackfillError::Primary { .. } => {
                (Exit::Refused, "nothing is to be copied any more: the mirror keeps MongoDB level")
            }
            BackfillError::Truncated { collection } => {
                let hint =
                    format!("run `bridge backfill --resync {collection}`; it copies the collection from the beginning");
                return Self::of(Exit::Target, &error).hint(hint);
            }
            BackfillError::Ledger { .. } => (Exit::Target, LEDGER),
            BackfillError::Crashed => {
                (Exit::Target, "report it with the log, then run the command again; it carries on")
            }
            BackfillError::Interrupted => {
                (Exit::Interrupted, "run the same command again, without --resync; it carries on")
            }
        };
        Self::of(exit, &error).hint(hint)
    }
}

const LEDGER: &str = "somebody else has written to bridge.chunk: delete the collection's unfinished row of bridge.backfill, \
                      then run the command again; it copies the collection from the beginning";
