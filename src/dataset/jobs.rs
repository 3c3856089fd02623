//! Graph jobs and policy jobs.

use std::collections::BTreeMap;

use bson::{RawDocumentBuf, doc};

use super::random::Random;
use super::{ids, plans};
use crate::entity::graph_jobs::{GraphJob, GraphJobStatus, GraphJobType};
use crate::entity::policy_jobs::{Inputs, PolicyJob, PolicyJobStatus, PolicyMode, Priority};

/// Runs from one policy job to the next.
const RUNS_PER_POLICY_JOB: u64 = 2;

pub(super) fn graph_job(index: u64, _: u64, random: &mut Random) -> bson::error::Result<RawDocumentBuf> {
    let build = random.chance(60);
    let status = graph_status(random);
    let started = !matches!(status, GraphJobStatus::Pending | GraphJobStatus::Queued);
    let ended = started && status != GraphJobStatus::Running;
    bson::serialize_to_raw_document_buf(&GraphJob {
        id: format!("{}_{:020}", if build { "gbj" } else { "goj" }, random.next()),
        schema_version: Some("scheduler.graph-job@1".to_owned()),
        tenant_id: ids::tenant(index),
        job_type: if build { GraphJobType::Build } else { GraphJobType::Overlay },
        status,
        sbom_id: format!("sbom_{:06}", random.below(500_000)),
        sbom_version_id: random.chance(70).then(|| format!("sbom_ver_{:06}", random.below(500_000))),
        sbom_digest: random.chance(70).then(|| random.digest()),
        graph_snapshot_id: ended.then(|| format!("graph_snap_{index:08}")),
        trigger: random.pick(&["sbom-version", "backfill", "manual", "policy"]).to_owned(),
        attempts: random.count(4),
        correlation_id: random.chance(60).then(|| format!("{:016x}", random.next())),
        created_at: ids::at(index),
        updated_at: ids::after(index, 60_000),
        started_at: started.then(|| ids::after(index, 4_000)),
        completed_at: ended.then(|| ids::after(index, 60_000)),
        error: (status == GraphJobStatus::Failed).then(|| "cartographer: SBOM is not readable".to_owned()),
        metadata: if random.chance(70) {
            doc! { "sbomEventId": format!("evt-{index}") }
        } else {
            doc! {}
        },
    })
}

fn graph_status(random: &mut Random) -> GraphJobStatus {
    match random.below(100) {
        0..3 => GraphJobStatus::Pending,
        3..6 => GraphJobStatus::Queued,
        6..9 => GraphJobStatus::Running,
        9..14 => GraphJobStatus::Failed,
        14..17 => GraphJobStatus::Cancelled,
        _ => GraphJobStatus::Completed,
    }
}

pub(super) fn policy_job(index: u64, seed: u64, random: &mut Random) -> bson::error::Result<RawDocumentBuf> {
    let run = index * RUNS_PER_POLICY_JOB;
    let status = policy_status(random);
    let leased = status == PolicyJobStatus::Dispatching;
    let submitted = matches!(status, PolicyJobStatus::Submitted | PolicyJobStatus::Completed);
    let policy = format!("P-{}", random.below(60));
    bson::serialize_to_raw_document_buf(&PolicyJob {
        id: format!("run:{policy}:{}:auto:{index}", ids::at(run).0.format("%Y-%m-%d")),
        schema_version: Some("scheduler.policy-run@1".to_owned()),
        tenant_id: ids::tenant(ids::schedule_of_run(run)),
        policy_id: policy,
        policy_version: random.chance(80).then(|| 1 + random.count(40)),
        mode: policy_mode(random),
        priority: if random.chance(90) { Priority::Normal } else { Priority::High },
        status,
        run_id: random.chance(80).then(|| ids::run(run, seed)),
        requested_by: random.chance(40).then(|| "policy-engine".to_owned()),
        correlation_id: random.chance(60).then(|| format!("{:016x}", random.next())),
        inputs: inputs(random),
        attempt_count: random.count(3),
        available_at: ids::after(run, 5_000),
        last_attempt_at: random.chance(70).then(|| ids::after(run, 6_000)),
        last_error: (status == PolicyJobStatus::Failed).then(|| "policy engine refused the cursor".to_owned()),
        lease_owner: leased.then(|| plans::worker_id(random.below(3))),
        lease_expires_at: leased.then(|| ids::after(run, 66_000)),
        queued_at: ids::after(run, 5_000),
        submitted_at: submitted.then(|| ids::after(run, 7_000)),
        completed_at: (status == PolicyJobStatus::Completed).then(|| ids::after(run, 90_000)),
        created_at: ids::after(run, 4_900),
        updated_at: ids::after(run, 90_000),
        metadata: if random.chance(30) {
            doc! { "origin": "advisory", "batch": random.count(9_000) }
        } else {
            doc! {}
        },
    })
}

fn policy_mode(random: &mut Random) -> PolicyMode {
    match random.below(10) {
        0..2 => PolicyMode::Full,
        2 => PolicyMode::Simulate,
        _ => PolicyMode::Incremental,
    }
}

fn policy_status(random: &mut Random) -> PolicyJobStatus {
    match random.below(100) {
        0..5 => PolicyJobStatus::Pending,
        5..8 => PolicyJobStatus::Dispatching,
        8..14 => PolicyJobStatus::Submitted,
        14..18 => PolicyJobStatus::Failed,
        18..20 => PolicyJobStatus::Cancelled,
        _ => PolicyJobStatus::Completed,
    }
}

fn inputs(random: &mut Random) -> Inputs {
    Inputs {
        sbom_set: (0..random.below(4)).map(|_| format!("sbom:S-{}", random.below(9_000))).collect(),
        advisory_cursor: random.chance(80).then(|| "2025-10-26T13:59:00+00:00".to_owned()),
        vex_cursor: random.chance(60).then(|| "2025-10-26T13:58:30+00:00".to_owned()),
        environment: BTreeMap::from([("exposure".to_owned(), "internet".to_owned())]),
        capture_explain: random.chance(50),
    }
}
