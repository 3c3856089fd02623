//! Locks that are lost: by the end of a lease, of a session, of a server.

use std::time::Duration;

use bson::{Document, doc};
use scheduler_bridge::embedded::Stop;
use scheduler_bridge::lock::{Held, LockError, Locks};
use tokio::time::timeout;

use super::{LONG, SHORT, any, both, guarded_write, is_conflict, key};
use crate::bed::Bed;

/// How soon a holder must hear of the end of its session.
const SOON: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_ends_loses_the_lock_and_the_old_token_is_refused() {
    let bed = Bed::new().await;
    for (name, locks, store) in both(&bed).await {
        let others = any::of(&store, &bed.postgres_url, &bed.database).await;
        let old = locks.try_acquire(&key("a"), SHORT).await.expect("try").expect("a free lock");
        guarded_write(&store, "acme:a", old.token(), "first").await.expect("a write in time");
        timeout(SOON, old.lost()).await.expect("lost");
        let refused = old.renew(LONG).await.err();
        assert!(matches!(refused, Some(LockError::Lost { .. })), "{name}: {refused:?}");
        let new = others.acquire(&key("a"), SOON, LONG).await.expect("it is free");
        assert!(is_conflict(&guarded_write(&store, "acme:a", old.token(), "late").await), "{name}");
        guarded_write(&store, "acme:a", new.token(), "second").await.expect("the new holder's write");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_has_ended_refuses_the_token_though_nobody_else_has_come() {
    let bed = Bed::new().await;
    for (name, locks, store) in both(&bed).await {
        let old = locks.try_acquire(&key("a"), SHORT).await.expect("try").expect("a free lock");
        timeout(SOON, old.lost()).await.expect("lost");
        // The server's lease ends a little later than the holder's own.
        let refused = async || is_conflict(&guarded_write(&store, "acme:a", old.token(), "late").await);
        let written = async || refused().await || panic_if_written(&store).await;
        crate::bed::until(name, SOON, written).await;
    }
}

/// The write of the old token may go through until the server's lease is over, and not twice.
async fn panic_if_written(store: &crate::stores::AnyStore) -> bool {
    use scheduler_bridge::store::{Address, Change, Store};
    let address = Address::new(scheduler_bridge::entity::named("runs").expect("runs"), "late");
    if let Some(unchanged) = store.get(&address).await.expect("get") {
        store.apply(&[Change::Delete { address, unchanged }]).await.expect("delete");
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_lease_does_not_end() {
    let bed = Bed::new().await;
    for (name, locks, store) in both(&bed).await {
        let others = any::of(&store, &bed.postgres_url, &bed.database).await;
        let held = locks.try_acquire(&key("a"), SHORT).await.expect("try").expect("a free lock");
        held.renew(LONG).await.expect("renew");
        assert!(timeout(SHORT * 2, held.lost()).await.is_err(), "{name}");
        assert!(others.try_acquire(&key("a"), LONG).await.expect("try").is_none(), "{name}");
        guarded_write(&store, "acme:a", held.token(), "record").await.expect("a write in time");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_the_server_ends_loses_its_locks() {
    let bed = Bed::new().await;
    let (_, locks, store) = both(&bed).await.pop().expect("PostgreSQL");
    let others = any::of(&store, &bed.postgres_url, &bed.database).await;
    let old = locks.try_acquire(&key("a"), LONG).await.expect("try").expect("a free lock");
    let ended: bool = sqlx::query_scalar(
        "select bool_and(pg_terminate_backend(pid)) from pg_locks
        where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())",
    )
    .fetch_one(bed.pool())
    .await
    .expect("end the session");
    assert!(ended);
    timeout(SOON, old.lost()).await.expect("lost");
    let new = others.acquire(&key("a"), SOON, LONG).await.expect("it is free");
    assert!(is_conflict(&guarded_write(&store, "acme:a", old.token(), "late").await));
    assert!(new.token() > old.token());
    // The next lock is taken on a new connection.
    assert!(locks.try_acquire(&key("b"), LONG).await.expect("try").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_restarted_never_has_two_holders() {
    for how in [Stop::Fast, Stop::Kill] {
        let mut bed = Bed::with_own_servers().await;
        for (name, locks, store) in both(&bed).await {
            let others = any::of(&store, &bed.postgres_url, &bed.database).await;
            let old = locks.try_acquire(&key("a"), Duration::from_secs(6)).await.expect("try").expect("a free lock");
            match name {
                "MongoDB" => {
                    bed.servers().mongo.stop(how).await.expect("stop");
                    bed.servers().mongo.start_again().await.expect("start");
                }
                _ => {
                    bed.servers().postgres.stop(how).await.expect("stop");
                    bed.servers().postgres.start_again().await.expect("start");
                }
            }
            let wait = Duration::from_secs(30);
            let new = loop {
                // A store that is still coming back says so; that is no answer.
                match others.acquire(&key("a"), wait, LONG).await {
                    Err(LockError::Unavailable { .. }) => tokio::task::yield_now().await,
                    done => break done.expect("it is free"),
                }
            };
            timeout(SOON, old.lost()).await.expect("lost by the time another has it");
            assert!(new.token() > old.token(), "{name}");
            assert!(is_conflict(&guarded_write(&store, "acme:a", old.token(), "late").await), "{name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_ends_takes_no_other_lock_of_the_process_with_it() {
    let bed = Bed::new().await;
    for (name, locks, store) in both(&bed).await {
        let others = any::of(&store, &bed.postgres_url, &bed.database).await;
        let short = locks.try_acquire(&key("a"), SHORT).await.expect("try").expect("a free lock");
        let long = locks.try_acquire(&key("b"), LONG).await.expect("try").expect("a free lock");
        timeout(SOON, short.lost()).await.expect("lost");
        others.acquire(&key("a"), SOON, LONG).await.expect("it is free");
        assert!(timeout(SHORT, long.lost()).await.is_err(), "{name}");
        long.renew(LONG).await.expect("renew");
        assert!(others.try_acquire(&key("b"), LONG).await.expect("try").is_none(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_another_holders_by_now_is_neither_renewed_nor_let_go() {
    let bed = Bed::new().await;
    let (_, locks, _) = both(&bed).await.swap_remove(0);
    let records = bed.database.collection::<Document>("locks");
    let (renewed, released) = (key("a"), key("b"));
    for id in [&renewed, &released] {
        let held = locks.try_acquire(id, LONG).await.expect("try").expect("a free lock");
        let of = doc! { "_id": id.id() };
        let taken = doc! { "$set": { "owner": "another", "token": held.token() + 1 } };
        records.update_one(of.clone(), taken).await.expect("take it over");
        let before = records.find_one(of.clone()).await.expect("read");
        if *id == renewed {
            let refused = held.renew(LONG).await.err();
            assert!(matches!(refused, Some(LockError::Lost { .. })), "{refused:?}");
        } else {
            held.release().await.expect("release");
        }
        assert_eq!(records.find_one(of).await.expect("read"), before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_whose_own_clock_ended_the_lease_does_not_come_back() {
    let bed = Bed::new().await;
    for (name, locks, _) in both(&bed).await {
        let held = locks.try_acquire(&key("a"), SHORT).await.expect("try").expect("a free lock");
        // The servers' clocks are late by an hour.
        let records = bed.database.collection::<Document>("locks");
        let hour = bson::DateTime::from_millis(bson::DateTime::now().timestamp_millis() + 3_600_000);
        records.update_many(doc! {}, doc! { "$set": { "expiresAt": hour } }).await.expect("set MongoDB's clock back");
        let late = "update scheduler.locks set expires_at = expires_at + interval '1 hour'";
        sqlx::query(late).execute(bed.pool()).await.expect("set PostgreSQL's clock back");
        timeout(SOON, held.lost()).await.expect("lost");
        let refused = held.renew(LONG).await.err();
        assert!(matches!(refused, Some(LockError::Lost { .. })), "{name}: {refused:?}");
    }
}
