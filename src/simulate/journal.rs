//! The journal: every acknowledged write, one JSON object a line.
//!
//! A line is written after the store has acknowledged and before the scheduler goes on, with one system call and no
//! buffer, so that it outlives a kill of the process. A write that was acknowledged and is not in the journal proves
//! nothing; one in the journal must be in the store.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bson::Bson;
use bson::raw::RawBsonRef;
use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::entity::{self, Entity};
use crate::mapping::Key;
use crate::store::{Address, After, Change, Page, Query, Store, StoreError, Stored};

/// A store whose acknowledged writes go into a journal.
#[derive(Debug, Clone)]
pub struct Journaled<S> {
    store: S,
    file: Option<Arc<Mutex<File>>>,
}

/// Why a journal cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file cannot be opened, written or read.
    #[error("could not {attempted} the journal {}", path.display())]
    File {
        /// What was attempted.
        attempted: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A line is not what the simulation writes.
    #[error("line {line} of the journal {} is not what a simulation writes", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line's number, from 1.
        line: usize,
    },
}

/// One acknowledged write.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Of what.
    pub entity: &'static Entity,
    /// Under which key.
    pub id: String,
    /// What was written.
    pub document: bson::Document,
}

impl<S: Store> Journaled<S> {
    /// `store`, with a journal at the end of the file `path`, or without one.
    pub fn new(store: S, path: Option<&Path>) -> Result<Self, JournalError> {
        let open = |path: &Path| {
            let file = OpenOptions::new().create(true).append(true).open(path);
            file.map_err(|source| JournalError::File { attempted: "open", path: path.to_owned(), source })
        };
        let file = path.map(open).transpose()?;
        Ok(Self { store, file: file.map(|file| Arc::new(Mutex::new(file))) })
    }

    fn note<'a>(&self, done: impl Iterator<Item = (&'a Change, &'a After)>) -> Result<(), StoreError> {
        let Some(file) = &self.file else { return Ok(()) };
        let written = done.filter(|(change, _)| !matches!(change, Change::Check { .. }));
        let lines: String = written.filter_map(|(_, after)| line(after)).collect();
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(lines.as_bytes())
            .map_err(|error| StoreError::Failed { attempted: "write the journal".to_owned(), source: error.into() })
    }
}

fn line(after: &After) -> Option<String> {
    let document = Bson::try_from(RawBsonRef::Document(after.document.as_ref()?)).ok()?;
    let line = json!({
        "entity": after.address.entity.name,
        "id": after.address.key.text(),
        "document": document.into_canonical_extjson(),
    });
    Some(format!("{line}\n"))
}

/// Reads the journal in the file `path`. A last line that a kill cut short proves nothing and is left out.
pub fn read(path: &Path) -> Result<Vec<Entry>, JournalError> {
    let failed = |source| JournalError::File { attempted: "read", path: path.to_owned(), source };
    let mut lines = BufReader::new(File::open(path).map_err(failed)?);
    let mut entries = Vec::new();
    let mut line = String::new();
    while lines.read_line(&mut line).map_err(failed)? > 0 && line.ends_with('\n') {
        let wrong = || JournalError::Line { path: path.to_owned(), line: entries.len() + 1 };
        entries.push(entry(&line).ok_or_else(wrong)?);
        line.clear();
    }
    Ok(entries)
}

fn entry(line: &str) -> Option<Entry> {
    let mut value: Value = serde_json::from_str(line).ok()?;
    let entity = entity::named(value.get("entity")?.as_str()?)?;
    let id = value.get("id")?.as_str()?.to_owned();
    let document = Bson::try_from(value.get_mut("document")?.take()).ok()?;
    Some(Entry { entity, id, document: document.as_document()?.clone() })
}

impl<S: Store> Store for Journaled<S> {
    async fn get(&self, address: &Address) -> Result<Option<Stored>, StoreError> {
        self.store.get(address).await
    }

    async fn get_many(&self, entity: &'static Entity, keys: &[Key]) -> Result<Vec<Option<Stored>>, StoreError> {
        self.store.get_many(entity, keys).await
    }

    async fn find(&self, query: &Query) -> Result<Page, StoreError> {
        self.store.find(query).await
    }

    async fn apply(&self, changes: &[Change]) -> Result<Vec<After>, StoreError> {
        let done = self.store.apply(changes).await?;
        self.note(changes.iter().zip(&done))?;
        Ok(done)
    }

    async fn apply_each(&self, changes: &[Change]) -> Result<Vec<Option<After>>, StoreError> {
        let done = self.store.apply_each(changes).await?;
        self.note(changes.iter().zip(&done).filter_map(|(change, after)| Some((change, after.as_ref()?))))?;
        Ok(done)
    }

    async fn now(&self) -> Result<DateTime<Utc>, StoreError> {
        self.store.now().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_is_read_up_to_a_line_that_a_kill_cut_short() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let line = r#"{"entity":"runs","id":"r","document":{"_id":"r","n":{"$numberInt":"5"}}}"#;
        std::fs::write(&path, format!("{line}\n{line}\n{}", &line[..20])).unwrap();
        let entries = read(&path).unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].document, bson::doc! { "_id": "r", "n": 5 });
        std::fs::write(&path, "{}\n").unwrap();
        assert!(matches!(read(&path), Err(JournalError::Line { line: 1, .. })));
    }
}
