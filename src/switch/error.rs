//! Why a switch was not made.

use std::time::Duration;

use crate::condition::Condition;
use crate::fence::FenceError;
use crate::mirror::MirrorError;
use crate::phase::{Backend, Phase};
use crate::source::SourceError;
use crate::target::TargetError;
use crate::verify::VerifyError;

/// Why the phase is as it was, unless [`SwitchError::Half`] says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum SwitchError {
    /// There is no such transition.
    #[error("from phase {from} there is no way to {to}")]
    NoWay {
        /// The phase that is.
        from: Phase,
        /// The phase that was asked for.
        to: Phase,
    },
    /// The gate is closed.
    #[error("not every condition is met")]
    Unmet {
        /// All of them.
        conditions: Vec<Condition>,
    },
    /// The permit is for another epoch, or too old.
    #[error("what the gate measured is too old, or of another epoch")]
    Expired,
    /// Another switch has not ended.
    #[error("a switch to {to} is under way by {by}, at: {step}")]
    UnderWay {
        /// To which phase.
        to: String,
        /// Whose.
        by: String,
        /// Its last step.
        step: String,
    },
    /// Nothing is to be resumed or aborted.
    #[error("no switch is under way")]
    NoneUnderWay,
    /// A switch that has opened the new primary cannot be undone, only the next one can.
    #[error("the switch to {to} is made; what is left of it is to be finished")]
    Made {
        /// To which phase.
        to: Phase,
    },
    /// It could only be undone: its abort was half way.
    #[error("the switch had been aborted; the phase is {phase} again")]
    Aborted {
        /// The phase.
        phase: Phase,
    },
    /// Somebody else has changed a fence meanwhile.
    #[error("the fence of {backend} was changed by somebody else")]
    Moved {
        /// Whose.
        backend: Backend,
    },
    /// Processes did not acknowledge that they write no more.
    #[error("{} of the application's processes did not stop writing: {}", names.len(), names.join(", "))]
    Silent {
        /// Their names.
        names: Vec<String>,
    },
    /// The new primary did not come level in time.
    #[error("{backend} did not come level within {waited:?}")]
    Late {
        /// The new primary.
        backend: Backend,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The last generation found keys that differ.
    #[error("the stores differ, first at {}", keys.join(", "))]
    Differ {
        /// The first of them, each with its collection.
        keys: Vec<String>,
    },
    /// The comparison of what was written since the last verification failed.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// No store takes writes.
    #[error("no store takes writes: a switch has ended half way")]
    Half,
    /// A fence failed.
    #[error(transparent)]
    Fence(#[from] FenceError),
    /// MongoDB failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// PostgreSQL failed.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The mirror failed.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
}

/// A step of a switch.
pub type Result<T> = std::result::Result<T, SwitchError>;
