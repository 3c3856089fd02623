//! A verifier that is killed: the same command goes on where it ended, and nothing is counted twice or left out.

use std::time::Duration;

use mongodb::bson::doc;
use rustix::process::Signal;
use scheduler_bridge::dataset;
use scheduler_bridge::phase::Phase;
use serde_json::Value;
use sqlx::AssertSqlSafe;

use super::{LIMIT, backfill};
use crate::bed::{Bed, until};
use crate::dual::switch::objects;
use crate::dual::turn;
use crate::faults::gate::{Gate, until_waits};
use crate::faults::process::Bridge;
use crate::mirror::memory::signal;

/// Many small shares, one after the other, and a lease that a dead process does not hold for long.
fn command(bed: &Bed, failpoints: &str) -> std::process::Command {
    let mut command = bed.bridge(&["--json", "verify", "--tolerance-seconds", "1", "--list", "5000"]);
    command.envs([("BRIDGE_WORKERS", "1"), ("BRIDGE_LEASE_SECONDS", "1"), ("BRIDGE_CHUNK_BYTES", "100000")]);
    command.env("FAILPOINTS", failpoints);
    command
}

/// A bed with some thousand documents in both stores, and one mismatch of each kind in every hundredth.
async fn damaged() -> Bed {
    let bed = Bed::new().await;
    dataset::load(&bed.database, 6_000, 3, |_| ()).await.expect("load");
    backfill(&bed).await;
    for statement in [
        "update scheduler.runs set created_at = created_at + interval '1 second' where hashtext(id) % 50 = 0",
        "delete from scheduler.audit where hashtext(id) % 50 = 0",
    ] {
        sqlx::query(statement).execute(bed.pool()).await.expect("damage");
    }
    bed.database.collection::<mongodb::bson::Document>("schedules").delete_one(doc! {}).await.expect("delete");
    bed
}

/// What is the same in every report of the same stores.
fn said(report: &Value) -> Value {
    let mut report = report.clone();
    for collection in report["collections"].as_array_mut().expect("a list") {
        collection.as_object_mut().expect("an object").remove("seconds");
    }
    for mismatch in report["mismatches"].as_array_mut().expect("a list") {
        mismatch.as_object_mut().expect("an object").remove("since");
    }
    let kept = ["verdict", "collections", "mismatches", "unlisted", "unsettled"];
    kept.iter().map(|name| report[name].clone()).collect()
}

async fn whole(bed: &Bed, failpoints: &str) -> Value {
    let (exit, objects, stderr) = objects(command(bed, failpoints)).await;
    assert_eq!(exit, Some(1), "{stderr}");
    objects.last().expect("a report").clone()
}

/// What its ledger says when all is compared and the queue is not looked at yet.
const COMPARED: &str = "done = shares and queued_until is null";

/// Where a verification is killed: the fail point, and what its ledger says when it stands there.
const POINTS: [(&str, &str); 5] = [
    ("verify::before-done=5*off->pause", "done = 5"),
    ("verify::before-done=30*off->pause", "done = 30"),
    ("verify::compared=pause", COMPARED),
    ("verify::after-round=pause", "done = shares and looked > 0"),
    ("verify::settled=pause", "done = shares and noted > 0 and noted = settled"),
];

/// Whether the ledger of the verification under way says so.
async fn stands(bed: &Bed, so: &str) -> bool {
    let look = format!(
        "select {so} from bridge.verification v,
            lateral (select count(*) as shares, count(finished_at) as done
                from bridge.verification_share where verification = v.id) share,
            lateral (select count(*) as noted, count(print) as looked, count(settled) as settled
                from bridge.suspect where verification = v.id) suspect
        where v.finished_at is null"
    );
    let found: Option<bool> = sqlx::query_scalar(AssertSqlSafe(look)).fetch_optional(bed.pool()).await.expect("look");
    found == Some(true)
}

/// Waits until all is compared.
async fn compared(bed: &Bed) {
    until("all is compared", LIMIT, async || stands(bed, COMPARED).await).await;
}

/// A verification that stands still when all is compared.
async fn stopped(bed: &Bed) -> Bridge {
    let process = Bridge::start(command(bed, "verify::compared=sleep(1000)"));
    compared(bed).await;
    process.signal(Signal::STOP);
    process
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_killed_anywhere_is_gone_on_with_and_counts_everything_once() {
    let bed = damaged().await;
    let undisturbed = whole(&bed, "").await;
    assert_eq!(undisturbed["verdict"], "mismatch");
    let number = undisturbed["number"].as_i64().expect("a number");
    for (point, so) in POINTS {
        let process = Bridge::start(command(&bed, point));
        until(point, LIMIT, async || stands(&bed, so).await).await;
        assert!(process.kill().await, "it was to be killed while it worked");
        let report = whole(&bed, "").await;
        assert_eq!(said(&report), said(&undisturbed), "{point}");
    }
    // Each was one verification, not two.
    let last: i64 =
        sqlx::query_scalar("select max(id) from bridge.verification").fetch_one(bed.pool()).await.expect("look");
    assert_eq!(last, number + 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_nobody_was_at_for_an_hour_is_begun_anew() {
    let bed = damaged().await;
    for (interrupted, is_gone_on_with) in [("59 minutes", true), ("61 minutes", false)] {
        let process = Bridge::start(command(&bed, "verify::compared=pause"));
        compared(&bed).await;
        assert!(process.kill().await, "it was to be killed while it worked");
        let interrupt = format!(
            "update bridge.verification set leased_until = clock_timestamp() - interval '{interrupted}'
            where finished_at is null returning id"
        );
        let number: i64 = sqlx::query_scalar(AssertSqlSafe(interrupt)).fetch_one(bed.pool()).await.expect("interrupt");
        let report = whole(&bed, "").await;
        assert_eq!(report["number"] == number, is_gone_on_with, "{interrupted}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_stood_still_finds_its_work_taken_over_and_changes_nothing_of_it() {
    let bed = damaged().await;
    let late = stopped(&bed).await;
    let report = whole(&bed, "").await;
    late.signal(Signal::CONT);
    late.ended().await.says(5, &["taken the verification over"]);
    let kept: Vec<Value> =
        sqlx::query_scalar("select report from bridge.verification").fetch_all(bed.pool()).await.expect("look");
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0]["finished_at"], report["finished_at"]);
}

/// Verifications that end while their leases are renewed: which of the two is heard of first is chance.
const ENDS: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn one_whose_lease_is_renewed_while_it_ends_is_not_taken_over() {
    for _ in 0..ENDS {
        let bed = Bed::new().await;
        bed.database.collection("runs").insert_one(doc! { "_id": "only here", "tenantId": "a" }).await.expect("insert");
        let gate = Gate::shut(&bed, "before update of digest on bridge.verification for each row").await;
        let ending = Bridge::start(command(&bed, ""));
        until_waits(&bed, "query like 'update bridge.verification set digest%'").await;
        until_waits(&bed, "query like 'update bridge.verification set leased_until%'").await;
        gate.open().await;
        ending.ended().await.says(1, &[]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_the_primary_meanwhile_leaves_no_verdict() {
    let bed = damaged().await;
    let turned = stopped(&bed).await;
    turn(&bed, Phase::PostgresPrimary, 3).await;
    turned.signal(Signal::CONT);
    turned.ended().await.says(6, &["the primary has changed"]);
}

/// Longer than the deadline of those who hold a lease behind a fence.
const STILL: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_stands_still_for_a_while_is_waited_for() {
    let mut bed = Bed::with_own_servers().await;
    bed.database.collection("runs").insert_one(doc! { "_id": "only here", "tenantId": "a" }).await.expect("insert");
    let mongod = bed.servers().mongo.pid();
    // Time to stop the server between generation 0 and the next look at the fences.
    let verifying = tokio::spawn(objects(command(&bed, "verify::compared=sleep(3000)")));
    compared(&bed).await;
    signal(mongod, Signal::STOP);
    tokio::time::sleep(STILL).await;
    signal(mongod, Signal::CONT);
    let (exit, objects, stderr) = verifying.await.expect("a task");
    assert_eq!(exit, Some(1), "{stderr}");
    assert_eq!(objects.last().expect("a report")["mismatches"][0]["id"], "only here");
}
