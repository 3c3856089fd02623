//! A private MongoDB server.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mongodb::bson::{Document, doc};
use mongodb::options::{ClientOptions, ServerAddress};
use mongodb::{Client, Database};
use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpStream;

use super::binaries::{self, file};
use super::supervisor::{Identity, Supervisor, argument};
use super::{EmbeddedError, Stop, blocking, port, secret};

/// Options of `mongod`, names without the dashes. The oplog has the smallest size that there is, in megabytes.
const SETTINGS: &[(&str, &str)] = &[
    ("bind_ip", "127.0.0.1"),
    ("wiredTigerCacheSizeGB", "0.5"),
    ("setParameter", "diagnosticDataCollectionEnabled=false"),
];
const OPLOG_SIZE: (&str, &str) = ("oplogSize", "990");

/// A MongoDB server of our own on a port of 127.0.0.1.
///
/// Dropping it ends the server and removes its folder; this blocks for some tens of milliseconds.
#[derive(Debug)]
pub struct MongoServer {
    supervisor: Arc<Supervisor>,
    /// Program and arguments, all but the port.
    command: Vec<String>,
    /// The replica set's name, which no other server has; nothing for a server without one.
    set: Option<String>,
    /// Of user `root`; nothing when everybody may do everything.
    password: Option<SecretString>,
    role: Role,
    port: u16,
    pid: u32,
}

/// What a server is to its replica set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The only member: it is ready when it takes writes.
    Alone,
    /// One of several: it is ready when it takes reads, and may never be the one that takes writes.
    Member,
}

impl MongoServer {
    /// Starts a replica set of one node and waits until it takes writes.
    pub async fn start() -> Result<Self, EmbeddedError> {
        Self::start_with(&[]).await
    }

    /// The same with options of `mongod` (names without the dashes), which take the place of ours.
    pub async fn start_with(settings: &[(&str, &str)]) -> Result<Self, EmbeddedError> {
        Self::start_as(Some(format!("bridge-{}", secret())), None, settings).await
    }

    /// Starts a replica set of one node that knows one user, `root` with a random password; [`Self::url`] has both.
    pub async fn start_with_authentication() -> Result<Self, EmbeddedError> {
        Self::start_as(Some(format!("bridge-{}", secret())), Some(secret()), &[]).await
    }

    /// Starts a server that is no replica set: it has no oplog, no transactions and no change streams.
    pub async fn start_standalone() -> Result<Self, EmbeddedError> {
        Self::start_as(None, None, &[]).await
    }

    /// The URL for the user who may do everything.
    pub fn url(&self) -> String {
        self.url_of("")
    }

    /// The same, with a default database. `database` is a plain word: nothing is escaped.
    pub fn url_of(&self, database: &str) -> String {
        let user = self.password.as_ref().map(|password| format!("root:{}@", password.expose_secret()));
        let source = self.password.as_ref().map(|_| "authSource=admin".to_owned());
        let set = self.set.as_ref().map_or("directConnection=true".to_owned(), |set| format!("replicaSet={set}"));
        let options = [Some(set), source].into_iter().flatten().collect::<Vec<_>>().join("&");
        format!("mongodb://{}127.0.0.1:{}/{database}?{options}", user.unwrap_or_default(), self.port)
    }

    /// The process id of the server that was started last.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The folder with all that the server keeps.
    pub fn folder(&self) -> &Path {
        self.supervisor.folder()
    }

    /// Ends the server; the data stay for [`Self::start_again`].
    pub async fn stop(&mut self, how: Stop) -> Result<(), EmbeddedError> {
        let signal = match how {
            Stop::Kill => "KILL",
            Stop::Fast => "TERM",
        };
        self.supervisor.stop(signal).await
    }

    /// Starts the server on the same port with the same data and waits until it takes writes; a member of a
    /// [`MongoSet`](super::MongoSet): reads. One that runs is killed first.
    pub async fn start_again(&mut self) -> Result<(), EmbeddedError> {
        self.start_on(self.port).await?;
        let client = self.client()?;
        let ready = self.until_ready(&client.database("admin")).await;
        client.shutdown().await;
        ready
    }

    /// Starts a server that is to be a member of replica set `set`, which is not initiated yet.
    pub(super) async fn start_member(set: String) -> Result<Self, EmbeddedError> {
        let mut server = Self::launch(Some(set), None, &[]).await?;
        server.role = Role::Member;
        Ok(server)
    }

    /// Where the server listens.
    pub(super) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Leaves the server running after this process. It is removed, folder and all, once somebody ends it
    /// (`kill` and [`Self::pid`]).
    pub async fn keep(self) -> Result<(), EmbeddedError> {
        self.supervisor.keep().await
    }

    async fn start_as(
        set: Option<String>,
        password: Option<String>,
        settings: &[(&str, &str)],
    ) -> Result<Self, EmbeddedError> {
        let server = Self::launch(set, password, settings).await?;
        let client = server.client()?;
        let ready = server.initiate(&client.database("admin")).await;
        client.shutdown().await;
        ready.map(|()| server)
    }

    /// Starts the process and waits until it listens.
    async fn launch(
        set: Option<String>,
        password: Option<String>,
        settings: &[(&str, &str)],
    ) -> Result<Self, EmbeddedError> {
        let mut options = merged(set.is_some(), settings);
        if let Some(set) = &set {
            options.extend(["--replSet".to_owned(), set.clone()]);
        }
        let mut server = blocking(move || Self::prepare(options, set, password)).await?;
        port::on_a_free_one(async |port| server.start_on(port).await).await?;
        Ok(server)
    }

    fn prepare(options: Vec<String>, set: Option<String>, password: Option<String>) -> Result<Self, EmbeddedError> {
        let program = argument(&binaries::mongo()?.program("mongod"))?;
        let supervisor = Supervisor::new("mongo", "KILL", Identity::Own)?;
        let data = supervisor.folder().join("data");
        fs::create_dir(&data).map_err(file("create", &data))?;
        let mut command = vec![program, "--dbpath".to_owned(), argument(&data)?];
        command.extend(["--quiet", "--nounixsocket"].map(str::to_owned));
        command.extend(options);
        if password.is_some() {
            command.extend(["--keyFile".to_owned(), key_file(supervisor.folder())?]);
        }
        let password = password.map(SecretString::from);
        Ok(Self { supervisor, command, set, password, role: Role::Alone, port: 0, pid: 0 })
    }

    /// Starts the process and waits until it, and no other server, listens.
    async fn start_on(&mut self, port: u16) -> Result<(), EmbeddedError> {
        self.port = port;
        let mut command = self.command.clone();
        command.extend(["--port".to_owned(), port.to_string()]);
        self.pid = self.supervisor.start(command).await?;
        let log = self.supervisor.folder().join("log");
        self.supervisor.until(port, || listens(&log, port)).await
    }

    /// A client of this server alone.
    pub(super) fn client(&self) -> Result<Client, EmbeddedError> {
        let address = ServerAddress::Tcp { host: "127.0.0.1".to_owned(), port: Some(self.port) };
        let mut options = ClientOptions::builder().hosts(vec![address]).direct_connection(true).build();
        options.server_selection_timeout = Some(Duration::from_secs(5));
        Client::with_options(options).map_err(failed("open a client"))
    }

    /// Makes the server a writable replica set, and the user where one is wanted: for as long as there is none,
    /// somebody on the same machine may do both.
    async fn initiate(&self, admin: &Database) -> Result<(), EmbeddedError> {
        let Some(set) = &self.set else { return Ok(()) };
        let command = initiation(set, &[self.address()]);
        admin.run_command(command).await.map_err(failed("initiate the replica set"))?;
        self.until_ready(admin).await?;
        let Some(password) = &self.password else { return Ok(()) };
        let user = doc! { "createUser": "root", "pwd": password.expose_secret(), "roles": ["root"] };
        admin.run_command(user).await.map_err(failed("create user root")).map(|_| ())
    }

    /// Polls `probe` until it is true, or this server ends, or that takes too long.
    pub(super) async fn until<A: Future<Output = bool>>(&self, probe: impl FnMut() -> A) -> Result<(), EmbeddedError> {
        self.supervisor.until(self.port, probe).await
    }

    pub(super) async fn until_ready(&self, admin: &Database) -> Result<(), EmbeddedError> {
        let ready = async || is_writable(admin).await || (self.role == Role::Member && is(admin, "secondary").await);
        self.until(ready).await
    }
}

/// The command that makes the servers at `addresses` a replica set.
pub(super) fn initiation(set: &str, addresses: &[String]) -> Document {
    let members = (0_i32..).zip(addresses).map(|(id, host)| doc! { "_id": id, "host": host });
    let members: Vec<_> = members.collect();
    doc! { "replSetInitiate": { "_id": set, "members": members, "settings": { "electionTimeoutMillis": 1_000 } } }
}

/// Whether the server is the primary.
pub(super) async fn is_writable(admin: &Database) -> bool {
    is(admin, "isWritablePrimary").await
}

/// What the server says of itself.
async fn is(admin: &Database, quality: &str) -> bool {
    let hello: Result<Document, _> = admin.run_command(doc! { "hello": 1 }).await;
    hello.is_ok_and(|hello| hello.get_bool(quality).unwrap_or(false))
}

/// The log is our own server's word; a connection alone could be to another one that took the port.
async fn listens(log: &Path, port: u16) -> bool {
    let says_so = fs::read(log).is_ok_and(|log| String::from_utf8_lossy(&log).contains("Waiting for connections"));
    says_so && TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_ok()
}

/// Our options but those that `settings` names too, then `settings`. `setParameter` may stand several times.
fn merged(set: bool, settings: &[(&str, &str)]) -> Vec<String> {
    let named = |name: &str| name != "setParameter" && settings.iter().any(|(other, _)| *other == name);
    let ours = SETTINGS.iter().chain(set.then_some(&OPLOG_SIZE)).filter(|(name, _)| !named(name));
    ours.chain(settings).flat_map(|(name, value)| [format!("--{name}"), (*value).to_owned()]).collect()
}

/// Members of a set with users know each other by this file.
fn key_file(folder: &Path) -> Result<String, EmbeddedError> {
    let path = folder.join("key");
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    written.and_then(|mut key| key.write_all(secret().as_bytes())).map_err(file("write", &path))?;
    argument(&path)
}

pub(super) fn failed(action: &'static str) -> impl FnOnce(mongodb::error::Error) -> EmbeddedError {
    move |source| EmbeddedError::Mongo { action, source: Box::new(source) }
}
