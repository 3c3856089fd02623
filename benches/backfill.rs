//! `cargo bench --bench backfill`: how fast and how large the backfill and the verification are, beside the parts they
//! are made of and beside a plain script. Prints one table for the primary key alone and one for all indexes, and
//! writes the figures to `target/bench/backfill.json`. Every figure is the median of at least three rounds in which
//! the contenders take turns, on private servers that this process starts.
//!
//! `BRIDGE_BENCH_DOCUMENTS` (500,000), `BRIDGE_BENCH_MORE` (2,000,000: the second measurement of memory; 0 leaves it
//! out) and `BRIDGE_BENCH_ROUNDS` (3) change the size.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "a benchmark fails by a panic and speaks by printing")]

mod common;
#[path = "common/process.rs"]
mod process;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use common::{median, number, write};
use futures::future::join_all;
use mongodb::bson::RawDocumentBuf;
use process::{Clock, DATABASE, Run, load, megabytes, peak, python, rate};
use scheduler_bridge::dataset;
use scheduler_bridge::embedded::Servers;
use scheduler_bridge::entity;
use scheduler_bridge::mapping::{Mapping, tuple};
use scheduler_bridge::scan::{self, Range};
use scheduler_bridge::source::Source;
use scheduler_bridge::stamp::Stamp;
use secrecy::SecretString;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

/// Streams of the COPY and workers of the bridge.
const STREAMS: usize = 2;

/// Bytes of one COPY transaction, as the bridge makes them.
const TRANSACTION: usize = 4 << 20;

#[tokio::main]
async fn main() {
    // `cargo test --benches` runs this file too, to see that it starts.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let documents = number("BRIDGE_BENCH_DOCUMENTS", 500_000);
    let bench = Bench::start(documents).await;
    let mut figures = vec![("documents".to_owned(), json!(documents))];
    for (title, indexes) in [("primary key only", Indexes::KeyOnly), ("all indexes", Indexes::All)] {
        let table = bench.table(title, indexes).await;
        figures.push((title.to_owned(), table));
    }
    let more = number("BRIDGE_BENCH_MORE", 2_000_000);
    if more > documents {
        figures.push(("memory".to_owned(), bench.memory(documents, more).await));
    }
    write("backfill.json", &figures.into_iter().collect::<serde_json::Map<_, _>>().into());
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Indexes {
    KeyOnly,
    All,
}

struct Bench {
    servers: Servers,
    source: Source,
    python: PathBuf,
    documents: u64,
    rounds: u64,
    /// The rows of every document, encoded beforehand, in pieces of one transaction.
    encoded: Arc<Vec<Vec<u8>>>,
}

impl Bench {
    async fn start(documents: u64) -> Self {
        println!("starting servers, loading {documents} runs …");
        let servers = Servers::start().await.expect("start the servers");
        let url = SecretString::from(servers.mongo.url());
        let source = Source::open(&url, DATABASE).await.expect("open MongoDB");
        let loaded = dataset::load_collection(source.database(), "runs", (documents, 1), |_| ()).await;
        loaded.expect("load the documents");
        let mut connection = connect(&servers).await;
        scheduler_bridge::migrate::run(&mut connection).await.expect("migrate");
        let python = python();
        let mut bench = Self {
            servers,
            source,
            python,
            documents,
            rounds: number("BRIDGE_BENCH_ROUNDS", 3),
            encoded: Arc::default(),
        };
        bench.encoded = Arc::new(bench.encode().await);
        bench
    }

    async fn table(&self, title: &str, indexes: Indexes) -> Value {
        let names =
            ["drain the raw cursor", "COPY BINARY, encoded", "bridge backfill", "bridge verify", "plain script"];
        let mut runs: [Vec<Run>; 5] = Default::default();
        for round in 0..self.rounds {
            println!("{title}, round {} of {}", round + 1, self.rounds);
            runs[0].push(self.drain().await);
            self.empty(indexes).await;
            runs[1].push(self.copy().await);
            self.empty(indexes).await;
            runs[4].push(self.plain());
            self.empty(indexes).await;
            runs[2].push(self.bridge("backfill"));
            runs[3].push(self.bridge("verify"));
        }
        let rates: Vec<f64> = runs.iter().map(|runs| median(runs.iter().map(|run| self.rate(run)).collect())).collect();
        println!("\n{title}: documents a second, median of {} rounds; µs of processor a document,", self.rounds);
        println!("of the contender + MongoDB + PostgreSQL");
        for (index, name) in names.iter().enumerate() {
            let all = runs[index].iter().map(|run| format!("{:.0}", self.rate(run))).collect::<Vec<_>>().join(" ");
            let letter = ["a", "b", "c", "d", "e"][index];
            println!("  ({letter}) {name:22} {:>9.0}   ({all})   {}", rates[index], load(&runs[index], self.documents));
        }
        let ratios = [("c/b", rates[2] / rates[1]), ("c/e", rates[2] / rates[4]), ("d/c", rates[3] / rates[2])];
        println!("  {}\n", ratios.map(|(name, ratio)| format!("{name} = {ratio:.2}")).join("   "));
        json!({
            "rates": names.iter().zip(&rates).map(|(name, rate)| json!({ "name": name, "documents_per_second": rate })).collect::<Vec<_>>(),
            "ratios": ratios.map(|(name, ratio)| json!({ name: ratio })),
            "peak_bytes": runs.map(|runs| peak(&runs)),
        })
    }

    fn rate(&self, run: &Run) -> f64 {
        rate(self.documents, run.taken)
    }

    /// (a): every document of the collection, raw, on as many cursors as the bridge has workers.
    async fn drain(&self) -> Run {
        let halves = self.halves().await;
        let clock = Clock::start(&self.servers);
        let counts = join_all(halves.into_iter().map(|half| {
            let source = self.source.clone();
            tokio::spawn(async move { count(&source, &half).await })
        }))
        .await;
        let total: usize = counts.into_iter().map(|count| count.expect("drain")).sum();
        assert_eq!(u64::try_from(total), Ok(self.documents));
        clock.stop(None)
    }

    async fn halves(&self) -> Vec<Range> {
        let bytes = i64::try_from(self.documents).expect("documents") * 900 / i64::try_from(STREAMS).expect("streams");
        scheduler_bridge::plan::plan(&self.source, "runs", bytes).await.expect("plan").chunks
    }

    /// (b): the same rows, encoded before the clock starts, with as many streams as the bridge has workers.
    async fn copy(&self) -> Run {
        let mapping = Mapping::new(entity::named("runs").expect("runs"));
        let columns = mapping.columns().collect::<Vec<_>>().join(", ");
        let statement = Arc::new(format!("copy scheduler.runs ({columns}) from stdin (format binary)"));
        let mut connections = Vec::new();
        for _ in 0..STREAMS {
            connections.push(connect(&self.servers).await);
        }
        let clock = Clock::start(&self.servers);
        let pieces = self.encoded.len().div_ceil(STREAMS);
        let streams = connections.into_iter().enumerate().map(|(index, connection)| {
            let (encoded, statement) = (self.encoded.clone(), statement.clone());
            let share = index * pieces..((index + 1) * pieces).min(encoded.len());
            tokio::spawn(async move { copy_share(connection, &encoded[share], &statement).await })
        });
        join_all(streams).await.into_iter().for_each(|stream| stream.expect("copy"));
        clock.stop(None)
    }

    /// (e)
    fn plain(&self) -> Run {
        let mut command = Command::new(&self.python);
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/plain_copy.py"));
        command.stdout(Stdio::null());
        process::run(command, &self.servers)
    }

    /// (c) and (d): the command itself, from start to exit.
    fn bridge(&self, subcommand: &str) -> Run {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bridge"));
        command.args([subcommand, "--workers", &STREAMS.to_string()]);
        if subcommand == "verify" {
            command.args(["--collection", "runs"]);
        } else {
            command.arg("runs");
        }
        command.stdout(Stdio::null());
        process::run(command, &self.servers)
    }

    /// Empties the table and forgets the ledger; statistics and dead rows are dealt with before the next clock starts.
    async fn empty(&self, indexes: Indexes) {
        let mut connection = connect(&self.servers).await;
        sqlx::raw_sql("truncate scheduler.runs, bridge.backfill, bridge.chunk, bridge.quarantine, bridge.tombstone")
            .execute(&mut connection)
            .await
            .expect("empty the tables");
        if indexes == Indexes::KeyOnly {
            drop_indexes(&mut connection).await;
        } else {
            sqlx::raw_sql(include_str!("../migrations/0001_scheduler.sql"))
                .execute(&mut connection)
                .await
                .expect("make the indexes again");
        }
        sqlx::raw_sql("vacuum analyze scheduler.runs").execute(&mut connection).await.expect("vacuum");
        sqlx::raw_sql("checkpoint").execute(&mut connection).await.expect("checkpoint");
    }

    async fn encode(&self) -> Vec<Vec<u8>> {
        let mapping = Mapping::new(entity::named("runs").expect("runs"));
        let time = scan::committed_time(&self.source, "runs", None).await.expect("time");
        let mut scan = scan::open(&self.source, "runs", &Range::default(), 5_000, time).await.expect("open");
        let mut pieces = vec![Vec::new()];
        let mut encoded = 0_u64;
        while let Some(batch) = scan.next().await.expect("read") {
            for document in scan::documents(&batch).expect("documents") {
                let piece: &mut Vec<u8> = pieces.last_mut().expect("a piece");
                mapping.encode(document, Stamp { epoch: 1, clock: 1 }, piece).expect("encode");
                encoded += 1;
                if piece.len() >= TRANSACTION {
                    pieces.push(Vec::new());
                }
            }
        }
        assert_eq!(encoded, self.documents);
        pieces
    }

    /// The peak of the bridge's memory at `few` and at `many` documents.
    async fn memory(&self, few: u64, many: u64) -> Value {
        self.empty(Indexes::All).await;
        let before = [self.bridge("backfill").memory, self.bridge("verify").memory];
        println!("loading {many} runs …");
        self.source.database().collection::<RawDocumentBuf>("runs").drop().await.expect("drop");
        dataset::load_collection(self.source.database(), "runs", (many, 1), |_| ()).await.expect("load");
        self.empty(Indexes::All).await;
        let after = [self.bridge("backfill").memory, self.bridge("verify").memory];
        println!("peak memory, MB       {few:>10} {many:>10} documents");
        let mut figures = Vec::new();
        for (name, (before, after)) in ["backfill", "verify"].iter().zip(before.into_iter().zip(after)) {
            let (before, after) = (megabytes(before.unwrap_or_default()), megabytes(after.unwrap_or_default()));
            println!("  bridge {name:12} {before:>10.1} {after:>10.1}   ratio {:.2}", after / before);
            figures.push(json!({ "name": name, "before_mb": before, "after_mb": after, "ratio": after / before }));
        }
        json!({ "documents": [few, many], "peaks": figures })
    }
}

async fn connect(servers: &Servers) -> PgConnection {
    PgConnection::connect(&servers.postgres.url()).await.expect("connect to PostgreSQL")
}

async fn count(source: &Source, range: &Range) -> usize {
    let time = scan::committed_time(source, "runs", None).await.expect("time");
    let mut scan = scan::open(source, "runs", range, 5_000, time).await.expect("open");
    let mut total = 0;
    while let Some(batch) = scan.next().await.expect("read") {
        total += scan::documents(&batch).expect("documents").len();
    }
    total
}

async fn copy_share(mut connection: PgConnection, pieces: &[Vec<u8>], statement: &str) {
    for piece in pieces {
        let mut copy = connection.copy_in_raw(statement).await.expect("copy");
        copy.send(tuple::HEADER).await.expect("send");
        for part in piece.chunks(256 << 10) {
            copy.send(part).await.expect("send");
        }
        copy.send(tuple::TRAILER).await.expect("send");
        copy.finish().await.expect("finish");
    }
}

async fn drop_indexes(connection: &mut PgConnection) {
    sqlx::raw_sql(
        "do $$ declare one text; begin
            for one in select indexrelid::regclass::text from pg_index
                where indrelid = 'scheduler.runs'::regclass and not indisprimary
            loop execute 'drop index ' || one; end loop;
        end $$",
    )
    .execute(connection)
    .await
    .expect("drop the indexes");
}
