//! The census: maps every document and writes nothing. It tells beforehand what a backfill will find.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::limit::Limiter;
use super::read::{Batch, BatchSize, Reader, count};
use super::{BackfillError, Copied, Fault, Options, Progress, Tally};
use crate::entity::Entity;
use crate::mapping::Mapping;
use crate::plan;
use crate::scan::Range;
use crate::source::Source;

/// A document that would be quarantined.
#[derive(Debug, Clone)]
pub struct Refused {
    /// Its collection.
    pub collection: &'static str,
    /// The text of its key.
    pub id: String,
    /// Why.
    pub reason: String,
}

/// The most refused documents of a collection that are told one by one.
pub const TOLD: usize = 100;

/// Reads and maps the collections of `options`. Contacts no PostgreSQL.
pub async fn census(
    source: &Source,
    options: &Options,
    begun: impl FnOnce(&[Arc<Progress>]),
    cancel: CancellationToken,
) -> Result<(Vec<Copied>, Vec<Refused>), BackfillError> {
    source.require_collections().await?;
    let progress: Vec<_> = options.entities.iter().map(|entity| Arc::new(Progress::new(entity.name))).collect();
    for (entity, progress) in options.entities.iter().zip(&progress) {
        let attempted = format!("count the documents of {}", entity.name);
        let plan = plan::plan(source, entity.name, i64::MAX).await.map_err(Fault::source(attempted))?;
        let estimated = u64::try_from(plan.estimated_documents).unwrap_or_default();
        progress.estimated.store(estimated, std::sync::atomic::Ordering::Relaxed);
    }
    begun(&progress);
    let limiter = Arc::new(Limiter::new(options.rate));
    let (mut counted, mut refused) = (Vec::new(), Vec::new());
    for (entity, progress) in options.entities.iter().copied().zip(&progress) {
        let size = Arc::new(BatchSize::new(options.rate.batch(), options.batch_bytes));
        let (source, mapping, limiter) = (source.clone(), Mapping::new(entity), limiter.clone());
        let reader = Reader { source, mapping, after: None, epoch: 0, limiter, size };
        let tally = count_collection(reader, progress, &cancel, &mut refused).await?;
        counted.push(Copied { collection: entity.name, tally, removed: 0 });
    }
    Ok((counted, refused))
}

async fn count_collection(
    reader: Reader,
    progress: &Progress,
    cancel: &CancellationToken,
    refused: &mut Vec<Refused>,
) -> Result<Tally, BackfillError> {
    let (entity, size) = (reader.mapping.entity(), reader.size.clone());
    let (sender, mut batches) = mpsc::channel(1);
    let reading = AbortOnDropHandle::new(tokio::spawn(reader.read(Range::default(), false, sender)));
    let mut tally = Tally::default();
    while let Some(batch) = batches.recv().await {
        let before = tally.bytes;
        count_batch(&batch, entity, &mut tally, refused);
        let (documents, bytes) = (count(batch.items.len()), u64::try_from(tally.bytes - before).unwrap_or_default());
        progress.add(documents, bytes);
        // Nothing is loaded, so only the bytes count.
        size.observe(documents, bytes, Duration::ZERO);
        if cancel.is_cancelled() {
            return Err(BackfillError::Interrupted);
        }
    }
    reading.await.map_err(|_| BackfillError::Crashed)??;
    Ok(tally)
}

fn count_batch(batch: &Batch, entity: &'static Entity, tally: &mut Tally, refused: &mut Vec<Refused>) {
    tally.add(&Tally::of(&batch.items, false));
    for item in &batch.items {
        if let Err(reason) = &item.outcome
            && refused.iter().filter(|refused| refused.collection == entity.name).count() < TOLD
        {
            let (id, reason) = (item.key.text().to_owned(), reason.clone());
            refused.push(Refused { collection: entity.name, id, reason });
        }
    }
}
