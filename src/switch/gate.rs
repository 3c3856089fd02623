//! What must be so before a phase may follow another (design 11), and the permit that says that it was.

use std::collections::BTreeSet;
use std::time::Duration;

use sqlx::PgPool;
use tokio::time::Instant;

use super::{SwitchError, clients};
use crate::condition::Condition;
use crate::entity::ENTITIES;
use crate::fence::mongo::View;
use crate::phase::Phase;
use crate::source::{Source, SourceError};
use crate::target::TargetError;

/// How long a permit is good for.
const VALID: Duration = Duration::from_secs(60);

/// The most that the mirror may lag behind, in seconds, when a switch begins: writers wait for the rest.
const LAG_LIMIT: f64 = 1.0;

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

/// Says that every condition of a transition was met a moment ago. Only [`permit`] makes one.
#[derive(Debug)]
pub struct Permit {
    transition: Transition,
    epoch: i32,
    until: Instant,
    conditions: Vec<Condition>,
}

impl Permit {
    /// The transition and the epoch that it is for, if it is still good.
    ///
    /// # Errors
    /// [`SwitchError::Expired`].
    pub(super) fn used(self, epoch_of: impl Fn(Phase) -> i32) -> Result<(Transition, Vec<Condition>), SwitchError> {
        let is_good = self.epoch == epoch_of(self.transition.from) && Instant::now() < self.until;
        if is_good { Ok((self.transition, self.conditions)) } else { Err(SwitchError::Expired) }
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

/// A condition that needs the verifier of live stores. It is never met but in tests.
fn unverified(name: &'static str) -> Condition {
    let met = is_waived();
    let found = if met { "waived by a test" } else { "cannot be shown: this version does not verify live stores yet" };
    Condition::new(name, met, found, "")
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
    /// Clients of MongoDB that the operator has accepted by name.
    pub accepted: &'a BTreeSet<String>,
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
                unverified("a full verification since the backfill"),
                unverified("read parity"),
            ],
            (Phase::PostgresPrimary, Phase::MongoPrimary) => {
                vec![self.outbox().await?, unverified("the keys to compare again")]
            }
            _ => vec![
                self.strays().await?,
                unverified("a verification since the switch"),
                unverified("the time since the switch"),
            ],
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
        let count: i64 = self.one("count what is in quarantine", "select count(*) from bridge.quarantine").await?;
        Ok(Condition::new("the quarantine is empty", count == 0, format!("{count} documents"), "0"))
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
            found.iter().map(String::as_str).partition(|name| self.accepted.contains(*name));
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
