//! `cargo bench --bench switch`: what a flip costs those who write. Four `bridge simulate phase` at full speed, a mirror, and
//! 16 writers of this process; the primary is turned forth and back. Prints for how long nobody could write, as the switch
//! says, and the longest that each writer waited during each flip, beside what a write takes otherwise. Private servers;
//! writes the figures to `target/bench/switch.json`.
//!
//! `BRIDGE_BENCH_FLIPS` (20) changes the size. The gate's conditions on verification are waived.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "a benchmark fails by a panic and speaks by printing")]

#[expect(dead_code, reason = "other benchmarks take medians")]
mod common;
#[path = "../tests/it/stores/samples.rs"]
#[expect(dead_code, reason = "the tests need samples of every entity, the benchmark of one")]
mod samples;

use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use scheduler_bridge::connect::Backends;
use scheduler_bridge::embedded::Servers;
use scheduler_bridge::entity::runs::RunState;
use scheduler_bridge::mirror;
use scheduler_bridge::phase::Phase;
use scheduler_bridge::scheduler::Scheduler;
use scheduler_bridge::scheduler::runs::Progress;
use scheduler_bridge::source::Source;
use scheduler_bridge::store::dual::DualStore;
use scheduler_bridge::switch::gate::Limits;
use scheduler_bridge::switch::{Options, Switch, SwitchError};
use scheduler_bridge::target::Target;
use secrecy::SecretString;
use serde_json::json;
use sqlx::Connection;

use common::{number, write};

const DATABASE: &str = "bench";

const WRITERS: usize = 16;

const SIMULATORS: usize = 4;

/// A process that ends with this.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn bridge(servers: &Servers, arguments: &[&str]) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bridge"));
    command.env("BRIDGE_MONGO_URL", servers.mongo.url()).env("BRIDGE_MONGO_DATABASE", DATABASE);
    command.env("BRIDGE_POSTGRES_URL", servers.postgres.url()).args(arguments);
    Process(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start bridge"))
}

/// The writes of this process: when each began, and how long it took.
type Writes = Arc<Mutex<Vec<(Instant, Duration)>>>;

#[tokio::main]
async fn main() {
    // `cargo test --benches` runs this file too, to see that it starts.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    println!("starting servers …");
    fail::cfg("switch::unverified", "return").expect("waive");
    fail::cfg("switch::clients", "return").expect("waive");
    let servers = Servers::start().await.expect("start the servers");
    let (mongo, postgres) = (SecretString::from(servers.mongo.url()), SecretString::from(servers.postgres.url()));
    let mut connection = sqlx::PgConnection::connect(&servers.postgres.url()).await.expect("connect");
    scheduler_bridge::migrate::run(&mut connection).await.expect("migrate");
    let backends = Backends::new(Some((mongo.clone(), DATABASE.to_owned())), Some(postgres.clone()));
    let connected = Scheduler::<DualStore>::connect(&backends).await.expect("connect");
    let writes = Writes::default();
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        writers.push(tokio::spawn(writes_on(connected.scheduler.clone(), format!("run-{writer}"), writes.clone())));
    }
    let source = Source::open(&mongo, DATABASE).await.expect("open MongoDB");
    let target = Target::open(&postgres, 4).await.expect("open PostgreSQL");
    let switch = Switch::new(source.clone(), target.clone(), "bench".to_owned(), Duration::from_secs(15));
    let _simulators: Vec<Process> =
        (0..SIMULATORS).map(|_| bridge(&servers, &["simulate", "phase", "--seconds", "3600"])).collect();
    while switch.instances().await.expect("look").len() <= SIMULATORS {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let _mirror = bridge(&servers, &["backfill", "--follow"]);
    let is_copied = "select count(distinct collection) = 11 from bridge.backfill where finished_at is not null";
    while !sqlx::query_scalar::<_, bool>(is_copied).fetch_one(&mut connection).await.expect("look") {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    mirror::until_level(&source, &target).await.expect("level");
    turn(&switch, Phase::MongoPrimary).await;
    let (mut pauses, mut waits, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for flip in 0..number("BRIDGE_BENCH_FLIPS", 20) {
        let to = if flip % 2 == 0 { Phase::PostgresPrimary } else { Phase::MongoPrimary };
        writes.lock().expect("writes").clear();
        until_written(&writes).await;
        others.extend(writes.lock().expect("writes").drain(..).map(|(_, took)| took));
        let begun = Instant::now();
        let pause = turn(&switch, to).await;
        let ended = Instant::now();
        until_written(&writes).await;
        let during: Vec<Duration> = writes
            .lock()
            .expect("writes")
            .drain(..)
            .filter(|(at, took)| *at < ended && *at + *took > begun)
            .map(|(_, took)| took)
            .collect();
        let mut longest = during;
        longest.sort();
        // One flip is one long wait of each writer.
        longest.drain(..longest.len().saturating_sub(WRITERS));
        println!(
            "  to {to:16} pause {:>4} ms, longest wait {:>4} ms",
            pause.as_millis(),
            longest[longest.len() - 1].as_millis()
        );
        pauses.push(pause);
        waits.extend(longest);
    }
    writers.iter().for_each(tokio::task::JoinHandle::abort);
    let [pauses, waits, others] = [pauses, waits, others].map(figures);
    println!("milliseconds: p50, p99, longest");
    for (name, figures) in
        [("pause of a flip", &pauses), ("a writer's wait for it", &waits), ("a write otherwise", &others)]
    {
        println!("  {name:24} {:>8.1} {:>8.1} {:>8.1}", figures[0], figures[1], figures[2]);
    }
    write("switch.json", &json!({ "pause_ms": pauses, "wait_ms": waits, "write_ms": others }));
}

async fn writes_on(scheduler: Scheduler<DualStore>, id: String, writes: Writes) {
    scheduler.runs.create(&samples::run("a", &id)).await.expect("create");
    for number in 0_u64.. {
        let mut progress = Progress::to(RunState::Queued, samples::at(1));
        progress.error = Some(number.to_string());
        let begun = Instant::now();
        scheduler.runs.update(&samples::tenant("a"), &id, &progress).await.expect("no error reaches a writer");
        writes.lock().expect("writes").push((begun, begun.elapsed()));
    }
}

/// Waits until every writer has gone on, most likely.
async fn until_written(writes: &Writes) {
    let before = writes.lock().expect("writes").len();
    while writes.lock().expect("writes").len() < before + 50 * WRITERS {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Turns as soon as the mirror lags little enough; for how long nobody could write.
async fn turn(switch: &Switch, to: Phase) -> Duration {
    loop {
        match switch.permit(to, &Limits::default()).await {
            Ok(permit) => {
                let made = switch.make(permit, Options::default(), &mut |_| {}).await.expect("turn");
                return made.pause;
            }
            Err(SwitchError::Unmet { .. }) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// The middle, the 99th of a hundred, and the longest, in milliseconds.
fn figures(mut taken: Vec<Duration>) -> [f64; 3] {
    taken.sort();
    let at = |part: usize| taken[(taken.len() * part / 100).min(taken.len() - 1)].as_secs_f64() * 1e3;
    [at(50), at(99), at(100)]
}
