//! MongoDB follows PostgreSQL: the outbox and its drain, on real servers, by the real `bridge mirror`.

mod exact;
mod guard;
mod histories;
mod killed;
mod strays;

use std::time::Duration;

use bson::{RawDocumentBuf, doc};
use scheduler_bridge::entity::{self, Entity};
use scheduler_bridge::store::{Address, Change, PostgresStore, Store, Stored};
use scheduler_bridge::target::Target;
use scheduler_bridge::verify::Verdict;
use secrecy::SecretString;

use crate::bed::{Bed, until};
use crate::faults::process::Bridge;
use crate::verify::verify;

/// Long enough for a debug build on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Puts the bed into a phase, at an epoch.
async fn turn(bed: &Bed, phase: &str, epoch: i32) {
    let turn = sqlx::query("update bridge.fence set phase = $1, epoch = $2, open = $1 like 'postgres%'");
    let turn = turn.bind(phase).bind(epoch);
    turn.execute(bed.pool()).await.expect("turn");
}

/// PostgreSQL as the primary that MongoDB follows.
pub async fn mirrored(bed: &Bed) -> PostgresStore {
    let url = SecretString::from(bed.postgres_url.as_str());
    PostgresStore::mirrored(Target::open_prepared(&url, 8).await.expect("open PostgreSQL").pool().clone())
}

/// A running `bridge mirror`.
fn mirror(bed: &Bed, variables: &[(&str, &str)]) -> Bridge {
    let mut command = bed.bridge(&["mirror"]);
    command.env("BRIDGE_LEASE_SECONDS", "2").envs(variables.iter().copied());
    Bridge::start(command)
}

/// How many entries the outbox has.
async fn left(bed: &Bed) -> i64 {
    let count = sqlx::query_scalar("select count(*) from bridge.outbox").fetch_one(bed.pool()).await;
    count.expect("count the outbox")
}

pub async fn until_drained(bed: &Bed) {
    until("the outbox is empty", LIMIT, async || left(bed).await == 0).await;
}

/// As long as `mirror` runs; what it said when it does not.
async fn until_drained_by(bed: &Bed, mut mirror: Bridge) -> Bridge {
    let drained = || {
        assert!(!mirror.is_over(), "it has ended by itself:\n{}", mirror.complaints());
        async { left(bed).await == 0 }
    };
    until("the outbox is empty", 3 * LIMIT, drained).await;
    mirror
}

async fn assert_level(bed: &Bed) {
    let report = verify(bed).await;
    assert_eq!(report.verdict, Verdict::Clean, "{report:#?}");
}

fn runs() -> &'static Entity {
    entity::named("runs").expect("runs")
}

fn run(id: &str, error: &str) -> RawDocumentBuf {
    let document = doc! { "_id": id, "tenantId": "t", "state": "queued", "error": error };
    RawDocumentBuf::try_from(&document).expect("a document")
}

async fn create(store: &PostgresStore, id: &str, error: &str) -> Stored {
    let mut after = store.apply(&[Change::create(runs(), run(id, error))]).await.expect("create");
    after.pop().expect("an after-image").stored().expect("a document")
}

async fn replace(store: &PostgresStore, id: &str, held: Stored, error: &str) -> Stored {
    let change = Change::replace(Address::new(runs(), id), held, run(id, error));
    let mut after = store.apply(&[change]).await.expect("replace");
    after.pop().expect("an after-image").stored().expect("a document")
}

async fn delete(store: &PostgresStore, id: &str, held: Stored) {
    let change = Change::Delete { address: Address::new(runs(), id), unchanged: held };
    store.apply(&[change]).await.expect("delete");
}

/// What MongoDB holds of a run in field `error`.
async fn error_of(bed: &Bed, id: &str) -> Option<String> {
    let found = bed.database.collection::<bson::Document>("runs").find_one(doc! { "_id": id }).await;
    found.expect("look into MongoDB").map(|run| run.get_str("error").expect("a text").to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_to_postgresql_arrives_in_mongodb_and_leaves_the_outbox() {
    let bed = Bed::new().await;
    turn(&bed, "postgres-primary", 2).await;
    let store = mirrored(&bed).await;
    let _mirror = mirror(&bed, &[]);
    let first = create(&store, "a", "one").await;
    let gone = create(&store, "b", "one").await;
    until("both arrived", LIMIT, async || error_of(&bed, "b").await.is_some()).await;
    replace(&store, "a", first, "two").await;
    delete(&store, "b", gone).await;
    until_drained(&bed).await;
    assert_eq!((error_of(&bed, "a").await.as_deref(), error_of(&bed, "b").await), (Some("two"), None));
    assert_level(&bed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_mirrored_phase_nothing_is_noted() {
    let bed = Bed::new().await;
    let store = PostgresStore::new(bed.pool().clone());
    let held = create(&store, "a", "one").await;
    let held = replace(&store, "a", held, "two").await;
    delete(&store, "a", held).await;
    assert_eq!(left(&bed).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_turns_round_with_the_phase_and_ends_when_nobody_follows_any_more() {
    let bed = Bed::new().await;
    let mirror = mirror(&bed, &[]);
    let begun = async || {
        let begun = sqlx::query_scalar("select exists (select from bridge.stream)").fetch_one(bed.pool()).await;
        begun.expect("look at the stream")
    };
    until("it has begun", LIMIT, begun).await;
    let documents = bed.database.collection::<RawDocumentBuf>("runs");
    documents.insert_one(run("a", "mongo")).await.expect("insert");
    let store = mirrored(&bed).await;
    let address = Address::new(runs(), "a");
    until("the row arrived", LIMIT, async || store.get(&address).await.expect("get").is_some()).await;
    turn(&bed, "postgres-primary", 2).await;
    let held = store.get(&address).await.expect("get").expect("a row");
    replace(&store, "a", held, "postgres").await;
    until("it came back", LIMIT, async || error_of(&bed, "a").await.as_deref() == Some("postgres")).await;
    until_drained(&bed).await;
    turn(&bed, "mongo-primary", 3).await;
    documents.insert_one(run("b", "mongo")).await.expect("insert");
    let address = Address::new(runs(), "b");
    until("the next row arrived", LIMIT, async || store.get(&address).await.expect("get").is_some()).await;
    assert_level(&bed).await;
    turn(&bed, "postgres", 4).await;
    mirror.ended().await.says(5, &["phase postgres"]);
}
