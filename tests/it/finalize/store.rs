//! PostgreSQL as the scheduler's store once the move is over.

use bson::{RawDocumentBuf, rawdoc};
use scheduler_bridge::entity::{ENTITIES, named};
use scheduler_bridge::finalize::Reference;
use scheduler_bridge::layout::Layout;
use scheduler_bridge::scheduler::{Error, Scheduler};
use scheduler_bridge::store::{Address, Change, PostgresStore, Store, StoreError};
use scheduler_bridge::target::Target;
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, Executor};

use super::finalized;
use crate::bed::Bed;
use crate::contract::{ALL, Situation, Stage};
use crate::stores::AnyStore;
use crate::stores::samples::{run, schedule};

async fn store(bed: &Bed) -> PostgresStore {
    let url = SecretString::from(bed.postgres_url.as_str());
    let target = Target::open_prepared(&url, 8).await.expect("open PostgreSQL");
    PostgresStore::laid_out(target.pool().clone(), target.layout().await.expect("look"))
}

/// Operations that are tried on what no column holds exactly: texts with NUL, and a document of nobody's making.
const INEXACT: [(&str, Situation); 4] = [
    ("runs.get", Situation::WrongTenant),
    ("schedules.upsert", Situation::Happy),
    ("execution_logs.append", Situation::Happy),
    ("execution_logs.by_run", Situation::Happy),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_holds() {
    let bed = finalized().await;
    // Most operations are tried on records of their own alone.
    for reference in Reference::all() {
        let Reference { collection, column, .. } = reference;
        let drop = format!("alter table scheduler.{collection} drop constraint {collection}_{column}_fkey");
        bed.pool().execute(AssertSqlSafe(drop)).await.expect("drop the reference");
    }
    let empty: String = ENTITIES.iter().map(|entity| format!("delete from scheduler.{}; ", entity.name)).collect();
    let store = AnyStore::Postgres(store(&bed).await);
    for case in ALL.iter().copied().flatten() {
        if INEXACT.contains(&(case.operation, case.situation)) {
            continue;
        }
        println!("{} {:?}", case.operation, case.situation);
        bed.pool().execute(AssertSqlSafe(empty.clone())).await.expect("empty the tables");
        (case.run)(Stage { scheduler: Scheduler::new(&store), store: store.clone() }).await;
    }
}

/// A run of nobody's making.
fn document(id: &str) -> RawDocumentBuf {
    rawdoc! { "_id": id, "tenantId": "t", "state": "queued" }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_column_holds_exactly_is_refused() {
    let bed = finalized().await;
    let store = store(&bed).await;
    let runs = named("runs").expect("runs");
    let mut odd = document("odd");
    odd.append(bson::raw::cstr!("shard"), 3);
    for document in [odd.clone(), rawdoc! { "_id": "nul", "tenantId": "t", "state": "queued", "error": "a\0b" }] {
        let refused = store.apply(&[Change::create(runs, document)]).await.expect_err("it cannot be kept");
        assert!(matches!(&refused, StoreError::Refused { reason, .. } if reason.contains("exactly")), "{refused}");
    }
    let written = store.apply(&[Change::create(runs, document("odd"))]).await.expect("write");
    let held = written.into_iter().next().and_then(|after| after.stored()).expect("a document");
    let change = Change::replace(Address::new(runs, "odd"), held, odd);
    assert!(matches!(store.apply(&[change]).await, Err(StoreError::Refused { .. })));
    let found = store.get(&Address::new(runs, "odd")).await.expect("read").expect("a document");
    assert_eq!(found.document, document("odd"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_refers_to_nothing_is_the_callers_mistake() {
    let bed = finalized().await;
    let scheduler = Scheduler::new(&store(&bed).await);
    let mut new = run("t", "r");
    new.schedule_id = Some("absent".to_owned());
    let refused = scheduler.runs.create(&new).await.expect_err("it must lead somewhere");
    assert!(matches!(&refused, Error::Invalid { reason, .. } if reason.contains("absent")), "{refused}");
    scheduler.schedules.upsert(&schedule("t", "absent")).await.expect("put the schedule");
    scheduler.runs.create(&new).await.expect("create");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_anybody_wrote_since_is_not_what_was_read() {
    let bed = finalized().await;
    let store = store(&bed).await;
    let runs = named("runs").expect("runs");
    let keys = ["one", "two"];
    let create: Vec<Change> = keys.iter().map(|id| Change::create(runs, document(id))).collect();
    let written = store.apply(&create).await.expect("write");
    let held: Vec<_> = written.into_iter().map(|after| after.stored().expect("a document")).collect();
    let replace =
        |index: usize| Change::replace(Address::new(runs, keys[index]), held[index].clone(), document(keys[index]));
    // By hand, and to the same: it was written all the same.
    bed.pool().execute("update scheduler.runs set state = state where id = 'two'").await.expect("write by hand");
    for changes in [vec![replace(1)], vec![replace(0), replace(1)]] {
        let conflict = store.apply(&changes).await.expect_err("somebody was there");
        assert!(matches!(&conflict, StoreError::Conflict { address } if address.key.text() == "two"), "{conflict}");
    }
    // A write that changes nothing is one too, for one row and for several.
    let first = store.apply(&[replace(0)]).await.expect("it is as it was read");
    assert!(matches!(store.apply(&[replace(0)]).await, Err(StoreError::Conflict { .. })));
    let again = first.into_iter().next().and_then(|after| after.stored()).expect("a document");
    let change = Change::replace(Address::new(runs, "one"), again.clone(), document("one"));
    store.apply(&[change]).await.expect("the last writer knows what it wrote");
    let change = Change::Delete { address: Address::new(runs, "one"), unchanged: again };
    assert!(matches!(store.apply(&[change]).await, Err(StoreError::Conflict { .. })));
    let now = store.get(&Address::new(runs, "one")).await.expect("read").expect("a document");
    store.apply(&[Change::Delete { address: Address::new(runs, "one"), unchanged: now }]).await.expect("delete");
    assert_eq!(store.get(&Address::new(runs, "one")).await.expect("read"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_all_tables_without_a_column_of_the_bridges_are_the_last_layout() {
    let bed = finalized().await;
    let look = async || Layout::of(bed.pool()).await.expect("look");
    assert_eq!(look().await, Layout::Final);
    for (change, layout) in [
        ("alter table scheduler.audit add column clock bigint", Layout::Moving),
        ("alter table scheduler.audit drop column clock", Layout::Final),
        ("drop table scheduler.audit", Layout::Moving),
        ("drop schema scheduler cascade", Layout::Moving),
    ] {
        bed.pool().execute(change).await.expect(change);
        assert_eq!(look().await, layout, "{change}");
    }
}
