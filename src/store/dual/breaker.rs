//! The circuit breaker before the secondary: once it fails, nobody waits for it until a probe has gone through.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Whether a write may go to the secondary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It may, and its caller waits for it.
    Wait,
    /// It may, to see whether the secondary is back; nobody waits for it.
    Probe,
    /// It may not.
    No,
}

/// Closed as long as the secondary answers in time.
#[derive(Debug, Default)]
pub struct Breaker {
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy, Default)]
enum State {
    #[default]
    Closed,
    Open {
        until: Instant,
    },
    /// A probe is under way, or was given up at `until`.
    Probing {
        until: Instant,
    },
}

impl Breaker {
    /// What the next write may do. One write in each `pause` is the probe.
    pub fn admit(&self, pause: Duration) -> Admission {
        let mut state = self.state();
        match *state {
            State::Closed => Admission::Wait,
            State::Open { until } | State::Probing { until } if until <= Instant::now() => {
                *state = State::Probing { until: Instant::now() + pause };
                Admission::Probe
            }
            State::Open { .. } | State::Probing { .. } => Admission::No,
        }
    }

    /// The secondary has answered. Whether the breaker was open.
    pub fn succeeded(&self) -> bool {
        !matches!(std::mem::replace(&mut *self.state(), State::Closed), State::Closed)
    }

    /// The secondary has failed, or has not answered in time: a probe comes after `pause`. Whether the breaker was closed.
    pub fn failed(&self, pause: Duration) -> bool {
        let open = State::Open { until: Instant::now() + pause };
        matches!(std::mem::replace(&mut *self.state(), open), State::Closed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is one step, so it is whole even after a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_failure_opens_it_and_one_probe_a_pause_closes_it_again() {
        let pause = Duration::from_secs(1);
        let breaker = Breaker::default();
        assert_eq!(breaker.admit(pause), Admission::Wait);
        assert!(breaker.failed(pause) && !breaker.failed(pause));
        assert_eq!(breaker.admit(pause), Admission::No);
        tokio::time::advance(pause).await;
        assert_eq!([breaker.admit(pause), breaker.admit(pause)], [Admission::Probe, Admission::No]);
        assert!(!breaker.failed(pause));
        tokio::time::advance(pause).await;
        assert_eq!(breaker.admit(pause), Admission::Probe);
        // A probe that never comes back is followed by another.
        tokio::time::advance(pause).await;
        assert_eq!(breaker.admit(pause), Admission::Probe);
        assert!(breaker.succeeded() && !breaker.succeeded());
        assert_eq!(breaker.admit(pause), Admission::Wait);
    }
}
