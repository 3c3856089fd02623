//! Writes that meet at the same rows: what each must wait for, and what none may see.

use std::str::FromStr;
use std::time::Duration;

use bson::{RawDocumentBuf, doc, rawdoc};
use scheduler_bridge::entity;
use scheduler_bridge::store::{Address, Change, MongoStore, PostgresStore, Store, StoreError, Stored};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio_util::sync::CancellationToken;

use super::contract::{address, document, put, replace, runs};
use super::{AnyStore, both};
use crate::bed::{Bed, until};

/// How long anything may take that does not wait in vain.
const SOON: Duration = Duration::from_secs(10);

async fn postgres(bed: &Bed) -> AnyStore {
    let [_, (_, store)] = both(bed).await;
    store
}

/// Makes each insertion of a run wait after it has taken its clock, where it has not yet met any other row.
async fn slow_insertions(bed: &Bed) {
    let statements = "create function public.slow() returns trigger language plpgsql
            as 'begin perform pg_sleep(0.5); return new; end';
        create trigger slow before insert on scheduler.runs for each row execute function public.slow()";
    sqlx::raw_sql(statements).execute(bed.pool()).await.expect("make insertions slow");
}

/// Until an insertion waits.
async fn waits(bed: &Bed) {
    let waits = async || {
        let waiting: i64 = sqlx::query_scalar(
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'PgSleep'",
        )
        .fetch_one(bed.pool())
        .await
        .expect("count");
        waiting > 0
    };
    until("an insertion waits", SOON, waits).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_is_never_older_than_the_tombstone_of_its_key() {
    let bed = Bed::new().await;
    let store = postgres(&bed).await;
    let unchanged = put(&store, "a", doc! {}).await;
    slow_insertions(&bed).await;
    let inserting = tokio::spawn({
        let store = store.clone();
        async move { store.apply(&[Change::create(runs(), document("a", doc! {}))]).await }
    });
    waits(&bed).await;
    let deleted = store.apply(&[Change::Delete { address: address("a"), unchanged }]).await.expect("delete");
    match inserting.await.expect("an insertion") {
        Err(StoreError::Conflict { .. }) => {}
        inserted => assert!(inserted.expect("an insertion")[0].stamp > deleted[0].stamp),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_checked_stays_so_until_the_other_changes_are_committed() {
    let bed = Bed::new().await;
    let store = postgres(&bed).await;
    let schedules = entity::named("schedules").expect("schedules");
    let schedule =
        |name: &str| RawDocumentBuf::try_from(&doc! { "_id": "s", "tenantId": "t", "name": name }).expect("a document");
    let created = store.apply(&[Change::create(schedules, schedule("one"))]).await.expect("create");
    let held = created.into_iter().next().and_then(|after| after.stored()).expect("a document");
    slow_insertions(&bed).await;
    let address = Address::new(schedules, "s");
    let check = Change::Check { address: address.clone(), unchanged: held.clone() };
    let writing = tokio::spawn({
        let store = store.clone();
        async move { store.apply(&[check, Change::create(runs(), document("a", doc! {}))]).await }
    });
    waits(&bed).await;
    store.apply(&[Change::replace(address, held, schedule("two"))]).await.expect("replace");
    let committed = sqlx::query_scalar::<_, i64>("select count(*) from scheduler.runs").fetch_one(bed.pool()).await;
    assert_eq!(committed.expect("count"), 1, "what was checked changed before the other change was there");
    writing.await.expect("a write").expect("apply");
}

/// Two that each check what the other writes: at most one of them can have seen the truth.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_writers_that_check_what_the_other_writes_one_wins() {
    let bed = Bed::new().await;
    let jobs = entity::named("graph_jobs").expect("graph jobs");
    let job = |note: i32| {
        let job = doc! { "_id": "b", "tenantId": "t", "status": "queued", "attempts": note };
        RawDocumentBuf::try_from(&job).expect("a document")
    };
    for (name, store) in both(&bed).await {
        let (run_address, job_address) = (address("a"), Address::new(jobs, "b"));
        put(&store, "a", doc! {}).await;
        store.apply(&[Change::create(jobs, job(-1))]).await.expect("create");
        for round in 0..40 {
            let get = async |address: &Address| store.get(address).await.expect("get").expect("a document");
            let (a, b): (Stored, Stored) = (get(&run_address).await, get(&job_address).await);
            let one = [
                Change::Check { address: run_address.clone(), unchanged: a.clone() },
                Change::replace(job_address.clone(), b.clone(), job(round)),
            ];
            let other = [
                Change::replace(run_address.clone(), a, document("a", doc! { "error": round.to_string() })),
                Change::Check { address: job_address.clone(), unchanged: b },
            ];
            let (one, other) = tokio::join!(store.apply(&one), store.apply(&other));
            let done = [one, other];
            assert_eq!(done.iter().filter(|done| done.is_ok()).count(), 1, "{name}, round {round}: {done:?}");
            assert!(done.iter().any(|done| matches!(done, Err(StoreError::Conflict { .. }))), "{name}: {done:?}");
        }
    }
}

/// A store whose sessions plan otherwise: rows in the order in which they lie, not in that of an index.
fn planned_otherwise(bed: &Bed) -> AnyStore {
    let options = PgConnectOptions::from_str(&bed.postgres_url).expect("a URL");
    let options = options.options([("enable_nestloop", "off"), ("enable_indexscan", "off")]);
    AnyStore::Postgres(PostgresStore::new(PgPoolOptions::new().connect_lazy_with(options)))
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_of_the_same_rows_wait_in_one_order_whatever_their_own() {
    let bed = Bed::new().await;
    let (store, other) = (postgres(&bed).await, planned_otherwise(&bed));
    // They lie in the reverse order of their ids.
    let ids: Vec<String> = (0..60).map(|index| format!("r-{index:02}")).collect();
    for id in ids.iter().rev() {
        put(&store, id, doc! {}).await;
    }
    let keys: Vec<_> = ids.iter().map(|id| address(id).key).collect();
    for round in 0..30 {
        let held = store.get_many(runs(), &keys).await.expect("get many");
        let changed = |(id, held): (&String, Option<Stored>)| {
            let document = document(id, doc! { "error": round.to_string() });
            Change::replace(address(id), held.expect("a document"), document)
        };
        let forward: Vec<Change> = ids.iter().zip(held).map(changed).collect();
        let backward: Vec<Change> = forward.iter().rev().cloned().collect();
        let done = tokio::join!(store.apply(&forward), store.apply(&backward), other.apply(&backward));
        let done = [done.0, done.1, done.2];
        assert_eq!(done.iter().filter(|done| done.is_ok()).count(), 1, "round {round}: {done:?}");
        let conflicts = done.iter().filter(|done| matches!(done, Err(StoreError::Conflict { .. }))).count();
        assert_eq!(conflicts, 2, "round {round}: {done:?}");
    }
}

#[tokio::test]
async fn a_number_of_another_type_is_another_document() {
    let bed = Bed::new().await;
    let steps = [
        doc! { "reason": { "a": 1, "b": 2.0, "c": [1] } },
        doc! { "reason": { "a": 1.0, "b": 2, "c": [1] } },
        doc! { "reason": { "a": 1_i64, "b": 2, "c": [1] } },
        doc! { "reason": { "a": 1, "b": 2, "c": [1] } },
        doc! { "reason": { "a": 1, "b": 2, "c": [1.0] } },
    ];
    for (name, store) in both(&bed).await {
        let mut held = put(&store, "a", steps[0].clone()).await;
        for step in &steps[1..] {
            let next = replace(&store, "a", &held, step.clone()).await.expect("replace");
            let late = replace(&store, "a", &held, doc! {}).await;
            assert!(matches!(late, Err(StoreError::Conflict { .. })), "{name}, {step}: {late:?}");
            held = next;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_the_server_ends_under_a_living_process_begins_again() {
    let bed = Bed::with_own_mongo(&[]).await;
    let store = MongoStore::new(bed.mongo.clone(), bed.database.clone(), 1);
    let run = |id: String| Change::create(runs(), rawdoc! { "_id": id, "tenantId": "t", "state": "queued" });
    // Transactions that create a collection are others.
    store.apply(&[run("first".to_owned())]).await.expect("create");
    let stop = CancellationToken::new();
    let killer = tokio::spawn({
        let (admin, stop) = (bed.mongo.database("admin"), stop.clone());
        async move {
            let mut killed = 0;
            while !stop.is_cancelled() {
                // It may kill itself.
                killed += u32::from(admin.run_command(doc! { "killAllSessions": [] }).await.is_ok());
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            killed
        }
    });
    for number in 0..200 {
        let both = [run(format!("{number}-a")), run(format!("{number}-b"))];
        store.apply(&both).await.expect("it begins again until it is through");
    }
    stop.cancel();
    assert!(killer.await.expect("the killer") > 20);
}
