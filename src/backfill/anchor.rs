//! The anchor: the oplog time from which the mirror will follow, taken before the first document is read.

use bson::{Timestamp, doc};
use mongodb::error::{Error, ErrorKind};
use mongodb::options::{Acknowledgment, WriteConcern};
use sqlx::PgConnection;

use super::Fault;
use crate::scan::ANSWER_WAIT;
use crate::source::Source;
use crate::stamp::Stamp;

/// The bridge's own collection in the scheduler's database.
pub const COLLECTION: &str = "bridge_anchor";

/// Takes the oplog time of a majority write of our own. A `ping` would give a time that writes in flight, with earlier
/// oplog times, have not reached yet; a majority-acknowledged write has everything before it behind it.
pub async fn take(source: &Source) -> Result<Timestamp, Error> {
    let mut session = source.client().start_session().await?;
    let majority = WriteConcern::builder().w(Acknowledgment::Majority).w_timeout(ANSWER_WAIT).build();
    source
        .database()
        .collection::<bson::Document>(COLLECTION)
        .update_one(doc! { "_id": "anchor" }, doc! { "$inc": { "taken": 1_i64 }, "$currentDate": { "at": true } })
        .upsert(true)
        .write_concern(majority)
        .session(&mut session)
        .await?;
    let no_time = || ErrorKind::Custom(std::sync::Arc::new("the server's answer has no operationTime")).into();
    session.operation_time().ok_or_else(no_time)
}

/// Stores the token of a change stream that starts at `time`, unless the mirror has one already.
pub async fn keep_token(source: &Source, time: Timestamp, connection: &mut PgConnection) -> Result<(), Fault> {
    let reading = Fault::source("open a change stream on the database");
    let stream = source.database().watch().start_at_operation_time(time).await.map_err(reading)?;
    let token = stream.resume_token().and_then(|token| bson::serialize_to_vec(&token).ok());
    let missing = || ErrorKind::Custom(std::sync::Arc::new("the change stream gives no resume token")).into();
    let token = token.ok_or_else(missing).map_err(Fault::source("read the change stream's token"))?;
    sqlx::query("insert into bridge.stream (token, clock) values ($1, $2) on conflict do nothing")
        .bind(token)
        .bind(Stamp::of_oplog(0, time).clock)
        .execute(connection)
        .await
        .map_err(Fault::target("store the change stream's token"))?;
    Ok(())
}
