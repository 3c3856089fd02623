//! The ledger of a verification: its shares, the keys that differed, and its report. All of it is in PostgreSQL, so that
//! whoever runs the same command again goes on where the last one ended, however that was.
//!
//! Invariant: what a share has found moves in the transaction that marks the share as done, and only its holder writes. Keys
//! that differ may be noted before: that a key is noted says that it is to be looked at, and no more.

mod columns;
mod walk;

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

pub use self::walk::Walk;

use self::columns::{Columns, planned};
use super::digest::digest;
use super::generation::Share;
use super::recheck::{Difference, Suspect};
use super::report::{Counts, Kind, Report};
use super::{Options, Result, Turn, VerifyError};
use crate::entity::Entity;

/// How many verifications are kept, at most.
const KEPT: i64 = 200;

/// How long nobody may have been at a verification that is gone on with. What it compared is older than that, and damage
/// that has come since would not be seen, though its report is new.
const RESUMED_WITHIN: Duration = Duration::from_secs(3_600);

/// A verification that this process holds.
#[derive(Debug, Clone)]
pub struct Ledger {
    pool: PgPool,
    /// Its number.
    pub number: i64,
    holder: Uuid,
    lease: Duration,
}

/// One share and its place.
#[derive(Debug, Clone)]
pub struct Planned {
    /// Its place.
    pub ordinal: i32,
    /// Whose documents.
    pub entity: &'static Entity,
    /// What is to be compared.
    pub share: Share,
}

/// A key that differs, or did so.
#[derive(Debug)]
pub struct Noted {
    /// Whose key.
    pub entity: &'static Entity,
    /// The key.
    pub suspect: Suspect,
    /// How its sides differed.
    pub kind: Kind,
    /// What of the row no document stands for, if that is why.
    pub reason: Option<String>,
    /// What both sides were when they were read last; nothing before the first look.
    pub print: Option<Vec<u8>>,
    /// Since when it has stood so.
    pub since: DateTime<Utc>,
}

/// What became of a key that differed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// It differs for as long as a mismatch must last.
    Lasting,
    /// It was written to all the time.
    Unsettled,
}

impl Settled {
    fn name(self) -> &'static str {
        match self {
            Self::Lasting => "lasting",
            Self::Unsettled => "unsettled",
        }
    }
}

/// Whoever is at it.
#[derive(Debug)]
pub enum Carried {
    /// It goes on.
    Mine(Ledger),
    /// Somebody else is at it, until then or longer.
    Theirs {
        /// Who.
        by: String,
        /// Until when, unless it is renewed.
        until: DateTime<Utc>,
    },
    /// There is none to go on with.
    Nothing,
}

fn failed(attempted: &'static str) -> impl FnOnce(sqlx::Error) -> VerifyError {
    move |error| VerifyError::target(attempted, error)
}

impl Ledger {
    /// Goes on with the unfinished verification of the same scope and turn that began last, if somebody was at it within
    /// [`RESUMED_WITHIN`].
    pub async fn carry_on(pool: &PgPool, options: &Options, turn: Turn) -> Result<Carried> {
        let names: Vec<_> = options.entities.iter().map(|entity| entity.name).collect();
        let holder = Uuid::new_v4();
        let mut transaction = pool.begin().await.map_err(failed("look for an unfinished verification"))?;
        let found: Option<(i64, String, DateTime<Utc>, bool)> = sqlx::query_as(
            "select id, held_by, leased_until, leased_until < clock_timestamp() from bridge.verification
            where finished_at is null and epoch = $1 and collections = $2 and sample is not distinct from $3
                and leased_until > clock_timestamp() - make_interval(secs => $4)
                and exists (select from bridge.verification_share where verification = id)
            order by id desc limit 1 for update",
        )
        .bind(turn.epoch)
        .bind(&names)
        .bind(options.sample)
        .bind(RESUMED_WITHIN.as_secs_f64())
        .fetch_optional(&mut *transaction)
        .await
        .map_err(failed("look for an unfinished verification"))?;
        let (number, by, until) = match found {
            None => return Ok(Carried::Nothing),
            Some((_, by, until, false)) => return Ok(Carried::Theirs { by, until }),
            Some((number, by, until, true)) => (number, by, until),
        };
        tracing::info!(number, by, %until, "goes on with a verification");
        sqlx::query(
            "update bridge.verification set holder = $2, held_by = $3, tolerance_seconds = $5,
                leased_until = clock_timestamp() + make_interval(secs => $4) where id = $1",
        )
        .bind(number)
        .bind(holder)
        .bind(&options.name)
        .bind(options.lease.as_secs_f64())
        .bind(options.tolerance.as_secs_f64())
        .execute(&mut *transaction)
        .await
        .map_err(failed("take over a verification"))?;
        transaction.commit().await.map_err(failed("take over a verification"))?;
        Ok(Carried::Mine(Self { pool: pool.clone(), number, holder, lease: options.lease }))
    }

    /// Begins a verification with these shares. Those that were not finished, and that nobody is at, are given up.
    pub async fn begin(
        pool: &PgPool,
        options: &Options,
        turn: Turn,
        shares: &[(&'static Entity, Share)],
    ) -> Result<Self> {
        let holder = Uuid::new_v4();
        let names: Vec<_> = options.entities.iter().map(|entity| entity.name).collect();
        let columns = Columns::of(shares);
        let number = sqlx::query_scalar(
            "with given_up as (
                delete from bridge.verification where id in (
                    select id from bridge.verification where finished_at is null and leased_until < clock_timestamp()
                    union all
                    (select id from bridge.verification where finished_at is not null order by id desc offset $13)
                )
            ), begun as (
                insert into bridge.verification
                    (phase, epoch, collections, sample, tolerance_seconds, holder, held_by, leased_until)
                values ($1, $2, $3, $4, $5, $6, $7, clock_timestamp() + make_interval(secs => $8))
                returning id
            ), planned as (
                insert into bridge.verification_share (verification, ordinal, collection, kind, lower, upper)
                select begun.id, ordinal, collection, kind, lower, upper
                from begun, unnest($9::text[], $10::text[], $11::bytea[], $12::bytea[])
                    with ordinality as share (collection, kind, lower, upper, ordinal)
            )
            select id from begun",
        )
        .bind(turn.phase.name())
        .bind(turn.epoch)
        .bind(names)
        .bind(options.sample)
        .bind(options.tolerance.as_secs_f64())
        .bind(holder)
        .bind(&options.name)
        .bind(options.lease.as_secs_f64())
        .bind(columns.collections)
        .bind(columns.kinds)
        .bind(columns.lowers)
        .bind(columns.uppers)
        .bind(KEPT)
        .fetch_one(pool)
        .await
        .map_err(failed("begin a verification"))?;
        Ok(Self { pool: pool.clone(), number, holder, lease: options.lease })
    }

    /// Begins the lease anew.
    ///
    /// # Errors
    /// [`VerifyError::TakenOver`] when somebody else goes on with it.
    pub async fn renew(&self) -> Result<()> {
        let mut connection = self.pool.acquire().await.map_err(failed("renew the lease of a verification"))?;
        self.hold(&mut connection).await
    }

    /// How often [`Ledger::renew`] is to be called.
    pub fn renewal(&self) -> Duration {
        self.lease / 3
    }

    /// Gives it back, so that whoever goes on with it need not wait.
    pub async fn release(&self) -> Result<()> {
        sqlx::query("update bridge.verification set leased_until = clock_timestamp() where id = $1 and holder = $2")
            .bind(self.number)
            .bind(self.holder)
            .execute(&self.pool)
            .await
            .map_err(failed("release the lease of a verification"))?;
        Ok(())
    }

    /// Makes sure that it is still this process's, for as long as the transaction of `connection` lasts.
    async fn hold(&self, connection: &mut PgConnection) -> Result<()> {
        // Also when it has ended: a renewal that waits for the transaction that ends it finds that, and nobody took it over.
        let held = sqlx::query(
            "update bridge.verification set leased_until = clock_timestamp() + make_interval(secs => $3)
            where id = $1 and holder = $2",
        )
        .bind(self.number)
        .bind(self.holder)
        .bind(self.lease.as_secs_f64())
        .execute(connection)
        .await
        .map_err(failed("renew the lease of a verification"))?;
        if held.rows_affected() == 1 { Ok(()) } else { Err(VerifyError::TakenOver) }
    }

    /// The shares that are not done, in order.
    pub async fn open(&self) -> Result<Vec<Planned>> {
        let found = sqlx::query(
            "select ordinal, collection, kind, lower, upper from bridge.verification_share
            where verification = $1 and finished_at is null order by ordinal",
        )
        .bind(self.number)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("read the shares of a verification"))?;
        found.iter().map(planned).collect()
    }

    /// Notes keys that differ. One that is noted already stays as it is.
    pub async fn note(&self, entity: &'static Entity, found: &[Difference]) -> Result<()> {
        if found.is_empty() {
            return Ok(());
        }
        let mut connection = self.pool.acquire().await.map_err(failed("note keys that differ"))?;
        self.note_in(&mut connection, entity, found).await
    }

    async fn note_in(
        &self,
        connection: &mut PgConnection,
        entity: &'static Entity,
        found: &[Difference],
    ) -> Result<()> {
        let ids: Vec<&str> = found.iter().map(|one| one.suspect.key.text()).collect();
        let documents: Vec<&[u8]> = found.iter().map(|one| one.suspect.id.as_bytes()).collect();
        let kinds: Vec<&str> = found.iter().map(|one| one.kind.name()).collect();
        let reasons: Vec<Option<&str>> = found.iter().map(|one| one.reason.as_deref()).collect();
        sqlx::query(
            "insert into bridge.suspect (verification, collection, id, document_id, kind, reason)
            select $1, $2, * from unnest($3::text[], $4::bytea[], $5::text[], $6::text[])
            on conflict do nothing",
        )
        .bind(self.number)
        .bind(entity.name)
        .bind(ids)
        .bind(documents)
        .bind(kinds)
        .bind(reasons)
        .execute(connection)
        .await
        .map_err(failed("note keys that differ"))?;
        Ok(())
    }

    /// Notes what a share has looked at and found, and that it is done.
    pub async fn done(&self, planned: &Planned, counts: &Counts, found: &[Difference]) -> Result<()> {
        let attempted = "note that a share is done";
        let mut transaction = self.pool.begin().await.map_err(failed(attempted))?;
        self.hold(&mut transaction).await?;
        self.note_in(&mut transaction, planned.entity, found).await?;
        let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let done = sqlx::query(
            "update bridge.verification_share
            set documents = $3, rows = $4, quarantined = $5, seconds = $6, finished_at = clock_timestamp()
            where verification = $1 and ordinal = $2 and finished_at is null",
        )
        .bind(self.number)
        .bind(planned.ordinal)
        .bind(count(counts.documents))
        .bind(count(counts.rows))
        .bind(count(counts.quarantined))
        .bind(counts.seconds)
        .execute(&mut *transaction)
        .await
        .map_err(failed(attempted))?;
        if done.rows_affected() != 1 {
            return Err(VerifyError::TakenOver);
        }
        fail::fail_point!("verify::before-done");
        transaction.commit().await.map_err(failed(attempted))
    }

    /// Up to which moment the queue of keys to compare again is to be gone through: that of the first call.
    pub async fn queued_until(&self) -> Result<DateTime<Utc>> {
        sqlx::query_scalar(
            "update bridge.verification set queued_until = coalesce(queued_until, clock_timestamp())
            where id = $1 returning queued_until",
        )
        .bind(self.number)
        .fetch_one(&self.pool)
        .await
        .map_err(failed("note how far the queue is to be gone through"))
    }

    /// Counts keys that were compared again.
    pub async fn rechecked(&self, keys: u64) -> Result<()> {
        sqlx::query("update bridge.verification set rechecked = rechecked + $2 where id = $1")
            .bind(self.number)
            .bind(i64::try_from(keys).unwrap_or(i64::MAX))
            .execute(&self.pool)
            .await
            .map_err(failed("count the keys that were compared again"))?;
        Ok(())
    }

    /// A walk through the keys that are not settled, or that are settled so.
    pub fn noted(&self, settled: Option<Settled>) -> Walk {
        Walk::new(self.pool.clone(), self.number, settled)
    }

    /// Notes what a look at keys of one collection has shown: which are level, and what the others are.
    pub async fn looked(&self, entity: &'static Entity, level: &[&str], looks: &[Look]) -> Result<()> {
        let attempted = "note what a look at keys has shown";
        let mut transaction = self.pool.begin().await.map_err(failed(attempted))?;
        self.hold(&mut transaction).await?;
        sqlx::query("delete from bridge.suspect where verification = $1 and collection = $2 and id = any($3)")
            .bind(self.number)
            .bind(entity.name)
            .bind(level)
            .execute(&mut *transaction)
            .await
            .map_err(failed(attempted))?;
        sqlx::query(
            "update bridge.suspect s
            set kind = look.kind, reason = look.reason, print = look.print, since = look.since, settled = look.settled
            from unnest($3::text[], $4::text[], $5::text[], $6::bytea[], $7::timestamptz[], $8::text[])
                as look (id, kind, reason, print, since, settled)
            where s.verification = $1 and s.collection = $2 and s.id = look.id",
        )
        .bind(self.number)
        .bind(entity.name)
        .bind(looks.iter().map(|look| look.id.as_str()).collect::<Vec<_>>())
        .bind(looks.iter().map(|look| look.kind.name()).collect::<Vec<_>>())
        .bind(looks.iter().map(|look| look.reason.as_deref()).collect::<Vec<_>>())
        .bind(looks.iter().map(|look| look.print.as_slice()).collect::<Vec<_>>())
        .bind(looks.iter().map(|look| look.since).collect::<Vec<_>>())
        .bind(looks.iter().map(|look| look.settled.map(Settled::name)).collect::<Vec<_>>())
        .execute(&mut *transaction)
        .await
        .map_err(failed(attempted))?;
        transaction.commit().await.map_err(failed(attempted))
    }

    /// What all shares have looked at, and how many keys of each kind differ, for each of `entities`.
    pub async fn counts(&self, entities: &[&'static Entity]) -> Result<(Vec<Counts>, u64)> {
        let shares: Vec<(String, i64, i64, i64, f64)> = sqlx::query_as(
            "select collection, sum(documents)::bigint, sum(rows)::bigint, sum(quarantined)::bigint, sum(seconds)
            from bridge.verification_share where verification = $1 and finished_at is not null group by collection",
        )
        .bind(self.number)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("count what was compared"))?;
        let suspects: Vec<(String, String, Option<String>, i64)> = sqlx::query_as(
            "select collection, kind, settled, count(*) from bridge.suspect where verification = $1
            group by collection, kind, settled",
        )
        .bind(self.number)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("count what differs"))?;
        let count = |count: i64| u64::try_from(count).unwrap_or_default();
        let mut counts: Vec<_> =
            entities.iter().map(|entity| Counts { name: entity.name, ..Counts::default() }).collect();
        let mut unsettled = 0;
        for counts in &mut counts {
            let name = counts.name;
            for (_, documents, rows, quarantined, seconds) in shares.iter().filter(|share| share.0 == name) {
                (counts.documents, counts.rows, counts.quarantined) =
                    (count(*documents), count(*rows), count(*quarantined));
                counts.seconds = *seconds;
            }
            for (_, kind, settled, keys) in suspects.iter().filter(|suspect| suspect.0 == name) {
                match (settled.as_deref(), Kind::named(kind)) {
                    (Some("lasting"), Some(kind)) => *counts.of_mut(kind) = count(*keys),
                    _ => unsettled += count(*keys),
                }
            }
        }
        Ok((counts, unsettled))
    }

    /// When it began, and how many keys were compared again.
    pub async fn begun(&self) -> Result<(DateTime<Utc>, u64)> {
        let found: (DateTime<Utc>, i64) =
            sqlx::query_as("select began_at, rechecked from bridge.verification where id = $1")
                .bind(self.number)
                .fetch_one(&self.pool)
                .await
                .map_err(failed("read when the verification began"))?;
        Ok((found.0, u64::try_from(found.1).unwrap_or_default()))
    }

    /// Keeps the report, with the digest over it and all that the gate looks at. The verification ends with it.
    pub async fn finish(&self, report: &Report) -> Result<()> {
        let attempted = "keep the report";
        let mut transaction = self.pool.begin().await.map_err(failed(attempted))?;
        self.hold(&mut transaction).await?;
        sqlx::query("update bridge.verification set report = $2, finished_at = $3 where id = $1")
            .bind(self.number)
            .bind(serde_json::to_value(report).unwrap_or_default())
            .bind(report.finished_at)
            .execute(&mut *transaction)
            .await
            .map_err(failed(attempted))?;
        // As PostgreSQL will give it back, now and later.
        let parts: Vec<String> = sqlx::query_scalar(PARTS)
            .bind(self.number)
            .fetch_one(&mut *transaction)
            .await
            .map_err(failed(attempted))?;
        sqlx::query("update bridge.verification set digest = $2 where id = $1")
            .bind(self.number)
            .bind(of_parts(&parts))
            .execute(&mut *transaction)
            .await
            .map_err(failed(attempted))?;
        transaction.commit().await.map_err(failed(attempted))
    }
}

/// All that the gate looks at of a verification, as texts that depend on no session's settings.
pub const PARTS: &str = "select array[v.id::text, v.phase, v.epoch::text, v.collections::text, coalesce(v.sample::text, ''),
        v.tolerance_seconds::text, extract(epoch from v.began_at)::text, extract(epoch from v.finished_at)::text,
        v.report::text,
        (select string_agg(concat_ws(' ', s.collection, s.kind, encode(s.lower, 'hex'), encode(s.upper, 'hex'), s.documents,
            s.rows, s.quarantined, s.finished_at is not null), ',' order by s.ordinal)
        from bridge.verification_share s where s.verification = v.id)]
    from bridge.verification v where v.id = $1";

/// The digest of [`PARTS`].
pub fn of_parts(parts: &[String]) -> Vec<u8> {
    digest(&parts.iter().map(String::as_bytes).collect::<Vec<_>>())
}

/// What a look at a key has shown.
#[derive(Debug)]
pub struct Look {
    /// The text of the key.
    pub id: String,
    /// How its sides differ.
    pub kind: Kind,
    /// Why, if the row stands for no document.
    pub reason: Option<String>,
    /// What both sides are.
    pub print: Vec<u8>,
    /// Since when it stands so.
    pub since: DateTime<Utc>,
    /// What became of it.
    pub settled: Option<Settled>,
}
