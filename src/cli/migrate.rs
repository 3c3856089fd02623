//! `bridge migrate`.

use super::{Context, Exit, Failure};
use crate::migrate::{self, Applied, MigrateError};
use crate::target;

pub(super) async fn run(context: &Context) -> Result<Exit, Failure> {
    let url = context.settings.postgres_url()?;
    let done = context.until_stopped(async {
        let mut connection = target::connect(url).await?;
        match migrate::run(&mut connection).await {
            Ok(done) => Ok(Some(done)),
            // Whoever starts a scheduler runs this first, also when the move has been over for a year.
            Err(MigrateError::Over) => Ok(None),
            Err(error) => Err(error.into()),
        }
    });
    let Some(Applied { applied, before }) = done.await? else {
        context.output.text("the move is over: the schema is as `bridge finalize` has left it")?;
        context.output.object(&serde_json::json!({ "applied": [], "before": [], "finalized": true }))?;
        return Ok(Exit::Clean);
    };
    for file in &applied {
        context.output.text(&format!("applied {file}"))?;
    }
    if applied.is_empty() {
        context
            .output
            .text(&format!("the schema is up to date: all {} migrations were applied before", before.len()))?;
    }
    context.output.object(&serde_json::json!({ "applied": applied, "before": before }))?;
    Ok(Exit::Clean)
}
