//! The statements of the locks' connection.
//!
//! Moments are rounded up to milliseconds, which is what a document's date can hold.

use std::sync::Arc;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, FromRow, Row};

use crate::layout::Layout;
use crate::lock::{Given, LockKey};

/// The statements that depend on how the tables are laid out.
#[derive(Debug)]
pub struct Statements {
    take_one: Arc<str>,
    take_many: Arc<str>,
    take_given: Arc<str>,
    renew: Arc<str>,
}

impl Statements {
    /// Those for tables that are laid out so.
    pub fn of(layout: Layout) -> Self {
        Self {
            // One key is what most ask for; arrays take PostgreSQL half as long again.
            take_one: take("(select $2::text, $3::bigint, $4::bigint)", layout).into(),
            take_many: take("unnest($2::text[], $3::bigint[], $4::bigint[])", layout).into(),
            take_given: take_given(layout).into(),
            renew: renew(layout).into(),
        }
    }

    /// Takes those of `keys`, with their leases in milliseconds, that nobody holds; the tokens of those it took, by id.
    pub async fn take(
        &self,
        connection: &mut PgConnection,
        keys: &[(&LockKey, i64)],
        owner: &str,
    ) -> sqlx::Result<Vec<(String, i64)>> {
        match keys {
            [(key, lease)] => {
                let query = sqlx::query_as(AssertSqlSafe(self.take_one.clone())).bind(owner);
                query.bind(key.id()).bind(key.advisory()).bind(*lease).fetch_all(connection).await
            }
            _ => {
                let query = sqlx::query_as(AssertSqlSafe(self.take_many.clone())).bind(owner);
                query
                    .bind(keys.iter().map(|(key, _)| key.id()).collect::<Vec<_>>())
                    .bind(keys.iter().map(|(key, _)| key.advisory()).collect::<Vec<_>>())
                    .bind(keys.iter().map(|(_, lease)| *lease).collect::<Vec<_>>())
                    .fetch_all(connection)
                    .await
            }
        }
    }

    /// Takes a lock that another store has given, if nobody holds it here; its token here.
    pub async fn take_given(
        &self,
        connection: &mut PgConnection,
        key: &LockKey,
        given: &Given,
    ) -> sqlx::Result<Option<i64>> {
        sqlx::query_scalar(AssertSqlSafe(self.take_given.clone()))
            .bind(key.id())
            .bind(key.advisory())
            .bind(&given.owner)
            .bind(given.token)
            .bind(given.acquired_at)
            .bind(given.expires_at)
            .fetch_optional(connection)
            .await
    }

    /// Begins a lease anew, or as another store has. That the lock is held is shown by the session, which is the one that
    /// took it; only a greater token shows that it is not. A smaller one is what the mirror has brought late. Answers whether
    /// it did.
    pub async fn renew(
        &self,
        connection: &mut PgConnection,
        key: &LockKey,
        (token, lease): (i64, i64),
        given: Option<&Given>,
    ) -> sqlx::Result<bool> {
        let renewed = sqlx::query(AssertSqlSafe(self.renew.clone()))
            .bind(key.id())
            .bind(token)
            .bind(lease)
            .bind(given.map(|given| given.expires_at))
            .execute(connection)
            .await?;
        Ok(renewed.rows_affected() == 1)
    }
}

/// What the move needs of a row that is written: columns, their values, and where those come from.
fn stamped(layout: Layout) -> [&'static str; 3] {
    match layout {
        Layout::Moving => [", epoch, clock", ", f.epoch, nextval('bridge.clock')", ", bridge.fence f"],
        Layout::Final => [""; 3],
    }
}

/// The advisory lock comes first (`materialized`: once, before the rows), and only under it is the token counted up:
/// `on conflict` sees the newest version of the row, whatever snapshot the statement has.
fn take(wanted: &str, layout: Layout) -> String {
    let [columns, values, fence] = stamped(layout);
    let set = match layout {
        Layout::Moving => ", residue = null, epoch = excluded.epoch, clock = excluded.clock",
        Layout::Final => "",
    };
    format!(
        "with asked as materialized (
            select id, lease, pg_try_advisory_lock(advisory) as held,
                date_trunc('milliseconds', clock_timestamp() + interval '999 microseconds') as now
            from {wanted} as u (id, advisory, lease)
        )
        insert into scheduler.locks as l (id, owner, token, acquired_at, expires_at{columns})
        select a.id, $1, 1, a.now, a.now + a.lease * interval '1 millisecond'{values}
        from asked a{fence}
        where a.held
        on conflict (id) do update
        set owner = excluded.owner, token = coalesce(l.token, 0) + 1, acquired_at = excluded.acquired_at,
            expires_at = excluded.expires_at{set}
        returning l.id, l.token"
    )
}

/// A row that the mirror has brought from the other store since this acquisition began there counts already, and stays as
/// it is.
fn take_given(layout: Layout) -> String {
    let [columns, values, fence] = stamped(layout);
    let set = match layout {
        Layout::Moving => {
            ", residue = case when l.owner = excluded.owner then l.residue end,
            epoch = case when l.owner = excluded.owner then l.epoch else excluded.epoch end,
            clock = case when l.owner = excluded.owner then l.clock else excluded.clock end"
        }
        Layout::Final => "",
    };
    format!(
        "with asked as materialized (select pg_try_advisory_lock($2) as held)
        insert into scheduler.locks as l (id, owner, token, acquired_at, expires_at{columns})
        select $1, $3, $4, $5, $6{values}
        from asked a{fence}
        where a.held
        on conflict (id) do update
        set owner = excluded.owner,
            token = greatest(coalesce(l.token, 0) + case when l.owner = excluded.owner then 0 else 1 end, excluded.token),
            acquired_at = excluded.acquired_at, expires_at = excluded.expires_at{set}
        returning l.token"
    )
}

fn renew(layout: Layout) -> String {
    let [set, fence] = match layout {
        Layout::Moving => [
            ", epoch = case when $4::timestamptz is null then f.epoch else l.epoch end,
            clock = case when $4::timestamptz is null then nextval('bridge.clock') else l.clock end",
            "from bridge.fence f",
        ],
        Layout::Final => [""; 2],
    };
    format!(
        "update scheduler.locks l
        set expires_at = coalesce($4::timestamptz,
                date_trunc('milliseconds', clock_timestamp() + interval '999 microseconds') + $3 * interval '1 millisecond'),
            token = $2{set}
        {fence}
        where l.id = $1 and coalesce(l.token, 0) <= $2"
    )
}

/// Lets locks go. Their rows stay, for the tokens.
pub async fn let_go(connection: &mut PgConnection, advisories: &[i64]) -> sqlx::Result<()> {
    let done = match advisories {
        [one] => sqlx::query("select pg_advisory_unlock($1)").bind(one).execute(connection).await,
        all => {
            let each = "select pg_advisory_unlock(u.advisory) from unnest($1::bigint[]) as u (advisory)";
            sqlx::query(each).bind(all).execute(connection).await
        }
    };
    done.map(|_| ())
}

/// A session that holds an advisory lock though the lease of its row is over.
#[derive(Debug, Clone, PartialEq, Eq, Hash, FromRow)]
pub struct Overdue {
    /// The row.
    pub id: String,
    /// Its token.
    pub token: i64,
    /// The session's process.
    pub pid: i32,
}

/// Those of `keys` that are held by sessions other than this one though their leases are over.
pub async fn overdue(connection: &mut PgConnection, keys: &[LockKey]) -> sqlx::Result<Vec<Overdue>> {
    sqlx::query_as(
        "select l.id, l.token, k.pid
        from unnest($1::text[], $2::bigint[]) as u (id, advisory)
        join scheduler.locks l on l.id = u.id
        join pg_locks k on k.locktype = 'advisory' and k.objsubid = 1 and k.granted
            and k.database = (select oid from pg_database where datname = current_database())
            and k.classid::bigint = (u.advisory >> 32) & 4294967295 and k.objid::bigint = u.advisory & 4294967295
        where l.expires_at < clock_timestamp() and k.pid <> pg_backend_pid()",
    )
    .bind(keys.iter().map(LockKey::id).collect::<Vec<_>>())
    .bind(keys.iter().map(LockKey::advisory).collect::<Vec<_>>())
    .fetch_all(connection)
    .await
}

/// Ends a session that was overdue some time ago and still is; the row is locked and looked at anew, so that no session
/// that has taken the lock since, or renewed it, is ended. Whose row it is does not matter: while MongoDB is the primary,
/// it is the mirror that writes it.
pub async fn end(connection: &mut PgConnection, key: &LockKey, overdue: &Overdue) -> sqlx::Result<bool> {
    let ended: Option<PgRow> = sqlx::query(
        "with still as materialized (
            select from scheduler.locks l
            where l.id = $1 and l.token = $2 and l.expires_at < clock_timestamp()
            for update
        )
        select pg_terminate_backend(k.pid)
        from still, pg_locks k
        where k.locktype = 'advisory' and k.objsubid = 1 and k.granted and k.pid = $3
            and k.database = (select oid from pg_database where datname = current_database())
            and k.classid::bigint = ($4 >> 32) & 4294967295 and k.objid::bigint = $4 & 4294967295",
    )
    .bind(&overdue.id)
    .bind(overdue.token)
    .bind(overdue.pid)
    .bind(key.advisory())
    .fetch_optional(connection)
    .await?;
    ended.map_or(Ok(false), |row| row.try_get(0))
}
