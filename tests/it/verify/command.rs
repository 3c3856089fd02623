//! `bridge verify` as scripts and people meet it: exit codes, the JSON object, the text.

use std::process::Output;

use mongodb::bson::doc;
use scheduler_bridge::entity::ENTITIES;
use serde_json::{Value, json};
use sqlx::Executor;

use super::backfill;
use super::columns::{Shape, insert, victim};
use crate::bed::Bed;

/// Runs `bridge` with these arguments to its end.
async fn run(bed: &Bed, arguments: &[&str]) -> Output {
    let mut command = bed.bridge(arguments);
    tokio::task::spawn_blocking(move || command.output()).await.expect("a thread").expect("run bridge")
}

/// The last line of `bridge verify --json`.
async fn object(bed: &Bed, exit: i32) -> Value {
    let output = run(bed, &["verify", "--json"]).await;
    assert_eq!(output.status.code(), Some(exit), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    serde_json::from_str(text.lines().last().expect("a line")).expect("JSON")
}

/// A bed with three runs in both stores.
async fn filled() -> Bed {
    let bed = Bed::new().await;
    let runs = ENTITIES.iter().find(|entity| entity.name == "runs").expect("runs");
    insert(&bed, runs, &(0..3).map(|number| victim(runs, number, Shape::Regular)).collect::<Vec<_>>()).await;
    backfill(&bed).await;
    bed
}

/// One of each kind.
async fn damage(bed: &Bed) {
    for statement in [
        "update scheduler.runs set error = 'changed' where id = 'victim-00000'",
        "delete from scheduler.runs where id = 'victim-00001'",
        "insert into scheduler.runs (id, tenant_id, state, epoch, clock) values ('x', 't', 'queued', 1, 1)",
    ] {
        bed.pool().execute(statement).await.expect("damage");
    }
}

/// The counts of the runs: documents, rows, quarantined, missing, extra, content.
fn runs(object: &Value) -> Vec<u64> {
    let runs = &object["collections"][2];
    assert_eq!(runs["name"], "runs");
    let names = ["documents", "rows", "quarantined", "missing", "extra", "content"];
    names.iter().map(|name| runs[name].as_u64().expect("a count")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_stores_exit_0_and_the_object_names_every_collection() {
    let bed = filled().await;
    let object = object(&bed, 0).await;
    assert_eq!((&object["verdict"], &object["mismatches"]), (&json!("clean"), &json!([])));
    let names: Vec<_> =
        object["collections"].as_array().expect("a list").iter().map(|one| one["name"].clone()).collect();
    assert_eq!(names, ENTITIES.iter().map(|entity| json!(entity.name)).collect::<Vec<_>>());
    assert_eq!(runs(&object), [3, 3, 0, 0, 0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_exits_1_and_the_object_lists_each_key_with_kind_and_time() {
    let bed = filled().await;
    damage(&bed).await;
    let object = object(&bed, 1).await;
    assert_eq!(object["verdict"], "mismatch");
    assert_eq!(runs(&object), [3, 3, 0, 1, 1, 1]);
    let mut found = Vec::new();
    for one in object["mismatches"].as_array().expect("a list") {
        let fields: Vec<_> = one.as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(fields, ["collection", "id", "kind", "since", "diff"]);
        let since = one["since"].as_str().expect("a text");
        assert!(chrono::DateTime::parse_from_rfc3339(since).is_ok(), "{since}");
        found.push(format!("{} {} {}", one["collection"], one["id"], one["kind"]).replace('"', ""));
    }
    found.sort();
    assert_eq!(found, ["runs victim-00000 content", "runs victim-00001 missing", "runs x extra"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_compared_exits_6() {
    let bed = Bed::new().await;
    bed.database.create_collection("runs").await.expect("create");
    let object = object(&bed, 6).await;
    assert_eq!(object["verdict"], "inconclusive");
    // One document alone is something, and so is one row.
    bed.database.collection("locks").insert_one(doc! { "_id": "one" }).await.expect("insert");
    assert_eq!(self::object(&bed, 1).await["verdict"], "mismatch");
}

#[tokio::test(flavor = "multi_thread")]
async fn people_get_a_table_and_a_diff_of_each_kind() {
    let bed = filled().await;
    damage(&bed).await;
    let output = run(&bed, &["verify"]).await;
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let filters = [
        (r"(begun|ended|longest query|versions) .*", "$1 [differs]"),
        (r"(for|, in) \d+\.\d s", "$1 [time]"),
        (r" +\n", "\n"),
    ];
    insta::with_settings!({ filters => filters }, {
        insta::assert_snapshot!("verify", text);
    });
}
