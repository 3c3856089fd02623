//! Placeholder until the real one is merged.
use crate::entity::triggers::MisfirePolicy;
use chrono::{DateTime, Utc};
use croner::parser::{CronParser, Seconds};

#[derive(Debug, Clone)]
pub struct Cron {
    cron: croner::Cron,
    zone: chrono_tz::Tz,
}
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CronError(String);
pub struct Firing {
    pub fire: Option<DateTime<Utc>>,
    pub next: Option<DateTime<Utc>>,
}
impl Cron {
    pub fn parse(expression: &str, zone: &str) -> Result<Self, CronError> {
        let cron = CronParser::builder()
            .seconds(Seconds::Optional)
            .build()
            .parse(expression)
            .map_err(|e| CronError(e.to_string()))?;
        Ok(Self { cron, zone: zone.parse().map_err(|_| CronError("zone".into()))? })
    }
    pub fn next(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.cron.find_next_occurrence(&after.with_timezone(&self.zone), false).ok().map(|t| t.with_timezone(&Utc))
    }
}
pub fn plan(cron: &Cron, due_at: DateTime<Utc>, now: DateTime<Utc>, _policy: MisfirePolicy) -> Firing {
    Firing { fire: Some(due_at), next: cron.next(now) }
}
