//! The SQL of one entity as the scheduler's store, built from its field table. Names come from that table alone, never
//! from data.

use super::arrays::{BYTEA, Element, INT4, INT8, TEXT};
use crate::entity::Entity;
use crate::lock;
use crate::mapping::Mapping;

/// The statements of one entity that are always the same.
#[derive(Debug)]
pub struct Statements {
    /// The columns of a document and its stamp.
    pub columns: String,
    /// What stands under the id `$1`.
    pub get: String,
    /// What stands under the ids `$1`.
    pub get_many: String,
    /// Deletes rows `$1` with epochs `$2` and clocks `$3`, leaving tombstones.
    pub delete: String,
    /// Holds rows `$1` with epochs `$2` and clocks `$3` as they are until the transaction ends.
    pub check: String,
    /// The collection under whose name written keys are noted in the outbox, if they are.
    noted: Option<&'static str>,
    /// From what a write takes its epoch.
    fence: String,
}

/// What holds the writes of a store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Terms {
    /// The epoch at which PostgreSQL's fence must be open; nothing where it does not matter.
    pub epoch: Option<i32>,
    /// Whether each write notes its keys in the outbox.
    pub is_noted: bool,
}

/// From what a write takes its epoch, whether or not the fence is open.
const FENCE: &str = "bridge.fence f";

impl Statements {
    /// The statements of `entity`, held to `terms`.
    pub fn new(entity: &'static Entity, terms: Terms) -> Self {
        let fence = terms.epoch.map_or_else(|| FENCE.to_owned(), |epoch| format!("bridge.enter({epoch}) f"));
        let (ctes, last) = deletion(entity.name);
        let delete = if terms.is_noted {
            noted(entity.name, &format!("{ctes}, "), &last)
        } else {
            format!("with {ctes} {last}")
        };
        let mapping = Mapping::new(entity);
        let columns = mapping.columns().collect::<Vec<_>>().join(", ");
        let get = |condition: &str| format!("select {columns} from scheduler.{} where {condition}", entity.name);
        Self {
            get: get("id = $1"),
            get_many: get("id = any($1)"),
            delete: delete.replace(FENCE, &fence),
            check: check(entity.name),
            noted: terms.is_noted.then_some(entity.name),
            fence,
            columns,
        }
    }

    /// `statement`, which puts rows, as these statements do it.
    pub fn putting(&self, statement: &str) -> String {
        let statement = statement.replace(FENCE, &self.fence);
        match self.noted {
            Some(name) => noted(name, "", &statement),
            None => statement,
        }
    }
}

/// `statement`, which returns id, epoch and clock of what it writes, with these keys noted in the outbox. What `statement`
/// itself begins with may only read: PostgreSQL takes writing `ctes` at the top level alone.
fn noted(name: &str, ctes: &str, statement: &str) -> String {
    format!(
        "with {ctes}written as ({statement}), noted as (
            insert into bridge.outbox (collection, id) select '{name}', w.id from written w
        )
        select w.id, w.epoch, w.clock from written w"
    )
}

/// The types of a row's columns, without the stamp, in order.
pub fn elements(entity: &Entity) -> impl Iterator<Item = Element> {
    let fields = entity.fields.iter().map(|field| Element::of(field.kind));
    std::iter::once(TEXT).chain(fields).chain([BYTEA])
}

/// Everything but the stamp.
fn names(entity: &'static Entity) -> Vec<&'static str> {
    Mapping::new(entity).columns().filter(|column| *column != "epoch" && *column != "clock").collect()
}

/// One row `u` of a parameter a column.
fn row(types: &[Element], columns: &[&str]) -> String {
    let parameter = |(index, (element, column)): (usize, (&Element, &&str))| {
        format!("${}::{} as {column}", index + 1, element.name)
    };
    let parameters: Vec<String> = types.iter().zip(columns).enumerate().map(parameter).collect();
    format!("(select {}) as u", parameters.join(", "))
}

/// Rows `u` of an array a column, parameter `first` and on.
pub fn rows(first: usize, types: &[Element], columns: &[&str]) -> String {
    let arrays = types.iter().zip(first..).map(|(element, parameter)| format!("${parameter}::{}[]", element.name));
    format!("unnest({}) as u ({})", arrays.collect::<Vec<_>>().join(", "), columns.join(", "))
}

/// Puts a row where there is none: its id and the columns at `set` in [`elements`], a parameter each; the others are null.
///
/// The clock is taken under the collection's lock, shared: a deletion of the same key, which takes it exclusively, has
/// taken its own clock before and is committed, or comes later. Without it, a clock taken before the deletion's could
/// end in the row after it, and the tombstone would bury a live row in the secondary.
pub fn insert_one(entity: &'static Entity, set: &[usize]) -> String {
    let (types, names) = columns(entity, set);
    insert(entity, &names, &row(&types, &names))
}

/// [`insert_one`] for many rows, an array a column. It would do for one, at a third more of PostgreSQL's time.
pub fn insert_many(entity: &'static Entity, set: &[usize]) -> String {
    let (types, names) = columns(entity, set);
    insert(entity, &names, &rows(1, &types, &names))
}

fn insert(entity: &'static Entity, names: &[&str], source: &str) -> String {
    let (name, lock) = (entity.name, lock::of_collection(entity.name));
    let values = names.iter().map(|column| format!("u.{column}")).collect::<Vec<_>>().join(", ");
    format!(
        "with locked as materialized (select pg_advisory_xact_lock_shared({lock}))
        insert into scheduler.{name} ({}, epoch, clock)
        select {values}, f.epoch, nextval('bridge.clock')
        from locked, {FENCE}, {source}
        returning id, epoch, clock",
        names.join(", ")
    )
}

/// Puts one row in the place of another: its id, the columns at `set` in [`elements`], the epoch and the clock that it must
/// have. It waits for whoever holds the row, and PostgreSQL evaluates guard and clock again on the version that it gets
/// then.
pub fn update_one(entity: &'static Entity, set: &[usize]) -> String {
    let (types, names) = guarded(entity, set);
    update(entity, &names, &row(&types, &names), &format!("t.id = u.id and {GUARD}"))
}

/// [`update_one`] for many rows, an array a column. They are locked first, in order, and their clocks are taken under the
/// locks.
pub fn update_many(entity: &'static Entity, set: &[usize]) -> String {
    let (types, names) = guarded(entity, set);
    let held = held(entity.name, &types, &names, "update");
    format!("with {held} {}", update(entity, &names, "held u", "t.ctid = u.place"))
}

/// Types and names of the id and of the columns at `set`.
fn columns(entity: &'static Entity, set: &[usize]) -> (Vec<Element>, Vec<&'static str>) {
    let (types, names): (Vec<Element>, _) = (elements(entity).collect(), names(entity));
    let columns = || std::iter::once(0).chain(set.iter().copied());
    (columns().map(|column| types[column]).collect(), columns().map(|column| names[column]).collect())
}

/// The same, and the stamp that the row must have.
fn guarded(entity: &'static Entity, set: &[usize]) -> (Vec<Element>, Vec<&'static str>) {
    let (mut types, mut names) = columns(entity, set);
    types.extend([INT4, INT8]);
    names.extend(["was_epoch", "was_clock"]);
    (types, names)
}

fn update(entity: &'static Entity, names: &[&str], source: &str, condition: &str) -> String {
    let changed = &names[1..names.len() - 2];
    let set: String = changed.iter().map(|column| format!("{column} = u.{column}, ")).collect();
    format!(
        "update scheduler.{} t
        set {set}epoch = f.epoch, clock = nextval('bridge.clock')
        from {source}, {FENCE}
        where {condition}
        returning t.id, t.epoch, t.clock",
        entity.name
    )
}

/// What a row must still be.
const GUARD: &str = "t.epoch = u.was_epoch and t.clock = u.was_clock";

/// The rows of the arrays whose guards hold, `for` update or share, locked one after the other in the order of the
/// arrays, which is that of the ids. A statement that locked them in the order of its plan would wait for another one,
/// planned otherwise, that waits for it. The subquery that locks cannot be planned as anything but one look by id for
/// each row; and a locked row keeps its place.
fn held(name: &str, types: &[Element], columns: &[&str], lock: &str) -> String {
    format!(
        "u as materialized (select * from {}),
        held as materialized (
            select u.*, t.place, t.epoch, t.clock
            from u cross join lateral (
                select t.ctid as place, t.epoch, t.clock from scheduler.{name} t where t.id = u.id and {GUARD} for {lock}
            ) t
        )",
        rows(1, types, columns)
    )
}

/// The rows of ids with the stamps that they must have.
fn held_by_id(name: &str, lock: &str) -> String {
    held(name, &[TEXT, INT4, INT8], &["id", "was_epoch", "was_clock"], lock)
}

/// The queries of a deletion, and the statement that leaves the tombstones.
fn deletion(name: &str) -> (String, String) {
    let (lock, held) = (lock::of_collection(name), held_by_id(name, "update"));
    let ctes = format!(
        "locked as materialized (select pg_advisory_xact_lock({lock})), {held},
        gone as (
            delete from scheduler.{name} t using locked, held where t.ctid = held.place returning t.id
        )"
    );
    let last = format!(
        "insert into bridge.tombstone (collection, id, epoch, clock)
        select '{name}', gone.id, f.epoch, nextval('bridge.clock') from gone, {FENCE}
        on conflict (collection, id) do update set epoch = excluded.epoch, clock = excluded.clock
        returning id, epoch, clock"
    );
    (ctes, last)
}

fn check(name: &str) -> String {
    format!("with {} select id, epoch, clock from held", held_by_id(name, "share"))
}
