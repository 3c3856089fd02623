//! `bridge simulate`.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;
use tokio::signal::unix::Signal;

use super::escape::escape;
use super::{Context, Exit, Failure, Settings, signal};
use crate::connect::{Backends, ConnectError, Connected};
use crate::fence::FenceError;
use crate::layout::Layout;
use crate::lock::{LockError, Locks, MongoLocks, PostgresLocks};
use crate::scheduler::{Error, Scheduler};
use crate::simulate::check::{Findings, check};
use crate::simulate::journal::{self, JournalError, Journaled};
use crate::simulate::{Options, Simulation};
use crate::store::{MongoStore, PostgresStore, Store};
use crate::target::Target;

/// The epoch of writes to MongoDB before any change of primary.
const FIRST_EPOCH: i32 = 1;

/// How many faults are shown to people.
const SHOWN: usize = 20;

/// Where the simulated scheduler keeps its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Place {
    /// The MongoDB database
    Mongodb,
    /// The PostgreSQL database
    Postgresql,
    /// Whichever the phase names, now and after every switch, as table [backend] of the file says; SIGHUP has it read again
    Phase,
}

/// Arguments of `bridge simulate`.
#[derive(Debug, Args)]
pub(super) struct SimulateArgs {
    /// Where the scheduler keeps its records: a database of its own, not one that is in use
    #[arg(value_name = "STORE")]
    pub store: Place,
    /// How long triggers fire; runs that are under way then are finished
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub seconds: u64,
    /// How many tenants
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub tenants: u32,
    /// How many schedules each tenant has, each firing every other second
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub schedules: u32,
    /// How many planners this process runs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=64))]
    pub planners: u32,
    /// How many workers this process runs
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=64))]
    pub workers: u32,
    /// Append every acknowledged write to this file
    #[arg(long, value_name = "FILE")]
    pub journal: Option<PathBuf>,
    /// Simulate nothing: compare these journals with the store
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "journal")]
    pub check: Vec<PathBuf>,
}

pub(super) async fn run(args: SimulateArgs, context: &Context) -> Result<Exit, Failure> {
    let open = async {
        match args.store {
            Place::Mongodb => {
                let source = context.source().await?;
                let store = MongoStore::new(source.client().clone(), source.database().clone(), FIRST_EPOCH);
                store.create_indexes().await.map_err(|error| of_store(args.store, error.into()))?;
                Ok(Opened::Mongo(store, MongoLocks::new(source.database())))
            }
            Place::Postgresql => {
                let url = context.settings.postgres_url()?;
                let connections = args.planners + args.workers + 2;
                let target = Target::open_prepared(url, connections).await?;
                let layout = target.layout().await?;
                if layout == Layout::Moving {
                    target.require_schema().await?;
                }
                let (locks, task) = PostgresLocks::open(url).await.map_err(of_lock)?;
                Ok(Opened::Postgres(PostgresStore::laid_out(target.pool().clone(), layout), locks, task))
            }
            Place::Phase => {
                let hangups = signal::hangups()?;
                let database = || context.settings.mongo_database.clone();
                let mongo = context.settings.mongo_url().ok().map(|url| (url.clone(), database()));
                let postgres = context.settings.postgres_url()?.clone();
                let settings = context.settings.backend();
                let backends = Backends { mongo, postgres: Some(postgres), settings };
                let connected = Scheduler::connect(&backends).await.map_err(of_connection)?;
                if connected.layout() == Layout::Moving {
                    // What an application's database has already: the indexes that serve its queries.
                    let source = context.source().await?;
                    let store = MongoStore::new(source.client().clone(), source.database().clone(), FIRST_EPOCH);
                    store.create_indexes().await.map_err(|error| of_store(args.store, error.into()))?;
                }
                Ok(Opened::Phase(Box::new(connected), hangups))
            }
        }
    };
    match context.until_stopped(open).await? {
        Opened::Phase(connected, hangups) => {
            let work = with(&args, context, connected.store.clone(), connected.locks.clone());
            let done = tokio::select! {
                done = work => done,
                never = reconfigured(hangups, &connected, &context.settings) => match never {},
            };
            connected.close().await;
            done
        }
        Opened::Mongo(store, locks) => {
            let done = with(&args, context, store, locks.clone()).await;
            locks.close().await;
            done
        }
        Opened::Postgres(store, locks, task) => {
            let done = with(&args, context, store, locks).await;
            task.ended().await;
            done
        }
    }
}

enum Opened {
    Mongo(MongoStore, MongoLocks),
    Postgres(PostgresStore, PostgresLocks, crate::lock::LockTask),
    Phase(Box<Connected>, Signal),
}

/// At each SIGHUP, goes on with the table `[backend]` as the file has it then. A file that is wrong, or asks for what needs
/// a restart, changes nothing.
async fn reconfigured(mut hangups: Signal, connected: &Connected, settings: &Settings) -> Infallible {
    while hangups.recv().await.is_some() {
        let refused = |error| Failure::of(Exit::Refused, &error);
        match settings.backend_again().and_then(|new| connected.reconfigure(&new).map_err(refused)) {
            Ok(()) => tracing::info!("goes on with the table [backend] as the file has it"),
            Err(failure) => tracing::warn!(error = failure.message, "the table [backend] is used as it was"),
        }
    }
    std::future::pending().await
}

async fn with<S: Store, L: Locks>(args: &SimulateArgs, context: &Context, store: S, locks: L) -> Result<Exit, Failure> {
    if args.check.is_empty() {
        simulated(args, context, store, locks).await
    } else {
        context.until_stopped(compared(args, context, &store)).await
    }
}

async fn simulated<S: Store, L: Locks>(
    args: &SimulateArgs,
    context: &Context,
    store: S,
    locks: L,
) -> Result<Exit, Failure> {
    let options = Options {
        tenants: args.tenants,
        schedules: args.schedules,
        planners: args.planners,
        workers: args.workers,
        duration: Duration::from_secs(args.seconds),
        name: format!("simulate-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]),
    };
    let store = Journaled::new(store, args.journal.as_deref()).map_err(of_journal)?;
    let simulation = Arc::new(Simulation::new(store, locks, options));
    if let Some(tenant) = simulation.stranger().await.map_err(|error| of_store(args.store, error))? {
        let message = format!("the store is in use: it has a schedule of tenant {tenant:?}");
        return Err(Failure::new(Exit::Refused, message).hint("give the simulation a database of its own"));
    }
    simulation.run(&context.stop).await.map_err(|error| of_store(args.store, error))?;
    let totals = simulation.totals();
    let figures = [
        ("fired", "triggers fired", &totals.fired),
        ("planned", "runs planned", &totals.planned),
        ("executed", "jobs executed", &totals.executed),
        ("completed", "runs completed", &totals.completed),
        ("returned", "jobs taken back from workers that died or were slow", &totals.returned),
    ];
    let figures = figures.map(|(name, words, count)| (name, words, count.load(Ordering::Relaxed)));
    let lines: Vec<String> = figures.iter().map(|(_, words, count)| format!("{count:>8}  {words}")).collect();
    context.output.text(&lines.join("\n"))?;
    let object: serde_json::Map<_, _> =
        figures.iter().map(|(name, _, count)| ((*name).to_owned(), json!(count))).collect();
    context.output.object(&object)?;
    if context.stop.is_cancelled() {
        return Err(Failure::new(Exit::Interrupted, "stopped"));
    }
    if !simulation.is_quiet().await.map_err(|error| of_store(args.store, error))? {
        let hint = "another simulation, with workers, takes them on";
        return Err(Failure::new(Exit::Inconclusive, "runs are left that nobody works on").hint(hint));
    }
    Ok(Exit::Clean)
}

async fn compared<S: Store>(args: &SimulateArgs, context: &Context, store: &S) -> Result<Exit, Failure> {
    let mut entries = Vec::new();
    for path in &args.check {
        entries.extend(journal::read(path).map_err(of_journal)?);
    }
    if entries.is_empty() {
        return Err(Failure::new(Exit::Inconclusive, "the journals hold no acknowledged write: nothing was compared"));
    }
    let findings = check(store, &entries, args.tenants).await.map_err(|error| of_store(args.store, error))?;
    context.output.text(&told(&findings))?;
    context.output.object(&json!({
        "writes": findings.writes, "keys": findings.keys, "runs": findings.runs, "runs_over": findings.runs_over,
        "faults": findings.faults,
    }))?;
    Ok(if findings.faults.is_empty() { Exit::Clean } else { Exit::Mismatch })
}

pub(super) fn told(findings: &Findings) -> String {
    let Findings { writes, keys, runs, runs_over, faults } = findings;
    let mut lines =
        vec![format!("{writes} acknowledged writes of {keys} keys; {runs} runs, {runs_over} of them completed")];
    lines.extend(faults.iter().take(SHOWN).map(|fault| format!("  {}", escape(fault))));
    if faults.len() > SHOWN {
        lines.push(format!("  and {} more", faults.len() - SHOWN));
    }
    lines.push(match faults.len() {
        0 => "every acknowledged write is in the store, and nothing was done twice".to_owned(),
        count => format!("{count} faults"),
    });
    lines.join("\n")
}

fn of_store(place: Place, error: Error) -> Failure {
    let exit = match place {
        Place::Mongodb | Place::Phase => Exit::Source,
        Place::Postgresql => Exit::Target,
    };
    Failure::of(exit, &error)
}

pub(super) fn of_connection(error: ConnectError) -> Failure {
    match error {
        ConnectError::Source(error) | ConnectError::Fence(FenceError::Source(error)) => error.into(),
        ConnectError::Target(error) | ConnectError::Fence(FenceError::Target(error)) => error.into(),
        ConnectError::Settings(_) | ConnectError::Nowhere => Failure::of(Exit::Usage, &error),
        ConnectError::Fence(_) => Failure::of(Exit::Refused, &error),
    }
}

fn of_lock(error: LockError) -> Failure {
    Failure::of(if matches!(error, LockError::Pooler) { Exit::Refused } else { Exit::Target }, &error)
}

pub(super) fn of_journal(error: JournalError) -> Failure {
    Failure::of(Exit::Usage, &error)
}
