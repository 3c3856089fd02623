//! The same effects with the MongoDB driver alone.

use std::sync::Arc;

use futures::{FutureExt, TryStreamExt};
use mongodb::bson::{Document, RawDocumentBuf, doc};
use mongodb::options::{CollectionOptions, WriteConcern};
use mongodb::{Collection, Database};
use scheduler_bridge::entity::{Instant, runs::Run};
use scheduler_bridge::lock::MongoLocks;
use scheduler_bridge::store::MongoStore;

use super::contenders::{self, CLAIMED, Contender, LINES, LOCKS, PAGE, Pair, Prepare, Side, contender, nothing};
use super::samples::{at, log_line, run};

pub fn pairs(store: &MongoStore, database: &Database) -> Vec<Pair> {
    let reset = reset(database);
    vec![
        Pair { name: "get", cost: 1, bridge: contenders::get(store), plain: get(store, database) },
        Pair { name: "create", cost: 1, bridge: contenders::create(store), plain: create(database) },
        Pair { name: "update", cost: 1, bridge: contenders::update(store), plain: update(store, database) },
        Pair { name: "list, 50 items", cost: 4, bridge: contenders::list(store), plain: list(store, database) },
        Pair {
            name: "claim_due, 10 triggers",
            cost: 10,
            bridge: contenders::claim_due(store, reset.clone()),
            plain: claim(contenders::triggers(store, reset), database),
        },
        Pair { name: "append, 100 lines", cost: 10, bridge: contenders::append(store), plain: append(database) },
        Pair {
            name: "lock: acquire and release",
            cost: 2,
            bridge: contenders::lock(&MongoLocks::new(database)),
            plain: lock(database),
        },
    ]
}

fn collection<T: Send + Sync>(database: &Database, name: &str) -> Collection<T> {
    let write = WriteConcern::builder().w(mongodb::options::Acknowledgment::Majority).journal(true).build();
    database.collection_with_options(name, CollectionOptions::builder().write_concern(write).build())
}

fn date(moment: Instant) -> mongodb::bson::DateTime {
    mongodb::bson::DateTime::from_chrono(moment.0)
}

fn get(store: &MongoStore, database: &Database) -> Contender {
    let runs: Collection<Run> = collection(database, "runs");
    contender(contenders::runs(store, Side::Plain), move |index| {
        let runs = runs.clone();
        async move {
            let filter = doc! { "_id": Side::Plain.run_id(index), "tenantId": "plain" };
            runs.find_one(filter).await.expect("find").expect("a run");
        }
    })
}

fn create(database: &Database) -> Contender {
    let runs: Collection<Run> = collection(database, "runs");
    contender(nothing(), move |index| {
        let runs = runs.clone();
        async move {
            runs.insert_one(run("created", &format!("plain-new-{index}"))).await.expect("insert");
        }
    })
}

fn update(store: &MongoStore, database: &Database) -> Contender {
    let runs: Collection<RawDocumentBuf> = collection(database, "runs");
    contender(contenders::runs(store, Side::Plain), move |index| {
        let runs = runs.clone();
        async move {
            let states = ["planning", "queued"];
            let filter = doc! { "_id": Side::Plain.run_id(index), "tenantId": "plain", "state": { "$in": states } };
            let count = i32::try_from(index).expect("a small number");
            let update =
                doc! { "$set": { "state": "queued" }, "$max": { "stats.candidates": count, "updatedAt": date(at(1)) } };
            let options = mongodb::options::ReturnDocument::After;
            runs.find_one_and_update(filter, update).return_document(options).await.expect("update").expect("a run");
        }
    })
}

fn list(store: &MongoStore, database: &Database) -> Contender {
    let runs: Collection<Run> = collection(database, "runs");
    contender(contenders::runs(store, Side::Plain), move |_| {
        let runs = runs.clone();
        async move {
            let found = runs.find(doc! { "tenantId": "plain" }).sort(doc! { "createdAt": 1, "_id": 1 });
            let found = found.limit(i64::from(PAGE)).await.expect("find");
            assert_eq!(found.try_collect::<Vec<Run>>().await.expect("read").len(), PAGE as usize);
        }
    })
}

fn claim(prepare: Prepare, database: &Database) -> Contender {
    let triggers: Collection<RawDocumentBuf> = collection(database, "triggers");
    contender(prepare, move |_| {
        let triggers = triggers.clone();
        async move {
            for _ in 0..CLAIMED {
                let filter = doc! { "enabled": true, "nextFireAt": { "$lte": date(at(10_000_000)) } };
                let next = doc! { "$set": { "nextFireAt": date(at(20_000_000)), "lastFiredAt": date(at(0)) } };
                let sort = doc! { "nextFireAt": 1, "_id": 1 };
                let claimed = triggers.find_one_and_update(filter, next).sort(sort).await.expect("claim");
                assert!(claimed.is_some(), "there is a trigger for every claim");
            }
        }
    })
}

/// Makes every trigger due.
fn reset(database: &Database) -> Prepare {
    let triggers: Collection<Document> = collection(database, "triggers");
    Arc::new(move |_| {
        let triggers = triggers.clone();
        let due = doc! { "$set": { "nextFireAt": date(at(0)) } };
        async move { drop(triggers.update_many(doc! {}, due).await.expect("reset")) }.boxed()
    })
}

/// All lines or none: that takes a transaction.
fn append(database: &Database) -> Contender {
    let database = database.clone();
    contender(nothing(), move |index| {
        let database = database.clone();
        async move {
            let lines: Vec<_> = (1..=LINES).map(|line| log_line("plain", &format!("run-{index}"), line)).collect();
            let mut session = database.client().start_session().await.expect("a session");
            session.start_transaction().await.expect("a transaction");
            database.collection("execution_logs").insert_many(lines).session(&mut session).await.expect("insert");
            session.commit_transaction().await.expect("commit");
        }
    })
}

/// A lease in one document: taken by one operation, ended by another.
fn lock(database: &Database) -> Contender {
    let locks: Collection<Document> = collection(database, "locks");
    contender(nothing(), move |index| {
        let locks = locks.clone();
        async move {
            let id = format!("plain-{}", index % LOCKS);
            let taken = doc! { "$set": { "owner": "plain", "expiresAt": date(at(9)) }, "$inc": { "token": 1_i64 } };
            locks.find_one_and_update(doc! { "_id": &id }, taken).upsert(true).await.expect("take");
            let over = doc! { "$set": { "expiresAt": date(at(0)) } };
            locks.update_one(doc! { "_id": id, "owner": "plain" }, over).await.expect("let go");
        }
    })
}
