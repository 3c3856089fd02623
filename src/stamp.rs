//! The stamp: the total order of the writes to one key (design 7).

use bson::Timestamp;

/// `(epoch, clock)`, compared in that order. The newest write of a key is the one with the greatest stamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    /// Rises by one at every change of primary, so that no clocks of the two stores are ever compared.
    pub epoch: i32,
    /// With MongoDB as primary the oplog timestamp, seconds in the upper and the increment in the lower 32 bits;
    /// with PostgreSQL as primary a value of `bridge.clock`.
    pub clock: i64,
}

impl Stamp {
    /// The stamp of a write that MongoDB, as the primary of `epoch`, acknowledged at `time`.
    pub fn of_oplog(epoch: i32, time: Timestamp) -> Self {
        Self { epoch, clock: clock(time) }
    }
}

/// The clock of an oplog time.
pub fn clock(time: Timestamp) -> i64 {
    let clock = (u64::from(time.time) << 32) | u64::from(time.increment);
    // Seconds stay below 2^31 until 2038; beyond that the clock saturates rather than turn negative.
    i64::try_from(clock).unwrap_or(i64::MAX)
}

/// The oplog time of a clock.
pub fn time_of(clock: i64) -> Timestamp {
    let half = |bits: i64| u32::try_from(bits & i64::from(u32::MAX)).unwrap_or_default();
    Timestamp { time: half(clock >> 32), increment: half(clock) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_oplog_time_is_a_greater_stamp_and_a_later_epoch_beats_any_clock() {
        let stamp = |epoch, time, increment| Stamp::of_oplog(epoch, Timestamp { time, increment });
        assert!(stamp(1, 5, 9) < stamp(1, 6, 1));
        assert!(stamp(1, 5, 1) < stamp(1, 5, 2));
        assert!(stamp(1, u32::MAX, 0) < stamp(2, 0, 0));
        assert_eq!(stamp(1, 1_700_000_000, 7).clock, (1_700_000_000_i64 << 32) + 7);
        let time = Timestamp { time: 1_700_000_000, increment: u32::MAX };
        assert_eq!(time_of(clock(time)), time);
    }
}
