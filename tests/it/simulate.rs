//! `bridge simulate` on each store: a scheduler that works, is killed in parts, and loses nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::bed::Bed;
use crate::faults::killed::Moments;
use crate::faults::process::Bridge;

const STORES: [&str; 2] = ["mongodb", "postgresql"];

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

/// Runs `bridge simulate` to its end; the object it prints.
pub async fn simulated(bed: &Bed, arguments: &[&str]) -> (Option<i32>, Value) {
    let mut command = tokio::process::Command::from(bed.bridge(&["--json", "simulate"]));
    let output = command.args(arguments).kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(600), output).await.expect("it ends").expect("run bridge");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let object = told.lines().last().and_then(|line| serde_json::from_str(line).ok());
    (output.status.code(), object.unwrap_or_else(|| panic!("{told}\n{}", String::from_utf8_lossy(&output.stderr))))
}

/// The store holds every write that the journals acknowledge.
pub async fn assert_nothing_is_lost(bed: &Bed, store: &str, journals: &[PathBuf]) -> Value {
    let mut arguments = vec![store, "--check"];
    arguments.extend(journals.iter().map(|path| text(path)));
    let (exit, found) = simulated(bed, &arguments).await;
    assert_eq!((exit, &found["faults"]), (Some(0), &Value::Array(Vec::new())), "{store}: {found}");
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_seconds_go_from_schedules_to_summaries_on_each_store() {
    let folder = tempfile::tempdir().expect("a folder");
    let one = async |store: &'static str| {
        let bed = Bed::new().await;
        let journal = folder.path().join(store);
        let (exit, totals) = simulated(&bed, &[store, "--seconds", "30", "--journal", text(&journal)]).await;
        assert_eq!(exit, Some(0), "{store}: {totals}");
        let total = |name: &str| totals[name].as_u64().expect(name);
        // Two tenants with five schedules, each every other second; a busy machine lets some fall together.
        assert!(total("fired") >= 50, "{store}: {totals}");
        assert_eq!((total("planned"), total("completed")), (total("fired"), total("fired")), "{store}: {totals}");
        assert_eq!(total("executed"), 3 * total("fired"), "{store}: {totals}");
        let found = assert_nothing_is_lost(&bed, store, &[journal]).await;
        assert_eq!(
            (found["runs"].as_u64(), found["runs_over"].as_u64()),
            (totals["fired"].as_u64(), totals["fired"].as_u64())
        );
        assert_end_to_end(&bed, store, total("fired")).await;
        bed
    };
    // No bed is dropped before both are done with: see there.
    let _beds = tokio::join!(one(STORES[0]), one(STORES[1]));
}

/// Logs, snapshots, jobs, summaries and audit of all runs are there.
async fn assert_end_to_end(bed: &Bed, store: &str, runs: u64) {
    let expected =
        [("execution_logs", 15), ("impact_snapshots", 1), ("policy_jobs", 2), ("graph_jobs", 1), ("audit", 6)];
    for (entity, each) in expected {
        let count = match store {
            "mongodb" => {
                let collection = bed.database.collection::<bson::Document>(entity);
                collection.count_documents(bson::doc! {}).await.expect("count")
            }
            _ => {
                let sql = format!("select count(*) from scheduler.{entity}");
                let count: i64 =
                    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(bed.pool()).await.expect("count");
                u64::try_from(count).expect("a count")
            }
        };
        assert_eq!(count, runs * each, "{store}: {entity}");
    }
    let total = match store {
        "mongodb" => {
            let summaries = bed.database.collection::<bson::Document>("run_summaries");
            let group = bson::doc! { "$group": { "_id": 1, "n": { "$sum": "$counters.completed" } } };
            let mut found = summaries.aggregate([group]).await.expect("aggregate");
            assert!(found.advance().await.expect("read"));
            i64::from(found.current().get_i32("n").expect("a sum"))
        }
        _ => {
            let sql = "select sum((counters ->> 'completed')::bigint)::bigint from scheduler.run_summaries";
            sqlx::query_scalar(sql).fetch_one(bed.pool()).await.expect("sum")
        }
    };
    assert_eq!(u64::try_from(total).expect("a count"), runs, "{store}: summaries");
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_planners_and_workers_loses_nothing_and_runs_nothing_twice() {
    let folder = tempfile::tempdir().expect("a folder");
    let one = async |store: &'static str| {
        let bed = Bed::new().await;
        let mut moments = Moments::new();
        let mut journals = Vec::new();
        let mut start = |role: [&str; 4]| {
            let journal = folder.path().join(format!("{store}-{}", journals.len()));
            let mut command = bed.bridge(&["simulate", store, "--seconds", "60", "--journal", text(&journal)]);
            command.args(role);
            journals.push(journal);
            Bridge::start(command)
        };
        const PLANNER: [&str; 4] = ["--planners", "1", "--workers", "0"];
        const WORKER: [&str; 4] = ["--planners", "0", "--workers", "2"];
        let mut running = vec![(PLANNER, start(PLANNER)), (WORKER, start(WORKER)), (WORKER, start(WORKER))];
        for _ in 0..12 {
            // Not to wait for anything: the moment of the blow is what is random.
            tokio::time::sleep(Duration::from_millis(300 + moments.below(1_200))).await;
            let index = usize::try_from(moments.below(3)).expect("a small number");
            let (role, victim) = running.swap_remove(index);
            assert!(victim.kill().await, "{store}: it was to be killed while it worked");
            running.push((role, start(role)));
        }
        for (_, process) in running {
            process.kill().await;
        }
        // One more finishes what is left.
        let last = folder.path().join(format!("{store}-last"));
        let (exit, totals) = simulated(&bed, &[store, "--seconds", "1", "--journal", text(&last)]).await;
        assert_eq!(exit, Some(0), "{store}: {totals}");
        journals.push(last);
        // A process that was killed before it began has none.
        journals.retain(|journal| journal.exists());
        let found = assert_nothing_is_lost(&bed, store, &journals).await;
        assert!(found["runs"].as_u64() > Some(20), "{store}: {found}");
        assert_eq!(found["runs"], found["runs_over"], "{store}: {found}");
        bed
    };
    let _beds = tokio::join!(one(STORES[0]), one(STORES[1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_is_missing_or_was_set_back_is_found() {
    let folder = tempfile::tempdir().expect("a folder");
    for store in STORES {
        let bed = Bed::new().await;
        let journal = folder.path().join(store);
        let arguments = [store, "--seconds", "2", "--tenants", "1", "--schedules", "2", "--journal", text(&journal)];
        assert_eq!(simulated(&bed, &arguments).await.0, Some(0));
        match store {
            "mongodb" => {
                let runs = bed.database.collection::<bson::Document>("runs");
                let set = bson::doc! { "$set": { "state": "queued" } };
                runs.update_one(bson::doc! {}, set).await.expect("set back");
                let audit = bed.database.collection::<bson::Document>("audit");
                audit.delete_one(bson::doc! {}).await.expect("delete");
            }
            _ => {
                let set =
                    "update scheduler.runs set state = 'queued' where id = (select id from scheduler.runs limit 1);
                    delete from scheduler.audit where id = (select id from scheduler.audit limit 1)";
                sqlx::raw_sql(set).execute(bed.pool()).await.expect("damage");
            }
        }
        let (exit, found) = simulated(&bed, &[store, "--tenants", "1", "--check", text(&journal)]).await;
        let faults = found["faults"].as_array().expect("faults");
        let has = |words: &str| faults.iter().any(|fault| fault.as_str().expect("a text").contains(words));
        assert_eq!(exit, Some(1), "{store}: {found}");
        assert!(has("state was acknowledged as") && has("not in the store"), "{store}: {found}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_in_use_is_refused_and_left_as_it_is() {
    let bed = Bed::new().await;
    scheduler_bridge::dataset::load(&bed.database, 200, 7, |_| ()).await.expect("load documents");
    let before = bed.database.collection::<bson::Document>("schedules").count_documents(bson::doc! {}).await;
    let (exit, told) = simulated(&bed, &["mongodb", "--seconds", "1"]).await;
    assert_eq!(exit, Some(5), "{told}");
    assert!(told["error"].as_str().expect("an error").contains("the store is in use"), "{told}");
    let after = bed.database.collection::<bson::Document>("schedules").count_documents(bson::doc! {}).await;
    assert_eq!(before.expect("count"), after.expect("count"));
}
