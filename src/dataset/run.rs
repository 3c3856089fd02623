//! Runs, their impact snapshots and their summaries.

use std::collections::BTreeMap;

use bson::RawDocumentBuf;

use super::ids;
use super::plans::{NAMESPACES, REPOSITORIES, selection};
use super::random::Random;
use crate::entity::impact_snapshots::{Image, ImpactSnapshot};
use crate::entity::run_summaries::{Counters, RecentRun, RunSummary};
use crate::entity::runs::{Delta, Reason, Run, RunState, Stats};

/// Runs from one snapshot to the next.
const RUNS_PER_SNAPSHOT: u64 = 3;

const ERRORS: &[&str] = &[
    "registry answered 503 Service Unavailable",
    "deadline of 00:10:00 exceeded while waiting for scanner",
    "policy \"P-7\" has no active revision\n  at evaluate (line 14)",
];

pub(super) fn run(index: u64, seed: u64, random: &mut Random) -> bson::error::Result<RawDocumentBuf> {
    let state = state(random);
    let deltas = deltas(index, state, random);
    let started = !matches!(state, RunState::Planning | RunState::Queued);
    let finished = matches!(state, RunState::Completed | RunState::Error | RunState::Cancelled);
    let took = i64::from(random.count(900_000));
    let schedule = ids::schedule_of_run(index);
    let trigger = random.pick(&["cron", "cron", "cron", "conselier", "excitor", "manual"]);
    bson::serialize_to_raw_document_buf(&Run {
        id: ids::run(index, seed),
        schema_version: Some("scheduler.run@1".to_owned()),
        tenant_id: ids::tenant(schedule),
        schedule_id: (trigger != "manual").then(|| ids::schedule(schedule)),
        trigger: trigger.to_owned(),
        state,
        stats: stats(&deltas, random),
        reason: reason(index, trigger, random),
        created_at: ids::at(index),
        started_at: started.then(|| ids::after(index, 1_500)),
        finished_at: finished.then(|| ids::after(index, 2_000 + took)),
        error: (state == RunState::Error).then(|| random.pick(ERRORS).to_owned()),
        deltas,
        retry_of: (index > 0 && random.chance(3)).then(|| ids::run(index - 1, seed)),
        updated_at: ids::after(index, 2_000 + took),
    })
}

fn state(random: &mut Random) -> RunState {
    match random.below(100) {
        0 => RunState::Planning,
        1..3 => RunState::Queued,
        3..6 => RunState::Running,
        6..12 => RunState::Error,
        12..17 => RunState::Cancelled,
        _ => RunState::Completed,
    }
}

fn deltas(index: u64, state: RunState, random: &mut Random) -> Vec<Delta> {
    let found = if state == RunState::Completed { random.pick(&[0, 2, 3, 3, 3, 4]) } else { 0 };
    let delta = |at: i64| {
        let [criticals, high, medium, low] = [3, 6, 12, 20].map(|most| random.count(most));
        Delta {
            image_digest: random.digest(),
            new_findings: criticals + high + medium + low,
            new_criticals: criticals,
            new_high: high,
            new_medium: medium,
            new_low: low,
            kev_hits: if random.chance(10) { vec![format!("CVE-2025-{:05}", random.below(50_000))] } else { vec![] },
            detected_at: Some(ids::after(index, 1_600 + at)),
        }
    };
    (0..found).map(delta).collect()
}

fn stats(deltas: &[Delta], random: &mut Random) -> Stats {
    let candidates = 10 + random.count(5_000);
    let sum = |count: fn(&Delta) -> i32| deltas.iter().map(count).sum();
    Stats {
        candidates,
        deduped: candidates / 10,
        queued: candidates / 2,
        completed: candidates / 3,
        deltas: i32::try_from(deltas.len()).unwrap_or(i32::MAX),
        new_criticals: sum(|delta| delta.new_criticals),
        new_high: sum(|delta| delta.new_high),
        new_medium: sum(|delta| delta.new_medium),
        new_low: sum(|delta| delta.new_low),
    }
}

fn reason(index: u64, trigger: &str, random: &mut Random) -> Reason {
    let export = || format!("export-2025-{index:07}");
    let window = trigger != "manual" && random.chance(50);
    Reason {
        manual_reason: (trigger == "manual").then(|| "requested after the advisory of this morning".to_owned()),
        conselier_export_id: (trigger == "conselier").then(export),
        excitor_export_id: (trigger == "excitor").then(export),
        cursor: random.chance(50).then(|| format!("{:016x}", random.next())),
        impact_window_from: window.then(|| ids::after(index, -86_400_000)),
        impact_window_to: window.then(|| ids::at(index)),
    }
}

pub(super) fn impact_snapshot(index: u64, seed: u64, random: &mut Random) -> bson::error::Result<RawDocumentBuf> {
    let run = index * RUNS_PER_SNAPSHOT;
    let images: Vec<_> = (0..random.below(6)).map(|_| image(random)).collect();
    bson::serialize_to_raw_document_buf(&ImpactSnapshot {
        id: format!("imp_{index:08}"),
        schema_version: Some("scheduler.impact-set@1".to_owned()),
        tenant_id: ids::tenant(ids::schedule_of_run(run)),
        run_id: random.chance(90).then(|| ids::run(run, seed)),
        selector: selection(random),
        total: i32::try_from(images.len()).unwrap_or(i32::MAX),
        images,
        usage_only: random.chance(30),
        generated_at: ids::after(run, 700),
        snapshot_id: random.chance(60).then(|| format!("snapshot-{index:08}")),
    })
}

fn image(random: &mut Random) -> Image {
    Image {
        image_digest: random.digest(),
        registry: "registry.internal".to_owned(),
        repository: random.pick(REPOSITORIES).to_owned(),
        namespaces: vec![random.pick(NAMESPACES).to_owned()],
        tags: if random.chance(60) { vec![format!("1.{}.0", random.below(40))] } else { vec![] },
        used_by_entrypoint: random.chance(40),
        labels: BTreeMap::from([("app.kubernetes.io/name".to_owned(), random.pick(NAMESPACES).to_owned())]),
    }
}

pub(super) fn run_summary(index: u64, seed: u64, random: &mut Random) -> bson::error::Result<RawDocumentBuf> {
    let first = index * ids::RUNS_PER_SCHEDULE;
    let recent: Vec<_> = (0..random.below(4)).rev().map(|run| recent_run(first + run, seed, random)).collect();
    let total = i32::try_from(recent.len()).unwrap_or(i32::MAX);
    bson::serialize_to_raw_document_buf(&RunSummary {
        id: format!("{}:{}", ids::tenant(index), ids::schedule(index)),
        tenant_id: ids::tenant(index),
        schedule_id: ids::schedule(index),
        last_run: recent.first().cloned(),
        counters: Counters {
            total,
            completed: total,
            deltas: recent.iter().map(|run| run.stats.deltas).sum(),
            ..Counters::default()
        },
        recent,
        updated_at: ids::after(first, 3_600_000),
    })
}

fn recent_run(run: u64, seed: u64, random: &mut Random) -> RecentRun {
    RecentRun {
        run_id: ids::run(run, seed),
        trigger: "cron".to_owned(),
        state: RunState::Completed,
        created_at: ids::at(run),
        finished_at: random.chance(90).then(|| ids::after(run, 40_000)),
        stats: Stats { candidates: random.count(5_000), deltas: random.count(3), ..Stats::default() },
    }
}
