//! The contract of the repositories: every operation in every situation that it can meet, over every store.
//!
//! Each case has a bench of its own: a fresh database in one store. The list of operations is read from the sources, so
//! that one without a case fails.

mod audit;
mod execution_logs;
mod fences;
mod graph_jobs;
mod impact_snapshots;
mod operations;
mod policy_jobs;
mod run_summaries;
mod runs;
mod schedules;
mod states;
mod triggers;
mod unavailable;
mod workers;

use std::fmt::Debug;

use futures::future::BoxFuture;
use scheduler_bridge::scheduler::{Error, Scheduler};

use crate::bed::Bed;
use crate::outbox::mirrored;
use crate::stores::{AnyStore, both};

/// What an operation may meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Situation {
    Happy,
    Absent,
    WrongTenant,
    Deleted,
    Conflicting,
    Repeated,
    Concurrent,
}

/// One operation in one situation.
pub struct Case {
    /// Repository and operation: `runs.create`.
    pub operation: &'static str,
    pub situation: Situation,
    pub run: fn(Stage) -> BoxFuture<'static, ()>,
}

/// What a case plays on.
#[derive(Clone)]
pub struct Stage {
    pub store: AnyStore,
    pub scheduler: Scheduler<AnyStore>,
}

/// A case: operation, situation, and what is to be seen.
macro_rules! case {
    ($operation:literal, $situation:ident, $run:path) => {
        $crate::contract::Case {
            operation: $operation,
            situation: $crate::contract::Situation::$situation,
            run: |stage| Box::pin($run(stage)),
        }
    };
}
use case;

/// Every case of every repository.
pub const ALL: &[&[Case]] = &[
    schedules::CASES,
    triggers::CASES,
    runs::CASES,
    graph_jobs::CASES,
    policy_jobs::CASES,
    impact_snapshots::CASES,
    workers::CASES,
    execution_logs::CASES,
    fences::CASES,
    run_summaries::CASES,
    audit::CASES,
];

/// Plays `cases` on every store.
async fn play(cases: &[Case]) {
    for case in cases {
        let bed = Bed::new().await;
        for (name, store) in both(&bed).await {
            println!("{} {:?} on {name}", case.operation, case.situation);
            let scheduler = Scheduler::new(&store);
            (case.run)(Stage { store, scheduler }).await;
        }
    }
}

/// Plays `cases` on PostgreSQL while MongoDB follows: its statements are others.
async fn play_mirrored(cases: &[Case]) {
    for case in cases {
        println!("{} {:?}", case.operation, case.situation);
        let bed = Bed::new().await;
        let store = AnyStore::Postgres(mirrored(&bed).await);
        let scheduler = Scheduler::new(&store);
        (case.run)(Stage { store, scheduler }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn triggers_and_policy_jobs_hold_also_for_postgresql_while_mongodb_follows() {
    play_mirrored(triggers::CASES).await;
    play_mirrored(policy_jobs::CASES).await;
}

macro_rules! plays {
    ($($repository:ident),*) => { $(
        #[tokio::test(flavor = "multi_thread")]
        async fn $repository() {
            play(super::$repository::CASES).await;
        }
    )* };
}

/// One test a repository.
mod holds_for {
    use super::play;
    plays!(
        schedules,
        triggers,
        runs,
        graph_jobs,
        policy_jobs,
        impact_snapshots,
        workers,
        execution_logs,
        fences,
        run_summaries,
        audit
    );
}

#[track_caller]
fn not_found<T: Debug>(done: Result<T, Error>) {
    assert!(matches!(done, Err(Error::NotFound { .. })), "{done:?}");
}

#[track_caller]
fn conflict<T: Debug>(done: Result<T, Error>) {
    assert!(matches!(done, Err(Error::Conflict { .. })), "{done:?}");
}

#[track_caller]
fn invalid<T: Debug>(done: Result<T, Error>) {
    assert!(matches!(done, Err(Error::Invalid { .. })), "{done:?}");
}

#[track_caller]
fn illegal<T: Debug>(done: Result<T, Error>, from: &str, to: &str) {
    match done {
        Err(Error::Illegal { source, .. }) => assert_eq!((source.from.as_str(), source.to.as_str()), (from, to)),
        other => panic!("not illegal: {other:?}"),
    }
}

/// Runs `work` so many times at once.
async fn at_once<T: Send + 'static, F>(times: usize, work: impl Fn(usize) -> F) -> Vec<T>
where
    F: Future<Output = T> + Send + 'static,
{
    let tasks: Vec<_> = (0..times).map(|index| tokio::spawn(work(index))).collect();
    futures::future::join_all(tasks).await.into_iter().map(|done| done.expect("a task")).collect()
}

fn count_ok<T, E>(done: &[Result<T, E>]) -> usize {
    done.iter().filter(|done| done.is_ok()).count()
}
