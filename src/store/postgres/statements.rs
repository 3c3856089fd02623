//! The SQL of one entity as the scheduler's store, built from its field table. Names come from that table alone, never
//! from data.

use super::arrays::{BYTEA, Element, INT4, INT8, TEXT};
use crate::entity::Entity;
use crate::lock;
use crate::mapping::Mapping;

/// The statements of one entity.
#[derive(Debug)]
pub struct Statements {
    /// The columns of a document and its stamp.
    pub columns: String,
    /// What stands under the id `$1`.
    pub get: String,
    /// What stands under the ids `$1`.
    pub get_many: String,
    /// Puts rows where there are none: one array a column, without the stamp.
    pub insert: Rows,
    /// Puts rows in the place of others: as for `insert`, then the epochs and clocks that these must have.
    pub update: Rows,
    /// Deletes rows `$1` with epochs `$2` and clocks `$3`, leaving tombstones.
    pub delete: String,
    /// Holds rows `$1` with epochs `$2` and clocks `$3` as they are until the transaction ends.
    pub check: String,
}

/// A statement for one row, with a parameter a column, and for many, with an array a column. The one for many would do for
/// one, at a third more of PostgreSQL's time.
#[derive(Debug)]
pub struct Rows {
    /// For one row.
    pub one: String,
    /// For any number.
    pub many: String,
}

impl Statements {
    /// The statements of `entity`.
    pub fn new(entity: &'static Entity) -> Self {
        let mapping = Mapping::new(entity);
        let columns = mapping.columns().collect::<Vec<_>>().join(", ");
        let get = |condition: &str| format!("select {columns} from scheduler.{} where {condition}", entity.name);
        Self {
            get: get("id = $1"),
            get_many: get("id = any($1)"),
            insert: insert(entity, &columns),
            update: update(entity),
            delete: delete(entity.name),
            check: check(entity.name),
            columns,
        }
    }

    /// The same, each of which also notes the keys that it writes in the outbox.
    pub fn mirrored(entity: &'static Entity) -> Self {
        let plain = Self::new(entity);
        let note =
            |rows: Rows| Rows { one: noted(entity.name, "", &rows.one), many: noted(entity.name, "", &rows.many) };
        let (ctes, last) = deletion(entity.name);
        let delete = noted(entity.name, &format!("{ctes}, "), &last);
        Self { insert: note(plain.insert), update: note(plain.update), delete, ..plain }
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

/// The types of the arrays that `insert` takes, in order.
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

/// Rows `u` of an array a column.
fn rows(types: &[Element], columns: &[&str]) -> String {
    let arrays = types.iter().enumerate().map(|(index, element)| format!("${}::{}[]", index + 1, element.name));
    format!("unnest({}) as u ({})", arrays.collect::<Vec<_>>().join(", "), columns.join(", "))
}

/// The clock is taken under the collection's lock, shared: a deletion of the same key, which takes it exclusively, has
/// taken its own clock before and is committed, or comes later. Without it, a clock taken before the deletion's could
/// end in the row after it, and the tombstone would bury a live row in the secondary.
fn insert(entity: &'static Entity, columns: &str) -> Rows {
    let (name, lock) = (entity.name, lock::of_collection(entity.name));
    let names = names(entity);
    let values = names.iter().map(|column| format!("u.{column}")).collect::<Vec<_>>().join(", ");
    let types: Vec<Element> = elements(entity).collect();
    let insert = |source: &str| {
        format!(
            "with locked as materialized (select pg_advisory_xact_lock_shared({lock}))
            insert into scheduler.{name} ({columns})
            select {values}, f.epoch, nextval('bridge.clock')
            from locked, bridge.fence f, {source}
            returning id, epoch, clock"
        )
    };
    Rows { one: insert(&row(&types, &names)), many: insert(&rows(&types, &names)) }
}

/// One row waits for whoever holds it, and PostgreSQL evaluates guard and clock again on the version that it gets then.
/// Many are locked first, in order, and their clocks are taken under the locks.
fn update(entity: &'static Entity) -> Rows {
    let mut names = names(entity);
    let others = names.iter().filter(|column| **column != "id");
    let set = others.map(|column| format!("{column} = u.{column}")).collect::<Vec<_>>().join(", ");
    names.extend(["was_epoch", "was_clock"]);
    let types: Vec<Element> = elements(entity).chain([INT4, INT8]).collect();
    let name = entity.name;
    let update = |source: &str, condition: &str| {
        format!(
            "update scheduler.{name} t
            set {set}, epoch = f.epoch, clock = nextval('bridge.clock')
            from {source}, bridge.fence f
            where {condition}
            returning t.id, t.epoch, t.clock"
        )
    };
    let held = held(name, &types, &names, "update");
    Rows {
        one: update(&row(&types, &names), &format!("t.id = u.id and {GUARD}")),
        many: format!("with {held} {}", update("held u", "t.ctid = u.place")),
    }
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
        rows(types, columns)
    )
}

/// The rows of ids with the stamps that they must have.
fn held_by_id(name: &str, lock: &str) -> String {
    held(name, &[TEXT, INT4, INT8], &["id", "was_epoch", "was_clock"], lock)
}

fn delete(name: &str) -> String {
    let (ctes, last) = deletion(name);
    format!("with {ctes} {last}")
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
        select '{name}', gone.id, f.epoch, nextval('bridge.clock') from gone, bridge.fence f
        on conflict (collection, id) do update set epoch = excluded.epoch, clock = excluded.clock
        returning id, epoch, clock"
    );
    (ctes, last)
}

fn check(name: &str) -> String {
    format!("with {} select id, epoch, clock from held", held_by_id(name, "share"))
}
