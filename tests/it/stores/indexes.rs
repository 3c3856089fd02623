//! Every query of the repositories is served by an index, on both stores, and a page far down costs what the first costs.

use std::sync::{Arc, Mutex};

use bson::{Document, doc};
use chrono::{DateTime, TimeDelta, Utc};
use scheduler_bridge::entity::{ENTITIES, Entity, Kind, Record, runs::Run};
use scheduler_bridge::mapping::Key;
use scheduler_bridge::scheduler::{PageRequest, Scheduler, audit, runs, schedules};
use scheduler_bridge::store::{
    Address, After, Change, Cursor, Direction, Filter, MongoStore, Page, PostgresStore, Query, Store, StoreError,
    Stored,
};
use scheduler_bridge::target::KEYED;
use sqlx::AssertSqlSafe;

use super::samples::{at, tenant};
use super::{AnyStore, both};
use crate::bed::Bed;

/// A store that notes what it is asked.
#[derive(Clone)]
struct Noting {
    store: AnyStore,
    asked: Arc<Mutex<Vec<Query>>>,
}

impl Store for Noting {
    async fn get(&self, address: &Address) -> Result<Option<Stored>, StoreError> {
        self.store.get(address).await
    }

    async fn get_many(&self, entity: &'static Entity, keys: &[Key]) -> Result<Vec<Option<Stored>>, StoreError> {
        self.store.get_many(entity, keys).await
    }

    async fn find(&self, query: &Query) -> Result<Page, StoreError> {
        self.asked.lock().expect("a list").push(query.clone());
        self.store.find(query).await
    }

    async fn apply(&self, changes: &[Change]) -> Result<Vec<After>, StoreError> {
        self.store.apply(changes).await
    }

    async fn apply_each(&self, changes: &[Change]) -> Result<Vec<Option<After>>, StoreError> {
        self.store.apply_each(changes).await
    }

    async fn now(&self) -> Result<DateTime<Utc>, StoreError> {
        self.store.now().await
    }
}

/// Asks everything that the repositories can ask, first pages and further ones.
async fn ask_everything(scheduler: &Scheduler<Noting>) {
    let (of, page) = (tenant("t7"), PageRequest::first(5));
    let silence = std::time::Duration::from_secs(3_600);
    let named = || Some("s3".to_owned());
    for (enabled, name) in [(None, None), (Some(true), None), (Some(false), named()), (None, named())] {
        for deleted in [schedules::Deleted::Hidden, schedules::Deleted::Included] {
            let options = schedules::ListOptions { enabled, deleted, name: name.clone() };
            scheduler.schedules.list(&of, &options, &page).await.expect("list");
        }
    }
    scheduler.schedules.due(at(0), 5).await.expect("due");
    scheduler.triggers.list_by_schedule(&of, "s3", &page).await.expect("list");
    scheduler.triggers.claim_due(at(0), 5, "w").await.expect("claim");
    for state in [None, Some(scheduler_bridge::entity::runs::RunState::Queued)] {
        for (schedule_id, created_after) in [(None, None), (named(), None), (None, Some(at(0))), (named(), Some(at(0)))]
        {
            let options = runs::ListOptions { state, schedule_id, created_after };
            scheduler.runs.list(&of, &options, &page).await.expect("list");
        }
    }
    scheduler.runs.pending(&of, 5).await.expect("pending");
    scheduler.runs.by_schedule(&of, "s3", 5).await.expect("by schedule");
    for status in [None, Some(scheduler_bridge::entity::graph_jobs::GraphJobStatus::Queued)] {
        scheduler.graph_jobs.list(&of, status, &page).await.expect("list");
    }
    for status in [None, Some(scheduler_bridge::entity::policy_jobs::PolicyJobStatus::Pending)] {
        scheduler.policy_jobs.list(&of, status, &page).await.expect("list");
    }
    scheduler.policy_jobs.lease("w", silence, 5).await.expect("lease");
    scheduler.policy_jobs.return_expired(5).await.expect("return");
    scheduler.impact_snapshots.by_run(&of, "r3", 5).await.expect("by run");
    scheduler.impact_snapshots.latest(&of).await.expect("latest");
    scheduler.workers.reap(silence, 5).await.expect("reap");
    scheduler.execution_logs.by_run(&of, "r3", 2, 5).await.expect("by run");
    scheduler.run_summaries.list(&of, &page).await.expect("list");
    for (entity_id, from) in [(None, None), (named(), None), (None, Some(at(0))), (named(), Some(at(0)))] {
        let options = audit::ListOptions { entity_id, from, before: None };
        scheduler.audit.query(&of, &options, &page).await.expect("query");
    }
}

/// How many records of each entity there are.
const RECORDS: i32 = 20_000;

/// A value for a field of record `i`: many tenants, states of every kind, moments far apart.
fn sql_value(entity: &Entity, name: &str, kind: Kind) -> String {
    match (name, kind) {
        ("tenantId", _) => "'t' || i % 40".to_owned(),
        ("scheduleId" | "name" | "entityId", _) => "'s' || i / 40 % 100".to_owned(),
        ("runId", _) => "'r' || i / 40 % 100".to_owned(),
        ("leaseOwner", _) => "case when i % 5 = 0 then 'w' || i % 100 end".to_owned(),
        ("deletedAt", _) => "null".to_owned(),
        (_, Kind::Word(vocabulary)) => {
            let words = vocabulary.words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(", ");
            format!("(array[{words}])[1 + i % {}]", vocabulary.words.len())
        }
        (_, Kind::Instant) if entity.name == "triggers" => {
            // Some are due, most are not.
            format!("timestamptz '{}' + (i - 500) * interval '1 minute'", at(0).0.to_rfc3339())
        }
        (_, Kind::Instant) => format!("timestamptz '{}' - i * interval '1 minute'", at(0).0.to_rfc3339()),
        (_, Kind::Int32) => "1".to_owned(),
        (_, Kind::Int64) => "i % 50".to_owned(),
        (_, Kind::Bool) => "i % 2 = 0".to_owned(),
        (_, Kind::Json) => "null".to_owned(),
        (_, Kind::Name | Kind::Text) => "'x'".to_owned(),
    }
}

/// Fills PostgreSQL, and MongoDB with the same documents, a few records of each entity being enough there.
async fn fill(bed: &Bed) {
    for entity in ENTITIES {
        let columns = entity.fields.iter().map(|field| field.column).collect::<Vec<_>>().join(", ");
        let values = entity.fields.iter().map(|field| sql_value(entity, field.name, field.kind)).collect::<Vec<_>>();
        let id = if entity.name == "execution_logs" { "lpad(to_hex(i), 24, '0')" } else { "'id' || i" };
        let sql = format!(
            "insert into scheduler.{} (id, {columns}, epoch, clock) select {id}, {}, 1, i from generate_series(1, {RECORDS}) i",
            entity.name,
            values.join(", ")
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(bed.pool()).await.expect(entity.name);
        let analyze = format!("analyze scheduler.{}", entity.name);
        sqlx::raw_sql(AssertSqlSafe(analyze)).execute(bed.pool()).await.expect("analyze");
    }
}

/// Only queries that a record or two would not satisfy are asked of the empty store; the answers do not matter.
async fn queries(store: AnyStore) -> Vec<Query> {
    let noting = Noting { store, asked: Arc::default() };
    let scheduler = Scheduler::new(&noting);
    let asked = noting.asked.clone();
    // An empty store has no latest snapshot.
    scheduler.impact_snapshots.put(&super::samples::snapshot("t7", "i", "r3")).await.expect("put");
    ask_everything(&scheduler).await;
    let mut asked = std::mem::take(&mut *asked.lock().expect("a list"));
    let worker_jobs = Query::of(scheduler_bridge::entity::named("policy_jobs").expect("policy jobs"));
    asked.push(worker_jobs.only(Filter::Is("leaseOwner", "w3".into())).limit(200));
    // Each page is followed by another.
    let further = asked.iter().filter(|query| query.limit < 1_000).map(|query| {
        let value = match query.order.field.and_then(|field| query.entity.field(field)).map(|field| field.kind) {
            Some(Kind::Instant) => bson::DateTime::from_chrono(at(-60_000).0).into(),
            Some(_) => bson::Bson::Int64(7),
            None => bson::Bson::Null,
        };
        let id = if query.entity.name == "execution_logs" { "0".repeat(24) } else { "id5".to_owned() };
        query.clone().after(Some(Cursor { value, id }))
    });
    let further: Vec<Query> = further.collect();
    asked.extend(further);
    asked
}

/// Stages of a MongoDB plan that read everything, or sort what they have read.
fn refused_stages(plan: &Document, found: &mut Vec<String>) {
    if let Ok(stage) = plan.get_str("stage")
        && ["COLLSCAN", "SORT"].contains(&stage)
    {
        found.push(stage.to_owned());
    }
    for (_, value) in plan {
        match value {
            bson::Bson::Document(inner) => refused_stages(inner, found),
            bson::Bson::Array(items) => {
                items.iter().filter_map(bson::Bson::as_document).for_each(|inner| refused_stages(inner, found))
            }
            _ => {}
        }
    }
}

async fn mongo_explain(bed: &Bed, query: &Query, verbosity: &str) -> Document {
    let (filter, sort, limit) = MongoStore::plan(query).expect("a plan");
    let find = doc! { "find": query.entity.name, "filter": filter, "sort": sort, "limit": limit };
    bed.database.run_command(doc! { "explain": find, "verbosity": verbosity }).await.expect("explain")
}

#[tokio::test(flavor = "multi_thread")]
async fn no_query_of_a_repository_reads_a_whole_table_or_sorts_it() {
    let bed = Bed::new().await;
    let [(_, mongo), (_, postgres)] = both(&bed).await;
    let AnyStore::Postgres(store) = postgres.clone() else { panic!("PostgreSQL") };
    let asked = queries(mongo).await;
    assert!(asked.len() > 70, "everything was to be asked: {}", asked.len());
    fill(&bed).await;
    for query in &asked {
        let explained = mongo_explain(&bed, query, "queryPlanner").await;
        let mut refused = Vec::new();
        refused_stages(
            explained.get_document("queryPlanner").expect("a plan").get_document("winningPlan").expect("a plan"),
            &mut refused,
        );
        assert!(refused.is_empty(), "{query:?}: {refused:?} in {explained}");
        postgres_uses_indexes(&bed, &store, query).await;
    }
}

/// Whatever the values, and with these values.
async fn postgres_uses_indexes(bed: &Bed, store: &PostgresStore, query: &Query) {
    let statement = store.plan(query).expect("a statement");
    let values = vec!["null"; statement.matches('$').count()];
    let sql = format!("{KEYED}; prepare q as {statement}; explain execute q({}); deallocate q", values.join(", "));
    let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(bed.pool()).await.expect("explain");
    let generic: Vec<String> = rows.iter().map(|row| sqlx::Row::get(row, 0)).collect();
    assert!(!generic.is_empty());
    let with_values = store.explain(query).await.expect("explain");
    for lines in [generic, with_values] {
        let refused = lines.iter().find(|line| line.contains("Seq Scan") || line.contains("Sort"));
        assert!(
            refused.is_none(),
            "{} {:?} by {:?}:\n{}",
            query.entity.name,
            query.filters,
            query.order,
            lines.join("\n")
        );
    }
}

/// How many runs of one tenant there are in the deep list.
const DEEP: i64 = 1_000_000;

fn page_at(index: Option<i64>) -> Query {
    let cursor = index.map(|index| Cursor {
        value: bson::DateTime::from_chrono(at(0).0 + TimeDelta::seconds(index)).into(),
        id: format!("r{index}"),
    });
    Query::of(Run::ENTITY)
        .only(Filter::Is("tenantId", "deep".into()))
        .by("createdAt", Direction::Ascending)
        .after(cursor)
        .limit(50)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_a_million_rows_down_costs_what_the_first_costs() {
    let bed = Bed::new().await;
    let [(_, mongo), (_, postgres)] = both(&bed).await;
    let AnyStore::Postgres(store) = postgres.clone() else { panic!("PostgreSQL") };
    let sql = format!(
        "insert into scheduler.runs (id, tenant_id, state, created_at, epoch, clock)
        select 'r' || i, 'deep', 'completed', timestamptz '{}' + i * interval '1 second', 1, i
        from generate_series(1, {DEEP}) i; analyze scheduler.runs",
        at(0).0.to_rfc3339()
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(bed.pool()).await.expect("fill");
    let collection = bed.database.collection::<Document>("runs");
    for first in (1..=DEEP).step_by(20_000) {
        let documents = (first..first + 20_000).map(|index| {
            let created = bson::DateTime::from_chrono(at(0).0 + TimeDelta::seconds(index));
            doc! { "_id": format!("r{index}"), "tenantId": "deep", "state": "completed", "createdAt": created }
        });
        collection.insert_many(documents).await.expect("fill");
    }
    let near_the_end = DEEP - 51;
    for (name, store) in [("MongoDB", &mongo), ("PostgreSQL", &postgres)] {
        let page = store.find(&page_at(Some(near_the_end))).await.expect("find");
        let first = page.items[0].document.get_str("_id").expect("an id");
        assert_eq!((page.items.len(), first), (50, format!("r{}", near_the_end + 1).as_str()), "{name}");
    }
    let examined = async |index| {
        let explained = mongo_explain(&bed, &page_at(index), "executionStats").await;
        let stats = explained.get_document("executionStats").expect("statistics").clone();
        stats.get_i32("totalKeysExamined").expect("a number") + stats.get_i32("totalDocsExamined").expect("a number")
    };
    let (first, deep) = (examined(None).await, examined(Some(near_the_end)).await);
    assert!(deep <= first + 4, "MongoDB: {first} and {deep} keys and documents");
    let buffers = async |index| {
        let lines = store.explain(&page_at(index)).await.expect("explain");
        let line = lines.iter().find(|line| line.contains("Buffers: shared")).expect("buffers");
        let numbers = line.split([' ', '=']).filter_map(|word| word.parse::<u64>().ok());
        numbers.sum::<u64>()
    };
    let (first, deep) = (buffers(None).await, buffers(Some(near_the_end)).await);
    assert!(deep <= first * 2, "PostgreSQL: {first} and {deep} buffers");
}
