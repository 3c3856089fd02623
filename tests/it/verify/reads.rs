//! Read parity: what is damaged is told with the query, the page and the key; equal stores are not, also under load.

mod live;
mod refused;

use std::collections::{BTreeMap, HashSet};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use bson::{Bson, DateTime, Document, doc};
use scheduler_bridge::backfill::Rate;
use scheduler_bridge::entity::{ENTITIES, Kind as FieldKind};
use scheduler_bridge::parity::Kind;
use scheduler_bridge::phase::Phase;
use scheduler_bridge::store::MongoStore;
use scheduler_bridge::verify::Verdict;
use scheduler_bridge::verify::reads::{self, Difference, Options, Progress, ReadError, ReadReport};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor};
use tokio_util::sync::CancellationToken;

use super::{backfill, stores};
use crate::bed::Bed;
use crate::dual::switch::objects;
use crate::dual::turn;

fn options() -> Options {
    Options { tenants: None, workers: 4, rate: Rate::default(), listed: 1_000, shown: 1_000 }
}

async fn try_compare(bed: &Bed, options: &Options) -> Result<ReadReport, ReadError> {
    let (source, target) = stores(bed).await;
    reads::run(&source, &target, options, Arc::new(Progress::default()), CancellationToken::new()).await
}

async fn compare(bed: &Bed) -> ReadReport {
    try_compare(bed, &options()).await.expect("compare the reads")
}

async fn sql(bed: &Bed, statements: &str) {
    bed.pool().execute(AssertSqlSafe(statements.to_owned())).await.expect("damage PostgreSQL");
}

async fn insert(bed: &Bed, collection: &str, documents: Vec<Document>) {
    bed.database.collection::<Document>(collection).insert_many(documents).await.expect("insert");
}

fn run(tenant: &str, id: &str, second: i64) -> Document {
    let created = DateTime::from_millis(1_790_000_000_000 + second * 1_000);
    doc! { "_id": id, "tenantId": tenant, "state": "queued", "scheduleId": "nightly", "createdAt": created }
}

fn schedule(id: &str, more: Document) -> Document {
    let mut schedule = doc! {
        "_id": id, "tenantId": "a", "name": id, "enabled": true, "createdAt": DateTime::from_millis(1_790_000_000_000),
    };
    schedule.extend(more);
    schedule
}

/// The differences by tenant and query, each of which is told once.
fn told(report: &ReadReport) -> BTreeMap<(&str, &str), &Difference> {
    println!("{}", serde_json::to_string_pretty(report).expect("JSON"));
    let told: BTreeMap<_, _> = report
        .differences
        .iter()
        .map(|one| ((one.tenant.as_deref().unwrap_or_default(), one.query.as_str()), one))
        .collect();
    assert_eq!(told.len(), report.differences.len(), "a query is told twice");
    assert_eq!(report.verdict, Verdict::Mismatch);
    told
}

fn assert_clean(report: &ReadReport) {
    assert_eq!(report.verdict, Verdict::Clean, "{report:#?}");
    assert!(report.differences.is_empty() && report.unlisted == 0);
}

/// Deletes the made-up documents whose moments are texts, or have names of former days: the two stores sort and filter
/// these in ways of their own. The other older ones stay.
async fn without_older_moments(bed: &Bed) -> u64 {
    let mut gone = 0;
    for entity in ENTITIES {
        let mut odd = Vec::new();
        for field in entity.fields {
            if matches!(field.kind, FieldKind::Instant) {
                odd.push(doc! { field.name: { "$type": "string" } });
            }
            let older = field.names().filter(|name| *name != field.name);
            odd.extend(older.map(|older| doc! { field.name: { "$exists": false }, older: { "$exists": true } }));
        }
        let documents = bed.database.collection::<Document>(entity.name);
        gone += documents.delete_many(doc! { "$or": odd }).await.expect("delete").deleted_count;
    }
    gone
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_stores_are_clean_and_every_collection_was_asked_about() {
    let bed = Bed::new().await;
    scheduler_bridge::dataset::load(&bed.database, 4_000, 1, |_| ()).await.expect("load");
    let gone = without_older_moments(&bed).await;
    assert!((40..150).contains(&gone), "only some of the older documents go: {gone}");
    MongoStore::new(bed.mongo.clone(), bed.database.clone(), 1).create_indexes().await.expect("create the indexes");
    backfill(&bed).await;
    let report = compare(&bed).await;
    println!("{:#?} {} queries, {} pages", report.collections, report.queries, report.pages);
    assert_clean(&report);
    assert_eq!((report.tenants, report.tenants_in_all, report.sampled), (40, 40, false));
    assert_eq!((report.rechecked, report.unsettled), (0, 0));
    for counts in report.collections.iter().filter(|counts| counts.name != "locks") {
        assert!(counts.queries > 0 && counts.records > 0, "{counts:?}");
    }
    let latest = reads::latest(bed.pool()).await.expect("look").expect("a record");
    assert!(latest.is_genuine && !latest.is_sampled && latest.verdict == Verdict::Clean, "{latest:?}");
    assert_eq!((latest.phase.as_str(), latest.epoch), ("mongo", 1));
    assert_eq!((latest.began_at, latest.finished_at), (report.started_at, report.finished_at));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_row_on_page_7_is_told_once_for_each_query_that_finds_it() {
    let bed = Bed::new().await;
    let runs = (0..90).map(|second| run("a", &format!("r{second:02}"), second)).collect();
    insert(&bed, "runs", runs).await;
    insert(&bed, "runs", vec![run("b", "other", 0)]).await;
    backfill(&bed).await;
    assert_clean(&compare(&bed).await);
    sql(&bed, "delete from scheduler.runs where id = 'r64'").await;
    let report = compare(&bed).await;
    let told = told(&report);
    for query in [
        "where tenantId = \"a\" by createdAt",
        "where tenantId = \"a\" and state = \"queued\" by createdAt",
        "where tenantId = \"a\" and scheduleId = \"nightly\" by createdAt",
        "where tenantId = \"a\" and state in [\"planning\",\"queued\"] by createdAt",
    ] {
        let found = told[&("a", query)];
        assert_eq!((found.page, found.kind, found.ids.as_slice()), (7, Kind::Missing, ["r64".to_owned()].as_slice()));
        let diff = found.diff.as_deref().expect("a diff");
        assert!(diff.starts_with("--- mongodb\n+++ postgresql\n") && diff.contains("-\"r64\"\n"), "{diff}");
    }
    // The newest first: it is the 26th.
    let newest = told[&("a", "where tenantId = \"a\" and scheduleId = \"nightly\" by createdAt descending")];
    assert_eq!((newest.page, newest.kind), (3, Kind::Missing));
    assert!(
        told.values().all(|found| found.ids == ["r64"] && found.kind == Kind::Missing && found.collection == "runs")
    );
    assert!(told.keys().all(|(tenant, _)| *tenant == "a"));
    let counts = report.collections.iter().find(|counts| counts.name == "runs").expect("runs");
    assert_eq!(counts.differences, u64::try_from(told.len()).expect("a few"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_too_many_is_told_also_where_it_comes_after_all_others() {
    let bed = Bed::new().await;
    insert(&bed, "runs", (0..10).map(|second| run("a", &format!("r{second}"), second)).collect()).await;
    backfill(&bed).await;
    sql(
        &bed,
        "insert into scheduler.runs (id, tenant_id, state, created_at, epoch, clock)
        values ('last', 'a', 'running', '2030-01-01', 1, 1)",
    )
    .await;
    let report = compare(&bed).await;
    let told = told(&report);
    // The page of ten is equal, and has no other behind it in MongoDB.
    for query in ["where tenantId = \"a\" by createdAt", "where tenantId = \"a\" and state = \"running\" by createdAt"]
    {
        let found = told[&("a", query)];
        assert_eq!((found.page, found.kind, found.ids.as_slice()), (1, Kind::Extra, ["last".to_owned()].as_slice()));
    }
}

/// Somebody drops an index, and changes the column to the language of the country before it is made again.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_index_and_another_collation_is_told_as_another_order() {
    let bed = Bed::new().await;
    // Made in one moment, so that the key decides.
    insert(&bed, "runs", ["B", "a", "C", "b", "A", "c"].map(|id| run("a", id, 0)).to_vec()).await;
    backfill(&bed).await;
    assert_clean(&compare(&bed).await);
    sql(
        &bed,
        "drop index scheduler.runs_listed, scheduler.runs_by_state, scheduler.runs_by_schedule, scheduler.runs_pending;
        alter table scheduler.runs alter column id type text collate \"en-x-icu\"",
    )
    .await;
    let report = compare(&bed).await;
    let told = told(&report);
    let found = told[&("a", "where tenantId = \"a\" by createdAt")];
    assert_eq!((found.kind, found.page, found.collection), (Kind::Order, 1, "runs"));
    assert!(found.ids.contains(&"B".to_owned()), "{found:?}");
    assert!(told.values().all(|found| found.kind == Kind::Order), "{told:?}");
}

/// MongoDB sorts by type before it sorts by value: a text of 2030 comes before a date of 2026.
#[tokio::test(flavor = "multi_thread")]
async fn a_date_that_is_a_text_has_another_place() {
    let bed = Bed::new().await;
    let mut text = run("a", "text", 0);
    text.insert("createdAt", Bson::from("2030-01-01T00:00:00Z"));
    insert(&bed, "runs", vec![run("a", "date", 0), text]).await;
    backfill(&bed).await;
    let report = compare(&bed).await;
    let told = told(&report);
    let found = told[&("a", "where tenantId = \"a\" by createdAt")];
    assert_eq!((found.kind, found.ids.as_slice()), (Kind::Order, ["text".to_owned(), "date".to_owned()].as_slice()));
    // A moment is compared with dates alone there.
    let after = told.values().find(|found| found.query.contains("createdAt >")).expect("a query by the moment");
    assert_eq!((after.kind, after.ids.as_slice()), (Kind::Extra, ["text".to_owned()].as_slice()));
}

#[tokio::test(flavor = "multi_thread")]
async fn null_absent_and_another_name_are_three_things_to_a_filter() {
    let bed = Bed::new().await;
    let deleted = DateTime::from_millis(1_790_000_000_000);
    let schedules = vec![
        schedule("absent", doc! {}),
        schedule("null", doc! { "deletedAt": null }),
        schedule("deleted", doc! { "deletedAt": deleted }),
    ];
    insert(&bed, "schedules", schedules).await;
    backfill(&bed).await;
    // Null is found where absent is asked for, on both.
    assert_clean(&compare(&bed).await);
    sql(&bed, "update scheduler.schedules set residue = null where id = 'null'").await;
    let report = compare(&bed).await;
    let lost = told(&report);
    let all = "where tenantId = \"a\" by createdAt";
    let live = "where tenantId = \"a\" and deletedAt is absent or null by createdAt";
    for query in [all, live] {
        let found = lost[&("a", query)];
        assert_eq!((found.kind, found.ids.as_slice()), (Kind::Content, ["null".to_owned()].as_slice()));
        assert!(found.diff.as_deref().is_some_and(|diff| diff.contains("-  \"deletedAt\": null")), "{found:?}");
    }
    // The filter of one store takes for absent what the other does not, though the documents are equal.
    let bed = Bed::new().await;
    insert(&bed, "schedules", vec![schedule("older", doc! { "deleted_at": deleted }), schedule("live", doc! {})]).await;
    backfill(&bed).await;
    let report = compare(&bed).await;
    let hidden = told(&report);
    assert!(!hidden.contains_key(&("a", all)), "the documents are equal");
    let found = hidden[&("a", live)];
    assert_eq!((found.kind, found.ids.as_slice()), (Kind::Missing, ["older".to_owned()].as_slice()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_cannot_be_read_is_told_with_the_reason() {
    let bed = Bed::new().await;
    insert(&bed, "runs", vec![run("a", "sound", 0), run("a", "broken", 1)]).await;
    backfill(&bed).await;
    sql(&bed, "update scheduler.runs set residue = 'x' where id = 'broken'").await;
    let report = compare(&bed).await;
    let found = told(&report)[&("a", "where tenantId = \"a\" by createdAt")];
    assert_eq!((found.kind, found.page), (Kind::Content, 1));
    let reason = "+unreadable: could not rebuild runs \"broken\": column residue";
    assert!(found.diff.as_deref().is_some_and(|diff| diff.contains(reason)), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_at_another_tenant_is_told_to_both_and_to_nobody_else() {
    let bed = Bed::new().await;
    let runs = ["a", "b", "c"].map(|tenant| run(tenant, &format!("{tenant}'s"), 0)).to_vec();
    insert(&bed, "runs", runs).await;
    backfill(&bed).await;
    sql(&bed, "update scheduler.runs set tenant_id = 'b' where id = 'a''s'").await;
    let report = compare(&bed).await;
    let told = told(&report);
    let of = |tenant: &str| {
        let query = format!("where tenantId = {tenant:?} by createdAt");
        told.get(&(tenant, query.as_str())).map(|found| (found.kind, found.ids.clone()))
    };
    assert_eq!(of("a"), Some((Kind::Missing, vec!["a's".to_owned()])));
    assert_eq!(of("b"), Some((Kind::Extra, vec!["a's".to_owned()])));
    assert!(told.keys().all(|(tenant, _)| *tenant != "c"));
    // A tenant that only one store knows is a tenant.
    sql(&bed, "update scheduler.runs set tenant_id = 'd' where id = 'a''s'").await;
    let report = compare(&bed).await;
    assert_eq!(report.tenants, 4);
    assert!(report.differences.iter().any(|found| found.tenant.as_deref() == Some("d") && found.kind == Kind::Extra));
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_in_mongodb_is_told_while_postgresql_is_the_primary() {
    let bed = Bed::new().await;
    insert(&bed, "runs", (0..3).map(|second| run("a", &format!("r{second}"), second)).collect()).await;
    backfill(&bed).await;
    turn(&bed, Phase::PostgresPrimary, 3).await;
    let report = compare(&bed).await;
    assert_clean(&report);
    assert_eq!((report.phase, report.epoch), (Phase::PostgresPrimary, 3));
    let runs = bed.database.collection::<Document>("runs");
    let all = ("a", "where tenantId = \"a\" by createdAt");
    runs.delete_one(doc! { "_id": "r0" }).await.expect("delete");
    let report = compare(&bed).await;
    let found = told(&report)[&all];
    assert_eq!((found.kind, found.ids.as_slice()), (Kind::Missing, ["r0".to_owned()].as_slice()));
    runs.update_one(doc! { "_id": "r2" }, doc! { "$set": { "error": "damaged" } }).await.expect("damage");
    let report = compare(&bed).await;
    let found = told(&report)[&all];
    assert_eq!((found.kind, found.ids.as_slice()), (Kind::Content, ["r2".to_owned()].as_slice()));
    assert!(found.diff.as_deref().is_some_and(|diff| diff.contains("-  \"error\": \"damaged\"")), "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_across_tenants_is_compared_too() {
    let bed = Bed::new().await;
    let due = DateTime::from_millis(1_700_000_000_000);
    let trigger = |id: &str, due: DateTime| {
        doc! { "_id": id, "tenantId": "a", "scheduleId": "s", "kind": "manual", "enabled": true, "nextFireAt": due }
    };
    let worker = doc! { "_id": "w", "status": "active", "lastHeartbeatAt": due };
    let job = doc! {
        "_id": "j", "tenantId": "a", "status": "dispatching", "priority": "high", "leaseOwner": "w", "leaseExpiresAt": due,
    };
    let far = DateTime::from_millis(4_000_000_000_000);
    insert(&bed, "triggers", vec![trigger("due", due), trigger("far", far)]).await;
    insert(&bed, "workers", vec![worker]).await;
    insert(&bed, "policy_jobs", vec![job]).await;
    backfill(&bed).await;
    assert_clean(&compare(&bed).await);
    sql(
        &bed,
        "delete from scheduler.triggers where id = 'far'; update scheduler.workers set status = 'dead';
        update scheduler.policy_jobs set lease_owner = 'x'",
    )
    .await;
    let report = compare(&bed).await;
    let told = told(&report);
    let across: HashSet<(&str, Kind)> = told
        .iter()
        .filter(|((tenant, _), _)| tenant.is_empty())
        .map(|(_, found)| (found.collection, found.kind))
        .collect();
    for expected in [("triggers", Kind::Missing), ("workers", Kind::Missing), ("policy_jobs", Kind::Content)] {
        assert!(across.contains(&expected), "{expected:?} {across:?}");
    }
    let of_worker = told[&("", "where leaseOwner = \"w\" by _id")];
    assert_eq!((of_worker.kind, of_worker.ids.as_slice()), (Kind::Missing, ["j".to_owned()].as_slice()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_accepted_to_stay_behind_is_no_difference_and_others_come_in_its_place() {
    let bed = Bed::new().await;
    let mut runs: Vec<Document> = (0..60).map(|second| run("a", &format!("r{second:02}"), second)).collect();
    for odd in [0, 1, 2, 15, 59] {
        runs[odd].insert("state", "lost");
    }
    insert(&bed, "runs", runs).await;
    // A page that is full, with nothing behind it but what is accepted.
    let mut full: Vec<Document> = (0..12).map(|second| run("b", &format!("s{second:02}"), second)).collect();
    full[10..].iter_mut().for_each(|odd| drop(odd.insert("state", "lost")));
    insert(&bed, "runs", full).await;
    backfill(&bed).await;
    let report = compare(&bed).await;
    assert_eq!(told(&report)[&("a", "where tenantId = \"a\" by createdAt")].ids, ["r00", "r01", "r02"]);
    sql(&bed, "update bridge.quarantine set accepted_at = now()").await;
    let report = compare(&bed).await;
    assert_clean(&report);
    sql(&bed, "delete from scheduler.runs where id = 'r40'").await;
    let report = compare(&bed).await;
    let found = told(&report)[&("a", "where tenantId = \"a\" by createdAt")];
    assert_eq!((found.page, found.ids.as_slice()), (4, ["r40".to_owned()].as_slice()));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_to_compare_is_inconclusive() {
    let bed = Bed::new().await;
    bed.database.create_collection("runs").await.expect("create");
    let report = compare(&bed).await;
    assert_eq!((report.verdict, report.records), (Verdict::Inconclusive, 0));
    assert!(report.queries > 0);
    let latest = reads::latest(bed.pool()).await.expect("look").expect("a record");
    assert!(latest.verdict == Verdict::Inconclusive && latest.is_genuine);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_was_tampered_with_is_found_out() {
    let bed = Bed::new().await;
    insert(&bed, "runs", vec![run("a", "r", 0)]).await;
    assert_eq!(reads::latest(bed.pool()).await.expect("look"), None);
    compare(&bed).await;
    let latest = async || reads::latest(bed.pool()).await.expect("look").expect("a record");
    assert!(latest().await.is_genuine && latest().await.verdict == Verdict::Mismatch);
    for damage in [
        "report = jsonb_set(report, '{verdict}', '\"clean\"')",
        "report = '{}'",
        "report = jsonb_set(report, '{sampled}', 'true')",
        "epoch = epoch + 1",
        "phase = 'mongo-primary'",
        "began_at = began_at + interval '1 microsecond'",
        "finished_at = finished_at + interval '1 hour'",
        "digest = '\\x00'",
    ] {
        sql(&bed, "create table kept as table bridge.read_parity").await;
        sql(&bed, &format!("update bridge.read_parity set {damage}")).await;
        assert!(!latest().await.is_genuine, "{damage}");
        sql(
            &bed,
            "update bridge.read_parity p set (phase, epoch, began_at, finished_at, report, digest)
            = (select phase, epoch, began_at, finished_at, report, digest from kept k where k.id = p.id); drop table kept",
        )
        .await;
        assert!(latest().await.is_genuine, "{damage}, undone");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_is_of_so_many_tenants_and_says_so() {
    let bed = Bed::new().await;
    insert(&bed, "runs", (0..12).map(|n| run(&format!("t{n}"), &format!("r{n}"), 0)).collect()).await;
    backfill(&bed).await;
    let sampled = async |tenants| {
        let report = try_compare(&bed, &Options { tenants: NonZeroU64::new(tenants), ..options() }).await;
        let report = report.expect("compare");
        assert_clean(&report);
        let latest = reads::latest(bed.pool()).await.expect("look").expect("a record");
        assert!(latest.is_genuine && latest.is_sampled == report.sampled);
        (report.tenants, report.tenants_in_all, report.sampled, report.records)
    };
    let (tenants, in_all, is_sampled, records) = sampled(3).await;
    assert_eq!((tenants, in_all, is_sampled), (3, 12, true));
    let all = sampled(12).await;
    assert_eq!((all.0, all.1, all.2, all.3), (12, 12, false, records * 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rate_is_kept_to() {
    let bed = Bed::new().await;
    insert(&bed, "runs", (0..100).map(|second| run("a", &format!("r{second}"), second)).collect()).await;
    backfill(&bed).await;
    let begun = tokio::time::Instant::now();
    let rate = Rate { documents: NonZeroU64::new(1_000), bytes: None };
    let report = try_compare(&bed, &Options { rate, ..options() }).await.expect("compare");
    // Both stores' documents count.
    let least = Duration::from_millis(2 * report.records - 200);
    assert!(report.records > 500 && begun.elapsed() >= least, "{} records in {:?}", report.records, begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_ends_with_the_verdict_and_its_exit_code() {
    let bed = Bed::new().await;
    bed.database.create_collection("runs").await.expect("create");
    let command = |arguments: &[&str]| bed.bridge(&[&["verify", "--reads"], arguments].concat());
    let ended = async |exit: i32, verdict: &str| -> Value {
        let (code, objects, stderr) = objects(command(&["--json"])).await;
        assert_eq!((code, stderr.as_str()), (Some(exit), ""));
        let last = objects.last().expect("an object").clone();
        assert_eq!(last["verdict"], verdict);
        last
    };
    ended(6, "inconclusive").await;
    // As many as values are drawn for arguments: so the queries are the same each time.
    insert(&bed, "runs", (0..2).map(|second| run("a", &format!("\u{1b}[2J{second}"), second)).collect()).await;
    backfill(&bed).await;
    ended(0, "clean").await;
    sql(&bed, "delete from scheduler.runs where id like '%1'").await;
    let object = ended(1, "mismatch").await;
    let found = &object["differences"][0];
    let fields: Vec<_> = found.as_object().expect("an object").keys().map(String::as_str).collect();
    let expected = ["collection", "tenant", "query", "page", "kind", "ids", "more_ids", "since", "diff"];
    assert_eq!(fields, expected);
    assert_eq!((&found["kind"], &found["ids"][0]), (&Value::from("missing"), &Value::from("\u{1b}[2J1")));
    let mut command = tokio::process::Command::from(command(&["--diffs", "1"]));
    let output = command.kill_on_drop(true).output().await.expect("run bridge");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.code() == Some(1) && !text.contains('\u{1b}'), "{text}");
    insta::with_settings!({ filters => [
        (r"found in \d+\.\d s", "found in [time] s"), (r"\{\\?\x22\$date[^}]*\}", "[moment]"), (r" +\n", "\n"),
    ] }, { insta::assert_snapshot!("reads", text) });
}
