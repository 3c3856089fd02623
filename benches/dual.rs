//! `cargo bench --bench dual`: the repositories over both stores beside the same over one store, in each phase: `get`,
//! `create` and `update` of a run with 1 and with 16 callers, while the secondary is well, slow (100 ms), and away. Private
//! servers, a database for each contender, who take turns; prints a table and writes the figures to
//! `target/bench/dual.json`.
//!
//! `BRIDGE_BENCH_ROUNDS` (3) and `BRIDGE_BENCH_OPERATIONS` (1,500; half of them where the secondary is slow) change the size.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "a benchmark fails by a panic and speaks by printing")]

mod common;
#[path = "stores/measure.rs"]
mod measure;
#[path = "../tests/it/stores/samples.rs"]
#[expect(dead_code, reason = "the tests need samples of every entity, the benchmark of one")]
mod samples;

use std::sync::Arc;

use scheduler_bridge::connect::Backends;
use scheduler_bridge::embedded::Servers;
use scheduler_bridge::entity::runs::RunState;
use scheduler_bridge::fence::Fence;
use scheduler_bridge::fence::mongo::MongoFence;
use scheduler_bridge::phase::{Backend, Phase};
use scheduler_bridge::scheduler::Scheduler;
use scheduler_bridge::scheduler::runs::Progress;
use scheduler_bridge::source::Source;
use scheduler_bridge::store::{MongoStore, PostgresStore, Store};
use scheduler_bridge::target::Target;
use secrecy::SecretString;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use common::{number, write};
use measure::{Figure, Operation, measured, middle};

const CALLERS: [usize; 2] = [1, 16];

const OPERATIONS: [&str; 3] = ["get", "create", "update"];

/// Runs that are there before, for `get` and `update`.
const RUNS: u64 = 64;

/// How the secondary is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Secondary {
    Well,
    Slow,
    Away,
}

/// What is measured, in which phase (one store alone where there is none), and which store is the primary.
type Line = (&'static str, Option<(Phase, Secondary)>, Backend);

/// Every line of the table.
const LINES: [Line; 8] = [
    ("MongoDB alone", None, Backend::Mongo),
    ("mongo", Some((Phase::Mongo, Secondary::Well)), Backend::Mongo),
    ("mongo-primary", Some((Phase::MongoPrimary, Secondary::Well)), Backend::Mongo),
    ("mongo-primary, PostgreSQL slow", Some((Phase::MongoPrimary, Secondary::Slow)), Backend::Mongo),
    ("mongo-primary, PostgreSQL away", Some((Phase::MongoPrimary, Secondary::Away)), Backend::Mongo),
    ("PostgreSQL alone", None, Backend::Postgres),
    ("postgres-primary", Some((Phase::PostgresPrimary, Secondary::Well)), Backend::Postgres),
    ("postgres", Some((Phase::Postgres, Secondary::Well)), Backend::Postgres),
];

/// The operations of one contender, in the order of [`OPERATIONS`].
type Contender = [Operation; 3];

#[tokio::main]
async fn main() {
    // `cargo test --benches` runs this file too, to see that it starts.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    println!("starting servers …");
    let servers = Servers::start().await.expect("start the servers");
    let mut contenders = Vec::new();
    for (number, line) in LINES.iter().enumerate() {
        contenders.push(contender(&servers, &format!("bench_{number}"), line.1, line.2).await);
    }
    println!("operations a second, medians of {} rounds; p50 and p99 in µs", number("BRIDGE_BENCH_ROUNDS", 3));
    let mut lines = Vec::new();
    for (operation, name) in OPERATIONS.iter().enumerate() {
        for callers in CALLERS {
            let mut figures: Vec<Vec<Figure>> = vec![Vec::new(); LINES.len()];
            for round in 0..number("BRIDGE_BENCH_ROUNDS", 3) {
                // Another one is the first each time: none has the warmest servers always.
                for place in 0..LINES.len() {
                    let place = (place + usize::try_from(round).expect("small") * 3) % LINES.len();
                    let ((_, situation, _), contender) = (LINES[place], &contenders[place]);
                    measured(&contender[operation], 64, 16).await;
                    let all = number("BRIDGE_BENCH_OPERATIONS", 1_500);
                    // A tenth of a second each, for the secondary.
                    let is_slow = matches!(situation, Some((_, Secondary::Slow))) && *name != "get";
                    let count = if is_slow { all.div_ceil(2) } else { all };
                    figures[place].push(measured(&contender[operation], count, callers).await);
                }
            }
            for ((line, ..), figures) in LINES.iter().zip(&figures) {
                let figure = middle(figures);
                println!("  {name:8} {callers:>3}  {line:32} {:>9.0} {:>16}", figure.rate, figure.latencies());
                lines.push(json!({ "operation": name, "callers": callers, "line": line, "figure": figure.json() }));
            }
        }
    }
    write("dual.json", &Value::Array(lines));
}

async fn contender(servers: &Servers, name: &str, phase: Option<(Phase, Secondary)>, backend: Backend) -> Contender {
    let url = servers.postgres.url_of(name);
    let mut admin = PgConnection::connect(&servers.postgres.url()).await.expect("connect");
    admin.execute(AssertSqlSafe(format!("create database {name}"))).await.expect("create a database");
    let mut connection = PgConnection::connect(&url).await.expect("connect");
    scheduler_bridge::migrate::run(&mut connection).await.expect("migrate");
    let postgres = SecretString::from(url);
    let mongo = SecretString::from(servers.mongo.url());
    let source = Source::open(&mongo, name).await.expect("open MongoDB");
    let store = MongoStore::new(source.client().clone(), source.database().clone(), 1);
    store.create_indexes().await.expect("create the indexes");
    let Some((phase, secondary)) = phase else {
        return match backend {
            Backend::Mongo => operations(Scheduler::new(&store)).await,
            Backend::Postgres => {
                let target = Target::open_prepared(&postgres, 16).await.expect("open PostgreSQL");
                operations(Scheduler::new(&PostgresStore::new(target.pool().clone()))).await
            }
        };
    };
    let open = phase.primary() == Backend::Postgres;
    let fence = sqlx::query("update bridge.fence set phase = $1, open = $2").bind(phase.name()).bind(open);
    fence.execute(&mut connection).await.expect("turn PostgreSQL's fence");
    let fence = Fence { phase, epoch: 1, open: !open };
    MongoFence::new(source.database()).create(fence).await.expect("make MongoDB's fence");
    if secondary == Secondary::Slow {
        let slow = "create function public.slow() returns trigger language plpgsql
                as 'begin perform pg_sleep(0.1); return null; end';
            create trigger slow before insert on scheduler.runs for each statement execute function public.slow()";
        connection.execute(slow).await.expect("make it slow");
    }
    let postgres = match secondary {
        // Nobody listens there.
        Secondary::Away => SecretString::from("postgres://nobody@127.0.0.1:1/nowhere"),
        Secondary::Well | Secondary::Slow => postgres,
    };
    let mut backends = Backends::new(Some((mongo, name.to_owned())), Some(postgres));
    backends.settings.connections = 16;
    let connected = Scheduler::connect(&backends).await.expect("connect");
    let operations = operations(connected.scheduler.clone()).await;
    // It is used until the process ends.
    std::mem::forget(connected);
    operations
}

async fn operations<S: Store>(scheduler: Scheduler<S>) -> Contender {
    let tenant = || samples::tenant("a");
    for number in 0..RUNS {
        scheduler.runs.create(&samples::run("a", &format!("run-{number}"))).await.expect("create");
    }
    let scheduler = Arc::new(scheduler);
    let id = |number: u64| format!("run-{}", number % RUNS);
    let get: Operation = {
        let scheduler = scheduler.clone();
        Arc::new(move |number| {
            let scheduler = scheduler.clone();
            Box::pin(async move { drop(scheduler.runs.get(&tenant(), &id(number)).await.expect("get")) })
        })
    };
    let create: Operation = {
        let scheduler = scheduler.clone();
        Arc::new(move |number| {
            let scheduler = scheduler.clone();
            let run = samples::run("a", &format!("new-{number}"));
            Box::pin(async move { scheduler.runs.create(&run).await.expect("create") })
        })
    };
    let update: Operation = Arc::new(move |number| {
        let scheduler = scheduler.clone();
        let mut progress = Progress::to(RunState::Queued, samples::at(1));
        progress.error = Some(number.to_string());
        Box::pin(async move { drop(scheduler.runs.update(&tenant(), &id(number), &progress).await.expect("update")) })
    });
    [get, create, update]
}
