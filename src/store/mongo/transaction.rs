//! Transactions of MongoDB: what a majority has, written to a majority's journals.

use std::time::Duration;

use mongodb::ClientSession;
use mongodb::error::{Result, UNKNOWN_TRANSACTION_COMMIT_RESULT};
use mongodb::options::{Acknowledgment, ReadConcern, WriteConcern};

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
            Err(error) if error.contains_label(UNKNOWN_TRANSACTION_COMMIT_RESULT) => tokio::time::sleep(PAUSE).await,
            done => return done,
        }
    }
}
