//! Workers.

use std::time::Duration;

use scheduler_bridge::entity::policy_jobs::PolicyJobStatus;
use scheduler_bridge::entity::workers::{Worker, WorkerStatus};
use scheduler_bridge::store::Store;

use super::{Case, Stage, at_once, case, illegal, not_found};
use crate::bed::until;
use crate::stores::samples::{policy_job, tenant, worker};

pub const CASES: &[Case] = &[
    case!("workers.get", Happy, register),
    case!("workers.get", Absent, get_absent),
    case!("workers.register", Happy, register),
    case!("workers.register", Repeated, register_again),
    case!("workers.register", Concurrent, register_at_once),
    case!("workers.heartbeat", Happy, heartbeat),
    case!("workers.heartbeat", Absent, heartbeat_absent),
    case!("workers.heartbeat", Concurrent, heartbeat_at_once),
    case!("workers.drain", Happy, drain),
    case!("workers.drain", Absent, drain_absent),
    case!("workers.drain", Repeated, drain),
    case!("workers.drain", Concurrent, drain_at_once),
    case!("workers.dead", Happy, dead),
    case!("workers.reap", Happy, reap),
    case!("workers.reap", Repeated, reap),
    case!("workers.reap", Concurrent, reap_at_once),
];

/// Longer than any of these tests takes.
const LONG: Duration = Duration::from_secs(600);

async fn put(stage: &Stage, id: &str) -> Worker {
    stage.scheduler.workers.register(&worker(id)).await.expect("register")
}

async fn register(stage: Stage) {
    let before = stage.store.now().await.expect("the time");
    let put = put(&stage, "w").await;
    let after = stage.store.now().await.expect("the time");
    // The database's clock, not the caller's word.
    assert!((before..=after).contains(&put.registered_at.0) && put.last_heartbeat_at == put.registered_at);
    let expected = Worker { registered_at: put.registered_at, last_heartbeat_at: put.last_heartbeat_at, ..worker("w") };
    assert_eq!(put, expected);
    assert_eq!(stage.scheduler.workers.get("w").await.expect("get"), put);
}

async fn get_absent(stage: Stage) {
    not_found(stage.scheduler.workers.get("w").await);
}

async fn register_again(stage: Stage) {
    put(&stage, "w").await;
    stage.scheduler.workers.drain("w").await.expect("drain");
    assert_eq!(put(&stage, "w").await.status, WorkerStatus::Active);
}

async fn register_at_once(stage: Stage) {
    let workers = stage.scheduler.workers.clone();
    let done = at_once(8, move |_| {
        let workers = workers.clone();
        async move { workers.register(&worker("w")).await.expect("register") }
    })
    .await;
    assert!(done.contains(&stage.scheduler.workers.get("w").await.expect("get")));
}

async fn heartbeat(stage: Stage) {
    let first = put(&stage, "w").await;
    let later = async || stage.store.now().await.expect("the time") > first.last_heartbeat_at.0;
    until("the clock goes on", LONG, later).await;
    let alive = stage.scheduler.workers.heartbeat("w", 3).await.expect("heartbeat");
    assert!(alive.last_heartbeat_at > first.last_heartbeat_at && alive.current_jobs == 3);
}

async fn heartbeat_absent(stage: Stage) {
    not_found(stage.scheduler.workers.heartbeat("w", 0).await);
}

async fn heartbeat_at_once(stage: Stage) {
    put(&stage, "w").await;
    let workers = stage.scheduler.workers.clone();
    let done = at_once(8, move |index| {
        let workers = workers.clone();
        async move { workers.heartbeat("w", i32::try_from(index).expect("small")).await.expect("heartbeat") }
    })
    .await;
    let found = stage.scheduler.workers.get("w").await.expect("get");
    assert_eq!(Some(found.last_heartbeat_at), done.iter().map(|worker| worker.last_heartbeat_at).max());
}

async fn drain(stage: Stage) {
    put(&stage, "w").await;
    let workers = &stage.scheduler.workers;
    let first = workers.drain("w").await.expect("drain");
    assert_eq!(first.status, WorkerStatus::Draining);
    assert_eq!(workers.drain("w").await.expect("drain"), first);
    assert_eq!(workers.heartbeat("w", 1).await.expect("heartbeat").status, WorkerStatus::Draining);
}

async fn drain_absent(stage: Stage) {
    not_found(stage.scheduler.workers.drain("w").await);
}

async fn drain_at_once(stage: Stage) {
    put(&stage, "w").await;
    let workers = stage.scheduler.workers.clone();
    let done = at_once(8, move |index| {
        let workers = workers.clone();
        async move {
            if index % 2 == 0 { workers.drain("w").await } else { workers.heartbeat("w", 1).await }.expect("an update")
        }
    })
    .await;
    assert_eq!(done.len(), 8);
    assert_eq!(stage.scheduler.workers.get("w").await.expect("get").status, WorkerStatus::Draining);
}

/// Waits until worker `id` has been silent for longer than `silence`.
async fn silent(stage: &Stage, id: &str, silence: Duration) {
    let is_silent = async || {
        let last = stage.scheduler.workers.get(id).await.expect("get").last_heartbeat_at.0;
        stage.store.now().await.expect("the time") > last + silence
    };
    until("the worker is silent", LONG, is_silent).await;
}

async fn dead(stage: Stage) {
    let silence = Duration::from_millis(40);
    put(&stage, "first").await;
    put(&stage, "second").await;
    stage.scheduler.workers.drain("second").await.expect("drain");
    silent(&stage, "second", silence).await;
    let workers = &stage.scheduler.workers;
    let ids = async |silence| {
        let dead = workers.dead(silence, 10).await.expect("dead");
        dead.into_iter().map(|worker| worker.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(silence).await, ["first", "second"]);
    assert_eq!(ids(LONG).await, [""; 0]);
    assert_eq!(workers.dead(silence, 1).await.expect("dead").len(), 1);
}

async fn reap(stage: Stage) {
    let silence = Duration::from_millis(40);
    let (workers, jobs) = (&stage.scheduler.workers, &stage.scheduler.policy_jobs);
    for id in ["w", "alive"] {
        put(&stage, id).await;
    }
    for index in 0..250 {
        jobs.create(&policy_job("a", &format!("j{index:03}"))).await.expect("create");
    }
    assert_eq!(jobs.lease("w", LONG, 230).await.expect("lease").len(), 230);
    assert_eq!(jobs.lease("alive", LONG, 5).await.expect("lease").len(), 5);
    silent(&stage, "w", silence).await;
    workers.heartbeat("alive", 5).await.expect("heartbeat");
    let reaped: Vec<_> = workers.reap(silence, 10).await.expect("reap");
    let w = reaped.iter().find(|reaped| reaped.worker.id == "w").expect("the silent one");
    assert_eq!((w.worker.status, w.returned.len()), (WorkerStatus::Dead, 230));
    let back = jobs.get(&tenant("a"), &w.returned[229].id).await.expect("get");
    assert_eq!((back.status, back.lease_owner), (PolicyJobStatus::Pending, None));
    illegal(workers.heartbeat("w", 1).await, "dead", "draining");
    assert!(workers.reap(LONG, 10).await.expect("reap").is_empty());
    assert_eq!(put(&stage, "w").await.status, WorkerStatus::Active);
}

async fn reap_at_once(stage: Stage) {
    let silence = Duration::from_millis(40);
    put(&stage, "w").await;
    stage.scheduler.policy_jobs.create(&policy_job("a", "j")).await.expect("create");
    stage.scheduler.policy_jobs.lease("w", LONG, 1).await.expect("lease");
    silent(&stage, "w", silence).await;
    let workers = stage.scheduler.workers.clone();
    let done = at_once(6, move |_| {
        let workers = workers.clone();
        async move { workers.reap(silence, 10).await.expect("reap") }
    })
    .await;
    let reaped: Vec<_> = done.into_iter().flatten().collect();
    assert_eq!((reaped.len(), reaped[0].returned.len()), (1, 1));
}
