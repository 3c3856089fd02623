//! Changes as PostgreSQL writes.

use std::collections::HashMap;

use sqlx::postgres::{PgArguments, PgConnection, PgDatabaseError, PgRow};
use sqlx::query::Query as Statement;
use sqlx::{AssertSqlSafe, Connection, Postgres, Row};

use super::group::{Group, Operation, groups};
use super::{PostgresStore, refused};
use crate::entity::Entity;
use crate::mapping::Key;
use crate::stamp::Stamp;
use crate::store::{Address, After, Change, StoreError, attempted, check};

/// The stamps of keys that were written.
type Stamps = HashMap<(&'static str, String), Stamp>;

/// Why a transaction was given up.
enum Stop<'a> {
    /// An insertion found one of its keys taken.
    Taken(&'a Group),
    /// A guard does not hold.
    Missed(&'a Address),
    /// The driver's answer.
    Driver(sqlx::Error),
}

impl From<sqlx::Error> for Stop<'_> {
    fn from(error: sqlx::Error) -> Self {
        Self::Driver(error)
    }
}

impl PostgresStore {
    pub(super) async fn write(&self, changes: &[Change]) -> Result<Vec<After>, StoreError> {
        check(changes)?;
        let groups = groups(changes, self.terms.layout())?;
        // One statement is a transaction of its own, as long as it can only do all or nothing.
        let stamps = match groups.as_slice() {
            [] => Stamps::new(),
            [only] if only.indices.len() == 1 || only.operation == Operation::Insert => {
                self.alone(only, changes).await?
            }
            several => self.together(several, changes).await?,
        };
        let after = |change: &Change| {
            let conflict = || StoreError::Conflict { address: change.address().clone() };
            after(change, &stamps).ok_or_else(conflict)
        };
        changes.iter().map(after).collect()
    }

    pub(super) async fn write_each(&self, changes: &[Change]) -> Result<Vec<Option<After>>, StoreError> {
        check(changes)?;
        let mut stamps = Stamps::new();
        let layout = self.terms.layout();
        for group in groups(changes, layout)? {
            match self.alone(&group, changes).await {
                Ok(done) => stamps.extend(done),
                Err(StoreError::Conflict { .. }) if group.indices.len() == 1 => {}
                // One key of many is taken: each for itself then.
                Err(StoreError::Conflict { .. }) => {
                    for index in &group.indices {
                        let one = Group::of(changes, layout, (group.operation, group.entity), vec![*index])?;
                        match self.alone(&one, changes).await {
                            Ok(done) => stamps.extend(done),
                            Err(StoreError::Conflict { .. }) => {}
                            Err(error) => return Err(error),
                        }
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(changes.iter().map(|change| after(change, &stamps)).collect())
    }

    /// One statement as a transaction of its own; the stamps of the keys whose guards held.
    async fn alone(&self, group: &Group, changes: &[Change]) -> Result<Stamps, StoreError> {
        let failed = |error| not_written(changes, error);
        let mut session = self.sessions.open().await.map_err(failed)?;
        let done = self.run(group, &mut session).await;
        session.rest(&done);
        match done {
            Err(error) if is_taken(&error) => Err(self.taken(group, changes).await?),
            done => done.map_err(failed),
        }
    }

    /// All statements in one transaction, in which every guard must hold.
    async fn together(&self, groups: &[Group], changes: &[Change]) -> Result<Stamps, StoreError> {
        let failed = |error| not_written(changes, error);
        let mut session = self.sessions.open().await.map_err(failed)?;
        let done = self.transaction(groups, changes, &mut session).await;
        // After a driver's error the session is dropped, and its transaction ends with it.
        if !matches!(done, Err(Stop::Driver(_))) {
            session.rest(&Ok(()));
        }
        match done {
            Ok(stamps) => Ok(stamps),
            Err(Stop::Taken(group)) => Err(self.taken(group, changes).await?),
            Err(Stop::Missed(address)) => Err(StoreError::Conflict { address: address.clone() }),
            Err(Stop::Driver(error)) => Err(failed(error)),
        }
    }

    /// A transaction that is over at the end, but after a driver's error.
    async fn transaction<'a>(
        &self,
        groups: &'a [Group],
        changes: &'a [Change],
        connection: &mut PgConnection,
    ) -> Result<Stamps, Stop<'a>> {
        let mut transaction = connection.begin().await?;
        let mut stamps = Stamps::new();
        for group in groups {
            let stop = match self.run(group, &mut transaction).await {
                Ok(done) => {
                    let missed = missed(group, changes, &done);
                    stamps.extend(done);
                    missed.map(Stop::Missed)
                }
                Err(error) if is_taken(&error) => Some(Stop::Taken(group)),
                Err(error) => return Err(error.into()),
            };
            if let Some(stop) = stop {
                transaction.rollback().await?;
                return Err(stop);
            }
        }
        transaction.commit().await?;
        Ok(stamps)
    }

    /// Runs one statement; the stamps of the keys whose guards held.
    async fn run(&self, group: &Group, connection: &mut PgConnection) -> sqlx::Result<Stamps> {
        let is_one = group.indices.len() == 1;
        let known = self.statements(group.entity);
        let (sql, is_by_value) = match group.operation {
            Operation::Insert if is_one => (known.insert_one(&group.set), true),
            Operation::Insert => (known.insert_many(&group.set), false),
            Operation::Update if is_one => (known.update_one(&group.set), true),
            Operation::Update => (known.update_many(&group.set), false),
            Operation::Delete => (known.delete.clone(), false),
            Operation::Check => (known.check.clone(), false),
        };
        let mut statement: Statement<'_, Postgres, PgArguments> = sqlx::query(AssertSqlSafe(sql));
        for array in &group.arrays {
            statement = if is_by_value { statement.bind(array.scalar()) } else { statement.bind(array) };
        }
        let rows = statement.fetch_all(connection).await?;
        rows.iter().map(|row| stamped(group.entity, row)).collect()
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

fn stamped(entity: &'static Entity, row: &PgRow) -> sqlx::Result<((&'static str, String), Stamp)> {
    let stamp = Stamp { epoch: row.try_get(1)?, clock: row.try_get(2)? };
    Ok(((entity.name, row.try_get(0)?), stamp))
}

/// The first key of the group whose guard did not hold.
fn missed<'a>(group: &Group, changes: &'a [Change], done: &Stamps) -> Option<&'a Address> {
    let mut addresses = group.indices.iter().map(|index| changes[*index].address());
    addresses.find(|address| !done.contains_key(&(address.entity.name, address.key.text().to_owned())))
}

/// What is there after the change, if its key has a stamp.
fn after(change: &Change, stamps: &Stamps) -> Option<After> {
    let address = change.address().clone();
    let stamp = stamps.get(&(address.entity.name, address.key.text().to_owned())).copied()?;
    Some(change.after(address, Some(stamp)))
}

/// What it means that `changes` were not written. A row that refers to what is not there (`foreign_key_violation`, once the
/// move is over) is the caller's mistake.
fn not_written(changes: &[Change], error: sqlx::Error) -> StoreError {
    let answer = error.as_database_error().filter(|answer| answer.code().as_deref() == Some("23503"));
    match (answer, changes.first()) {
        (Some(answer), Some(first)) => {
            let detail = answer.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::detail);
            let reason = detail.unwrap_or(answer.message()).to_owned();
            StoreError::Refused { address: first.address().clone(), reason }
        }
        _ => refused(attempted(changes), error),
    }
}

/// Whether an insertion found its key taken: `unique_violation`.
fn is_taken(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("23505"))
}
