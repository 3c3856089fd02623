//! A real oplog that rolls over the place where the mirror was.

use mongodb::bson::{Document, Timestamp, doc};
use rustix::process::Signal;

use super::{LIMIT, assert_clean, backfill, level, mark, mirror, run, stop};
use crate::bed::{Bed, until};

/// The smallest oplog, in megabytes. The server removes what is older than its last checkpoint, of which there is one a
/// second in place of one a minute; the server's own test of this (`oplog_rollover.js`) has the same settings.
pub const SMALL: [(&str, &str); 2] = [("oplogSize", "1"), ("syncdelay", "1")];

/// The time of the oldest entry that there still is.
async fn oldest(bed: &Bed) -> Timestamp {
    let oplog = bed.mongo.database("local").collection::<Document>("oplog.rs");
    let first = oplog.find_one(doc! {}).sort(doc! { "$natural": 1 }).await.expect("read the oplog");
    first.expect("an entry").get_timestamp("ts").expect("a time")
}

/// Writes until the oplog begins after `time`. Only writes make the server look whether there is something to remove,
/// and only a checkpoint lets it: so they go on until it has.
pub async fn roll_over(bed: &Bed, time: Timestamp) {
    let junk = bed.database.collection::<Document>("junk");
    let line = doc! { "text": "x".repeat(100_000) };
    let rolled = async || {
        junk.insert_one(&line).await.expect("insert");
        oldest(bed).await > time
    };
    until("the oplog has rolled over", LIMIT, rolled).await;
}

/// Both stores level, in a server with a small oplog.
async fn mirrored() -> (Bed, crate::faults::process::Bridge) {
    let bed = Bed::with_own_mongo(&SMALL).await;
    bed.database.collection("runs").insert_many([run("kept", 1), run("deleted", 1)]).await.expect("insert");
    backfill(&bed, &[]).await;
    let mirror = mirror(&bed);
    level(&bed).await;
    (bed, mirror)
}

/// Writes what no mirror will ever see, and rolls the oplog over it.
async fn miss(bed: &Bed) {
    let runs = bed.database.collection::<Document>("runs");
    runs.delete_one(doc! { "_id": "deleted" }).await.expect("delete");
    runs.update_one(doc! { "_id": "kept" }, doc! { "$set": { "number": 2_i64 } }).await.expect("update");
    runs.insert_one(run("inserted", 1)).await.expect("insert");
    let time = mark(bed).await.expect("a mark");
    roll_over(bed, time).await;
}

const WORDS: [&str; 2] = ["does not reach back", "bridge backfill --resync"];

async fn assert_remedied(bed: &Bed) {
    backfill(bed, &["--resync"]).await;
    let mirror = mirror(bed);
    bed.database.collection("runs").insert_one(run("after", 1)).await.expect("insert");
    level(bed).await;
    assert_eq!(super::ids(bed, "runs").await, ["after", "inserted", "kept"]);
    assert_clean(bed).await;
    stop(mirror).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_has_expired_ends_the_mirror_until_everything_is_copied_anew() {
    let (bed, ended) = mirrored().await;
    stop(ended).await;
    miss(&bed).await;
    for _ in 0..2 {
        mirror(&bed).ended().await.says(3, &WORDS);
    }
    assert_remedied(&bed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_the_oplog_overtakes_ends() {
    let (bed, mirror) = mirrored().await;
    mirror.signal(Signal::STOP);
    miss(&bed).await;
    mirror.signal(Signal::CONT);
    mirror.ended().await.says(3, &WORDS);
    assert_remedied(&bed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_has_expired_before_any_mirror_ran_ends_it() {
    let bed = Bed::with_own_mongo(&SMALL).await;
    bed.database.collection("runs").insert_many([run("kept", 1), run("deleted", 1)]).await.expect("insert");
    backfill(&bed, &[]).await;
    miss(&bed).await;
    mirror(&bed).ended().await.says(3, &WORDS);
    assert_remedied(&bed).await;
}
