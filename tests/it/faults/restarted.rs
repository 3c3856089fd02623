//! Servers that go away in the middle and come back, and sessions that are cut off: the process carries on by itself.

use scheduler_bridge::embedded::Stop;

use super::gate::{Gate, LIMIT, until_bridge_waits};
use super::process::Bridge;
use super::{assert_complete, copied, fill};
use crate::bed::{Bed, until};

/// Ends the bridge's sessions.
const CUT: &str = "select count(pg_terminate_backend(pid)) from pg_stat_activity
    where datname = current_database() and application_name = 'scheduler-bridge'";

/// Waits until the backfill is at least this far.
async fn reached(bed: &Bed, documents: i64) {
    until("documents are copied", LIMIT, async || copied(bed).await >= documents).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_either_server_is_outlasted() {
    let mut bed = Bed::with_own_servers().await;
    fill(&bed, 9_000).await;
    let mut bridge = Bridge::backfill(&bed, &[]);
    for (round, how) in [Stop::Kill, Stop::Fast].into_iter().enumerate() {
        let goal = 500 + 3_000 * i64::try_from(round).expect("small");
        reached(&bed, goal).await;
        assert!(!bridge.is_over(), "it was to be struck while it worked");
        bed.servers().postgres.stop(how).await.expect("stop PostgreSQL");
        bed.servers().postgres.start_again().await.expect("start PostgreSQL");
        reached(&bed, goal + 1_000).await;
        assert!(!bridge.is_over(), "it was to be struck while it worked");
        bed.servers().mongo.stop(how).await.expect("stop MongoDB");
        bed.servers().mongo.start_again().await.expect("start MongoDB");
    }
    bridge.ended().await.says(0, &["will try again"]);
    assert_complete(&bed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_are_cut_off_are_opened_again() {
    let bed = Bed::new().await;
    fill(&bed, 6_000).await;
    let mut bridge = Bridge::backfill(&bed, &[]);
    for _ in 0..4 {
        let goal = copied(&bed).await + 200;
        reached(&bed, goal).await;
        // Documents may be counted that were copied before the last cut: then its sessions are still to be opened.
        let cut = async || sqlx::query_scalar::<_, i64>(CUT).fetch_one(bed.pool()).await.expect("cut off") > 0;
        until("there is somebody to cut off", LIMIT, cut).await;
        assert!(!bridge.is_over(), "it was to be struck while it worked");
    }
    bridge.ended().await.says(0, &["will try again"]);
    assert_complete(&bed).await;
}

/// Beside copying: the first statement of the plan, and the last of the sweep.
const STAGES: [&str; 2] = [
    "before insert on bridge.backfill",
    "before update on bridge.backfill for each row when (new.finished_at is not null)",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_cut_off_while_it_plans_or_sweeps_is_opened_again() {
    for stage in STAGES {
        let bed = Bed::new().await;
        fill(&bed, 100).await;
        let gate = Gate::shut(&bed, stage).await;
        let bridge = Bridge::backfill(&bed, &[]);
        until_bridge_waits(&bed).await;
        let ended: i64 = sqlx::query_scalar(CUT).fetch_one(bed.pool()).await.expect("cut off the sessions");
        assert!(ended > 0, "{stage}: there was nobody to cut off");
        gate.open().await;
        bridge.ended().await.says(0, &["will try again"]);
        assert_complete(&bed).await;
    }
}
