//! Triggers.

use std::collections::BTreeMap;

use scheduler_bridge::entity::triggers::{MisfirePolicy, Trigger, TriggerKind};
use scheduler_bridge::scheduler::PageRequest;
use scheduler_bridge::scheduler::records::creation;
use scheduler_bridge::scheduler::triggers::Claim;

use super::{Case, Stage, at_once, case, conflict, invalid, not_found};
use crate::stores::samples::{at, run, tenant, trigger};

pub const CASES: &[Case] = &[
    case!("triggers.get", Happy, get),
    case!("triggers.get", Absent, get_absent),
    case!("triggers.get", WrongTenant, get_of_another),
    case!("triggers.list_by_schedule", Happy, list),
    case!("triggers.list_by_schedule", WrongTenant, list_of_another),
    case!("triggers.upsert", Happy, upsert),
    case!("triggers.upsert", WrongTenant, upsert_of_another),
    case!("triggers.upsert", Conflicting, upsert_invalid),
    case!("triggers.upsert", Repeated, upsert_again),
    case!("triggers.upsert", Concurrent, upsert_at_once),
    case!("triggers.advance", Happy, advance),
    case!("triggers.advance", Absent, advance_absent),
    case!("triggers.advance", WrongTenant, advance_of_another),
    case!("triggers.advance", Repeated, advance_again),
    case!("triggers.advance", Concurrent, advance_at_once),
    case!("triggers.claim_due", Happy, claim),
    case!("triggers.claim_due", Repeated, claim_again),
    case!("triggers.claim_due", Concurrent, claim_at_once),
    case!("triggers.fire_due", Happy, fire),
    case!("triggers.fire_due", Repeated, fire_again),
    case!("triggers.fire_due", Concurrent, fire_at_once),
];

/// An hour after the samples' triggers are due: far beyond the grace.
const LATE: i64 = 3_600;

async fn put(stage: &Stage, trigger: &Trigger) -> Trigger {
    stage.scheduler.triggers.upsert(trigger).await.expect("upsert")
}

async fn get(stage: Stage) {
    put(&stage, &trigger("a", "t", "s")).await;
    assert_eq!(stage.scheduler.triggers.get(&tenant("a"), "t").await.expect("get"), trigger("a", "t", "s"));
}

async fn get_absent(stage: Stage) {
    not_found(stage.scheduler.triggers.get(&tenant("a"), "t").await);
}

async fn get_of_another(stage: Stage) {
    put(&stage, &trigger("a", "t", "s")).await;
    not_found(stage.scheduler.triggers.get(&tenant("b"), "t").await);
}

async fn list(stage: Stage) {
    for (id, schedule, created) in [("z", "s", 1), ("a", "s", 2), ("b", "other", 1), ("c", "s", 1)] {
        put(&stage, &Trigger { created_at: at(created), ..trigger("a", id, schedule) }).await;
    }
    let triggers = &stage.scheduler.triggers;
    let first = triggers.list_by_schedule(&tenant("a"), "s", &PageRequest::first(2)).await.expect("list");
    let rest = PageRequest { limit: 2, after: first.next.clone() };
    let second = triggers.list_by_schedule(&tenant("a"), "s", &rest).await.expect("list");
    let ids: Vec<_> = first.items.iter().chain(&second.items).map(|trigger| trigger.id.as_str()).collect();
    assert_eq!((ids, second.next), (vec!["c", "z", "a"], None));
}

async fn list_of_another(stage: Stage) {
    put(&stage, &trigger("a", "t", "s")).await;
    let listed = stage.scheduler.triggers.list_by_schedule(&tenant("b"), "s", &PageRequest::first(5)).await;
    assert_eq!(listed.expect("list").items, []);
}

async fn upsert(stage: Stage) {
    let unset = Trigger { next_fire_at: None, ..trigger("a", "t", "s") };
    let first = put(&stage, &unset).await.next_fire_at.expect("the first firing after it was updated");
    assert!(first > at(0) && first <= at(3_600) && first.0.timestamp() % 3_600 == 0);
    let daily = Trigger { cron_expression: Some("0 0 * * *".to_owned()), updated_at: at(5), ..unset };
    let daily = put(&stage, &daily).await;
    assert_eq!(daily.next_fire_at.expect("a firing").0.timestamp() % 86_400, 0);
    let manual = Trigger { kind: TriggerKind::Manual, cron_expression: None, ..trigger("a", "m", "s") };
    assert_eq!(put(&stage, &Trigger { next_fire_at: None, ..manual }).await.next_fire_at, None);
}

async fn upsert_of_another(stage: Stage) {
    put(&stage, &trigger("b", "t", "s")).await;
    conflict(stage.scheduler.triggers.upsert(&trigger("a", "t", "s")).await);
}

async fn upsert_invalid(stage: Stage) {
    let sample = || trigger("a", "t", "s");
    for wrong in [
        Trigger { cron_expression: None, ..sample() },
        Trigger { cron_expression: Some("0 0 30 2 *".to_owned()), ..sample() },
        Trigger { timezone: Some("Nowhere".to_owned()), ..sample() },
        Trigger { schedule_id: "s".repeat(385), ..sample() },
    ] {
        invalid(stage.scheduler.triggers.upsert(&wrong).await);
    }
    not_found(stage.scheduler.triggers.get(&tenant("a"), "t").await);
}

/// The same trigger again neither fires again nor passes a firing over.
async fn upsert_again(stage: Stage) {
    let unset = Trigger { next_fire_at: None, ..trigger("a", "t", "s") };
    let first = put(&stage, &unset).await;
    assert_eq!(put(&stage, &unset).await, first);
    let fired = first.next_fire_at.expect("a firing");
    let advanced = stage.scheduler.triggers.advance(&tenant("a"), "t", fired).await.expect("advance");
    assert_eq!(put(&stage, &unset).await, advanced);
}

async fn upsert_at_once(stage: Stage) {
    let triggers = stage.scheduler.triggers.clone();
    let done = at_once(8, move |index| {
        let triggers = triggers.clone();
        async move { triggers.upsert(&trigger("a", "t", &format!("s{index}"))).await.expect("upsert") }
    })
    .await;
    let found = stage.scheduler.triggers.get(&tenant("a"), "t").await.expect("get");
    assert!(done.contains(&found), "one of them stands whole: {found:?}");
}

async fn advance(stage: Stage) {
    put(&stage, &trigger("a", "t", "s")).await;
    let advanced = stage.scheduler.triggers.advance(&tenant("a"), "t", at(0)).await.expect("advance");
    let next = advanced.next_fire_at.expect("a firing").0.timestamp();
    assert_eq!(advanced.last_fired_at, Some(at(0)));
    assert!(next > at(0).0.timestamp() && next <= at(3_600).0.timestamp() && next % 3_600 == 0);
}

async fn advance_absent(stage: Stage) {
    not_found(stage.scheduler.triggers.advance(&tenant("a"), "t", at(0)).await);
}

async fn advance_of_another(stage: Stage) {
    put(&stage, &trigger("a", "t", "s")).await;
    not_found(stage.scheduler.triggers.advance(&tenant("b"), "t", at(0)).await);
}

async fn advance_again(stage: Stage) {
    put(&stage, &trigger("a", "t", "s")).await;
    let triggers = &stage.scheduler.triggers;
    let later = triggers.advance(&tenant("a"), "t", at(LATE)).await.expect("advance");
    for again in [at(LATE), at(0)] {
        assert_eq!(triggers.advance(&tenant("a"), "t", again).await.expect("advance"), later);
    }
}

async fn advance_at_once(stage: Stage) {
    put(&stage, &trigger("a", "t", "s")).await;
    let triggers = stage.scheduler.triggers.clone();
    at_once(8, move |index| {
        let triggers = triggers.clone();
        let fired = at(3_600 * i64::try_from(index).expect("small"));
        async move { triggers.advance(&tenant("a"), "t", fired).await.expect("advance") }
    })
    .await;
    let found = stage.scheduler.triggers.get(&tenant("a"), "t").await.expect("get");
    assert_eq!(found.last_fired_at, Some(at(3_600 * 7)), "the newest firing stands");
}

fn ids(claims: &[Claim]) -> Vec<&str> {
    claims.iter().map(|claim| claim.trigger.id.as_str()).collect()
}

async fn claim(stage: Stage) {
    let triggers = &stage.scheduler.triggers;
    assert_eq!(triggers.claim_due(at(LATE), 10, "w").await.expect("claim"), []);
    put(&stage, &trigger("a", "first", "s")).await;
    put(&stage, &Trigger { next_fire_at: Some(at(5)), ..trigger("b", "second", "s") }).await;
    put(&stage, &Trigger { next_fire_at: Some(at(9_000)), ..trigger("a", "later", "s") }).await;
    put(&stage, &Trigger { enabled: false, ..trigger("a", "off", "s") }).await;
    put(
        &stage,
        &Trigger { misfire_policy: MisfirePolicy::Skip, next_fire_at: Some(at(6)), ..trigger("a", "skips", "s") },
    )
    .await;
    let manual = Trigger { kind: TriggerKind::Manual, next_fire_at: Some(at(7)), ..trigger("a", "manual", "s") };
    put(&stage, &manual).await;
    let claims = triggers.claim_due(at(LATE), 10, "w").await.expect("claim");
    assert_eq!(ids(&claims), ["first", "second", "skips", "manual"]);
    let fired: Vec<_> = claims.iter().map(|claim| claim.fire_at).collect();
    assert_eq!(fired, [Some(at(0)), Some(at(5)), None, Some(at(7))]);
    let next: Vec<_> = claims.iter().map(|claim| claim.trigger.next_fire_at).collect();
    assert!(next[..3].iter().all(|next| *next > Some(at(LATE - 61))) && next[3].is_none(), "{next:?}");
    for claim in &claims {
        let of = tenant(&claim.trigger.tenant_id);
        assert_eq!(triggers.get(&of, &claim.trigger.id).await.expect("get"), claim.trigger);
    }
}

async fn claim_again(stage: Stage) {
    put(&stage, &trigger("a", "t", "s")).await;
    let triggers = &stage.scheduler.triggers;
    assert_eq!(ids(&triggers.claim_due(at(1), 10, "w").await.expect("claim")), ["t"]);
    assert_eq!(triggers.claim_due(at(1), 10, "w").await.expect("claim"), []);
}

async fn claim_at_once(stage: Stage) {
    for index in 0..60 {
        put(&stage, &trigger("a", &format!("t{index}"), "s")).await;
    }
    let triggers = stage.scheduler.triggers.clone();
    let done = at_once(8, move |index| {
        let triggers = triggers.clone();
        async move {
            let mut claimed = Vec::new();
            loop {
                let more = triggers.claim_due(at(1), 7, &format!("w{index}")).await.expect("claim");
                if more.is_empty() {
                    break;
                }
                claimed.extend(more);
            }
            claimed
        }
    })
    .await;
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for claim in done.iter().flatten() {
        *times.entry(claim.trigger.id.clone()).or_default() += 1;
    }
    // One that met only others' claims went home early; what it left is still due.
    let left = stage.scheduler.triggers.claim_due(at(1), 100, "last").await.expect("claim");
    assert!(times.values().all(|times| *times == 1), "{times:?}");
    assert_eq!(times.len() + left.len(), 60);
}

async fn fire(stage: Stage) {
    put(&stage, &trigger("a", "t", "s")).await;
    let brings_about = |claim: &Claim| Ok(vec![creation(&run("a", &format!("run-of-{}", claim.trigger.id)))?]);
    let fired = stage.scheduler.triggers.fire_due(at(1), 10, "w", brings_about).await.expect("fire");
    assert_eq!(ids(&fired), ["t"]);
    assert!(stage.scheduler.runs.get(&tenant("a"), "run-of-t").await.is_ok());
}

/// What the firing brings about is there already: neither happens again.
async fn fire_again(stage: Stage) {
    put(&stage, &trigger("a", "t", "s")).await;
    stage.scheduler.runs.create(&run("a", "taken")).await.expect("create");
    let brings_about = |_: &Claim| Ok(vec![creation(&run("a", "taken"))?]);
    let fired = stage.scheduler.triggers.fire_due(at(1), 10, "w", brings_about).await.expect("fire");
    assert_eq!(fired, []);
    let found = stage.scheduler.triggers.get(&tenant("a"), "t").await.expect("get");
    assert_eq!(found, trigger("a", "t", "s"));
}

async fn fire_at_once(stage: Stage) {
    for index in 0..20 {
        put(&stage, &trigger("a", &format!("t{index}"), "s")).await;
    }
    let triggers = stage.scheduler.triggers.clone();
    let done = at_once(6, move |index| {
        let triggers = triggers.clone();
        let brings_about =
            move |claim: &Claim| Ok(vec![creation(&run("a", &format!("{}-by-{index}", claim.trigger.id)))?]);
        async move { triggers.fire_due(at(1), 100, &format!("w{index}"), brings_about).await.expect("fire") }
    })
    .await;
    let fired: usize = done.iter().map(Vec::len).sum();
    let runs = stage.scheduler.runs.pending(&tenant("a"), 100).await.expect("pending");
    assert_eq!((fired, runs.len()), (20, 20));
}
