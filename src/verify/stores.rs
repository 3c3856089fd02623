//! Both stores as the verifier reads them.

use std::collections::HashMap;

use bson::doc;
use futures::TryStreamExt;
use sqlx::PgPool;

use super::generation::Order;
use super::recheck::Recheck;
use super::rows::Rows;
use super::{MIRROR_WAIT, Result, Turn, VerifyError};
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
        self.rechecks.get(entity.name).ok_or(VerifyError::Unreadable { what: "a collection that is not verified" })
    }

    /// A collection made with a collation has its `_id` index in that order.
    pub async fn order(&self, entity: &Entity) -> Result<Order> {
        let listed = async {
            let listed = self.source.database().list_collections().filter(doc! { "name": entity.name }).await?;
            listed.try_collect::<Vec<_>>().await
        };
        let failed = |error| VerifyError::source(format!("look how {} is sorted", entity.name), error);
        let collated = listed.await.map_err(failed)?.iter().any(|found| found.options.collation.is_some());
        Ok(if collated { Order::Collation } else { Order::Bytes })
    }

    /// Waits until the mirror has brought every write of until now to the secondary.
    ///
    /// # Errors
    /// [`VerifyError::Behind`] when it takes too long.
    pub async fn until_level(&self, turn: Turn) -> Result<()> {
        let mark = Mark::take(turn.phase.primary(), self.source.database(), self.pool()).await;
        let mark = mark.map_err(|error| match error {
            MarkError::Source(error) => VerifyError::source("write a mark".to_owned(), error),
            MarkError::Target(error) => VerifyError::target("look into the outbox", error),
        })?;
        let passed = mark.until_passed(self.pool(), MIRROR_WAIT).await;
        let passed = passed.map_err(|error| VerifyError::target("look how far the mirror is", error))?;
        if passed { Ok(()) } else { Err(VerifyError::Behind) }
    }
}
