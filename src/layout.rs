//! How the scheduler's tables are laid out: with the bridge's columns while the move lasts, without them once `bridge
//! finalize` has ended it. The tables themselves say which: a record of it could be lost, or be untrue.

use sqlx::PgExecutor;

use crate::entity::ENTITIES;
use crate::mapping::BRIDGE_COLUMNS;

/// Which columns the tables have beside those of the documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// The bridge's: residue and stamp. A database without the tables counts as one that is to be migrated.
    Moving,
    /// None. Schema `bridge` is gone too, and with it fences, outbox and tombstones.
    Final,
}

impl Layout {
    /// That of the tables in a database.
    pub async fn of(executor: impl PgExecutor<'_>) -> sqlx::Result<Self> {
        let names: Vec<&str> = ENTITIES.iter().map(|entity| entity.name).collect();
        let is_final: bool = sqlx::query_scalar(
            "select count(*) = cardinality($1::text[]) and coalesce(bool_and(a.attname is null), false)
            from pg_class c
            left join pg_attribute a on a.attrelid = c.oid and a.attname = any($2) and not a.attisdropped
            where c.relnamespace = to_regnamespace('scheduler') and c.relkind in ('r', 'p') and c.relname = any($1)",
        )
        .bind(names)
        .bind(&BRIDGE_COLUMNS[..])
        .fetch_one(executor)
        .await?;
        Ok(if is_final { Self::Final } else { Self::Moving })
    }
}
