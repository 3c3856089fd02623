//! Reading a collection in the order of its `_id` index, from one `_id` to another, across all BSON types.
//!
//! Invariant: index bounds (`min`, `max`) are used, not `$gt` and `$lt`: those match values of their own type only and
//! would pass over NaN and null without a word. Reads are majority-committed and causally after a given oplog time.

use std::time::Duration;

use bson::raw::{RawBsonRef, cstr};
use bson::spec::ElementType;
use bson::{Bson, RawDocument, RawDocumentBuf, Timestamp, doc, rawdoc};
use mongodb::Database;
use mongodb::error::{Error, ErrorKind, Result};
use mongodb::raw_batch_cursor::{RawBatch, RawBatchCursor};

use crate::mapping::raw::{self, Builder};
use crate::source::Source;

/// How long one answer of the source may take.
pub const ANSWER_WAIT: Duration = Duration::from_secs(120);

/// A range of `_id`: documents `{_id: …}`, the lower bound included, the upper one not; nothing is open.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Range {
    /// Where it begins.
    pub lower: Option<RawDocumentBuf>,
    /// Where it ends.
    pub upper: Option<RawDocumentBuf>,
}

impl Range {
    /// The ranges that `cuts`, in rising order, make of all `_id`s: the first is open below, the last above.
    pub fn between(cuts: Vec<RawDocumentBuf>) -> Vec<Self> {
        let uppers = cuts.iter().cloned().map(Some).chain([None]);
        let lowers = std::iter::once(None).chain(cuts.iter().cloned().map(Some));
        lowers.zip(uppers).map(|(lower, upper)| Self { lower, upper }).collect()
    }
}

/// The document `{_id: …}` of `document`.
pub fn id_of(document: &RawDocument) -> Option<RawDocumentBuf> {
    let mut builder = Builder::default();
    builder.bytes().extend_from_slice(raw::find(document, "_id")?.bytes());
    builder.finish().ok()
}

/// An oplog time that is majority-committed and not before `after`: every write up to it is seen by reads after it.
pub async fn committed_time(source: &Source, collection: &str, after: Option<Timestamp>) -> Result<Timestamp> {
    let command = doc! {
        "find": collection, "limit": 1, "projection": { "_id": 1 }, "readConcern": concern(after), "singleBatch": true,
    };
    let answer = deadline(source.database().run_command(command)).await?;
    answer.get_timestamp("operationTime").map_err(|_| no_time())
}

fn no_time() -> Error {
    ErrorKind::Custom(std::sync::Arc::new("the server's answer has no operationTime")).into()
}

fn concern(after: Option<Timestamp>) -> Bson {
    let mut concern = doc! { "level": "majority" };
    if let Some(time) = after {
        concern.insert("afterClusterTime", time);
    }
    concern.into()
}

/// Begins to read `range` of `collection`, `batch` documents an answer, as of `after` or later.
pub async fn open(source: &Source, collection: &str, range: &Range, batch: u32, after: Timestamp) -> Result<Scan> {
    let mut command = rawdoc! {
        "find": collection, "hint": { "_id": 1 }, "sort": { "_id": 1 }, "batchSize": i64::from(batch),
        "readConcern": { "level": "majority", "afterClusterTime": after },
    };
    let last = (range.lower.is_some() && range.upper.is_none()).then(|| only_max_key(&command));
    for (name, bound) in [(cstr!("min"), &range.lower), (cstr!("max"), &range.upper)] {
        if let Some(bound) = bound {
            command.append(name, bound.as_ref());
        }
    }
    let (command, last) = match last {
        // The server takes no range that begins where it ends.
        Some(last) if range.lower.as_deref().is_some_and(is_max_key) => (last, None),
        last => (command, last),
    };
    let database = source.database().clone();
    Ok(Scan { cursor: cursor(&database, command, batch).await?, database, batch, last })
}

/// The server ends a range that is open above before MaxKey, which may be an `_id` like any other.
fn only_max_key(command: &RawDocumentBuf) -> RawDocumentBuf {
    let mut command = command.clone();
    command.append(cstr!("filter"), rawdoc! { "_id": RawBsonRef::MaxKey });
    command
}

fn is_max_key(bound: &RawDocument) -> bool {
    raw::first(bound).is_some_and(|id| id.kind() == ElementType::MaxKey)
}

async fn cursor(database: &Database, command: RawDocumentBuf, batch: u32) -> Result<RawBatchCursor> {
    deadline(database.run_raw_cursor_command(command).batch_size(batch).batch()).await
}

/// An open read.
pub struct Scan {
    database: Database,
    batch: u32,
    cursor: RawBatchCursor,
    /// What is to be read after the cursor's end.
    last: Option<RawDocumentBuf>,
}

impl Scan {
    /// The next answer, never an empty one; nothing at the end. Not cancel-safe: a dropped call loses an answer.
    pub async fn next(&mut self) -> Result<Option<RawBatch>> {
        loop {
            match deadline(async { futures::StreamExt::next(&mut self.cursor).await.transpose() }).await? {
                Some(batch) if batch.doc_slices()?.is_empty() => {}
                Some(batch) => return Ok(Some(batch)),
                None => match self.last.take() {
                    Some(last) => self.cursor = cursor(&self.database, last, self.batch).await?,
                    None => return Ok(None),
                },
            }
        }
    }
}

/// The documents of one answer.
pub fn documents(batch: &RawBatch) -> Result<Vec<&RawDocument>> {
    let answer = RawDocument::from_bytes(batch.doc_slices()?.as_bytes()).map_err(|_| no_document())?;
    raw::elements(answer)
        .map(|document| document.ok()?.document())
        .map(|document| document.ok_or_else(no_document))
        .collect()
}

/// The command that reads the documents of `collection` with the ids `ids` (`{_id: …}`), what `projection` names of them.
/// Put together from bytes: an `_id` need not be UTF-8. Reads what a majority has, as of `after` or later.
pub fn by_id<'a>(
    collection: &str,
    ids: impl Iterator<Item = &'a RawDocument>,
    projection: RawDocumentBuf,
    after: Option<Timestamp>,
) -> bson::error::Result<RawDocumentBuf> {
    let mut list = Builder::default();
    for (index, id) in ids.filter_map(raw::first).enumerate() {
        list.push(id.kind(), &index.to_string(), id.value_bytes());
    }
    let (mut condition, mut filter) = (Builder::default(), Builder::default());
    condition.push(ElementType::Array, "$in", list.finish()?.as_bytes());
    filter.push(ElementType::EmbeddedDocument, "_id", condition.finish()?.as_bytes());
    let mut concern = rawdoc! { "level": "majority" };
    if let Some(time) = after {
        concern.append(cstr!("afterClusterTime"), time);
    }
    Ok(rawdoc! { "find": collection, "filter": filter.finish()?, "projection": projection, "readConcern": concern })
}

fn no_document() -> Error {
    ErrorKind::Custom(std::sync::Arc::new("the server's answer holds what is no document")).into()
}

/// Bounds an answer by [`ANSWER_WAIT`].
pub async fn deadline<T>(answer: impl IntoFuture<Output = Result<T>>) -> Result<T> {
    let late = |_| std::io::Error::new(std::io::ErrorKind::TimedOut, "the server did not answer in time");
    tokio::time::timeout(ANSWER_WAIT, answer.into_future()).await.map_err(late)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_range_is_open_below_and_the_last_above() {
        let ranges = Range::between(vec![rawdoc! { "_id": 1 }, rawdoc! { "_id": "a" }]);
        assert_eq!(ranges.len(), 3);
        assert_eq!((&ranges[0].lower, &ranges[2].upper), (&None, &None));
        assert!(ranges.windows(2).all(|pair| pair[0].upper == pair[1].lower));
        assert_eq!(Range::between(Vec::new()), [Range::default()]);
    }
}
