//! Holds structs, enums, tables and files against each other.

use std::collections::BTreeSet;

use bson::{Bson, Document};
use serde::de::{DeserializeOwned, Visitor, value};
use serde::{Deserializer, Serialize, forward_to_deserialize_any};

use super::*;

/// A deserializer that has nothing to give: it fails with the names that the struct asked for, one a line.
struct FieldNames;

impl<'de> Deserializer<'de> for FieldNames {
    type Error = value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(serde::de::Error::custom("not a struct"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Self::Error> {
        Err(serde::de::Error::custom(fields.join("\n")))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// Asserts that `T` has exactly the fields of the entity's table, older names included.
fn assert_fields<T: DeserializeOwned>(entity: &str) {
    let entity = named(entity).unwrap();
    let Err(names) = T::deserialize(FieldNames).map(|_| ()) else { panic!("{} is no struct", entity.name) };
    let names = names.to_string();
    let in_struct: BTreeSet<_> = names.lines().collect();
    let all_names = |field: &'static Field| std::iter::once(field.name).chain(field.older.iter().copied());
    let in_table: BTreeSet<_> = std::iter::once("_id").chain(entity.fields.iter().flat_map(all_names)).collect();
    assert_eq!(in_struct, in_table, "struct and table of {}", entity.name);
}

/// Asserts that enum `T` knows exactly the words of `vocabulary`, and takes each older spelling for its word.
fn assert_words<T: Serialize + DeserializeOwned>(vocabulary: &Vocabulary) {
    let spoken = |spelling: &str| -> Result<Bson, _> {
        let value = bson::deserialize_from_bson::<T>(Bson::String(spelling.to_owned()))?;
        Ok::<_, bson::error::Error>(bson::serialize_to_bson(&value).unwrap())
    };
    let words = vocabulary.words.iter().map(|word| (*word, *word));
    for (spelling, word) in words.chain(vocabulary.older.iter().copied()) {
        assert_eq!(spoken(spelling).unwrap(), Bson::String(word.to_owned()), "{spelling}");
        assert_eq!(vocabulary.word(spelling), Some(word));
    }
    let refusal = spoken("no such word").unwrap_err().to_string();
    let known: BTreeSet<_> = refusal.split('`').skip(1).step_by(2).filter(|word| *word != "no such word").collect();
    let written = vocabulary.words.iter().copied().chain(vocabulary.older.iter().map(|(old, _)| *old));
    assert_eq!(known, written.collect(), "{refusal}");
}

#[test]
fn structs_have_exactly_the_fields_of_their_tables() {
    assert_fields::<schedules::Schedule>("schedules");
    assert_fields::<triggers::Trigger>("triggers");
    assert_fields::<runs::Run>("runs");
    assert_fields::<graph_jobs::GraphJob>("graph_jobs");
    assert_fields::<policy_jobs::PolicyJob>("policy_jobs");
    assert_fields::<impact_snapshots::ImpactSnapshot>("impact_snapshots");
    assert_fields::<workers::Worker>("workers");
    assert_fields::<execution_logs::ExecutionLog>("execution_logs");
    assert_fields::<locks::Lock>("locks");
    assert_fields::<run_summaries::RunSummary>("run_summaries");
    assert_fields::<audit::AuditRecord>("audit");
}

#[test]
fn enums_know_exactly_the_words_of_their_vocabularies() {
    assert_words::<schedules::Mode>(&schedules::MODE);
    assert_words::<triggers::TriggerKind>(&triggers::KIND);
    assert_words::<triggers::MisfirePolicy>(&triggers::MISFIRE_POLICY);
    assert_words::<runs::RunState>(&runs::STATE);
    assert_words::<graph_jobs::GraphJobType>(&graph_jobs::TYPE);
    assert_words::<graph_jobs::GraphJobStatus>(&graph_jobs::STATUS);
    assert_words::<policy_jobs::PolicyMode>(&policy_jobs::MODE);
    assert_words::<policy_jobs::Priority>(&policy_jobs::PRIORITY);
    assert_words::<policy_jobs::PolicyJobStatus>(&policy_jobs::STATUS);
    assert_words::<workers::WorkerStatus>(&workers::STATUS);
}

#[test]
fn every_file_of_this_folder_is_in_the_list() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/entity");
    let files: BTreeSet<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .filter(|name| name != "mod" && name != "tests")
        .collect();
    assert_eq!(files, ENTITIES.iter().map(|entity| entity.name.to_owned()).collect());
}

#[test]
fn only_tenant_and_state_are_required() {
    for entity in ENTITIES {
        let required: Vec<_> =
            entity.fields.iter().filter(|field| field.presence == Presence::Required).map(|field| field.name).collect();
        let expected: &[&str] = match entity.name {
            "locks" => &[],
            "workers" => &["status"],
            "runs" => &["tenantId", "state"],
            "graph_jobs" | "policy_jobs" => &["tenantId", "status"],
            _ => &["tenantId"],
        };
        assert_eq!(required, expected, "{}", entity.name);
    }
}

#[test]
fn a_reference_is_to_an_entity_that_comes_before_in_the_list() {
    let place = |name: &str| ENTITIES.iter().position(|entity| entity.name == name);
    let mut found = Vec::new();
    for entity in ENTITIES {
        for (field, parent) in entity.fields.iter().filter_map(|field| Some((field, field.parent?))) {
            // A transaction puts rows in the order of the list, and each must find its parent.
            assert!(place(parent).unwrap() < place(entity.name).unwrap(), "{}.{}", entity.name, field.name);
            found.push(format!("{}.{} {parent}", entity.name, field.column));
        }
    }
    let expected = [
        "triggers.schedule_id schedules",
        "runs.schedule_id schedules",
        "impact_snapshots.run_id runs",
        "execution_logs.run_id runs",
        "run_summaries.schedule_id schedules",
    ];
    assert_eq!(found, expected);
}

#[test]
fn no_name_stands_for_two_fields() {
    for entity in ENTITIES {
        let mut seen = BTreeSet::from(["_id", "id", "residue", "epoch", "clock"]);
        for field in entity.fields {
            let names = [field.name, field.column].into_iter().chain(field.older.iter().copied());
            let new: BTreeSet<_> = names.collect();
            for name in new {
                assert!(seen.insert(name), "{}.{name} is used twice", entity.name);
            }
        }
    }
}

#[test]
fn an_instant_is_a_bson_date() {
    let moment = Instant(DateTime::from_timestamp_millis(1_761_436_800_123).unwrap());
    let written = bson::serialize_to_bson(&moment).unwrap();
    assert_eq!(written, Bson::DateTime(bson::DateTime::from_millis(1_761_436_800_123)));
    assert_eq!(bson::deserialize_from_bson::<Instant>(written).unwrap(), moment);
    let lock: Document =
        bson::doc! { "_id": "k", "owner": "w", "token": 1_i64, "acquiredAt": moment.0, "expiresAt": moment.0 };
    let typed: locks::Lock = bson::deserialize_from_document(lock.clone()).unwrap();
    assert_eq!(bson::serialize_to_document(&typed).unwrap(), lock);
}
