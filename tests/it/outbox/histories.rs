//! Random histories: few keys, many writers, two drains that are killed now and then.

use std::time::Duration;

use bson::{RawDocumentBuf, doc};
use scheduler_bridge::entity::{self, Entity};
use scheduler_bridge::store::{Address, Change, PostgresStore, Store, StoreError};
use tokio::task::JoinSet;

use super::{assert_level, left, mirror, mirrored, turn, until_drained};
use crate::bed::Bed;
use crate::faults::killed::Moments;

const WRITERS: u64 = 4;

const STEPS: u64 = 150;

const KEYS: u64 = 5;

const KILLS: usize = 6;

/// Takes the place of a document of either collection.
fn document(id: &str, number: u64) -> RawDocumentBuf {
    let document =
        doc! { "_id": id, "tenantId": "t", "state": "queued", "status": "pending", "error": number.to_string() };
    RawDocumentBuf::try_from(&document).expect("a document")
}

/// One random change of a random key, if it is there or not.
async fn step(store: &PostgresStore, entity: &'static Entity, moments: &mut Moments) {
    let id = format!("key-{}", moments.below(KEYS));
    let address = Address::new(entity, id.as_str());
    let new = document(&id, moments.below(1 << 40));
    let change = match store.get(&address).await.expect("get") {
        None => Change::create(entity, new),
        Some(unchanged) if moments.below(3) == 0 => Change::Delete { address, unchanged },
        Some(held) => Change::replace(address, held, new),
    };
    match store.apply(&[change]).await {
        Ok(_) | Err(StoreError::Conflict { .. }) => {}
        Err(error) => panic!("{error:?}"),
    }
}

/// One writer.
async fn write(store: PostgresStore, mut moments: Moments) {
    let entities = ["runs", "graph_jobs"].map(|name| entity::named(name).expect("an entity"));
    for _ in 0..STEPS {
        let entity = entities[usize::from(moments.below(2) == 0)];
        step(&store, entity, &mut moments).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_drains_that_are_killed_at_random_bring_concurrent_writers_of_few_keys_level() {
    let (bed, mut moments) = (Bed::new().await, Moments::new());
    turn(&bed, "postgres-primary", 2).await;
    let store = mirrored(&bed).await;
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        writers.spawn(write(store.clone(), Moments::of(moments.below(u64::MAX - 1) + 1)));
    }
    let mut drains = [mirror(&bed, &[]), mirror(&bed, &[])];
    for kill in 0..KILLS {
        // Not a wait for something: the random moment.
        tokio::time::sleep(Duration::from_millis(150 + moments.below(400))).await;
        let old = std::mem::replace(&mut drains[kill % 2], mirror(&bed, &[]));
        old.kill().await;
    }
    while let Some(written) = writers.join_next().await {
        written.expect("a writer");
    }
    until_drained(&bed).await;
    assert_eq!(left(&bed).await, 0);
    assert_level(&bed).await;
}
