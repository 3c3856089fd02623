//! Runs.

use bson::rawdoc;
use scheduler_bridge::entity::Record;
use scheduler_bridge::entity::runs::{Delta, Run, RunState, Stats};
use scheduler_bridge::scheduler::runs::{ListOptions, Progress};
use scheduler_bridge::scheduler::{Error, PageRequest};
use scheduler_bridge::store::{Address, Change, Store};

use super::{Case, Stage, at_once, case, conflict, count_ok, illegal, invalid, not_found};
use crate::stores::samples::{at, run, tenant};

pub const CASES: &[Case] = &[
    case!("runs.get", Happy, get),
    case!("runs.get", Absent, get_absent),
    case!("runs.get", WrongTenant, get_of_another),
    case!("runs.list", Happy, list),
    case!("runs.list", WrongTenant, list_of_another),
    case!("runs.list", Concurrent, list_at_once),
    case!("runs.create", Happy, get),
    case!("runs.create", Conflicting, create_taken),
    case!("runs.create", Repeated, create_again),
    case!("runs.create", Concurrent, create_at_once),
    case!("runs.update", Happy, update),
    case!("runs.update", Absent, update_absent),
    case!("runs.update", WrongTenant, update_of_another),
    case!("runs.update", Conflicting, update_illegal),
    case!("runs.update", Repeated, update_again),
    case!("runs.update", Concurrent, update_at_once),
    case!("runs.pending", Happy, pending),
    case!("runs.pending", WrongTenant, pending),
    case!("runs.by_schedule", Happy, by_schedule),
    case!("runs.by_schedule", WrongTenant, by_schedule),
    case!("runs.cancel", Happy, cancel),
    case!("runs.cancel", Absent, cancel_absent),
    case!("runs.cancel", WrongTenant, cancel_of_another),
    case!("runs.cancel", Repeated, cancel_again),
    case!("runs.cancel", Concurrent, cancel_at_once),
    case!("runs.retry", Happy, retry),
    case!("runs.retry", Absent, retry_absent),
    case!("runs.retry", WrongTenant, retry_of_another),
    case!("runs.retry", Conflicting, retry_unfinished),
    case!("runs.retry", Repeated, retry_again),
    case!("runs.retry", Concurrent, retry_at_once),
];

async fn create(stage: &Stage, run: &Run) {
    stage.scheduler.runs.create(run).await.expect("create");
}

async fn get(stage: Stage) {
    let sample = Run {
        reason: scheduler_bridge::entity::runs::Reason {
            manual_reason: Some("it's \"urgent\" \u{202e}\u{1f600}".to_owned()),
            ..Default::default()
        },
        ..run("a", "r; drop table runs --")
    };
    create(&stage, &sample).await;
    assert_eq!(stage.scheduler.runs.get(&tenant("a"), &sample.id).await.expect("get"), sample);
}

async fn get_absent(stage: Stage) {
    not_found(stage.scheduler.runs.get(&tenant("a"), "r").await);
}

async fn get_of_another(stage: Stage) {
    create(&stage, &run("a", "r")).await;
    not_found(stage.scheduler.runs.get(&tenant("b"), "r").await);
    // Not even whether it can be read is told of another's.
    let unreadable = rawdoc! { "_id": "u", "tenantId": "a", "state": "queued", "createdAt": "never" };
    stage.store.apply(&[Change::create(Run::ENTITY, unreadable)]).await.expect("create");
    let own = stage.scheduler.runs.get(&tenant("a"), "u").await;
    assert!(matches!(own, Err(Error::Unreadable { .. })), "{own:?}");
    not_found(stage.scheduler.runs.get(&tenant("b"), "u").await);
}

async fn listed(stage: &Stage, options: &ListOptions) -> Vec<String> {
    let mut request = PageRequest::first(2);
    let mut ids = Vec::new();
    loop {
        let page = stage.scheduler.runs.list(&tenant("a"), options, &request).await.expect("list");
        ids.extend(page.items.into_iter().map(|run| run.id));
        request.after = page.next;
        if request.after.is_none() {
            return ids;
        }
    }
}

async fn list(stage: Stage) {
    for (id, created, state, schedule) in [
        ("z", 1, RunState::Queued, "s"),
        ("b", 3, RunState::Planning, "s"),
        ("a", 3, RunState::Queued, "other"),
        ("c", 2, RunState::Queued, "s"),
    ] {
        create(&stage, &Run { created_at: at(created), state, schedule_id: Some(schedule.to_owned()), ..run("a", id) })
            .await;
    }
    let all = ListOptions::default;
    assert_eq!(listed(&stage, &all()).await, ["z", "c", "a", "b"]);
    assert_eq!(listed(&stage, &ListOptions { state: Some(RunState::Queued), ..all() }).await, ["z", "c", "a"]);
    assert_eq!(listed(&stage, &ListOptions { schedule_id: Some("s".to_owned()), ..all() }).await, ["z", "c", "b"]);
    assert_eq!(listed(&stage, &ListOptions { created_after: Some(at(2)), ..all() }).await, ["a", "b"]);
    let queued =
        ListOptions { state: Some(RunState::Queued), schedule_id: Some("s".to_owned()), created_after: Some(at(1)) };
    assert_eq!(listed(&stage, &queued).await, ["c"]);
    for unknown in ["x".repeat(400), "a\0".to_owned(), "$ne".to_owned()] {
        assert_eq!(listed(&stage, &ListOptions { schedule_id: Some(unknown), ..all() }).await, [""; 0]);
    }
}

async fn list_of_another(stage: Stage) {
    create(&stage, &run("b", "r")).await;
    assert_eq!(listed(&stage, &ListOptions::default()).await, [""; 0]);
}

/// Every run that is there all the while is listed once, while others come and go.
async fn list_at_once(stage: Stage) {
    for index in 0..40 {
        create(&stage, &Run { created_at: at(index * 10), ..run("a", &format!("stays-{index:02}")) }).await;
    }
    let comes = stage.clone();
    let coming = tokio::spawn(async move {
        for index in 0..60 {
            let id = format!("comes-{index}");
            create(&comes, &Run { created_at: at(index * 7), ..run("a", &id) }).await;
            if index % 2 == 0 {
                let address = Address::new(Run::ENTITY, id);
                let unchanged = comes.store.get(&address).await.expect("get").expect("a run");
                comes.store.apply(&[Change::Delete { address, unchanged }]).await.expect("delete");
            }
        }
    });
    for _ in 0..6 {
        let ids = listed(&stage, &ListOptions::default()).await;
        let stays: Vec<_> = ids.iter().filter(|id| id.starts_with("stays-")).cloned().collect();
        let expected: Vec<_> = (0..40).map(|index| format!("stays-{index:02}")).collect();
        assert_eq!(stays, expected);
        let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len(), "nothing is listed twice");
    }
    coming.await.expect("runs that come");
}

async fn create_taken(stage: Stage) {
    create(&stage, &run("b", "r")).await;
    conflict(stage.scheduler.runs.create(&run("a", "r")).await);
    for state in [RunState::Completed, RunState::Error, RunState::Cancelled] {
        invalid(stage.scheduler.runs.create(&Run { state, ..run("a", "over") }).await);
    }
    invalid(stage.scheduler.runs.create(&run("", "r2")).await);
}

async fn create_again(stage: Stage) {
    create(&stage, &run("a", "r")).await;
    conflict(stage.scheduler.runs.create(&run("a", "r")).await);
}

async fn create_at_once(stage: Stage) {
    let runs = stage.scheduler.runs.clone();
    let done = at_once(8, move |index| {
        let runs = runs.clone();
        async move { runs.create(&Run { trigger: format!("t{index}"), ..run("a", "r") }).await }
    })
    .await;
    assert_eq!(count_ok(&done), 1, "{done:?}");
    let winner = done.iter().position(Result::is_ok).expect("a winner");
    assert_eq!(stage.scheduler.runs.get(&tenant("a"), "r").await.expect("get").trigger, format!("t{winner}"));
}

fn delta(digest: &str) -> Delta {
    Delta {
        image_digest: digest.to_owned(),
        new_findings: 1,
        new_criticals: 1,
        new_high: 0,
        new_medium: 0,
        new_low: 0,
        kev_hits: Vec::new(),
        detected_at: None,
    }
}

async fn update(stage: Stage) {
    create(&stage, &run("a", "r")).await;
    let runs = &stage.scheduler.runs;
    let stats = |candidates, completed| Stats { candidates, completed, ..Stats::default() };
    let report = |state, stats, seconds| Progress { stats, ..Progress::to(state, at(seconds)) };
    runs.update(&tenant("a"), "r", &report(RunState::Queued, stats(5, 0), 1)).await.expect("update");
    let running = runs.update(&tenant("a"), "r", &report(RunState::Running, stats(5, 1), 2)).await.expect("update");
    assert_eq!((running.started_at, running.finished_at), (Some(at(2)), None));
    let found = Progress { deltas: vec![delta("x")], ..report(RunState::Running, stats(3, 2), 4) };
    let progress = runs.update(&tenant("a"), "r", &found).await.expect("update");
    assert_eq!((progress.stats, progress.started_at, progress.updated_at), (stats(5, 2), Some(at(2)), at(4)));
    let end = Progress { error: Some("broken".to_owned()), ..report(RunState::Error, stats(5, 2), 3) };
    let ended = runs.update(&tenant("a"), "r", &end).await.expect("update");
    assert_eq!((ended.finished_at, ended.updated_at, ended.error.as_deref()), (Some(at(3)), at(4), Some("broken")));
    assert_eq!(ended.deltas, [delta("x")]);
    assert_eq!(runs.get(&tenant("a"), "r").await.expect("get"), ended);
}

async fn update_absent(stage: Stage) {
    not_found(stage.scheduler.runs.update(&tenant("a"), "r", &Progress::to(RunState::Queued, at(1))).await);
}

async fn update_of_another(stage: Stage) {
    create(&stage, &run("a", "r")).await;
    not_found(stage.scheduler.runs.update(&tenant("b"), "r", &Progress::to(RunState::Queued, at(1))).await);
}

async fn update_illegal(stage: Stage) {
    create(&stage, &run("a", "r")).await;
    let done = stage.scheduler.runs.update(&tenant("a"), "r", &Progress::to(RunState::Running, at(1))).await;
    match &done {
        Err(Error::Illegal { source, .. }) => {
            assert_eq!(source.allowed, ["queued", "completed", "error", "cancelled"]);
        }
        other => panic!("not illegal: {other:?}"),
    }
    illegal(done, "planning", "running");
    assert_eq!(stage.scheduler.runs.get(&tenant("a"), "r").await.expect("get"), run("a", "r"));
}

async fn update_again(stage: Stage) {
    create(&stage, &run("a", "r")).await;
    let runs = &stage.scheduler.runs;
    let report = Progress { deltas: vec![delta("x")], ..Progress::to(RunState::Queued, at(1)) };
    let first = runs.update(&tenant("a"), "r", &report).await.expect("update");
    assert_eq!(runs.update(&tenant("a"), "r", &report).await.expect("update"), first);
}

/// Every report counts, though all come at once.
async fn update_at_once(stage: Stage) {
    create(&stage, &run("a", "r")).await;
    let runs = stage.scheduler.runs.clone();
    let done = at_once(16, move |index| {
        let runs = runs.clone();
        async move {
            let report =
                Progress { deltas: vec![delta(&format!("d{index}"))], ..Progress::to(RunState::Queued, at(1)) };
            runs.update(&tenant("a"), "r", &report).await
        }
    })
    .await;
    assert_eq!(count_ok(&done), 16, "{done:?}");
    assert_eq!(stage.scheduler.runs.get(&tenant("a"), "r").await.expect("get").deltas.len(), 16);
}

async fn pending(stage: Stage) {
    for (of, id, state, created) in [
        ("a", "late", RunState::Planning, 9),
        ("a", "early", RunState::Queued, 1),
        ("a", "busy", RunState::Running, 0),
        ("b", "other", RunState::Queued, 0),
    ] {
        create(&stage, &Run { state, created_at: at(created), ..run(of, id) }).await;
    }
    let ids = async |limit| {
        let pending = stage.scheduler.runs.pending(&tenant("a"), limit).await.expect("pending");
        pending.into_iter().map(|run| run.id).collect::<Vec<_>>()
    };
    assert_eq!((ids(10).await, ids(1).await), (vec!["early".to_owned(), "late".to_owned()], vec!["early".to_owned()]));
}

async fn by_schedule(stage: Stage) {
    for (of, id, schedule, created) in
        [("a", "old", "s", 1), ("a", "new", "s", 9), ("a", "tie", "s", 9), ("a", "no", "x", 5), ("b", "other", "s", 5)]
    {
        create(&stage, &Run { schedule_id: Some(schedule.to_owned()), created_at: at(created), ..run(of, id) }).await;
    }
    let found = stage.scheduler.runs.by_schedule(&tenant("a"), "s", 2).await.expect("by schedule");
    assert_eq!(found.into_iter().map(|run| run.id).collect::<Vec<_>>(), ["tie", "new"]);
    assert_eq!(stage.scheduler.runs.by_schedule(&tenant("a"), "s", 9).await.expect("by schedule").len(), 3);
}

async fn cancel(stage: Stage) {
    create(&stage, &run("a", "r")).await;
    let cancelled = stage.scheduler.runs.cancel(&tenant("a"), "r", at(3)).await.expect("cancel");
    assert_eq!(
        (cancelled.state, cancelled.finished_at, cancelled.started_at),
        (RunState::Cancelled, Some(at(3)), None)
    );
}

async fn cancel_absent(stage: Stage) {
    not_found(stage.scheduler.runs.cancel(&tenant("a"), "r", at(3)).await);
}

async fn cancel_of_another(stage: Stage) {
    create(&stage, &run("a", "r")).await;
    not_found(stage.scheduler.runs.cancel(&tenant("b"), "r", at(3)).await);
}

async fn cancel_again(stage: Stage) {
    create(&stage, &run("a", "r")).await;
    let first = stage.scheduler.runs.cancel(&tenant("a"), "r", at(3)).await.expect("cancel");
    illegal(stage.scheduler.runs.cancel(&tenant("a"), "r", at(4)).await, "cancelled", "cancelled");
    assert_eq!(stage.scheduler.runs.get(&tenant("a"), "r").await.expect("get"), first);
}

async fn cancel_at_once(stage: Stage) {
    create(&stage, &run("a", "r")).await;
    let runs = stage.scheduler.runs.clone();
    let done = at_once(8, move |index| {
        let runs = runs.clone();
        async move { runs.cancel(&tenant("a"), "r", at(i64::try_from(index).expect("small"))).await }
    })
    .await;
    assert_eq!(count_ok(&done), 1, "{done:?}");
}

async fn cancelled(stage: &Stage) {
    create(stage, &run("a", "r")).await;
    stage.scheduler.runs.cancel(&tenant("a"), "r", at(3)).await.expect("cancel");
}

async fn retry(stage: Stage) {
    cancelled(&stage).await;
    let again = stage.scheduler.runs.retry(&tenant("a"), "r", "r2", at(9)).await.expect("retry");
    let expected = Run { retry_of: Some("r".to_owned()), created_at: at(9), updated_at: at(9), ..run("a", "r2") };
    assert_eq!(again, expected);
    assert_eq!(stage.scheduler.runs.get(&tenant("a"), "r2").await.expect("get"), expected);
}

async fn retry_absent(stage: Stage) {
    not_found(stage.scheduler.runs.retry(&tenant("a"), "r", "r2", at(9)).await);
}

async fn retry_of_another(stage: Stage) {
    cancelled(&stage).await;
    not_found(stage.scheduler.runs.retry(&tenant("b"), "r", "r2", at(9)).await);
}

async fn retry_unfinished(stage: Stage) {
    create(&stage, &run("a", "r")).await;
    illegal(stage.scheduler.runs.retry(&tenant("a"), "r", "r2", at(9)).await, "planning", "planning");
    not_found(stage.scheduler.runs.get(&tenant("a"), "r2").await);
}

async fn retry_again(stage: Stage) {
    cancelled(&stage).await;
    stage.scheduler.runs.retry(&tenant("a"), "r", "r2", at(9)).await.expect("retry");
    conflict(stage.scheduler.runs.retry(&tenant("a"), "r", "r2", at(9)).await);
}

async fn retry_at_once(stage: Stage) {
    cancelled(&stage).await;
    let runs = stage.scheduler.runs.clone();
    let done = at_once(8, move |_| {
        let runs = runs.clone();
        async move { runs.retry(&tenant("a"), "r", "r2", at(9)).await }
    })
    .await;
    assert_eq!(count_ok(&done), 1, "{done:?}");
}
