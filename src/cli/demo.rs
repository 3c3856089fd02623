//! `bridge demo`: the whole move on private servers, by the same commands that a user types.

mod tamper;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bson::RawDocumentBuf;
use clap::Args;
use mongodb::Database;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor};

use super::progress::{Bar, seconds};
use super::verify::VerifyArgs;
use super::{Context, Exit, Failure, Settings, backfill, migrate, verify};
use crate::dataset::{self, fixtures};
use crate::embedded::{EmbeddedError, Endpoint, Endpoints};
use crate::source::{Source, SourceError};
use crate::target::{self, TargetError};
use crate::verify::{Report, Verdict};
use tamper::Tampered;

/// How many documents the demo generates when `--documents` is not given.
const DOCUMENTS: u64 = 200_000;

/// The generated documents are the same every time.
const SEED: u64 = 1;

/// Arguments of `bridge demo`.
#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// How many documents to generate, in all eleven collections
    #[arg(long, value_name = "N", default_value_t = DOCUMENTS)]
    pub documents: u64,
    /// Leave the servers up afterwards, and print their URLs
    #[arg(long)]
    pub keep: bool,
}

pub(super) async fn run(args: DemoArgs, context: &Context) -> Result<Exit, Failure> {
    let mut steps = Steps { context, done: Vec::new(), started: Instant::now() };
    let start = "start a private MongoDB and a private PostgreSQL (the first time they are downloaded: about 60 MB)";
    let servers =
        steps.step(start, async { context.until_stopped(async { Ok(Endpoints::open().await?) }).await }).await?;
    let stage = Stage::new(&servers, context);
    let shown = stage.show(args.documents, &mut steps).await;
    if shown.is_ok() {
        steps.end()?;
    }
    let interrupted = shown.as_ref().is_err_and(|failure| failure.exit == Exit::Interrupted);
    if args.keep && !interrupted {
        stage.tell(&servers, context)?;
        keep(servers).await?;
    } else {
        stage.clear(&servers).await?;
    }
    shown.map(|()| Exit::Clean)
}

/// The steps with their headings and times.
struct Steps<'a> {
    context: &'a Context,
    done: Vec<(String, Duration)>,
    started: Instant,
}

impl Steps<'_> {
    async fn step<T>(&mut self, name: &str, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let line = format!("━━ {}. {name}", self.done.len() + 1);
        self.context.output.text(&format!("\n{}", console::style(line).bold()))?;
        let started = Instant::now();
        let result = work.await?;
        let taken = started.elapsed();
        self.context.output.text(&format!("{}", console::style(format!("   {:.1} s", taken.as_secs_f64())).dim()))?;
        self.done.push((name.to_owned(), taken));
        Ok(result)
    }

    fn end(&self) -> Result<(), Failure> {
        let taken = self.started.elapsed();
        let steps: Vec<Value> =
            self.done.iter().map(|(name, taken)| json!({ "name": name, "seconds": seconds(*taken) })).collect();
        let text = format!("everything was as promised, in {:.1} s", taken.as_secs_f64());
        self.context.output.text(&format!("\n{}", console::style(text).bold()))?;
        self.context.output.object(&json!({ "demo": "passed", "steps": steps, "seconds": seconds(taken) }))
    }
}

/// The databases that the demo plays in, and the commands aimed at them.
struct Stage {
    database: String,
    mongo_url: String,
    postgres_url: String,
    /// To create and drop the database with.
    admin_url: String,
    /// As if the user had set the URLs.
    bridge: Context,
}

impl Stage {
    fn new(servers: &Endpoints, context: &Context) -> Self {
        // A name that is free also on servers that are not our own.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let database = format!("bridge_demo_{now}_{}", std::process::id());
        let (mongo_url, postgres_url) = (servers.mongo.url(), servers.postgres.url_of(&database));
        let settings = Settings::of_stores(mongo_url.clone(), postgres_url.clone(), &database);
        let bridge = Context { settings, output: context.output, stop: context.stop.clone() };
        Self { database, mongo_url, postgres_url, admin_url: servers.postgres.url(), bridge }
    }

    async fn show(&self, documents: u64, steps: &mut Steps<'_>) -> Result<(), Failure> {
        let bridge = &self.bridge;
        let source = bridge.until_stopped(bridge.source()).await?;
        let database = source.database();
        let fill = bridge.until_stopped(self.fill(database, documents));
        steps.step("fill MongoDB with eleven collections and every awkward document of fixtures/", fill).await?;
        steps.step("bridge migrate", self.migrate()).await?;
        steps.step("bridge backfill", self.backfill()).await?;
        expect_clean(&steps.step("bridge verify", self.verify()).await?)?;
        let tamper = bridge.until_stopped(self.tamper(database, documents));
        let tampered = steps.step("change three documents behind the bridge's back", tamper).await?;
        tampered.expect_found(&steps.step("bridge verify", self.verify()).await?)?;
        steps.step("bridge backfill", self.backfill()).await?;
        expect_clean(&steps.step("bridge verify", self.verify()).await?)
    }

    async fn fill(&self, database: &Database, documents: u64) -> Result<(), Failure> {
        let bar = Bar::new("documents", documents);
        let generated = dataset::load(database, documents, SEED, |done| bar.add(done)).await?;
        drop(bar);
        let mapped = fixtures::load(database, &fixtures::mapped()?).await?;
        let quarantined = fixtures::load(database, &fixtures::quarantined()?).await?;
        fixtures::load(database, &[fixtures::largest()]).await?;
        self.bridge.output.text(&format!(
            "{generated} generated documents, {mapped} awkward ones, {quarantined} that cannot become a row, and one of 16 MB"
        ))
    }

    async fn migrate(&self) -> Result<Exit, Failure> {
        let create = format!("create database {}", self.database);
        self.bridge.until_stopped(self.admin(&create)).await?;
        migrate::run(&self.bridge).await
    }

    async fn admin(&self, statement: &str) -> Result<(), Failure> {
        let failed = |error| TargetError::of("create or drop the demo's database", error);
        let mut connection = target::connect(&self.admin_url.clone().into()).await?;
        connection.execute(AssertSqlSafe(statement.to_owned())).await.map_err(failed)?;
        connection.close().await.map_err(failed)?;
        Ok(())
    }

    async fn backfill(&self) -> Result<Exit, Failure> {
        backfill::run(backfill::BackfillArgs::default(), &self.bridge).await
    }

    async fn verify(&self) -> Result<Report, Failure> {
        verify::verify(&VerifyArgs::default(), &self.bridge).await
    }

    async fn tamper(&self, database: &Database, documents: u64) -> Result<Tampered, Failure> {
        let tampered = Tampered::of(documents)?;
        tampered.apply(database).await.map_err(|error| SourceError::of("change three documents", error))?;
        self.bridge.output.text(&tampered.text())?;
        Ok(tampered)
    }

    /// Our own servers go with all they hold; from others the databases are dropped.
    async fn clear(&self, servers: &Endpoints) -> Result<(), Failure> {
        if matches!(servers.postgres, Endpoint::Given(_)) {
            self.admin(&format!("drop database if exists {} with (force)", self.database)).await?;
        }
        if matches!(servers.mongo, Endpoint::Given(_)) {
            let source = Source::open(&self.mongo_url.clone().into(), &self.database).await?;
            source.database().drop().await.map_err(|error| SourceError::of("drop the demo's database", error))?;
        }
        Ok(())
    }

    fn tell(&self, servers: &Endpoints, context: &Context) -> Result<(), Failure> {
        let Self { database, mongo_url, postgres_url, .. } = self;
        let stop: Vec<String> = pids(servers).iter().map(ToString::to_string).collect();
        let stop = if stop.is_empty() { String::new() } else { format!("kill -INT {}", stop.join(" ")) };
        context.output.text(&format!(
            "\nThe servers stay up. To go on by hand:\n\n  \
             export BRIDGE_MONGO_URL='{mongo_url}'\n  \
             export BRIDGE_MONGO_DATABASE='{database}'\n  \
             export BRIDGE_POSTGRES_URL='{postgres_url}'\n\n  \
             bridge verify\n  bridge quarantine list\n  bridge backfill --dry-run\n\n\
             To end the servers and remove what they hold:\n\n  {stop}"
        ))?;
        context.output.object(&json!({
            "BRIDGE_MONGO_URL": mongo_url, "BRIDGE_MONGO_DATABASE": database, "BRIDGE_POSTGRES_URL": postgres_url,
            "pids": pids(servers),
        }))
    }
}

/// The processes of our own servers.
fn pids(servers: &Endpoints) -> Vec<u32> {
    let mongo = if let Endpoint::Own(server) = &servers.mongo { Some(server.pid()) } else { None };
    let postgres = if let Endpoint::Own(server) = &servers.postgres { Some(server.pid()) } else { None };
    mongo.into_iter().chain(postgres).collect()
}

async fn keep(servers: Endpoints) -> Result<(), Failure> {
    if let Endpoint::Own(server) = servers.mongo {
        server.keep().await?;
    }
    if let Endpoint::Own(server) = servers.postgres {
        server.keep().await?;
    }
    Ok(())
}

fn expect_clean(report: &Report) -> Result<(), Failure> {
    if report.verdict == Verdict::Clean { Ok(()) } else { Err(broken("the stores are not equal")) }
}

/// The demo did not show what it promises.
fn broken(what: &str) -> Failure {
    Failure::new(Exit::Mismatch, what).hint("this is a bug: please report it with what stands above")
}

impl From<EmbeddedError> for Failure {
    fn from(error: EmbeddedError) -> Self {
        let hint = "or name two servers that may be written to: BRIDGE_TEST_MONGO_URL and BRIDGE_TEST_POSTGRES_URL";
        Self::of(Exit::Usage, &error).hint(hint)
    }
}

impl From<dataset::Error> for Failure {
    fn from(error: dataset::Error) -> Self {
        Self::of(Exit::Source, &error)
    }
}

impl From<fixtures::Error> for Failure {
    fn from(error: fixtures::Error) -> Self {
        Self::of(Exit::Source, &error)
    }
}

/// Document `index` of a collection.
fn document(collection: &str, index: u64) -> Result<RawDocumentBuf, Failure> {
    Ok(dataset::generate(collection, index, SEED)?)
}
