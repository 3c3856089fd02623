//! A scheduler that works at full speed, while everything around it falls.

use std::path::PathBuf;
use std::time::Duration;

use mongodb::bson::{Document, doc};
use scheduler_bridge::dataset::load_collection;
use scheduler_bridge::embedded::Stop;
use tempfile::TempDir;

use super::{Churn, LIMIT, assert_clean, clock, follow, level, stop};
use crate::bed::{Bed, until};
use crate::faults::killed::Moments;
use crate::faults::process::Bridge;
use crate::simulate::{assert_nothing_is_lost, simulated, text};

/// What falls.
#[derive(Debug, Clone, Copy)]
enum Blow {
    /// `kill -9` of a process that copies and mirrors.
    Bridge,
    /// PostgreSQL ends, this way, and starts again.
    Postgres(Stop),
    /// The primary becomes a secondary.
    StepDown,
    /// `kill -9` of the primary, which starts again.
    Primary,
}

/// In this order, at random moments; of the bridge's two processes a random one.
const BLOWS: [Blow; 14] = [
    Blow::Bridge,
    Blow::Bridge,
    Blow::StepDown,
    Blow::Bridge,
    Blow::Postgres(Stop::Kill),
    Blow::Bridge,
    Blow::Bridge,
    Blow::Primary,
    Blow::Bridge,
    Blow::Postgres(Stop::Fast),
    Blow::Bridge,
    Blow::StepDown,
    Blow::Bridge,
    Blow::Bridge,
];

/// A scheduler of several processes, and its journals.
struct Scheduler {
    folder: TempDir,
    journals: Vec<PathBuf>,
    processes: Vec<Bridge>,
}

const SIZE: [&str; 4] = ["--tenants", "2", "--schedules", "8"];

impl Scheduler {
    fn start(bed: &Bed, seconds: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut scheduler = Self { folder, journals: Vec::new(), processes: Vec::new() };
        for role in [["--planners", "1", "--workers", "0"], ["--planners", "0", "--workers", "2"]] {
            let journal = scheduler.journal();
            let arguments = ["simulate", "mongodb", "--seconds", seconds, "--journal", text(&journal)];
            let mut command = bed.bridge(&arguments);
            command.args(SIZE).args(role);
            scheduler.processes.push(Bridge::start(command));
        }
        scheduler
    }

    /// Whether each process has written something: one that meets a stepdown before, while it makes its indexes, says so
    /// and ends.
    fn is_at_work(&self) -> bool {
        let written = |journal: &PathBuf| std::fs::metadata(journal).is_ok_and(|journal| journal.len() > 0);
        self.journals.iter().all(written)
    }

    fn journal(&mut self) -> PathBuf {
        let journal = self.folder.path().join(self.journals.len().to_string());
        self.journals.push(journal.clone());
        journal
    }

    /// Waits for the end of every run, and compares the journals with MongoDB.
    async fn assert_nothing_is_lost(mut self, bed: &Bed) {
        for process in std::mem::take(&mut self.processes) {
            process.ended().await.says(0, &[]);
        }
        let journal = self.journal();
        let last = [&["mongodb", "--seconds", "1", "--journal", text(&journal)], &SIZE[..]].concat();
        let (exit, totals) = simulated(bed, &last).await;
        assert_eq!(exit, Some(0), "{totals}");
        let found = assert_nothing_is_lost(bed, "mongodb", &self.journals).await;
        assert!(found["runs"].as_u64() > Some(50), "{found}");
        assert_eq!(found["runs"], found["runs_over"], "{found}");
    }
}

async fn strike(blow: Blow, bed: &mut Bed, pair: &mut Vec<Bridge>, moments: &mut Moments) {
    println!("{blow:?}");
    let are_under_way = || {
        for bridge in pair.iter_mut() {
            assert!(!bridge.is_over(), "it has ended by itself:\n{}", bridge.complaints());
        }
        // A process that finds a server away when it starts says so and ends; the bridge itself dies at any moment.
        std::future::ready(matches!(blow, Blow::Bridge) || pair.iter().all(|bridge| bridge.has_said("{")))
    };
    until("both are under way", LIMIT, are_under_way).await;
    match blow {
        Blow::Bridge => {
            let victim = pair.swap_remove(usize::try_from(moments.below(2)).expect("small"));
            assert!(victim.kill().await, "it was to be killed while it worked");
            pair.push(follow(bed));
        }
        Blow::Postgres(how) => {
            bed.set().1.stop(how).await.expect("stop PostgreSQL");
            bed.set().1.start_again().await.expect("start PostgreSQL");
        }
        Blow::StepDown => {
            bed.set().0.step_down(1).await.expect("step down");
            until_primary(bed).await;
        }
        Blow::Primary => {
            let primary = bed.set().0.primary().await.expect("look").expect("a primary");
            bed.set().0.members()[primary].stop(Stop::Kill).await.expect("kill the primary");
            until_primary(bed).await;
            bed.set().0.members()[primary].start_again().await.expect("start it again");
        }
    }
}

async fn until_primary(bed: &mut Bed) {
    let set = &*bed.set().0;
    until("there is a primary", LIMIT, async || set.primary().await.expect("look").is_some()).await;
}

/// Writes much at once, for a mirror that was away: some 70,000 events, an hour of 20 a second.
async fn write_backlog(bed: &Bed) {
    load_collection(&bed.database, "impact_snapshots", (4_000, 3), |_| ()).await.expect("load");
    let runs = bed.database.collection::<Document>("runs");
    let theirs = doc! { "tenantId": { "$regex": "^tenant-" } };
    for round in 0..10 {
        let error = doc! { "$set": { "error": format!("while it was away: {round}") } };
        let updated = runs.update_many(theirs.clone(), error).await.expect("update");
        assert!(updated.modified_count > 5_000, "{updated:?}");
    }
    let audit = bed.database.collection::<Document>("audit");
    audit.delete_many(doc! { "_id": { "$regex": "^audit_" } }).await.expect("delete");
    // Of the deleted ones a third comes back, different.
    load_collection(&bed.database, "audit", (2_000, 9), |_| ()).await.expect("load");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_at_full_speed_is_followed_through_blows_and_a_backlog() {
    let (mut bed, mut moments) = (Bed::with_own_set().await, Moments::new());
    load_collection(&bed.database, "runs", (6_000, 1), |_| ()).await.expect("load");
    load_collection(&bed.database, "audit", (6_000, 1), |_| ()).await.expect("load");
    let scheduler = Scheduler::start(&bed, "35");
    let churn = Churn::start(&bed, moments.clone());
    let mut pair = vec![follow(&bed), follow(&bed)];
    until("the mirror is at work", LIMIT, async || clock(&bed).await.is_some()).await;
    until("the scheduler is at work", LIMIT, async || scheduler.is_at_work()).await;
    for blow in BLOWS {
        // Not to wait for anything: the moment of the blow is what is random.
        tokio::time::sleep(Duration::from_millis(200 + moments.below(1_000))).await;
        strike(blow, &mut bed, &mut pair, &mut moments).await;
    }
    until("somebody says that it is level", LIMIT, async || pair.iter().any(|one| one.has_said("\"level\":true")))
        .await;
    for bridge in pair.drain(..) {
        assert!(bridge.kill().await, "it was to be killed while it worked");
    }
    write_backlog(&bed).await;
    pair = vec![follow(&bed), follow(&bed)];
    scheduler.assert_nothing_is_lost(&bed).await;
    assert!(churn.end().await > 100);
    level(&bed).await;
    for bridge in pair {
        until("it says that it is level", LIMIT, async || bridge.has_said("\"level\":true")).await;
        stop(bridge).await;
    }
    assert_clean(&bed).await;
}
