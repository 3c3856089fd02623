//! What the gate may rely on: the newest full verification, looked at as a stranger would.

use chrono::{DateTime, Utc};
use sqlx::{FromRow, PgPool};

use super::ledger::{PARTS, of_parts};
use crate::entity::ENTITIES;

/// A verification that has ended.
#[derive(Debug, Clone, FromRow)]
pub struct Proof {
    /// Its number.
    pub number: i64,
    /// The epoch in which it was made.
    pub epoch: i32,
    /// When it began.
    pub began_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: DateTime<Utc>,
    /// How long ago that was when it was looked at, in seconds.
    pub age_seconds: f64,
    /// `clean`, `mismatch` or `inconclusive`.
    pub verdict: String,
    collections: Vec<String>,
    sample: Option<f64>,
    open_shares: i64,
    compared: i64,
    digest: Option<Vec<u8>>,
}

impl Proof {
    /// The newest verification that has ended.
    ///
    /// # Errors
    /// Those of PostgreSQL.
    pub async fn newest(pool: &PgPool) -> sqlx::Result<Option<Self>> {
        sqlx::query_as(
            "select v.id as number, v.epoch, v.began_at, v.finished_at,
                extract(epoch from clock_timestamp() - v.finished_at)::float8 as age_seconds,
                coalesce(v.report->>'verdict', '') as verdict, v.collections, v.sample, v.digest,
                (select count(*) from bridge.verification_share s
                    where s.verification = v.id and s.finished_at is null) as open_shares,
                (select coalesce(sum(s.documents + s.rows + s.quarantined), 0)::bigint
                    from bridge.verification_share s where s.verification = v.id) as compared
            from bridge.verification v where v.finished_at is not null order by v.id desc limit 1",
        )
        .fetch_optional(pool)
        .await
    }

    /// Whether the record is as the verifier left it.
    ///
    /// # Errors
    /// Those of PostgreSQL.
    pub async fn is_genuine(&self, pool: &PgPool) -> sqlx::Result<bool> {
        let parts: Option<Vec<Option<String>>> =
            sqlx::query_scalar(PARTS).bind(self.number).fetch_optional(pool).await?;
        let parts: Option<Vec<String>> = parts.and_then(|parts| parts.into_iter().collect());
        Ok(parts.is_some_and(|parts| self.digest.as_deref() == Some(&of_parts(&parts)[..])))
    }

    /// What of the scope is missing, if anything is.
    pub fn gaps(&self) -> Option<String> {
        let named = ENTITIES.iter().filter(|entity| self.collections.iter().any(|name| name == entity.name)).count();
        if named < ENTITIES.len() {
            return Some(format!("partial: {named} of {} collections", ENTITIES.len()));
        }
        if let Some(part) = self.sample {
            return Some(format!("partial: a sample of {part}"));
        }
        if self.open_shares > 0 {
            return Some(format!("partial: {} shares were not compared", self.open_shares));
        }
        (self.compared == 0).then(|| "empty: nothing was compared".to_owned())
    }
}
