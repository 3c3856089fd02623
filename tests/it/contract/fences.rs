//! Writes that hold only as long as a lock is held.

use bson::{RawDocumentBuf, doc};
use scheduler_bridge::entity::{Instant, Record, locks::Lock};
use scheduler_bridge::scheduler::records::creation;
use scheduler_bridge::store::{Change, Store};

use super::{Case, Stage, case, conflict, not_found};
use crate::stores::samples::{at, run, tenant};

pub const CASES: &[Case] = &[
    case!("fences.get", Happy, get),
    case!("fences.get", Absent, get_absent),
    case!("fences.check", Happy, check),
    case!("fences.check", Absent, check_absent),
];

fn lock(token: i64, expires: Instant) -> RawDocumentBuf {
    let date = |moment: Instant| bson::DateTime::from_chrono(moment.0);
    let lock =
        doc! { "_id": "a:k", "owner": "w", "token": token, "acquiredAt": date(at(0)), "expiresAt": date(expires) };
    RawDocumentBuf::try_from(&lock).expect("a document")
}

/// A moment that no test outlasts.
fn far() -> Instant {
    at(1_000_000_000)
}

async fn put(stage: &Stage, token: i64, expires: Instant) {
    stage.store.apply(&[Change::create(Lock::ENTITY, lock(token, expires))]).await.expect("put a lock");
}

async fn get(stage: Stage) {
    put(&stage, 7, far()).await;
    let found = stage.scheduler.fences.get("a:k").await.expect("get");
    assert_eq!((found.token, found.owner.as_str(), found.expires_at), (7, "w", far()));
}

async fn get_absent(stage: Stage) {
    not_found(stage.scheduler.fences.get("a:k").await);
}

/// A token that is old, or whose lease is over, is refused; so is a write whose lock was taken between check and write.
async fn check(stage: Stage) {
    put(&stage, 7, far()).await;
    let fences = &stage.scheduler.fences;
    conflict(fences.check("a:k", 6).await);
    let check = fences.check("a:k", 7).await.expect("check");
    let write = |id: &str| creation(&run("a", id)).expect("a creation");
    stage.store.apply(&[check.clone(), write("r1")]).await.expect("a write in time");
    let held = stage.store.get(check.address()).await.expect("get").expect("the lock");
    let taken = Change::replace(check.address().clone(), held, lock(8, at(-100_000_000)));
    stage.store.apply(&[taken]).await.expect("somebody else takes it");
    assert!(stage.store.apply(&[check, write("r2")]).await.is_err());
    not_found(stage.scheduler.runs.get(&tenant("a"), "r2").await);
    conflict(fences.check("a:k", 8).await);
}

async fn check_absent(stage: Stage) {
    not_found(stage.scheduler.fences.check("a:k", 1).await);
}
