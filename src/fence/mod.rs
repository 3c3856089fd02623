//! The fences (design 11): a record in each store that says whether it takes primary writes, and at which epoch.
//!
//! Invariants, which `tests/model` checks: at no moment are both open; a fence changes only from a state that whoever
//! changes it has seen. PostgreSQL's is exact: every write of the scheduler's holds it ([`postgres`]). MongoDB's is kept
//! by the processes that write: each holds a lease in the record, writes only while it lasts, and takes no write for
//! done whose answer came later ([`gate`]).

pub mod gate;
pub mod mongo;
pub mod postgres;
pub mod watch;

use std::time::Duration;

use crate::phase::{Backend, Phase, UnknownPhase};
use crate::source::SourceError;
use crate::target::TargetError;

/// How long a store may take to answer about its fence.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// What a store's record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    /// The phase as it was when this store was last the primary, or turned into it.
    pub phase: Phase,
    /// The epoch.
    pub epoch: i32,
    /// Whether the store takes primary writes of that epoch.
    pub open: bool,
}

/// Why a fence is not known, or was not changed. There is no fence to fall back to.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// MongoDB failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// PostgreSQL failed.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The record names no phase.
    #[error("the fence in {backend} cannot be read")]
    Phase {
        /// Whose fence.
        backend: Backend,
        /// Its word.
        source: UnknownPhase,
    },
    /// The record lacks a field, or has one of another type.
    #[error("the fence in {backend} cannot be read: {reason}")]
    Malformed {
        /// Whose fence.
        backend: Backend,
        /// What is wrong.
        reason: String,
    },
    /// There is no record.
    #[error(
        "{backend} has no fence: run `bridge migrate`, or `bridge switch` from the phase that the other store names"
    )]
    Missing {
        /// Whose fence.
        backend: Backend,
    },
    /// The store does not answer.
    #[error("could not {attempted}: no answer within {} s", ANSWER_WAIT.as_secs())]
    Silent {
        /// What was attempted.
        attempted: &'static str,
    },
}

/// MongoDB's fence before the first switch.
pub const FIRST: Fence = Fence { phase: Phase::Mongo, epoch: 1, open: true };

/// Makes MongoDB's fence, open in phase `mongo`, where there is none and PostgreSQL has never been anything but a copy.
///
/// # Errors
/// [`FenceError::Missing`] when PostgreSQL's fence tells of a switch: then MongoDB's has been lost, and nobody can say
/// whether it was open.
pub async fn establish(
    mongo: &mongo::MongoFence,
    postgres: Option<&postgres::PostgresFence>,
) -> Result<(), FenceError> {
    if mongo.look().await?.is_some() {
        return Ok(());
    }
    let is_new = match postgres {
        Some(postgres) => postgres.look().await? == Fence { open: false, ..FIRST },
        None => true,
    };
    if is_new { mongo.create(FIRST).await.map(|_| ()) } else { Err(FenceError::Missing { backend: Backend::Mongo }) }
}

async fn bounded<T>(
    attempted: &'static str,
    work: impl Future<Output = Result<T, FenceError>>,
) -> Result<T, FenceError> {
    tokio::time::timeout(ANSWER_WAIT, work).await.unwrap_or(Err(FenceError::Silent { attempted }))
}
