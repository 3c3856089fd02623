//! PostgreSQL as the secondary of the dual store: each write of MongoDB's follows at once, and nobody waits for it.
//!
//! A caller that waited would pay for both stores, one after the other, and gain nothing: what it read from PostgreSQL
//! afterwards, another process might have written in between. Together, what has piled up costs a fraction of what single
//! transactions would.
//!
//! What does not follow here is brought by the mirror, which reads the same writes from the change stream. MongoDB as the
//! secondary needs no follower: every write of PostgreSQL's is in the outbox, in its own transaction, and a second write
//! of the same document, with a transaction and a stamp of its own, would cost the caller more than the first one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgPool};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Tuning;
use super::breaker::Breaker;
use crate::mapping::Key;
use crate::metrics::{self, Tally};
use crate::secondary::{Item, Level, Replaces, Secondary, State};
use crate::store::After;
use crate::store::postgres::sessions::Sessions;
use crate::target;

/// Writes that wait at most.
const QUEUE: usize = 1_024;

/// Bytes of documents that wait, and one write more, at most.
const QUEUE_BYTES: usize = 16 << 20;

/// Keys of one transaction, and bytes of their documents, aimed at.
const BATCH: usize = 500;
const BATCH_BYTES: usize = 4 << 20;

/// How the secondary is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protection {
    /// How long it may take for what has piled up.
    pub deadline: Duration,
    /// How long it is passed over after it has failed.
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
    /// It was not asked, since it had failed before, or too much waited for it.
    pub skipped: Tally,
}

impl Followed {
    fn new() -> Self {
        let tally = |outcome| Tally::new(metrics::SECONDARY_WRITES, outcome);
        Self { level: tally("level"), failed: tally("failed"), skipped: tally("skipped") }
    }
}

/// Brings PostgreSQL level, in a task of its own: nobody waits for it. What has piled up goes in one transaction.
#[derive(Debug)]
pub struct Follower {
    queue: mpsc::Sender<Vec<Item>>,
    inside: Arc<Inside>,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// What the task and those who write share.
#[derive(Debug)]
struct Inside {
    breaker: Breaker,
    tuning: watch::Receiver<Tuning>,
    followed: Followed,
    /// Bytes of documents that wait.
    bytes: AtomicUsize,
    /// How many writes wait, or are under way.
    waiting: watch::Sender<u64>,
    stop: CancellationToken,
}

impl Inside {
    fn protection(&self) -> Protection {
        self.tuning.borrow().protection
    }

    /// That many writes wait no more.
    fn taken(&self, writes: u64) {
        self.waiting.send_modify(|waiting| *waiting -= writes);
    }
}

impl Follower {
    /// Sessions beside those of the store that reads from `pool`.
    pub fn new(pool: PgPool, tuning: watch::Receiver<Tuning>) -> Self {
        let (queue, queued) = mpsc::channel(QUEUE);
        let inside = Arc::new(Inside {
            breaker: Breaker::closed(),
            tuning,
            followed: Followed::new(),
            bytes: AtomicUsize::new(0),
            waiting: watch::Sender::new(0),
            stop: CancellationToken::new(),
        });
        let work = Work {
            sessions: Sessions::new(pool),
            secondary: Secondary::new(Replaces::Older),
            queued,
            inside: inside.clone(),
        };
        Self { queue, inside, task: Mutex::new(Some(tokio::spawn(work.run()))) }
    }

    /// What became of the writes so far.
    pub fn followed(&self) -> &Followed {
        &self.inside.followed
    }

    /// Waits until every write so far was tried, or passed over.
    pub async fn idle(&self) {
        let mut waiting = self.inside.waiting.subscribe();
        // The sender lives as long as this.
        drop(waiting.wait_for(|waiting| *waiting == 0).await);
    }

    /// Waits for what is under way, which is bounded; nothing follows any more.
    pub async fn close(&self) {
        self.inside.stop.cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Err(error)) = async { Some(task?.await) }.await
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }

    /// Has the keys of `afters` brought level; not while the secondary is known to be away, or too much waits for it.
    pub fn follow(&self, afters: &[After]) {
        let is_admitted = self.inside.breaker.admit(self.inside.protection().pause);
        let items: Vec<Item> = if is_admitted { afters.iter().filter_map(item).collect() } else { Vec::new() };
        if items.is_empty() && is_admitted {
            return;
        }
        let bytes = bytes(&items);
        let has_room = self.inside.bytes.fetch_add(bytes, Relaxed) < QUEUE_BYTES;
        self.inside.waiting.send_modify(|waiting| *waiting += 1);
        if !is_admitted || !has_room || self.queue.try_send(items).is_err() {
            self.inside.bytes.fetch_sub(bytes, Relaxed);
            self.inside.taken(1);
            self.inside.followed.skipped.one();
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.inside.stop.cancel();
    }
}

/// The task.
struct Work {
    sessions: Sessions,
    secondary: Secondary,
    queued: mpsc::Receiver<Vec<Item>>,
    inside: Arc<Inside>,
}

impl Work {
    async fn run(mut self) {
        let stop = self.inside.stop.clone();
        while let Some(Some(first)) = stop.run_until_cancelled(self.queued.recv()).await {
            let (mut batch, mut writes, mut size) = (Batch::new(), 0, 0);
            let mut next = Some(first);
            while let Some(items) = next {
                (writes, size) = (writes + 1, size + bytes(&items));
                items.into_iter().for_each(|item| add(&mut batch, item));
                next = if batch.len() < BATCH && size < BATCH_BYTES { self.queued.try_recv().ok() } else { None };
            }
            self.inside.bytes.fetch_sub(size, Relaxed);
            self.write(batch.into_values().collect(), writes).await;
            self.inside.taken(writes);
        }
        self.pass_over();
    }

    /// Passes over what waits: the mirror brings it.
    fn pass_over(&mut self) {
        while let Ok(items) = self.queued.try_recv() {
            self.inside.bytes.fetch_sub(bytes(&items), Relaxed);
            self.inside.followed.skipped.one();
            self.inside.taken(1);
        }
    }

    async fn write(&mut self, items: Vec<Item>, writes: u64) {
        let Protection { deadline, pause } = self.inside.protection();
        let begun = Instant::now();
        let done = tokio::time::timeout(deadline, self.transact(&items)).await;
        metrics::SECONDARY_SECONDS.record(begun.elapsed());
        let Followed { level, failed, .. } = &self.inside.followed;
        match done {
            Ok(Ok(())) => {
                level.add(writes);
                if self.inside.breaker.succeeded() {
                    tracing::info!("PostgreSQL follows again");
                }
            }
            // A document is to blame, not the server: the mirror quarantines it, and brings those beside it.
            Ok(Err(error)) if target::refuses_data(&error) => {
                failed.add(writes);
                tracing::warn!(%error, "PostgreSQL refused a write of the dual store; the mirror will come upon it");
            }
            not => {
                failed.add(writes);
                if self.inside.breaker.failed(pause) {
                    let error = match not {
                        Ok(Err(error)) => error.to_string(),
                        _ => "no answer in time".to_owned(),
                    };
                    tracing::warn!(error, "PostgreSQL does not follow; the mirror will bring it level");
                }
                self.pass_over();
            }
        }
    }

    async fn transact(&self, items: &[Item]) -> sqlx::Result<()> {
        let level = Level::of(items, None);
        let mut session = self.sessions.open().await?;
        // One round trip for the beginning and the locks; no snapshot is older than they are. If it fails it may have left a
        // transaction that the driver knows nothing of, and the session is not kept.
        let mut transaction = session.begin_with(AssertSqlSafe(format!("begin; {}", level.locks()))).await?;
        let done = async {
            self.secondary.write_locked(level, &mut transaction).await?;
            transaction.commit().await
        };
        let done = done.await;
        session.rest(&done);
        done
    }
}

/// Of each key its newest write.
type Batch = HashMap<(&'static str, Key), Item>;

fn add(batch: &mut Batch, item: Item) {
    match batch.entry((item.entity.name, item.key.clone())) {
        Entry::Occupied(mut other) if other.get().stamp < item.stamp => drop(other.insert(item)),
        Entry::Occupied(_) => {}
        Entry::Vacant(free) => drop(free.insert(item)),
    }
}

fn bytes(items: &[Item]) -> usize {
    let bytes = |item: &Item| match &item.state {
        State::Document(document) => document.as_bytes().len(),
        State::Gone => 0,
    };
    items.iter().map(bytes).sum()
}

fn item(after: &After) -> Option<Item> {
    let state = after.document.clone().map_or(State::Gone, State::Document);
    Some(Item { entity: after.address.entity, key: after.address.key.clone(), stamp: after.stamp?, state })
}
