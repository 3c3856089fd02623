//! Comparing by key: both sides are read again, whatever was seen of them before.

use std::collections::{HashMap, HashSet};

use bson::{RawDocument, RawDocumentBuf, rawdoc};
use futures::TryStreamExt;
use sha2::{Digest, Sha256};
use sqlx::PgPool;

use super::digest::digest;
use super::rows::{Found, Rows};
use super::{Result, VerifyError, canonical};
use crate::entity::Entity;
use crate::mapping::raw;
use crate::mapping::{Key, Mapping};
use crate::phase::Backend;
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

impl Suspect {
    /// Of a text in column `id` that stands for no `_id`.
    fn unreadable(id: &str) -> Self {
        Self { key: Key::from_text(id), id: rawdoc! { "_id": id } }
    }
}

/// How the two sides of a key differ.
#[derive(Debug)]
pub struct Difference {
    pub suspect: Suspect,
    pub kind: Kind,
    pub reason: Option<String>,
    /// What both sides are: the same for the same sides.
    pub print: Vec<u8>,
}

impl Difference {
    /// A row whose `id` stands for no `_id`: no document can have it.
    pub fn unreadable(id: &str, primary: Backend) -> Self {
        let reason = Some("column id stands for no _id".to_owned());
        Self {
            suspect: Suspect::unreadable(id),
            kind: Kind::only_in(Backend::Postgres, primary),
            reason,
            print: Vec::new(),
        }
    }
}

/// A document, as it is compared: never more than one of each store is in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Print {
    /// Up to the order of fields.
    canonical: [u8; 32],
    /// Byte for byte.
    exact: [u8; 32],
}

impl Print {
    fn of(document: &RawDocument) -> Self {
        Self { canonical: canonical::print(document), exact: Sha256::digest(document.as_bytes()).into() }
    }
}

/// Compares keys of one collection.
#[derive(Clone)]
pub struct Recheck {
    pub source: Source,
    pub pool: PgPool,
    pub entity: &'static Entity,
    pub rows: Rows,
    /// Whose keys are to be in the other store too.
    pub primary: Backend,
}

impl Recheck {
    /// The suspect of a key's text, if the text is one.
    pub fn suspect(&self, id: &str) -> Option<Suspect> {
        let key = Key::from_text(id);
        key.document(self.entity.key).ok().map(|id| Suspect { key, id })
    }

    /// The suspect of any text in column `id`, also of one that stands for no `_id`.
    pub fn suspect_of_key(&self, id: &str) -> Suspect {
        self.suspect(id).unwrap_or_else(|| Suspect::unreadable(id))
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
        let mut documents = HashMap::new();
        let seen = |key, document: &RawDocument| documents.extend([(key, Print::of(document))]);
        self.documents(&suspects, rawdoc! {}, seen).await?;
        let ids: Vec<_> = suspects.iter().map(|suspect| suspect.key.text()).collect();
        let rows = self.rows.find(&self.pool, &ids, |row| row.map(|row| Print::of(&row))).await;
        let mut rows = rows.map_err(|error| self.target_fault(error))?;
        let decided = suspects.into_iter().filter_map(|suspect| {
            let document = documents.remove(suspect.key.text());
            let found = rows.remove(suspect.key.text()).unwrap_or_default();
            decide(suspect, document, found, self.primary)
        });
        Ok(decided.collect())
    }

    /// Those of `suspects` that have no document now. Of the others only `_id` is read.
    pub async fn without_document(&self, mut suspects: Vec<Suspect>) -> Result<Vec<Suspect>> {
        if !suspects.is_empty() {
            let mut found = HashSet::new();
            self.documents(&suspects, rawdoc! { "_id": 1 }, |key, _| found.extend([key])).await?;
            suspects.retain(|suspect| !found.contains(suspect.key.text()));
        }
        Ok(suspects)
    }

    /// Both sides of a key, read now.
    pub async fn sides(&self, suspect: &Suspect) -> Result<Sides> {
        let mut source = None;
        let suspects = std::slice::from_ref(suspect);
        self.documents(suspects, rawdoc! {}, |_, document| source = Some(document.to_owned())).await?;
        let found = self.rows.find(&self.pool, &[suspect.key.text()], |row| row).await;
        let found = found.map_err(|error| self.target_fault(error))?.remove(suspect.key.text()).unwrap_or_default();
        let quarantined = || RawDocumentBuf::from_bytes(found.quarantined?).ok();
        Ok(Sides { source, target: found.row.and_then(std::result::Result::ok).or_else(quarantined) })
    }

    /// Gives `seen` the key's text and the document of each suspect that has one.
    pub async fn documents(
        &self,
        suspects: &[Suspect],
        projection: RawDocumentBuf,
        mut seen: impl FnMut(String, &RawDocument),
    ) -> Result<()> {
        let attempted = || format!("read documents of {} again", self.entity.name);
        let fault = |error| VerifyError::source(attempted(), error);
        let ids = suspects.iter().map(|suspect| suspect.id.as_ref());
        let command = scan::by_id(self.entity.name, ids, projection, None).map_err(|error| fault(error.into()))?;
        let opened = self.source.database().run_raw_cursor_command(command).batch();
        let mut cursor = scan::deadline(opened).await.map_err(fault)?;
        let mapping = Mapping::new(self.entity);
        while let Some(batch) = scan::deadline(cursor.try_next()).await.map_err(fault)? {
            for document in scan::documents(&batch).map_err(fault)? {
                seen(mapping.key(document).text().to_owned(), document);
            }
        }
        Ok(())
    }

    fn target_fault(&self, error: sqlx::Error) -> VerifyError {
        VerifyError::target(format!("read rows of {} again", self.entity.name), error)
    }
}

fn decide(suspect: Suspect, document: Option<Print>, found: Found<Print>, primary: Backend) -> Option<Difference> {
    let is_row = found.row.is_some();
    let kept = found.quarantined.as_ref().map(|bytes| <[u8; 32]>::from(Sha256::digest(bytes)));
    let kind = match (&document, &found.row, &kept) {
        (None, None, None) => return None,
        (None, _, _) => Kind::only_in(Backend::Postgres, primary),
        (Some(_), None, None) => Kind::only_in(Backend::Mongo, primary),
        (Some(document), Some(Ok(row)), None) if document.canonical == row.canonical => return None,
        // Quarantined bytes are kept as they are, so the order of fields counts too.
        (Some(document), None, Some(kept)) if document.exact == *kept => return None,
        (Some(_), _, _) => Kind::Content,
    };
    let reason = match &found.row {
        Some(Err(error)) => Some(crate::error_text(error)),
        _ => (is_row && kept.is_some()).then(|| "the key has a row and a quarantined document".to_owned()),
    };
    let row = found.row.map(|row| row.map_or([0; 32], |row| row.exact));
    let sides = [document.map(|document| document.exact), row, kept];
    let print = digest(&sides.each_ref().map(|side| side.as_ref().map_or(&[][..], |side| &side[..])));
    Some(Difference { suspect, kind, reason, print })
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
