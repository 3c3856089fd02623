//! `bridge status`: what it tells of each part, from whichever store is there, and that it writes to neither.

use bson::{Document, doc};
use rustix::process::Signal;
use scheduler_bridge::phase::Phase;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor};

use crate::bed::{Bed, until};
use crate::commands::object;
use crate::dual::{LIMIT, backends, connect, turn};
use crate::faults::process::Bridge;

async fn status(bed: &Bed, exit: i32) -> Value {
    object(bed, &["status"], exit).await
}

/// What it tells people.
async fn told(bed: &Bed) -> String {
    let mut command = tokio::process::Command::from(bed.bridge(&["status"]));
    let output = tokio::time::timeout(LIMIT, command.output()).await.expect("it ends").expect("run bridge");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The same wherever its lines are broken.
fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

async fn run(bed: &Bed, sql: &'static str) {
    bed.pool().execute(sql).await.expect(sql);
}

/// A URL behind which nobody listens.
fn nowhere(url: &str) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let (scheme, rest) = url.split_once("://").expect("a URL");
    let (user, host) = rest.split_once('@').map_or(("", rest), |(user, host)| (user, host));
    let (_, database) = host.split_once('/').expect("a database");
    let at = if user.is_empty() { "" } else { "@" };
    format!("{scheme}://{user}{at}{}/{database}", listener.local_addr().expect("an address"))
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_first_switch_it_is_phase_mongo_and_the_look_makes_no_fence() {
    let mut bed = Bed::new().await;
    // One that may only look.
    let role = format!("onlooker_{}", bed.database.name());
    let create = format!(
        "create role {role} login password 'onlooker'; grant usage on schema scheduler, bridge to {role};
        grant select on all tables in schema scheduler, bridge to {role}"
    );
    bed.pool().execute(AssertSqlSafe(create)).await.expect("create the role");
    let (_, host) = bed.postgres_url.split_once('@').expect("a user");
    bed.postgres_url = format!("postgres://{role}:onlooker@{host}");
    let seen = status(&bed, 0).await;
    assert_eq!((&seen["phase"], &seen["epoch"], &seen["open"]), (&json!("mongo"), &json!(1), &json!(true)), "{seen}");
    assert_eq!((&seen["mongodb"]["fence"], &seen["postgresql"]["fence"]["open"]), (&Value::Null, &json!(false)));
    let next = &seen["next"][0];
    assert_eq!((&next["to"], &next["met"]), (&json!("mongo-primary"), &json!(false)));
    assert!(next["error"].as_str().is_some_and(|words| words.contains("--dry-run")), "{next}");
    assert!(flat(&told(&bed).await).contains("backfill not begun"));
    assert_eq!(bed.database.list_collection_names().await.expect("list"), [""; 0], "it wrote to MongoDB");

    // With a fence there is a gate to look at, by one who may write nothing.
    turn(&bed, Phase::Mongo, 1).await;
    let fence = async || {
        let found = bed.database.collection::<Document>("bridge_fence").find_one(doc! {}).await;
        found.expect("read").expect("a fence")
    };
    let before = fence().await;
    let seen = status(&bed, 0).await;
    let conditions = seen["next"][0]["conditions"].as_array().expect("conditions");
    assert!(conditions.iter().any(|one| one["name"] == "the mirror was level once" && one["met"] == false), "{seen}");
    assert!(conditions.iter().all(|one| one["found"].is_string() && one["limit"].is_string() && one["at"].is_string()));
    assert_eq!(fence().await, before);
    let drop = format!("drop owned by {role}; drop role {role}");
    bed.pool().execute(AssertSqlSafe(drop)).await.expect("drop the role");
}

/// Something of everything that can be seen.
const EVERYTHING: &str = "
    insert into bridge.switch values
        (true, 'mongo-primary', 'postgres-primary', 'bring the new primary level', gen_random_uuid(), E'ana\\x1b[2J', now());
    insert into bridge.instance (id, name, epoch, seen_at) values
        (gen_random_uuid(), E'here\\u202e/1', 1, now()), (gen_random_uuid(), 'quiet/2', 1, now() - interval '30 s'),
        (gen_random_uuid(), 'long gone', 1, now() - interval '1 hour');
    insert into bridge.backfill (collection, epoch, clock, estimated_documents, finished_at) values
        ('schedules', 1, 1, 10, now() - interval '3 hours'), ('runs', 1, 1, 5000, null);
    insert into bridge.chunk (backfill, ordinal, documents, finished_at, leased_until)
        select b.id, i, 400, case when i < 3 then now() end, case when i = 3 then now() + interval '1 min' end
        from bridge.backfill b, generate_series(1, 5) i where b.collection = 'runs';
    insert into bridge.stream (clock, leased_until, lag_seconds, lag_events, level_at) values
        (1, now() + interval '1 min', 7.2, 1234, now() - interval '5 min');
    insert into bridge.truncated (collection) values ('locks');
    insert into bridge.outbox (collection, id, written_at) values
        ('runs', 'a', now() - interval '42 s'), ('runs', 'b', now());
    insert into bridge.recheck (collection, id, epoch, clock) select 'runs', i::text, 1, 1 from generate_series(1, 3) i;
    insert into bridge.quarantine (collection, id, document, reason, epoch, clock, accepted_at) values
        ('runs', 'a', '', 'odd', 1, 1, now()), ('runs', 'b', '', 'odd', 1, 1, null);
    insert into bridge.stray (collection, id, epoch, clock, accepted_at) values ('runs', 'a', 1, 1, now());
    insert into bridge.verification (phase, epoch, collections, tolerance_seconds, holder, held_by, leased_until,
            began_at, finished_at, report) values
        ('mongo', 1, '{runs}', 5, gen_random_uuid(), 'ana', now(), now() - interval '20 min', now() - interval '10 min',
            '{\"verdict\": \"mismatch\"}'),
        ('mongo', 1, '{runs}', 5, gen_random_uuid(), 'ana', now() + interval '1 min', now() - interval '3 min', null, null);
    insert into bridge.verification_share (verification, ordinal, collection, kind, finished_at)
        select 2, i, 'runs', 'range', case when i < 3 then now() end from generate_series(1, 4) i;
    insert into bridge.read_parity (phase, epoch, began_at, report, digest) values
        ('mongo', 1, now(), '{\"verdict\": \"clean\"}', '');
    insert into bridge.phase_history (epoch, phase, turned_by, pause_seconds, conditions) values
        (1, 'mongo-primary', 'ben@there', 0.157, '[{\"name\": \"the mirror was level once\", \"met\": true,
            \"found\": \"last at noon\", \"limit\": \"once\", \"at\": \"2026-01-01T00:00:00Z\"}]')";

#[tokio::test(flavor = "multi_thread")]
async fn every_part_is_told_and_fits_a_terminal() {
    let bed = Bed::new().await;
    turn(&bed, Phase::MongoPrimary, 1).await;
    let application = connect(&backends(&bed)).await;
    run(&bed, EVERYTHING).await;
    let seen = status(&bed, 0).await;
    let told_by = &seen["postgresql"];
    assert_eq!((&seen["phase"], &seen["open"]), (&json!("mongo-primary"), &json!(true)), "{seen}");
    assert_eq!(seen["mongodb"]["processes"].as_array().map(Vec::len), Some(1), "{seen}");
    assert_eq!(told_by["processes"].as_array().map(Vec::len), Some(2), "{seen}");
    assert_eq!((&told_by["switch"]["to"], &told_by["switch"]["is_held"]), (&json!("postgres-primary"), &json!(false)));
    let backfill = told_by["backfill"].as_array().expect("a list");
    assert_eq!(backfill.len(), 11, "{seen}");
    let runs = backfill.iter().find(|one| one["collection"] == "runs").expect("runs");
    let counts = ["chunks", "chunks_finished", "chunks_leased", "documents", "estimated_documents"];
    assert_eq!(json!(counts.map(|count| runs[count].clone())), json!([5, 2, 1, 2000, 5000]));
    let mirror = &told_by["mirror"];
    assert_eq!((&mirror["is_running"], &mirror["lag_events"]), (&json!(true), &json!(1234)));
    assert!(told_by["outbox"]["count"] == 2 && told_by["outbox"]["oldest_seconds"].as_f64() >= Some(42.0), "{seen}");
    assert_eq!((&told_by["recheck"], &told_by["truncated"]), (&json!(3), &json!(["locks"])));
    assert_eq!(told_by["quarantine"], json!({ "count": 2, "accepted": 1 }));
    assert_eq!(told_by["strays"], json!({ "count": 1, "accepted": 1 }));
    assert_eq!(
        (&told_by["verification"]["number"], &told_by["verification"]["verdict"]),
        (&json!(1), &json!("mismatch"))
    );
    let verifying = &told_by["verifying"];
    assert_eq!(json!([verifying["number"], verifying["shares"], verifying["shares_finished"]]), json!([2, 4, 2]));
    assert_eq!(told_by["read_parity"]["verdict"], "clean");
    assert_eq!(told_by["last_switch"]["conditions"][0]["found"], "last at noon");
    assert_eq!((&seen["next"][0]["to"], &seen["next"][0]["met"]), (&json!("postgres-primary"), &json!(false)));

    let text = told(&bed).await;
    println!("{text}");
    let lines = [
        "phase       mongo-primary, epoch 1",
        "MongoDB open (mongo-primary, epoch 1); PostgreSQL closed",
        "NOBODY IS AT IT: bridge switch --resume, or --abort",
        "quiet/2 (SILENT for 3",
        "1 of 11 collections, the last 3 h ago; not begun: triggers, graph_jobs,",
        "runs              2,000 of about 5,000 documents, 2 of 5 chunks; 1 under way",
        "runs, 7 s and 1,234 events behind; level 5 min ago",
        "locks: bridge backfill --resync",
        "2 writes, the first 4",
        "3 keys to compare again",
        "2 documents, 1 NOT ACCEPTED",
        "1 stray write, accepted",
        "number 2 runs, begun 3 min ago by ana, 2 of 4 parts; before it: number 1: MISMATCH, 10 min ago",
        "number 1: clean",
        "by ben@there; writers waited 157 ms",
        "the gate found the mirror was level once: last at noon",
        "next postgres-primary: ",
        "NOT MET",
    ];
    for line in lines {
        assert!(flat(&text).contains(&flat(line)), "{line:?} is not in\n{text}");
    }
    assert!(!text.contains(['\u{1b}', '\u{202e}']) && !text.contains("long gone"), "{text}");
    for line in text.lines() {
        assert!(line.chars().count() <= 100, "{line:?} does not fit");
    }
    application.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_is_told_as_away_and_the_other_tells_what_it_knows() {
    let mut bed = Bed::new().await;
    turn(&bed, Phase::PostgresPrimary, 2).await;
    let mongo_url = std::mem::take(&mut bed.mongo_url);
    bed.mongo_url = nowhere(&mongo_url);
    let seen = status(&bed, 3).await;
    assert!(seen["mongodb"]["error"].as_str().is_some_and(|words| words.contains("could not reach MongoDB")), "{seen}");
    assert_eq!((&seen["phase"], &seen["epoch"]), (&json!("postgres-primary"), &json!(2)), "PostgreSQL's is open");
    assert_eq!(seen["next"].as_array().map(Vec::len), Some(2));
    assert!(told(&bed).await.contains("MongoDB DOES NOT TELL"));

    bed.mongo_url = mongo_url;
    turn(&bed, Phase::PostgresPrimary, 2).await;
    let postgres_url = std::mem::take(&mut bed.postgres_url);
    bed.postgres_url = nowhere(&postgres_url);
    let seen = status(&bed, 4).await;
    let error = seen["postgresql"]["error"].as_str().expect("an error");
    assert!(error.contains("could not reach PostgreSQL"), "{seen}");
    assert_eq!(seen["mongodb"]["fence"]["phase"], "postgres-primary");
    assert_eq!(seen["phase"], Value::Null, "a closed fence does not say what the other one is");
    let text = told(&bed).await;
    assert!(text.contains("PostgreSQL DOES NOT TELL") && text.contains("not known"), "{text}");

    // A schema that is not there is PostgreSQL's silence too.
    bed.postgres_url = postgres_url;
    run(&bed, "drop schema bridge cascade; drop schema scheduler cascade").await;
    let seen = status(&bed, 4).await;
    assert!(seen["postgresql"]["error"].as_str().is_some_and(|words| words.contains("0001_scheduler.sql")), "{seen}");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_phase_postgres_mongodb_is_not_asked_and_need_not_be_known() {
    let bed = Bed::new().await;
    turn(&bed, Phase::Postgres, 4).await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("not to wait");
    let url = format!("mongodb://{}/?replicaSet=rs0", listener.local_addr().expect("an address"));
    for known in [Some(&url), None] {
        let mut command = tokio::process::Command::from(bed.bridge(&["status", "--json"]));
        match known {
            Some(url) => command.env("BRIDGE_MONGO_URL", url),
            None => command.env_remove("BRIDGE_MONGO_URL"),
        };
        let output = tokio::time::timeout(LIMIT, command.output()).await.expect("it ends").expect("run bridge");
        assert_eq!(output.status.code(), Some(0));
        let seen: Value = serde_json::from_slice(&output.stdout).expect("one object");
        assert_eq!((&seen["phase"], &seen["epoch"]), (&json!("postgres"), &json!(4)));
        assert_eq!((&seen["mongodb"], &seen["next"]), (&Value::Null, &json!([])));
        assert_eq!(listener.accept().err().map(|error| error.kind()), Some(std::io::ErrorKind::WouldBlock));
    }
    // In any other phase it is needed.
    turn(&bed, Phase::PostgresPrimary, 4).await;
    run(&bed, "update bridge.fence set phase = 'postgres-primary'").await;
    let mut command = tokio::process::Command::from(bed.bridge(&["status", "--json"]));
    let output = command.env_remove("BRIDGE_MONGO_URL").output().await.expect("run bridge");
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_switch_is_told_at_once() {
    let bed = Bed::new().await;
    turn(&bed, Phase::MongoPrimary, 1).await;
    let close = doc! { "$set": { "open": false } };
    bed.database.collection::<Document>("bridge_fence").update_one(doc! {}, close).await.expect("close");
    let seen = status(&bed, 0).await;
    assert_eq!((&seen["phase"], &seen["open"]), (&json!("mongo-primary"), &json!(false)), "{seen}");
    assert!(told(&bed).await.contains("NO STORE TAKES WRITES"));
}

/// What is told in vain is told again: a look a second.
#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_each_change_once_and_to_machines_every_look() {
    let bed = Bed::new().await;
    turn(&bed, Phase::MongoPrimary, 1).await;
    let machine = Bridge::start(bed.bridge(&["status", "--watch", "--json"]));
    let person = Bridge::start(bed.bridge(&["status", "--watch"]));
    until("the first block is told", LIMIT, async || flat(&person.said()).contains("quarantine none")).await;
    until("three looks are told", LIMIT, async || machine.said().lines().count() >= 3).await;
    run(&bed, "insert into bridge.quarantine (collection, id, document, reason, epoch, clock) values ('runs', 'a', '', 'odd', 1, 1)").await;
    until("the change is told", LIMIT, async || person.has_said("1 document, 1 NOT ACCEPTED")).await;
    let looks = machine.said().lines().count();
    until("more looks are told", LIMIT, async || machine.said().lines().count() >= looks + 3).await;
    let blocks = person.said().matches("looked at").count();
    assert_eq!(blocks, 2, "{}", person.said());
    for line in machine.said().lines() {
        let look: Value = serde_json::from_str(line).expect("an object a line");
        assert_eq!(look["phase"], "mongo-primary");
    }
    for process in [machine, person] {
        process.signal(Signal::TERM);
        process.ended().await.says(0, &[]);
    }
}
