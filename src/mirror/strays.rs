//! Stray writes: while MongoDB follows, whoever writes to it but the drain (`tests/model`, rule 12).
//!
//! The watch passes over what the drain wrote, which is whatever has its stamp written in the same transaction. Any other
//! write is a stray one: a process that was left behind by a switch, or somebody who never knew of it. It is told, kept
//! with its document, and undone by a primary write of the row as it stands: a new stamp, by which the drain brings it.
//! The position moves in the same transaction, so that a stray write is never passed over.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bson::{RawDocumentBuf, Timestamp, rawdoc};
use futures::TryStreamExt;
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::apply::{TRANSACTION_WAIT, queue};
use super::position::{Held, Position, Seat};
use super::progress::Progress;
use super::stream::{Answer, Change, End, Event, Stamped, Stream};
use super::{Fault, Result};
use crate::entity::{ENTITIES, Entity, Owner};
use crate::fence::postgres::CLOSED;
use crate::lock;
use crate::scan;
use crate::secondary::{Item, Level, Replaces, Secondary, State};
use crate::source::Source;
use crate::stamp::{Stamp, clock};

/// How many stray writes of one answer are named in the log; `bridge.stray` has all.
const NAMED: usize = 10;

/// Watches MongoDB as the holder of the seat.
pub struct Watch {
    source: Source,
    seat: Seat,
    held: Held,
    progress: Arc<Progress>,
    secondary: Secondary,
    /// What the drain wrote in the last transaction that was seen, of which there may be more.
    own: HashSet<Stamped>,
    /// When the lease was begun anew last.
    renewed: Instant,
}

/// A record that the application keeps itself.
struct Kept {
    item: Item,
    /// The field that never falls, and its value here.
    rising: &'static str,
    least: i64,
}

impl Watch {
    /// Goes on from what `held` says.
    pub fn new(source: Source, seat: Seat, held: Held, progress: Arc<Progress>) -> Self {
        let secondary = Secondary::new(Replaces::NotNewer);
        Self { source, seat, held, progress, secondary, own: HashSet::new(), renewed: Instant::now() }
    }

    /// Watches until `stop` is cancelled.
    pub async fn run(mut self, stop: &CancellationToken) -> Result<()> {
        let mut stream = Stream::open(&self.source, self.held.clone()).await?;
        while let Some(answer) = stop.run_until_cancelled(stream.next()).await {
            let mut answer = answer?;
            let end = answer.end.take();
            self.pass(answer).await?;
            if let Some(end) = end {
                self.refill(end).await?;
                stream = Stream::open(&self.source, self.held.clone()).await?;
            }
        }
        Ok(())
    }

    /// Brings whole collections anew, after one was dropped or renamed.
    async fn refill(&mut self, End { whose, time, behind, error }: End) -> Result<()> {
        let Some(token) = behind else { return Err(Fault::Ended(error)) };
        tracing::error!(%error, "stray write: MongoDB follows PostgreSQL, and gets its documents again");
        self.jump(&whose, time, Position { token: Some(token), clock: clock(time) }, true).await
    }

    /// Notes that nobody knows what became of the documents of `whose`; the drain brings them again if they are `lost`.
    async fn jump(&mut self, whose: &[&'static Entity], time: Timestamp, position: Position, lost: bool) -> Result<()> {
        let work = async |connection: &mut PgConnection| {
            for entity in whose {
                note_collection(entity, self.held.epoch, time, connection).await.map_err(refused)?;
                if lost {
                    self.restamp_all(entity, connection).await.map_err(refused)?;
                }
            }
            Ok(())
        };
        self.transact(work, &position).await?;
        (self.held.position, self.renewed) = (position, Instant::now());
        self.progress.strayed(whose.len());
        Ok(())
    }

    /// One transaction of `work` in which the position moves on.
    async fn transact(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<()>,
        position: &Position,
    ) -> Result<()> {
        let fault = Fault::target;
        let transaction = async {
            let begin = AssertSqlSafe(self.seat.begin());
            let mut transaction =
                self.seat.pool().begin_with(begin).await.map_err(fault("begin a transaction of the watch"))?;
            work(&mut transaction).await?;
            let lag = self.progress.lag().unwrap_or_default();
            self.seat.advance(&mut transaction, &self.held, position, lag).await?;
            transaction.commit().await.map_err(fault("commit what the watch has seen"))
        };
        tokio::time::timeout(TRANSACTION_WAIT, transaction).await.map_err(|_| Fault::Silent)?
    }

    async fn restamp_all(&self, entity: &'static Entity, connection: &mut PgConnection) -> sqlx::Result<()> {
        let (epoch, name) = (self.held.epoch, entity.name);
        let restamped = format!(
            "with locked as materialized (select pg_advisory_xact_lock_shared({})),
            restamped as (
                update scheduler.{name} set epoch = f.epoch, clock = nextval('bridge.clock')
                from locked, bridge.enter({epoch}) f returning id
            )
            insert into bridge.outbox (collection, id) select $1, id from restamped",
            lock::of_collection(name)
        );
        sqlx::query(AssertSqlSafe(restamped)).bind(name).execute(connection).await.map(|_| ())
    }

    /// Goes on from `time`, whatever was before: a stray write that nobody can name is noted for each collection.
    pub async fn begin_anew(mut self, time: Timestamp) -> Result<()> {
        self.jump(ENTITIES, time, Position { token: None, clock: clock(time) }, false).await
    }

    async fn pass(&mut self, answer: Answer) -> Result<()> {
        let Answer { events, stamped, whole, marks, .. } = answer;
        let (last, news) = (events.last().map(|event| event.time), marks + events.len() > 0);
        self.own.extend(stamped);
        let (mut strays, mut records) = (Vec::new(), Vec::new());
        for event in events {
            match event.entity.owner {
                Owner::Application { rising } => records.push((event, rising)),
                Owner::Mirror if self.is_own(&event) => {}
                Owner::Mirror => strays.push(event),
            }
        }
        let pending = self.own.iter().map(|own| own.time).chain(last).max();
        self.own.retain(|own| Some(own.time) == pending);
        if !news && self.renewed.elapsed() < self.seat.renewal() {
            return Ok(());
        }
        let mut documents = Vec::new();
        for stray in &strays {
            documents.push(self.document(stray).await?);
        }
        let records = self.records(records).await?;
        let work = async |connection: &mut PgConnection| self.settle(&strays, &documents, records, connection).await;
        self.transact(work, &whole).await?;
        (self.held.position, self.renewed) = (whole, Instant::now());
        self.tell(&strays);
        Ok(())
    }

    fn is_own(&self, Event { entity, key, time, .. }: &Event) -> bool {
        let own = Stamped { time: *time, collection: entity.name.to_owned(), id: key.text().to_owned() };
        self.own.contains(&own)
    }

    /// What a stray write has put there, or what stands there by now; nothing for a deletion.
    async fn document(&self, stray: &Event) -> Result<Option<RawDocumentBuf>> {
        match &stray.change {
            Change::Put(document) => Ok(Some(document.clone())),
            Change::Delete => Ok(None),
            Change::Look(id) => self.look_up(stray.entity, id, stray.time).await,
        }
    }

    async fn look_up(
        &self,
        entity: &'static Entity,
        id: &RawDocumentBuf,
        time: Timestamp,
    ) -> Result<Option<RawDocumentBuf>> {
        let fault = Fault::source(format!("look up a document of {}", entity.name));
        let command = scan::by_id(entity.name, std::iter::once(id.as_ref()), rawdoc! {}, Some(time));
        let command = command.map_err(|error| fault(error.into()))?;
        let opened = self.source.database().run_raw_cursor_command(command).batch();
        let mut cursor = scan::deadline(opened).await.map_err(&fault)?;
        while let Some(batch) = scan::deadline(cursor.try_next()).await.map_err(&fault)? {
            if let Some(document) = scan::documents(&batch).map_err(&fault)?.first() {
                return Ok(Some((*document).to_owned()));
            }
        }
        Ok(None)
    }

    /// Records that the application keeps itself, as they stand in MongoDB. A deletion is none of its doings.
    async fn records(&self, events: Vec<(Event, &'static str)>) -> Result<Vec<Kept>> {
        // Of each key the last event: looked up, all of them would find the same.
        let puts = events.into_iter().filter(|(event, _)| !matches!(event.change, Change::Delete));
        let last: HashMap<_, _> = puts.map(|event| ((event.0.entity.name, event.0.key.clone()), event)).collect();
        let mut records: Vec<Kept> = Vec::new();
        for (event, rising) in last.into_values() {
            let Some(document) = self.document(&event).await? else { continue };
            let least = document.get(rising).ok().flatten().and_then(|value| value.as_i64()).unwrap_or_default();
            let stamp = Stamp::of_oplog(self.held.epoch, event.time);
            let item = Item { entity: event.entity, key: event.key, stamp, state: State::Document(document) };
            records.push(Kept { item, rising, least });
        }
        Ok(records)
    }

    async fn settle(
        &self,
        strays: &[Event],
        documents: &[Option<RawDocumentBuf>],
        records: Vec<Kept>,
        connection: &mut PgConnection,
    ) -> Result<()> {
        self.keep(records, connection).await.map_err(Fault::target("bring records level"))?;
        for entity in ENTITIES {
            let of = strays.iter().zip(documents).filter(|(stray, _)| stray.entity == *entity);
            let of: Vec<_> = of.collect();
            if !of.is_empty() {
                self.undo(entity, &of, connection).await.map_err(refused)?;
            }
        }
        Ok(())
    }

    /// Brings records to PostgreSQL, but none in which what never falls would fall: it was counted up there since.
    async fn keep(&self, records: Vec<Kept>, connection: &mut PgConnection) -> sqlx::Result<()> {
        let mut items = Vec::new();
        for Kept { item, rising, least } in records {
            let column = item.entity.field(rising).map_or(rising, |field| field.column);
            let newer = format!(
                "select true from scheduler.{} where id = $1 and {column} > $2 for no key update",
                item.entity.name
            );
            let newer: Option<bool> = sqlx::query_scalar(AssertSqlSafe(newer))
                .bind(item.key.text())
                .bind(least)
                .fetch_optional(&mut *connection)
                .await?;
            if newer.is_none() {
                items.push(item);
            }
        }
        self.secondary.write(Level::of(&items, None), connection).await
    }

    /// Notes stray writes of one collection, and gives the rows new stamps. PostgreSQL's fence is held open: while it is
    /// closed, a switch is about to make MongoDB the primary with what stands there, and must not pass this.
    async fn undo(
        &self,
        entity: &'static Entity,
        strays: &[(&Event, &Option<RawDocumentBuf>)],
        connection: &mut PgConnection,
    ) -> sqlx::Result<()> {
        let (epoch, name) = (self.held.epoch, entity.name);
        let ids: Vec<&str> = strays.iter().map(|(stray, _)| stray.key.text()).collect();
        let documents: Vec<Option<&[u8]>> =
            strays.iter().map(|(_, document)| document.as_ref().map(|document| document.as_bytes())).collect();
        let clocks: Vec<i64> = strays.iter().map(|(stray, _)| clock(stray.time)).collect();
        // The collection's lock before the fence's, as every other write. Alone: rows that are gone get tombstones.
        let lock = format!("select pg_advisory_xact_lock({})", lock::of_collection(name));
        sqlx::query(AssertSqlSafe(lock)).execute(&mut *connection).await?;
        sqlx::query(
            "insert into bridge.stray (collection, id, epoch, clock, document)
            select $1, s.id, $2, s.clock, s.document from unnest($3::text[], $4::bigint[], $5::bytea[]) s (id, clock, document)
            on conflict do nothing",
        )
        .bind(name)
        .bind(epoch)
        .bind(&ids)
        .bind(&clocks)
        .bind(&documents)
        .execute(&mut *connection)
        .await?;
        let restamped = format!(
            "with s as materialized (select distinct id from unnest($2::text[]) s (id)),
            fence as materialized (select epoch from bridge.enter({epoch})),
            restamped as (
                update scheduler.{name} t set epoch = f.epoch, clock = nextval('bridge.clock')
                from s, fence f where t.id = s.id
            ), buried as (
                insert into bridge.tombstone as b (collection, id, epoch, clock)
                select $1, s.id, f.epoch, nextval('bridge.clock') from s, fence f
                where not exists (select from scheduler.{name} t where t.id = s.id)
                on conflict (collection, id) do update set epoch = excluded.epoch, clock = excluded.clock
            )
            insert into bridge.outbox (collection, id) select $1, s.id from s, fence"
        );
        sqlx::query(AssertSqlSafe(restamped)).bind(name).bind(&ids).execute(&mut *connection).await?;
        let of = |(stray, _): &(&Event, _)| {
            let stamp = Stamp::of_oplog(epoch, stray.time);
            Item { entity, key: stray.key.clone(), stamp, state: State::Gone }
        };
        let mut items: Vec<Item> = strays.iter().map(of).collect();
        // Each key once, with its newest stamp.
        items.sort_unstable_by(|one, other| (&one.key, other.stamp).cmp(&(&other.key, one.stamp)));
        items.dedup_by(|one, other| one.key == other.key);
        queue(&items, connection).await?;
        fail::fail_point!("strays::undone");
        Ok(())
    }

    fn tell(&self, strays: &[Event]) {
        self.progress.strayed(strays.len());
        for Event { entity, key, .. } in strays.iter().take(NAMED) {
            let (collection, id) = (entity.name, key.text());
            tracing::error!(collection, id, "stray write: somebody wrote to MongoDB, which follows PostgreSQL; undone");
        }
        if strays.len() > NAMED {
            tracing::error!(more = strays.len() - NAMED, "more stray writes: `bridge stray list` shows them");
        }
    }
}

/// Notes a stray write of nobody knows which keys.
async fn note_collection(
    entity: &Entity,
    epoch: i32,
    time: Timestamp,
    connection: &mut PgConnection,
) -> sqlx::Result<()> {
    sqlx::query(
        "insert into bridge.stray (collection, id, epoch, clock) values ($1, '', $2, $3) on conflict do nothing",
    )
    .bind(entity.name)
    .bind(epoch)
    .bind(clock(time))
    .execute(connection)
    .await
    .map(|_| ())
}

/// While the fence is closed a stray write waits: whether for the next turn of this store or for the other's, is not known.
fn refused(error: sqlx::Error) -> Fault {
    match error.as_database_error().and_then(|error| error.code()) {
        Some(code) if code == CLOSED => Fault::Switching,
        _ => Fault::target("undo stray writes")(error),
    }
}
