//! The SQL of one entity, built from its field table. Names come from that table alone, never from data.

use sqlx::AssertSqlSafe;

use crate::entity::Entity;
use crate::mapping::Mapping;
use crate::secondary::{Replaces, merge, quarantine};

/// A statement built from the field table.
pub type Statement = AssertSqlSafe<String>;

/// The statements that bring rows of one entity into PostgreSQL.
#[derive(Debug, Clone)]
pub struct Statements {
    /// COPY straight into the table.
    pub copy: String,
    /// COPY into the staging table.
    pub copy_staging: String,
    create_staging: String,
    merge: String,
    is_empty: String,
    sweep: String,
    quarantine: String,
}

impl Statements {
    /// The statements of `entity`.
    pub fn new(entity: &'static Entity) -> Self {
        let (name, mapping) = (entity.name, Mapping::new(entity));
        let columns = mapping.columns().collect::<Vec<_>>().join(", ");
        Self {
            copy: format!("copy scheduler.{name} ({columns}) from stdin (format binary)"),
            copy_staging: format!("copy pg_temp.staging_{name} ({columns}) from stdin (format binary)"),
            create_staging: format!(
                "create temp table if not exists staging_{name} (like scheduler.{name}) on commit delete rows"
            ),
            merge: merge(entity, "", &format!("pg_temp.staging_{name} s"), Replaces::Older),
            is_empty: is_empty(name),
            sweep: sweep(name),
            quarantine: quarantine(entity, Replaces::Older),
        }
    }

    /// Makes the staging table of this connection. Rows in it live as long as a transaction.
    pub fn create_staging(&self) -> Statement {
        AssertSqlSafe(self.create_staging.clone())
    }

    /// Brings the staged rows into the table, each unless something as new is there. `$1`: collection.
    pub fn merge(&self) -> Statement {
        AssertSqlSafe(self.merge.clone())
    }

    /// Whether nothing is known of any id from `$1` to `$2`. `$3`: collection.
    pub fn is_empty(&self) -> Statement {
        AssertSqlSafe(self.is_empty.clone())
    }

    /// Quarantines document `$3` under collection `$1` and id `$2` for reason `$4` with stamp (`$5`, `$6`), unless
    /// something newer is known, and deletes the row of an older version.
    pub fn quarantine(&self) -> Statement {
        AssertSqlSafe(self.quarantine.clone())
    }

    /// Deletes some rows with a stamp before (`$2`, `$3`), leaving tombstones of that stamp. `$1`: collection,
    /// `$4`: how many at most.
    pub fn sweep(&self) -> Statement {
        AssertSqlSafe(self.sweep.clone())
    }

    /// [`Statements::sweep`] for the quarantine.
    pub fn sweep_quarantine(&self) -> Statement {
        AssertSqlSafe(SWEEP_QUARANTINE.to_owned())
    }
}

/// Forgets quarantined documents that are gone, as [`Statements::sweep`] removes rows.
const SWEEP_QUARANTINE: &str = "with gone as (
        delete from bridge.quarantine
        where (collection, id) in (
            select collection, id from bridge.quarantine where collection = $1 and (epoch, clock) < ($2, $3) limit $4
        )
        returning id
    ), remembered as (
        insert into bridge.tombstone as b (collection, id, epoch, clock)
        select $1, id, $2, $3 from gone
        on conflict (collection, id) do update set epoch = excluded.epoch, clock = excluded.clock
        where (b.epoch, b.clock) < (excluded.epoch, excluded.clock)
    )
    select count(*) from gone";

fn is_empty(name: &str) -> String {
    format!(
        "select not exists (select from scheduler.{name} where id between $1 and $2)
            and not exists (select from bridge.tombstone where collection = $3 and id between $1 and $2)
            and not exists (select from bridge.quarantine where collection = $3 and id between $1 and $2)"
    )
}

/// The stamps are looked at under the collection's exclusive lock: nobody can change them before the row is deleted.
fn sweep(name: &str) -> String {
    format!(
        "with gone as (
            delete from scheduler.{name}
            where id in (select id from scheduler.{name} where (epoch, clock) < ($2, $3) limit $4)
            returning id
        ), remembered as (
            insert into bridge.tombstone as b (collection, id, epoch, clock)
            select $1, id, $2, $3 from gone
            on conflict (collection, id) do update set epoch = excluded.epoch, clock = excluded.clock
            where (b.epoch, b.clock) < (excluded.epoch, excluded.clock)
        )
        select count(*) from gone"
    )
}
