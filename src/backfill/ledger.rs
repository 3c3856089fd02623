//! The ledger: which chunks there are, who is at which, and how far each was copied. PostgreSQL is the coordinator of
//! all workers of all processes.
//!
//! Invariant: a chunk's progress is written in the transaction of the rows it speaks of, and only by the chunk's holder.

use std::collections::BTreeMap;
use std::time::Duration;

use bson::RawDocumentBuf;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool, Row};
use uuid::Uuid;

use super::{Fault, Result};
use crate::entity::Entity;
use crate::lock;
use crate::plan::Plan;
use crate::scan::Range;
use crate::stamp::Stamp;

/// The ledger as one process sees it.
#[derive(Debug, Clone)]
pub struct Ledger {
    pool: PgPool,
    holder: Uuid,
    lease: Duration,
}

/// One copy of one collection, in progress.
#[derive(Debug, Clone)]
pub struct Backfill {
    /// Its key in the ledger.
    pub id: i64,
    /// What is copied.
    pub entity: &'static Entity,
    /// The epoch and the anchor's oplog time: every row that this backfill leaves behind is at least as new.
    pub anchor: Stamp,
    /// How many documents there were believed to be.
    pub estimated: u64,
    /// How many are done.
    pub documents: u64,
}

/// A chunk, held by this process.
#[derive(Debug, Clone)]
pub struct Lease {
    /// The backfill's key.
    pub backfill: i64,
    /// The chunk's place in its series.
    pub ordinal: i32,
    /// What of the chunk is still to be copied; the lower bound is done when `resumed`.
    pub rest: Range,
    /// Whether the lower bound of `rest` has been copied already.
    pub resumed: bool,
}

/// What one transaction brought.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Documents read.
    pub documents: i64,
    /// Documents that became rows.
    pub rows: i64,
    /// Rows with a residue.
    pub irregular: i64,
    /// Documents quarantined.
    pub quarantined: i64,
    /// Bytes of BSON.
    pub bytes: i64,
    /// How many documents had each irregular field.
    pub fields: BTreeMap<String, i64>,
}

impl Tally {
    /// Adds another tally.
    pub fn add(&mut self, other: &Self) {
        self.documents += other.documents;
        self.rows += other.rows;
        self.irregular += other.irregular;
        self.quarantined += other.quarantined;
        self.bytes += other.bytes;
        other.fields.iter().for_each(|(name, count)| *self.fields.entry(name.clone()).or_default() += count);
    }
}

impl Ledger {
    /// The ledger for a process that leases chunks for `lease` at a time.
    pub fn new(pool: PgPool, lease: Duration) -> Self {
        Self { pool, holder: Uuid::new_v4(), lease }
    }

    /// The connections.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// The unfinished backfill of `entity`, if there is one.
    pub async fn unfinished(connection: &mut PgConnection, entity: &'static Entity) -> Result<Option<Backfill>> {
        let found = sqlx::query(
            "select b.id, b.epoch, b.clock, b.estimated_documents,
                exists (select from bridge.truncated t where t.collection = b.collection) as truncated,
                (select coalesce(sum(c.documents), 0)::bigint from bridge.chunk c where c.backfill = b.id) as documents
            from bridge.backfill b where b.collection = $1 and b.finished_at is null",
        )
        .bind(entity.name)
        .fetch_optional(connection)
        .await
        .map_err(Fault::target("read the ledger"))?;
        if found.as_ref().is_some_and(|row| row.get("truncated")) {
            return Err(Fault::Truncated { collection: entity.name });
        }
        Ok(found.map(|row| Backfill {
            id: row.get("id"),
            entity,
            anchor: Stamp { epoch: row.get("epoch"), clock: row.get("clock") },
            estimated: u64::try_from(row.get::<i64, _>("estimated_documents")).unwrap_or_default(),
            documents: u64::try_from(row.get::<i64, _>("documents")).unwrap_or_default(),
        }))
    }

    /// Gives up the unfinished backfills of `entities`. Whoever is at them finds its leases gone.
    pub async fn give_up(connection: &mut PgConnection, entities: &[&'static Entity]) -> Result<()> {
        let names: Vec<_> = entities.iter().map(|entity| entity.name).collect();
        sqlx::query("delete from bridge.backfill where collection = any($1) and finished_at is null")
            .bind(names)
            .execute(connection)
            .await
            .map_err(Fault::target("give up the unfinished copies"))?;
        Ok(())
    }

    /// Waits until no other process plans a backfill; held until the transaction ends.
    pub async fn lock_planning(connection: &mut PgConnection) -> Result<()> {
        sqlx::query("select pg_advisory_xact_lock($1)")
            .bind(lock::id("scheduler.backfill.v1", &[]))
            .execute(connection)
            .await
            .map_err(Fault::target("wait for another process that plans a backfill"))?;
        Ok(())
    }

    /// Writes the plan of a new backfill, which brings back what was truncated.
    pub async fn begin(
        connection: &mut PgConnection,
        entity: &'static Entity,
        anchor: Stamp,
        plan: &Plan,
    ) -> Result<Backfill> {
        let bytes = |bound: &Option<RawDocumentBuf>| bound.as_ref().map(|bound| bound.as_bytes().to_vec());
        let lowers: Vec<_> = plan.chunks.iter().map(|chunk| bytes(&chunk.lower)).collect();
        let uppers: Vec<_> = plan.chunks.iter().map(|chunk| bytes(&chunk.upper)).collect();
        let id = sqlx::query_scalar(
            "with begun as (
                insert into bridge.backfill (collection, epoch, clock, estimated_documents) values ($1, $2, $3, $4)
                returning id
            ), restored as (
                delete from bridge.truncated where collection = $1
            ), planned as (
                insert into bridge.chunk (backfill, ordinal, lower, upper)
                select begun.id, ordinal, lower, upper
                from begun, unnest($5::bytea[], $6::bytea[]) with ordinality as chunk (lower, upper, ordinal)
            )
            select id from begun",
        )
        .bind(entity.name)
        .bind(anchor.epoch)
        .bind(anchor.clock)
        .bind(plan.estimated_documents)
        .bind(lowers)
        .bind(uppers)
        .fetch_one(connection)
        .await
        .map_err(Fault::target("write the plan to the ledger"))?;
        let estimated = u64::try_from(plan.estimated_documents).unwrap_or_default();
        Ok(Backfill { id, entity, anchor, estimated, documents: 0 })
    }

    /// Leases the first chunk of `backfills` that nobody is at.
    pub async fn lease(&self, backfills: &[i64]) -> Result<Option<Lease>> {
        let leased = sqlx::query(
            "update bridge.chunk c
            set holder = $1, leased_until = clock_timestamp() + make_interval(secs => $2)
            from (
                select backfill, ordinal from bridge.chunk
                where backfill = any($3) and finished_at is null
                and (holder is null or leased_until < clock_timestamp())
                order by backfill, ordinal limit 1 for update skip locked
            ) free
            where (c.backfill, c.ordinal) = (free.backfill, free.ordinal)
            returning c.backfill, c.ordinal, c.lower, c.upper, c.position",
        )
        .bind(self.holder)
        .bind(self.lease.as_secs_f64())
        .bind(backfills)
        .fetch_optional(&self.pool)
        .await
        .map_err(Fault::target("lease a chunk"))?;
        leased.as_ref().map(lease).transpose()
    }

    /// Reads how far a chunk is that this process holds; nothing when it holds it no longer.
    pub async fn held(&self, lease: &Lease) -> Result<Option<Lease>> {
        let held = sqlx::query(
            "update bridge.chunk set leased_until = clock_timestamp() + make_interval(secs => $4)
            where backfill = $1 and ordinal = $2 and holder = $3 and finished_at is null
            returning backfill, ordinal, lower, upper, position",
        )
        .bind(lease.backfill)
        .bind(lease.ordinal)
        .bind(self.holder)
        .bind(self.lease.as_secs_f64())
        .fetch_optional(&self.pool)
        .await
        .map_err(Fault::target("renew the lease of a chunk"))?;
        held.as_ref().map(self::lease).transpose()
    }

    /// Renews this process's leases but those that a transaction under way renews itself.
    pub async fn renew(&self) -> Result<()> {
        sqlx::query(
            "update bridge.chunk c set leased_until = clock_timestamp() + make_interval(secs => $2)
            from (
                select backfill, ordinal from bridge.chunk where holder = $1 and finished_at is null
                for update skip locked
            ) mine
            where (c.backfill, c.ordinal) = (mine.backfill, mine.ordinal)",
        )
        .bind(self.holder)
        .bind(self.lease.as_secs_f64())
        .execute(&self.pool)
        .await
        .map_err(Fault::target("renew the leases"))?;
        Ok(())
    }

    /// How often [`Ledger::renew`] is to be called.
    pub fn renewal(&self) -> Duration {
        self.lease / 3
    }

    /// Gives back what this process holds, so that others need not wait until its leases end.
    pub async fn release(&self) -> Result<()> {
        sqlx::query(
            "update bridge.chunk set holder = null, leased_until = null where holder = $1 and finished_at is null",
        )
        .bind(self.holder)
        .execute(&self.pool)
        .await
        .map_err(Fault::target("release the leases"))?;
        Ok(())
    }

    /// Moves a chunk on, in the transaction of the rows that `tally` counts.
    pub async fn advance(
        &self,
        connection: &mut PgConnection,
        lease: &Lease,
        position: &RawDocumentBuf,
        tally: &Tally,
    ) -> Result<()> {
        let moved = sqlx::query(
            "update bridge.chunk c set position = $4, documents = documents + $5, rows = rows + $6,
                irregular = irregular + $7, quarantined = quarantined + $8, bytes = bytes + $9,
                irregular_fields = (
                    select coalesce(jsonb_object_agg(name, total), '{}') from (
                        select name, sum(count::bigint) as total from (
                            select * from jsonb_each_text(c.irregular_fields) as before (name, count)
                            union all select * from jsonb_each_text($10) as now (name, count)
                        ) as fields group by name
                    ) as totals
                ),
                leased_until = clock_timestamp() + make_interval(secs => $11)
            where backfill = $1 and ordinal = $2 and holder = $3 and finished_at is null",
        )
        .bind(lease.backfill)
        .bind(lease.ordinal)
        .bind(self.holder)
        .bind(position.as_bytes())
        .bind(tally.documents)
        .bind(tally.rows)
        .bind(tally.irregular)
        .bind(tally.quarantined)
        .bind(tally.bytes)
        .bind(Json(&tally.fields))
        .bind(self.lease.as_secs_f64())
        .execute(connection)
        .await
        .map_err(Fault::target("move the ledger on"))?;
        if moved.rows_affected() == 1 { Ok(()) } else { Err(Fault::LeaseLost) }
    }

    /// Marks a chunk as copied to its end.
    pub async fn finish_chunk(&self, lease: &Lease) -> Result<()> {
        let finished = sqlx::query(
            "update bridge.chunk set finished_at = clock_timestamp(), holder = null, leased_until = null
            where backfill = $1 and ordinal = $2 and holder = $3",
        )
        .bind(lease.backfill)
        .bind(lease.ordinal)
        .bind(self.holder)
        .execute(&self.pool)
        .await
        .map_err(Fault::target("mark a chunk as finished"))?;
        if finished.rows_affected() == 1 { Ok(()) } else { Err(Fault::LeaseLost) }
    }

    /// How long until a chunk of `backfills` may come free; nothing when all are finished.
    pub async fn wait(&self, backfills: &[i64]) -> Result<Option<Duration>> {
        let (unfinished, seconds): (i64, Option<f64>) = sqlx::query_as(
            "select count(*), extract(epoch from min(leased_until) - clock_timestamp())::float8
            from bridge.chunk where backfill = any($1) and finished_at is null",
        )
        .bind(backfills)
        .fetch_one(&self.pool)
        .await
        .map_err(Fault::target("read the ledger"))?;
        let wait = Duration::try_from_secs_f64(seconds.unwrap_or_default()).unwrap_or_default();
        Ok((unfinished > 0).then_some(wait))
    }

    /// Whether every chunk of `backfill` is copied and it is not finished yet. Locks it for the transaction.
    pub async fn is_to_finish(connection: &mut PgConnection, backfill: &Backfill) -> Result<bool> {
        sqlx::query_scalar(
            "select not exists (select from bridge.chunk where backfill = b.id and finished_at is null)
            from bridge.backfill b where id = $1 and finished_at is null for update",
        )
        .bind(backfill.id)
        .fetch_optional(connection)
        .await
        .map(Option::unwrap_or_default)
        .map_err(Fault::target("read the ledger"))
    }

    /// Marks a backfill as finished that removed `removed` rows whose documents are gone.
    pub async fn finish(connection: &mut PgConnection, backfill: &Backfill, removed: i64) -> Result<()> {
        sqlx::query("update bridge.backfill set finished_at = clock_timestamp(), removed = $2 where id = $1")
            .bind(backfill.id)
            .bind(removed)
            .execute(connection)
            .await
            .map_err(Fault::target("mark the backfill as finished"))?;
        Ok(())
    }

    /// What all transactions of a backfill brought, and the rows it removed.
    pub async fn total(&self, backfill: &Backfill) -> Result<(Tally, i64)> {
        let row = sqlx::query(
            "select coalesce(sum(documents), 0)::bigint as documents, coalesce(sum(rows), 0)::bigint as rows,
                coalesce(sum(irregular), 0)::bigint as irregular,
                coalesce(sum(quarantined), 0)::bigint as quarantined, coalesce(sum(bytes), 0)::bigint as bytes,
                (select coalesce(jsonb_object_agg(name, total), '{}') from (
                    select name, sum(count::bigint) as total
                    from bridge.chunk f, jsonb_each_text(f.irregular_fields) as field (name, count)
                    where f.backfill = $1 group by name
                ) as totals) as fields,
                (select removed from bridge.backfill where id = $1) as removed
            from bridge.chunk where backfill = $1",
        )
        .bind(backfill.id)
        .fetch_one(&self.pool)
        .await
        .map_err(Fault::target("sum up the ledger"))?;
        let Json(fields) = row.get("fields");
        let count = |name: &str| row.get::<i64, _>(name);
        let tally = Tally {
            documents: count("documents"),
            rows: count("rows"),
            irregular: count("irregular"),
            quarantined: count("quarantined"),
            bytes: count("bytes"),
            fields,
        };
        Ok((tally, count("removed")))
    }
}

fn lease(row: &PgRow) -> Result<Lease> {
    let bound = |name: &str| -> Result<Option<RawDocumentBuf>> {
        let bytes: Option<Vec<u8>> = row.get(name);
        bytes.map(RawDocumentBuf::from_bytes).transpose().map_err(|_| Fault::Ledger { column: name.to_owned() })
    };
    let position = bound("position")?;
    let resumed = position.is_some();
    let rest = Range { lower: if resumed { position } else { bound("lower")? }, upper: bound("upper")? };
    Ok(Lease { backfill: row.get("backfill"), ordinal: row.get("ordinal"), rest, resumed })
}
