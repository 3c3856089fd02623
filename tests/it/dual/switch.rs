//! `bridge switch` under a scheduler that works.

use std::path::PathBuf;

use rustix::process::Signal;
use scheduler_bridge::fence::mongo::MongoFence;
use scheduler_bridge::phase::Phase;
use serde_json::Value;

use super::LIMIT;
use crate::bed::{Bed, until};
use crate::faults::process::Bridge;
use crate::simulate::{assert_nothing_is_lost, text};

/// Conditions that need the verifier of live stores are waived.
pub const WAIVED: &str = "switch::unverified=return";

/// A command of an operator.
pub fn command(bed: &Bed, arguments: &[&str], failpoints: &str) -> std::process::Command {
    let mut command = bed.bridge(&["--json", "switch"]);
    command.args(arguments).env("FAILPOINTS", failpoints).env("BRIDGE_LEASE_SECONDS", "2");
    command
}

/// Runs `bridge switch` with these arguments; its exit code and the objects it prints.
async fn switch(bed: &Bed, arguments: &[&str], failpoints: &str) -> (Option<i32>, Vec<Value>, String) {
    let mut command = tokio::process::Command::from(command(bed, arguments, failpoints));
    command.kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT * 2, command.output()).await.expect("it ends").expect("run bridge");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let objects = told.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    (output.status.code(), objects, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Turns to `phase`, which succeeds once the mirror does not lag behind.
pub async fn turned(bed: &Bed, phase: &str) {
    let deadline = tokio::time::Instant::now() + LIMIT;
    let (exit, objects, stderr) = loop {
        let done = switch(bed, &[phase, "--yes"], WAIVED).await;
        let is_met = !done.2.contains("not every condition is met");
        if is_met || tokio::time::Instant::now() > deadline {
            break done;
        }
    };
    assert_eq!(exit, Some(0), "{objects:#?}\n{stderr}");
    let last = objects.last().expect("an object");
    println!("{last}");
    assert_eq!(last["phase"], phase);
}

/// A copy of MongoDB that a mirror keeps level.
pub async fn followed(bed: &Bed) -> Bridge {
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

/// Which fences are open: MongoDB's, PostgreSQL's.
pub async fn open(bed: &Bed) -> (bool, bool) {
    let mongo = MongoFence::new(&bed.database).look().await.expect("look").expect("a fence").fence.open;
    let postgres = sqlx::query_scalar("select open from bridge.fence").fetch_one(bed.pool()).await.expect("look");
    (mongo, postgres)
}

/// A switch to `to` that stands where `stands` says; begun anew as long as the gate is closed, since the mirror lags behind.
async fn standing<A: Future<Output = bool>>(bed: &Bed, to: &str, failpoints: &str, stands: impl Fn() -> A) -> Bridge {
    let begin = || Bridge::start(command(bed, &[to, "--yes"], failpoints));
    let mut process = begin();
    let look = || {
        if process.is_over() {
            assert!(process.complaints().contains("not every condition is met"), "{}", process.complaints());
            process = begin();
        }
        stands()
    };
    until("the switch stands", LIMIT, look).await;
    process
}

/// Kills a switch to `to` when it stands at `point`.
async fn killed_at(bed: &Bed, to: &str, point: &str) {
    let failpoints = format!("{WAIVED};switch::{point}=pause");
    let step = match point {
        "before-close" => "close the old primary",
        _ => "open the new primary",
    };
    let stands = async || {
        let found: Option<String> =
            sqlx::query_scalar("select step from bridge.switch").fetch_optional(bed.pool()).await.expect("look");
        let is_made = point == "before-finish" && open(bed).await == (to == "mongo-primary", to == "postgres-primary");
        found.as_deref() == Some(step) && (point != "before-finish" || is_made)
    };
    let process = standing(bed, to, &failpoints, stands).await;
    // Another operator is told so.
    let (exit, _, stderr) = switch(bed, &["--abort"], WAIVED).await;
    assert!(exit == Some(5) && stderr.contains("is under way by"), "{exit:?} {stderr}");
    assert!(process.kill().await, "it was to be killed while it worked");
}

/// What can be done with a switch that was left half way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Abort,
    Resume,
}

impl Command {
    fn flag(self) -> &'static str {
        match self {
            Self::Abort => "--abort",
            Self::Resume => "--resume",
        }
    }
}

/// Resumes or aborts a switch that nobody is at any more.
pub async fn mended(bed: &Bed, how: Command) -> (Option<i32>, Vec<Value>) {
    let deadline = tokio::time::Instant::now() + LIMIT;
    loop {
        let (exit, objects, stderr) = switch(bed, &[how.flag()], WAIVED).await;
        // Until the lease of the dead one is over.
        let is_held = stderr.contains("is under way by");
        assert!(is_held || exit == Some(0) || stderr.contains("is made"), "{stderr}");
        if !is_held {
            return (exit, objects);
        }
        assert!(tokio::time::Instant::now() < deadline, "{stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switch_that_dies_at_any_step_is_finished_or_undone_and_nothing_is_lost() {
    let bed = Bed::new().await;
    let scheduler = Scheduler::start(&bed, 2);
    scheduler.at_work().await;
    let _mirror = followed(&bed).await;
    turned(&bed, "mongo-primary").await;
    let mut phase = Phase::MongoPrimary;
    for point in ["before-close", "before-open", "before-finish"] {
        for how in [Command::Abort, Command::Resume] {
            let to = if phase == Phase::MongoPrimary { Phase::PostgresPrimary } else { Phase::MongoPrimary };
            println!("{phase} to {to}, killed {point}, {how:?}");
            killed_at(&bed, to.name(), point).await;
            let (exit, objects) = mended(&bed, how).await;
            if how == Command::Abort && point == "before-finish" {
                // The new primary is open: there is no way back but another switch.
                assert_ne!(exit, Some(0), "{objects:?}");
                assert_eq!(mended(&bed, Command::Resume).await.0, Some(0));
            }
            let is_made = how == Command::Resume || point == "before-finish";
            phase = if is_made { to } else { phase };
            assert_eq!(open(&bed).await, (phase == Phase::MongoPrimary, phase == Phase::PostgresPrimary));
            scheduler.goes_on().await;
        }
    }
    scheduler.nothing_is_lost(&bed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_switch_that_wakes_up_after_it_was_undone_opens_nothing() {
    let bed = Bed::new().await;
    let scheduler = Scheduler::start(&bed, 2);
    scheduler.at_work().await;
    let _mirror = followed(&bed).await;
    turned(&bed, "mongo-primary").await;
    for point in ["close", "open"] {
        println!("{point}");
        let slow = format!("{WAIVED};switch::before-{point}=sleep(6000)");
        let begun = async || {
            let begun = sqlx::query_scalar("select exists (select from bridge.switch where step like $1)");
            begun.bind(format!("{point}%")).fetch_one(bed.pool()).await.expect("look")
        };
        let paused = standing(&bed, "postgres-primary", &slow, begun).await;
        assert_eq!(mended(&bed, Command::Abort).await.0, Some(0));
        assert_eq!(open(&bed).await, (true, false));
        let ended = paused.ended().await;
        assert_eq!(ended.exit, Some(5), "{}", ended.stderr);
        assert_eq!(open(&bed).await, (true, false), "{}", ended.stderr);
        scheduler.goes_on().await;
    }
    scheduler.nothing_is_lost(&bed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gate_refuses_what_is_not_shown_and_ways_that_are_none() {
    let bed = Bed::new().await;
    let scheduler = Scheduler::start(&bed, 1);
    scheduler.at_work().await;
    let refused = async |arguments: &[&str], failpoints: &str, words: &str| {
        let (exit, objects, stderr) = switch(&bed, arguments, failpoints).await;
        assert!(exit == Some(5) && stderr.contains(words), "{arguments:?}: {exit:?} {objects:?} {stderr}");
    };
    refused(&["postgres-primary", "--yes"], WAIVED, "there is no way").await;
    refused(&["mongo-primary", "--yes"], WAIVED, "not every condition").await;
    refused(&["--resume"], WAIVED, "no switch is under way").await;
    let _mirror = followed(&bed).await;
    refused(&["mongo-primary"], WAIVED, "not confirmed").await;
    turned(&bed, "mongo-primary").await;
    // The verifier of live stores is not there yet.
    refused(&["postgres-primary", "--yes"], "", "not every condition").await;
    let (exit, objects, _) = switch(&bed, &["postgres-primary", "--dry-run"], "").await;
    let unmet = |object: &Value| {
        object["conditions"].as_array().map_or(0, |all| all.iter().filter(|one| one["met"] == false).count())
    };
    assert_eq!((exit, unmet(&objects[0])), (Some(5), 2), "{objects:#?}");
    scheduler.nothing_is_lost(&bed).await;
}
