//! Whether a connection has a session of its own.
//!
//! Behind a pooler in transaction mode two transactions of one connection may run in different sessions, and two
//! connections may share one: a lock that one of them takes is then anybody's. Such a pooler gives a transaction whichever
//! session is free, the one that was freed last or the one that waited longest. So two connections begin and end transactions
//! in both orders: whatever the pooler's rule, one of them meets another session than before, or waits for one.

use std::time::Duration;

use secrecy::SecretString;
use sqlx::{Connection, Executor, PgConnection, Row};

use crate::lock::LockError;
use crate::target::{self, TargetError};

/// How long a transaction may wait for a session: one that has its own does not wait at all.
const SESSION_WAIT: Duration = Duration::from_secs(3);

/// A connection with a session of its own.
pub async fn connect(url: &SecretString) -> Result<PgConnection, LockError> {
    let mut one = opened(url).await?;
    let mut other = opened(url).await?;
    let seen = tokio::time::timeout(SESSION_WAIT, sessions(&mut one, &mut other)).await;
    match seen {
        Ok(Ok(sessions)) if is_direct(&sessions) => {
            other.close().await.map_err(|error| unavailable(error.into()))?;
            Ok(one)
        }
        Ok(Err(error)) => Err(told(error)),
        // The wrong session, or none within the time.
        Ok(Ok(_)) | Err(_) => Err(LockError::Pooler),
    }
}

async fn opened(url: &SecretString) -> Result<PgConnection, LockError> {
    target::connect(url).await.map_err(|error| match error {
        TargetError::Query { source, .. } => told(source),
        error => unavailable(error.into()),
    })
}

/// The sessions of both connections, transaction by transaction.
async fn sessions(one: &mut PgConnection, other: &mut PgConnection) -> sqlx::Result<Vec<[i32; 2]>> {
    let mut seen = Vec::new();
    for order in 0..4 {
        // Who begins first, and who ends first: all four ways.
        let (begins_first, ends_first) = (order & 1, order & 2);
        let pids = if begins_first == 0 {
            let pid = begun(one).await?;
            [pid, begun(other).await?]
        } else {
            let pid = begun(other).await?;
            [begun(one).await?, pid]
        };
        seen.push(pids);
        let (first, second) = if ends_first == 0 { (&mut *one, &mut *other) } else { (&mut *other, &mut *one) };
        first.execute("commit").await?;
        second.execute("commit").await?;
    }
    Ok(seen)
}

async fn begun(connection: &mut PgConnection) -> sqlx::Result<i32> {
    connection.execute("begin").await?;
    // A prepared statement would be unknown to the next session.
    let row = sqlx::raw_sql("select pg_backend_pid()").fetch_one(connection).await?;
    row.try_get::<i32, _>(0)
}

/// A statement that was prepared in another session is a pooler's doing too.
fn told(error: sqlx::Error) -> LockError {
    let is_poolers = |code: &str| code == "26000" || code == "42P05";
    match error.as_database_error().and_then(|error| error.code()) {
        Some(code) if is_poolers(&code) => LockError::Pooler,
        _ => unavailable(error.into()),
    }
}

fn is_direct(sessions: &[[i32; 2]]) -> bool {
    sessions.iter().all(|pids| pids == &sessions[0] && pids[0] != pids[1])
}

fn unavailable(source: Box<dyn std::error::Error + Send + Sync>) -> LockError {
    LockError::Unavailable { attempted: "open the connection for locks".to_owned(), source: Some(source) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_changes_or_is_shared_is_a_poolers() {
        assert!(is_direct(&[[1, 2], [1, 2]]));
        assert!(!is_direct(&[[1, 2], [2, 1]]));
        assert!(!is_direct(&[[1, 1], [1, 1]]));
    }
}
