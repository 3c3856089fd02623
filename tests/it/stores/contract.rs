//! What every store must do, whatever stands above it.

use bson::{RawDocumentBuf, doc};
use scheduler_bridge::entity::{self, Entity};
use scheduler_bridge::store::{Address, Change, Filter, Guard, Query, Store, StoreError, Stored};

use super::{AnyStore, both};
use crate::bed::Bed;

pub(super) fn runs() -> &'static Entity {
    entity::named("runs").expect("runs")
}

pub(super) fn document(id: &str, extra: bson::Document) -> RawDocumentBuf {
    let mut document = doc! { "_id": id, "tenantId": "t", "state": "queued" };
    document.extend(extra);
    RawDocumentBuf::try_from(&document).expect("a document")
}

pub(super) fn address(id: &str) -> Address {
    Address::new(runs(), id)
}

pub(super) async fn put(store: &AnyStore, id: &str, extra: bson::Document) -> Stored {
    let mut after = store.apply(&[Change::create(runs(), document(id, extra))]).await.expect("create");
    after.pop().expect("an after-image").stored().expect("a document")
}

pub(super) async fn replace(
    store: &AnyStore,
    id: &str,
    held: &Stored,
    extra: bson::Document,
) -> Result<Stored, StoreError> {
    let change = Change::replace(address(id), held.clone(), document(id, extra));
    Ok(store.apply(&[change]).await?.pop().expect("an after-image").stored().expect("a document"))
}

fn is_conflict<T: std::fmt::Debug>(done: Result<T, StoreError>, id: &str) {
    match done {
        Err(StoreError::Conflict { address }) => assert_eq!(address.key.text(), id),
        other => panic!("no conflict: {other:?}"),
    }
}

#[tokio::test]
async fn what_was_put_is_there_and_the_stamp_rises_with_each_write() {
    let bed = Bed::new().await;
    for (name, store) in both(&bed).await {
        assert_eq!(store.get(&address("a")).await.expect("get"), None, "{name}");
        let first = put(&store, "a", doc! { "error": "one" }).await;
        let second = replace(&store, "a", &first, doc! { "error": "two" }).await.expect("replace");
        assert!(second.stamp > first.stamp, "{name}: {first:?} {second:?}");
        let found = store.get(&address("a")).await.expect("get").expect("a document");
        assert_eq!(found.document, second.document, "{name}");
        let keys = ["b", "a", "c"].map(|id| address(id).key);
        let many = store.get_many(runs(), &keys).await.expect("get many");
        assert_eq!(many.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true, false], "{name}");
    }
}

#[tokio::test]
async fn a_guard_that_does_not_hold_is_a_conflict_and_nothing_is_written() {
    let bed = Bed::new().await;
    for (_, store) in both(&bed).await {
        let first = put(&store, "a", doc! {}).await;
        is_conflict(store.apply(&[Change::create(runs(), document("a", doc! {}))]).await, "a");
        let second = replace(&store, "a", &first, doc! { "error": "x" }).await.expect("replace");
        is_conflict(replace(&store, "a", &first, doc! { "error": "y" }).await, "a");
        is_conflict(replace(&store, "b", &first, doc! {}).await, "b");
        is_conflict(store.apply(&[Change::Delete { address: address("a"), unchanged: first }]).await, "a");
        let found = store.get(&address("a")).await.expect("get").expect("a document");
        assert_eq!(found.document, second.document);
    }
}

#[tokio::test]
async fn several_changes_happen_together_or_not_at_all() {
    let bed = Bed::new().await;
    for (name, store) in both(&bed).await {
        let held = put(&store, "a", doc! {}).await;
        let other = put(&store, "b", doc! {}).await;
        let newer = replace(&store, "b", &other, doc! { "error": "newer" }).await.expect("replace");
        let changes = |b: &Stored| {
            [
                Change::create(runs(), document("c", doc! {})),
                Change::replace(address("a"), held.clone(), document("a", doc! { "error": "x" })),
                Change::Delete { address: address("b"), unchanged: b.clone() },
            ]
        };
        is_conflict(store.apply(&changes(&other)).await, "b");
        assert_eq!(store.get(&address("c")).await.expect("get"), None, "{name}");
        let found = store.get(&address("a")).await.expect("get").expect("a document");
        assert_eq!(found.document, held.document, "{name}");
        let after = store.apply(&changes(&newer)).await.expect("apply");
        assert_eq!(after.iter().map(|after| after.document.is_some()).collect::<Vec<_>>(), [true, true, false]);
        assert_eq!(store.get(&address("b")).await.expect("get"), None, "{name}");
    }
}

#[tokio::test]
async fn each_change_for_itself_leaves_out_those_whose_guard_does_not_hold() {
    let bed = Bed::new().await;
    for (name, store) in both(&bed).await {
        let a = put(&store, "a", doc! {}).await;
        let b = put(&store, "b", doc! {}).await;
        replace(&store, "b", &b, doc! { "error": "newer" }).await.expect("replace");
        let changes = [
            Change::replace(address("b"), b, document("b", doc! {})),
            Change::replace(address("a"), a, document("a", doc! { "error": "x" })),
            Change::create(runs(), document("b", doc! {})),
            Change::create(runs(), document("c", doc! {})),
        ];
        let done = store.apply_each(&changes[..2]).await.expect("apply each");
        assert_eq!(done.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true], "{name}");
        let done = store.apply_each(&changes[2..]).await.expect("apply each");
        assert_eq!(done.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true], "{name}");
    }
}

#[tokio::test]
async fn a_check_holds_the_other_changes_to_what_was_read() {
    let bed = Bed::new().await;
    for (name, store) in both(&bed).await {
        let lock = put(&store, "lock", doc! {}).await;
        let check = Change::Check { address: address("lock"), unchanged: lock.clone() };
        store.apply(&[check.clone(), Change::create(runs(), document("a", doc! {}))]).await.expect("apply");
        let found = store.get(&address("lock")).await.expect("get").expect("a document");
        assert_eq!(found.document, lock.document, "{name}");
        replace(&store, "lock", &lock, doc! { "error": "taken" }).await.expect("replace");
        is_conflict(store.apply(&[check, Change::create(runs(), document("b", doc! {}))]).await, "lock");
        assert_eq!(store.get(&address("b")).await.expect("get"), None, "{name}");
    }
}

#[tokio::test]
async fn a_deleted_key_leaves_a_tombstone_and_can_be_used_again() {
    let bed = Bed::new().await;
    for (name, store) in both(&bed).await {
        let held = put(&store, "a", doc! {}).await;
        let deleted = store.apply(&[Change::Delete { address: address("a"), unchanged: held.clone() }]).await;
        let stamp = deleted.expect("delete").pop().expect("an after-image").stamp;
        assert!(stamp > held.stamp, "{name}");
        assert!(put(&store, "a", doc! {}).await.stamp > stamp, "{name}");
    }
    let tombstones: i64 =
        sqlx::query_scalar("select count(*) from bridge.tombstone where collection = 'runs' and id = 'a'")
            .fetch_one(bed.pool())
            .await
            .expect("count");
    let stamps = bed.database.collection::<bson::Document>("bridge_stamps");
    let stamped = stamps.count_documents(doc! { "_id.collection": "runs", "_id.id": "a", "deleted": true }).await;
    assert_eq!((tombstones, stamped.expect("count")), (1, 1));
}

#[tokio::test]
async fn what_cannot_be_kept_is_refused_by_every_store() {
    let bed = Bed::new().await;
    for (name, store) in both(&bed).await {
        let no_state = RawDocumentBuf::try_from(&doc! { "_id": "a", "tenantId": "t" }).expect("a document");
        let twice = vec![Change::create(runs(), document("a", doc! {})); 2];
        let other = Change::Put { address: address("b"), guard: Guard::Absent, document: document("a", doc! {}) };
        for changes in [vec![Change::create(runs(), no_state)], twice, vec![other]] {
            let done = store.apply(&changes).await;
            assert!(matches!(done, Err(StoreError::Refused { .. })), "{name}: {done:?}");
        }
        assert_eq!(store.apply(&[]).await.expect("apply nothing"), []);
    }
}

#[tokio::test]
async fn large_and_deep_documents_are_guarded_too() {
    let bed = Bed::new().await;
    let deep = (0..90).fold(doc! { "leaf": 1 }, |inner, _| doc! { "n": inner });
    let cases = [("large", doc! { "error": "x".repeat(9 << 20) }), ("deep", doc! { "reason": deep })];
    for (name, store) in both(&bed).await {
        for (id, extra) in &cases {
            let held = put(&store, id, extra.clone()).await;
            let next = replace(&store, id, &held, extra.clone()).await;
            assert_eq!(next.expect(id).document, held.document, "{name}");
            let mut changed = extra.clone();
            changed.insert("retryOf", "other");
            replace(&store, id, &store.get(&address(id)).await.expect("get").expect("there"), changed).await.expect(id);
            is_conflict(replace(&store, id, &held, extra.clone()).await, id);
        }
    }
}

#[tokio::test]
async fn a_query_finds_older_spellings_and_what_lacks_the_field_of_its_order() {
    let bed = Bed::new().await;
    for (name, store) in both(&bed).await {
        let date = |millis| bson::DateTime::from_millis(millis);
        put(&store, "late", doc! { "createdAt": date(2_000) }).await;
        put(&store, "without", doc! {}).await;
        put(&store, "old", doc! { "state": "pending", "createdAt": date(1_000) }).await;
        put(&store, "early", doc! { "createdAt": date(-5_000) }).await;
        put(&store, "other", doc! { "state": "running", "createdAt": date(0) }).await;
        for (direction, expected) in [
            (scheduler_bridge::store::Direction::Ascending, ["without", "early", "old", "late"]),
            (scheduler_bridge::store::Direction::Descending, ["late", "old", "early", "without"]),
        ] {
            let mut query = Query::of(runs())
                .only(Filter::Is("tenantId", "t".into()))
                .only(Filter::Is("state", "queued".into()))
                .by("createdAt", direction)
                .limit(1);
            let mut seen = Vec::new();
            loop {
                let page = store.find(&query).await.expect("find");
                seen.extend(page.items.iter().map(|item| item.document.get_str("_id").expect("an id").to_owned()));
                query.after = page.next;
                if query.after.is_none() {
                    break;
                }
            }
            assert_eq!(seen, expected, "{name}");
        }
    }
}
