//! A gate in the target: stops every transaction that does one certain thing, until the test opens it.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor};

use crate::bed::{Bed, until};

/// The advisory lock that the gate is; exclusive while it is shut.
const GATE: i64 = 4_711;

/// Long enough for a debug build on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A gate, shut until it is dropped or opened.
pub struct Gate(PgConnection);

impl Gate {
    /// Makes the gate and shuts it. `events` are what a trigger may say after its name, up to the function:
    /// `before update on bridge.chunk for each row when (…)`.
    pub async fn shut(bed: &Bed, event: &str) -> Self {
        let mut connection = connect(bed).await;
        let make = format!(
            "create or replace function public.gate() returns trigger language plpgsql as
                'begin perform pg_advisory_xact_lock_shared({GATE}); return new; end';
            create trigger gate {event} execute function public.gate();
            select pg_advisory_lock({GATE})"
        );
        connection.execute(AssertSqlSafe(make)).await.expect("shut the gate");
        Self(connection)
    }

    /// Lets everybody through for good.
    pub async fn open(self) {
        self.0.close().await.expect("open the gate");
    }
}

/// A connection of the test's own.
pub async fn connect(bed: &Bed) -> PgConnection {
    PgConnection::connect(&bed.postgres_url).await.expect("connect")
}

/// Waits until a connection of the bridge waits for a lock.
pub async fn until_bridge_waits(bed: &Bed) {
    until_waits(bed, "application_name = 'scheduler-bridge'").await;
}

/// Waits until a connection for which `condition` on `pg_stat_activity` holds waits for a lock.
pub async fn until_waits(bed: &Bed, condition: &str) {
    let query = format!(
        "select exists (select from pg_stat_activity
            where datname = current_database() and wait_event_type = 'Lock' and {condition})"
    );
    let waits = async || sqlx::query_scalar(AssertSqlSafe(query.clone())).fetch_one(bed.pool()).await.expect("look");
    until("a transaction waits for a lock", LIMIT, waits).await;
}
