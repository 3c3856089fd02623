//! What every command is given.

use std::num::NonZeroUsize;

use tokio_util::sync::CancellationToken;

use super::{Exit, Failure, Output, Settings};
use crate::source::Source;
use crate::target::Target;

/// Connections to PostgreSQL for each worker: its transaction, and the ledger meanwhile.
const CONNECTIONS_OF_A_WORKER: u32 = 2;

/// Connections to PostgreSQL besides those: for renewals, progress and the summary.
const CONNECTIONS_BESIDES: u32 = 3;

/// What every command is given.
#[derive(Debug)]
pub struct Context {
    /// The settings, from flags, environment and file.
    pub settings: Settings,
    /// Where results go.
    pub output: Output,
    /// Cancelled by the first Ctrl-C or SIGTERM.
    pub stop: CancellationToken,
}

/// Both stores, open and fit for work.
#[derive(Debug)]
pub struct Stores {
    /// MongoDB.
    pub source: Source,
    /// PostgreSQL.
    pub target: Target,
    /// The scheduler's collections that exist in MongoDB.
    pub collections: Vec<String>,
}

impl Context {
    /// Opens both stores: MongoDB with at least one of the scheduler's collections, PostgreSQL with the whole schema and
    /// connections for `workers`.
    pub async fn stores(&self, workers: NonZeroUsize) -> Result<Stores, Failure> {
        // What needs no server first: a setting that is missing is told at once.
        self.settings.postgres_url()?;
        let source = self.source().await?;
        let collections = source.require_collections().await?;
        Ok(Stores { source, target: self.target(workers).await?, collections })
    }

    /// Opens MongoDB.
    pub async fn source(&self) -> Result<Source, Failure> {
        Ok(Source::open(self.settings.mongo_url()?, &self.settings.mongo_database).await?)
    }

    /// Opens PostgreSQL with the whole schema and connections for `workers`.
    pub async fn target(&self, workers: NonZeroUsize) -> Result<Target, Failure> {
        let workers = u32::try_from(workers.get()).unwrap_or(u32::MAX);
        let connections = workers.saturating_mul(CONNECTIONS_OF_A_WORKER).saturating_add(CONNECTIONS_BESIDES);
        let target = Target::open(self.settings.postgres_url()?, connections).await?;
        target.require_schema().await?;
        Ok(target)
    }

    /// Opens PostgreSQL with the whole schema and a few connections for statements by keys.
    pub async fn keyed_target(&self) -> Result<Target, Failure> {
        let target = Target::open_prepared(self.settings.postgres_url()?, CONNECTIONS_BESIDES).await?;
        target.require_schema().await?;
        Ok(target)
    }

    /// Runs work that may be dropped at any point until it ends or the user stops it.
    pub async fn until_stopped<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let stopped = || Failure::new(Exit::Interrupted, "stopped");
        self.stop.run_until_cancelled(work).await.unwrap_or_else(|| Err(stopped()))
    }
}
