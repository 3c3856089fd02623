//! What stands in the way of `bridge finalize`.

use scheduler_bridge::layout::Layout;
use scheduler_bridge::phase::Phase;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor};

use super::layout;
use crate::bed::Bed;
use crate::commands::object;
use crate::dual::turn;

/// What stands in the way, by which condition it is seen, and what is like it and harmless.
const OBSTACLES: [(&str, &str, &str); 12] = [
    (
        "update bridge.fence set phase = 'postgres-primary'",
        "the phase is postgres",
        "update bridge.fence set phase = 'postgres'",
    ),
    ("update bridge.fence set open = false", "the phase is postgres", "update bridge.fence set open = true"),
    (
        "insert into bridge.switch values (true, 'postgres-primary', 'postgres', 'begin', gen_random_uuid(), 'ana', now())",
        "no switch is under way",
        "delete from bridge.switch",
    ),
    (
        "insert into bridge.stream (clock, leased_until) values (1, now() + interval '1 min')",
        "nothing of the bridge is at work",
        "update bridge.stream set leased_until = now() - interval '1 s'",
    ),
    (
        "insert into bridge.backfill (collection, epoch, clock, estimated_documents) values ('runs', 1, 1, 1);
        insert into bridge.chunk (backfill, ordinal, leased_until)
        select id, 1, now() + interval '1 min' from bridge.backfill",
        "nothing of the bridge is at work",
        "update bridge.chunk set finished_at = now()",
    ),
    (
        "insert into bridge.verification (phase, epoch, collections, tolerance_seconds, holder, held_by, leased_until)
        values ('postgres', 2, '{runs}', 1, gen_random_uuid(), 'ana', now() + interval '1 min')",
        "nothing of the bridge is at work",
        "update bridge.verification set leased_until = now() - interval '1 s'",
    ),
    (
        "insert into bridge.instance (id, name, epoch) values (gen_random_uuid(), 'host/1', 2)",
        "no process of the application runs",
        "update bridge.instance set seen_at = now() - interval '1 min'",
    ),
    (
        "insert into bridge.stray (collection, id, epoch, clock) values ('runs', 'x', 1, 1)",
        "every stray write is accepted",
        "update bridge.stray set accepted_at = now()",
    ),
    (
        "insert into bridge.quarantine (collection, id, document, reason, epoch, clock) values ('runs', 'x', '', 'odd', 1, 1)",
        "the quarantine is empty or accepted",
        "update bridge.quarantine set accepted_at = now()",
    ),
    (
        "insert into scheduler.runs (id, tenant_id, state, residue, epoch, clock) values ('r', 't', 'queued', '\\x00', 1, 1)",
        "no row has a residue",
        "update scheduler.runs set residue = null",
    ),
    (
        "update scheduler.runs set schedule_id = 'gone'",
        "no reference leads nowhere",
        "update scheduler.runs set schedule_id = null",
    ),
    (
        "insert into scheduler.execution_logs (id, tenant_id, run_id, epoch, clock) values ('l', 't', 'gone', 1, 1)",
        "no reference leads nowhere",
        "update scheduler.execution_logs set run_id = 'r'",
    ),
];

/// The conditions that are not met.
fn unmet(planned: &Value) -> Vec<&str> {
    let conditions = planned["conditions"].as_array().expect("conditions").iter();
    conditions.filter(|one| one["met"] == false).map(|one| one["name"].as_str().expect("a name")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_still_needs_the_bridge_is_named_and_nothing_is_changed() {
    let bed = Bed::new().await;
    turn(&bed, Phase::Postgres, 2).await;
    for (obstacle, condition, harmless) in OBSTACLES {
        bed.pool().execute(AssertSqlSafe(obstacle)).await.expect(obstacle);
        assert_eq!(unmet(&object(&bed, &["finalize", "--dry-run"], 5).await), [condition], "{obstacle}");
        let refused = object(&bed, &["finalize", "--yes"], 5).await;
        assert!(refused["hint"].as_str().is_some_and(|hint| hint.contains("--dry-run")), "{refused}");
        assert_eq!(layout(&bed).await, Layout::Moving, "{obstacle}");
        bed.pool().execute(AssertSqlSafe(harmless)).await.expect(harmless);
        let planned = object(&bed, &["finalize", "--dry-run"], 0).await;
        assert_eq!(unmet(&planned), [""; 0], "{harmless}");
        assert_eq!(layout(&bed).await, Layout::Moving, "a dry run changes nothing");
    }
    // Nobody is there to confirm it.
    let refused = object(&bed, &["finalize"], 5).await;
    assert!(refused["error"].as_str().is_some_and(|words| words.contains("not confirmed")), "{refused}");
    object(&bed, &["finalize", "--yes"], 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_is_shown_and_lost_only_by_who_says_so() {
    let bed = Bed::new().await;
    turn(&bed, Phase::Postgres, 2).await;
    let damage = "insert into scheduler.schedules (id, tenant_id, epoch, clock) values ('s', 't', 1, 1);
        insert into scheduler.runs (id, tenant_id, state, schedule_id, residue, epoch, clock)
        select 'r' || i, 't', 'queued', case when i > 10 then 's' else 'gone' end, case when i > 17 then '\\x00'::bytea end, 1, i
        from generate_series(1, 20) i;
        insert into scheduler.triggers (id, tenant_id, residue, epoch, clock) values ('t', 't', '\\x00', 1, 1)";
    bed.pool().execute(damage).await.expect("damage");
    let planned = object(&bed, &["finalize", "--dry-run"], 5).await;
    let residues = json!([{ "collection": "triggers", "rows": 1 }, { "collection": "runs", "rows": 3 }]);
    assert_eq!(planned["residues"], residues);
    let first = ["r1", "r10", "r2", "r3", "r4"];
    let dangling = json!([
        { "collection": "runs", "column": "schedule_id", "parent": "schedules", "rows": 10, "ids": first }
    ]);
    assert_eq!(planned["dangling"], dangling);
    for one in ["--drop-residues", "--keep-dangling"] {
        assert_eq!(unmet(&object(&bed, &["finalize", "--dry-run", one], 5).await).len(), 1, "{one}");
    }

    let both = ["finalize", "--drop-residues", "--keep-dangling", "--yes"];
    let done = object(&bed, &both, 0).await;
    let valid = |done: &Value, column: &str| {
        let references = done["references"].as_array().expect("references").iter();
        let mut found = references.filter(|one| one["collection"] == "runs" && one["column"] == column);
        found.next().expect("a reference")["is_valid"].clone()
    };
    assert_eq!(valid(&done, "schedule_id"), false);
    let new = "insert into scheduler.runs (id, tenant_id, state, schedule_id) values ('new', 't', 'queued', 'gone')";
    bed.pool().execute(new).await.expect_err("a new row must lead somewhere");
    // What dangles is put right later, and the next run has it looked at.
    assert_eq!(valid(&object(&bed, &["finalize"], 0).await, "schedule_id"), false);
    let right = "update scheduler.runs set schedule_id = 's' where schedule_id = 'gone'";
    bed.pool().execute(right).await.expect("put it right");
    assert_eq!(valid(&object(&bed, &["finalize"], 0).await, "schedule_id"), true);
}
