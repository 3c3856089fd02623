//! The statements of the locks' connection, each for any number of locks at once.
//!
//! Moments are rounded up to milliseconds, which is what a document's date can hold.

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, FromRow, Row};

use crate::layout::Layout;
use crate::lock::{Given, LockKey};

/// Takes those of `keys` that nobody holds, each with its lease and what another store has given for it; the tokens of
/// those it took, by id.
///
/// The advisory lock comes first (`materialized`: once, before the rows), and only under it is the token counted up:
/// `on conflict` sees the newest version of the row, whatever snapshot the statement has.
pub async fn take(
    connection: &mut PgConnection,
    layout: Layout,
    keys: &[(LockKey, i64, Option<Given>)],
    owner: &str,
) -> sqlx::Result<Vec<(String, i64)>> {
    // A row that the mirror has brought from the other store since this acquisition began there counts already,
    // and stays as it is.
    let is_known = match keys.iter().any(|(.., given)| given.is_some()) {
        true => "l.owner = (select a.owner from asked a where a.id = l.id)",
        false => "false",
    };
    // One key is what most ask for; arrays take PostgreSQL half as long again.
    let wanted = match keys {
        [_] => "(select $2::text, $3::bigint, $4::bigint, $5::bigint, $6::text, $7::timestamptz, $8::timestamptz)",
        _ => {
            "unnest($2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[], $7::timestamptz[], $8::timestamptz[])"
        }
    };
    // What the move needs of a row, and what is set of it when the lock had one.
    let [columns, values, fence, set] = match layout {
        Layout::Moving => [
            ", epoch, clock",
            ", f.epoch, nextval('bridge.clock')",
            ", bridge.fence f",
            &format!(
                ", residue = case when {is_known} then l.residue end,
            epoch = case when {is_known} then l.epoch else excluded.epoch end,
            clock = case when {is_known} then l.clock else excluded.clock end"
            ),
        ],
        Layout::Final => [""; 4],
    };
    let sql = format!(
        "with asked as materialized (
            select id, lease, least_token, owner, acquired_at, expires_at, pg_try_advisory_lock(advisory) as held,
                date_trunc('milliseconds', clock_timestamp() + interval '999 microseconds') as now
            from {wanted} as u (id, advisory, lease, least_token, owner, acquired_at, expires_at)
        )
        insert into scheduler.locks as l (id, owner, token, acquired_at, expires_at{columns})
        select a.id, coalesce(a.owner, $1), a.least_token, coalesce(a.acquired_at, a.now),
            coalesce(a.expires_at, a.now + a.lease * interval '1 millisecond'){values}
        from asked a{fence}
        where a.held
        on conflict (id) do update
        set owner = excluded.owner, token = greatest(coalesce(l.token, 0) + case when {is_known} then 0 else 1 end, excluded.token),
            acquired_at = excluded.acquired_at, expires_at = excluded.expires_at{set}
        returning l.id, l.token"
    );
    let query = sqlx::query_as(AssertSqlSafe(sql)).bind(owner);
    let token = |given: &Option<Given>| given.as_ref().map_or(1, |given| given.token);
    let known = |given: &Option<Given>| given.as_ref().map(|given| given.owner.clone());
    let acquired = |given: &Option<Given>| given.as_ref().map(|given| given.acquired_at);
    let expires = |given: &Option<Given>| given.as_ref().map(|given| given.expires_at);
    let query = match keys {
        [(key, lease, given)] => {
            let query = query.bind(key.id()).bind(key.advisory()).bind(*lease).bind(token(given));
            query.bind(known(given)).bind(acquired(given)).bind(expires(given))
        }
        _ => query
            .bind(keys.iter().map(|(key, ..)| key.id()).collect::<Vec<_>>())
            .bind(keys.iter().map(|(key, ..)| key.advisory()).collect::<Vec<_>>())
            .bind(keys.iter().map(|(_, lease, _)| *lease).collect::<Vec<_>>())
            .bind(keys.iter().map(|(.., given)| token(given)).collect::<Vec<_>>())
            .bind(keys.iter().map(|(.., given)| known(given)).collect::<Vec<_>>())
            .bind(keys.iter().map(|(.., given)| acquired(given)).collect::<Vec<_>>())
            .bind(keys.iter().map(|(.., given)| expires(given)).collect::<Vec<_>>()),
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

/// Begins a lease anew, or as another store has. That the lock is held is shown by the session, which is the one that took
/// it; only a greater token shows that it is not. A smaller one is what the mirror has brought late. Answers whether it did.
pub async fn renew(
    (connection, layout): (&mut PgConnection, Layout),
    key: &LockKey,
    token: i64,
    lease: i64,
    given: Option<&Given>,
) -> sqlx::Result<bool> {
    let [set, fence] = match layout {
        Layout::Moving => [
            ", epoch = case when $4::timestamptz is null then f.epoch else l.epoch end,
            clock = case when $4::timestamptz is null then nextval('bridge.clock') else l.clock end",
            "from bridge.fence f",
        ],
        Layout::Final => [""; 2],
    };
    let sql = format!(
        "update scheduler.locks l
        set expires_at = coalesce($4::timestamptz,
                date_trunc('milliseconds', clock_timestamp() + interval '999 microseconds') + $3 * interval '1 millisecond'),
            token = $2{set}
        {fence}
        where l.id = $1 and coalesce(l.token, 0) <= $2"
    );
    let renewed = sqlx::query(AssertSqlSafe(sql))
        .bind(key.id())
        .bind(token)
        .bind(lease)
        .bind(given.map(|given| given.expires_at))
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
