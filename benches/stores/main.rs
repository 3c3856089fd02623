//! `cargo bench --bench stores`: the repositories over each store, beside the plain driver doing the least possible work
//! for the same effect, with 1 and with 16 callers. Prints a table for each store and writes the figures to
//! `target/bench/stores.json`. Every figure is the median of at least three rounds in which the contenders take turns,
//! on private servers that this process starts.
//!
//! `BRIDGE_BENCH_ROUNDS` (3) and `BRIDGE_BENCH_OPERATIONS` (3,000: of each contender in each round, less of those that
//! are many operations in one) change the size: rounds of 1,000 are over before the servers run evenly.
//! `BRIDGE_BENCH_ONLY` names a part of the lines to measure (`PostgreSQL update`).

#![expect(clippy::expect_used, clippy::print_stdout, reason = "a benchmark fails by a panic and speaks by printing")]

#[path = "../common/mod.rs"]
mod common;
mod contenders;
mod measure;
mod plain_mongo;
mod plain_postgres;
#[path = "../../tests/it/stores/samples.rs"]
#[expect(dead_code, reason = "the tests need samples of every entity, the benchmark of some")]
mod samples;

use scheduler_bridge::embedded::Servers;
use scheduler_bridge::lock::PostgresLocks;
use scheduler_bridge::source::Source;
use scheduler_bridge::store::{MongoStore, PostgresStore};
use scheduler_bridge::target::{KEYED, Target};
use secrecy::SecretString;
use serde_json::{Value, json};
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{Connection, Executor};

use common::{median, number, write};
use contenders::{Contender, Pair};
use measure::{Figure, measured, middle};

const CALLERS: [usize; 2] = [1, 16];

/// Operations before each measurement.
const WARM: u64 = 64;

#[tokio::main]
async fn main() {
    // `cargo test --benches` runs this file too, to see that it starts.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    println!("starting servers …");
    let servers = Servers::start().await.expect("start the servers");
    let (source, target) = (source(&servers).await, target(&servers).await);
    let mongo = MongoStore::new(source.client().clone(), source.database().clone(), 1);
    mongo.create_indexes().await.expect("create the indexes");
    let postgres = PostgresStore::new(target.pool().clone());
    let mut pairs = plain_mongo::pairs(&mongo, source.database());
    let mongo_table = table("MongoDB", &mut pairs).await;
    let (locks, _task) = PostgresLocks::open(&SecretString::from(servers.postgres.url())).await.expect("open locks");
    let mut pairs = plain_postgres::pairs(&postgres, &locks, &plain(&servers).await);
    let postgres_table = table("PostgreSQL", &mut pairs).await;
    write("stores.json", &json!({ "MongoDB": mongo_table, "PostgreSQL": postgres_table }));
}

async fn source(servers: &Servers) -> Source {
    Source::open(&SecretString::from(servers.mongo.url()), "bench").await.expect("open MongoDB")
}

async fn target(servers: &Servers) -> Target {
    let url = servers.postgres.url();
    let mut connection = sqlx::PgConnection::connect(&url).await.expect("connect");
    scheduler_bridge::migrate::run(&mut connection).await.expect("migrate");
    connection.close().await.expect("close");
    Target::open_prepared(&SecretString::from(url), 16).await.expect("open PostgreSQL")
}

/// The plain driver's pool: it asks for nothing before it gives out a session that is set as the store's are.
async fn plain(servers: &Servers) -> PgPool {
    let pool = PgPoolOptions::new().max_connections(16).test_before_acquire(false);
    let set = pool.after_connect(|session, _| Box::pin(async { session.execute(KEYED).await.map(|_| ()) }));
    set.connect(&servers.postgres.url()).await.expect("open PostgreSQL")
}

async fn table(store: &str, pairs: &mut [Pair]) -> Value {
    println!("\n{store}: operations a second, median of {} rounds; p50 and p99 in µs", rounds());
    println!(
        "  {:28} {:>7} {:>10} {:>16} {:>10} {:>16} {:>6}",
        "operation", "callers", "bridge", "p50/p99", "plain", "p50/p99", "ratio"
    );
    let mut lines = Vec::new();
    let only = std::env::var("BRIDGE_BENCH_ONLY").unwrap_or_default();
    for pair in pairs.iter_mut().filter(|pair| format!("{store} {}", pair.name).contains(&only)) {
        for callers in CALLERS {
            lines.push(line(pair, callers).await);
        }
    }
    Value::Array(lines)
}

async fn line(pair: &mut Pair, callers: usize) -> Value {
    let (mut ours, mut plain) = (Vec::new(), Vec::new());
    let mut ratios = Vec::new();
    for _ in 0..rounds() {
        ours.push(round(&mut pair.bridge, pair.cost, callers).await);
        plain.push(round(&mut pair.plain, pair.cost, callers).await);
        ratios.push(ours[ours.len() - 1].rate / plain[plain.len() - 1].rate);
    }
    let (ours, plain, ratio) = (middle(&ours), middle(&plain), median(ratios));
    println!(
        "  {:28} {callers:>7} {:>10.0} {:>16} {:>10.0} {:>16} {ratio:>6.2}",
        pair.name,
        ours.rate,
        ours.latencies(),
        plain.rate,
        plain.latencies(),
    );
    json!({ "operation": pair.name, "callers": callers, "bridge": ours.json(), "plain": plain.json(), "ratio": ratio })
}

async fn round(contender: &mut Contender, cost: u64, callers: usize) -> Figure {
    let operations = number("BRIDGE_BENCH_OPERATIONS", 3_000) / cost * if callers > 1 { 4 } else { 1 };
    (contender.prepare)(operations + WARM).await;
    // Every connection has seen the statements before the clock runs.
    measured(&contender.operation, WARM, 16).await;
    measured(&contender.operation, operations.max(callers as u64), callers).await
}

fn rounds() -> u64 {
    number("BRIDGE_BENCH_ROUNDS", 3)
}
