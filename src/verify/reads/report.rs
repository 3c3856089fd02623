//! What read parity found.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::difference::Difference;
use crate::entity::{ENTITIES, Entity};
use crate::phase::Phase;
use crate::verify::Verdict;
use crate::verify::report::as_text;

/// The counts of one collection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// The collection.
    pub name: &'static str,
    /// Queries that were asked.
    pub queries: u64,
    /// Pages that were compared.
    pub pages: u64,
    /// Records on them; one that several queries find counts as often.
    pub records: u64,
    /// Pages that differed at first, and were looked at again.
    pub rechecked: u64,
    /// Queries of which a page was written to all the time: nothing is known of that page.
    pub unsettled: u64,
    /// Queries that the secondary answers otherwise for good.
    pub differences: u64,
}

/// The result of a comparison of reads.
#[derive(Debug, Clone, Serialize)]
pub struct ReadReport {
    /// What it says.
    pub verdict: Verdict,
    /// The phase in which it was made.
    #[serde(serialize_with = "as_text")]
    pub phase: Phase,
    /// The epoch in which it was made.
    pub epoch: i32,
    /// Whose queries were compared, beside those across tenants: how many tenants.
    pub tenants: u64,
    /// How many tenants there are.
    pub tenants_in_all: u64,
    /// Whether it was only some of the tenants, drawn at random.
    pub sampled: bool,
    /// Each collection that was asked about.
    pub collections: Vec<Counts>,
    /// Queries that were asked.
    pub queries: u64,
    /// Pages that were compared.
    pub pages: u64,
    /// Records on them; one that several queries find counts as often.
    pub records: u64,
    /// Pages that differed at first, and were looked at again.
    pub rechecked: u64,
    /// Queries of which a page was written to all the time: nothing is known of that page.
    pub unsettled: u64,
    /// What differs for good, the first page of each query; at most [`super::Options::listed`].
    pub differences: Vec<Difference>,
    /// Differences that are counted but not listed.
    pub unlisted: u64,
    /// When it began, by PostgreSQL's clock.
    pub started_at: DateTime<Utc>,
    /// When it ended, by PostgreSQL's clock.
    pub finished_at: DateTime<Utc>,
}

/// The counts and differences so far.
#[derive(Debug)]
pub struct Tally {
    pub collections: Vec<Counts>,
    pub differences: Vec<Difference>,
}

impl Tally {
    /// Nothing so far.
    pub fn new() -> Self {
        let named = |entity: &&Entity| Counts { name: entity.name, ..Counts::default() };
        Self { collections: ENTITIES.iter().map(named).collect(), differences: Vec::new() }
    }

    /// The counts of a collection.
    pub fn of(&mut self, entity: &Entity) -> Option<&mut Counts> {
        self.collections.iter_mut().find(|counts| counts.name == entity.name)
    }

    /// Keeps a difference if there is room; of the first `shown` the diff too.
    pub fn keep(&mut self, mut difference: Difference, (listed, shown): (usize, usize)) {
        if self.differences.len() >= shown {
            difference.diff = None;
        }
        if self.differences.len() < listed {
            self.differences.push(difference);
        }
    }

    /// Adds what another has found.
    pub fn add(&mut self, other: Self, most: (usize, usize)) {
        for (counts, other) in self.collections.iter_mut().zip(other.collections) {
            counts.queries += other.queries;
            counts.pages += other.pages;
            counts.records += other.records;
            counts.rechecked += other.rechecked;
            counts.unsettled += other.unsettled;
            counts.differences += other.differences;
        }
        other.differences.into_iter().for_each(|difference| self.keep(difference, most));
    }

    /// The sum of one count over all collections.
    pub fn sum(&self, count: fn(&Counts) -> u64) -> u64 {
        self.collections.iter().map(count).sum()
    }

    /// What it all says: nothing compared is never a pass.
    pub fn verdict(&self) -> Verdict {
        match (self.sum(|one| one.differences), self.sum(|one| one.records)) {
            (1.., _) => Verdict::Mismatch,
            (0, 0) => Verdict::Inconclusive,
            (0, _) => Verdict::Clean,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_compared_is_inconclusive_however_many_queries_were_asked() {
        let mut tally = Tally::new();
        tally.collections[0].queries = 9;
        assert_eq!(tally.verdict(), Verdict::Inconclusive);
        tally.collections[1].records = 1;
        assert_eq!(tally.verdict(), Verdict::Clean);
        tally.collections[2].differences = 1;
        assert_eq!(tally.verdict(), Verdict::Mismatch);
    }
}
