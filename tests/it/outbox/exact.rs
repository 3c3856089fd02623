//! Documents come through the outbox byte for byte as PostgreSQL's store gives them out.

use std::collections::BTreeMap;

use bson::raw::cstr;
use bson::{RawDocumentBuf, doc};
use futures::TryStreamExt;
use scheduler_bridge::dataset::fixtures;
use scheduler_bridge::entity::{self, Entity};
use scheduler_bridge::mapping::{Key, Mapping};
use scheduler_bridge::store::{Address, Change, PostgresStore, Store};

use super::{assert_level, mirror, mirrored, turn, until_drained_by};
use crate::bed::Bed;

/// What is larger has no room for one field more.
const ROOM: usize = 16 * 1024 * 1024 - 64;

/// Every key of the fixtures, by collection.
type Keys = BTreeMap<&'static str, Vec<Key>>;

fn named(name: &str) -> &'static Entity {
    entity::named(name).expect("an entity")
}

/// The documents of a collection in MongoDB, by key.
async fn documents(bed: &Bed, entity: &'static Entity) -> BTreeMap<Key, RawDocumentBuf> {
    let found = bed.database.collection::<RawDocumentBuf>(entity.name).find(doc! {}).await.expect("find");
    let found: Vec<RawDocumentBuf> = found.try_collect().await.expect("read");
    found.into_iter().map(|document| (Mapping::new(entity).key(&document), document)).collect()
}

async fn assert_exact(bed: &Bed, store: &PostgresStore, keys: &Keys) {
    for (name, keys) in keys {
        let found = documents(bed, named(name)).await;
        assert_eq!(found.len(), keys.len(), "{name}");
        for key in keys {
            let address = Address { entity: named(name), key: key.clone() };
            let stored = store.get(&address).await.expect("get").expect("a row");
            assert!(found.get(key) == Some(&stored.document), "{address} is not what PostgreSQL has");
        }
    }
}

/// Writes every row anew, as `change` says.
async fn rewrite(store: &PostgresStore, keys: &Keys, change: impl Fn(&mut RawDocumentBuf)) {
    for (name, keys) in keys {
        for keys in keys.chunks(50) {
            let held = store.get_many(named(name), keys).await.expect("get");
            let changes = keys.iter().zip(held).map(|(key, held)| {
                let held = held.expect("a row");
                let mut document = held.document.clone();
                change(&mut document);
                Change::replace(Address { entity: named(name), key: key.clone() }, held, document)
            });
            store.apply(&changes.collect::<Vec<_>>()).await.expect("replace");
        }
    }
}

/// Every awkward document as a row, and PostgreSQL the primary.
async fn filled(bed: &Bed) -> (PostgresStore, Keys) {
    let fixtures = fixtures::mapped().expect("fixtures");
    fixtures::load(&bed.database, &fixtures).await.expect("load fixtures");
    crate::verify::backfill(bed).await;
    turn(bed, "postgres-primary", 2).await;
    let mut keys = Keys::new();
    for fixture in &fixtures {
        let key = Mapping::new(named(fixture.collection)).key(&fixture.document);
        keys.entry(fixture.collection).or_default().push(key);
    }
    (mirrored(bed).await, keys)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_awkward_document_arrives_byte_for_byte_in_the_place_of_another_and_where_there_is_none() {
    let bed = Bed::new().await;
    let (store, keys) = filled(&bed).await;
    let mirror = mirror(&bed, &[("BRIDGE_LEASE_SECONDS", "60")]);
    rewrite(&store, &keys, |document| {
        if document.as_bytes().len() < ROOM {
            document.append(cstr!("touched"), 1);
        }
    })
    .await;
    let mirror = until_drained_by(&bed, mirror).await;
    assert_exact(&bed, &store, &keys).await;
    assert_level(&bed).await;
    for name in keys.keys() {
        bed.database.collection::<RawDocumentBuf>(name).drop().await.expect("drop");
    }
    rewrite(&store, &keys, |_| ()).await;
    until_drained_by(&bed, mirror).await;
    assert_exact(&bed, &store, &keys).await;
    assert_level(&bed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_awkward_document_is_deleted_by_its_key() {
    let bed = Bed::new().await;
    let (store, keys) = filled(&bed).await;
    let mirror = mirror(&bed, &[("BRIDGE_LEASE_SECONDS", "60")]);
    for (name, keys) in &keys {
        let held = store.get_many(named(name), keys).await.expect("get");
        let changes = keys.iter().zip(held).map(|(key, held)| Change::Delete {
            address: Address { entity: named(name), key: key.clone() },
            unchanged: held.expect("a row"),
        });
        store.apply(&changes.collect::<Vec<_>>()).await.expect("delete");
    }
    until_drained_by(&bed, mirror).await;
    for name in keys.keys() {
        assert_eq!(documents(&bed, named(name)).await.len(), 0, "{name}");
    }
}
