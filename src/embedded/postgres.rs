//! A private PostgreSQL server.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{ConnectOptions, Connection};

use super::binaries::{self, Distribution, file, give};
use super::supervisor::{Identity, Supervisor, argument};
use super::{EmbeddedError, Stop, blocking, port, secret};

/// A throwaway server: it need not survive a failure of the machine, only the death of its processes. Therefore nothing
/// is flushed to the disk, but every commit is handed to the system before it is acknowledged.
const SETTINGS: &[(&str, &str)] = &[
    ("listen_addresses", "127.0.0.1"),
    ("unix_socket_directories", ""),
    ("max_connections", "200"),
    ("shared_buffers", "256MB"),
    ("max_wal_size", "4GB"),
    ("fsync", "off"),
    ("full_page_writes", "off"),
    // Files in the server's folder: other kinds outlive a server that is killed.
    ("dynamic_shared_memory_type", "mmap"),
];

/// A PostgreSQL server of our own on a port of 127.0.0.1, with one superuser, who has a random password.
///
/// Dropping it ends the server and removes its folder; this blocks for some tens of milliseconds.
#[derive(Debug)]
pub struct PostgresServer {
    supervisor: Arc<Supervisor>,
    /// Program and arguments, all but the port.
    command: Vec<String>,
    password: SecretString,
    port: u16,
    pid: u32,
}

impl PostgresServer {
    /// Starts a server with a fresh, empty data folder, within a second once the programs are there.
    pub async fn start() -> Result<Self, EmbeddedError> {
        Self::start_with(&[]).await
    }

    /// The same with settings of `postgresql.conf`, which precede ours.
    pub async fn start_with(settings: &[(&str, &str)]) -> Result<Self, EmbeddedError> {
        let options = SETTINGS.iter().chain(settings);
        let options: Vec<String> =
            options.flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]).collect();
        let mut server = blocking(move || Self::prepare(options)).await?;
        port::on_a_free_one(async |port| server.start_on(port).await).await?;
        Ok(server)
    }

    /// The URL of database `postgres`, for the superuser.
    pub fn url(&self) -> String {
        self.url_of("postgres")
    }

    /// The URL of a database, for the superuser. `database` is a plain word: nothing is escaped.
    pub fn url_of(&self, database: &str) -> String {
        format!("postgres://postgres:{}@127.0.0.1:{}/{database}", self.password.expose_secret(), self.port)
    }

    /// The process id of the postmaster that was started last.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The folder with all that the server keeps.
    pub fn folder(&self) -> &Path {
        self.supervisor.folder()
    }

    /// Ends the server, all its processes; the data stay for [`Self::start_again`].
    pub async fn stop(&mut self, how: Stop) -> Result<(), EmbeddedError> {
        let signal = match how {
            Stop::Kill => "KILL",
            Stop::Fast => "INT",
        };
        self.supervisor.stop(signal).await
    }

    /// Starts the server on the same port with the same data and waits until it answers. One that runs is killed first.
    pub async fn start_again(&mut self) -> Result<(), EmbeddedError> {
        self.start_on(self.port).await
    }

    /// Leaves the server running after this process. It is removed, folder and all, once somebody ends it
    /// (`kill -INT` and [`Self::pid`]).
    pub async fn keep(self) -> Result<(), EmbeddedError> {
        self.supervisor.keep().await
    }

    fn prepare(options: Vec<String>) -> Result<Self, EmbeddedError> {
        let programs = binaries::postgres()?;
        let root = rustix::process::geteuid().is_root();
        let identity = if root { Identity::Nobody } else { Identity::Own };
        let supervisor = Supervisor::new("postgres", "QUIT", identity)?;
        let programs = if root { programs.for_nobody(supervisor.folder())? } else { programs };
        let password = secret();
        initialise(&supervisor, &programs, &password)?;
        let data = argument(&supervisor.folder().join("data"))?;
        let mut command = vec![argument(&programs.program("postgres"))?, "-D".to_owned(), data];
        command.extend(options);
        Ok(Self { supervisor, command, password: password.into(), port: 0, pid: 0 })
    }

    async fn start_on(&mut self, port: u16) -> Result<(), EmbeddedError> {
        self.port = port;
        let mut command = self.command.clone();
        command.extend(["-p".to_owned(), port.to_string()]);
        self.pid = self.supervisor.start(command).await?;
        let options = self.options();
        self.supervisor.until(port, || answers(&options)).await
    }

    fn options(&self) -> PgConnectOptions {
        let options = PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(self.port).username("postgres");
        let options = options.database("postgres").password(self.password.expose_secret());
        options.ssl_mode(PgSslMode::Disable).disable_statement_logging()
    }
}

/// Only our own server takes the password: another one that has the port is never mistaken for it.
async fn answers(options: &PgConnectOptions) -> bool {
    match PgConnection::connect_with(options).await {
        Ok(connection) => connection.close().await.is_ok(),
        Err(_) => false,
    }
}

/// Makes the data folder. The password goes through a file: everybody could see it among the arguments.
fn initialise(supervisor: &Supervisor, programs: &Distribution, password: &str) -> Result<(), EmbeddedError> {
    let path = supervisor.folder().join("password");
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    written.and_then(|mut secret| secret.write_all(password.as_bytes())).map_err(file("write", &path))?;
    if rustix::process::geteuid().is_root() {
        give(&path).map_err(file("give away", &path))?;
    }
    let data = argument(&supervisor.folder().join("data"))?;
    let mut command = vec![argument(&programs.program("initdb"))?, format!("--pgdata={data}")];
    command.push(format!("--pwfile={}", argument(&path)?));
    let fixed = ["--auth=scram-sha-256", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync"];
    command.extend(fixed.map(str::to_owned));
    supervisor.run(&command)?;
    std::fs::remove_file(&path).map_err(file("remove", &path))
}
