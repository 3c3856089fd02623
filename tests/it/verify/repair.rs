//! `bridge verify --repair`: what differs is brought level from the primary, and nothing is deleted unasked.

use mongodb::bson::{Document, doc};
use scheduler_bridge::entity::ENTITIES;
use scheduler_bridge::phase::Phase;
use serde_json::Value;
use sqlx::Executor;

use super::columns::{Shape, insert, victim};
use crate::bed::Bed;
use crate::dual::switch::{followed, objects, turned};

/// Runs `bridge verify` with these arguments; its exit code and the objects it prints.
async fn verify(bed: &Bed, arguments: &[&str]) -> (Option<i32>, Vec<Value>, String) {
    objects(bed.bridge(&[&["--json", "verify", "--tolerance-seconds", "1"], arguments].concat())).await
}

async fn filled(bed: &Bed) {
    let runs = ENTITIES.iter().find(|entity| entity.name == "runs").expect("runs");
    insert(bed, runs, &(0..6).map(|number| victim(runs, number, Shape::Beside)).collect::<Vec<_>>()).await;
}

async fn rows(bed: &Bed) -> Vec<String> {
    let rows = "select id from scheduler.runs order by id";
    sqlx::query_scalar(rows).fetch_all(bed.pool()).await.expect("rows")
}

async fn documents(bed: &Bed) -> Vec<String> {
    let found = bed.database.collection::<Document>("runs").distinct("_id", doc! {}).await.expect("ids");
    let mut ids: Vec<_> = found.iter().map(|id| id.as_str().expect("a text").to_owned()).collect();
    ids.sort();
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_is_brought_level_and_keeps_what_only_it_has_until_told_otherwise() {
    let bed = Bed::new().await;
    filled(&bed).await;
    let _mirror = followed(&bed).await;
    for statement in [
        "update scheduler.runs set error = 'changed' where id = 'victim-00000'",
        "update scheduler.runs set residue = null where id = 'victim-00001'",
        "delete from scheduler.runs where id = 'victim-00002'",
        "insert into scheduler.runs (id, tenant_id, state, epoch, clock) values ('x', 't', 'queued', 1, 1)",
    ] {
        bed.pool().execute(statement).await.expect("damage");
    }
    // Nobody is at a terminal, and --yes was not given.
    let (exit, found, stderr) = verify(&bed, &["--repair"]).await;
    assert!(exit == Some(5) && stderr.contains("not confirmed"), "{exit:?} {stderr}");
    assert_eq!(found[0]["mismatches"].as_array().map(Vec::len), Some(4));
    assert_eq!(rows(&bed).await.len(), 6);

    let (exit, found, stderr) = verify(&bed, &["--repair", "--yes"]).await;
    assert_eq!(exit, Some(1), "{stderr}");
    let repaired = &found.last().expect("an object")["repaired"];
    assert_eq!((&repaired["level"], &repaired["left"], &repaired["still"]), (&3.into(), &1.into(), &0.into()));
    assert!(rows(&bed).await.contains(&"x".to_owned()));

    let (exit, found, stderr) = verify(&bed, &["--repair", "--yes", "--delete-extra"]).await;
    assert_eq!(exit, Some(0), "{stderr}");
    assert_eq!(found.last().expect("an object")["repaired"]["level"], 1);
    assert!(!rows(&bed).await.contains(&"x".to_owned()));
    assert_eq!(verify(&bed, &[]).await.0, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn mongodb_is_brought_level_when_it_follows() {
    let bed = Bed::new().await;
    filled(&bed).await;
    let mirror = followed(&bed).await;
    for phase in ["mongo-primary", "postgres-primary"] {
        turned(&bed, phase).await;
    }
    // Without a mirror nobody sees these for stray writes, and nobody undoes them.
    assert!(mirror.kill().await, "it was to be killed while it worked");
    let runs = bed.database.collection::<Document>("runs");
    runs.update_one(doc! { "_id": "victim-00000" }, doc! { "$set": { "error": "changed" } }).await.expect("damage");
    runs.delete_one(doc! { "_id": "victim-00001" }).await.expect("damage");
    runs.insert_one(doc! { "_id": "x", "tenantId": "t", "state": "queued" }).await.expect("damage");
    // The mirror that comes goes on where that one ended: it must not see them either.
    bed.pool().execute("delete from bridge.stream").await.expect("forget");
    bed.pool().execute("delete from bridge.stray").await.expect("forget");
    let (exit, found, stderr) = verify(&bed, &["--diffs", "0"]).await;
    assert_eq!(exit, Some(1), "{stderr}");
    let kinds: Vec<_> = found.last().expect("a report")["mismatches"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| format!("{} {}", one["id"].as_str().expect("an id"), one["kind"].as_str().expect("a kind")))
        .collect();
    assert_eq!(kinds, ["victim-00000 content", "victim-00001 missing", "x extra"]);
    let _mirror = crate::faults::process::Bridge::start(bed.bridge(&["--json", "mirror"]));
    let (exit, found, stderr) = verify(&bed, &["--repair", "--yes"]).await;
    assert_eq!(exit, Some(1), "{stderr}");
    assert_eq!(found.last().expect("an object")["repaired"]["left"], 1, "{found:#?}");
    assert!(documents(&bed).await.contains(&"x".to_owned()));
    let (exit, found, stderr) = verify(&bed, &["--repair", "--yes", "--delete-extra"]).await;
    assert_eq!(exit, Some(0), "{found:#?} {stderr}");
    assert_eq!(documents(&bed).await, rows(&bed).await);
    assert_eq!(Phase::PostgresPrimary.name(), found[0]["phase"].as_str().expect("a phase"));
}
