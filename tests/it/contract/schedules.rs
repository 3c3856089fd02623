//! Schedules.

use scheduler_bridge::entity::schedules::Schedule;
use scheduler_bridge::scheduler::PageRequest;
use scheduler_bridge::scheduler::schedules::{Deleted, ListOptions};

use super::{Case, Stage, at_once, case, conflict, count_ok, invalid, not_found};
use crate::stores::samples::{at, schedule, tenant, trigger};

pub const CASES: &[Case] = &[
    case!("schedules.get", Happy, get),
    case!("schedules.get", Absent, get_absent),
    case!("schedules.get", WrongTenant, get_of_another),
    case!("schedules.get", Deleted, get_deleted),
    case!("schedules.list", Happy, list),
    case!("schedules.list", WrongTenant, list_of_another),
    case!("schedules.upsert", Happy, upsert),
    case!("schedules.upsert", WrongTenant, upsert_of_another),
    case!("schedules.upsert", Conflicting, upsert_invalid),
    case!("schedules.upsert", Repeated, upsert_again),
    case!("schedules.upsert", Concurrent, upsert_at_once),
    case!("schedules.soft_delete", Happy, delete),
    case!("schedules.soft_delete", Absent, delete_absent),
    case!("schedules.soft_delete", WrongTenant, delete_of_another),
    case!("schedules.soft_delete", Deleted, delete_deleted),
    case!("schedules.soft_delete", Repeated, delete_deleted),
    case!("schedules.soft_delete", Concurrent, delete_at_once),
    case!("schedules.due", Happy, due),
];

async fn put(stage: &Stage, schedule: &Schedule) -> Schedule {
    stage.scheduler.schedules.upsert(schedule).await.expect("upsert")
}

async fn get(stage: Stage) {
    let put = put(&stage, &schedule("a", "s")).await;
    assert_eq!(stage.scheduler.schedules.get(&tenant("a"), "s").await.expect("get"), put);
    assert_eq!(put, schedule("a", "s"));
}

async fn get_absent(stage: Stage) {
    not_found(stage.scheduler.schedules.get(&tenant("a"), "s").await);
}

async fn get_of_another(stage: Stage) {
    put(&stage, &schedule("a", "s")).await;
    not_found(stage.scheduler.schedules.get(&tenant("b"), "s").await);
}

async fn get_deleted(stage: Stage) {
    put(&stage, &schedule("a", "s")).await;
    assert!(stage.scheduler.schedules.soft_delete(&tenant("a"), "s", "eve", at(5)).await.expect("delete"));
    not_found(stage.scheduler.schedules.get(&tenant("a"), "s").await);
}

async fn listed(stage: &Stage, options: &ListOptions) -> Vec<String> {
    let mut request = PageRequest::first(2);
    let mut ids = Vec::new();
    loop {
        let page = stage.scheduler.schedules.list(&tenant("a"), options, &request).await.expect("list");
        ids.extend(page.items.into_iter().map(|schedule| schedule.id));
        request.after = page.next;
        if request.after.is_none() {
            return ids;
        }
    }
}

async fn list(stage: Stage) {
    for (id, created, enabled, name) in
        [("late", 9, true, "x"), ("b", 1, false, "x"), ("a", 1, true, "y"), ("gone", 2, true, "x")]
    {
        let sample = Schedule { created_at: at(created), enabled, name: name.to_owned(), ..schedule("a", id) };
        put(&stage, &sample).await;
    }
    stage.scheduler.schedules.soft_delete(&tenant("a"), "gone", "eve", at(5)).await.expect("delete");
    let of = |enabled, deleted, name: Option<&str>| ListOptions { enabled, deleted, name: name.map(str::to_owned) };
    assert_eq!(listed(&stage, &ListOptions::default()).await, ["a", "b", "late"]);
    assert_eq!(listed(&stage, &of(None, Deleted::Included, None)).await, ["a", "b", "gone", "late"]);
    assert_eq!(listed(&stage, &of(Some(true), Deleted::Hidden, None)).await, ["a", "late"]);
    assert_eq!(listed(&stage, &of(Some(false), Deleted::Hidden, None)).await, ["b"]);
    assert_eq!(listed(&stage, &of(None, Deleted::Included, Some("x"))).await, ["b", "gone", "late"]);
    for limit in [0, 1_001] {
        let page = PageRequest::first(limit);
        invalid(stage.scheduler.schedules.list(&tenant("a"), &ListOptions::default(), &page).await);
    }
    let foreign = PageRequest { limit: 1, after: Some("not a cursor".to_owned()) };
    invalid(stage.scheduler.schedules.list(&tenant("a"), &ListOptions::default(), &foreign).await);
}

async fn list_of_another(stage: Stage) {
    put(&stage, &schedule("b", "s")).await;
    assert_eq!(listed(&stage, &ListOptions::default()).await, [""; 0]);
}

async fn upsert(stage: Stage) {
    put(&stage, &schedule("a", "s")).await;
    let changed = Schedule {
        name: "Weekly".to_owned(),
        cron_expression: "@weekly".to_owned(),
        created_at: at(99),
        created_by: "eve".to_owned(),
        updated_at: at(7),
        subscribers: Some(vec!["x\0y".to_owned()]),
        ..schedule("a", "s")
    };
    let expected = Schedule { created_at: at(0), created_by: "ana".to_owned(), ..changed.clone() };
    assert_eq!(put(&stage, &changed).await, expected);
    stage.scheduler.schedules.soft_delete(&tenant("a"), "s", "eve", at(8)).await.expect("delete");
    let back = put(&stage, &schedule("a", "s")).await;
    assert_eq!((back.deleted_at, back.deleted_by, back.updated_at), (None, None, at(8)));
}

async fn upsert_of_another(stage: Stage) {
    put(&stage, &schedule("b", "s")).await;
    conflict(stage.scheduler.schedules.upsert(&schedule("a", "s")).await);
    assert_eq!(stage.scheduler.schedules.get(&tenant("b"), "s").await.expect("get"), schedule("b", "s"));
}

/// What cannot be a schedule conflicts with the rules.
async fn upsert_invalid(stage: Stage) {
    let sample = || schedule("a", "s");
    for wrong in [
        Schedule { cron_expression: "61 * * * *".to_owned(), ..sample() },
        Schedule { timezone: "Europe/Wien".to_owned(), ..sample() },
        Schedule { tenant_id: String::new(), ..sample() },
        Schedule { tenant_id: "t".repeat(385), ..sample() },
        Schedule { tenant_id: "a\0b".to_owned(), ..sample() },
        Schedule { name: "n".repeat(385), ..sample() },
        Schedule { name: "a\0b".to_owned(), ..sample() },
        Schedule { id: "{s}".to_owned(), ..sample() },
        Schedule { id: "s\0".to_owned(), ..sample() },
        Schedule { id: "s".repeat(1_401), ..sample() },
    ] {
        invalid(stage.scheduler.schedules.upsert(&wrong).await);
    }
    assert_eq!(listed(&stage, &ListOptions::default()).await, [""; 0]);
    let kept = put(&stage, &sample()).await;
    for name in ["n".repeat(385), "a\0b".to_owned()] {
        invalid(stage.scheduler.schedules.upsert(&Schedule { name, ..sample() }).await);
    }
    assert_eq!(stage.scheduler.schedules.get(&tenant("a"), "s").await.expect("get"), kept);
}

async fn upsert_again(stage: Stage) {
    put(&stage, &schedule("a", "s")).await;
    assert_eq!(put(&stage, &schedule("a", "s")).await, schedule("a", "s"));
    assert_eq!(listed(&stage, &ListOptions::default()).await, ["s"]);
}

async fn upsert_at_once(stage: Stage) {
    let schedules = stage.scheduler.schedules.clone();
    let done = at_once(8, move |index| {
        let schedules = schedules.clone();
        async move { schedules.upsert(&Schedule { name: format!("n{index}"), ..schedule("a", "s") }).await }
    })
    .await;
    assert_eq!(count_ok(&done), 8, "{done:?}");
    let found = stage.scheduler.schedules.get(&tenant("a"), "s").await.expect("get");
    assert!(done.into_iter().flatten().any(|put| put == found), "one of them stands whole: {found:?}");
}

async fn delete(stage: Stage) {
    put(&stage, &schedule("a", "s")).await;
    assert!(stage.scheduler.schedules.soft_delete(&tenant("a"), "s", "eve", at(5)).await.expect("delete"));
    let included = ListOptions { deleted: Deleted::Included, ..ListOptions::default() };
    let page = stage.scheduler.schedules.list(&tenant("a"), &included, &PageRequest::first(5)).await.expect("list");
    let eve = || Some("eve".to_owned());
    let expected = Schedule {
        deleted_at: Some(at(5)),
        deleted_by: eve(),
        updated_at: at(5),
        updated_by: "eve".to_owned(),
        ..schedule("a", "s")
    };
    assert_eq!(page.items, [expected]);
}

async fn delete_absent(stage: Stage) {
    not_found(stage.scheduler.schedules.soft_delete(&tenant("a"), "s", "eve", at(5)).await);
}

async fn delete_of_another(stage: Stage) {
    put(&stage, &schedule("a", "s")).await;
    not_found(stage.scheduler.schedules.soft_delete(&tenant("b"), "s", "eve", at(5)).await);
    assert!(stage.scheduler.schedules.get(&tenant("a"), "s").await.is_ok());
}

async fn delete_deleted(stage: Stage) {
    put(&stage, &schedule("a", "s")).await;
    let schedules = &stage.scheduler.schedules;
    assert!(schedules.soft_delete(&tenant("a"), "s", "eve", at(5)).await.expect("delete"));
    assert!(!schedules.soft_delete(&tenant("a"), "s", "bob", at(6)).await.expect("delete"));
    let included = ListOptions { deleted: Deleted::Included, ..ListOptions::default() };
    let page = schedules.list(&tenant("a"), &included, &PageRequest::first(5)).await.expect("list");
    assert_eq!((page.items[0].deleted_at, page.items[0].deleted_by.as_deref()), (Some(at(5)), Some("eve")));
}

async fn delete_at_once(stage: Stage) {
    put(&stage, &schedule("a", "s")).await;
    let schedules = stage.scheduler.schedules.clone();
    let done = at_once(8, move |_| {
        let schedules = schedules.clone();
        async move { schedules.soft_delete(&tenant("a"), "s", "eve", at(5)).await.expect("delete") }
    })
    .await;
    assert_eq!(done.iter().filter(|was_there| **was_there).count(), 1, "{done:?}");
}

async fn due(stage: Stage) {
    for (of, id, enabled) in
        [("a", "s1", true), ("b", "s2", true), ("a", "s3", false), ("a", "s4", true), ("a", "s5", true)]
    {
        put(&stage, &Schedule { enabled, ..schedule(of, id) }).await;
        let mut trigger = trigger(of, &format!("t-{id}"), id);
        trigger.next_fire_at = Some(at(if id == "s5" { 100 } else { 10 }));
        stage.scheduler.triggers.upsert(&trigger).await.expect("upsert");
    }
    let twice = trigger("a", "again", "s1");
    stage.scheduler.triggers.upsert(&twice).await.expect("upsert");
    stage.scheduler.schedules.soft_delete(&tenant("a"), "s4", "eve", at(5)).await.expect("delete");
    let due = stage.scheduler.schedules.due(at(50), 100).await.expect("due");
    assert_eq!(due.iter().map(|schedule| schedule.id.as_str()).collect::<Vec<_>>(), ["s1", "s2"]);
    assert_eq!(stage.scheduler.schedules.due(at(-1), 100).await.expect("due"), []);
}
