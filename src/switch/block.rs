//! MongoDB's user write blocking (6.0 on): the server itself refuses the writes of all users, in every database, but of those
//! with the privilege `bypassWriteBlockingMode`, which the bridge and the application need.

use bson::doc;

use crate::source::{Source, SourceError};

/// What `serverStatus` calls it when writes are blocked.
const BLOCKED: i32 = 2;

/// Blocks users' writes, or does so no more. Needs the privilege `setUserWriteBlockMode`.
pub async fn set(source: &Source, blocked: bool) -> Result<(), SourceError> {
    let command = doc! { "setUserWriteBlockMode": 1, "global": blocked };
    let done = source.client().database("admin").run_command(command).await;
    let attempted =
        if blocked { "block other users' writes in MongoDB" } else { "let other users write to MongoDB again" };
    done.map(|_| ()).map_err(|error| SourceError::of(attempted, error))
}

/// Lets users write again, if their writes are blocked. A server that does not tell, for want of version or privilege, is
/// taken for one that does not block.
pub async fn lift(source: &Source) -> Result<(), SourceError> {
    let status = source.client().database("admin").run_command(doc! { "serverStatus": 1, "repl": 1 }).await;
    let mode = status.ok().and_then(|status| status.get_document("repl").ok()?.get_i32("userWriteBlockMode").ok());
    if mode == Some(BLOCKED) { set(source, false).await } else { Ok(()) }
}
