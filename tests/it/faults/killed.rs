//! `kill -9`, and other ways in which a process is suddenly not there.

use std::time::Duration;

use rustix::process::Signal;

use super::gate::{Gate, LIMIT, until_bridge_waits};
use super::process::Bridge;
use super::{assert_complete, copied, fill};
use crate::bed::{Bed, until};

/// A number below the bound, from a seed that a test prints: xorshift.
#[derive(Clone)]
pub struct Moments(u64);

impl Moments {
    /// The seed is `FAULTS_SEED`, if that is set.
    pub fn new() -> Self {
        let given = std::env::var("FAULTS_SEED").ok().map(|seed| seed.parse().expect("FAULTS_SEED is a number"));
        let seed = given.unwrap_or_else(|| u64::from(uuid::Uuid::new_v4().as_fields().0) + 1);
        println!("to repeat: FAULTS_SEED={seed}");
        Self(seed)
    }

    /// Those of a seed, which must not be 0.
    pub fn of(seed: u64) -> Self {
        Self(seed)
    }

    /// What they go on from.
    pub fn seed(&self) -> u64 {
        self.0
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

const KILLS: i64 = 16;

#[tokio::test(flavor = "multi_thread")]
async fn processes_killed_at_random_moments_are_carried_on_by_the_same_command() {
    let (bed, mut moments) = (Bed::new().await, Moments::new());
    fill(&bed, 16_000).await;
    let mut strikes = 0;
    for kill in 0..KILLS {
        let mut pair = [Bridge::backfill(&bed, &[]), Bridge::backfill(&bed, &[])];
        // Every fourth dies young, while it connects or plans; the others somewhere in their share of the work.
        if kill % 4 != 0 {
            let goal = copied(&bed).await + 1 + i64::try_from(moments.below(1_000)).expect("small");
            let reached = || {
                let (bed, over) = (&bed, pair.iter_mut().all(Bridge::is_over));
                async move { over || copied(bed).await >= goal }
            };
            until("the pair has copied something", LIMIT, reached).await;
        }
        // Not a wait for something: the random part of the moment.
        tokio::time::sleep(Duration::from_millis(moments.below(120))).await;
        for bridge in pair {
            strikes += i64::from(bridge.kill().await);
        }
    }
    assert!(strikes > KILLS, "{strikes}: most were to be struck while they worked");
    let pair = [Bridge::backfill(&bed, &[]), Bridge::backfill(&bed, &[])];
    for bridge in pair {
        bridge.ended().await.says(0, &[]);
    }
    assert_complete(&bed).await;
}

/// What a gate can stop, from the first statement that writes to the last.
const STAGES: [&str; 8] = [
    "before insert on bridge.stream",
    "before insert on bridge.backfill",
    "before insert on bridge.chunk",
    "before update on bridge.chunk for each row when (old.holder is null)",
    "before insert on scheduler.runs",
    "before update on bridge.chunk for each row when (new.documents > old.documents)",
    "before update on bridge.chunk for each row when (new.finished_at is not null)",
    "before update on bridge.backfill for each row when (new.finished_at is not null)",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_process_killed_inside_any_kind_of_statement_is_carried_on() {
    for stage in STAGES {
        println!("{stage}");
        let bed = Bed::new().await;
        scheduler_bridge::dataset::load(&bed.database, 300, 3, |_| ()).await.expect("load documents");
        let gate = Gate::shut(&bed, stage).await;
        let bridge = Bridge::backfill(&bed, &[]);
        until_bridge_waits(&bed).await;
        assert!(bridge.kill().await, "{stage}: it was to be killed while it worked");
        gate.open().await;
        Bridge::backfill(&bed, &[]).ended().await.says(0, &[]);
        assert_complete(&bed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_lost_after_the_commit_is_found_in_the_ledger() {
    let bed = Bed::new().await;
    fill(&bed, 1_000).await;
    let lost = [("FAILPOINTS", "backfill::after-commit=50%return")];
    Bridge::backfill(&bed, &lost).ended().await.says(0, &["will try again"]);
    assert_complete(&bed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_dies_before_or_after_its_commits_is_carried_on() {
    let bed = Bed::new().await;
    fill(&bed, 2_000).await;
    for point in ["before", "after"].repeat(3) {
        let dies = format!("backfill::{point}-commit=3*off->panic");
        Bridge::backfill(&bed, &[("FAILPOINTS", &dies), ("BRIDGE_CHUNK_BYTES", "20000")])
            .ended()
            .await
            .says(4, &["ended by itself", "carries on"]);
        assert!(copied(&bed).await > 0);
    }
    Bridge::backfill(&bed, &[]).ended().await.says(0, &[]);
    assert_complete(&bed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_process_whose_work_was_taken_over_copies_nothing_twice() {
    let bed = Bed::new().await;
    fill(&bed, 3_000).await;
    let paused = Bridge::backfill(&bed, &[]);
    until("something is copied", LIMIT, async || copied(&bed).await > 200).await;
    paused.signal(Signal::STOP);
    // Its open transactions stay open as long as it sleeps, and hold their chunks: the server ends them at last.
    let end = "select pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and xact_start < clock_timestamp() - interval '3 seconds'";
    let heir = Bridge::backfill(&bed, &[]);
    let only = "select not exists (select from bridge.chunk where finished_at is null)
        and exists (select from bridge.chunk)";
    let is_over = async || {
        sqlx::query(end).execute(bed.pool()).await.expect("end what is left open");
        sqlx::query_scalar(only).fetch_one(bed.pool()).await.expect("look at the ledger")
    };
    until("the heir has taken everything over", LIMIT, is_over).await;
    heir.ended().await.says(0, &[]);
    paused.signal(Signal::CONT);
    paused.ended().await.says(0, &[]);
    assert_complete(&bed).await;
}
