//! Locks while the stores change over (design 13): where the phase says.
//!
//! Invariant: processes of two neighbouring phases exclude each other. In both mirrored phases a lock is taken in both
//! stores, MongoDB first: whoever locks in one of them only meets it there. Its token is greater than those that either
//! store has given out, and stands in both.
//!
//! The record of such a lock is MongoDB's, and the mirror brings it to PostgreSQL, whichever of the two is the primary.

use std::time::Duration;

use tokio::sync::{OnceCell, watch};
use tokio_util::task::TaskTracker;

use super::{Held, LockError, LockKey, Locks, MongoHeld, MongoLocks, PostgresHeld, PostgresLocks};
use crate::fence::gate::Gate;
use crate::phase::{Backend, Phase};
use crate::store::dual::Tuning;

/// The locks of one process in whichever stores the phase names.
#[derive(Debug, Clone)]
pub struct DualLocks {
    gate: Gate,
    mongo: Option<MongoLocks>,
    postgres: Option<PostgresLocks>,
    tasks: TaskTracker,
    tuning: watch::Receiver<Tuning>,
}

/// A lock that is held where the phase said when it was taken, and in PostgreSQL since it was renewed in a phase that locks
/// there: whoever holds it through several phases is excluded in each.
#[derive(Debug)]
pub struct DualHeld {
    key: LockKey,
    mongo: Option<MongoHeld>,
    postgres: OnceCell<PostgresHeld>,
    locks: DualLocks,
}

impl DualLocks {
    /// Locks in these stores; an acquisition waits for a switch to end as long as `tuning` says.
    pub fn new(
        gate: Gate,
        mongo: Option<MongoLocks>,
        postgres: Option<PostgresLocks>,
        tuning: watch::Receiver<Tuning>,
    ) -> Self {
        Self { gate, mongo, postgres, tasks: TaskTracker::new(), tuning }
    }

    /// Waits for what goes on in the background; each part of it ends by itself within seconds.
    pub async fn close(&self) {
        if let Some(mongo) = &self.mongo {
            mongo.close().await;
        }
        self.tasks.close();
        self.tasks.wait().await;
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
        let wait = self.tuning.borrow().switch_wait;
        let turn = self.gate.turn(wait).await.ok_or_else(switching)?;
        let mut held = DualHeld { key: key.clone(), mongo: None, postgres: OnceCell::new(), locks: self.clone() };
        if turn.phase != Phase::Postgres {
            held.mongo = self.mongo()?.try_acquire(key, lease).await?;
            if held.mongo.is_none() {
                return Ok(None);
            }
        }
        // Dropping what is held in MongoDB lets it go.
        let is_held = turn.phase == Phase::Mongo || held.in_postgres(lease).await?;
        Ok(is_held.then_some(held))
    }
}

impl Held for DualHeld {
    fn key(&self) -> &LockKey {
        &self.key
    }

    fn token(&self) -> i64 {
        // Where it is held in both, the tokens are the same.
        self.postgres.get().map(Held::token).or(self.mongo.as_ref().map(Held::token)).unwrap_or_default()
    }

    async fn renew(&self, lease: Duration) -> Result<(), LockError> {
        if let Some(mongo) = &self.mongo {
            mongo.renew(lease).await?;
        }
        match self.postgres.get() {
            Some(postgres) => postgres.renew_with(lease, self.mongo.as_ref().map(MongoHeld::given)).await,
            None => {
                let turn = self.locks.gate.turn(Duration::ZERO).await;
                let is_held = turn.is_none_or(|turn| turn.phase == Phase::Mongo) || self.in_postgres(lease).await?;
                if is_held { Ok(()) } else { Err(LockError::Lost { key: self.key.clone() }) }
            }
        }
    }

    async fn release(mut self) -> Result<(), LockError> {
        let_go(self.mongo.take(), self.postgres.take()).await
    }

    async fn lost(&self) {
        let mongo = async {
            match &self.mongo {
                Some(mongo) => mongo.lost().await,
                None => std::future::pending().await,
            }
        };
        let postgres = async {
            match self.postgres.get() {
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
    /// Takes the lock in PostgreSQL as well; whether it was free there.
    async fn in_postgres(&self, lease: Duration) -> Result<bool, LockError> {
        let taken = self.postgres.get_or_try_init(async || {
            fail::fail_point!("lock::between", |_| Err(None));
            let given = self.mongo.as_ref().map(MongoHeld::given);
            let held = self.locks.postgres()?.try_acquire_with(&self.key, lease, given).await?.ok_or(None)?;
            if let Some(mongo) = self.mongo.as_ref().filter(|mongo| mongo.token() < held.token()) {
                mongo.raise(held.token()).await?;
            }
            Ok::<_, Option<LockError>>(held)
        });
        match taken.await {
            Ok(_) => Ok(true),
            Err(None) => Ok(false),
            Err(Some(error)) => Err(error),
        }
    }
}

impl Drop for DualHeld {
    fn drop(&mut self) {
        // Without a runtime, or when this fails, the lease ends it.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if self.mongo.is_some() || self.postgres.initialized() {
            let let_go = let_go(self.mongo.take(), self.postgres.take());
            self.locks.tasks.spawn_on(async move { drop(let_go.await) }, &runtime);
        }
    }
}

/// In the other order than it was taken in: who waits for MongoDB's then finds PostgreSQL's free.
async fn let_go(mongo: Option<MongoHeld>, postgres: Option<PostgresHeld>) -> Result<(), LockError> {
    let postgres = match postgres {
        Some(postgres) => postgres.release().await,
        None => Ok(()),
    };
    let mongo = match mongo {
        Some(mongo) => mongo.release().await,
        None => Ok(()),
    };
    postgres.and(mongo)
}
