//! What a report says besides what was compared.

use bson::doc;

use super::VerifyError;
use super::report::Surroundings;
use crate::entity::Entity;
use crate::quarantine;
use crate::source::{Source, SourceError};
use crate::target::{Target, TargetError};

/// The most quarantined documents that are told; all are counted.
const QUARANTINED: usize = 1_000;

impl Surroundings {
    /// Looks at them now.
    pub async fn of(source: &Source, target: &Target, entities: &[&'static Entity]) -> Result<Self, VerifyError> {
        let mut quarantine = quarantine::list(target, entities).await?;
        quarantine.truncate(QUARANTINED);
        Ok(Self {
            bridge: env!("CARGO_PKG_VERSION"),
            mongodb: mongodb(source).await?,
            postgresql: postgresql(target).await?,
            quarantine,
            irregular_fields: Vec::new(),
            gates: Vec::new(),
        })
    }
}

async fn mongodb(source: &Source) -> Result<String, SourceError> {
    let info = source.database().run_command(doc! { "buildInfo": 1 }).await;
    let info = info.map_err(|error| SourceError::of("ask MongoDB for its version", error))?;
    Ok(info.get_str("version").unwrap_or("unknown").to_owned())
}

async fn postgresql(target: &Target) -> Result<String, TargetError> {
    let version = sqlx::query_scalar("select current_setting('server_version')").fetch_one(target.pool()).await;
    version.map_err(|error| TargetError::of("ask PostgreSQL for its version", error))
}
