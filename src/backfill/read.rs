//! Reading a range of a collection into batches of encoded rows.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bson::{RawDocument, RawDocumentBuf, Timestamp};
use mongodb::raw_batch_cursor::RawBatch;
use tokio::sync::mpsc;

use super::ledger::Tally;
use super::limit::Limiter;
use super::{Fault, Result};
use crate::mapping::{Encoded, Key, Mapping, Refusal, raw};
use crate::scan::{self, Range};
use crate::source::Source;
use crate::stamp::Stamp;

/// One answer of the source, encoded. The raw documents stay at hand for what PostgreSQL may refuse.
pub struct Batch {
    raw: RawBatch,
    /// How many documents of the answer are left out at its beginning.
    skipped: usize,
    /// `{_id: …}` of the last document, if there is one.
    last: Option<RawDocumentBuf>,
    /// The documents in the order of the answer.
    pub items: Vec<Item>,
    /// The tuples of the rows, one behind the other.
    pub tuples: Vec<u8>,
    /// The stamp of everything in the batch.
    pub stamp: Stamp,
}

/// One document of a batch.
#[derive(Debug)]
pub struct Item {
    /// Its key.
    pub key: Key,
    /// Its size in bytes of BSON.
    pub bytes: usize,
    /// Its tuple, or why it has none.
    pub outcome: std::result::Result<Tuple, String>,
}

/// Where a tuple stands in [`Batch::tuples`].
#[derive(Debug, Clone)]
pub struct Tuple {
    /// Its bytes.
    pub span: std::ops::Range<usize>,
    /// The fields in its residue.
    pub irregular: Vec<String>,
}

impl Batch {
    /// The document of item `index`.
    pub fn document(&self, index: usize) -> Result<&RawDocument> {
        let documents = scan::documents(&self.raw).map_err(Fault::source("read an answer again"))?;
        documents.get(self.skipped + index).copied().ok_or(Fault::Ledger { column: "position".to_owned() })
    }

    /// `{_id: …}` of item `index`.
    pub fn position(&self, index: usize) -> Result<RawDocumentBuf> {
        // Mostly the last one is asked for; the others are found by walking through the answer again.
        let last = self.last.clone().filter(|_| index + 1 == self.items.len());
        let found = match last {
            None => scan::id_of(self.document(index)?),
            last => last,
        };
        found.ok_or(Fault::Ledger { column: "position".to_owned() })
    }
}

/// How many documents to ask for, so that a batch takes about [`BatchSize::GOAL`] and no more than its share of memory.
#[derive(Debug)]
pub struct BatchSize {
    documents: AtomicU32,
    most: u32,
    bytes: u64,
}

/// The bytes of BSON one batch should have when nobody asks for another number.
pub const BATCH_BYTES: u64 = 3 << 20;

impl BatchSize {
    /// The time one transaction should take: long enough to be efficient, short enough to lose little.
    const GOAL: Duration = Duration::from_millis(400);
    const FIRST: u32 = 1_000;
    const LEAST: u32 = 1;
    const MOST: u32 = 20_000;

    /// Starts small; never asks for more than `most` documents, and aims at no more than `bytes`.
    pub fn new(most: u32, bytes: u64) -> Self {
        let most = most.clamp(Self::LEAST, Self::MOST);
        Self { documents: AtomicU32::new(Self::FIRST.min(most)), most, bytes }
    }

    /// How many documents to ask for next.
    pub fn get(&self) -> u32 {
        self.documents.load(Ordering::Relaxed)
    }

    /// Learns from a batch: it had this size and took this long to load.
    pub fn observe(&self, documents: u64, bytes: u64, taken: Duration) {
        let documents = documents.max(1);
        let by_bytes = self.bytes.saturating_mul(documents) / bytes.max(1);
        let goal = u64::try_from(Self::GOAL.as_micros()).unwrap_or(u64::MAX);
        let taken = u64::try_from(taken.as_micros()).unwrap_or(u64::MAX).max(1);
        let by_time = documents.saturating_mul(goal) / taken;
        let wanted = u32::try_from(by_bytes.min(by_time)).unwrap_or(u32::MAX);
        // At most twice as many at a time: one fast batch says little.
        let next = wanted.min(self.get().saturating_mul(2)).clamp(Self::LEAST, self.most);
        self.documents.store(next, Ordering::Relaxed);
    }

    /// Whether a cursor that asks for `current` documents should be opened again with another size.
    fn is_far_from(&self, current: u32) -> bool {
        let wanted = self.get();
        wanted >= current.saturating_mul(2) || wanted <= current / 2
    }
}

/// Reads ranges of one collection.
#[derive(Clone)]
pub struct Reader {
    /// Where from.
    pub source: Source,
    /// The mapping of the collection's entity.
    pub mapping: Mapping,
    /// Reads see at least everything up to this oplog time.
    pub after: Option<Timestamp>,
    /// The epoch of the stamps.
    pub epoch: i32,
    /// The rate that all readers of the process share.
    pub limiter: Arc<Limiter>,
    /// The batch size of this reader.
    pub size: Arc<BatchSize>,
}

impl Reader {
    /// Sends the batches of `range` in order; without its lower bound when `resumed`. Ends early, and well, when
    /// nobody receives any more. Not cancel-safe.
    pub async fn read(self, mut range: Range, mut resumed: bool, out: mpsc::Sender<Batch>) -> Result<()> {
        while let Some(position) = self.read_some(&range, resumed, &out).await? {
            range.lower = Some(position);
            resumed = true;
        }
        Ok(())
    }

    /// Reads on until the end (nothing is left) or until another batch size is due (the position is left).
    async fn read_some(
        &self,
        range: &Range,
        resumed: bool,
        out: &mpsc::Sender<Batch>,
    ) -> Result<Option<RawDocumentBuf>> {
        let name = self.mapping.entity().name;
        let fault = |error| Fault::source(format!("read {name}"))(error);
        // The stamp: what was committed before the read began. Anything newer wins later.
        let time = scan::committed_time(&self.source, name, self.after).await.map_err(fault)?;
        let stamp = Stamp::of_oplog(self.epoch, time);
        let size = self.size.get();
        let mut scan = scan::open(&self.source, name, range, size, time).await.map_err(fault)?;
        let mut done = range.lower.clone().filter(|_| resumed);
        // Room first, then the batch: one waits while one is loaded, and no third is in memory.
        while let Ok(room) = out.reserve().await {
            let Some(raw) = scan.next().await.map_err(fault)? else { break };
            let (mapping, resumed) = (self.mapping, done.take());
            // Away from the threads that serve the connections: a batch takes them for tens of milliseconds.
            let encoding = tokio::task::spawn_blocking(move || encode_batch(mapping, raw, stamp, resumed.as_ref()));
            let batch = encoding.await.map_err(|_| Fault::Crashed)?.map_err(fault)?;
            let Some(last) = batch.items.len().checked_sub(1) else { continue };
            let position = batch.position(last)?;
            let bytes = batch.items.iter().map(|item| item.bytes).sum::<usize>();
            self.limiter.pay(count(batch.items.len()), count(bytes)).await;
            room.send(batch);
            if self.size.is_far_from(size) {
                return Ok(Some(position));
            }
        }
        Ok(None)
    }
}

/// Encodes an answer, without its first document when that is `done`.
fn encode_batch(
    mapping: Mapping,
    raw: RawBatch,
    stamp: Stamp,
    done: Option<&RawDocumentBuf>,
) -> mongodb::error::Result<Batch> {
    let documents = scan::documents(&raw)?;
    // Index bounds include the lower one, which a resumed read has had already.
    let is_done = documents.first().is_some_and(|first| done.is_some_and(|done| same_id(first, done)));
    let skipped = usize::from(is_done);
    let mut tuples = Vec::with_capacity(raw.as_raw_document().as_bytes().len() * 5 / 4);
    let encode = |document: &&RawDocument| encode(mapping, document, stamp, &mut tuples);
    let items = documents[skipped..].iter().map(encode).collect();
    let last = documents.last().and_then(|last| scan::id_of(last));
    Ok(Batch { skipped, items, tuples, stamp, last, raw })
}

fn same_id(one: &RawDocument, other: &RawDocument) -> bool {
    let identity = |document| raw::find(document, "_id").map(|id| id.identity());
    identity(one) == identity(other)
}

fn encode(mapping: Mapping, document: &RawDocument, stamp: Stamp, tuples: &mut Vec<u8>) -> Item {
    let start = tuples.len();
    let bytes = document.as_bytes().len();
    match mapping.encode(document, stamp, tuples) {
        Ok(Encoded { key, irregular }) => {
            Item { key, bytes, outcome: Ok(Tuple { span: start..tuples.len(), irregular }) }
        }
        Err(Refusal { key, reason }) => Item { key, bytes, outcome: Err(reason) },
    }
}

/// A count as the ledger's and the limiter's kind of number.
pub fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

impl Tally {
    /// What these documents bring; `refused` when PostgreSQL refused them all.
    pub fn of(items: &[Item], refused: bool) -> Self {
        let mut tally = Self::default();
        for item in items {
            tally.documents += 1;
            tally.bytes += i64::try_from(item.bytes).unwrap_or(i64::MAX);
            match item.outcome.as_ref().ok().filter(|_| !refused) {
                None => tally.quarantined += 1,
                Some(tuple) => {
                    tally.rows += 1;
                    tally.irregular += i64::from(!tuple.irregular.is_empty());
                    tuple.irregular.iter().for_each(|field| *tally.fields.entry(field.clone()).or_default() += 1);
                }
            }
        }
        tally
    }
}
