//! `bridge switch` under a scheduler that works.

use std::path::PathBuf;

use rustix::process::Signal;
use scheduler_bridge::fence::mongo::MongoFence;
use scheduler_bridge::phase::Phase;
use scheduler_bridge::scheduler::Error;
use scheduler_bridge::verify::Verdict;
use serde_json::Value;

use super::{LIMIT, backends, connect};
use crate::bed::{Bed, until};
use crate::faults::process::Bridge;
use crate::faults::proxy::{Proxy, Weather};
use crate::simulate::{assert_nothing_is_lost, text};
use crate::stores::samples::run;

/// Conditions that need the verifier of live stores are waived, and that on clients: the server is other tests' as well.
pub const WAIVED: &str = "switch::unverified=return;switch::clients=return";

/// A command of an operator.
pub fn command(bed: &Bed, arguments: &[&str], failpoints: &str) -> std::process::Command {
    let mut command = bed.bridge(&["--json", "switch"]);
    command.args(arguments).env("FAILPOINTS", failpoints).env("BRIDGE_LEASE_SECONDS", "2");
    command
}

/// Runs `bridge switch` with these arguments; its exit code and the objects it prints.
async fn switch(bed: &Bed, arguments: &[&str], failpoints: &str) -> (Option<i32>, Vec<Value>, String) {
    objects(command(bed, arguments, failpoints)).await
}

/// Runs a command; its exit code and the objects it prints.
pub async fn objects(command: std::process::Command) -> (Option<i32>, Vec<Value>, String) {
    let mut command = tokio::process::Command::from(command);
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
        let done = switch(bed, &[phase, "--yes", "--soak-seconds", "0", "--no-way-back"], WAIVED).await;
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
pub struct Scheduler {
    folder: tempfile::TempDir,
    journals: Vec<PathBuf>,
    processes: Vec<Bridge>,
}

impl Scheduler {
    pub fn start(bed: &Bed, count: usize) -> Self {
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

    /// How many writes were acknowledged.
    pub fn writes(&self) -> usize {
        let lines = |journal: &PathBuf| {
            std::fs::read(journal).map_or(0, |found| found.iter().filter(|byte| **byte == b'\n').count())
        };
        self.journals.iter().map(lines).sum()
    }

    /// Waits until every process works.
    pub async fn at_work(&mut self) {
        let works = |journal: &PathBuf| std::fs::metadata(journal).is_ok_and(|found| found.len() > 2_000);
        let all_work = || {
            for process in &mut self.processes {
                assert!(!process.is_over(), "it has ended by itself:\n{}", process.complaints());
            }
            std::future::ready(self.journals.iter().all(works))
        };
        until("everybody works", LIMIT, all_work).await;
    }

    /// Waits until it has gone on.
    pub async fn goes_on(&self) {
        let before = self.acknowledged();
        until("the scheduler goes on", LIMIT, async || self.acknowledged() > before + 5_000).await;
    }

    /// Ends it.
    pub async fn stop(self) {
        for process in self.processes {
            process.signal(Signal::TERM);
            process.ended().await.says(130, &[]);
        }
    }

    /// Ends it, and finds every write that was acknowledged in the store of the phase.
    pub async fn nothing_is_lost(self, bed: &Bed) {
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
    let mut scheduler = Scheduler::start(&bed, 4);
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
pub async fn standing<A: Future<Output = bool>>(
    bed: &Bed,
    to: &str,
    failpoints: &str,
    stands: impl Fn() -> A,
) -> Bridge {
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

/// The last step of the switch that is under way.
pub async fn step(bed: &Bed) -> sqlx::Result<Option<String>> {
    sqlx::query_scalar("select step from bridge.switch").fetch_optional(bed.pool()).await
}

/// Kills a switch to `to` when it stands at `point`.
async fn killed_at(bed: &Bed, to: &str, point: &str) {
    let failpoints = format!("{WAIVED};switch::{point}=pause");
    let name = match point {
        "before-close" => "close the old primary",
        "before-wait" => "wait for the application's processes",
        "before-level" => "bring the new primary level",
        _ => "open the new primary",
    };
    let stands = async || {
        let found = step(bed).await.expect("look");
        let is_made = point == "before-finish" && open(bed).await == (to == "mongo-primary", to == "postgres-primary");
        found.as_deref() == Some(name) && (point != "before-finish" || is_made)
    };
    let process = standing(bed, to, &failpoints, stands).await;
    // However long other operators take on a busy machine, it is not over before they have been told.
    lease(bed, LIMIT.as_secs_f64()).await;
    for arguments in [&["--abort"][..], &["--resume"], &["postgres-primary", "--yes"], &["mongo-primary", "--yes"]] {
        let (exit, _, stderr) = switch(bed, arguments, WAIVED).await;
        // Whatever they want, and whatever of it is found first.
        let words = ["is under way by", "a switch has ended half way", "there is no way", "not every condition is met"];
        assert!(exit == Some(5) && words.iter().any(|word| stderr.contains(word)), "{exit:?} {stderr}");
    }
    assert!(process.kill().await, "it was to be killed while it worked");
    lease(bed, 0.0).await;
}

/// Has the lease of the switch that is under way end in so many seconds.
async fn lease(bed: &Bed, seconds: f64) {
    let leased = "update bridge.switch set leased_until = clock_timestamp() + make_interval(secs => $1)";
    let leased = sqlx::query(leased).bind(seconds).execute(bed.pool()).await.expect("set the lease");
    assert_eq!(leased.rows_affected(), 1, "a switch is under way");
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
    let mut scheduler = Scheduler::start(&bed, 2);
    scheduler.at_work().await;
    let _mirror = followed(&bed).await;
    turned(&bed, "mongo-primary").await;
    let mut phase = Phase::MongoPrimary;
    for point in ["before-close", "before-wait", "before-level", "before-open", "before-finish"] {
        for how in [Command::Abort, Command::Resume] {
            let to = if phase == Phase::MongoPrimary { Phase::PostgresPrimary } else { Phase::MongoPrimary };
            // PostgreSQL's fence waits for nobody.
            let point = if to == Phase::MongoPrimary { point.replace("wait", "level") } else { point.to_owned() };
            let point = point.as_str();
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

/// The epochs of both fences together.
async fn epochs(bed: &Bed) -> i32 {
    let mongo = MongoFence::new(&bed.database).look().await.expect("look").expect("a fence").fence.epoch;
    let postgres: i32 = sqlx::query_scalar("select epoch from bridge.fence").fetch_one(bed.pool()).await.expect("look");
    mongo + postgres
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abort_that_dies_half_way_can_only_be_completed() {
    let bed = Bed::new().await;
    let mut scheduler = Scheduler::start(&bed, 2);
    scheduler.at_work().await;
    let _mirror = followed(&bed).await;
    turned(&bed, "mongo-primary").await;
    for (from, to) in [("mongo-primary", "postgres-primary"), ("postgres-primary", "mongo-primary")] {
        let is_open = (from == "mongo-primary", from == "postgres-primary");
        for how in [Command::Abort, Command::Resume] {
            println!("{from}, {how:?}");
            killed_at(&bed, to, "before-open").await;
            let before = epochs(&bed).await;
            let failpoints = format!("{WAIVED};switch::before-reopen=pause");
            let mut process = Bridge::start(command(&bed, &["--abort"], &failpoints));
            let stands = || {
                if process.is_over() {
                    // The lease of the one that was killed is not over yet.
                    process = Bridge::start(command(&bed, &["--abort"], &failpoints));
                }
                async { epochs(&bed).await > before }
            };
            until("the abort stands", LIMIT, stands).await;
            assert!(process.kill().await, "it was to be killed while it worked");
            assert_eq!(open(&bed).await, (false, false));
            let deadline = tokio::time::Instant::now() + LIMIT;
            loop {
                let (exit, _, stderr) = switch(&bed, &[how.flag()], WAIVED).await;
                if !stderr.contains("is under way by") {
                    // Whoever would finish it is told that it was undone.
                    assert_eq!(exit, Some(if how == Command::Abort { 0 } else { 5 }), "{stderr}");
                    break;
                }
                assert!(tokio::time::Instant::now() < deadline, "{stderr}");
            }
            assert_eq!(open(&bed).await, is_open);
            scheduler.goes_on().await;
        }
        turned(&bed, to).await;
    }
    scheduler.nothing_is_lost(&bed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_switch_that_wakes_up_after_it_was_undone_opens_nothing() {
    let bed = Bed::new().await;
    let mut scheduler = Scheduler::start(&bed, 2);
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
    let mut scheduler = Scheduler::start(&bed, 1);
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
    let (exit, objects, _) = switch(&bed, &["postgres-primary", "--dry-run"], "switch::clients=return").await;
    let unmet = |object: &Value| {
        object["conditions"].as_array().map_or(0, |all| all.iter().filter(|one| one["met"] == false).count())
    };
    assert_eq!((exit, unmet(&objects[0])), (Some(5), 2), "{objects:#?}");
    scheduler.nothing_is_lost(&bed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_stands_still_is_named_and_left_behind_only_when_the_operator_says_so() {
    let bed = Bed::new().await;
    let mut scheduler = Scheduler::start(&bed, 2);
    scheduler.at_work().await;
    let _mirror = followed(&bed).await;
    turned(&bed, "mongo-primary").await;
    let asleep = scheduler.processes.pop().expect("a process");
    let pid = asleep.pid().expect("it runs");
    asleep.signal(Signal::STOP);
    let (exit, _, stderr) = switch(&bed, &["postgres-primary", "--yes", "--silent-seconds", "1"], WAIVED).await;
    assert!(exit == Some(5) && stderr.contains(&format!("/{pid}")), "{stderr}");
    assert_eq!(open(&bed).await, (true, false));
    scheduler.goes_on().await;
    let arguments = ["postgres-primary", "--yes", "--silent-seconds", "1", "--leave-behind"];
    let (exit, objects, stderr) = switch(&bed, &arguments, WAIVED).await;
    assert_eq!(exit, Some(0), "{objects:?} {stderr}");
    assert_eq!(open(&bed).await, (false, true));
    scheduler.goes_on().await;
    // It wakes up, and finds its way to the new primary.
    asleep.signal(Signal::CONT);
    scheduler.processes.push(asleep);
    scheduler.goes_on().await;
    scheduler.nothing_is_lost(&bed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_process_that_was_left_behind_writes_late_is_acknowledged_to_nobody_and_undone() {
    let bed = Bed::new().await;
    let proxy = Proxy::before(&bed.mongo_url).await;
    let mut backends = backends(&bed);
    backends.mongo = Some((proxy.url(&bed.mongo_url).into(), bed.database.name().to_owned()));
    let connected = connect(&backends).await;
    let create = async |id: &str| connected.scheduler.runs.create(&run("a", id)).await;
    create("kept").await.expect("create");
    let mirror = followed(&bed).await;
    turned(&bed, "mongo-primary").await;
    create("also kept").await.expect("create");
    // What it sends from now on is on its way, and arrives when it has been left behind.
    proxy.turn(Weather::Still);
    let late = create("late");
    let left_behind = async {
        let arguments = ["postgres-primary", "--yes", "--silent-seconds", "0", "--leave-behind"];
        let (exit, objects, stderr) = switch(&bed, &arguments, WAIVED).await;
        assert_eq!(exit, Some(0), "{objects:?} {stderr}");
        proxy.turn(Weather::Fair);
    };
    let (late, ()) = tokio::join!(late, left_behind);
    assert!(matches!(late, Err(Error::Unavailable { .. })), "{late:?}");
    let stray = "select exists (select from bridge.stray where collection = 'runs' and id = 'late')";
    until("it is found to be stray", LIMIT, async || {
        sqlx::query_scalar(stray).fetch_one(bed.pool()).await.expect("look")
    })
    .await;
    assert!(mirror.complaints().contains("stray write"), "{}", mirror.complaints());
    // It finds its way to the new primary.
    create("next").await.expect("create");
    crate::mirror::level(&bed).await;
    crate::outbox::until_drained(&bed).await;
    assert_eq!(crate::mirror::ids(&bed, "runs").await, ["also kept", "kept", "next"]);
    let report = crate::verify::verify(&bed).await;
    assert_eq!(report.verdict, Verdict::Clean, "{report:#?}");
    connected.close().await;
}
