//! Both stores as read parity sees them: every read is paid for, and what the mirror has yet to bring is waited for.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::{ReadError, Result};
use crate::anchor::{self, Mark};
use crate::backfill::{Limiter, Rate};
use crate::mapping::Mapping;
use crate::parity::{Read, Seen};
use crate::phase::{Backend, Phase};
use crate::source::Source;
use crate::store::{Cursor, MongoStore, PostgresStore, StoreError};
use crate::switch::{Fences, Standing};
use crate::target::{Target, TargetError};

/// How long a mark may take to be written.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// How long the mirror may take to pass a mark.
const MIRROR_WAIT: Duration = Duration::from_secs(30);

/// Keys of documents that an operator has accepted to be no rows, by collection.
type Accepted = HashMap<String, HashSet<String>>;

type Answer = std::result::Result<Seen, StoreError>;

/// The two stores, in one phase.
#[derive(Debug)]
pub struct Stores {
    source: Source,
    target: Target,
    mongo: MongoStore,
    postgres: PostgresStore,
    accepted: Accepted,
    limiter: Limiter,
    /// Whether a mirror was running when it began.
    is_followed: bool,
    /// The phase.
    pub phase: Phase,
    /// Its epoch.
    pub epoch: i32,
}

impl Stores {
    /// The stores as they stand now.
    pub async fn open(source: &Source, target: &Target, rate: Rate) -> Result<Self> {
        let (phase, epoch) = standing(source, target).await?;
        let pool = target.pool().clone();
        let listed = sqlx::query_as("select collection, id from bridge.quarantine where accepted_at is not null");
        let listed: Vec<(String, String)> = listed.fetch_all(&pool).await.map_err(failed("read the quarantine"))?;
        let mut accepted = Accepted::new();
        for (collection, id) in listed {
            accepted.entry(collection).or_default().insert(id);
        }
        let is_followed = anchor::is_followed(&pool).await.map_err(failed("look for a mirror"))?;
        Ok(Self {
            source: source.clone(),
            target: target.clone(),
            // Nothing is written, so the epoch does not matter.
            mongo: MongoStore::new(source.client().clone(), source.database().clone(), 0),
            postgres: PostgresStore::new(pool),
            accepted,
            limiter: Limiter::new(rate),
            is_followed,
            phase,
            epoch,
        })
    }

    /// Fails when the phase, or the epoch, has changed since.
    pub async fn require_same_phase(&self) -> Result<()> {
        let now = standing(&self.source, &self.target).await?;
        if now == (self.phase, self.epoch) { Ok(()) } else { Err(ReadError::Turned { from: self.phase, to: now.0 }) }
    }

    /// The store whose answers stand.
    pub fn primary(&self) -> Backend {
        self.phase.primary()
    }

    /// What one store answers.
    pub async fn read(&self, read: &Read, from: Backend) -> Result<Seen> {
        let answered = match from {
            Backend::Mongo => self.of_mongo(read).await,
            Backend::Postgres => read.of(&self.postgres).await,
        };
        let seen = answered.map_err(|source| ReadError::Store { backend: from, source })?;
        let bytes: usize = seen.items.iter().map(|item| item.document.as_bytes().len()).sum();
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        self.limiter.pay(count(seen.items.len()), count(bytes)).await;
        Ok(seen)
    }

    /// What MongoDB answers, but for what is accepted to be there alone: others come in its place.
    async fn of_mongo(&self, read: &Read) -> Answer {
        let Some(accepted) = self.accepted.get(read.entity().name) else { return read.of(&self.mongo).await };
        let mapping = Mapping::new(read.entity());
        let without = |mut seen: Seen| {
            seen.items.retain(|item| !accepted.contains(mapping.key(&item.document).text()));
            seen
        };
        let mut seen = without(read.of(&self.mongo).await?);
        let Read::Page(query) = read else { return Ok(seen) };
        let after = async |next: &Option<Cursor>, limit: u32| -> Answer {
            Ok(without(Read::Page(query.clone().after(next.clone()).limit(limit)).of(&self.mongo).await?))
        };
        loop {
            let found = u32::try_from(seen.items.len()).unwrap_or(u32::MAX);
            let missing = query.limit.saturating_sub(found);
            if seen.next.is_none() || missing == 0 {
                break;
            }
            let more = after(&seen.next, missing).await?;
            seen.items.extend(more.items);
            seen.next = more.next;
        }
        // Another page follows only when something else is on it.
        let mut ahead = seen.next.clone();
        while ahead.is_some() {
            let further = after(&ahead, 1).await?;
            if !further.items.is_empty() {
                return Ok(seen);
            }
            ahead = further.next;
        }
        seen.next = None;
        Ok(seen)
    }

    /// Waits until the mirror has brought to the secondary whatever could be read from the primary until now. Where no
    /// mirror was running there is nothing to wait for.
    pub async fn until_followed(&self) -> Result<()> {
        if !self.is_followed {
            return Ok(());
        }
        let behind = || ReadError::Behind { secondary: self.primary().other() };
        let mark = Mark::take(self.primary(), self.source.database(), self.target.pool());
        let mark = tokio::time::timeout(ANSWER_WAIT, mark).await.map_err(|_| behind())?.map_err(ReadError::of_mark)?;
        let passed = mark.until_passed(self.target.pool(), MIRROR_WAIT).await;
        if passed.map_err(failed("look how far the mirror is"))? { Ok(()) } else { Err(behind()) }
    }
}

/// The phase and the epoch. The fences are only looked at: where MongoDB has none yet, none is made.
async fn standing(source: &Source, target: &Target) -> Result<(Phase, i32)> {
    let fences = Fences::look(source, target).await?;
    match fences.standing() {
        Standing::Open(Phase::Postgres) => Err(ReadError::Alone),
        Standing::Open(_) => Ok(fences.turn()),
        Standing::Closed(_) | Standing::Reopening(..) => Err(ReadError::Half),
    }
}

fn failed(attempted: &'static str) -> impl Fn(sqlx::Error) -> TargetError {
    move |error| TargetError::of(attempted, error)
}
