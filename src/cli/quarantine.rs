//! `bridge quarantine`.

use clap::{Args, Subcommand};

use super::settings::collection;
use super::{Context, Exit, Failure};
use crate::entity::Entity;

/// Arguments of `bridge quarantine`.
#[derive(Debug, Args)]
pub(super) struct QuarantineArgs {
    #[command(subcommand)]
    pub command: QuarantineCommand,
}

/// What to do with the quarantine.
#[derive(Debug, Subcommand)]
pub(super) enum QuarantineCommand {
    /// List the quarantined documents, each with its reason
    List {
        /// The collections to list; all when none is named
        #[arg(value_name = "COLLECTION", value_parser = collection())]
        collections: Vec<&'static Entity>,
    },
    /// Show one quarantined document whole
    Show {
        /// The document's collection
        #[arg(value_name = "COLLECTION", value_parser = collection())]
        collection: &'static Entity,
        /// The document's id, as `quarantine list` prints it
        #[arg(value_name = "ID")]
        id: String,
    },
}

pub(super) async fn run(args: QuarantineArgs, context: &Context) -> Result<Exit, Failure> {
    context.until_stopped(context.target(std::num::NonZeroUsize::MIN)).await?;
    match args.command {
        QuarantineCommand::List { collections: _ } | QuarantineCommand::Show { collection: _, id: _ } => {
            Err(Failure::new(Exit::Refused, "quarantine is not built yet"))
        }
    }
}
