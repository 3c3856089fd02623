//! The quarantine: documents that cannot become a row, kept whole with the reason.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::FromRow;

use crate::entity::Entity;
use crate::target::{Target, TargetError};

/// A quarantined document, all but its bytes.
#[derive(Debug, Clone, PartialEq, Eq, FromRow, Serialize)]
pub struct Entry {
    /// Its collection.
    pub collection: String,
    /// The text of its key.
    pub id: String,
    /// Why it cannot become a row.
    pub reason: String,
    /// Its size in bytes of BSON.
    pub bytes: i64,
    /// When it was quarantined first.
    pub quarantined_at: DateTime<Utc>,
    /// When an operator accepted that PostgreSQL does without it.
    pub accepted_at: Option<DateTime<Utc>>,
}

/// The quarantined documents of `entities`, by collection and key.
pub async fn list(target: &Target, entities: &[&'static Entity]) -> Result<Vec<Entry>, TargetError> {
    let names: Vec<_> = entities.iter().map(|entity| entity.name).collect();
    sqlx::query_as(
        "select collection, id, reason, octet_length(document)::bigint as bytes, quarantined_at, accepted_at
        from bridge.quarantine where collection = any($1) order by collection, id",
    )
    .bind(names)
    .fetch_all(target.pool())
    .await
    .map_err(|error| TargetError::of("list the quarantine", error))
}

/// The bytes of the document that is quarantined under exactly this key; nothing when there is none. The bytes are as
/// MongoDB gave them: they need not be a document that every reader takes.
pub async fn document(target: &Target, entity: &Entity, id: &str) -> Result<Option<Vec<u8>>, TargetError> {
    sqlx::query_scalar("select document from bridge.quarantine where collection = $1 and id = $2")
        .bind(entity.name)
        .bind(id)
        .fetch_optional(target.pool())
        .await
        .map_err(|error| TargetError::of(format!("read quarantined document {id} of {}", entity.name), error))
}

/// Accepts that PostgreSQL does without the document that is quarantined under exactly this key; whether nobody had
/// accepted it before. It stands as long as the document does: a newer version has to be accepted anew.
pub async fn accept(target: &Target, entity: &Entity, id: &str) -> Result<bool, TargetError> {
    let accepted = sqlx::query(
        "update bridge.quarantine set accepted_at = clock_timestamp()
        where collection = $1 and id = $2 and accepted_at is null",
    );
    let accepted = accepted.bind(entity.name).bind(id).execute(target.pool()).await;
    let failed = |error| TargetError::of(format!("accept quarantined document {id} of {}", entity.name), error);
    Ok(accepted.map_err(failed)?.rows_affected() == 1)
}
