//! The same effects with the PostgreSQL driver alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures::FutureExt;
use mongodb::bson;
use scheduler_bridge::entity::runs::{Delta, Reason, Stats};
use scheduler_bridge::lock::PostgresLocks;
use scheduler_bridge::scheduler::cron::Cron;
use scheduler_bridge::store::PostgresStore;
use sqlx::types::Json;
use sqlx::types::chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};

use super::contenders::{self, CLAIMED, Contender, LINES, LOCKS, PAGE, Pair, Prepare, Side, contender, nothing};
use super::samples::{at, log_line, run};

pub fn pairs(store: &PostgresStore, locks: &PostgresLocks, pool: &PgPool) -> Vec<Pair> {
    let reset = reset(pool);
    vec![
        Pair { name: "get", cost: 1, bridge: contenders::get(store), plain: get(store, pool) },
        Pair { name: "create", cost: 1, bridge: contenders::create(store), plain: create(pool) },
        Pair { name: "update", cost: 1, bridge: contenders::update(store), plain: update(store, pool) },
        Pair { name: "list, 50 items", cost: 4, bridge: contenders::list(store), plain: list(store, pool) },
        Pair {
            name: "claim_due, 10 triggers",
            cost: 10,
            bridge: contenders::claim_due(store, reset.clone()),
            plain: claim(contenders::triggers(store, reset), pool),
        },
        Pair { name: "append, 100 lines", cost: 10, bridge: contenders::append(store), plain: append(pool) },
        Pair { name: "lock: acquire and release", cost: 1, bridge: contenders::lock(locks), plain: lock(pool) },
    ]
}

/// A run as its columns give it.
#[derive(sqlx::FromRow)]
#[expect(dead_code, reason = "decoding the columns is the effect that is measured")]
struct PlainRun {
    id: String,
    schema_version: Option<String>,
    tenant_id: String,
    schedule_id: Option<String>,
    trigger: Option<String>,
    state: String,
    stats: Json<Stats>,
    reason: Json<Reason>,
    created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
    error: Option<String>,
    deltas: Option<Json<Vec<Delta>>>,
    retry_of: Option<String>,
    updated_at: DateTime<Utc>,
}

const COLUMNS: &str = "id, schema_version, tenant_id, schedule_id, trigger, state, stats, reason, created_at, started_at, \
                       finished_at, error, deltas, retry_of, updated_at";

fn get(store: &PostgresStore, pool: &PgPool) -> Contender {
    let pool = pool.clone();
    let sql = format!("select {COLUMNS} from scheduler.runs where id = $1 and tenant_id = $2");
    contender(contenders::runs(store, Side::Plain), move |index| {
        let (pool, sql) = (pool.clone(), sql.clone());
        async move {
            let query =
                sqlx::query_as::<_, PlainRun>(sqlx::AssertSqlSafe(sql)).bind(Side::Plain.run_id(index)).bind("plain");
            query.fetch_one(&pool).await.expect("get");
        }
    })
}

fn create(pool: &PgPool) -> Contender {
    let pool = pool.clone();
    contender(nothing(), move |index| {
        let pool = pool.clone();
        async move {
            let run = run("created", &format!("plain-new-{index}"));
            sqlx::query(
                "insert into scheduler.runs (id, schema_version, tenant_id, schedule_id, trigger, state, stats, reason, \
                 created_at, updated_at, epoch, clock) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 1, 1)",
            )
            .bind(&run.id)
            .bind(&run.schema_version)
            .bind(&run.tenant_id)
            .bind(&run.schedule_id)
            .bind(&run.trigger)
            .bind(run.state.word())
            .bind(Json(&run.stats))
            .bind(Json(bson::serialize_to_document(&run.reason).expect("a document")))
            .bind(run.created_at.0)
            .bind(run.updated_at.0)
            .execute(&pool)
            .await
            .expect("insert");
        }
    })
}

fn update(store: &PostgresStore, pool: &PgPool) -> Contender {
    let pool = pool.clone();
    let sql = format!(
        "update scheduler.runs
        set state = 'queued', updated_at = greatest(updated_at, $3),
            stats = jsonb_set(stats, '{{candidates}}', to_jsonb(greatest((stats ->> 'candidates')::bigint, $4)))
        where id = $1 and tenant_id = $2 and state in ('planning', 'queued')
        returning {COLUMNS}"
    );
    contender(contenders::runs(store, Side::Plain), move |index| {
        let (pool, sql) = (pool.clone(), sql.clone());
        async move {
            sqlx::query_as::<_, PlainRun>(sqlx::AssertSqlSafe(sql))
                .bind(Side::Plain.run_id(index))
                .bind("plain")
                .bind(at(1).0)
                .bind(i64::try_from(index).expect("a small number"))
                .fetch_one(&pool)
                .await
                .expect("update");
        }
    })
}

fn list(store: &PostgresStore, pool: &PgPool) -> Contender {
    let pool = pool.clone();
    let sql = format!(
        "select {COLUMNS} from scheduler.runs where tenant_id = $1 order by coalesce(created_at, '-infinity'), id limit $2"
    );
    contender(contenders::runs(store, Side::Plain), move |_| {
        let (pool, sql) = (pool.clone(), sql.clone());
        async move {
            let query = sqlx::query_as::<_, PlainRun>(sqlx::AssertSqlSafe(sql)).bind("plain").bind(i64::from(PAGE));
            assert_eq!(query.fetch_all(&pool).await.expect("list").len(), PAGE as usize);
        }
    })
}

/// Holds what is due and nobody else holds, and moves it on. Each trigger's next firing follows from its own expression:
/// no statement could compute it.
fn claim(prepare: Prepare, pool: &PgPool) -> Contender {
    let pool = pool.clone();
    contender(prepare, move |_| {
        let pool = pool.clone();
        async move {
            let mut left = i64::from(CLAIMED);
            while left > 0 {
                left -= claim_some(&pool, left).await;
            }
        }
    })
}

async fn claim_some(pool: &PgPool, limit: i64) -> i64 {
    let mut transaction = pool.begin().await.expect("begin");
    let due: Vec<(String, String, String, DateTime<Utc>)> = sqlx::query_as(
        "select id, cron_expression, timezone, next_fire_at from scheduler.triggers
        where enabled and next_fire_at is not null and coalesce(next_fire_at, '-infinity') <= $1
        order by coalesce(next_fire_at, '-infinity'), id
        limit $2 for update skip locked",
    )
    .bind(at(10_000_000).0)
    .bind(limit)
    .fetch_all(&mut *transaction)
    .await
    .expect("find");
    let mut crons = HashMap::new();
    let next = due.iter().map(|(_, expression, zone, _)| {
        let cron = crons.entry((expression, zone));
        cron.or_insert_with(|| Cron::parse(expression, zone).expect("an expression")).next(at(10_000_000).0)
    });
    let next: Vec<Option<DateTime<Utc>>> = next.collect();
    let claimed = sqlx::query(
        "update scheduler.triggers t
        set next_fire_at = u.next, last_fired_at = u.due, updated_at = greatest(updated_at, $4)
        from unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) as u (id, due, next)
        where t.id = u.id
        returning t.*",
    )
    .bind(due.iter().map(|(id, ..)| id.as_str()).collect::<Vec<_>>())
    .bind(due.iter().map(|(.., due)| *due).collect::<Vec<_>>())
    .bind(next)
    .bind(at(10_000_000).0)
    .fetch_all(&mut *transaction)
    .await
    .expect("claim");
    transaction.commit().await.expect("commit");
    i64::try_from(claimed.len()).expect("a small number")
}

/// Makes every trigger due.
fn reset(pool: &PgPool) -> Prepare {
    let pool = pool.clone();
    Arc::new(move |_| {
        let pool = pool.clone();
        async move {
            let query = sqlx::query("update scheduler.triggers set next_fire_at = $1").bind(at(0).0);
            query.execute(&pool).await.expect("reset");
            sqlx::query("vacuum scheduler.triggers").execute(&pool).await.expect("vacuum");
        }
        .boxed()
    })
}

fn append(pool: &PgPool) -> Contender {
    let pool = pool.clone();
    contender(nothing(), move |index| {
        let pool = pool.clone();
        async move {
            let run = format!("run-{index}");
            let lines: Vec<_> = (1..=LINES).map(|line| log_line("plain", &run, line)).collect();
            sqlx::query(
                "insert into scheduler.execution_logs
                    (id, tenant_id, run_id, sequence, level, message, timestamp, metadata, epoch, clock)
                select u.id, 'plain', $1, u.sequence, 'info', u.message, u.timestamp, '{}', 1, 1
                from unnest($2::text[], $3::bigint[], $4::text[], $5::timestamptz[]) u (id, sequence, message, timestamp)",
            )
            .bind(&run)
            .bind(lines.iter().map(|line| line.id.to_hex()).collect::<Vec<_>>())
            .bind(lines.iter().map(|line| line.sequence).collect::<Vec<_>>())
            .bind(lines.iter().map(|line| line.message.clone()).collect::<Vec<_>>())
            .bind(lines.iter().map(|line| line.timestamp.0).collect::<Vec<_>>())
            .execute(&pool)
            .await
            .expect("insert");
        }
    })
}

/// The bare pair, on a session that nobody else uses meanwhile: no pool asks whether it lives.
fn lock(pool: &PgPool) -> Contender {
    let (pool, free) = (pool.clone(), Arc::new(Mutex::new(Vec::<PgConnection>::new())));
    contender(nothing(), move |index| {
        let (pool, free) = (pool.clone(), free.clone());
        async move {
            let last = free.lock().expect("the sessions").pop();
            let mut session = match last {
                Some(session) => session,
                None => pool.acquire().await.expect("a session").detach(),
            };
            let id = i64::try_from(index % LOCKS).expect("a small number");
            // Another caller may still be at the same lock.
            while !asked("select pg_try_advisory_lock($1)", id, &mut session).await {}
            assert!(asked("select pg_advisory_unlock($1)", id, &mut session).await);
            free.lock().expect("the sessions").push(session);
        }
    })
}

async fn asked(statement: &'static str, id: i64, session: &mut PgConnection) -> bool {
    sqlx::query_scalar(statement).bind(id).fetch_one(session).await.expect(statement)
}
