//! Generation 0: every document and every row of a collection is looked at once.
//!
//! Plain keys sort alike in both stores (`collate "C"` and MongoDB's simple collation compare bytes), so their documents
//! and rows are merge-joined range by range. All other keys, and whatever the join finds different, are compared by key.

use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use bson::{RawDocument, Timestamp};
use futures::{Stream, TryStreamExt};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::ledger::Ledger;
use super::longest::LongestQuery;
use super::recheck::{self, Difference, Recheck, Suspect};
use super::report::Counts;
use super::rows::{Rebuilt, Scope};
use super::{Result, VerifyError};
use crate::backfill::Limiter;
use crate::mapping::{Key, Mapping, raw};
use crate::scan::{self, Range};

/// Suspects that are compared at once.
pub const SUSPECTS: usize = 500;

/// Documents the source is asked for at once.
const BATCH: u32 = 2_000;

/// Differences that a share keeps before it notes them: so memory does not grow with their number.
const NOTED: usize = 2_000;

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
    pub ledger: Ledger,
    pub order: Order,
    pub after: Timestamp,
    pub limiter: Arc<Limiter>,
    pub longest: Arc<LongestQuery>,
}

/// What a share found.
#[derive(Default)]
pub struct Outcome {
    pub counts: Counts,
    /// Those that are not noted yet.
    pub differences: Vec<Difference>,
    /// How many there were.
    pub found: u64,
    suspects: Vec<Suspect>,
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
            self.recheck.pool.acquire().await.map_err(|error| VerifyError::target("connect", error))?;
        let rows = self.recheck.rows.range(&mut connection, bound(&range.lower), bound(&range.upper));
        let mut join = Join { generation: self, rows: pin!(rows), head: None, outcome: Outcome::default() };
        let begun = Instant::now();
        if self.order == Order::Bytes {
            join.advance().await?;
        }
        while let Some(batch) = batches.recv().await {
            let documents = scan::documents(&batch).map_err(|error| self.source_fault(error))?;
            for document in &documents {
                join.take(document).await?;
            }
            self.longest.postgres(begun.elapsed());
            seen(u64::try_from(documents.len()).unwrap_or_default());
        }
        reading.await.map_err(|_| VerifyError::Crashed)??;
        join.finish().await
    }

    async fn read(self, range: Range, out: mpsc::Sender<mongodb::raw_batch_cursor::RawBatch>) -> Result<()> {
        let name = self.recheck.entity.name;
        let batch = BATCH.min(self.limiter.rate().batch());
        let mut begun = Instant::now();
        let opened = scan::open(&self.recheck.source, name, &range, batch, self.after).await;
        let mut scan = opened.map_err(|error| self.source_fault(error))?;
        while let Some(batch) = scan.next().await.map_err(|error| self.source_fault(error))? {
            self.longest.mongo(begun.elapsed());
            let size = batch.doc_slices().map_err(|error| self.source_fault(error))?.as_bytes().len();
            let documents = scan::documents(&batch).map_err(|error| self.source_fault(error))?.len();
            let number = |size: usize| u64::try_from(size).unwrap_or(u64::MAX);
            self.limiter.pay(number(documents), number(size)).await;
            if out.send(batch).await.is_err() {
                break; // the comparison has failed, and says why
            }
            begun = Instant::now();
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
            self.keep(&mut outcome, self.unreadable(&ids, &suspects)).await?;
            let found = self.recheck.compare(self.recheck.without_document(suspects).await?).await?;
            self.keep(&mut outcome, found).await?;
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
            self.keep(&mut outcome, self.unreadable(&ids, &suspects)).await?;
            let found = self.recheck.compare(suspects).await?;
            self.keep(&mut outcome, found).await?;
        }
    }

    /// A quarantined document is known by its bytes: the text of a long key does not give the key back.
    fn quarantined(&self, id: &str, bytes: &[u8]) -> Option<Suspect> {
        let document = RawDocument::from_bytes(bytes).ok();
        let suspect = document.and_then(|document| self.recheck.suspect_of(document));
        suspect.filter(|suspect| suspect.key.text() == id).or_else(|| self.recheck.suspect(id))
    }

    async fn keep(&self, outcome: &mut Outcome, found: Vec<Difference>) -> Result<()> {
        outcome.found += u64::try_from(found.len()).unwrap_or_default();
        outcome.differences.extend(found);
        if outcome.differences.len() >= NOTED {
            self.ledger.note(self.recheck.entity, &std::mem::take(&mut outcome.differences)).await?;
        }
        Ok(())
    }

    /// Rows whose id stands for no `_id` have no document.
    fn unreadable(&self, ids: &[String], suspects: &[Suspect]) -> Vec<Difference> {
        let is_unknown = |id: &&String| !suspects.iter().any(|suspect| suspect.key.text() == id.as_str());
        ids.iter().filter(is_unknown).map(|id| Difference::unreadable(id, self.recheck.primary)).collect()
    }

    fn mapping(&self) -> Mapping {
        Mapping::new(self.recheck.entity)
    }

    fn source_fault(&self, error: mongodb::error::Error) -> VerifyError {
        VerifyError::source(format!("read {}", self.recheck.entity.name), error)
    }

    fn target_fault(&self, error: sqlx::Error) -> VerifyError {
        VerifyError::target(format!("read the rows of {}", self.recheck.entity.name), error)
    }
}

/// The text of `{_id: …}` when it is a plain key.
pub fn plain_text(mapping: Mapping, id: &RawDocument) -> Option<String> {
    let key = Key::of(&raw::first(id)?, mapping.entity().key);
    key.is_plain().then(|| key.text().to_owned())
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
                Some(suspect) => self.suspect(suspect).await?,
                None => {
                    self.generation
                        .keep(&mut self.outcome, vec![Difference::unreadable(&row.id, self.generation.recheck.primary)])
                        .await?
                }
            }
        }
        self.advance().await
    }

    async fn suspect_document(&mut self, document: &RawDocument) -> Result<()> {
        match self.generation.recheck.suspect_of(document) {
            Some(suspect) => self.suspect(suspect).await,
            None => Ok(()),
        }
    }

    async fn suspect(&mut self, suspect: Suspect) -> Result<()> {
        self.outcome.suspects.push(suspect);
        if self.outcome.suspects.len() >= SUSPECTS { self.settle().await } else { Ok(()) }
    }

    async fn settle(&mut self) -> Result<()> {
        let suspects = std::mem::take(&mut self.outcome.suspects);
        let found = self.generation.recheck.compare(suspects).await?;
        self.generation.keep(&mut self.outcome, found).await
    }

    async fn finish(mut self) -> Result<Outcome> {
        while self.head.is_some() {
            self.suspect_row().await?;
        }
        self.settle().await?;
        Ok(self.outcome)
    }
}
