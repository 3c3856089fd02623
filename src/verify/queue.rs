//! The queue of keys to compare again (`bridge.recheck`): what the mirror wrote, and what shadow reads found different.
//!
//! Invariant: a key leaves the queue only when it was compared, found equal, and not queued anew since before that.

use std::collections::HashSet;

use chrono::{DateTime, Utc};

use super::generation::SUSPECTS;
use super::recheck::{Difference, Suspect};
use super::stores::Stores;
use super::{Result, VerifyError};
use crate::entity::{self, Entity};

/// A walk through the queue, by collection and key.
pub struct Queue<'a> {
    stores: &'a Stores,
    collections: Vec<&'static str>,
    until: DateTime<Utc>,
    after: Option<(String, String)>,
}

/// What a step has shown.
#[derive(Debug)]
pub struct Step {
    /// Whose keys.
    pub entity: &'static Entity,
    /// How many were compared.
    pub compared: u64,
    /// Those that differ; they stay in the queue.
    pub found: Vec<Difference>,
}

#[derive(sqlx::FromRow)]
struct Entry {
    collection: String,
    id: String,
    epoch: i32,
    clock: i64,
}

impl<'a> Queue<'a> {
    /// Through all keys of `entities` that were queued until then.
    pub fn new(stores: &'a Stores, entities: &[&'static Entity], until: DateTime<Utc>) -> Self {
        Self { stores, collections: entities.iter().map(|entity| entity.name).collect(), until, after: None }
    }

    /// Compares the next keys, of one collection; nothing at the end.
    pub async fn next(&mut self) -> Result<Option<Step>> {
        let (entity, entries) = loop {
            let mut entries = self.entries().await?;
            let Some(last) = entries.last() else { return Ok(None) };
            let after = (last.collection.clone(), last.id.clone());
            entries.retain(|entry| self.collections.contains(&entry.collection.as_str()));
            let Some(first) = entries.first() else {
                self.after = Some(after);
                continue;
            };
            let entity =
                entity::named(&first.collection).ok_or(VerifyError::Unreadable { what: "the queue's collection" })?;
            entries.retain(|entry| entry.collection == entity.name);
            self.after = entries.last().map(|last| (last.collection.clone(), last.id.clone()));
            break (entity, entries);
        };
        let recheck = self.stores.recheck(entity)?;
        let suspects: Vec<Suspect> = entries.iter().map(|entry| recheck.suspect_of_key(&entry.id)).collect();
        let found = recheck.compare(suspects).await?;
        let differing: HashSet<&str> = found.iter().map(|one| one.suspect.key.text()).collect();
        let level: Vec<&Entry> = entries.iter().filter(|entry| !differing.contains(entry.id.as_str())).collect();
        self.remove(&level).await?;
        Ok(Some(Step { entity, compared: u64::try_from(entries.len()).unwrap_or_default(), found }))
    }

    /// The next entries, of whichever collections: a condition on these would have the index read from the first key of
    /// each, however far the walk is.
    async fn entries(&self) -> Result<Vec<Entry>> {
        let (collection, id) = self.after.as_ref().map(|(collection, id)| (collection, id)).unzip();
        let entries = sqlx::query_as(
            "select collection, id, epoch, clock from bridge.recheck
            where queued_at <= $1 and ($2::text is null or (collection, id) > ($2, $3))
            order by collection, id limit $4",
        );
        entries
            .bind(self.until)
            .bind(collection)
            .bind(id)
            .bind(i64::try_from(SUSPECTS).unwrap_or(i64::MAX))
            .persistent(false)
            .fetch_all(self.stores.pool())
            .await
            .map_err(|error| VerifyError::target("read the queue of keys to compare again", error))
    }

    /// A key that was queued anew since it was read has another stamp, and stays.
    async fn remove(&self, level: &[&Entry]) -> Result<()> {
        sqlx::query(
            "delete from bridge.recheck r
            using unnest($1::text[], $2::text[], $3::int4[], $4::int8[]) as level (collection, id, epoch, clock)
            where (r.collection, r.id, r.epoch, r.clock) = (level.collection, level.id, level.epoch, level.clock)",
        )
        .bind(level.iter().map(|entry| entry.collection.as_str()).collect::<Vec<_>>())
        .bind(level.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>())
        .bind(level.iter().map(|entry| entry.epoch).collect::<Vec<_>>())
        .bind(level.iter().map(|entry| entry.clock).collect::<Vec<_>>())
        .execute(self.stores.pool())
        .await
        .map_err(|error| VerifyError::target("take keys from the queue", error))?;
        Ok(())
    }
}
