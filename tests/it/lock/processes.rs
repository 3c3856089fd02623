//! Locks between processes: counting, dying, sleeping.

use mongodb::bson::{Document, doc};
use rustix::process::Signal;
use scheduler_bridge::lock::{Held, Locks};
use scheduler_bridge::phase::Phase;

use super::{LONG, SHORT, both, guarded_write, key};
use crate::bed::Bed;
use crate::children::Child;

const PROCESSES: usize = 8;
const SECTIONS: usize = 1_000;

/// Of each process of two fleets.
const FLEET_SECTIONS: usize = 50;

#[tokio::test(flavor = "multi_thread")]
async fn eight_processes_never_lose_an_increment() {
    let bed = Bed::new().await;
    let counter = bed.database.collection::<Document>("counter");
    counter.insert_one(doc! { "_id": 1, "n": 0 }).await.expect("a counter");
    sqlx::raw_sql("create table public.counter as select 0 as n, 0::bigint as token")
        .execute(bed.pool())
        .await
        .expect("a counter");
    for place in ["MongoDB", "PostgreSQL"] {
        let times = SECTIONS.to_string();
        let children: Vec<Child> =
            (0..PROCESSES).map(|_| Child::start(&bed, "lock", &[place, "count", &times])).collect();
        futures::future::join_all(children.into_iter().map(Child::ended)).await;
    }
    let expected = i32::try_from(PROCESSES * SECTIONS).expect("a number");
    let mongo = counter.find_one(doc! {}).await.expect("read").expect("a counter").get_i32("n").expect("a number");
    let postgres: i32 = sqlx::query_scalar("select n from public.counter").fetch_one(bed.pool()).await.expect("read");
    assert_eq!((mongo, postgres), (expected, expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn fleets_of_two_neighbouring_phases_exclude_each_other_and_tokens_never_fall() {
    let bed = Bed::new().await;
    sqlx::raw_sql("create table public.counter as select 0 as n, 0::bigint as token")
        .execute(bed.pool())
        .await
        .expect("a counter");
    let times = FLEET_SECTIONS.to_string();
    // There and back again, as the phases may go.
    for [one, other] in [[0, 1], [1, 2], [2, 1], [1, 2], [2, 3]] {
        let phase = |number: usize| Phase::ALL[if number.is_multiple_of(2) { one } else { other }].name();
        let children: Vec<Child> =
            (0..PROCESSES).map(|number| Child::start(&bed, "lock", &[phase(number), "count", &times])).collect();
        futures::future::join_all(children.into_iter().map(Child::ended)).await;
    }
    let counted: i32 = sqlx::query_scalar("select n from public.counter").fetch_one(bed.pool()).await.expect("read");
    assert_eq!(usize::try_from(counted), Ok(5 * PROCESSES * FLEET_SECTIONS));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_holder_frees_the_lock_within_its_lease() {
    let bed = Bed::new().await;
    for (name, locks, _) in both(&bed).await {
        let mut child = Child::start(&bed, "lock", &[name, "hold"]);
        assert_eq!(child.says().await, "token 1");
        assert!(locks.try_acquire(&key("a"), LONG).await.expect("try").is_none(), "{name}");
        child.signal(Signal::KILL);
        // Its lease was renewed at most this long ago; the rest is for a busy machine.
        let held = locks.acquire(&key("a"), SHORT * 3 + LONG / 20, LONG).await.expect(name);
        assert_eq!(held.token(), 2, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_holder_is_passed_over_and_its_late_write_refused() {
    let bed = Bed::new().await;
    for (name, locks, store) in both(&bed).await {
        let mut child = Child::start(&bed, "lock", &[name, "hold"]);
        assert_eq!(child.says().await, "token 1");
        child.signal(Signal::STOP);
        let held = locks.acquire(&key("a"), LONG, LONG).await.expect(name);
        guarded_write(&store, "acme:a", held.token(), "new").await.expect("the new holder's write");
        child.signal(Signal::CONT);
        assert_eq!([child.says().await, child.says().await], ["lost", "refused"], "{name}");
        child.ended().await;
        guarded_write(&store, "acme:a", held.token(), "newer").await.expect("the new holder's write");
    }
}
