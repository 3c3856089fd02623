//! Run summaries.

use scheduler_bridge::entity::run_summaries::{Counters, RunSummary};
use scheduler_bridge::entity::runs::{Run, RunState, Stats};
use scheduler_bridge::scheduler::PageRequest;

use super::{Case, Stage, at_once, case, conflict, not_found};
use crate::stores::samples::{at, run, tenant};

pub const CASES: &[Case] = &[
    case!("run_summaries.project", Happy, project),
    case!("run_summaries.project", WrongTenant, project_of_another),
    case!("run_summaries.project", Repeated, project_in_any_order),
    case!("run_summaries.project", Concurrent, project_at_once),
    case!("run_summaries.get", Happy, project),
    case!("run_summaries.get", Absent, get_absent),
    case!("run_summaries.get", WrongTenant, get_absent),
    case!("run_summaries.list", Happy, list),
    case!("run_summaries.list", WrongTenant, list),
];

async fn fold(stage: &Stage, run: &Run) -> RunSummary {
    stage.scheduler.run_summaries.project(run).await.expect("project").expect("a summary")
}

fn version(id: &str, state: RunState, deltas: i32, created: i64) -> Run {
    let stats = Stats { deltas, new_criticals: deltas, ..Stats::default() };
    Run { state, stats, created_at: at(created), updated_at: at(created), ..run("a", id) }
}

async fn project(stage: Stage) {
    fold(&stage, &version("r1", RunState::Queued, 0, 1)).await;
    fold(&stage, &version("r1", RunState::Running, 2, 1)).await;
    fold(&stage, &version("r2", RunState::Planning, 0, 2)).await;
    let summary = fold(&stage, &version("r1", RunState::Completed, 3, 1)).await;
    let counters = Counters { total: 2, planning: 1, completed: 1, deltas: 3, new_criticals: 3, ..Counters::default() };
    assert_eq!(summary.counters, counters);
    let recent: Vec<_> = summary.recent.iter().map(|recent| (recent.run_id.as_str(), recent.state)).collect();
    assert_eq!(recent, [("r2", RunState::Planning), ("r1", RunState::Completed)]);
    assert_eq!(summary.last_run.as_ref().map(|run| run.run_id.as_str()), Some("r2"));
    assert_eq!(stage.scheduler.run_summaries.get(&tenant("a"), "nightly").await.expect("get"), summary);
    let by_hand = Run { schedule_id: None, ..run("a", "r3") };
    assert_eq!(stage.scheduler.run_summaries.project(&by_hand).await.expect("project"), None);
}

/// An id that two tenants' schedules share is the first one's.
async fn project_of_another(stage: Stage) {
    fold(&stage, &Run { tenant_id: "a:b".to_owned(), schedule_id: Some("c".to_owned()), ..run("a", "r") }).await;
    let same_id = Run { tenant_id: "a".to_owned(), schedule_id: Some("b:c".to_owned()), ..run("a", "r") };
    conflict(stage.scheduler.run_summaries.project(&same_id).await);
}

/// Whatever the order and the number of times in which the versions come, a run counts once, in its newest state.
async fn project_in_any_order(stage: Stage) {
    let versions = [
        version("r", RunState::Planning, 0, 1),
        version("r", RunState::Queued, 0, 1),
        version("r", RunState::Running, 1, 1),
        version("r", RunState::Completed, 2, 1),
    ];
    let orders: [&[usize]; 5] = [&[0, 1, 2, 3], &[3, 2, 1, 0], &[0, 0, 3, 3], &[1, 3, 2, 3], &[3]];
    let mut summaries = Vec::new();
    for (index, order) in orders.iter().enumerate() {
        for version in *order {
            let run = Run { schedule_id: Some(format!("s{index}")), ..versions[*version].clone() };
            fold(&stage, &run).await;
        }
        let summary = stage.scheduler.run_summaries.get(&tenant("a"), &format!("s{index}")).await.expect("get");
        summaries.push((summary.counters, summary.recent));
    }
    assert!(summaries.iter().all(|summary| *summary == summaries[0]), "{summaries:#?}");
    assert_eq!((summaries[0].0.total, summaries[0].0.completed), (1, 1));
}

async fn project_at_once(stage: Stage) {
    let summaries = stage.scheduler.run_summaries.clone();
    at_once(30, move |index| {
        let summaries = summaries.clone();
        let run =
            version(&format!("r{:02}", index % 25), RunState::Completed, 1, i64::try_from(index % 25).expect("small"));
        async move { summaries.project(&run).await.expect("project") }
    })
    .await;
    let found = stage.scheduler.run_summaries.get(&tenant("a"), "nightly").await.expect("get");
    // The oldest five may have come when twenty newer ones filled the summary; those count as forgotten.
    assert!((20..=25).contains(&found.counters.total) && found.counters.total == found.counters.completed);
    assert_eq!(found.recent.len(), 20);
    assert_eq!(found.last_run.expect("a run").run_id, "r24");
}

async fn get_absent(stage: Stage) {
    fold(&stage, &Run { tenant_id: "b".to_owned(), ..run("b", "r") }).await;
    not_found(stage.scheduler.run_summaries.get(&tenant("a"), "nightly").await);
}

async fn list(stage: Stage) {
    for (of, schedule) in [("a", "z"), ("a", "b"), ("b", "other"), ("a", "c")] {
        fold(&stage, &Run { schedule_id: Some(schedule.to_owned()), ..run(of, schedule) }).await;
    }
    let summaries = &stage.scheduler.run_summaries;
    let first = summaries.list(&tenant("a"), &PageRequest::first(2)).await.expect("list");
    let rest = summaries.list(&tenant("a"), &PageRequest { limit: 2, after: first.next }).await.expect("list");
    let ids: Vec<_> = first.items.iter().chain(&rest.items).map(|summary| summary.id.as_str()).collect();
    assert_eq!((ids, rest.next), (vec!["a:b", "a:c", "a:z"], None));
}
