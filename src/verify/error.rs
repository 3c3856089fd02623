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

/// What goes wrong on the way.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("could not {attempted}")]
    Source { attempted: String, source: Box<mongodb::error::Error> },
    #[error("could not {attempted}")]
    Target { attempted: String, source: sqlx::Error },
    #[error(transparent)]
    Fence(FenceError),
    #[error("another process has taken the verification over")]
    TakenOver,
    #[error("the primary has changed")]
    Turned,
    #[error("the mirror did not pass a mark")]
    Behind,
    #[error("the ledger is not readable: {what}")]
    Unreadable { what: &'static str },
    #[error("a task of the verification ended by itself")]
    Crashed,
}

/// A step of a verification.
pub type Result<T> = std::result::Result<T, Fault>;

impl Fault {
    /// The source failed while doing `attempted`.
    pub fn source(attempted: String, source: mongodb::error::Error) -> Self {
        Self::Source { attempted, source: Box::new(source) }
    }

    /// The target failed while doing `attempted`.
    pub fn target(attempted: String, source: sqlx::Error) -> Self {
        Self::Target { attempted, source }
    }
}

impl From<Fault> for VerifyError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Source { attempted, source } => SourceError::of(attempted, *source).into(),
            Fault::Target { attempted, source } => TargetError::of(attempted, source).into(),
            Fault::Fence(error) => error.into(),
            Fault::TakenOver => Self::TakenOver,
            Fault::Turned => Self::Turned,
            Fault::Behind => Self::Behind,
            Fault::Unreadable { what } => Self::Unreadable { what },
            Fault::Crashed => Self::Crashed,
        }
    }
}
