//! A lock that is held while the phase changes, and the token that the mirror brings between the stores.

use scheduler_bridge::fence::gate::Gate;
use scheduler_bridge::lock::{Held, Locks};
use scheduler_bridge::phase::Phase;
use scheduler_bridge::verify::Verdict;

use super::any::{AnyHeld, AnyLocks, behind, in_phase};
use super::{LONG, key};
use crate::bed::Bed;
use crate::dual::turn;
use crate::faults::process::Bridge;
use crate::mirror::level;
use crate::verify::verify;

/// A lock that is held in phase `mongo`, the gate of its holder, and the locks of a process in phase `postgres`.
async fn two_phases_apart(bed: &Bed) -> (Gate, AnyHeld, AnyLocks) {
    let gate = Gate::new();
    gate.open(Phase::Mongo, 1, None);
    let early = behind(gate.clone(), &bed.postgres_url, &bed.database).await;
    let late = in_phase(Phase::Postgres, &bed.postgres_url, &bed.database).await;
    let held = early.try_acquire(&key("a"), LONG).await.expect("try").expect("a free lock");
    (gate, held, late)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_taken_in_mongodb_alone_and_renewed_on_the_way_is_not_free_in_postgresql_alone() {
    let bed = Bed::new().await;
    let (gate, held, late) = two_phases_apart(&bed).await;
    let before = held.token();
    gate.open(Phase::MongoPrimary, 1, None);
    held.renew(LONG).await.expect("renew");
    assert!(held.token() >= before);
    gate.open(Phase::PostgresPrimary, 2, None);
    held.renew(LONG).await.expect("renew");
    gate.open(Phase::Postgres, 2, None);
    assert!(late.try_acquire(&key("a"), LONG).await.expect("try").is_none(), "it is held");
    let token = held.token();
    held.release().await.expect("release");
    let next = late.try_acquire(&key("a"), LONG).await.expect("try").expect("it was let go");
    assert!(next.token() > token);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_finds_the_lock_taken_in_postgresql_when_it_is_renewed_there_has_lost_it() {
    let bed = Bed::new().await;
    let (gate, held, late) = two_phases_apart(&bed).await;
    // Two phases away: nothing excludes these two.
    let _other = late.try_acquire(&key("a"), LONG).await.expect("try").expect("nobody has it there");
    gate.open(Phase::PostgresPrimary, 2, None);
    assert!(held.renew(LONG).await.is_err(), "it is another's");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_the_mirror_has_brought_counts_once() {
    let bed = Bed::new().await;
    turn(&bed, Phase::PostgresPrimary, 2).await;
    let _mirror = Bridge::start(bed.bridge(&["mirror"]));
    let locks = in_phase(Phase::PostgresPrimary, &bed.postgres_url, &bed.database).await;
    // Long enough for the mirror to bring MongoDB's record before PostgreSQL's part is taken.
    fail::cfg("lock::between", "sleep(50)").expect("a fail point");
    for count in 1..=10 {
        let held = locks.try_acquire(&key("a"), LONG).await.expect("try").expect("a free lock");
        assert_eq!(held.token(), count);
        held.release().await.expect("release");
    }
    fail::remove("lock::between");
    level(&bed).await;
    let report = verify(&bed).await;
    assert_eq!(report.verdict, Verdict::Clean, "{report:#?}");
}
