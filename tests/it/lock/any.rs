//! Locks of any kind, so that one test serves all of them.

use std::time::Duration;

use scheduler_bridge::fence::gate::Gate;
use scheduler_bridge::lock::{
    DualHeld, DualLocks, Held, LockError, LockKey, LockTask, Locks, MongoHeld, MongoLocks, PostgresHeld, PostgresLocks,
};
use scheduler_bridge::phase::Phase;
use scheduler_bridge::store::dual::Tuning;
use secrecy::SecretString;
use tokio::sync::watch;

use crate::bed::Bed;
use crate::stores::{self, AnyStore};

/// Locks of any kind.
#[derive(Debug, Clone)]
pub enum AnyLocks {
    Mongo(MongoLocks),
    Postgres(PostgresLocks),
    Dual(DualLocks),
}

/// A lock of any kind that is held.
#[derive(Debug)]
pub enum AnyHeld {
    Mongo(MongoHeld),
    Postgres(PostgresHeld),
    Dual(Box<DualHeld>),
}

/// Both kinds on a bed, each with its name and the store beside it.
pub async fn both(bed: &Bed) -> Vec<(&'static str, AnyLocks, AnyStore)> {
    let mut all = Vec::new();
    for (name, store) in stores::both(bed).await {
        all.push((name, of(&store, &bed.postgres_url, &bed.database).await, store));
    }
    all
}

/// The locks beside a store; those of each call are another process's, as far as the store can tell.
pub async fn of(store: &AnyStore, postgres_url: &str, database: &mongodb::Database) -> AnyLocks {
    match store {
        AnyStore::Mongo(_) => AnyLocks::Mongo(MongoLocks::new(database)),
        AnyStore::Dual(_) => panic!("its locks are DualLocks"),
        AnyStore::Postgres(_) => AnyLocks::Postgres(postgres(postgres_url).await.expect("open locks").0),
    }
}

/// The locks of a process that has seen `phase`.
pub async fn in_phase(phase: Phase, postgres_url: &str, database: &mongodb::Database) -> AnyLocks {
    let gate = Gate::new();
    gate.open(phase, 1, None);
    behind(gate, postgres_url, database).await
}

/// The locks of a process that sees what `gate` says.
pub async fn behind(gate: Gate, postgres_url: &str, database: &mongodb::Database) -> AnyLocks {
    let postgres = postgres(postgres_url).await.expect("open locks").0;
    let tuning = watch::Sender::new(Tuning { switch_wait: Duration::ZERO, ..Tuning::default() }).subscribe();
    AnyLocks::Dual(DualLocks::new(gate, Some(MongoLocks::new(database)), Some(postgres), tuning))
}

pub async fn postgres(url: &str) -> Result<(PostgresLocks, LockTask), LockError> {
    PostgresLocks::open(&SecretString::from(url)).await
}

impl Locks for AnyLocks {
    type Held = AnyHeld;

    async fn try_acquire(&self, key: &LockKey, lease: Duration) -> Result<Option<AnyHeld>, LockError> {
        Ok(match self {
            Self::Mongo(locks) => locks.try_acquire(key, lease).await?.map(AnyHeld::Mongo),
            Self::Postgres(locks) => locks.try_acquire(key, lease).await?.map(AnyHeld::Postgres),
            Self::Dual(locks) => locks.try_acquire(key, lease).await?.map(|held| AnyHeld::Dual(Box::new(held))),
        })
    }
}

impl Held for AnyHeld {
    fn key(&self) -> &LockKey {
        match self {
            Self::Mongo(held) => held.key(),
            Self::Postgres(held) => held.key(),
            Self::Dual(held) => held.key(),
        }
    }

    fn token(&self) -> i64 {
        match self {
            Self::Mongo(held) => held.token(),
            Self::Postgres(held) => held.token(),
            Self::Dual(held) => held.token(),
        }
    }

    async fn renew(&self, lease: Duration) -> Result<(), LockError> {
        match self {
            Self::Mongo(held) => held.renew(lease).await,
            Self::Postgres(held) => held.renew(lease).await,
            Self::Dual(held) => held.renew(lease).await,
        }
    }

    async fn release(self) -> Result<(), LockError> {
        match self {
            Self::Mongo(held) => held.release().await,
            Self::Postgres(held) => held.release().await,
            Self::Dual(held) => held.release().await,
        }
    }

    async fn lost(&self) {
        match self {
            Self::Mongo(held) => held.lost().await,
            Self::Postgres(held) => held.lost().await,
            Self::Dual(held) => held.lost().await,
        }
    }
}
