//! The backfill under blows: killed, cut off, paused, refused. The real `bridge` on real servers.

mod exhausted;
pub mod gate;
pub mod killed;
pub mod process;
pub mod proxy;
mod races;
pub mod refused;
mod restarted;

use mongodb::bson::doc;
use scheduler_bridge::dataset::{self, fixtures};
use scheduler_bridge::entity::ENTITIES;
use scheduler_bridge::verify::Verdict;
use sqlx::AssertSqlSafe;

use crate::bed::Bed;
use crate::verify::verify;

/// Fills MongoDB with `total` ordinary documents and every awkward one.
async fn fill(bed: &Bed, total: u64) {
    dataset::load(&bed.database, total, 7, |_| ()).await.expect("load documents");
    for fixtures in [fixtures::mapped(), fixtures::quarantined()] {
        fixtures::load(&bed.database, &fixtures.expect("fixtures")).await.expect("load fixtures");
    }
}

/// The stores are equal, every key is there once, and the ledger of the only backfill of each collection says so too:
/// everything finished, nothing counted twice.
async fn assert_complete(bed: &Bed) {
    let report = verify(bed).await;
    assert_eq!(report.verdict, Verdict::Clean, "{report:#?}");
    for entity in ENTITIES {
        let documents = bed.database.collection::<bson::Document>(entity.name).count_documents(doc! {}).await;
        let documents = i64::try_from(documents.expect("count documents")).expect("a count");
        let counts: (i64, i64, i64, i64, i64, i64, i64) = sqlx::query_as(AssertSqlSafe(format!(
            "select (select count(*) from scheduler.{0}),
                (select count(*) from bridge.quarantine where collection = '{0}'),
                (select count(*) from bridge.backfill where collection = '{0}'),
                (select count(*) from bridge.backfill where collection = '{0}' and finished_at is null),
                coalesce(sum(documents), 0)::bigint, coalesce(sum(rows), 0)::bigint,
                count(*) filter (where finished_at is null or holder is not null)
            from bridge.chunk where backfill in (select id from bridge.backfill where collection = '{0}')",
            entity.name
        )))
        .fetch_one(bed.pool())
        .await
        .expect("count");
        let (rows, quarantined) = (counts.0, counts.1);
        assert_eq!(rows + quarantined, documents, "{}: every key once", entity.name);
        assert_eq!(counts, (rows, quarantined, 1, 0, documents, rows, 0), "{}: the ledger", entity.name);
    }
}

/// How many documents the ledger counts.
async fn copied(bed: &Bed) -> i64 {
    let sum = sqlx::query_scalar("select coalesce(sum(documents), 0)::bigint from bridge.chunk");
    // The server may be on its way down or up.
    sum.fetch_one(bed.pool()).await.unwrap_or_default()
}
