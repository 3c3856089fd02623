//! What shadow reads have found, for those who look on.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::recheck::Suspicions;
use crate::metrics::{self, Tally};
use crate::parity::Kind;

/// How many differences are kept; the oldest goes first.
const KEPT: usize = 256;

/// The longest diff that is kept, in bytes.
const DIFF_BYTES: usize = 16 << 10;

/// What became of the reads so far, and of the suspicions that they raised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Reads that were not repeated, since too many waited already.
    pub dropped: u64,
    /// Reads, and looks at suspicions, that one of the stores failed or did not answer in time.
    pub failed: u64,
    /// Reads and suspicions given up because the phase or the epoch has changed since.
    pub overtaken: u64,
    /// Reads that were repeated on both stores.
    pub compared: u64,
    /// Those of them that the primary itself answered otherwise the second time.
    pub noise: u64,
    /// Those of them that the secondary answered otherwise: to be held against `noise`.
    pub differed: u64,
    /// Suspicions raised by answers that differed: a key or a page each, once as long as it waits.
    pub suspected: u64,
    /// Suspicions given up because too many waited already.
    pub forgotten: u64,
    /// Suspicions given up because the primary was written again and again.
    pub busy: u64,
    /// Suspicions that were none: the secondary had only not followed yet.
    pub level: u64,
    /// Suspicions that were true. A difference that was told before is counted again.
    pub lasting: u64,
    /// Suspicions that wait to be looked at, now.
    pub waiting: u64,
}

/// What a read or a suspicion came to: the counter of that name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Dropped,
    Failed,
    Overtaken,
    Compared,
    Noise,
    Differed,
    Suspected,
    Forgotten,
    Busy,
    Level,
    Lasting,
}

impl Outcome {
    /// All of them, in order, with their names.
    const ALL: [(Self, &'static str); 11] = [
        (Self::Dropped, "dropped"),
        (Self::Failed, "failed"),
        (Self::Overtaken, "overtaken"),
        (Self::Compared, "compared"),
        (Self::Noise, "noise"),
        (Self::Differed, "differed"),
        (Self::Suspected, "suspected"),
        (Self::Forgotten, "forgotten"),
        (Self::Busy, "busy"),
        (Self::Level, "level"),
        (Self::Lasting, "lasting"),
    ];
}

/// A difference that lasts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The collection.
    pub collection: &'static str,
    /// The text of the key; of a page, the query.
    pub id: String,
    /// How the secondary differs.
    pub kind: Kind,
    /// A unified diff from MongoDB to PostgreSQL, cut after 16 KiB.
    pub diff: String,
    /// When it was seen first.
    pub since: DateTime<Utc>,
}

impl Difference {
    fn is_about(&self, other: &Self) -> bool {
        (self.collection, &self.id) == (other.collection, &other.id)
    }
}

/// What was found so far.
#[derive(Debug)]
pub struct Findings {
    pub(super) suspicions: Suspicions,
    tallies: [Tally; Outcome::ALL.len()],
    differences: Mutex<VecDeque<Difference>>,
}

impl Findings {
    pub(super) fn new(suspicions: Suspicions) -> Self {
        let tallies = Outcome::ALL.map(|(_, name)| Tally::new(metrics::SHADOW_READS, name));
        Self { suspicions, tallies, differences: Mutex::default() }
    }

    /// The counters as they are now.
    pub fn counters(&self) -> Counters {
        let count = |outcome| self.tally(outcome).count();
        Counters {
            dropped: count(Outcome::Dropped),
            failed: count(Outcome::Failed),
            overtaken: count(Outcome::Overtaken),
            compared: count(Outcome::Compared),
            noise: count(Outcome::Noise),
            differed: count(Outcome::Differed),
            suspected: count(Outcome::Suspected),
            forgotten: count(Outcome::Forgotten),
            busy: count(Outcome::Busy),
            level: count(Outcome::Level),
            lasting: count(Outcome::Lasting),
            waiting: u64::try_from(self.suspicions.waiting()).unwrap_or(u64::MAX),
        }
    }

    /// The newest differences, one a key or page, in the order in which they were told. That a key is level again by now
    /// takes nothing away.
    pub fn differences(&self) -> Vec<Difference> {
        locked(&self.differences).iter().cloned().collect()
    }

    pub(super) fn count(&self, outcome: Outcome) {
        self.tally(outcome).one();
    }

    fn tally(&self, outcome: Outcome) -> &Tally {
        // `ALL` is in their order: a test looks at each.
        &self.tallies[outcome as usize]
    }

    /// Keeps `difference`. Whether it is a new one.
    pub(super) fn keep(&self, mut difference: Difference) -> bool {
        difference.diff.truncate(difference.diff.floor_char_boundary(DIFF_BYTES));
        let mut kept = locked(&self.differences);
        let same = kept.iter().position(|other| other.is_about(&difference));
        if same.is_some_and(|place| (kept[place].kind, &kept[place].diff) == (difference.kind, &difference.diff)) {
            return false;
        }
        if let Some(place) = same {
            kept.remove(place);
        } else if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(difference);
        true
    }
}

/// Each change is one step, so what is inside is whole even after a panic.
fn locked<T>(inside: &Mutex<T>) -> MutexGuard<'_, T> {
    inside.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(id: &str, diff: &str) -> Difference {
        let since = DateTime::UNIX_EPOCH;
        Difference { collection: "c", id: id.to_owned(), kind: Kind::Content, diff: diff.to_owned(), since }
    }

    #[test]
    fn each_outcome_has_a_counter_of_its_own_name() {
        for (place, (outcome, name)) in Outcome::ALL.into_iter().enumerate() {
            let findings = Findings::new(Suspicions::new().0);
            findings.count(outcome);
            assert_eq!(outcome as usize, place);
            assert_eq!(serde_json::to_value(findings.counters()).unwrap()[name], 1, "{name}");
        }
    }

    #[test]
    fn a_difference_is_new_once_and_again_when_it_is_another() {
        let findings = Findings::new(Suspicions::new().0);
        let keep = |id, diff| findings.keep(difference(id, diff));
        assert_eq!([keep("a", "1"), keep("b", "1"), keep("a", "1"), keep("a", "2")], [true, true, false, true]);
        assert_eq!(findings.differences(), [difference("b", "1"), difference("a", "2")]);
    }

    #[test]
    fn many_differences_and_a_long_diff_are_bounded() {
        let findings = Findings::new(Suspicions::new().0);
        (0..=KEPT).for_each(|id| assert!(findings.keep(difference(&id.to_string(), &"ä".repeat(DIFF_BYTES)))));
        let kept = findings.differences();
        assert_eq!((kept.len(), kept[0].id.as_str(), kept[0].diff.len()), (KEPT, "1", DIFF_BYTES));
    }
}
