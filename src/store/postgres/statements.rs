//! The SQL of one entity as the scheduler's store, built from its field table. Names come from that table alone, never
//! from data.

use super::arrays::{BYTEA, Element, INT4, INT8, TEXT};
use crate::entity::Entity;
use crate::layout::Layout;
use crate::lock;
use crate::mapping::Mapping;

/// The statements of one entity.
#[derive(Debug)]
pub struct Statements {
    entity: &'static Entity,
    terms: Terms,
    /// The columns of a document and its stamp.
    pub columns: String,
    /// What stands under the id `$1`.
    pub get: String,
    /// What stands under the ids `$1`.
    pub get_many: String,
    /// Deletes rows `$1` with epochs `$2` and clocks `$3`, leaving tombstones while the move lasts.
    pub delete: String,
    /// Holds rows `$1` with epochs `$2` and clocks `$3` as they are until the transaction ends.
    pub check: String,
}

/// What the writes of a store are held to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Terms {
    /// While the move lasts: each write gives its row a stamp.
    Moving {
        /// The epoch at which PostgreSQL's fence must be open; nothing where it does not matter.
        epoch: Option<i32>,
        /// Whether each write notes its keys in the outbox.
        is_noted: bool,
    },
    /// When it is over. In the place of the clock stands the transaction that wrote the row, which PostgreSQL keeps with
    /// every row: another writer's is another one.
    Final,
}

impl Terms {
    /// The tables that they are for.
    pub fn layout(self) -> Layout {
        match self {
            Self::Moving { .. } => Layout::Moving,
            Self::Final => Layout::Final,
        }
    }

    /// Epoch and clock of a row `t`.
    fn stamp(self) -> [&'static str; 2] {
        match self {
            Self::Moving { .. } => ["t.epoch", "t.clock"],
            Self::Final => ["0", "t.xmin::text::int8"],
        }
    }

    /// What a write returns of its row `t`.
    fn returning(self) -> String {
        let [epoch, clock] = self.stamp();
        format!("returning t.id, {epoch} as epoch, {clock} as clock")
    }
}

impl Statements {
    /// The statements of `entity`, held to `terms`.
    pub fn new(entity: &'static Entity, terms: Terms) -> Self {
        let columns = columns(entity, terms);
        let get = |condition: &str| format!("select {columns} from scheduler.{} t where {condition}", entity.name);
        let mut statements = Self {
            entity,
            terms,
            get: get("id = $1"),
            get_many: get("id = any($1)"),
            delete: String::new(),
            check: String::new(),
            columns,
        };
        statements.delete = statements.deletion();
        statements.check = format!("with {} select id, epoch, clock from held", statements.held_by_id("share"));
        statements
    }

    /// Puts a row where there is none: its id and the columns at `set` in [`elements`], a parameter each; the others are null.
    pub fn insert_one(&self, set: &[usize]) -> String {
        let (types, names) = self.set(set);
        self.insert(&names, &row(&types, &names))
    }

    /// [`Self::insert_one`] for many rows, an array a column. It would do for one, at a third more of PostgreSQL's time.
    pub fn insert_many(&self, set: &[usize]) -> String {
        let (types, names) = self.set(set);
        self.insert(&names, &rows(1, &types, &names))
    }

    /// The clock is taken under the collection's lock, shared: a deletion of the same key, which takes it exclusively, has
    /// taken its own clock before and is committed, or comes later. Without it, a clock taken before the deletion's could
    /// end in the row after it, and the tombstone would bury a live row in the secondary.
    fn insert(&self, names: &[&str], source: &str) -> String {
        let (name, returning) = (self.entity.name, self.terms.returning());
        let (columns, values) = (names.join(", "), prefixed("u.", names));
        match self.terms {
            Terms::Moving { .. } => self.noted(
                "",
                &format!(
                    "with locked as materialized (select pg_advisory_xact_lock_shared({}))
                    insert into scheduler.{name} as t ({columns}, epoch, clock)
                    select {values}, f.epoch, nextval('bridge.clock')
                    from locked, {}, {source}
                    {returning}",
                    lock::of_collection(name),
                    self.fence(),
                ),
            ),
            Terms::Final => {
                format!("insert into scheduler.{name} as t ({columns}) select {values} from {source} {returning}")
            }
        }
    }

    /// Puts one row in the place of another: its id, the columns at `set` in [`elements`], the epoch and the clock that it
    /// must have. It waits for whoever holds the row, and PostgreSQL evaluates guard and clock again on the version that it
    /// gets then.
    pub fn update_one(&self, set: &[usize]) -> String {
        let (types, names) = self.guarded(set);
        self.update("", &names, &row(&types, &names), &format!("t.id = u.id and {}", self.guard()))
    }

    /// [`Self::update_one`] for many rows, an array a column. They are locked first, in order, and their clocks are taken
    /// under the locks.
    pub fn update_many(&self, set: &[usize]) -> String {
        let (types, names) = self.guarded(set);
        // The ids stay: rows that refer to these need not wait.
        let held = self.held(&types, &names, "no key update");
        self.update(&format!("with {held} "), &names, "held u", "t.ctid = u.place")
    }

    fn update(&self, ctes: &str, names: &[&str], source: &str, condition: &str) -> String {
        let (name, returning) = (self.entity.name, self.terms.returning());
        let changed = names[1..names.len() - 2].iter().map(|column| format!("{column} = u.{column}"));
        let mut set: Vec<String> = changed.collect();
        match self.terms {
            Terms::Moving { .. } => {
                set.extend(["epoch = f.epoch".to_owned(), "clock = nextval('bridge.clock')".to_owned()]);
                let (set, fence) = (set.join(", "), self.fence());
                self.noted(
                    "",
                    &format!(
                        "{ctes}update scheduler.{name} t set {set} from {source}, {fence} where {condition} {returning}"
                    ),
                )
            }
            Terms::Final => {
                // A write that changes nothing is one all the same: others find that somebody was there.
                if set.is_empty() {
                    set.extend(self.entity.fields.first().map(|field| format!("{0} = t.{0}", field.column)));
                }
                let set = set.join(", ");
                format!("{ctes}update scheduler.{name} t set {set} from {source} where {condition} {returning}")
            }
        }
    }

    /// The rows of the arrays whose guards hold, locked one after the other in the order of the arrays, which is that of the
    /// ids. A statement that locked them in the order of its plan would wait for another one, planned otherwise, that waits
    /// for it. The subquery that locks cannot be planned as anything but one look by id for each row; and a locked row keeps
    /// its place.
    fn held(&self, types: &[Element], columns: &[&str], lock: &str) -> String {
        let ([epoch, clock], guard) = (self.terms.stamp(), self.guard());
        format!(
            "u as materialized (select * from {}),
            held as materialized (
                select u.*, t.place, t.epoch, t.clock
                from u cross join lateral (
                    select t.ctid as place, {epoch} as epoch, {clock} as clock
                    from scheduler.{} t where t.id = u.id and {guard} for {lock}
                ) t
            )",
            rows(1, types, columns),
            self.entity.name
        )
    }

    /// The rows of ids with the stamps that they must have.
    fn held_by_id(&self, lock: &str) -> String {
        self.held(&[TEXT, INT4, INT8], &["id", "was_epoch", "was_clock"], lock)
    }

    fn deletion(&self) -> String {
        let (name, held) = (self.entity.name, self.held_by_id("update"));
        match self.terms {
            Terms::Moving { .. } => {
                let lock = lock::of_collection(name);
                let ctes = format!(
                    "locked as materialized (select pg_advisory_xact_lock({lock})), {held},
                    gone as (
                        delete from scheduler.{name} t using locked, held where t.ctid = held.place returning t.id
                    )"
                );
                let last = format!(
                    "insert into bridge.tombstone (collection, id, epoch, clock)
                    select '{name}', gone.id, f.epoch, nextval('bridge.clock') from gone, {}
                    on conflict (collection, id) do update set epoch = excluded.epoch, clock = excluded.clock
                    returning id, epoch, clock",
                    self.fence()
                );
                self.noted(&ctes, &last)
            }
            Terms::Final => {
                let returning = self.terms.returning();
                format!("with {held} delete from scheduler.{name} t using held where t.ctid = held.place {returning}")
            }
        }
    }

    /// `statement` after `ctes`, which returns id, epoch and clock of what it writes, with these keys noted in the outbox if
    /// they are to be. What `statement` itself begins with may only read: PostgreSQL takes writing `ctes` at the top level
    /// alone.
    fn noted(&self, ctes: &str, statement: &str) -> String {
        match (self.terms, ctes) {
            (Terms::Moving { is_noted: true, .. }, _) => {
                let comma = if ctes.is_empty() { "" } else { ", " };
                format!(
                    "with {ctes}{comma}written as ({statement}), noted as (
                        insert into bridge.outbox (collection, id) select '{}', w.id from written w
                    )
                    select w.id, w.epoch, w.clock from written w",
                    self.entity.name
                )
            }
            (_, "") => statement.to_owned(),
            _ => format!("with {ctes} {statement}"),
        }
    }

    /// From what a write takes its epoch.
    fn fence(&self) -> String {
        match self.terms {
            Terms::Moving { epoch: Some(epoch), .. } => format!("bridge.enter({epoch}) f"),
            // Whether or not the fence is open.
            _ => "bridge.fence f".to_owned(),
        }
    }

    /// What a row must still be.
    fn guard(&self) -> String {
        let [epoch, clock] = self.terms.stamp();
        format!("{epoch} = u.was_epoch and {clock} = u.was_clock")
    }

    /// Types and names of the id and of the columns at `set`.
    fn set(&self, set: &[usize]) -> (Vec<Element>, Vec<&'static str>) {
        let (types, names): (Vec<Element>, _) = (elements(self.entity).collect(), names(self.entity));
        let columns = || std::iter::once(0).chain(set.iter().copied());
        (columns().map(|column| types[column]).collect(), columns().map(|column| names[column]).collect())
    }

    /// The same, and the stamp that the row must have.
    fn guarded(&self, set: &[usize]) -> (Vec<Element>, Vec<&'static str>) {
        let (mut types, mut names) = self.set(set);
        types.extend([INT4, INT8]);
        names.extend(["was_epoch", "was_clock"]);
        (types, names)
    }
}

/// The columns of a document and its stamp in a row `t`, as [`Mapping::columns`] has them.
fn columns(entity: &'static Entity, terms: Terms) -> String {
    let column = |column: &'static str| match (terms, column) {
        (Terms::Final, "residue") => "null::bytea",
        (_, "epoch") => terms.stamp()[0],
        (_, "clock") => terms.stamp()[1],
        _ => column,
    };
    Mapping::new(entity).columns().map(column).collect::<Vec<_>>().join(", ")
}

fn prefixed(prefix: &str, names: &[&str]) -> String {
    names.iter().map(|name| format!("{prefix}{name}")).collect::<Vec<_>>().join(", ")
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
