//! What a verification found.

use std::time::Duration;

use bson::RawDocumentBuf;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::canonical;
use crate::condition::Condition;
use crate::phase::Phase;
use crate::quarantine;

/// How the two sides of a key differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The document has no row and is not quarantined.
    Missing,
    /// The row, or the quarantined document, has no document.
    Extra,
    /// Both sides are there and differ.
    Content,
}

/// A key whose two sides differ.
#[derive(Debug, Clone, Serialize)]
pub struct Mismatch {
    /// The collection.
    pub collection: &'static str,
    /// The `_id`, canonical extended JSON.
    pub id: Value,
    /// How the sides differ.
    pub kind: Kind,
    /// When it was found.
    pub since: DateTime<Utc>,
    /// What of the row no document stands for, if that is why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Both sides; only the first few of each kind are kept.
    #[serde(skip)]
    pub sides: Option<Sides>,
}

/// What each store has under a key.
#[derive(Debug, Clone, Default)]
pub struct Sides {
    /// The document in MongoDB.
    pub source: Option<RawDocumentBuf>,
    /// The document that the row, or the quarantine, in PostgreSQL stands for.
    pub target: Option<RawDocumentBuf>,
}

impl Sides {
    /// The difference as a unified diff, from MongoDB to PostgreSQL.
    pub fn diff(&self) -> String {
        let text = |side: &Option<RawDocumentBuf>| side.as_ref().map(|side| canonical::text(side) + "\n");
        let (old, new) = (text(&self.source).unwrap_or_default(), text(&self.target).unwrap_or_default());
        unified(&old, &new)
    }
}

/// The unified diff of two texts, from MongoDB to PostgreSQL.
pub fn unified(mongo: &str, postgres: &str) -> String {
    let diff = similar::TextDiff::configure().timeout(Duration::from_secs(2)).diff_lines(mongo, postgres);
    diff.unified_diff().context_radius(3).header("mongodb", "postgresql").to_string()
}

/// The counts of one collection.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Counts {
    /// The collection.
    pub name: &'static str,
    /// Documents in MongoDB.
    pub documents: u64,
    /// Rows in PostgreSQL.
    pub rows: u64,
    /// Quarantined documents.
    pub quarantined: u64,
    /// Mismatches of each kind.
    pub missing: u64,
    /// Only in PostgreSQL.
    pub extra: u64,
    /// On both sides, and different.
    pub content: u64,
    /// How long the comparison of all of it took, in seconds.
    pub seconds: f64,
}

impl Counts {
    /// All mismatches.
    pub fn mismatches(&self) -> u64 {
        self.missing + self.extra + self.content
    }

    pub(super) fn count(&mut self, kind: Kind) {
        match kind {
            Kind::Missing => self.missing += 1,
            Kind::Extra => self.extra += 1,
            Kind::Content => self.content += 1,
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.documents += other.documents;
        self.rows += other.rows;
        self.quarantined += other.quarantined;
        self.missing += other.missing;
        self.extra += other.extra;
        self.content += other.content;
    }
}

/// What a verification says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Something was compared and nothing differs.
    Clean,
    /// Something differs.
    Mismatch,
    /// Nothing was compared, which proves nothing.
    Inconclusive,
}

/// The result of a verification.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What it says.
    pub verdict: Verdict,
    /// Its number in `bridge.verification`.
    pub number: i64,
    /// The phase in which it was made.
    #[serde(serialize_with = "as_text")]
    pub phase: Phase,
    /// The epoch in which it was made.
    pub epoch: i32,
    /// The part of the ranges that was compared; nothing is all of them.
    pub sample: Option<f64>,
    /// How long a difference had to last, in seconds.
    pub tolerance_seconds: f64,
    /// Each collection that was looked at.
    pub collections: Vec<Counts>,
    /// The mismatches, in no order; at most [`super::Options::listed`] of them.
    pub mismatches: Vec<Mismatch>,
    /// Mismatches that are counted but not listed.
    pub unlisted: u64,
    /// Keys that differed, and were written to all the time: nothing is known of them.
    pub unsettled: u64,
    /// Keys that were compared again since the mirror, or a shadow read, had named them.
    pub rechecked: u64,
    /// The longest single query.
    pub longest_query: Longest,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: DateTime<Utc>,
}

/// How long the longest single query of each store took, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Longest {
    /// Of MongoDB: one answer of a cursor.
    pub mongodb_milliseconds: f64,
    /// Of PostgreSQL: the rows of one range, as fast as they were taken.
    pub postgresql_milliseconds: f64,
}

/// What a report says besides, for those who read it and were not there.
#[derive(Debug, Clone, Serialize)]
pub struct Surroundings {
    /// The version of `bridge`.
    pub bridge: &'static str,
    /// The version of MongoDB.
    pub mongodb: String,
    /// The version of PostgreSQL.
    pub postgresql: String,
    /// The first quarantined documents; the counts are in [`Counts::quarantined`].
    pub quarantine: Vec<quarantine::Entry>,
    /// What the columns of regular rows could not hold, and is kept in the residue: the most frequent fields.
    pub irregular_fields: Vec<IrregularField>,
    /// The gate of each phase that may follow, as it was after the verification.
    pub gates: Vec<Gate>,
}

/// How many documents have a field that its column cannot hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IrregularField {
    /// The collection.
    pub collection: String,
    /// The field's path.
    pub field: String,
    /// How many documents.
    pub documents: i64,
}

/// What must be so before another phase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gate {
    /// That phase.
    #[serde(serialize_with = "as_text")]
    pub to: Phase,
    /// The conditions.
    pub conditions: Vec<Condition>,
}

fn as_text<S: serde::Serializer>(value: &impl std::fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

impl Report {
    pub(super) fn new(started_at: DateTime<Utc>, collections: Vec<Counts>, mismatches: Vec<Mismatch>) -> Self {
        let compared: u64 = collections.iter().map(|one| one.documents + one.rows + one.quarantined).sum();
        let found: u64 = collections.iter().map(Counts::mismatches).sum();
        let listed = u64::try_from(mismatches.len()).unwrap_or(u64::MAX);
        let verdict = match (found, compared) {
            (1.., _) => Verdict::Mismatch,
            (0, 0) => Verdict::Inconclusive,
            (0, _) => Verdict::Clean,
        };
        let unlisted = found.saturating_sub(listed);
        Self {
            verdict,
            number: 0,
            phase: Phase::Mongo,
            epoch: 1,
            sample: None,
            tolerance_seconds: 0.0,
            collections,
            mismatches,
            unlisted,
            unsettled: 0,
            rechecked: 0,
            longest_query: Longest::default(),
            started_at,
            finished_at: Utc::now(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(counts: Counts) -> Verdict {
        Report::new(Utc::now(), vec![Counts::default(), counts], Vec::new()).verdict
    }

    #[test]
    fn nothing_compared_is_inconclusive_and_never_clean() {
        assert_eq!(verdict(Counts::default()), Verdict::Inconclusive);
        assert_eq!(verdict(Counts { documents: 1, rows: 1, ..Counts::default() }), Verdict::Clean);
        assert_eq!(verdict(Counts { documents: 1, missing: 1, ..Counts::default() }), Verdict::Mismatch);
        assert_eq!(verdict(Counts { rows: 1, extra: 1, ..Counts::default() }), Verdict::Mismatch);
    }
}
