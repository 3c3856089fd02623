//! The guard, in SQL. Names come from the field tables alone, never from data.
//!
//! In every statement `s` is what is to be written. The row's own stamp is compared in `on conflict`, where PostgreSQL
//! reads the row anew after it has waited for its lock; tombstones and quarantine, which it does not read anew, are kept
//! still by the collection's advisory lock ([`crate::lock::of_collection`]), which every transaction takes first: shared
//! to upsert, exclusive to delete. `offset 0` keeps a look by key from being planned as a join, which reads all there is.

use crate::entity::Entity;
use crate::mapping::Mapping;
use crate::store::postgres::arrays::{Element, INT4, INT8, TEXT};
use crate::store::postgres::statements::{elements, rows};

/// Which writes of a key a write replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replaces {
    /// Those with a lesser stamp: of two equal ones, the first that came stands.
    Older,
    /// Those with a lesser or an equal stamp: the events of one transaction in the source share a stamp, and come in
    /// order from the one mirror that there is.
    NotNewer,
}

impl Replaces {
    /// What the stamp of a replaced write is to the new one's.
    const fn replaced(self) -> &'static str {
        match self {
            Self::Older => "<",
            Self::NotNewer => "<=",
        }
    }

    /// What the stamp of a write that stays is to the new one's.
    const fn stays(self) -> &'static str {
        match self {
            Self::Older => ">=",
            Self::NotNewer => ">",
        }
    }
}

/// The anchor of the collection's newest backfill. What was written before is the backfill's, which reads afterwards: the
/// mirror passes over it, so that a deletion in between may have left no tombstone to keep a late write away.
const ANCHOR: &str = "anchor as materialized (
        select epoch, clock from bridge.backfill b where collection = $1 and not exists (
            select from bridge.backfill c where c.collection = $1 and (c.epoch, c.clock) > (b.epoch, b.clock)
        ) limit 1
    )";

/// Brings the rows `s` that `from` gives, with the help of `ctes`, into the table, each unless something newer is known; what
/// was quarantined under their keys goes. `$1`: the collection.
pub fn merge(entity: &'static Entity, ctes: &str, from: &str, replaces: Replaces) -> String {
    let (name, mapping) = (entity.name, Mapping::new(entity));
    let columns = mapping.columns().collect::<Vec<_>>().join(", ");
    let others = mapping.columns().filter(|column| *column != "id");
    let set = others.map(|column| format!("{column} = excluded.{column}")).collect::<Vec<_>>().join(", ");
    let (replaced, stays) = (replaces.replaced(), replaces.stays());
    let released = gone(from, QUARANTINE, replaced);
    format!(
        "with {ctes} {ANCHOR}, released as ({released})
        insert into scheduler.{name} as t ({columns})
        select {columns} from {from}
        where not exists (
            select from bridge.tombstone b
            where b.collection = $1 and b.id = s.id and (b.epoch, b.clock) {stays} (s.epoch, s.clock) offset 0
        ) and not exists (
            select from bridge.quarantine b
            where b.collection = $1 and b.id = s.id and (b.epoch, b.clock) {stays} (s.epoch, s.clock) offset 0
        ) and not exists (select from anchor a where (a.epoch, a.clock) > (s.epoch, s.clock))
        on conflict (id) do update set {set}
        where (t.epoch, t.clock) {replaced} (excluded.epoch, excluded.clock)"
    )
}

/// [`merge`] of arrays: `$2` and on, one for each column of [`types`].
pub fn merge_arrays(entity: &'static Entity, replaces: Replaces) -> String {
    let columns: Vec<_> = Mapping::new(entity).columns().collect();
    merge(entity, &format!("{},", arrays(&types(entity), &columns)), "s", replaces)
}

/// The rows `s` of one array a column, `$2` and on.
fn arrays(types: &[Element], columns: &[&str]) -> String {
    format!("s as materialized (select * from {})", rows(2, types, columns))
}

/// The types of a row's columns.
pub fn types(entity: &Entity) -> Vec<Element> {
    elements(entity).chain([INT4, INT8]).collect()
}

/// Deletes what is known of keys, leaving tombstones. `$1`: the collection, `$2` to `$4`: ids, epochs, clocks.
pub fn delete(entity: &'static Entity, replaces: Replaces) -> String {
    let s = arrays(&[TEXT, INT4, INT8], &["id", "epoch", "clock"]);
    let replaced = replaces.replaced();
    let table = format!("scheduler.{}", entity.name);
    let (rows, released) = (gone("s", [&table, "t.id = s.id"], replaced), gone("s", QUARANTINE, replaced));
    format!(
        "with {s}, gone as ({rows}), released as ({released})
        insert into bridge.tombstone as b (collection, id, epoch, clock)
        select $1, s.id, s.epoch, s.clock from s
        on conflict (collection, id) do update set epoch = excluded.epoch, clock = excluded.clock
        where (b.epoch, b.clock) < (excluded.epoch, excluded.clock)"
    )
}

/// The quarantine, and the row in it that belongs to `s`.
const QUARANTINE: [&str; 2] = ["bridge.quarantine", "t.collection = $1 and t.id = s.id"];

/// Deletes what the rows `s` of `from` replace in a table, each row looked up by its key (`offset 0`: planned as nothing else, whatever the
/// statistics of a table that was empty a moment ago), and deleted where it was found: the collection's lock keeps it
/// there.
fn gone(from: &str, [table, by_key]: [&str; 2], replaced: &str) -> String {
    format!(
        "delete from {table} t using (
            select found.place from {from} cross join lateral (
                select t.ctid as place from {table} t where {by_key} and (t.epoch, t.clock) {replaced} (s.epoch, s.clock) offset 0
            ) found
        ) old where t.ctid = old.place"
    )
}

/// Quarantines document `$3` under collection `$1` and id `$2` for reason `$4` with stamp (`$5`, `$6`), unless something
/// newer is known, and deletes the row of an older version. Whoever accepted the older version has not seen this one.
pub fn quarantine(entity: &'static Entity, replaces: Replaces) -> String {
    let (name, replaced, stays) = (entity.name, replaces.replaced(), replaces.stays());
    format!(
        "with s (collection, id, document, reason, epoch, clock) as (
            select $1::text, $2::text, $3::bytea, $4::text, $5::integer, $6::bigint
        ), {ANCHOR}, gone as (
            delete from scheduler.{name} t using s where t.id = s.id and (t.epoch, t.clock) {replaced} (s.epoch, s.clock)
        )
        insert into bridge.quarantine as q (collection, id, document, reason, epoch, clock)
        select * from s
        where not exists (
            select from bridge.tombstone b
            where b.collection = s.collection and b.id = s.id and (b.epoch, b.clock) {stays} (s.epoch, s.clock)
        ) and not exists (
            select from scheduler.{name} t where t.id = s.id and (t.epoch, t.clock) {stays} (s.epoch, s.clock)
        ) and not exists (select from anchor a where (a.epoch, a.clock) > (s.epoch, s.clock))
        on conflict (collection, id) do update
        set document = excluded.document, reason = excluded.reason, epoch = excluded.epoch, clock = excluded.clock,
            accepted_at = case when q.document = excluded.document then q.accepted_at end
        where (q.epoch, q.clock) {replaced} (excluded.epoch, excluded.clock)"
    )
}
