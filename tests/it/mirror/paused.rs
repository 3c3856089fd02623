//! Two mirrors: one is active, and one that has slept through its lease does no harm when it wakes up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use rustix::process::Signal;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Churn, LIMIT, assert_clean, begun, level, mirror, run, stop};
use crate::bed::{Bed, until};
use crate::faults::gate::{Gate, until_bridge_waits};
use crate::faults::killed::Moments;
use crate::faults::process::Bridge;

/// How often the mirror's progress is looked at.
const SAMPLE: Duration = Duration::from_millis(5);

/// Looks at the mirror's progress all the time.
struct Observer {
    stop: CancellationToken,
    steps: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Observer {
    fn start(bed: &Bed) -> Self {
        let (stop, pool, steps) = (CancellationToken::new(), bed.pool().clone(), Arc::new(AtomicU64::new(0)));
        let (stopped, seen) = (stop.clone(), steps.clone());
        let task = tokio::spawn(async move {
            let mut last = None;
            while !stopped.is_cancelled() {
                let query = sqlx::query_scalar("select clock from bridge.stream");
                let clock: Option<i64> = query.fetch_optional(&pool).await.expect("look");
                assert!(clock >= last, "{clock:?} after {last:?}");
                seen.fetch_add(u64::from(clock > last), Relaxed);
                last = clock;
                tokio::time::sleep(SAMPLE).await;
            }
        });
        Self { stop, steps, task }
    }

    /// Waits until the progress has moved so many times more.
    async fn until_moved(&self, times: u64) {
        let goal = self.steps.load(Relaxed) + times;
        let moved = || {
            assert!(!self.task.is_finished(), "the progress went back");
            std::future::ready(self.steps.load(Relaxed) >= goal)
        };
        until("the mirror is at work", LIMIT, moved).await;
    }

    /// The progress never went back.
    async fn assert_forward(self) {
        self.stop.cancel();
        self.task.await.expect("the progress never goes back");
    }
}

async fn holder(bed: &Bed) -> Option<Uuid> {
    let holder = sqlx::query_scalar("select holder from bridge.stream").fetch_optional(bed.pool());
    holder.await.expect("look").flatten()
}

/// An active mirror and one that stands by.
async fn pair(bed: &Bed) -> (Bridge, Bridge) {
    let active = mirror(bed);
    until("the first mirror is the active one", LIMIT, async || holder(bed).await.is_some()).await;
    let other = mirror(bed);
    until("the other stands by", LIMIT, async || other.has_said("standing by")).await;
    (active, other)
}

/// Waits until `heir` has taken the seat from `from`.
async fn until_taken_over(bed: &Bed, from: Option<Uuid>, heir: &mut Bridge) {
    let taken = || {
        assert!(!heir.is_over(), "it has ended by itself:\n{}", heir.complaints());
        async { holder(bed).await.is_some_and(|now| Some(now) != from) }
    };
    until("the other mirror has taken over", LIMIT, taken).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_mirror_that_wakes_up_after_another_took_over_does_no_harm() {
    let (bed, mut moments) = (Bed::new().await, Moments::new());
    let (mut active, mut other) = pair(&bed).await;
    let (observer, churn) = (Observer::start(&bed), Churn::start(&bed, moments.clone()));
    for _ in 0..3 {
        observer.until_moved(10).await;
        // Not a wait for something: the random part of the moment.
        tokio::time::sleep(Duration::from_millis(moments.below(100))).await;
        let from = holder(&bed).await;
        active.signal(Signal::STOP);
        until_taken_over(&bed, from, &mut other).await;
        observer.until_moved(3).await;
        active.signal(Signal::CONT);
        (active, other) = (other, active);
    }
    assert!(churn.end().await > 100);
    level(&bed).await;
    observer.assert_forward().await;
    assert_clean(&bed).await;
    stop(active).await;
    stop(other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_paused_inside_its_transaction_holds_nobody_up_for_long() {
    let (bed, moments) = (Bed::new().await, Moments::new());
    let (active, mut other) = pair(&bed).await;
    let (observer, churn) = (Observer::start(&bed), Churn::start(&bed, moments));
    let from = holder(&bed).await;
    let gate = Gate::shut(&bed, "before insert or update or delete on scheduler.runs for each statement").await;
    until_bridge_waits(&bed).await;
    active.signal(Signal::STOP);
    gate.open().await;
    until_taken_over(&bed, from, &mut other).await;
    observer.until_moved(3).await;
    active.signal(Signal::CONT);
    churn.end().await;
    level(&bed).await;
    observer.assert_forward().await;
    assert_clean(&bed).await;
    stop(active).await;
    stop(other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_whose_transaction_takes_longer_than_its_lease_stays_the_active_one() {
    let bed = Bed::new().await;
    let (active, other) = pair(&bed).await;
    let from = holder(&bed).await;
    let gate = Gate::shut(&bed, "before insert on scheduler.runs for each statement").await;
    bed.database.collection("runs").insert_one(run("slow", 1)).await.expect("insert");
    until_bridge_waits(&bed).await;
    let now = sqlx::query_scalar("select clock_timestamp()").fetch_one(bed.pool()).await;
    let now: chrono::DateTime<chrono::Utc> = now.expect("look");
    // The lease that the transaction began with is over by then.
    let renewed = async || {
        let query = sqlx::query_as("select holder, leased_until > $1 + interval '5 seconds' from bridge.stream");
        let (holder, renewed): (Option<Uuid>, bool) = query.bind(now).fetch_one(bed.pool()).await.expect("look");
        assert_eq!(holder, from, "another mirror has taken over from one that is alive");
        renewed
    };
    until("the lease is renewed", LIMIT, renewed).await;
    gate.open().await;
    level(&bed).await;
    assert_clean(&bed).await;
    stop(active).await;
    stop(other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_is_told_to_stop_hands_over_at_once() {
    let bed = Bed::new().await;
    let command = |bed: &Bed| {
        let mut command = bed.bridge(&["mirror"]);
        command.env("BRIDGE_LEASE_SECONDS", "600");
        Bridge::start(command)
    };
    let active = command(&bed);
    begun(&bed).await;
    until("the first mirror is the active one", LIMIT, async || holder(&bed).await.is_some()).await;
    let (from, other) = (holder(&bed).await, command(&bed));
    until("the other stands by", LIMIT, async || other.has_said("standing by")).await;
    stop(active).await;
    until("the other is the active one", LIMIT, async || holder(&bed).await.is_some_and(|now| Some(now) != from)).await;
    stop(other).await;
    assert_eq!(holder(&bed).await, None);
}
