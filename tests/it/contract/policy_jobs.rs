//! Policy jobs.

use std::collections::BTreeSet;
use std::time::Duration;

use scheduler_bridge::entity::policy_jobs::{PolicyJob, PolicyJobStatus, Priority};
use scheduler_bridge::scheduler::PageRequest;
use scheduler_bridge::scheduler::policy_jobs::Conclusion;
use scheduler_bridge::scheduler::records::creation;

use super::{Case, Stage, at_once, case, conflict, count_ok, illegal, invalid, not_found};
use crate::bed::until;
use crate::stores::samples::{at, policy_job, run, tenant};

pub const CASES: &[Case] = &[
    case!("policy_jobs.create", Happy, get),
    case!("policy_jobs.create", Conflicting, create_taken),
    case!("policy_jobs.create", Repeated, create_taken),
    case!("policy_jobs.create", Concurrent, create_at_once),
    case!("policy_jobs.get", Happy, get),
    case!("policy_jobs.get", Absent, get_absent),
    case!("policy_jobs.get", WrongTenant, get_of_another),
    case!("policy_jobs.list", Happy, list),
    case!("policy_jobs.list", WrongTenant, list),
    case!("policy_jobs.replace", Happy, replace),
    case!("policy_jobs.replace", Absent, replace_absent),
    case!("policy_jobs.replace", WrongTenant, replace_of_another),
    case!("policy_jobs.replace", Conflicting, replace_unexpected),
    case!("policy_jobs.replace", Repeated, replace_again),
    case!("policy_jobs.replace", Concurrent, replace_at_once),
    case!("policy_jobs.lease", Happy, lease),
    case!("policy_jobs.lease", Repeated, lease_again),
    case!("policy_jobs.lease", Concurrent, lease_at_once),
    case!("policy_jobs.renew", Happy, renew),
    case!("policy_jobs.renew", Absent, renew_absent),
    case!("policy_jobs.renew", WrongTenant, renew_of_another),
    case!("policy_jobs.renew", Conflicting, renew_lost),
    case!("policy_jobs.renew", Repeated, renew),
    case!("policy_jobs.complete", Happy, complete),
    case!("policy_jobs.complete", Absent, complete_absent),
    case!("policy_jobs.complete", WrongTenant, complete_of_another),
    case!("policy_jobs.complete", Conflicting, complete_lost),
    case!("policy_jobs.complete", Repeated, complete_again),
    case!("policy_jobs.complete", Concurrent, complete_at_once),
    case!("policy_jobs.complete_with", Happy, complete_with),
    case!("policy_jobs.complete_with", Conflicting, complete_with_taken),
    case!("policy_jobs.complete_with", Repeated, complete_with),
    case!("policy_jobs.return_expired", Happy, return_expired),
    case!("policy_jobs.return_expired", Repeated, return_expired),
    case!("policy_jobs.return_expired", Concurrent, return_at_once),
];

const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_millis(60);

async fn create(stage: &Stage, job: &PolicyJob) {
    stage.scheduler.policy_jobs.create(job).await.expect("create");
}

async fn leased(stage: &Stage, lease: Duration) -> PolicyJob {
    create(stage, &policy_job("a", "j")).await;
    stage.scheduler.policy_jobs.lease("w", lease, 1).await.expect("lease").pop().expect("a job")
}

async fn get(stage: Stage) {
    create(&stage, &policy_job("a", "run:P-7:2025-10-26:auto")).await;
    let found = stage.scheduler.policy_jobs.get(&tenant("a"), "run:P-7:2025-10-26:auto").await.expect("get");
    assert_eq!(found, policy_job("a", "run:P-7:2025-10-26:auto"));
}

async fn get_absent(stage: Stage) {
    not_found(stage.scheduler.policy_jobs.get(&tenant("a"), "j").await);
}

async fn get_of_another(stage: Stage) {
    create(&stage, &policy_job("a", "j")).await;
    not_found(stage.scheduler.policy_jobs.get(&tenant("b"), "j").await);
}

async fn create_taken(stage: Stage) {
    create(&stage, &policy_job("a", "j")).await;
    for of in ["a", "b"] {
        conflict(stage.scheduler.policy_jobs.create(&policy_job(of, "j")).await);
    }
    let busy = PolicyJob { status: PolicyJobStatus::Dispatching, ..policy_job("a", "j2") };
    invalid(stage.scheduler.policy_jobs.create(&busy).await);
}

async fn create_at_once(stage: Stage) {
    let jobs = stage.scheduler.policy_jobs.clone();
    let done = at_once(8, move |_| {
        let jobs = jobs.clone();
        async move { jobs.create(&policy_job("a", "j")).await }
    })
    .await;
    assert_eq!(count_ok(&done), 1, "{done:?}");
}

async fn list(stage: Stage) {
    for (of, id, created) in [("a", "late", 9), ("a", "early", 1), ("b", "other", 5)] {
        create(&stage, &PolicyJob { created_at: at(created), ..policy_job(of, id) }).await;
    }
    let ids = async |status| {
        let jobs = &stage.scheduler.policy_jobs;
        let listed = jobs.list(&tenant("a"), status, &PageRequest::first(10)).await.expect("list");
        listed.items.into_iter().map(|job| job.id).collect::<Vec<_>>()
    };
    assert_eq!(ids(None).await, ["early", "late"]);
    assert_eq!(ids(Some(PolicyJobStatus::Pending)).await, ["early", "late"]);
    assert_eq!(ids(Some(PolicyJobStatus::Failed)).await, [""; 0]);
}

fn cancelled() -> PolicyJob {
    PolicyJob { status: PolicyJobStatus::Cancelled, updated_at: at(2), ..policy_job("a", "j") }
}

async fn replace(stage: Stage) {
    create(&stage, &policy_job("a", "j")).await;
    let jobs = &stage.scheduler.policy_jobs;
    let replaced = jobs.replace(&PolicyJob { created_at: at(9), ..cancelled() }, PolicyJobStatus::Pending).await;
    assert_eq!(replaced.expect("replace"), cancelled());
}

async fn replace_absent(stage: Stage) {
    not_found(stage.scheduler.policy_jobs.replace(&cancelled(), PolicyJobStatus::Pending).await);
}

async fn replace_of_another(stage: Stage) {
    create(&stage, &policy_job("b", "j")).await;
    not_found(stage.scheduler.policy_jobs.replace(&cancelled(), PolicyJobStatus::Pending).await);
}

async fn replace_unexpected(stage: Stage) {
    create(&stage, &policy_job("a", "j")).await;
    let jobs = &stage.scheduler.policy_jobs;
    conflict(jobs.replace(&cancelled(), PolicyJobStatus::Submitted).await);
    let done = PolicyJob { status: PolicyJobStatus::Completed, ..cancelled() };
    illegal(jobs.replace(&done, PolicyJobStatus::Pending).await, "pending", "completed");
}

async fn replace_again(stage: Stage) {
    create(&stage, &policy_job("a", "j")).await;
    let jobs = &stage.scheduler.policy_jobs;
    jobs.replace(&cancelled(), PolicyJobStatus::Pending).await.expect("replace");
    conflict(jobs.replace(&cancelled(), PolicyJobStatus::Pending).await);
}

async fn replace_at_once(stage: Stage) {
    create(&stage, &policy_job("a", "j")).await;
    let jobs = stage.scheduler.policy_jobs.clone();
    let done = at_once(8, move |_| {
        let jobs = jobs.clone();
        async move { jobs.replace(&cancelled(), PolicyJobStatus::Pending).await }
    })
    .await;
    assert_eq!(count_ok(&done), 1, "{done:?}");
}

async fn lease(stage: Stage) {
    let jobs = &stage.scheduler.policy_jobs;
    assert_eq!(jobs.lease("w", LONG, 5).await.expect("lease"), []);
    let far = 1_000_000_000;
    for (of, id, priority, available) in [
        ("a", "normal", Priority::Normal, -9),
        ("b", "high", Priority::High, -5),
        ("a", "urgent", Priority::Emergency, -1),
        ("a", "urgent too", Priority::Emergency, -2),
        ("a", "not yet", Priority::Emergency, far),
    ] {
        let available_at = if available == far {
            at(far)
        } else {
            scheduler_bridge::entity::Instant(at(available).0 - chrono::TimeDelta::days(3_650))
        };
        create(&stage, &PolicyJob { priority, available_at, ..policy_job(of, id) }).await;
    }
    let leased = jobs.lease("w", LONG, 3).await.expect("lease");
    let ids: Vec<_> = leased.iter().map(|job| job.id.as_str()).collect();
    assert_eq!(ids, ["urgent too", "urgent", "high"]);
    for job in &leased {
        assert_eq!(
            (job.status, job.lease_owner.as_deref(), job.attempt_count),
            (PolicyJobStatus::Dispatching, Some("w"), 1)
        );
        assert!(job.lease_expires_at > job.last_attempt_at);
        assert_eq!(&jobs.get(&tenant(&job.tenant_id), &job.id).await.expect("get"), job);
    }
}

async fn lease_again(stage: Stage) {
    leased(&stage, LONG).await;
    assert_eq!(stage.scheduler.policy_jobs.lease("w2", LONG, 5).await.expect("lease"), []);
}

async fn lease_at_once(stage: Stage) {
    for index in 0..40 {
        create(&stage, &policy_job("a", &format!("j{index}"))).await;
    }
    let jobs = stage.scheduler.policy_jobs.clone();
    let done = at_once(8, move |index| {
        let jobs = jobs.clone();
        async move { jobs.lease(&format!("w{index}"), LONG, 40).await.expect("lease") }
    })
    .await;
    let ids: Vec<_> = done.iter().flatten().map(|job| job.id.clone()).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "each goes to one");
    assert_eq!(ids.len(), 40);
}

async fn renew(stage: Stage) {
    let first = leased(&stage, LONG).await;
    let jobs = &stage.scheduler.policy_jobs;
    let renewed = jobs.renew(&tenant("a"), "j", "w", LONG * 2).await.expect("renew");
    assert!(renewed.lease_expires_at > first.lease_expires_at);
    let again = jobs.renew(&tenant("a"), "j", "w", LONG * 2).await.expect("renew");
    assert!(again.lease_expires_at >= renewed.lease_expires_at);
}

async fn renew_absent(stage: Stage) {
    not_found(stage.scheduler.policy_jobs.renew(&tenant("a"), "j", "w", LONG).await);
}

async fn renew_of_another(stage: Stage) {
    leased(&stage, LONG).await;
    not_found(stage.scheduler.policy_jobs.renew(&tenant("b"), "j", "w", LONG).await);
}

async fn renew_lost(stage: Stage) {
    leased(&stage, LONG).await;
    let jobs = &stage.scheduler.policy_jobs;
    conflict(jobs.renew(&tenant("a"), "j", "somebody else", LONG).await);
    jobs.renew(&tenant("a"), "j", "w", SHORT).await.expect("renew");
    expired(&stage).await;
    conflict(jobs.renew(&tenant("a"), "j", "w", LONG).await);
}

/// Waits until the lease of job `j` is over by the database's clock.
async fn expired(stage: &Stage) {
    use scheduler_bridge::store::Store;
    let is_over = async || {
        let job = stage.scheduler.policy_jobs.get(&tenant("a"), "j").await.expect("get");
        job.lease_expires_at.expect("a lease").0 < stage.store.now().await.expect("the time")
    };
    until("the lease is over", LONG, is_over).await;
}

async fn complete(stage: Stage) {
    let jobs = &stage.scheduler.policy_jobs;
    leased(&stage, LONG).await;
    let again = Conclusion::Again { error: "busy".to_owned(), after: Duration::ZERO };
    let back = jobs.complete(&tenant("a"), "j", "w", &again).await.expect("complete");
    assert_eq!(
        (back.status, back.lease_owner, back.last_error.as_deref()),
        (PolicyJobStatus::Pending, None, Some("busy"))
    );
    assert_eq!(jobs.lease("w", LONG, 1).await.expect("lease")[0].attempt_count, 2);
    let submitted = Conclusion::Submitted { run_id: "r".to_owned() };
    let submitted = jobs.complete(&tenant("a"), "j", "w", &submitted).await.expect("complete");
    assert_eq!((submitted.status, submitted.run_id.as_deref()), (PolicyJobStatus::Submitted, Some("r")));
    assert!(submitted.submitted_at.is_some() && submitted.lease_expires_at.is_none());
    let done = jobs.complete(&tenant("a"), "j", "anybody", &Conclusion::Completed).await.expect("complete");
    assert!(done.status == PolicyJobStatus::Completed && done.completed_at.is_some());
    assert_eq!(jobs.get(&tenant("a"), "j").await.expect("get"), done);
}

async fn complete_absent(stage: Stage) {
    not_found(stage.scheduler.policy_jobs.complete(&tenant("a"), "j", "w", &Conclusion::Completed).await);
}

async fn complete_of_another(stage: Stage) {
    leased(&stage, LONG).await;
    not_found(stage.scheduler.policy_jobs.complete(&tenant("b"), "j", "w", &Conclusion::Completed).await);
}

async fn complete_lost(stage: Stage) {
    leased(&stage, SHORT).await;
    let jobs = &stage.scheduler.policy_jobs;
    conflict(jobs.complete(&tenant("a"), "j", "somebody else", &Conclusion::Completed).await);
    expired(&stage).await;
    conflict(jobs.complete(&tenant("a"), "j", "w", &Conclusion::Completed).await);
}

async fn complete_again(stage: Stage) {
    leased(&stage, LONG).await;
    let jobs = &stage.scheduler.policy_jobs;
    let failed = Conclusion::Failed { error: "broken".to_owned() };
    jobs.complete(&tenant("a"), "j", "w", &failed).await.expect("complete");
    illegal(jobs.complete(&tenant("a"), "j", "w", &Conclusion::Completed).await, "failed", "completed");
}

async fn complete_at_once(stage: Stage) {
    leased(&stage, LONG).await;
    let jobs = stage.scheduler.policy_jobs.clone();
    let done = at_once(8, move |_| {
        let jobs = jobs.clone();
        async move { jobs.complete(&tenant("a"), "j", "w", &Conclusion::Completed).await }
    })
    .await;
    assert_eq!(count_ok(&done), 1, "{done:?}");
}

async fn complete_with(stage: Stage) {
    leased(&stage, LONG).await;
    let jobs = &stage.scheduler.policy_jobs;
    let brings_about = || vec![creation(&run("a", "r")).expect("a creation")];
    let of = tenant("a");
    jobs.complete_with((&of, "j"), "w", &Conclusion::Completed, brings_about()).await.expect("complete");
    assert!(stage.scheduler.runs.get(&of, "r").await.is_ok());
    illegal(
        jobs.complete_with((&of, "j"), "w", &Conclusion::Completed, brings_about()).await,
        "completed",
        "completed",
    );
}

async fn complete_with_taken(stage: Stage) {
    let job = leased(&stage, LONG).await;
    stage.scheduler.runs.create(&run("a", "r")).await.expect("create");
    let brings_about = vec![creation(&run("a", "r")).expect("a creation")];
    let (jobs, of) = (&stage.scheduler.policy_jobs, tenant("a"));
    conflict(jobs.complete_with((&of, "j"), "w", &Conclusion::Completed, brings_about).await);
    assert_eq!(jobs.get(&of, "j").await.expect("get"), job, "neither of the two happened");
}

async fn return_expired(stage: Stage) {
    let jobs = &stage.scheduler.policy_jobs;
    create(&stage, &policy_job("b", "held")).await;
    jobs.lease("w2", LONG, 1).await.expect("lease");
    leased(&stage, SHORT).await;
    expired(&stage).await;
    let returned = jobs.return_expired(10).await.expect("return");
    assert_eq!(returned.iter().map(|job| job.id.as_str()).collect::<Vec<_>>(), ["j"]);
    assert_eq!((returned[0].status, &returned[0].lease_owner), (PolicyJobStatus::Pending, &None));
    assert_eq!(jobs.return_expired(10).await.expect("return"), []);
}

async fn return_at_once(stage: Stage) {
    leased(&stage, SHORT).await;
    expired(&stage).await;
    let jobs = stage.scheduler.policy_jobs.clone();
    let done = at_once(6, move |_| {
        let jobs = jobs.clone();
        async move { jobs.return_expired(10).await.expect("return").len() }
    })
    .await;
    assert_eq!(done.into_iter().sum::<usize>(), 1);
}
