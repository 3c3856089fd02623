//! The rate limit: what a batch costs is paid for with time before the next one is read.

use std::num::NonZeroU64;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

/// The most documents and bytes a second that one process reads; nothing is unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rate {
    /// Documents a second.
    pub documents: Option<NonZeroU64>,
    /// Bytes of BSON a second.
    pub bytes: Option<NonZeroU64>,
}

impl Rate {
    /// How long a batch takes at this rate.
    fn cost(self, documents: u64, bytes: u64) -> Duration {
        let time = |amount: u64, rate: Option<NonZeroU64>| {
            let micros = rate.map(|rate| amount.saturating_mul(1_000_000) / rate);
            Duration::from_micros(micros.unwrap_or_default())
        };
        time(documents, self.documents).max(time(bytes, self.bytes))
    }

    /// The most documents one batch may have so that it takes no longer than about a second.
    pub fn batch(self) -> u32 {
        let most = self.documents.map_or(u64::MAX, NonZeroU64::get);
        u32::try_from(most).unwrap_or(u32::MAX)
    }
}

/// Holds all readers of one process to one [`Rate`].
#[derive(Debug)]
pub struct Limiter {
    rate: Rate,
    free_at: Mutex<Instant>,
}

impl Limiter {
    /// A limiter that lets the first batch through at once.
    pub fn new(rate: Rate) -> Self {
        Self { rate, free_at: Mutex::new(Instant::now()) }
    }

    /// The rate.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Waits until a batch of this size, just read, is paid for.
    pub async fn pay(&self, documents: u64, bytes: u64) {
        let paid_at = {
            let mut free_at = self.free_at.lock().await;
            *free_at = (*free_at).max(Instant::now()) + self.rate.cost(documents, bytes);
            *free_at
        };
        tokio::time::sleep_until(paid_at).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn readers_share_one_rate_and_the_dearer_of_the_two_counts() {
        let rate = Rate { documents: NonZeroU64::new(100), bytes: NonZeroU64::new(1_000) };
        let (limiter, start) = (Limiter::new(rate), Instant::now());
        tokio::join!(limiter.pay(50, 0), limiter.pay(50, 2_000));
        let taken = start.elapsed();
        assert!((2.45..2.6).contains(&taken.as_secs_f64()), "{taken:?}");
        Limiter::new(Rate::default()).pay(u64::MAX, u64::MAX).await;
        assert_eq!(start.elapsed(), taken);
    }
}
