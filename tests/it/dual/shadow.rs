//! Shadow reads: what differs for good is told, with its key and a diff; what only lags is not; and no read feels them.

mod busy;

use std::collections::{BTreeMap, BTreeSet};

use bson::{Bson, DateTime, Document, RawDocumentBuf, doc};
use mongodb::Collection;
use rustix::process::Signal;
use scheduler_bridge::connect::{Backends, Connected};
use scheduler_bridge::entity::{ENTITIES, Entity, named};
use scheduler_bridge::mapping::Key;
use scheduler_bridge::phase::Phase;
use scheduler_bridge::store::dual::shadow::{Counters, Difference, Findings, Kind};
use scheduler_bridge::store::dual::{DualStore, Tuning};
use scheduler_bridge::store::{Address, Change, Direction, Filter, MongoStore, Query, Store, Stored};
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, Executor};

use super::{LIMIT, backends, connect, turn};
use crate::bed::{Bed, until};
use crate::faults::process::Bridge;
use crate::faults::proxy::{Proxy, Weather};
use crate::mirror::memory::signal;

/// An application in a phase, all of whose reads are repeated.
struct Stage {
    bed: Bed,
    connected: Connected,
}

impl Stage {
    async fn set(phase: Phase) -> Self {
        let bed = Bed::new().await;
        turn(&bed, phase, 1).await;
        let backends = backends(&bed);
        Self::of(bed, backends).await
    }

    async fn of(bed: Bed, mut backends: Backends) -> Self {
        // However busy the machine is, no write is to miss its lease.
        backends.settings.lease = LIMIT / 4;
        backends.settings.tuning.shadow_fraction = 1.0;
        Self { connected: connect(&backends).await, bed }
    }

    fn tune(&self, shadow_fraction: f64) {
        self.store().tune(Tuning { shadow_fraction, ..Tuning::default() });
    }

    fn store(&self) -> &DualStore {
        &self.connected.store
    }

    fn findings(&self) -> &Findings {
        self.store().shadow().expect("both stores")
    }

    fn counters(&self) -> Counters {
        self.findings().counters()
    }

    fn collection(&self) -> Collection<Document> {
        self.bed.database.collection("runs")
    }

    async fn create(&self, ids: &[&str]) {
        let changes: Vec<Change> = ids.iter().map(|id| Change::create(runs(), run(id))).collect();
        self.store().apply(&changes).await.expect("create");
    }

    async fn read(&self, id: &str) -> Option<Stored> {
        self.store().get(&Address::new(runs(), id)).await.expect("no read fails")
    }

    async fn sql(&self, statements: &str) {
        self.bed.pool().execute(AssertSqlSafe(statements.to_owned())).await.expect("damage PostgreSQL");
    }

    /// Waits until everything that was written to the primary is in the secondary.
    async fn level(&self, phase: Phase) {
        match phase {
            Phase::PostgresPrimary => crate::outbox::until_drained(&self.bed).await,
            _ => crate::mirror::level(&self.bed).await,
        }
    }

    /// Waits until so many reads are done with.
    async fn done(&self, reads: u64) {
        until("the reads are compared", LIMIT, async || self.taken() >= reads).await;
    }

    /// How many reads were to be repeated, and are done with.
    fn taken(&self) -> u64 {
        let Counters { dropped, failed, overtaken, compared, .. } = self.counters();
        dropped + failed + overtaken + compared
    }

    /// Waits until nothing is suspected any more.
    async fn settled(&self) {
        until("nothing is suspected any more", LIMIT, async || self.counters().waiting == 0).await;
    }

    async fn end(self) {
        println!("{:?}", self.counters());
        self.connected.close().await;
    }
}

fn runs() -> &'static Entity {
    named("runs").expect("runs")
}

fn run(id: &str) -> RawDocumentBuf {
    let created = DateTime::from_millis(1_790_000_000_000);
    let document = doc! {
        "_id": id, "tenantId": "a", "state": "queued", "createdAt": created, "error": "none", "unknown": 5_i64,
    };
    RawDocumentBuf::try_from(&document).expect("a document")
}

/// A mirror that stands still for so many milliseconds before it commits.
fn mirror(bed: &Bed, lag: u32) -> Bridge {
    let mut command = bed.bridge(&["mirror"]);
    let failpoints = format!("mirror::before-commit=sleep({lag});outbox::applied=sleep({lag})");
    command.env("BRIDGE_LEASE_SECONDS", "2").env("FAILPOINTS", failpoints);
    Bridge::start(command)
}

/// Waits until the mirror has begun: what is written from now on is its to bring.
async fn begun(bed: &Bed) {
    let begun = async || {
        let begun = sqlx::query_scalar("select exists (select from bridge.stream)").fetch_one(bed.pool()).await;
        begun.expect("look at the stream")
    };
    until("the mirror has begun", LIMIT, begun).await;
}

/// What is to be told of a key, with a line of the diff.
type Told<'a> = [(&'a str, Kind, &'a str)];

/// Reads keys and a page again and again until everything of `told` was told, and shows that nothing else was, and that
/// everything was once.
async fn assert_told(stage: &Stage, told: &Told<'_>) {
    let page = Query::of(runs()).only(Filter::Is("tenantId", "a".into())).limit(50);
    let expected: BTreeSet<&str> = told.iter().map(|(id, ..)| *id).collect();
    let reads = async || {
        for id in expected.iter().chain(["sound"].iter()) {
            stage.read(id).await;
        }
        stage.store().find(&page).await.expect("no read fails");
    };
    let is_told = async || {
        reads().await;
        stage.findings().differences().len() >= told.len()
    };
    until("everything is told", LIMIT, is_told).await;
    let lasting = stage.counters().lasting;
    let again = async || {
        reads().await;
        stage.counters().lasting > lasting + 2 * u64::try_from(told.len()).expect("a few")
    };
    until("everything was looked at again", LIMIT, again).await;
    let found: BTreeMap<String, Difference> =
        stage.findings().differences().into_iter().map(|found| (found.id.clone(), found)).collect();
    assert_eq!(found.len(), stage.findings().differences().len());
    assert_eq!(found.keys().map(String::as_str).collect::<BTreeSet<_>>(), expected);
    for (id, kind, line) in told {
        let found = &found[*id];
        println!("{found:#?}");
        assert!(found.kind == *kind && found.collection == "runs", "{found:?}");
        assert!(found.diff.lines().any(|found| found.contains(line)), "{line}\n{}", found.diff);
        assert!(found.diff.starts_with("--- mongodb\n+++ postgresql\n"), "{}", found.diff);
    }
    let queued: Vec<String> = sqlx::query_scalar("select id from bridge.recheck where collection = 'runs'")
        .fetch_all(stage.bed.pool())
        .await
        .expect("look at the verifier's queue");
    assert!(expected.iter().all(|id| queued.iter().any(|queued| queued == id)), "{queued:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_in_postgresql_is_told_with_key_and_diff() {
    let stage = Stage::set(Phase::MongoPrimary).await;
    let _mirror = mirror(&stage.bed, 0);
    begun(&stage.bed).await;
    stage.create(&["sound", "content", "missing", "broken", "\u{1b}[2J"]).await;
    stage.level(Phase::MongoPrimary).await;
    stage.sql("delete from bridge.recheck").await;
    stage
        .sql(
            "create temp table copy as select * from scheduler.runs where id = 'content';
            update copy set id = 'extra'; insert into scheduler.runs select * from copy; drop table copy;
            update scheduler.runs set error = 'damaged' where id in ('content', e'\\x1b[2J');
            delete from scheduler.runs where id = 'missing';
            update scheduler.runs set residue = 'x' where id = 'broken'",
        )
        .await;
    let told = [
        ("content", Kind::Content, "+  \"error\": \"damaged\""),
        ("missing", Kind::Missing, "-  \"error\": \"none\""),
        ("extra", Kind::Extra, "+  \"error\": \"none\""),
        ("broken", Kind::Content, "+unreadable: could not rebuild runs \"broken\": column residue"),
        ("\u{1b}[2J", Kind::Content, "+  \"error\": \"damaged\""),
    ];
    assert_told(&stage, &told).await;
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_in_mongodb_is_told_while_postgresql_is_the_primary() {
    let stage = Stage::set(Phase::PostgresPrimary).await;
    let mirror = mirror(&stage.bed, 0);
    stage.create(&["sound", "content", "missing"]).await;
    stage.level(Phase::PostgresPrimary).await;
    // It would take the damage for stray writes, and undo it.
    mirror.kill().await;
    stage.sql("delete from bridge.recheck").await;
    let documents = stage.collection();
    let changed = documents.update_one(doc! { "_id": "content" }, doc! { "$set": { "error": "damaged" } });
    changed.await.expect("damage a document");
    documents.delete_one(doc! { "_id": "missing" }).await.expect("delete a document");
    let extra = Document::try_from(run("extra")).expect("a document");
    documents.insert_one(extra).await.expect("insert a document");
    let told = [
        ("content", Kind::Content, "-  \"error\": \"damaged\""),
        ("missing", Kind::Missing, "+  \"error\": \"none\""),
        ("extra", Kind::Extra, "-  \"error\": \"none\""),
    ];
    assert_told(&stage, &told).await;
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_stores_answer_alike() {
    let bed = Bed::new().await;
    scheduler_bridge::dataset::load(&bed.database, 3_000, 1, |_| ()).await.expect("load");
    crate::verify::backfill(&bed).await;
    turn(&bed, Phase::MongoPrimary, 1).await;
    MongoStore::new(bed.mongo.clone(), bed.database.clone(), 1).create_indexes().await.expect("create the indexes");
    let backends = backends(&bed);
    let stage = Stage::of(bed, backends).await;
    let mut reads = 0;
    for entity in ENTITIES {
        let mut query = Query::of(entity).limit(40);
        for _ in 0..4 {
            let page = stage.store().find(&query).await.expect("find");
            let mapping = scheduler_bridge::mapping::Mapping::new(entity);
            let mut keys: Vec<Key> = page.items.iter().map(|item| mapping.key(&item.document)).collect();
            keys.push(Key::from_text("nobody's"));
            stage.store().get_many(entity, &keys).await.expect("get many");
            let address = Address { entity, key: keys.swap_remove(0) };
            stage.store().get(&address).await.expect("get");
            reads += 3;
            stage.done(reads).await;
            query = query.after(page.next);
        }
    }
    let Counters { compared, noise, differed, suspected, .. } = stage.counters();
    assert_eq!((compared, noise, differed, suspected), (reads, 0, 0, 0), "{:?}", stage.counters());
    stage.end().await;
}

/// Reads go on while the secondary is away, and what finds no room is dropped; when it is back, shadow reads go on.
async fn assert_away_is_not_felt(stage: &Stage, leave: impl Fn(), come_back: impl Fn()) {
    let compared = stage.counters().compared;
    stage.read("a").await;
    until("it is compared", LIMIT, async || stage.counters().compared > compared).await;
    let before = stage.counters();
    leave();
    // Everybody who compares is stuck, or waits: the room fills up, and the reads go on.
    let is_full = async || {
        let read = futures::future::join_all((0..64).map(|_| stage.read("a")));
        assert!(read.await.iter().all(Option::is_none));
        stage.counters().dropped > before.dropped + 64
    };
    until("the room is full", LIMIT, is_full).await;
    let failed = async || stage.counters().failed > before.failed;
    until("it is counted that the secondary does not answer", LIMIT, failed).await;
    come_back();
    until("it goes on", LIMIT, async || stage.counters().compared > before.compared + 200).await;
    println!("{:?}", stage.counters());
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn reads_go_on_while_mongodb_stands_still_and_postgresql_is_the_primary() {
    let mut bed = Bed::with_own_servers().await;
    turn(&bed, Phase::PostgresPrimary, 1).await;
    let mongo = bed.servers().mongo.pid();
    let backends = backends(&bed);
    let stage = Stage::of(bed, backends).await;
    assert_away_is_not_felt(&stage, || signal(mongo, Signal::STOP), || signal(mongo, Signal::CONT)).await;
    assert_eq!(stage.findings().differences(), []);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_go_on_while_postgresql_does_not_answer_and_mongodb_is_the_primary() {
    let bed = Bed::new().await;
    turn(&bed, Phase::Mongo, 1).await;
    let proxy = Proxy::before(&bed.postgres_url).await;
    let mut backends = backends(&bed);
    backends.postgres = Some(SecretString::from(proxy.url(&bed.postgres_url)));
    let stage = Stage::of(bed, backends).await;
    for weather in [Weather::Still, Weather::Cut] {
        println!("{weather:?}");
        assert_away_is_not_felt(&stage, || proxy.turn(weather), || proxy.turn(Weather::Fair)).await;
    }
    assert_eq!(stage.findings().differences(), []);
    proxy.turn(Weather::Still);
    stage.read("a").await;
    // However the secondary is.
    stage.end().await;
}

/// MongoDB sorts by type before it sorts by value: a text of 2030 comes before a date of 2026.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_in_another_order_is_told_though_every_key_of_it_is_level() {
    let stage = Stage::set(Phase::MongoPrimary).await;
    let _mirror = mirror(&stage.bed, 0);
    begun(&stage.bed).await;
    stage.create(&["date"]).await;
    let mut text = Document::try_from(run("text")).expect("a document");
    text.insert("createdAt", Bson::from("2030-01-01T00:00:00Z"));
    stage.collection().insert_one(text).await.expect("insert");
    stage.level(Phase::MongoPrimary).await;
    let page = |limit| {
        let all = Query::of(runs()).only(Filter::Is("tenantId", "a".into()));
        all.by("createdAt", Direction::Ascending).limit(limit)
    };
    let both = [page(10), page(1)];
    let is_told = async || {
        for page in &both {
            stage.store().find(page).await.expect("find");
        }
        stage.findings().differences().len() >= 2
    };
    until("both pages are told", LIMIT, is_told).await;
    let differences = stage.findings().differences();
    println!("{differences:#?}");
    for found in &differences {
        assert!(found.kind == Kind::Order && found.id.starts_with("page of "), "{found:?}");
        assert!(found.diff.contains("+\"date\"\n"), "{found:?}");
    }
    assert_eq!(differences.len(), 2);
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fraction_is_that_of_the_moment() {
    let stage = Stage::set(Phase::Mongo).await;
    for (fraction, reads, expected) in [(0.0, 200, 0), (0.25, 400, 100), (1.0, 50, 50), (0.0, 200, 0), (0.01, 400, 4)] {
        stage.tune(fraction);
        let before = stage.taken();
        for _ in 0..reads {
            stage.read("a").await;
        }
        stage.done(before + expected - expected.min(2)).await;
        // One more, so that everything before it is done with.
        stage.tune(1.0);
        let (compared, at_least) = (stage.counters().compared, stage.taken() - before);
        stage.read("a").await;
        until("the last is compared", LIMIT, async || stage.counters().compared > compared).await;
        let found = stage.taken() - before - 1;
        assert!(found.abs_diff(expected) <= 2 && at_least <= found + 1, "{fraction} of {reads}: {found}");
    }
    let Counters { dropped, failed, .. } = stage.counters();
    assert_eq!((dropped, failed), (0, 0));
    stage.end().await;
}

/// How many marks were written.
async fn marks(bed: &Bed) -> i64 {
    let anchor = bed.database.collection::<Document>("bridge_anchor").find_one(doc! { "_id": "anchor" }).await;
    anchor.expect("look for the anchor").map_or(0, |anchor| anchor.get_i64("taken").expect("a count"))
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_told_until_the_mirror_has_passed() {
    let stage = Stage::set(Phase::Mongo).await;
    let first = mirror(&stage.bed, 0);
    begun(&stage.bed).await;
    stage.create(&["damaged", "written"]).await;
    stage.level(Phase::Mongo).await;
    assert!(first.kill().await);
    stage.sql("update scheduler.runs set error = 'damaged' where id = 'damaged'").await;
    stage.collection().update_one(doc! { "_id": "written" }, doc! { "$set": { "error": "new" } }).await.expect("write");
    let before = marks(&stage.bed).await;
    for id in ["damaged", "written"] {
        stage.read(id).await;
    }
    until("both are suspected", LIMIT, async || stage.counters().suspected == 2).await;
    // The first mark was waited for in vain once the second is there.
    until("the mirror was waited for", LIMIT, async || marks(&stage.bed).await >= before + 2).await;
    assert_eq!(stage.findings().differences(), []);
    assert_eq!((stage.counters().waiting, stage.counters().level), (2, 0), "{:?}", stage.counters());
    let _second = mirror(&stage.bed, 0);
    until("what is damaged is told", LIMIT, async || !stage.findings().differences().is_empty()).await;
    until("what was written is level", LIMIT, async || stage.counters().waiting == 0).await;
    let told: Vec<String> = stage.findings().differences().into_iter().map(|found| found.id).collect();
    assert_eq!(told, ["damaged"]);
    let Counters { level, lasting, .. } = stage.counters();
    assert_eq!((level, lasting), (1, 1), "{:?}", stage.counters());
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_suspected_in_another_epoch_is_given_up() {
    let stage = Stage::set(Phase::MongoPrimary).await;
    // No mirror runs, so that the suspicion waits.
    stage.collection().insert_one(Document::try_from(run("a")).expect("a document")).await.expect("insert");
    stage.read("a").await;
    until("it waits", LIMIT, async || stage.counters().waiting == 1).await;
    let fence = stage.bed.database.collection::<Document>(scheduler_bridge::fence::mongo::COLLECTION);
    let next = fence.update_one(doc! { "epoch": 1 }, doc! { "$set": { "epoch": 2 } }).await.expect("change the fence");
    assert_eq!(next.modified_count, 1);
    until("it is given up", LIMIT, async || stage.counters().overtaken == 1).await;
    assert_eq!((stage.counters().waiting, stage.findings().differences().len()), (0, 0));
    stage.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_dropped_leaves_no_session_behind() {
    let Stage { bed, connected } = Stage::set(Phase::Mongo).await;
    let address = Address::new(runs(), "a");
    let findings = || connected.store.shadow().expect("both stores").counters();
    let is_compared = async || {
        connected.store.get(&address).await.expect("get");
        findings().compared > 0
    };
    until("a read is compared", LIMIT, is_compared).await;
    let sessions = async || {
        let count = "select count(*) from pg_stat_activity
            where datname = current_database() and application_name = 'scheduler-bridge'";
        sqlx::query_scalar::<_, i64>(count).fetch_one(bed.pool()).await.expect("count")
    };
    assert!(sessions().await > 0);
    drop(connected);
    until("every session is closed", LIMIT, async || sessions().await == 0).await;
}
