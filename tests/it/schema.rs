//! The field tables of `entity` and the tables of schema `scheduler` say the same, both ways.

use std::collections::BTreeSet;

use scheduler_bridge::entity::{ENTITIES, Entity, Kind, Presence};
use sqlx::PgPool;

use crate::bed::Bed;

/// A column as the server describes it.
#[derive(Debug, PartialEq, sqlx::FromRow)]
struct Column {
    name: String,
    data_type: String,
    nullable: bool,
    collation: Option<String>,
}

impl Column {
    fn new(name: &str, data_type: &str, nullable: bool) -> Self {
        let collation = (data_type == "text").then(|| "C".to_owned());
        Self { name: name.to_owned(), data_type: data_type.to_owned(), nullable, collation }
    }
}

/// The columns that `entity` asks for, in order.
fn described(entity: &Entity) -> Vec<Column> {
    let field = |name, kind: Kind, presence| Column::new(name, kind.data_type(), presence == Presence::Optional);
    let fields = entity.fields.iter().map(|one| field(one.column, one.kind, one.presence));
    let stamp = [("residue", "bytea", true), ("epoch", "integer", false), ("clock", "bigint", false)];
    let stamp = stamp.map(|(name, data_type, nullable)| Column::new(name, data_type, nullable));
    std::iter::once(Column::new("id", "text", false)).chain(fields).chain(stamp).collect()
}

async fn columns(pool: &PgPool, table: &str) -> Vec<Column> {
    let sql = r"
        select column_name::text as name, data_type::text, is_nullable = 'YES' as nullable, collation_name::text as collation
        from information_schema.columns
        where table_schema = 'scheduler' and table_name = $1
        order by ordinal_position";
    sqlx::query_as(sql).bind(table).fetch_all(pool).await.expect("read the columns")
}

/// The words of the checks of `table`: column and word.
async fn words(pool: &PgPool, table: &str) -> BTreeSet<(String, String)> {
    let sql = r"
        select a.attname::text, m[1]
        from pg_constraint c
        join pg_attribute a on a.attrelid = c.conrelid and a.attnum = any (c.conkey)
        cross join regexp_matches(pg_get_constraintdef(c.oid), '''([^'']*)''', 'g') m
        where c.contype = 'c' and c.conrelid = ('scheduler.' || $1)::regclass";
    sqlx::query_as(sql).bind(table).fetch_all(pool).await.expect("read the checks").into_iter().collect()
}

#[tokio::test]
async fn every_table_has_an_entity_and_every_entity_a_table() {
    let bed = Bed::new().await;
    let sql = "select table_name::text from information_schema.tables where table_schema = 'scheduler'";
    let tables: Vec<String> = sqlx::query_scalar(sql).fetch_all(bed.pool()).await.expect("read the tables");
    let entities: BTreeSet<_> = ENTITIES.iter().map(|entity| entity.name.to_owned()).collect();
    assert_eq!(tables.into_iter().collect::<BTreeSet<_>>(), entities);
}

#[tokio::test]
async fn every_column_is_what_its_field_asks_for_in_the_same_order() {
    let bed = Bed::new().await;
    for entity in ENTITIES {
        assert_eq!(columns(bed.pool(), entity.name).await, described(entity), "columns of {}", entity.name);
    }
}

#[tokio::test]
async fn checks_allow_exactly_the_words_of_the_vocabularies() {
    let bed = Bed::new().await;
    for entity in ENTITIES {
        let mut described = BTreeSet::new();
        for field in entity.fields {
            let Kind::Word(vocabulary) = field.kind else { continue };
            described.extend(vocabulary.words.iter().map(|word| (field.column.to_owned(), (*word).to_owned())));
        }
        assert_eq!(words(bed.pool(), entity.name).await, described, "checks of {}", entity.name);
    }
}

#[tokio::test]
async fn nothing_is_unique_but_the_key_and_nothing_refers_to_another_table() {
    let bed = Bed::new().await;
    let sql = r"
        select c.conrelid::regclass::text || ': ' || pg_get_constraintdef(c.oid)
        from pg_constraint c join pg_namespace n on n.oid = c.connamespace
        where n.nspname = 'scheduler' and c.contype not in ('c', 'n')
        union
        select indexrelid::regclass::text from pg_index join pg_class on pg_class.oid = indrelid
        where relnamespace = 'scheduler'::regnamespace and indisunique and not indisprimary";
    let found: Vec<String> = sqlx::query_scalar(sql).fetch_all(bed.pool()).await.expect("read the constraints");
    let keys = ENTITIES.iter().map(|entity| format!("scheduler.{}: PRIMARY KEY (id)", entity.name));
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), keys.collect());
}

#[tokio::test]
async fn every_table_says_what_it_is_for_and_every_index_which_query_it_serves() {
    let bed = Bed::new().await;
    let sql = r"
        select relname::text from pg_class
        where relnamespace = 'scheduler'::regnamespace and relkind = 'r' and obj_description(oid, 'pg_class') is null";
    let silent: Vec<String> = sqlx::query_scalar(sql).fetch_all(bed.pool()).await.expect("read the comments");
    assert_eq!(silent, Vec::<String>::new());
    let migration = include_str!("../../migrations/0001_scheduler.sql");
    for (index, line) in migration.lines().enumerate().filter(|(_, line)| line.starts_with("create index")) {
        let before = migration.lines().nth(index - 1).unwrap_or_default();
        assert!(before.starts_with("-- "), "{line}");
    }
}

#[tokio::test]
async fn the_migration_run_again_changes_nothing() {
    let bed = Bed::new().await;
    let mut before = Vec::new();
    for entity in ENTITIES {
        before.push(columns(bed.pool(), entity.name).await);
    }
    let migration = include_str!("../../migrations/0001_scheduler.sql");
    sqlx::raw_sql(migration).execute(bed.pool()).await.expect("run the migration again");
    for (entity, before) in ENTITIES.iter().zip(before) {
        assert_eq!(columns(bed.pool(), entity.name).await, before);
    }
}
