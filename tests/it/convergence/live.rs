//! The same on real servers: backfill, mirrors that end anywhere, and dual writers that are late, repeat themselves and come
//! in another order, all at a few keys.

use std::sync::Arc;
use std::time::Duration;

use bson::{Document, RawDocumentBuf, Timestamp, doc};
use mongodb::ClientSession;
use mongodb::options::{Acknowledgment, WriteConcern};
use scheduler_bridge::entity::{self, Entity};
use scheduler_bridge::mapping::Key;
use scheduler_bridge::mirror::{self, Options, Progress};
use scheduler_bridge::secondary::{Item, Level, Replaces, Secondary, State};
use scheduler_bridge::stamp::Stamp;
use scheduler_bridge::target::Target;
use scheduler_bridge::verify::Verdict;
use secrecy::SecretString;
use sqlx::{Connection, Executor};
use tokio_util::sync::CancellationToken;

use super::first_seed;
use super::model::Random;
use crate::bed::Bed;
use crate::verify::{backfill, stores, verify};

const KEYS: usize = 5;
const WRITERS: u64 = 3;
const WRITES: usize = 80;
const RESTARTS: usize = 6;

/// How long the stores may take to become level once everybody is done.
const PATIENCE: Duration = Duration::from_secs(60);

fn schedules() -> &'static Entity {
    entity::named("schedules").expect("an entity")
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_writes_to_the_secondary_and_when_the_stores_end_equal_and_no_row_goes_back() {
    let seed = first_seed();
    println!("BRIDGE_TEST_SEED={seed}");
    let bed = Bed::new().await;
    watch_for_steps_back(&bed).await;
    // A row that has no document, and documents that nobody touches.
    for number in 0..20 {
        let quiet = doc! { "_id": format!("quiet-{number}"), "tenantId": "t" };
        bed.database.collection("schedules").insert_one(quiet).await.expect("insert");
    }
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..WRITERS {
        writers.spawn(write(bed.database.clone(), bed.postgres_url.clone(), seed.wrapping_add(number)));
    }
    let stop = CancellationToken::new();
    let mirrors = tokio::spawn(restarted_mirrors(bed_stores(&bed).await, seed, stop.clone()));
    backfill(&bed).await;
    writers.join_all().await;
    backfill(&bed).await;
    let (source, target) = stores(&bed).await;
    let level = tokio::time::timeout(PATIENCE, mirror::until_level(&source, &target)).await;
    level.expect("level in time").expect("level");
    stop.cancel();
    mirrors.await.expect("the mirrors");
    let report = verify(&bed).await;
    assert_eq!(report.verdict, Verdict::Clean, "BRIDGE_TEST_SEED={seed} {report:#?}");
    let back: Vec<String> =
        sqlx::query_scalar("select what from went_back").fetch_all(bed.pool()).await.expect("look for steps back");
    assert!(back.is_empty(), "BRIDGE_TEST_SEED={seed}: {back:?}");
}

/// Notes every write that takes a row back to an older stamp, or brings it back though a newer deletion is known.
async fn watch_for_steps_back(bed: &Bed) {
    let watch = "create table went_back (what text not null);
        create function watch() returns trigger language plpgsql as $$
        begin
            if tg_op = 'UPDATE' and (new.epoch, new.clock) < (old.epoch, old.clock) then
                insert into went_back values (format('%s from %s to %s', new.id, old.clock, new.clock));
            end if;
            insert into went_back
            select format('%s from the dead: deleted %s, written %s', new.id, b.clock, new.clock)
            from bridge.tombstone b
            where b.collection = 'schedules' and b.id = new.id and (b.epoch, b.clock) > (new.epoch, new.clock);
            return null;
        end
        $$;
        create trigger watched after insert or update on scheduler.schedules for each row execute function watch();";
    bed.pool().execute(watch).await.expect("watch the table");
}

async fn bed_stores(bed: &Bed) -> (scheduler_bridge::source::Source, Target) {
    let (source, _) = stores(bed).await;
    let url = SecretString::from(bed.postgres_url.clone());
    (source, Target::open_prepared(&url, 3).await.expect("open PostgreSQL"))
}

/// One mirror after the other: some are told to stop, some end in the middle of whatever they do. The last one stays.
async fn restarted_mirrors(
    (source, target): (scheduler_bridge::source::Source, Target),
    seed: u64,
    stop: CancellationToken,
) {
    let mut random = Random(seed.wrapping_add(1_000));
    let options = Options { lease: Duration::from_millis(400) };
    for round in 0..=RESTARTS {
        let told = stop.child_token();
        let running = mirror::run(&source, &target, &options, Arc::new(Progress::default()), told.clone());
        let life = Duration::from_millis(50 + random.next() % 650);
        if round == RESTARTS {
            running.await.expect("the last mirror");
        } else if random.chance(50) {
            let wait = async {
                tokio::time::sleep(life).await;
                told.cancel();
            };
            tokio::join!(running, wait).0.expect("a mirror");
        } else if let Ok(ended) = tokio::time::timeout(life, running).await {
            ended.expect("a mirror");
        }
    }
}

/// Writes to MongoDB, and mirrors each write itself: now, later, twice, in another order, or never.
async fn write(database: mongodb::Database, postgres_url: String, seed: u64) {
    let mut random = Random(seed);
    let mut connection = sqlx::PgConnection::connect(&postgres_url).await.expect("connect");
    let secondary = Secondary::new(Replaces::Older);
    let mut late: Vec<Item> = Vec::new();
    for number in 0..WRITES {
        let key = format!("key-{}", random.below(KEYS));
        if let Some(item) = change(&database, &mut random, &key, &format!("{seed}-{number}")).await {
            late.push(item);
        }
        while !late.is_empty() && random.chance(60) {
            let item = late.swap_remove(random.below(late.len()));
            match random.below(10) {
                0 | 1 => {} // the writer died before it came to that
                2 => late.push(converge(&secondary, &mut connection, item).await),
                _ => drop(converge(&secondary, &mut connection, item).await),
            }
        }
    }
    for item in late {
        converge(&secondary, &mut connection, item).await;
    }
}

/// One write of the key, and what is there after it; nothing when the key was not there.
async fn change(database: &mongodb::Database, random: &mut Random, key: &str, name: &str) -> Option<Item> {
    let mut session = database.client().start_session().await.expect("a session");
    let (filter, document) = (doc! { "_id": key }, doc! { "_id": key, "tenantId": "t", "name": name });
    let collection = database.collection::<Document>("schedules");
    let journaled = WriteConcern::builder().w(Acknowledgment::Majority).build();
    let state = match random.below(10) {
        0..3 => {
            let deleted = collection.delete_one(filter).write_concern(journaled).session(&mut session).await;
            (deleted.expect("delete").deleted_count == 1).then_some(State::Gone)
        }
        3 => twice(&collection, document, &mut session).await,
        // A regular document, or one that can be no row.
        kind => {
            let document = if kind == 4 {
                doc! { "_id": key, "name": name }
            } else {
                document
            };
            let put = collection.replace_one(filter, document.clone()).upsert(true);
            put.write_concern(journaled).session(&mut session).await.expect("put");
            Some(State::Document(RawDocumentBuf::try_from(&document).expect("raw")))
        }
    }?;
    Some(item(key, state, session.operation_time().expect("an operation time")))
}

/// Deletes and puts a key in one transaction: both events have one stamp.
async fn twice(
    collection: &mongodb::Collection<Document>,
    document: Document,
    session: &mut ClientSession,
) -> Option<State> {
    session.start_transaction().await.expect("begin");
    let id = doc! { "_id": document.get("_id").expect("an id") };
    let deleted = collection.delete_one(id).session(&mut *session).await;
    let put = match deleted {
        Ok(_) => collection.insert_one(document.clone()).session(&mut *session).await.map(|_| ()),
        Err(error) => Err(error),
    };
    if put.is_err() || session.commit_transaction().await.is_err() {
        session.abort_transaction().await.ok(); // another writer was at the key
        return None;
    }
    Some(State::Document(RawDocumentBuf::try_from(&document).expect("raw")))
}

fn item(key: &str, state: State, time: Timestamp) -> Item {
    Item { entity: schedules(), key: Key::from_text(key), stamp: Stamp::of_oplog(1, time), state }
}

async fn converge(secondary: &Secondary, connection: &mut sqlx::PgConnection, item: Item) -> Item {
    let mut transaction = connection.begin().await.expect("begin");
    let level = Level::of(std::slice::from_ref(&item), None);
    secondary.write(level, &mut transaction).await.expect("converge");
    transaction.commit().await.expect("commit");
    item
}
