//! Where comparisons of reads are kept, for the gate.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use sqlx::PgPool;

use super::report::ReadReport;
use crate::target::TargetError;
use crate::verify::Verdict;
use crate::verify::digest::digest;

/// The last comparison of reads, as the gate sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Latest {
    /// The name of the phase in which it was made.
    pub phase: String,
    /// The epoch in which it was made.
    pub epoch: i32,
    /// When it began, by PostgreSQL's clock.
    pub began_at: DateTime<Utc>,
    /// When it ended, by PostgreSQL's clock.
    pub finished_at: DateTime<Utc>,
    /// How long ago that was when it was looked at, in seconds.
    pub age_seconds: f64,
    /// What it says.
    pub verdict: Verdict,
    /// The collections whose reads differ.
    pub differing: Vec<String>,
    /// Whether it was only some of the tenants.
    pub is_sampled: bool,
    /// Whether the record is as it was written.
    pub is_genuine: bool,
}

/// What the gate reads of the report.
#[derive(Deserialize)]
struct Gist {
    verdict: Verdict,
    sampled: bool,
    collections: Vec<OfCollection>,
}

/// What it says of one collection.
#[derive(Deserialize)]
struct OfCollection {
    name: String,
    differences: u64,
}

/// Keeps `report`.
///
/// # Errors
/// Those of PostgreSQL.
pub async fn keep(pool: &PgPool, report: &ReadReport) -> Result<(), TargetError> {
    let failed = |error| TargetError::of("keep the comparison of reads", error);
    let text = serde_json::to_string(report).map_err(|error| failed(sqlx::Error::Encode(error.into())))?;
    // jsonb has spaces, numbers and an order of its own: the digest is of the text that comes back.
    let normal = sqlx::query_scalar("select $1::text::jsonb::text").bind(text).fetch_one(pool).await;
    let text: String = normal.map_err(failed)?;
    let phase = report.phase.name();
    let digest = digest_of(phase, report.epoch, [report.started_at, report.finished_at], &text);
    sqlx::query(
        "insert into bridge.read_parity (phase, epoch, began_at, finished_at, report, digest)
        values ($1, $2, $3, $4, $5::text::jsonb, $6)",
    )
    .bind(phase)
    .bind(report.epoch)
    .bind(report.started_at)
    .bind(report.finished_at)
    .bind(text)
    .bind(digest)
    .execute(pool)
    .await
    .map_err(failed)?;
    Ok(())
}

/// The last comparison of reads; nothing when there was none.
///
/// # Errors
/// Those of PostgreSQL.
pub async fn latest(pool: &PgPool) -> Result<Option<Latest>, TargetError> {
    type Row = (String, i32, DateTime<Utc>, DateTime<Utc>, f64, String, Vec<u8>);
    let found: Option<Row> = sqlx::query_as(
        "select phase, epoch, began_at, finished_at,
            extract(epoch from clock_timestamp() - finished_at)::float8, report::text, digest
        from bridge.read_parity order by id desc limit 1",
    )
    .fetch_optional(pool)
    .await
    .map_err(|error| TargetError::of("look up the last comparison of reads", error))?;
    Ok(found.map(|(phase, epoch, began_at, finished_at, age_seconds, text, kept)| {
        let gist: Option<Gist> = serde_json::from_str(&text).ok();
        let is_genuine = gist.is_some() && kept == digest_of(&phase, epoch, [began_at, finished_at], &text);
        let unread = Gist { verdict: Verdict::Inconclusive, sampled: true, collections: Vec::new() };
        let Gist { verdict, sampled: is_sampled, collections } = gist.unwrap_or(unread);
        let differing = collections.into_iter().filter(|one| one.differences > 0).map(|one| one.name).collect();
        Latest { phase, epoch, began_at, finished_at, age_seconds, verdict, differing, is_sampled, is_genuine }
    }))
}

fn digest_of(phase: &str, epoch: i32, times: [DateTime<Utc>; 2], report: &str) -> Vec<u8> {
    let [began, finished] = times.map(|time| time.timestamp_micros().to_be_bytes());
    digest(&[phase.as_bytes(), &epoch.to_be_bytes(), &began, &finished, report.as_bytes()])
}
