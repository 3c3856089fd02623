//! Drains that die, and servers that go away under them.

use bson::doc;
use futures::TryStreamExt;
use scheduler_bridge::embedded::Stop;
use scheduler_bridge::store::{Change, PostgresStore, Store, StoreError};

use super::{
    LIMIT, assert_level, create, delete, error_of, left, mirror, mirrored, replace, run, runs, turn, until_drained,
    until_drained_by,
};
use crate::bed::{Bed, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_killed_between_apply_and_delete_is_repeated_without_harm() {
    let bed = Bed::new().await;
    turn(&bed, "postgres-primary", 2).await;
    let store = mirrored(&bed).await;
    let mut held = create(&store, "a", "zero").await;
    let gone = create(&store, "b", "one").await;
    delete(&store, "b", gone).await;
    for round in 1..=3 {
        let error = round.to_string();
        held = replace(&store, "a", held, &error).await;
        let dies = mirror(&bed, &[("FAILPOINTS", "outbox::applied=pause")]);
        until("it is applied", LIMIT, async || error_of(&bed, "a").await.as_deref() == Some(&error)).await;
        assert!(dies.kill().await, "it was to be killed while it worked");
        assert!(left(&bed).await >= 3, "what is not committed is still there");
        // It was newer in MongoDB than any drain knows, and is so no more.
        assert_eq!(error_of(&bed, "b").await, None);
    }
    held = replace(&store, "a", held, "last").await;
    let _mirror = mirror(&bed, &[]);
    until_drained(&bed).await;
    assert_eq!(error_of(&bed, "a").await.as_deref(), Some("last"));
    assert_level(&bed).await;
    delete(&store, "a", held).await;
    until("it is gone", LIMIT, async || error_of(&bed, "a").await.is_none()).await;
}

/// Whether some transaction has written and waits for its next command, longer than from one command to the next.
async fn is_left_open(bed: &Bed) -> bool {
    let idle = [
        doc! { "$currentOp": { "idleSessions": true, "allUsers": true } },
        doc! { "$match": { "locks.Collection": "w", "transaction.timeInactiveMicros": { "$gt": 200_000 } } },
    ];
    let found = bed.mongo.database("admin").aggregate(idle).await.expect("ask for idle sessions");
    !found.try_collect::<Vec<_>>().await.expect("read them").is_empty()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_a_dead_drain_left_open_is_ended() {
    let bed = Bed::with_own_mongo(&[]).await;
    // MongoDB itself would end it after a minute or two.
    let forever = doc! { "setParameter": 1, "transactionLifetimeLimitSeconds": 86_400 };
    bed.mongo.database("admin").run_command(forever).await.expect("let transactions live");
    turn(&bed, "postgres-primary", 2).await;
    let store = mirrored(&bed).await;
    // Transactions that create a collection do not meet there.
    let first = mirror(&bed, &[]);
    let held = create(&store, "a", "one").await;
    until_drained(&bed).await;
    first.kill().await;
    replace(&store, "a", held, "two").await;
    let dies = mirror(&bed, &[("FAILPOINTS", "mongo::before-commit=pause")]);
    until("it is within its transaction", LIMIT, async || is_left_open(&bed).await).await;
    assert!(dies.kill().await, "it was to be killed while it worked");
    until("MongoDB keeps it", LIMIT, async || is_left_open(&bed).await).await;
    let _mirror = mirror(&bed, &[]);
    until_drained(&bed).await;
    assert_level(&bed).await;
}

/// Creates a run, again when a restart was in the way.
async fn insist(store: &PostgresStore, id: &str) {
    let change = [Change::create(runs(), run(id, "restart"))];
    let is_there = async || match store.apply(&change).await {
        Ok(_) | Err(StoreError::Conflict { .. }) => true,
        Err(StoreError::Unavailable { .. }) => false,
        Err(error) => panic!("{error:?}"),
    };
    until("it is written", LIMIT, is_there).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_primary_of_the_replica_set_is_found() {
    let mut bed = Bed::with_own_set().await;
    turn(&bed, "postgres-primary", 2).await;
    let store = mirrored(&bed).await;
    let mut drain = mirror(&bed, &[]);
    for round in 0..3 {
        for number in 0..100 {
            create(&store, &format!("{round}-{number}"), "before").await;
        }
        bed.set().0.step_down(1).await.expect("step down");
        for number in 100..200 {
            create(&store, &format!("{round}-{number}"), "after").await;
        }
        drain = until_drained_by(&bed, drain).await;
    }
    assert_level(&bed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_either_server_is_outlasted() {
    let mut bed = Bed::with_own_servers().await;
    turn(&bed, "postgres-primary", 2).await;
    let store = mirrored(&bed).await;
    let mut drains = [mirror(&bed, &[]), mirror(&bed, &[])];
    // A process that finds a server away when it starts says so and ends.
    until("both are under way", LIMIT, async || drains.iter().all(|drain| drain.has_said("mirroring"))).await;
    for (round, how) in [Stop::Kill, Stop::Fast].into_iter().enumerate() {
        for number in 0..200 {
            insist(&store, &format!("{round}-{number}")).await;
        }
        bed.servers().postgres.stop(how).await.expect("stop PostgreSQL");
        bed.servers().postgres.start_again().await.expect("start PostgreSQL");
        for number in 200..400 {
            insist(&store, &format!("{round}-{number}")).await;
        }
        bed.servers().mongo.stop(how).await.expect("stop MongoDB");
        bed.servers().mongo.start_again().await.expect("start MongoDB");
    }
    until_drained(&bed).await;
    for drain in &mut drains {
        assert!(!drain.is_over(), "a drain has ended:\n{}", drain.complaints());
    }
    assert_level(&bed).await;
}
