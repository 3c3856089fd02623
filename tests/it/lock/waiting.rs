//! Waiting for a lock: no longer than asked, and nothing is left when the caller goes away.

use std::pin::pin;
use std::time::Duration;

use scheduler_bridge::lock::{Held, LockError, Locks};
use tokio::time::Instant;

use super::{LONG, any, both, key};
use crate::bed::{Bed, until};

#[tokio::test(flavor = "multi_thread")]
async fn waiting_ends_when_the_caller_would_wait_no_longer() {
    let bed = Bed::new().await;
    for (name, locks, store) in both(&bed).await {
        let others = any::of(&store, &bed.postgres_url, &bed.database).await;
        let _held = locks.try_acquire(&key("a"), LONG).await.expect("try").expect("a free lock");
        for wait in [Duration::ZERO, Duration::from_millis(150), Duration::from_millis(700)] {
            let begun = Instant::now();
            let waiting = async { (others.acquire(&key("a"), wait, LONG).await.err(), begun.elapsed()) };
            // How late a mere sleep ends says how busy the machine is.
            let sleeping = async {
                tokio::time::sleep(wait).await;
                begun.elapsed()
            };
            let ((refused, taken), slept) = tokio::join!(waiting, sleeping);
            assert!(matches!(refused, Some(LockError::TimedOut { .. })), "{name}: {refused:?}");
            assert!(
                taken >= wait && taken < slept + Duration::from_millis(100),
                "{name}: {wait:?}, {slept:?}, {taken:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_has_the_lock_once_it_is_free() {
    let bed = Bed::new().await;
    for (name, locks, store) in both(&bed).await {
        let others = any::of(&store, &bed.postgres_url, &bed.database).await;
        let held = locks.try_acquire(&key("a"), LONG).await.expect("try").expect("a free lock");
        let waiter = tokio::spawn(async move { others.acquire(&key("a"), LONG, LONG).await });
        held.release().await.expect("release");
        assert_eq!(waiter.await.expect("a waiter").expect(name).token(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_acquisition_leaves_nothing_held() {
    let bed = Bed::new().await;
    for (name, locks, store) in both(&bed).await {
        let others = any::of(&store, &bed.postgres_url, &bed.database).await;
        // Patience settles where about every other acquisition is cut off, wherever that is on this machine.
        let (mut cut, mut got) = (0, 0);
        let (mut patience, wanted) = (Duration::from_millis(1), key("a"));
        for _ in 0..300 {
            let begun = Instant::now();
            // The runtime's timer knows whole milliseconds only, which is longer than most acquisitions take.
            let waited = async {
                while begun.elapsed() < patience {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                held = locks.try_acquire(&wanted, LONG) => {
                    got += 1;
                    if let Some(held) = held.expect("try") {
                        held.release().await.expect("release");
                    }
                    patience = patience * 9 / 10;
                }
                () = waited => {
                    cut += 1;
                    patience = patience * 10 / 9 + Duration::from_micros(10);
                }
            }
        }
        assert!(cut > 20 && got > 20, "{name}: both ways were to be seen: {cut} and {got}");
        let free = async || others.try_acquire(&key("a"), LONG).await.expect("try").is_some();
        until("nothing is held", LONG / 4, free).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acquisition_that_is_begun_and_not_polled_again_keeps_nobody_waiting() {
    let bed = Bed::new().await;
    for (name, locks, _) in both(&bed).await {
        let wanted = key("a");
        let mut begun = pin!(locks.try_acquire(&wanted, LONG));
        assert!(futures::poll!(begun.as_mut()).is_pending(), "{name}");
        let others = tokio::time::timeout(LONG / 4, locks.try_acquire(&key("b"), LONG)).await;
        assert!(others.expect(name).expect("try").is_some(), "{name}");
        assert!(begun.await.expect("try").is_some(), "{name}: the lock that was asked for first");
    }
}
