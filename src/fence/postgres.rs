//! PostgreSQL's fence: a row that every write of the scheduler's holds open until it is committed (`bridge.enter`).

use std::time::Duration;

use sqlx::postgres::PgArguments;
use sqlx::query::QueryAs;
use sqlx::{PgPool, Postgres};
use uuid::Uuid;

use super::{Fence, FenceError, bounded};
use crate::lock;
use crate::phase::Backend;
use crate::switch::gate::Warrant;
use crate::target::TargetError;

/// How `bridge.enter` says that the fence is not open at the writer's epoch.
pub const CLOSED: &str = "BR001";

/// How long a transaction that holds the fence is waited for before its session is ended.
const HELD_WAIT: Duration = Duration::from_secs(2);

/// The lock that writes hold shared, and whoever changes the fence alone.
pub fn lock_id() -> i64 {
    lock::id("scheduler.fence.v1", &[])
}

/// The fence in a database.
#[derive(Debug, Clone)]
pub struct PostgresFence {
    pool: PgPool,
}

/// A row of the fence.
type Row = (String, i32, bool);

impl PostgresFence {
    /// The one that `pool` leads to.
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// What it says.
    pub async fn look(&self) -> Result<Fence, FenceError> {
        let attempted = "read the fence in PostgreSQL";
        self.read(attempted, sqlx::query_as("select phase, epoch, open from bridge.fence")).await
    }

    /// The same, and notes that process `id` saw it.
    pub async fn renew(&self, id: Uuid, name: &str) -> Result<Fence, FenceError> {
        let attempted = "note that this process is there in PostgreSQL";
        let found = sqlx::query_as(
            "with noted as (
                insert into bridge.instance (id, name, epoch) select $1, $2, f.epoch from bridge.fence f
                on conflict (id) do update
                set name = excluded.name, epoch = excluded.epoch, seen_at = clock_timestamp()
            )
            select phase, epoch, open from bridge.fence",
        );
        self.read(attempted, found.bind(id).bind(name)).await
    }

    async fn read(
        &self,
        attempted: &'static str,
        query: QueryAs<'_, Postgres, Row, PgArguments>,
    ) -> Result<Fence, FenceError> {
        let found = query.fetch_optional(&self.pool);
        let found = bounded(attempted, async { found.await.map_err(failed(attempted)) }).await?;
        fence(found.ok_or(FenceError::Missing { backend: Backend::Postgres })?)
    }

    /// Takes a process out.
    pub async fn leave(&self, id: Uuid) -> Result<(), FenceError> {
        let attempted = "take this process out of PostgreSQL's list";
        let gone = sqlx::query("delete from bridge.instance where id = $1").bind(id).execute(&self.pool);
        bounded(attempted, async { gone.await.map_err(failed(attempted)) }).await.map(|_| ())
    }

    /// Opens the fence as `warrant` says; whether it was still `expected`.
    pub async fn open(&self, expected: Fence, warrant: Warrant) -> Result<bool, FenceError> {
        self.change(expected, warrant.fence()).await
    }

    /// Closes the fence, at the phase and epoch of `closed`, once no write of the scheduler's is under way; whether it was
    /// still `expected`.
    pub async fn close(&self, expected: Fence, closed: Fence) -> Result<bool, FenceError> {
        self.change(expected, Fence { open: false, ..closed }).await
    }

    /// Sessions that hold the fence for longer than writes take are ended: their transactions are not committed.
    async fn change(&self, expected: Fence, new: Fence) -> Result<bool, FenceError> {
        let attempted = "change the fence of PostgreSQL";
        let work = async {
            let mut transaction = self.pool.begin().await?;
            self.lock(&mut transaction).await?;
            let changed = sqlx::query(
                "update bridge.fence set phase = $1, epoch = $2, open = $3
                where phase = $4 and epoch = $5 and open = $6",
            );
            let changed = changed.bind(new.phase.name()).bind(new.epoch).bind(new.open);
            let changed = changed.bind(expected.phase.name()).bind(expected.epoch).bind(expected.open);
            let changed = changed.execute(&mut *transaction).await?.rows_affected() == 1;
            transaction.commit().await?;
            Ok(changed)
        };
        let deadline = HELD_WAIT * 2 + super::ANSWER_WAIT;
        let done = tokio::time::timeout(deadline, work).await;
        done.map_err(|_| FenceError::Silent { attempted })?.map_err(failed(attempted))
    }

    async fn lock(&self, connection: &mut sqlx::PgConnection) -> sqlx::Result<()> {
        let take = async |connection: &mut sqlx::PgConnection| {
            sqlx::query("select pg_advisory_xact_lock($1)").bind(lock_id()).execute(connection).await.map(|_| ())
        };
        let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *connection).await?;
        let locked = take(connection);
        tokio::pin!(locked);
        if let Ok(locked) = tokio::time::timeout(HELD_WAIT, &mut locked).await {
            return locked;
        }
        let ended: Vec<bool> = sqlx::query_scalar("select pg_terminate_backend(p) from unnest(pg_blocking_pids($1)) p")
            .bind(pid)
            .fetch_all(&self.pool)
            .await?;
        tracing::warn!(sessions = ended.len(), "ended sessions that held PostgreSQL's fence");
        locked.await
    }
}

fn failed(attempted: &'static str) -> impl FnOnce(sqlx::Error) -> FenceError {
    move |error| TargetError::of(attempted, error).into()
}

fn fence((phase, epoch, open): Row) -> Result<Fence, FenceError> {
    let phase = phase.parse().map_err(|source| FenceError::Phase { backend: Backend::Postgres, source })?;
    Ok(Fence { phase, epoch, open })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_is_the_one_of_the_migration() {
        let migration = include_str!("../../migrations/0005_switch.sql");
        assert!(migration.contains(&format!("pg_advisory_xact_lock_shared({})", lock_id())));
    }
}
