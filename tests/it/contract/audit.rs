//! Audit.

use std::collections::BTreeSet;

use scheduler_bridge::entity::audit::AuditRecord;
use scheduler_bridge::scheduler::PageRequest;
use scheduler_bridge::scheduler::audit::ListOptions;

use super::{Case, Stage, at_once, case, conflict, count_ok};
use crate::stores::samples::{at, audit, tenant};

pub const CASES: &[Case] = &[
    case!("audit.append", Happy, query),
    case!("audit.append", Conflicting, append_taken),
    case!("audit.append", Repeated, append_taken),
    case!("audit.append", Concurrent, append_at_once),
    case!("audit.query", Happy, query),
    case!("audit.query", WrongTenant, query),
    case!("audit.query", Concurrent, query_at_once),
];

async fn append(stage: &Stage, record: &AuditRecord) {
    stage.scheduler.audit.append(record).await.expect("append");
}

async fn found(stage: &Stage, options: &ListOptions) -> Vec<String> {
    let mut request = PageRequest::first(3);
    let mut ids = Vec::new();
    loop {
        let page = stage.scheduler.audit.query(&tenant("a"), options, &request).await.expect("query");
        ids.extend(page.items.into_iter().map(|record| record.id));
        request.after = page.next;
        if request.after.is_none() {
            return ids;
        }
    }
}

async fn query(stage: Stage) {
    for (of, id, entity, seconds) in
        [("a", "4", "x", 9), ("a", "2", "y", 2), ("a", "1", "x", 1), ("b", "other", "x", 3), ("a", "3", "x", 2)]
    {
        append(&stage, &AuditRecord { occurred_at: at(seconds), ..audit(of, id, entity) }).await;
    }
    let all = ListOptions::default;
    assert_eq!(found(&stage, &all()).await, ["1", "2", "3", "4"]);
    assert_eq!(found(&stage, &ListOptions { entity_id: Some("x".to_owned()), ..all() }).await, ["1", "3", "4"]);
    assert_eq!(found(&stage, &ListOptions { from: Some(at(2)), before: Some(at(9)), ..all() }).await, ["2", "3"]);
}

async fn append_taken(stage: Stage) {
    append(&stage, &audit("a", "1", "x")).await;
    for of in ["a", "b"] {
        conflict(stage.scheduler.audit.append(&audit(of, "1", "y")).await);
    }
    let page = stage.scheduler.audit.query(&tenant("a"), &ListOptions::default(), &PageRequest::first(9)).await;
    assert_eq!(page.expect("query").items, [audit("a", "1", "x")]);
}

async fn append_at_once(stage: Stage) {
    let records = stage.scheduler.audit.clone();
    let done = at_once(16, move |index| {
        let records = records.clone();
        async move { records.append(&audit("a", &format!("{}", index / 2), "x")).await }
    })
    .await;
    assert_eq!(count_ok(&done), 8, "each id once");
}

/// Records that are there all the while are found once, while others come.
async fn query_at_once(stage: Stage) {
    for index in 0..30 {
        append(&stage, &AuditRecord { occurred_at: at(index * 10), ..audit("a", &format!("stays-{index:02}"), "x") })
            .await;
    }
    let comes = stage.clone();
    let coming = tokio::spawn(async move {
        for index in 0..40 {
            append(&comes, &AuditRecord { occurred_at: at(index * 7), ..audit("a", &format!("comes-{index}"), "x") })
                .await;
        }
    });
    for _ in 0..4 {
        let ids = found(&stage, &ListOptions::default()).await;
        let stays = ids.iter().filter(|id| id.starts_with("stays-"));
        assert!(stays.eq((0..30).map(|index| format!("stays-{index:02}")).collect::<Vec<_>>().iter()));
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
    }
    coming.await.expect("records that come");
}
