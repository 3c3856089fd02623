//! Run summaries: what the runs of one schedule amount to.
//!
//! Invariant: a run counts once, in the newest state that was projected, in whatever order and however often its
//! versions arrive.

use super::Error;
use super::records::{Listing, PageRequest, Records, Tenant, of_tenant};
use super::state::RUN;
use crate::entity::Record;
use crate::entity::run_summaries::{Counters, RecentRun, RunSummary};
use crate::entity::runs::{Run, RunState};
use crate::store::{Query, Store};

/// How many finished runs a summary remembers. Runs that are not over are remembered beside them.
pub const REMEMBERED: usize = 20;

/// The run summaries in a store.
#[derive(Debug, Clone)]
pub struct RunSummaries<S> {
    records: Records<S, RunSummary>,
}

impl<S: Store> RunSummaries<S> {
    /// The run summaries in `store`.
    pub fn new(store: S) -> Self {
        Self { records: Records::new(store) }
    }

    /// Folds a run into the summary of its schedule; nothing for a run without one. A version that is folded in already,
    /// or is older, changes nothing.
    pub async fn project(&self, run: &Run) -> Result<Option<RunSummary>, Error> {
        let tenant = Tenant::new(run.tenant_id.as_str())?;
        let Some(schedule_id) = run.schedule_id.as_deref() else { return Ok(None) };
        let empty = empty(&tenant, schedule_id, run);
        let first = folded(&empty, run).unwrap_or(empty);
        self.records.upsert(&first, |summary| folded(summary, run)).await.map(Some)
    }

    /// The summary of a schedule.
    pub async fn get(&self, tenant: &Tenant, schedule_id: &str) -> Result<RunSummary, Error> {
        Ok(self.records.of(tenant, &id(tenant, schedule_id)).await?.record)
    }

    /// The tenant's summaries by id.
    pub async fn list(&self, tenant: &Tenant, page: &PageRequest) -> Result<Listing<RunSummary>, Error> {
        self.records.page(Query::of(RunSummary::ENTITY).only(of_tenant(tenant)), page).await
    }
}

fn id(tenant: &Tenant, schedule_id: &str) -> String {
    format!("{}:{schedule_id}", tenant.name())
}

fn empty(tenant: &Tenant, schedule_id: &str, run: &Run) -> RunSummary {
    RunSummary {
        id: id(tenant, schedule_id),
        tenant_id: tenant.name().to_owned(),
        schedule_id: schedule_id.to_owned(),
        last_run: None,
        recent: Vec::new(),
        counters: Counters::default(),
        updated_at: run.updated_at,
    }
}

/// The summary with `run` in it; nothing when it changes nothing.
fn folded(summary: &RunSummary, run: &Run) -> Option<RunSummary> {
    let new = recent(run);
    let mut next = summary.clone();
    match next.recent.iter_mut().find(|known| known.run_id == run.id) {
        Some(known) => {
            let merged = merged(known, &new)?;
            count(&mut next.counters, known, -1);
            count(&mut next.counters, &merged, 1);
            *known = merged;
        }
        // A run is forgotten only when it is over, and is never folded again then.
        None if is_forgotten(summary, &new) => return None,
        None => {
            count(&mut next.counters, &new, 1);
            next.recent.push(new);
        }
    }
    next.recent.sort_by(|one, other| (other.created_at, &other.run_id).cmp(&(one.created_at, &one.run_id)));
    forget(&mut next.recent);
    next.last_run = next.recent.first().cloned();
    next.updated_at = summary.updated_at.max(run.updated_at);
    Some(next)
}

/// What is known and what `new` adds to it; nothing when that is nothing.
fn merged(known: &RecentRun, new: &RecentRun) -> Option<RecentRun> {
    let is_newer = RUN.step(known.state.word(), new.state.word()).is_ok();
    let stats = known.stats.max(new.stats);
    let state = if is_newer { new.state } else { known.state };
    let finished_at = known.finished_at.or(new.finished_at);
    let merged = RecentRun { state, stats, finished_at, ..known.clone() };
    (merged != *known).then_some(merged)
}

/// Whether the run is older than all that a full summary remembers: it was counted when it was new.
fn is_forgotten(summary: &RunSummary, run: &RecentRun) -> bool {
    let mut over = summary.recent.iter().filter(|known| RUN.is_final(known.state.word()));
    let is_full = over.clone().count() >= REMEMBERED;
    is_full && over.all(|known| (known.created_at, &known.run_id) > (run.created_at, &run.run_id))
}

fn forget(recent: &mut Vec<RecentRun>) {
    let mut over = 0;
    recent.retain(|run| {
        over += usize::from(RUN.is_final(run.state.word()));
        over <= REMEMBERED || !RUN.is_final(run.state.word())
    });
}

fn recent(run: &Run) -> RecentRun {
    RecentRun {
        run_id: run.id.clone(),
        trigger: run.trigger.clone(),
        state: run.state,
        created_at: run.created_at,
        finished_at: run.finished_at,
        stats: run.stats,
    }
}

/// Adds `run` to the counts, or takes it out: `by` is 1 or -1.
fn count(counters: &mut Counters, run: &RecentRun, by: i32) {
    let of_state = match run.state {
        RunState::Planning => &mut counters.planning,
        RunState::Queued => &mut counters.queued,
        RunState::Running => &mut counters.running,
        RunState::Completed => &mut counters.completed,
        RunState::Error => &mut counters.error,
        RunState::Cancelled => &mut counters.cancelled,
    };
    let add = |counter: &mut i32, by: i32| *counter = counter.saturating_add(by);
    add(of_state, by);
    add(&mut counters.total, by);
    add(&mut counters.deltas, by.saturating_mul(run.stats.deltas));
    add(&mut counters.new_criticals, by.saturating_mul(run.stats.new_criticals));
}
