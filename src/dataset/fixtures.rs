//! The awkward documents of `fixtures/`, each named for its trap: those that must become a row and come back exactly, and
//! those that must be refused, with the reason.
//!
//! A file is a list of items. `document` is canonical extended JSON; `bson` stands in its place, in hexadecimal digits,
//! for bytes that extended JSON cannot say. Collection `*` is every collection: the document then gets the fields that the
//! collection requires. No two items of a collection have the same key, so one database takes them all.

use bson::raw::CString;
use bson::{Bson, Document, RawArrayBuf, RawDocumentBuf, rawdoc};
use mongodb::Database;
use serde::Deserialize;

use crate::entity::{self, ENTITIES, Entity, Kind, Presence};

/// The name of a file below `fixtures/`, and its text.
type File = (&'static str, &'static str);

/// Documents that must become a row and come back exactly.
const MAPPED: &[File] = &[
    ("mapped/01-key-types.json", include_str!("../../fixtures/mapped/01-key-types.json")),
    ("mapped/02-strings.json", include_str!("../../fixtures/mapped/02-strings.json")),
    ("mapped/03-numbers.json", include_str!("../../fixtures/mapped/03-numbers.json")),
    ("mapped/04-dates.json", include_str!("../../fixtures/mapped/04-dates.json")),
    ("mapped/05-iso-strings.json", include_str!("../../fixtures/mapped/05-iso-strings.json")),
    ("mapped/06-absence.json", include_str!("../../fixtures/mapped/06-absence.json")),
    ("mapped/07-names-and-nesting.json", include_str!("../../fixtures/mapped/07-names-and-nesting.json")),
    ("mapped/08-sizes.json", include_str!("../../fixtures/mapped/08-sizes.json")),
    ("mapped/09-older-writers.json", include_str!("../../fixtures/mapped/09-older-writers.json")),
    ("mapped/10-types.json", include_str!("../../fixtures/mapped/10-types.json")),
    ("mapped/24-collation.json", include_str!("../../fixtures/mapped/24-collation.json")),
    ("mapped/28-hostile.json", include_str!("../../fixtures/mapped/28-hostile.json")),
];

/// Documents that must be refused.
const QUARANTINED: &[File] = &[
    ("quarantined/02-strings.json", include_str!("../../fixtures/quarantined/02-strings.json")),
    ("quarantined/06-absence.json", include_str!("../../fixtures/quarantined/06-absence.json")),
    ("quarantined/08-sizes.json", include_str!("../../fixtures/quarantined/08-sizes.json")),
    ("quarantined/09-older-writers.json", include_str!("../../fixtures/quarantined/09-older-writers.json")),
    ("quarantined/28-hostile.json", include_str!("../../fixtures/quarantined/28-hostile.json")),
];

/// The largest document that MongoDB takes, in bytes.
const LARGEST: usize = 16 * 1024 * 1024;

/// Documents of so many bytes do not fit a plain command, together with its own fields.
const LARGE: usize = 1024 * 1024;

/// Fixtures of one insert.
const BATCH: usize = 200;

/// One awkward document.
#[derive(Debug, Clone)]
pub struct Fixture {
    /// What is awkward about it, in a few words.
    pub trap: String,
    pub collection: &'static str,
    /// Why it is here.
    pub why: String,
    pub document: RawDocumentBuf,
    /// Part of the reason for which it must be refused; nothing for a document that must become a row.
    pub reason: Option<String>,
}

/// Why the fixtures cannot be read or stored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read fixtures/{file}")]
    File { file: &'static str, source: serde_json::Error },
    #[error("cannot read fixture {trap:?} of fixtures/{file}")]
    Document { file: &'static str, trap: String, source: Box<bson::error::Error> },
    #[error("fixture {trap:?} of fixtures/{file} has neither a document nor the hexadecimal digits of one")]
    NoDocument { file: &'static str, trap: String },
    #[error("cannot insert the fixtures of {collection}")]
    Insert { collection: &'static str, source: Box<mongodb::error::Error> },
    #[error("MongoDB refused fixtures of {collection}: {message}")]
    Refused { collection: &'static str, message: String },
    #[error("fixture {trap:?} of fixtures/{file} is for {collection:?}, which is no collection")]
    Collection { file: &'static str, trap: String, collection: String },
}

/// An item as it stands in a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    trap: String,
    collection: String,
    why: String,
    reason: Option<String>,
    document: Option<serde_json::Map<String, serde_json::Value>>,
    bson: Option<String>,
}

/// The documents that must become a row and come back exactly, by collection.
///
/// # Errors
/// When a file is not as described; a test reads them all.
pub fn mapped() -> Result<Vec<Fixture>, Error> {
    read_all(MAPPED)
}

/// The documents that must be refused, each with its reason.
///
/// # Errors
/// As [`mapped`].
pub fn quarantined() -> Result<Vec<Fixture>, Error> {
    read_all(QUARANTINED)
}

/// A document just under 16 MiB, most of it the `message` of a log line. It must become a row.
pub fn largest() -> Fixture {
    let with = |message: &str| {
        let id = bson::oid::ObjectId::from_bytes([0x16; 12]);
        rawdoc! { "_id": id, "tenantId": "t1", "runId": "r1", "sequence": 1_i64, "message": message }
    };
    let room = LARGEST - with("").as_bytes().len();
    Fixture {
        trap: "largest".to_owned(),
        collection: "execution_logs",
        why: "as large as the server takes it".to_owned(),
        document: with(&"large ".repeat(room / 6)),
        reason: None,
    }
}

/// Inserts `fixtures` and returns how many there are.
///
/// Small ones by way of the plain command: the driver's own insert reads each `_id` and refuses those that are not UTF-8, which the
/// server takes.
///
/// # Errors
/// [`Error::Insert`], [`Error::Refused`], for example when the fixtures are there already.
pub async fn load(database: &Database, fixtures: &[Fixture]) -> Result<u64, Error> {
    let (small, large): (Vec<_>, Vec<_>) =
        fixtures.iter().partition(|fixture| fixture.document.as_bytes().len() < LARGE);
    for batch in small.chunk_by(|a, b| a.collection == b.collection).flat_map(|run| run.chunks(BATCH)) {
        insert(database, batch).await?;
    }
    for Fixture { collection, document, .. } in large {
        let failed = |source| Error::Insert { collection, source: Box::new(source) };
        database.collection::<RawDocumentBuf>(collection).insert_one(document).await.map_err(failed)?;
    }
    Ok(u64::try_from(fixtures.len()).unwrap_or(u64::MAX))
}

/// Inserts fixtures of one collection.
async fn insert(database: &Database, batch: &[&Fixture]) -> Result<(), Error> {
    let Some(Fixture { collection, .. }) = batch.first() else { return Ok(()) };
    let mut documents = RawArrayBuf::new();
    batch.iter().for_each(|fixture| documents.push(&*fixture.document));
    let command = rawdoc! { "insert": *collection, "documents": documents, "ordered": false };
    let failed = |source| Error::Insert { collection, source: Box::new(source) };
    let reply = database.run_raw_command(command).await.map_err(failed)?;
    // The command succeeds also when documents were refused.
    let Ok(refused) = reply.get_array("writeErrors") else { return Ok(()) };
    let message =
        refused.first().and_then(Bson::as_document).and_then(|first| first.get_str("errmsg").ok()).unwrap_or_default();
    Err(Error::Refused { collection, message: message.to_owned() })
}

fn read_all(files: &[File]) -> Result<Vec<Fixture>, Error> {
    let mut fixtures = Vec::new();
    for (file, text) in files {
        let items: Vec<Item> = serde_json::from_str(text).map_err(|source| Error::File { file, source })?;
        for item in items {
            read(file, &item, &mut fixtures)?;
        }
    }
    fixtures.sort_by_key(|fixture| fixture.collection);
    Ok(fixtures)
}

fn read(file: &'static str, item: &Item, fixtures: &mut Vec<Fixture>) -> Result<(), Error> {
    let trap = || item.trap.clone();
    let unreadable = |source| Error::Document { file, trap: trap(), source: Box::new(source) };
    let document = document(item).ok_or_else(|| Error::NoDocument { file, trap: trap() })?.map_err(unreadable)?;
    let fixture = |collection, document| Fixture {
        trap: trap(),
        collection,
        why: item.why.clone(),
        document,
        reason: item.reason.clone(),
    };
    if item.collection == "*" {
        for entity in ENTITIES {
            fixtures.push(fixture(entity.name, complete(document.clone(), entity).map_err(unreadable)?));
        }
        return Ok(());
    }
    let unknown = || Error::Collection { file, trap: trap(), collection: item.collection.clone() };
    let entity = entity::named(&item.collection).ok_or_else(unknown)?;
    fixtures.push(fixture(entity.name, document));
    Ok(())
}

/// The item's document; nothing when it has none.
fn document(item: &Item) -> Option<Result<RawDocumentBuf, bson::error::Error>> {
    if let Some(digits) = &item.bson {
        return Some(RawDocumentBuf::from_bytes(bytes(digits)?));
    }
    let parsed = Bson::try_from(item.document.clone()?);
    let document = |value: Bson| if let Bson::Document(document) = value { document } else { Document::new() };
    Some(parsed.map(document).and_then(|document| RawDocumentBuf::try_from(&document)))
}

/// The bytes of hexadecimal digits.
fn bytes(digits: &str) -> Option<Vec<u8>> {
    let pair = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    (0..digits.len()).step_by(2).map(pair).collect()
}

/// `document` with the fields that `entity` cannot do without.
fn complete(mut document: RawDocumentBuf, entity: &Entity) -> bson::error::Result<RawDocumentBuf> {
    for field in entity.fields.iter().filter(|field| field.presence == Presence::Required) {
        let value = match field.kind {
            Kind::Word(vocabulary) => vocabulary.words.first().copied().unwrap_or_default(),
            _ => "t1",
        };
        document.append(CString::try_from(field.name)?, value);
    }
    Ok(document)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn the_lists_name_every_file_of_the_folders() {
        for (folder, files) in [("mapped", MAPPED), ("quarantined", QUARANTINED)] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(folder);
            let found: BTreeSet<_> = std::fs::read_dir(path)
                .unwrap()
                .map(|entry| format!("{folder}/{}", entry.unwrap().file_name().to_str().unwrap()))
                .collect();
            assert_eq!(found, files.iter().map(|(name, _)| (*name).to_owned()).collect());
        }
    }

    #[test]
    fn every_fixture_can_be_read_and_only_the_refused_have_a_reason() {
        assert!(mapped().unwrap().iter().all(|fixture| fixture.reason.is_none()));
        assert!(quarantined().unwrap().iter().all(|fixture| fixture.reason.is_some()));
    }

    #[test]
    fn both_folders_have_something_for_every_collection() {
        for fixtures in [mapped().unwrap(), quarantined().unwrap()] {
            let collections: BTreeSet<_> = fixtures.iter().map(|fixture| fixture.collection).collect();
            assert_eq!(collections, ENTITIES.iter().map(|entity| entity.name).collect());
        }
    }

    #[test]
    fn no_key_of_a_collection_repeats() {
        let mut keys = BTreeSet::new();
        for fixture in mapped().unwrap().into_iter().chain(quarantined().unwrap()).chain([largest()]) {
            let id = fixture.document.iter_elements().next().unwrap().unwrap();
            assert_eq!(id.key(), "_id", "{}", fixture.trap);
            // The type byte, the name and the value: everything before the next element.
            let length = 1 + "_id".len() + 1 + id.size();
            let key = (fixture.collection, fixture.document.as_bytes()[4..4 + length].to_vec());
            assert!(keys.insert(key), "{} {}", fixture.collection, fixture.trap);
        }
    }

    #[test]
    fn the_largest_is_just_under_the_servers_limit() {
        let bytes = largest().document.as_bytes().len();
        assert!((LARGEST - 8..=LARGEST).contains(&bytes), "{bytes}");
    }
}
