//! A walk through the keys that a verification has noted.

use sqlx::PgPool;

use super::columns::noted;
use super::{Noted, Settled};
use crate::verify::error::{Result, VerifyError};

/// By collection and key. What is changed behind it does not matter.
pub struct Walk {
    pool: PgPool,
    number: i64,
    settled: Option<Settled>,
    after: Option<(String, String)>,
}

impl Walk {
    /// Through the keys of verification `number` that are not settled, or that are settled so.
    pub fn new(pool: PgPool, number: i64, settled: Option<Settled>) -> Self {
        Self { pool, number, settled, after: None }
    }

    /// The next keys, at most `limit`; none at the end.
    pub async fn next(&mut self, limit: usize) -> Result<Vec<Noted>> {
        let (collection, id) = self.after.as_ref().map(|(collection, id)| (collection, id)).unzip();
        let found = sqlx::query(
            "select collection, id, document_id, kind, reason, print, since from bridge.suspect
            where verification = $1 and settled is not distinct from $2
                and ($3::text is null or (collection, id) > ($3, $4))
            order by collection, id limit $5",
        )
        .bind(self.number)
        .bind(self.settled.map(Settled::name))
        .bind(collection)
        .bind(id)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .persistent(false)
        .fetch_all(&self.pool)
        .await
        .map_err(|error| VerifyError::target("read the keys that differ", error))?;
        let found = found.iter().map(noted).collect::<Result<Vec<_>>>()?;
        let place = |last: &Noted| (last.entity.name.to_owned(), last.suspect.key.text().to_owned());
        self.after = found.last().map(place).or(self.after.take());
        Ok(found)
    }
}
