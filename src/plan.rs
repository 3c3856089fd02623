//! The plan: where to cut a collection into chunks.
//!
//! One series of chunks over the whole `_id` index, in MongoDB's order across all BSON types: index bounds pass over no
//! type (see [`crate::scan`]), so no series per type is needed.

use bson::{RawDocumentBuf, doc};
use futures::TryStreamExt;
use mongodb::error::{Error, Result};

use crate::scan::{self, Range};
use crate::source::Source;

/// Documents in one chunk, in bytes, aimed at: small enough that the workers end at about the same time.
pub const CHUNK_BYTES: i64 = 16 << 20;

/// The most chunks of one collection.
const MOST_CHUNKS: i64 = 1_024;

/// Sampled `_id`s for each boundary: enough that chunks differ little in size.
const SAMPLES_PER_CHUNK: i64 = 16;

/// A collection cut into chunks.
#[derive(Debug)]
pub struct Plan {
    /// The chunks in order; together they cover every possible `_id`.
    pub chunks: Vec<Range>,
    /// How many documents the server believes there are.
    pub estimated_documents: i64,
}

/// Plans `collection`. One that does not exist has one empty chunk.
pub async fn plan(source: &Source, collection: &str, chunk_bytes: i64) -> Result<Plan> {
    let (estimated_documents, bytes) = size(source, collection).await?;
    let wanted = (bytes / chunk_bytes.max(1) + 1).clamp(1, MOST_CHUNKS);
    let boundaries = if wanted > 1 { sample(source, collection, wanted).await? } else { Vec::new() };
    Ok(Plan { chunks: Range::between(boundaries), estimated_documents })
}

/// How many documents the server believes there are, and their bytes.
pub async fn size(source: &Source, collection: &str) -> Result<(i64, i64)> {
    let stats = vec![doc! { "$collStats": { "storageStats": {} } }];
    let answer = source.database().collection::<bson::Document>(collection).aggregate(stats).await;
    let mut cursor = match answer {
        Err(error) if is_missing(&error) => return Ok((0, 0)),
        answer => answer?,
    };
    let (mut documents, mut bytes) = (0, 0);
    // One document for each shard.
    while let Some(stats) = cursor.try_next().await? {
        let storage = stats.get_document("storageStats").cloned().unwrap_or_default();
        documents += number(&storage, "count");
        bytes += number(&storage, "size");
    }
    Ok((documents, bytes))
}

fn is_missing(error: &Error) -> bool {
    const NAMESPACE_NOT_FOUND: i32 = 26;
    matches!(error.kind.as_ref(), mongodb::error::ErrorKind::Command(command) if command.code == NAMESPACE_NOT_FOUND)
}

fn number(document: &bson::Document, name: &str) -> i64 {
    let integer = document.get_i64(name).or_else(|_| document.get_i32(name).map(i64::from));
    #[expect(clippy::cast_possible_truncation, reason = "the cast saturates; an estimate needs no more")]
    integer.or_else(|_| document.get_f64(name).map(|value| value as i64)).unwrap_or_default()
}

async fn sample(source: &Source, collection: &str, chunks: i64) -> Result<Vec<RawDocumentBuf>> {
    let pipeline = vec![
        doc! { "$sample": { "size": chunks * SAMPLES_PER_CHUNK } },
        doc! { "$project": { "_id": 1 } },
        doc! { "$sort": { "_id": 1 } },
    ];
    let collection = source.database().collection::<RawDocumentBuf>(collection);
    let found: Vec<RawDocumentBuf> =
        collection.aggregate(pipeline).with_type::<RawDocumentBuf>().await?.try_collect().await?;
    let step = usize::try_from(SAMPLES_PER_CHUNK).unwrap_or(1);
    let mut boundaries: Vec<_> = found.iter().skip(step).step_by(step).filter_map(|one| scan::id_of(one)).collect();
    // $sample may give a document twice; bounds must rise.
    boundaries.dedup();
    Ok(boundaries)
}
