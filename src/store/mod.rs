//! What a backend can do for the scheduler, with plain values (design 10).
//!
//! A [`Store`] reads and writes documents under keys. Invariants that every store keeps: a write happens only while its
//! guard holds; all changes of one [`Store::apply`] happen or none; what a store answers is a document, whichever way
//! it keeps it; queries give the same items in the same order on every store. The scheduler's rules stand above, in
//! [`crate::scheduler`].

pub mod dual;
pub mod mongo;
pub mod postgres;
pub mod query;

use std::fmt;
use std::future::Future;
use std::time::Duration;

use bson::RawDocumentBuf;
use chrono::{DateTime, Utc};

pub use self::mongo::MongoStore;
pub use self::postgres::PostgresStore;
pub use self::query::{Cursor, Direction, Filter, Order, Page, Query};
use crate::entity::Entity;
use crate::mapping::{Key, Mapping};
use crate::stamp::Stamp;

/// How long one operation of a store may take, its wait for a connection included.
pub const OPERATION_WAIT: Duration = Duration::from_secs(15);

/// A key of one entity.
#[derive(Debug, Clone, PartialEq)]
pub struct Address {
    /// Whose key.
    pub entity: &'static Entity,
    /// The key.
    pub key: Key,
}

impl Address {
    /// The address of the document of `entity` whose column `id` holds `id`.
    pub fn new(entity: &'static Entity, id: impl Into<String>) -> Self {
        Self { entity, key: Key::from_text(id) }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.entity.name, self.key.text())
    }
}

/// A document as a store holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// The document, exactly.
    pub document: RawDocumentBuf,
    /// The stamp of its last write, where the store keeps one. MongoDB keeps none for its own writes.
    pub stamp: Option<Stamp>,
}

/// What must be so for a change to happen.
#[derive(Debug, Clone, PartialEq)]
pub enum Guard {
    /// The store holds nothing under the key.
    Absent,
    /// The store still holds what it gave out: the same stamp, or the same document where there is no stamp. Simpler
    /// than values of single fields, and no update can be lost: a put replaces the whole document.
    Unchanged(Stored),
}

/// A guarded write of one key.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Puts `document` under its key.
    Put {
        /// The key, which is also that of `document`.
        address: Address,
        /// What must be so.
        guard: Guard,
        /// The document.
        document: RawDocumentBuf,
    },
    /// Deletes what is under the key, leaving a tombstone.
    Delete {
        /// The key.
        address: Address,
        /// What is deleted.
        unchanged: Stored,
    },
    /// Writes nothing, but holds the other changes to this: it stays so until they are committed.
    Check {
        /// The key.
        address: Address,
        /// What the store must hold.
        unchanged: Stored,
    },
}

impl Change {
    /// Puts a document where there must be none.
    pub fn create(entity: &'static Entity, document: RawDocumentBuf) -> Self {
        let address = Address { entity, key: Mapping::new(entity).key(&document) };
        Self::Put { address, guard: Guard::Absent, document }
    }

    /// Puts `document` in the place of `replaced`.
    pub fn replace(address: Address, replaced: Stored, document: RawDocumentBuf) -> Self {
        Self::Put { address, guard: Guard::Unchanged(replaced), document }
    }

    /// What a store holds once this is done, under the stamp of the write.
    pub(crate) fn after(&self, address: Address, stamp: Option<Stamp>) -> After {
        let document = match self {
            Self::Put { document, .. } => Some(document.clone()),
            Self::Check { unchanged, .. } => Some(unchanged.document.clone()),
            Self::Delete { .. } => None,
        };
        After { address, stamp, document }
    }

    /// The key.
    pub fn address(&self) -> &Address {
        match self {
            Self::Put { address, .. } | Self::Delete { address, .. } | Self::Check { address, .. } => address,
        }
    }
}

/// What a store holds after a change.
#[derive(Debug, Clone, PartialEq)]
pub struct After {
    /// The key.
    pub address: Address,
    /// The stamp of the write; of what was there before, for a check.
    pub stamp: Option<Stamp>,
    /// The document; nothing after a deletion.
    pub document: Option<RawDocumentBuf>,
}

impl After {
    /// As [`Store::get`] would give it next.
    pub fn stored(self) -> Option<Stored> {
        let stamp = self.stamp;
        self.document.map(|document| Stored { document, stamp })
    }
}

/// Why a store did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A guard does not hold: somebody else was first. Nothing was written.
    #[error("{address} is no longer what it was")]
    Conflict {
        /// The key.
        address: Address,
    },
    /// The document cannot be kept. Nothing was written.
    #[error("{address} cannot be stored: {reason}")]
    Refused {
        /// The key.
        address: Address,
        /// What is wrong with it.
        reason: String,
    },
    /// The store is not the primary, or not at the writer's epoch. Nothing was written.
    #[error("could not {attempted}: the store takes no primary writes of this epoch")]
    Fenced {
        /// What was attempted.
        attempted: String,
    },
    /// The store cannot be reached, or did not answer in time. A write may have happened or not.
    #[error("could not {attempted}: the store is unavailable")]
    Unavailable {
        /// What was attempted.
        attempted: String,
        /// The driver's answer; nothing when the time was over.
        source: Option<Cause>,
    },
    /// Anything else. Nothing was written.
    #[error("could not {attempted}")]
    Failed {
        /// What was attempted.
        attempted: String,
        /// What happened.
        source: Cause,
    },
}

/// A driver's error.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A backend.
///
/// Every operation ends within [`OPERATION_WAIT`]. Dropping one on the way is safe: a read is given up, a write happens
/// whole or not at all, and which of the two is not known.
pub trait Store: Clone + Send + Sync + 'static {
    /// What stands under `address`.
    fn get(&self, address: &Address) -> impl Future<Output = Result<Option<Stored>, StoreError>> + Send;

    /// What stands under each of the keys of `entity`, in their order.
    fn get_many(
        &self,
        entity: &'static Entity,
        keys: &[Key],
    ) -> impl Future<Output = Result<Vec<Option<Stored>>, StoreError>> + Send;

    /// One page of what matches.
    fn find(&self, query: &Query) -> impl Future<Output = Result<Page, StoreError>> + Send;

    /// Makes all changes in one transaction, or none when a guard does not hold. A key may occur once.
    fn apply(&self, changes: &[Change]) -> impl Future<Output = Result<Vec<After>, StoreError>> + Send;

    /// Makes each change whose guard holds, each for itself: nothing in the place of those that do not.
    fn apply_each(&self, changes: &[Change]) -> impl Future<Output = Result<Vec<Option<After>>, StoreError>> + Send;

    /// The database's clock, to the millisecond.
    fn now(&self) -> impl Future<Output = Result<DateTime<Utc>, StoreError>> + Send;
}

/// Bounds an operation that was to do `attempted`.
async fn bounded<T>(
    attempted: impl FnOnce() -> String,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let done = tokio::time::timeout(OPERATION_WAIT, work).await;
    done.unwrap_or_else(|_| Err(StoreError::Unavailable { attempted: attempted(), source: None }))
}

/// What a write of these changes is called in an error.
fn attempted(changes: &[Change]) -> String {
    match changes {
        [] => "write nothing".to_owned(),
        [one] => format!("write {}", one.address()),
        [first, others @ ..] => format!("write {} and {} more", first.address(), others.len()),
    }
}

/// Refuses changes that no store may make: a key that occurs twice, and documents that could not become a row, so that
/// every store keeps the same.
fn check(changes: &[Change]) -> Result<(), StoreError> {
    let mut keys: Vec<(&str, &Key)> = Vec::with_capacity(changes.len());
    for change in changes {
        let Address { entity, key } = change.address();
        keys.push((entity.name, key));
        if let Change::Put { document, address, .. } = change {
            let refuse = |reason| StoreError::Refused { address: address.clone(), reason };
            if Mapping::new(entity).key(document) != *key {
                return Err(refuse("it has another _id".to_owned()));
            }
        }
    }
    keys.sort_unstable();
    let twice = keys.windows(2).find(|pair| pair[0] == pair[1]);
    let change = twice.and_then(|pair| changes.iter().find(|change| &change.address().key == pair[0].1));
    match change {
        Some(change) => Err(StoreError::Refused {
            address: change.address().clone(),
            reason: "it stands twice in one write".to_owned(),
        }),
        None => Ok(()),
    }
}
