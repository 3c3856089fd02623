//! PostgreSQL as the scheduler's store.
//!
//! Invariants: a row's stamp rises with every write of the row, since the clock is taken while the row is locked; a
//! deletion leaves a tombstone with a stamp of its own. A single change is one statement and one round trip; several
//! are one transaction.

pub(crate) mod arrays;
mod find;
pub mod rows;
pub(crate) mod statements;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bson::RawDocumentBuf;
use chrono::{DateTime, SubsecRound, Utc};
use sqlx::postgres::{PgArguments, PgConnection, PgPool};
use sqlx::query::Query as Statement;
use sqlx::{AssertSqlSafe, Postgres, Row};

use self::arrays::{Array, INT4, INT8, TEXT};
use self::statements::Statements;
use super::{Address, After, Change, Guard, Page, Query, Store, StoreError, Stored, attempted, bounded};
use crate::entity::{ENTITIES, Entity};
use crate::mapping::{Key, Mapping, tuple};
use crate::stamp::Stamp;
use crate::target;

/// The scheduler's tables.
#[derive(Debug, Clone)]
pub struct PostgresStore {
    pool: PgPool,
    statements: Arc<HashMap<&'static str, Statements>>,
}

impl PostgresStore {
    /// The tables that `pool` leads to; the schema must be there.
    pub fn new(pool: PgPool) -> Self {
        Self::with(pool, Statements::new)
    }

    /// The same while MongoDB follows (phase `postgres-primary`): each write notes its keys in the outbox, in its own
    /// transaction, and the mirror brings MongoDB level from there.
    pub fn mirrored(pool: PgPool) -> Self {
        Self::with(pool, Statements::mirrored)
    }

    fn with(pool: PgPool, of: impl Fn(&'static Entity) -> Statements) -> Self {
        let statements = ENTITIES.iter().map(|entity| (entity.name, of(entity))).collect();
        Self { pool, statements: Arc::new(statements) }
    }

    /// The statement of `query` without its values, to `prepare` and `explain` it.
    pub fn plan(&self, query: &Query) -> Result<String, StoreError> {
        Ok(find::statement("", query, &self.statements(query.entity).columns)?.sql().as_str().to_owned())
    }

    /// What `explain (analyze, buffers)` says of `query`, line by line.
    pub async fn explain(&self, query: &Query) -> Result<Vec<String>, StoreError> {
        let attempted = || format!("explain a query of {}", query.entity.name);
        let prefix = "explain (analyze, buffers, timing off) ";
        let mut sql = find::statement(prefix, query, &self.statements(query.entity).columns)?;
        let lines =
            async { sql.build_query_scalar().fetch_all(&self.pool).await.map_err(|error| refused(attempted(), error)) };
        bounded(attempted, lines).await
    }

    fn statements(&self, entity: &'static Entity) -> &Statements {
        // Every entity is in the list: a test holds files and list against each other.
        &self.statements[entity.name]
    }

    async fn rows(&self, entity: &'static Entity, keys: &[Key]) -> Result<Vec<(Key, Stored)>, StoreError> {
        let statements = self.statements(entity);
        let mut ids = Array::new(TEXT);
        // No key has a NUL, and PostgreSQL takes none in a text.
        let keys: Vec<&Key> = keys.iter().filter(|key| !key.text().contains('\0')).collect();
        keys.iter().for_each(|key| ids.push(Some(key.text().as_bytes())));
        let query = match keys.as_slice() {
            [] => return Ok(Vec::new()),
            [_] => sqlx::query(AssertSqlSafe(statements.get.as_str())).bind(ids.into_scalar()),
            _ => sqlx::query(AssertSqlSafe(statements.get_many.as_str())).bind(ids),
        };
        let rows =
            query.fetch_all(&self.pool).await.map_err(|error| refused(format!("read {}", entity.name), error))?;
        let mapping = Mapping::new(entity);
        let keyed = |row| rows::stored(mapping, row).map(|stored| (mapping.key(&stored.document), stored));
        rows.iter().map(keyed).collect()
    }

    async fn write(&self, changes: &[Change]) -> Result<Vec<After>, StoreError> {
        super::check(changes)?;
        let groups = groups(changes)?;
        let failed = |error| refused(attempted(changes), error);
        // One statement is a transaction of its own, as long as it can only do all or nothing.
        let stamps = match groups.as_slice() {
            [] => HashMap::new(),
            [only] if only.indices.len() == 1 || only.operation == Operation::Insert => {
                let mut connection = self.pool.acquire().await.map_err(failed)?;
                self.run(only, changes, &mut connection).await?
            }
            several => {
                let mut transaction = self.pool.begin().await.map_err(failed)?;
                let mut stamps = HashMap::new();
                for group in several {
                    let done = self.run(group, changes, &mut transaction).await?;
                    require_all(group, changes, &done)?;
                    stamps.extend(done);
                }
                transaction.commit().await.map_err(failed)?;
                stamps
            }
        };
        let afters = afters(changes, &stamps);
        let missed = || changes.iter().zip(&afters).find(|(_, after)| after.is_none());
        if let Some((change, _)) = missed() {
            return Err(StoreError::Conflict { address: change.address().clone() });
        }
        Ok(afters.into_iter().flatten().collect())
    }

    async fn write_each(&self, changes: &[Change]) -> Result<Vec<Option<After>>, StoreError> {
        super::check(changes)?;
        let mut stamps = HashMap::new();
        for group in groups(changes)? {
            let mut connection = self.pool.acquire().await.map_err(|error| refused(attempted(changes), error))?;
            match self.run(&group, changes, &mut connection).await {
                Ok(done) => stamps.extend(done),
                Err(StoreError::Conflict { .. }) if group.indices.len() == 1 => {}
                // One key of many is taken: each for itself then.
                Err(StoreError::Conflict { .. }) => {
                    for index in &group.indices {
                        let one = Group::of(changes, group.operation, group.entity, vec![*index])?;
                        match self.run(&one, changes, &mut connection).await {
                            Ok(done) => stamps.extend(done),
                            Err(StoreError::Conflict { .. }) => {}
                            Err(error) => return Err(error),
                        }
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(afters(changes, &stamps))
    }

    /// Runs one statement; returns the stamps of the keys whose guards held.
    async fn run(
        &self,
        group: &Group,
        changes: &[Change],
        connection: &mut PgConnection,
    ) -> Result<HashMap<Written, Stamp>, StoreError> {
        let statements = self.statements(group.entity);
        let is_one = group.indices.len() == 1;
        let (sql, is_by_value) = match group.operation {
            Operation::Insert if is_one => (&statements.insert.one, true),
            Operation::Update if is_one => (&statements.update.one, true),
            Operation::Insert => (&statements.insert.many, false),
            Operation::Update => (&statements.update.many, false),
            Operation::Delete => (&statements.delete, false),
            Operation::Check => (&statements.check, false),
        };
        let mut statement: Statement<'_, Postgres, PgArguments> = sqlx::query(AssertSqlSafe(sql.as_str()));
        for array in group.arrays.clone() {
            statement = if is_by_value { statement.bind(array.into_scalar()) } else { statement.bind(array) };
        }
        let rows = match statement.fetch_all(connection).await {
            Ok(rows) => rows,
            Err(error) if is_taken(&error) => return Err(self.taken(group, changes).await?),
            Err(error) => return Err(refused(attempted(changes), error)),
        };
        let stamped = rows.iter().map(|row| {
            let stamp = Stamp { epoch: row.try_get(1)?, clock: row.try_get(2)? };
            Ok(((group.entity.name, row.try_get(0)?), stamp))
        });
        stamped.collect::<sqlx::Result<_>>().map_err(|error| refused(attempted(changes), error))
    }

    /// The conflict of an insertion that found one of its keys taken: PostgreSQL tells which only in words.
    async fn taken(&self, group: &Group, changes: &[Change]) -> Result<StoreError, StoreError> {
        // In the caller's order, so that every store names the same one.
        let mut indices = group.indices.clone();
        indices.sort_unstable();
        let addresses: Vec<&Address> = indices.iter().map(|index| changes[*index].address()).collect();
        let keys: Vec<Key> = addresses.iter().map(|address| address.key.clone()).collect();
        let found = if keys.len() > 1 { self.rows(group.entity, &keys).await? } else { Vec::new() };
        let is_found = |address: &&&Address| found.iter().any(|(key, _)| *key == address.key);
        let address = addresses.iter().find(is_found).or(addresses.first());
        let unknown = || Address::new(group.entity, "");
        Ok(StoreError::Conflict { address: address.map_or_else(unknown, |address| (*address).clone()) })
    }
}

impl Store for PostgresStore {
    async fn get(&self, address: &Address) -> Result<Option<Stored>, StoreError> {
        let attempted = || format!("read {address}");
        let keys = std::slice::from_ref(&address.key);
        let rows = bounded(attempted, self.rows(address.entity, keys)).await?;
        Ok(rows.into_iter().next().map(|(_, stored)| stored))
    }

    async fn get_many(&self, entity: &'static Entity, keys: &[Key]) -> Result<Vec<Option<Stored>>, StoreError> {
        let attempted = || format!("read {} keys of {}", keys.len(), entity.name);
        let rows: HashMap<Key, Stored> = bounded(attempted, self.rows(entity, keys)).await?.into_iter().collect();
        Ok(keys.iter().map(|key| rows.get(key).cloned()).collect())
    }

    async fn find(&self, query: &Query) -> Result<Page, StoreError> {
        if query.is_hopeless() {
            return Ok(Page { items: Vec::new(), next: None });
        }
        let attempted = || format!("read a page of {}", query.entity.name);
        let work = async {
            let mut sql = find::statement("", query, &self.statements(query.entity).columns)?;
            let rows = sql.build().fetch_all(&self.pool).await;
            find::page(query, &rows.map_err(|error| refused(attempted(), error))?)
        };
        bounded(attempted, work).await
    }

    async fn apply(&self, changes: &[Change]) -> Result<Vec<After>, StoreError> {
        bounded(|| attempted(changes), self.write(changes)).await
    }

    async fn apply_each(&self, changes: &[Change]) -> Result<Vec<Option<After>>, StoreError> {
        bounded(|| attempted(changes), self.write_each(changes)).await
    }

    async fn now(&self) -> Result<DateTime<Utc>, StoreError> {
        let attempted = || "ask PostgreSQL for the time".to_owned();
        let now = async {
            let now: DateTime<Utc> = sqlx::query_scalar("select clock_timestamp()")
                .fetch_one(&self.pool)
                .await
                .map_err(|error| refused(attempted(), error))?;
            Ok(now.trunc_subsecs(3))
        };
        bounded(attempted, now).await
    }
}

/// What a statement does. In this order within a transaction: a deletion takes the lock of its collection exclusively,
/// and who holds it shared by then waits for another that does the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Operation {
    Delete,
    Insert,
    Update,
    Check,
}

/// A key that a statement has written.
type Written = (&'static str, String);

/// Changes that one statement makes.
struct Group {
    operation: Operation,
    entity: &'static Entity,
    indices: Vec<usize>,
    arrays: Vec<Array>,
}

impl Group {
    fn of(
        changes: &[Change],
        operation: Operation,
        entity: &'static Entity,
        indices: Vec<usize>,
    ) -> Result<Self, StoreError> {
        let types: Vec<arrays::Element> = match operation {
            Operation::Insert => statements::elements(entity).collect(),
            Operation::Update => statements::elements(entity).chain([INT4, INT8]).collect(),
            Operation::Delete | Operation::Check => vec![TEXT, INT4, INT8],
        };
        let mut arrays: Vec<Array> = types.into_iter().map(Array::new).collect();
        for index in &indices {
            push(&changes[*index], &mut arrays)?;
        }
        Ok(Self { operation, entity, indices, arrays })
    }
}

/// The changes as few statements, each with its keys in order, so that two transactions lock rows in the same order.
fn groups(changes: &[Change]) -> Result<Vec<Group>, StoreError> {
    let place = |entity: &Entity| ENTITIES.iter().position(|other| *other == entity);
    let mut order: Vec<_> = changes.iter().enumerate().collect();
    order.sort_by_key(|(_, change)| {
        let Address { entity, key } = change.address();
        (place(entity), operation(change), key)
    });
    let same = |one: &(usize, &Change), other: &(usize, &Change)| {
        one.1.address().entity == other.1.address().entity && operation(one.1) == operation(other.1)
    };
    let group = |chunk: &[(usize, &Change)]| {
        let (_, first) = chunk[0];
        Group::of(changes, operation(first), first.address().entity, chunk.iter().map(|(index, _)| *index).collect())
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

/// Appends the row of `change` to `arrays`.
fn push(change: &Change, arrays: &mut [Array]) -> Result<(), StoreError> {
    let unchanged = match change {
        Change::Put { address, guard, document } => {
            push_document(address, document, arrays)?;
            match guard {
                Guard::Absent => return Ok(()),
                Guard::Unchanged(stored) => stored,
            }
        }
        Change::Delete { address, unchanged } | Change::Check { address, unchanged } => {
            arrays[0].push(Some(address.key.text().as_bytes()));
            unchanged
        }
    };
    // What another store gave out has no stamp of this one, and is not what stands here.
    let stamp = unchanged.stamp.unwrap_or(Stamp { epoch: -1, clock: -1 });
    if let [.., epoch, clock] = arrays {
        epoch.push(Some(&stamp.epoch.to_be_bytes()));
        clock.push(Some(&stamp.clock.to_be_bytes()));
    }
    Ok(())
}

fn push_document(address: &Address, document: &RawDocumentBuf, arrays: &mut [Array]) -> Result<(), StoreError> {
    let mut held = Vec::new();
    let none = Stamp { epoch: 0, clock: 0 };
    let encoded = Mapping::new(address.entity).encode(document, none, &mut held);
    let refused = |reason| StoreError::Refused { address: address.clone(), reason };
    encoded.map_err(|refusal| refused(refusal.reason))?;
    let columns = tuple::columns(&held).ok_or_else(|| refused("its row is no tuple".to_owned()))?;
    let columns = &columns[..columns.len() - 2];
    arrays.iter_mut().zip(columns).for_each(|(array, column)| array.push(*column));
    Ok(())
}

fn require_all(group: &Group, changes: &[Change], done: &HashMap<Written, Stamp>) -> Result<(), StoreError> {
    let done: HashSet<&str> = done.keys().map(|(_, id)| id.as_str()).collect();
    let addresses = group.indices.iter().map(|index| changes[*index].address());
    match addresses.into_iter().find(|address| !done.contains(address.key.text())) {
        Some(address) => Err(StoreError::Conflict { address: address.clone() }),
        None => Ok(()),
    }
}

/// What is there after the changes whose keys have stamps.
fn afters(changes: &[Change], stamps: &HashMap<Written, Stamp>) -> Vec<Option<After>> {
    let after = |change: &Change| {
        let address = change.address().clone();
        let stamp = stamps.get(&(address.entity.name, address.key.text().to_owned())).copied()?;
        Some(change.after(address, Some(stamp)))
    };
    changes.iter().map(after).collect()
}

/// Whether an insertion found its key taken: `unique_violation`.
fn is_taken(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("23505"))
}

fn refused(attempted: String, error: sqlx::Error) -> StoreError {
    if target::transient(&error) {
        StoreError::Unavailable { attempted, source: Some(error.into()) }
    } else {
        StoreError::Failed { attempted, source: error.into() }
    }
}
