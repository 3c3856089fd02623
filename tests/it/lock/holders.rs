//! One holder at a time, and the token that tells them apart.

use mongodb::bson::doc;
use scheduler_bridge::lock::{Held, LockError, LockKey, Locks};

use super::{LONG, any, both, key};
use crate::bed::{Bed, until};

#[tokio::test(flavor = "multi_thread")]
async fn one_holds_a_lock_and_the_next_has_a_greater_token() {
    let bed = Bed::new().await;
    for (name, locks, store) in both(&bed).await {
        let others = any::of(&store, &bed.postgres_url, &bed.database).await;
        let first = locks.try_acquire(&key("a"), LONG).await.expect("try").expect("a free lock");
        for again in [&locks, &others] {
            assert!(again.try_acquire(&key("a"), LONG).await.expect("try").is_none(), "{name}");
        }
        let other = others.try_acquire(&key("b"), LONG).await.expect("try").expect("another key is free");
        let tokens = (first.token(), first.key().id().to_owned());
        first.release().await.expect("release");
        let second = others.try_acquire(&key("a"), LONG).await.expect("try").expect("it was let go");
        assert_eq!(tokens.1, second.key().id());
        assert!(second.token() > tokens.0, "{name}");
        other.release().await.expect("release");
        second.release().await.expect("release");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_of_one_tenant_is_not_anothers() {
    let bed = Bed::new().await;
    for (name, locks, _) in both(&bed).await {
        let of = |tenant| LockKey::new(tenant, "nightly").expect("a key");
        let _held = locks.try_acquire(&of("acme"), LONG).await.expect("try").expect("a free lock");
        assert!(locks.try_acquire(&of("other"), LONG).await.expect("try").is_some(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_is_dropped_is_let_go() {
    let bed = Bed::new().await;
    for (_, locks, store) in both(&bed).await {
        let others = any::of(&store, &bed.postgres_url, &bed.database).await;
        drop(locks.try_acquire(&key("a"), LONG).await.expect("try").expect("a free lock"));
        let free = async || others.try_acquire(&key("a"), LONG).await.expect("try").is_some();
        until("the dropped lock is free", LONG / 4, free).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_token_goes_on_from_what_the_other_store_gave_out() {
    let bed = Bed::new().await;
    let past = bson::DateTime::from_millis(0);
    let record = doc! { "_id": "acme:a", "owner": "old", "token": 41_i64, "acquiredAt": past, "expiresAt": past };
    bed.database.collection("locks").insert_one(record).await.expect("a lock of old");
    let row = "insert into scheduler.locks (id, owner, token, acquired_at, expires_at, epoch, clock)
        values ('acme:a', 'old', 41, 'epoch', 'epoch', 1, 1)";
    sqlx::query(row).execute(bed.pool()).await.expect("a lock of old");
    for (name, locks, _) in both(&bed).await {
        let held = locks.try_acquire(&key("a"), LONG).await.expect("try").expect("a free lock");
        assert_eq!(held.token(), 42, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_writers_expiry_binds_also_as_a_text() {
    let bed = Bed::new().await;
    for (id, expires, is_free) in [("acme:a", "2199-01-01T00:00:00Z", false), ("acme:b", "2001-01-01T00:00:00Z", true)]
    {
        let record = doc! { "_id": id, "owner": "old", "token": 1_i64, "expiresAt": expires };
        bed.database.collection("locks").insert_one(record).await.expect("a lock of old");
        let locks = scheduler_bridge::lock::MongoLocks::new(&bed.database);
        let key = key(id.trim_start_matches("acme:"));
        assert_eq!(locks.try_acquire(&key, LONG).await.expect("try").is_some(), is_free, "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_locks_need_a_handful_of_connections() {
    let bed = Bed::new().await;
    for (name, locks, _) in both(&bed).await {
        let all = (0..1_000).map(|index| {
            let locks = locks.clone();
            async move { locks.try_acquire(&key(&format!("many-{index}")), LONG).await.expect("try").expect("free") }
        });
        let held: Vec<_> = futures::future::join_all(all).await;
        assert_eq!(held.len(), 1_000, "{name}");
        assert!(held.iter().all(|held| held.token() == 1), "{name}");
        if name == "PostgreSQL" {
            let sessions: (i64, i64) = sqlx::query_as(
                "select count(distinct pid), count(*) from pg_locks
                where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())",
            )
            .fetch_one(bed.pool())
            .await
            .expect("count");
            assert_eq!(sessions, (1, 1_000));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_of_nothing_or_of_days_is_refused() {
    let bed = Bed::new().await;
    for (name, locks, _) in both(&bed).await {
        for lease in [std::time::Duration::ZERO, LONG * 1_000] {
            let refused = locks.try_acquire(&key("a"), lease).await.err();
            assert!(matches!(refused, Some(LockError::Lease { .. })), "{name}: {refused:?}");
        }
    }
}
