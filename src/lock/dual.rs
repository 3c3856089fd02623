//! Locks while the stores change over (design 13): where the phase says.
//!
//! Invariant: processes of two neighbouring phases exclude each other. In both mirrored phases a lock is taken in both
//! stores, MongoDB first: whoever locks in one of them only meets it there. Its token is greater than those that either
//! store has given out, and stands in both.
//!
//! The record of such a lock is MongoDB's. While MongoDB is the primary, the mirror brings it to PostgreSQL; while
//! PostgreSQL is, nobody else would, and the holder does. Whether that succeeds does not matter to the lock.

use std::sync::Arc;
use std::time::Duration;

use bson::{Document, RawDocumentBuf};
use sqlx::PgPool;
use tokio_util::task::TaskTracker;

use super::{Held, LockError, LockKey, Locks, MongoHeld, MongoLocks, PostgresHeld, PostgresLocks};
use crate::entity::Record;
use crate::entity::locks::Lock;
use crate::fence::gate::Gate;
use crate::mapping::Key;
use crate::phase::{Backend, Phase};
use crate::secondary::{Item, Level, Replaces, Secondary, State};
use crate::stamp::Stamp;

/// How long PostgreSQL may take to keep a record.
const RECORD_WAIT: Duration = Duration::from_secs(1);

/// The locks of one process in whichever stores the phase names.
#[derive(Debug, Clone)]
pub struct DualLocks {
    gate: Gate,
    mongo: Option<MongoLocks>,
    postgres: Option<PostgresLocks>,
    records: Option<Records>,
    wait: Duration,
}

/// PostgreSQL's records of the locks that MongoDB has.
#[derive(Debug, Clone)]
struct Records {
    pool: PgPool,
    secondary: Arc<Secondary>,
    tasks: TaskTracker,
}

/// A lock that is held where the phase said when it was taken.
#[derive(Debug)]
pub struct DualHeld {
    key: LockKey,
    mongo: Option<MongoHeld>,
    postgres: Option<PostgresHeld>,
    /// Where MongoDB's record is to stand too.
    records: Option<Records>,
}

impl DualLocks {
    /// Locks in these stores, PostgreSQL's with the pool of their records; an acquisition waits for a switch to end as long
    /// as `wait`.
    pub fn new(
        gate: Gate,
        mongo: Option<MongoLocks>,
        postgres: Option<(PostgresLocks, PgPool)>,
        wait: Duration,
    ) -> Self {
        let (postgres, pool) = postgres.unzip();
        let records = pool.map(|pool| Records {
            pool,
            secondary: Arc::new(Secondary::new(Replaces::Older)),
            tasks: TaskTracker::new(),
        });
        Self { gate, mongo, postgres, records, wait }
    }

    /// Waits for what goes on in the background; each part of it ends by itself within seconds.
    pub async fn close(&self) {
        if let Some(mongo) = &self.mongo {
            mongo.close().await;
        }
        if let Some(records) = &self.records {
            records.tasks.close();
            records.tasks.wait().await;
        }
    }

    fn mongo(&self) -> Result<&MongoLocks, LockError> {
        self.mongo.as_ref().ok_or_else(|| unknown(Backend::Mongo))
    }

    fn postgres(&self) -> Result<&PostgresLocks, LockError> {
        self.postgres.as_ref().ok_or_else(|| unknown(Backend::Postgres))
    }
}

fn unknown(backend: Backend) -> LockError {
    LockError::Unavailable {
        attempted: format!("lock in {backend}, whose URL this process does not have"),
        source: None,
    }
}

impl Locks for DualLocks {
    type Held = DualHeld;

    async fn try_acquire(&self, key: &LockKey, lease: Duration) -> Result<Option<DualHeld>, LockError> {
        let switching =
            || LockError::Unavailable { attempted: format!("take lock {key}: no store is the primary"), source: None };
        let turn = self.gate.turn(self.wait).await.ok_or_else(switching)?;
        let records = self.records.clone().filter(|_| turn.phase == Phase::PostgresPrimary);
        let mut held = DualHeld { key: key.clone(), mongo: None, postgres: None, records };
        if turn.phase != Phase::Postgres {
            held.mongo = self.mongo()?.try_acquire(key, lease).await?;
            if held.mongo.is_none() {
                return Ok(None);
            }
        }
        if turn.phase != Phase::Mongo {
            // Dropping what is held in MongoDB lets it go.
            let least = held.mongo.as_ref().map_or(1, Held::token);
            held.postgres = self.postgres()?.try_acquire_from(key, lease, least).await?;
            let Some(postgres) = &held.postgres else { return Ok(None) };
            if let Some(mongo) = held.mongo.as_mut().filter(|mongo| mongo.token() < postgres.token()) {
                mongo.raise(postgres.token()).await?;
            }
        }
        held.record().await;
        Ok(Some(held))
    }
}

impl Held for DualHeld {
    fn key(&self) -> &LockKey {
        &self.key
    }

    fn token(&self) -> i64 {
        // Where it is held in both, the tokens are the same.
        self.postgres.as_ref().map(Held::token).or(self.mongo.as_ref().map(Held::token)).unwrap_or_default()
    }

    async fn renew(&self, lease: Duration) -> Result<(), LockError> {
        if let Some(mongo) = &self.mongo {
            mongo.renew(lease).await?;
        }
        if let Some(postgres) = &self.postgres {
            postgres.renew(lease).await?;
        }
        self.record().await;
        Ok(())
    }

    async fn release(mut self) -> Result<(), LockError> {
        let_go(self.key.clone(), self.mongo.take(), self.postgres.take(), self.records.take()).await
    }

    async fn lost(&self) {
        let mongo = async {
            match &self.mongo {
                Some(mongo) => mongo.lost().await,
                None => std::future::pending().await,
            }
        };
        let postgres = async {
            match &self.postgres {
                Some(postgres) => postgres.lost().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = mongo => {}
            () = postgres => {}
        }
    }
}

impl DualHeld {
    /// Brings MongoDB's record to PostgreSQL, where nobody else does.
    async fn record(&self) {
        if let (Some(mongo), Some(records)) = (&self.mongo, &self.records) {
            records.keep(&self.key, &mongo.record()).await;
        }
    }
}

impl Drop for DualHeld {
    fn drop(&mut self) {
        // Without a runtime, or when this fails, the lease ends it.
        let (Some(records), Ok(runtime)) = (self.records.take(), tokio::runtime::Handle::try_current()) else { return };
        if self.mongo.is_some() || self.postgres.is_some() {
            let tasks = records.tasks.clone();
            let let_go = let_go(self.key.clone(), self.mongo.take(), self.postgres.take(), Some(records));
            tasks.spawn_on(async move { drop(let_go.await) }, &runtime);
        }
    }
}

/// In the other order than it was taken in: who waits for MongoDB's then finds PostgreSQL's free.
async fn let_go(
    key: LockKey,
    mongo: Option<MongoHeld>,
    postgres: Option<PostgresHeld>,
    records: Option<Records>,
) -> Result<(), LockError> {
    let postgres = match postgres {
        Some(postgres) => postgres.release().await,
        None => Ok(()),
    };
    let Some(mongo) = mongo else { return postgres };
    let left = mongo.released().await;
    if let (Ok(Some(left)), Some(records)) = (&left, &records) {
        records.keep(&key, left).await;
    }
    postgres.and(left.map(|_| ()))
}

impl Records {
    /// Puts `record` into PostgreSQL, unless a newer one of the lock is there.
    async fn keep(&self, key: &LockKey, record: &Document) {
        match tokio::time::timeout(RECORD_WAIT, self.put(key, record)).await {
            Ok(Ok(())) => {}
            failed => tracing::warn!(lock = %key, ?failed, "PostgreSQL's record of a lock differs from MongoDB's"),
        }
    }

    async fn put(&self, key: &LockKey, record: &Document) -> sqlx::Result<()> {
        let document = RawDocumentBuf::try_from(record).map_err(|error| sqlx::Error::Encode(error.into()))?;
        let token = record.get_i64("token").unwrap_or_default();
        let mut transaction = self.pool.begin().await?;
        // Who holds the lock by now has a greater token, and has put it here when it took PostgreSQL's part.
        let stamp: Option<(i32, i64)> = sqlx::query_as(
            "select f.epoch, nextval('bridge.clock') from bridge.fence f, scheduler.locks l
            where l.id = $1 and coalesce(l.token, 0) <= $2 for update of l",
        )
        .bind(key.id())
        .bind(token)
        .fetch_optional(&mut *transaction)
        .await?;
        if let Some((epoch, clock)) = stamp {
            let item = Item {
                entity: Lock::ENTITY,
                key: Key::from_text(key.id().to_owned()),
                stamp: Stamp { epoch, clock },
                state: State::Document(document),
            };
            self.secondary.write(Level::of(&[item], None), &mut transaction).await?;
        }
        transaction.commit().await
    }
}
