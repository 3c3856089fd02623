//! What the repositories ask, from the repositories themselves: they are asked over a store that notes the questions.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::de::value::{Error as WordError, StrDeserializer};
use serde::de::{DeserializeOwned, IntoDeserializer};

use super::arguments::Arguments;
use crate::entity::{Entity, Instant, Vocabulary, graph_jobs, policy_jobs, runs as run};
use crate::mapping::Key;
use crate::parity::Read;
use crate::scheduler::{Error, PageRequest, Scheduler, Tenant, audit, policy_jobs as jobs, runs, schedules};
use crate::store::{Address, After, Change, Page, Query, Store, StoreError, Stored};

/// The lines of a run's log that are asked for: from the first on, and from one in the middle on.
const SEQUENCES: [i64; 2] = [i64::MIN, 3];

/// A moment after all that the scheduler knows of, in seconds since 1970: the year 8000.
const END_OF_TIME: i64 = 190_287_273_600;

/// A store that has nothing, and notes what it is asked.
#[derive(Debug, Clone)]
struct Noting {
    now: DateTime<Utc>,
    asked: Arc<Mutex<Vec<Read>>>,
}

impl Noting {
    fn at(now: DateTime<Utc>) -> Self {
        Self { now, asked: Arc::default() }
    }

    /// Notes each question once.
    fn note(&self, read: Read) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if !asked.contains(&read) {
            asked.push(read);
        }
    }

    fn asked(&self) -> Vec<Read> {
        std::mem::take(&mut *self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn refuse<T>(changes: &[Change]) -> Result<Vec<T>, StoreError> {
        match changes.first() {
            None => Ok(Vec::new()),
            Some(first) => Err(StoreError::Fenced { attempted: format!("write {}", first.address()) }),
        }
    }
}

impl Store for Noting {
    async fn get(&self, address: &Address) -> Result<Option<Stored>, StoreError> {
        self.note(Read::Keys(address.entity, vec![address.key.clone()]));
        Ok(None)
    }

    async fn get_many(&self, entity: &'static Entity, keys: &[Key]) -> Result<Vec<Option<Stored>>, StoreError> {
        if !keys.is_empty() {
            self.note(Read::Keys(entity, keys.to_vec()));
        }
        Ok(vec![None; keys.len()])
    }

    /// How much of the answer is read at a time is not the question's.
    async fn find(&self, query: &Query) -> Result<Page, StoreError> {
        self.note(Read::Page(query.clone().limit(u32::MAX)));
        Ok(Page { items: Vec::new(), next: None })
    }

    async fn apply(&self, changes: &[Change]) -> Result<Vec<After>, StoreError> {
        Self::refuse(changes)
    }

    async fn apply_each(&self, changes: &[Change]) -> Result<Vec<Option<After>>, StoreError> {
        Self::refuse(changes)
    }

    async fn now(&self) -> Result<DateTime<Utc>, StoreError> {
        Ok(self.now)
    }
}

/// Everything that is asked for one tenant, with the arguments that are known.
///
/// # Errors
/// [`Error::Invalid`] for an argument that the repositories refuse.
pub async fn of_tenant(tenant: &Tenant, known: &Arguments) -> Result<Vec<Read>, Error> {
    let noting = Noting::at(DateTime::UNIX_EPOCH);
    let scheduler = Scheduler::new(&noting);
    ask_plans(&scheduler, tenant, known).await?;
    ask_runs(&scheduler, tenant, known).await?;
    ask_jobs(&scheduler, tenant, known).await?;
    ask_records(&scheduler, tenant, known).await?;
    Ok(noting.asked())
}

/// Everything that is asked across tenants, at `now`, at moments that are known, and at the end of time.
///
/// # Errors
/// [`Error::Invalid`].
pub async fn across(now: DateTime<Utc>, known: &Arguments) -> Result<Vec<Read>, Error> {
    let noting = Noting::at(now);
    let fields = [
        ("triggers", "nextFireAt"),
        ("policy_jobs", "availableAt"),
        ("policy_jobs", "leaseExpiresAt"),
        ("workers", "lastHeartbeatAt"),
    ];
    let moments = fields.into_iter().flat_map(|(entity, field)| known.moments(entity, field));
    let end = DateTime::from_timestamp(END_OF_TIME, 0).map(Instant);
    for moment in moments.chain([Instant(now)]).chain(end) {
        let scheduler = Scheduler::new(&Noting { now: moment.0, ..noting.clone() });
        answered(scheduler.schedules.due(moment, 1).await)?;
        answered(scheduler.triggers.claim_due(moment, 1, "reads").await)?;
        answered(scheduler.policy_jobs.lease("reads", Duration::from_secs(1), 1).await)?;
        answered(scheduler.policy_jobs.return_expired(1).await)?;
        answered(scheduler.workers.dead(Duration::ZERO, 1).await)?;
    }
    for worker in known.texts("workers", "_id") {
        answered(Scheduler::new(&noting).workers.get(&worker).await)?;
    }
    for owner in known.texts("policy_jobs", "leaseOwner") {
        noting.note(Read::Page(jobs::leased_by(&owner)));
    }
    Ok(noting.asked())
}

async fn ask_plans(scheduler: &Scheduler<Noting>, tenant: &Tenant, known: &Arguments) -> Result<(), Error> {
    let page = PageRequest::first(1);
    for name in optional(known.texts("schedules", "name")) {
        for enabled in [None, Some(true), Some(false)] {
            for deleted in [schedules::Deleted::Hidden, schedules::Deleted::Included] {
                let options = schedules::ListOptions { enabled, deleted, name: name.clone() };
                answered(scheduler.schedules.list(tenant, &options, &page).await)?;
            }
        }
    }
    for schedule in known.texts("schedules", "_id") {
        answered(scheduler.schedules.get(tenant, &schedule).await)?;
        answered(scheduler.run_summaries.get(tenant, &schedule).await)?;
        answered(scheduler.triggers.list_by_schedule(tenant, &schedule, &page).await)?;
    }
    for trigger in known.texts("triggers", "_id") {
        answered(scheduler.triggers.get(tenant, &trigger).await)?;
    }
    answered(scheduler.run_summaries.list(tenant, &page).await)
}

async fn ask_runs(scheduler: &Scheduler<Noting>, tenant: &Tenant, known: &Arguments) -> Result<(), Error> {
    let page = PageRequest::first(1);
    let (of_schedules, moments) = (known.texts("runs", "scheduleId"), known.moments("runs", "createdAt"));
    for state in optional(every::<run::RunState>(&run::STATE)) {
        for schedule_id in optional(of_schedules.clone()) {
            for created_after in optional(moments.clone()) {
                let options = runs::ListOptions { state, schedule_id: schedule_id.clone(), created_after };
                answered(scheduler.runs.list(tenant, &options, &page).await)?;
            }
        }
    }
    for schedule in of_schedules {
        answered(scheduler.runs.by_schedule(tenant, &schedule, 1).await)?;
    }
    for id in known.texts("runs", "_id") {
        answered(scheduler.runs.get(tenant, &id).await)?;
    }
    answered(scheduler.runs.pending(tenant, 1).await)
}

async fn ask_jobs(scheduler: &Scheduler<Noting>, tenant: &Tenant, known: &Arguments) -> Result<(), Error> {
    let page = PageRequest::first(1);
    for status in optional(every::<graph_jobs::GraphJobStatus>(&graph_jobs::STATUS)) {
        answered(scheduler.graph_jobs.list(tenant, status, &page).await)?;
    }
    for status in optional(every::<policy_jobs::PolicyJobStatus>(&policy_jobs::STATUS)) {
        answered(scheduler.policy_jobs.list(tenant, status, &page).await)?;
    }
    for id in known.texts("graph_jobs", "_id") {
        answered(scheduler.graph_jobs.get(tenant, &id).await)?;
    }
    for id in known.texts("policy_jobs", "_id") {
        answered(scheduler.policy_jobs.get(tenant, &id).await)?;
    }
    Ok(())
}

/// What is appended or frozen.
async fn ask_records(scheduler: &Scheduler<Noting>, tenant: &Tenant, known: &Arguments) -> Result<(), Error> {
    let of_runs = known.texts("runs", "_id").into_iter().chain(known.texts("impact_snapshots", "runId"));
    for run in of_runs {
        answered(scheduler.impact_snapshots.by_run(tenant, &run, 1).await)?;
        for from in SEQUENCES {
            answered(scheduler.execution_logs.by_run(tenant, &run, from, 1).await)?;
        }
    }
    for id in known.texts("impact_snapshots", "_id") {
        answered(scheduler.impact_snapshots.get(tenant, &id).await)?;
    }
    answered(scheduler.impact_snapshots.latest(tenant).await)?;
    let moments = known.moments("audit", "occurredAt");
    for entity_id in optional(known.texts("audit", "entityId")) {
        for (from, before) in spans(&moments) {
            let options = audit::ListOptions { entity_id: entity_id.clone(), from, before };
            answered(scheduler.audit.query(tenant, &options, &PageRequest::first(1)).await)?;
        }
    }
    Ok(())
}

/// All of the time, and what lies before, after and between the moments.
fn spans(moments: &[Instant]) -> Vec<(Option<Instant>, Option<Instant>)> {
    let edges: Vec<Option<Instant>> = optional(moments.to_vec()).chain([None]).collect();
    let between = edges.windows(2).map(|edge| (edge[0], edge[1]));
    [(None, None)].into_iter().chain(between).collect()
}

/// Nothing, and then each of `values`.
fn optional<T>(values: impl IntoIterator<Item = T>) -> impl Iterator<Item = Option<T>> {
    [None].into_iter().chain(values.into_iter().map(Some))
}

/// Every value of an enum, by the words of its vocabulary.
fn every<T: DeserializeOwned>(vocabulary: &'static Vocabulary) -> impl Iterator<Item = T> {
    let value = |word: &&'static str| {
        let word: StrDeserializer<'_, WordError> = word.into_deserializer();
        T::deserialize(word).ok()
    };
    vocabulary.words.iter().filter_map(value)
}

/// That nothing was found is the answer; an argument that is refused is a fault.
fn answered<T>(answer: Result<T, Error>) -> Result<(), Error> {
    match answer {
        Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use bson::rawdoc;

    use super::*;
    use crate::entity::{ENTITIES, named};

    fn tenant() -> Tenant {
        Tenant::new("t").unwrap()
    }

    /// Documents of each entity that every argument can be drawn from.
    fn known() -> Arguments {
        let mut known = Arguments::default();
        for entity in ENTITIES {
            let mut document = rawdoc! { "_id": format!("{}-1", entity.name) };
            for field in entity.fields {
                let name = bson::raw::CString::try_from(field.name).unwrap();
                match field.kind {
                    crate::entity::Kind::Instant => document.append(name, bson::DateTime::from_millis(5_000)),
                    _ => document.append(name, "x"),
                }
            }
            known.note(entity, &document);
        }
        known
    }

    #[tokio::test]
    async fn everything_is_asked_of_every_entity_and_nothing_twice() {
        let (known, now) = (known(), DateTime::from_timestamp(60, 0).unwrap());
        let mut asked = of_tenant(&tenant(), &known).await.unwrap();
        asked.extend(across(now, &known).await.unwrap());
        let pages = asked.iter().filter(|read| matches!(read, Read::Page(_))).count();
        assert!(pages > 80, "{pages}");
        // Locks are read by their keys alone, and never listed.
        for entity in ENTITIES.iter().filter(|entity| entity.name != "locks") {
            assert!(asked.iter().any(|read| read.entity() == *entity), "{}", entity.name);
        }
        for (index, read) in asked.iter().enumerate() {
            assert!(!asked[..index].contains(read), "{read:?}");
        }
    }

    #[tokio::test]
    async fn what_is_asked_for_a_tenant_names_it_and_nobody_else() {
        for read in of_tenant(&tenant(), &known()).await.unwrap() {
            let Read::Page(query) = read else { continue };
            let text = query.to_string();
            assert!(text.starts_with("where tenantId = \"t\"") && text.matches("tenantId").count() == 1, "{text}");
        }
    }

    #[test]
    fn an_enum_has_a_value_for_each_word() {
        assert_eq!(every::<run::RunState>(&run::STATE).map(run::RunState::word).collect::<Vec<_>>(), run::STATE.words);
        assert_eq!(every::<graph_jobs::GraphJobStatus>(&graph_jobs::STATUS).count(), graph_jobs::STATUS.words.len());
        assert_eq!(
            every::<policy_jobs::PolicyJobStatus>(&policy_jobs::STATUS).count(),
            policy_jobs::STATUS.words.len()
        );
    }

    #[tokio::test]
    async fn nothing_is_written_on_the_way() {
        let noting = Noting::at(DateTime::UNIX_EPOCH);
        let change = Change::create(named("runs").unwrap(), rawdoc! { "_id": "a" });
        assert!(matches!(noting.apply(&[change]).await, Err(StoreError::Fenced { .. })));
    }
}
