//! What must be so before a phase may follow another (design 11), and the permit that says that it was.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use tokio::time::Instant;

use super::{SwitchError, clients};
use crate::condition::Condition;
use crate::entity::ENTITIES;
use crate::fence::Fence;
use crate::fence::mongo::View;
use crate::phase::Phase;
use crate::source::{Source, SourceError};
use crate::target::TargetError;
use crate::verify::proof::Proof;
use crate::verify::{Verdict, reads};

/// How long a permit is good for.
const VALID: Duration = Duration::from_secs(60);

/// The most that the mirror may lag behind, in seconds, when a switch begins: writers wait for the rest.
const LAG_LIMIT: f64 = 1.0;

/// The most keys that may wait to be compared again when a switch begins: they are compared before writers wait, and what is
/// written meanwhile while they do.
const QUEUE_LIMIT: i64 = 100_000;

/// What an operator may decide about the gate.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Clients of MongoDB that may be connected besides the application's processes, by name.
    pub accepted_clients: BTreeSet<String>,
    /// Collections whose reads may differ between the stores.
    pub accepted_reads: BTreeSet<String>,
    /// How old a verification, and a comparison of reads, may be.
    pub fresh: Duration,
    /// For how long PostgreSQL must have been the primary before the way back is given up.
    pub soak: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        const HOUR: Duration = Duration::from_secs(3_600);
        Self { accepted_clients: BTreeSet::new(), accepted_reads: BTreeSet::new(), fresh: HOUR, soak: HOUR * 24 }
    }
}

/// From one phase to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition {
    /// The phase that ends.
    pub from: Phase,
    /// The phase that begins.
    pub to: Phase,
}

impl Transition {
    /// The transition, if it is one of those that there are.
    ///
    /// # Errors
    /// [`SwitchError::NoWay`].
    pub fn new(from: Phase, to: Phase) -> Result<Self, SwitchError> {
        let is_one = matches!(
            (from, to),
            (Phase::Mongo, Phase::MongoPrimary)
                | (Phase::MongoPrimary, Phase::PostgresPrimary)
                | (Phase::PostgresPrimary, Phase::MongoPrimary | Phase::Postgres)
        );
        if is_one { Ok(Self { from, to }) } else { Err(SwitchError::NoWay { from, to }) }
    }

    /// The phases that may follow `from`.
    pub fn next(from: Phase) -> Vec<Phase> {
        Phase::ALL.into_iter().filter(|to| Self::new(from, *to).is_ok()).collect()
    }

    /// Whether another store becomes the primary.
    pub fn turns(self) -> bool {
        self.from.primary() != self.to.primary()
    }
}

/// Says that every condition of a transition was met a moment ago. Only the gate makes one: nobody else can.
///
/// ```compile_fail,E0451
/// use scheduler_bridge::phase::Phase;
/// use scheduler_bridge::switch::gate::{Permit, Transition};
///
/// let transition = Transition { from: Phase::MongoPrimary, to: Phase::PostgresPrimary };
/// let until = tokio::time::Instant::now();
/// let permit = Permit { transition, epoch: 1, until, conditions: Vec::new() };
/// ```
#[derive(Debug)]
pub struct Permit {
    transition: Transition,
    epoch: i32,
    until: Instant,
    conditions: Vec<Condition>,
}

impl Permit {
    /// What the gate found.
    pub fn conditions(&self) -> &[Condition] {
        &self.conditions
    }

    /// The transition and the epoch that it is for, if it is still good.
    ///
    /// # Errors
    /// [`SwitchError::Expired`].
    pub(super) fn used(self, epoch_of: impl Fn(Phase) -> i32) -> Result<Passed, SwitchError> {
        let is_good = self.epoch == epoch_of(self.transition.from) && Instant::now() < self.until;
        if !is_good {
            return Err(SwitchError::Expired);
        }
        Ok(Passed { transition: self.transition, conditions: self.conditions })
    }
}

/// A permit that a switch under way has used.
#[derive(Debug)]
pub struct Passed {
    transition: Transition,
    conditions: Vec<Condition>,
}

impl Passed {
    /// The one that whoever began the switch has used, and kept in its record.
    ///
    /// # Errors
    /// [`SwitchError::Unmet`] when it keeps none.
    pub(super) fn kept(transition: Transition, conditions: Vec<Condition>) -> Result<Self, SwitchError> {
        permit(transition, 0, conditions).map(|permit| Self { transition, conditions: permit.conditions })
    }

    /// From where to where.
    pub(super) fn transition(&self) -> Transition {
        self.transition
    }

    /// What the gate found.
    pub(super) fn conditions(&self) -> &[Condition] {
        &self.conditions
    }

    /// Lets the fence of the phase that begins be opened.
    pub(super) fn warrant(&self, epoch: i32) -> Warrant {
        Warrant { phase: self.transition.to, epoch }
    }
}

/// Lets a fence be opened. One comes from a permit, or from a switch that is undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Warrant {
    phase: Phase,
    epoch: i32,
}

impl Warrant {
    /// Lets the old primary be opened again.
    pub(super) fn back(transition: Transition, epoch: i32) -> Self {
        Self { phase: transition.from, epoch }
    }

    /// What the fence is then.
    pub fn fence(self) -> Fence {
        Fence { phase: self.phase, epoch: self.epoch, open: true }
    }
}

/// The permit for `transition` from `epoch`, when all `conditions` are met.
///
/// # Errors
/// [`SwitchError::Unmet`].
pub(super) fn permit(transition: Transition, epoch: i32, conditions: Vec<Condition>) -> Result<Permit, SwitchError> {
    if conditions.is_empty() || conditions.iter().any(|condition| !condition.met) {
        return Err(SwitchError::Unmet { conditions });
    }
    Ok(Permit { transition, epoch, until: Instant::now() + VALID, conditions })
}

/// Tests of the switch alone do not verify before each turn.
fn waived(name: &'static str) -> Option<Condition> {
    is_waived().then(|| Condition::new(name, true, "waived by a test", ""))
}

/// Fail points are not compiled into a program that is not built for tests.
fn is_waived() -> bool {
    fail::fail_point!("switch::unverified", |_| true);
    false
}

/// What the conditions are looked up in.
pub(super) struct Look<'a> {
    pub pool: &'a PgPool,
    pub source: &'a Source,
    pub view: &'a View,
    /// The epoch of the primary.
    pub epoch: i32,
    pub limits: &'a Limits,
}

impl Look<'_> {
    /// Looks at every condition of `transition`.
    pub async fn examine(&self, transition: Transition) -> Result<Vec<Condition>, SwitchError> {
        Ok(match (transition.from, transition.to) {
            (Phase::Mongo, _) => vec![self.caught_up().await?],
            (Phase::MongoPrimary, _) => vec![
                self.backfilled().await?,
                self.quarantine().await?,
                self.lag().await?,
                self.strays().await?,
                self.clients().await?,
                self.queue().await?,
                self.verified(None).await?,
                self.reads().await?,
            ],
            (Phase::PostgresPrimary, Phase::MongoPrimary) => {
                vec![self.outbox().await?, self.queue().await?]
            }
            _ => {
                let (since, seconds) = self.turned_at().await?.unzip();
                vec![self.strays().await?, self.queue().await?, self.verified(since).await?, self.soaked(seconds)]
            }
        })
    }

    async fn one<T>(&self, attempted: &'static str, sql: &'static str) -> Result<T, SwitchError>
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
    {
        let found = sqlx::query_scalar(sql).fetch_one(self.pool).await;
        found.map_err(|error| TargetError::of(attempted, error).into())
    }

    async fn caught_up(&self) -> Result<Condition, SwitchError> {
        let sql = "select coalesce((select level_at::text from bridge.stream), '')";
        let at: String = self.one("look when the stores were level", sql).await?;
        let found = if at.is_empty() { "never".to_owned() } else { format!("last at {at}") };
        Ok(Condition::new("the mirror was level once", !at.is_empty(), found, "once"))
    }

    async fn backfilled(&self) -> Result<Condition, SwitchError> {
        let sql = "select count(distinct collection) from bridge.backfill where finished_at is not null";
        let done: i64 = self.one("look which backfills are finished", sql).await?;
        let all = i64::try_from(ENTITIES.len()).unwrap_or(i64::MAX);
        let found = format!("{done} of {all} collections");
        Ok(Condition::new("the backfill is complete", done == all, found, format!("{all} collections")))
    }

    async fn quarantine(&self) -> Result<Condition, SwitchError> {
        let sql = "select count(*) from bridge.quarantine where accepted_at is null";
        let count: i64 = self.one("count what is in quarantine", sql).await?;
        let name = "no quarantined document that nobody has accepted";
        Ok(Condition::new(name, count == 0, format!("{count} documents"), "0"))
    }

    async fn queue(&self) -> Result<Condition, SwitchError> {
        let count: i64 = self.one("count the keys to compare again", "select count(*) from bridge.recheck").await?;
        let name = "few keys wait to be compared again";
        Ok(Condition::new(name, count <= QUEUE_LIMIT, format!("{count} keys"), format!("{QUEUE_LIMIT}")))
    }

    /// When the phase began, and how many seconds ago that was, both by PostgreSQL's clock.
    async fn turned_at(&self) -> Result<Option<(DateTime<Utc>, f64)>, SwitchError> {
        let sql = "select turned_at, extract(epoch from clock_timestamp() - turned_at)::float8
            from bridge.phase_history order by epoch desc, turned_at desc limit 1";
        let found = sqlx::query_as(sql).fetch_optional(self.pool).await;
        found.map_err(|error| TargetError::of("look when the phase began", error).into())
    }

    /// The newest verification, of whatever scope: one that found a mismatch is not passed over for an earlier one that
    /// did not. It must have begun after all backfills had ended, and after `since`.
    async fn verified(&self, since: Option<DateTime<Utc>>) -> Result<Condition, SwitchError> {
        let name = "the newest verification is full, fresh and clean";
        if let Some(waived) = waived(name) {
            return Ok(waived);
        }
        let limit = format!("at most {} s old, all collections, after the backfill", self.limits.fresh.as_secs());
        let failed = |error| SwitchError::from(TargetError::of("read the newest verification", error));
        let Some(proof) = Proof::newest(self.pool).await.map_err(failed)? else {
            return Ok(Condition::new(name, false, "there is none", limit));
        };
        let is_early = "select bool_or(coalesce(finished_at, 'infinity') >= $1) from bridge.backfill";
        let is_early = sqlx::query_scalar(is_early).bind(proof.began_at).fetch_one(self.pool).await;
        let is_early: Option<bool> = is_early.map_err(failed)?;
        let is_genuine = proof.is_genuine(self.pool).await.map_err(failed)?;
        let mut faults = self.faults(is_genuine, proof.epoch, proof.age_seconds);
        faults.extend(proof.gaps());
        if is_early == Some(true) {
            faults.push("begun before the backfill's end".to_owned());
        }
        if since.is_some_and(|since| proof.began_at < since) {
            faults.push("begun before the switch".to_owned());
        }
        if proof.verdict != "clean" {
            faults.push(format!("its verdict is {}", proof.verdict));
        }
        let clean = || vec![format!("clean, {:.0} s old", proof.age_seconds)];
        let met = faults.is_empty();
        let found = format!("number {}: {}", proof.number, if met { clean() } else { faults }.join("; "));
        Ok(Condition::new(name, met, found, limit))
    }

    /// What is wrong with a record of that age that was made in `epoch`, whatever it is a record of.
    fn faults(&self, is_genuine: bool, epoch: i32, age: f64) -> Vec<String> {
        let mut faults = Vec::new();
        if !is_genuine {
            faults.push("tampered: its record is not as it was written".to_owned());
        }
        if epoch != self.epoch {
            faults.push(format!("of another epoch: {epoch}, and now it is {}", self.epoch));
        }
        if age > self.limits.fresh.as_secs_f64() {
            faults.push(format!("stale: {age:.0} s old"));
        }
        faults
    }

    /// The newest comparison of what the queries of the application answer.
    async fn reads(&self) -> Result<Condition, SwitchError> {
        let name = "the newest comparison of reads is whole, fresh and clean";
        if let Some(waived) = waived(name) {
            return Ok(waived);
        }
        let limit = format!("at most {} s old, all tenants", self.limits.fresh.as_secs());
        let Some(latest) = reads::latest(self.pool).await? else {
            return Ok(Condition::new(name, false, "there is none", limit));
        };
        let age = latest.age_seconds;
        let mut faults = self.faults(latest.is_genuine, latest.epoch, age);
        if latest.is_sampled {
            faults.push("partial: a sample of the tenants".to_owned());
        }
        let (accepted, differing): (Vec<&str>, Vec<&str>) =
            latest.differing.iter().map(String::as_str).partition(|name| self.limits.accepted_reads.contains(*name));
        match latest.verdict {
            Verdict::Clean => {}
            Verdict::Mismatch if differing.is_empty() && !accepted.is_empty() => {}
            Verdict::Mismatch => faults.push(format!("reads differ in {}", differing.join(", "))),
            Verdict::Inconclusive => faults.push("empty: nothing was compared".to_owned()),
        }
        let met = faults.is_empty();
        let well = if latest.verdict == Verdict::Clean { "clean" } else { "differs where that is accepted" };
        let mut found = if met { format!("{well}, {age:.0} s old") } else { faults.join("; ") };
        if !accepted.is_empty() {
            found += &format!("; accepted: {}", accepted.join(", "));
        }
        Ok(Condition::new(name, met, found, limit))
    }

    fn soaked(&self, seconds: Option<f64>) -> Condition {
        let found = seconds.map_or_else(|| "unknown".to_owned(), |seconds| format!("{seconds:.0} s"));
        let met = seconds.is_some_and(|seconds| seconds >= self.limits.soak.as_secs_f64());
        let limit = format!("{} s", self.limits.soak.as_secs());
        Condition::new("PostgreSQL has been the primary for long enough", met, found, limit)
    }

    async fn lag(&self) -> Result<Condition, SwitchError> {
        // A mirror that is not there tells no lag: it renews its lease all the time.
        let sql = "select case when leased_until > clock_timestamp() then lag_seconds end from bridge.stream
            union all select null limit 1";
        let lag: Option<f64> = self.one("look how far the mirror lags behind", sql).await?;
        let found = lag.map_or_else(|| "no mirror is running".to_owned(), |lag| format!("{lag:.1} s"));
        let met = lag.is_some_and(|lag| lag <= LAG_LIMIT);
        Ok(Condition::new("the mirror is level", met, found, format!("{LAG_LIMIT:.1} s")))
    }

    async fn strays(&self) -> Result<Condition, SwitchError> {
        let sql = "select count(*) from bridge.stray where accepted_at is null";
        let count: i64 = self.one("count the stray writes", sql).await?;
        let name = "no stray write that nobody has accepted";
        Ok(Condition::new(name, count == 0, format!("{count} stray writes"), "0"))
    }

    async fn clients(&self) -> Result<Condition, SwitchError> {
        let name = "no client of MongoDB but the application's processes";
        let found = match clients::unregistered(self.source, self.view).await {
            Ok(found) => found,
            // What may not be looked at is not known to be so.
            Err(error @ SourceError::Privilege { .. }) => {
                return Ok(Condition::new(name, false, error.to_string(), "none"));
            }
            Err(error) => return Err(error.into()),
        };
        let (accepted, strangers): (Vec<&str>, Vec<&str>) =
            found.iter().map(String::as_str).partition(|name| self.limits.accepted_clients.contains(*name));
        let mut words = if strangers.is_empty() { "none".to_owned() } else { strangers.join(", ") };
        if !accepted.is_empty() {
            words += &format!("; accepted: {}", accepted.join(", "));
        }
        Ok(Condition::new(name, strangers.is_empty(), words, "none"))
    }

    async fn outbox(&self) -> Result<Condition, SwitchError> {
        let sql =
            "select coalesce(extract(epoch from clock_timestamp() - min(written_at)), 0)::float8 from bridge.outbox";
        let lag: f64 = self.one("look how old the outbox is", sql).await?;
        Ok(Condition::new(
            "the outbox is drained",
            lag <= LAG_LIMIT,
            format!("{lag:.1} s old"),
            format!("{LAG_LIMIT:.1} s"),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_four_transitions_of_the_design_are_there() {
        let all = Phase::ALL.into_iter().flat_map(|from| Phase::ALL.into_iter().map(move |to| (from, to)));
        let found: Vec<String> = all
            .filter(|(from, to)| Transition::new(*from, *to).is_ok())
            .map(|(from, to)| format!("{from} -> {to}"))
            .collect();
        let expected = [
            "mongo -> mongo-primary",
            "mongo-primary -> postgres-primary",
            "postgres-primary -> mongo-primary",
            "postgres-primary -> postgres",
        ];
        assert_eq!(found, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_permit_needs_conditions_that_are_met_and_is_good_for_its_epoch_and_for_a_minute() {
        let transition = Transition::new(Phase::MongoPrimary, Phase::PostgresPrimary).unwrap();
        let condition = |met| Condition::new("c", met, "", "");
        assert!(permit(transition, 1, vec![]).is_err());
        assert!(permit(transition, 1, vec![condition(true), condition(false)]).is_err());
        let permit = || permit(transition, 1, vec![condition(true)]).unwrap();
        assert!(permit().used(|_| 1).is_ok());
        assert!(permit().used(|_| 2).is_err());
        let old = permit();
        tokio::time::advance(VALID).await;
        assert!(old.used(|_| 1).is_err());
    }
}
