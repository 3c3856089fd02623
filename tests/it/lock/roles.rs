//! What children do with locks.

use std::time::Duration;

use mongodb::bson::{Document, doc};
use scheduler_bridge::lock::{Held, Locks};
use scheduler_bridge::store::{MongoStore, PostgresStore};
use sqlx::PgPool;

use super::any::{self, AnyLocks};
use super::{LONG, SHORT, guarded_write, is_conflict, key};
use crate::children::{Stage, say};
use crate::stores::AnyStore;

/// A child's way to the stores.
struct Hands {
    locks: AnyLocks,
    store: AnyStore,
    database: mongodb::Database,
    pool: PgPool,
}

impl Hands {
    async fn of(stage: &Stage, place: &str) -> Self {
        let client = mongodb::Client::with_uri_str(&stage.mongo_url).await.expect("open MongoDB");
        let database = client.database(&stage.database);
        let pool = PgPool::connect_lazy(&stage.postgres_url).expect("a URL");
        let store = match place {
            "MongoDB" => AnyStore::Mongo(MongoStore::new(client, database.clone(), 1)),
            _ => AnyStore::Postgres(PostgresStore::new(pool.clone())),
        };
        let locks = match place.parse() {
            Ok(phase) => any::in_phase(phase, &stage.postgres_url, &database).await,
            Err(_) => any::of(&store, &stage.postgres_url, &database).await,
        };
        Self { locks, store, database, pool }
    }

    /// Reads the counter and writes it back greater by one, in two steps: only the lock keeps others out.
    async fn count(&self, token: i64) {
        match &self.store {
            AnyStore::Mongo(_) => {
                let counter = self.database.collection::<Document>("counter");
                let read = counter.find_one(doc! { "_id": 1 }).await.expect("read").expect("a counter");
                let next = read.get_i32("n").expect("a number") + 1;
                counter.update_one(doc! { "_id": 1 }, doc! { "$set": { "n": next } }).await.expect("write");
            }
            AnyStore::Dual(_) => panic!("the counter is in one store"),
            AnyStore::Postgres(_) => {
                let read = sqlx::query_as("select n, token from public.counter").fetch_one(&self.pool).await;
                let (n, last): (i32, i64) = read.expect("read");
                assert!(token > last, "token {token} after {last}");
                let write = sqlx::query("update public.counter set n = $1, token = $2").bind(n + 1).bind(token);
                write.execute(&self.pool).await.expect("write");
            }
        }
    }
}

pub async fn play(stage: Stage) {
    let [place, what, rest @ ..] = stage.words.as_slice() else { panic!("what is to be done?") };
    let hands = Hands::of(&stage, place).await;
    match what.as_str() {
        "count" => {
            let times: u32 = rest[0].parse().expect("how often");
            for _ in 0..times {
                let held = hands.locks.acquire(&key("counter"), LONG, LONG).await.expect("acquire");
                hands.count(held.token()).await;
                held.release().await.expect("release");
            }
        }
        "hold" => {
            let held = hands.locks.acquire(&key("a"), LONG, SHORT * 3).await.expect("acquire");
            say(&format!("token {}", held.token()));
            let renewing = async {
                loop {
                    tokio::time::sleep(SHORT / 2).await;
                    if held.renew(SHORT * 3).await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }
            };
            tokio::select! {
                () = held.lost() => say("lost"),
                () = renewing => {}
                () = tokio::time::sleep(Duration::from_secs(100)) => say("never lost"),
            }
            let late = guarded_write(&hands.store, "acme:a", held.token(), "late").await;
            say(if is_conflict(&late) { "refused" } else { "written" });
        }
        other => panic!("there is nothing like {other}"),
    }
}
