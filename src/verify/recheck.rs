//! Comparing by key: both sides are read again, whatever was seen of them before.

use std::collections::HashMap;

use bson::{RawDocument, RawDocumentBuf, rawdoc};
use futures::TryStreamExt;
use sqlx::PgPool;

use super::rows::{Found, Rows};
use super::{Fault, Result, canonical};
use crate::entity::Entity;
use crate::mapping::raw;
use crate::mapping::{Key, Mapping};
use crate::scan;
use crate::source::Source;
use crate::verify::report::{Kind, Sides};

/// A key in question.
#[derive(Debug, Clone)]
pub struct Suspect {
    /// Its text.
    pub key: Key,
    /// `{_id: …}`.
    pub id: RawDocumentBuf,
}

/// How the two sides of a key differ.
#[derive(Debug)]
pub struct Difference {
    pub suspect: Suspect,
    pub kind: Kind,
    pub reason: Option<String>,
    pub sides: Sides,
    /// Whether the target has both a row and a quarantined document: the finding of [`super::generation::Share::Quarantine`],
    /// because a row that equals its document is no suspect of its range.
    pub is_double: bool,
}

impl Difference {
    /// A row whose `id` stands for no `_id`: no document can have it.
    pub fn unreadable(id: &str) -> Self {
        let suspect = Suspect { key: Key::from_text(id), id: rawdoc! { "_id": id } };
        let reason = Some("column id stands for no _id".to_owned());
        Self { suspect, kind: Kind::Extra, reason, sides: Sides::default(), is_double: false }
    }
}

/// Compares keys of one collection.
#[derive(Clone)]
pub struct Recheck {
    pub source: Source,
    pub pool: PgPool,
    pub entity: &'static Entity,
    pub rows: Rows,
}

impl Recheck {
    /// The suspect of a key's text, if the text is one.
    pub fn suspect(&self, id: &str) -> Option<Suspect> {
        let key = Key::from_text(id);
        key.document(self.entity.key).ok().map(|id| Suspect { key, id })
    }

    /// The suspect of a document.
    pub fn suspect_of(&self, document: &RawDocument) -> Option<Suspect> {
        let id = scan::id_of(document)?;
        Some(Suspect { key: Mapping::new(self.entity).key(document), id })
    }

    /// The differences among `suspects`, read now.
    pub async fn compare(&self, suspects: Vec<Suspect>) -> Result<Vec<Difference>> {
        if suspects.is_empty() {
            return Ok(Vec::new());
        }
        let mut documents = self.documents(&suspects, rawdoc! {}).await?;
        let ids: Vec<_> = suspects.iter().map(|suspect| suspect.key.text()).collect();
        let attempted = || format!("read rows of {} again", self.entity.name);
        let mut rows = self.rows.find(&self.pool, &ids).await.map_err(|error| Fault::target(attempted(), error))?;
        let mut differences = Vec::new();
        for suspect in suspects {
            let document = documents.remove(suspect.key.text());
            let found = rows.remove(suspect.key.text()).unwrap_or_default();
            differences.extend(decide(suspect, document, found));
        }
        Ok(differences)
    }

    /// Those of `suspects` that have no document now. Of the others only `_id` is read.
    pub async fn without_document(&self, mut suspects: Vec<Suspect>) -> Result<Vec<Suspect>> {
        if !suspects.is_empty() {
            let found = self.documents(&suspects, rawdoc! { "_id": 1 }).await?;
            suspects.retain(|suspect| !found.contains_key(suspect.key.text()));
        }
        Ok(suspects)
    }

    async fn documents(
        &self,
        suspects: &[Suspect],
        projection: RawDocumentBuf,
    ) -> Result<HashMap<String, RawDocumentBuf>> {
        let attempted = || format!("read documents of {} again", self.entity.name);
        let fault = |error| Fault::source(attempted(), error);
        let ids = suspects.iter().map(|suspect| suspect.id.as_ref());
        let command = scan::by_id(self.entity.name, ids, projection, None).map_err(|error| fault(error.into()))?;
        let mut cursor = self.source.database().run_raw_cursor_command(command).batch().await.map_err(fault)?;
        let (mapping, mut found) = (Mapping::new(self.entity), HashMap::new());
        while let Some(batch) = cursor.try_next().await.map_err(fault)? {
            for document in scan::documents(&batch).map_err(fault)? {
                found.insert(mapping.key(document).text().to_owned(), document.to_owned());
            }
        }
        Ok(found)
    }
}

fn decide(suspect: Suspect, document: Option<RawDocumentBuf>, found: Found) -> Option<Difference> {
    let (row, reason) = match found.row {
        Some(Err(error)) => (None, Some(crate::error_text(&error))),
        Some(Ok(row)) => (Some(row), None),
        None => (None, None),
    };
    let quarantined = found.quarantined.map(|bytes| RawDocumentBuf::from_bytes(bytes).ok());
    let is_row = row.is_some() || reason.is_some();
    let kind = match (&document, is_row, &quarantined) {
        (None, false, None) => return None,
        (None, _, _) => Kind::Extra,
        (Some(_), false, None) => Kind::Missing,
        (Some(document), true, None) if row.as_ref().is_some_and(|row| canonical::equal(document, row)) => return None,
        // Quarantined bytes are kept as they are, so the order of fields counts too.
        (Some(document), false, Some(Some(kept))) if document.as_bytes() == kept.as_bytes() => return None,
        (Some(_), _, _) => Kind::Content,
    };
    let both = || "the key has a row and a quarantined document".to_owned();
    let is_double = is_row && quarantined.is_some();
    let reason = reason.or_else(|| is_double.then(both));
    let sides = Sides { source: document, target: row.or(quarantined.flatten()) };
    Some(Difference { suspect, kind, reason, sides, is_double })
}

/// Whether a document and a row, read at different times, call for a second look.
pub fn differ(document: &RawDocument, row: &std::result::Result<RawDocumentBuf, crate::mapping::RebuildError>) -> bool {
    !row.as_ref().is_ok_and(|row| canonical::equal(document, row))
}

/// The text of a document's key and whether it sorts alike in both stores.
pub fn key(mapping: Mapping, document: &RawDocument) -> Key {
    raw::first(document)
        .filter(|first| first.name() == "_id")
        .map_or_else(|| mapping.key(document), |id| Key::of(&id, mapping.entity().key))
}
