//! What the gate of `postgres-primary` asks of a verification: each reason to refuse, and that it passes when all is well.

use mongodb::bson::{Document, doc};
use scheduler_bridge::dataset;
use scheduler_bridge::phase::Phase;
use sqlx::{AssertSqlSafe, Executor};

use super::gate::condition;
use super::switch::{followed, objects};
use super::turn;
use crate::bed::{Bed, until};
use crate::faults::process::Bridge;
use crate::verify::LIMIT;

const VERIFIED: &str = "the newest verification is full, fresh and clean";

/// Both stores level in phase `mongo-primary`, and the mirror that keeps them so.
async fn level() -> (Bed, Bridge) {
    let bed = Bed::new().await;
    dataset::load(&bed.database, 300, 5, |_| ()).await.expect("load");
    turn(&bed, Phase::MongoPrimary, 1).await;
    let mirror = followed(&bed).await;
    (bed, mirror)
}

/// `bridge verify` with these arguments, to its end.
async fn verified(bed: &Bed, arguments: &[&str], exit: i32) {
    let arguments = [&["--json", "verify", "--tolerance-seconds", "1"], arguments].concat();
    let (found, _, stderr) = objects(bed.bridge(&arguments)).await;
    assert_eq!(found, Some(exit), "{stderr}");
}

/// Whether a condition is met, and what was found.
async fn looked(bed: &Bed, name: &str, arguments: &[&str]) -> (bool, String) {
    let condition = condition(bed, name, arguments).await;
    for field in ["limit", "at"] {
        assert!(condition[field].as_str().is_some_and(|text| !text.is_empty()), "{condition}");
    }
    (condition["met"].as_bool().expect("met"), condition["found"].as_str().expect("found").to_owned())
}

#[track_caller]
fn assert_refused((met, found): (bool, String), reason: &str) {
    assert!(!met && found.contains(reason), "{met} {found}, not {reason}");
}

async fn execute(bed: &Bed, statement: &str) {
    bed.pool().execute(AssertSqlSafe(statement.to_owned())).await.expect(statement);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verification_that_proves_nothing_is_refused_each_with_its_reason() {
    let (bed, _mirror) = level().await;
    assert_refused(looked(&bed, VERIFIED, &[]).await, "there is none");
    verified(&bed, &["--collection", "runs"], 0).await;
    assert_refused(looked(&bed, VERIFIED, &[]).await, "partial: 1 of 11 collections");
    verified(&bed, &["--sample", "0.5"], 0).await;
    assert_refused(looked(&bed, VERIFIED, &[]).await, "partial: a sample of 0.5");

    verified(&bed, &[], 0).await;
    let (met, found) = looked(&bed, VERIFIED, &[]).await;
    assert!(met && found.contains("clean"), "{found}");
    assert_refused(looked(&bed, VERIFIED, &["--fresh-seconds", "0"]).await, "stale");

    // A collection is copied anew: nobody has looked at it since.
    let (exit, _, stderr) = objects(bed.bridge(&["--json", "backfill", "runs"])).await;
    assert_eq!(exit, Some(0), "{stderr}");
    assert_refused(looked(&bed, VERIFIED, &[]).await, "begun before the backfill's end");
    verified(&bed, &[], 0).await;
    assert!(looked(&bed, VERIFIED, &[]).await.0);

    // One that began after it and found less is not passed over.
    verified(&bed, &["--collection", "runs"], 0).await;
    assert_refused(looked(&bed, VERIFIED, &[]).await, "partial");

    execute(&bed, "update scheduler.runs set error = 'damaged' where id = (select min(id) from scheduler.runs)").await;
    verified(&bed, &[], 1).await;
    assert_refused(looked(&bed, VERIFIED, &[]).await, "its verdict is mismatch");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_was_changed_by_hand_is_found_out() {
    let (bed, _mirror) = level().await;
    execute(&bed, "update scheduler.runs set error = 'damaged' where id = (select min(id) from scheduler.runs)").await;
    verified(&bed, &[], 1).await;
    let newest = "where id = (select max(id) from bridge.verification)";
    for change in [
        format!("update bridge.verification set report = jsonb_set(report, '{{verdict}}', '\"clean\"') {newest}"),
        "delete from bridge.suspect".to_owned(),
    ] {
        execute(&bed, &change).await;
        assert_refused(looked(&bed, VERIFIED, &[]).await, "tampered");
    }
    execute(&bed, "update scheduler.runs set error = null where error = 'damaged'").await;
    for change in [
        format!("update bridge.verification set epoch = epoch + 1 {newest}"),
        format!("update bridge.verification set finished_at = finished_at + interval '1 second' {newest}"),
        format!("update bridge.verification set collections = collections[2:] {newest}"),
        format!("update bridge.verification set digest = null {newest}"),
        "update bridge.verification_share set documents = documents + 1 where ordinal = 1".to_owned(),
        "delete from bridge.verification_share where ordinal = 1".to_owned(),
    ] {
        verified(&bed, &[], 0).await;
        assert!(looked(&bed, VERIFIED, &[]).await.0);
        execute(&bed, &change).await;
        assert_refused(looked(&bed, VERIFIED, &[]).await, "tampered");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verification_of_empty_stores_or_of_another_epoch_is_refused() {
    let bed = Bed::new().await;
    bed.database.create_collection("runs").await.expect("create");
    turn(&bed, Phase::MongoPrimary, 1).await;
    let _mirror = followed(&bed).await;
    verified(&bed, &[], 6).await;
    assert_refused(looked(&bed, VERIFIED, &[]).await, "empty");

    dataset::load(&bed.database, 100, 5, |_| ()).await.expect("load");
    verified(&bed, &[], 0).await;
    assert!(looked(&bed, VERIFIED, &[]).await.0);
    let fence = bed.database.collection::<Document>(scheduler_bridge::fence::mongo::COLLECTION);
    let changed = fence.update_one(doc! { "epoch": 1 }, doc! { "$set": { "epoch": 2 } }).await.expect("change");
    assert_eq!(changed.modified_count, 1);
    assert_refused(looked(&bed, VERIFIED, &[]).await, "another epoch");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_is_gone_a_quarantine_and_a_stray_write_are_refused_and_all_that_is_well_is_met() {
    let (bed, mirror) = level().await;
    let conditions =
        ["backfill is complete", "the mirror is level", "no quarantined document", "no stray write", "few keys"];
    // The generated documents have none that is refused.
    execute(&bed, "delete from bridge.quarantine").await;
    for name in conditions {
        let (met, found) = looked(&bed, name, &[]).await;
        assert!(met, "{name}: {found}");
    }
    bed.database.collection("runs").insert_one(doc! { "_id": "no tenant" }).await.expect("insert");
    until("it is quarantined", LIMIT, async || !looked(&bed, "no quarantined document", &[]).await.0).await;
    execute(&bed, "update bridge.quarantine set accepted_at = now()").await;
    assert!(looked(&bed, "no quarantined document", &[]).await.0);

    execute(&bed, "insert into bridge.stray (collection, id, epoch, clock) values ('runs', 'x', 1, 1)").await;
    assert_refused(looked(&bed, "no stray write", &[]).await, "1 stray writes");
    execute(&bed, "update bridge.stray set accepted_at = now()").await;
    assert!(looked(&bed, "no stray write", &[]).await.0);

    assert!(mirror.kill().await, "it was to be killed while it worked");
    until("its lease is over", LIMIT, async || !looked(&bed, "the mirror is level", &[]).await.0).await;
    assert_refused(looked(&bed, "the mirror is level", &[]).await, "no mirror is running");
}

const READS: &str = "the newest comparison of reads is whole, fresh and clean";

#[tokio::test(flavor = "multi_thread")]
async fn reads_must_be_compared_for_all_tenants_and_differ_only_where_that_is_accepted() {
    let (bed, _mirror) = level().await;
    assert_refused(looked(&bed, READS, &[]).await, "there is none");
    let reads = async |arguments: &[&str]| {
        let arguments = [&["--json", "verify", "--reads"], arguments].concat();
        let (exit, _, stderr) = objects(bed.bridge(&arguments)).await;
        assert!(matches!(exit, Some(0 | 1)), "{exit:?} {stderr}");
    };
    reads(&["--tenants", "1"]).await;
    assert_refused(looked(&bed, READS, &[]).await, "partial: a sample of the tenants");

    // A row that one of the queries does not find.
    execute(&bed, "delete from scheduler.runs where id = (select min(id) from scheduler.runs)").await;
    reads(&[]).await;
    let (met, found) = looked(&bed, READS, &[]).await;
    let names = found.split_once("reads differ in ").expect(&found).1.split(", ").collect::<Vec<_>>();
    assert!(!met && names.contains(&"runs"), "{found}");
    let accepted: Vec<&str> = names.iter().flat_map(|name| ["--accept-reads", *name]).collect();
    let (met, found) = looked(&bed, READS, &accepted).await;
    assert!(met && found.contains("accepted: "), "{found}");
    assert_refused(looked(&bed, READS, &[&accepted[..], &["--fresh-seconds", "0"]].concat()).await, "stale");

    let fence = bed.database.collection::<Document>(scheduler_bridge::fence::mongo::COLLECTION);
    for (from, to) in [(1, 2), (2, 1)] {
        let changed = fence.update_one(doc! { "epoch": from }, doc! { "$set": { "epoch": to } }).await.expect("change");
        assert_eq!(changed.modified_count, 1);
        if to == 2 {
            assert_refused(looked(&bed, READS, &accepted).await, "another epoch");
        }
    }
    execute(&bed, "update bridge.read_parity set report = jsonb_set(report, '{verdict}', '\"clean\"')").await;
    assert_refused(looked(&bed, READS, &accepted).await, "tampered");
}

/// Every source file that holds `words`.
fn files_with(words: &str) -> Vec<String> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut folders, mut found) = (vec![root.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if std::fs::read_to_string(&path).expect("a text").contains(words) {
                found.push(path.strip_prefix(&root).expect("below it").display().to_string());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn no_code_changes_a_fence_but_the_fences_own_and_none_opens_one_without_a_warrant() {
    assert_eq!(files_with("update bridge.fence"), ["fence/postgres.rs"]);
    assert_eq!(files_with("\"open\": new.open"), ["fence/mongo.rs"]);
    // A warrant is made by the gate alone, and asked for by the switch alone.
    assert_eq!(files_with("Warrant {"), ["switch/gate.rs"]);
    assert_eq!(files_with("Warrant::back("), ["switch/mod.rs"]);
    assert_eq!(files_with(".warrant("), ["switch/mod.rs"]);
    // Whoever opens a fence shows one.
    for file in ["fence/mongo.rs", "fence/postgres.rs"] {
        let text = std::fs::read_to_string(format!("{}/src/{file}", env!("CARGO_MANIFEST_DIR"))).expect("a text");
        assert!(text.contains("pub async fn open(&self, expected: Fence, warrant: Warrant)"), "{file}");
        assert!(text.contains("    async fn change(") && !text.contains("pub async fn change("), "{file}");
    }
}
