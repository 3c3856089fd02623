//! PostgreSQL as the scheduler's store.
//!
//! Invariants: a row's stamp rises with every write of the row, since the clock is taken while the row is locked; a
//! deletion leaves a tombstone with a stamp of its own. When the move is over there are neither stamps nor tombstones, and
//! the transaction that wrote a row last says whether it is still the same. A single change is one statement and one round trip; several
//! are one transaction.

pub(crate) mod arrays;
mod find;
mod group;
pub mod rows;
pub(crate) mod sessions;
pub(crate) mod statements;
mod write;

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, SubsecRound, Utc};
use sqlx::postgres::{PgArguments, PgPool, PgRow};
use sqlx::{AssertSqlSafe, Postgres};

use self::arrays::{Array, TEXT};
use self::sessions::Sessions;
use self::statements::{Statements, Terms};
use super::{Address, After, Change, Page, Query, Store, StoreError, Stored, attempted, bounded};
use crate::entity::{ENTITIES, Entity};
use crate::fence::postgres::CLOSED;
use crate::layout::Layout;
use crate::mapping::{Key, Mapping};
use crate::phase::Phase;
use crate::target;

/// The scheduler's tables.
#[derive(Debug, Clone)]
pub struct PostgresStore {
    sessions: Sessions,
    terms: Terms,
    statements: Arc<HashMap<&'static str, Statements>>,
}

impl PostgresStore {
    /// The tables that `pool` leads to, while the move lasts; the schema must be there. The store has as many sessions as
    /// the pool may have, beside those that others take from it.
    pub fn new(pool: PgPool) -> Self {
        Self::laid_out(pool, Layout::Moving)
    }

    /// The same, laid out as they are.
    pub fn laid_out(pool: PgPool, layout: Layout) -> Self {
        let terms = match layout {
            Layout::Moving => Terms::Moving { epoch: None, is_noted: false },
            Layout::Final => Terms::Final,
        };
        Self::with(Sessions::new(pool), terms)
    }

    /// The same while MongoDB follows (phase `postgres-primary`): each write notes its keys in the outbox, in its own
    /// transaction, and the mirror brings MongoDB level from there.
    pub fn mirrored(pool: PgPool) -> Self {
        Self::with(Sessions::new(pool), Terms::Moving { epoch: None, is_noted: true })
    }

    /// The same store with the same sessions, as the primary of `epoch`: every write holds the fence open at that epoch, or
    /// fails with [`StoreError::Fenced`]. In phase `postgres-primary`, MongoDB follows. Once the move is over there is no
    /// fence any more.
    pub fn primary(&self, phase: Phase, epoch: i32) -> Self {
        match self.terms {
            Terms::Moving { .. } => {
                let terms = Terms::Moving { epoch: Some(epoch), is_noted: phase.is_mirrored() };
                Self::with(self.sessions.clone(), terms)
            }
            Terms::Final => self.clone(),
        }
    }

    fn with(sessions: Sessions, terms: Terms) -> Self {
        let statements = ENTITIES.iter().map(|entity| (entity.name, Statements::new(entity, terms))).collect();
        Self { sessions, terms, statements: Arc::new(statements) }
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
        let lines = async {
            let mut session = self.sessions.open().await?;
            let lines = sql.build_query_scalar().fetch_all(&mut *session).await;
            session.rest(&lines);
            lines
        };
        bounded(attempted, async { lines.await.map_err(|error| refused(attempted(), error)) }).await
    }

    fn statements(&self, entity: &'static Entity) -> &Statements {
        // Every entity is in the list: a test holds files and list against each other.
        &self.statements[entity.name]
    }

    /// The rows that one statement finds.
    async fn read(&self, query: sqlx::query::Query<'_, Postgres, PgArguments>) -> sqlx::Result<Vec<PgRow>> {
        let mut session = self.sessions.open().await?;
        let rows = query.fetch_all(&mut *session).await;
        session.rest(&rows);
        rows
    }

    async fn rows(&self, entity: &'static Entity, keys: &[Key]) -> Result<Vec<(Key, Stored)>, StoreError> {
        let statements = self.statements(entity);
        let mut ids = Array::new(TEXT);
        // No key has a NUL, and PostgreSQL takes none in a text.
        let keys: Vec<&Key> = keys.iter().filter(|key| !key.text().contains('\0')).collect();
        keys.iter().for_each(|key| ids.push(Some(key.text().as_bytes())));
        let query = match keys.as_slice() {
            [] => return Ok(Vec::new()),
            [_] => sqlx::query(AssertSqlSafe(statements.get.as_str())).bind(ids.scalar()),
            _ => sqlx::query(AssertSqlSafe(statements.get_many.as_str())).bind(ids),
        };
        let rows = self.read(query).await.map_err(|error| refused(format!("read {}", entity.name), error))?;
        let mapping = Mapping::new(entity);
        let keyed = |row| rows::stored(mapping, row).map(|stored| (mapping.key(&stored.document), stored));
        rows.iter().map(keyed).collect()
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
            let rows = self.read(sql.build()).await.map_err(|error| refused(attempted(), error))?;
            find::page(query, &rows)
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
            let mut session = self.sessions.open().await?;
            let now = sqlx::query_scalar("select clock_timestamp()").fetch_one(&mut *session).await;
            session.rest(&now);
            now.map(|now: DateTime<Utc>| now.trunc_subsecs(3))
        };
        bounded(attempted, async { now.await.map_err(|error| refused(attempted(), error)) }).await
    }
}

fn refused(attempted: String, error: sqlx::Error) -> StoreError {
    if error.as_database_error().is_some_and(|error| error.code().as_deref() == Some(CLOSED)) {
        return StoreError::Fenced { attempted };
    }
    if target::transient(&error) {
        StoreError::Unavailable { attempted, source: Some(error.into()) }
    } else {
        StoreError::Failed { attempted, source: error.into() }
    }
}
