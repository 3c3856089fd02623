//! PostgreSQL as the secondary of the dual store: each write of MongoDB's follows at once, bounded in time.
//!
//! What does not follow here is brought by the mirror, which reads the same writes from the change stream. MongoDB as the
//! secondary needs no follower: every write of PostgreSQL's is in the outbox, in its own transaction, and a second write
//! of the same document, with a transaction and a stamp of its own, would cost the caller more than the first one.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgPool};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::Tuning;
use super::breaker::{Admission, Breaker};
use crate::metrics::{self, Tally};
use crate::secondary::{Item, Level, Replaces, Secondary, State};
use crate::store::After;
use crate::store::postgres::sessions::Sessions;
use crate::target;

/// How the secondary is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protection {
    /// How long a caller waits for the secondary at most.
    pub deadline: Duration,
    /// How long nobody waits for it after it has failed.
    pub pause: Duration,
}

impl Default for Protection {
    fn default() -> Self {
        Self { deadline: Duration::from_millis(250), pause: Duration::from_secs(1) }
    }
}

/// What became of the writes that were to follow.
#[derive(Debug)]
pub struct Followed {
    /// The secondary has them.
    pub level: Tally,
    /// It failed, or did not answer in time.
    pub failed: Tally,
    /// It was not asked, since it had failed before.
    pub skipped: Tally,
}

impl Followed {
    fn new() -> Self {
        let tally = |outcome| Tally::new(metrics::SECONDARY_WRITES, outcome);
        Self { level: tally("level"), failed: tally("failed"), skipped: tally("skipped") }
    }
}

/// Brings PostgreSQL level.
#[derive(Debug)]
pub struct Follower {
    sessions: Sessions,
    secondary: Secondary,
    breaker: Breaker,
    tuning: watch::Receiver<Tuning>,
    followed: Followed,
    probes: TaskTracker,
}

impl Follower {
    /// Sessions beside those of the store that reads from `pool`.
    pub fn new(pool: PgPool, tuning: watch::Receiver<Tuning>) -> Self {
        Self {
            sessions: Sessions::new(pool),
            secondary: Secondary::new(Replaces::Older),
            breaker: Breaker::closed(),
            tuning,
            followed: Followed::new(),
            probes: TaskTracker::new(),
        }
    }

    /// What became of the writes so far.
    pub fn followed(&self) -> &Followed {
        &self.followed
    }

    /// Waits for what goes on in the background, which is bounded.
    pub async fn close(&self) {
        self.probes.close();
        self.probes.wait().await;
    }

    /// Brings the keys of `afters` level, for as long as the deadline; not at all while the secondary is known to be away.
    pub async fn follow(self: &std::sync::Arc<Self>, afters: &[After]) {
        let items: Vec<Item> = afters.iter().filter_map(item).collect();
        if items.is_empty() {
            return;
        }
        match self.breaker.admit(self.protection().pause) {
            Admission::Wait => self.write(&items).await,
            Admission::Probe => {
                let follower = self.clone();
                self.probes.spawn(async move { follower.write(&items).await });
            }
            Admission::No => self.followed.skipped.one(),
        }
    }

    fn protection(&self) -> Protection {
        self.tuning.borrow().protection
    }

    async fn write(&self, items: &[Item]) {
        let protection = self.protection();
        let begun = Instant::now();
        let done = tokio::time::timeout(protection.deadline, self.transact(items)).await;
        metrics::SECONDARY_SECONDS.record(begun.elapsed());
        match done {
            Ok(Ok(())) => {
                self.followed.level.one();
                if self.breaker.succeeded() {
                    tracing::info!("PostgreSQL follows again");
                }
            }
            // The document is to blame, not the server: the mirror quarantines it.
            Ok(Err(error)) if target::refuses_data(&error) => {
                self.followed.failed.one();
                tracing::warn!(%error, "PostgreSQL refused a write of the dual store; the mirror will come upon it");
            }
            failed => {
                self.followed.failed.one();
                if self.breaker.failed(protection.pause) {
                    let error = match failed {
                        Ok(Err(error)) => error.to_string(),
                        _ => "no answer in time".to_owned(),
                    };
                    tracing::warn!(error, "PostgreSQL does not follow; the mirror will bring it level");
                }
            }
        }
    }

    async fn transact(&self, items: &[Item]) -> sqlx::Result<()> {
        let level = Level::of(items, None);
        let mut session = self.sessions.open().await?;
        let done = async {
            // One round trip for the beginning and the locks; no snapshot is older than they are.
            let mut transaction = session.begin_with(AssertSqlSafe(format!("begin; {}", level.locks()))).await?;
            self.secondary.write_locked(level, &mut transaction).await?;
            transaction.commit().await
        };
        let done = done.await;
        session.rest(&done);
        done
    }
}

fn item(after: &After) -> Option<Item> {
    let state = after.document.clone().map_or(State::Gone, State::Document);
    Some(Item { entity: after.address.entity, key: after.address.key.clone(), stamp: after.stamp?, state })
}
