//! In which phase a verification is made: it says nothing of another epoch.

use super::stores::Stores;
use super::{Result, VerifyError};
use crate::phase::Phase;
use crate::source::Source;
use crate::switch::Fences;
use crate::target::Target;

/// A phase and its epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// The phase.
    pub phase: Phase,
    /// The epoch.
    pub epoch: i32,
}

impl Turn {
    /// The turn that is.
    pub async fn now(source: &Source, target: &Target) -> Result<Self> {
        let (phase, epoch) = Fences::look(source, target).await?.turn();
        Ok(Self { phase, epoch })
    }

    /// Makes sure that the primary is still the same.
    ///
    /// # Errors
    /// [`VerifyError::Turned`].
    pub async fn require(self, stores: &Stores) -> Result<()> {
        let now = Self::now(&stores.source, &stores.target).await?;
        if now.epoch == self.epoch { Ok(()) } else { Err(VerifyError::Turned) }
    }
}
