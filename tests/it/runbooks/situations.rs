//! What has happened when an operator opens a runbook, and what happens while he is at it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bson::{Document, doc};
use rustix::process::Signal;
use scheduler_bridge::dataset;
use sqlx::{AssertSqlSafe, Executor};

use super::LIMIT;
use crate::bed::{Bed, until};
use crate::dual::switch::{followed, objects, standing, step, turned};
use crate::faults::process::Bridge;

/// The conditions of the gate are real, but for that on clients: other tests' use the same server.
pub const WAIVED: &str = "switch::clients=return";

/// The application's settings, as a runbook names them. Nobody here gives up while an operator thinks.
const SETTINGS: &str = "[backend]\nshadow-fraction = 0\nswitch-wait-seconds = 300\n";

/// What has happened so far.
pub struct Situation<'a> {
    bed: &'a Bed,
    folder: tempfile::TempDir,
    /// The application.
    scheduler: Option<Bridge>,
    /// The mirror that ran before the runbook was opened.
    mirror: Option<Bridge>,
    /// What the operator has started and not ended.
    beside: Vec<Bridge>,
}

impl<'a> Situation<'a> {
    /// Nothing has happened.
    pub fn new(bed: &'a Bed) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self { bed, folder, scheduler: None, mirror: None, beside: Vec::new() }
    }

    /// Where the operator is.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A command of the operator goes on.
    pub fn beside(&mut self, process: Bridge) {
        self.beside.push(process);
    }

    /// Ends everything. The application has worked on whatever the operator did.
    pub async fn ends(mut self) {
        if self.scheduler.is_some() {
            self.application_stops().await;
        }
    }

    /// Brings a situation about; it is there when this returns.
    pub async fn bring_about(&mut self, name: &str) {
        match name {
            "MongoDB is full of documents" => self.documents().await,
            "an application works" => self.application().await,
            "the application stops" => self.application_stops().await,
            "a mirror runs" => self.mirror = Some(followed(self.bed).await),
            "the mirror is killed" => self.mirror_is_killed().await,
            "the phase is mongo-primary" => turned(self.bed, "mongo-primary").await,
            "the phase is postgres-primary" => turned(self.bed, "postgres-primary").await,
            "the stores were verified" => self.verified().await,
            "Ctrl-C" => self.interrupted().await,
            "a day goes by" => {
                self.sql("update bridge.phase_history set turned_at = turned_at - interval '25 hours'").await;
            }
            "the mirror ends by itself" => {
                self.mirror.take().expect("a mirror").ended().await.says(5, &["phase postgres"]);
            }
            "a row is changed" => {
                self.sql("update scheduler.schedules set name = 'changed' where id = (select min(id) from scheduler.schedules)")
                    .await;
            }
            "a row is put where there is no document" => {
                self.sql(
                    "insert into scheduler.runs (id, tenant_id, state, epoch, clock) \
                     select 'nobody-wrote-this', min(tenant_id), 'planning', 1, 1 from scheduler.schedules",
                )
                .await;
            }
            "a document is written that cannot become a row" => self.unfit().await,
            "the document is repaired" => self.repaired().await,
            "somebody writes to MongoDB" => self.stray().await,
            "a switch to postgres-primary is killed" => self.half_way("postgres-primary").await,
            "a switch to mongo-primary is killed" => self.half_way("mongo-primary").await,
            _ => panic!("no situation {name:?}"),
        }
    }

    async fn documents(&self) {
        dataset::load(&self.bed.database, 500, 7, |_| ()).await.expect("load");
        self.unfit_document("order-4711").await;
    }

    /// A document in a state that no run has.
    async fn unfit_document(&self, id: &str) {
        let document = doc! { "_id": id, "tenantId": "t", "state": "dispatching" };
        self.runs().insert_one(document).await.expect("insert");
    }

    fn runs(&self) -> mongodb::Collection<Document> {
        self.bed.database.collection("runs")
    }

    /// One process that works moderately: what is rehearsed are the commands, not the load.
    async fn application(&mut self) {
        let file = |name: &str| self.folder().join(name);
        std::fs::write(file("scheduler.toml"), SETTINGS).expect("write the settings");
        let journal = file("journal");
        let mut command = std::process::Command::new("sh");
        let line = "echo $$ > scheduler.pid; exec bridge simulate phase --config scheduler.toml --seconds 3600 \
                    --schedules 2 --workers 1 --journal journal 2> scheduler.log";
        super::aimed(&mut command, self.bed, self.folder());
        command.env("BRIDGE_LOG", "warn,scheduler_bridge::cli=info").args(["-c", line]);
        let process = Bridge::start(command);
        works(&journal, 2_000, || file("scheduler.log")).await;
        self.scheduler = Some(process);
    }

    /// It is there until now, goes on, and ends as an application does.
    async fn application_stops(&mut self) {
        let (journal, log) = (self.folder().join("journal"), self.folder().join("scheduler.log"));
        let mut process = self.scheduler.take().expect("an application");
        works(&journal, length(&journal) + 1_000, || log.clone()).await;
        assert!(!process.is_over(), "it has ended by itself");
        process.signal(Signal::TERM);
        let ended = process.ended().await;
        assert_eq!(ended.exit, Some(130), "{}", std::fs::read_to_string(&log).unwrap_or_default());
    }

    async fn mirror_is_killed(&mut self) {
        let mirror = self.mirror.take().expect("a mirror");
        assert!(mirror.kill().await, "it was to be killed while it worked");
        self.holds("select leased_until < clock_timestamp() from bridge.stream").await;
    }

    async fn verified(&self) {
        for arguments in [&["--json", "verify"][..], &["--json", "verify", "--reads"]] {
            let (exit, found, stderr) = objects(self.bed.bridge(arguments)).await;
            assert_eq!(exit, Some(0), "{found:?} {stderr}");
        }
    }

    /// At the terminal of the command that was started last.
    async fn interrupted(&mut self) {
        let process = self.beside.pop().expect("a command that goes on");
        process.signal(Signal::INT);
        let ended = process.ended().await;
        assert!(matches!(ended.exit, Some(0 | 130)), "{ended:?}");
    }

    async fn unfit(&self) {
        self.unfit_document("order-4712").await;
        self.holds("select exists (select from bridge.quarantine where id = 'order-4712')").await;
    }

    async fn repaired(&self) {
        let repair = doc! { "$set": { "state": "queued" } };
        self.runs().update_many(doc! { "state": "dispatching" }, repair).await.expect("update");
        if self.mirror.is_some() || !self.beside.is_empty() {
            self.holds("select not exists (select from bridge.quarantine)").await;
        }
    }

    async fn stray(&self) {
        let document = doc! { "_id": "by-hand", "tenantId": "t", "state": "queued" };
        self.runs().insert_one(document).await.expect("insert");
        self.holds("select exists (select from bridge.stray where id = 'by-hand')").await;
    }

    /// Killed when both fences are closed, a moment before the new primary would be opened. Nobody holds it any more.
    async fn half_way(&self, to: &str) {
        let stands = async || step(self.bed).await.expect("look").as_deref() == Some("open the new primary");
        let switch = standing(self.bed, to, &format!("{WAIVED};switch::before-open=pause"), stands).await;
        assert!(switch.kill().await, "it was to be killed while it worked");
        self.holds("select leased_until < clock_timestamp() from bridge.switch").await;
    }

    async fn sql(&self, statement: &'static str) {
        let done = self.bed.pool().execute(statement).await.expect(statement);
        assert!(done.rows_affected() > 0, "{statement}");
    }

    /// Waits until that query says so.
    async fn holds(&self, query: &str) {
        let look = async || {
            let found = sqlx::query_scalar(AssertSqlSafe(query.to_owned())).fetch_optional(self.bed.pool()).await;
            found.expect("look").unwrap_or(false)
        };
        until(query, LIMIT, look).await;
    }
}

fn length(file: &Path) -> u64 {
    std::fs::metadata(file).map_or(0, |found| found.len())
}

/// Waits until the application's journal is that long.
async fn works(journal: &Path, bytes: u64, log: impl Fn() -> PathBuf) {
    let deadline = tokio::time::Instant::now() + LIMIT;
    while length(journal) < bytes {
        let complaints = || std::fs::read_to_string(log()).unwrap_or_default();
        assert!(tokio::time::Instant::now() < deadline, "the application does not work:\n{}", complaints());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
