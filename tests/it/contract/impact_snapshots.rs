//! Impact snapshots.

use scheduler_bridge::entity::impact_snapshots::ImpactSnapshot;

use super::{Case, Stage, at_once, case, conflict, count_ok, not_found};
use crate::stores::samples::{at, snapshot, tenant};

pub const CASES: &[Case] = &[
    case!("impact_snapshots.put", Happy, get),
    case!("impact_snapshots.put", Conflicting, put_another),
    case!("impact_snapshots.put", Repeated, put_again),
    case!("impact_snapshots.put", Concurrent, put_at_once),
    case!("impact_snapshots.get", Happy, get),
    case!("impact_snapshots.get", Absent, get_absent),
    case!("impact_snapshots.get", WrongTenant, get_of_another),
    case!("impact_snapshots.by_run", Happy, by_run),
    case!("impact_snapshots.by_run", WrongTenant, by_run),
    case!("impact_snapshots.latest", Happy, latest),
    case!("impact_snapshots.latest", Absent, latest_absent),
    case!("impact_snapshots.latest", WrongTenant, latest_absent),
];

async fn put(stage: &Stage, snapshot: &ImpactSnapshot) {
    stage.scheduler.impact_snapshots.put(snapshot).await.expect("put");
}

async fn get(stage: Stage) {
    put(&stage, &snapshot("a", "i", "r")).await;
    assert_eq!(stage.scheduler.impact_snapshots.get(&tenant("a"), "i").await.expect("get"), snapshot("a", "i", "r"));
}

async fn get_absent(stage: Stage) {
    not_found(stage.scheduler.impact_snapshots.get(&tenant("a"), "i").await);
}

async fn get_of_another(stage: Stage) {
    put(&stage, &snapshot("a", "i", "r")).await;
    not_found(stage.scheduler.impact_snapshots.get(&tenant("b"), "i").await);
}

async fn put_another(stage: Stage) {
    put(&stage, &snapshot("a", "i", "r")).await;
    for other in [snapshot("b", "i", "r"), ImpactSnapshot { total: 7, ..snapshot("a", "i", "r") }] {
        conflict(stage.scheduler.impact_snapshots.put(&other).await);
    }
}

async fn put_again(stage: Stage) {
    put(&stage, &snapshot("a", "i", "r")).await;
    put(&stage, &snapshot("a", "i", "r")).await;
}

async fn put_at_once(stage: Stage) {
    let snapshots = stage.scheduler.impact_snapshots.clone();
    let done = at_once(8, move |index| {
        let snapshots = snapshots.clone();
        let total = i32::try_from(index).expect("small");
        async move { snapshots.put(&ImpactSnapshot { total, ..snapshot("a", "i", "r") }).await }
    })
    .await;
    assert_eq!(count_ok(&done), 1, "{done:?}");
}

async fn by_run(stage: Stage) {
    for (of, id, run, seconds) in
        [("a", "late", "r", 9), ("a", "early", "r", 1), ("a", "no", "x", 5), ("b", "other", "r", 5)]
    {
        put(&stage, &ImpactSnapshot { generated_at: at(seconds), ..snapshot(of, id, run) }).await;
    }
    let found = stage.scheduler.impact_snapshots.by_run(&tenant("a"), "r", 10).await.expect("by run");
    assert_eq!(found.into_iter().map(|snapshot| snapshot.id).collect::<Vec<_>>(), ["early", "late"]);
}

async fn latest(stage: Stage) {
    for (of, id, seconds) in [("a", "old", 1), ("a", "new", 9), ("b", "newer", 99)] {
        put(&stage, &ImpactSnapshot { generated_at: at(seconds), ..snapshot(of, id, "r") }).await;
    }
    assert_eq!(stage.scheduler.impact_snapshots.latest(&tenant("a")).await.expect("latest").id, "new");
}

async fn latest_absent(stage: Stage) {
    put(&stage, &snapshot("b", "i", "r")).await;
    not_found(stage.scheduler.impact_snapshots.latest(&tenant("a")).await);
}
