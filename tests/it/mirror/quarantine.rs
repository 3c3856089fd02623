//! Live writes that cannot become a row.

use mongodb::bson::{Document, doc};

use sqlx::Executor;

use super::{assert_clean, backfill, ids, level, mirror, run, stop};
use crate::bed::Bed;
use crate::faults::refused::{NO_OBSTACLES, OBSTACLES};

/// The ids in the quarantine and their stamps, sorted.
async fn quarantined(bed: &Bed) -> Vec<(String, i64)> {
    let query = "select id, clock from bridge.quarantine order by id";
    sqlx::query_as(query).fetch_all(bed.pool()).await.expect("read the quarantine")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_cannot_become_a_row_is_quarantined_until_a_better_one_comes() {
    let bed = Bed::new().await;
    let runs = bed.database.collection::<Document>("runs");
    runs.insert_many([run("goes-bad", 1), run("stays", 1)]).await.expect("insert");
    backfill(&bed, &[]).await;
    let mirror = mirror(&bed);
    level(&bed).await;
    let bad = doc! { "$set": { "state": "nonsense" } };
    for id in ["goes-bad", "comes-bad", "goes-at-last"] {
        runs.update_one(doc! { "_id": id }, bad.clone()).upsert(true).await.expect("write");
    }
    level(&bed).await;
    let found = quarantined(&bed).await;
    let names: Vec<_> = found.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(names, ["comes-bad", "goes-at-last", "goes-bad"]);
    assert_eq!(ids(&bed, "runs").await, ["stays"]);
    let stays: i64 = sqlx::query_scalar("select clock from scheduler.runs").fetch_one(bed.pool()).await.expect("clock");
    assert!(found.iter().all(|(_, clock)| *clock > stays), "{found:?}");
    assert_clean(&bed).await;
    for id in ["goes-bad", "comes-bad"] {
        runs.replace_one(doc! { "_id": id }, run(id, 2)).await.expect("replace");
    }
    runs.delete_one(doc! { "_id": "goes-at-last" }).await.expect("delete");
    level(&bed).await;
    assert_eq!(quarantined(&bed).await, []);
    assert_eq!(ids(&bed, "runs").await, ["comes-bad", "goes-bad", "stays"]);
    assert_clean(&bed).await;
    stop(mirror).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_documents_that_postgres_refuses_are_quarantined_until_they_change() {
    let bed = Bed::new().await;
    let runs = bed.database.collection::<Document>("runs");
    runs.insert_one(run("run-b", 0)).await.expect("insert");
    backfill(&bed, &[]).await;
    bed.pool().execute(OBSTACLES).await.expect("make the obstacles");
    // The row of the one is there already; both are among others, in one answer of the stream.
    let others = (0..100).map(|number| run(&format!("run-a{number:02}"), number));
    runs.insert_many(others.chain([run("run-c", 1)])).await.expect("insert");
    runs.update_one(doc! { "_id": "run-b" }, doc! { "$set": { "number": 1_i64 } }).await.expect("update");
    let live = mirror(&bed);
    level(&bed).await;
    let names: Vec<_> = quarantined(&bed).await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(names, ["run-b", "run-c"]);
    assert_eq!(ids(&bed, "runs").await.len(), 100);
    assert_clean(&bed).await;
    bed.pool().execute(NO_OBSTACLES).await.expect("remove the obstacles");
    runs.update_many(doc! {}, doc! { "$inc": { "number": 1_i64 } }).await.expect("update");
    level(&bed).await;
    assert_eq!(quarantined(&bed).await, []);
    assert_eq!(ids(&bed, "runs").await.len(), 102);
    assert_clean(&bed).await;
    stop(live).await;
}
