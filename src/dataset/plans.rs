//! Schedules, triggers, workers and locks.

use bson::{RawDocumentBuf, doc};

use super::ids;
use super::random::Random;
use crate::entity::locks::Lock;
use crate::entity::schedules::{Label, Limits, Mode, Notify, OnlyIf, Schedule, Selection};
use crate::entity::triggers::{MisfirePolicy, Trigger, TriggerKind};
use crate::entity::workers::{Worker, WorkerStatus};

const CRONS: &[&str] = &["0 2 * * *", "*/15 * * * *", "0 0 * * 1", "30 6 1 * *", "@daily", "0 0/5 * * * *"];
const ZONES: &[&str] = &["UTC", "Europe/Vienna", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"];
const PEOPLE: &[&str] = &["ana.petrova", "j.ng", "svc-scheduler", "müller", "o'brien", "李雷"];
pub(super) const NAMESPACES: &[&str] = &["payments", "search", "checkout", "platform", "edge"];
pub(super) const REPOSITORIES: &[&str] = &["shop/api", "shop/web", "core/auth", "core/ledger", "tools/report"];

pub(super) fn schedule(index: u64, _: u64, random: &mut Random) -> bson::error::Result<RawDocumentBuf> {
    let run = index * ids::RUNS_PER_SCHEDULE;
    let deleted = random.chance(5);
    bson::serialize_to_raw_document_buf(&Schedule {
        id: ids::schedule(index),
        schema_version: Some("scheduler.schedule@1".to_owned()),
        tenant_id: ids::tenant(index),
        name: format!("{} {}", random.pick(&["Nightly", "Weekly", "Hourly", "Übernacht"]), random.pick(NAMESPACES)),
        enabled: !deleted && random.chance(80),
        cron_expression: random.pick(CRONS).to_owned(),
        timezone: random.pick(ZONES).to_owned(),
        mode: if random.chance(60) { Mode::AnalysisOnly } else { Mode::ContentRefresh },
        selection: selection(random),
        only_if: random.chance(40).then(|| OnlyIf {
            last_report_older_than_days: random.chance(80).then(|| 1 + random.count(30)),
            policy_revision: random.chance(30).then(|| format!("rev-{}", random.below(90))),
        }),
        notify: random.chance(60).then(|| Notify {
            on_new_findings: random.chance(70),
            min_severity: random.chance(70).then(|| random.pick(&["low", "medium", "high", "critical"]).to_owned()),
            include_kev: random.chance(50),
        }),
        limits: random.chance(50).then(|| limits(random)),
        subscribers: random.chance(30).then(|| (0..random.below(3)).map(|_| person(random)).collect()),
        created_at: ids::at(run),
        created_by: person(random),
        updated_at: ids::after(run, 1_000 + i64::from(random.count(9_000_000))),
        updated_by: person(random),
        deleted_at: deleted.then(|| ids::after(run, 10_000_000)),
        deleted_by: deleted.then(|| person(random)),
    })
}

/// A selection; what it does not filter by stays an empty array.
pub(super) fn selection(random: &mut Random) -> Selection {
    let scope = random.pick(&["all-images", "by-namespace", "by-repository", "by-labels"]);
    let some = |random: &mut Random, choices: &[&str]| vec![random.pick(choices).to_owned()];
    Selection {
        scope: scope.to_owned(),
        namespaces: if scope == "by-namespace" { some(random, NAMESPACES) } else { vec![] },
        repositories: if scope == "by-repository" { some(random, REPOSITORIES) } else { vec![] },
        digests: vec![],
        include_tags: if random.chance(30) { some(random, &["latest", "prod", "v*"]) } else { vec![] },
        labels: match scope {
            "by-labels" => vec![Label { key: "team".to_owned(), values: some(random, NAMESPACES) }],
            _ => vec![],
        },
        resolves_tags: random.chance(50),
    }
}

fn limits(random: &mut Random) -> Limits {
    Limits {
        max_jobs: random.chance(80).then(|| 1 + random.count(1_000)),
        rate_per_second: random.chance(80).then(|| 1 + random.count(50)),
        parallelism: random.chance(80).then(|| 1 + random.count(16)),
        burst: random.chance(20).then(|| 1 + random.count(100)),
    }
}

fn person(random: &mut Random) -> String {
    random.pick(PEOPLE).to_owned()
}

pub(super) fn trigger(index: u64, _: u64, random: &mut Random) -> bson::error::Result<RawDocumentBuf> {
    let run = index * ids::RUNS_PER_SCHEDULE;
    let kind = if random.chance(70) { 0 } else { 1 + random.below(3) };
    bson::serialize_to_raw_document_buf(&Trigger {
        id: format!("trg_{index:08}"),
        tenant_id: ids::tenant(index),
        schedule_id: ids::schedule(index),
        kind: match kind {
            0 => TriggerKind::Cron,
            1 => TriggerKind::Manual,
            2 => TriggerKind::Conselier,
            _ => TriggerKind::Excitor,
        },
        cron_expression: (kind == 0).then(|| random.pick(CRONS).to_owned()),
        timezone: (kind == 0).then(|| random.pick(ZONES).to_owned()),
        enabled: random.chance(85),
        next_fire_at: (kind == 0).then(|| ids::after(run, 86_400_000 + i64::from(random.count(86_400_000)))),
        last_fired_at: random.chance(80).then(|| ids::after(run, i64::from(random.count(86_400_000)))),
        misfire_policy: if random.chance(70) { MisfirePolicy::FireOnce } else { MisfirePolicy::Skip },
        created_at: ids::at(run),
        updated_at: ids::after(run, i64::from(random.count(86_400_000))),
    })
}

pub(super) fn worker(index: u64, _: u64, random: &mut Random) -> bson::error::Result<RawDocumentBuf> {
    let status = random.below(10);
    bson::serialize_to_raw_document_buf(&Worker {
        id: worker_id(index),
        tenant_id: random.chance(20).then(|| ids::tenant(random.below(40))),
        hostname: format!("node-{:03}.internal", index % 200),
        process_id: 100 + random.count(32_000),
        status: match status {
            0 => WorkerStatus::Dead,
            1 => WorkerStatus::Draining,
            _ => WorkerStatus::Active,
        },
        job_types: if random.chance(50) {
            vec!["graph".to_owned(), "policy".to_owned()]
        } else {
            vec!["run".to_owned()]
        },
        max_concurrent: 1 + random.count(32),
        current_jobs: random.count(8),
        registered_at: ids::at(index),
        last_heartbeat_at: ids::after(index, i64::from(random.count(600_000_000))),
        metadata: doc! { "version": "2.4.1", "zone": random.pick(&["a", "b", "c"]), "cores": 2 + random.count(30) },
    })
}

/// The id of a worker; only as many of them as `workers` has documents are registered.
pub(super) fn worker_id(worker: u64) -> String {
    format!("wrk-{worker:05}")
}

pub(super) fn lock(index: u64, _: u64, random: &mut Random) -> bson::error::Result<RawDocumentBuf> {
    let held = ids::after(index, i64::from(random.count(600_000)));
    bson::serialize_to_raw_document_buf(&Lock {
        id: format!("{}:plan:{}", ids::tenant(index), ids::schedule(index)),
        owner: worker_id(random.below(3)),
        token: 1 + i64::from(random.count(4_000_000)),
        acquired_at: held,
        expires_at: crate::entity::Instant(held.0 + chrono::TimeDelta::seconds(30)),
    })
}
