//! Graph jobs.

use scheduler_bridge::entity::graph_jobs::{GraphJob, GraphJobStatus};
use scheduler_bridge::scheduler::PageRequest;

use super::{Case, Stage, at_once, case, conflict, count_ok, illegal, invalid, not_found};
use crate::stores::samples::{at, graph_job, tenant};

pub const CASES: &[Case] = &[
    case!("graph_jobs.create", Happy, get),
    case!("graph_jobs.create", Conflicting, create_taken),
    case!("graph_jobs.create", Repeated, create_taken),
    case!("graph_jobs.create", Concurrent, create_at_once),
    case!("graph_jobs.get", Happy, get),
    case!("graph_jobs.get", Absent, get_absent),
    case!("graph_jobs.get", WrongTenant, get_of_another),
    case!("graph_jobs.list", Happy, list),
    case!("graph_jobs.list", WrongTenant, list),
    case!("graph_jobs.replace", Happy, replace),
    case!("graph_jobs.replace", Absent, replace_absent),
    case!("graph_jobs.replace", WrongTenant, replace_of_another),
    case!("graph_jobs.replace", Conflicting, replace_unexpected),
    case!("graph_jobs.replace", Repeated, replace_again),
    case!("graph_jobs.replace", Concurrent, replace_at_once),
];

async fn create(stage: &Stage, job: &GraphJob) {
    stage.scheduler.graph_jobs.create(job).await.expect("create");
}

async fn get(stage: Stage) {
    create(&stage, &graph_job("a", "gbj_1")).await;
    assert_eq!(stage.scheduler.graph_jobs.get(&tenant("a"), "gbj_1").await.expect("get"), graph_job("a", "gbj_1"));
}

async fn get_absent(stage: Stage) {
    not_found(stage.scheduler.graph_jobs.get(&tenant("a"), "gbj_1").await);
}

async fn get_of_another(stage: Stage) {
    create(&stage, &graph_job("a", "gbj_1")).await;
    not_found(stage.scheduler.graph_jobs.get(&tenant("b"), "gbj_1").await);
}

async fn create_taken(stage: Stage) {
    create(&stage, &graph_job("a", "gbj_1")).await;
    for of in ["a", "b"] {
        conflict(stage.scheduler.graph_jobs.create(&graph_job(of, "gbj_1")).await);
    }
    let over = GraphJob { status: GraphJobStatus::Failed, ..graph_job("a", "gbj_2") };
    invalid(stage.scheduler.graph_jobs.create(&over).await);
}

async fn create_at_once(stage: Stage) {
    let jobs = stage.scheduler.graph_jobs.clone();
    let done = at_once(8, move |_| {
        let jobs = jobs.clone();
        async move { jobs.create(&graph_job("a", "gbj_1")).await }
    })
    .await;
    assert_eq!(count_ok(&done), 1, "{done:?}");
}

async fn list(stage: Stage) {
    for (of, id, status, created) in [
        ("a", "late", GraphJobStatus::Pending, 9),
        ("a", "early", GraphJobStatus::Pending, 1),
        ("a", "busy", GraphJobStatus::Running, 5),
        ("b", "other", GraphJobStatus::Pending, 5),
    ] {
        create(&stage, &GraphJob { status, created_at: at(created), ..graph_job(of, id) }).await;
    }
    let ids = async |status| {
        let jobs = &stage.scheduler.graph_jobs;
        let listed = jobs.list(&tenant("a"), status, &PageRequest::first(10)).await.expect("list");
        listed.items.into_iter().map(|job| job.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(None).await, ["early", "busy", "late"]);
    assert_eq!(ids(Some(GraphJobStatus::Pending)).await, ["early", "late"]);
    assert_eq!(ids(Some(GraphJobStatus::Completed)).await, [""; 0]);
}

fn running() -> GraphJob {
    GraphJob { status: GraphJobStatus::Running, started_at: Some(at(2)), updated_at: at(2), ..graph_job("a", "gbj_1") }
}

async fn replace(stage: Stage) {
    create(&stage, &graph_job("a", "gbj_1")).await;
    let jobs = &stage.scheduler.graph_jobs;
    let moved = GraphJob { created_at: at(77), ..running() };
    assert_eq!(jobs.replace(&moved, GraphJobStatus::Pending).await.expect("replace"), running());
    let done = GraphJob { status: GraphJobStatus::Completed, started_at: None, completed_at: Some(at(4)), ..running() };
    let completed = jobs.replace(&done, GraphJobStatus::Running).await.expect("replace");
    assert_eq!((completed.started_at, completed.completed_at), (Some(at(2)), Some(at(4))));
    assert_eq!(jobs.get(&tenant("a"), "gbj_1").await.expect("get"), completed);
}

async fn replace_absent(stage: Stage) {
    not_found(stage.scheduler.graph_jobs.replace(&running(), GraphJobStatus::Pending).await);
}

async fn replace_of_another(stage: Stage) {
    create(&stage, &graph_job("b", "gbj_1")).await;
    not_found(stage.scheduler.graph_jobs.replace(&running(), GraphJobStatus::Pending).await);
}

async fn replace_unexpected(stage: Stage) {
    create(&stage, &graph_job("a", "gbj_1")).await;
    let jobs = &stage.scheduler.graph_jobs;
    conflict(jobs.replace(&running(), GraphJobStatus::Queued).await);
    let done = GraphJob { status: GraphJobStatus::Completed, ..running() };
    illegal(jobs.replace(&done, GraphJobStatus::Pending).await, "pending", "completed");
    assert_eq!(jobs.get(&tenant("a"), "gbj_1").await.expect("get"), graph_job("a", "gbj_1"));
}

async fn replace_again(stage: Stage) {
    create(&stage, &graph_job("a", "gbj_1")).await;
    let jobs = &stage.scheduler.graph_jobs;
    jobs.replace(&running(), GraphJobStatus::Pending).await.expect("replace");
    conflict(jobs.replace(&running(), GraphJobStatus::Pending).await);
}

async fn replace_at_once(stage: Stage) {
    create(&stage, &graph_job("a", "gbj_1")).await;
    let jobs = stage.scheduler.graph_jobs.clone();
    let done = at_once(8, move |_| {
        let jobs = jobs.clone();
        async move { jobs.replace(&running(), GraphJobStatus::Pending).await }
    })
    .await;
    assert_eq!(count_ok(&done), 1, "{done:?}");
}
