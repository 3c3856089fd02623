//! Impact snapshots: frozen when a run is planned.

use super::Error;
use super::records::{PageRequest, Records, Tenant, address, named, of_tenant};
use crate::entity::Record;
use crate::entity::impact_snapshots::ImpactSnapshot;
use crate::store::{Direction, Query, Store};

/// The impact snapshots in a store.
#[derive(Debug, Clone)]
pub struct ImpactSnapshots<S> {
    records: Records<S, ImpactSnapshot>,
}

impl<S: Store> ImpactSnapshots<S> {
    /// The impact snapshots in `store`.
    pub fn new(store: S) -> Self {
        Self { records: Records::new(store) }
    }

    /// Puts a snapshot. The same one again changes nothing.
    ///
    /// # Errors
    /// [`Error::Conflict`] when another one has the id.
    pub async fn put(&self, snapshot: &ImpactSnapshot) -> Result<(), Error> {
        Tenant::new(snapshot.tenant_id.as_str())?;
        match self.records.create(snapshot).await {
            Err(Error::Conflict { address }) => {
                let found = self.records.any(&snapshot.id).await?.record;
                if found == *snapshot { Ok(()) } else { Err(Error::Conflict { address }) }
            }
            done => done,
        }
    }

    /// The snapshot.
    pub async fn get(&self, tenant: &Tenant, id: &str) -> Result<ImpactSnapshot, Error> {
        Ok(self.records.of(tenant, id).await?.record)
    }

    /// Up to `limit` snapshots of a run, the oldest first.
    pub async fn by_run(&self, tenant: &Tenant, run_id: &str, limit: u32) -> Result<Vec<ImpactSnapshot>, Error> {
        let query = Query::of(ImpactSnapshot::ENTITY)
            .only(of_tenant(tenant))
            .only(named("runId", run_id))
            .by("generatedAt", Direction::Ascending);
        Ok(self.records.page(query, &PageRequest::first(limit)).await?.items)
    }

    /// The tenant's newest snapshot.
    pub async fn latest(&self, tenant: &Tenant) -> Result<ImpactSnapshot, Error> {
        let query = Query::of(ImpactSnapshot::ENTITY).only(of_tenant(tenant)).by("generatedAt", Direction::Descending);
        let newest = self.records.page(query, &PageRequest::first(1)).await?.items.pop();
        newest.ok_or_else(|| Error::NotFound { address: address::<ImpactSnapshot>("latest") })
    }
}
