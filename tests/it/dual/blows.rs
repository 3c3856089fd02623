//! Flips forth and back under a scheduler that works, while everything around them falls.

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;
use scheduler_bridge::phase::Phase;
use scheduler_bridge::verify::Verdict;

use super::LIMIT;
use super::switch::{Command, WAIVED, command, followed, mended, open};
use crate::bed::{Bed, until};
use crate::faults::killed::Moments;
use crate::faults::process::Bridge;
use crate::faults::proxy::{Proxy, Weather};
use crate::simulate::{assert_nothing_is_lost, simulated, text};
use crate::verify::verify;

/// What falls.
#[derive(Debug, Clone, Copy)]
enum Blow {
    /// `kill -9` of a writer; another one takes its place.
    Writer,
    /// A writer stands still, for less or for longer than its lease.
    Pause,
    /// `kill -9` of the mirror; another one takes its place.
    Mirror,
    /// The writers' connections to PostgreSQL are cut.
    Postgres,
    /// The writers' connections to MongoDB are cut.
    Mongo,
    /// Nothing comes through to PostgreSQL for a while.
    Still,
}

const BLOWS: [Blow; 6] = [Blow::Writer, Blow::Pause, Blow::Mirror, Blow::Postgres, Blow::Mongo, Blow::Still];

/// The flips, from `mongo-primary` on.
const FLIPS: [Phase; 3] = [Phase::PostgresPrimary, Phase::MongoPrimary, Phase::PostgresPrimary];

/// Four writers behind proxies, a mirror, and their journals.
struct World<'a> {
    bed: &'a Bed,
    mongo: Proxy,
    postgres: Proxy,
    folder: tempfile::TempDir,
    journals: Vec<PathBuf>,
    writers: Vec<Bridge>,
    mirrors: Vec<Bridge>,
    moments: Moments,
}

impl World<'_> {
    fn add_writer(&mut self) {
        let journal = self.folder.path().join(self.journals.len().to_string());
        let arguments = ["simulate", "phase", "--seconds", "600", "--journal", text(&journal)];
        let mut command = self.bed.bridge(&arguments);
        command.env("BRIDGE_POSTGRES_URL", self.postgres.url(&self.bed.postgres_url));
        command.env("BRIDGE_MONGO_URL", self.mongo.url(&self.bed.mongo_url));
        self.writers.push(Bridge::start(command));
        self.journals.push(journal);
    }

    fn add_mirror(&mut self) {
        let mut command = self.bed.bridge(&["mirror"]);
        command.env("BRIDGE_LEASE_SECONDS", "2");
        self.mirrors.push(Bridge::start(command));
    }

    /// Not to wait for anything: a moment that is random.
    async fn moment(&mut self, least: u64, more: u64) {
        tokio::time::sleep(Duration::from_millis(least + self.moments.below(more))).await;
    }

    async fn strike(&mut self) {
        let blow = BLOWS[usize::try_from(self.moments.below(6)).expect("small")];
        println!("  {blow:?}");
        let writer = usize::try_from(self.moments.below(4)).expect("small");
        match blow {
            Blow::Writer => {
                self.writers.swap_remove(writer).kill().await;
                self.add_writer();
                // A process that finds a server away when it starts says so and ends.
                let journal = self.journals.last().expect("a journal");
                until("the new writer is at work", LIMIT, async || journal.exists()).await;
            }
            Blow::Pause => {
                self.writers[writer].signal(Signal::STOP);
                self.moment(500, 4_000).await;
                self.writers[writer].signal(Signal::CONT);
            }
            Blow::Mirror => {
                self.mirrors.swap_remove(0).kill().await;
                self.add_mirror();
            }
            Blow::Postgres => weather(&self.postgres, Weather::Cut).await,
            Blow::Mongo => weather(&self.mongo, Weather::Cut).await,
            Blow::Still => weather(&self.postgres, Weather::Still).await,
        }
    }

    /// Turns to `phase`, by as many commands as it takes: some of them are killed on the way.
    async fn turn(&mut self, phase: Phase) {
        println!("to {phase}");
        let process = Bridge::start(command(self.bed, &[phase.name(), "--yes", "--leave-behind"], WAIVED));
        self.moment(0, 1_500).await;
        if self.moments.below(2) == 0 {
            process.kill().await;
        } else {
            process.ended().await;
        }
        let is_made = async || open(self.bed).await == (phase == Phase::MongoPrimary, phase == Phase::PostgresPrimary);
        let deadline = tokio::time::Instant::now() + 2 * LIMIT;
        while !is_made().await {
            assert!(tokio::time::Instant::now() < deadline, "{phase} is not reached");
            let is_begun = sqlx::query_scalar("select exists (select from bridge.switch)").fetch_one(self.bed.pool());
            let how: &[&str] = match is_begun.await.expect("look") {
                true => &["--resume", "--leave-behind"],
                false => &[phase.name(), "--yes", "--leave-behind"],
            };
            let ended = Bridge::start(command(self.bed, how, WAIVED)).ended().await;
            println!("  {how:?}: {:?} {}", ended.exit, ended.stderr.lines().last().unwrap_or_default());
        }
        // What is left of it, if it died behind the commit point.
        let left = async || {
            let left = sqlx::query_scalar("select exists (select from bridge.switch)").fetch_one(self.bed.pool()).await;
            left.expect("look")
        };
        if left().await {
            mended(self.bed, Command::Resume).await;
        }
    }

    /// Finds the stores equal while nobody writes.
    async fn are_equal(&self) {
        self.writers.iter().for_each(|writer| writer.signal(Signal::STOP));
        let deadline = tokio::time::Instant::now() + LIMIT;
        loop {
            // What they had under way when they were stopped may still come through.
            crate::mirror::level(self.bed).await;
            crate::outbox::until_drained(self.bed).await;
            let report = verify(self.bed).await;
            if report.verdict == Verdict::Clean {
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "{:#?}", report.mismatches);
        }
        self.writers.iter().for_each(|writer| writer.signal(Signal::CONT));
    }

    /// One more process finishes what is left, so that nothing is written any more.
    async fn finish(&mut self, name: &str) {
        let journal = self.folder.path().join(name);
        let (exit, totals) = simulated(self.bed, &["phase", "--seconds", "1", "--journal", text(&journal)]).await;
        assert_eq!(exit, Some(0), "{totals}");
        self.journals.push(journal);
        self.journals.retain(|journal| journal.exists());
    }

    async fn goes_on(&mut self) {
        for writer in &mut self.writers {
            assert!(!writer.is_over(), "it has ended by itself:\n{}", writer.complaints());
        }
        let sum =
            || self.journals.iter().map(|journal| std::fs::metadata(journal).map_or(0, |found| found.len())).sum();
        let before: u64 = sum();
        until("the scheduler goes on", LIMIT, async || sum() > before + 5_000).await;
    }
}

async fn weather(proxy: &Proxy, weather: Weather) {
    proxy.turn(weather);
    tokio::time::sleep(Duration::from_millis(700)).await;
    proxy.turn(Weather::Fair);
}

#[tokio::test(flavor = "multi_thread")]
async fn flips_forth_and_back_lose_nothing_whatever_falls() {
    let bed = Bed::new().await;
    let mut world = World {
        mongo: Proxy::before(&bed.mongo_url).await,
        postgres: Proxy::before(&bed.postgres_url).await,
        bed: &bed,
        folder: tempfile::tempdir().expect("a folder"),
        journals: Vec::new(),
        writers: Vec::new(),
        mirrors: Vec::new(),
        moments: Moments::new(),
    };
    for _ in 0..4 {
        world.add_writer();
    }
    world.goes_on().await;
    let mirror = followed(&bed).await;
    world.mirrors.push(mirror);
    super::switch::turned(&bed, "mongo-primary").await;
    for phase in FLIPS {
        world.strike().await;
        world.turn(phase).await;
        world.strike().await;
        world.goes_on().await;
        world.are_equal().await;
    }
    for mut writer in std::mem::take(&mut world.writers) {
        assert!(!writer.is_over(), "it has ended by itself:\n{}", writer.complaints());
        writer.kill().await;
    }
    world.finish("last").await;
    assert_nothing_is_lost(&bed, "phase", &world.journals).await;
    crate::outbox::until_drained(&bed).await;
    let report = verify(&bed).await;
    assert_eq!(report.verdict, Verdict::Clean, "{:#?}", report.mismatches);
    assert_nothing_is_lost(&bed, "mongodb", &world.journals).await;
    // The end of the move.
    super::switch::turned(&bed, "postgres").await;
    world.finish("very last").await;
    assert_nothing_is_lost(&bed, "phase", &world.journals).await;
}
