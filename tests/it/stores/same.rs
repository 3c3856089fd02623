//! Both stores give the same answers, in the same order, to the same random sequence of operations, and hold the same
//! documents in the end.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bson::RawDocument;
use bson::oid::ObjectId;
use chrono::{DateTime, Utc};
use scheduler_bridge::entity::execution_logs::ExecutionLog;
use scheduler_bridge::entity::graph_jobs::{GraphJob, GraphJobStatus};
use scheduler_bridge::entity::impact_snapshots::ImpactSnapshot;
use scheduler_bridge::entity::policy_jobs::{PolicyJob, PolicyJobStatus, Priority};
use scheduler_bridge::entity::runs::{Delta, Reason, Run, RunState, Stats};
use scheduler_bridge::entity::schedules::Schedule;
use scheduler_bridge::entity::triggers::{MisfirePolicy, Trigger};
use scheduler_bridge::entity::{ENTITIES, Entity, Instant};
use scheduler_bridge::mapping::Key;
use scheduler_bridge::scheduler::policy_jobs::Conclusion;
use scheduler_bridge::scheduler::runs::Progress;
use scheduler_bridge::scheduler::schedules::Deleted;
use scheduler_bridge::scheduler::{PageRequest, Scheduler, Tenant, audit, runs, schedules};
use scheduler_bridge::store::{Address, After, Change, Page, Query, Store, StoreError, Stored};
use scheduler_bridge::verify::canonical;

use super::{AnyStore, both, samples};
use crate::bed::Bed;
use crate::faults::killed::Moments;

/// Operations of one sequence.
const STEPS: usize = 250;

/// A store whose clock the test turns.
#[derive(Clone)]
struct Timed {
    store: AnyStore,
    clock: Arc<AtomicI64>,
}

impl Store for Timed {
    async fn get(&self, address: &Address) -> Result<Option<Stored>, StoreError> {
        self.store.get(address).await
    }

    async fn get_many(&self, entity: &'static Entity, keys: &[Key]) -> Result<Vec<Option<Stored>>, StoreError> {
        self.store.get_many(entity, keys).await
    }

    async fn find(&self, query: &Query) -> Result<Page, StoreError> {
        self.store.find(query).await
    }

    async fn apply(&self, changes: &[Change]) -> Result<Vec<After>, StoreError> {
        self.store.apply(changes).await
    }

    async fn apply_each(&self, changes: &[Change]) -> Result<Vec<Option<After>>, StoreError> {
        self.store.apply_each(changes).await
    }

    async fn now(&self) -> Result<DateTime<Utc>, StoreError> {
        Ok(samples::at(self.clock.load(Ordering::Relaxed)).0)
    }
}

/// Texts that have been trouble somewhere: quotes, operators, orders that differ between collations, and what looks like
/// something else.
const TEXTS: [&str; 16] = [
    "a",
    "B",
    "a b",
    "é",
    "e\u{301}",
    "Z",
    "z",
    "_",
    "-1",
    "10",
    "9",
    "ß",
    "\u{1f600}",
    "'; drop table runs; --",
    "$where",
    "%_\\",
];

struct Player<'a> {
    dice: Moments,
    scheduler: &'a Scheduler<Timed>,
    clock: &'a AtomicI64,
}

impl Player<'_> {
    fn below(&mut self, end: u64) -> usize {
        usize::try_from(self.dice.below(end)).expect("small")
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64)].clone()
    }

    fn tenant(&mut self) -> Tenant {
        samples::tenant(self.pick(&["t", "T", "t:u"]))
    }

    fn text(&mut self) -> String {
        self.pick(&TEXTS).to_owned()
    }

    /// Few moments, so that many records share one.
    fn moment(&mut self) -> Instant {
        let seconds = i64::try_from(self.below(5)).expect("small");
        samples::at(seconds * 60)
    }

    fn page(&mut self) -> PageRequest {
        PageRequest::first(u32::try_from(1 + self.below(4)).expect("small"))
    }

    fn some<T>(&mut self, one: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.below(2) == 0).then(|| one(self))
    }

    /// One operation, and its answer.
    async fn step(&mut self) -> String {
        match self.below(10) {
            0 => self.schedules().await,
            1 | 2 => self.triggers().await,
            3..=5 => self.runs().await,
            6 => self.graph_jobs().await,
            7 => self.policy_jobs().await,
            8 => self.records().await,
            _ => self.workers().await,
        }
    }

    async fn schedules(&mut self) -> String {
        let (tenant, id) = (self.tenant(), self.text());
        let schedules = &self.scheduler.schedules;
        match self.below(5) {
            0 | 1 => {
                let (created_at, name, enabled) = (self.moment(), self.text(), self.below(3) > 0);
                let schedule = Schedule { created_at, name, enabled, ..samples::schedule(tenant.name(), &id) };
                show(schedules.upsert(&schedule).await)
            }
            2 => show(schedules.get(&tenant, &id).await),
            3 => show(schedules.soft_delete(&tenant, &id, "eve", samples::at(9)).await),
            _ => {
                let deleted = self.pick(&[Deleted::Hidden, Deleted::Included]);
                let (enabled, name) = (self.some(|player| player.below(2) == 0), self.some(Self::text));
                let (options, mut page) = (schedules::ListOptions { enabled, deleted, name }, self.page());
                let mut told = String::new();
                loop {
                    let listed = schedules.list(&tenant, &options, &page).await.expect("list");
                    told += &format!("{listed:?}");
                    page.after = listed.next;
                    if page.after.is_none() {
                        return told;
                    }
                }
            }
        }
    }

    async fn triggers(&mut self) -> String {
        let (tenant, id, schedule) = (self.tenant(), self.text(), self.text());
        let triggers = &self.scheduler.triggers;
        match self.below(6) {
            0 | 1 => {
                let trigger = Trigger {
                    cron_expression: Some(
                        self.pick(&["* * * * *", "*/7 * * * *", "0 0 29 2 *", "61 * * * *"]).to_owned(),
                    ),
                    next_fire_at: self.some(Self::moment),
                    created_at: self.moment(),
                    misfire_policy: self.pick(&[MisfirePolicy::Skip, MisfirePolicy::FireOnce]),
                    enabled: self.below(4) > 0,
                    ..samples::trigger(tenant.name(), &id, &schedule)
                };
                show(triggers.upsert(&trigger).await)
            }
            2 => show(triggers.get(&tenant, &id).await),
            3 => show(triggers.advance(&tenant, &id, self.moment()).await),
            4 => show(triggers.list_by_schedule(&tenant, &schedule, &self.page()).await),
            _ => {
                let limit = u32::try_from(1 + self.below(5)).expect("small");
                let claimed = triggers.claim_due(self.moment(), limit, "w").await;
                let due = self.scheduler.schedules.due(self.moment(), 50).await;
                show(claimed) + &show(due)
            }
        }
    }

    async fn runs(&mut self) -> String {
        let (tenant, id) = (self.tenant(), self.text());
        let runs = &self.scheduler.runs;
        match self.below(9) {
            0..=2 => {
                let run = Run {
                    created_at: self.moment(),
                    state: self.pick(&[RunState::Planning, RunState::Queued, RunState::Running, RunState::Error]),
                    schedule_id: self.some(Self::text),
                    reason: Reason { manual_reason: self.some(Self::text), ..Reason::default() },
                    ..samples::run(tenant.name(), &id)
                };
                show(runs.create(&run).await)
            }
            3 | 4 => {
                let states = [RunState::Queued, RunState::Running, RunState::Completed, RunState::Cancelled];
                let count = i32::try_from(self.below(9)).expect("small");
                let progress = Progress {
                    stats: Stats { candidates: count, deltas: 9 - count, ..Stats::default() },
                    deltas: self.some(|player| delta(player.text())).into_iter().collect(),
                    error: self.some(Self::text),
                    ..Progress::to(self.pick(&states), self.moment())
                };
                let updated = runs.update(&tenant, &id, &progress).await;
                let projected = match &updated {
                    Ok(run) => show(self.scheduler.run_summaries.project(run).await),
                    Err(_) => String::new(),
                };
                show(updated) + &projected
            }
            5 => show(runs.cancel(&tenant, &id, self.moment()).await),
            6 => show(runs.retry(&tenant, &id, &self.text(), self.moment()).await),
            7 => {
                let (schedule, limit) = (self.text(), u32::try_from(1 + self.below(6)).expect("small"));
                show(runs.by_schedule(&tenant, &schedule, limit).await) + &show(runs.pending(&tenant, limit).await)
            }
            _ => {
                let states = [RunState::Planning, RunState::Queued, RunState::Running];
                let state = self.some(|player| player.pick(&states));
                let (schedule_id, created_after) = (self.some(Self::text), self.some(Self::moment));
                let (options, mut page) = (runs::ListOptions { state, schedule_id, created_after }, self.page());
                let mut told = String::new();
                loop {
                    let listed = runs.list(&tenant, &options, &page).await.expect("list");
                    told += &format!("{listed:?}");
                    page.after = listed.next;
                    if page.after.is_none() {
                        return told;
                    }
                }
            }
        }
    }

    async fn graph_jobs(&mut self) -> String {
        let (tenant, id) = (self.tenant(), self.text());
        let states =
            [GraphJobStatus::Pending, GraphJobStatus::Queued, GraphJobStatus::Running, GraphJobStatus::Completed];
        let jobs = &self.scheduler.graph_jobs;
        let job = GraphJob {
            status: self.pick(&states),
            created_at: self.moment(),
            ..samples::graph_job(tenant.name(), &id)
        };
        match self.below(4) {
            0 | 1 => show(jobs.create(&job).await),
            2 => show(jobs.replace(&job, self.pick(&states)).await),
            _ => {
                show(jobs.get(&tenant, &id).await)
                    + &show(jobs.list(&tenant, self.some(|player| player.pick(&states)), &self.page()).await)
            }
        }
    }

    async fn policy_jobs(&mut self) -> String {
        let (tenant, id) = (self.tenant(), self.text());
        let jobs = &self.scheduler.policy_jobs;
        let owner = self.pick(&["w1", "w2"]);
        let lease = Duration::from_secs(1 + self.dice.below(60));
        match self.below(8) {
            0..=2 => {
                let job = PolicyJob {
                    priority: self.pick(&[Priority::Normal, Priority::High, Priority::Emergency]),
                    available_at: self.moment(),
                    created_at: self.moment(),
                    ..samples::policy_job(tenant.name(), &id)
                };
                show(jobs.create(&job).await)
            }
            3 => show(jobs.lease(owner, lease, u32::try_from(1 + self.below(3)).expect("small")).await),
            4 => show(jobs.renew(&tenant, &id, owner, lease).await),
            5 => {
                let conclusion = self.pick(&[
                    Conclusion::Completed,
                    Conclusion::Submitted { run_id: "r".to_owned() },
                    Conclusion::Again { error: "busy".to_owned(), after: lease },
                ]);
                show(jobs.complete(&tenant, &id, owner, &conclusion).await)
            }
            6 => show(jobs.return_expired(3).await),
            _ => show(
                jobs.list(
                    &tenant,
                    self.some(|player| player.pick(&[PolicyJobStatus::Pending, PolicyJobStatus::Dispatching])),
                    &self.page(),
                )
                .await,
            ),
        }
    }

    /// What is appended or frozen.
    async fn records(&mut self) -> String {
        let (tenant, id, other) = (self.tenant(), self.text(), self.text());
        let Scheduler { impact_snapshots, execution_logs, audit: records, run_summaries, .. } = self.scheduler;
        match self.below(7) {
            0 => {
                let snapshot =
                    ImpactSnapshot { generated_at: self.moment(), ..samples::snapshot(tenant.name(), &id, &other) };
                show(impact_snapshots.put(&snapshot).await)
            }
            1 => {
                show(impact_snapshots.by_run(&tenant, &other, 9).await) + &show(impact_snapshots.latest(&tenant).await)
            }
            2 => {
                let lines: Vec<ExecutionLog> = (0..self.below(4)).map(|_| self.line(&tenant, &other)).collect();
                show(execution_logs.append(&lines).await)
            }
            3 => show(execution_logs.by_run(&tenant, &other, 2, 9).await),
            4 => {
                let record = audit::ListOptions::default();
                let appended = records
                    .append(&scheduler_bridge::entity::audit::AuditRecord {
                        occurred_at: self.moment(),
                        ..samples::audit(tenant.name(), &id, &other)
                    })
                    .await;
                show(appended) + &show(records.query(&tenant, &record, &self.page()).await)
            }
            5 => {
                let options = audit::ListOptions {
                    entity_id: self.some(|_| other),
                    from: self.some(Self::moment),
                    before: self.some(Self::moment),
                };
                show(records.query(&tenant, &options, &self.page()).await)
            }
            _ => show(run_summaries.list(&tenant, &self.page()).await) + &show(run_summaries.get(&tenant, &id).await),
        }
    }

    fn line(&mut self, tenant: &Tenant, run: &str) -> ExecutionLog {
        let mut id = [0; 12];
        id[11] = u8::try_from(self.below(40)).expect("small");
        let sequence = i64::try_from(self.below(5)).expect("small");
        ExecutionLog {
            id: ObjectId::from_bytes(id),
            message: self.text(),
            ..samples::log_line(tenant.name(), run, sequence)
        }
    }

    async fn workers(&mut self) -> String {
        self.clock.fetch_add(i64::try_from(self.below(20)).expect("small"), Ordering::Relaxed);
        let (id, workers) = (self.text(), &self.scheduler.workers);
        let silence = Duration::from_secs(self.dice.below(60));
        match self.below(6) {
            0 | 1 => show(workers.register(&samples::worker(self.pick(&["w1", "w2", &id]))).await),
            2 => show(workers.heartbeat(self.pick(&["w1", "w2", &id]), 1).await),
            3 => show(workers.drain(self.pick(&["w1", "w2", &id])).await),
            4 => show(workers.dead(silence, 3).await),
            _ => show(workers.reap(silence, 2).await),
        }
    }
}

fn show<T: Debug, E: Debug>(answer: Result<T, E>) -> String {
    format!("{answer:?}")
}

fn delta(image_digest: String) -> Delta {
    Delta {
        image_digest,
        new_findings: 1,
        new_criticals: 0,
        new_high: 0,
        new_medium: 0,
        new_low: 0,
        kev_hits: Vec::new(),
        detected_at: None,
    }
}

/// Every document of every entity, by key.
async fn documents(store: &Timed) -> Vec<(String, Vec<Stored>)> {
    let mut all = Vec::new();
    for entity in ENTITIES {
        let found = store.find(&Query::of(entity).limit(10_000)).await.expect("find");
        all.push((entity.name.to_owned(), found.items));
    }
    all
}

fn is_same(one: &RawDocument, other: &RawDocument) -> bool {
    canonical::equal(one, other)
}

async fn sequence(seed: u64) {
    let bed = Bed::new().await;
    let mut answers: Vec<Vec<String>> = Vec::new();
    let mut held = Vec::new();
    for (_, store) in both(&bed).await {
        let clock = Arc::new(AtomicI64::new(300));
        let store = Timed { store, clock: clock.clone() };
        let scheduler = Scheduler::new(&store);
        let mut player = Player { dice: Moments::of(seed), scheduler: &scheduler, clock: &clock };
        let mut told = Vec::new();
        for _ in 0..STEPS {
            told.push(player.step().await);
        }
        answers.push(told);
        held.push(documents(&store).await);
    }
    for (step, (mongo, postgres)) in answers[0].iter().zip(&answers[1]).enumerate() {
        assert_eq!(mongo, postgres, "step {step} of seed {seed}");
    }
    for ((name, mongo), (_, postgres)) in held[0].iter().zip(&held[1]) {
        assert_eq!(mongo.len(), postgres.len(), "{name}, seed {seed}");
        for (mongo, postgres) in mongo.iter().zip(postgres) {
            assert!(is_same(&mongo.document, &postgres.document), "{name}, seed {seed}: {mongo:?} {postgres:?}");
        }
    }
}

/// `BRIDGE_PROPERTY_SECONDS` says how long (20), `FAULTS_SEED` where to begin.
#[tokio::test(flavor = "multi_thread")]
async fn both_stores_give_the_same_answers_to_the_same_operations() {
    let seconds = std::env::var("BRIDGE_PROPERTY_SECONDS").ok().map_or(20, |seconds| seconds.parse().expect("seconds"));
    let mut seeds = Moments::new();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(seconds);
    let mut count = 0;
    while count < 2 || tokio::time::Instant::now() < deadline {
        // The first sequence is the printed seed's own.
        let seed = if count == 0 { seeds.seed() } else { seeds.below(u64::MAX) | 1 };
        sequence(seed).await;
        count += 1;
    }
}
