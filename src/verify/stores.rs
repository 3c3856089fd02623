//! Both stores as the verifier reads them.

use std::collections::HashMap;

use bson::doc;
use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use sqlx::PgPool;
use tokio::time::Instant;

use super::generation::Order;
use super::recheck::Recheck;
use super::rows::Rows;
use super::{Fault, LOOK, MIRROR_WAIT, Result, Turn};
use crate::anchor::{Mark, MarkError};
use crate::entity::Entity;
use crate::phase::Backend;
use crate::source::Source;
use crate::target::Target;

/// Both stores.
#[derive(Clone)]
pub struct Stores {
    pub source: Source,
    pub target: Target,
    rechecks: HashMap<&'static str, Recheck>,
}

impl Stores {
    /// The stores, for comparisons of `entities`.
    pub fn new(source: &Source, target: &Target, entities: &[&'static Entity], primary: Backend) -> Self {
        let recheck = |entity: &'static Entity| Recheck {
            source: source.clone(),
            pool: target.pool().clone(),
            entity,
            rows: Rows::new(entity),
            primary,
        };
        let rechecks = entities.iter().map(|entity| (entity.name, recheck(entity))).collect();
        Self { source: source.clone(), target: target.clone(), rechecks }
    }

    /// The connections to PostgreSQL.
    pub fn pool(&self) -> &PgPool {
        self.target.pool()
    }

    /// Compares keys of one of the entities.
    pub fn recheck(&self, entity: &Entity) -> Result<&Recheck> {
        self.rechecks.get(entity.name).ok_or(Fault::Unreadable { what: "a collection that is not verified" })
    }

    /// A collection made with a collation has its `_id` index in that order.
    pub async fn order(&self, entity: &Entity) -> Result<Order> {
        let listed = async {
            let listed = self.source.database().list_collections().filter(doc! { "name": entity.name }).await?;
            listed.try_collect::<Vec<_>>().await
        };
        let failed = |error| Fault::source(format!("look how {} is sorted", entity.name), error);
        let collated = listed.await.map_err(failed)?.iter().any(|found| found.options.collation.is_some());
        Ok(if collated { Order::Collation } else { Order::Bytes })
    }

    /// The time, by PostgreSQL's clock.
    pub async fn now(&self) -> Result<DateTime<Utc>> {
        let now = sqlx::query_scalar("select clock_timestamp()").fetch_one(self.pool()).await;
        now.map_err(|error| Fault::target("ask for the time".to_owned(), error))
    }

    /// Whether a mirror keeps the secondary level.
    pub async fn is_followed(&self) -> Result<bool> {
        let live = "select exists (select from bridge.stream where leased_until > clock_timestamp())";
        let live = sqlx::query_scalar(live).fetch_one(self.pool()).await;
        live.map_err(|error| Fault::target("look whether a mirror runs".to_owned(), error))
    }

    /// Waits until the mirror has brought every write of until now to the secondary.
    ///
    /// # Errors
    /// [`Fault::Behind`] when it takes too long.
    pub async fn until_level(&self, turn: Turn) -> Result<()> {
        let mark = Mark::take(turn.phase.primary(), self.source.database(), self.pool()).await;
        let mark = mark.map_err(|error| match error {
            MarkError::Source(error) => Fault::source("write a mark".to_owned(), error),
            MarkError::Target(error) => Fault::target("look into the outbox".to_owned(), error),
        })?;
        let deadline = Instant::now() + MIRROR_WAIT;
        loop {
            let passed = mark.is_passed(self.pool()).await;
            if passed.map_err(|error| Fault::target("look how far the mirror is".to_owned(), error))? {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Fault::Behind);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}
