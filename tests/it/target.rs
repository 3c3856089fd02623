//! The connections to PostgreSQL.

use scheduler_bridge::target::Target;

use crate::bed::{Bed, until};
use crate::faults::gate::{self, LIMIT};

/// Stands for whatever a transaction may wait for while it begins.
const LOCK: i64 = 1_147;

#[tokio::test]
async fn a_session_serves_again_and_again() {
    let bed = Bed::new().await;
    let target = Target::open(&bed.postgres_url.as_str().into(), 1).await.expect("open PostgreSQL");
    let mut sessions = std::collections::HashSet::new();
    for turn in 0..10 {
        let mut transaction = target.pool().begin().await.expect("begin");
        let session = sqlx::query_scalar::<_, i32>("select pg_backend_pid()").fetch_one(&mut *transaction).await;
        sessions.insert(session.expect("ask"));
        // The others are rolled back.
        if turn % 2 == 0 {
            transaction.commit().await.expect("commit");
        }
    }
    assert_eq!(sessions.len(), 1);
}

#[tokio::test]
async fn a_transaction_that_is_given_up_while_it_begins_leaves_its_session_in_none() {
    let bed = Bed::new().await;
    let target = Target::open(&bed.postgres_url.as_str().into(), 1).await.expect("open PostgreSQL");
    let mut holder = gate::connect(&bed).await;
    sqlx::query("select pg_advisory_lock($1)").bind(LOCK).execute(&mut holder).await.expect("lock");

    let begin = sqlx::AssertSqlSafe(format!("begin; select pg_advisory_xact_lock({LOCK})"));
    tokio::select! {
        begun = target.pool().begin_with(begin) => panic!("it began: {begun:?}"),
        () = gate::until_bridge_waits(&bed) => {}
    }
    sqlx::query("select pg_advisory_unlock($1)").bind(LOCK).execute(&mut holder).await.expect("unlock");

    // The next who gets the only connection is not in that transaction, and keeps nothing from others.
    let lock = sqlx::query("select pg_advisory_xact_lock($1)").bind(LOCK);
    lock.execute(target.pool()).await.expect("lock and let go");
    let taken = async || {
        let taken = sqlx::query_scalar("select pg_try_advisory_lock($1)").bind(LOCK);
        taken.fetch_one(bed.pool()).await.expect("try to lock")
    };
    until("nobody holds the lock", LIMIT, taken).await;
}
