//! Read parity of stores in use: what is on its way is waited for, and what stands still is told.

use bson::{Document, doc};
use scheduler_bridge::parity::Kind;
use scheduler_bridge::verify::reads::{self, ReadError};
use tokio_util::task::AbortOnDropHandle;

use super::{assert_clean, compare, insert, options, run, sql, told, try_compare};
use crate::bed::{Bed, until};
use crate::dual::LIMIT;
use crate::dual::switch::{Scheduler, followed};
use crate::faults::process::Bridge;
use crate::verify::backfill;

/// Keeps writing one summary in MongoDB, each time another.
fn busy(bed: &Bed, id: &'static str) -> AbortOnDropHandle<()> {
    let summaries = bed.database.collection::<Document>("run_summaries");
    AbortOnDropHandle::new(tokio::spawn(async move {
        for number in 0_i64.. {
            let write = summaries.update_one(doc! { "_id": id }, doc! { "$set": { "number": number } });
            write.await.expect("write");
        }
    }))
}

/// A mirror that stands still for so many milliseconds before it commits.
async fn late_mirror(bed: &Bed, lag: u32) -> Bridge {
    let mut command = bed.bridge(&["mirror"]);
    command.env("BRIDGE_LEASE_SECONDS", "60").env("FAILPOINTS", format!("mirror::before-commit=sleep({lag})"));
    let mirror = Bridge::start(command);
    let is_there = async || {
        let there = "select exists (select from bridge.stream where leased_until > clock_timestamp())";
        sqlx::query_scalar(there).fetch_one(bed.pool()).await.expect("look for the mirror")
    };
    until("the mirror is there", LIMIT, is_there).await;
    mirror
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_all_the_time_is_not_told_and_hides_nothing_beside_it() {
    let bed = Bed::new().await;
    // Few queries ask for summaries: each waits for the page that is busy.
    let summary = |number: i64| doc! { "_id": format!("a:{number:02}"), "tenantId": "a", "scheduleId": "s" };
    insert(&bed, "run_summaries", (0..40).map(summary).collect()).await;
    backfill(&bed).await;
    let _mirror = late_mirror(&bed, 100).await;
    let writer = busy(&bed, "a:05");
    let report = compare(&bed).await;
    println!("{:?}", report.collections);
    assert_clean(&report);
    assert_eq!((report.unsettled, report.records), (1, 40));
    // Before the busy one stands quiet, behind it too.
    assert!(report.pages > 4 && report.rechecked > report.unsettled, "{report:#?}");
    sql(&bed, "update scheduler.run_summaries set schedule_id = 'damaged' where id = 'a:06'").await;
    let report = compare(&bed).await;
    drop(writer);
    let told = told(&report);
    let found = told[&("a", "where tenantId = \"a\" by _id")];
    assert_eq!((found.kind, found.ids.as_slice()), (Kind::Content, ["a:06".to_owned()].as_slice()));
    assert_eq!(told.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_mirror_has_yet_to_bring_is_waited_for() {
    let bed = Bed::new().await;
    insert(&bed, "runs", (0..5).map(|second| run("a", &format!("r{second}"), second)).collect()).await;
    backfill(&bed).await;
    let _mirror = late_mirror(&bed, 3_000).await;
    insert(&bed, "runs", vec![run("a", "new", 9)]).await;
    let report = compare(&bed).await;
    assert_clean(&report);
    assert!(report.rechecked > 0, "{report:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_does_not_keep_up_makes_no_result() {
    let bed = Bed::new().await;
    insert(&bed, "runs", vec![run("a", "r", 0)]).await;
    backfill(&bed).await;
    let mirror = late_mirror(&bed, 0).await;
    assert!(mirror.kill().await);
    bed.database.collection::<Document>("runs").delete_one(doc! { "_id": "r" }).await.expect("delete");
    let failed = try_compare(&bed, &options()).await.expect_err("it cannot be known");
    assert!(matches!(failed, ReadError::Behind { .. }), "{failed}");
    assert_eq!(reads::latest(bed.pool()).await.expect("look"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_stores_are_clean_under_load_and_damage_beside_it_is_told() {
    let bed = Bed::new().await;
    let mut scheduler = Scheduler::start(&bed, 2);
    scheduler.at_work().await;
    let _mirror = followed(&bed).await;
    let (mut rechecked, mut records) = (0, 0);
    let deadline = tokio::time::Instant::now() + 3 * LIMIT;
    while rechecked <= 20 {
        assert!(tokio::time::Instant::now() < deadline, "too little differed at first: {rechecked}");
        let report = compare(&bed).await;
        println!("{} queries, {} rechecked, {} unsettled", report.queries, report.rechecked, report.unsettled);
        assert_clean(&report);
        (rechecked, records) = (rechecked + report.rechecked, records + report.records);
    }
    println!("{records} records compared");
    let oldest = "select id from scheduler.runs where state = 'completed' order by created_at limit 1";
    let damaged: String = sqlx::query_scalar(oldest).fetch_one(bed.pool()).await.expect("a run");
    sql(&bed, &format!("update scheduler.runs set finished_at = null where id = '{damaged}'")).await;
    let report = compare(&bed).await;
    assert!(report.differences.iter().all(|found| found.ids == [damaged.as_str()]), "{:#?}", report.differences);
    assert!(told(&report).values().any(|found| found.kind == Kind::Content));
    scheduler.nothing_is_lost(&bed).await;
}
