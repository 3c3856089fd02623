//! `bridge verify`.

use std::path::PathBuf;

use clap::Args;

use super::settings::{Workers, collection};
use super::{Context, Exit, Failure};
use crate::entity::Entity;

/// How many differences are shown in full for each kind of mismatch when `--diffs` is not given.
const DIFFS: usize = 5;

/// Arguments of `bridge verify`.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Compare this collection only; may be repeated
    #[arg(long = "collection", value_name = "COLLECTION", value_parser = collection())]
    pub collections: Vec<&'static Entity>,
    /// Write the result to this file too, as JSON
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Show this many differences in full for each kind of mismatch
    #[arg(long, value_name = "N", default_value_t = DIFFS)]
    pub diffs: usize,
    #[command(flatten)]
    pub workers: Workers,
}

pub(super) async fn run(args: VerifyArgs, context: &Context) -> Result<Exit, Failure> {
    let VerifyArgs { collections: _, report: _, diffs: _, workers } = args;
    let workers = workers.settled(&context.settings);
    context.until_stopped(context.stores(workers)).await?;
    Err(Failure::new(Exit::Refused, "verify is not built yet"))
}
