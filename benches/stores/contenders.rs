//! The operations that are measured, through the repositories.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use scheduler_bridge::entity::runs::{RunState, Stats};
use scheduler_bridge::lock::{Held, LockKey, Locks};
use scheduler_bridge::scheduler::runs::{ListOptions, Progress};
use scheduler_bridge::scheduler::{PageRequest, Scheduler};
use scheduler_bridge::store::Store;

use super::measure::Operation;
use super::samples::{at, log_line, run, tenant, trigger};

/// Triggers of one claim.
pub const CLAIMED: u32 = 10;

/// Items of one page.
pub const PAGE: u32 = 50;

/// Lines of one append.
pub const LINES: i64 = 100;

/// How many runs there are to get, update and list.
pub const RUNS: u64 = 2_000;

/// How many locks there are.
pub const LOCKS: u64 = 500;

const LEASE: Duration = Duration::from_secs(60);

/// Makes what a given number of operations needs.
pub type Prepare = Arc<dyn Fn(u64) -> BoxFuture<'static, ()> + Send + Sync>;

/// One way of doing an operation.
pub struct Contender {
    pub prepare: Prepare,
    pub operation: Operation,
}

/// An operation, done both ways.
pub struct Pair {
    pub name: &'static str,
    /// How many times as long one operation takes, roughly: that many fewer are made.
    pub cost: u64,
    pub bridge: Contender,
    pub plain: Contender,
}

/// The prefix of the ids of one contender's records.
#[derive(Debug, Clone, Copy)]
pub enum Side {
    Bridge,
    Plain,
}

impl Side {
    pub fn run_id(self, index: u64) -> String {
        format!("{}-{:06}", self.prefix(), index % RUNS)
    }

    pub fn prefix(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Plain => "plain",
        }
    }
}

pub fn contender<F: Future<Output = ()> + Send + 'static>(
    prepare: Prepare,
    operation: impl Fn(u64) -> F + Send + Sync + 'static,
) -> Contender {
    Contender { prepare, operation: Arc::new(move |index| operation(index).boxed()) }
}

pub fn nothing() -> Prepare {
    Arc::new(|_| async {}.boxed())
}

/// Runs in state `planning` of both sides, each with its own tenant.
pub fn runs<S: Store>(store: &S, side: Side) -> Prepare {
    let scheduler = Scheduler::new(store);
    Arc::new(move |_| {
        let scheduler = scheduler.clone();
        async move {
            if scheduler.runs.get(&tenant(side.prefix()), &side.run_id(0)).await.is_ok() {
                return;
            }
            for index in 0..RUNS {
                let mut run = run(side.prefix(), &side.run_id(index));
                run.created_at = at(i64::try_from(index).expect("a small number"));
                scheduler.runs.create(&run).await.expect("create a run");
            }
        }
        .boxed()
    })
}

/// Due triggers for exactly so many claims; `reset` makes those of earlier rounds due again.
pub fn triggers<S: Store>(store: &S, reset: Prepare) -> Prepare {
    let scheduler = Scheduler::new(store);
    Arc::new(move |operations| {
        let (scheduler, reset) = (scheduler.clone(), reset.clone());
        async move {
            reset(operations).await;
            for index in (0..operations * u64::from(CLAIMED)).rev() {
                let id = format!("due-{index:06}");
                if scheduler.triggers.get(&tenant("bench"), &id).await.is_ok() {
                    break;
                }
                let mut trigger = trigger("bench", &id, "nightly");
                trigger.next_fire_at = Some(at(i64::try_from(index).expect("a small number")));
                scheduler.triggers.upsert(&trigger).await.expect("put a trigger");
            }
        }
        .boxed()
    })
}

pub fn get<S: Store>(store: &S) -> Contender {
    let scheduler = Scheduler::new(store);
    contender(runs(store, Side::Bridge), move |index| {
        let scheduler = scheduler.clone();
        async move {
            let (tenant, id) = (tenant("bridge"), Side::Bridge.run_id(index));
            scheduler.runs.get(&tenant, &id).await.expect("get");
        }
    })
}

pub fn create<S: Store>(store: &S) -> Contender {
    let scheduler = Scheduler::new(store);
    contender(nothing(), move |index| {
        let scheduler = scheduler.clone();
        async move { scheduler.runs.create(&run("created", &format!("bridge-new-{index}"))).await.expect("create") }
    })
}

/// The runs are queued once; afterwards each update is progress that is checked as a transition is.
pub fn update<S: Store>(store: &S) -> Contender {
    let scheduler = Scheduler::new(store);
    contender(runs(store, Side::Bridge), move |index| {
        let scheduler = scheduler.clone();
        async move {
            let stats = Stats { candidates: i32::try_from(index).expect("a small number"), ..Stats::default() };
            let progress = Progress { stats, ..Progress::to(RunState::Queued, at(1)) };
            let (tenant, id) = (tenant("bridge"), Side::Bridge.run_id(index));
            scheduler.runs.update(&tenant, &id, &progress).await.expect("update");
        }
    })
}

pub fn list<S: Store>(store: &S) -> Contender {
    let scheduler = Scheduler::new(store);
    contender(runs(store, Side::Bridge), move |_| {
        let scheduler = scheduler.clone();
        async move {
            let (tenant, options) = (tenant("bridge"), ListOptions::default());
            let page = scheduler.runs.list(&tenant, &options, &PageRequest::first(PAGE)).await.expect("list");
            assert_eq!(page.items.len(), PAGE as usize);
        }
    })
}

/// Claims until it has `CLAIMED` triggers: others may have been first with some.
pub fn claim_due<S: Store>(store: &S, reset: Prepare) -> Contender {
    let scheduler = Scheduler::new(store);
    contender(triggers(store, reset), move |index| {
        let scheduler = scheduler.clone();
        async move {
            let worker = format!("worker-{}", index % 16);
            let mut left = CLAIMED;
            while left > 0 {
                let claims = scheduler.triggers.claim_due(at(10_000_000), left, &worker).await.expect("claim");
                left -= u32::try_from(claims.len()).expect("a small number");
            }
        }
    })
}

pub fn append<S: Store>(store: &S) -> Contender {
    let scheduler = Scheduler::new(store);
    contender(nothing(), move |index| {
        let scheduler = scheduler.clone();
        async move {
            let lines: Vec<_> = (1..=LINES).map(|line| log_line("bridge", &format!("run-{index}"), line)).collect();
            scheduler.execution_logs.append(&lines).await.expect("append");
        }
    })
}

/// Takes a lock and lets it go.
pub fn lock<L: Locks>(locks: &L) -> Contender {
    let locks = locks.clone();
    contender(nothing(), move |index| {
        let locks = locks.clone();
        async move {
            let key = LockKey::new("bench", &format!("lock-{}", index % LOCKS)).expect("a key");
            let held = locks.acquire(&key, LEASE, LEASE).await.expect("acquire");
            held.release().await.expect("release");
        }
    })
}
