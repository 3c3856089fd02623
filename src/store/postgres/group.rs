//! Changes as few statements, each of which takes any number of rows.

use bson::RawDocumentBuf;

use super::arrays::{Array, Element, INT4, INT8, TEXT};
use super::statements;
use crate::entity::{ENTITIES, Entity};
use crate::layout::Layout;
use crate::mapping::{Mapping, tuple};
use crate::stamp::Stamp;
use crate::store::{Address, Change, Guard, StoreError, Stored};

/// What a statement does. In this order within a transaction: a deletion takes the lock of its collection exclusively,
/// and who holds it shared by then waits for another that does the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Deletes rows.
    Delete,
    /// Puts rows where there are none.
    Insert,
    /// Puts rows in the place of others.
    Update,
    /// Holds rows as they are.
    Check,
}

/// Changes that one statement makes.
#[derive(Debug)]
pub struct Group {
    /// What it does.
    pub operation: Operation,
    /// To what.
    pub entity: &'static Entity,
    /// Which of the changes, in the order of their keys.
    pub indices: Vec<usize>,
    /// The columns that the statement sets beside the id, by their place in the row.
    pub set: Vec<usize>,
    /// The statement's parameters.
    pub arrays: Vec<Array>,
}

impl Group {
    /// The statement of those of `changes` that are at `indices`, which all do `operation` to `entity`.
    pub fn of(
        changes: &[Change],
        layout: Layout,
        (operation, entity): (Operation, &'static Entity),
        indices: Vec<usize>,
    ) -> Result<Self, StoreError> {
        let mut group = Self { operation, entity, indices, set: Vec::new(), arrays: Vec::new() };
        match operation {
            Operation::Insert => group.push_new(changes, layout)?,
            Operation::Update => group.push_changed(changes, layout)?,
            Operation::Delete | Operation::Check => {
                let keys = group.changes(changes).map(|change| change.address().key.text());
                let mut ids = Array::new(TEXT);
                keys.for_each(|key| ids.push(Some(key.as_bytes())));
                group.arrays = vec![ids];
                group.push_guards(changes);
            }
        }
        Ok(group)
    }

    fn changes<'a>(&'a self, changes: &'a [Change]) -> impl Iterator<Item = &'a Change> {
        self.indices.iter().map(|index| &changes[*index])
    }

    /// Only what is not null: most rows lack what few have.
    fn push_new(&mut self, changes: &[Change], layout: Layout) -> Result<(), StoreError> {
        let mut rows = Vec::with_capacity(self.indices.len());
        let mut filled = vec![false; self.entity.fields.len() + 2];
        for change in self.changes(changes) {
            if let Change::Put { address, document, .. } = change {
                let row = encoded(address, document, layout)?;
                note(&row, &mut filled, |_, value| value.is_some());
                rows.push(row);
            }
        }
        self.push_rows(&rows, &filled);
        Ok(())
    }

    /// Only what differs from the documents that are replaced: the guard says that these are what the rows are made of.
    fn push_changed(&mut self, changes: &[Change], layout: Layout) -> Result<(), StoreError> {
        let mut rows = Vec::with_capacity(self.indices.len());
        let mut differs = vec![false; self.entity.fields.len() + 2];
        for change in self.changes(changes) {
            if let Change::Put { address, document, guard: Guard::Unchanged(held) } = change {
                let before = encoded(address, &held.document, layout).unwrap_or_default();
                let row = encoded(address, document, layout)?;
                // What was no row differs in all.
                let before = tuple::columns(&before).unwrap_or_default();
                note(&row, &mut differs, |column, value| before.get(column) != Some(value));
                rows.push(row);
            }
        }
        self.push_rows(&rows, &differs);
        self.push_guards(changes);
        Ok(())
    }

    /// The ids of `rows`, and those of their columns that are `set` in one of them.
    fn push_rows(&mut self, rows: &[Vec<u8>], set: &[bool]) {
        let elements: Vec<Element> = statements::elements(self.entity).collect();
        self.set = (1..elements.len()).filter(|column| set[*column]).collect();
        let columns = || std::iter::once(0).chain(self.set.iter().copied());
        let mut arrays: Vec<Array> = columns().map(|column| Array::new(elements[column])).collect();
        for row in rows {
            // A row that was just encoded is one whole tuple.
            let row = tuple::columns(row).unwrap_or_default();
            columns().zip(&mut arrays).for_each(|(column, array)| array.push(row.get(column).copied().flatten()));
        }
        self.arrays = arrays;
    }

    /// The stamps that the rows must have.
    fn push_guards(&mut self, changes: &[Change]) {
        let (mut epochs, mut clocks) = (Array::new(INT4), Array::new(INT8));
        for held in self.changes(changes).filter_map(held) {
            // What another store gave out has no stamp of this one, and is not what stands here.
            let stamp = held.stamp.unwrap_or(Stamp { epoch: -1, clock: -1 });
            epochs.push(Some(&stamp.epoch.to_be_bytes()));
            clocks.push(Some(&stamp.clock.to_be_bytes()));
        }
        self.arrays.extend([epochs, clocks]);
    }
}

/// The changes as few statements, each with its keys in order, so that two transactions lock rows in the same order.
pub fn groups(changes: &[Change], layout: Layout) -> Result<Vec<Group>, StoreError> {
    let place = |entity: &Entity| ENTITIES.iter().position(|other| *other == entity);
    let mut order: Vec<_> = changes.iter().enumerate().collect();
    order.sort_by_cached_key(|(_, change)| {
        let Address { entity, key } = change.address();
        (place(entity), operation(change), key)
    });
    let same = |one: &(usize, &Change), other: &(usize, &Change)| {
        one.1.address().entity == other.1.address().entity && operation(one.1) == operation(other.1)
    };
    let group = |chunk: &[(usize, &Change)]| {
        let (_, first) = chunk[0];
        let indices = chunk.iter().map(|(index, _)| *index).collect();
        Group::of(changes, layout, (operation(first), first.address().entity), indices)
    };
    order.chunk_by(same).map(group).collect()
}

fn operation(change: &Change) -> Operation {
    match change {
        Change::Put { guard: Guard::Absent, .. } => Operation::Insert,
        Change::Put { guard: Guard::Unchanged(_), .. } => Operation::Update,
        Change::Delete { .. } => Operation::Delete,
        Change::Check { .. } => Operation::Check,
    }
}

/// What the store must hold for the change to happen.
fn held(change: &Change) -> Option<&Stored> {
    match change {
        Change::Put { guard: Guard::Absent, .. } => None,
        Change::Put { guard: Guard::Unchanged(held), .. } => Some(held),
        Change::Delete { unchanged, .. } | Change::Check { unchanged, .. } => Some(unchanged),
    }
}

/// The tuple of the row of `document`. What its columns cannot reproduce is refused once there is no residue to keep it.
fn encoded(address: &Address, document: &RawDocumentBuf, layout: Layout) -> Result<Vec<u8>, StoreError> {
    let mut row = Vec::new();
    let none = Stamp { epoch: 0, clock: 0 };
    let encoded = Mapping::new(address.entity).encode(document, none, &mut row);
    let refused = |reason| StoreError::Refused { address: address.clone(), reason };
    let encoded = encoded.map_err(|refusal| refused(refusal.reason))?;
    match encoded.irregular.first() {
        Some(field) if layout == Layout::Final => Err(refused(format!("no column holds its {field} exactly"))),
        _ => Ok(row),
    }
}

/// Notes in `set` for which columns of `row` `is_set` holds.
fn note(row: &[u8], set: &mut [bool], is_set: impl Fn(usize, &Option<&[u8]>) -> bool) {
    let row = tuple::columns(row).unwrap_or_default();
    set.iter_mut().enumerate().zip(&row).for_each(|((column, set), value)| *set |= is_set(column, value));
}
