//! The mirror as operators run it: the real `bridge mirror` and `bridge backfill --follow` on real servers, under blows.

mod anchor;
mod ended;
pub mod history;
mod large;
mod load;
pub mod memory;
mod paused;
mod quarantine;
mod transactions;
mod truncated;

use std::time::Duration;

use mongodb::bson::{Document, Timestamp, doc};
use mongodb::options::WriteConcern;
use rustix::process::Signal;
use scheduler_bridge::verify::Verdict;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::bed::{Bed, until};
use crate::faults::killed::Moments;
use crate::faults::process::Bridge;
use crate::verify::verify;

/// Long enough for a debug build on a busy machine.
const LIMIT: Duration = Duration::from_secs(90);

/// A lease that a dead process does not hold for long.
const LEASE: (&str, &str) = ("BRIDGE_LEASE_SECONDS", "2");

/// Starts `bridge mirror`.
fn mirror(bed: &Bed) -> Bridge {
    let mut command = bed.bridge(&["mirror"]);
    command.envs([LEASE]);
    Bridge::start(command)
}

/// Starts `bridge backfill --follow`, with many small chunks.
fn follow(bed: &Bed) -> Bridge {
    let mut command = bed.bridge(&["--json", "backfill", "--follow"]);
    command.envs([LEASE, ("BRIDGE_WORKERS", "2"), ("BRIDGE_CHUNK_BYTES", "100000"), ("BRIDGE_BATCH_BYTES", "40000")]);
    Bridge::start(command)
}

/// Copies what is named, everything when nothing is, with more arguments.
async fn backfill(bed: &Bed, arguments: &[&str]) {
    Bridge::start(bed.bridge(&[&["backfill"], arguments].concat())).ended().await.says(0, &[]);
}

/// Ends a mirror as an operator does.
pub async fn stop(bridge: Bridge) {
    bridge.signal(Signal::TERM);
    bridge.ended().await.says(0, &[]);
}

/// An oplog time that everything written before has behind it.
pub async fn mark(bed: &Bed) -> mongodb::error::Result<Timestamp> {
    let mut session = bed.mongo.start_session().await?;
    let anchors = bed.database.collection::<Document>("bridge_anchor");
    let count = anchors.update_one(doc! { "_id": "anchor" }, doc! { "$inc": { "taken": 1_i64 } });
    count.upsert(true).write_concern(WriteConcern::majority()).session(&mut session).await?;
    Ok(session.operation_time().expect("a time"))
}

/// How far the mirror is; nothing while there is none, or PostgreSQL is away.
pub async fn clock(bed: &Bed) -> Option<i64> {
    let clock = sqlx::query_scalar("select clock from bridge.stream").fetch_optional(bed.pool());
    tokio::time::timeout(Duration::from_secs(5), clock).await.ok()?.ok()?
}

/// Waits until everything that was written to MongoDB by now is in PostgreSQL.
pub async fn level(bed: &Bed) {
    let time = mark(bed).await.expect("write the mark");
    let goal = i64::from(time.time) << 32 | i64::from(time.increment);
    until("the stores are level", LIMIT, async || clock(bed).await >= Some(goal)).await;
}

/// Waits until the mirror has begun: what is written from now on is its to bring.
async fn begun(bed: &Bed) {
    until("the mirror has begun", LIMIT, async || clock(bed).await.is_some()).await;
}

async fn assert_clean(bed: &Bed) {
    let report = verify(bed).await;
    assert_eq!(report.verdict, Verdict::Clean, "{report:#?}");
}

/// The ids in a table, sorted.
pub async fn ids(bed: &Bed, table: &str) -> Vec<String> {
    let query = format!("select id from scheduler.{table} order by id");
    sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_all(bed.pool()).await.expect("read the ids")
}

/// An ordinary run; `number` is a field that no column holds.
fn run(id: &str, number: i64) -> Document {
    doc! { "_id": id, "tenantId": "t", "state": "queued", "number": number }
}

/// Writes to a few keys of `runs` as long as it lives: creates, replaces, updates, deletes, all of them again and again.
struct Churn {
    stop: CancellationToken,
    task: JoinHandle<u64>,
}

impl Churn {
    fn start(bed: &Bed, moments: Moments) -> Self {
        let (stop, runs) = (CancellationToken::new(), bed.database.collection::<Document>("runs"));
        let (stopped, mut moments) = (stop.clone(), moments);
        let task = tokio::spawn(async move {
            let mut written = 0;
            while !stopped.is_cancelled() {
                let key = doc! { "_id": format!("churn-{}", moments.below(40)) };
                let number = i64::try_from(moments.below(1 << 40)).expect("small");
                let id = key.get_str("_id").expect("a text");
                // A primary that has just been lost is no failure: whether the write was done matters to nobody.
                let done = match moments.below(4) {
                    0 => runs.delete_one(key).await.is_ok(),
                    1 => runs.update_one(key, doc! { "$set": { "number": number } }).await.is_ok(),
                    _ => runs.replace_one(key.clone(), run(id, number)).upsert(true).await.is_ok(),
                };
                written += u64::from(done);
            }
            written
        });
        Self { stop, task }
    }

    /// Stops writing and gives the number of writes.
    async fn end(self) -> u64 {
        self.stop.cancel();
        self.task.await.expect("the writer")
    }
}
