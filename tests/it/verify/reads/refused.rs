//! Comparisons that leave no result.

use std::num::NonZeroU64;
use std::sync::Arc;

use scheduler_bridge::backfill::Rate;
use scheduler_bridge::phase::Phase;
use scheduler_bridge::verify::reads::{self, Options, Progress, ReadError};
use tokio_util::sync::CancellationToken;

use super::{insert, options, run, sql, try_compare};
use crate::bed::{Bed, until};
use crate::dual::{LIMIT, turn};
use crate::verify::{backfill, stores};

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_follows_or_a_switch_is_half_way_there_is_no_result() {
    let bed = Bed::new().await;
    insert(&bed, "runs", vec![run("a", "r", 0)]).await;
    turn(&bed, Phase::Postgres, 2).await;
    assert!(matches!(try_compare(&bed, &options()).await, Err(ReadError::Alone)));
    sql(&bed, "update bridge.fence set open = false").await;
    assert!(matches!(try_compare(&bed, &options()).await, Err(ReadError::Half)));
    assert_eq!(reads::latest(bed.pool()).await.expect("look"), None);
}

/// What became of a comparison that was under way when `meanwhile` was done.
async fn interfered(bed: &Bed, cancel: CancellationToken, meanwhile: impl AsyncFnOnce()) -> ReadError {
    let (source, target) = stores(bed).await;
    let (progress, rate) = (Arc::new(Progress::default()), Rate { documents: NonZeroU64::new(1_000), bytes: None });
    let (told, options) = (progress.clone(), Options { rate, ..options() });
    let run = tokio::spawn(async move { reads::run(&source, &target, &options, told, cancel).await });
    let is_at_work = async || progress.queries.load(std::sync::atomic::Ordering::Relaxed) > 20;
    until("it is at work", LIMIT, is_at_work).await;
    meanwhile().await;
    let ended = run.await.expect("the task").expect_err("it has no result");
    assert_eq!(reads::latest(bed.pool()).await.expect("look"), None);
    ended
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_meanwhile_or_a_signal_leaves_no_result() {
    let bed = Bed::new().await;
    insert(&bed, "runs", (0..100).map(|second| run("a", &format!("r{second}"), second)).collect()).await;
    backfill(&bed).await;
    let cancel = CancellationToken::new();
    let ended = interfered(&bed, cancel.clone(), async || cancel.cancel()).await;
    assert!(matches!(ended, ReadError::Interrupted), "{ended}");
    turn(&bed, Phase::PostgresPrimary, 3).await;
    let next = async || sql(&bed, "update bridge.fence set epoch = 4").await;
    let ended = interfered(&bed, CancellationToken::new(), next).await;
    assert!(matches!(ended, ReadError::Turned { .. }), "{ended}");
}
