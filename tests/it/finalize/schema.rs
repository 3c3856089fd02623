//! The schema that is left: nothing of the bridge's, and everything of the scheduler's.
//!
//! What is expected does not come from the code that drops: it is the text of the migrations without the lines that are the
//! bridge's, and the references written out.

use std::path::{Path, PathBuf};
use std::process::Command;

use scheduler_bridge::phase::Phase;
use sqlx::{AssertSqlSafe, Executor};

use crate::bed::Bed;
use crate::commands::object;
use crate::dual::turn;
use crate::simulate::simulated;

const REFERENCES: &str = "
    alter table scheduler.triggers add constraint triggers_schedule_id_fkey
        foreign key (schedule_id) references scheduler.schedules;
    alter table scheduler.runs add constraint runs_schedule_id_fkey
        foreign key (schedule_id) references scheduler.schedules;
    alter table scheduler.impact_snapshots add constraint impact_snapshots_run_id_fkey
        foreign key (run_id) references scheduler.runs;
    alter table scheduler.execution_logs add constraint execution_logs_run_id_fkey
        foreign key (run_id) references scheduler.runs;
    alter table scheduler.run_summaries add constraint run_summaries_schedule_id_fkey
        foreign key (schedule_id) references scheduler.schedules;";

/// The migrations without what is the bridge's.
fn expected() -> String {
    let tables: Vec<&str> = include_str!("../../../migrations/0001_scheduler.sql")
        .lines()
        .filter(|line| {
            !["    residue bytea,", "    epoch integer not null,", "    clock bigint not null,"].contains(line)
        })
        .collect();
    let (_, indexes) = include_str!("../../../migrations/0003_stores.sql")
        .split_once("-- MongoDB sorts a missing date before every other")
        .expect("the indexes");
    let (_, indexes) = indexes.split_once('\n').expect("the line after");
    format!("{}\n{indexes}\n{REFERENCES}", tables.join("\n"))
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_the_one_of_the_migrations_without_what_is_the_bridges() {
    let (used, empty, fresh) = (Bed::new().await, Bed::new().await, Bed::new().await);
    for bed in [&used, &empty] {
        turn(bed, Phase::Postgres, 2).await;
    }
    // One that was worked with, and one that was not.
    assert_eq!(simulated(&used, &["postgresql", "--seconds", "2"]).await.0, Some(0));
    for bed in [&used, &empty] {
        object(bed, &["finalize", "--yes"], 0).await;
    }
    let drop = "drop schema scheduler cascade; drop schema bridge cascade";
    fresh.pool().execute(drop).await.expect("drop the schemas");
    fresh.pool().execute(AssertSqlSafe(expected())).await.expect("make the expected schema");

    let catalogue = catalogue(&fresh).await;
    assert!(catalogue.len() > 200 && !catalogue.iter().any(|line| line.contains("bridge")), "{catalogue:#?}");
    for bed in [&used, &empty] {
        assert_eq!(self::catalogue(bed).await, catalogue);
    }
    let Some(program) = pg_dump(&fresh).await else {
        println!("no pg_dump of this server's version is there: the catalogues were compared alone");
        return;
    };
    let dumped = dump(&program, &fresh);
    assert_eq!(dumped.matches("FOREIGN KEY").count(), 5, "{dumped}");
    for bed in [&used, &empty] {
        assert_eq!(dump(&program, bed), dumped);
    }
}

/// Everything that stands in the catalogues of a database beside what every database has.
async fn catalogue(bed: &Bed) -> Vec<String> {
    let ours = "(select oid from pg_namespace where nspname !~ '^pg_' and nspname <> 'information_schema')";
    let sql = format!(
        "select format('schema %s %s', nspname, obj_description(oid, 'pg_namespace')) as line from pg_namespace where oid in {ours}
        union all select format('%s %s %s', relkind, oid::regclass, obj_description(oid, 'pg_class'))
        from pg_class where relnamespace in {ours}
        union all select format('column %s.%s %s %s %s %s %s', c.oid::regclass, a.attname, format_type(a.atttypid, a.atttypmod),
            a.attnotnull, a.attcollation::regcollation, pg_get_expr(d.adbin, d.adrelid), col_description(c.oid, a.attnum))
        from pg_class c join pg_attribute a on a.attrelid = c.oid
        left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
        where c.relnamespace in {ours} and a.attnum > 0 and not a.attisdropped
        union all select format('index %s', pg_get_indexdef(i.indexrelid))
        from pg_index i join pg_class c on c.oid = i.indrelid where c.relnamespace in {ours}
        union all select format('constraint %s %s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid), convalidated)
        from pg_constraint where connamespace in {ours}
        union all select format('trigger %s', pg_get_triggerdef(t.oid))
        from pg_trigger t join pg_class c on c.oid = t.tgrelid where c.relnamespace in {ours} and not t.tgisinternal
        union all select format('function %s', oid::regprocedure) from pg_proc where pronamespace in {ours}
        union all select format('type %s', oid::regtype) from pg_type where typnamespace in {ours}
        order by line"
    );
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(bed.pool()).await.expect("read the catalogues")
}

/// A `pg_dump` that reads this server; an older one refuses it.
async fn pg_dump(bed: &Bed) -> Option<PathBuf> {
    let version = "select current_setting('server_version_num')::int / 10000";
    let server: i32 = sqlx::query_scalar(version).fetch_one(bed.pool()).await.expect("the version");
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let usual = versions.map(|folder| folder.path().join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut programs = usual.chain(std::env::split_paths(&path)).map(|folder| folder.join("pg_dump"));
    programs.find(|program| major(program).is_some_and(|major| major >= server))
}

fn major(program: &Path) -> Option<i32> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let words = String::from_utf8(output.stdout).ok()?;
    words.split_whitespace().nth(2)?.split('.').next()?.parse().ok()
}

/// The definition of everything in a database.
fn dump(program: &Path, bed: &Bed) -> String {
    let output = Command::new(program).args(["--schema-only", "--dbname"]).arg(&bed.postgres_url).output();
    let output = output.expect("run pg_dump");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    // Comments name the versions; the words after a backslash are other ones each time.
    let is_said = |line: &&str| !line.starts_with("--") && !line.starts_with('\\');
    text.lines().filter(is_said).collect::<Vec<_>>().join("\n")
}
