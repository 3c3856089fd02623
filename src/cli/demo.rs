//! `bridge demo`.

use clap::Args;

use super::{Context, Exit, Failure};

/// How many documents the demo generates when `--documents` is not given.
const DOCUMENTS: u64 = 200_000;

/// Arguments of `bridge demo`.
#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// How many documents to generate, in all eleven collections
    #[arg(long, value_name = "N", default_value_t = DOCUMENTS)]
    pub documents: u64,
    /// Leave the servers up afterwards, and print their URLs
    #[arg(long)]
    pub keep: bool,
}

pub(super) fn run(args: DemoArgs, _context: &Context) -> Result<Exit, Failure> {
    let DemoArgs { documents: _, keep: _ } = args;
    Err(Failure::new(Exit::Refused, "demo is not built yet"))
}
