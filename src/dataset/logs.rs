//! Execution logs and audit records.

use bson::oid::ObjectId;
use bson::{RawDocumentBuf, doc};

use super::ids;
use super::random::Random;
use crate::entity::audit::{Actor, AuditRecord};
use crate::entity::execution_logs::ExecutionLog;

/// Lines of a run's log. Half of all documents are lines and 15 % are runs, so the run of every line exists.
const LINES: u64 = 5;

const MESSAGES: &[&str] = &[
    "resolved selection to candidate images",
    "queued image for analysis",
    "scanner finished; \"delta\" stored",
    "advisory feed is older than an hour: continuing\twith what is there",
    "größere Änderung: 3 neue Befunde ✓",
];

pub(super) fn execution_log(index: u64, seed: u64, random: &mut Random) -> bson::error::Result<RawDocumentBuf> {
    let run = index / LINES;
    let sequence = i64::try_from(index % LINES).unwrap_or(0) + 1;
    bson::serialize_to_raw_document_buf(&ExecutionLog {
        id: object_id(index, run, random),
        tenant_id: ids::tenant(ids::schedule_of_run(run)),
        run_id: ids::run(run, seed),
        sequence,
        level: random.pick(&["info", "info", "info", "debug", "warn", "error"]).to_owned(),
        event_type: random.chance(60).then(|| random.pick(&["planned", "queued", "scanned", "finished"]).to_owned()),
        message: random.pick(MESSAGES).to_owned(),
        step_id: random.chance(50).then(|| format!("step-{sequence}")),
        timestamp: ids::after(run, sequence * 250),
        metadata: if random.chance(50) {
            doc! { "durationMs": random.count(30_000), "ratio": 0.25 }
        } else {
            doc! {}
        },
    })
}

/// Four bytes of seconds and eight that differ, as drivers make them.
fn object_id(index: u64, run: u64, random: &mut Random) -> ObjectId {
    let seconds = u32::try_from(ids::at(run).0.timestamp()).unwrap_or(0);
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&seconds.to_be_bytes());
    bytes[4..].copy_from_slice(&(random.next() << 32 | index & 0xffff_ffff).to_be_bytes());
    ObjectId::from_bytes(bytes)
}

pub(super) fn audit_record(index: u64, seed: u64, random: &mut Random) -> bson::error::Result<RawDocumentBuf> {
    let schedule = ids::schedule_of_run(index);
    let (category, action) = random.pick(&[
        ("scheduler.run", "created"),
        ("scheduler.run", "state.changed"),
        ("scheduler.schedule", "updated"),
        ("scheduler.lock", "taken"),
    ]);
    let of_run = category == "scheduler.run";
    bson::serialize_to_raw_document_buf(&AuditRecord {
        id: format!("audit_{index:010}"),
        tenant_id: ids::tenant(schedule),
        category: category.to_owned(),
        action: action.to_owned(),
        occurred_at: ids::after(index, 900),
        actor: Actor {
            actor_id: format!("user-{}", random.below(30)),
            display_name: random.pick(&["Ana Petrova", "J. Ng", "Scheduler", "Jürgen Müller"]).to_owned(),
            kind: random.pick(&["user", "service"]).to_owned(),
        },
        entity_id: Some(if of_run { ids::run(index, seed) } else { ids::schedule(schedule) }),
        schedule_id: random.chance(70).then(|| ids::schedule(schedule)),
        run_id: of_run.then(|| ids::run(index, seed)),
        correlation_id: random.chance(60).then(|| format!("{:016x}", random.next())),
        message: random.chance(50).then(|| format!("{category} {action}")),
        metadata: if random.chance(30) {
            doc! { "from": "queued", "to": "running" }
        } else {
            doc! {}
        },
    })
}
