//! Transactions in MongoDB: many documents with one stamp, and one document several times with one stamp; with and
//! without the documents after their updates.

use mongodb::ClientSession;
use mongodb::bson::{Document, doc};
use mongodb::{Collection, Database};

use super::{assert_clean, begun, ids, level, mirror, run, stop};
use crate::bed::Bed;

/// Whether `runs` keeps the documents after their updates.
#[derive(Debug, Clone, Copy)]
enum Images {
    Kept,
    NotKept,
}

async fn create_runs(database: &Database, images: Images) -> Collection<Document> {
    let mut command = doc! { "create": "runs" };
    if let Images::Kept = images {
        command.insert("changeStreamPreAndPostImages", doc! { "enabled": true });
    }
    database.run_command(command).await.expect("create");
    database.collection("runs")
}

async fn transaction(bed: &Bed) -> ClientSession {
    let mut session = bed.mongo.start_session().await.expect("a session");
    session.start_transaction().await.expect("begin");
    session
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_of_a_thousand_documents_comes_through() {
    let bed = Bed::new().await;
    let runs = create_runs(&bed.database, Images::NotKept).await;
    let mirror = mirror(&bed);
    begun(&bed).await;
    let mut session = transaction(&bed).await;
    let inserted = (0..1_000).map(|number| run(&format!("run-{number:04}"), number));
    runs.insert_many(inserted).session(&mut session).await.expect("insert");
    session.commit_transaction().await.expect("commit");
    level(&bed).await;
    assert_eq!(ids(&bed, "runs").await.len(), 1_000);
    let mut session = transaction(&bed).await;
    let odd = doc! { "number": { "$mod": [2, 1] } };
    runs.delete_many(odd).session(&mut session).await.expect("delete");
    runs.update_many(doc! {}, doc! { "$inc": { "number": 1_i64 } }).session(&mut session).await.expect("update");
    session.commit_transaction().await.expect("commit");
    level(&bed).await;
    let clocks = "select count(distinct clock) from scheduler.runs";
    let clocks: i64 = sqlx::query_scalar(clocks).fetch_one(bed.pool()).await.expect("count");
    assert_eq!((ids(&bed, "runs").await.len(), clocks), (500, 1));
    assert_clean(&bed).await;
    stop(mirror).await;
}

/// Each does three things, or two, to one key in one transaction; a name for each.
async fn write_often(runs: &Collection<Document>, bed: &Bed) {
    let by = |id: &str| doc! { "_id": id };
    let set = |number: i64| doc! { "$set": { "number": number } };
    let mut session = transaction(bed).await;
    runs.insert_one(run("passing", 1)).session(&mut session).await.expect("insert");
    runs.update_one(by("passing"), set(2)).session(&mut session).await.expect("update");
    runs.delete_one(by("passing")).session(&mut session).await.expect("delete");
    session.commit_transaction().await.expect("commit");

    let mut session = transaction(bed).await;
    runs.delete_one(by("created-again")).session(&mut session).await.expect("delete");
    runs.insert_one(run("created-again", 2)).session(&mut session).await.expect("insert");
    session.commit_transaction().await.expect("commit");

    let mut session = transaction(bed).await;
    for number in [2, 3, 4] {
        runs.update_one(by("updated"), set(number)).session(&mut session).await.expect("update");
    }
    session.commit_transaction().await.expect("commit");

    let mut session = transaction(bed).await;
    runs.update_one(by("gone"), set(2)).session(&mut session).await.expect("update");
    runs.delete_one(by("gone")).session(&mut session).await.expect("delete");
    runs.insert_one(run("gone", 3)).session(&mut session).await.expect("insert");
    runs.delete_one(by("gone")).session(&mut session).await.expect("delete");
    session.commit_transaction().await.expect("commit");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_writes_of_one_transaction_to_one_document_the_last_one_stands() {
    for images in [Images::Kept, Images::NotKept] {
        println!("{images:?}");
        let bed = Bed::new().await;
        let runs = create_runs(&bed.database, images).await;
        runs.insert_many(["created-again", "updated", "gone"].map(|id| run(id, 1))).await.expect("insert");
        super::backfill(&bed, &[]).await;
        // One after the other as they happen, then all at once from the start of the stream.
        let live = mirror(&bed);
        level(&bed).await;
        write_often(&runs, &bed).await;
        level(&bed).await;
        assert_eq!(ids(&bed, "runs").await, ["created-again", "updated"]);
        assert_clean(&bed).await;
        stop(live).await;
        runs.insert_one(run("gone", 1)).await.expect("insert");
        write_often(&runs, &bed).await;
        let late = mirror(&bed);
        level(&bed).await;
        assert_eq!(ids(&bed, "runs").await, ["created-again", "updated"]);
        assert_clean(&bed).await;
        stop(late).await;
    }
}

/// How often MongoDB has looked for runs by their keys.
async fn look_ups(bed: &Bed) -> u64 {
    let looks = doc! { "command.find": "runs" };
    bed.database.collection::<Document>("system.profile").count_documents(looks).await.expect("count")
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_that_the_collection_keeps_are_not_looked_up() {
    for images in [Images::Kept, Images::NotKept] {
        let bed = Bed::new().await;
        let runs = create_runs(&bed.database, images).await;
        runs.insert_many((0..100).map(|number| run(&format!("run-{number:02}"), number))).await.expect("insert");
        bed.database.run_command(doc! { "profile": 2 }).await.expect("profile");
        let mirror = mirror(&bed);
        level(&bed).await;
        let before = look_ups(&bed).await;
        runs.update_many(doc! {}, doc! { "$inc": { "number": 1_i64 } }).await.expect("update");
        level(&bed).await;
        let looked_up = look_ups(&bed).await > before;
        assert_eq!(looked_up, matches!(images, Images::NotKept), "{images:?}");
        assert_clean(&bed).await;
        stop(mirror).await;
    }
}
