//! What a report says besides what was compared.

use std::time::Duration;

use bson::doc;

use super::VerifyError;
use super::report::{Gate, IrregularField, Surroundings};
use crate::entity::Entity;
use crate::fence::mongo::MongoFence;
use crate::quarantine;
use crate::source::{Source, SourceError};
use crate::switch::gate::{Limits, Transition};
use crate::switch::{Fences, Switch, SwitchError};
use crate::target::{Target, TargetError};

/// The most quarantined documents that are told; all are counted.
const QUARANTINED: usize = 1_000;

/// The most irregular fields that are told.
const IRREGULAR: i64 = 100;

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
            irregular_fields: irregular_fields(target, entities).await?,
            // The report is not kept from whoever waits for it.
            gates: gates(source, target).await.unwrap_or_else(|error| {
                tracing::warn!(error = %crate::error_text(&error), "the gates were not looked at");
                Vec::new()
            }),
        })
    }
}

/// As the newest copy of each collection found them.
async fn irregular_fields(target: &Target, entities: &[&'static Entity]) -> Result<Vec<IrregularField>, TargetError> {
    let found = sqlx::query_as(
        "select b.collection, field.name as field, sum(field.count::bigint)::bigint as documents
        from bridge.backfill b
            join bridge.chunk c on c.backfill = b.id,
            jsonb_each_text(c.irregular_fields) as field (name, count)
        where b.id in (select max(id) from bridge.backfill group by collection) and b.collection = any($1)
        group by b.collection, field.name order by documents desc, b.collection, field limit $2",
    );
    let names: Vec<&str> = entities.iter().map(|entity| entity.name).collect();
    let found = found.bind(names).bind(IRREGULAR).fetch_all(target.pool()).await;
    found.map_err(|error| TargetError::of("count the irregular fields", error))
}

/// The gates of the phases that may follow. Before the first switch, when MongoDB has no fence, nobody can go through one.
async fn gates(source: &Source, target: &Target) -> Result<Vec<Gate>, SwitchError> {
    if MongoFence::new(source.database()).look().await?.is_none() {
        return Ok(Vec::new());
    }
    let (phase, _) = Fences::look(source, target).await?.turn();
    let switch = Switch::new(source.clone(), target.clone(), String::new(), Duration::ZERO);
    let mut gates = Vec::new();
    for to in Transition::next(phase) {
        let (_, conditions) = switch.examine(to, &Limits::default()).await?;
        gates.push(Gate { to, conditions });
    }
    Ok(gates)
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
