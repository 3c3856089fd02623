//! Changes as MongoDB writes.

use bson::spec::ElementType;
use bson::{Document, doc};
use futures::StreamExt;
use mongodb::ClientSession;
use mongodb::error::{Error, ErrorKind, WriteFailure};

use super::transaction::{self, PAUSE};
use super::{MongoStore, STAMPS, filter, refused};
use crate::mapping::Mapping;
use crate::mapping::raw::{self, Element};
use crate::stamp::Stamp;
use crate::store::{Address, After, Change, Guard, StoreError, Stored, attempted};

/// How many single writes of one [`crate::store::Store::apply_each`] are under way at a time.
const WIDTH: usize = 16;

/// What a guard's document may measure, in bytes, to stand in a filter: a statement ends at 16 MiB, the new document
/// included.
const GUARD_BYTES: usize = 4 << 20;

/// How many documents inside each other a guard's document may have to stand in a filter.
const LEVELS: usize = 32;

impl MongoStore {
    pub(super) async fn write(&self, changes: &[Change]) -> Result<Vec<After>, StoreError> {
        changes.iter().try_for_each(storable)?;
        match changes {
            [] => Ok(Vec::new()),
            [one @ Change::Put { guard, .. }] if is_alone(guard) => self.single(one).await.map(|after| vec![after]),
            _ => self.transaction(changes).await,
        }
    }

    pub(super) async fn write_each(&self, changes: &[Change]) -> Result<Vec<Option<After>>, StoreError> {
        let writes: Vec<_> = changes.chunks(1).map(|one| self.write(one)).collect();
        let mut writes = futures::stream::iter(writes).buffered(WIDTH);
        let mut afters = Vec::with_capacity(changes.len());
        while let Some(done) = writes.next().await {
            match done {
                Ok(mut after) => afters.push(after.pop()),
                Err(StoreError::Conflict { .. }) => afters.push(None),
                Err(error) => return Err(error),
            }
        }
        Ok(afters)
    }

    /// One write that carries its guard with it.
    async fn single(&self, change: &Change) -> Result<After, StoreError> {
        let failed = |error| refused(attempted(std::slice::from_ref(change)), error);
        let mut session = self.client.start_session().await.map_err(failed)?;
        self.step(change, &mut session).await.map_err(|stop| stop.told(change))?;
        Ok(self.after(change, &session))
    }

    /// All changes in one transaction, tried again as long as it meets others.
    async fn transaction(&self, changes: &[Change]) -> Result<Vec<After>, StoreError> {
        let failed = |error| refused(attempted(changes), error);
        let mut session = self.client.start_session().await.map_err(failed)?;
        // Bounded by the operation's deadline, which drops this.
        loop {
            match self.attempt(changes, &mut session).await {
                Ok(()) => break,
                Err((Stop::Driver(error), _)) if transaction::is_over(&error) => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err((stop, index)) => return Err(stop.told(&changes[index])),
            }
        }
        Ok(changes.iter().map(|change| self.after(change, &session)).collect())
    }

    /// One attempt; an error comes with the change that met it.
    async fn attempt(&self, changes: &[Change], session: &mut ClientSession) -> Result<(), (Stop, usize)> {
        transaction::begin(session).await.map_err(|error| (error.into(), 0))?;
        if let Err((stop, index)) = self.steps(changes, session).await {
            // The server ends what cannot be aborted; the first error is the one to tell.
            drop(session.abort_transaction().await);
            return Err((stop, index));
        }
        transaction::commit(session).await.map_err(|error| (error.into(), 0))
    }

    async fn steps(&self, changes: &[Change], session: &mut ClientSession) -> Result<(), (Stop, usize)> {
        let mut rest = changes;
        while let Some(first) = rest.first() {
            let at = changes.len() - rest.len();
            let same = rest.iter().take_while(|change| is_creation_beside(first, change)).count();
            if same > 1 {
                let created = self.create_many(&rest[..same], session).await;
                created.map_err(|error| {
                    let at = at + failed_at(&error);
                    (Stop::from(error), at)
                })?;
            } else {
                self.step(first, session).await.map_err(|stop| (stop, at))?;
            }
            rest = &rest[same.max(1)..];
        }
        Ok(())
    }

    async fn create_many(&self, changes: &[Change], session: &mut ClientSession) -> Result<(), Error> {
        let documents = changes.iter().filter_map(|change| match change {
            Change::Put { document, .. } => Some(document),
            _ => None,
        });
        let collection = self.collection(changes[0].address().entity.name);
        collection.insert_many(documents).session(session).await?;
        Ok(())
    }

    /// Makes one change, in the session's transaction if it has one.
    async fn step(&self, change: &Change, session: &mut ClientSession) -> Result<(), Stop> {
        let collection = self.collection(change.address().entity.name);
        match change {
            Change::Put { guard: Guard::Absent, document, .. } => {
                collection.insert_one(document).session(session).await?;
            }
            Change::Put { address, guard: Guard::Unchanged(held), document } => {
                let filter = self.unchanged(address, held, session).await?;
                let done = collection.replace_one(filter, document).session(session).await?;
                require(done.matched_count)?;
            }
            Change::Delete { address, unchanged } => {
                let filter = self.unchanged(address, unchanged, session).await?;
                require(collection.delete_one(filter).session(&mut *session).await?.deleted_count)?;
                self.bury(address, session).await?;
            }
            Change::Check { address, unchanged } => {
                let filter = self.unchanged(address, unchanged, session).await?;
                self.touch(&filter, address, session).await?;
            }
        }
        Ok(())
    }

    /// The filter that holds for the document as long as it is `held`. What cannot stand in a filter is compared here,
    /// which is as good within a transaction: whoever changes it after the snapshot makes the write fail.
    async fn unchanged(&self, address: &Address, held: &Stored, session: &mut ClientSession) -> Result<Document, Stop> {
        let id = filter::id(address.entity, &address.key).map_err(|_| Stop::Conflict)?;
        if let Some(literal) = literal(held) {
            let size = i64::try_from(held.document.as_bytes().len()).unwrap_or(i64::MAX);
            let equal = doc! { "$eq": ["$$ROOT", { "$literal": literal }] };
            return Ok(doc! { "_id": id, "$expr": { "$and": [equal, { "$eq": [{ "$bsonSize": "$$ROOT" }, size] }] } });
        }
        let by_id = doc! { "_id": id };
        let found = self.collection(address.entity.name).find_one(by_id.clone()).session(session).await?;
        if found.as_ref() == Some(&held.document) { Ok(by_id) } else { Err(Stop::Conflict) }
    }

    /// Writes the document without changing it: only a write meets those of others, and one that sets what is there
    /// already is none.
    async fn touch(&self, filter: &Document, address: &Address, session: &mut ClientSession) -> Result<(), Stop> {
        const MARK: &str = "bridgeCheck";
        let collection = self.collection(address.entity.name);
        let marked = collection.update_one(filter.clone(), doc! { "$set": { MARK: true } }).session(&mut *session);
        require(marked.await?.matched_count)?;
        let id = filter.get("_id").cloned().unwrap_or_default();
        collection.update_one(doc! { "_id": id }, doc! { "$unset": { MARK: "" } }).session(session).await?;
        Ok(())
    }

    /// Leaves a tombstone. Its time is the newest the server knows of within the transaction: no other write of the key
    /// lies between it and the commit.
    async fn bury(&self, address: &Address, session: &mut ClientSession) -> Result<(), Stop> {
        let id = doc! { "collection": address.entity.name, "id": address.key.text() };
        let buried = doc! { "$set": { "epoch": self.epoch, "at": "$$CLUSTER_TIME", "deleted": true } };
        let stamps = self.database.collection::<Document>(STAMPS);
        stamps.update_one(doc! { "_id": id }, vec![buried]).upsert(true).session(session).await?;
        Ok(())
    }

    /// What stands there after the change. Putting what stands there already writes nothing: the time that the server
    /// answers with is then of somebody else's write, perhaps a later one of the same key, and is no stamp of this document.
    fn after(&self, change: &Change, session: &ClientSession) -> After {
        let is_written = match change {
            Change::Put { guard: Guard::Unchanged(held), document, .. } => held.document != *document,
            _ => true,
        };
        let time = session.operation_time().filter(|_| is_written);
        change.after(change.address().clone(), time.map(|time| Stamp::of_oplog(self.epoch, time)))
    }
}

/// Why a step was not made.
enum Stop {
    /// The guard does not hold.
    Conflict,
    /// The driver's answer.
    Driver(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Driver(error)
    }
}

impl Stop {
    fn told(self, change: &Change) -> StoreError {
        let address = || change.address().clone();
        match self {
            Self::Conflict => StoreError::Conflict { address: address() },
            Self::Driver(error) if is_taken(&error) => StoreError::Conflict { address: address() },
            Self::Driver(error) => refused(attempted(std::slice::from_ref(change)), error),
        }
    }
}

fn require(matched: u64) -> Result<(), Stop> {
    if matched == 1 { Ok(()) } else { Err(Stop::Conflict) }
}

/// The document as it can stand in a filter: not so when it is large, not UTF-8, nested so deep that the driver's
/// conversion would need more stack than a thread has, or of values that MongoDB takes for others.
fn literal(held: &Stored) -> Option<Document> {
    let document = held.document.as_ref();
    let is_told = || raw::elements(document).all(|element| element.is_ok_and(|element| is_told(&element, LEVELS)));
    let fits = document.as_bytes().len() <= GUARD_BYTES && is_told();
    fits.then(|| Document::try_from(document).ok()).flatten()
}

/// Whether MongoDB's `$eq`, with the size of the document beside it, tells the value from every other. To `$eq` 1 is 1.0;
/// but where all numbers are Int32, the shortest, one of another type is longer. (A string is also the symbol of its text,
/// a type that no writer has used for a decade.)
fn is_told(element: &Element<'_>, levels: usize) -> bool {
    match element.kind() {
        ElementType::Double | ElementType::Int64 | ElementType::Decimal128 | ElementType::Symbol => false,
        ElementType::JavaScriptCodeWithScope => false,
        ElementType::EmbeddedDocument | ElementType::Array => {
            let inside = element.document().zip(levels.checked_sub(1));
            inside.is_some_and(|(inside, levels)| {
                raw::elements(inside).all(|inner| inner.is_ok_and(|inner| is_told(&inner, levels)))
            })
        }
        _ => true,
    }
}

fn is_alone(guard: &Guard) -> bool {
    match guard {
        Guard::Absent => true,
        Guard::Unchanged(held) => literal(held).is_some(),
    }
}

fn is_creation_beside(first: &Change, change: &Change) -> bool {
    let is_creation = |change: &Change| matches!(change, Change::Put { guard: Guard::Absent, .. });
    is_creation(first) && is_creation(change) && first.address().entity == change.address().entity
}

/// Refuses what PostgreSQL could not keep.
fn storable(change: &Change) -> Result<(), StoreError> {
    let Change::Put { address, document, .. } = change else { return Ok(()) };
    let encoded = Mapping::new(address.entity).encode(document, Stamp { epoch: 0, clock: 0 }, &mut Vec::new());
    let refusal =
        |refusal: crate::mapping::Refusal| StoreError::Refused { address: address.clone(), reason: refusal.reason };
    encoded.map(|_| ()).map_err(refusal)
}

/// Which of many insertions failed.
fn failed_at(error: &Error) -> usize {
    match error.kind.as_ref() {
        ErrorKind::InsertMany(error) => {
            error.write_errors.iter().flatten().map(|error| error.index).next().unwrap_or(0)
        }
        _ => 0,
    }
}

/// Whether an insertion found its key taken.
fn is_taken(error: &Error) -> bool {
    const DUPLICATE_KEY: i32 = 11_000;
    match error.kind.as_ref() {
        ErrorKind::Write(WriteFailure::WriteError(error)) => error.code == DUPLICATE_KEY,
        ErrorKind::InsertMany(error) => error.write_errors.iter().flatten().any(|error| error.code == DUPLICATE_KEY),
        ErrorKind::Command(error) => error.code == DUPLICATE_KEY,
        _ => false,
    }
}
