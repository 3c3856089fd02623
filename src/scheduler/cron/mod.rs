//! Cron expressions and when they fire (design 14).
//!
//! The calendar is one of local times, which the crate `croner` walks; the rules of the zone are ours. Invariants: every
//! local time that matches fires once: one that daylight saving skips at the first instant after the gap, where all the
//! skipped ones fall together; one that comes twice at its first occurrence. Firings rise strictly.

mod parse;

use chrono::{DateTime, Datelike, LocalResult, NaiveDateTime, TimeDelta, TimeZone, Timelike, Utc};
use chrono_tz::Tz;

pub use self::parse::CronError;
use crate::entity::triggers::MisfirePolicy;

/// How late a firing may be and still be on time; beyond, its trigger's misfire policy decides.
pub const GRACE: TimeDelta = TimeDelta::seconds(60);

/// The last year in which a firing is looked for. An expression that fires at all does so several times in 40 years.
const LAST_YEAR: i32 = 2_500;

/// Wider than any gap and any offset of a zone together.
const WINDOW: TimeDelta = TimeDelta::hours(72);

/// A cron expression in a zone.
///
/// Five fields, or six with seconds first: seconds, minutes, hours, days of the month, months, days of the week. A field is a
/// list of numbers, names (`JAN`, `MON`, in any case), ranges and steps; `*` is all of them. The last day of the month is
/// `L`; `5L` or `FRIL` is its last Friday, `FRI#2` its second. Sunday is 0 and 7. When both day fields are restricted (neither is
/// `*` or `?`), a day that either of them names matches. `@yearly`, `@annually`, `@monthly`, `@weekly`, `@daily`,
/// `@midnight` and `@hourly` stand for what they say.
#[derive(Debug, Clone)]
pub struct Cron {
    calendar: croner::Cron,
    zone: Tz,
}

/// What becomes of a firing that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Firing {
    /// The moment it was due at; nothing when it is passed over.
    pub fire: Option<DateTime<Utc>>,
    /// The next one; nothing when there is none any more.
    pub next: Option<DateTime<Utc>>,
}

impl Cron {
    /// The cron expression `expression` in the IANA zone `zone`.
    ///
    /// # Errors
    /// [`CronError`], with the position in the expression, for one that cannot be read or that never fires, and for a zone
    /// that does not exist.
    pub fn parse(expression: &str, zone: &str) -> Result<Self, CronError> {
        let normal = parse::normal(expression)?;
        let zone = zone.parse().map_err(|_| CronError::Zone { zone: zone.to_owned() })?;
        let parser = croner::parser::CronParser::builder().seconds(croner::parser::Seconds::Required).build();
        let calendar = parser.parse(&normal).map_err(|error| CronError::Calendar { reason: error.to_string() })?;
        Ok(Self { calendar, zone })
    }

    /// The first firing after `after`; nothing when there is none before the year 2500.
    pub fn next(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        // No local time up to that of `after` fires later than `after`: the instants of local times never fall.
        let mut local = after.with_timezone(&self.zone).naive_local().with_nanosecond(0)?;
        loop {
            local = self.next_local(local)?;
            let instant = self.instant(local)?;
            // Not so for what has fired already: a local time that comes a second time, or that fell into a gap.
            if instant > after {
                return Some(instant);
            }
        }
    }

    /// The first local time after `local` that matches.
    fn next_local(&self, local: NaiveDateTime) -> Option<NaiveDateTime> {
        // UTC has no gaps, so that the crate walks the bare calendar.
        let next = self.calendar.find_next_occurrence(&Utc.from_utc_datetime(&local), false).ok()?.naive_utc();
        (next.year() <= LAST_YEAR).then_some(next)
    }

    /// When `local` fires.
    fn instant(&self, local: NaiveDateTime) -> Option<DateTime<Utc>> {
        match self.zone.from_local_datetime(&local) {
            LocalResult::Single(instant) | LocalResult::Ambiguous(instant, _) => Some(instant.with_timezone(&Utc)),
            LocalResult::None => self.end_of_gap(local),
        }
    }

    /// The first instant after the gap that `local` lies in.
    fn end_of_gap(&self, local: NaiveDateTime) -> Option<DateTime<Utc>> {
        let is_after = |instant: DateTime<Utc>| instant.with_timezone(&self.zone).naive_local() > local;
        let (mut before, mut after) = (Utc.from_utc_datetime(&local) - WINDOW, Utc.from_utc_datetime(&local) + WINDOW);
        while after - before > TimeDelta::seconds(1) {
            let middle = before + TimeDelta::seconds((after - before).num_seconds() / 2);
            if is_after(middle) {
                after = middle;
            } else {
                before = middle;
            }
        }
        is_after(after).then_some(after)
    }
}

/// What becomes of the firing due at `due_at`, at `now`. One that is at most [`GRACE`] late fires, and so does each that
/// follows. Of those that are later, `fire-once` makes one firing, and `skip` none.
pub fn plan(cron: &Cron, due_at: DateTime<Utc>, now: DateTime<Utc>, policy: MisfirePolicy) -> Firing {
    let on_time = now.checked_sub_signed(GRACE).unwrap_or(now);
    match policy {
        _ if due_at >= on_time => Firing { fire: Some(due_at), next: cron.next(due_at) },
        MisfirePolicy::FireOnce => Firing { fire: Some(due_at), next: cron.next(now) },
        // Strictly after: one that is exactly as late as it may be is not missed.
        MisfirePolicy::Skip => Firing { fire: None, next: cron.next(on_time - TimeDelta::nanoseconds(1)) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn a_firing_within_the_grace_fires_and_later_ones_follow_the_policy() {
        let cron = Cron::parse("*/10 * * * *", "UTC").unwrap();
        let (due, soon, late) = (at("2026-03-01T10:00:00Z"), at("2026-03-01T10:00:59Z"), at("2026-03-01T10:30:20Z"));
        let next = |text| Some(at(text));
        for policy in [MisfirePolicy::FireOnce, MisfirePolicy::Skip] {
            assert_eq!(plan(&cron, due, soon, policy), Firing { fire: Some(due), next: next("2026-03-01T10:10:00Z") });
        }
        let once = plan(&cron, due, late, MisfirePolicy::FireOnce);
        assert_eq!(once, Firing { fire: Some(due), next: next("2026-03-01T10:40:00Z") });
        // The one of half past is 20 seconds late, which is on time.
        let skipped = plan(&cron, due, late, MisfirePolicy::Skip);
        assert_eq!(skipped, Firing { fire: None, next: next("2026-03-01T10:30:00Z") });
    }

    #[test]
    fn after_a_fraction_of_a_second_comes_the_next_whole_one() {
        let cron = Cron::parse("* * * * * *", "UTC").unwrap();
        assert_eq!(cron.next(at("2026-03-01T10:00:00.999Z")), Some(at("2026-03-01T10:00:01Z")));
        assert_eq!(cron.next(at("2026-03-01T10:00:01Z")), Some(at("2026-03-01T10:00:02Z")));
    }
}
