//! Every pair of states, and one run that many move at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bson::{Document, RawDocumentBuf};
use scheduler_bridge::entity::runs::{Run, RunState, Stats};
use scheduler_bridge::entity::{Record, Vocabulary};
use scheduler_bridge::scheduler::runs::Progress;
use scheduler_bridge::scheduler::state::{GRAPH_JOB, POLICY_JOB, RUN, StateMachine, WORKER};
use scheduler_bridge::scheduler::{Error, Scheduler};
use scheduler_bridge::store::{Change, Store};

use super::at_once;
use crate::bed::Bed;
use crate::stores::samples::{at, graph_job, policy_job, run, tenant, worker};
use crate::stores::{AnyStore, both};

/// Puts `record` there in any state, past the rules.
async fn place<R: Record>(store: &AnyStore, record: &R) {
    let document = bson::serialize_to_raw_document_buf(record).expect("a document");
    store.apply(&[Change::create(R::ENTITY, document)]).await.expect("put");
}

/// `record` with another word in a field.
fn with<R: Record>(record: &R, field: &str, word: &str) -> R {
    let mut document: Document = bson::serialize_to_document(record).expect("a document");
    document.insert(field, word);
    let document = RawDocumentBuf::try_from(&document).expect("a document");
    bson::deserialize_from_slice(document.as_bytes()).expect("a record")
}

/// What the machine says of every pair, beside what `attempt` of a fresh record (with its number) says.
async fn every_pair(
    machine: &StateMachine,
    attempt: impl AsyncFn(usize, &'static str, &'static str) -> Result<(), Error>,
) {
    let Vocabulary { words, .. } = machine.states;
    for (row, from) in words.iter().enumerate() {
        for (column, to) in words.iter().enumerate() {
            let expected = machine.step(from, to);
            match (attempt(row * words.len() + column, from, to).await, expected) {
                (Ok(()), Ok(_)) => {}
                (Err(Error::Illegal { source, .. }), Err(refusal)) => assert_eq!(source, refusal),
                (found, expected) => {
                    panic!("{}: {from} to {to}: {found:?}, and the table says {expected:?}", machine.of)
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_pair_of_states_is_allowed_exactly_if_the_table_says_so() {
    let bed = Bed::new().await;
    for (_, store) in both(&bed).await {
        let scheduler = Scheduler::new(&store);
        every_pair(&RUN, async |index, from, to| {
            let sample = with(&run("a", &format!("r{index}")), "state", from);
            place(&store, &sample).await;
            let state = with(&sample, "state", to).state;
            scheduler.runs.update(&tenant("a"), &sample.id, &Progress::to(state, at(1))).await.map(|_| ())
        })
        .await;
        every_pair(&GRAPH_JOB, async |index, from, to| {
            let sample = with(&graph_job("a", &format!("g{index}")), "status", from);
            place(&store, &sample).await;
            scheduler.graph_jobs.replace(&with(&sample, "status", to), sample.status).await.map(|_| ())
        })
        .await;
        every_pair(&POLICY_JOB, async |index, from, to| {
            let sample = with(&policy_job("a", &format!("p{index}")), "status", from);
            place(&store, &sample).await;
            scheduler.policy_jobs.replace(&with(&sample, "status", to), sample.status).await.map(|_| ())
        })
        .await;
    }
}

/// Workers change their state by operations of their own.
#[tokio::test(flavor = "multi_thread")]
async fn workers_go_the_ways_of_their_table() {
    let bed = Bed::new().await;
    for (name, store) in both(&bed).await {
        let workers = Scheduler::new(&store).workers;
        for from in WORKER.states.words {
            let sample = with(&worker(from), "status", from);
            place(&store, &sample).await;
            let drained = workers.drain(from).await.is_ok();
            assert_eq!(drained, WORKER.step(from, "draining").is_ok(), "{name}: {from}");
            let alive = workers.heartbeat(from, 1).await.is_ok();
            assert_eq!(alive, *from != "dead", "{name}: {from}");
            assert_eq!(workers.register(&sample).await.expect("register").status.word(), "active");
        }
    }
}

/// Looks at the run all the while: no count falls, no moment changes, no step is illegal.
async fn watch(scheduler: Scheduler<AnyStore>, over: Arc<AtomicBool>) -> usize {
    let mut last = scheduler.runs.get(&tenant("a"), "r").await.expect("get");
    let mut seen = 0;
    while !over.load(Ordering::Relaxed) {
        let next = scheduler.runs.get(&tenant("a"), "r").await.expect("get");
        assert_eq!(next.stats.max(last.stats), next.stats, "a count fell");
        assert!(last.started_at.is_none() || last.started_at == next.started_at);
        assert!(last.finished_at.is_none() || last.finished_at == next.finished_at);
        assert!(is_reachable(&last, &next), "{:?} to {:?}", last.state, next.state);
        assert!(last.deltas.iter().all(|delta| next.deltas.contains(delta)));
        last = next;
        seen += 1;
    }
    seen
}

/// Several steps may lie between two looks.
fn is_reachable(from: &Run, to: &Run) -> bool {
    let mut reached = vec![from.state.word()];
    for _ in 0..RUN.states.words.len() {
        let next: Vec<_> = reached.iter().flat_map(|state| RUN.allowed(state).unwrap_or_default()).copied().collect();
        reached.extend(next);
    }
    reached.contains(&to.state.word())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_32_transitions_at_once_exactly_the_legal_ones_happen() {
    const ORDER: [RunState; 4] = [RunState::Queued, RunState::Running, RunState::Completed, RunState::Error];
    let bed = Bed::new().await;
    for (name, store) in both(&bed).await {
        let scheduler = Scheduler::new(&store);
        scheduler.runs.create(&run("a", "r")).await.expect("create");
        let over = Arc::new(AtomicBool::new(false));
        let watcher = tokio::spawn(watch(scheduler.clone(), over.clone()));
        let runs = scheduler.runs.clone();
        let done = at_once(32, move |index| {
            let runs = runs.clone();
            let number = i32::try_from(index).expect("small");
            let stats = Stats { candidates: number, completed: 31 - number, ..Stats::default() };
            let progress = Progress { stats, ..Progress::to(ORDER[index % 4], at(number.into())) };
            async move { runs.update(&tenant("a"), "r", &progress).await }
        })
        .await;
        over.store(true, Ordering::Relaxed);
        assert!(watcher.await.expect("a watcher") > 0);
        let found = scheduler.runs.get(&tenant("a"), "r").await.expect("get");
        let (mut candidates, mut completed, mut entered) = (0, 0, Vec::new());
        for (index, done) in done.iter().enumerate() {
            match done {
                Ok(run) => {
                    candidates = candidates.max(i32::try_from(index).expect("small"));
                    completed = completed.max(31 - i32::try_from(index).expect("small"));
                    assert_eq!(run.state, ORDER[index % 4], "{name}");
                    entered.push(run.state.word());
                }
                Err(Error::Illegal { source, .. }) => assert!(!source.allowed.contains(&source.to.as_str())),
                Err(error) => panic!("{name}: {error}"),
            }
        }
        assert_eq!(
            (found.stats.candidates, found.stats.completed),
            (candidates, completed),
            "{name}: no report is lost"
        );
        // A final state is entered once and left never.
        assert_eq!(entered.iter().filter(|state| RUN.is_final(state)).count(), 1, "{name}: {entered:?}");
        assert!(RUN.is_final(found.state.word()) && found.finished_at.is_some());
        assert_eq!(found.started_at.is_some(), entered.contains(&"running"));
    }
}
