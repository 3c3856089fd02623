//! Schedules: kept for the runs that refer to them, so deleting one only marks it.

use bson::Bson;

use super::cron::Cron;
use super::records::{Listing, Outcome, PageRequest, Records, Tenant, address, named, of_tenant};
use super::{Error, triggers};
use crate::entity::schedules::Schedule;
use crate::entity::triggers::Trigger;
use crate::entity::{Instant, Record};
use crate::mapping::Key;
use crate::store::{Direction, Filter, Query, Store};

/// The schedules in a store.
#[derive(Debug, Clone)]
pub struct Schedules<S> {
    records: Records<S, Schedule>,
}

/// Which schedules to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListOptions {
    /// Only those that are enabled, or only those that are not.
    pub enabled: Option<bool>,
    /// Whether deleted ones are listed too.
    pub deleted: Deleted,
    /// Only those of exactly this name.
    pub name: Option<String>,
}

/// What becomes of deleted schedules in a list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Deleted {
    /// They are left out.
    #[default]
    Hidden,
    /// They are listed.
    Included,
}

impl<S: Store> Schedules<S> {
    /// The schedules in `store`.
    pub fn new(store: S) -> Self {
        Self { records: Records::new(store) }
    }

    /// The schedule, unless it was deleted.
    pub async fn get(&self, tenant: &Tenant, id: &str) -> Result<Schedule, Error> {
        let schedule = self.records.of(tenant, id).await?.record;
        if schedule.deleted_at.is_some() { Err(not_found(id)) } else { Ok(schedule) }
    }

    /// The tenant's schedules by creation.
    pub async fn list(
        &self,
        tenant: &Tenant,
        options: &ListOptions,
        page: &PageRequest,
    ) -> Result<Listing<Schedule>, Error> {
        let query = Query::of(Schedule::ENTITY)
            .only(of_tenant(tenant))
            .only_if(options.enabled.map(|enabled| Filter::Is("enabled", Bson::Boolean(enabled))))
            .only_if((options.deleted == Deleted::Hidden).then_some(Filter::Absent("deletedAt")))
            .only_if(options.name.as_deref().map(|name| named("name", name)))
            .by("createdAt", Direction::Ascending);
        self.records.page(query, page).await
    }

    /// Puts a schedule, new or in the place of the tenant's own; a deleted one comes back. Who created it, and when, stays
    /// as it was.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a cron expression or a zone that cannot be used, [`Error::Conflict`] when the id is taken
    /// by another tenant.
    pub async fn upsert(&self, schedule: &Schedule) -> Result<Schedule, Error> {
        Tenant::new(schedule.tenant_id.as_str())?;
        Cron::parse(&schedule.cron_expression, &schedule.timezone)
            .map_err(|error| Error::invalid("the schedule's cron expression", error.to_string()))?;
        let merge = |held: &Schedule| {
            let mut schedule = schedule.clone();
            (schedule.created_at, schedule.created_by) = (held.created_at, held.created_by.clone());
            schedule.updated_at = schedule.updated_at.max(held.updated_at);
            Some(schedule)
        };
        self.records.upsert(schedule, merge).await
    }

    /// Marks a schedule as deleted. Answers whether it was not so before.
    pub async fn soft_delete(&self, tenant: &Tenant, id: &str, by: &str, at: Instant) -> Result<bool, Error> {
        let deleted = |schedule: &Schedule| {
            let mut schedule = schedule.clone();
            if schedule.deleted_at.is_some() {
                return Ok(None);
            }
            (schedule.deleted_at, schedule.deleted_by) = (Some(at), Some(by.to_owned()));
            (schedule.updated_at, schedule.updated_by) = (schedule.updated_at.max(at), by.to_owned());
            Ok(Some(schedule))
        };
        Ok(matches!(self.records.update(tenant, id, deleted).await?, Outcome::Written(_)))
    }

    /// Up to `limit` schedules of all tenants with a trigger that is due at `now`, each once; disabled and deleted ones
    /// are passed over.
    pub async fn due(&self, now: Instant, limit: u32) -> Result<Vec<Schedule>, Error> {
        let triggers: Records<S, Trigger> = Records::new(self.records.store().clone());
        let (due, _) = triggers.find(&triggers::due(now).limit(limit)).await?;
        let mut keys: Vec<Key> = Vec::new();
        for held in due {
            let key = Key::from_text(held.record.schedule_id);
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        let found = self.records.many(&keys).await?;
        let is_live = |schedule: &Schedule| schedule.enabled && schedule.deleted_at.is_none();
        Ok(found.into_iter().map(|held| held.record).filter(is_live).collect())
    }
}

fn not_found(id: &str) -> Error {
    Error::NotFound { address: address::<Schedule>(id) }
}
