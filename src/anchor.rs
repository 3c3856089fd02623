//! The anchor: the oplog time from which the mirror will follow, taken before the first document is read.

use std::time::Duration;

use bson::{Timestamp, doc};
use mongodb::Database;
use mongodb::error::{Error, ErrorKind};
use mongodb::options::{Acknowledgment, WriteConcern};
use sqlx::{PgConnection, PgPool};
use tokio::time::Instant;

use crate::entity::ENTITIES;
use crate::phase::Backend;
use crate::scan::ANSWER_WAIT;
use crate::stamp::{self, Stamp};

/// How often it is looked whether the mirror has passed a mark.
const LOOK: Duration = Duration::from_millis(50);

/// How long PostgreSQL may take to answer such a look.
const LOOK_WAIT: Duration = Duration::from_secs(10);

/// The bridge's own collection in the scheduler's database.
pub const COLLECTION: &str = "bridge_anchor";

/// Takes the oplog time of a majority write of our own. A `ping` would give a time that writes in flight, with earlier
/// oplog times, have not reached yet; a majority-acknowledged write has everything before it behind it.
pub async fn take(database: &Database) -> Result<Timestamp, Error> {
    let mut session = database.client().start_session().await?;
    let majority = WriteConcern::builder().w(Acknowledgment::Majority).w_timeout(ANSWER_WAIT).build();
    database
        .collection::<bson::Document>(COLLECTION)
        .update_one(doc! { "_id": "anchor" }, doc! { "$inc": { "taken": 1_i64 }, "$currentDate": { "at": true } })
        .upsert(true)
        .write_concern(majority)
        .session(&mut session)
        .await?;
    let no_time = || ErrorKind::Custom(std::sync::Arc::new("the server's answer has no operationTime")).into();
    session.operation_time().ok_or_else(no_time)
}

/// A point in the log of the primary: an oplog time as a clock, or the ordinal of an outbox entry.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    primary: Backend,
    at: i64,
}

/// Why a mark was not taken.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// MongoDB failed.
    #[error("could not write a mark to {COLLECTION}")]
    Source(#[from] Error),
    /// PostgreSQL failed.
    #[error("could not look into the outbox")]
    Target(#[from] sqlx::Error),
}

impl Mark {
    /// A mark that every write which could be read from `primary` until now has behind it.
    ///
    /// # Errors
    /// Those of the primary.
    pub async fn take(primary: Backend, database: &Database, pool: &PgPool) -> Result<Self, MarkError> {
        let at = match primary {
            Backend::Mongo => stamp::clock(take(database).await?),
            Backend::Postgres => {
                let last = sqlx::query_scalar("select coalesce(max(ordinal), 0) from bridge.outbox");
                last.fetch_one(pool).await?
            }
        };
        Ok(Self { primary, at })
    }

    /// Waits until the active mirror has brought everything before the mark to the secondary; whether it has, within `wait`,
    /// and PostgreSQL has answered each look in time. Dropping the future does no harm.
    ///
    /// # Errors
    /// Those of PostgreSQL.
    pub async fn until_passed(self, pool: &PgPool, wait: Duration) -> sqlx::Result<bool> {
        let deadline = Instant::now() + wait;
        while let Ok(looked) = tokio::time::timeout(LOOK_WAIT, self.is_passed(pool)).await {
            if looked? {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(false)
    }

    /// Whether the active mirror has brought everything before the mark to the secondary.
    ///
    /// # Errors
    /// Those of PostgreSQL.
    pub async fn is_passed(self, pool: &PgPool) -> sqlx::Result<bool> {
        match self.primary {
            Backend::Mongo => is_passed(self.at, pool).await,
            Backend::Postgres => {
                let passed = sqlx::query_scalar("select not exists (select from bridge.outbox where ordinal <= $1)");
                passed.bind(self.at).fetch_one(pool).await
            }
        }
    }
}

/// Whether a mirror, of whichever process, keeps the secondary level.
///
/// # Errors
/// Those of PostgreSQL.
pub async fn is_followed(pool: &PgPool) -> sqlx::Result<bool> {
    let live = "select exists (select from bridge.stream where leased_until > clock_timestamp())";
    sqlx::query_scalar(live).fetch_one(pool).await
}

/// Whether the active mirror, of whichever process, has applied everything before `clock`.
pub async fn is_passed(clock: i64, pool: &PgPool) -> sqlx::Result<bool> {
    let passed = sqlx::query_scalar("select exists (select from bridge.stream where clock >= $1)");
    passed.bind(clock).fetch_one(pool).await
}

/// Stores where the mirror begins, unless it is further already. A time serves as well as a resume token: a change
/// stream started at it begins with the anchor's own event, and every write before that is seen by every read after it.
pub async fn keep_start(time: Timestamp, connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query("insert into bridge.stream (clock) values ($1) on conflict do nothing")
        .bind(Stamp::of_oplog(0, time).clock)
        .execute(connection)
        .await?;
    Ok(())
}

/// Moves the stream's beginning on when the newest backfills of all collections begin later: what lies before is theirs.
pub async fn skip_covered(connection: &mut PgConnection) -> sqlx::Result<()> {
    sqlx::query(
        "update bridge.stream s set token = null, clock = least.clock
        from (
            select min(clock) as clock, count(*) as collections
            from (select collection, max(clock) as clock from bridge.backfill group by collection) as newest
        ) least
        where least.collections = $1 and s.clock < least.clock",
    )
    .bind(i64::try_from(ENTITIES.len()).unwrap_or(i64::MAX))
    .execute(connection)
    .await?;
    Ok(())
}
