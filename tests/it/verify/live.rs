//! The verifier of stores in use: live traffic gives no false alarm, and what it does not overwrite is found.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mongodb::bson::{Bson, Document, doc};
use rustix::process::Signal;
use scheduler_bridge::entity::{ENTITIES, Entity, KeyType, Kind};
use scheduler_bridge::verify::{self, Report, Verdict};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor, Row};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::columns::{Finding, SHAPES, Shape, columns, damages, id, insert, key, victim};
use super::{LIMIT, options, stores};
use crate::bed::{Bed, until};
use crate::dual::switch::{Scheduler, followed};
use crate::faults::gate::until_bridge_waits;
use crate::faults::process::Bridge;

/// How many damages are planted. Some change nothing: a column that becomes null may have been null.
const DAMAGES: usize = 1_100;

/// How many of them are some, at least.
const REAL: usize = 1_000;

/// One way to make the sides of a key differ behind everybody's back.
struct Damage {
    entity: &'static Entity,
    number: u32,
    how: How,
}

enum How {
    /// A column of the row becomes something else.
    Column { column: String, becomes: String },
    /// The row goes.
    RowGone,
    /// Another row comes, which has no document.
    RowMore,
    /// The document changes, and its row is not brought level.
    Document,
    /// The document goes, and its row stays.
    DocumentGone,
    /// Another document comes, and no row.
    DocumentMore,
}

/// A stamp that no write has: what carries it takes no newer one.
const FROZEN: &str = "epoch = 2147483647";

impl Damage {
    fn table(&self) -> &'static str {
        self.entity.name
    }

    fn key(&self) -> String {
        key(self.entity, self.number)
    }

    /// The key that differs afterwards, and how.
    fn finding(&self) -> Finding {
        let more = key(self.entity, self.number + 500_000);
        let (id, kind) = match &self.how {
            How::Column { .. } | How::Document => (self.key(), "content"),
            How::RowGone => (self.key(), "missing"),
            How::DocumentMore => (more, "missing"),
            How::RowMore => (more, "extra"),
            How::DocumentGone => (self.key(), "extra"),
        };
        (self.table().to_owned(), id, kind.to_owned())
    }

    async fn plant(&self, bed: &Bed) {
        let (table, id) = (self.table(), self.key());
        let more = key(self.entity, self.number + 500_000);
        let documents = bed.database.collection::<Document>(table);
        let by_id = doc! { "_id": self::id(self.entity, self.number) };
        let freeze = format!("update scheduler.{table} set {FROZEN} where id = '{id}'");
        match &self.how {
            How::Column { column, becomes } => {
                execute(bed, format!("update scheduler.{table} set {column} = {becomes} where id = '{id}'")).await;
            }
            How::RowGone => execute(bed, format!("delete from scheduler.{table} where id = '{id}'")).await,
            How::RowMore => {
                let copied = format!(
                    "insert into scheduler.{table} select (jsonb_populate_record(t, jsonb_build_object('id', '{more}'))).*
                    from scheduler.{table} t where id = '{id}'"
                );
                execute(bed, copied).await;
            }
            How::Document => {
                execute(bed, freeze).await;
                documents.update_one(by_id, doc! { "$set": { "damaged": 1 } }).await.expect("change");
            }
            How::DocumentGone => {
                execute(bed, freeze).await;
                documents.delete_one(by_id).await.expect("delete");
            }
            How::DocumentMore => {
                let buried = format!(
                    "insert into bridge.tombstone (collection, id, epoch, clock)
                    values ('{table}', '{more}', 2147483647, 1)"
                );
                execute(bed, buried).await;
                let number = self.number + 500_000;
                documents.insert_one(resting(self.entity, number, SHAPES[0])).await.expect("insert");
            }
        }
    }
}

/// A victim that no query across tenants finds, so that the scheduler leaves it alone: nothing of it is enabled, and
/// whatever it is has come to its end.
fn resting(entity: &Entity, number: u32, shape: Shape) -> Document {
    let mut document = victim(entity, number, shape);
    for field in entity.fields {
        match (document.get(field.name), field.kind) {
            (Some(Bson::Boolean(_)), _) => drop(document.insert(field.name, false)),
            (Some(Bson::String(word)), Kind::Word(vocabulary)) if vocabulary.words.contains(&word.as_str()) => {
                drop(document.insert(field.name, *vocabulary.words.last().expect("a word")));
            }
            _ => {}
        }
    }
    document
}

async fn execute(bed: &Bed, statement: String) {
    bed.pool().execute(AssertSqlSafe(statement.clone())).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
}

/// A number that seems drawn at random, the same in each run.
fn drawn(seed: &mut u64) -> usize {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    usize::try_from(*seed >> 33).expect("31 bits")
}

/// Victims in every collection, and a damage for each of so many of them, in any order: any column, rows, documents.
async fn victims(bed: &Bed, count: usize) -> Vec<Damage> {
    let mut all = Vec::new();
    for entity in ENTITIES {
        let columns = &columns(bed.pool()).await[entity.name];
        for (shape, column, becomes) in damages(entity, columns) {
            if column != "id" {
                all.push((*entity, shape, How::Column { column, becomes }));
            }
        }
        for _ in 0..12 {
            let whole = [How::RowGone, How::RowMore, How::Document, How::DocumentGone, How::DocumentMore];
            all.extend(whole.map(|how| (*entity, SHAPES[0], how)));
        }
    }
    let mut seed = 7;
    for place in (1..all.len()).rev() {
        all.swap(place, drawn(&mut seed) % (place + 1));
    }
    all.truncate(count);
    assert_eq!(all.len(), count);
    let mut planned = Vec::new();
    for (number, (entity, shape, how)) in (0..).zip(all) {
        insert(bed, entity, &[resting(entity, number, shape)]).await;
        planned.push(Damage { entity, number, how });
    }
    planned
}

/// The findings of a report.
fn findings(report: &Value) -> BTreeSet<Finding> {
    let text = |value: &Value| {
        value.as_str().map_or_else(|| value["$oid"].as_str().unwrap_or_default().to_owned(), str::to_owned)
    };
    let list = report["mismatches"].as_array().expect("a list");
    list.iter().map(|one| (text(&one["collection"]), text(&one["id"]), text(&one["kind"]))).collect()
}

/// A verification under way.
async fn verifying(bed: &Bed, tolerance: Duration) -> JoinHandle<Report> {
    let (source, target) = stores(bed).await;
    let options = verify::Options { tolerance, ..options(200_000) };
    tokio::spawn(async move {
        verify::run(&source, &target, &options, |_| (), CancellationToken::new()).await.expect("verify")
    })
}

async fn verified(bed: &Bed, tolerance: Duration) -> Report {
    verifying(bed, tolerance).await.await.expect("a task")
}

/// What a key is on both sides, and when it was written last.
async fn state(bed: &Bed, (collection, id, _): &Finding) -> (Option<String>, Option<Bson>, Option<Document>) {
    // As a row, not as JSON: a column that is null is another than one that holds the JSON null.
    let row = format!("select t::text from scheduler.{collection} t where id = $1");
    let row = sqlx::query(AssertSqlSafe(row)).bind(id).fetch_optional(bed.pool()).await.expect("row");
    let entity = ENTITIES.iter().find(|entity| entity.name == collection).expect("an entity");
    let id: Bson = match entity.key {
        KeyType::Text => id.as_str().into(),
        KeyType::ObjectId => mongodb::bson::oid::ObjectId::parse_str(id).expect("an id").into(),
    };
    let document = bed.database.collection(collection).find_one(doc! { "_id": id.clone() }).await.expect("find");
    (row.map(|row| row.get(0)), Some(id), document)
}

/// The object that a command has printed last.
fn objects(said: &str) -> Vec<Value> {
    said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_damages_planted_under_load_are_found_each_with_its_kind_and_nothing_else_is() {
    let bed = Bed::new().await;
    let mut scheduler = Scheduler::start(&bed, 3);
    scheduler.at_work().await;
    // Afterwards: a simulation begins beside no schedules of others.
    let victims = victims(&bed, DAMAGES).await;
    let mirror = followed(&bed).await;
    let watching = Bridge::start(bed.bridge(&[
        "--json",
        "verify",
        "--continuous",
        "--pause-seconds",
        "0",
        "--tolerance-seconds",
        "3",
    ]));
    // Nothing was damaged: whatever it says before is a false alarm. An hour of a scheduler that makes a write a second.
    until("an hour's work is done", LIMIT, async || scheduler.writes() > 3_600).await;
    until("three verifications are done", LIMIT, async || objects(&watching.said()).len() >= 3).await;
    for report in objects(&watching.said()) {
        assert_eq!((&report["verdict"], &report["unsettled"]), (&"clean".into(), &0.into()), "{report:#}");
    }
    let mut expected = BTreeMap::new();
    for damage in &victims {
        let finding = damage.finding();
        let before = state(&bed, &finding).await;
        damage.plant(&bed).await;
        let planted = state(&bed, &finding).await;
        if planted != before {
            expected.insert(finding, planted);
        }
    }
    assert!(expected.len() >= REAL, "{}", expected.len());
    let before = objects(&watching.said()).len();
    // One that was under way, and one that begins after all is planted.
    until("all is looked at", LIMIT, async || objects(&watching.said()).len() >= before + 2).await;
    let reports = objects(&watching.said());
    watching.signal(Signal::TERM);
    watching.ended().await.says(130, &["stopped"]);
    for report in &reports {
        let invented: Vec<_> = findings(report).into_iter().filter(|found| !expected.contains_key(found)).collect();
        assert!(invented.is_empty(), "{invented:#?}");
    }
    let found = findings(reports.last().expect("a report"));
    let mut overlooked = 0;
    for (finding, planted) in &expected {
        if !found.contains(finding) {
            let now = state(&bed, finding).await;
            assert_ne!(&now, planted, "overlooked: {finding:?}");
            overlooked += 1;
        }
    }
    assert!(overlooked <= DAMAGES / 4, "{overlooked} were overwritten by the scheduler: too few are left to say much");
    println!("{} found, {overlooked} overwritten, {} verifications", found.len(), reports.len());
    scheduler.stop().await;
    drop(mirror);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damage_that_is_overwritten_within_the_tolerance_is_no_mismatch_and_one_that_is_not_is() {
    let bed = Bed::new().await;
    let runs = ENTITIES.iter().find(|entity| entity.name == "runs").expect("runs");
    insert(&bed, runs, &(0..20).map(|number| victim(runs, number, SHAPES[0])).collect::<Vec<_>>()).await;
    let mirror = followed(&bed).await;
    bed.pool().execute("update scheduler.runs set error = 'damaged'").await.expect("damage");
    let verifying = verifying(&bed, Duration::from_secs(4)).await;
    // They have been looked at, and stand so for less than the tolerance.
    let looked = "select count(*) = 20 from bridge.suspect where print is not null and settled is null";
    until("all are looked at again", LIMIT, async || {
        sqlx::query_scalar(looked).fetch_one(bed.pool()).await.expect("look")
    })
    .await;
    let documents = bed.database.collection::<Document>("runs");
    let even = (0..20).step_by(2).map(|number| id(runs, number)).collect::<Vec<_>>();
    documents.update_many(doc! { "_id": { "$in": even } }, doc! { "$set": { "error": "newer" } }).await.expect("write");
    let report = verifying.await.expect("a task");
    let found: BTreeSet<_> = report.mismatches.iter().map(|one| one.id.as_str().expect("a text").to_owned()).collect();
    assert_eq!(found, (1..20).step_by(2).map(|number| key(runs, number)).collect());
    assert_eq!((report.verdict, report.unsettled), (Verdict::Mismatch, 0));
    drop(mirror);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_write_that_leaves_the_key_damaged_begins_its_time_anew() {
    begins_anew(async |runs| {
        runs.update_one(doc! {}, doc! { "$set": { "error": "newer" } }).await.expect("write");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_write_that_takes_itself_back_begins_the_time_of_the_key_anew() {
    begins_anew(async |runs| {
        let mut session = runs.client().start_session().await.expect("a session");
        session.start_transaction().await.expect("begin");
        for change in [doc! { "$set": { "more": 1 } }, doc! { "$unset": { "more": "" } }] {
            runs.update_one(doc! {}, change).session(&mut session).await.expect("write");
        }
        session.commit_transaction().await.expect("commit");
    })
    .await;
}

/// A damaged key is looked at for as long again after `write`.
async fn begins_anew(write: impl AsyncFnOnce(mongodb::Collection<Document>)) {
    let bed = Bed::new().await;
    let runs = ENTITIES.iter().find(|entity| entity.name == "runs").expect("runs");
    insert(&bed, runs, &[victim(runs, 1, SHAPES[0])]).await;
    let mirror = followed(&bed).await;
    // It takes no newer write, so it differs whatever is written.
    execute(&bed, format!("update scheduler.runs set {FROZEN}, error = 'damaged'")).await;
    let verifying = verifying(&bed, Duration::from_secs(3)).await;
    let since = async || {
        let since = "select since from bridge.suspect where print is not null and settled is null";
        sqlx::query_scalar::<_, chrono::DateTime<chrono::Utc>>(since).fetch_optional(bed.pool()).await.expect("look")
    };
    until("it is looked at", LIMIT, async || since().await.is_some()).await;
    let first = since().await.expect("a suspect");
    let touched = chrono::Utc::now();
    write(bed.database.collection("runs")).await;
    let report = verifying.await.expect("a task");
    let [found] = &report.mismatches[..] else { panic!("{report:#?}") };
    assert!(found.since > first && found.since >= touched, "{first} {touched} {}", found.since);
    assert!(report.finished_at - found.since >= chrono::TimeDelta::seconds(3), "{report:#?}");
    drop(mirror);
}

/// Longer than the tolerance of a verification meanwhile, and some looks.
const BEHIND: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_is_behind_for_longer_than_the_tolerance_gives_no_false_alarm() {
    let bed = Bed::new().await;
    let runs = ENTITIES.iter().find(|entity| entity.name == "runs").expect("runs");
    insert(&bed, runs, &[victim(runs, 0, SHAPES[0])]).await;
    let mirror = followed(&bed).await;
    mirror.signal(Signal::STOP);
    insert(&bed, runs, &[victim(runs, 1, SHAPES[0])]).await;
    let verifying = verifying(&bed, Duration::from_secs(1)).await;
    let is_noted = async || {
        let noted = "select exists (select from bridge.suspect where id = 'victim-00001')";
        sqlx::query_scalar(noted).fetch_one(bed.pool()).await.expect("look")
    };
    until("it is noted", LIMIT, is_noted).await;
    tokio::time::sleep(BEHIND).await;
    mirror.signal(Signal::CONT);
    let report = verifying.await.expect("a task");
    assert_eq!((report.verdict, report.mismatches.len()), (Verdict::Clean, 0), "{report:#?}");
    drop(mirror);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_mirror_what_differs_twice_differs_and_is_not_waited_for() {
    let bed = Bed::new().await;
    let runs = ENTITIES.iter().find(|entity| entity.name == "runs").expect("runs");
    insert(&bed, runs, &[victim(runs, 1, SHAPES[0])]).await;
    super::backfill(&bed).await;
    bed.pool().execute("update scheduler.runs set error = 'damaged'").await.expect("damage");
    // Longer than the test may take.
    let report = tokio::time::timeout(LIMIT, verified(&bed, LIMIT * 2)).await.expect("it does not wait");
    assert_eq!(report.verdict, Verdict::Mismatch);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_mirror_wrote_is_compared_again_and_leaves_the_queue_only_when_it_is_level() {
    let bed = Bed::new().await;
    let runs = ENTITIES.iter().find(|entity| entity.name == "runs").expect("runs");
    insert(&bed, runs, &[victim(runs, 0, SHAPES[0])]).await;
    let mirror = followed(&bed).await;
    insert(&bed, runs, &(1..5).map(|number| victim(runs, number, SHAPES[0])).collect::<Vec<_>>()).await;
    let queued = async || {
        let queued = "select id from bridge.recheck order by id";
        sqlx::query_scalar::<_, String>(queued).fetch_all(bed.pool()).await.expect("look")
    };
    until("all are queued", LIMIT, async || queued().await.len() == 4).await;
    bed.pool().execute("update scheduler.runs set error = 'damaged' where id = 'victim-00003'").await.expect("damage");
    let report = verified(&bed, Duration::from_secs(1)).await;
    assert_eq!((report.rechecked, report.mismatches.len()), (4, 1), "{report:#?}");
    assert_eq!(queued().await, ["victim-00003"]);
    drop(mirror);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_queued_anew_while_it_is_compared_stays_in_the_queue() {
    let bed = Bed::new().await;
    let runs = ENTITIES.iter().find(|entity| entity.name == "runs").expect("runs");
    insert(&bed, runs, &[victim(runs, 0, SHAPES[0]), victim(runs, 1, SHAPES[0])]).await;
    super::backfill(&bed).await;
    let queue = "insert into bridge.recheck (collection, id, epoch, clock) select 'runs', id, 1, 7 from scheduler.runs";
    bed.pool().execute(queue).await.expect("queue");
    // Whoever takes the key from the queue waits for this transaction, which queues it anew.
    let mut anew = bed.pool().begin().await.expect("begin");
    let newer = "update bridge.recheck set clock = 8 where id = 'victim-00001'";
    anew.execute(newer).await.expect("queue anew");
    let (source, target) = stores(&bed).await;
    let comparing = tokio::spawn(async move { verify::compare_queue(&source, &target).await });
    until_bridge_waits(&bed).await;
    anew.commit().await.expect("commit");
    assert_eq!(comparing.await.expect("a task").expect("compare"), (Vec::new(), 2));
    let left: Vec<String> =
        sqlx::query_scalar("select id from bridge.recheck").fetch_all(bed.pool()).await.expect("look");
    assert_eq!(left, ["victim-00001"]);
}
