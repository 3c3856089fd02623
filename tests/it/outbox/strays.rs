//! Writes to MongoDB while it follows, by others than the drain.

use bson::{RawDocumentBuf, doc};
use mongodb::action::Watch;
use mongodb::change_stream::event::{ChangeStreamEvent, ResumeToken};
use rustix::process::Signal;
use scheduler_bridge::store::{Change, PostgresStore, Store};
use serde_json::Value;
use sqlx::Executor;

use super::{LIMIT, assert_level, create, delete, error_of, mirror, mirrored, run, runs, turn, until_drained};
use crate::bed::{Bed, until};
use crate::commands::object;
use crate::faults::process::Bridge;
use crate::mirror::history::{SMALL, roll_over};
use crate::mirror::{clock, level, mark, stop};

async fn open(bed: &Bed, is_open: bool) {
    sqlx::query("update bridge.fence set open = $1").bind(is_open).execute(bed.pool()).await.expect("turn the fence");
}

async fn count(bed: &Bed) -> i64 {
    sqlx::query_scalar("select count(*) from bridge.stray").fetch_one(bed.pool()).await.expect("count")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stray_write_of_any_kind_is_told_kept_and_undone() {
    let bed = Bed::new().await;
    turn(&bed, "postgres-primary", 2).await;
    let mirror = mirror(&bed, &[]);
    let store = mirrored(&bed).await;
    for id in ["replaced", "changed", "deleted", "buried"] {
        let held = create(&store, id, "ours").await;
        if id == "buried" {
            until("it arrived", LIMIT, async || error_of(&bed, id).await.is_some()).await;
            delete(&store, id, held).await;
        }
    }
    until_drained(&bed).await;
    level(&bed).await;
    assert_eq!(count(&bed).await, 0, "what the drain wrote is its own");
    let strays = bed.database.collection::<RawDocumentBuf>("runs");
    strays.replace_one(doc! { "_id": "replaced" }, run("replaced", "theirs")).await.expect("replace");
    let change = doc! { "$set": { "error": "theirs" } };
    strays.update_one(doc! { "_id": "changed" }, change).await.expect("change");
    strays.delete_one(doc! { "_id": "deleted" }).await.expect("delete");
    strays.insert_one(run("buried", "theirs")).await.expect("insert what was deleted");
    strays.insert_one(run("unknown", "theirs")).await.expect("insert what never was");
    level(&bed).await;
    until_drained(&bed).await;
    for id in ["replaced", "changed", "deleted"] {
        assert_eq!(error_of(&bed, id).await.as_deref(), Some("ours"), "{id}");
    }
    assert_eq!((error_of(&bed, "buried").await, error_of(&bed, "unknown").await), (None, None));
    assert_level(&bed).await;
    level(&bed).await;
    assert_eq!(count(&bed).await, 5, "what undid them is the drain's own");
    for id in ["replaced", "changed", "deleted", "buried", "unknown"] {
        assert!(mirror.complaints().contains(&format!("id=\"{id}\"")), "{}", mirror.complaints());
    }
    // They are kept, and an operator accepts that they are lost.
    let listed = object(&bed, &["stray", "list"], 0).await;
    let left = |id: &str| {
        let mut strays = listed["strays"].as_array().expect("strays").iter();
        strays.find(|stray| stray["id"] == id).expect(id)["document"]["error"].clone()
    };
    assert_eq!((left("replaced"), left("buried"), left("deleted")), ("theirs".into(), "theirs".into(), Value::Null));
    assert_eq!(object(&bed, &["stray", "accept", "runs", "buried"], 0).await["accepted"], 1);
    assert_eq!(object(&bed, &["stray", "accept", "--all"], 0).await["accepted"], 4);
    assert_eq!(object(&bed, &["stray", "list"], 0).await["strays"], Value::Array(Vec::new()));
    assert_eq!(object(&bed, &["stray", "list", "--all"], 0).await["strays"].as_array().map(Vec::len), Some(5));
    object(&bed, &["stray", "accept", "runs", "buried"], 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stray_write_under_a_closed_fence_is_not_passed_over() {
    let bed = Bed::new().await;
    turn(&bed, "postgres-primary", 2).await;
    let mirror = mirror(&bed, &[]);
    let store = mirrored(&bed).await;
    create(&store, "a", "ours").await;
    until_drained(&bed).await;
    level(&bed).await;
    open(&bed, false).await;
    let strays = bed.database.collection::<RawDocumentBuf>("runs");
    strays.replace_one(doc! { "_id": "a" }, run("a", "theirs")).await.expect("replace");
    let seen = || mirror.complaints().contains("a switch is under way");
    until("it is seen", LIMIT, async || seen()).await;
    let held: (i64, i64) = sqlx::query_as("select count(*), (select clock from bridge.stream) from bridge.stray")
        .fetch_one(bed.pool())
        .await
        .expect("look");
    let marked = mark(&bed).await.expect("write a mark");
    assert!(held.0 == 0 && held.1 < i64::from(marked.time) << 32 | i64::from(marked.increment));
    open(&bed, true).await;
    level(&bed).await;
    until_drained(&bed).await;
    assert_eq!((error_of(&bed, "a").await.as_deref(), count(&bed).await), (Some("ours"), 1));
    let entity = runs().name;
    let queued =
        sqlx::query_scalar::<_, bool>("select exists (select from bridge.recheck where collection = $1 and id = 'a')");
    assert!(queued.bind(entity).fetch_one(bed.pool()).await.expect("look"), "the verifier looks at it again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_dies_with_a_stray_write_in_its_hands_is_followed_by_one_that_sees_it() {
    let bed = Bed::new().await;
    turn(&bed, "postgres-primary", 2).await;
    let dies = mirror(&bed, &[("FAILPOINTS", "strays::undone=pause")]);
    let store = mirrored(&bed).await;
    create(&store, "a", "ours").await;
    until_drained(&bed).await;
    let strays = bed.database.collection::<RawDocumentBuf>("runs");
    level(&bed).await;
    strays.replace_one(doc! { "_id": "a" }, run("a", "theirs")).await.expect("replace");
    let waiting = async || {
        let waits = "select exists (select from pg_stat_activity where datname = current_database()
            and state = 'idle in transaction')";
        sqlx::query_scalar(waits).fetch_one(bed.pool()).await.expect("look at the sessions")
    };
    until("the watch waits in its transaction", LIMIT, waiting).await;
    assert!(dies.kill().await, "it was to be killed while it worked");
    assert_eq!((count(&bed).await, error_of(&bed, "a").await.as_deref()), (0, Some("theirs")));
    let _mirror = mirror(&bed, &[]);
    level(&bed).await;
    assert_eq!(count(&bed).await, 1);
    until_drained(&bed).await;
    assert_eq!(error_of(&bed, "a").await.as_deref(), Some("ours"));
}

/// A watch that stands still and, of two mirrors, the one that drains meanwhile. When the watch wakes up it is told what it
/// has waited for last, a transaction that brings the run `first`, and then as much as one answer holds.
async fn held_back(bed: &Bed, store: &PostgresStore) -> (Bridge, Bridge) {
    let watches = mirror(bed, &[("BRIDGE_LEASE_SECONDS", "60")]);
    level(bed).await;
    let drains = mirror(bed, &[]);
    watches.signal(Signal::STOP);
    create(store, "first", "ours").await;
    until("it arrived", LIMIT, async || error_of(bed, "first").await.is_some()).await;
    (watches, drains)
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_follows_mongodb_again_goes_on_where_the_watch_was_behind_a_stamp_without_a_document() {
    let bed = Bed::new().await;
    turn(&bed, "postgres-primary", 2).await;
    let store = mirrored(&bed).await;
    let (watches, drains) = held_back(&bed, &store).await;
    let before = clock(&bed).await;
    stop(drains).await;
    let gone = create(&store, "gone", "ours").await;
    delete(&store, "gone", gone).await;
    let drains = mirror(&bed, &[]);
    until_drained(&bed).await;
    create(&store, "last", "ours").await;
    until("it arrived", LIMIT, async || error_of(&bed, "last").await.is_some()).await;
    watches.signal(Signal::CONT);
    until("the watch is behind the stamp", LIMIT, async || clock(&bed).await > before).await;
    stop(watches).await;
    stop(drains).await;
    turn(&bed, "mongo-primary", 3).await;
    let mirror = mirror(&bed, &[]);
    level(&bed).await;
    assert_eq!(mirror.complaints(), "");
}

/// More keys than one answer of the change stream has events, so that it ends within a transaction of the drain.
const MANY: usize = 1_200;

#[tokio::test(flavor = "multi_thread")]
async fn no_place_that_the_watch_stores_parts_a_transaction() {
    let bed = Bed::new().await;
    turn(&bed, "postgres-primary", 2).await;
    let kept = "create table public.place (clock bigint, token bytea);
        create function public.keep() returns trigger language plpgsql as
            'begin insert into public.place values (new.clock, new.token); return new; end';
        create trigger keep before update of token on bridge.stream for each row execute function public.keep()";
    bed.pool().execute(kept).await.expect("keep each place");
    let store = mirrored(&bed).await;
    let (watches, _drains) = held_back(&bed, &store).await;
    let before = clock(&bed).await;
    let many: Vec<Change> = (0..MANY).map(|n| Change::create(runs(), run(&n.to_string(), "ours"))).collect();
    store.apply(&many).await.expect("create many");
    until_drained(&bed).await;
    watches.signal(Signal::CONT);
    let behind_both = async || {
        let passed = sqlx::query_scalar("select count(*) > 1 from public.place where clock > $1").bind(before);
        passed.fetch_one(bed.pool()).await.expect("count the places")
    };
    until("both answers are passed", LIMIT, behind_both).await;
    let places: Vec<Vec<u8>> = sqlx::query_scalar("select token from public.place where token is not null")
        .fetch_all(bed.pool())
        .await
        .expect("read the places");
    for place in places {
        let token: ResumeToken = bson::deserialize_from_slice(&place).expect("a token");
        let Some(behind) = first(bed.database.watch().resume_after(token)).await else { continue };
        let time = behind.cluster_time.expect("a time");
        let of_its_time = first(bed.database.watch().start_at_operation_time(time)).await.expect("an event");
        assert_eq!(behind.id, of_its_time.id, "there is an event of its transaction before it");
    }
}

/// The first event of a change stream, if anything happened behind where it begins.
async fn first(stream: Watch<'_>) -> Option<ChangeStreamEvent<RawDocumentBuf>> {
    let mut stream = stream.await.expect("open a change stream").with_type::<ChangeStreamEvent<RawDocumentBuf>>();
    stream.next_if_any().await.expect("read a change stream")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_whose_history_is_lost_says_so_and_mongodb_follows_all_the_same() {
    let bed = Bed::with_own_mongo(&SMALL).await;
    turn(&bed, "postgres-primary", 2).await;
    let store = mirrored(&bed).await;
    let first = mirror(&bed, &[]);
    create(&store, "a", "ours").await;
    until_drained(&bed).await;
    level(&bed).await;
    first.kill().await;
    roll_over(&bed, mark(&bed).await.expect("write a mark")).await;
    create(&store, "b", "ours").await;
    let mirror = mirror(&bed, &[]);
    until_drained(&bed).await;
    level(&bed).await;
    assert!(mirror.complaints().contains("may have been missed"), "{}", mirror.complaints());
    let listed = object(&bed, &["stray", "list"], 0).await;
    assert_eq!(listed["strays"].as_array().map(Vec::len), Some(11), "each collection may have some");
    let strays = bed.database.collection::<RawDocumentBuf>("runs");
    strays.replace_one(doc! { "_id": "a" }, run("a", "theirs")).await.expect("replace");
    level(&bed).await;
    until_drained(&bed).await;
    assert_eq!((error_of(&bed, "a").await.as_deref(), count(&bed).await), (Some("ours"), 12));
}
