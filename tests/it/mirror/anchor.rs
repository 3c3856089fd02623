//! Where the stream begins: what was under way then is not missed.

use mongodb::ClientSession;
use mongodb::bson::Document;

use super::{assert_clean, backfill, begun, ids, level, mirror, run, stop};
use crate::bed::Bed;

/// A transaction that has written one run and is still open.
async fn open_transaction(bed: &Bed) -> ClientSession {
    let mut session = bed.mongo.start_session().await.expect("a session");
    session.start_transaction().await.expect("begin");
    let runs = bed.database.collection::<Document>("runs");
    runs.insert_one(run("in-flight", 1)).session(&mut session).await.expect("insert");
    runs.update_one(bson::doc! { "_id": "before" }, bson::doc! { "$set": { "number": 2_i64 } })
        .session(&mut session)
        .await
        .expect("update");
    session
}

async fn filled() -> Bed {
    let bed = Bed::new().await;
    bed.database.collection("runs").insert_one(run("before", 1)).await.expect("insert");
    bed
}

async fn assert_not_missed(bed: &Bed) {
    level(bed).await;
    assert_eq!(ids(bed, "runs").await, ["before", "in-flight"]);
    assert_clean(bed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_open_across_the_anchor_of_the_backfill_is_not_missed() {
    let bed = filled().await;
    let mut session = open_transaction(&bed).await;
    backfill(&bed, &[]).await;
    assert_eq!(ids(&bed, "runs").await, ["before"], "it was to be open while everything was copied");
    session.commit_transaction().await.expect("commit");
    let mirror = mirror(&bed);
    assert_not_missed(&bed).await;
    stop(mirror).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_open_across_the_anchor_that_the_mirror_takes_is_not_missed() {
    let bed = filled().await;
    let mut session = open_transaction(&bed).await;
    let mirror = mirror(&bed);
    begun(&bed).await;
    backfill(&bed, &[]).await;
    session.commit_transaction().await.expect("commit");
    assert_not_missed(&bed).await;
    stop(mirror).await;
}
