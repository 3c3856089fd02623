//! Keys that are written all the time.

use bson::{Document, RawDocumentBuf};
use scheduler_bridge::phase::Phase;
use scheduler_bridge::store::dual::DualStore;
use scheduler_bridge::store::dual::shadow::Counters;
use scheduler_bridge::store::{Address, Change, Store};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::{LIMIT, Stage, begun, mirror, runs};
use crate::bed::until;

/// Keys that are written as long as it lives: one is never again what it was, the other is to and fro between two.
struct Busy {
    stop: CancellationToken,
    task: AbortOnDropHandle<u64>,
}

impl Busy {
    const KEYS: [(&str, u64); 2] = [("onward", u64::MAX), ("to and fro", 2)];

    fn start(store: &DualStore) -> Self {
        let (stop, store) = (CancellationToken::new(), store.clone());
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut writes = 0;
            while !stopped.is_cancelled() {
                for (id, period) in Self::KEYS {
                    write(&store, id, writes % period).await;
                }
                writes += 1;
            }
            writes
        });
        Self { stop, task: AbortOnDropHandle::new(task) }
    }

    async fn end(self) -> u64 {
        self.stop.cancel();
        self.task.await.expect("the writer")
    }
}

async fn write(store: &DualStore, id: &str, value: u64) {
    let address = Address::new(runs(), id);
    let held = store.get(&address).await.expect("get").expect("a run");
    let mut next = Document::try_from(held.document.clone()).expect("a document");
    next.insert("error", value.to_string());
    let next = RawDocumentBuf::try_from(&next).expect("a document");
    store.apply(&[Change::replace(address, held, next)]).await.expect("replace");
}

/// Two keys are written and read all the time, while the secondary follows late.
async fn assert_busy_is_not_told(phase: Phase) {
    let stage = Stage::set(phase).await;
    let _mirror = mirror(&stage.bed, 300);
    if phase != Phase::PostgresPrimary {
        begun(&stage.bed).await;
    }
    stage.create(&[Busy::KEYS[0].0, Busy::KEYS[1].0, "sound"]).await;
    stage.level(phase).await;
    let writer = Busy::start(stage.store());
    let is_busy = async || {
        for id in ["onward", "to and fro", "sound"] {
            stage.read(id).await;
        }
        assert_eq!(stage.findings().differences(), []);
        let Counters { busy, differed, noise, .. } = stage.counters();
        busy >= 2 && differed > 50 && noise > 0
    };
    until("they were given up as busy", 3 * LIMIT, is_busy).await;
    println!("{} writes each", writer.end().await);
    stage.level(phase).await;
    stage.settled().await;
    // What waited while they were written has been compared by then.
    let reads = stage.taken();
    let is_read_again = async || {
        stage.read("onward").await;
        stage.taken() > reads + 300
    };
    until("it is read again", LIMIT, is_read_again).await;
    stage.settled().await;
    let before = stage.counters();
    let is_read_again = async || {
        stage.read("onward").await;
        stage.counters().compared > before.compared + 20
    };
    until("it is read again", LIMIT, is_read_again).await;
    let after = stage.counters();
    assert_eq!((after.differed, after.noise), (before.differed, before.noise), "{after:?}");
    assert_eq!(after.suspected, after.busy + after.level, "{after:?}");
    assert_eq!(stage.findings().differences(), []);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_key_is_not_told_while_postgresql_lags() {
    assert_busy_is_not_told(Phase::Mongo).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_key_is_not_told_while_mongodb_lags() {
    assert_busy_is_not_told(Phase::PostgresPrimary).await;
}
