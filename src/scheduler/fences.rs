//! Writes that hold only as long as a lock is held (design 13).
//!
//! A holder that was paused past its lease does not know that the lock is another's. Its write carries the lock's token, and
//! is made in one transaction with a check that the lock's record still has it.

use super::Error;
use super::records::{Records, address};
use crate::entity::locks::Lock;
use crate::store::{Change, Store};

/// The records of locks in a store.
#[derive(Debug, Clone)]
pub struct Fences<S> {
    records: Records<S, Lock>,
}

impl<S: Store> Fences<S> {
    /// The records of locks in `store`.
    pub fn new(store: S) -> Self {
        Self { records: Records::new(store) }
    }

    /// The record of the lock `id`.
    pub async fn get(&self, id: &str) -> Result<Lock, Error> {
        Ok(self.records.any(id).await?.record)
    }

    /// The check to put into the same [`Store::apply`] as the writes that lock `id` guards. When the holder renews the
    /// lock meanwhile, the write is refused with [`Error::Conflict`] all the same: ask again and repeat it.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the lock has another token by now, or has run out by the database's clock.
    pub async fn check(&self, id: &str, token: i64) -> Result<Change, Error> {
        let held = self.records.any(id).await?;
        let now = self.records.store().now().await?;
        let is_held = held.record.token == token && held.record.expires_at.0 > now;
        if is_held { Ok(held.check()) } else { Err(Error::Conflict { address: address::<Lock>(id) }) }
    }
}
