//! Sixteen processes claim ten thousand due triggers.

use std::collections::BTreeMap;

use scheduler_bridge::entity::triggers::Trigger;
use scheduler_bridge::scheduler::Scheduler;
use scheduler_bridge::scheduler::records::creation;
use scheduler_bridge::store::{Change, MongoStore, PostgresStore, Store};
use sqlx::PgPool;

use super::samples::{at, trigger};
use super::{AnyStore, both};
use crate::bed::Bed;
use crate::children::{Child, Stage, say};

const TRIGGERS: usize = 10_000;
const PROCESSES: usize = 16;

/// A child claims until nothing is due, and says what it got.
pub async fn play(stage: Stage) {
    let [place, name] = stage.words.as_slice() else { panic!("where, and as whom?") };
    let store = match place.as_str() {
        "MongoDB" => {
            let client = mongodb::Client::with_uri_str(&stage.mongo_url).await.expect("open MongoDB");
            let database = client.database(&stage.database);
            AnyStore::Mongo(MongoStore::new(client, database, 1))
        }
        _ => AnyStore::Postgres(PostgresStore::new(PgPool::connect_lazy(&stage.postgres_url).expect("a URL"))),
    };
    let triggers = Scheduler::new(&store).triggers;
    let mut empty = 0;
    // One that meets only others' claims gets nothing, though something may be due still.
    while empty < 5 {
        let claims = triggers.claim_due(at(1), 50, name).await.expect("claim");
        empty = if claims.is_empty() { empty + 1 } else { 0 };
        for claim in claims {
            say(&claim.trigger.id);
        }
    }
    say("over");
}

async fn seed(store: &AnyStore) {
    let changes: Vec<Change> = (0..TRIGGERS)
        .map(|index| Trigger {
            next_fire_at: Some(at(-i64::try_from(index % 50).expect("small"))),
            ..trigger("t", &format!("due-{index}"), "s")
        })
        .map(|trigger| creation(&trigger).expect("a creation"))
        .collect();
    for changes in changes.chunks(500) {
        store.apply(changes).await.expect("put triggers");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_processes_claim_each_due_trigger_once_and_forget_none() {
    let bed = Bed::new().await;
    for (name, store) in both(&bed).await {
        seed(&store).await;
        let children = (0..PROCESSES).map(|index| {
            let mut child = Child::start(&bed, "claim", &[name, &format!("w{index}")]);
            async move {
                let mut claimed = Vec::new();
                loop {
                    let said = child.says().await;
                    if said == "over" {
                        break;
                    }
                    claimed.push(said);
                }
                child.ended().await;
                claimed
            }
        });
        let claimed = futures::future::join_all(children).await;
        let mut times: BTreeMap<&str, usize> = BTreeMap::new();
        for id in claimed.iter().flatten() {
            *times.entry(id).or_default() += 1;
        }
        let left = Scheduler::new(&store).triggers.claim_due(at(1), 1_000, "last").await.expect("claim");
        assert_eq!((times.len(), left.len()), (TRIGGERS, 0), "{name}: none is forgotten");
        assert!(times.values().all(|times| *times == 1), "{name}: each is claimed once");
        let busy = claimed.iter().filter(|claimed| !claimed.is_empty()).count();
        assert!(busy > 1, "{name}: more than one process was to claim");
    }
}
