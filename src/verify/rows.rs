//! The target's side: rows, rebuilt to documents, and quarantined documents.

use std::collections::HashMap;

use bson::RawDocumentBuf;
use futures::{Stream, StreamExt, TryStreamExt};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, PgPool, Row};

use crate::entity::Entity;
use crate::mapping::{Mapping, RebuildError};
use crate::target::columns;

/// A row of the target.
pub struct Rebuilt {
    /// Column `id`.
    pub id: String,
    /// The document it stands for, if it stands for one.
    pub document: Result<RawDocumentBuf, RebuildError>,
}

/// What the target has under a key.
pub struct Found<T> {
    /// The row.
    pub row: Option<Result<T, RebuildError>>,
    /// The quarantined document's bytes.
    pub quarantined: Option<Vec<u8>>,
}

impl<T> Default for Found<T> {
    fn default() -> Self {
        Self { row: None, quarantined: None }
    }
}

/// The rows of one entity.
#[derive(Clone)]
pub struct Rows {
    mapping: Mapping,
    range: String,
    by_id: String,
    ids: String,
}

impl Rows {
    /// The rows of `entity`.
    pub fn new(entity: &'static Entity) -> Self {
        let (mapping, name) = (Mapping::new(entity), entity.name);
        // The stamp is not part of the document.
        let columns: Vec<_> = mapping.columns().take_while(|column| *column != "epoch").collect();
        let columns = columns.join(", ");
        Self {
            mapping,
            range: format!(
                "select {columns} from scheduler.{name}
                where ($1::text is null or id >= $1) and ($2::text is null or id < $2)
                and not (id >= '{{' and id < '|')
                order by id"
            ),
            by_id: format!("select {columns} from scheduler.{name} where id = any($1)"),
            ids: format!(
                "select id from scheduler.{name}
                where ($1::text is null or id > $1) and ($2 or (id >= '{{' and id < '|')) order by id limit $3"
            ),
        }
    }

    /// The rows with plain keys from `lower` to `upper` in the order of their bytes.
    pub fn range<'a>(
        &'a self,
        connection: &'a mut PgConnection,
        lower: Option<String>,
        upper: Option<String>,
    ) -> impl Stream<Item = sqlx::Result<Rebuilt>> + 'a {
        sqlx::query(AssertSqlSafe(self.range.clone()))
            .bind(lower)
            .bind(upper)
            // Planned anew each time: only then does an absent bound cost nothing.
            .persistent(false)
            .fetch(connection)
            .map(|row| self.rebuild(&row?))
    }

    /// What the target has under each of `ids`, and of each row what `kept` makes of its document.
    pub async fn find<T>(
        &self,
        pool: &PgPool,
        ids: &[&str],
        kept: impl Fn(Result<RawDocumentBuf, RebuildError>) -> Result<T, RebuildError>,
    ) -> sqlx::Result<HashMap<String, Found<T>>> {
        let mut found: HashMap<String, Found<T>> = HashMap::new();
        let mut rows = sqlx::query(AssertSqlSafe(self.by_id.clone())).bind(ids).fetch(pool);
        while let Some(row) = rows.try_next().await? {
            let rebuilt = self.rebuild(&row)?;
            found.entry(rebuilt.id).or_default().row = Some(kept(rebuilt.document));
        }
        let quarantined: Vec<(String, Vec<u8>)> =
            sqlx::query_as("select id, document from bridge.quarantine where collection = $1 and id = any($2)")
                .bind(self.mapping.entity().name)
                .bind(ids)
                .fetch_all(pool)
                .await?;
        for (id, document) in quarantined {
            found.entry(id).or_default().quarantined = Some(document);
        }
        Ok(found)
    }

    /// Up to `limit` ids after `after` (the empty text is an id too): all of them, or the marked ones alone.
    pub async fn ids(&self, pool: &PgPool, after: Option<&str>, scope: Scope, limit: i64) -> sqlx::Result<Vec<String>> {
        sqlx::query_scalar(AssertSqlSafe(self.ids.clone()))
            .bind(after)
            .bind(scope == Scope::All)
            .bind(limit)
            .persistent(false)
            .fetch_all(pool)
            .await
    }

    /// Up to `limit` quarantined documents with ids after `after`.
    pub async fn quarantined(
        &self,
        pool: &PgPool,
        after: Option<&str>,
        limit: i64,
    ) -> sqlx::Result<Vec<(String, Vec<u8>)>> {
        sqlx::query_as(
            "select id, document from bridge.quarantine
            where collection = $1 and ($2::text is null or id > $2)
            order by id limit $3",
        )
        .bind(self.mapping.entity().name)
        .bind(after)
        .bind(limit)
        .fetch_all(pool)
        .await
    }

    fn rebuild(&self, row: &PgRow) -> sqlx::Result<Rebuilt> {
        let columns = columns(row)?;
        Ok(Rebuilt { id: row.try_get(0)?, document: self.mapping.rebuild(&columns) })
    }
}

/// Which ids are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All.
    All,
    /// Those of `_id`s that are not of the entity's own type.
    Marked,
}
