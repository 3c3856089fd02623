//! Triggers: when a schedule is set off.
//!
//! A due trigger is claimed by the write that moves it on to its next firing. The write is guarded by the trigger as it was
//! read, so of any number of schedulers exactly one makes it; and what the firing brings about can be part of the same
//! write, so that no firing is lost between the two.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use bson::Bson;
use sha2::{Digest, Sha256};

use super::Error;
use super::cron::{self, Cron};
use super::records::{Held, Listing, PageRequest, Records, Tenant, date, named, of_tenant};
use crate::entity::triggers::{Trigger, TriggerKind};
use crate::entity::{Instant, Record};
use crate::store::{Change, Direction, Filter, Query, Store, StoreError};

/// The triggers in a store.
#[derive(Debug, Clone)]
pub struct Triggers<S> {
    records: Records<S, Trigger>,
    spread: Arc<Spread>,
}

/// Over how many shares of what is due this claimer spreads: more, when it loses triggers to others.
#[derive(Debug)]
struct Spread {
    shares: AtomicU32,
    turns: AtomicU64,
}

impl Spread {
    /// The share that is `worker`'s turn.
    fn share(&self, worker: &str) -> u32 {
        let shares = self.shares.load(Ordering::Relaxed);
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        let digest = Sha256::new_with_prefix(worker).chain_update([0]).chain_update(turn.to_le_bytes()).finalize();
        if shares > 1 { u32::from(digest[0]) % shares } else { 0 }
    }

    fn note(&self, wanted: usize, got: usize) {
        let shares = self.shares.load(Ordering::Relaxed);
        let next =
            if got * 2 < wanted { (shares * 2).min(WIDEST) } else { shares - u32::from(got == wanted && shares > 1) };
        self.shares.store(next, Ordering::Relaxed);
    }
}

/// One firing of a trigger, claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The trigger, moved on to its next firing.
    pub trigger: Trigger,
    /// The moment it was to fire at; nothing when its misfire policy passes over it.
    pub fire_at: Option<Instant>,
}

/// Over how many shares of what is due claimers spread at most.
const WIDEST: u32 = 64;

impl<S: Store> Triggers<S> {
    /// The triggers in `store`.
    pub fn new(store: S) -> Self {
        Self {
            records: Records::new(store),
            spread: Arc::new(Spread { shares: AtomicU32::new(1), turns: AtomicU64::new(0) }),
        }
    }

    /// The trigger.
    pub async fn get(&self, tenant: &Tenant, id: &str) -> Result<Trigger, Error> {
        Ok(self.records.of(tenant, id).await?.record)
    }

    /// The triggers of one schedule by creation.
    pub async fn list_by_schedule(
        &self,
        tenant: &Tenant,
        schedule_id: &str,
        page: &PageRequest,
    ) -> Result<Listing<Trigger>, Error> {
        let query = Query::of(Trigger::ENTITY)
            .only(of_tenant(tenant))
            .only(named("scheduleId", schedule_id))
            .by("createdAt", Direction::Ascending);
        self.records.page(query, page).await
    }

    /// Puts a trigger, new or in the place of the tenant's own. A cron trigger without a next firing gets the first one
    /// after `updated_at`; or keeps the one it has, when expression and zone stay: nothing fires twice, or is passed over,
    /// because the same trigger is put again. When it was created, and when it last fired, stays as it was.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a cron expression or a zone that cannot be used, [`Error::Conflict`] when the id is taken
    /// by another tenant.
    pub async fn upsert(&self, trigger: &Trigger) -> Result<Trigger, Error> {
        Tenant::new(trigger.tenant_id.as_str())?;
        let cron = cron_of(trigger)?;
        let mut new = trigger.clone();
        if let Some(cron) = cron.filter(|_| trigger.next_fire_at.is_none()) {
            new.next_fire_at = cron.next(trigger.updated_at.0).map(Instant);
        }
        let merge = |held: &Trigger| {
            let last_fired_at = new.last_fired_at.max(held.last_fired_at);
            let same = (&held.kind, &held.cron_expression, &held.timezone);
            let stays = trigger.next_fire_at.is_none() && same == (&new.kind, &new.cron_expression, &new.timezone);
            let next_fire_at = if stays { held.next_fire_at } else { new.next_fire_at };
            let updated_at = new.updated_at.max(held.updated_at);
            Some(Trigger { created_at: held.created_at, last_fired_at, next_fire_at, updated_at, ..new.clone() })
        };
        self.records.upsert(&new, merge).await
    }

    /// Notes that a trigger fired at `fired_at`, and computes when it fires next. A firing that is noted already, or is
    /// older, changes nothing.
    pub async fn advance(&self, tenant: &Tenant, id: &str, fired_at: Instant) -> Result<Trigger, Error> {
        let advanced = |trigger: &Trigger| {
            if trigger.last_fired_at >= Some(fired_at) {
                return Ok(None);
            }
            let next = cron_of(trigger)?.and_then(|cron| cron.next(fired_at.0)).map(Instant);
            Ok(Some(moved(trigger, Some(fired_at), next, fired_at)))
        };
        Ok(self.records.update(tenant, id, advanced).await?.record())
    }

    /// Claims up to `limit` triggers of all tenants that are due at `now`, the longest due first. Each is claimed by one
    /// caller only, whatever number of them calls at once; `worker` names the caller, and spreads them over what is due.
    ///
    /// A trigger whose cron expression cannot be read claims nobody: it is disabled.
    pub async fn claim_due(&self, now: Instant, limit: u32, worker: &str) -> Result<Vec<Claim>, Error> {
        let claimable = self.claimable(now, limit, worker).await?;
        let changes: Vec<Change> =
            claimable.iter().map(|(held, claim)| held.replacement(&claim.trigger)).collect::<Result<_, _>>()?;
        let done = self.records.store().apply_each(&changes).await?;
        self.spread.note(done.len(), done.iter().flatten().count());
        let claimed = claimable.into_iter().zip(done).filter(|(_, after)| after.is_some());
        Ok(claimed.map(|((_, claim), _)| claim).filter(|claim| claim.trigger.enabled).collect())
    }

    /// Claims like [`Triggers::claim_due`], each together with what `brings_about` makes of it in one transaction: both
    /// happen, or neither.
    pub async fn fire_due(
        &self,
        now: Instant,
        limit: u32,
        worker: &str,
        brings_about: impl Fn(&Claim) -> Result<Vec<Change>, Error> + Send + Sync,
    ) -> Result<Vec<Claim>, Error> {
        let claimable = self.claimable(now, limit, worker).await?;
        let (wanted, mut fired) = (claimable.len(), Vec::new());
        for (held, claim) in claimable {
            let mut changes = vec![held.replacement(&claim.trigger)?];
            changes.extend(brings_about(&claim)?);
            match self.records.store().apply(&changes).await {
                Ok(_) => fired.push(claim),
                // Somebody else has it.
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.spread.note(wanted, fired.len());
        Ok(fired)
    }

    /// Triggers that are due, each with the claim that could be made of it.
    async fn claimable(&self, now: Instant, limit: u32, worker: &str) -> Result<Vec<(Held<Trigger>, Claim)>, Error> {
        let skip = self.spread.share(worker).saturating_mul(limit);
        let (mut found, _) = self.records.find(&due(now).skip(skip).limit(limit)).await?;
        if found.is_empty() && skip > 0 {
            found = self.records.find(&due(now).limit(limit)).await?.0;
        }
        // Many triggers share few expressions.
        let mut crons: HashMap<(Option<String>, Option<String>), Option<Cron>> = HashMap::new();
        let mut claimed = Vec::with_capacity(found.len());
        for held in found {
            let Trigger { cron_expression, timezone, .. } = &held.record;
            let known = crons.entry((cron_expression.clone(), timezone.clone()));
            let cron = known.or_insert_with(|| cron_of(&held.record).ok().flatten());
            let claim = claim(&held.record, cron.as_ref(), now);
            claimed.push((held, claim));
        }
        Ok(claimed)
    }
}

/// The enabled triggers of all tenants that are due at `now`, the longest due first.
pub(super) fn due(now: Instant) -> Query {
    Query::of(Trigger::ENTITY)
        .only(Filter::Is("enabled", Bson::Boolean(true)))
        .only(Filter::UpTo("nextFireAt", date(now)))
        .by("nextFireAt", Direction::Ascending)
}

/// What becomes of a trigger that is due at `now`, with its cron expression if that can be read.
fn claim(trigger: &Trigger, cron: Option<&Cron>, now: Instant) -> Claim {
    let due_at = trigger.next_fire_at.unwrap_or(now);
    match cron {
        _ if trigger.kind != TriggerKind::Cron => {
            Claim { trigger: moved(trigger, Some(due_at), None, now), fire_at: Some(due_at) }
        }
        // Nobody could say when it fires next: it would be due for ever.
        None => Claim { trigger: Trigger { enabled: false, updated_at: now, ..trigger.clone() }, fire_at: None },
        Some(cron) => {
            let firing = cron::plan(cron, due_at.0, now.0, trigger.misfire_policy);
            let fire_at = firing.fire.map(Instant);
            Claim { trigger: moved(trigger, fire_at, firing.next.map(Instant), now), fire_at }
        }
    }
}

fn moved(trigger: &Trigger, fired: Option<Instant>, next: Option<Instant>, at: Instant) -> Trigger {
    Trigger {
        last_fired_at: fired.max(trigger.last_fired_at),
        next_fire_at: next,
        updated_at: trigger.updated_at.max(at),
        ..trigger.clone()
    }
}

/// The cron expression of a cron trigger; triggers of other kinds fire when they are told to.
fn cron_of(trigger: &Trigger) -> Result<Option<Cron>, Error> {
    if trigger.kind != TriggerKind::Cron {
        return Ok(None);
    }
    let expression = trigger.cron_expression.as_deref().unwrap_or_default();
    let zone = trigger.timezone.as_deref().unwrap_or("UTC");
    let cron = Cron::parse(expression, zone);
    cron.map(Some).map_err(|error| Error::invalid("the trigger's cron expression", error.to_string()))
}
