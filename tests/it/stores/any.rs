//! A store of any kind, so that one test serves all of them.

use chrono::{DateTime, Utc};
use scheduler_bridge::entity::Entity;
use scheduler_bridge::mapping::Key;
use scheduler_bridge::store::dual::DualStore;
use scheduler_bridge::store::{
    Address, After, Change, MongoStore, Page, PostgresStore, Query, Store, StoreError, Stored,
};
use scheduler_bridge::target::Target;
use secrecy::SecretString;

use crate::bed::Bed;

/// Connections to PostgreSQL of one test.
const CONNECTIONS: u32 = 8;

/// A store of any kind.
#[derive(Debug, Clone)]
pub enum AnyStore {
    /// MongoDB.
    Mongo(MongoStore),
    /// PostgreSQL.
    Postgres(PostgresStore),
    /// Both.
    Dual(DualStore),
}

/// The stores of a bed, each with its name; indexes are there.
pub async fn both(bed: &Bed) -> [(&'static str, AnyStore); 2] {
    let mongo = MongoStore::new(bed.mongo.clone(), bed.database.clone(), 1);
    mongo.create_indexes().await.expect("create the indexes");
    let url = SecretString::from(bed.postgres_url.as_str());
    let target = Target::open_prepared(&url, CONNECTIONS).await.expect("open PostgreSQL");
    let postgres = PostgresStore::new(target.pool().clone());
    [("MongoDB", AnyStore::Mongo(mongo)), ("PostgreSQL", AnyStore::Postgres(postgres))]
}

impl Store for AnyStore {
    async fn get(&self, address: &Address) -> Result<Option<Stored>, StoreError> {
        match self {
            Self::Mongo(store) => store.get(address).await,
            Self::Postgres(store) => store.get(address).await,
            Self::Dual(store) => store.get(address).await,
        }
    }

    async fn get_many(&self, entity: &'static Entity, keys: &[Key]) -> Result<Vec<Option<Stored>>, StoreError> {
        match self {
            Self::Mongo(store) => store.get_many(entity, keys).await,
            Self::Postgres(store) => store.get_many(entity, keys).await,
            Self::Dual(store) => store.get_many(entity, keys).await,
        }
    }

    async fn find(&self, query: &Query) -> Result<Page, StoreError> {
        match self {
            Self::Mongo(store) => store.find(query).await,
            Self::Postgres(store) => store.find(query).await,
            Self::Dual(store) => store.find(query).await,
        }
    }

    async fn apply(&self, changes: &[Change]) -> Result<Vec<After>, StoreError> {
        match self {
            Self::Mongo(store) => store.apply(changes).await,
            Self::Postgres(store) => store.apply(changes).await,
            Self::Dual(store) => store.apply(changes).await,
        }
    }

    async fn apply_each(&self, changes: &[Change]) -> Result<Vec<Option<After>>, StoreError> {
        match self {
            Self::Mongo(store) => store.apply_each(changes).await,
            Self::Postgres(store) => store.apply_each(changes).await,
            Self::Dual(store) => store.apply_each(changes).await,
        }
    }

    async fn now(&self) -> Result<DateTime<Utc>, StoreError> {
        match self {
            Self::Mongo(store) => store.now().await,
            Self::Postgres(store) => store.now().await,
            Self::Dual(store) => store.now().await,
        }
    }
}
