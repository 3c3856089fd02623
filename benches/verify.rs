//! `cargo bench --bench verify`: how fast a verification is, beside draining either store raw and beside the plain script
//! that a user would write. 500,000 `runs`, copied by `bridge backfill`; the contenders take turns, another one first in
//! each round. Private servers; prints a table and writes the figures to `target/bench/verify.json`.
//!
//! Both drains take the ranges that the verifier would plan, as many at once as it has workers: of MongoDB the raw answers
//! of its cursors, of PostgreSQL the same columns by `select`, row after row; neither looks into what it gets. Generation 0
//! takes, by the verifier's own ledger, from its beginning to the end of its last share; the command also plans, and
//! settles what differed. The script counts its time itself, without the start of its interpreter.
//!
//! `BRIDGE_BENCH_DOCUMENTS` (500,000), `BRIDGE_BENCH_KEYS` (100,000, compared again by key), `BRIDGE_BENCH_PLAIN` (50,000,
//! compared by the script), `BRIDGE_BENCH_MORE` (2,000,000: the second measurement of memory; 0 leaves it out) and
//! `BRIDGE_BENCH_ROUNDS` (3) change the size.

#![expect(clippy::expect_used, clippy::print_stdout, reason = "a benchmark fails by a panic and speaks by printing")]

mod common;
#[path = "common/process.rs"]
mod process;

use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{median, number, write};
use futures::{StreamExt, TryStreamExt};
use mongodb::bson::{RawDocumentBuf, doc};
use process::{Clock, DATABASE, Run, load, megabytes, peak, python, rate};
use scheduler_bridge::embedded::Servers;
use scheduler_bridge::mapping::Mapping;
use scheduler_bridge::scan::{self, Range};
use scheduler_bridge::source::Source;
use scheduler_bridge::target::Target;
use scheduler_bridge::{dataset, entity, plan, verify};
use secrecy::SecretString;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};

/// Workers of the bridge, and ranges that a drain reads at once.
const WORKERS: usize = 2;

/// One key in so many is damaged where some are.
const DAMAGED: usize = 100;

/// What the source is asked for at most where its load is limited, in documents a second.
const LIMIT: u64 = 20_000;

/// A damage that [`REPAIR`] takes back.
const DAMAGE: &str = "update scheduler.runs set tenant_id = tenant_id || '~' where id = any($1)";
const REPAIR: &str = "update scheduler.runs set tenant_id = rtrim(tenant_id, '~') where id = any($1)";

#[tokio::main]
async fn main() {
    // `cargo test --benches` runs this file too, to see that it starts.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let documents = number("BRIDGE_BENCH_DOCUMENTS", 500_000);
    let bench = Bench::start(documents).await;
    let mut figures = bench.turns().await;
    figures["limited"] = bench.limited().await;
    let more = number("BRIDGE_BENCH_MORE", 2_000_000);
    if more > documents {
        figures["more"] = bench.more(more).await;
    }
    write("verify.json", &figures);
}

/// What is measured.
#[derive(Debug, Clone, Copy)]
enum Contender {
    DrainMongo,
    DrainPostgres,
    Verify,
    Level,
    Damaged,
    Plain,
}

/// Every contender, as it stands in the table.
const CONTENDERS: [(Contender, &str); 6] = [
    (Contender::DrainMongo, "(a) drain MongoDB raw"),
    (Contender::DrainPostgres, "(b) drain PostgreSQL raw"),
    (Contender::Verify, "(c) bridge verify, generation 0"),
    (Contender::Level, "(d) rechecks, all level"),
    (Contender::Damaged, "(d) rechecks, 1 in 100 damaged"),
    (Contender::Plain, "(e) plain script"),
];

/// One turn of a contender.
#[derive(Debug, Clone, Copy)]
struct Turn {
    /// How many documents, rows or keys it looked at.
    rows: u64,
    /// How long that took, in seconds.
    seconds: f64,
    run: Run,
    /// The longest single query of each store, in milliseconds, where that is told.
    longest: [f64; 2],
}

impl Turn {
    /// A turn that the whole run counts of.
    fn of(rows: u64, run: Run) -> Self {
        Self { rows, seconds: run.taken.as_secs_f64(), run, longest: [0.0; 2] }
    }

    fn rate(&self) -> f64 {
        rate(self.rows, std::time::Duration::from_secs_f64(self.seconds))
    }

    fn whole_rate(&self) -> f64 {
        rate(self.rows, self.run.taken)
    }
}

struct Bench {
    servers: Servers,
    source: Source,
    target: Target,
    documents: u64,
    ranges: Vec<Range>,
    /// The ids that are compared again.
    keys: Vec<String>,
}

impl Bench {
    async fn start(documents: u64) -> Self {
        println!("starting servers …");
        let servers = Servers::start().await.expect("start the servers");
        let url = SecretString::from(servers.postgres.url());
        let mut connection = PgConnection::connect(&servers.postgres.url()).await.expect("connect");
        scheduler_bridge::migrate::run(&mut connection).await.expect("migrate");
        let source = Source::open(&SecretString::from(servers.mongo.url()), DATABASE).await.expect("open MongoDB");
        // A range reads its rows on one connection and looks suspects up on another.
        let connections = u32::try_from(2 * WORKERS).expect("few");
        let target = Target::open(&url, connections).await.expect("open PostgreSQL");
        let mut bench = Self { servers, source, target, documents, ranges: Vec::new(), keys: Vec::new() };
        bench.fill(documents).await;
        bench.ranges = plan::plan(&bench.source, "runs", plan::CHUNK_BYTES).await.expect("plan").chunks;
        let some = "select id from scheduler.runs order by md5(id) limit $1";
        let count = i64::try_from(number("BRIDGE_BENCH_KEYS", 100_000)).expect("keys");
        bench.keys = sqlx::query_scalar(some).bind(count).fetch_all(bench.pool()).await.expect("choose keys");
        bench.plain_sees_a_damage().await;
        bench
    }

    fn pool(&self) -> &PgPool {
        self.target.pool()
    }

    /// Runs `documents` of both stores, and nothing else in them.
    async fn fill(&self, documents: u64) {
        println!("loading {documents} runs …");
        let database = self.source.database();
        database.collection::<RawDocumentBuf>("runs").drop().await.expect("drop");
        dataset::load_collection(database, "runs", (documents, 1), |_| ()).await.expect("load the documents");
        self.execute("truncate scheduler.runs, bridge.backfill, bridge.chunk, bridge.quarantine, bridge.tombstone")
            .await;
        let mut command = bridge(&["backfill", "runs"]);
        command.stdout(Stdio::null());
        process::run(command, &self.servers);
        self.settle().await;
    }

    /// Dead rows and statistics are dealt with before the next clock starts.
    async fn settle(&self) {
        for statement in ["vacuum analyze scheduler.runs", "analyze bridge.recheck", "checkpoint"] {
            self.execute(statement).await;
        }
    }

    async fn execute(&self, statement: &'static str) {
        sqlx::raw_sql(statement).execute(self.pool()).await.expect(statement);
    }

    /// Runs `statement` over `ids`, and tells how many rows it changed.
    async fn change(&self, statement: &'static str, ids: &[String]) -> u64 {
        sqlx::query(statement).bind(ids).execute(self.pool()).await.expect(statement).rows_affected()
    }

    /// Every contender in each round, and the table of all.
    async fn turns(&self) -> Value {
        let rounds = number("BRIDGE_BENCH_ROUNDS", 3);
        let mut turns: [Vec<Turn>; CONTENDERS.len()] = Default::default();
        for round in 0..rounds {
            println!("round {} of {rounds}", round + 1);
            for place in 0..CONTENDERS.len() {
                let place = (place + usize::try_from(round).expect("small")) % CONTENDERS.len();
                turns[place].push(self.turn(CONTENDERS[place].0).await);
            }
        }
        println!(
            "\nrows a second, median of {rounds} rounds; µs of processor a row, of the contender + MongoDB + PostgreSQL"
        );
        let mut rates: Vec<f64> =
            CONTENDERS.iter().zip(&turns).map(|((_, name), turns)| line(name, turns, Turn::rate)).collect();
        let [mongo, postgres, verified, .., plain] = rates[..] else { unreachable!("six contenders") };
        rates.push(line("    of (c), the whole command", &turns[2], Turn::whole_rate));
        let ratios = [("c/a", verified / mongo), ("c/b", verified / postgres), ("c/e", verified / plain)];
        println!("  {}", ratios.map(|(name, ratio)| format!("{name} = {ratio:.2}")).join("   "));
        println!("  generation 0 beside the slower drain: {:.2} (at least 0.5)", verified / mongo.min(postgres));
        println!("  generation 0 beside the script: {:.1} (at least 5)", verified / plain);
        let longest = [0, 1].map(|store| turns[2].iter().map(|turn| turn.longest[store]).fold(0.0, f64::max));
        println!("  longest single query of (c), ms: MongoDB {:.0}, PostgreSQL {:.0}", longest[0], longest[1]);
        let most = peak(&runs(&turns[2])).map(megabytes);
        println!("  peak of memory of (c): {:.0} MB (at most 150)", most.unwrap_or_default());
        let names = CONTENDERS.iter().map(|(_, name)| *name).chain(["the whole command"]);
        json!({
            "documents": self.documents, "keys": self.keys.len(), "rounds": rounds,
            "rates": names.zip(rates).map(|(name, rate)| json!({ "name": name, "per_second": rate })).collect::<Vec<_>>(),
            "ratios": ratios.map(|(name, ratio)| json!({ name: ratio })),
            "longest_query_ms": { "mongodb": longest[0], "postgresql": longest[1] },
            "peak_mb": most,
        })
    }

    async fn turn(&self, contender: Contender) -> Turn {
        match contender {
            Contender::DrainMongo => {
                let source = self.source.clone();
                self.drain(move |range| documents_of(source.clone(), range)).await
            }
            Contender::DrainPostgres => {
                let pool = self.pool().clone();
                self.drain(move |range| rows_of(pool.clone(), range)).await
            }
            Contender::Verify => self.verify(&[]).await,
            Contender::Level => self.recheck(&[]).await,
            Contender::Damaged => {
                let damaged: Vec<String> = self.keys.iter().step_by(DAMAGED).cloned().collect();
                self.recheck(&damaged).await
            }
            Contender::Plain => {
                let (turn, differing) = self.plain();
                assert_eq!(differing, json!([]), "the script sees differences that are none");
                turn
            }
        }
    }

    /// (a) and (b): what `one` counts in each range, all of them.
    async fn drain<F: Future<Output = u64> + Send + 'static>(&self, one: impl Fn(Range) -> F) -> Turn {
        let ranges = self.ranges.clone();
        let clock = Clock::start(&self.servers);
        let counts = futures::stream::iter(ranges).map(|range| tokio::spawn(one(range))).buffer_unordered(WORKERS);
        let counts: Vec<u64> = counts.try_collect().await.expect("drain");
        let turn = Turn::of(counts.iter().sum(), clock.stop(None));
        assert_eq!(turn.rows, self.documents);
        turn
    }

    /// (c): the command itself, from start to exit.
    async fn verify(&self, arguments: &[&str]) -> Turn {
        let mut command = bridge(&["verify", "--json", "--collection", "runs"]);
        command.args(arguments);
        let (run, report) = self.answer(command);
        assert_eq!(report["verdict"], "clean", "{report}");
        let generation_0 = "select extract(epoch from max(s.finished_at) - v.began_at)::float8
            from bridge.verification v join bridge.verification_share s on s.verification = v.id
            where v.id = $1 group by v.began_at";
        let number = report["number"].as_i64().expect("a number");
        let seconds = sqlx::query_scalar(generation_0).bind(number).fetch_one(self.pool()).await.expect("ask");
        let longest = ["mongodb_milliseconds", "postgresql_milliseconds"];
        Turn {
            rows: report["collections"][0]["documents"].as_u64().expect("a count"),
            seconds,
            run,
            longest: longest.map(|name| report["longest_query"][name].as_f64().expect("milliseconds")),
        }
    }

    /// (d): the part of a verification that goes through the queue, `damaged` of its keys being so.
    async fn recheck(&self, damaged: &[String]) -> Turn {
        let queue = "insert into bridge.recheck (collection, id, epoch, clock)
            select 'runs', id, epoch, clock from scheduler.runs where id = any($1)";
        let queued = self.change(queue, &self.keys).await;
        self.change(DAMAGE, damaged).await;
        self.settle().await;
        let clock = Clock::start(&self.servers);
        let (_, compared) = verify::compare_queue(&self.source, &self.target).await.expect("compare the queue");
        let turn = Turn::of(compared, clock.stop(None));
        assert_eq!(compared, queued);
        let left = "select id from bridge.recheck";
        let left: Vec<String> = sqlx::query_scalar(left).fetch_all(self.pool()).await.expect(left);
        let sorted = |mut ids: Vec<String>| {
            ids.sort();
            ids
        };
        assert_eq!(sorted(left), sorted(damaged.to_vec()), "what differs stays, and nothing else");
        self.change(REPAIR, damaged).await;
        // Not deleted: the next queue would begin among the remains of this one.
        self.execute("truncate bridge.recheck").await;
        self.settle().await;
        turn
    }

    /// (e), and the ids that differ.
    fn plain(&self) -> (Turn, Value) {
        let mut command = Command::new(python());
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/plain_verify.py"));
        command.arg(number("BRIDGE_BENCH_PLAIN", 50_000).to_string());
        let (run, mut answer) = self.answer(command);
        let rows = answer["documents"].as_u64().expect("a count");
        let seconds = answer["seconds"].as_f64().expect("seconds");
        (Turn { rows, seconds, run, longest: [0.0; 2] }, answer["differing"].take())
    }

    /// A script that compares nothing would be fast.
    async fn plain_sees_a_damage(&self) {
        let runs = self.source.database().collection::<RawDocumentBuf>("runs");
        let first = runs.find_one(doc! {}).await.expect("read").expect("a document");
        let id = first.get_str("_id").expect("a text").to_owned();
        self.change(DAMAGE, std::slice::from_ref(&id)).await;
        assert_eq!(self.plain().1, json!([id]), "the script does not see the damage, or sees others");
        self.change(REPAIR, &[id]).await;
        self.settle().await;
    }

    /// Runs `command` to its end, and what its last line says.
    fn answer(&self, mut command: Command) -> (Run, Value) {
        let mut output = tempfile::tempfile().expect("make a file");
        command.stdout(output.try_clone().expect("share the file"));
        let (run, mut text) = (process::run(command, &self.servers), String::new());
        output.rewind().expect("rewind");
        output.read_to_string(&mut text).expect("read what it printed");
        (run, serde_json::from_str(text.lines().last().expect("a line")).expect("JSON"))
    }

    /// The load that the source is spared.
    async fn limited(&self) -> Value {
        let turn = self.verify(&["--documents-per-second", &LIMIT.to_string()]).await;
        line(&format!("(g) (c) at most {LIMIT} a second"), &[turn], Turn::rate);
        println!(
            "  longest single query of (g), ms: MongoDB {:.0}, PostgreSQL {:.0}\n",
            turn.longest[0], turn.longest[1]
        );
        json!({ "limit": LIMIT, "per_second": turn.rate(), "longest_query_ms": turn.longest })
    }

    /// The peak of memory and the rate at `documents`.
    async fn more(&self, documents: u64) -> Value {
        self.fill(documents).await;
        let turn = self.verify(&[]).await;
        line(&format!("(f) (c) at {documents}"), &[turn], Turn::rate);
        json!({ "documents": documents, "per_second": turn.rate(), "peak_mb": turn.run.memory.map(megabytes) })
    }
}

/// `bridge` with these arguments and so many workers.
fn bridge(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bridge"));
    command.args(arguments).args(["--workers", &WORKERS.to_string()]);
    command
}

fn runs(turns: &[Turn]) -> Vec<Run> {
    turns.iter().map(|turn| turn.run).collect()
}

/// Prints a line of the table and gives its rate.
fn line(name: &str, turns: &[Turn], rate: fn(&Turn) -> f64) -> f64 {
    let middle = median(turns.iter().map(rate).collect());
    let all = turns.iter().map(|turn| format!("{:.0}", rate(turn))).collect::<Vec<_>>().join(" ");
    println!("  {name:32} {middle:>9.0}   ({all})   {}", load(&runs(turns), turns[0].rows));
    middle
}

/// The number of documents in a range, which arrive as they are on the wire.
async fn documents_of(source: Source, range: Range) -> u64 {
    let time = scan::committed_time(&source, "runs", None).await.expect("time");
    let mut scan = scan::open(&source, "runs", &range, 5_000, time).await.expect("open");
    let mut count = 0;
    while let Some(batch) = scan.next().await.expect("read") {
        count += scan::documents(&batch).expect("documents").len();
    }
    u64::try_from(count).expect("a count")
}

/// The number of rows in a range, which arrive as they are on the wire.
async fn rows_of(pool: PgPool, range: Range) -> u64 {
    let mapping = Mapping::new(entity::named("runs").expect("runs"));
    let columns = mapping.columns().take_while(|column| *column != "epoch").collect::<Vec<_>>().join(", ");
    let text = |bound: &Option<RawDocumentBuf>| bound.as_ref().map(|id| id.get_str("_id").expect("a text").to_owned());
    let query = format!(
        "select {columns} from scheduler.runs where ($1::text is null or id >= $1) and ($2::text is null or id < $2)"
    );
    let query = sqlx::query(AssertSqlSafe(query)).bind(text(&range.lower)).bind(text(&range.upper));
    // Planned anew each time, with the bounds that there are.
    let mut rows = query.persistent(false).fetch(&pool);
    let mut count = 0;
    while rows.try_next().await.expect("a row").is_some() {
        count += 1;
    }
    count
}
