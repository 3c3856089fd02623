//! Locks in MongoDB: the document of a lock is its lease, written by one operation and measured by the server's clock.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bson::{Document, doc};
use mongodb::error::{Error, ErrorKind, WriteFailure};
use mongodb::options::{Acknowledgment, CollectionOptions, ReadConcern, ReturnDocument, WriteConcern};
use mongodb::{Collection, Database};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::{ANSWER_WAIT, Given, Held, LockError, LockKey, Locks, check_lease, owner};
use crate::source::DriverError;
use crate::store::mongo::transaction::past_the_dead;

/// The locks of one process in collection `locks`.
#[derive(Debug, Clone)]
pub struct MongoLocks {
    collection: Collection<Document>,
    owner: String,
    /// What goes on in the background: acquisitions whose callers went away, and locks that were dropped.
    tasks: TaskTracker,
}

impl MongoLocks {
    /// The locks in `database`.
    pub fn new(database: &Database) -> Self {
        let write = WriteConcern::builder().w(Acknowledgment::Majority).journal(true).w_timeout(ANSWER_WAIT).build();
        let options = CollectionOptions::builder().read_concern(ReadConcern::majority()).write_concern(write).build();
        Self {
            collection: database.collection_with_options("locks", options),
            owner: owner(),
            tasks: TaskTracker::new(),
        }
    }

    /// Waits for what goes on in the background; each part of it ends by itself within seconds.
    pub async fn close(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn take(self, key: LockKey, lease: Duration) -> Result<Option<MongoHeld>, LockError> {
        let deadline = Instant::now() + lease;
        let owner = format!("{}#{}", self.owner, &uuid::Uuid::new_v4().simple().to_string()[..8]);
        // Older writers stored texts; what is no date at all has never bound anybody.
        let never = bson::DateTime::from_millis(0);
        let expiry = doc! { "$convert": { "input": "$expiresAt", "to": "date", "onError": never, "onNull": never } };
        let taken = doc! { "$mergeObjects": ["$$ROOT", {
            "owner": &owner,
            "token": { "$add": [{ "$toLong": { "$ifNull": ["$token", 0_i64] } }, 1_i64] },
            "acquiredAt": "$$NOW",
            "expiresAt": { "$add": ["$$NOW", millis(lease)] },
        }] };
        // The condition stands in the update, not in the filter: an upsert allows none there. A lock that is not free
        // stays as it is.
        let update = doc! { "$replaceWith": { "$cond": [{ "$lte": [expiry, "$$NOW"] }, taken, "$$ROOT"] } };
        let document = self.write(&key, doc! { "_id": key.id() }, (update, true)).await?;
        let is_mine = |document: &Document| document.get_str("owner").is_ok_and(|holder| holder == owner);
        let Some(document) = document.filter(is_mine) else { return Ok(None) };
        let (given, deadline) = (Mutex::new(given(&document)), watch::Sender::new(Some(deadline)));
        Ok(Some(MongoHeld { locks: self, key, owner, given, deadline }))
    }

    /// One operation on the lock's document where `filter` holds; the document it leaves.
    async fn write(
        &self,
        key: &LockKey,
        filter: Document,
        (update, is_new): (Document, bool),
    ) -> Result<Option<Document>, LockError> {
        let written = self
            .collection
            .find_one_and_update(filter, vec![update])
            .upsert(is_new)
            .return_document(ReturnDocument::After);
        let attempted = || format!("write lock {key}");
        let written = past_the_dead(self.collection.client(), async { written.await });
        let done = tokio::time::timeout(ANSWER_WAIT, written).await;
        match done.map_err(|_| LockError::Unavailable { attempted: attempted(), source: None })? {
            Ok(document) => Ok(document),
            // Two were to make the document at once, and the other one has.
            Err(error) if is_duplicate(&error) => Ok(None),
            Err(error) => {
                Err(LockError::Unavailable { attempted: attempted(), source: Some(DriverError(error).into()) })
            }
        }
    }
}

impl Locks for MongoLocks {
    type Held = MongoHeld;

    async fn try_acquire(&self, key: &LockKey, lease: Duration) -> Result<Option<MongoHeld>, LockError> {
        check_lease(key, lease)?;
        // A caller may go away while the server takes the lock: the task hears of it, and dropping what it got lets it go.
        let (reply, answer) = oneshot::channel();
        let take = self.clone().take(key.clone(), lease);
        self.tasks.spawn(async move { drop(reply.send(take.await)) });
        let gone = |_| LockError::Unavailable { attempted: format!("take lock {key}"), source: None };
        answer.await.map_err(gone)?
    }
}

/// A lock that is held in MongoDB.
#[derive(Debug)]
pub struct MongoHeld {
    locks: MongoLocks,
    key: LockKey,
    /// Another one for each acquisition, so that what is let go is this one.
    owner: String,
    /// What stands in the record.
    given: Mutex<Given>,
    deadline: watch::Sender<Option<Instant>>,
}

impl MongoHeld {
    /// For the store where the lock is taken next.
    pub(super) fn given(&self) -> Given {
        self.known().clone()
    }

    fn known(&self) -> MutexGuard<'_, Given> {
        // Each change is one step, so it is whole even after a panic.
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing is held, and nothing is to be let go.
    fn forget(&self) {
        self.deadline.send_replace(None);
    }

    /// Raises the token to that of another store, which is greater.
    ///
    /// # Errors
    /// [`LockError::Lost`] when the lock is another's by now.
    pub(super) async fn raise(&self, token: i64) -> Result<(), LockError> {
        let mine = doc! { "_id": self.key.id(), "owner": &self.owner, "token": self.token() };
        let raised = self.locks.write(&self.key, mine, (doc! { "$set": { "token": token } }, false)).await?;
        *self.known() = given(&raised.ok_or_else(|| LockError::Lost { key: self.key.clone() })?);
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        self.deadline.borrow().filter(|deadline| *deadline > Instant::now())
    }

    /// The document stays, with its token, for the next holder; its lease is over.
    async fn let_go(locks: MongoLocks, key: LockKey, owner: String) -> Result<(), LockError> {
        let set = doc! { "$set": { "expiresAt": "$$NOW" } };
        let mine = doc! { "_id": key.id(), "owner": owner };
        locks.write(&key, mine, (set, false)).await.map(|_| ())
    }
}

impl Held for MongoHeld {
    fn key(&self) -> &LockKey {
        &self.key
    }

    fn token(&self) -> i64 {
        self.known().token
    }

    async fn renew(&self, lease: Duration) -> Result<(), LockError> {
        check_lease(&self.key, lease)?;
        let lost = || LockError::Lost { key: self.key.clone() };
        let begun = Instant::now();
        self.deadline().ok_or_else(lost)?;
        let mine = doc! {
            "_id": self.key.id(), "owner": &self.owner, "token": self.token(), "$expr": { "$gt": ["$expiresAt", "$$NOW"] },
        };
        let set = doc! { "$set": { "expiresAt": { "$add": ["$$NOW", millis(lease)] } } };
        match self.locks.write(&self.key, mine, (set, false)).await? {
            Some(record) => {
                self.deadline.send_replace(Some(begun + lease));
                *self.known() = given(&record);
                Ok(())
            }
            None => {
                self.forget();
                Err(lost())
            }
        }
    }

    async fn release(self) -> Result<(), LockError> {
        if self.deadline().is_none() {
            return Ok(());
        }
        Self::let_go(self.locks.clone(), self.key.clone(), self.owner.clone()).await?;
        self.forget();
        Ok(())
    }

    async fn lost(&self) {
        let mut deadline = self.deadline.subscribe();
        loop {
            let Some(at) = *deadline.borrow_and_update() else { return };
            tokio::select! {
                () = tokio::time::sleep_until(at) => return,
                // The sender lives as long as this.
                _ = deadline.changed() => {}
            }
        }
    }
}

impl Drop for MongoHeld {
    fn drop(&mut self) {
        // Without a runtime, or when this fails, the lease ends it.
        if let (Some(_), Ok(runtime)) = (self.deadline(), tokio::runtime::Handle::try_current()) {
            let let_go = Self::let_go(self.locks.clone(), self.key.clone(), self.owner.clone());
            self.locks.tasks.spawn_on(async move { drop(let_go.await) }, &runtime);
        }
    }
}

/// What a record says.
fn given(record: &Document) -> Given {
    let time = |field| record.get_datetime(field).map(|time| time.to_chrono()).unwrap_or_default();
    Given {
        token: record.get_i64("token").unwrap_or_default(),
        owner: record.get_str("owner").unwrap_or_default().to_owned(),
        acquired_at: time("acquiredAt"),
        expires_at: time("expiresAt"),
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn is_duplicate(error: &Error) -> bool {
    const DUPLICATE_KEY: i32 = 11_000;
    match error.kind.as_ref() {
        ErrorKind::Command(error) => error.code == DUPLICATE_KEY,
        ErrorKind::Write(WriteFailure::WriteError(error)) => error.code == DUPLICATE_KEY,
        _ => false,
    }
}
