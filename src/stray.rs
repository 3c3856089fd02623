//! Stray writes: what somebody wrote to MongoDB while it followed, kept after it was undone.

use chrono::{DateTime, Utc};
use sqlx::FromRow;

use crate::target::{Target, TargetError};

/// A stray write.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Entry {
    /// Its collection.
    pub collection: String,
    /// The text of its key.
    pub id: String,
    /// The document (BSON) that it left; nothing where it deleted one.
    pub document: Option<Vec<u8>>,
    /// When it was found.
    pub seen_at: DateTime<Utc>,
    /// When an operator accepted that it is lost.
    pub accepted_at: Option<DateTime<Utc>>,
}

/// Stray writes that nobody has accepted, or all of them, the oldest first.
pub async fn list(target: &Target, all: bool) -> Result<Vec<Entry>, TargetError> {
    sqlx::query_as(
        "select collection, id, document, seen_at, accepted_at from bridge.stray
        where $1 or accepted_at is null order by epoch, clock, collection, id",
    )
    .bind(all)
    .fetch_all(target.pool())
    .await
    .map_err(|error| TargetError::of("list the stray writes", error))
}

/// Accepts the stray writes of exactly these keys, collection and id; how many they were.
pub async fn accept(target: &Target, keys: &[(&str, &str)]) -> Result<u64, TargetError> {
    let (collections, ids): (Vec<&str>, Vec<&str>) = keys.iter().copied().unzip();
    let accepted = sqlx::query(
        "update bridge.stray s set accepted_at = clock_timestamp()
        from unnest($1::text[], $2::text[]) k (collection, id)
        where s.collection = k.collection and s.id = k.id and s.accepted_at is null",
    );
    let accepted = accepted.bind(collections).bind(ids).execute(target.pool()).await;
    Ok(accepted.map_err(|error| TargetError::of("accept stray writes", error))?.rows_affected())
}
