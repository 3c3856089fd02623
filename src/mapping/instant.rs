//! Instants: BSON dates (milliseconds since 1970), ISO-8601 strings, and `timestamptz` (microseconds since 2000).

use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};

/// Milliseconds from 1970 to 2000, where PostgreSQL counts from.
const POSTGRES_EPOCH: i64 = 946_684_800_000;

/// The first instant of `timestamptz`, 4714-11-24 BC, and the first one after its last, 294277-01-01
/// (`MIN_TIMESTAMP` and `END_TIMESTAMP` in PostgreSQL's `datatype/timestamp.h`).
const RANGE: std::ops::Range<i64> = -211_813_488_000_000_000..9_223_371_331_200_000_000;

/// `infinity` and `-infinity` in PostgreSQL's binary form.
const INFINITY: i64 = i64::MAX;
const MINUS_INFINITY: i64 = i64::MIN;

/// A `timestamptz` in PostgreSQL's binary form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instant(i64);

impl Instant {
    /// The instant of a BSON date; an infinity when PostgreSQL has no such date.
    pub fn of_millis(millis: i64) -> Self {
        // From 2000 on before it becomes microseconds: those since 1970 run out before `timestamptz` does.
        match millis.checked_sub(POSTGRES_EPOCH).and_then(|millis| millis.checked_mul(1_000)) {
            Some(micros) if RANGE.contains(&micros) => Self(micros),
            _ if millis < 0 => Self(MINUS_INFINITY),
            _ => Self(INFINITY),
        }
    }

    /// The instant that an ISO-8601 text names, to the microsecond (further digits are cut off). Without an offset
    /// it is UTC, as the scheduler's writers meant it.
    pub fn of_text(text: &str) -> Option<Self> {
        let utc = DateTime::parse_from_rfc3339(text).map(|instant| instant.to_utc()).ok();
        let local = || text.parse::<NaiveDateTime>().ok().map(|instant| instant.and_utc());
        let day = || text.parse::<NaiveDate>().ok()?.and_hms_opt(0, 0, 0).map(|instant| instant.and_utc());
        let instant: DateTime<Utc> = utc.or_else(local).or_else(day)?;
        let micros = instant.timestamp_micros().checked_sub(POSTGRES_EPOCH * 1_000)?;
        RANGE.contains(&micros).then_some(Self(micros))
    }

    /// The value's eight bytes.
    pub fn to_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }

    /// The value with these eight bytes.
    pub fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(i64::from_be_bytes(bytes))
    }

    /// Whether this is a date PostgreSQL can tell from its neighbours.
    pub fn is_finite(self) -> bool {
        RANGE.contains(&self.0)
    }

    /// The BSON date of this instant, if it has whole milliseconds.
    pub fn millis(self) -> Option<i64> {
        let whole = self.is_finite() && self.0 % 1_000 == 0;
        whole.then(|| self.0 / 1_000 + POSTGRES_EPOCH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(text: &str) -> Option<i64> {
        Instant::of_text(text).map(|instant| instant.0 + POSTGRES_EPOCH * 1_000)
    }

    #[test]
    fn iso_texts_of_every_writer_name_their_instant() {
        let noon = 1_761_480_000_000_000;
        assert_eq!(micros("2025-10-26T12:00:00Z"), Some(noon));
        assert_eq!(micros("2025-10-26T12:00:00+00:00"), Some(noon));
        assert_eq!(micros("2025-10-26T14:00:00.0000000+02:00"), Some(noon));
        assert_eq!(micros("2025-10-26T12:00:00.1234567Z"), Some(noon + 123_456));
        assert_eq!(micros("2025-10-26T12:00:00.5"), Some(noon + 500_000));
        assert_eq!(micros("2025-10-26"), Some(noon - 43_200_000_000));
        assert_eq!(micros("2025-02-30"), None);
        assert_eq!(micros("yesterday"), None);
    }

    #[test]
    fn dates_outside_timestamptz_become_infinities_and_not_other_dates() {
        assert_eq!(Instant::of_millis(i64::MAX), Instant(INFINITY));
        assert_eq!(Instant::of_millis(i64::MIN), Instant(MINUS_INFINITY));
        let last = RANGE.end / 1_000 + POSTGRES_EPOCH - 1;
        assert_eq!(Instant::of_millis(last).millis(), Some(last));
        assert_eq!(Instant::of_millis(last + 1), Instant(INFINITY));
        let first = RANGE.start / 1_000 + POSTGRES_EPOCH;
        assert_eq!(Instant::of_millis(first).millis(), Some(first));
        assert_eq!(Instant::of_millis(first - 1), Instant(MINUS_INFINITY));
    }

    #[test]
    fn an_instant_between_two_milliseconds_is_no_bson_date() {
        assert_eq!(Instant(1_000).millis(), Some(POSTGRES_EPOCH + 1));
        assert_eq!(Instant(-1_000).millis(), Some(POSTGRES_EPOCH - 1));
        assert_eq!(Instant(1_001).millis(), None);
        assert_eq!(Instant(INFINITY).millis(), None);
        assert_eq!(Instant::from_bytes(Instant(-7).to_bytes()), Instant(-7));
    }
}
