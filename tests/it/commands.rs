//! The commands that move and show documents, over the real binary.

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use mongodb::bson::spec::BinarySubtype;
use mongodb::bson::{Binary, Bson, Document, doc};
use rustix::process::{Pid, Signal, kill_process};
use scheduler_bridge::dataset::{self, fixtures};
use scheduler_bridge::embedded::MongoServer;
use scheduler_bridge::entity::ENTITIES;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor};

use crate::bed::{Bed, until};

/// How long a poll may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a command to its end.
async fn output(mut command: Command) -> Output {
    command.stdin(Stdio::null());
    tokio::task::spawn_blocking(move || command.output()).await.expect("a thread").expect("run bridge")
}

/// The text on stdout of a command that must end with `exit`.
async fn said(command: Command, exit: i32) -> String {
    let output = output(command).await;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(exit), "stdout: {stdout}\nstderr: {stderr}");
    stdout
}

/// The last object that a command prints with `--json`.
pub async fn object(bed: &Bed, arguments: &[&str], exit: i32) -> Value {
    let mut command = bed.bridge(arguments);
    command.arg("--json");
    last(&said(command, exit).await)
}

fn last(text: &str) -> Value {
    serde_json::from_str(text.lines().last().expect("a line")).expect("an object")
}

async fn count(bed: &Bed, query: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(query.to_owned())).fetch_one(bed.pool()).await.expect("count")
}

/// The entry of a collection in a summary.
fn of<'a>(summary: &'a Value, name: &str) -> &'a Value {
    let collections = summary["collections"].as_array().expect("collections");
    collections.iter().find(|one| one["name"] == name).expect("the collection")
}

/// A bed with generated documents and all fixtures; how many there are.
async fn filled(documents: u64) -> (Bed, u64) {
    let bed = Bed::new().await;
    let mut loaded = dataset::load(&bed.database, documents, 7, |_| ()).await.expect("load");
    let (mapped, refused) = (fixtures::mapped().expect("fixtures"), fixtures::quarantined().expect("fixtures"));
    for fixtures in [mapped, refused, vec![fixtures::largest()]] {
        loaded += fixtures::load(&bed.database, &fixtures).await.expect("load the fixtures");
    }
    (bed, loaded)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_says_what_it_copied_and_the_stores_agree() {
    let (bed, loaded) = filled(5_000).await;
    let summary = object(&bed, &["backfill"], 0).await;
    assert_eq!((&summary["dry_run"], &summary["documents_read"]), (&json!(false), &json!(loaded)));
    for entity in ENTITIES {
        let (said, name) = (of(&summary, entity.name), entity.name);
        let documents = bed.database.collection::<Document>(name).count_documents(doc! {}).await.expect("count");
        let rows = count(&bed, &format!("select count(*) from scheduler.{name}")).await;
        let kept = count(&bed, &format!("select count(*) from bridge.quarantine where collection = '{name}'")).await;
        let irregular = format!("select count(*) from scheduler.{name} where residue is not null");
        let irregular = count(&bed, &irregular).await;
        let truth = json!([documents, rows, kept, irregular, 0]);
        let counts = ["documents", "rows", "quarantined", "irregular", "removed"].map(|field| said[field].clone());
        assert_eq!(json!(counts), truth, "{name}");
        assert_eq!(documents, u64::try_from(rows + kept).expect("a count"), "{name}");
    }
    assert_eq!(object(&bed, &["verify"], 0).await["verdict"], "clean");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_tells_what_the_backfill_will_find_and_writes_nothing_and_needs_no_postgresql() {
    let (bed, loaded) = filled(1_000).await;
    let mut command = bed.bridge(&["backfill", "--dry-run", "--json"]);
    command.env_remove("BRIDGE_POSTGRES_URL");
    let census = last(&said(command, 0).await);
    assert_eq!((&census["dry_run"], &census["documents_read"]), (&json!(true), &json!(loaded)));
    let collections = bed.database.list_collection_names().await.expect("list");
    assert!(!collections.contains(&"bridge_anchor".to_owned()), "{collections:?}");
    assert_eq!(count(&bed, "select count(*) from bridge.backfill").await, 0);
    assert_eq!(count(&bed, "select count(*) from bridge.quarantine").await, 0);

    let summary = object(&bed, &["backfill"], 0).await;
    assert_eq!(census["collections"], summary["collections"]);
    let quarantined = object(&bed, &["quarantine", "list"], 0).await;
    let keys = |list: &Value| -> Vec<String> {
        let list = list.as_array().expect("a list").iter();
        let mut keys: Vec<_> = list.map(|one| format!("{}{}{}", one["collection"], one["id"], one["reason"])).collect();
        keys.sort();
        keys
    };
    assert_eq!(keys(&census["refused"]), keys(&quarantined["quarantined"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_summary_for_people_says_what_to_do_next_and_hides_the_bars_from_a_file() {
    let bed = Bed::new().await;
    let locks = bed.database.collection("locks");
    locks.insert_one(doc! { "_id": "one", "token": 5_i64, "shard": 3 }).await.expect("insert");
    let output = output(bed.bridge(&["backfill", "locks"])).await;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(stderr, "");
    assert!(stdout.contains("locks.shard"), "{stdout}");
    assert!(stdout.ends_with("next: bridge verify\n") && !stdout.contains("runs"), "{stdout}");
    assert_eq!(count(&bed, "select count(*) from bridge.backfill").await, 1, "only what was named");

    bed.database.collection("runs").insert_one(doc! { "_id": "lost" }).await.expect("insert");
    let stdout = said(bed.bridge(&["backfill"]), 0).await;
    assert!(stdout.ends_with("next: bridge quarantine list, bridge verify\n"), "{stdout}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_backfill_removes_what_is_gone_and_copies_what_has_changed() {
    let bed = Bed::new().await;
    dataset::load(&bed.database, 2_000, 7, |_| ()).await.expect("load");
    object(&bed, &["backfill"], 0).await;
    let audit = bed.database.collection::<Document>("audit");
    let gone = audit.delete_many(doc! { "category": "scheduler" }).await.expect("delete").deleted_count;
    let gone = gone + audit.find_one_and_delete(doc! {}).await.expect("delete").map_or(0, |_| 1);
    audit.update_one(doc! {}, doc! { "$set": { "message": "other" } }).await.expect("update");
    assert_eq!(object(&bed, &["verify"], 1).await["verdict"], "mismatch");
    let summary = object(&bed, &["backfill"], 0).await;
    assert_eq!(of(&summary, "audit")["removed"], json!(gone));
    assert_eq!(of(&summary, "runs")["removed"], 0);
    assert_eq!(object(&bed, &["verify"], 0).await["verdict"], "clean");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_is_refused_while_postgresql_is_the_primary() {
    let bed = Bed::new().await;
    bed.database.collection("locks").insert_one(doc! { "_id": "one" }).await.expect("insert");
    for phase in ["postgres-primary", "postgres"] {
        sqlx::query("update bridge.fence set phase = $1").bind(phase).execute(bed.pool()).await.expect("update");
        let failure = object(&bed, &["backfill"], 5).await;
        assert!(failure["error"].as_str().is_some_and(|text| text.contains(phase)), "{failure}");
        assert!(failure["hint"].is_string() && failure["exit"] == 5, "{failure}");
    }
    assert_eq!(count(&bed, "select count(*) from bridge.backfill").await, 0);
    assert_eq!(count(&bed, "select count(*) from scheduler.locks").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_is_kept_and_progress_is_told_every_second() {
    let bed = Bed::new().await;
    dataset::load_collection(&bed.database, "execution_logs", (4_000, 7), |_| ()).await.expect("load");
    let arguments = ["backfill", "--documents-per-second", "1500", "--workers", "4", "--json"];
    let text = said(bed.bridge(&arguments), 0).await;
    let summary = last(&text);
    assert_eq!(summary["documents_read"], 4_000);
    assert!(summary["documents_per_second"].as_u64().is_some_and(|rate| rate <= 1_500), "{summary}");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    let progress = &lines.first().expect("a line")["progress"];
    let logs = progress.as_array().expect("a list").iter().find(|one| one["collection"] == "execution_logs");
    let logs = logs.expect("the collection");
    assert_eq!(logs["estimated"], 4_000, "{text}");
    assert!(logs["documents"].as_u64().is_some_and(|documents| documents < 4_000), "{text}");
}

/// Sends Ctrl-C.
fn interrupt(process: &std::process::Child) {
    let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(pid, Signal::INT).expect("send a signal");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_backfill_ends_in_order_and_the_next_one_carries_on() {
    let bed = Bed::new().await;
    dataset::load_collection(&bed.database, "execution_logs", (6_000, 7), |_| ()).await.expect("load");
    let mut command = bed.bridge(&["backfill", "--documents-per-second", "1000"]);
    let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("start");
    let begun = async || count(&bed, "select coalesce(sum(documents), 0)::bigint from bridge.chunk").await > 0;
    until("something is copied", PATIENCE, begun).await;
    interrupt(&process);
    let ended = tokio::task::spawn_blocking(|| process.wait_with_output()).await.expect("a thread").expect("wait");
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("stopping") && stderr.contains("it carries on"), "{stderr}");
    assert_eq!(count(&bed, "select count(*) from bridge.chunk where holder is not null").await, 0);

    let done = count(&bed, "select sum(documents)::bigint from bridge.chunk").await;
    assert!((1..6_000).contains(&done), "{done}");
    let summary = object(&bed, &["backfill"], 0).await;
    assert_eq!(summary["documents_read"], 6_000 - done, "the rest, and no more");
    assert_eq!(of(&summary, "execution_logs")["documents"], 6_000);
    assert_eq!(count(&bed, "select count(*) from scheduler.execution_logs").await, 6_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quarantine_is_listed_and_shown_and_nothing_in_it_reaches_the_terminal_raw() {
    let bed = Bed::new().await;
    let nothing = said(bed.bridge(&["quarantine", "list"]), 0).await;
    assert_eq!(nothing, "the quarantine is empty\n");
    let hostile = "\u{1b}[2J\u{202e}run";
    let bytes = Bson::Binary(Binary { subtype: BinarySubtype::UserDefined(0x99), bytes: vec![1, 2] });
    let documents = [doc! { "_id": hostile, "note": "\u{1b}]0;x", "blob": bytes }, doc! { "_id": 5, "state": "odd" }];
    bed.database.collection("runs").insert_many(documents).await.expect("insert");
    object(&bed, &["backfill"], 0).await;
    sqlx::query("insert into bridge.quarantine values ('locks', 'broken', '\\x0102ff', 'by hand', 1, 1)")
        .execute(bed.pool())
        .await
        .expect("insert");

    let text = said(bed.bridge(&["quarantine", "list"]), 0).await;
    assert!(text.contains(r"\u{1b}[2J\u{202e}run") && text.contains("{\"$numberInt\":\"5\"}"), "{text}");
    assert!(!text.contains('\u{1b}') && text.contains("3 documents"), "{text}");
    let runs = object(&bed, &["quarantine", "list", "runs"], 0).await;
    let ids: Vec<_> = runs["quarantined"].as_array().expect("a list").iter().map(|one| one["id"].clone()).collect();
    assert_eq!(ids, [json!(hostile), json!("{\"$numberInt\":\"5\"}")]);

    for id in [hostile, r"\u{1b}[2J\u{202e}run"] {
        let text = said(bed.bridge(&["quarantine", "show", "runs", id]), 0).await;
        assert!(!text.contains('\u{1b}') && text.contains("\"subType\": \"99\"") && text.contains("tenant"), "{text}");
    }
    let shown = object(&bed, &["quarantine", "show", "runs", "{\"$numberInt\":\"5\"}"], 0).await;
    assert_eq!(shown["document"], json!({ "_id": { "$numberInt": "5" }, "state": "odd" }));
    assert!(said(bed.bridge(&["quarantine", "show", "locks", "broken"]), 0).await.contains("\n0102ff\n"));
    assert_eq!(object(&bed, &["quarantine", "show", "locks", "broken"], 0).await["bson"], "0102ff");
    let failure = object(&bed, &["quarantine", "show", "locks", "other"], 2).await;
    assert!(failure["hint"].as_str().is_some_and(|hint| hint.contains("quarantine list locks")), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accepted_document_is_accepted_until_another_version_of_it_comes() {
    let bed = Bed::new().await;
    let runs = bed.database.collection::<Document>("runs");
    let (hostile, escaped) = ("\u{1b}run", r"\u{1b}run");
    let bad = |number: i32| doc! { "_id": hostile, "state": "odd", "number": number };
    runs.insert_many([bad(1), doc! { "_id": "other", "state": "odd" }]).await.expect("insert");
    object(&bed, &["backfill"], 0).await;
    let open = "select count(*) from bridge.quarantine where accepted_at is null";
    assert_eq!(object(&bed, &["quarantine", "accept", "runs", escaped], 0).await["accepted"], 1);
    assert_eq!(object(&bed, &["quarantine", "accept", "runs", hostile], 0).await["accepted"], 0);
    assert_eq!(count(&bed, open).await, 1);
    let listed = object(&bed, &["quarantine", "list", "runs"], 0).await;
    assert!(listed["quarantined"][0]["accepted_at"].is_string(), "{listed}");
    assert!(listed["quarantined"][1]["accepted_at"].is_null(), "{listed}");

    // The same document under a newer stamp is what was accepted; another document is not.
    object(&bed, &["backfill"], 0).await;
    assert_eq!(count(&bed, open).await, 1);
    runs.replace_one(doc! { "_id": hostile }, bad(2)).await.expect("replace");
    object(&bed, &["backfill"], 0).await;
    assert_eq!(count(&bed, open).await, 2);
    let text = said(bed.bridge(&["quarantine", "accept", "runs", hostile]), 0).await;
    assert_eq!(text, format!("accepted: runs {escaped}\n"));
    assert_eq!(count(&bed, open).await, 1);

    let failure = object(&bed, &["quarantine", "accept", "locks", "other"], 2).await;
    assert!(failure["hint"].as_str().is_some_and(|hint| hint.contains("quarantine list locks")), "{failure}");
}

/// A user of MongoDB with one role, on one database: the URL.
async fn reader_and_writer(server: &MongoServer, database: &str) -> String {
    let client = mongodb::Client::with_uri_str(server.url()).await.expect("open MongoDB");
    let user = doc! { "createUser": "narrow", "pwd": "narrow", "roles": ["readWrite"] };
    client.database(database).run_command(user).await.expect("create the user");
    dataset::load(&client.database(database), 500, 7, |_| ()).await.expect("load");
    let url = server.url_of(database).replace("authSource=admin", &format!("authSource={database}"));
    let (_, rest) = url.split_once('@').expect("a user");
    format!("mongodb://narrow:narrow@{rest}")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_privileges_that_the_readme_names_are_enough() {
    let (bed, server) = (Bed::new().await, MongoServer::start_with_authentication().await.expect("start MongoDB"));
    let database = bed.database.name();
    let sql = format!(
        "drop schema scheduler cascade; drop schema bridge cascade; create role {database} login password 'narrow';
        grant create on database {database} to {database}"
    );
    bed.pool().execute(AssertSqlSafe(sql)).await.expect("create the role");
    let (_, host) = bed.postgres_url.split_once('@').expect("a user");
    let postgres_url = format!("postgres://{database}:narrow@{host}");
    let mongo_url = reader_and_writer(&server, database).await;
    for arguments in [&["backfill", "--dry-run"][..], &["migrate"], &["backfill"], &["verify"], &["backfill"]] {
        let mut command = bed.bridge(arguments);
        command.env("BRIDGE_MONGO_URL", &mongo_url).env("BRIDGE_POSTGRES_URL", &postgres_url);
        said(command, 0).await;
    }
    let sql = format!("drop owned by {database}; drop role {database}");
    bed.pool().execute(AssertSqlSafe(sql)).await.expect("drop the role");
}

/// The databases that demos left behind.
async fn left_by_demos(bed: &Bed) -> (Vec<String>, Vec<String>) {
    let mut mongo = bed.mongo.list_database_names().await.expect("list");
    mongo.retain(|name| name.starts_with("bridge_demo_"));
    let listed = "select datname::text from pg_database where datname like 'bridge\\_demo\\_%' order by datname";
    (mongo, sqlx::query_scalar(listed).fetch_all(bed.pool()).await.expect("list"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_keeps_its_promise_and_leaves_nothing_behind_on_servers_it_was_given() {
    let bed = Bed::new().await;
    let before = left_by_demos(&bed).await;
    let mut command = bed.bridge(&["demo", "--documents", "3000", "--json"]);
    command.env("BRIDGE_TEST_MONGO_URL", &bed.mongo_url).env("BRIDGE_TEST_POSTGRES_URL", &bed.postgres_url);
    let text = said(command, 0).await;
    let end = last(&text);
    assert_eq!((&end["demo"], end["steps"].as_array().map(Vec::len)), (&json!("passed"), Some(24)), "{end}");
    let objects: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    let of = |name: &str| objects.iter().filter_map(|one| one.get(name).cloned()).collect::<Vec<_>>();
    let turned: Vec<Value> =
        objects.iter().filter(|one| one.get("pause_milliseconds").is_some()).map(|one| one["phase"].clone()).collect();
    assert_eq!(turned, ["mongo-primary", "postgres-primary", "mongo-primary", "postgres-primary", "postgres"]);
    let verdicts: Vec<Value> =
        objects.iter().filter(|one| one.get("mismatches").is_some()).map(|one| one["verdict"].clone()).collect();
    assert_eq!(verdicts, ["clean", "mismatch", "clean", "clean", "clean", "clean"]);
    // The report that it names is there, and is a page.
    let report = of("report").pop().expect("a report");
    let report = std::path::PathBuf::from(report.as_str().expect("a path"));
    assert!(std::fs::read_to_string(&report).expect("read the report").starts_with("<!doctype html>"));
    std::fs::remove_file(report).expect("remove the report");
    assert_eq!(left_by_demos(&bed).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demo_that_is_interrupted_takes_its_servers_with_it() {
    let folder = tempfile::tempdir().expect("a folder");
    // As `/tmp`: root's private PostgreSQL runs as nobody.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
    std::fs::set_permissions(folder.path(), mode).expect("open the folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_bridge"));
    command.args(["demo", "--documents", "500000"]).current_dir(folder.path()).env("TMPDIR", folder.path());
    for variable in ["BRIDGE_TEST_MONGO_URL", "BRIDGE_TEST_POSTGRES_URL"] {
        command.env_remove(variable);
    }
    let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("start");
    let path = folder.path().to_owned();
    let left = tokio::task::spawn_blocking(move || {
        let stdout = BufReader::new(process.stdout.take().expect("a pipe"));
        let filling = stdout.lines().map_while(Result::ok).find(|line| line.contains("2. fill MongoDB"));
        assert!(filling.is_some(), "the servers are up");
        assert_eq!(std::fs::read_dir(&path).expect("read").count(), 2, "a folder for each");
        interrupt(&process);
        assert_eq!(process.wait().expect("wait").code(), Some(130));
        std::fs::read_dir(&path).expect("read").count()
    });
    assert_eq!(left.await.expect("a thread"), 0);
}
