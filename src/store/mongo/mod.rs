//! MongoDB as the scheduler's store.
//!
//! Invariants: reads see only what a majority has, writes are acknowledged by a majority and journaled; a guard is part
//! of the write's own filter, so no other write comes between; the stamp of a write is the oplog time that the server
//! answers with. Several changes, and a deletion with its tombstone, are one transaction.

mod filter;
pub(crate) mod transaction;
mod write;

use bson::{Document, RawDocumentBuf, doc};
use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use mongodb::error::{Error, ErrorKind, WriteFailure};
use mongodb::options::{Acknowledgment, CollectionOptions, ReadConcern, WriteConcern};
use mongodb::{Client, Collection, Database, IndexModel};

use self::transaction::past_the_dead;
use super::{Address, After, Change, OPERATION_WAIT, Page, Query, Store, StoreError, Stored, attempted, bounded};
use crate::entity::{ENTITIES, Entity};
use crate::mapping::{Key, Mapping};
use crate::source::{self, DriverError, INTERRUPTED, transient};

/// The stamps of documents whose last write came from PostgreSQL, and those of deleted ones.
pub const STAMPS: &str = "bridge_stamps";

/// The scheduler's collections.
#[derive(Debug, Clone)]
pub struct MongoStore {
    client: Client,
    database: Database,
    epoch: i32,
}

impl MongoStore {
    /// The collections of `database`, written at `epoch`.
    pub fn new(client: Client, database: Database, epoch: i32) -> Self {
        Self { client, database, epoch }
    }

    /// Creates the indexes that serve the queries of the repositories. Those that are there already stay.
    pub async fn create_indexes(&self) -> Result<(), StoreError> {
        for entity in ENTITIES.iter().filter(|entity| !entity.indexes.is_empty()) {
            let indexes = entity.indexes.iter().map(|fields| {
                let keys: Document = fields.iter().map(|field| ((*field).to_owned(), 1.into())).collect();
                IndexModel::builder().keys(keys).build()
            });
            let created = self.collection(entity.name).create_indexes(indexes).await;
            created.map_err(|error| refused(format!("create the indexes of {}", entity.name), error))?;
        }
        Ok(())
    }

    /// The filter of `query`, its sort, and how many documents it reads at most: what `explain` is asked for.
    pub fn plan(query: &Query) -> Result<(Document, Document, i64), StoreError> {
        let filter = filter::of(query).map_err(|error| StoreError::Failed {
            attempted: format!("go on with a page of {}", query.entity.name),
            source: error.into(),
        })?;
        Ok((filter, filter::order(query), i64::from(query.limit) + 1))
    }

    fn collection(&self, name: &str) -> Collection<RawDocumentBuf> {
        let write = WriteConcern::builder().w(Acknowledgment::Majority).journal(true).w_timeout(OPERATION_WAIT).build();
        let options = CollectionOptions::builder().read_concern(ReadConcern::majority()).write_concern(write).build();
        self.database.collection_with_options(name, options)
    }

    async fn documents(&self, entity: &'static Entity, keys: &[Key]) -> Result<Vec<(Key, Stored)>, StoreError> {
        let failed = |error| refused(format!("read {}", entity.name), error);
        // What is no key stands for no document.
        let ids: Vec<_> = keys.iter().filter_map(|key| filter::id(entity, key).ok()).collect();
        let filter = match ids.as_slice() {
            [one] => doc! { "_id": { "$eq": one } },
            _ => doc! { "_id": { "$in": ids } },
        };
        let found = self.collection(entity.name).find(filter).await.map_err(failed)?;
        let documents: Vec<RawDocumentBuf> = found.try_collect().await.map_err(failed)?;
        let mapping = Mapping::new(entity);
        let keyed = |document: RawDocumentBuf| (mapping.key(&document), Stored { document, stamp: None });
        Ok(documents.into_iter().map(keyed).collect())
    }

    async fn one(&self, address: &Address) -> Result<Option<Stored>, StoreError> {
        let Ok(id) = filter::id(address.entity, &address.key) else { return Ok(None) };
        let found = self.collection(address.entity.name).find_one(doc! { "_id": { "$eq": id } }).await;
        let document = found.map_err(|error| refused(format!("read {address}"), error))?;
        Ok(document.map(|document| Stored { document, stamp: None }))
    }

    async fn page(&self, query: &Query) -> Result<Page, StoreError> {
        let failed = |error| refused(format!("read a page of {}", query.entity.name), error);
        let (filter, order, limit) = Self::plan(query)?;
        let found =
            self.collection(query.entity.name).find(filter).sort(order).skip(query.skip.into()).limit(limit).await;
        let mut documents: Vec<RawDocumentBuf> = found.map_err(failed)?.try_collect().await.map_err(failed)?;
        let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
        let more = documents.len() > limit;
        documents.truncate(limit);
        let mapping = Mapping::new(query.entity);
        let last = documents.last().filter(|_| more);
        let next = last.map(|last| filter::cursor(query, last, &mapping.key(last)));
        Ok(Page { items: documents.into_iter().map(|document| Stored { document, stamp: None }).collect(), next })
    }
}

impl Store for MongoStore {
    async fn get(&self, address: &Address) -> Result<Option<Stored>, StoreError> {
        bounded(|| format!("read {address}"), self.one(address)).await
    }

    async fn get_many(&self, entity: &'static Entity, keys: &[Key]) -> Result<Vec<Option<Stored>>, StoreError> {
        let attempted = || format!("read {} keys of {}", keys.len(), entity.name);
        let found: std::collections::HashMap<Key, Stored> =
            bounded(attempted, self.documents(entity, keys)).await?.into_iter().collect();
        Ok(keys.iter().map(|key| found.get(key).cloned()).collect())
    }

    async fn find(&self, query: &Query) -> Result<Page, StoreError> {
        if query.is_hopeless() {
            return Ok(Page { items: Vec::new(), next: None });
        }
        bounded(|| format!("read a page of {}", query.entity.name), self.page(query)).await
    }

    async fn apply(&self, changes: &[Change]) -> Result<Vec<After>, StoreError> {
        super::check(changes)?;
        bounded(|| attempted(changes), past_the_dead(&self.client, self.write(changes))).await
    }

    async fn apply_each(&self, changes: &[Change]) -> Result<Vec<Option<After>>, StoreError> {
        super::check(changes)?;
        bounded(|| attempted(changes), past_the_dead(&self.client, self.write_each(changes))).await
    }

    async fn now(&self) -> Result<DateTime<Utc>, StoreError> {
        let attempted = || "ask MongoDB for the time".to_owned();
        let now = async {
            let hello = self.database.run_command(doc! { "hello": 1 }).await;
            let hello = hello.map_err(|error| refused(attempted(), error))?;
            let time = hello
                .get_datetime("localTime")
                .map_err(|error| StoreError::Failed { attempted: attempted(), source: error.into() })?;
            Ok(time.to_chrono())
        };
        bounded(attempted, now).await
    }
}

fn refused(attempted: String, error: Error) -> StoreError {
    // A write that the primary has made, and of which nobody knows whether a majority has, may stay or go; so may one
    // that was killed.
    let is_unconfirmed = matches!(error.kind.as_ref(), ErrorKind::Write(WriteFailure::WriteConcernError(_)));
    let is_unsure = is_unconfirmed || source::code(&error) == Some(INTERRUPTED);
    if is_unsure || transient(&error) {
        StoreError::Unavailable { attempted, source: Some(DriverError(error).into()) }
    } else {
        StoreError::Failed { attempted, source: DriverError(error).into() }
    }
}
