//! Runs: their states follow [`RUN`], their counts never fall, their moments are set once.

use super::Error;
use super::records::{Listing, PageRequest, Records, Tenant, address, date, named, of_tenant};
use super::state::{RUN, Step};
use crate::entity::runs::{Delta, Run, RunState, Stats};
use crate::entity::{Instant, Record};
use crate::store::{Direction, Filter, Query, Store};

/// The runs in a store.
#[derive(Debug, Clone)]
pub struct Runs<S> {
    records: Records<S, Run>,
}

/// Which runs to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListOptions {
    /// Only those in this state.
    pub state: Option<RunState>,
    /// Only those of this schedule.
    pub schedule_id: Option<String>,
    /// Only those created after this moment.
    pub created_after: Option<Instant>,
}

/// What an update says of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The state it is in now; the same one reports progress.
    pub state: RunState,
    /// What it has counted. A count below the one that is known is an older report and changes nothing.
    pub stats: Stats,
    /// What it has found new, beside what is known.
    pub deltas: Vec<Delta>,
    /// Why it failed.
    pub error: Option<String>,
    /// When that was so.
    pub at: Instant,
}

impl Progress {
    /// Nothing but the state.
    pub fn to(state: RunState, at: Instant) -> Self {
        Self { state, stats: Stats::default(), deltas: Vec::new(), error: None, at }
    }
}

impl<S: Store> Runs<S> {
    /// The runs in `store`.
    pub fn new(store: S) -> Self {
        Self { records: Records::new(store) }
    }

    /// The run.
    pub async fn get(&self, tenant: &Tenant, id: &str) -> Result<Run, Error> {
        Ok(self.records.of(tenant, id).await?.record)
    }

    /// The tenant's runs by creation.
    pub async fn list(
        &self,
        tenant: &Tenant,
        options: &ListOptions,
        page: &PageRequest,
    ) -> Result<Listing<Run>, Error> {
        let query = Query::of(Run::ENTITY)
            .only(of_tenant(tenant))
            .only_if(options.state.map(|state| named("state", state.word())))
            .only_if(options.schedule_id.as_deref().map(|schedule| named("scheduleId", schedule)))
            .only_if(options.created_after.map(|moment| Filter::Above("createdAt", date(moment))))
            .by("createdAt", Direction::Ascending);
        self.records.page(query, page).await
    }

    /// Puts a new run.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the id is taken, [`Error::Invalid`] for a run that is over already.
    pub async fn create(&self, run: &Run) -> Result<(), Error> {
        self.records.create(new(run)?).await
    }

    /// Reports on a run: a transition, or progress in the same state.
    pub async fn update(&self, tenant: &Tenant, id: &str, progress: &Progress) -> Result<Run, Error> {
        Ok(self.records.update(tenant, id, |run| advanced(run, progress).map(Some)).await?.record())
    }

    /// Up to `limit` runs of the tenant that wait to be planned or executed, the oldest first.
    pub async fn pending(&self, tenant: &Tenant, limit: u32) -> Result<Vec<Run>, Error> {
        let states = [RunState::Planning, RunState::Queued].map(|state| state.word().into());
        let query = Query::of(Run::ENTITY)
            .only(of_tenant(tenant))
            .only(Filter::In("state", states.to_vec()))
            .by("createdAt", Direction::Ascending);
        self.first(query, limit).await
    }

    /// The last `limit` runs of a schedule, the newest first.
    pub async fn by_schedule(&self, tenant: &Tenant, schedule_id: &str, limit: u32) -> Result<Vec<Run>, Error> {
        let query = Query::of(Run::ENTITY)
            .only(of_tenant(tenant))
            .only(named("scheduleId", schedule_id))
            .by("createdAt", Direction::Descending);
        self.first(query, limit).await
    }

    /// Cancels a run that is not over.
    pub async fn cancel(&self, tenant: &Tenant, id: &str, at: Instant) -> Result<Run, Error> {
        self.update(tenant, id, &Progress::to(RunState::Cancelled, at)).await
    }

    /// Puts a new run `new_id` that repeats one that is over. The same call again finds the id taken.
    ///
    /// # Errors
    /// [`Error::Illegal`] when the run is not over.
    pub async fn retry(&self, tenant: &Tenant, id: &str, new_id: &str, at: Instant) -> Result<Run, Error> {
        let run = self.get(tenant, id).await?;
        let again = repeated(&run, new_id, at)?;
        self.records.create(&again).await?;
        Ok(again)
    }

    async fn first(&self, query: Query, limit: u32) -> Result<Vec<Run>, Error> {
        Ok(self.records.page(query, &PageRequest::first(limit)).await?.items)
    }
}

/// The run, if a new run can be so.
pub fn new(run: &Run) -> Result<&Run, Error> {
    Tenant::new(run.tenant_id.as_str())?;
    match RUN.is_final(run.state.word()) {
        true => Err(Error::invalid("the new run", format!("it is in the final state {:?}", run.state.word()))),
        false => Ok(run),
    }
}

/// The run after `progress`.
///
/// # Errors
/// [`Error::Illegal`].
pub fn advanced(run: &Run, progress: &Progress) -> Result<Run, Error> {
    let step = RUN
        .step(run.state.word(), progress.state.word())
        .map_err(|source| Error::Illegal { address: address::<Run>(&run.id), source })?;
    let mut next = run.clone();
    next.state = progress.state;
    next.stats = run.stats.max(progress.stats);
    next.updated_at = run.updated_at.max(progress.at);
    next.error = progress.error.clone().or(next.error);
    next.deltas.extend(progress.deltas.iter().filter(|delta| !run.deltas.contains(delta)).cloned());
    if progress.state == RunState::Running {
        next.started_at = run.started_at.or(Some(progress.at));
    }
    if step == Step::Ended {
        next.finished_at = run.finished_at.or(Some(progress.at));
    }
    Ok(next)
}

fn repeated(run: &Run, new_id: &str, at: Instant) -> Result<Run, Error> {
    if !RUN.is_final(run.state.word()) {
        let source = RUN.refusal(run.state.word(), RunState::Planning.word());
        return Err(Error::Illegal { address: address::<Run>(&run.id), source });
    }
    Ok(Run {
        id: new_id.to_owned(),
        state: RunState::Planning,
        stats: Stats::default(),
        created_at: at,
        started_at: None,
        finished_at: None,
        error: None,
        deltas: Vec::new(),
        retry_of: Some(run.id.clone()),
        updated_at: at,
        ..run.clone()
    })
}
