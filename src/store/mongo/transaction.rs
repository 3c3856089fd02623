//! Transactions of MongoDB: what a majority has, written to a majority's journals.

use std::time::Duration;

use bson::{Document, doc};
use futures::TryStreamExt;
use mongodb::error::{Error, Result, TRANSIENT_TRANSACTION_ERROR, UNKNOWN_TRANSACTION_COMMIT_RESULT};
use mongodb::options::{Acknowledgment, ReadConcern, WriteConcern};
use mongodb::{Client, ClientSession};

use crate::source::{self, APPLICATION, INTERRUPTED};
use crate::store::OPERATION_WAIT;

/// The pause after a transaction that met another one, and before a commit is asked for again.
pub const PAUSE: Duration = Duration::from_millis(2);

/// Begins a transaction in `session`.
pub async fn begin(session: &mut ClientSession) -> Result<()> {
    let write = WriteConcern::builder().w(Acknowledgment::Majority).journal(true).w_timeout(OPERATION_WAIT).build();
    session.start_transaction().read_concern(ReadConcern::snapshot()).write_concern(write).await
}

/// Commits it, asking again for as long as the server does not know whether it did: give it a deadline.
pub async fn commit(session: &mut ClientSession) -> Result<()> {
    loop {
        match session.commit_transaction().await {
            Err(error) if is_unsure(&error) => tokio::time::sleep(PAUSE).await,
            done => return done,
        }
    }
}

/// Whether it is open if a transaction is committed. Without its label, the answer that there is no such transaction says
/// that a majority has not confirmed it.
fn is_unsure(error: &Error) -> bool {
    const NO_SUCH_TRANSACTION: i32 = 251;
    let is_unconfirmed = source::code(error) == Some(NO_SUCH_TRANSACTION) && !is_over(error);
    error.contains_label(UNKNOWN_TRANSACTION_COMMIT_RESULT) || is_killed(error) || is_unconfirmed
}

/// Whether a transaction that is not committed was ended by the server, for another one in its way, or because somebody
/// took its process for dead: it may begin again.
pub fn is_over(error: &Error) -> bool {
    error.contains_label(TRANSIENT_TRANSACTION_ERROR) || is_killed(error)
}

fn is_killed(error: &Error) -> bool {
    source::code(error) == Some(INTERRUPTED)
}

/// How long one of our transactions may wait for its next command before others take it for dead. Ending one that is not
/// does no harm: its owner begins again, as after any meeting.
const SILENCE: Duration = Duration::from_secs(3);

/// How long a write may take before it is looked for dead ones, and how often from then on.
const LOOK: Duration = Duration::from_secs(1);

/// Does `work`, which writes; while it takes long, ends the transactions that dead processes have left in its way.
///
/// A process that dies leaves its transaction open: MongoDB does not end it with the connection, but only after
/// `transactionLifetimeLimitSeconds`, looked at now and then: 60 to 90 seconds, in which nobody else can write its keys.
pub async fn past_the_dead<T>(client: &Client, work: impl Future<Output = T>) -> T {
    let looks = async {
        loop {
            tokio::time::sleep(LOOK).await;
            if let Err(error) = end_the_dead(client).await {
                tracing::debug!(%error, "could not look for the transactions of dead processes");
            }
        }
    };
    tokio::select! {
        done = work => done,
        never = looks => never,
    }
}

/// Ends the user's own transactions of the bridge's that wait for their next command too long. Needs no privilege.
async fn end_the_dead(client: &Client) -> Result<()> {
    let silence = i64::try_from(SILENCE.as_micros()).unwrap_or(i64::MAX);
    let admin = client.database("admin");
    let dead: Vec<Document> = admin
        .aggregate([
            doc! { "$currentOp": { "idleSessions": true } },
            doc! { "$match": {
                "type": "idleSession", "appName": { "$regex": format!("^{APPLICATION}") }, "transaction.timeInactiveMicros": { "$gt": silence },
            } },
            doc! { "$replaceWith": { "id": "$lsid.id" } },
        ])
        .await?
        .try_collect()
        .await?;
    if !dead.is_empty() {
        tracing::warn!(transactions = dead.len(), "ending transactions that a process left open");
        admin.run_command(doc! { "killSessions": dead }).await?;
    }
    Ok(())
}
