//! The phases of the move (design 11): which store is the primary, and whether the other one follows.

use std::fmt;
use std::str::FromStr;

/// One of the two stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Backend {
    /// MongoDB.
    Mongo,
    /// PostgreSQL.
    Postgres,
}

impl Backend {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Mongo, Self::Postgres];

    /// Its name in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mongo => "mongodb",
            Self::Postgres => "postgresql",
        }
    }

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|backend| backend.name() == name)
    }

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::Mongo => Self::Postgres,
            Self::Postgres => Self::Mongo,
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mongo => "MongoDB",
            Self::Postgres => "PostgreSQL",
        })
    }
}

/// Where the move stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// MongoDB alone; the mirror may bring PostgreSQL level from outside.
    Mongo,
    /// MongoDB, and every write goes to PostgreSQL as well.
    MongoPrimary,
    /// PostgreSQL, and every write goes to MongoDB as well.
    PostgresPrimary,
    /// PostgreSQL alone.
    Postgres,
}

/// A word that names no phase. There is no phase to fall back to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{word:?} is no phase: it must be mongo, mongo-primary, postgres-primary or postgres")]
pub struct UnknownPhase {
    /// The word.
    pub word: String,
}

impl Phase {
    /// All of them, in the order of the move.
    pub const ALL: [Self; 4] = [Self::Mongo, Self::MongoPrimary, Self::PostgresPrimary, Self::Postgres];

    /// Its name in settings, in both stores and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mongo => "mongo",
            Self::MongoPrimary => "mongo-primary",
            Self::PostgresPrimary => "postgres-primary",
            Self::Postgres => "postgres",
        }
    }

    /// The store whose answers stand.
    pub fn primary(self) -> Backend {
        match self {
            Self::Mongo | Self::MongoPrimary => Backend::Mongo,
            Self::PostgresPrimary | Self::Postgres => Backend::Postgres,
        }
    }

    /// Whether applications write to the other store as well.
    pub fn is_mirrored(self) -> bool {
        matches!(self, Self::MongoPrimary | Self::PostgresPrimary)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Phase {
    type Err = UnknownPhase;

    fn from_str(word: &str) -> Result<Self, UnknownPhase> {
        let phase = Self::ALL.into_iter().find(|phase| phase.name() == word);
        phase.ok_or_else(|| UnknownPhase { word: word.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_is_read_by_its_name_and_nothing_else_is_one() {
        for phase in Phase::ALL {
            assert_eq!(phase.name().parse(), Ok(phase));
        }
        for word in ["", "Mongo", "mongo ", "postgres_primary"] {
            let refused = word.parse::<Phase>().unwrap_err().to_string();
            assert!(Phase::ALL.iter().all(|phase| refused.contains(phase.name())), "{refused}");
        }
    }
}
