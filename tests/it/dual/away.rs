//! The secondary stands still for a minute: the primary does not feel it, and both are level again afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use scheduler_bridge::entity::runs::RunState;
use scheduler_bridge::lock::of_collection;
use scheduler_bridge::phase::Phase;
use scheduler_bridge::scheduler::Scheduler;
use scheduler_bridge::scheduler::runs::Progress;
use scheduler_bridge::store::dual::DualStore;
use scheduler_bridge::verify::Verdict;
use sqlx::{Connection, Executor};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::switch::{followed, turned};
use super::{LIMIT, backends, connect, turn};
use crate::bed::{Bed, until};
use crate::faults::gate;
use crate::mirror::memory::signal;
use crate::stores::samples::{at, run, tenant};
use crate::verify::verify;

const MINUTE: Duration = Duration::from_secs(60);

const WRITERS: u64 = 4;

/// Writers that update a run of their own again and again, and how often they have.
pub struct Writers {
    tasks: JoinSet<()>,
    stop: CancellationToken,
    writes: Arc<AtomicU64>,
}

impl Writers {
    pub async fn start(store: &DualStore, name: &str) -> Self {
        let scheduler = Scheduler::new(store);
        let (mut tasks, stop, writes) = (JoinSet::new(), CancellationToken::new(), Arc::new(AtomicU64::new(0)));
        for writer in 0..WRITERS {
            let id = format!("{name}-{writer}");
            scheduler.runs.create(&run("a", &id)).await.expect("create");
            let (scheduler, stop, writes) = (scheduler.clone(), stop.clone(), writes.clone());
            tasks.spawn(async move {
                while !stop.is_cancelled() {
                    let progress = Progress { error: Some(writes.load(Relaxed).to_string()), ..to_queued() };
                    scheduler.runs.update(&tenant("a"), &id, &progress).await.expect("no write fails");
                    writes.fetch_add(1, Relaxed);
                }
            });
        }
        Self { tasks, stop, writes }
    }

    /// Waits until they have gone on.
    pub async fn go_on(&self) {
        let before = self.writes.load(Relaxed);
        until("the writers go on", LIMIT, async || self.writes.load(Relaxed) > before + 20).await;
    }

    /// For a minute and a little, in which they go on; for how long.
    async fn go_on_for_a_minute(&self) -> Duration {
        let begun = Instant::now();
        while begun.elapsed() < MINUTE {
            self.go_on().await;
        }
        begun.elapsed()
    }

    pub async fn end(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a writer");
        }
    }
}

fn to_queued() -> Progress {
    Progress::to(RunState::Queued, at(1))
}

async fn assert_level(bed: &Bed) {
    let report = verify(bed).await;
    assert_eq!(report.verdict, Verdict::Clean, "{report:#?}");
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_secondary_that_stands_still_for_a_minute_fails_no_write_and_is_level_afterwards() {
    let mut bed = Bed::with_own_servers().await;
    let connected = connect(&backends(&bed)).await;
    let first = Writers::start(&connected.store, "first").await;
    let _mirror = followed(&bed).await;
    turned(&bed, "mongo-primary").await;
    let followed = connected.store.followed().expect("a follower");
    until("PostgreSQL follows", LIMIT, async || followed.level.count() > 0).await;
    let postgres = bed.servers().postgres.pid();
    let before = followed.failed.count();
    signal(postgres, Signal::STOP);
    until("it is found to stand still", LIMIT, async || followed.failed.count() > before).await;
    let before = followed.failed.count();
    let stopped = first.go_on_for_a_minute().await;
    let failed = followed.failed.count() - before;
    assert!(failed <= stopped.as_secs() + 1, "one probe a second: {failed} in {stopped:?}");
    assert!(followed.skipped.count() > 20 * MINUTE.as_secs() / 2, "{followed:?}");
    signal(postgres, Signal::CONT);
    let level = followed.level.count();
    until("PostgreSQL follows again", LIMIT, async || followed.level.count() > level).await;
    first.end().await;
    crate::mirror::level(&bed).await;
    assert_level(&bed).await;

    turned(&bed, "postgres-primary").await;
    let second = Writers::start(&connected.store, "second").await;
    let mongo = bed.servers().mongo.pid();
    signal(mongo, Signal::STOP);
    second.go_on_for_a_minute().await;
    signal(mongo, Signal::CONT);
    second.end().await;
    crate::outbox::until_drained(&bed).await;
    assert_level(&bed).await;
    connected.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_beginning_the_server_refused_is_not_used_again() {
    let bed = Bed::new().await;
    turn(&bed, Phase::MongoPrimary, 2).await;
    let connected = connect(&backends(&bed)).await;
    // The server is to refuse it before the follower gives up.
    let mut tuning = *connected.store.tuning().borrow();
    tuning.protection.deadline = LIMIT;
    connected.store.tune(tuning);
    let (runs, followed) = (Scheduler::new(&connected.store).runs, connected.store.followed().expect("a follower"));
    let mut holder = gate::connect(&bed).await;
    let hold = sqlx::query("select pg_advisory_lock($1)").bind(of_collection("runs"));
    hold.execute(&mut holder).await.expect("hold the collection");
    runs.create(&run("a", "refused")).await.expect("create");
    gate::until_waits(&bed, "query like 'begin; %'").await;
    let cancel = "select pg_cancel_backend(pid) from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock' and query like 'begin; %'";
    bed.pool().execute(cancel).await.expect("cancel it");
    until("it has failed", LIMIT, async || followed.failed.count() == 1).await;
    holder.close().await.expect("let the collection go");
    let follows = async || {
        runs.create(&run("a", &Uuid::new_v4().to_string())).await.expect("create");
        followed.level.count() > 0
    };
    until("PostgreSQL follows again", LIMIT, follows).await;
    connected.close().await;
}
