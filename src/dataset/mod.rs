//! Made-up scheduler documents: realistic ones by the thousand, and the awkward ones of `fixtures/`.
//!
//! A document is a function of its collection, its index and a seed, so that everybody who names the three means the
//! same bytes. References are index arithmetic: in the proportions of [`proportions`] every top-level reference leads
//! to a document that exists.

mod aged;
pub mod fixtures;
mod ids;
mod jobs;
mod logs;
mod plans;
mod random;
mod run;

use std::future::Future;

use bson::RawDocumentBuf;
use mongodb::Database;
use tokio::task::{JoinError, JoinSet};

use crate::entity;
use random::Random;

/// Documents of an insert: about a megabyte.
const BATCH: u64 = 1_000;

/// Inserts under way at once.
const INSERTS: usize = 4;

/// One document in so many is as an older writer would have left it.
const AGED: u64 = 20;

type Writer = fn(u64, u64, &mut Random) -> bson::error::Result<RawDocumentBuf>;

/// How one collection is filled.
struct Recipe {
    collection: &'static str,
    /// Documents of a thousand; nothing for the collection that takes the rest.
    share: u64,
    write: Writer,
}

/// Every collection, in the order of [`entity::ENTITIES`].
const RECIPES: &[Recipe] = &[
    Recipe { collection: "schedules", share: 20, write: plans::schedule },
    Recipe { collection: "triggers", share: 20, write: plans::trigger },
    Recipe { collection: "runs", share: 150, write: run::run },
    Recipe { collection: "graph_jobs", share: 50, write: jobs::graph_job },
    Recipe { collection: "policy_jobs", share: 50, write: jobs::policy_job },
    Recipe { collection: "impact_snapshots", share: 30, write: run::impact_snapshot },
    Recipe { collection: "workers", share: 3, write: plans::worker },
    Recipe { collection: "execution_logs", share: 0, write: logs::execution_log },
    Recipe { collection: "locks", share: 9, write: plans::lock },
    Recipe { collection: "run_summaries", share: 18, write: run::run_summary },
    Recipe { collection: "audit", share: 150, write: logs::audit_record },
];

/// Why documents could not be made or stored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no recipe for the collection.
    #[error("cannot make documents of {collection:?}: there is no such collection")]
    UnknownCollection { collection: String },
    /// A typed struct did not become BSON.
    #[error("cannot write document {index} of {collection}")]
    Write { collection: &'static str, index: u64, source: bson::error::Error },
    /// MongoDB did not take a batch.
    #[error("cannot insert documents from {index} on into {collection}")]
    Insert { collection: &'static str, index: u64, source: Box<mongodb::error::Error> },
    /// A task that inserted ended without a result.
    #[error("an insert into MongoDB did not run to its end")]
    Task { source: JoinError },
}

/// Document `index` of a collection. About one in twenty is as an older writer would have left it, see the module
/// `aged`; the others are exactly what the typed struct of [`entity`] serializes to.
///
/// # Errors
/// [`Error::UnknownCollection`].
pub fn generate(collection: &str, index: u64, seed: u64) -> Result<RawDocumentBuf, Error> {
    make(recipe(collection)?, index, seed)
}

/// How many documents of each collection make up `total`, in the order of [`entity::ENTITIES`]. Every collection has at
/// least one, so the sum is eleven when `total` is less.
pub fn proportions(total: u64) -> Vec<(&'static str, u64)> {
    let own = |recipe: &Recipe| match recipe.collection {
        // Rounded up, so that the schedule of the last run exists.
        "schedules" | "triggers" => (total * recipe.share).div_ceil(1_000).max(1),
        _ => (total * recipe.share / 1_000).max(1),
    };
    let others: u64 = RECIPES.iter().filter(|recipe| recipe.share > 0).map(own).sum();
    let rest = total.saturating_sub(others).max(1);
    RECIPES.iter().map(|recipe| (recipe.collection, if recipe.share == 0 { rest } else { own(recipe) })).collect()
}

/// Inserts `total` documents in the proportions of [`proportions`] and returns how many it inserted.
///
/// `progress` hears of each insert, with the number of its documents. Dropping the future ends the inserts; what is
/// inserted by then stays.
///
/// # Errors
/// [`Error::Insert`] as soon as MongoDB refuses a document, for example because it is there already.
pub async fn load(database: &Database, total: u64, seed: u64, progress: impl Fn(u64)) -> Result<u64, Error> {
    let mut loaded = 0;
    for (collection, count) in proportions(total) {
        loaded += load_collection(database, collection, (count, seed), &progress).await?;
    }
    Ok(loaded)
}

/// Inserts documents 0 to `count` of one collection; otherwise as [`load`].
///
/// # Errors
/// As [`load`], and [`Error::UnknownCollection`].
pub async fn load_collection(
    database: &Database,
    collection: &str,
    (count, seed): (u64, u64),
    progress: impl Fn(u64),
) -> Result<u64, Error> {
    let recipe = recipe(collection)?;
    let mut starts = (0..count).step_by(usize::try_from(BATCH).unwrap_or(usize::MAX));
    let insert = |start: u64| insert(database.clone(), recipe, start..count.min(start + BATCH), seed);
    let mut inserts: JoinSet<_> = starts.by_ref().take(INSERTS).map(insert).collect();
    let mut loaded = 0;
    while let Some(inserted) = inserts.join_next().await {
        let documents = inserted.map_err(|source| Error::Task { source })??;
        progress(documents);
        loaded += documents;
        if let Some(start) = starts.next() {
            inserts.spawn(insert(start));
        }
    }
    Ok(loaded)
}

fn insert(
    database: Database,
    recipe: &'static Recipe,
    indexes: std::ops::Range<u64>,
    seed: u64,
) -> impl Future<Output = Result<u64, Error>> + Send + 'static {
    let (index, count) = (indexes.start, indexes.end - indexes.start);
    async move {
        let documents = indexes.map(|index| make(recipe, index, seed)).collect::<Result<Vec<_>, _>>()?;
        let collection = database.collection::<RawDocumentBuf>(recipe.collection);
        let refused = |source| Error::Insert { collection: recipe.collection, index, source: Box::new(source) };
        collection.insert_many(documents).ordered(false).await.map_err(refused)?;
        Ok(count)
    }
}

fn recipe(collection: &str) -> Result<&'static Recipe, Error> {
    let found = RECIPES.iter().find(|recipe| recipe.collection == collection);
    found.ok_or_else(|| Error::UnknownCollection { collection: collection.to_owned() })
}

fn make(recipe: &'static Recipe, index: u64, seed: u64) -> Result<RawDocumentBuf, Error> {
    let mut random = Random::of(recipe.collection, index, seed);
    let write_error = |source| Error::Write { collection: recipe.collection, index, source };
    let document = (recipe.write)(index, seed, &mut random).map_err(write_error)?;
    match entity::named(recipe.collection) {
        Some(entity) if random.below(AGED) == 0 => aged::age(entity, &document, &mut random).map_err(write_error),
        _ => Ok(document),
    }
}

#[cfg(test)]
mod tests;
