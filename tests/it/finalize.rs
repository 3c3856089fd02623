//! `bridge finalize`: what it takes away, what stands in its way, and a scheduler that works on without the bridge.

mod refused;
mod schema;
mod store;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use scheduler_bridge::finalize::{self, Options};
use scheduler_bridge::layout::Layout;
use scheduler_bridge::phase::Phase;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::bed::{Bed, until};
use crate::commands::object;
use crate::dual::turn;
use crate::faults::process::Bridge;
use crate::simulate::{simulated, text};

/// Long enough for a debug build on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// How the scheduler's tables of a bed are laid out.
async fn layout(bed: &Bed) -> Layout {
    Layout::of(bed.pool()).await.expect("look at the tables")
}

/// A bed whose move is over.
async fn finalized() -> Bed {
    let bed = Bed::new().await;
    turn(&bed, Phase::Postgres, 2).await;
    finalize::run(bed.pool(), Options::default()).await.expect("finalize");
    bed
}

/// Somebody who counts who comes, in the place of a MongoDB, and never answers.
struct Nobody {
    url: String,
    came: Arc<AtomicUsize>,
}

impl Nobody {
    async fn listening() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("mongodb://{}/?replicaSet=rs0", listener.local_addr().expect("an address"));
        let came = Arc::new(AtomicUsize::new(0));
        let counted = came.clone();
        tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((connection, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                kept.push(connection);
            }
        });
        Self { url, came }
    }

    fn came(&self) -> usize {
        self.came.load(Ordering::Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scheduler_works_on_and_nobody_asks_mongodb() {
    let mut bed = Bed::new().await;
    let folder = tempfile::tempdir().expect("a folder");
    let journals = ["before", "after", "alone"].map(|name| folder.path().join(name));
    turn(&bed, Phase::Postgres, 3).await;
    let simulate = async |bed: &Bed, store: &str, journal: usize| {
        let arguments = [store, "--seconds", "4", "--journal", text(&journals[journal])];
        let (exit, totals) = simulated(bed, &arguments).await;
        assert_eq!(exit, Some(0), "{totals}");
        assert!(totals["completed"].as_u64() > Some(5), "{totals}");
    };
    simulate(&bed, "phase", 0).await;

    let mongo = Nobody::listening().await;
    // It would be found out if it were asked.
    bed.mongo_url.clone_from(&mongo.url);
    assert_eq!(object(&bed, &["verify"], 3).await["exit"], 3);
    let before = mongo.came();
    assert!(before > 0, "who asks is counted");

    let done = object(&bed, &["finalize", "--yes"], 0).await;
    assert_eq!((&done["finalized"], &done["before"]), (&json!(true), &json!(false)), "{done}");
    let references = done["references"].as_array().expect("references");
    assert!(references.len() == 5 && references.iter().all(|one| one["is_valid"] == true), "{done}");
    simulate(&bed, "phase", 1).await;
    simulate(&bed, "postgresql", 2).await;
    for store in ["phase", "postgresql"] {
        crate::simulate::assert_nothing_is_lost(&bed, store, &journals).await;
    }

    let again = object(&bed, &["finalize", "--yes"], 0).await;
    assert_eq!((&again["before"], &again["references"]), (&json!(true), &done["references"]));
    assert_eq!(object(&bed, &["finalize", "--dry-run"], 0).await["before"], true);
    assert_eq!(object(&bed, &["migrate"], 0).await["finalized"], true);
    assert_eq!(object(&bed, &["status"], 0).await["finalized"], true);
    assert_eq!(layout(&bed).await, Layout::Final, "nobody has brought anything back");
    assert_eq!(mongo.came(), before, "MongoDB was asked for something");
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_of_the_move_say_that_it_is_over() {
    let bed = finalized().await;
    bed.database.collection("locks").insert_one(bson::doc! { "_id": "one" }).await.expect("insert");
    let commands: [&[&str]; 7] = [
        &["backfill"],
        &["mirror"],
        &["verify"],
        &["switch", "postgres", "--yes"],
        &["quarantine", "list"],
        &["quarantine", "accept", "runs", "x"],
        &["stray", "list"],
    ];
    for command in commands {
        let refused = object(&bed, command, 5).await;
        assert!(refused["error"].as_str().is_some_and(|words| words.contains("the move is over")), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finalize_that_is_killed_is_finished_by_the_next() {
    let bed = Bed::new().await;
    turn(&bed, Phase::Postgres, 2).await;
    let stopped = |point: &str| {
        let mut command = bed.bridge(&["finalize", "--yes"]);
        command.env("FAILPOINTS", format!("finalize::{point}=pause"));
        Bridge::start(command)
    };
    let process = stopped("before-commit");
    let locked = "select exists (select from pg_locks where relation = 'scheduler.audit'::regclass
        and mode = 'AccessExclusiveLock' and granted)";
    until("it stands before its commit", LIMIT, async || {
        sqlx::query_scalar(locked).fetch_one(bed.pool()).await.expect("look")
    })
    .await;
    assert!(process.kill().await, "it was to be killed while it worked");
    let is_free = locked.replacen("exists", "not exists", 1);
    until("PostgreSQL has undone it", LIMIT, async || {
        let is_free = sqlx::query_scalar(sqlx::AssertSqlSafe(is_free.clone()));
        is_free.fetch_one(bed.pool()).await.expect("look")
    })
    .await;
    assert_eq!(layout(&bed).await, Layout::Moving);
    assert_eq!(object(&bed, &["finalize", "--dry-run"], 0).await["met"], true);

    let process = stopped("before-validation");
    until("it stands before the validation", LIMIT, async || layout(&bed).await == Layout::Final).await;
    assert!(process.kill().await, "it was to be killed while it worked");
    let open = "select count(*) from pg_constraint where contype = 'f' and not convalidated";
    let count = async || sqlx::query_scalar::<_, i64>(open).fetch_one(bed.pool()).await.expect("count");
    assert_eq!(count().await, 5);
    let done = object(&bed, &["finalize", "--yes"], 0).await;
    assert_eq!(done["before"], true);
    assert_eq!(count().await, 0, "{done}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_end_the_move_once() {
    let bed = Bed::new().await;
    turn(&bed, Phase::Postgres, 2).await;
    let runs = (0..3).map(|_| object(&bed, &["finalize", "--yes"], 0));
    let done: Vec<Value> = futures::future::join_all(runs).await;
    assert!(done.iter().all(|one| one["references"].as_array().map(Vec::len) == Some(5)), "{done:?}");
    assert_eq!(layout(&bed).await, Layout::Final);
}
