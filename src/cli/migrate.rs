//! `bridge migrate`.

use super::{Context, Exit, Failure};
use crate::migrate::{self, Applied};
use crate::target;

pub(super) async fn run(context: &Context) -> Result<Exit, Failure> {
    let url = context.settings.postgres_url()?;
    let done = context.until_stopped(async {
        let mut connection = target::connect(url).await?;
        Ok(migrate::run(&mut connection).await?)
    });
    let Applied { applied, before } = done.await?;
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
