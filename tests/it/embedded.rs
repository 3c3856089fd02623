//! The private servers: they start for everybody, and leave nothing behind however their owner ends.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use mongodb::Client;
use mongodb::bson::{Document, doc};
use rustix::process::{Pid, Signal, kill_process};
use scheduler_bridge::embedded::{EmbeddedError, MongoServer, PostgresServer, Servers, Stop};
use sqlx::{Connection, PgConnection};

use crate::bed::{Bed, until};

const LIMIT: Duration = Duration::from_secs(20);

/// Set for [`owner_that_is_ended_by_another_test`]: how it ends.
const OWNER: &str = "IT_EMBEDDED_OWNER";

/// Arguments that make this binary run that test alone.
const OWNER_TEST: [&str; 3] = ["--exact", "embedded::owner_that_is_ended_by_another_test", "--nocapture"];

/// What must be gone.
struct Traces {
    pids: Vec<u32>,
    folders: Vec<PathBuf>,
}

impl Traces {
    fn of(servers: &Servers) -> Self {
        let folders = vec![servers.mongo.folder().to_owned(), servers.postgres.folder().to_owned()];
        let mut pids = vec![servers.mongo.pid(), servers.postgres.pid()];
        pids.extend(children_of(servers.postgres.pid()));
        Self { pids, folders }
    }

    fn are_gone(&self) -> bool {
        self.pids.iter().all(|pid| !lives(*pid)) && self.folders.iter().all(|folder| !folder.exists())
    }

    /// The two servers; their children come and go.
    fn are_there(&self) -> bool {
        self.pids.iter().take(2).all(|pid| lives(*pid)) && self.folders.iter().all(|folder| folder.exists())
    }
}

fn children_of(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

/// A zombie, whose parent has not asked for its end yet, counts as dead.
fn lives(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}

fn system_process(pid: u32) -> Pid {
    i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id")
}

async fn postgres(url: &str) -> PgConnection {
    PgConnection::connect(url).await.expect("connect to PostgreSQL")
}

async fn greeting(url: &str) -> Document {
    let client = Client::with_uri_str(url).await.expect("open MongoDB");
    client.database("admin").run_command(doc! { "hello": 1 }).await.expect("hello")
}

fn is_writable(greeting: &Document) -> bool {
    greeting.get_bool("isWritablePrimary").expect("an answer to hello")
}

#[tokio::test]
async fn dropped_servers_leave_neither_processes_nor_files() {
    let servers = Servers::start().await.expect("start");
    let traces = Traces::of(&servers);
    assert!(traces.are_there());
    assert!(traces.pids.len() > 4, "no processes of PostgreSQL among {:?}", traces.pids);
    // Neither a busy client nor an idle one is an obstacle.
    let (mut busy, mut idle) = (postgres(&servers.postgres.url()).await, postgres(&servers.postgres.url()).await);
    let busy = tokio::spawn(async move { sqlx::query("select pg_sleep(60)").execute(&mut busy).await });
    let sleeping = async {
        let query = "select exists (select from pg_stat_activity where wait_event = 'PgSleep')";
        while !sqlx::query_scalar::<_, bool>(query).fetch_one(&mut idle).await.expect("look") {}
    };
    tokio::time::timeout(LIMIT, sleeping).await.expect("one client is busy");
    drop(servers);
    assert!(traces.are_gone());
    assert!(busy.await.expect("join").is_err());
    assert!(idle.ping().await.is_err());
}

#[tokio::test]
async fn several_servers_of_a_kind_run_at_once() {
    let (one, two, three) =
        tokio::try_join!(Servers::start(), Servers::start(), PostgresServer::start_with(&[("max_connections", "7")]))
            .expect("start");
    let mut connection = postgres(&three.url()).await;
    let limit: String = sqlx::query_scalar("show max_connections").fetch_one(&mut connection).await.expect("show");
    assert_eq!(limit, "7");
    let urls = [one.postgres.url(), two.postgres.url(), three.url(), one.mongo.url(), two.mongo.url()];
    assert!(urls.iter().enumerate().all(|(at, url)| !urls[..at].contains(url)));
    drop(two);
    assert!(is_writable(&greeting(&one.mongo.url()).await));
    postgres(&one.postgres.url()).await.ping().await.expect("ping");
}

#[tokio::test]
async fn an_owner_killed_by_sigkill_leaves_nothing() {
    an_owner_that_ends_leaves_nothing("waits", Some(Signal::KILL)).await;
}

#[tokio::test]
async fn an_owner_interrupted_by_ctrl_c_leaves_nothing() {
    an_owner_that_ends_leaves_nothing("waits", Some(Signal::INT)).await;
}

#[tokio::test]
async fn an_owner_that_panics_leaves_nothing() {
    an_owner_that_ends_leaves_nothing("panics", None).await;
}

#[tokio::test]
async fn servers_in_a_static_leave_nothing_when_the_process_exits() {
    an_owner_that_ends_leaves_nothing("exits", None).await;
}

async fn an_owner_that_ends_leaves_nothing(how: &str, signal: Option<Signal>) {
    let mut owner = Owner::start(&mut this_program(how));
    if let Some(signal) = signal {
        assert!(owner.traces.are_there());
        kill_process(system_process(owner.process.id()), signal).expect("send the signal");
    }
    // A shell has its background jobs ignore SIGINT, and whoever they start.
    let has_ended = || {
        let ended = owner.process.try_wait().expect("look at the owner").is_some();
        async move { ended }
    };
    until("the owner has ended (is SIGINT ignored here?)", LIMIT, has_ended).await;
    until("processes and folders are gone", LIMIT, async || owner.traces.are_gone()).await;
}

/// This test binary, told to run one test only: the one that owns servers.
fn this_program(how: &str) -> Command {
    let mut command = Command::new(env::current_exe().expect("our path"));
    command.args(OWNER_TEST).env(OWNER, how);
    command
}

/// A process that owns servers.
struct Owner {
    process: Child,
    traces: Traces,
    /// Held, for a process whose output nobody reads fails.
    _output: BufReader<ChildStdout>,
}

impl Owner {
    /// Starts the process and reads from it which servers it has.
    fn start(command: &mut Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("start the owner");
        let mut output = BufReader::new(process.stdout.take().expect("a pipe"));
        let mut traces = Traces { pids: Vec::new(), folders: Vec::new() };
        for line in output.by_ref().lines() {
            match line.expect("a line").split_once('=') {
                Some(("pid", pid)) => traces.pids.push(pid.parse().expect("a process id")),
                Some(("folder", folder)) => traces.folders.push(folder.into()),
                Some(("told", _)) => return Self { process, traces, _output: output },
                _ => {}
            }
        }
        panic!("the owner of the servers ended before it had any");
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if let Err(error) = self.process.kill().and_then(|()| self.process.wait()) {
            println!("the owner of servers could not be ended: {error}");
        }
    }
}

/// Does nothing by itself: other tests run it in a process of its own.
#[tokio::test]
async fn owner_that_is_ended_by_another_test() {
    let Some(how) = env::var_os(OWNER) else { return };
    let servers = Servers::start().await.expect("start");
    let traces = Traces::of(&servers);
    println!();
    traces.pids.iter().for_each(|pid| println!("pid={pid}"));
    traces.folders.iter().for_each(|folder| println!("folder={}", folder.display()));
    println!("told=all");
    match how.to_str() {
        Some("panics") => panic!("as we were told"),
        Some("exits") => std::process::exit(0),
        Some("returns") => {}
        _ => std::future::pending().await,
    }
}

#[tokio::test]
async fn postgres_restarted_on_its_port_keeps_acknowledged_rows() {
    let mut server = PostgresServer::start().await.expect("start");
    let mut connection = postgres(&server.url()).await;
    sqlx::query("create table kept (how text)").execute(&mut connection).await.expect("create");
    for how in [Stop::Kill, Stop::Fast] {
        let mut connection = postgres(&server.url()).await;
        let name = format!("{how:?}");
        sqlx::query("insert into kept values ($1)").bind(&name).execute(&mut connection).await.expect("insert");
        let (url, pid, children) = (server.url(), server.pid(), children_of(server.pid()));
        server.stop(how).await.expect("stop");
        assert!(!lives(pid));
        // Children of a killed server notice its end by themselves.
        let ended = async || !children.iter().copied().any(lives);
        until("the server's children have ended", LIMIT, ended).await;
        assert!(PgConnection::connect(&url).await.is_err());
        server.start_again().await.expect("start again");
        assert_eq!(server.url(), url);
        let query = sqlx::query_scalar("select count(*) from kept where how = $1").bind(name);
        let kept: i64 = query.fetch_one(&mut postgres(&url).await).await.expect("select");
        assert_eq!(kept, 1);
    }
}

#[tokio::test]
async fn mongo_restarted_on_its_port_keeps_acknowledged_documents() {
    let mut server = MongoServer::start().await.expect("start");
    let client = Client::with_uri_str(server.url()).await.expect("open");
    let kept = client.database("bed").collection::<Document>("kept");
    for how in [Stop::Kill, Stop::Fast] {
        kept.insert_one(doc! { "_id": format!("{how:?}") }).await.expect("insert");
        let (url, pid) = (server.url(), server.pid());
        server.stop(how).await.expect("stop");
        assert!(!lives(pid));
        server.start_again().await.expect("start again");
        assert_eq!(server.url(), url);
        assert!(kept.find_one(doc! { "_id": format!("{how:?}") }).await.expect("find").is_some());
    }
}

#[tokio::test]
async fn a_killed_postgres_that_is_never_started_again_leaves_no_shared_memory() {
    let mut server = PostgresServer::start().await.expect("start");
    let lock = fs::read_to_string(server.folder().join("data/postmaster.pid")).expect("read the lock file");
    let id = lock.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)).expect("an id").to_owned();
    let held = |id: &str| {
        let segments = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
        segments.lines().any(|line| line.split_whitespace().nth(1) == Some(id))
    };
    assert!(held(&id));
    server.stop(Stop::Kill).await.expect("kill");
    drop(server);
    assert!(!held(&id));
}

#[tokio::test]
async fn a_paused_server_is_removed_too() {
    let servers = Servers::start().await.expect("start");
    let traces = Traces::of(&servers);
    for pid in [servers.mongo.pid(), servers.postgres.pid()] {
        kill_process(system_process(pid), Signal::STOP).expect("pause");
    }
    drop(servers);
    assert!(traces.are_gone());
}

#[tokio::test]
async fn a_kept_server_is_removed_once_somebody_ends_it() {
    let server = PostgresServer::start().await.expect("start");
    let (url, pid, folder) = (server.url(), server.pid(), server.folder().to_owned());
    server.keep().await.expect("keep");
    postgres(&url).await.ping().await.expect("ping");
    kill_process(system_process(pid), Signal::INT).expect("end");
    until("the folder is gone", LIMIT, async || !folder.exists()).await;
    assert!(!lives(pid));
}

#[tokio::test]
async fn postgres_refuses_a_wrong_password() {
    let server = PostgresServer::start().await.expect("start");
    let (user, host) = server.url().rsplit_once('@').map(|(a, b)| (a.to_owned(), b.to_owned())).expect("a user");
    let wrong = format!("{}0@{host}", user);
    let refused = PgConnection::connect(&wrong).await.expect_err("a wrong password");
    assert_eq!(refused.as_database_error().and_then(|error| error.code()).as_deref(), Some("28P01"));
}

#[tokio::test]
async fn mongo_with_authentication_knows_only_its_users() {
    let mut server = MongoServer::start_with_authentication().await.expect("start");
    let (start, host) = server.url().split_once('@').map(|(a, b)| (a.to_owned(), b.to_owned())).expect("a user");
    let refused = async |url: String| {
        let client = Client::with_uri_str(url).await.expect("open");
        client.list_database_names().await.is_err()
    };
    let root = Client::with_uri_str(server.url()).await.expect("open");
    let reader = doc! { "createUser": "reader", "pwd": "word", "roles": [{ "role": "read", "db": "bed" }] };
    root.database("admin").run_command(reader).await.expect("create a user");
    assert!(refused(format!("{start}0@{host}")).await);
    assert!(refused(format!("mongodb://{host}")).await);
    let reader = Client::with_uri_str(format!("mongodb://reader:word@{host}")).await.expect("open");
    let kept = reader.database("bed").collection::<Document>("kept");
    assert!(kept.find_one(doc! {}).await.expect("read").is_none());
    assert!(kept.insert_one(doc! { "_id": 1 }).await.is_err());
    server.stop(Stop::Fast).await.expect("stop");
    server.start_again().await.expect("start again");
    root.list_database_names().await.expect("the user stays");
}

#[tokio::test]
async fn a_standalone_mongo_is_no_replica_set() {
    let server = MongoServer::start_standalone().await.expect("start");
    let greeting = greeting(&server.url()).await;
    assert!(greeting.get("setName").is_none());
    assert!(is_writable(&greeting));
}

#[tokio::test]
async fn a_setting_the_server_does_not_know_fails_with_its_log() {
    let error = PostgresServer::start_with(&[("no_such_setting", "1")]).await.expect_err("no such setting");
    assert!(matches!(&error, EmbeddedError::Died { log, .. } if log.contains("no_such_setting")), "{error}");
    let error = MongoServer::start_with(&[("noSuchOption", "1")]).await.expect_err("no such option");
    assert!(matches!(&error, EmbeddedError::Died { log, .. } if log.contains("noSuchOption")), "{error}");
}

#[tokio::test]
async fn servers_start_for_an_ordinary_user() {
    if !rustix::process::geteuid().is_root() {
        return; // then every other test shows it
    }
    let home = home_of_nobody();
    let mut program = Command::new(home.path().join("it"));
    program.args(OWNER_TEST).env(OWNER, "returns");
    program.uid(NOBODY).gid(NOBODY).current_dir(home.path()).env("HOME", home.path());
    program.env("XDG_CACHE_HOME", home.path().join("cache")).env("TMPDIR", home.path().join("tmp"));
    let mut owner = Owner::start(&mut program);
    assert!(owner.process.wait().expect("wait").success());
    assert!(owner.traces.are_gone());
    assert!(owner.traces.folders.iter().all(|folder| folder.starts_with(home.path())));
}

const NOBODY: u32 = 65_534;

/// A folder of user nobody: this program, a copy of our cache, room for temporary files.
fn home_of_nobody() -> tempfile::TempDir {
    let home = tempfile::tempdir().expect("a folder");
    let path = home.path();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("open the folder");
    fs::copy(env::current_exe().expect("our path"), path.join("it")).expect("copy this program");
    for folder in ["cache", "tmp"] {
        fs::create_dir(path.join(folder)).expect("create a folder");
    }
    let ours = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let ours = ours.or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".cache"))).expect("a home");
    if ours.join("scheduler-bridge").exists() {
        let copied = Command::new("cp").arg("-r").arg(ours.join("scheduler-bridge")).arg(path.join("cache")).status();
        assert!(copied.expect("run cp").success());
    }
    let given = Command::new("chown").arg("-R").arg(format!("{NOBODY}:{NOBODY}")).arg(path).status();
    assert!(given.expect("run chown").success());
    home
}

#[tokio::test]
async fn every_bed_has_databases_of_its_own_that_go_with_it() {
    let (one, two) = tokio::join!(Bed::new(), Bed::new());
    assert_ne!(one.database.name(), two.database.name());
    sqlx::query("create table marks (id text)").execute(one.pool()).await.expect("create");
    let seen: Option<String> =
        sqlx::query_scalar("select to_regclass('marks')::text").fetch_one(two.pool()).await.expect("look");
    assert_eq!(seen, None);
    one.database.collection::<Document>("marks").insert_one(doc! {}).await.expect("insert");
    let name = one.database.name().to_owned();
    drop(one);
    let names: Vec<String> =
        sqlx::query_scalar("select datname from pg_database").fetch_all(two.pool()).await.expect("list");
    assert!(!names.contains(&name));
    assert!(!two.mongo.list_database_names().await.expect("list").contains(&name));
}

#[tokio::test]
async fn the_bridge_is_aimed_at_the_bed() {
    let mut bed = Bed::with_own_servers().await;
    let command = bed.bridge(&["--version"]);
    let given: Vec<_> =
        command.get_envs().filter_map(|(name, value)| Some((name.to_str()?, value?.to_str()?))).collect();
    assert!(given.contains(&("BRIDGE_POSTGRES_URL", bed.postgres_url.as_str())));
    assert!(given.contains(&("BRIDGE_MONGO_URL", bed.mongo_url.as_str())));
    assert!(given.contains(&("BRIDGE_MONGO_DATABASE", bed.database.name())));
    bed.servers().postgres.stop(Stop::Kill).await.expect("stop");
    assert!(PgConnection::connect(&bed.postgres_url).await.is_err());
    bed.servers().postgres.start_again().await.expect("start again");
    sqlx::query("select 1").execute(bed.pool()).await.expect("the same URL");
}
