//! Execution logs: appended, never changed.

use super::Error;
use super::records::{Records, Tenant, creation, named, of_tenant};
use crate::entity::Record;
use crate::entity::execution_logs::ExecutionLog;
use crate::store::{Change, Direction, Filter, Query, Store};

/// The most lines of one call.
pub const LINES_LIMIT: u32 = 10_000;

/// The execution logs in a store.
#[derive(Debug, Clone)]
pub struct ExecutionLogs<S> {
    records: Records<S, ExecutionLog>,
}

impl<S: Store> ExecutionLogs<S> {
    /// The execution logs in `store`.
    pub fn new(store: S) -> Self {
        Self { records: Records::new(store) }
    }

    /// Appends lines, all or none.
    ///
    /// # Errors
    /// [`Error::Conflict`] when one of them is there already.
    pub async fn append(&self, lines: &[ExecutionLog]) -> Result<(), Error> {
        let changes: Vec<Change> = lines.iter().map(line).collect::<Result<_, _>>()?;
        self.records.store().apply(&changes).await?;
        Ok(())
    }

    /// Up to `limit` lines of a run from sequence `from` on, in order.
    pub async fn by_run(
        &self,
        tenant: &Tenant,
        run_id: &str,
        from: i64,
        limit: u32,
    ) -> Result<Vec<ExecutionLog>, Error> {
        if !(1..=LINES_LIMIT).contains(&limit) {
            return Err(Error::invalid("the limit", format!("it is not from 1 to {LINES_LIMIT}")));
        }
        let query = Query::of(ExecutionLog::ENTITY)
            .only(of_tenant(tenant))
            .only(named("runId", run_id))
            .only(Filter::From("sequence", from.into()))
            .by("sequence", Direction::Ascending)
            .limit(limit);
        Ok(self.records.find(&query).await?.0.into_iter().map(|held| held.record).collect())
    }
}

fn line(line: &ExecutionLog) -> Result<Change, Error> {
    Tenant::new(line.tenant_id.as_str())?;
    creation(line)
}
