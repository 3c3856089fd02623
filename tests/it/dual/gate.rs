//! What the gate of `postgres-primary` says of MongoDB's clients, and MongoDB's own refusal of their writes.

use bson::{Document, doc};
use mongodb::Client;
use mongodb::error::{ErrorKind, WriteFailure};
use mongodb::options::ClientOptions;
use scheduler_bridge::embedded::MongoServer;
use scheduler_bridge::phase::Phase;
use serde_json::Value;

use super::switch::{WAIVED, command, objects};
use super::{LIMIT, backends, connect, turn};
use crate::bed::{Bed, until};
use crate::faults::process::Bridge;

/// The condition of that name, as a dry run finds it.
pub async fn condition(bed: &Bed, name: &str, arguments: &[&str]) -> Value {
    let arguments = [&["postgres-primary", "--dry-run"], arguments].concat();
    let (_, objects, stderr) = objects(command(bed, &arguments, "")).await;
    let conditions = objects.last().expect(&stderr)["conditions"].as_array().expect("conditions").clone();
    conditions.into_iter().find(|one| one["name"].as_str().is_some_and(|found| found.contains(name))).expect(name)
}

async fn client(url: &str, name: &str) -> Client {
    let mut options = ClientOptions::parse(url).await.expect("a URL");
    options.app_name = Some(name.to_owned());
    Client::with_options(options).expect("a client")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_no_process_of_the_application_is_named_and_may_be_accepted() {
    let bed = Bed::with_own_mongo(&[]).await;
    turn(&bed, Phase::MongoPrimary, 1).await;
    let connected = connect(&backends(&bed)).await;
    // The client of the bed itself gives no name.
    let nameless = "mongo-rust-driver at 127.0.0.1";
    let clients = async |arguments: &[&str]| condition(&bed, "no client", arguments).await;
    let refused = clients(&[]).await;
    assert_eq!((&refused["met"], &refused["found"]), (&false.into(), &nameless.into()));
    let accepted = clients(&["--accept-client", nameless]).await;
    assert_eq!((&accepted["met"], &accepted["found"]), (&true.into(), &format!("none; accepted: {nameless}").into()));
    let cron = client(&bed.mongo_url, "the old cron job").await;
    cron.database("admin").run_command(doc! { "ping": 1 }).await.expect("ping");
    let found = clients(&["--accept-client", nameless]).await;
    assert_eq!(
        (&found["met"], found["found"].as_str()),
        (&false.into(), Some(&*format!("the old cron job; accepted: {nameless}")))
    );
    connected.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stray_writes_keep_the_gate_closed_until_they_are_accepted() {
    let bed = Bed::new().await;
    turn(&bed, Phase::MongoPrimary, 3).await;
    assert_eq!(condition(&bed, "stray", &[]).await["met"], true);
    let stray = "insert into bridge.stray (collection, id, epoch, clock) values ('runs', 'a', 2, 1)";
    sqlx::query(stray).execute(bed.pool()).await.expect("insert");
    let found = condition(&bed, "stray", &[]).await;
    assert_eq!((&found["met"], &found["found"]), (&false.into(), &"1 stray writes".into()));
    Bridge::start(bed.bridge(&["stray", "accept", "runs", "a"])).ended().await.says(0, &[]);
    assert_eq!(condition(&bed, "stray", &[]).await["met"], true);
}

/// Whether that user may write.
async fn may_write(user: &Client) -> bool {
    const USER_WRITES_BLOCKED: i32 = 371;
    match user.database("theirs").collection::<Document>("things").insert_one(doc! {}).await {
        Ok(_) => true,
        Err(error) => {
            let ErrorKind::Write(WriteFailure::WriteError(refusal)) = error.kind.as_ref() else { panic!("{error}") };
            assert_eq!(refusal.code, USER_WRITES_BLOCKED, "{error}");
            false
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mongodb_refuses_other_users_from_the_flip_to_the_way_back() {
    let (bed, server) = (Bed::new().await, MongoServer::start_with_authentication().await.expect("start MongoDB"));
    let root = Client::with_uri_str(server.url()).await.expect("a client");
    let user = doc! { "createUser": "other", "pwd": "secret", "roles": ["readWriteAnyDatabase"] };
    root.database("admin").run_command(user).await.expect("create a user");
    let (_, rest) = server.url().split_once('@').map(|(_, rest)| ((), rest.to_owned())).expect("a password");
    let other = client(&format!("mongodb://other:secret@{rest}"), "other").await;
    let bridge = |mut command: std::process::Command| {
        command.env("BRIDGE_MONGO_URL", server.url());
        command
    };
    let mut follow = bridge(bed.bridge(&["--json", "backfill", "--follow"]));
    root.database(bed.database.name())
        .collection("runs")
        .insert_one(doc! { "_id": "a", "tenantId": "t", "state": "queued" })
        .await
        .expect("insert");
    follow.env("BRIDGE_LEASE_SECONDS", "2");
    let mirror = Bridge::start(follow);
    until("the stores are level", LIMIT, async || mirror.has_said("\"level\":true")).await;
    let turned = async |arguments: &[&str]| {
        let done = async || {
            let (exit, _, stderr) = objects(bridge(command(&bed, arguments, WAIVED))).await;
            assert!(exit == Some(0) || stderr.contains("not every condition is met"), "{stderr}");
            exit == Some(0)
        };
        until("the gate is open", LIMIT, done).await;
    };
    turned(&["mongo-primary", "--yes"]).await;
    assert!(may_write(&other).await);
    turned(&["postgres-primary", "--yes", "--block-writes"]).await;
    assert!(!may_write(&other).await);
    turned(&["mongo-primary", "--yes"]).await;
    assert!(may_write(&other).await);
}
