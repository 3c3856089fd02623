//! A live write and the backfill at the same key at the same time: the newer one stands, whoever comes first.
//!
//! Collection `schedules`, key `k`. The document is what the backfill reads; the live write is newer than any read.

use mongodb::bson::{Document, doc};
use scheduler_bridge::backfill::{self, BackfillError, Copied, Options, Rate, Start};
use scheduler_bridge::{entity, lock};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::gate::{Gate, connect, until_bridge_waits, until_waits};
use crate::bed::Bed;
use crate::verify::stores;

/// A clock later than every oplog time.
const NEWER: i64 = i64::MAX;

/// What the application does to the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Live {
    Upsert,
    Delete,
    Quarantine,
}

const LIVE: [Live; 3] = [Live::Upsert, Live::Delete, Live::Quarantine];

impl Live {
    /// The write of the mirror, with the collection's lock as design 7 has it.
    async fn write(self, connection: &mut PgConnection) {
        let lock = if self == Self::Upsert { "pg_advisory_xact_lock_shared" } else { "pg_advisory_xact_lock" };
        let forget = "delete from bridge.quarantine where id = 'k'";
        let gone = "delete from scheduler.schedules where id = 'k'";
        let write = match self {
            Self::Upsert => format!(
                "{forget};
                insert into scheduler.schedules as t (id, tenant_id, name, epoch, clock)
                values ('k', 't', 'newer', 1, {NEWER})
                on conflict (id) do update set name = excluded.name, epoch = excluded.epoch, clock = excluded.clock
                where (t.epoch, t.clock) < (excluded.epoch, excluded.clock)"
            ),
            Self::Delete => {
                format!("{forget}; {gone}; insert into bridge.tombstone values ('schedules', 'k', 1, {NEWER})")
            }
            Self::Quarantine => format!(
                "{forget}; {gone}; insert into bridge.quarantine (collection, id, document, reason, epoch, clock)
                values ('schedules', 'k', '', 'newer', 1, {NEWER})"
            ),
        };
        let id = lock::of_collection("schedules");
        connection.execute(AssertSqlSafe(format!("select {lock}({id}); {write}"))).await.expect("the live write");
    }

    /// The key's state is the live write's.
    async fn assert_stands(self, bed: &Bed, case: &str) {
        let found: (Option<String>, i64, Option<String>) = sqlx::query_as(
            "select (select name from scheduler.schedules where id = 'k'),
                (select count(*) from bridge.tombstone where id = 'k'),
                (select reason from bridge.quarantine where id = 'k')",
        )
        .fetch_one(bed.pool())
        .await
        .expect("look at the key");
        let newer = || Some("newer".to_owned());
        let wanted = match self {
            Self::Upsert => (newer(), 0, None),
            Self::Delete => (None, 1, None),
            Self::Quarantine => (None, 0, newer()),
        };
        assert_eq!(found, wanted, "{case}: {self:?}");
    }
}

/// What the target knows of the key's neighbourhood beforehand, which decides how the backfill's batch goes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Nothing: straight into the table.
    Nothing,
    /// An older row under another key: by the staging table.
    Neighbour,
    /// An older row under the key: by the staging table.
    Older,
}

const BEFORE: [Before; 3] = [Before::Nothing, Before::Neighbour, Before::Older];

/// A bed with the document, and with the target as `before` says.
async fn bed(document: Document, before: Before) -> Bed {
    let bed = Bed::new().await;
    bed.database.collection("schedules").insert_one(document).await.expect("insert the document");
    // Beside the key, so that a batch spans a range.
    let neighbour = doc! { "_id": "j", "tenantId": "t" };
    bed.database.collection("schedules").insert_one(neighbour).await.expect("insert another");
    let older = match before {
        Before::Nothing => None,
        Before::Neighbour => Some("j"),
        Before::Older => Some("k"),
    };
    let insert = "insert into scheduler.schedules (id, tenant_id, epoch, clock) select id, 't', 1, 1 from unnest($1::text[]) as row (id)";
    sqlx::query(insert)
        .bind(older.into_iter().collect::<Vec<_>>())
        .execute(bed.pool())
        .await
        .expect("insert an older row");
    bed
}

fn regular() -> Document {
    doc! { "_id": "k", "tenantId": "t", "name": "read" }
}

/// No tenant: the backfill puts it into quarantine.
fn refused() -> Document {
    doc! { "_id": "k", "name": "read" }
}

type Running = JoinHandle<Result<Vec<Copied>, BackfillError>>;

/// The backfill of the one collection, under way.
async fn start(bed: &Bed) -> Running {
    let (source, target) = stores(bed).await;
    tokio::spawn(async move {
        let options = Options {
            entities: vec![entity::named("schedules").expect("an entity")],
            start: Start::CarryOn,
            workers: 1,
            rate: Rate::default(),
            lease: Duration::from_secs(60),
            patience: Duration::from_secs(10),
            chunk_bytes: 1_000_000,
            batch_bytes: 1_000_000,
        };
        backfill::run(&source, &target, &options, |_| (), CancellationToken::new()).await
    })
}

async fn ended(running: Running) {
    running.await.expect("a task").expect("the backfill");
}

/// The live write is done but not committed while the backfill runs into it.
async fn live_first(document: Document, live: Live, before: Before) {
    let bed = bed(document, before).await;
    let mut application = connect(&bed).await;
    let mut transaction = application.begin().await.expect("begin");
    live.write(&mut transaction).await;
    let running = start(&bed).await;
    until_bridge_waits(&bed).await;
    transaction.commit().await.expect("commit");
    ended(running).await;
    live.assert_stands(&bed, &format!("live first, {before:?}")).await;
}

/// The backfill stands at `stage`, its transaction open, while the live write comes in: it waits for the backfill, or
/// commits in its midst.
async fn backfill_first(document: Document, live: Live, before: Before, stage: &str) {
    let bed = bed(document, before).await;
    let gate = Gate::shut(&bed, stage).await;
    let running = start(&bed).await;
    until_bridge_waits(&bed).await;
    let mut application = connect(&bed).await;
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut application).await.expect("a pid");
    let session = format!("pid = {pid}");
    let mut written = tokio::spawn(async move { live.write(&mut application).await });
    // Only an upsert may pass: it shares the collection's lock. A deletion must wait until the backfill is through.
    tokio::select! {
        done = &mut written => {
            done.expect("the live write");
            assert_eq!(live, Live::Upsert, "{before:?}, {stage}: it passed the backfill's transaction");
            gate.open().await;
        }
        () = until_waits(&bed, &session) => {
            gate.open().await;
            written.await.expect("the live write");
        }
    }
    ended(running).await;
    live.assert_stands(&bed, &format!("backfill first, {before:?}, {stage}")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_write_that_commits_while_the_backfill_waits_for_it_stands() {
    for live in LIVE {
        for before in BEFORE {
            live_first(regular(), live, before).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_write_that_comes_while_the_backfill_has_not_committed_stands() {
    for live in LIVE {
        for before in BEFORE {
            let stage = "before update on bridge.chunk for each row when (new.documents > old.documents)";
            backfill_first(regular(), live, before, stage).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_write_that_comes_between_the_look_and_the_copy_stands() {
    for live in LIVE {
        for before in BEFORE {
            let stage = "before insert on scheduler.schedules for each statement";
            backfill_first(regular(), live, before, stage).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarantined_document_replaces_nothing_newer() {
    for live in LIVE {
        for before in BEFORE {
            live_first(refused(), live, before).await;
            let stage = "before update on bridge.chunk for each row when (new.documents > old.documents)";
            backfill_first(refused(), live, before, stage).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_written_while_the_sweep_waits_for_it_is_not_swept() {
    let bed = bed(doc! { "_id": "i", "tenantId": "t" }, Before::Older).await;
    let gate = Gate::shut(&bed, "before update on bridge.chunk for each row when (new.finished_at is not null)").await;
    let running = start(&bed).await;
    until_bridge_waits(&bed).await;
    let mut application = connect(&bed).await;
    let mut transaction = application.begin().await.expect("begin");
    Live::Upsert.write(&mut transaction).await;
    gate.open().await;
    let sweeps =
        "application_name = 'scheduler-bridge' and wait_event = 'advisory' and query like '%pg_advisory_xact_lock(%'";
    until_waits(&bed, sweeps).await;
    transaction.commit().await.expect("commit");
    ended(running).await;
    Live::Upsert.assert_stands(&bed, "the sweep").await;
}
