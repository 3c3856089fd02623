//! What holds for every generated document.

use std::collections::{BTreeMap, BTreeSet};

use bson::Document;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::*;
use crate::entity::{ENTITIES, Kind, Presence, audit, execution_logs, graph_jobs, impact_snapshots, locks};
use crate::entity::{policy_jobs, run_summaries, runs, schedules, triggers, workers};

const SEED: u64 = 7;

fn document(collection: &str, index: u64) -> Document {
    Document::try_from(generate(collection, index, SEED).unwrap()).unwrap()
}

fn regular(collection: &str, index: u64) -> Document {
    let recipe = recipe(collection).unwrap();
    Document::try_from((recipe.write)(index, SEED, &mut Random::of(collection, index, SEED)).unwrap()).unwrap()
}

/// Asserts that `T` reads and writes regular documents without loss, and that they use all of the table's fields.
fn assert_typed<T: Serialize + DeserializeOwned>(collection: &str) {
    let mut used = BTreeSet::new();
    for index in 0..1_000 {
        let document = regular(collection, index);
        let typed: T = bson::deserialize_from_document(document.clone()).unwrap();
        assert_eq!(bson::serialize_to_document(&typed).unwrap(), document);
        used.extend(document.keys().cloned());
    }
    let fields = entity::named(collection).unwrap().fields.iter().map(|field| field.name.to_owned());
    assert_eq!(used, fields.chain(["_id".to_owned()]).collect(), "fields of {collection}");
}

#[test]
fn regular_documents_are_what_the_typed_structs_write() {
    assert_typed::<schedules::Schedule>("schedules");
    assert_typed::<triggers::Trigger>("triggers");
    assert_typed::<runs::Run>("runs");
    assert_typed::<graph_jobs::GraphJob>("graph_jobs");
    assert_typed::<policy_jobs::PolicyJob>("policy_jobs");
    assert_typed::<impact_snapshots::ImpactSnapshot>("impact_snapshots");
    assert_typed::<workers::Worker>("workers");
    assert_typed::<execution_logs::ExecutionLog>("execution_logs");
    assert_typed::<locks::Lock>("locks");
    assert_typed::<run_summaries::RunSummary>("run_summaries");
    assert_typed::<audit::AuditRecord>("audit");
}

#[test]
fn there_is_a_recipe_for_every_entity_in_the_same_order() {
    let recipes: Vec<_> = RECIPES.iter().map(|recipe| recipe.collection).collect();
    assert_eq!(recipes, ENTITIES.iter().map(|entity| entity.name).collect::<Vec<_>>());
    assert!(matches!(generate("jobs", 0, SEED), Err(Error::UnknownCollection { .. })));
}

#[test]
fn the_same_index_and_seed_give_the_same_bytes() {
    for entity in ENTITIES {
        let bytes = |index, seed| generate(entity.name, index, seed).unwrap().into_bytes();
        assert_eq!(bytes(41, SEED), bytes(41, SEED));
        assert_ne!(bytes(41, SEED), bytes(42, SEED));
    }
    assert_ne!(generate("runs", 41, 1).unwrap(), generate("runs", 41, 2).unwrap());
}

#[test]
fn keys_do_not_repeat() {
    for entity in ENTITIES {
        let keys: BTreeSet<_> = (0..2_000).map(|index| document(entity.name, index)["_id"].to_string()).collect();
        assert_eq!(keys.len(), 2_000, "{}", entity.name);
    }
}

#[test]
fn an_old_document_still_has_its_tenant_and_a_known_state() {
    for entity in ENTITIES {
        for document in (0..1_000).map(|index| document(entity.name, index)) {
            for field in entity.fields.iter().filter(|field| field.presence == Presence::Required) {
                let value = document.get_str(field.name).or_else(|_| document.get_str(field.column)).unwrap();
                let Kind::Word(vocabulary) = field.kind else { continue };
                assert!(vocabulary.word(value).is_some(), "{value}");
            }
        }
    }
}

#[test]
fn about_one_document_in_twenty_is_old() {
    for entity in ENTITIES {
        let aged = (0..2_000).filter(|index| document(entity.name, *index) != regular(entity.name, *index)).count();
        assert!((50..150).contains(&aged), "{aged} of 2000 in {}", entity.name);
    }
}

#[test]
fn every_kind_of_age_shows_in_runs() {
    let all: Vec<Document> = (0..12_000).map(|index| document("runs", index)).collect();
    let some = |what: &str, test: &dyn Fn(&Document) -> bool| assert!(all.iter().any(test), "no run has {what}");
    let created = |run: &Document| run.get_str("createdAt").unwrap_or_default().to_owned();
    some("seven digits and Z", &|run| created(run).len() == 28 && created(run).ends_with('Z'));
    some("no digits and an offset", &|run| created(run).len() == 25 && created(run).ends_with("+00:00"));
    some("no version", &|run| !run.contains_key("schemaVersion"));
    some("an older spelling", &|run| run.get_str("state").is_ok_and(|state| state == "succeeded"));
    some("snake case only", &|run| run.contains_key("tenant_id") && !run.contains_key("tenantId"));
    some("a copy in snake case", &|run| run.contains_key("created_at") && run.contains_key("createdAt"));
    some("a null", &|run| run.get("error") == Some(&bson::Bson::Null));
    some("an empty array", &|run| run.get_array("deltas").is_ok_and(Vec::is_empty));
    some("an unknown field", &|run| run.contains_key("legacyShard"));
    assert!((0..4_000).any(|index| document("schedules", index).contains_key("whenCron")));
    let attempts = |index| document("graph_jobs", index).get("attempts").map(bson::Bson::element_type);
    assert!((0..4_000).any(|index| attempts(index) == Some(bson::spec::ElementType::Int64)));
    assert!((0..4_000).any(|index| attempts(index) == Some(bson::spec::ElementType::Double)));
}

#[test]
fn runs_take_about_900_bytes() {
    let bytes: usize = (0..10_000).map(|index| generate("runs", index, SEED).unwrap().as_bytes().len()).sum();
    let average = bytes / 10_000;
    println!("runs: {average} bytes on average");
    assert!((870..=930).contains(&average), "{average} bytes on average");
}

#[test]
fn proportions_add_up_and_leave_no_collection_empty() {
    for total in (0..2_000).chain([200_000, 2_000_000]) {
        let parts = proportions(total);
        assert!(parts.iter().all(|(_, count)| *count > 0));
        assert_eq!(parts.iter().map(|(_, count)| count).sum::<u64>(), total.max(11), "{parts:?}");
    }
    let parts: BTreeMap<_, _> = proportions(200_000).into_iter().collect();
    assert_eq!((parts["execution_logs"], parts["runs"], parts["audit"]), (100_000, 30_000, 30_000));
}

#[test]
fn top_level_references_lead_to_documents_that_exist() {
    for total in [11, 40, 99, 100, 133, 700, 5_000] {
        let parts = proportions(total);
        let all: Vec<_> = parts
            .iter()
            .flat_map(|(collection, count)| (0..*count).map(move |index| (*collection, regular(collection, index))))
            .collect();
        let ids = |of: &str| -> BTreeSet<&str> {
            all.iter().filter(|(collection, _)| *collection == of).map(|(_, one)| one.get_str("_id").unwrap()).collect()
        };
        let (runs, schedules) = (ids("runs"), ids("schedules"));
        for (collection, document) in &all {
            for (field, known) in [("runId", &runs), ("retryOf", &runs), ("scheduleId", &schedules)] {
                let Ok(id) = document.get_str(field) else { continue };
                assert!(known.contains(id), "{total}: {collection}.{field} {id}");
            }
        }
    }
}
