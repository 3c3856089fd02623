//! `bridge demo`: the whole move on private servers, by the same commands that a user types.

mod flip;
mod load;
mod tamper;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bson::RawDocumentBuf;
use clap::Args;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor};

use super::progress::{Bar, seconds};
use super::verify::VerifyArgs;
use super::{Context, Exit, Failure, Settings, backfill, migrate, reads, repair, simulate, verify};
use crate::dataset::{self, fixtures};
use crate::embedded::{EmbeddedError, Endpoint, Endpoints};
use crate::entity::{self, ENTITIES};
use crate::phase::Phase;
use crate::source::{Source, SourceError};
use crate::target::{self, Target, TargetError};
use crate::verify::repair::Extras;
use crate::verify::{Report, Verdict};
use flip::Flips;
use load::{Load, Mirror};
use tamper::Tampered;

/// How many documents the demo generates when `--documents` is not given.
const DOCUMENTS: u64 = 200_000;

/// So many shadow reads are waited for, and so long.
const SHADOW_READS: u64 = 100;
const SHADOW_WAIT: Duration = Duration::from_secs(60);

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
    /// Where the report of the newest verification is kept.
    report: PathBuf,
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
        let report = std::env::temp_dir().join(format!("{database}.html"));
        Self { database, mongo_url, postgres_url, admin_url: servers.postgres.url(), report, bridge }
    }

    async fn show(&self, documents: u64, steps: &mut Steps<'_>) -> Result<(), Failure> {
        let fill = self.bridge.until_stopped(self.fill(documents));
        steps.step("fill MongoDB with eleven collections and every awkward document of fixtures/", fill).await?;
        steps.step("bridge migrate", self.migrate()).await?;
        let load = "start a scheduler that goes on working until the end (bridge simulate phase)";
        let load = steps.step(load, Load::start(&self.bridge)).await?;
        let mirror = std::cell::OnceCell::new();
        let moved = self.bridge.until_stopped(self.moved(documents, &load, &mirror, steps)).await;
        let ended = match mirror.into_inner() {
            Some(mirror) => mirror.end().await,
            None => Ok(()),
        };
        // A scheduler that has ended by itself is why the move went wrong, and not the other way round.
        let (has_ended, found) = (!load.is_at_work(), load.end().await);
        let found = if has_ended { Ok(found?) } else { found };
        moved?;
        ended?;
        let found =
            steps.step("end the scheduler, and look for every write it was told is made", async { found }).await?;
        self.bridge.output.text(&simulate::told(&found))?;
        if found.faults.is_empty() && found.writes > 0 { Ok(()) } else { Err(broken("acknowledged writes are lost")) }
    }

    /// The whole move, while the scheduler works.
    async fn moved(
        &self,
        documents: u64,
        load: &Load,
        mirror: &std::cell::OnceCell<Mirror>,
        steps: &mut Steps<'_>,
    ) -> Result<(), Failure> {
        let (source, target) = (self.bridge.source().await?, self.bridge.target(NonZeroUsize::MIN).await?);
        steps.step("bridge backfill", self.backfill()).await?;
        let follow = async { Ok(mirror.set(Mirror::start(&self.bridge).await?).is_ok()) };
        steps.step("bridge mirror, from here on in the background", follow).await?;
        expect_clean(&steps.step("bridge verify, while the scheduler works", self.verify()).await?)?;
        let tampered =
            steps.step("change three rows behind the bridge's back", self.tamper(&target, documents)).await?;
        let report = steps.step("bridge verify", self.verify()).await?;
        tampered.expect_found(&report)?;
        steps.step("bridge verify --repair --delete-extra", self.repair(&report)).await?;
        steps
            .step("bridge quarantine accept, for each document that cannot become a row", self.accept(&target))
            .await?;
        let flips = Flips { source, target, output: self.bridge.output };
        steps
            .step(
                "bridge switch mongo-primary: from now on every write goes to both stores",
                flips.turn(Phase::MongoPrimary),
            )
            .await?;
        steps.step("shadow reads", self.shadow(load)).await?;
        for (phase, words) in [
            (Phase::PostgresPrimary, "bridge switch postgres-primary"),
            (Phase::MongoPrimary, "bridge switch mongo-primary: the way back"),
            (Phase::PostgresPrimary, "bridge switch postgres-primary, again"),
            (Phase::Postgres, "bridge switch postgres: the way back ends here"),
        ] {
            expect_clean(&steps.step("bridge verify", self.verify()).await?)?;
            if phase == Phase::PostgresPrimary {
                steps.step("bridge verify --reads", self.reads()).await?;
            }
            steps.step(words, flips.turn(phase)).await?;
            self.bridge.output.text(&load.text())?;
            if !load.is_at_work() {
                return Err(broken("the scheduler has ended by itself"));
            }
        }
        Ok(())
    }

    async fn fill(&self, documents: u64) -> Result<(), Failure> {
        let source = self.bridge.source().await?;
        let database = source.database();
        let bar = Bar::new("documents", documents);
        let generated = dataset::load(database, documents, SEED, |done| bar.add(done)).await?;
        drop(bar);
        let mapped = fixtures::load(database, &fixtures::mapped()?).await?;
        let quarantined = fixtures::load(database, &fixtures::quarantined()?).await?;
        fixtures::load(database, &[fixtures::largest()]).await?;
        load::rest(database).await.map_err(|error| SourceError::of("put what is old to rest", error))?;
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
        let report = Some(self.report.clone());
        let args = VerifyArgs { tolerance_seconds: Some(2), report, ..VerifyArgs::default() };
        let report = verify::verify(&args, &self.bridge).await?;
        self.bridge.output.text(&format!("\nthe report: {}", self.report.display()))?;
        self.bridge.output.object(&json!({ "report": self.report }))?;
        Ok(report)
    }

    async fn reads(&self) -> Result<Exit, Failure> {
        let args = VerifyArgs {
            reads: reads::ReadsArgs { reads: true, tenants: None },
            diffs: Some(0),
            ..VerifyArgs::default()
        };
        reads::run(&args, &self.bridge).await
    }

    async fn tamper(&self, target: &Target, documents: u64) -> Result<Tampered, Failure> {
        let tampered = Tampered::of(documents)?;
        tampered.apply(target.pool()).await.map_err(|error| TargetError::of("change three rows", error))?;
        self.bridge.output.text(&tampered.text())?;
        Ok(tampered)
    }

    async fn repair(&self, report: &Report) -> Result<(), Failure> {
        let stores = self.bridge.stores(NonZeroUsize::MIN).await?;
        let wanted = repair::Wanted { extras: Extras::Delete, yes: true };
        match repair::run(report, wanted, &stores, &self.bridge).await? {
            Exit::Clean => Ok(()),
            _ => Err(broken("the stores were not brought level")),
        }
    }

    async fn accept(&self, target: &Target) -> Result<(), Failure> {
        let entries = crate::quarantine::list(target, ENTITIES).await?;
        for entry in &entries {
            if let Some(entity) = entity::named(&entry.collection) {
                crate::quarantine::accept(target, entity, &entry.id).await?;
            }
        }
        self.bridge
            .output
            .text(&format!("{} documents stay behind in MongoDB, and are kept in the quarantine", entries.len()))
    }

    /// Waits until some reads were compared.
    async fn shadow(&self, load: &Load) -> Result<(), Failure> {
        let deadline = Instant::now() + SHADOW_WAIT;
        loop {
            match load.shadow(SHADOW_READS) {
                Some(text) => return self.bridge.output.text(&text),
                None if Instant::now() > deadline || !load.is_at_work() => {
                    return Err(broken("no read is repeated on the secondary"));
                }
                None => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
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
