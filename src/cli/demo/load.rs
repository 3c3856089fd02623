//! The scheduler that works while the demo moves its stores, and the mirror beside it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bson::{Document, doc};
use mongodb::Database;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::backfill::LEASE;
use crate::cli::{Context, Exit, Failure, simulate};
use crate::connect::{Backends, Connected};
use crate::lock::DualLocks;
use crate::mirror;
use crate::scheduler::Scheduler;
use crate::simulate::journal::{self, Journaled};
use crate::simulate::{Options, Simulation, check};
use crate::store::dual::DualStore;

/// How many tenants the scheduler has.
const TENANTS: u32 = 2;

/// Longer than any demo.
const FIRING: Duration = Duration::from_secs(24 * 3_600);

/// Leaves nothing of the generated documents for the scheduler to do: their runs, schedules and jobs do not belong together.
pub(super) async fn rest(database: &Database) -> mongodb::error::Result<()> {
    let jobs = doc! { "status": { "$in": ["pending", "queued", "dispatching", "submitted"] } };
    let done = doc! { "$set": { "status": "completed" } };
    database.collection::<Document>("policy_jobs").update_many(jobs, done).await?;
    let off = doc! { "$set": { "enabled": false } };
    let dead = doc! { "$set": { "status": "dead" } };
    let alive = doc! { "status": { "$in": ["active", "draining"] } };
    database.collection::<Document>("workers").update_many(alive, dead).await?;
    database.collection::<Document>("triggers").update_many(doc! { "enabled": true }, off).await?;
    Ok(())
}

/// The scheduler, at work.
pub(super) struct Load {
    connected: Connected,
    simulation: Arc<Simulation<Journaled<DualStore>, DualLocks>>,
    stop: CancellationToken,
    work: JoinHandle<Result<(), crate::scheduler::Error>>,
    journal: PathBuf,
    /// Removed with it.
    _folder: tempfile::TempDir,
}

impl Load {
    /// Starts it, with every read repeated in the shadow once both stores are used.
    pub(super) async fn start(context: &Context) -> Result<Self, Failure> {
        let mongo = (context.settings.mongo_url()?.clone(), context.settings.mongo_database.clone());
        let mut backends = Backends::new(Some(mongo), Some(context.settings.postgres_url()?.clone()));
        backends.settings.tuning.shadow_fraction = 1.0;
        let connected = Scheduler::connect(&backends).await.map_err(simulate::of_connection)?;
        let failed = |error| Failure::system("make a folder for the journal", &error);
        let folder = tempfile::Builder::new().prefix("bridge-demo-").tempdir().map_err(failed)?;
        let journal = folder.path().join("journal");
        let store = Journaled::new(connected.store.clone(), Some(&journal)).map_err(simulate::of_journal)?;
        let options = Options {
            tenants: TENANTS,
            schedules: 5,
            planners: 1,
            workers: 2,
            duration: FIRING,
            name: "the demo's scheduler".to_owned(),
        };
        let simulation = Arc::new(Simulation::new(store, connected.locks.clone(), options));
        let (stop, its) = (CancellationToken::new(), simulation.clone());
        let ended = stop.clone();
        let work = tokio::spawn(async move { its.run(&ended).await });
        Ok(Self { connected, simulation, stop, work, journal, _folder: folder })
    }

    /// What it has done so far.
    pub(super) fn text(&self) -> String {
        let totals = self.simulation.totals();
        let [fired, executed, completed] =
            [&totals.fired, &totals.executed, &totals.completed].map(|count| count.load(Relaxed));
        format!(
            "the scheduler has fired {fired} triggers, executed {executed} jobs and completed {completed} runs so far"
        )
    }

    /// What its shadow reads have shown so far, once there were so many.
    pub(super) fn shadow(&self, reads: u64) -> Option<String> {
        let findings = self.connected.store.shadow()?;
        let counters = findings.counters();
        let lasting = findings.differences().into_iter().map(|one| one.collection).collect::<BTreeSet<_>>();
        let lasting = match lasting.is_empty() {
            true => "none for good".to_owned(),
            false => {
                let names = lasting.into_iter().collect::<Vec<_>>().join(", ");
                format!("{} for good, in pages with old or quarantined documents ({names})", counters.lasting)
            }
        };
        let text = format!(
            "{} reads were repeated on the secondary: {} answered otherwise at first, {lasting}",
            counters.compared, counters.differed
        );
        (counters.compared >= reads).then_some(text)
    }

    /// Whether it still works.
    pub(super) fn is_at_work(&self) -> bool {
        !self.work.is_finished()
    }

    /// Ends it, and looks for every write that it was told is made.
    pub(super) async fn end(self) -> Result<check::Findings, Failure> {
        self.stop.cancel();
        let ended = self.work.await.map_err(|error| Failure::new(Exit::Refused, format!("the scheduler: {error}")))?;
        ended.map_err(|error| Failure::of(Exit::Refused, &error))?;
        let entries = journal::read(&self.journal).map_err(simulate::of_journal)?;
        let found = check::check(&self.connected.store, &entries, TENANTS).await;
        self.connected.close().await;
        found.map_err(|error| Failure::of(Exit::Target, &error))
    }
}

/// The mirror, in the background.
pub(super) struct Mirror {
    stop: CancellationToken,
    work: JoinHandle<Result<(), mirror::MirrorError>>,
}

impl Mirror {
    /// Starts it.
    pub(super) async fn start(context: &Context) -> Result<Self, Failure> {
        let (source, target) = (context.source().await?, context.keyed_target().await?);
        let stop = CancellationToken::new();
        let its = stop.clone();
        let work = tokio::spawn(async move {
            let options = mirror::Options { lease: LEASE };
            mirror::run(&source, &target, &options, Arc::default(), its).await
        });
        Ok(Self { stop, work })
    }

    /// Ends it. One that has seen phase `postgres` has ended by itself.
    pub(super) async fn end(self) -> Result<(), Failure> {
        self.stop.cancel();
        match self.work.await {
            Ok(Ok(()) | Err(mirror::MirrorError::Primary { .. })) => Ok(()),
            Ok(Err(error)) => Err(Failure::of(Exit::Refused, &error)),
            Err(error) => Err(Failure::new(Exit::Refused, format!("the mirror: {error}"))),
        }
    }
}
