//! Execution logs.

use super::{Case, Stage, at_once, case, conflict, invalid};
use crate::stores::samples::{log_line, tenant};

pub const CASES: &[Case] = &[
    case!("execution_logs.append", Happy, append),
    case!("execution_logs.append", Conflicting, append_taken),
    case!("execution_logs.append", Repeated, append_taken),
    case!("execution_logs.append", Concurrent, append_at_once),
    case!("execution_logs.by_run", Happy, append),
    case!("execution_logs.by_run", WrongTenant, of_another),
];

async fn append(stage: Stage) {
    let logs = &stage.scheduler.execution_logs;
    let mut lines: Vec<_> = (1..=5).map(|sequence| log_line("a", "r", sequence)).collect();
    lines[2].message = "nul \0, \u{202e}right to left\u{1b}[31m".to_owned();
    lines[2].metadata = bson::doc! { "$date": 1, "a.b": [1_i64, 2.0, { "": null_bson() }] };
    logs.append(&lines[2..]).await.expect("append");
    logs.append(&lines[..2]).await.expect("append");
    logs.append(&[log_line("a", "other", 1)]).await.expect("append");
    logs.append(&[]).await.expect("append nothing");
    assert_eq!(logs.by_run(&tenant("a"), "r", 0, 100).await.expect("by run"), lines);
    assert_eq!(logs.by_run(&tenant("a"), "r", 3, 2).await.expect("by run"), lines[2..4]);
    assert_eq!(logs.by_run(&tenant("a"), "absent", 0, 100).await.expect("by run"), []);
    for limit in [0, 10_001] {
        invalid(logs.by_run(&tenant("a"), "r", 0, limit).await);
    }
}

fn null_bson() -> bson::Bson {
    bson::Bson::Null
}

async fn append_taken(stage: Stage) {
    let logs = &stage.scheduler.execution_logs;
    let first = log_line("a", "r", 1);
    logs.append(std::slice::from_ref(&first)).await.expect("append");
    conflict(logs.append(&[log_line("a", "r", 2), first.clone(), log_line("a", "r", 3)]).await);
    assert_eq!(logs.by_run(&tenant("a"), "r", 0, 100).await.expect("by run"), [first], "all lines or none");
}

async fn append_at_once(stage: Stage) {
    let logs = stage.scheduler.execution_logs.clone();
    at_once(8, move |index| {
        let logs = logs.clone();
        let first = i64::try_from(index).expect("small") * 100;
        let lines: Vec<_> = (1..=50).map(|line| log_line("a", "r", first + line)).collect();
        async move { logs.append(&lines).await.expect("append") }
    })
    .await;
    let all = stage.scheduler.execution_logs.by_run(&tenant("a"), "r", 0, 1_000).await.expect("by run");
    assert_eq!(all.len(), 400);
    assert!(all.is_sorted_by_key(|line| line.sequence));
}

async fn of_another(stage: Stage) {
    stage.scheduler.execution_logs.append(&[log_line("a", "r", 1)]).await.expect("append");
    assert_eq!(stage.scheduler.execution_logs.by_run(&tenant("b"), "r", 0, 100).await.expect("by run"), []);
}
