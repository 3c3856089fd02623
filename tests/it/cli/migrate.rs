//! `bridge migrate` over databases in every state.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor, PgConnection};

use super::{Ended, emptied, ended};
use crate::bed::{Bed, until};

#[tokio::test]
async fn a_migration_run_twice_changes_nothing_the_second_time() {
    let bed = Bed::new().await;
    let first = ended(bed.bridge(&["migrate", "--json"])).await;
    first.says(0, &[]);
    let tables = tables(&bed).await;
    let second = ended(bed.bridge(&["migrate", "--json"])).await;
    second.says(0, &[]);
    let done: serde_json::Value = serde_json::from_str(&second.stdout).expect("one object");
    assert_eq!(done["applied"], serde_json::json!([]));
    assert_eq!(done["before"], serde_json::json!(scheduler_bridge::migrate::files()));
    assert_eq!(self::tables(&bed).await, tables);
    let told = ended(bed.bridge(&["migrate"])).await;
    assert!(told.stdout.contains("up to date"), "{}", told.stdout);
}

/// Every column, index, constraint and comment of both schemas, and every recorded migration with its time.
async fn tables(bed: &Bed) -> Vec<String> {
    let query = "select format('%s.%s.%s %s %s %s', table_schema, table_name, column_name, data_type, is_nullable, collation_name)
         from information_schema.columns where table_schema in ('scheduler', 'bridge')
         union all select indexdef from pg_indexes where schemaname in ('scheduler', 'bridge')
         union all select format('%s %s', conrelid::regclass, pg_get_constraintdef(oid)) from pg_constraint
         where connamespace in (select oid from pg_namespace where nspname in ('scheduler', 'bridge'))
         union all select format('%s %s', objoid, description) from pg_description where classoid = 'pg_class'::regclass
           and objoid in (select oid from pg_class where relnamespace in (select oid from pg_namespace where nspname in ('scheduler', 'bridge')))
         order by 1";
    sqlx::query_scalar(query).fetch_all(bed.pool()).await.expect("read the catalogue")
}

#[tokio::test]
async fn migrations_of_several_processes_at_once_all_end_well() {
    let bed = Bed::new().await;
    emptied(&bed).await;
    let runs = (0..4).map(|_| ended(bed.bridge(&["migrate", "--json"])));
    let mut appliers = 0;
    for run in futures::future::join_all(runs).await {
        run.says(0, &[]);
        let done: serde_json::Value = serde_json::from_str(&run.stdout).expect("one object");
        appliers += usize::from(done["applied"] != serde_json::json!([]));
    }
    assert_eq!(appliers, 1);
}

#[tokio::test]
async fn a_database_bootstrapped_by_hand_is_taken_over_unchanged() {
    let bed = Bed::new().await;
    emptied(&bed).await;
    for file in scheduler_bridge::migrate::files() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(file);
        let text = std::fs::read_to_string(path).expect("read the migration");
        bed.pool().execute(AssertSqlSafe(text)).await.expect("run it by hand");
    }
    let before = tables(&bed).await;
    ended(bed.bridge(&["migrate"])).await.says(0, &[]);
    let mut after = tables(&bed).await;
    after.retain(|line| !line.contains("_sqlx_migrations"));
    assert_eq!(after, before);
}

#[tokio::test]
async fn a_changed_or_an_unknown_migration_fails_loudly() {
    let bed = Bed::new().await;
    ended(bed.bridge(&["migrate"])).await.says(0, &[]);
    let file = scheduler_bridge::migrate::files().into_iter().next().expect("a migration");
    let change = "update bridge._sqlx_migrations set checksum = 'another' where version = 1";
    bed.pool().execute(change).await.expect("change");
    for arguments in [&["migrate"][..], &["quarantine", "list"][..]] {
        ended(bed.bridge(arguments)).await.says(4, &[&file, "was changed", "hint:", "new file"]);
    }
    let newer = "update bridge._sqlx_migrations set version = 9000 where version = 1";
    bed.pool().execute(newer).await.expect("change");
    ended(bed.bridge(&["migrate"])).await.says(4, &["9000", "version of the program"]);
}

#[tokio::test]
async fn a_migration_leaves_the_users_own_migrations_alone() {
    let bed = Bed::new().await;
    emptied(&bed).await;
    let theirs = "create table public._sqlx_migrations (version bigint primary key, description text not null,
                  installed_on timestamptz not null default now(), success boolean not null, checksum bytea not null,
                  execution_time bigint not null);
                  insert into public._sqlx_migrations values (1, 'theirs', now(), true, 'theirs', 1)";
    bed.pool().execute(theirs).await.expect("their migrations");
    ended(bed.bridge(&["migrate"])).await.says(0, &[]);
    let count: i64 = sqlx::query_scalar("select count(*) from public._sqlx_migrations where description = 'theirs'")
        .fetch_one(bed.pool())
        .await
        .expect("count");
    assert_eq!(count, 1);
}

#[tokio::test]
async fn a_failed_migration_leaves_nothing_behind() {
    let bed = Bed::new().await;
    emptied(&bed).await;
    // A table of another shape stands where the last migration wants an index or a column.
    bed.pool().execute("create schema bridge; create table bridge.chunk (unfit text)").await.expect("a table");
    ended(bed.bridge(&["migrate"])).await.says(4, &["rolled back", "hint:"]);
    let left: i64 = sqlx::query_scalar("select count(*) from pg_tables where schemaname in ('scheduler', 'bridge')")
        .fetch_one(bed.pool())
        .await
        .expect("count");
    assert_eq!(left, 1);
}

#[tokio::test]
async fn the_first_signal_stops_a_migration_that_waits_and_leaves_nothing() {
    for signal in ["INT", "TERM"] {
        let bed = Bed::new().await;
        emptied(&bed).await;
        let mut holder = bed.pool().begin().await.expect("begin");
        take_lock(&mut holder).await;
        let mut command = bed.bridge(&["migrate"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("run bridge");
        let waiting = "select count(*) > 0 from pg_locks where locktype = 'advisory' and not granted and database = \
                       (select oid from pg_database where datname = current_database())";
        until("the migration waits", Duration::from_secs(20), async || {
            sqlx::query_scalar(waiting).fetch_one(bed.pool()).await.expect("look")
        })
        .await;
        let sent = Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status().expect("kill");
        assert!(sent.success());
        let left: Ended = child.wait_with_output().expect("wait").into();
        left.says(130, &["stopping"]);
        holder.rollback().await.expect("roll back");
        let none: bool =
            sqlx::query_scalar("select to_regnamespace('bridge') is null").fetch_one(bed.pool()).await.expect("look");
        assert!(none);
    }
}

/// Takes the lock of the migrations: see `src/migrate.rs`.
async fn take_lock(holder: &mut PgConnection) {
    holder.execute("select pg_advisory_xact_lock(8482317552795134751)").await.expect("lock");
}

#[tokio::test]
async fn a_cancelled_statement_is_told_with_the_timeout_to_raise_and_leaves_nothing() {
    let bed = Bed::new().await;
    emptied(&bed).await;
    let mut holder = bed.pool().begin().await.expect("begin");
    take_lock(&mut holder).await;
    let impatient = format!("alter database {} set statement_timeout = '300ms'", bed.database.name());
    bed.pool().execute(AssertSqlSafe(impatient)).await.expect("set a timeout");
    ended(bed.bridge(&["migrate"])).await.says(4, &["statement timeout", "57014", "set statement_timeout = 0"]);
    let none: bool =
        sqlx::query_scalar("select to_regnamespace('bridge') is null").fetch_one(bed.pool()).await.expect("look");
    assert!(none);
}
