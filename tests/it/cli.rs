//! The command line over the real binary: what it says, how it exits, and that it never says a password.

mod migrate;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use mongodb::bson::doc;
use scheduler_bridge::embedded::MongoServer;
use sqlx::{AssertSqlSafe, Executor};

use crate::bed::Bed;

/// A password that no ordinary text holds.
const PASSWORD: &str = "hunter2-Geheim";

/// What a command left behind, as text.
struct Ended {
    exit: Option<i32>,
    stdout: String,
    stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Self { exit: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Ended {
    /// The exit code and every word, and no password anywhere.
    fn says(&self, exit: i32, words: &[&str]) {
        let said = format!("exit {:?}\nstdout: {}\nstderr: {}", self.exit, self.stdout, self.stderr);
        assert_eq!(self.exit, Some(exit), "{said}");
        assert!(!said.contains(PASSWORD), "{said}");
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in\n{said}");
        }
    }
}

/// Runs a command to its end.
async fn ended(mut command: Command) -> Ended {
    command.stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("a thread");
    output.expect("run bridge").into()
}

/// `bridge` with nothing set, in a folder without a settings file.
fn bare(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bridge"));
    command.env_clear().current_dir(folder).args(arguments);
    command
}

/// The commands that read MongoDB and write or read PostgreSQL.
const MOVING: [&[&str]; 2] = [&["backfill"], &["verify"]];

/// A bed whose MongoDB has one document, and whose PostgreSQL is migrated.
async fn filled() -> Bed {
    let bed = Bed::new().await;
    bed.database.collection("locks").insert_one(doc! { "_id": "one" }).await.expect("insert");
    ended(bed.bridge(&["migrate"])).await.says(0, &[]);
    bed
}

/// A database of the bed without our schemas.
async fn emptied(bed: &Bed) {
    let drop = "drop schema if exists scheduler cascade; drop schema if exists bridge cascade";
    bed.pool().execute(drop).await.expect("drop the schemas");
}

/// Nothing half done: no row, no chunk, no quarantined document.
async fn assert_untouched(bed: &Bed) {
    for table in ["scheduler.locks", "bridge.chunk", "bridge.quarantine"] {
        let count = sqlx::query_scalar::<_, i64>(AssertSqlSafe(format!("select count(*) from {table}")));
        assert_eq!(count.fetch_one(bed.pool()).await.expect("count"), 0, "{table}");
    }
}

/// A port of 127.0.0.1 on which nobody listens.
fn closed_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// A bed's URL with another user and password.
fn with_user(url: &str, user: &str, password: &str) -> String {
    let (scheme, rest) = url.split_once("://").expect("a URL");
    let host = rest.split_once('@').map_or(rest, |(_, host)| host);
    format!("{scheme}://{user}:{password}@{host}")
}

#[tokio::test]
async fn help_and_version_are_as_they_were_agreed() {
    let folder = tempfile::tempdir().expect("a folder");
    let commands = [
        "",
        "migrate",
        "backfill",
        "mirror",
        "verify",
        "status",
        "switch",
        "finalize",
        "quarantine",
        "quarantine list",
        "quarantine show",
        "quarantine accept",
        "stray",
        "stray list",
        "stray accept",
        "simulate",
        "demo",
        "completions",
    ];
    for name in commands {
        let mut arguments: Vec<&str> = name.split_whitespace().collect();
        arguments.push("--help");
        let mut command = bare(folder.path(), &arguments);
        // The values of the environment stay out of the help.
        command.env("COLUMNS", "100").env("BRIDGE_MONGO_URL", format!("mongodb://me:{PASSWORD}@host"));
        let help = ended(command).await;
        help.says(0, &[]);
        insta::assert_snapshot!(format!("help {name}").trim().replace(' ', "-"), help.stdout);
    }
}

#[tokio::test]
async fn an_unreachable_server_is_named_and_the_password_is_not() {
    let bed = filled().await;
    let port = closed_port();
    for arguments in MOVING {
        let mut command = bed.bridge(arguments);
        command.env("BRIDGE_MONGO_URL", format!("mongodb://me:{PASSWORD}@127.0.0.1:{port}/?replicaSet=rs0"));
        ended(command).await.says(3, &["could not reach MongoDB", &port.to_string(), "hint:", "BRIDGE_MONGO_URL"]);
    }
    for arguments in [MOVING[0], MOVING[1], &["migrate"], &["quarantine", "list"]] {
        let mut command = bed.bridge(arguments);
        command.env("BRIDGE_POSTGRES_URL", format!("postgres://me:{PASSWORD}@127.0.0.1:{port}/db"));
        ended(command)
            .await
            .says(4, &["could not reach PostgreSQL", &port.to_string(), "hint:", "BRIDGE_POSTGRES_URL"]);
    }
    assert_untouched(&bed).await;
}

#[tokio::test]
async fn a_wrong_url_is_a_usage_error_that_shows_a_right_one() {
    let bed = filled().await;
    let wrong_mongo = [
        format!("http://me:{PASSWORD}@host"),
        format!("mongodb://me:{PASSWORD}@ss@host/"),
        format!("mongodb://me:{PASSWORD}@host:port/"),
        "localhost:27017".to_owned(),
    ];
    for url in wrong_mongo {
        let mut command = bed.bridge(&["backfill"]);
        command.env("BRIDGE_MONGO_URL", url);
        ended(command).await.says(2, &["the MongoDB URL is not valid", "hint:", "mongodb://user:password@host"]);
    }
    let wrong_postgres = [
        format!("mysql://me:{PASSWORD}@host/db"),
        format!("postgres://me:{PASSWORD}@host:port/db"),
        format!("postgres://me:{PASSWORD}/x@host/db"),
        "localhost".to_owned(),
    ];
    for url in wrong_postgres {
        let mut command = bed.bridge(&["migrate"]);
        command.env("BRIDGE_POSTGRES_URL", url);
        ended(command).await.says(2, &["the PostgreSQL URL is not valid", "hint:", "postgres://user:password@host"]);
    }
}

#[tokio::test]
async fn a_wrong_password_is_told_apart_from_an_unreachable_server() {
    let bed = filled().await;
    let server = MongoServer::start_with_authentication().await.expect("a server with users");
    for arguments in MOVING {
        let mut command = bed.bridge(arguments);
        command.env("BRIDGE_MONGO_URL", with_user(&server.url(), "root", PASSWORD));
        ended(command).await.says(3, &["MongoDB refused the user or the password", "authSource"]);
    }
    let user = user_of(&bed.postgres_url);
    for user in [user.as_str(), "nobody_of_this_name"] {
        let mut command = bed.bridge(&["migrate"]);
        command.env("BRIDGE_POSTGRES_URL", with_user(&bed.postgres_url, user, PASSWORD));
        ended(command).await.says(4, &["PostgreSQL refused the user or the password", "28P01", "BRIDGE_POSTGRES_URL"]);
    }
}

fn user_of(url: &str) -> String {
    let (_, rest) = url.split_once("://").expect("a URL");
    rest.split([':', '@']).next().expect("a user").to_owned()
}

#[tokio::test]
async fn a_missing_database_is_named_with_those_there_are() {
    let bed = filled().await;
    for arguments in MOVING {
        let mut command = bed.bridge(arguments);
        command.env("BRIDGE_MONGO_DATABASE", "no_such_database");
        ended(command).await.says(3, &["no_such_database", bed.database.name(), "BRIDGE_MONGO_DATABASE"]);
    }
    let mut command = bed.bridge(&["migrate"]);
    command.env("BRIDGE_POSTGRES_URL", bed.postgres_url.replace(bed.database.name(), "no_such_database"));
    ended(command).await.says(4, &["no_such_database", "createdb"]);
}

#[tokio::test]
async fn a_missing_privilege_in_mongodb_is_named() {
    let bed = filled().await;
    let server = MongoServer::start_with_authentication().await.expect("a server with users");
    let client = mongodb::Client::with_uri_str(server.url()).await.expect("a client");
    client.database("theirs").collection("runs").insert_one(doc! { "_id": "one" }).await.expect("insert");
    let create = doc! { "createUser": "reader", "pwd": PASSWORD, "roles": [{ "role": "read", "db": "other" }] };
    client.database("admin").run_command(create).await.expect("create a user");
    for arguments in MOVING {
        let mut command = bed.bridge(arguments);
        command.env("BRIDGE_MONGO_URL", with_user(&server.url(), "reader", PASSWORD));
        command.env("BRIDGE_MONGO_DATABASE", "theirs");
        ended(command).await.says(3, &["did not allow", "theirs", "code 13", "role readWrite"]);
    }
    let mut command = bed.bridge(&["backfill"]);
    command.env("BRIDGE_MONGO_URL", server.url().replacen(&format!("{}@", userinfo(&server.url())), "", 1));
    ended(command).await.says(3, &["code 13", "role readWrite"]);
    assert_untouched(&bed).await;
}

fn userinfo(url: &str) -> &str {
    let (_, rest) = url.split_once("://").expect("a URL");
    rest.split_once('@').expect("a user").0
}

#[tokio::test]
async fn a_missing_privilege_in_postgresql_is_named() {
    let bed = filled().await;
    let role = format!("weak_{}", bed.database.name());
    let create = format!("create role {role} login password '{PASSWORD}'");
    bed.pool().execute(AssertSqlSafe(create)).await.expect("create a role");
    let url = with_user(&bed.postgres_url, &role, PASSWORD);
    for arguments in [MOVING[0], MOVING[1], &["migrate"], &["quarantine", "list"]] {
        let mut command = bed.bridge(arguments);
        command.env("BRIDGE_POSTGRES_URL", &url);
        ended(command).await.says(4, &["permission denied", "42501", "hint: give the user"]);
    }
    emptied(&bed).await;
    let mut command = bed.bridge(&["migrate"]);
    command.env("BRIDGE_POSTGRES_URL", &url);
    ended(command).await.says(4, &["permission denied for database", "42501", "grant create"]);
    bed.pool().execute(AssertSqlSafe(format!("drop role {role}"))).await.expect("drop the role");
}

#[tokio::test]
async fn a_standalone_mongodb_is_refused_with_the_way_to_convert_it() {
    let bed = filled().await;
    let server = MongoServer::start_standalone().await.expect("a server");
    for arguments in MOVING {
        let mut command = bed.bridge(arguments);
        command.env("BRIDGE_MONGO_URL", server.url());
        ended(command).await.says(3, &["standalone", "--replSet", "rs.initiate()"]);
    }
    assert_untouched(&bed).await;
}

#[tokio::test]
async fn an_unmigrated_schema_is_refused_with_the_command_to_run() {
    let bed = filled().await;
    emptied(&bed).await;
    for arguments in [MOVING[0], MOVING[1], &["quarantine", "list"]] {
        ended(bed.bridge(arguments)).await.says(4, &["not up to date", "0001_scheduler.sql", "run `bridge migrate`"]);
    }
    let left: bool =
        sqlx::query_scalar("select to_regnamespace('bridge') is not null").fetch_one(bed.pool()).await.expect("look");
    assert!(!left, "a refused command made a schema");
}

#[tokio::test]
async fn an_unknown_collection_is_a_usage_error_that_lists_the_eleven() {
    let folder = tempfile::tempdir().expect("a folder");
    let names: Vec<&str> = scheduler_bridge::entity::ENTITIES.iter().map(|entity| entity.name).collect();
    assert_eq!(names.len(), 11);
    for arguments in [&["backfill", "rnus"][..], &["verify", "--collection", "rnus"], &["quarantine", "list", "rnus"]] {
        let ended = ended(bare(folder.path(), arguments)).await;
        ended.says(2, &["rnus"]);
        ended.says(2, &names);
    }
}

#[tokio::test]
async fn a_missing_setting_names_the_variable_and_the_file() {
    let folder = tempfile::tempdir().expect("a folder");
    ended(bare(folder.path(), &["migrate"])).await.says(2, &["PostgreSQL", "BRIDGE_POSTGRES_URL", "bridge.toml"]);
    let mut command = bare(folder.path(), &["backfill"]);
    command.env("BRIDGE_POSTGRES_URL", "postgres://127.0.0.1:1/db");
    ended(command).await.says(2, &["MongoDB", "BRIDGE_MONGO_URL", "mongo-url"]);
}

#[tokio::test]
async fn the_file_yields_to_the_environment_and_that_to_the_flag() {
    let folder = tempfile::tempdir().expect("a folder");
    let ports: [u16; 3] = std::array::from_fn(|_| closed_port());
    let url = |port: u16| format!("postgres://127.0.0.1:{port}/db");
    std::fs::write(folder.path().join("bridge.toml"), format!("postgres-url = \"{}\"\n", url(ports[0])))
        .expect("a file");
    ended(bare(folder.path(), &["migrate"])).await.says(4, &[&format!("127.0.0.1:{}:", ports[0])]);
    let environment = |arguments: &[&str]| {
        let mut command = bare(folder.path(), arguments);
        command.env("BRIDGE_POSTGRES_URL", url(ports[1]));
        command
    };
    ended(environment(&["migrate"])).await.says(4, &[&format!("127.0.0.1:{}:", ports[1])]);
    for arguments in [["migrate", "--postgres-url", &url(ports[2])], ["--postgres-url", &url(ports[2]), "migrate"]] {
        ended(environment(&arguments)).await.says(4, &[&format!("127.0.0.1:{}:", ports[2])]);
    }
}

#[tokio::test]
async fn a_bad_settings_file_is_a_usage_error_without_its_password() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("mine.toml");
    let named = |arguments: &[&str]| {
        let mut command = bare(folder.path(), arguments);
        command.env("BRIDGE_CONFIG", &file);
        command
    };
    ended(named(&["migrate"])).await.says(2, &["mine.toml", "BRIDGE_CONFIG"]);
    std::fs::write(&file, format!("\nmongo-uri = \"mongodb://me:{PASSWORD}@host\"\n")).expect("a file");
    ended(named(&["migrate"])).await.says(2, &["line 2", "mongo-uri", "mongo-url", "postgres-url", "workers"]);
    std::fs::write(&file, format!("mongo-url = \"mongodb://me:{PASSWORD}@host\n")).expect("a file");
    ended(named(&["migrate"])).await.says(2, &["line 1", "hint:"]);
}

#[tokio::test]
async fn a_password_in_the_command_line_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let mongo = format!("mongodb://me:{PASSWORD}@host");
    let postgres = format!("--postgres-url=postgres://me:{PASSWORD}@host/db");
    for (arguments, variable) in [
        (["backfill", "--mongo-url", &mongo], "BRIDGE_MONGO_URL"),
        (["migrate", &postgres, "--json"], "BRIDGE_POSTGRES_URL"),
        (["backfill", &mongo, "--dry-run"], "BRIDGE_MONGO_URL"),
    ] {
        ended(bare(folder.path(), &arguments)).await.says(2, &["every user of this machine", variable, "bridge.toml"]);
    }
}

#[tokio::test]
async fn with_json_a_failure_is_an_object_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let port = closed_port();
    let mut command = bare(folder.path(), &["migrate", "--json"]);
    command.env("BRIDGE_POSTGRES_URL", format!("postgres://me:{PASSWORD}@127.0.0.1:{port}/db"));
    let failed = ended(command).await;
    failed.says(4, &["error: could not reach PostgreSQL"]);
    let object: serde_json::Value = serde_json::from_str(&failed.stdout).expect("one object");
    assert_eq!(object["exit"], 4);
    assert!(object["error"].as_str().expect("text").contains("could not reach PostgreSQL"));
    assert!(object["hint"].as_str().expect("text").contains("BRIDGE_POSTGRES_URL"));
    let misspelt = ended(bare(folder.path(), &["backfill", "rnus", "--json"])).await;
    misspelt.says(2, &["rnus"]);
    let object: serde_json::Value = serde_json::from_str(&misspelt.stdout).expect("one object");
    assert_eq!(object["exit"], 2);
}

#[tokio::test]
async fn logs_go_to_stderr_without_the_password() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = bare(folder.path(), &["migrate"]);
    let port = closed_port();
    let url = format!("postgres://me:{PASSWORD}@127.0.0.1:{port}/db?nonsense={PASSWORD}");
    command.env("BRIDGE_POSTGRES_URL", url).env("BRIDGE_LOG", "trace");
    let logged = ended(command).await;
    logged.says(4, &["ignoring unrecognized connect parameter", "***"]);
    assert_eq!(logged.stdout, "");
    let mut command = bare(folder.path(), &["migrate"]);
    command.env("BRIDGE_LOG", "loud=very");
    ended(command).await.says(2, &["BRIDGE_LOG"]);
}

#[tokio::test]
async fn a_reader_that_goes_away_is_no_panic() {
    let folder = tempfile::tempdir().expect("a folder");
    for arguments in [&["completions", "bash"][..], &["--help"], &["completions", "zsh", "--json"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = bare(folder.path(), arguments);
        command.stdout(writer).stderr(Stdio::piped());
        let child = command.spawn().expect("run bridge");
        let left: Ended = child.wait_with_output().expect("wait").into();
        left.says(0, &[]);
        assert_eq!(left.stderr, "", "{arguments:?}");
    }
}

#[tokio::test]
async fn every_shell_has_completions_with_the_collections() {
    let folder = tempfile::tempdir().expect("a folder");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = ended(bare(folder.path(), &["completions", shell])).await;
        script.says(0, &[]);
        assert!(script.stdout.contains("backfill"), "{shell}");
    }
}
