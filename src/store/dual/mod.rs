//! Both stores as one (design 10): whichever is the primary answers, and the other one follows.
//!
//! Invariants: a write goes to one primary; it is acknowledged only if that store's fence was open, at the writer's epoch,
//! from before the write until after its answer; what follows is the document that the primary then held, under its stamp,
//! never the operation again. A failing secondary fails nobody.

mod breaker;
mod follower;
pub mod shadow;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use mongodb::{Client, Database};
use sqlx::PgPool;
use tokio::sync::watch;
use tokio::time::Instant;

use self::follower::Follower;
pub use self::follower::{Followed, Protection};
use self::shadow::{Findings, Shadow};
use super::{Address, After, Change, MongoStore, Page, PostgresStore, Query, Store, StoreError, Stored, attempted};
use crate::entity::Entity;
use crate::fence::gate::{Gate, Turn};
use crate::layout::Layout;
use crate::mapping::Key;
use crate::parity::Read;
use crate::phase::{Backend, Phase};

/// What may be changed while the stores are used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tuning {
    /// How the secondary is protected.
    pub protection: Protection,
    /// The share of reads, from 0 to 1, that is repeated on the secondary and compared.
    pub shadow_fraction: f64,
    /// How long an operation waits for a switch to end.
    pub switch_wait: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { protection: Protection::default(), shadow_fraction: 0.0, switch_wait: Duration::from_secs(30) }
    }
}

/// The two stores behind a gate.
#[derive(Debug, Clone)]
pub struct DualStore {
    inside: Arc<Inside>,
}

#[derive(Debug)]
struct Inside {
    gate: Gate,
    mongo: Option<(Client, Database)>,
    postgres: Option<PostgresStore>,
    follower: Option<Follower>,
    shadow: Option<Shadow>,
    tuning: watch::Sender<Tuning>,
    /// The store of the turn that was asked for last.
    primary: Mutex<Option<(Turn, Side)>>,
}

/// Why a write is not known to have been made.
#[derive(Debug, thiserror::Error)]
enum Unsure {
    #[error("no store is the primary: a switch is under way, or the fences cannot be read")]
    Switching,
    #[error("this process could not renew its lease while the write was under way")]
    LeaseRanOut,
    #[error("phase {0} needs {1}, whose URL this process does not have")]
    Unknown(Phase, Backend),
    #[error("the task that wrote has ended")]
    Crashed,
}

/// What a dual store is made of.
#[derive(Debug)]
pub struct Parts {
    /// Who may write now.
    pub gate: Gate,
    /// MongoDB, if the application knows it still.
    pub mongo: Option<(Client, Database)>,
    /// PostgreSQL, if the application knows it already, and how its tables are laid out.
    pub postgres: Option<(PgPool, Layout)>,
    /// What may be changed later.
    pub tuning: Tuning,
}

impl DualStore {
    /// The stores of `parts`. Shadow reads begin in the background where there are both.
    ///
    /// # Panics
    /// Outside a runtime.
    pub fn new(parts: Parts) -> Self {
        let Parts { gate, mongo, postgres, tuning } = parts;
        let tuning = watch::Sender::new(tuning);
        let follower = postgres.clone().map(|(pool, _)| Follower::new(pool, tuning.subscribe()));
        let both = mongo.clone().zip(postgres.as_ref());
        let shadow = both.map(|(mongo, (pool, _))| Shadow::start(gate.clone(), mongo, pool, tuning.subscribe()));
        let (postgres, primary) =
            (postgres.map(|(pool, layout)| PostgresStore::laid_out(pool, layout)), Mutex::new(None));
        Self { inside: Arc::new(Inside { gate, mongo, postgres, follower, shadow, tuning, primary }) }
    }

    /// Uses `tuning` from the next operation on.
    pub fn tune(&self, tuning: Tuning) {
        self.inside.tuning.send_replace(tuning);
    }

    /// What is used now, and every change of it.
    pub fn tuning(&self) -> watch::Receiver<Tuning> {
        self.inside.tuning.subscribe()
    }

    fn switch_wait(&self) -> Duration {
        self.inside.tuning.borrow().switch_wait
    }

    /// What became of the writes that were to follow in PostgreSQL; nothing where there is none.
    pub fn followed(&self) -> Option<&Followed> {
        self.inside.follower.as_ref().map(Follower::followed)
    }

    /// Waits until every write so far has followed, or was passed over.
    pub async fn idle(&self) {
        if let Some(follower) = &self.inside.follower {
            follower.idle().await;
        }
    }

    /// What the shadow reads have found; nothing where there is only one store.
    pub fn shadow(&self) -> Option<&Findings> {
        self.inside.shadow.as_ref().map(Shadow::findings)
    }

    /// Ends the shadow reads, and waits for what else goes on in the background, which is bounded.
    pub async fn close(&self) {
        if let Some(shadow) = &self.inside.shadow {
            shadow.close().await;
        }
        if let Some(follower) = &self.inside.follower {
            follower.close().await;
        }
    }

    /// The store that answers now, and its turn.
    async fn reader(&self, attempted: impl FnOnce() -> String) -> Result<(Side, Turn), StoreError> {
        let turn = self.inside.gate.turn(self.switch_wait()).await;
        match turn.ok_or(Unsure::Switching).and_then(|turn| Ok((self.primary(turn)?, turn))) {
            Ok(reader) => Ok(reader),
            Err(unsure) => Err(unavailable(attempted(), unsure)),
        }
    }

    fn primary(&self, turn: Turn) -> Result<Side, Unsure> {
        let mut known = self.inside.primary.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, primary)) = known.as_ref().filter(|(known, _)| *known == turn) {
            return Ok(primary.clone());
        }
        let unknown = || Unsure::Unknown(turn.phase, turn.phase.primary());
        let primary = match turn.phase.primary() {
            Backend::Mongo => {
                let (client, database) = self.inside.mongo.clone().ok_or_else(unknown)?;
                Side::Mongo(MongoStore::new(client, database, turn.epoch))
            }
            Backend::Postgres => {
                let store = self.inside.postgres.as_ref().ok_or_else(unknown)?;
                Side::Postgres(store.primary(turn.phase, turn.epoch))
            }
        };
        *known = Some((turn, primary.clone()));
        Ok(primary)
    }

    /// Writes to the primary; what it answered, and in which turn.
    async fn write<T: Send + 'static, F>(
        &self,
        changes: &[Change],
        work: impl Fn(Side, Vec<Change>) -> F,
    ) -> Result<(T, Turn), StoreError>
    where
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let unsure = |unsure| unavailable(attempted(changes), unsure);
        let deadline = Instant::now() + self.switch_wait();
        let mut not = None;
        loop {
            let wait = deadline.saturating_duration_since(Instant::now());
            let pass = self.inside.gate.enter(wait, not).await.ok_or_else(|| unsure(Unsure::Switching))?;
            let turn = pass.turn();
            let primary = self.primary(turn).map_err(unsure)?;
            let written = work(primary, changes.to_vec());
            // A task of its own: when the caller goes away, the write is still under way, and must be seen to be.
            let task = tokio::spawn(async move { (written.await, pass) });
            let (done, pass) = task.await.map_err(|_| unsure(Unsure::Crashed))?;
            match done {
                // Nothing was written: the next primary takes it.
                Err(StoreError::Fenced { .. }) => {
                    self.inside.gate.interrupt(turn);
                    not = Some(turn);
                }
                // PostgreSQL has looked at its fence itself.
                Ok(done) if turn.phase.primary() == Backend::Postgres || pass.holds() => return Ok((done, turn)),
                Ok(_) => return Err(unsure(Unsure::LeaseRanOut)),
                Err(error) => return Err(error),
            }
        }
    }

    fn follow(&self, turn: Turn, afters: &[After]) {
        if let (Phase::MongoPrimary, Some(follower)) = (turn.phase, &self.inside.follower) {
            follower.follow(afters);
        }
    }
}

impl Store for DualStore {
    async fn get(&self, address: &Address) -> Result<Option<Stored>, StoreError> {
        let (primary, turn) = self.reader(|| format!("read {address}")).await?;
        let found = primary.get(address).await?;
        if let Some(shadow) = &self.inside.shadow {
            shadow.offer(turn, || Read::Keys(address.entity, vec![address.key.clone()]), found.iter(), None);
        }
        Ok(found)
    }

    async fn get_many(&self, entity: &'static Entity, keys: &[Key]) -> Result<Vec<Option<Stored>>, StoreError> {
        let (primary, turn) = self.reader(|| format!("read {} keys of {}", keys.len(), entity.name)).await?;
        let found = primary.get_many(entity, keys).await?;
        if let Some(shadow) = &self.inside.shadow {
            shadow.offer(turn, || Read::Keys(entity, keys.to_vec()), found.iter().flatten(), None);
        }
        Ok(found)
    }

    async fn find(&self, query: &Query) -> Result<Page, StoreError> {
        let (primary, turn) = self.reader(|| format!("read a page of {}", query.entity.name)).await?;
        let page = primary.find(query).await?;
        if let Some(shadow) = &self.inside.shadow {
            shadow.offer(turn, || Read::Page(query.clone()), page.items.iter(), page.next.as_ref());
        }
        Ok(page)
    }

    async fn apply(&self, changes: &[Change]) -> Result<Vec<After>, StoreError> {
        let work = |primary: Side, changes: Vec<Change>| async move { primary.apply(&changes).await };
        let (afters, turn) = self.write(changes, work).await?;
        self.follow(turn, &afters);
        Ok(afters)
    }

    async fn apply_each(&self, changes: &[Change]) -> Result<Vec<Option<After>>, StoreError> {
        let work = |primary: Side, changes: Vec<Change>| async move { primary.apply_each(&changes).await };
        let (afters, turn) = self.write(changes, work).await?;
        let made: Vec<After> = afters.iter().flatten().cloned().collect();
        self.follow(turn, &made);
        Ok(afters)
    }

    async fn now(&self) -> Result<DateTime<Utc>, StoreError> {
        self.reader(|| "ask for the time".to_owned()).await?.0.now().await
    }
}

fn unavailable(attempted: String, unsure: Unsure) -> StoreError {
    StoreError::Unavailable { attempted, source: Some(unsure.into()) }
}

/// One of the two stores.
#[derive(Debug, Clone)]
enum Side {
    Mongo(MongoStore),
    Postgres(PostgresStore),
}

impl Store for Side {
    async fn get(&self, address: &Address) -> Result<Option<Stored>, StoreError> {
        match self {
            Self::Mongo(store) => store.get(address).await,
            Self::Postgres(store) => store.get(address).await,
        }
    }

    async fn get_many(&self, entity: &'static Entity, keys: &[Key]) -> Result<Vec<Option<Stored>>, StoreError> {
        match self {
            Self::Mongo(store) => store.get_many(entity, keys).await,
            Self::Postgres(store) => store.get_many(entity, keys).await,
        }
    }

    async fn find(&self, query: &Query) -> Result<Page, StoreError> {
        match self {
            Self::Mongo(store) => store.find(query).await,
            Self::Postgres(store) => store.find(query).await,
        }
    }

    async fn apply(&self, changes: &[Change]) -> Result<Vec<After>, StoreError> {
        match self {
            Self::Mongo(store) => store.apply(changes).await,
            Self::Postgres(store) => store.apply(changes).await,
        }
    }

    async fn apply_each(&self, changes: &[Change]) -> Result<Vec<Option<After>>, StoreError> {
        match self {
            Self::Mongo(store) => store.apply_each(changes).await,
            Self::Postgres(store) => store.apply_each(changes).await,
        }
    }

    async fn now(&self) -> Result<DateTime<Utc>, StoreError> {
        match self {
            Self::Mongo(store) => store.now().await,
            Self::Postgres(store) => store.now().await,
        }
    }
}
