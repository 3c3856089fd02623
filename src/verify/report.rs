//! What a verification found.

use std::time::Duration;

use bson::RawDocumentBuf;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::canonical;
use crate::condition::Condition;
use crate::phase::{Backend, Phase};
use crate::quarantine;

/// How the two sides of a key differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// What the primary has is not in the secondary.
    Missing,
    /// What the secondary has is not in the primary.
    Extra,
    /// Both sides are there and differ.
    Content,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Missing, Self::Extra, Self::Content];

    /// Its name, in the ledger and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Content => "content",
        }
    }

    /// That of a key that only one store has.
    pub fn only_in(store: Backend, primary: Backend) -> Self {
        if store == primary { Self::Missing } else { Self::Extra }
    }

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
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
    /// The size of both, in bytes.
    pub fn bytes(&self) -> usize {
        [&self.source, &self.target].into_iter().flatten().map(|side| side.as_bytes().len()).sum()
    }

    /// The documents as texts; the empty text when there is none.
    pub(super) fn texts(&self) -> [String; 2] {
        let text = |side: &Option<RawDocumentBuf>| side.as_ref().map(|side| canonical::text(side) + "\n");
        [text(&self.source), text(&self.target)].map(Option::unwrap_or_default)
    }

    /// The difference as a unified diff, from MongoDB to PostgreSQL.
    pub fn diff(&self) -> String {
        let [old, new] = self.texts();
        unified(&old, &new)
    }
}

/// The unified diff of two texts, from MongoDB to PostgreSQL.
pub fn unified(mongo: &str, postgres: &str) -> String {
    lines(mongo, postgres).unified_diff().context_radius(3).header("mongodb", "postgresql").to_string()
}

/// The difference of two texts, line by line. Where it cannot be found soon, it is shown larger than it is.
pub(super) fn lines<'a>(old: &'a str, new: &'a str) -> similar::TextDiff<'a, 'a, str> {
    similar::TextDiff::configure().timeout(Duration::from_secs(2)).diff_lines(old, new)
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

    /// The number of mismatches of a kind.
    pub(super) fn of_mut(&mut self, kind: Kind) -> &mut u64 {
        match kind {
            Kind::Missing => &mut self.missing,
            Kind::Extra => &mut self.extra,
            Kind::Content => &mut self.content,
        }
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
    /// Nothing was compared, which proves nothing; or keys were written to all the time, of which nothing is known.
    Inconclusive,
}

impl Verdict {
    /// What these counts say, and so many keys of which nothing is known.
    pub(super) fn of(counts: &[Counts], unsettled: u64) -> Self {
        let compared: u64 = counts.iter().map(|one| one.documents + one.rows + one.quarantined).sum();
        let found: u64 = counts.iter().map(Counts::mismatches).sum();
        match (found, compared, unsettled) {
            (1.., ..) => Self::Mismatch,
            (0, 0, _) | (0, _, 1..) => Self::Inconclusive,
            (0, _, 0) => Self::Clean,
        }
    }
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, sqlx::FromRow)]
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

/// Serializes what has a text as that.
pub(super) fn as_text<S: serde::Serializer>(value: &impl std::fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

impl Report {
    /// The counts of all collections; the time that they took together says nothing.
    pub fn total(&self) -> Counts {
        let mut total = Counts { name: "all", ..Counts::default() };
        for one in &self.collections {
            total.documents += one.documents;
            total.rows += one.rows;
            total.quarantined += one.quarantined;
            total.missing += one.missing;
            total.extra += one.extra;
            total.content += one.content;
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(counts: Counts) -> Verdict {
        Verdict::of(&[Counts::default(), counts], 0)
    }

    #[test]
    fn nothing_compared_is_inconclusive_and_never_clean() {
        assert_eq!(verdict(Counts::default()), Verdict::Inconclusive);
        assert_eq!(verdict(Counts { documents: 1, rows: 1, ..Counts::default() }), Verdict::Clean);
        assert_eq!(verdict(Counts { documents: 1, missing: 1, ..Counts::default() }), Verdict::Mismatch);
        assert_eq!(verdict(Counts { rows: 1, extra: 1, ..Counts::default() }), Verdict::Mismatch);
        let clean = Counts { documents: 1, rows: 1, ..Counts::default() };
        assert_eq!(Verdict::of(&[clean], 1), Verdict::Inconclusive);
    }
}
