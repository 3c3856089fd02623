//! A table that somebody truncated in PostgreSQL: no event of MongoDB brings its rows back.

use mongodb::bson::Document;
use sqlx::Executor;

use super::{assert_clean, backfill, level, mirror, run, stop};
use crate::bed::Bed;

const WORDS: [&str; 2] = ["truncated", "bridge backfill --resync runs"];

async fn filled() -> Bed {
    let bed = Bed::new().await;
    scheduler_bridge::dataset::load(&bed.database, 300, 5, |_| ()).await.expect("load documents");
    backfill(&bed, &[]).await;
    bed
}

async fn assert_remedied(bed: &Bed) {
    mirror(bed).ended().await.says(4, &WORDS);
    backfill(bed, &["--resync", "runs"]).await;
    let mirror = mirror(bed);
    bed.database.collection("runs").insert_one(run("after", 1)).await.expect("insert");
    level(bed).await;
    assert_clean(bed).await;
    stop(mirror).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_truncated_under_a_mirror_ends_it_until_it_is_copied_anew() {
    let bed = filled().await;
    let mirror = mirror(&bed);
    level(&bed).await;
    bed.pool().execute("truncate scheduler.runs").await.expect("truncate");
    let runs = bed.database.collection::<Document>("runs");
    runs.insert_one(run("before", 1)).await.expect("insert");
    mirror.ended().await.says(4, &WORDS);
    assert_remedied(&bed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_truncated_while_no_mirror_ran_is_noticed_by_the_next_one() {
    let bed = filled().await;
    bed.pool().execute("truncate scheduler.runs").await.expect("truncate");
    assert_remedied(&bed).await;
}
