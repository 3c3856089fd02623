//! Bringing a batch into PostgreSQL: rows, quarantine and the ledger in one transaction.

use sqlx::{PgConnection, PgPool};

use super::ledger::{Lease, Ledger, Tally};
use super::read::Batch;
use super::statements::Statements;
use super::{Fault, Result};
use crate::entity::Entity;
use crate::lock;
use crate::mapping::tuple;

/// How a batch gets into the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    /// Straight, as long as nothing is known of the ids in question.
    Straight,
    /// By the staging table and the guarded upsert.
    Staged,
}

/// Brings batches of one chunk into PostgreSQL.
pub struct Loader<'a> {
    /// The ledger.
    pub ledger: &'a Ledger,
    /// The chunk.
    pub lease: &'a Lease,
    /// The collection's entity.
    pub entity: &'static Entity,
    /// The entity's SQL.
    pub statements: &'a Statements,
}

/// Some of a batch's documents, in order.
type Part = std::ops::Range<usize>;

impl Loader<'_> {
    /// Loads a batch. What PostgreSQL refuses is halved until the one bad document is found, which is quarantined.
    pub async fn load(&self, batch: &Batch) -> Result<Tally> {
        let mut total = Tally::default();
        let whole = 0..batch.items.len();
        let mut parts = vec![whole];
        // The last part on the stack is the first in the order of keys, so that the position only moves forward.
        while let Some(part) = parts.pop() {
            match self.load_part(batch, &part, None).await {
                Ok(tally) => total.add(&tally),
                Err(fault) if fault.is_refusal() && part.len() > 1 => {
                    let middle = part.start + part.len() / 2;
                    parts.extend([middle..part.end, part.start..middle]);
                }
                Err(fault) if fault.is_refusal() => {
                    total.add(&self.load_part(batch, &part, Some(&fault.refusal())).await?);
                }
                Err(fault) => return Err(fault),
            }
        }
        Ok(total)
    }

    async fn load_part(&self, batch: &Batch, part: &Part, refusal: Option<&str>) -> Result<Tally> {
        match self.transact(batch, part, refusal, Route::Straight).await {
            // A live write came in between the look and the COPY, or an id came twice.
            Err(fault) if fault.is_duplicate() => self.transact(batch, part, refusal, Route::Staged).await,
            done => done,
        }
    }

    async fn transact(&self, batch: &Batch, part: &Part, refusal: Option<&str>, route: Route) -> Result<Tally> {
        let pool: &PgPool = self.ledger.pool();
        let mut transaction = pool.begin().await.map_err(Fault::target("begin a transaction"))?;
        let refused: Vec<_> = part.clone().filter_map(|index| Some((index, reason(batch, index, refusal)?))).collect();
        self.lock(&mut transaction, !refused.is_empty()).await?;
        let rows: Vec<_> = part.clone().filter(|index| reason(batch, *index, refusal).is_none()).collect();
        if !rows.is_empty() {
            self.copy(&mut transaction, batch, &rows, route).await?;
        }
        for (index, reason) in &refused {
            self.quarantine(&mut transaction, batch, *index, reason).await?;
        }
        let tally = Tally::of(&batch.items[part.clone()], refusal.is_some());
        let position = batch.position(part.end - 1)?;
        self.ledger.advance(&mut transaction, self.lease, &position, &tally).await?;
        fail::fail_point!("backfill::before-commit");
        transaction.commit().await.map_err(Fault::target("commit a batch"))?;
        fail::fail_point!("backfill::after-commit", |_| Err(Fault::target("commit a batch")(
            std::io::Error::from(std::io::ErrorKind::ConnectionReset).into()
        )));
        Ok(tally)
    }

    /// Deleting a row must not pass a transaction that upserts it and that cannot see the deletion (design 7).
    async fn lock(&self, connection: &mut PgConnection, deletes: bool) -> Result<()> {
        let lock = if deletes { "select pg_advisory_xact_lock($1)" } else { "select pg_advisory_xact_lock_shared($1)" };
        sqlx::query(lock)
            .bind(lock::of_collection(self.entity.name))
            .execute(connection)
            .await
            .map_err(Fault::target("lock the collection"))?;
        Ok(())
    }

    async fn copy(&self, connection: &mut PgConnection, batch: &Batch, rows: &[usize], route: Route) -> Result<()> {
        let attempted = Fault::target(format!("copy {}", self.entity.name));
        if route == Route::Straight && self.is_empty(connection, batch, rows).await? {
            return copy(connection, &self.statements.copy, batch, rows).await.map_err(attempted);
        }
        sqlx::query(self.statements.create_staging())
            .execute(&mut *connection)
            .await
            .map_err(Fault::target("make the staging table"))?;
        copy(connection, &self.statements.copy_staging, batch, rows).await.map_err(&attempted)?;
        sqlx::query(self.statements.merge()).bind(self.entity.name).execute(connection).await.map_err(attempted)?;
        Ok(())
    }

    /// Whether nothing is known of any id between the least and the greatest of `rows`, whatever the order they are in.
    async fn is_empty(&self, connection: &mut PgConnection, batch: &Batch, rows: &[usize]) -> Result<bool> {
        let ids = || rows.iter().map(|row| batch.items[*row].key.text());
        sqlx::query_scalar(self.statements.is_empty())
            .bind(ids().min())
            .bind(ids().max())
            .bind(self.entity.name)
            // Planned anew each time: a plan kept from when the table was small would read all of it.
            .persistent(false)
            .fetch_one(connection)
            .await
            .map_err(Fault::target("look whether the range is empty"))
    }

    async fn quarantine(&self, connection: &mut PgConnection, batch: &Batch, index: usize, reason: &str) -> Result<()> {
        sqlx::query(self.statements.quarantine())
            .bind(self.entity.name)
            .bind(batch.items[index].key.text())
            .bind(batch.document(index)?.as_bytes())
            .bind(reason)
            .bind(batch.stamp.epoch)
            .bind(batch.stamp.clock)
            .execute(connection)
            .await
            .map_err(Fault::target(format!("quarantine {} {}", self.entity.name, batch.items[index].key.text())))?;
        Ok(())
    }
}

fn reason(batch: &Batch, index: usize, refusal: Option<&str>) -> Option<String> {
    refusal.map(str::to_owned).or_else(|| batch.items[index].outcome.as_ref().err().cloned())
}

/// Sends the tuples of `rows`, contiguous ones together.
async fn copy(connection: &mut PgConnection, statement: &str, batch: &Batch, rows: &[usize]) -> sqlx::Result<()> {
    let mut copy = connection.copy_in_raw(statement).await?;
    let sent = async {
        copy.send(tuple::HEADER).await?;
        for piece in pieces(batch, rows) {
            copy.send(&batch.tuples[piece]).await?;
        }
        copy.send(tuple::TRAILER).await?;
        sqlx::Result::Ok(())
    }
    .await;
    match sent {
        Ok(()) => copy.finish().await.map(drop),
        Err(error) => {
            // The first error says why; the abort only frees a connection that may be gone already.
            copy.abort("the sender failed").await.ok();
            Err(error)
        }
    }
}

/// The largest message: PostgreSQL reads a message whole into memory.
const PIECE: usize = 256 << 10;

fn pieces(batch: &Batch, rows: &[usize]) -> Vec<std::ops::Range<usize>> {
    let mut pieces: Vec<std::ops::Range<usize>> = Vec::new();
    for tuple in rows.iter().filter_map(|row| batch.items[*row].outcome.as_ref().ok()) {
        match pieces.last_mut() {
            Some(piece) if piece.end == tuple.span.start && piece.len() + tuple.span.len() <= PIECE => {
                piece.end = tuple.span.end;
            }
            _ => pieces.push(tuple.span.clone()),
        }
    }
    pieces
}
