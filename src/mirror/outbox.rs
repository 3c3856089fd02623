//! The other direction: MongoDB follows PostgreSQL's outbox (design 9).
//!
//! Invariants: a key leaves the outbox only in a transaction that commits after MongoDB has what stood under it; what is
//! brought is what stands there now, not what was written then, so the order of the outbox does not matter; the stamp in
//! MongoDB refuses what is older. A drain that dies, or two of them at once, therefore do no harm. Whoever notes a key has
//! committed its row with it, so that a key that can be seen has a row, or a tombstone, that can be seen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::Duration;

use futures::TryStreamExt;
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::apply::queue;
use super::position::Seat;
use super::progress::{Lag, Progress};
use super::{Fault, MirrorError, Result};
use crate::entity::{self, ENTITIES, Entity};
use crate::mapping::{Key, Mapping};
use crate::secondary::{Item, MongoSecondary, State, WriteError};
use crate::source::Source;
use crate::stamp::Stamp;
use crate::store::postgres::rows;

/// Bytes of documents of one transaction in MongoDB, aimed at.
const SLICE_BYTES: usize = 8 << 20;

/// Keys of one transaction in MongoDB.
const SLICE_KEYS: usize = 500;

/// Keys that are taken from the outbox together: at first, and at most.
const BATCH: [i64; 2] = [100, 2_000];

/// The pause when the outbox is empty: the first, doubling to the longest.
const IDLE: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

/// How often it is counted what is left, while there is work.
const COUNT: Duration = Duration::from_secs(1);

/// Brings MongoDB level with what the outbox names. Any number of them may run.
pub struct Drain {
    seat: Seat,
    secondary: MongoSecondary,
    progress: Arc<Progress>,
    /// How many keys are taken together: half as many after each fault.
    batch: AtomicI64,
}

impl Drain {
    /// A drain that nobody waits for longer than for the lease of `seat`.
    pub fn new(source: &Source, seat: Seat, progress: Arc<Progress>) -> Self {
        let secondary = MongoSecondary::new(source.client().clone(), source.database().clone());
        Self { seat, secondary, progress, batch: AtomicI64::new(BATCH[0]) }
    }

    /// Drains until `stop` is cancelled; the batch under way is finished.
    pub async fn run(&self, stop: &CancellationToken) -> Result<()> {
        self.progress.activate(0);
        let drained = self.drain(stop).await;
        self.progress.deactivate();
        drained
    }

    async fn drain(&self, stop: &CancellationToken) -> Result<()> {
        let (mut idle, mut counted) = (IDLE[0], None::<Instant>);
        while !stop.is_cancelled() {
            if counted.is_none_or(|counted| counted.elapsed() >= COUNT) {
                self.count().await?;
                counted = Some(Instant::now());
            }
            let taken = self.batch().await.inspect_err(|_| self.resize(1, 2))?;
            if taken > 0 {
                idle = IDLE[0];
                continue;
            }
            self.count().await?;
            stop.run_until_cancelled(tokio::time::sleep(idle)).await;
            idle = (idle * 2).min(IDLE[1]);
        }
        Ok(())
    }

    fn resize(&self, times: i64, by: i64) {
        self.batch.store((self.batch.load(Relaxed) * times / by).clamp(1, BATCH[1]), Relaxed);
    }

    /// Counts what is left.
    async fn count(&self) -> Result<()> {
        let (events, seconds) = sqlx::query_as(
            "select count(*), coalesce(extract(epoch from clock_timestamp() - min(written_at)), 0)::float8
            from bridge.outbox",
        )
        .fetch_one(self.seat.pool())
        .await
        .map_err(Fault::target("count what is left in the outbox"))?;
        self.progress.left(Lag { seconds, events });
        Ok(())
    }

    /// Takes some keys and brings them level. Returns how many entries have left the outbox.
    async fn batch(&self) -> Result<u64> {
        let limit = self.batch.load(Relaxed);
        let begin = AssertSqlSafe(self.seat.begin());
        let work = async {
            let mut transaction =
                self.seat.pool().begin_with(begin).await.map_err(Fault::target("begin a transaction of the drain"))?;
            let (keys, entries) = take(limit, &mut transaction).await?;
            if entries == 0 {
                return Ok((0, 0));
            }
            let mut slice = Slice::new(self);
            for (entity, keys) in keys {
                slice.bring(entity, keys, &mut transaction).await?;
            }
            let (touched, bytes) = slice.done().await?;
            fail::fail_point!("outbox::applied");
            queue(&touched, &mut transaction).await.map_err(Fault::target("queue keys for the verifier"))?;
            transaction.commit().await.map_err(Fault::target("take keys out of the outbox"))?;
            Ok((entries, bytes))
        };
        let (entries, bytes) = tokio::time::timeout(TRANSACTION_WAIT, work).await.map_err(|_| Fault::Silent)??;
        match i64::try_from(entries) {
            _ if bytes > SLICE_BYTES => self.resize(1, 2),
            Ok(entries) if entries >= limit => self.resize(2, 1),
            _ => {}
        }
        self.progress.committed(entries, 0);
        Ok(entries)
    }
}

/// How long one batch may take, whatever its size.
const TRANSACTION_WAIT: Duration = Duration::from_secs(120);

/// Keys of collections, each once.
type Keys = BTreeMap<&'static str, BTreeSet<String>>;

/// Takes the oldest entries that nobody else is at out of the outbox, and says how many they were. They come back unless
/// the transaction commits.
async fn take(limit: i64, connection: &mut PgConnection) -> Result<(Vec<(&'static Entity, Vec<String>)>, u64)> {
    let taken: Vec<(String, String)> = sqlx::query_as(
        "with taken as materialized (
            select o.ordinal from bridge.outbox o
            where (select phase from bridge.fence) = 'postgres-primary'
            order by o.ordinal limit $1 for update skip locked
        )
        delete from bridge.outbox o using taken where o.ordinal = taken.ordinal returning o.collection, o.id",
    )
    .bind(limit)
    .fetch_all(connection)
    .await
    .map_err(Fault::target("take keys from the outbox"))?;
    let entries = u64::try_from(taken.len()).unwrap_or(u64::MAX);
    let mut keys = Keys::new();
    for (collection, id) in taken {
        match entity::named(&collection) {
            Some(entity) => drop(keys.entry(entity.name).or_default().insert(id)),
            None => tracing::warn!(collection, "the outbox names a collection that is none of the scheduler's"),
        }
    }
    let of = |entity: &&'static Entity| Some((*entity, keys.remove(entity.name)?.into_iter().collect()));
    Ok((ENTITIES.iter().filter_map(of).collect(), entries))
}

/// What goes to MongoDB in one transaction. Never more than a few large documents are in memory: rows come one by one, and
/// the server waits while a slice is written.
struct Slice<'a> {
    drain: &'a Drain,
    items: Vec<Item>,
    bytes: usize,
    total: usize,
    /// The keys of earlier slices, without their documents.
    touched: Vec<Item>,
}

impl<'a> Slice<'a> {
    fn new(drain: &'a Drain) -> Self {
        Self { drain, items: Vec::new(), bytes: 0, total: 0, touched: Vec::new() }
    }

    /// Brings `keys` of `entity`: rows first, then tombstones. A row that is deleted in between has left one by then.
    async fn bring(&mut self, entity: &'static Entity, keys: Vec<String>, connection: &mut PgConnection) -> Result<()> {
        let mut left: BTreeSet<&str> = keys.iter().map(String::as_str).collect();
        let mapping = Mapping::new(entity);
        let columns = mapping.columns().collect::<Vec<_>>().join(", ");
        let sql = format!("select {columns} from scheduler.{} where id = any($1)", entity.name);
        let failed = || Fault::target(format!("read rows of {}", entity.name));
        let mut found = sqlx::query(AssertSqlSafe(sql)).bind(&keys).fetch(&mut *connection);
        while let Some(row) = found.try_next().await.map_err(failed())? {
            let row = rows::stored(mapping, &row).map_err(|source| Fault::Ended(MirrorError::Row { source }))?;
            let key = mapping.key(&row.document);
            left.remove(key.text());
            if let Some(stamp) = row.stamp {
                self.push(Item { entity, key, stamp, state: State::Document(row.document) }).await?;
            }
        }
        drop(found);
        let left: Vec<&str> = left.into_iter().collect();
        self.bury(entity, &left, connection).await
    }

    async fn bury(&mut self, entity: &'static Entity, keys: &[&str], connection: &mut PgConnection) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let found: Vec<(String, i32, i64)> =
            sqlx::query_as("select id, epoch, clock from bridge.tombstone where collection = $1 and id = any($2)")
                .bind(entity.name)
                .bind(keys)
                .fetch_all(connection)
                .await
                .map_err(Fault::target(format!("read tombstones of {}", entity.name)))?;
        if found.len() < keys.len() {
            // Somebody has deleted rows by hand, or a table was truncated: no stamp says when.
            tracing::warn!(collection = entity.name, keys = keys.len() - found.len(), "neither row nor tombstone");
        }
        for (id, epoch, clock) in found {
            let (key, stamp) = (Key::from_text(id), Stamp { epoch, clock });
            self.push(Item { entity, key, stamp, state: State::Gone }).await?;
        }
        Ok(())
    }

    async fn push(&mut self, item: Item) -> Result<()> {
        if let State::Document(document) = &item.state {
            self.bytes += document.as_bytes().len();
        }
        self.items.push(item);
        if self.bytes < SLICE_BYTES && self.items.len() < SLICE_KEYS { Ok(()) } else { self.write().await }
    }

    async fn write(&mut self) -> Result<()> {
        fail::fail_point!("outbox::read");
        let written = tokio::time::timeout(self.drain.seat.lease(), self.drain.secondary.write(&self.items)).await;
        written.map_err(|_| Fault::SourceSilent)?.map_err(fault)?;
        self.total += std::mem::take(&mut self.bytes);
        let touched = self.items.drain(..).map(|item| Item { state: State::Gone, ..item });
        self.touched.extend(touched);
        Ok(())
    }

    /// Writes the rest. Returns what was written, without the documents, and their bytes.
    async fn done(mut self) -> Result<(Vec<Item>, usize)> {
        if !self.items.is_empty() {
            self.write().await?;
        }
        Ok((self.touched, self.total))
    }
}

fn fault(error: WriteError) -> Fault {
    match error {
        WriteError::Driver { attempted, source } => Fault::Source { attempted, source },
        refused => Fault::Ended(MirrorError::Refused { source: Box::new(refused) }),
    }
}
