//! `cargo bench --bench mirror`: how fast the mirror follows. A backlog of events (half inserts, a third updates, the rest
//! deletions) is drained raw and mirrored, in turns; then the time from MongoDB's acknowledgement of a write to its
//! visibility in PostgreSQL is measured at a fixed rate of writes. Private servers; prints a table and writes the figures
//! to `target/bench/mirror.json`.
//!
//! `BRIDGE_BENCH_EVENTS` (500,000), `BRIDGE_BENCH_ROUNDS` (3) and `BRIDGE_BENCH_SECONDS` (20, of the second part) change
//! the size.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "a benchmark fails by a panic and speaks by printing")]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{median, number, write};
use futures::StreamExt;
use mongodb::bson::{self, Bson, Document, doc, oid::ObjectId};
use mongodb::options::{CursorType, WriteConcern};
use scheduler_bridge::embedded::Servers;
use scheduler_bridge::mirror::{self, Options, Progress};
use scheduler_bridge::source::Source;
use scheduler_bridge::target::Target;
use scheduler_bridge::{anchor, stamp};
use secrecy::SecretString;
use serde_json::json;
use sqlx::Connection;
use tokio_util::sync::CancellationToken;

/// Writes a second of the second part.
const RATE: u64 = 500;

#[tokio::main]
async fn main() {
    // `cargo test --benches` runs this file too, to see that it starts.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    println!("starting servers …");
    // The backlog must fit into the oplog.
    let servers = Servers::start().await.expect("start the servers");
    let (source, target) = stores(&servers).await;
    let events = number("BRIDGE_BENCH_EVENTS", 500_000);
    let start = anchor::take(source.database()).await.expect("take the anchor");
    write_backlog(&source, events).await;
    let end = anchor::take(source.database()).await.expect("take a mark");

    println!("{events} events; events a second");
    let (mut raw, mut ours) = (Vec::new(), Vec::new());
    for round in 1..=number("BRIDGE_BENCH_ROUNDS", 3) {
        raw.push(rate(events, drain(&source, start, end).await));
        ours.push(rate(events, mirrored(&source, &target, start, end).await));
        println!("  round {round}: raw drain {:>9.0}, mirror {:>9.0}", raw[raw.len() - 1], ours[ours.len() - 1]);
    }
    let (raw, ours) = (median(raw), median(ours));
    println!("  medians: raw drain {raw:.0}, mirror {ours:.0}, ratio {:.2}", ours / raw);

    let [p50, p99] = latencies(&source, &target).await;
    println!("acknowledged to visible at {RATE} writes a second: p50 {p50:.1} ms, p99 {p99:.1} ms");
    write(
        "mirror.json",
        &json!({
            "events": events, "raw_drain_per_second": raw, "mirror_per_second": ours, "ratio": ours / raw,
            "writes_per_second": RATE, "visible_p50_ms": p50, "visible_p99_ms": p99,
        }),
    );
}

async fn stores(servers: &Servers) -> (Source, Target) {
    let url = servers.postgres.url();
    let mut connection = sqlx::PgConnection::connect(&url).await.expect("connect");
    scheduler_bridge::migrate::run(&mut connection).await.expect("migrate");
    connection.close().await.expect("close");
    let target = Target::open_prepared(&SecretString::from(url), 4).await.expect("open PostgreSQL");
    let source = Source::open(&SecretString::from(servers.mongo.url()), "bench").await.expect("open MongoDB");
    (source, target)
}

/// One event a document: half are inserted, a third updated, the rest deleted.
async fn write_backlog(source: &Source, events: u64) {
    let runs = source.database().collection::<Document>("runs");
    let inserts = events / 2;
    for first in (0..inserts).step_by(10_000) {
        let some: Vec<Document> = (first..inserts.min(first + 10_000)).map(run).collect();
        runs.insert_many(some).await.expect("insert");
    }
    let below = |limit: u64| doc! { "_id": { "$lt": id(limit) } };
    let updates = events / 3;
    let set = doc! { "$set": { "state": "running", "stats.completed": 7 } };
    let updated = runs.update_many(below(updates), set).await.expect("update");
    assert_eq!(updated.modified_count, updates);
    let deleted = runs.delete_many(below(events - inserts - updates)).await.expect("delete");
    assert_eq!(deleted.deleted_count, events - inserts - updates);
}

fn id(number: u64) -> String {
    format!("run-{number:09}")
}

fn run(number: u64) -> Document {
    doc! {
        "_id": id(number), "schemaVersion": "scheduler.run@1", "tenantId": format!("tenant-{}", number % 20),
        "scheduleId": format!("schedule-{}", number % 500), "trigger": "cron", "state": "queued",
        "stats": { "candidates": 120, "deduped": 100, "queued": 100, "completed": 0, "deltas": 0, "newCriticals": 0,
            "newHigh": 0, "newMedium": 0, "newLow": 0 },
        "reason": { "cursor": "c".repeat(200) }, "createdAt": bson::DateTime::now(), "updatedAt": bson::DateTime::now(),
    }
}

/// Reads every event up to `end` and looks at nothing.
async fn drain(source: &Source, start: bson::Timestamp, end: bson::Timestamp) -> Duration {
    let begun = Instant::now();
    let stages = [
        doc! { "$changeStream": { "startAtOperationTime": start } },
        doc! { "$match": { "ns.coll": { "$in": ["runs", anchor::COLLECTION] } } },
    ];
    let command = doc! { "aggregate": 1, "pipeline": stages.to_vec(), "cursor": { "batchSize": 0 } };
    let opened = source.database().run_cursor_command(command).cursor_type(CursorType::TailableAwait);
    let mut cursor = opened.batch_size(2_000).batch().await.expect("open the stream");
    loop {
        let batch = cursor.next().await.expect("an answer").expect("an answer");
        let documents = batch.doc_slices().expect("events").into_iter().flatten();
        let Some(last) = documents.last() else { continue };
        let last = last.as_document().expect("an event");
        if last.get_timestamp("clusterTime").expect("a time") >= end {
            return begun.elapsed();
        }
    }
}

/// Applies every event up to `end` to empty tables.
async fn mirrored(source: &Source, target: &Target, start: bson::Timestamp, end: bson::Timestamp) -> Duration {
    for statement in
        ["truncate scheduler.runs, bridge.tombstone, bridge.recheck, bridge.stream", "truncate bridge.truncated"]
    {
        sqlx::query(statement).execute(target.pool()).await.expect(statement);
    }
    sqlx::query("insert into bridge.stream (clock) values ($1)")
        .bind(stamp::clock(start))
        .execute(target.pool())
        .await
        .expect("set the beginning");
    let begun = Instant::now();
    following(source, target, async {
        until(target, "select clock >= $1 from bridge.stream", stamp::clock(end)).await;
    })
    .await;
    begun.elapsed()
}

/// Runs a mirror as long as `work` lasts.
async fn following<T>(source: &Source, target: &Target, work: impl Future<Output = T>) -> T {
    let (stop, options) = (CancellationToken::new(), Options { lease: Duration::from_secs(15) });
    let mirror = mirror::run(source, target, &options, Arc::new(Progress::default()), stop.clone());
    let work = async {
        let done = work.await;
        stop.cancel();
        done
    };
    let (mirrored, done) = tokio::join!(mirror, work);
    mirrored.expect("mirror");
    done
}

async fn until(target: &Target, condition: &'static str, value: i64) {
    while !sqlx::query_scalar::<_, bool>(condition).bind(value).fetch_one(target.pool()).await.expect(condition) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Milliseconds from acknowledgement to visibility: median, and the 99th of a hundred.
async fn latencies(source: &Source, target: &Target) -> [f64; 2] {
    let count = RATE * number("BRIDGE_BENCH_SECONDS", 20);
    let taken = following(source, target, async {
        let (acknowledged, seen) = tokio::join!(write_lines(source, count), see_lines(target, count));
        let pairs = acknowledged.into_iter().zip(seen);
        pairs.map(|(acknowledged, seen)| seen.saturating_duration_since(acknowledged)).collect::<Vec<_>>()
    });
    let mut taken: Vec<f64> = taken.await.iter().map(|taken| taken.as_secs_f64() * 1e3).collect();
    taken.sort_by(f64::total_cmp);
    [50, 99].map(|part| taken[taken.len() * part / 100])
}

async fn write_lines(source: &Source, count: u64) -> Vec<Instant> {
    let lines = source.database().collection::<Document>("execution_logs");
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / u32::try_from(RATE).expect("a small number"));
    let mut acknowledged = Vec::new();
    for sequence in 1..=count {
        ticks.tick().await;
        let line = doc! {
            "_id": ObjectId::new(), "tenantId": "tenant", "runId": "latency", "level": "info", "message": "a line",
            "sequence": Bson::Int64(i64::try_from(sequence).expect("a small number")), "timestamp": bson::DateTime::now(),
        };
        let write = lines.insert_one(line).write_concern(WriteConcern::majority());
        write.await.expect("write a line");
        acknowledged.push(Instant::now());
    }
    acknowledged
}

async fn see_lines(target: &Target, count: u64) -> Vec<Instant> {
    let mut seen = Vec::new();
    while u64::try_from(seen.len()).expect("a count") < count {
        let newest: i64 = sqlx::query_scalar(
            "select coalesce(max(sequence), 0) from scheduler.execution_logs
            where tenant_id = 'tenant' and run_id = 'latency'",
        )
        .fetch_one(target.pool())
        .await
        .expect("look for the newest line");
        let now = Instant::now();
        seen.resize(usize::try_from(newest).expect("a count").max(seen.len()), now);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    seen
}

fn rate(events: u64, taken: Duration) -> f64 {
    f64::from(u32::try_from(events).expect("a small number")) / taken.as_secs_f64()
}
