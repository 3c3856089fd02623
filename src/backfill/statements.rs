//! The SQL of one entity, built from its field table. Names come from that table alone, never from data.

use sqlx::AssertSqlSafe;

use crate::entity::Entity;
use crate::mapping::Mapping;

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

/// No tombstone and no quarantined version that is as new as the row `s`, or newer.
const UNHINDERED: &str = "not exists (
        select from bridge.tombstone b
        where b.collection = $1 and b.id = s.id and (b.epoch, b.clock) >= (s.epoch, s.clock)
    ) and not exists (
        select from bridge.quarantine b
        where b.collection = $1 and b.id = s.id and (b.epoch, b.clock) >= (s.epoch, s.clock)
    )";

impl Statements {
    /// The statements of `entity`.
    pub fn new(entity: &Entity, mapping: Mapping) -> Self {
        let name = entity.name;
        let columns = mapping.columns().collect::<Vec<_>>().join(", ");
        Self {
            copy: format!("copy scheduler.{name} ({columns}) from stdin (format binary)"),
            copy_staging: format!("copy pg_temp.staging_{name} ({columns}) from stdin (format binary)"),
            create_staging: format!(
                "create temp table if not exists staging_{name} (like scheduler.{name}) on commit delete rows"
            ),
            merge: merge(name, &columns, mapping),
            is_empty: is_empty(name),
            sweep: sweep(name),
            quarantine: quarantine(name),
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

fn merge(name: &str, columns: &str, mapping: Mapping) -> String {
    let others = mapping.columns().filter(|column| *column != "id");
    let set = others.map(|column| format!("{column} = excluded.{column}")).collect::<Vec<_>>().join(", ");
    // The row's own stamp is compared in `on conflict`, where PostgreSQL re-reads the row after waiting for its lock.
    format!(
        "with released as (
            delete from bridge.quarantine b using pg_temp.staging_{name} s
            where b.collection = $1 and b.id = s.id and (b.epoch, b.clock) < (s.epoch, s.clock)
        )
        insert into scheduler.{name} as t ({columns})
        select {columns} from pg_temp.staging_{name} s
        where {UNHINDERED}
        on conflict (id) do update set {set}
        where (t.epoch, t.clock) < (excluded.epoch, excluded.clock)"
    )
}

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

fn quarantine(name: &str) -> String {
    format!(
        "with refused (collection, id, document, reason, epoch, clock) as (
            select $1::text, $2::text, $3::bytea, $4::text, $5::integer, $6::bigint
        ), replaced as (
            delete from scheduler.{name} t using refused s
            where t.id = s.id and (t.epoch, t.clock) < (s.epoch, s.clock)
        )
        insert into bridge.quarantine as q (collection, id, document, reason, epoch, clock)
        select * from refused s
        where not exists (
            select from bridge.tombstone b
            where b.collection = s.collection and b.id = s.id and (b.epoch, b.clock) >= (s.epoch, s.clock)
        ) and not exists (
            select from scheduler.{name} t where t.id = s.id and (t.epoch, t.clock) >= (s.epoch, s.clock)
        )
        on conflict (collection, id) do update
        set document = excluded.document, reason = excluded.reason, epoch = excluded.epoch, clock = excluded.clock
        where (q.epoch, q.clock) < (excluded.epoch, excluded.clock)"
    )
}
