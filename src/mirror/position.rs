//! Where the mirror is, and which of its processes is at it: one row in PostgreSQL.
//!
//! Invariants: the position moves in the transaction of the rows it speaks of, only forward, and only by its holder; a
//! holder whose lease another process has taken over writes nothing any more, however late it wakes up. That is more than
//! an advisory lock gives: a paused process keeps its session, and with it the lock.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::Duration;

use bson::{RawDocumentBuf, Timestamp};
use sqlx::{FromRow, PgConnection, PgPool, Row};
use uuid::Uuid;

use super::progress::Lag;
use super::{Fault, MirrorError, Result};
use crate::entity::Entity;
use crate::stamp::clock;

/// How long a statement waits for a lock that somebody else holds on a table or a row.
const LOCK_WAIT: Duration = Duration::from_secs(30);

/// A place in the change stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Position {
    /// The resume token; nothing before the first event.
    pub token: Option<RawDocumentBuf>,
    /// The clock of the last event before it.
    pub clock: i64,
}

/// The newest anchor of each collection: what happened before is the backfill's, which reads afterwards.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Anchors(HashMap<String, i64>);

impl Anchors {
    /// Whether the backfills of `entities`, one at least, see whatever became of the collections at `time`.
    pub fn cover(&self, entities: &[&'static Entity], time: Timestamp) -> bool {
        let covers = |entity: &&Entity| self.0.get(entity.name).is_some_and(|anchor| *anchor >= clock(time));
        !entities.is_empty() && entities.iter().all(covers)
    }
}

/// What a holder begins with.
#[derive(Debug, Clone)]
pub struct Held {
    /// Where to go on.
    pub position: Position,
    /// The epoch of the stamps.
    pub epoch: i32,
    /// What is not the mirror's.
    pub anchors: Anchors,
    /// Which store follows.
    pub direction: Direction,
}

/// The row of the stream, as one process sees it.
#[derive(Debug, Clone)]
pub struct Seat {
    pool: PgPool,
    holder: Uuid,
    lease: Duration,
}

/// Which store follows the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// PostgreSQL follows MongoDB's change stream.
    ToPostgres,
    /// MongoDB follows PostgreSQL's outbox.
    ToMongo,
}

impl Direction {
    /// That of `phase`.
    ///
    /// # Errors
    /// [`Fault::Ended`] where nobody follows; an unknown phase is none of those that the mirror may write in.
    fn of(phase: String) -> Result<Self> {
        match phase.as_str() {
            "mongo" | "mongo-primary" => Ok(Self::ToPostgres),
            "postgres-primary" => Ok(Self::ToMongo),
            _ => Err(Fault::Ended(MirrorError::Primary { phase })),
        }
    }

    /// The phases in which that store follows.
    fn phases(self) -> &'static [&'static str] {
        match self {
            Self::ToPostgres => &["mongo", "mongo-primary"],
            Self::ToMongo => &["postgres-primary"],
        }
    }
}

#[derive(FromRow)]
struct Taken {
    token: Option<Vec<u8>>,
    clock: i64,
    epoch: i32,
    phase: String,
}

impl Seat {
    /// The row for a process that holds it for `lease` at a time.
    pub fn new(pool: PgPool, lease: Duration) -> Self {
        Self { pool, holder: Uuid::new_v4(), lease }
    }

    /// The connections.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// How often the lease is renewed when nothing else does it.
    pub fn renewal(&self) -> Duration {
        self.lease / 3
    }

    /// How long a process that is not heard of stays the active one.
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// The statements that begin a transaction. That of a process that stands still is ended by the server when its lease
    /// is over, so that a paused holder does not keep rows locked from the next one.
    pub fn begin(&self) -> String {
        let (idle, lock) = (self.lease.as_millis(), LOCK_WAIT.as_millis());
        format!("begin; set local idle_in_transaction_session_timeout = {idle}; set local lock_timeout = {lock}")
    }

    /// Takes the seat if nobody holds it, or if whoever does is not heard of any more.
    ///
    /// # Errors
    /// [`Fault::Turned`] when `direction` is not that of the phase, [`Fault::Ended`] when nobody follows any more.
    pub async fn take(&self, direction: Direction) -> Result<Option<Held>> {
        let taken: Option<Taken> = sqlx::query_as(
            "update bridge.stream s
            set holder = $1, leased_until = clock_timestamp() + make_interval(secs => $2)
            from bridge.fence f
            where s.holder is null or s.holder = $1 or s.leased_until < clock_timestamp()
            returning s.token, s.clock, f.epoch, f.phase",
        )
        .bind(self.holder)
        .bind(self.lease.as_secs_f64())
        .fetch_optional(&self.pool)
        .await
        .map_err(Fault::target("take the mirror's lease"))?;
        let Some(taken) = taken else { return Ok(None) };
        if Direction::of(taken.phase)? != direction {
            return Err(Fault::Turned);
        }
        let token = taken.token.map(RawDocumentBuf::from_bytes).transpose();
        let token = token.map_err(|_| Fault::Ended(MirrorError::Token))?;
        let position = Position { token, clock: taken.clock };
        Ok(Some(Held { position, epoch: taken.epoch, anchors: self.anchors().await?, direction }))
    }

    /// Begins the lease anew again and again, for as long as it is polled: for work that may take longer than the lease.
    /// Without that, a process that stands by would begin the same work, which takes as long, and both would do it for ever.
    pub async fn keep(&self) -> Infallible {
        loop {
            tokio::time::sleep(self.renewal()).await;
            let renewed = sqlx::query(
                "update bridge.stream set leased_until = clock_timestamp() + make_interval(secs => $2) where holder = $1",
            );
            // Whether it was still ours is found by whoever writes.
            if let Err(error) = renewed.bind(self.holder).bind(self.lease.as_secs_f64()).execute(&self.pool).await {
                tracing::warn!(%error, "the lease was not renewed");
            }
        }
    }

    /// Which store follows the other now.
    pub async fn direction(&self) -> Result<Direction> {
        let phase = sqlx::query_scalar("select phase from bridge.fence").fetch_one(&self.pool).await;
        Direction::of(phase.map_err(Fault::target("read the phase"))?)
    }

    /// Whether there is a row yet.
    pub async fn is_there(&self) -> Result<bool> {
        let there = sqlx::query_scalar("select exists (select from bridge.stream)").fetch_one(&self.pool);
        there.await.map_err(Fault::target("look where the mirror begins"))
    }

    /// The newest anchor of each collection.
    pub async fn anchors(&self) -> Result<Anchors> {
        let rows = sqlx::query("select collection, max(clock) as clock from bridge.backfill group by collection");
        let rows = rows.fetch_all(&self.pool).await.map_err(Fault::target("read the anchors"))?;
        Ok(Anchors(rows.iter().map(|row| (row.get("collection"), row.get("clock"))).collect()))
    }

    /// Moves on, in the transaction of the rows up to `position`, and begins the lease anew.
    ///
    /// # Errors
    /// [`Fault::LeaseLost`] when another process is at it, or the position was moved; [`Fault::Ended`] when a table was
    /// truncated.
    pub async fn advance(
        &self,
        connection: &mut PgConnection,
        held: &Held,
        position: &Position,
        lag: Lag,
    ) -> Result<()> {
        let moved = sqlx::query(
            "update bridge.stream s
            set token = $1, clock = $2, leased_until = clock_timestamp() + make_interval(secs => $3),
                lag_seconds = $4, lag_events = $5,
                level_at = case when $4 = 0 and $5 = 0 then clock_timestamp() else s.level_at end,
                updated_at = clock_timestamp()
            from bridge.fence f
            where s.holder = $6 and s.clock <= $2 and f.epoch = $7 and f.phase = any($8)
                and (f.open or not exists (select from bridge.truncated))",
        )
        .bind(position.token.as_ref().map(|token| token.as_bytes().to_vec()))
        .bind(position.clock)
        .bind(self.lease.as_secs_f64())
        .bind(lag.seconds)
        .bind(lag.events)
        .bind(self.holder)
        .bind(held.epoch)
        .bind(held.direction.phases())
        .execute(&mut *connection)
        .await
        .map_err(Fault::target("move the mirror on"))?;
        if moved.rows_affected() == 1 { Ok(()) } else { Err(Self::why_not(connection).await?) }
    }

    async fn why_not(connection: &mut PgConnection) -> Result<Fault> {
        let truncated: Vec<String> = sqlx::query_scalar("select collection from bridge.truncated order by collection")
            .fetch_all(connection)
            .await
            .map_err(Fault::target("look whether a table was truncated"))?;
        let is_one = truncated.is_empty();
        Ok(if is_one { Fault::LeaseLost } else { Fault::Ended(MirrorError::Truncated { collections: truncated }) })
    }

    /// Gives the seat back, so that another process need not wait until the lease ends.
    pub async fn leave(&self) -> Result<()> {
        sqlx::query("update bridge.stream set holder = null, leased_until = null where holder = $1")
            .bind(self.holder)
            .execute(&self.pool)
            .await
            .map_err(Fault::target("give the mirror's lease back"))?;
        Ok(())
    }
}
