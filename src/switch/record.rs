//! Who is at the switch, and what became of it: for operators. The fences alone decide.

use std::time::Duration;

use sqlx::types::Json;
use sqlx::{FromRow, PgPool};
use uuid::Uuid;

use super::gate::Transition;
use super::{Made, SwitchError};
use crate::condition::Condition;
use crate::phase::UnknownPhase;
use crate::target::TargetError;

/// The record, and who writes it.
#[derive(Debug, Clone)]
pub struct Record {
    pool: PgPool,
    holder: Uuid,
    name: String,
    /// How long a switch is its operator's alone after its last step.
    lease: Duration,
}

#[derive(FromRow)]
struct Row {
    from_phase: String,
    to_phase: String,
    step: String,
    held_by: String,
    conditions: Json<Vec<Condition>>,
}

fn failed(attempted: &'static str) -> impl FnOnce(sqlx::Error) -> SwitchError {
    move |error| TargetError::of(attempted, error).into()
}

impl Record {
    /// The record in `pool`, written by `name` with a lease.
    pub fn new(pool: PgPool, name: String, lease: Duration) -> Self {
        Self { pool, holder: Uuid::new_v4(), name, lease }
    }

    /// Notes that a switch begins, and what the gate found before it.
    ///
    /// # Errors
    /// [`SwitchError::UnderWay`] when one has begun and not ended.
    pub async fn take(&self, transition: Transition, conditions: &[Condition]) -> Result<(), SwitchError> {
        let taken = sqlx::query(
            "insert into bridge.switch (from_phase, to_phase, step, holder, held_by, leased_until, conditions)
            values ($1, $2, 'begin', $3, $4, clock_timestamp() + make_interval(secs => $5), $6)
            on conflict do nothing",
        );
        let taken = taken.bind(transition.from.name()).bind(transition.to.name()).bind(self.holder).bind(&self.name);
        let taken = taken.bind(self.lease.as_secs_f64()).bind(Json(conditions)).execute(&self.pool).await;
        if taken.map_err(failed("note the switch"))?.rows_affected() == 1 {
            return Ok(());
        }
        Err(self.row().await?.map_or(SwitchError::NoneUnderWay, under_way))
    }

    /// Takes over a switch that nobody is at any more.
    ///
    /// # Errors
    /// [`SwitchError::NoneUnderWay`], [`SwitchError::UnderWay`].
    pub async fn take_over(&self) -> Result<(Transition, Vec<Condition>), SwitchError> {
        let row = self.row().await?.ok_or(SwitchError::NoneUnderWay)?;
        let taken = sqlx::query(
            "update bridge.switch
            set holder = $1, held_by = $2, leased_until = clock_timestamp() + make_interval(secs => $3)
            where leased_until < clock_timestamp() or holder = $1",
        );
        let taken = taken.bind(self.holder).bind(&self.name).bind(self.lease.as_secs_f64()).execute(&self.pool).await;
        if taken.map_err(failed("take the switch over"))?.rows_affected() == 0 {
            return Err(under_way(row));
        }
        let phase = |word: &str| word.parse().map_err(|source: UnknownPhase| unreadable(source));
        Ok((Transition::new(phase(&row.from_phase)?, phase(&row.to_phase)?)?, row.conditions.0))
    }

    /// Notes the next step, and begins the lease anew.
    ///
    /// # Errors
    /// [`SwitchError::UnderWay`] when somebody else has taken over.
    pub async fn step(&self, step: &'static str) -> Result<(), SwitchError> {
        self.note(Some(step)).await
    }

    /// Begins the lease anew.
    ///
    /// # Errors
    /// Those of [`Record::step`].
    pub async fn keep(&self) -> Result<(), SwitchError> {
        self.note(None).await
    }

    async fn note(&self, step: Option<&'static str>) -> Result<(), SwitchError> {
        let noted = sqlx::query(
            "update bridge.switch set step = coalesce($1, step),
                leased_until = clock_timestamp() + make_interval(secs => $2)
            where holder = $3",
        );
        let noted = noted.bind(step).bind(self.lease.as_secs_f64()).bind(self.holder).execute(&self.pool).await;
        if noted.map_err(failed("note a step of the switch"))?.rows_affected() == 1 {
            return Ok(());
        }
        Err(self.row().await?.map_or(SwitchError::NoneUnderWay, under_way))
    }

    /// Notes that it has ended without being made.
    pub async fn end(&self) -> Result<(), SwitchError> {
        let ended = sqlx::query("delete from bridge.switch where holder = $1").bind(self.holder);
        ended.execute(&self.pool).await.map_err(failed("note the end of the switch")).map(|_| ())
    }

    /// Notes that it was made, and with it what the gate found.
    pub async fn made(&self, made: &Made, conditions: &[Condition]) -> Result<(), SwitchError> {
        let noted = sqlx::query(
            "with ended as (delete from bridge.switch where holder = $1)
            insert into bridge.phase_history (epoch, phase, turned_by, pause_seconds, conditions)
            values ($2, $3, $4, $5, $6) on conflict do nothing",
        );
        let conditions = serde_json::to_value(conditions).unwrap_or_default();
        let noted = noted.bind(self.holder).bind(made.epoch).bind(made.phase.name()).bind(&self.name);
        let noted = noted.bind(made.pause.as_secs_f64()).bind(conditions).execute(&self.pool).await;
        noted.map_err(failed("note the switch that was made")).map(|_| ())
    }

    async fn row(&self) -> Result<Option<Row>, SwitchError> {
        let row = sqlx::query_as("select from_phase, to_phase, step, held_by, conditions from bridge.switch");
        row.fetch_optional(&self.pool).await.map_err(failed("read the switch"))
    }
}

fn under_way(row: Row) -> SwitchError {
    SwitchError::UnderWay { to: row.to_phase, by: row.held_by, step: row.step }
}

fn unreadable(source: UnknownPhase) -> SwitchError {
    crate::fence::FenceError::Phase { backend: crate::phase::Backend::Postgres, source }.into()
}
