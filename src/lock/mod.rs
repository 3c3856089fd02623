//! Distributed locks (design 13), and the ids of advisory locks.
//!
//! Invariants: of all processes that ask a store for one key, one holds it; whoever holds it is told when it no longer
//! does; each holder's token is greater than that of every holder before it. A holder that does not know yet that it has
//! lost the lock is stopped by the token, which its writes carry ([`crate::scheduler::fences`]).

mod dual;
mod mongo;
mod postgres;

use std::fmt;
use std::future::Future;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

pub use self::dual::{DualHeld, DualLocks};
pub use self::mongo::{MongoHeld, MongoLocks};
pub use self::postgres::{LockTask, PostgresHeld, PostgresLocks};
use crate::entity::NAME_LIMIT;

/// The longest lease.
pub const LONGEST_LEASE: Duration = Duration::from_secs(24 * 3_600);

/// How long a store may take to answer.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// The pause before a lock is asked for again: the first, and the longest. Half of it is random, so that those who wait
/// together do not ask together.
const PAUSES: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(20)];

/// The key of a lock: a tenant's, and never another's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LockKey {
    id: String,
    advisory: i64,
}

impl LockKey {
    /// The lock `key` of `tenant`.
    ///
    /// # Errors
    /// [`LockError::Key`] when the id would be longer than [`NAME_LIMIT`] bytes or contain NUL.
    pub fn new(tenant: &str, key: &str) -> Result<Self, LockError> {
        // Escaped, so that no key of one tenant is the key of another.
        let id = format!("{}:{key}", tenant.replace('%', "%25").replace(':', "%3A"));
        let reason = match () {
            () if id.len() > NAME_LIMIT => Some("is too long"),
            () if id.contains('\0') => Some("contains NUL"),
            () if id.starts_with('{') => Some("begins with '{'"),
            () => None,
        };
        match reason {
            Some(reason) => Err(LockError::Key { reason }),
            None => Ok(Self { id, advisory: self::id("scheduler.lock.v1", &[tenant, key]) }),
        }
    }

    /// The id of the lock's record in `locks`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The id of its advisory lock. Two keys may share one: then they exclude each other without need.
    pub fn advisory(&self) -> i64 {
        self.advisory
    }
}

impl fmt::Display for LockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.id)
    }
}

/// Why a lock is not held.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// The key cannot be one.
    #[error("the key of the lock {reason}")]
    Key {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The lease cannot be one.
    #[error("the lease of lock {key} is {lease:?}: it must be from 1 ms to 24 h")]
    Lease {
        /// The key.
        key: LockKey,
        /// What was asked for.
        lease: Duration,
    },
    /// Others held the lock as long as the caller would wait.
    #[error("lock {key} was held by others for {waited:?}")]
    TimedOut {
        /// The key.
        key: LockKey,
        /// How long the caller waited.
        waited: Duration,
    },
    /// The lock is no longer held.
    #[error("lock {key} is no longer held: stop the work that it guards")]
    Lost {
        /// The key.
        key: LockKey,
    },
    /// Between this process and PostgreSQL stands a pooler that gives each transaction another session.
    #[error(
        "the PostgreSQL URL leads to a pooler in transaction mode: locks need a session of their own, give the server's own address"
    )]
    Pooler,
    /// The store cannot be reached, or did not answer.
    #[error("could not {attempted}: the store of locks is unavailable")]
    Unavailable {
        /// What was attempted.
        attempted: String,
        /// The driver's answer; nothing when the time was over.
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

/// A place where locks are kept.
pub trait Locks: Clone + Send + Sync + 'static {
    /// A lock of this place that is held.
    type Held: Held;

    /// Takes the lock if nobody holds it. Dropping the future leaves nothing held.
    ///
    /// # Errors
    /// Those of [`LockError`] but `TimedOut`.
    fn try_acquire(
        &self,
        key: &LockKey,
        lease: Duration,
    ) -> impl Future<Output = Result<Option<Self::Held>, LockError>> + Send;

    /// Takes the lock as soon as nobody holds it, within `wait`. Dropping the future leaves nothing held.
    fn acquire(
        &self,
        key: &LockKey,
        wait: Duration,
        lease: Duration,
    ) -> impl Future<Output = Result<Self::Held, LockError>> + Send {
        async move {
            let deadline = Instant::now() + wait;
            let mut pause = PAUSES[0];
            loop {
                // The store's answer may take longer than the caller would wait.
                let tried =
                    tokio::time::timeout_at(deadline.max(Instant::now() + PAUSES[1]), self.try_acquire(key, lease));
                match tried.await {
                    Ok(Ok(Some(held))) => return Ok(held),
                    Ok(Err(error)) => return Err(error),
                    Ok(Ok(None)) | Err(_) => {}
                }
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(LockError::TimedOut { key: key.clone(), waited: wait });
                }
                tokio::time::sleep(random_part(pause).min(left)).await;
                pause = (pause * 2).min(PAUSES[1]);
            }
        }
    }
}

/// A lock that is held, until its lease ends. Dropping it lets it go in the background.
pub trait Held: Send + Sync + 'static {
    /// The key.
    fn key(&self) -> &LockKey;

    /// The fencing token, greater than that of every holder before.
    fn token(&self) -> i64;

    /// Begins the lease anew, `lease` from now.
    ///
    /// # Errors
    /// [`LockError::Lost`] when it is over: it does not come back.
    fn renew(&self, lease: Duration) -> impl Future<Output = Result<(), LockError>> + Send;

    /// Lets the lock go.
    fn release(self) -> impl Future<Output = Result<(), LockError>> + Send;

    /// Ends when the lock is no longer held: at the end of its lease by this process's own clock, counted from before it
    /// was asked for, or sooner when the store says so. It may be waited for any number of times.
    fn lost(&self) -> impl Future<Output = ()> + Send;
}

/// Between half of `pause` and all of it.
fn random_part(pause: Duration) -> Duration {
    let random = f64::from(uuid::Uuid::new_v4().as_bytes()[0]) / 255.0;
    pause.mul_f64(0.5 + random / 2.0)
}

fn check_lease(key: &LockKey, lease: Duration) -> Result<(), LockError> {
    let is_one = lease >= Duration::from_millis(1) && lease <= LONGEST_LEASE;
    if is_one { Ok(()) } else { Err(LockError::Lease { key: key.clone(), lease }) }
}

/// What another store has given for an acquisition.
///
/// Its record is to stand in this store as well, word for word: the mirror may have brought it already, and may not come for a
/// while.
#[derive(Debug, Clone)]
struct Given {
    /// The token, which this store's may not be below.
    token: i64,
    /// The owner in the record there.
    owner: String,
    acquired_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
}

/// Who holds a lock, for people: the machine, the process, and an instance that no other has.
fn owner() -> String {
    format!("{}/{}/{}", crate::machine(), std::process::id(), &uuid::Uuid::new_v4().simple().to_string()[..12])
}

/// The lock id of `parts` in `namespace`: the first 8 bytes, big-endian, of SHA-256 over the namespace and the parts,
/// separated by NUL (design 13). The same in every process of every version.
pub fn id(namespace: &str, parts: &[&str]) -> i64 {
    let mut digest = Sha256::new();
    digest.update(namespace);
    for part in parts {
        digest.update([0]);
        digest.update(part);
    }
    let bytes: [u8; 32] = digest.finalize().into();
    let (first, _) = bytes.split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
    i64::from_be_bytes(*first)
}

/// The lock of a collection's secondary: shared by transactions that upsert, exclusive for those that delete, since
/// two transactions that cannot see each other's work would bring a deleted row back.
pub fn of_collection(collection: &str) -> i64 {
    id("scheduler.collection.v1", &[collection])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_the_same_in_every_version() {
        // sha256("scheduler.lock.v1\0acme\0nightly") and its like, by an independent tool.
        assert_eq!(id("scheduler.lock.v1", &["acme", "nightly"]), GOLDEN_LOCK);
        assert_eq!(of_collection("runs"), GOLDEN_RUNS);
    }

    #[test]
    fn a_key_of_one_tenant_is_never_that_of_another() {
        let key = |tenant, key| LockKey::new(tenant, key).unwrap();
        assert_eq!(key("acme", "nightly").id(), "acme:nightly");
        assert_eq!(key("acme", "nightly").advisory(), GOLDEN_LOCK);
        assert_ne!(key("a:b", "c").id(), key("a", "b:c").id());
        assert_ne!(key("a%3Ab", "c").id(), key("a:b", "c").id());
        assert_ne!(key("a:b", "c").advisory(), key("a", "b:c").advisory());
        assert!(LockKey::new("t", &"k".repeat(NAME_LIMIT)).is_err() && LockKey::new("t", "\0").is_err());
    }

    const GOLDEN_LOCK: i64 = -8_312_763_333_513_073_647;
    const GOLDEN_RUNS: i64 = 1_537_596_947_545_556_402;
}
