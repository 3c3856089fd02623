//! PostgreSQL as the secondary.

use std::collections::HashMap;

use bson::RawDocumentBuf;
use sqlx::postgres::{PgArguments, PgConnection};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Postgres};

use super::statements::{self, Replaces};
use crate::entity::{ENTITIES, Entity};
use crate::lock;
use crate::mapping::{Key, Mapping, tuple};
use crate::stamp::Stamp;
use crate::store::postgres::arrays::{Array, INT4, INT8, TEXT};

/// A key and what it is to be.
#[derive(Debug, Clone)]
pub struct Item {
    /// Whose key.
    pub entity: &'static Entity,
    /// The key.
    pub key: Key,
    /// The stamp of the write.
    pub stamp: Stamp,
    /// What stands under the key after it.
    pub state: State,
}

/// What a write left under its key.
#[derive(Debug, Clone)]
pub enum State {
    /// A document.
    Document(RawDocumentBuf),
    /// Nothing.
    Gone,
}

/// The writes that bring PostgreSQL level.
#[derive(Debug)]
pub struct Secondary {
    statements: HashMap<&'static str, Statements>,
}

#[derive(Debug)]
struct Statements {
    merge: String,
    delete: String,
    quarantine: String,
}

/// Items of one collection, as the statements take them.
#[derive(Debug)]
struct Collection {
    entity: &'static Entity,
    /// One array a column, if there are rows.
    rows: Vec<Array>,
    /// Ids, epochs, clocks, if anything is gone.
    gone: Vec<Array>,
    refused: Vec<Refused>,
}

/// A document that cannot become a row.
#[derive(Debug)]
struct Refused {
    key: Key,
    document: RawDocumentBuf,
    reason: String,
    stamp: Stamp,
}

/// Items of any collections, ready to be written.
#[derive(Debug)]
pub struct Level {
    collections: Vec<Collection>,
}

impl Level {
    /// Encodes `items`, of which each key may occur once. Documents that cannot become rows are to be quarantined; all of
    /// them are when there is a `refusal`.
    pub fn of(items: &[Item], refusal: Option<&str>) -> Self {
        let place = |entity: &Entity| ENTITIES.iter().position(|other| *other == entity);
        let mut items: Vec<&Item> = items.iter().collect();
        // Everybody locks collections and rows in this order, so that nobody waits for one who waits for him.
        items.sort_unstable_by(|one, other| (place(one.entity), &one.key).cmp(&(place(other.entity), &other.key)));
        let same = |one: &&Item, other: &&Item| one.entity == other.entity;
        Self { collections: items.chunk_by(same).map(|items| Collection::of(items, refusal)).collect() }
    }

    /// The statements that take the locks of the write, in the order in which everybody takes them.
    pub fn locks(&self) -> String {
        self.collections.iter().map(Collection::lock).collect::<Vec<_>>().join("; ")
    }
}

impl Collection {
    fn of(items: &[&Item], refusal: Option<&str>) -> Self {
        let entity = items[0].entity;
        let mut collection = Self { entity, rows: Vec::new(), gone: Vec::new(), refused: Vec::new() };
        let mut tuple = Vec::new();
        for item in items {
            match &item.state {
                State::Gone => push_key(&mut collection.gone, item),
                State::Document(document) => {
                    tuple.clear();
                    if let Err(reason) = collection.push_row(document, item.stamp, &mut tuple, refusal) {
                        let (key, document) = (item.key.clone(), document.clone());
                        collection.refused.push(Refused { key, document, reason, stamp: item.stamp });
                    }
                }
            }
        }
        collection
    }

    fn push_row(
        &mut self,
        document: &RawDocumentBuf,
        stamp: Stamp,
        out: &mut Vec<u8>,
        refusal: Option<&str>,
    ) -> Result<(), String> {
        if let Some(refusal) = refusal {
            return Err(refusal.to_owned());
        }
        let encoded = Mapping::new(self.entity).encode(document, stamp, out);
        encoded.map_err(|refusal| refusal.reason)?;
        let columns = tuple::columns(out).ok_or_else(|| "its row is no tuple".to_owned())?;
        if self.rows.is_empty() {
            self.rows = statements::types(self.entity).into_iter().map(Array::new).collect();
        }
        self.rows.iter_mut().zip(columns).for_each(|(array, column)| array.push(column));
        Ok(())
    }

    /// Deleting a row must not pass a transaction that upserts it and that cannot see the deletion (design 7).
    fn lock(&self) -> String {
        let deletes = !self.gone.is_empty() || !self.refused.is_empty();
        let lock = if deletes { "pg_advisory_xact_lock" } else { "pg_advisory_xact_lock_shared" };
        format!("select {lock}({})", lock::of_collection(self.entity.name))
    }
}

/// Appends key and stamp of `item` to arrays of ids, epochs and clocks.
fn push_key(arrays: &mut Vec<Array>, item: &Item) {
    if arrays.is_empty() {
        *arrays = [TEXT, INT4, INT8].map(Array::new).to_vec();
    }
    let values: [&[u8]; 3] =
        [item.key.text().as_bytes(), &item.stamp.epoch.to_be_bytes(), &item.stamp.clock.to_be_bytes()];
    arrays.iter_mut().zip(values).for_each(|(array, value)| array.push(Some(value)));
}

impl Secondary {
    /// Writes that replace what `replaces` says.
    pub fn new(replaces: Replaces) -> Self {
        let of = |entity: &'static Entity| Statements {
            merge: statements::merge_arrays(entity, replaces),
            delete: statements::delete(entity, replaces),
            quarantine: statements::quarantine(entity, replaces),
        };
        Self { statements: ENTITIES.iter().map(|entity| (entity.name, of(entity))).collect() }
    }

    /// Writes `level` in the transaction of `connection`, which must have no snapshot that is older than its locks: begin
    /// one for this alone (`read committed`).
    pub async fn write(&self, level: Level, connection: &mut PgConnection) -> sqlx::Result<()> {
        for collection in &level.collections {
            sqlx::query(AssertSqlSafe(collection.lock())).execute(&mut *connection).await?;
        }
        self.write_locked(level, connection).await
    }

    /// The same, in a transaction that has taken [`Level::locks`].
    pub async fn write_locked(&self, level: Level, connection: &mut PgConnection) -> sqlx::Result<()> {
        for collection in level.collections {
            self.write_collection(collection, connection).await?;
        }
        Ok(())
    }

    async fn write_collection(&self, collection: Collection, connection: &mut PgConnection) -> sqlx::Result<()> {
        let name = collection.entity.name;
        // Every entity is in the list: a test holds files and list against each other.
        let statements = &self.statements[name];
        for (sql, arrays) in [(&statements.merge, collection.rows), (&statements.delete, collection.gone)] {
            if !arrays.is_empty() {
                let query: Query<'_, Postgres, PgArguments> = sqlx::query(AssertSqlSafe(sql.as_str())).bind(name);
                arrays.into_iter().fold(query, Query::bind).execute(&mut *connection).await?;
            }
        }
        for refused in collection.refused {
            sqlx::query(AssertSqlSafe(statements.quarantine.as_str()))
                .bind(name)
                .bind(refused.key.text())
                .bind(refused.document.as_bytes())
                .bind(refused.reason)
                .bind(refused.stamp.epoch)
                .bind(refused.stamp.clock)
                .execute(&mut *connection)
                .await?;
        }
        Ok(())
    }
}
