//! What no event tells: the mirror stops, names the remedy, does not go on without it, and goes on after it.

use mongodb::bson::{Document, doc};

use super::{assert_clean, backfill, level, mirror, run, stop};
use crate::bed::Bed;

/// Both stores level, and a mirror that keeps them so.
async fn mirrored() -> (Bed, crate::faults::process::Bridge) {
    let bed = Bed::new().await;
    scheduler_bridge::dataset::load(&bed.database, 300, 5, |_| ()).await.expect("load documents");
    backfill(&bed, &[]).await;
    let mirror = mirror(&bed);
    level(&bed).await;
    (bed, mirror)
}

/// The mirror ends, and so does the next one; after `bridge backfill --resync` of `collections` another one goes on.
async fn assert_remedied(bed: &Bed, ended: crate::faults::process::Bridge, words: &[&str], collections: &[&str]) {
    let remedy = ["bridge backfill --resync", collections.join(" ").as_str()].join(" ");
    let words = [words, &[remedy.trim_end()]].concat();
    ended.ended().await.says(3, &words);
    mirror(bed).ended().await.says(3, &words);
    bed.database.collection("runs").insert_one(run("after", 1)).await.expect("insert");
    backfill(bed, &[&["--resync"], collections].concat()).await;
    let mirror = mirror(bed);
    let after = doc! { "$set": { "number": 2_i64 } };
    let runs = bed.database.collection::<Document>("runs");
    runs.update_one(doc! { "_id": "after" }, after).await.expect("update");
    level(bed).await;
    assert_clean(bed).await;
    stop(mirror).await;
}

async fn rename(bed: &Bed, from: &str, to: &str) {
    let name = bed.database.name();
    let command =
        doc! { "renameCollection": format!("{name}.{from}"), "to": format!("{name}.{to}"), "dropTarget": true };
    bed.mongo.database("admin").run_command(command).await.expect("rename");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_collection_ends_the_mirror() {
    let (bed, mirror) = mirrored().await;
    bed.database.collection::<Document>("runs").drop().await.expect("drop");
    assert_remedied(&bed, mirror, &["runs", "dropped"], &["runs"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_is_renamed_away_ends_the_mirror() {
    let (bed, mirror) = mirrored().await;
    rename(&bed, "runs", "runs_of_last_year").await;
    assert_remedied(&bed, mirror, &["runs", "renamed to runs_of_last_year"], &["runs"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_that_another_one_takes_the_name_of_ends_the_mirror() {
    let (bed, mirror) = mirrored().await;
    bed.database.collection("restored").insert_one(run("restored", 1)).await.expect("insert");
    rename(&bed, "restored", "runs").await;
    assert_remedied(&bed, mirror, &["restored was renamed to runs"], &["runs"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collection_renamed_to_another_of_ours_ends_the_mirror_and_both_are_copied_anew() {
    let (bed, mirror) = mirrored().await;
    rename(&bed, "graph_jobs", "runs").await;
    assert_remedied(&bed, mirror, &["graph_jobs was renamed to runs"], &["graph_jobs", "runs"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_database_ends_the_mirror() {
    let (bed, ended) = mirrored().await;
    bed.database.drop().await.expect("drop");
    // The server says so of one collection after the other, and of the database last.
    ended.ended().await.says(3, &["dropped", "bridge backfill --resync"]);
    mirror(&bed).ended().await.says(3, &["dropped", "bridge backfill --resync"]);
    bed.database.collection("runs").insert_one(run("after", 1)).await.expect("insert");
    backfill(&bed, &["--resync"]).await;
    let mirror = mirror(&bed);
    level(&bed).await;
    assert_clean(&bed).await;
    stop(mirror).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn collections_that_are_not_the_schedulers_may_be_dropped_and_renamed() {
    let (bed, mirror) = mirrored().await;
    bed.database.collection("others").insert_one(run("one", 1)).await.expect("insert");
    rename(&bed, "others", "elsewhere").await;
    bed.database.collection::<Document>("elsewhere").drop().await.expect("drop");
    bed.database.collection("runs").insert_one(run("after", 1)).await.expect("insert");
    level(&bed).await;
    assert_clean(&bed).await;
    stop(mirror).await;
}
