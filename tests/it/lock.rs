//! The distributed lock, on both stores alike.

mod any;
mod holders;
mod lost;
mod phases;
mod pooler;
mod processes;
pub mod roles;
mod waiting;

use std::time::Duration;

use bson::{RawDocumentBuf, doc};
use scheduler_bridge::lock::LockKey;
use scheduler_bridge::scheduler::Error;
use scheduler_bridge::scheduler::fences::Fences;
use scheduler_bridge::store::{Change, Store};

pub use any::both;

use crate::stores::AnyStore;

/// A lease that no test outlasts.
const LONG: Duration = Duration::from_secs(120);

/// A lease that a test can wait for.
const SHORT: Duration = Duration::from_millis(800);

fn key(name: &str) -> LockKey {
    LockKey::new("acme", name).expect("a key")
}

/// Writes a record that the lock `id` guards, with the token of a holder.
async fn guarded_write(store: &AnyStore, id: &str, token: i64, record: &str) -> Result<(), Error> {
    let check = Fences::new(store.clone()).check(id, token).await?;
    let document = doc! { "_id": record, "tenantId": "acme", "state": "queued" };
    let document = RawDocumentBuf::try_from(&document).expect("a document");
    let runs = scheduler_bridge::entity::named("runs").expect("runs");
    store.apply(&[check, Change::create(runs, document)]).await?;
    Ok(())
}

fn is_conflict(done: &Result<(), Error>) -> bool {
    matches!(done, Err(Error::Conflict { .. }))
}
