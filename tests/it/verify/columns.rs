//! Every column of every table, changed behind the verifier's back: each change must be reported, under its key and kind.

use std::collections::{BTreeMap, BTreeSet};

use mongodb::bson::oid::ObjectId;
use mongodb::bson::raw::RawDocumentBuf;
use mongodb::bson::{Bson, DateTime, Document, doc};
use scheduler_bridge::entity::{ENTITIES, Entity, KeyType, Kind, Presence};
use scheduler_bridge::verify::Verdict;
use sqlx::{AssertSqlSafe, PgPool, Row};

use super::{backfill, verify, verify_in_ranges_of};
use crate::bed::Bed;

/// The three kinds of rows that are damaged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shape {
    /// Every field as the typed struct writes it: no residue.
    Regular,
    /// Regular fields beside an unknown one, which makes a residue that hides no column.
    Beside,
    /// Every field that can be is irregular: the residue hides the columns.
    Hidden,
    /// Only what is required: all other columns are null.
    Sparse,
}

pub const SHAPES: [Shape; 4] = [Shape::Regular, Shape::Beside, Shape::Hidden, Shape::Sparse];

/// A change of one column, written as SQL: what the column becomes.
fn changes(data_type: &str, words: Option<&[&str]>) -> Vec<String> {
    let text = |words: &[&str]| {
        let list = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(", ");
        // Another allowed word, whichever stands there.
        vec![format!("(array(select w from unnest(array[{list}]) w where w is distinct from COL))[1]")]
    };
    match (data_type, words) {
        ("text", Some(words)) => text(words),
        ("text", None) => vec!["coalesce(COL, '') || ' '".to_owned()],
        ("timestamp with time zone", _) => vec![
            "coalesce(COL, now()) + interval '1 millisecond'".to_owned(),
            "coalesce(COL, now()) + interval '1 microsecond'".to_owned(),
            "'infinity'".to_owned(),
        ],
        ("integer" | "bigint", _) => vec!["coalesce(COL, 0) + 1".to_owned()],
        ("boolean", _) => vec!["not coalesce(COL, true)".to_owned()],
        ("jsonb", _) => vec![
            "case when COL is null then '{}'::jsonb else jsonb_build_array(COL) end".to_owned(),
            "case when jsonb_typeof(COL #> '{deep,0}') = 'object' then jsonb_set(COL, '{deep,0,x}', '2')
                else '[1]' end"
                .to_owned(),
            "'null'".to_owned(),
        ],
        ("bytea", _) => vec![
            // {set: {added: true}} and a residue cut short.
            r"'\x1a00000003736574001000000008616464656400010000'::bytea".to_owned(),
            r"case when COL is null then '\x0500000000'::bytea
                else substring(COL from 1 for length(COL) - 1) end"
                .to_owned(),
        ],
        (other, _) => panic!("no change for columns of type {other}"),
    }
}

/// What every field of a document of this shape holds.
fn value(kind: Kind, shape: Shape) -> Bson {
    if shape == Shape::Hidden {
        return match kind {
            Kind::Name | Kind::Text => 7.into(),
            Kind::Word(vocabulary) => match vocabulary.older.first() {
                Some((old, _)) => (*old).into(),
                None => vocabulary.words[0].into(),
            },
            Kind::Instant => "2025-10-26T00:00:00.1234567Z".into(),
            Kind::Int32 => Bson::Int64(5),
            Kind::Int64 => Bson::Int32(5),
            Kind::Bool => "true".into(),
            // A key with a dollar cannot stand in jsonb.
            Kind::Json => doc! { "$date": 1 }.into(),
        };
    }
    match kind {
        Kind::Name | Kind::Text => "text".into(),
        Kind::Word(vocabulary) => vocabulary.words[0].into(),
        Kind::Instant => DateTime::from_millis(1_761_436_800_123).into(),
        Kind::Int32 => 5.into(),
        Kind::Int64 => 5_i64.into(),
        Kind::Bool => true.into(),
        Kind::Json => doc! { "deep": [{ "x": 1 }], "list": ["a", "b"] }.into(),
    }
}

pub fn id(entity: &Entity, number: u32) -> Bson {
    match entity.key {
        KeyType::Text => format!("victim-{number:05}").into(),
        KeyType::ObjectId => {
            let mut bytes = [7; 12];
            bytes[8..].copy_from_slice(&number.to_be_bytes());
            ObjectId::from_bytes(bytes).into()
        }
    }
}

pub fn key(entity: &Entity, number: u32) -> String {
    match id(entity, number) {
        Bson::ObjectId(id) => id.to_hex(),
        id => id.as_str().expect("a text").to_owned(),
    }
}

pub fn victim(entity: &Entity, number: u32, shape: Shape) -> Document {
    let mut document = doc! { "_id": id(entity, number) };
    for field in entity.fields {
        if shape != Shape::Sparse || field.presence == Presence::Required {
            document.insert(field.name, value(field.kind, shape));
        }
    }
    if shape == Shape::Beside {
        document.insert("unknownField", doc! { "a": 1 });
    }
    document
}

/// The columns of every table but `epoch` and `clock`: the stamp says when a row was written and is no part of the
/// document, so the verifier does not look at it.
pub async fn columns(pool: &PgPool) -> BTreeMap<String, Vec<(String, String, bool)>> {
    let rows = sqlx::query(
        "select table_name::text, column_name::text, data_type::text, is_nullable = 'YES'
        from information_schema.columns
        where table_schema = 'scheduler' and column_name not in ('epoch', 'clock') order by 1, ordinal_position",
    );
    let mut columns: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for row in rows.fetch_all(pool).await.expect("columns") {
        columns.entry(row.get(0)).or_default().push((row.get(1), row.get(2), row.get(3)));
    }
    columns
}

/// All damages of one table: the shape of the victim, the column, what it becomes.
pub fn damages(entity: &Entity, columns: &[(String, String, bool)]) -> Vec<(Shape, String, String)> {
    let mut damages = Vec::new();
    for shape in SHAPES {
        for (column, data_type, is_nullable) in columns {
            let field = entity.fields.iter().find(|field| field.column == *column);
            let words = field.and_then(|field| match field.kind {
                Kind::Word(vocabulary) => Some(vocabulary.words),
                _ => None,
            });
            let mut all = if column == "id" { vec!["COL || 'x'".to_owned()] } else { changes(data_type, words) };
            all.extend(is_nullable.then(|| "null".to_owned()));
            damages.extend(all.into_iter().map(|change| (shape, column.clone(), change.replace("COL", column))));
        }
    }
    damages
}

pub async fn insert(bed: &Bed, entity: &Entity, documents: &[Document]) {
    let raw = documents.iter().map(|document| RawDocumentBuf::try_from(document).expect("a document"));
    bed.database.collection::<RawDocumentBuf>(entity.name).insert_many(raw).await.expect("insert");
}

/// `collection id kind`, the id as in column `id`.
pub type Finding = (String, String, String);

pub async fn found(bed: &Bed) -> BTreeSet<Finding> {
    found_in_ranges_of(bed, 200_000).await
}

pub async fn found_in_ranges_of(bed: &Bed, chunk_bytes: i64) -> BTreeSet<Finding> {
    let report = verify_in_ranges_of(bed, chunk_bytes).await;
    let all = report.mismatches.iter().map(|one| {
        let id = match &one.id {
            serde_json::Value::String(text) => text.clone(),
            id => id["$oid"].as_str().map_or_else(|| id.to_string(), str::to_owned),
        };
        (one.collection.to_owned(), id, format!("{:?}", one.kind).to_lowercase())
    });
    let found: BTreeSet<_> = all.collect();
    assert_eq!(found.len(), report.mismatches.len(), "a finding is reported twice");
    assert_eq!(report.unlisted, 0);
    found
}

pub fn assert_same(found: &BTreeSet<Finding>, expected: &BTreeMap<Finding, String>) {
    let overlooked: Vec<_> = expected.iter().filter(|(finding, _)| !found.contains(finding)).collect();
    assert!(overlooked.is_empty(), "{} overlooked: {overlooked:#?}", overlooked.len());
    let invented: Vec<_> = found.iter().filter(|finding| !expected.contains_key(finding)).collect();
    assert!(invented.is_empty(), "{} invented: {invented:#?}", invented.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_of_any_column_is_found_under_its_key_and_kind() {
    let bed = Bed::new().await;
    let columns = columns(bed.pool()).await;
    assert_eq!(columns.keys().map(String::as_str).collect::<BTreeSet<_>>().len(), ENTITIES.len());
    let mut all = Vec::new();
    for entity in ENTITIES {
        let damages = damages(entity, &columns[entity.name]);
        let documents = damages.iter().zip(0..).map(|((shape, ..), number)| victim(entity, number, *shape));
        // As many again stay as they are, between the victims' neighbours and behind them.
        let healthy = SHAPES.iter().zip(90_000..).map(|(shape, number)| victim(entity, number, *shape));
        insert(&bed, entity, &documents.chain(healthy).collect::<Vec<_>>()).await;
        all.push((entity, damages));
    }
    backfill(&bed).await;
    assert_eq!(verify(&bed).await.verdict, Verdict::Clean);

    let mut expected = BTreeMap::new();
    let mut idle = BTreeSet::new();
    for (entity, damages) in all {
        for ((shape, column, change), number) in damages.into_iter().zip(0..) {
            let (table, key) = (entity.name, key(entity, number));
            // A change that changes nothing (null to null) is none.
            let sql = format!(
                "update scheduler.{table} set {column} = {change} where id = $1 and {column} is distinct from {change}"
            );
            let done = sqlx::query(AssertSqlSafe(sql.clone())).bind(&key).execute(bed.pool()).await;
            let done = done.unwrap_or_else(|error| panic!("{sql}: {error}"));
            let finding = |id: &str, kind: &str| (table.to_owned(), id.to_owned(), kind.to_owned());
            let what = format!("{shape:?} {column} = {change}");
            match (done.rows_affected(), column.as_str()) {
                (0, _) => drop(idle.insert(what)),
                (_, "id") => {
                    expected.insert(finding(&key, "missing"), what.clone());
                    expected.insert(finding(&format!("{key}x"), "extra"), what);
                }
                _ => drop(expected.insert(finding(&key, "content"), what)),
            }
        }
    }
    assert!(expected.len() > 1_400, "{}", expected.len());
    assert!(idle.iter().all(|what| what.ends_with("= null")), "{idle:#?}");
    assert_same(&found(&bed).await, &expected);
}
