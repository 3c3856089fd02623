//! Damage to a row shows when its document is rebuilt, also where the residue says what the document has.

use scheduler_bridge::dataset;
use scheduler_bridge::entity::{ENTITIES, Entity, Field, Kind, Presence};
use sqlx::{AssertSqlSafe, Connection};

use super::raw::{self, Value, kind};
use super::table::{self, Encoded, Table, columns};
use crate::bed::Bed;

/// Aged documents of each entity that are damaged.
const AGED: usize = 6;

/// Documents of `entity` with a residue: aged ones, and some in which one thing is odd throughout.
fn irregular(entity: &'static Entity) -> Vec<Vec<u8>> {
    let make = |index| dataset::generate(entity.name, index, 7).expect("a document").into_bytes();
    let mapping = scheduler_bridge::mapping::Mapping::new(entity);
    let has_residue = |document: &Vec<u8>| row(mapping, document).irregular;
    let mut documents: Vec<_> = (0..3_000).map(make).filter(has_residue).take(AGED).collect();
    assert_eq!(documents.len(), AGED);
    let regular = (0..).map(make).find(|document| !has_residue(document)).expect("a regular document");
    documents.extend(oddities(entity, &raw::fields(&regular)));
    documents
}

fn row(mapping: scheduler_bridge::mapping::Mapping, document: &[u8]) -> Encoded {
    table::encode(mapping, document).expect("a key").1.expect("a row")
}

fn oddities(entity: &Entity, fields: &[raw::Field]) -> [Vec<u8>; 3] {
    let field_of = |name: &[u8]| entity.fields.iter().find(|field| field.name.as_bytes() == name);
    let renamed: Vec<_> = fields
        .iter()
        .map(|(name, value)| (field_of(name).map_or(name.clone(), |field| field.column.into()), value.clone()))
        .chain([(b"unknown".to_vec(), Value::new(kind::NULL, []))])
        .collect();
    let again = fields.iter().filter(|(name, _)| field_of(name).is_some()).cloned();
    let twice: Vec<_> = fields.iter().cloned().chain(again).collect();
    let unknown: Vec<_> = fields.iter().cloned().chain([(b"_id".to_vec(), Value::new(kind::MIN_KEY, []))]).collect();
    [raw::document(&renamed), raw::document(&twice), raw::document(&unknown)]
}

/// Expressions of SQL that give the column another value than it has.
fn damages(field: &Field) -> Vec<String> {
    let column = field.column;
    let other = |one: &str, two: &str| format!("case when {column} = {one} then {two} else {one} end");
    let mut damages = match field.kind {
        Kind::Name | Kind::Text => vec![format!("coalesce({column}, '') || 'x'")],
        Kind::Word(words) => vec![other(&format!("'{}'", words.words[0]), &format!("'{}'", words.words[1]))],
        Kind::Instant => vec![
            other("timestamptz '2001-01-01 00:00:00.001'", "timestamptz '2002-01-01'"),
            "'-infinity'".to_owned(),
            format!("{column} + interval '1 microsecond'"),
        ],
        Kind::Int32 | Kind::Int64 => vec![format!("coalesce({column}, 0) + 1")],
        Kind::Bool => vec![format!("not coalesce({column}, false)")],
        Kind::Json => vec![
            r#"'{"damage": true}'"#.to_owned(),
            other("'null'::jsonb", "'[]'::jsonb"),
            format!("jsonb_build_array({column})"),
        ],
    };
    if field.presence == Presence::Optional {
        damages.push("null".to_owned());
    }
    damages
}

#[tokio::test]
async fn damage_to_any_column_of_a_row_with_a_residue_shows() {
    let bed = Bed::new().await;
    let mut shown = 0;
    for entity in ENTITIES {
        let table = Table::new(bed.pool(), entity);
        for document in irregular(entity) {
            let row = row(table.mapping, &document);
            let fields =
                entity.fields.iter().flat_map(|field| damages(field).into_iter().map(|damage| (field.column, damage)));
            let others = [("id", "id || 'x'".to_owned()), ("residue", "null".to_owned())];
            for (column, damage) in fields.chain(others) {
                shown += usize::from(damage_shows(&table, &row, column, &damage).await);
            }
        }
    }
    assert!(shown > 1_000, "only {shown} damages were made");
}

/// Makes one damage. `false` when it leaves the column as it is.
async fn damage_shows(table: &Table<'_>, row: &Encoded, column: &str, damage: &str) -> bool {
    let name = table.name();
    let mut connection = table.pool.acquire().await.expect("a connection");
    let mut transaction = connection.begin().await.expect("a transaction");
    table.copy(&mut transaction, std::slice::from_ref(row)).await.expect("a row");
    let columns_list = &table.columns;
    let update = format!(
        "update scheduler.{name} set {column} = {damage} where {column} is distinct from ({damage}) returning {columns_list}"
    );
    let damaged = sqlx::query(AssertSqlSafe(update)).fetch_optional(&mut *transaction).await.expect("damage");
    transaction.rollback().await.expect("a rollback");
    let Some(damaged) = damaged else { return false };
    if let Ok(rebuilt) = table.mapping.rebuild(&columns(&damaged)) {
        let differs = raw::without_order(rebuilt.as_bytes()) != raw::without_order(&row.document);
        assert!(differs, "{name}: {column} = {damage} does not show in {:?}", raw::fields(&row.document));
    }
    true
}

#[test]
fn damage_to_any_byte_of_a_residue_shows() {
    for entity in ENTITIES {
        let mapping = scheduler_bridge::mapping::Mapping::new(entity);
        for document in irregular(entity) {
            let row = row(mapping, &document);
            let columns = scheduler_bridge::mapping::tuple::columns(&row.tuple).expect("a tuple");
            let at = columns.len() - 3;
            let residue = columns[at].expect("a residue");
            for byte in 0..residue.len() {
                let mut damaged = residue.to_vec();
                damaged[byte] ^= 1;
                let mut columns = columns.clone();
                columns[at] = Some(&damaged);
                let rebuilt = mapping.rebuild(&columns);
                let differs = rebuilt.map_or(true, |rebuilt| differs(rebuilt.as_bytes(), &document));
                assert!(
                    differs,
                    "{}: byte {byte} of the residue does not show in {:?}",
                    entity.name,
                    raw::fields(&document)
                );
            }
        }
    }
}

/// Damaged bytes need not be BSON any more, so what has other bytes, sorted, is another document.
fn differs(rebuilt: &[u8], document: &[u8]) -> bool {
    let sorted = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes.sort_unstable();
        bytes
    };
    sorted(rebuilt) != sorted(document) || raw::without_order(rebuilt) != raw::without_order(document)
}
