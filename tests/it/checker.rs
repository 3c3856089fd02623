//! The independent checker, `tests/checker/`: another language, plain drivers, and no code of the mapping. It must
//! find what `bridge verify` finds, no more and no less.

mod damage;
pub mod python;

use std::collections::BTreeSet;
use std::process::{Command, Output};

use mongodb::bson::Bson;
use scheduler_bridge::dataset::{self, fixtures};
use scheduler_bridge::entity::ENTITIES;
use serde_json::Value;

use crate::bed::Bed;

/// Generated documents: enough for every collection to have regular rows to damage.
const DOCUMENTS: u64 = 8_000;

/// What somebody found, or what was planted: collection, `_id` as compact canonical extended JSON, kind.
type Finding = (String, String, String);

/// What a checker says of both stores.
#[derive(Debug, PartialEq, Eq)]
struct Opinion {
    verdict: String,
    findings: BTreeSet<Finding>,
    /// Collection, documents, rows, quarantined.
    counts: Vec<(String, u64, u64, u64)>,
}

#[tokio::test(flavor = "multi_thread")]
async fn the_checker_and_verify_agree_on_a_clean_copy() {
    let bed = Bed::new().await;
    let (rows, quarantined) = fill(&bed).await;
    backfill(&bed);
    let (checker, verify) = opinions(&bed);
    assert_eq!(checker.findings, BTreeSet::new(), "the checker");
    assert_eq!(verify, checker);
    assert_eq!(checker.verdict, "clean");
    assert_eq!(checker.counts.iter().map(|counts| counts.1).sum::<u64>(), rows + quarantined);
    assert_eq!(checker.counts.iter().map(|counts| counts.2).sum::<u64>(), rows);
    assert_eq!(checker.counts.iter().map(|counts| counts.3).sum::<u64>(), quarantined);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_checker_and_verify_find_exactly_the_damage_that_was_planted() {
    let bed = Bed::new().await;
    fill(&bed).await;
    damage::seed(&bed).await;
    backfill(&bed);
    let planted = damage::plant(&bed).await;
    let damaged: BTreeSet<_> = planted.iter().map(|finding| finding.0.as_str()).collect();
    assert_eq!(damaged.len(), ENTITIES.len(), "every collection is damaged");
    assert!(planted.len() >= 60, "{} mismatches planted", planted.len());

    let (checker, verify) = opinions(&bed);
    assert_eq!(difference(&planted, &checker.findings), Vec::<String>::new(), "planted, and found by the checker");
    assert_eq!(difference(&planted, &verify.findings), Vec::<String>::new(), "planted, and found by verify");
    assert_eq!(verify, checker);
    assert_eq!(checker.verdict, "mismatch");
}

/// Loads generated documents and all fixtures; returns how many must become rows and how many must not.
async fn fill(bed: &Bed) -> (u64, u64) {
    let generated = dataset::load(&bed.database, DOCUMENTS, 7, |_| ()).await.expect("load documents");
    let mut mapped = fixtures::mapped().expect("read the fixtures");
    mapped.push(fixtures::largest());
    let mapped = fixtures::load(&bed.database, &mapped).await.expect("load the fixtures");
    let quarantined = fixtures::quarantined().expect("read the fixtures");
    let quarantined = fixtures::load(&bed.database, &quarantined).await.expect("load the refused fixtures");
    (generated + mapped, quarantined)
}

fn backfill(bed: &Bed) {
    for command in ["migrate", "backfill"] {
        let output = bed.bridge(&[command, "--json"]).output().expect("run bridge");
        assert!(output.status.success(), "bridge {command}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// What the checker and `bridge verify` say.
fn opinions(bed: &Bed) -> (Opinion, Opinion) {
    let mut checker = python::command("check.py");
    checker.arg("--json").env("BRIDGE_MONGO_URL", &bed.mongo_url).env("BRIDGE_MONGO_DATABASE", bed.database.name());
    checker.env("BRIDGE_POSTGRES_URL", &bed.postgres_url);
    (opinion(&mut checker), opinion(&mut bed.bridge(&["verify", "--json"])))
}

fn opinion(command: &mut Command) -> Opinion {
    let Output { status, stdout, stderr } = command.output().expect("run a checker");
    let last = String::from_utf8(stdout).expect("UTF-8").lines().next_back().unwrap_or_default().to_owned();
    let errors = String::from_utf8_lossy(&stderr);
    let object: Value = serde_json::from_str(&last).unwrap_or_else(|_| panic!("{status}, {errors}"));
    let list = |name: &str| object[name].as_array().expect("a list").clone();
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let number = |value: &Value| value.as_u64().expect("a number");
    let finding = |one: &Value| (text(&one["collection"]), one["id"].to_string(), text(&one["kind"]));
    let counts = |one: &Value| {
        (text(&one["name"]), number(&one["documents"]), number(&one["rows"]), number(&one["quarantined"]))
    };
    let verdict = text(&object["verdict"]);
    assert_eq!(status.code(), Some(i32::from(verdict != "clean")), "{errors}");
    let mismatches = list("mismatches");
    let findings: BTreeSet<_> = mismatches.iter().map(finding).collect();
    for one in &mismatches {
        println!("{} {} {} {}", one["collection"], one["id"], one["kind"], one["reason"]);
    }
    assert_eq!(findings.len(), mismatches.len(), "a key is reported once");
    Opinion { verdict, findings, counts: list("collections").iter().map(counts).collect() }
}

/// What is only in one of the two sets, one line each.
fn difference(planted: &BTreeSet<Finding>, found: &BTreeSet<Finding>) -> Vec<String> {
    let line = |sign: &'static str| move |(collection, id, kind): &Finding| format!("{sign} {collection} {id} {kind}");
    let unseen = planted.difference(found).map(line("not found:"));
    unseen.chain(found.difference(planted).map(line("not planted:"))).collect()
}

/// The `_id` as a finding names it.
fn json(id: &Bson) -> String {
    id.clone().into_canonical_extjson().to_string()
}
