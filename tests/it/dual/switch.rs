//! `bridge switch` under a scheduler that works.

use std::path::PathBuf;

use rustix::process::Signal;
use serde_json::Value;

use super::LIMIT;
use crate::bed::{Bed, until};
use crate::faults::process::Bridge;
use crate::simulate::{assert_nothing_is_lost, text};

/// Conditions that need the verifier of live stores are waived.
const WAIVED: (&str, &str) = ("FAILPOINTS", "switch::unverified=return");

/// Runs `bridge switch` with these arguments; its exit code and the objects it prints.
async fn switch(bed: &Bed, arguments: &[&str], failpoints: &str) -> (Option<i32>, Vec<Value>, String) {
    let mut command = tokio::process::Command::from(bed.bridge(&["--json", "switch"]));
    command.args(arguments).env("FAILPOINTS", failpoints).kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT * 2, command.output()).await.expect("it ends").expect("run bridge");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let objects = told.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    (output.status.code(), objects, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Turns to `phase`, which succeeds.
async fn turned(bed: &Bed, phase: &str) {
    let (exit, objects, stderr) = switch(bed, &[phase, "--yes"], WAIVED.1).await;
    assert_eq!(exit, Some(0), "{objects:#?}\n{stderr}");
    let last = objects.last().expect("an object");
    println!("{last}");
    assert_eq!(last["phase"], phase);
}

/// A copy of MongoDB that a mirror keeps level.
async fn followed(bed: &Bed) -> Bridge {
    let mut command = bed.bridge(&["--json", "backfill", "--follow"]);
    command.env("BRIDGE_LEASE_SECONDS", "2");
    let mirror = Bridge::start(command);
    until("the stores are level", LIMIT, async || mirror.has_said("\"level\":true")).await;
    mirror
}

/// A scheduler of several processes over the phase, and its journals.
struct Scheduler {
    folder: tempfile::TempDir,
    journals: Vec<PathBuf>,
    processes: Vec<Bridge>,
}

impl Scheduler {
    fn start(bed: &Bed, count: usize) -> Self {
        let mut scheduler =
            Self { folder: tempfile::tempdir().expect("a folder"), journals: Vec::new(), processes: Vec::new() };
        for _ in 0..count {
            scheduler.add(bed);
        }
        scheduler
    }

    fn add(&mut self, bed: &Bed) {
        let journal = self.folder.path().join(self.journals.len().to_string());
        let arguments = ["simulate", "phase", "--seconds", "600", "--journal", text(&journal)];
        self.processes.push(Bridge::start(bed.bridge(&arguments)));
        self.journals.push(journal);
    }

    fn acknowledged(&self) -> u64 {
        self.journals.iter().map(|journal| std::fs::metadata(journal).map_or(0, |found| found.len())).sum()
    }

    /// Waits until every process works.
    async fn at_work(&self) {
        let works = |journal: &PathBuf| std::fs::metadata(journal).is_ok_and(|found| found.len() > 2_000);
        until("everybody works", LIMIT, async || self.journals.iter().all(works)).await;
    }

    /// Waits until it has gone on.
    async fn goes_on(&self) {
        let before = self.acknowledged();
        until("the scheduler goes on", LIMIT, async || self.acknowledged() > before + 5_000).await;
    }

    /// Ends it, and finds every write that was acknowledged in the store of the phase.
    async fn nothing_is_lost(self, bed: &Bed) {
        for mut process in self.processes {
            assert!(!process.is_over(), "it has ended by itself:\n{}", process.complaints());
            process.signal(Signal::TERM);
            process.ended().await.says(130, &[]);
        }
        assert_nothing_is_lost(bed, "phase", &self.journals).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_is_switched_forth_and_back_and_forth_and_loses_nothing() {
    let bed = Bed::new().await;
    let scheduler = Scheduler::start(&bed, 4);
    scheduler.at_work().await;
    let mirror = followed(&bed).await;
    for phase in ["mongo-primary", "postgres-primary", "mongo-primary", "postgres-primary"] {
        turned(&bed, phase).await;
        scheduler.goes_on().await;
    }
    turned(&bed, "postgres").await;
    mirror.ended().await.says(5, &["phase postgres"]);
    scheduler.goes_on().await;
    scheduler.nothing_is_lost(&bed).await;
}
