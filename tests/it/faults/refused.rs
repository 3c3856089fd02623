//! A batch that PostgreSQL refuses is split down to the document that is to blame.

use mongodb::bson::doc;
use scheduler_bridge::verify::Verdict;
use sqlx::Executor;

use super::process::Bridge;
use crate::bed::Bed;
use crate::verify::verify;

/// One document each for a function that raises (class P0) and for a check (class 23).
pub const OBSTACLES: &str = "create function public.refuse() returns trigger language plpgsql as
    'begin if new.id = ''run-b'' then raise exception ''not this one''; end if; return new; end';
    create trigger refuse before insert on scheduler.runs for each row execute function public.refuse();
    alter table scheduler.runs add constraint no_c check (id <> 'run-c')";

/// Takes them away.
pub const NO_OBSTACLES: &str = "drop trigger refuse on scheduler.runs; alter table scheduler.runs drop constraint no_c";

async fn quarantined(bed: &Bed) -> Vec<(String, String)> {
    let query = "select id, reason from bridge.quarantine order by id";
    sqlx::query_as(query).fetch_all(bed.pool()).await.expect("read the quarantine")
}

async fn backfill(bed: &Bed) {
    Bridge::backfill(bed, &[]).ended().await.says(0, &[]);
    assert_eq!(verify(bed).await.verdict, Verdict::Clean);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_documents_that_postgres_refuses_are_quarantined_and_a_later_backfill_frees_them() {
    let bed = Bed::new().await;
    scheduler_bridge::dataset::load_collection(&bed.database, "runs", (500, 1), |_| ()).await.expect("load");
    let bad = ["run-b", "run-c"].map(|id| doc! { "_id": id, "tenantId": "t", "state": "queued" });
    bed.database.collection("runs").insert_many(bad).await.expect("insert");
    bed.pool().execute(OBSTACLES).await.expect("make the obstacles");
    backfill(&bed).await;
    let found = quarantined(&bed).await;
    let ids: Vec<_> = found.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, ["run-b", "run-c"], "{found:#?}");
    for ((_, reason), word) in found.iter().zip(["not this one", "no_c"]) {
        assert!(reason.starts_with("PostgreSQL refused it") && reason.contains(word), "{reason}");
    }
    bed.pool().execute(NO_OBSTACLES).await.expect("remove the obstacles");
    backfill(&bed).await;
    assert_eq!(quarantined(&bed).await, []);
    let rows = sqlx::query_scalar::<_, i64>("select count(*) from scheduler.runs").fetch_one(bed.pool()).await;
    assert_eq!(rows.expect("count"), 502);
}
