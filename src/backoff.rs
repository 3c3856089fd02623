//! The pauses between attempts at what fails for a reason that passes.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

/// From a tenth of a second, doubling to five seconds, without end.
pub fn waits() -> impl Iterator<Item = Duration> + Send {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(5))
        .with_jitter()
        .without_max_times()
        .build()
}
