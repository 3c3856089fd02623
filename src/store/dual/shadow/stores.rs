//! Both stores as shadow reads see them: each read has a deadline, and how far the mirror is can be waited for.

use std::time::Duration;

use mongodb::{Client, Database};
use sqlx::PgPool;
use tokio::time::Instant;

use crate::anchor::Mark;
use crate::fence::gate::{Gate, Turn};
use crate::parity::{Read, Seen};
use crate::phase::Backend;
use crate::store::dual::Side;
use crate::store::{Cause, MongoStore, PostgresStore};

/// How long a store may take to answer.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// How long the mirror may take to pass a mark. Whoever waits in vain is looked at again, with another mark.
const MIRROR_WAIT: Duration = Duration::from_secs(30);

/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(100);

/// Sessions of PostgreSQL at most: one for each of those who compare, and one for the rechecks.
const SESSIONS: u32 = 3;

/// The two stores.
#[derive(Debug)]
pub struct Stores {
    gate: Gate,
    database: Database,
    pool: PgPool,
    mongo: Side,
    postgres: Side,
}

impl Stores {
    /// The stores behind `gate`. PostgreSQL is read by sessions of its own, opened as those of `pool` are: none of the
    /// application's is ever taken.
    pub fn new(gate: Gate, client: Client, database: Database, pool: &PgPool) -> Self {
        let options = pool.options().clone().max_connections(SESSIONS);
        let pool = options.connect_lazy_with(pool.connect_options().as_ref().clone());
        let postgres = Side::Postgres(PostgresStore::new(pool.clone()));
        // Nothing is written, so the epoch does not matter.
        let mongo = Side::Mongo(MongoStore::new(client, database.clone(), 0));
        Self { gate, database, pool, mongo, postgres }
    }

    /// Whether it is still the turn in which something was read.
    pub async fn is_now(&self, turn: Turn) -> bool {
        let now = self.gate.turn(Duration::ZERO).await;
        now.is_some_and(|now| now.is_alike(turn))
    }

    /// What one store answers.
    pub async fn read(&self, read: &Read, from: Backend) -> Result<Seen, Cause> {
        let side = match from {
            Backend::Mongo => &self.mongo,
            Backend::Postgres => &self.postgres,
        };
        Ok(tokio::time::timeout(ANSWER_WAIT, read.of(side)).await??)
    }

    /// A mark that every write which could be read from `primary` until now has behind it.
    pub async fn mark(&self, primary: Backend) -> Result<Mark, Cause> {
        Ok(tokio::time::timeout(ANSWER_WAIT, Mark::take(primary, &self.database, &self.pool)).await??)
    }

    /// Waits until the mirror has brought everything before `mark` to the secondary; whether it has, in time and in `turn`.
    pub async fn is_passed(&self, mark: Mark, turn: Turn) -> Result<bool, Cause> {
        let deadline = Instant::now() + MIRROR_WAIT;
        while self.is_now(turn).await {
            if tokio::time::timeout(ANSWER_WAIT, mark.is_passed(&self.pool)).await?? {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(false)
    }

    /// Has the verifier look at a key too.
    pub async fn queue(&self, collection: &str, id: &str, turn: Turn) -> Result<(), Cause> {
        let queued = sqlx::query(
            "insert into bridge.recheck (collection, id, epoch, clock) values ($1, $2, $3, 0) on conflict do nothing",
        );
        let queued = queued.bind(collection).bind(id).bind(turn.epoch).execute(&self.pool);
        tokio::time::timeout(ANSWER_WAIT, queued).await??;
        Ok(())
    }
}
