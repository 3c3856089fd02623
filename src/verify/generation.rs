//! Generation 0: every document and every row of a collection is looked at once.
//!
//! Plain keys sort alike in both stores (`collate "C"` and MongoDB's simple collation compare bytes), so their documents
//! and rows are merge-joined range by range. All other keys, and whatever the join finds different, are compared by key.

use std::pin::pin;

use bson::{RawDocument, Timestamp};
use futures::{Stream, TryStreamExt};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::recheck::{self, Difference, Recheck, Suspect};
use super::report::{Counts, Kind, Sides};
use super::rows::{Rebuilt, Scope};
use super::{Fault, Result};
use crate::mapping::{Key, Mapping, raw};
use crate::scan::{self, Range};

/// Suspects that are compared at once.
const SUSPECTS: usize = 500;

/// Bytes of BSON that are compared at once, but for the last suspect: both sides of all are in memory.
const SUSPECT_BYTES: usize = 4 << 20;

/// Documents the source is asked for at once.
const BATCH: u32 = 2_000;

/// One share of a collection's verification.
#[derive(Debug, Clone)]
pub enum Share {
    /// The documents of a range, and the rows with plain keys in it.
    Range(Range),
    /// The rows that no range compares: with marked keys, or all of them when the orders differ.
    Rows(Scope),
    /// The quarantined documents.
    Quarantine,
}

/// Whether the collection's documents come in the order of their keys' bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As PostgreSQL sorts them.
    Bytes,
    /// By the collation of the collection.
    Collation,
}

/// What a share needs.
#[derive(Clone)]
pub struct Generation {
    pub recheck: Recheck,
    pub order: Order,
    pub after: Timestamp,
    /// How many differences a share keeps; the others are counted alone.
    pub kept: usize,
    /// Of how many of those it keeps both sides, which may be 16 MiB each.
    pub shown: usize,
}

/// What a share found.
#[derive(Default)]
pub struct Outcome {
    pub counts: Counts,
    pub differences: Vec<Difference>,
    suspects: Vec<Suspect>,
    /// The bytes of the suspects' documents.
    suspect_bytes: usize,
}

impl Generation {
    /// Compares one share. `seen` is told how many documents or rows were looked at since it was told last.
    pub async fn compare(&self, share: &Share, seen: impl Fn(u64) + Send) -> Result<Outcome> {
        match share {
            Share::Range(range) => self.compare_range(range, seen).await,
            Share::Rows(scope) => self.compare_rows(*scope).await,
            Share::Quarantine => self.compare_quarantine().await,
        }
    }

    async fn compare_range(&self, range: &Range, seen: impl Fn(u64) + Send) -> Result<Outcome> {
        let (sender, mut batches) = mpsc::channel(2);
        let reading = AbortOnDropHandle::new(tokio::spawn(self.clone().read(range.clone(), sender)));
        let bound = |bound: &Option<bson::RawDocumentBuf>| bound.as_ref().and_then(|id| plain_text(self.mapping(), id));
        let mut connection =
            self.recheck.pool.acquire().await.map_err(|error| Fault::target("connect".to_owned(), error))?;
        let rows = self.recheck.rows.range(&mut connection, bound(&range.lower), bound(&range.upper));
        let mut join = Join { generation: self, rows: pin!(rows), head: None, outcome: Outcome::default() };
        if self.order == Order::Bytes {
            join.advance().await?;
        }
        while let Some(batch) = batches.recv().await {
            let documents = scan::documents(&batch).map_err(|error| self.source_fault(error))?;
            for document in &documents {
                join.take(document).await?;
            }
            seen(u64::try_from(documents.len()).unwrap_or_default());
        }
        reading.await.map_err(|_| Fault::Crashed)??;
        join.finish().await
    }

    async fn read(self, range: Range, out: mpsc::Sender<mongodb::raw_batch_cursor::RawBatch>) -> Result<()> {
        let name = self.recheck.entity.name;
        let opened = scan::open(&self.recheck.source, name, &range, BATCH, self.after).await;
        let mut scan = opened.map_err(|error| self.source_fault(error))?;
        while let Some(batch) = scan.next().await.map_err(|error| self.source_fault(error))? {
            if out.send(batch).await.is_err() {
                break; // the comparison has failed, and says why
            }
        }
        Ok(())
    }

    /// The ids of rows, looked up in the source. Documents were looked up in the target by their range.
    async fn compare_rows(&self, scope: Scope) -> Result<Outcome> {
        let (mut outcome, mut after) = (Outcome::default(), None::<String>);
        let limit = i64::try_from(SUSPECTS).unwrap_or(i64::MAX);
        loop {
            let ids = self.recheck.rows.ids(&self.recheck.pool, after.as_deref(), scope, limit).await;
            let ids = ids.map_err(|error| self.target_fault(error))?;
            let Some(last) = ids.last() else { return Ok(outcome) };
            after = Some(last.clone());
            outcome.counts.rows += u64::try_from(ids.len()).unwrap_or_default();
            let suspects = ids.iter().filter_map(|id| self.recheck.suspect(id)).collect::<Vec<_>>();
            self.keep(&mut outcome, unreadable(&ids, &suspects));
            let found = self.recheck.compare(self.recheck.without_document(suspects).await?).await?;
            self.keep(&mut outcome, of_rows(found));
        }
    }

    async fn compare_quarantine(&self) -> Result<Outcome> {
        let (mut outcome, mut after) = (Outcome::default(), None::<String>);
        loop {
            // Documents of any size: few at a time.
            let found = self.recheck.rows.quarantined(&self.recheck.pool, after.as_deref(), 8).await;
            let found = found.map_err(|error| self.target_fault(error))?;
            let Some((last, _)) = found.last() else { return Ok(outcome) };
            after = Some(last.clone());
            outcome.counts.quarantined += u64::try_from(found.len()).unwrap_or_default();
            let suspects = found.iter().filter_map(|(id, bytes)| self.quarantined(id, bytes)).collect::<Vec<_>>();
            let ids = found.into_iter().map(|(id, _)| id).collect::<Vec<_>>();
            self.keep(&mut outcome, unreadable(&ids, &suspects));
            let found = self.recheck.compare(suspects).await?;
            self.keep(&mut outcome, of_quarantine(found));
        }
    }

    /// A quarantined document is known by its bytes: the text of a long key does not give the key back.
    fn quarantined(&self, id: &str, bytes: &[u8]) -> Option<Suspect> {
        let document = RawDocument::from_bytes(bytes).ok();
        let suspect = document.and_then(|document| self.recheck.suspect_of(document));
        suspect.filter(|suspect| suspect.key.text() == id).or_else(|| self.recheck.suspect(id))
    }

    fn keep(&self, outcome: &mut Outcome, found: impl IntoIterator<Item = Difference>) {
        for mut difference in found {
            outcome.counts.count(difference.kind);
            if outcome.differences.len() >= self.shown {
                difference.sides = Sides::default();
            }
            if outcome.differences.len() < self.kept {
                outcome.differences.push(difference);
            }
        }
    }

    fn mapping(&self) -> Mapping {
        Mapping::new(self.recheck.entity)
    }

    fn source_fault(&self, error: mongodb::error::Error) -> Fault {
        Fault::source(format!("read {}", self.recheck.entity.name), error)
    }

    fn target_fault(&self, error: sqlx::Error) -> Fault {
        Fault::target(format!("read the rows of {}", self.recheck.entity.name), error)
    }
}

/// The text of `{_id: …}` when it is a plain key.
pub fn plain_text(mapping: Mapping, id: &RawDocument) -> Option<String> {
    let key = Key::of(&raw::first(id)?, mapping.entity().key);
    key.is_plain().then(|| key.text().to_owned())
}

/// What is missing or differs is the finding of the document's range.
fn of_rows(found: Vec<Difference>) -> impl Iterator<Item = Difference> {
    of_range(found).filter(|difference| difference.kind == Kind::Extra)
}

fn of_range(found: Vec<Difference>) -> impl Iterator<Item = Difference> {
    found.into_iter().filter(|difference| !difference.is_double)
}

fn of_quarantine(found: Vec<Difference>) -> impl Iterator<Item = Difference> {
    found.into_iter().filter(|difference| difference.kind == Kind::Extra || difference.is_double)
}

/// Rows whose id stands for no `_id` have no document.
fn unreadable(ids: &[String], suspects: &[Suspect]) -> Vec<Difference> {
    let is_unknown = |id: &&String| !suspects.iter().any(|suspect| suspect.key.text() == id.as_str());
    ids.iter().filter(is_unknown).map(|id| Difference::unreadable(id)).collect()
}

/// A merge join of documents, pushed in, and rows, pulled.
struct Join<'a, S> {
    generation: &'a Generation,
    rows: std::pin::Pin<&'a mut S>,
    head: Option<Rebuilt>,
    outcome: Outcome,
}

impl<S: Stream<Item = sqlx::Result<Rebuilt>>> Join<'_, S> {
    async fn advance(&mut self) -> Result<()> {
        self.head = self.rows.try_next().await.map_err(|error| self.generation.target_fault(error))?;
        self.outcome.counts.rows += u64::from(self.head.is_some());
        Ok(())
    }

    async fn take(&mut self, document: &RawDocument) -> Result<()> {
        self.outcome.counts.documents += 1;
        let key = recheck::key(self.generation.mapping(), document);
        if self.generation.order == Order::Collation || !key.is_plain() {
            return self.suspect_document(document).await;
        }
        while self.head.as_ref().is_some_and(|row| row.id.as_str() < key.text()) {
            self.suspect_row().await?;
        }
        match self.head.as_ref().filter(|row| row.id == key.text()) {
            Some(row) if !recheck::differ(document, &row.document) => self.advance().await,
            Some(_) => {
                self.advance().await?;
                self.suspect_document(document).await
            }
            None => self.suspect_document(document).await,
        }
    }

    /// The row at the head has no document in the range.
    async fn suspect_row(&mut self) -> Result<()> {
        if let Some(row) = self.head.take() {
            match self.generation.recheck.suspect(&row.id) {
                Some(suspect) => {
                    self.suspect(suspect, row.document.map_or(0, |document| document.as_bytes().len())).await?
                }
                None => self.generation.keep(&mut self.outcome, [Difference::unreadable(&row.id)]),
            }
        }
        self.advance().await
    }

    async fn suspect_document(&mut self, document: &RawDocument) -> Result<()> {
        match self.generation.recheck.suspect_of(document) {
            Some(suspect) => self.suspect(suspect, document.as_bytes().len()).await,
            None => Ok(()),
        }
    }

    async fn suspect(&mut self, suspect: Suspect, bytes: usize) -> Result<()> {
        self.outcome.suspects.push(suspect);
        self.outcome.suspect_bytes += bytes;
        let is_full = self.outcome.suspects.len() >= SUSPECTS || self.outcome.suspect_bytes >= SUSPECT_BYTES;
        if is_full { self.settle().await } else { Ok(()) }
    }

    async fn settle(&mut self) -> Result<()> {
        let suspects = std::mem::take(&mut self.outcome.suspects);
        self.outcome.suspect_bytes = 0;
        let found = self.generation.recheck.compare(suspects).await?;
        self.generation.keep(&mut self.outcome, of_range(found));
        Ok(())
    }

    async fn finish(mut self) -> Result<Outcome> {
        while self.head.is_some() {
            self.suspect_row().await?;
        }
        self.settle().await?;
        Ok(self.outcome)
    }
}
