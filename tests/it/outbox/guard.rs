//! Nothing older takes the place of anything newer.

use rustix::process::Signal;
use scheduler_bridge::mapping::Key;
use scheduler_bridge::secondary::{Item, MongoSecondary, State};
use scheduler_bridge::stamp::Stamp;
use scheduler_bridge::store::{Address, Change, MongoStore, Store};

use super::{LIMIT, create, delete, error_of, left, mirror, mirrored, run, runs, turn, until_drained};
use crate::bed::{Bed, until};

fn put((epoch, clock): (i32, i64), error: &str) -> Item {
    let state = State::Document(run("a", error));
    Item { entity: runs(), key: Key::from_text("a"), stamp: Stamp { epoch, clock }, state }
}

fn gone(stamp: (i32, i64)) -> Item {
    Item { state: State::Gone, ..put(stamp, "") }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_with_an_older_or_an_equal_stamp_changes_nothing() {
    let bed = Bed::new().await;
    let secondary = MongoSecondary::new(bed.mongo.clone(), bed.database.clone());
    let steps = [
        (put((2, 10), "ten"), Some("ten")),
        (put((2, 9), "nine"), Some("ten")),
        (put((2, 10), "ten again"), Some("ten")),
        (gone((2, 8)), Some("ten")),
        (gone((2, 12)), None),
        (put((2, 11), "eleven"), None),
        (put((1, 1 << 60), "another epoch"), None),
        (put((2, 13), "thirteen"), Some("thirteen")),
        (put((4, 1), "a later epoch"), Some("a later epoch")),
    ];
    for (item, error) in steps {
        secondary.write(std::slice::from_ref(&item)).await.expect("write");
        assert_eq!(error_of(&bed, "a").await.as_deref(), error, "{item:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_mongodb_deleted_as_the_primary_of_a_later_epoch_stays_deleted() {
    let bed = Bed::new().await;
    let secondary = MongoSecondary::new(bed.mongo.clone(), bed.database.clone());
    secondary.write(&[put((2, 10), "ten")]).await.expect("write");
    let store = MongoStore::new(bed.mongo.clone(), bed.database.clone(), 3);
    let address = Address::new(runs(), "a");
    let unchanged = store.get(&address).await.expect("get").expect("a document");
    store.apply(&[Change::Delete { address, unchanged }]).await.expect("delete");
    secondary.write(&[put((2, 11), "late")]).await.expect("write");
    assert_eq!(error_of(&bed, "a").await, None);
    secondary.write(&[put((4, 1), "new")]).await.expect("write");
    assert_eq!(error_of(&bed, "a").await.as_deref(), Some("new"));
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_of_one_key_at_the_same_time_leave_the_newest() {
    let bed = Bed::new().await;
    let secondary = MongoSecondary::new(bed.mongo.clone(), bed.database.clone());
    let writers = (1..=12).map(|clock| {
        let secondary = secondary.clone();
        let item = if clock % 3 == 0 { gone((2, clock)) } else { put((2, clock), &clock.to_string()) };
        tokio::spawn(async move { secondary.write(&[item]).await })
    });
    for writer in futures::future::join_all(writers).await {
        writer.expect("a task").expect("write");
    }
    assert_eq!(error_of(&bed, "a").await, None, "the twelfth is a deletion");
}

/// Whether a drain has rows in its hands: its session waits inside a transaction.
async fn holds_rows(bed: &Bed) -> bool {
    let sql = "select exists (select from pg_stat_activity where datname = current_database()
        and application_name = 'scheduler-bridge' and state = 'idle in transaction')";
    sqlx::query_scalar(sql).fetch_one(bed.pool()).await.expect("look at the sessions")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_is_not_resurrected_by_a_drain_that_wakes_up_with_the_row_in_its_hands() {
    let bed = Bed::new().await;
    turn(&bed, "postgres-primary", 2).await;
    let store = mirrored(&bed).await;
    let held = create(&store, "a", "one").await;
    let late = mirror(&bed, &[("FAILPOINTS", "outbox::read=1*sleep(1500)->off")]);
    until("it has read the row", LIMIT, async || holds_rows(&bed).await).await;
    late.signal(Signal::STOP);
    delete(&store, "a", held).await;
    let _other = mirror(&bed, &[]);
    // The server ends the paused transaction, and its entry comes back.
    until_drained(&bed).await;
    assert_eq!(error_of(&bed, "a").await, None);
    late.signal(Signal::CONT);
    late.signal(Signal::TERM);
    // What it has in its hands it writes; only then it learns that its transaction is over.
    late.ended().await.says(0, &["will go on"]);
    assert_eq!((error_of(&bed, "a").await, left(&bed).await), (None, 0));
}
