//! The contract of the repositories over the dual store: in both directions, and with a secondary that fails.

use std::time::Duration;

use bson::{Document, doc};
use scheduler_bridge::entity::ENTITIES;
use scheduler_bridge::phase::Phase;
use scheduler_bridge::scheduler::Scheduler;
use scheduler_bridge::store::MongoStore;
use scheduler_bridge::verify::Verdict;
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, Executor};

use super::{LIMIT, backends, connect, turn};
use crate::bed::Bed;
use crate::contract::{ALL, Stage};
use crate::faults::proxy::{Proxy, Weather};
use crate::stores::AnyStore;
use crate::verify::verify;

/// Plays every case in `phase`, a bed for the cases of each repository; how often the secondary had the writes, failed,
/// and was passed over.
async fn play(phase: Phase, weather: Weather) -> [u64; 3] {
    let mut counts = [0; 3];
    for cases in ALL {
        let bed = Bed::new().await;
        MongoStore::new(bed.mongo.clone(), bed.database.clone(), 1).create_indexes().await.expect("create the indexes");
        turn(&bed, phase, 1).await;
        let mut backends = backends(&bed);
        let proxy = Proxy::before(&bed.postgres_url).await;
        // However busy the machine is, a secondary that is well is waited for.
        // Nobody is to feel that every read is repeated.
        backends.settings.tuning.shadow_fraction = 1.0;
        let protection = &mut backends.settings.tuning.protection;
        protection.deadline = LIMIT;
        if weather != Weather::Fair {
            // Each write is to feel the weather.
            (protection.deadline, protection.pause) = (Duration::from_millis(30), Duration::from_millis(1));
            backends.postgres = Some(SecretString::from(proxy.url(&bed.postgres_url)));
        }
        let connected = connect(&backends).await;
        proxy.turn(weather);
        let store = AnyStore::Dual(connected.store.clone());
        for case in *cases {
            println!("{} {:?} in {phase}", case.operation, case.situation);
            empty(&bed).await;
            (case.run)(Stage { scheduler: Scheduler::new(&store), store: store.clone() }).await;
            if weather == Weather::Fair && phase == Phase::MongoPrimary {
                // No mirror runs: what is there, the dual store has brought.
                connected.store.idle().await;
                let report = verify(&bed).await;
                assert!(matches!(report.verdict, Verdict::Clean | Verdict::Inconclusive), "{report:#?}");
            }
        }
        let followed = connected.store.followed().expect("a follower");
        for (sum, tally) in counts.iter_mut().zip([&followed.level, &followed.failed, &followed.skipped]) {
            *sum += tally.count();
        }
        proxy.turn(Weather::Fair);
        connected.close().await;
    }
    counts
}

/// Empties both stores.
async fn empty(bed: &Bed) {
    let names: Vec<&str> = ENTITIES.iter().map(|entity| entity.name).collect();
    let tables = names.iter().map(|name| format!("delete from scheduler.{name}; ")).collect::<String>();
    let all =
        format!("{tables} delete from bridge.outbox; delete from bridge.tombstone; delete from bridge.quarantine");
    bed.pool().execute(AssertSqlSafe(all)).await.expect("empty PostgreSQL");
    let emptied = names.iter().map(|name| {
        let collection = bed.database.collection::<Document>(name);
        async move { collection.delete_many(doc! {}).await }
    });
    futures::future::try_join_all(emptied).await.expect("empty MongoDB");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_holds_while_postgresql_follows_and_leaves_the_stores_level() {
    let [level, failed, skipped] = play(Phase::MongoPrimary, Weather::Fair).await;
    assert!(level > 100 && (failed, skipped) == (0, 0), "{level}, {failed}, {skipped}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_holds_while_mongodb_follows() {
    assert_eq!(play(Phase::PostgresPrimary, Weather::Fair).await, [0; 3], "the outbox has it");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_holds_while_postgresql_does_not_answer() {
    assert!(play(Phase::MongoPrimary, Weather::Still).await[1] > 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_holds_while_the_answers_of_postgresql_are_lost() {
    assert!(play(Phase::MongoPrimary, Weather::NoAnswer).await[1] > 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_holds_while_postgresql_is_away() {
    assert!(play(Phase::MongoPrimary, Weather::Cut).await[1] > 100);
}
