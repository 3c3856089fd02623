//! A report in words: the same on a page and in a terminal.

use chrono::{DateTime, TimeDelta, Utc};
use indicatif::HumanCount;

use super::report::{Gate, Kind, Mismatch, Report, Surroundings, Verdict};
use crate::entity::ENTITIES;

impl Verdict {
    /// Its name, as in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Mismatch => "mismatch",
            Self::Inconclusive => "inconclusive",
        }
    }
}

impl Kind {
    /// What it means.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Missing => "only the primary has it",
            Self::Extra => "only the secondary has it",
            Self::Content => "the two sides differ",
        }
    }
}

impl Mismatch {
    /// How long the sides had differed at this time.
    pub fn age(&self, at: DateTime<Utc>) -> String {
        duration(at - self.since)
    }
}

impl Gate {
    /// How many of its conditions are met.
    pub fn summary(&self) -> String {
        let met = self.conditions.iter().filter(|condition| condition.met).count();
        format!("gate to {}: {met} of {} conditions met", self.to, self.conditions.len())
    }
}

impl Report {
    /// All that was found, in a sentence.
    pub fn sentence(&self) -> String {
        let total = self.total();
        let unsettled = keys(self.unsettled);
        let compared = format!(
            "among {} documents, {} rows and {} quarantined documents",
            count(total.documents),
            count(total.rows),
            count(total.quarantined)
        );
        match self.verdict {
            Verdict::Clean => format!("nothing differs {compared}"),
            Verdict::Mismatch if total.mismatches() == 1 => format!("1 key differs {compared}"),
            Verdict::Mismatch => format!("{} differ {compared}", keys(total.mismatches())),
            Verdict::Inconclusive if self.unsettled > 0 => format!("nothing is known of {unsettled} {compared}"),
            Verdict::Inconclusive => "nothing was compared, so nothing is proven".to_owned(),
        }
    }

    /// What was looked at.
    pub fn scope(&self) -> String {
        let all = ENTITIES.len();
        let names: Vec<_> = self.collections.iter().map(|one| one.name).collect();
        let collections = match names.len() {
            some if some < all => format!("{some} of {all} collections: {}", names.join(", ")),
            _ => format!("all {all} collections"),
        };
        match self.sample {
            Some(part) => format!("a sample, {} % of the ranges, of {collections}", (part * 10_000.0).round() / 100.0),
            None => format!("{collections}, whole"),
        }
    }

    /// How long it took.
    pub fn took(&self) -> String {
        duration(self.finished_at - self.started_at)
    }

    /// Under which conditions it was made: names and values.
    pub fn facts(&self, surroundings: &Surroundings) -> Vec<(&'static str, String)> {
        let longest = self.longest_query;
        let milliseconds = |store: &str, taken: f64| format!("{store} {taken:.1} ms");
        vec![
            ("scope", self.scope()),
            ("phase", format!("{}, epoch {}", self.phase, self.epoch)),
            ("verification", format!("number {}", self.number)),
            ("begun", instant(self.started_at)),
            ("ended", format!("{}, after {}", instant(self.finished_at), self.took())),
            ("tolerance", format!("a difference must last {} s", self.tolerance_seconds)),
            ("rechecked", format!("{} that the mirror or a shadow read had named", keys(self.rechecked))),
            ("unsettled", format!("{} written to all the time: nothing is known of them", keys(self.unsettled))),
            (
                "longest query",
                [
                    milliseconds("MongoDB", longest.mongodb_milliseconds),
                    milliseconds("PostgreSQL", longest.postgresql_milliseconds),
                ]
                .join(", "),
            ),
            (
                "versions",
                format!(
                    "bridge {}, MongoDB {}, PostgreSQL {}",
                    surroundings.bridge, surroundings.mongodb, surroundings.postgresql
                ),
            ),
        ]
    }
}

fn keys(number: u64) -> String {
    format!("{} {}", count(number), if number == 1 { "key" } else { "keys" })
}

/// A number with its thousands set apart.
pub fn count(number: u64) -> String {
    HumanCount(number).to_string()
}

/// A time, to the second.
pub fn instant(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// A duration in its two largest units.
pub fn duration(time: TimeDelta) -> String {
    let time = time.max(TimeDelta::zero());
    match time.num_seconds() {
        0..60 => format!("{:.1} s", time.as_seconds_f64()),
        seconds @ 60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        seconds @ 3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
        seconds => format!("{} d {} h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::sample;

    #[test]
    fn a_duration_is_told_in_units_that_people_read() {
        let told = [-5, 0, 59, 61, 3_599, 3_600, 86_399, 200_000].map(|seconds| duration(TimeDelta::seconds(seconds)));
        let expected = ["0.0 s", "0.0 s", "59.0 s", "1 min 1 s", "59 min 59 s", "1 h 0 min", "23 h 59 min", "2 d 7 h"];
        assert_eq!(told, expected);
    }

    #[test]
    fn the_scope_tells_the_whole_from_a_part() {
        let (mut report, _) = sample::report();
        assert_eq!(report.scope(), "all 11 collections, whole");
        report.sample = Some(0.125);
        assert_eq!(report.scope(), "a sample, 12.5 % of the ranges, of all 11 collections");
        report.collections.truncate(2);
        report.sample = None;
        assert_eq!(report.scope(), "2 of 11 collections: schedules, triggers, whole");
    }

    #[test]
    fn every_verdict_has_its_sentence() {
        let (mut report, _) = sample::report();
        let mut sentence = |verdict, unsettled| {
            (report.verdict, report.unsettled) = (verdict, unsettled);
            report.sentence()
        };
        let compared = "among 200,030 documents, 200,028 rows and 2 quarantined documents";
        assert_eq!(sentence(Verdict::Mismatch, 0), format!("3 keys differ {compared}"));
        assert_eq!(sentence(Verdict::Clean, 0), format!("nothing differs {compared}"));
        assert_eq!(sentence(Verdict::Inconclusive, 1), format!("nothing is known of 1 key {compared}"));
        assert_eq!(sentence(Verdict::Inconclusive, 0), "nothing was compared, so nothing is proven");
    }
}
