//! Graph jobs: their states follow [`GRAPH_JOB`].

use super::Error;
use super::records::{Listing, PageRequest, Records, Tenant, address, named, of_tenant};
use super::state::GRAPH_JOB;
use crate::entity::Record;
use crate::entity::graph_jobs::{GraphJob, GraphJobStatus};
use crate::store::{Direction, Query, Store};

/// The graph jobs in a store.
#[derive(Debug, Clone)]
pub struct GraphJobs<S> {
    records: Records<S, GraphJob>,
}

impl<S: Store> GraphJobs<S> {
    /// The graph jobs in `store`.
    pub fn new(store: S) -> Self {
        Self { records: Records::new(store) }
    }

    /// Puts a new job.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the id is taken, [`Error::Invalid`] for a job that is over already.
    pub async fn create(&self, job: &GraphJob) -> Result<(), Error> {
        Tenant::new(job.tenant_id.as_str())?;
        if GRAPH_JOB.is_final(job.status.word()) {
            return Err(Error::invalid("the new graph job", format!("it is {} already", job.status.word())));
        }
        self.records.create(job).await
    }

    /// The job.
    pub async fn get(&self, tenant: &Tenant, id: &str) -> Result<GraphJob, Error> {
        Ok(self.records.of(tenant, id).await?.record)
    }

    /// The tenant's jobs by creation: all of them, or those in one state.
    pub async fn list(
        &self,
        tenant: &Tenant,
        status: Option<GraphJobStatus>,
        page: &PageRequest,
    ) -> Result<Listing<GraphJob>, Error> {
        let query = Query::of(GraphJob::ENTITY)
            .only(of_tenant(tenant))
            .only_if(status.map(|status| named("status", status.word())))
            .by("createdAt", Direction::Ascending);
        self.records.page(query, page).await
    }

    /// Puts `job` in the place of the one with its id, if that is still in state `expected`.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it is in another state, [`Error::Illegal`] when `job`'s may not follow.
    pub async fn replace(&self, job: &GraphJob, expected: GraphJobStatus) -> Result<GraphJob, Error> {
        let tenant = Tenant::new(job.tenant_id.as_str())?;
        let address = || address::<GraphJob>(&job.id);
        let replaced = |held: &GraphJob| {
            if held.status != expected {
                return Err(Error::Conflict { address: address() });
            }
            let step = GRAPH_JOB.step(held.status.word(), job.status.word());
            step.map_err(|source| Error::Illegal { address: address(), source })?;
            let started_at = held.started_at.or(job.started_at);
            Ok(Some(GraphJob { created_at: held.created_at, started_at, ..job.clone() }))
        };
        Ok(self.records.update(&tenant, &job.id, replaced).await?.record())
    }
}
