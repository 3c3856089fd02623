//! Opens MongoDB: a replica set the bridge can read from, and what it means when it cannot.

use std::time::Duration;

use mongodb::bson::{Document, doc};
use mongodb::error::{Error, ErrorKind, WriteFailure};
use mongodb::options::ClientOptions;
use mongodb::{Client, Database};
use secrecy::{ExposeSecret, SecretString};
use uuid::Uuid;

use crate::entity::ENTITIES;
use crate::secret::Secrets;

/// The name under which the bridge's connections stand in `$currentOp`; those of an application's process have the name of
/// the database and an id behind it.
pub const APPLICATION: &str = "scheduler-bridge";

/// How long the driver looks for a member that can serve an operation.
pub const SELECTION_WAIT: Duration = Duration::from_secs(5);

/// How long one connection may take to come about.
pub const CONNECT_WAIT: Duration = Duration::from_secs(5);

/// Oldest supported server.
pub const OLDEST: (i32, i32) = (4, 4);

/// The first server that keeps the documents after their updates, of collections that ask for it.
const WITH_POST_IMAGES: (i32, i32) = (6, 0);

/// An open MongoDB database.
#[derive(Debug, Clone)]
pub struct Source {
    client: Client,
    database: Database,
    version: (i32, i32),
}

/// A driver's error, told as a person would: the driver's own text repeats labels, sources and the server's whole reply.
#[derive(Debug, Clone)]
pub struct DriverError(pub Error);

impl std::fmt::Display for DriverError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.kind.as_ref() {
            ErrorKind::Command(error) => {
                write!(f, "{} (code {} {})", without_command(&error.message), error.code, error.code_name)
            }
            ErrorKind::ServerSelection { message, .. } => f.write_str(&without_labels(message)),
            kind => write!(f, "{kind}"),
        }
    }
}

/// A refusal repeats the whole command; its name says as much.
fn without_command(message: &str) -> String {
    match message.split_once(" to execute command { ") {
        Some((refusal, command)) => {
            format!("{refusal} to execute command {}", command.split(':').next().unwrap_or_default())
        }
        None => message.to_owned(),
    }
}

/// The view of the servers holds an error for each, with labels and sources that say nothing to a person.
fn without_labels(message: &str) -> String {
    let mut parts = message.split(", labels: {");
    let mut text = parts.next().unwrap_or_default().replace("Error: Kind: ", "Error: ");
    for part in parts {
        text.push_str(part.split_once("server response: ").map_or("", |(_, rest)| rest.trim_start_matches("None")));
    }
    text
}

impl std::error::Error for DriverError {}

impl From<Error> for DriverError {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

/// Why MongoDB cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The URL cannot be read. The reason carries no password.
    #[error("the MongoDB URL is not valid: {reason}")]
    Url {
        /// What is wrong with it.
        reason: String,
    },
    /// No server answers, or the replica set has no primary.
    #[error("could not reach MongoDB")]
    Unreachable {
        /// The driver's answer.
        source: DriverError,
    },
    /// Servers answer, but have not been joined into a replica set yet.
    #[error("the MongoDB server was started for a replica set, but the set was never initiated")]
    Uninitiated,
    /// Wrong user, password or authentication database.
    #[error("MongoDB refused the user or the password")]
    Authentication {
        /// The driver's answer.
        source: DriverError,
    },
    /// The user may not do what the bridge must do.
    #[error("MongoDB did not allow the user to {attempted}")]
    Privilege {
        /// What was attempted.
        attempted: String,
        /// The server's answer.
        source: DriverError,
    },
    /// A single server without a replica set: no snapshots, no change streams.
    #[error("MongoDB runs as a standalone server: the bridge needs a replica set (one member is enough)")]
    Standalone,
    /// The server is too old.
    #[error("MongoDB {version} is too old: the bridge needs {}.{} or newer", OLDEST.0, OLDEST.1)]
    Version {
        /// The server's version.
        version: String,
    },
    /// The database has none of the scheduler's collections.
    #[error("the MongoDB database {database:?} has none of the scheduler's collections{}", visible(databases))]
    MissingDatabase {
        /// The database asked for.
        database: String,
        /// The databases the user may see; empty when listing is not allowed.
        databases: Vec<String>,
    },
    /// Anything else.
    #[error("could not {attempted}")]
    Command {
        /// What was attempted.
        attempted: String,
        /// The driver's answer.
        source: DriverError,
    },
}

impl SourceError {
    /// The kind of a failure while doing `attempted` (`"read runs, chunk 7"`).
    pub fn of(attempted: impl Into<String>, error: Error) -> Self {
        let attempted = attempted.into();
        match (code(&error), error.kind.as_ref()) {
            (Some(13), _) => Self::Privilege { attempted, source: error.into() },
            (Some(18), _) | (_, ErrorKind::Authentication { .. }) => Self::Authentication { source: error.into() },
            (_, ErrorKind::ServerSelection { message, .. }) => unselected(message.clone(), error),
            (_, ErrorKind::DnsResolve { .. } | ErrorKind::Io(_)) => Self::Unreachable { source: error.into() },
            _ => Self::Command { attempted, source: error.into() },
        }
    }
}

impl Source {
    /// Connects, and refuses a server the bridge cannot read from. Does not look at `database` yet.
    pub async fn open(url: &SecretString, database: &str) -> Result<Self, SourceError> {
        Self::unchecked(url, database).await?.checked().await
    }

    /// This, once its server is found to be one that the bridge can read from.
    pub async fn checked(self) -> Result<Self, SourceError> {
        let mut source = self;
        source.require_replica_set().await?;
        source.version = source.require_version().await?;
        Ok(source)
    }

    /// [`Source::open`] of a server that may be away: nothing is asked of it, and the oldest version is assumed.
    pub async fn unchecked(url: &SecretString, database: &str) -> Result<Self, SourceError> {
        Self::named(url, database, APPLICATION.to_owned()).await
    }

    /// [`Source::unchecked`] of process `id` of an application.
    pub async fn of_process(url: &SecretString, database: &str, id: Uuid) -> Result<Self, SourceError> {
        Self::named(url, database, format!("{APPLICATION} {database} {id}")).await
    }

    async fn named(url: &SecretString, database: &str, name: String) -> Result<Self, SourceError> {
        let mut options = options(url).await?;
        options.app_name = Some(name);
        let client = Client::with_options(options).map_err(|error| refused(url, &error))?;
        Ok(Self { database: client.database(database), client, version: OLDEST })
    }

    /// The connections.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The scheduler's database.
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// Whether change streams can be asked for the documents after their updates.
    pub fn has_post_images(&self) -> bool {
        self.version >= WITH_POST_IMAGES
    }

    /// The scheduler's collections that exist. A database with none of them is a wrong name, not an empty scheduler.
    pub async fn require_collections(&self) -> Result<Vec<String>, SourceError> {
        let mut found = self.collections().await?;
        found.retain(|name| ENTITIES.iter().any(|entity| entity.name == name));
        found.sort();
        if found.is_empty() {
            let databases = self.client.list_database_names().await.unwrap_or_default();
            return Err(SourceError::MissingDatabase { database: self.database.name().to_owned(), databases });
        }
        Ok(found)
    }

    async fn collections(&self) -> Result<Vec<String>, SourceError> {
        let attempted = || format!("list the collections of database {:?}", self.database.name());
        let refusal = match self.database.list_collection_names().await {
            Ok(names) => return Ok(names),
            Err(error) if code(&error) == Some(13) => error,
            Err(error) => return Err(SourceError::of(attempted(), error)),
        };
        // A user with rights on single collections may list those; a user with none gets an empty list.
        let allowed = self.database.list_collection_names().authorized_collections(true).await;
        let allowed = allowed.map_err(|error| SourceError::of(attempted(), error))?;
        if allowed.is_empty() { Err(SourceError::of(attempted(), refusal)) } else { Ok(allowed) }
    }

    async fn require_replica_set(&self) -> Result<(), SourceError> {
        self.run(doc! { "ping": 1 }, "ping MongoDB").await?;
        let hello = self.run(doc! { "hello": 1 }, "ask MongoDB for its replica set").await?;
        let is_mongos = hello.get_str("msg").is_ok_and(|message| message == "isdbgrid");
        match (hello.contains_key("setName") || is_mongos, hello.get_bool("isreplicaset")) {
            (true, _) => Ok(()),
            (false, Ok(true)) => Err(SourceError::Uninitiated),
            (false, _) => Err(SourceError::Standalone),
        }
    }

    async fn require_version(&self) -> Result<(i32, i32), SourceError> {
        let info = self.run(doc! { "buildInfo": 1 }, "ask MongoDB for its version").await?;
        let parts: Vec<i32> = info.get_array("versionArray").into_iter().flatten().filter_map(|n| n.as_i32()).collect();
        match parts.as_slice() {
            [major, minor, ..] if (*major, *minor) >= OLDEST => Ok((*major, *minor)),
            _ => {
                let version = info.get_str("version").unwrap_or("of an unknown version").to_owned();
                Err(SourceError::Version { version })
            }
        }
    }

    async fn run(&self, command: Document, attempted: &str) -> Result<Document, SourceError> {
        let answer = self.client.database("admin").run_command(command).await;
        answer.map_err(|error| SourceError::of(attempted, error))
    }
}

/// The server's code for an operation that was killed, by itself or with its session. Not transient: who kills what the
/// bridge does wants it to end.
pub const INTERRUPTED: i32 = 11_601;

/// Whether the same operation may succeed when tried again later.
///
/// Kept apart from the errors: this is the policy of who retries, not what happened.
pub fn transient(error: &Error) -> bool {
    let labelled = ["RetryableError", "RetryableWriteError", "TransientTransactionError", "ResumableChangeStreamError"]
        .iter()
        .any(|label| error.contains_label(label));
    labelled || transient_kind(&error.kind) || code(error).is_some_and(transient_code)
}

fn transient_kind(kind: &ErrorKind) -> bool {
    matches!(kind, ErrorKind::Io(_) | ErrorKind::ConnectionPoolCleared { .. } | ErrorKind::ServerSelection { .. })
}

/// Codes of the server's `error_codes.yml`.
fn transient_code(code: i32) -> bool {
    // 6, 7, 89, 9001: host unreachable, not found, network timeout, socket exception.
    const HOST: [i32; 4] = [6, 7, 89, 9001];
    // Shutting down, stepping down, no primary, still recovering, an election going on.
    const STATE: [i32; 9] = [91, 189, 216, 10058, 10107, 11600, 11602, 13435, 13436];
    // 43, 175, 237: cursor not found, plan killed, cursor killed. 134, 246: majority read or snapshot not available yet.
    const CURSOR: [i32; 5] = [43, 134, 175, 237, 246];
    // 112, 262, 462: write conflict, time limit of a step-down, too many requests.
    const LIMIT: [i32; 3] = [112, 262, 462];
    HOST.contains(&code) || STATE.contains(&code) || CURSOR.contains(&code) || LIMIT.contains(&code)
}

async fn options(url: &SecretString) -> Result<ClientOptions, SourceError> {
    let mut options = match ClientOptions::parse(url.expose_secret()).await {
        Ok(options) => options,
        Err(error) if matches!(*error.kind, ErrorKind::DnsResolve { .. }) => {
            return Err(SourceError::of("look up the hosts of the MongoDB URL", error));
        }
        Err(error) => return Err(refused(url, &error)),
    };
    options.server_selection_timeout.get_or_insert(SELECTION_WAIT);
    options.connect_timeout.get_or_insert(CONNECT_WAIT);
    Ok(options)
}

fn refused(url: &SecretString, error: &Error) -> SourceError {
    let reason = match error.kind.as_ref() {
        ErrorKind::InvalidArgument { message, .. } => message.clone(),
        kind => kind.to_string(),
    };
    SourceError::Url { reason: Secrets::of([url]).redact(&reason).into_owned() }
}

/// Why no server could be selected: the driver hides it in the text of its view of the servers.
fn unselected(message: String, error: Error) -> SourceError {
    let source = DriverError(error);
    if message.contains("SCRAM failure") || message.contains("AuthenticationFailed") {
        SourceError::Authentication { source }
    } else if message.contains("RsGhost") || message.contains("RSGhost") {
        SourceError::Uninitiated
    } else {
        SourceError::Unreachable { source }
    }
}

/// The server's code of an error, if it is the server's.
pub fn code(error: &Error) -> Option<i32> {
    match error.kind.as_ref() {
        ErrorKind::Command(error) => Some(error.code),
        ErrorKind::Write(WriteFailure::WriteConcernError(error)) => Some(error.code),
        ErrorKind::Write(WriteFailure::WriteError(error)) => Some(error.code),
        ErrorKind::InsertMany(error) => error.write_concern_error.as_ref().map(|error| error.code),
        _ => None,
    }
}

fn visible(databases: &[String]) -> String {
    if databases.is_empty() { String::new() } else { format!("; the server has {}", databases.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_bad_url_is_refused_without_its_password() {
        let bad = [
            "mongodb://me:hunt@er2@host:27017/",
            "mongodb://me:hunter2/zzzz@host:27017/",
            "mongodb://me:hunter2%zz@host/",
            "mongodb://me:hunter2@host:port/",
            "mongodb://me:hunter2@host/?w=hunter2",
            "postgres://me:hunter2@host/",
            "me:hunter2@host:27017",
        ];
        for url in bad {
            let text = match options(&SecretString::from(url)).await {
                Err(error) => error.to_string(),
                Ok(_) => continue,
            };
            assert!(text.starts_with("the MongoDB URL is not valid: ") && !text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn a_driver_error_is_told_without_the_command_and_the_labels() {
        let refusal = "not authorized on x to execute command { listCollections: 1, lsid: { id: UUID(\"9\") } }";
        assert_eq!(without_command(refusal), "not authorized on x to execute command listCollections");
        let view = "Servers: [ { Address: a:1, Error: Kind: I/O error: refused, labels: {\"Retry\"}, source: None, \
                    server response: None }, { Address: b:1 } ]";
        assert_eq!(without_labels(view), "Servers: [ { Address: a:1, Error: I/O error: refused }, { Address: b:1 } ]");
    }

    #[test]
    fn a_stepdown_is_transient_and_a_missing_privilege_is_not() {
        for code in [6, 43, 91, 189, 10107, 11602, 13436] {
            assert!(transient_code(code), "{code}");
        }
        for code in [13, 18, 26, 50, 59, 11601] {
            assert!(!transient_code(code), "{code}");
        }
    }
}
