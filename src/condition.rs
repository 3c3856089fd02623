//! What must be so before the phase may change, and what was found: measured by the gate, kept with the switch, shown in reports.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

/// One thing that must be so, and what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// What must be so.
    pub name: String,
    /// Whether it is.
    pub met: bool,
    /// What was found.
    pub found: String,
    /// What would do.
    pub limit: String,
    /// When it was looked at.
    pub at: DateTime<Utc>,
}

impl Condition {
    /// What was found just now.
    pub fn new(name: &str, met: bool, found: impl Into<String>, limit: impl Into<String>) -> Self {
        Self { name: name.to_owned(), met, found: found.into(), limit: limit.into(), at: Utc::now() }
    }
}
