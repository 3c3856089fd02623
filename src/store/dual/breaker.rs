//! The circuit breaker before the secondary: once it fails, it is passed over until a probe has gone through.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::metrics;

/// Closed as long as the secondary answers in time.
#[derive(Debug)]
pub struct Breaker {
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Closed,
    /// Until then nothing goes through; the probe after that moves it on.
    Open {
        until: Instant,
    },
}

impl Breaker {
    /// A closed one.
    pub fn closed() -> Self {
        metrics::BREAKER_OPEN.set(0.0);
        metrics::BREAKER_OPENINGS.add(0);
        metrics::BREAKER_PROBES.add(0);
        Self { state: Mutex::new(State::Closed) }
    }

    /// Whether the next write may go to the secondary. While the breaker is open, one in each `pause` is the probe.
    pub fn admit(&self, pause: Duration) -> bool {
        let mut state = self.state();
        match *state {
            State::Closed => true,
            State::Open { until } if until <= Instant::now() => {
                *state = State::Open { until: Instant::now() + pause };
                metrics::BREAKER_PROBES.add(1);
                true
            }
            State::Open { .. } => false,
        }
    }

    /// The secondary has answered. Whether the breaker was open.
    pub fn succeeded(&self) -> bool {
        let was_open = !matches!(std::mem::replace(&mut *self.state(), State::Closed), State::Closed);
        if was_open {
            metrics::BREAKER_OPEN.set(0.0);
        }
        was_open
    }

    /// The secondary has failed, or has not answered in time: a probe comes after `pause`. Whether the breaker was closed.
    pub fn failed(&self, pause: Duration) -> bool {
        let open = State::Open { until: Instant::now() + pause };
        let was_closed = matches!(std::mem::replace(&mut *self.state(), open), State::Closed);
        if was_closed {
            metrics::BREAKER_OPEN.set(1.0);
            metrics::BREAKER_OPENINGS.add(1);
        }
        was_closed
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is one step, so it is whole even after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use metrics_util::debugging::{DebugValue, DebuggingRecorder};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_failure_opens_it_and_one_probe_a_pause_closes_it_again() {
        let pause = Duration::from_secs(1);
        let breaker = Breaker::closed();
        assert!(breaker.admit(pause));
        assert!(breaker.failed(pause) && !breaker.failed(pause));
        assert!(!breaker.admit(pause));
        tokio::time::advance(pause).await;
        assert_eq!([breaker.admit(pause), breaker.admit(pause)], [true, false]);
        assert!(!breaker.failed(pause));
        tokio::time::advance(pause).await;
        assert!(breaker.admit(pause));
        // A probe that never comes back is followed by another.
        tokio::time::advance(pause).await;
        assert!(breaker.admit(pause));
        assert!(breaker.succeeded() && !breaker.succeeded());
        assert!(breaker.admit(pause));
    }

    #[tokio::test(start_paused = true)]
    async fn its_openings_and_probes_are_counted() {
        let recorder = DebuggingRecorder::new();
        let told = recorder.snapshotter();
        let told = || -> Vec<f64> {
            let value = |value| match value {
                DebugValue::Gauge(now) => now.into_inner(),
                DebugValue::Counter(count) => count as f64,
                DebugValue::Histogram(_) => f64::NAN,
            };
            told.snapshot().into_vec().into_iter().map(|(.., told)| value(told)).collect()
        };
        let _local = ::metrics::set_default_local_recorder(&recorder);
        let pause = Duration::from_secs(1);
        let breaker = Breaker::closed();
        // Whether it is open, and how many openings and probes there were since it was last looked.
        assert_eq!(told(), [0.0, 0.0, 0.0]);
        assert!(breaker.failed(pause) && !breaker.failed(pause));
        assert_eq!(told(), [1.0, 1.0, 0.0]);
        tokio::time::advance(pause).await;
        assert_eq!([breaker.admit(pause), breaker.admit(pause)], [true, false]);
        assert!(!breaker.failed(pause));
        assert_eq!(told()[1..], [0.0, 1.0]);
        tokio::time::advance(pause).await;
        assert!(breaker.admit(pause) && breaker.succeeded());
        assert_eq!(told(), [0.0, 0.0, 1.0]);
    }
}
