//! The statements of the locks' connection, each for any number of locks at once.
//!
//! Moments are rounded up to milliseconds, which is what a document's date can hold.

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, FromRow, Row};

use crate::lock::{Given, LockKey};

/// Takes those of `keys` that nobody holds, each with its lease and what another store has given for it; the tokens of
/// those it took, by id.
///
/// The advisory lock comes first (`materialized`: once, before the rows), and only under it is the token counted up:
/// `on conflict` sees the newest version of the row, whatever snapshot the statement has.
pub async fn take(
    connection: &mut PgConnection,
    keys: &[(LockKey, i64, Option<Given>)],
    owner: &str,
) -> sqlx::Result<Vec<(String, i64)>> {
    // A row that the mirror has brought from the other store since this acquisition began there counts already.
    let counted = match keys.iter().any(|(.., given)| given.is_some()) {
        true => "case when l.owner = (select a.given from asked a where a.id = l.id) then 0 else 1 end",
        false => "1",
    };
    // One key is what most ask for; arrays take PostgreSQL half as long again.
    let wanted = match keys {
        [_] => "(select $2::text, $3::bigint, $4::bigint, $5::bigint, $6::text)",
        _ => "unnest($2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[])",
    };
    let sql = format!(
        "with asked as materialized (
            select id, lease, least_token, given, pg_try_advisory_lock(advisory) as held,
                date_trunc('milliseconds', clock_timestamp() + interval '999 microseconds') as now
            from {wanted} as u (id, advisory, lease, least_token, given)
        )
        insert into scheduler.locks as l (id, owner, token, acquired_at, expires_at, epoch, clock)
        select a.id, $1, a.least_token, a.now, a.now + a.lease * interval '1 millisecond', f.epoch, nextval('bridge.clock')
        from asked a, bridge.fence f
        where a.held
        on conflict (id) do update
        set owner = excluded.owner, token = greatest(coalesce(l.token, 0) + {counted}, excluded.token),
            acquired_at = excluded.acquired_at, expires_at = excluded.expires_at, residue = null, epoch = excluded.epoch,
            clock = excluded.clock
        returning l.id, l.token"
    );
    let query = sqlx::query_as(AssertSqlSafe(sql)).bind(owner);
    let token = |given: &Option<Given>| given.as_ref().map_or(1, |given| given.token);
    let known = |given: &Option<Given>| given.as_ref().map(|given| given.owner.clone());
    let query = match keys {
        [(key, lease, given)] => {
            query.bind(key.id()).bind(key.advisory()).bind(*lease).bind(token(given)).bind(known(given))
        }
        _ => query
            .bind(keys.iter().map(|(key, ..)| key.id()).collect::<Vec<_>>())
            .bind(keys.iter().map(|(key, ..)| key.advisory()).collect::<Vec<_>>())
            .bind(keys.iter().map(|(_, lease, _)| *lease).collect::<Vec<_>>())
            .bind(keys.iter().map(|(.., given)| token(given)).collect::<Vec<_>>())
            .bind(keys.iter().map(|(.., given)| known(given)).collect::<Vec<_>>()),
    };
    query.fetch_all(connection).await
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

/// Begins a lease anew. That the lock is held is shown by the session, which is the one that took it; only a greater token
/// shows that it is not. A smaller one is what the mirror has brought late, while MongoDB is the primary. Answers whether
/// it did.
pub async fn renew(connection: &mut PgConnection, key: &LockKey, token: i64, lease: i64) -> sqlx::Result<bool> {
    let renewed = sqlx::query(
        "update scheduler.locks l
        set expires_at = date_trunc('milliseconds', clock_timestamp() + interval '999 microseconds')
                + $3 * interval '1 millisecond',
            token = $2, epoch = f.epoch, clock = nextval('bridge.clock')
        from bridge.fence f
        where l.id = $1 and coalesce(l.token, 0) <= $2",
    )
    .bind(key.id())
    .bind(token)
    .bind(lease)
    .execute(connection)
    .await?;
    Ok(renewed.rows_affected() == 1)
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
