//! Bringing parts into PostgreSQL: rows, tombstones, quarantine, the verifier's queue and the position in one transaction.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::position::{Held, Position, Seat};
use super::prepare::Part;
use super::progress::Progress;
use super::{Fault, Result};
use crate::secondary::{Item, Level, Replaces, Secondary};
use crate::store::postgres::arrays::{Array, INT4, INT8, TEXT};

/// How long one transaction may take. PostgreSQL may be restarting, or stand still, meanwhile.
pub(super) const TRANSACTION_WAIT: Duration = Duration::from_secs(120);

/// Applies parts as the holder of the seat.
pub struct Applier {
    seat: Seat,
    held: Held,
    secondary: Secondary,
    progress: Arc<Progress>,
    /// When the lease was begun anew last.
    renewed: Instant,
    /// Where the stream goes on behind answers without events, while that is not stored.
    idle: Option<Position>,
}

impl Applier {
    /// Goes on from what `held` says.
    pub fn new(seat: Seat, held: Held, progress: Arc<Progress>) -> Self {
        let secondary = Secondary::new(Replaces::NotNewer);
        Self { seat, held, secondary, progress, renewed: Instant::now(), idle: None }
    }

    /// Applies parts until there are no more, or until `stop` is cancelled; the part under way is finished.
    pub async fn run(mut self, mut parts: mpsc::Receiver<Part>, stop: &CancellationToken) -> Result<()> {
        loop {
            let renewal = self.renewed + self.seat.renewal();
            let part = tokio::time::timeout_at(renewal, stop.run_until_cancelled(parts.recv())).await;
            match part {
                Ok(Some(Some(part))) => self.take(part).await?,
                Ok(None | Some(None)) => break,
                Err(_) => self.renew().await?,
            }
        }
        if self.idle.is_some() { self.renew().await } else { Ok(()) }
    }

    async fn take(&mut self, part: Part) -> Result<()> {
        if part.items.is_empty() && part.events == 0 && self.renewed.elapsed() < self.seat.renewal() {
            self.idle = part.position;
            return Ok(());
        }
        self.apply(part).await
    }

    /// Begins the lease anew and stores how far an idle stream is.
    async fn renew(&mut self) -> Result<()> {
        let position = self.idle.take();
        self.apply(Part { items: Vec::new(), level: Level::of(&[], None), events: 0, position }).await
    }

    /// Applies a part. What PostgreSQL refuses is halved until the one bad document is found, which is quarantined.
    async fn apply(&mut self, part: Part) -> Result<()> {
        let Part { items, level, events, position } = part;
        match self.transact(&items, level, events, position.as_ref()).await {
            Err(fault) if fault.is_refusal() && !items.is_empty() => {
                self.apply_halves(&items, &fault).await?;
                self.transact(&[], Level::of(&[], None), events, position.as_ref()).await
            }
            done => done,
        }
    }

    async fn apply_halves(&mut self, items: &[Item], fault: &Fault) -> Result<()> {
        if let [_one] = items {
            return self.transact(items, Level::of(items, Some(&fault.refusal())), 0, None).await;
        }
        let (one, other) = items.split_at(items.len() / 2);
        for half in [one, other] {
            match self.transact(half, Level::of(half, None), 0, None).await {
                Err(fault) if fault.is_refusal() => Box::pin(self.apply_halves(half, &fault)).await?,
                done => done?,
            }
        }
        Ok(())
    }

    /// One transaction. Without a position of its own it holds the one that is stored: in any case only the seat's holder
    /// gets through.
    async fn transact(&mut self, items: &[Item], level: Level, events: u64, position: Option<&Position>) -> Result<()> {
        let is_newer = position.is_some();
        let position = position.unwrap_or(&self.held.position).clone();
        let lag = self.progress.lag_behind(position.clock, events);
        let work = async {
            let fault = Fault::target;
            let begin = sqlx::AssertSqlSafe(self.seat.begin());
            let mut transaction =
                self.seat.pool().begin_with(begin).await.map_err(fault("begin a transaction of the mirror"))?;
            self.secondary.write(level, &mut transaction).await.map_err(fault("apply events"))?;
            queue(items, &mut transaction).await.map_err(fault("queue keys for the verifier"))?;
            self.seat.advance(&mut transaction, &self.held, &position, lag).await?;
            fail::fail_point!("mirror::before-commit");
            transaction.commit().await.map_err(fault("commit events"))?;
            fail::fail_point!("mirror::after-commit", |_| Err(Fault::target("commit events")(
                std::io::Error::from(std::io::ErrorKind::ConnectionReset).into()
            )));
            Ok(())
        };
        let done = tokio::select! {
            done = tokio::time::timeout(TRANSACTION_WAIT, work) => done,
            never = self.seat.keep() => match never {},
        };
        done.map_err(|_| Fault::Silent)??;
        self.progress.committed(events, position.clock);
        if is_newer {
            self.idle = None;
        }
        self.held.position = position;
        self.renewed = Instant::now();
        Ok(())
    }
}

/// Queues the keys of `items` for the verifier.
pub(super) async fn queue(items: &[Item], connection: &mut sqlx::PgConnection) -> sqlx::Result<()> {
    if items.is_empty() {
        return Ok(());
    }
    let mut arrays = [TEXT, TEXT, INT4, INT8].map(Array::new);
    let mut items: Vec<&Item> = items.iter().collect();
    items.sort_unstable_by(|one, other| (one.entity.name, &one.key).cmp(&(other.entity.name, &other.key)));
    for item in items {
        let (epoch, clock) = (item.stamp.epoch.to_be_bytes(), item.stamp.clock.to_be_bytes());
        let values = [item.entity.name.as_bytes(), item.key.text().as_bytes(), &epoch, &clock];
        arrays.iter_mut().zip(values).for_each(|(array, value)| array.push(Some(value)));
    }
    let query = sqlx::query(
        "insert into bridge.recheck as r (collection, id, epoch, clock)
        select * from unnest($1::text[], $2::text[], $3::int4[], $4::int8[])
        on conflict (collection, id) do update
        set epoch = excluded.epoch, clock = excluded.clock, queued_at = excluded.queued_at
        where (r.epoch, r.clock) < (excluded.epoch, excluded.clock)",
    );
    arrays.into_iter().fold(query, sqlx::query::Query::bind).execute(connection).await?;
    Ok(())
}
