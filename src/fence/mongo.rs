//! MongoDB's fence: one document, which holds the leases of the processes that write as well, so that renewing a lease
//! and looking at the fence are one step.

use std::collections::BTreeMap;
use std::time::Duration;

use bson::{Bson, DateTime, Document, doc};
use mongodb::error::Error;
use mongodb::options::{Acknowledgment, CollectionOptions, ReadConcern, ReturnDocument, WriteConcern};
use mongodb::{Collection, Database};
use uuid::Uuid;

use super::{ANSWER_WAIT, Fence, FenceError, bounded};
use crate::phase::Backend;
use crate::source::SourceError;
use crate::switch::gate::Warrant;

/// The collection of the fence.
pub const COLLECTION: &str = "bridge_fence";

const ID: &str = "fence";

/// A process of the application, as the fence knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Who it is, for people.
    pub name: String,
    /// How long ago it renewed its lease, by the server's clock.
    pub silent: Duration,
    /// How long its lease is.
    pub lease: Duration,
}

/// The fence and who writes behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The fence.
    pub fence: Fence,
    /// The processes.
    pub instances: BTreeMap<Uuid, Instance>,
}

/// The fence in a database.
#[derive(Debug, Clone)]
pub struct MongoFence {
    collection: Collection<Document>,
}

impl MongoFence {
    /// The one in `database`.
    pub fn new(database: &Database) -> Self {
        // Whoever answers must know what a majority knows: an old primary that was cut off would tell of an old fence.
        let write = WriteConcern::builder().w(Acknowledgment::Majority).journal(true).w_timeout(ANSWER_WAIT).build();
        let options =
            CollectionOptions::builder().read_concern(ReadConcern::linearizable()).write_concern(write).build();
        Self { collection: database.collection_with_options(COLLECTION, options) }
    }

    /// What it says; nothing where there is none.
    pub async fn look(&self) -> Result<Option<View>, FenceError> {
        let stages = [doc! { "$match": { "_id": ID } }, doc! { "$set": { "now": "$$NOW" } }];
        let attempted = "read the fence in MongoDB";
        let found = async {
            let mut found = self.collection.aggregate(stages).await?;
            if found.advance().await? { found.deserialize_current().map(Some) } else { Ok(None) }
        };
        let found = bounded(attempted, async { found.await.map_err(failed(attempted)) }).await?;
        found.map(|document| view(&document)).transpose()
    }

    /// Makes the fence, where there is none.
    pub async fn create(&self, fence: Fence) -> Result<View, FenceError> {
        let Fence { phase, epoch, open } = fence;
        let new = doc! { "$setOnInsert": { "phase": phase.name(), "epoch": epoch, "open": open, "instances": {} } };
        let made = self.collection.update_one(doc! { "_id": ID }, new).upsert(true);
        let attempted = "make the fence in MongoDB";
        bounded(attempted, async { made.await.map_err(failed(attempted)) }).await?;
        self.look().await?.ok_or(FenceError::Missing { backend: Backend::Mongo })
    }

    /// Begins the lease of `id` anew, while the fence is open; nothing when it is closed, or not there. A process that is
    /// not in the list comes into it.
    pub async fn renew(&self, id: Uuid, (name, lease): (&str, Duration)) -> Result<Option<View>, FenceError> {
        let mine = format!("instances.{id}");
        let lease = i64::try_from(lease.as_millis()).unwrap_or(i64::MAX);
        let instance = doc! { "name": { "$literal": name }, "at": "$$NOW", "lease": lease };
        let update = vec![doc! { "$set": { mine: instance, "now": "$$NOW" } }];
        self.write(doc! { "_id": ID, "open": true }, update, "renew the lease in MongoDB's fence").await
    }

    /// Takes a process out of the list, which acknowledges that it makes no write behind the fence that is closed at `epoch`
    /// (rule 6 of `tests/model`). It names the epoch: one that arrives late, when the fence is open again and the process
    /// writes, must not take it out.
    pub async fn acknowledge(&self, id: Uuid, epoch: i32) -> Result<(), FenceError> {
        let closed = doc! { "_id": ID, "open": false, "epoch": epoch };
        self.write(closed, without(id), "acknowledge that MongoDB's fence is closed").await.map(|_| ())
    }

    /// Takes a process out of the list that never writes again.
    pub async fn leave(&self, id: Uuid) -> Result<(), FenceError> {
        self.write(doc! { "_id": ID }, without(id), "leave MongoDB's fence").await.map(|_| ())
    }

    /// Opens the fence as `warrant` says; nothing when it is not `expected` any more.
    pub async fn open(&self, expected: Fence, warrant: Warrant) -> Result<Option<View>, FenceError> {
        self.change(expected, warrant.fence()).await
    }

    /// Closes the fence, at the phase and epoch of `closed`; nothing when it is not `expected` any more.
    pub async fn close(&self, expected: Fence, closed: Fence) -> Result<Option<View>, FenceError> {
        self.change(expected, Fence { open: false, ..closed }).await
    }

    async fn change(&self, expected: Fence, new: Fence) -> Result<Option<View>, FenceError> {
        let filter = doc! {
            "_id": ID, "phase": expected.phase.name(), "epoch": expected.epoch, "open": expected.open,
        };
        let update = vec![doc! { "$set": {
            "phase": new.phase.name(), "epoch": new.epoch, "open": new.open, "now": "$$NOW",
        } }];
        self.write(filter, update, "change the fence of MongoDB").await
    }

    async fn write(
        &self,
        filter: Document,
        update: Vec<Document>,
        attempted: &'static str,
    ) -> Result<Option<View>, FenceError> {
        let written = self.collection.find_one_and_update(filter, update).return_document(ReturnDocument::After);
        let written = bounded(attempted, async { written.await.map_err(failed(attempted)) }).await?;
        written.map(|document| view(&document)).transpose()
    }
}

fn without(id: Uuid) -> Vec<Document> {
    vec![doc! { "$unset": format!("instances.{id}") }, doc! { "$set": { "now": "$$NOW" } }]
}

fn failed(attempted: &'static str) -> impl FnOnce(Error) -> FenceError {
    move |error| SourceError::of(attempted, error).into()
}

fn view(document: &Document) -> Result<View, FenceError> {
    let malformed = |field: &str| FenceError::Malformed { backend: Backend::Mongo, reason: format!("no {field}") };
    let word = document.get_str("phase").map_err(|_| malformed("phase"))?;
    let phase = word.parse().map_err(|source| FenceError::Phase { backend: Backend::Mongo, source })?;
    let epoch = document.get_i32("epoch").map_err(|_| malformed("epoch"))?;
    let open = document.get_bool("open").map_err(|_| malformed("open"))?;
    let now = *document.get_datetime("now").map_err(|_| malformed("now"))?;
    let mut instances = BTreeMap::new();
    for (id, instance) in document.get_document("instances").map_err(|_| malformed("instances"))? {
        let id = id.parse().map_err(|_| malformed("id of an instance"))?;
        instances.insert(id, read(instance, now).ok_or_else(|| malformed("lease of an instance"))?);
    }
    Ok(View { fence: Fence { phase, epoch, open }, instances })
}

fn read(instance: &Bson, now: DateTime) -> Option<Instance> {
    let instance = instance.as_document()?;
    let millis = |millis: i64| Duration::from_millis(u64::try_from(millis).unwrap_or_default());
    Some(Instance {
        name: instance.get_str("name").ok()?.to_owned(),
        silent: millis(now.timestamp_millis() - instance.get_datetime("at").ok()?.timestamp_millis()),
        lease: millis(instance.get_i64("lease").ok()?),
    })
}
