//! Where the move stands, for whoever looks at 02:00. Reads both stores and writes neither.
//!
//! Invariant: what a store does not tell is told as that; nothing is guessed in its place.

mod look;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use sqlx::FromRow;

use crate::condition::Condition;
use crate::fence::Fence;

pub use self::look::Lookout;

/// What one of the stores told.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Told<T> {
    /// This.
    Told(T),
    /// Nothing, and why.
    Silent {
        /// The failure with its causes.
        error: String,
    },
    /// It is not needed any more, and was not asked.
    NotAsked,
}

impl<T> Told<T> {
    /// What it told, if it did.
    pub fn told(&self) -> Option<&T> {
        if let Self::Told(told) = self { Some(told) } else { None }
    }

    /// Why it did not.
    pub fn error(&self) -> Option<&str> {
        if let Self::Silent { error } = self { Some(error) } else { None }
    }
}

/// Where the move stands.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// When it was looked.
    pub at: DateTime<Utc>,
    /// Whether `bridge finalize` has ended it.
    pub finalized: bool,
    /// What the fences say together; nothing when those that could be read do not tell.
    #[serde(flatten)]
    pub standing: Option<Stands>,
    /// What MongoDB told.
    pub mongodb: Told<Mongo>,
    /// What PostgreSQL told.
    pub postgresql: Told<Box<Postgres>>,
    /// The phases that may follow.
    pub next: Vec<Next>,
}

/// What the fences say together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Stands {
    /// The phase.
    pub phase: &'static str,
    /// Its epoch.
    pub epoch: i32,
    /// Whether its primary takes writes; otherwise a switch is half way.
    pub open: bool,
}

/// A store's fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FenceState {
    /// The phase that it names.
    pub phase: &'static str,
    /// Its epoch.
    pub epoch: i32,
    /// Whether it takes primary writes.
    pub open: bool,
}

impl From<Fence> for FenceState {
    fn from(Fence { phase, epoch, open }: Fence) -> Self {
        Self { phase: phase.name(), epoch, open }
    }
}

/// A process of the application.
#[derive(Debug, Clone, PartialEq, Serialize, FromRow)]
pub struct Process {
    /// Who it is.
    pub name: String,
    /// How long ago it was heard of.
    pub silent_seconds: f64,
}

/// What MongoDB told.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mongo {
    /// Its fence; nothing before the first switch, and before the first application over both stores.
    pub fence: Option<FenceState>,
    /// The processes that may write to it.
    pub processes: Vec<Process>,
}

/// What PostgreSQL told.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Postgres {
    /// Its fence.
    pub fence: FenceState,
    /// The processes that take it for the primary.
    pub processes: Vec<Process>,
    /// The switch that is under way.
    pub switch: Option<UnderWay>,
    /// How far each collection is copied.
    pub backfill: Vec<Backfill>,
    /// The mirror; nothing before the first.
    pub mirror: Option<Mirror>,
    /// Collections whose table was truncated and that nobody brings back but a backfill.
    pub truncated: Vec<String>,
    /// What MongoDB is to be brought.
    pub outbox: Outbox,
    /// Keys to compare again.
    pub recheck: i64,
    /// Documents that cannot become a row.
    pub quarantine: Counted,
    /// Stray writes.
    pub strays: Counted,
    /// The verification that ended last.
    pub verification: Option<Compared>,
    /// The verification that runs.
    pub verifying: Option<Running>,
    /// The comparison of queries that ended last.
    pub read_parity: Option<Compared>,
    /// The switch that was made last.
    pub last_switch: Option<Made>,
}

/// A switch that is under way.
#[derive(Debug, Clone, PartialEq, Serialize, FromRow)]
pub struct UnderWay {
    /// From which phase.
    pub from: String,
    /// To which.
    pub to: String,
    /// Its last step.
    pub step: String,
    /// Whose.
    pub by: String,
    /// Since when.
    pub began_at: DateTime<Utc>,
    /// Whether its operator was heard of lately; otherwise it is to be resumed or aborted.
    pub is_held: bool,
}

/// How far a collection is copied.
#[derive(Debug, Clone, PartialEq, Serialize, FromRow)]
pub struct Backfill {
    /// The collection.
    pub collection: String,
    /// When the last copy began; nothing when there was none.
    pub began_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// Its chunks.
    pub chunks: i64,
    /// Those that are copied.
    pub chunks_finished: i64,
    /// Those that somebody is at.
    pub chunks_leased: i64,
    /// Documents copied.
    pub documents: i64,
    /// How many there were believed to be.
    pub estimated_documents: i64,
}

/// The mirror.
#[derive(Debug, Clone, PartialEq, Serialize, FromRow)]
pub struct Mirror {
    /// Whether one is active.
    pub is_running: bool,
    /// How far the secondary was behind, as it said last.
    pub lag_seconds: Option<f64>,
    /// The same in events.
    pub lag_events: Option<i64>,
    /// When the stores were level last.
    pub level_at: Option<DateTime<Utc>>,
}

/// What MongoDB is to be brought.
#[derive(Debug, Clone, PartialEq, Serialize, FromRow)]
pub struct Outbox {
    /// How many writes.
    pub count: i64,
    /// How old the first is.
    pub oldest_seconds: f64,
}

/// Things that an operator may accept.
#[derive(Debug, Clone, PartialEq, Serialize, FromRow)]
pub struct Counted {
    /// How many there are.
    pub count: i64,
    /// How many of them are accepted.
    pub accepted: i64,
}

/// A comparison that has ended.
#[derive(Debug, Clone, PartialEq, Serialize, FromRow)]
pub struct Compared {
    /// Its number.
    pub number: i64,
    /// What came of it.
    pub verdict: Option<String>,
    /// The phase in which it began.
    pub phase: String,
    /// The epoch in which it began.
    pub epoch: i32,
    /// When it began.
    pub began_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: DateTime<Utc>,
}

/// A verification that runs.
#[derive(Debug, Clone, PartialEq, Serialize, FromRow)]
pub struct Running {
    /// Its number.
    pub number: i64,
    /// Whose.
    pub by: String,
    /// Since when.
    pub began_at: DateTime<Utc>,
    /// Its parts.
    pub shares: i64,
    /// Those that are compared.
    pub shares_finished: i64,
}

/// A switch that was made.
#[derive(Debug, Clone, PartialEq, Serialize, FromRow)]
pub struct Made {
    /// The phase that it began.
    pub phase: String,
    /// Its epoch.
    pub epoch: i32,
    /// When.
    pub turned_at: DateTime<Utc>,
    /// By whom.
    pub turned_by: String,
    /// For how long writers waited.
    pub pause_seconds: Option<f64>,
    /// What the gate measured.
    pub conditions: Value,
}

/// A phase that may follow.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Next {
    /// The phase.
    pub to: &'static str,
    /// Whether the gate is open.
    pub met: bool,
    /// What must be so, and what was found.
    pub conditions: Vec<Condition>,
    /// Why it was not looked at.
    pub error: Option<String>,
}

impl Status {
    /// The same without what moves by itself: two looks at the same state are equal.
    pub fn still(&self) -> Self {
        let mut still = self.clone();
        still.at = DateTime::UNIX_EPOCH;
        let processes = |processes: &mut Vec<Process>| processes.iter_mut().for_each(|one| one.silent_seconds = 0.0);
        if let Told::Told(mongo) = &mut still.mongodb {
            processes(&mut mongo.processes);
        }
        if let Told::Told(postgres) = &mut still.postgresql {
            processes(&mut postgres.processes);
            postgres.outbox.oldest_seconds = 0.0;
            if let Some(mirror) = &mut postgres.mirror {
                (mirror.lag_seconds, mirror.lag_events, mirror.level_at) = (None, None, None);
            }
        }
        for condition in still.next.iter_mut().flat_map(|next| &mut next.conditions) {
            (condition.at, condition.found) = (DateTime::UNIX_EPOCH, String::new());
        }
        still
    }
}
