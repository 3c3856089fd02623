//! `bridge backfill [COLLECTION…]`.

use clap::Args;

use super::settings::{Pace, collection};
use super::{Context, Exit, Failure};
use crate::entity::Entity;

/// Arguments of `bridge backfill`.
#[derive(Debug, Args)]
pub(super) struct BackfillArgs {
    /// The collections to copy; all eleven when none is named
    #[arg(value_name = "COLLECTION", value_parser = collection())]
    pub collections: Vec<&'static Entity>,
    /// Map every document and report what would become of it, but write nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub pace: Pace,
}

pub(super) async fn run(args: BackfillArgs, context: &Context) -> Result<Exit, Failure> {
    let BackfillArgs { collections: _, dry_run: _, pace } = args;
    let limits = pace.settled(&context.settings);
    context.until_stopped(context.stores(limits.workers)).await?;
    Err(Failure::new(Exit::Refused, "backfill is not built yet"))
}
