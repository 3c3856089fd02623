//! What the scheduler does with its records, the same on either store (design 10, 13 and 14).
//!
//! One repository an entity, each generic over [`Store`]: the rules are written here once, and a store knows none of
//! them. Times come from the caller, but for what is decided between processes (claims, leases, heartbeats), which goes
//! by the database's clock.

pub mod audit;
pub mod cron;
mod error;
pub mod execution_logs;
pub mod fences;
pub mod graph_jobs;
pub mod impact_snapshots;
pub mod policy_jobs;
pub mod records;
pub mod run_summaries;
pub mod runs;
pub mod schedules;
pub mod state;
pub mod triggers;
pub mod workers;

pub use self::error::Error;
pub use self::records::{Listing, PageRequest, Tenant};

use crate::store::Store;

/// All repositories over one store.
#[derive(Debug, Clone)]
pub struct Scheduler<S> {
    /// What is to be run, and when.
    pub schedules: schedules::Schedules<S>,
    /// What sets schedules off.
    pub triggers: triggers::Triggers<S>,
    /// Executions.
    pub runs: runs::Runs<S>,
    /// Graphs to build.
    pub graph_jobs: graph_jobs::GraphJobs<S>,
    /// Policies to evaluate.
    pub policy_jobs: policy_jobs::PolicyJobs<S>,
    /// Which images runs are about.
    pub impact_snapshots: impact_snapshots::ImpactSnapshots<S>,
    /// The processes that execute jobs.
    pub workers: workers::Workers<S>,
    /// What runs said.
    pub execution_logs: execution_logs::ExecutionLogs<S>,
    /// Writes that hold only as long as a lock is.
    pub fences: fences::Fences<S>,
    /// The last runs of each schedule.
    pub run_summaries: run_summaries::RunSummaries<S>,
    /// Who did what.
    pub audit: audit::Audit<S>,
}

impl<S: Store> Scheduler<S> {
    /// The repositories over `store`.
    pub fn new(store: &S) -> Self {
        Self {
            schedules: schedules::Schedules::new(store.clone()),
            triggers: triggers::Triggers::new(store.clone()),
            runs: runs::Runs::new(store.clone()),
            graph_jobs: graph_jobs::GraphJobs::new(store.clone()),
            policy_jobs: policy_jobs::PolicyJobs::new(store.clone()),
            impact_snapshots: impact_snapshots::ImpactSnapshots::new(store.clone()),
            workers: workers::Workers::new(store.clone()),
            execution_logs: execution_logs::ExecutionLogs::new(store.clone()),
            fences: fences::Fences::new(store.clone()),
            run_summaries: run_summaries::RunSummaries::new(store.clone()),
            audit: audit::Audit::new(store.clone()),
        }
    }
}
