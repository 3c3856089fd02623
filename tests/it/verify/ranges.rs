//! Many ranges, many workers: nothing falls between two ranges, below the first or above the last.

use std::collections::BTreeMap;

use mongodb::bson::Document;
use scheduler_bridge::entity::ENTITIES;
use scheduler_bridge::mapping::{Key, Mapping, raw};
use scheduler_bridge::verify::Verdict;
use sqlx::{AssertSqlSafe, Executor};

use super::columns::{Shape, assert_same, found_in_ranges_of, insert, key, victim};
use super::{backfill, stores, verify_in_ranges_of};
use crate::bed::Bed;

/// About two documents: more cuts than any other size makes.
const CHUNK_BYTES: i64 = 1_500;

const DOCUMENTS: u32 = 400;

#[tokio::test(flavor = "multi_thread")]
async fn damage_of_every_key_is_found_wherever_ranges_are_cut() {
    let bed = Bed::new().await;
    for entity in ENTITIES {
        let documents: Vec<Document> = (1..=DOCUMENTS).map(|number| victim(entity, number, Shape::Regular)).collect();
        insert(&bed, entity, &documents).await;
        // Cuts are sampled: that they are many is all that a test can ask of them.
        let plan = scheduler_bridge::plan::plan(&stores(&bed).await.0, entity.name, CHUNK_BYTES).await.expect("plan");
        assert!(plan.chunks.len() > 20, "{}: {}", entity.name, plan.chunks.len());
        let plain = |id: &mongodb::bson::raw::RawDocumentBuf| {
            raw::first(id).is_some_and(|id| Key::of(&id, Mapping::new(entity).entity().key).is_plain())
        };
        assert!(plan.chunks.iter().skip(1).all(|chunk| chunk.lower.as_ref().is_some_and(plain)));
    }
    backfill(&bed).await;
    assert_eq!(verify_in_ranges_of(&bed, CHUNK_BYTES).await.verdict, Verdict::Clean);

    // Every key is damaged, so the first and the last of every range is, wherever it is cut: by turns its content changes,
    // its row goes, or it gets another row behind it. Also below the first key and above the last.
    let mut expected = BTreeMap::new();
    for entity in ENTITIES {
        let column = entity.fields.iter().find(|field| field.name == "tenantId").map_or("owner", |field| field.column);
        for number in 1..=DOCUMENTS {
            let id = key(entity, number);
            let (kind, statement) = match number % 3 {
                0 => ("content", format!("update scheduler.{} set {column} = 'x' where id = '{id}'", entity.name)),
                1 => ("missing", format!("delete from scheduler.{} where id = '{id}'", entity.name)),
                _ => ("extra", copy(entity.name, column, &format!("{id}0"))),
            };
            bed.pool().execute(AssertSqlSafe(statement)).await.expect("damage");
            let id = if kind == "extra" { format!("{id}0") } else { id };
            expected.insert((entity.name.to_owned(), id, kind.to_owned()), String::new());
        }
        for edge in ["!", "~"] {
            bed.pool().execute(AssertSqlSafe(copy(entity.name, column, edge))).await.expect("damage");
            expected.insert((entity.name.to_owned(), edge.to_owned(), "extra".to_owned()), String::new());
        }
    }
    for _ in 0..3 {
        assert_same(&found_in_ranges_of(&bed, CHUNK_BYTES).await, &expected);
    }
}

/// A row of the table under another id.
fn copy(table: &str, column: &str, id: &str) -> String {
    let state = ENTITIES.iter().find(|entity| entity.name == table).and_then(|entity| {
        let word = |name: &str| entity.fields.iter().any(|field| field.column == name && required(field));
        ["state", "status"].into_iter().find(|name| word(name))
    });
    let columns = state.map_or_else(|| column.to_owned(), |state| format!("{column}, {state}"));
    format!(
        "insert into scheduler.{table} (id, {columns}, epoch, clock)
        select '{id}', {columns}, epoch, clock from scheduler.{table} limit 1"
    )
}

fn required(field: &scheduler_bridge::entity::Field) -> bool {
    field.presence == scheduler_bridge::entity::Presence::Required
}
