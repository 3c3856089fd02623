//! The mapping against a real PostgreSQL: whatever document goes into a table comes back as it was (design 6).
//!
//! | hazard of design 17 | shown by |
//! |---|---|
//! | 1 `_id`s of several types | `fixtures/mapped/01-key-types.json`, the property |
//! | 2 NUL, lone surrogates, invalid UTF-8 | `fixtures/*/02-strings.json`, the property |
//! | 3 Decimal128, NaN, -0.0, Int64, integral doubles | `fixtures/mapped/03-numbers.json`, the property |
//! | 4 dates outside `timestamptz` | `fixtures/mapped/04-dates.json`, the property, the unit tests of `mapping::instant` |
//! | 5 ISO strings | `fixtures/mapped/05-iso-strings.json`, `an_iso_string_fills_its_column_with_the_instant` |
//! | 6 null, absent, `[]` | `fixtures/mapped/06-absence.json`, `null_absent_and_empty_are_three_rows` |
//! | 7 `$`-keys, dotted and empty keys, deep nesting | `fixtures/mapped/07-names-and-nesting.json`, the property |
//! | 8 large documents, long keys | `fixtures/*/08-sizes.json`, `the_largest_document_comes_back` |
//! | 9 unknown fields, older versions and spellings | `fixtures/*/09-older-writers.json`, the property, the data set |
//! | 10 binary of every subtype | `fixtures/mapped/10-types.json`, the property |
//! | 24 collation, number formatting | `fixtures/mapped/24-collation.json`, `keys_sort_in_postgresql_by_their_bytes` |
//!
//! "The property" is `every_document_a_collection_can_hold_comes_back_from_postgresql`. It runs as long as
//! `BRIDGE_PROPERTY_SECONDS` says and prints the seed of a failure, with which `BRIDGE_PROPERTY_SEED` begins the next run.

mod damage;
mod documents;
mod raw;
mod regular;
mod table;

use std::time::{Duration, Instant, SystemTime};

use proptest::strategy::{BoxedStrategy, Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use scheduler_bridge::dataset::{self, fixtures};
use scheduler_bridge::entity::{self, ENTITIES, Entity};
use scheduler_bridge::mapping::Mapping;
use sqlx::AssertSqlSafe;

use crate::bed::Bed;
use table::{Table, Tally};

/// Documents of one case.
const BATCH: usize = 128;

/// How often a document that failed is tried again, made simpler.
const SIMPLER: usize = 2_000;

/// How long the property is tried without `BRIDGE_PROPERTY_SECONDS`.
const SECONDS: u64 = 20;

/// Prints how to repeat a case when it ends in a panic, whoever's it is.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("to begin with this case: BRIDGE_PROPERTY_SEED={}", self.0);
        }
    }
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value}")))
}

fn seed_of_now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock after 1970");
    u64::try_from(now.as_micros()).expect("microseconds for 500,000 years")
}

#[tokio::test]
async fn every_document_a_collection_can_hold_comes_back_from_postgresql() {
    let bed = Bed::new().await;
    let budget = Duration::from_secs(from_environment("BRIDGE_PROPERTY_SECONDS").unwrap_or(SECONDS));
    let first = from_environment("BRIDGE_PROPERTY_SEED").unwrap_or_else(seed_of_now);
    let strategies: Vec<_> = ENTITIES.iter().map(|entity| documents::documents(entity)).collect();
    let (start, mut cases, mut tally) = (Instant::now(), 0, Tally::default());
    // However slow the machine is, every collection has its turn.
    while cases < ENTITIES.len() || start.elapsed() < budget {
        let seed = first.wrapping_add(u64::try_from(cases).expect("a count"));
        let turn = usize::try_from(seed % 11).expect("less than eleven");
        let _replay = Replay(seed);
        tally += run_case(&Table::new(bed.pool(), ENTITIES[turn]), &strategies[turn], seed).await;
        cases += 1;
    }
    println!("{cases} cases from seed {first} on: {tally:?}");
    assert!(tally.rows > tally.refused && tally.with_residue > 0 && tally.refused > 0, "a lopsided sample: {tally:?}");
}

async fn run_case(table: &Table<'_>, strategy: &BoxedStrategy<Vec<u8>>, seed: u64) -> Tally {
    let bytes: Vec<u8> = seed.to_le_bytes().repeat(4);
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), random);
    let mut trees: Vec<_> = (0..BATCH).map(|_| strategy.new_tree(&mut runner).expect("a document")).collect();
    let documents: Vec<_> = trees.iter().map(|tree| tree.current()).collect();
    let trouble = match table.check(&documents).await {
        Ok(tally) => return tally,
        Err(trouble) => trouble,
    };
    for tree in &mut trees {
        if table.check(&[tree.current()]).await.is_err() {
            let (document, trouble) = simplest(table, tree).await;
            panic!("{}: {trouble}\n{:?}", table.name(), raw::fields(&document));
        }
    }
    panic!("{}: only together: {trouble}", table.name());
}

/// The simplest document found that fails as `tree` does.
async fn simplest(table: &Table<'_>, tree: &mut impl ValueTree<Value = Vec<u8>>) -> (Vec<u8>, String) {
    let mut simplest = None;
    for _ in 0..SIMPLER {
        let document = tree.current();
        let go_on = match table.check(std::slice::from_ref(&document)).await {
            Err(trouble) => {
                simplest = Some((document, trouble));
                tree.simplify()
            }
            Ok(_) => tree.complicate(),
        };
        if !go_on {
            break;
        }
    }
    simplest.expect("the document failed before")
}

#[tokio::test]
async fn the_data_set_comes_back_and_only_its_aged_documents_have_a_residue() {
    const DOCUMENTS: u64 = 2_000;
    let bed = Bed::new().await;
    for entity in ENTITIES {
        let make = |index| dataset::generate(entity.name, index, 7).expect("a document").into_bytes();
        let documents: Vec<_> = (0..DOCUMENTS).map(make).collect();
        let tally = Table::new(bed.pool(), entity).check(&documents).await.expect(entity.name);
        assert_eq!((tally.rows, tally.refused), (2_000, 0), "{}", entity.name);
        // One in twenty is aged, and some of those have nothing to be aged by.
        assert!((20..150).contains(&tally.with_residue), "{}: {tally:?}", entity.name);
    }
}

#[tokio::test]
async fn every_mapped_fixture_comes_back_as_it_was() {
    let bed = Bed::new().await;
    let fixtures = fixtures::mapped().expect("the fixtures");
    for entity in ENTITIES {
        let table = Table::new(bed.pool(), entity);
        let of_entity: Vec<_> = fixtures.iter().filter(|fixture| fixture.collection == entity.name).collect();
        assert!(!of_entity.is_empty(), "{} has no fixture", entity.name);
        let documents: Vec<_> = of_entity.iter().map(|fixture| fixture.document.as_bytes().to_vec()).collect();
        let checked = table.check(&documents).await;
        if checked.as_ref().is_ok_and(|tally| tally.rows == documents.len()) {
            continue;
        }
        for (fixture, document) in of_entity.iter().zip(documents) {
            let one = table.check(&[document]).await;
            assert!(one.as_ref().is_ok_and(|tally| tally.rows == 1), "{} of {}: {one:?}", fixture.trap, entity.name);
        }
        panic!("{}: only together: {checked:?}", entity.name);
    }
}

#[test]
fn every_quarantined_fixture_is_refused_for_its_reason() {
    let fixtures = fixtures::quarantined().expect("the fixtures");
    assert!(!fixtures.is_empty());
    for fixture in fixtures {
        let mapping = Mapping::new(entity::named(fixture.collection).expect("an entity"));
        let reason = fixture.reason.expect("a reason");
        let refusal = mapping.encode(&fixture.document, table::STAMP, &mut Vec::new()).expect_err(&fixture.trap);
        assert!(refusal.reason.contains(&reason), "{}: {}", fixture.trap, refusal.reason);
        let (_, row) = table::encode(mapping, fixture.document.as_bytes()).expect(&fixture.trap);
        assert!(row.is_none(), "{}", fixture.trap);
    }
}

#[tokio::test]
async fn the_largest_document_comes_back() {
    let bed = Bed::new().await;
    let largest = fixtures::largest();
    let table = Table::new(bed.pool(), entity::named(largest.collection).expect("an entity"));
    let tally = table.check(&[largest.document.into_bytes()]).await.expect("the same document");
    assert_eq!(tally.rows, 1);
}

/// A run with these fields and no others but the required ones.
fn run_with(id: &str, fields: bson::Document) -> Vec<u8> {
    let mut document = bson::doc! { "_id": id, "tenantId": "t1", "state": "queued" };
    document.extend(fields);
    document.to_vec().expect("a document")
}

/// What the query sees of the rows of these documents.
async fn seen(bed: &Bed, entity: &'static Entity, documents: &[Vec<u8>], expression: &str) -> Vec<Option<String>> {
    let table = Table::new(bed.pool(), entity);
    let row = |document: &Vec<u8>| table::encode(table.mapping, document).expect("a key").1.expect("a row");
    let rows: Vec<_> = documents.iter().map(row).collect();
    let mut transaction = bed.pool().begin().await.expect("a transaction");
    table.copy(&mut transaction, &rows).await.expect("rows");
    let query = format!("select ({expression})::text from scheduler.{} order by id", entity.name);
    sqlx::query_scalar(AssertSqlSafe(query)).fetch_all(&mut *transaction).await.expect("the query")
}

#[tokio::test]
async fn an_iso_string_fills_its_column_with_the_instant() {
    let bed = Bed::new().await;
    let texts =
        ["2025-10-26T12:00:00.1234567Z", "2025-10-26T14:00:00.123456+02:00", "2025-10-26T12:00:00.123456+00:00"];
    let run = |(index, text): (usize, &&str)| run_with(&index.to_string(), bson::doc! { "createdAt": *text });
    let documents: Vec<_> = texts.iter().enumerate().map(run).collect();
    let runs = entity::named("runs").expect("runs");
    let seen = seen(&bed, runs, &documents, "created_at at time zone 'utc'").await;
    assert_eq!(seen, vec![Some("2025-10-26 12:00:00.123456".to_owned()); 3]);
    Table::new(bed.pool(), runs).check(&documents).await.expect("the same documents");
}

#[tokio::test]
async fn null_absent_and_empty_are_three_rows() {
    let bed = Bed::new().await;
    let documents = [
        run_with("1", bson::doc! {}),
        run_with("2", bson::doc! { "deltas": null, "scheduleId": null }),
        run_with("3", bson::doc! { "deltas": [], "scheduleId": "" }),
    ];
    let runs = entity::named("runs").expect("runs");
    let expression = "concat_ws(' ', coalesce(deltas::text, 'absent'), schedule_id is null, residue is null)";
    let seen = seen(&bed, runs, &documents, expression).await;
    let expected = ["absent t t", "null t f", "[] f t"];
    assert_eq!(seen, expected.map(|text| Some(text.to_owned())));
    Table::new(bed.pool(), runs).check(&documents).await.expect("the same documents");
}

#[tokio::test]
async fn keys_sort_in_postgresql_by_their_bytes() {
    let bed = Bed::new().await;
    let mut ids = ["b", "B", "a-b", "ab", "a b", "ä", "z", "10", "9", "", "😀", "\u{fffd}"];
    let documents: Vec<_> = ids.iter().map(|id| run_with(id, bson::doc! {})).collect();
    let seen = seen(&bed, entity::named("runs").expect("runs"), &documents, "id").await;
    ids.sort_unstable();
    assert_eq!(seen, ids.map(|id| Some(id.to_owned())));
}
