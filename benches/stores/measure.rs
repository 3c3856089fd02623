//! Runs one operation many times with several callers, and says how fast.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use serde_json::{Value, json};

use crate::common::median;

/// One operation; it is told its number, which no other of the same contender has.
pub type Operation = Arc<dyn Fn(u64) -> BoxFuture<'static, ()> + Send + Sync>;

/// How fast an operation was: operations a second, latencies in microseconds.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    pub rate: f64,
    pub p50: f64,
    pub p99: f64,
}

impl Figure {
    pub fn latencies(&self) -> String {
        format!("{:.0}/{:.0}", self.p50, self.p99)
    }

    pub fn json(&self) -> Value {
        json!({ "operations_per_second": self.rate, "p50_us": self.p50, "p99_us": self.p99 })
    }
}

/// Runs `operation` `count` times with `callers` at a time.
pub async fn measured(operation: &Operation, count: u64, callers: usize) -> Figure {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let left = Arc::new(AtomicU64::new(count));
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..callers {
        let (operation, left) = (operation.clone(), left.clone());
        tasks.spawn(async move {
            let mut taken = Vec::new();
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                let begun = Instant::now();
                operation(NUMBER.fetch_add(1, Ordering::Relaxed)).await;
                taken.push(begun.elapsed());
            }
            taken
        });
    }
    let mut taken: Vec<Duration> = tasks.join_all().await.into_iter().flatten().collect();
    let rate = taken.len() as f64 / begun.elapsed().as_secs_f64();
    taken.sort();
    let at = |part: usize| taken[(taken.len() * part / 100).min(taken.len() - 1)].as_secs_f64() * 1e6;
    Figure { rate, p50: at(50), p99: at(99) }
}

/// Of each part of the figures its median.
pub fn middle(figures: &[Figure]) -> Figure {
    let of = |part: fn(&Figure) -> f64| median(figures.iter().map(part).collect());
    Figure { rate: of(|figure| figure.rate), p50: of(|figure| figure.p50), p99: of(|figure| figure.p99) }
}
