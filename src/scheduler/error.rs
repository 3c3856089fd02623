//! Why the scheduler did not do what it was asked to.

use super::state::IllegalTransition;
use crate::store::{Address, StoreError};

/// The errors of all repositories.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such record, or it is not this tenant's, or it was deleted: no caller learns which.
    #[error("{address} was not found")]
    NotFound {
        /// The key.
        address: Address,
    },
    /// The record exists already, or is not in the state the caller took it to be in, or others kept changing it.
    #[error("{address} was changed by somebody else, or exists already: read it again")]
    Conflict {
        /// The key.
        address: Address,
    },
    /// The state machine does not allow the transition.
    #[error("{address}")]
    Illegal {
        /// The key.
        address: Address,
        /// From where to where, and what is allowed.
        source: IllegalTransition,
    },
    /// What the caller gave cannot be used.
    #[error("{what} is not valid: {reason}")]
    Invalid {
        /// What was given.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The store holds a document that the scheduler cannot read.
    #[error("{address} cannot be read as the scheduler's record: {reason}")]
    Unreadable {
        /// The key.
        address: Address,
        /// What is wrong with it.
        reason: String,
    },
    /// The store cannot be reached, or did not answer in time. A write may have happened or not: read before trying again.
    #[error("the scheduler's store is unavailable")]
    Unavailable {
        /// What was attempted.
        source: StoreError,
    },
    /// Anything else.
    #[error("the scheduler's store failed")]
    Failed {
        /// What was attempted.
        source: StoreError,
    },
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict { address } => Self::Conflict { address },
            StoreError::Refused { address, reason } => {
                Self::Invalid { what: "the record", reason: format!("{address}: {reason}") }
            }
            error @ (StoreError::Unavailable { .. } | StoreError::Fenced { .. }) => Self::Unavailable { source: error },
            error @ StoreError::Failed { .. } => Self::Failed { source: error },
        }
    }
}

impl Error {
    /// What a lock's failure is to the scheduler: a store that is away, for all but a key that cannot be one.
    pub fn of_lock(error: crate::lock::LockError) -> Self {
        match error {
            error @ (crate::lock::LockError::Key { .. } | crate::lock::LockError::Lease { .. }) => {
                Self::invalid("the lock", error.to_string())
            }
            error => {
                let attempted = "take or let go a lock".to_owned();
                Self::Unavailable { source: StoreError::Unavailable { attempted, source: Some(error.into()) } }
            }
        }
    }

    /// An argument that cannot be used.
    pub fn invalid(what: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid { what, reason: reason.into() }
    }
}
