//! Why a verification has no result.

use super::MIRROR_WAIT;
use crate::fence::FenceError;
use crate::source::SourceError;
use crate::target::TargetError;

/// Why a verification has no result.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The source failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The target failed.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A fence failed.
    #[error(transparent)]
    Fence(#[from] FenceError),
    /// Another process is at the same verification.
    #[error("the same verification is under way by {by}")]
    UnderWay {
        /// Whose.
        by: String,
    },
    /// Another process went on with it, since this one was not heard of for the length of its lease.
    #[error("another process has taken the verification over")]
    TakenOver,
    /// The other store became the primary meanwhile.
    #[error("the primary has changed while its stores were verified")]
    Turned,
    /// The mirror stands still, or there is none any more.
    #[error("the mirror did not pass a mark within {} s", MIRROR_WAIT.as_secs())]
    Behind,
    /// The ledger holds what the program did not write.
    #[error("the ledger of the verification is not readable: {what}")]
    Unreadable {
        /// What is not.
        what: &'static str,
    },
    /// A bug: a task panicked. Its own report is in the log.
    #[error("a task of the verification ended by itself")]
    Crashed,
    /// It was told to stop.
    #[error("stopped before the end")]
    Interrupted,
}

/// A step of a verification.
pub type Result<T> = std::result::Result<T, VerifyError>;

impl VerifyError {
    /// The source failed while doing `attempted`.
    pub(super) fn source(attempted: String, source: mongodb::error::Error) -> Self {
        SourceError::of(attempted, source).into()
    }

    /// The target failed while doing `attempted`.
    pub(super) fn target(attempted: impl Into<String>, source: sqlx::Error) -> Self {
        TargetError::of(attempted, source).into()
    }
}
