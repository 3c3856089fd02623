//! Settings: the flag, else the environment, else the file, else the default. Each has the same name in all three.

use std::ffi::OsString;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::{Exit, Failure};
use crate::backend::BackendSettings;
use crate::backfill::{LEASE, Rate};
use crate::entity::{self, ENTITIES, Entity};
use crate::secret::{Secrets, has_password};

/// The file that is read when none is named, if it exists.
const FILE: &str = "bridge.toml";

/// The scheduler's database when none is named.
const MONGO_DATABASE: &str = "stellaops_scheduler";

/// Most workers when their number is not given; fewer on a machine with fewer processors.
const MOST_WORKERS: usize = 8;

/// What flags and environment say, for every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "For every command")]
pub(super) struct Given {
    /// Settings file, TOML [default: bridge.toml, if it exists]
    #[arg(long, env = "BRIDGE_CONFIG", hide_env_values = true, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where MongoDB is; a URL with a password only by environment or file [file: mongo-url]
    #[arg(long, env = "BRIDGE_MONGO_URL", hide_env_values = true, global = true, value_name = "URL")]
    #[arg(value_parser = secret)]
    mongo_url: Option<SecretString>,
    /// The scheduler's database in MongoDB [default: stellaops_scheduler] [file: mongo-database]
    #[arg(long, env = "BRIDGE_MONGO_DATABASE", hide_env_values = true, global = true, value_name = "NAME")]
    mongo_database: Option<String>,
    /// Where PostgreSQL is; a URL with a password only by environment or file [file: postgres-url]
    #[arg(long, env = "BRIDGE_POSTGRES_URL", hide_env_values = true, global = true, value_name = "URL")]
    #[arg(value_parser = secret)]
    postgres_url: Option<SecretString>,
}

/// How many workers a command may use.
#[derive(Debug, Default, Args)]
pub(super) struct Workers {
    /// How many workers run at once [default: one a processor, at most 8] [file: workers]
    #[arg(long, env = "BRIDGE_WORKERS", hide_env_values = true, value_name = "N")]
    workers: Option<NonZeroUsize>,
}

/// How long others wait for a process that may be dead.
#[derive(Debug, Default, Args)]
pub(super) struct Lease {
    /// How long work stays with a process that is not heard of [default: 15] [file: lease-seconds]
    #[arg(long, env = "BRIDGE_LEASE_SECONDS", hide_env_values = true, value_name = "N")]
    lease_seconds: Option<NonZeroU32>,
}

/// How fast a command may read.
#[derive(Debug, Default, Args)]
pub(super) struct Speed {
    /// Read at most this many documents a second, all workers together [file: documents-per-second]
    #[arg(long, env = "BRIDGE_DOCUMENTS_PER_SECOND", hide_env_values = true, value_name = "N")]
    documents_per_second: Option<NonZeroU32>,
    /// Read at most this many bytes a second, all workers together [file: bytes-per-second]
    #[arg(long, env = "BRIDGE_BYTES_PER_SECOND", hide_env_values = true, value_name = "N")]
    bytes_per_second: Option<NonZeroU64>,
}

/// How fast a command may read, and how long it waits for others.
#[derive(Debug, Default, Args)]
pub(super) struct Pace {
    #[command(flatten)]
    workers: Workers,
    #[command(flatten)]
    speed: Speed,
    /// Most bytes of one batch; batches are smaller where the servers are slow [file: batch-bytes]
    #[arg(long, env = "BRIDGE_BATCH_BYTES", hide_env_values = true, value_name = "N")]
    batch_bytes: Option<NonZeroU64>,
    /// Bytes of one chunk, the share of a collection that one worker takes at a time [file: chunk-bytes]
    #[arg(long, env = "BRIDGE_CHUNK_BYTES", hide_env_values = true, value_name = "N")]
    chunk_bytes: Option<NonZeroU32>,
    #[command(flatten)]
    pub lease: Lease,
    /// How long a lost connection is tried again without any progress [default: 60] [file: retry-seconds]
    #[arg(long, env = "BRIDGE_RETRY_SECONDS", hide_env_values = true, value_name = "N")]
    retry_seconds: Option<u32>,
}

/// What the file says. Its keys are the flags' names, beside the table of an application over both stores.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct File {
    mongo_url: Option<String>,
    mongo_database: Option<String>,
    postgres_url: Option<String>,
    workers: Option<NonZeroUsize>,
    documents_per_second: Option<NonZeroU32>,
    bytes_per_second: Option<NonZeroU64>,
    batch_bytes: Option<NonZeroU64>,
    chunk_bytes: Option<NonZeroU32>,
    lease_seconds: Option<NonZeroU32>,
    retry_seconds: Option<u32>,
    backend: BackendSettings,
}

/// The settings of every command, from all their places.
#[derive(Debug)]
pub struct Settings {
    mongo_url: Option<SecretString>,
    /// The scheduler's database in MongoDB.
    pub mongo_database: String,
    postgres_url: Option<SecretString>,
    config: Option<PathBuf>,
    file: File,
}

/// How fast a command may read, settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How many workers run at once.
    pub workers: NonZeroUsize,
    /// How fast all workers together may read.
    pub rate: Rate,
    /// Most bytes of one batch; the engine's default when absent.
    pub batch_bytes: Option<NonZeroU64>,
    /// Bytes of one chunk; the plan's default when absent.
    pub chunk_bytes: Option<NonZeroU32>,
    /// How long work stays with a process that is not heard of; the engine's default when absent.
    pub lease: Duration,
    /// How long a lost connection is tried again; the engine's default when absent.
    pub patience: Option<Duration>,
}

impl Given {
    /// Adds what the file and the defaults say.
    pub(super) fn settled(self) -> Result<Settings, Failure> {
        let mut file = read(self.config.as_deref())?;
        let url = |given: Option<SecretString>, file: Option<String>| {
            given.or(file.map(SecretString::from)).filter(|url| !url.expose_secret().is_empty())
        };
        let database = self.mongo_database.filter(|name| !name.is_empty());
        Ok(Settings {
            mongo_url: url(self.mongo_url, file.mongo_url.take()),
            mongo_database: database.or(file.mongo_database.take()).unwrap_or_else(|| MONGO_DATABASE.to_owned()),
            postgres_url: url(self.postgres_url, file.postgres_url.take()),
            config: self.config,
            file,
        })
    }
}

impl Settings {
    /// Settings for these stores, with every other at its default.
    pub(super) fn of_stores(mongo_url: String, postgres_url: String, database: &str) -> Self {
        Self {
            mongo_url: Some(mongo_url.into()),
            mongo_database: database.to_owned(),
            postgres_url: Some(postgres_url.into()),
            config: None,
            file: File::default(),
        }
    }

    /// Where MongoDB is.
    pub fn mongo_url(&self) -> Result<&SecretString, Failure> {
        let example = "mongodb://user:password@host:27017/?replicaSet=rs0";
        self.mongo_url.as_ref().ok_or_else(|| missing("MongoDB", "mongo-url", "BRIDGE_MONGO_URL", example))
    }

    /// Where PostgreSQL is.
    pub fn postgres_url(&self) -> Result<&SecretString, Failure> {
        let example = "postgres://user:password@host:5432/database";
        self.postgres_url.as_ref().ok_or_else(|| missing("PostgreSQL", "postgres-url", "BRIDGE_POSTGRES_URL", example))
    }

    /// How an application uses both stores.
    pub fn backend(&self) -> BackendSettings {
        self.file.backend
    }

    /// The same as the file says it now.
    pub fn backend_again(&self) -> Result<BackendSettings, Failure> {
        Ok(read(self.config.as_deref())?.backend)
    }

    /// What must not be printed.
    pub fn secrets(&self) -> Secrets {
        Secrets::of(self.mongo_url.iter().chain(&self.postgres_url))
    }
}

impl Workers {
    /// The number of workers, from all its places.
    pub(super) fn settled(&self, settings: &Settings) -> NonZeroUsize {
        let processors =
            || std::thread::available_parallelism().map_or(1, |processors| processors.get().min(MOST_WORKERS));
        let given = self.workers.or(settings.file.workers);
        given.or_else(|| NonZeroUsize::new(processors())).unwrap_or(NonZeroUsize::MIN)
    }
}

impl Speed {
    /// The rate, from all its places.
    pub(super) fn settled(&self, settings: &Settings) -> Rate {
        let documents = self.documents_per_second.or(settings.file.documents_per_second);
        let bytes = self.bytes_per_second.or(settings.file.bytes_per_second);
        Rate { documents: documents.map(NonZeroU32::into), bytes }
    }
}

impl Lease {
    /// The lease, from all its places.
    pub(super) fn settled(&self, settings: &Settings) -> Duration {
        let given = self.lease_seconds.or(settings.file.lease_seconds);
        given.map_or(LEASE, |lease| seconds(lease.get()))
    }
}

impl Pace {
    /// The limits, from all their places.
    pub(super) fn settled(&self, settings: &Settings) -> Limits {
        Limits {
            workers: self.workers.settled(settings),
            rate: self.speed.settled(settings),
            batch_bytes: self.batch_bytes.or(settings.file.batch_bytes),
            chunk_bytes: self.chunk_bytes.or(settings.file.chunk_bytes),
            lease: self.lease.settled(settings),
            patience: self.retry_seconds.or(settings.file.retry_seconds).map(seconds),
        }
    }
}

fn seconds(number: u32) -> Duration {
    Duration::from_secs(number.into())
}

/// A URL with a password in the command line is visible to every user of the machine (`ps`).
///
/// Looks at the raw arguments: a misplaced URL must not be repeated by the parser's own error either.
pub(super) fn refuse_passwords(arguments: &[OsString]) -> Result<(), Failure> {
    let is_open =
        |argument: &&OsString| argument.to_string_lossy().contains("://") && has_password(&argument.to_string_lossy());
    let Some(url) = arguments.iter().skip(1).find(is_open) else { return Ok(()) };
    let postgres = url.to_string_lossy().contains("postgres");
    let (key, variable) =
        if postgres { ("postgres-url", "BRIDGE_POSTGRES_URL") } else { ("mongo-url", "BRIDGE_MONGO_URL") };
    Err(Failure::new(Exit::Usage, "the command line holds a password: every user of this machine can see it")
        .hint(format!("set {variable}, or {key} in {FILE} (readable by you alone), and change the password")))
}

/// A parser for the names of the eleven collections; its error lists them.
pub(super) fn collection() -> impl TypedValueParser<Value = &'static Entity> {
    let names = PossibleValuesParser::new(ENTITIES.iter().map(|entity| entity.name));
    names.try_map(|name| entity::named(&name).ok_or("unknown collection"))
}

/// The names of the file's settings, sorted, without those of the table.
#[cfg(test)]
pub(super) fn keys() -> Vec<String> {
    let refusal = toml::from_str::<File>("nonsense = 1").unwrap_err();
    let names = refusal.message().split('`').skip(3).step_by(2).filter(|name| *name != "backend");
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort();
    names
}

fn read(named: Option<&Path>) -> Result<File, Failure> {
    let path = named.unwrap_or(Path::new(FILE));
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => return Ok(File::default()),
        Err(error) => {
            return Err(Failure::new(Exit::Usage, format!("could not read {}: {error}", path.display()))
                .hint("correct --config or BRIDGE_CONFIG"));
        }
    };
    toml::from_str(&text).map_err(|error| refused(path, &text, &error))
}

/// The parser's own text repeats the line, which may hold a password.
fn refused(path: &Path, text: &str, error: &toml::de::Error) -> Failure {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let urls: Vec<SecretString> =
        text.lines().map(|line| SecretString::from(line.trim_end_matches(['"', '\'']))).collect();
    let reason = Secrets::of(&urls).redact(error.message()).into_owned();
    Failure::new(Exit::Usage, format!("{}, line {line}: {reason}", path.display()))
        .hint("a line looks like mongo-database = \"name\"; `bridge --help` shows the settings as [file: …]")
}

fn missing(server: &str, key: &str, variable: &str, example: &str) -> Failure {
    Failure::new(Exit::Usage, format!("it is not said where {server} is"))
        .hint(format!("set {variable}, or {key} in {FILE}, to a URL like {example}"))
}

fn secret(text: &str) -> Result<SecretString, std::convert::Infallible> {
    Ok(SecretString::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(arguments: &[&str]) -> Option<String> {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        refuse_passwords(&arguments).err().map(|failure| failure.hint.unwrap())
    }

    #[test]
    fn a_password_in_the_command_line_is_refused_wherever_it_stands() {
        let refused = |arguments: &[&str], variable: &str| assert!(refusal(arguments).unwrap().contains(variable));
        refused(&["bridge", "migrate", "--postgres-url", "postgres://me:hunter2@host/db"], "BRIDGE_POSTGRES_URL");
        refused(&["bridge", "--mongo-url=mongodb://me:hunter2@host", "verify"], "BRIDGE_MONGO_URL");
        refused(&["bridge", "mongodb://me:hunter2@host"], "BRIDGE_MONGO_URL");
        refused(&["bridge", "--postgres-url=postgres://host/db?password=hunter2"], "BRIDGE_POSTGRES_URL");
        assert_eq!(refusal(&["bridge", "migrate", "--postgres-url", "postgres://me@host:5432/db"]), None);
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_known_ones() {
        let text = "workers = 2\nmongo-uri = \"mongodb://me:hunter2@host\"\n";
        let failure = refused(Path::new("bridge.toml"), text, &toml::from_str::<File>(text).unwrap_err());
        assert!(failure.message.starts_with("bridge.toml, line 2: unknown field `mongo-uri`"), "{}", failure.message);
        assert!(keys().iter().all(|key| failure.message.contains(key.as_str())), "{}", failure.message);
    }

    #[test]
    fn a_bad_value_of_the_table_is_refused_with_its_line_its_key_and_what_it_takes() {
        let text = "workers = 2\n[backend]\nlease-seconds = 5\nmirror-deadline-milliseconds = 0\n";
        let failure = refused(Path::new("bridge.toml"), text, &toml::from_str::<File>(text).unwrap_err());
        let expected = "bridge.toml, line 4: invalid value: integer `0`, expected mirror-deadline-milliseconds to be \
                        a whole number from 1 to 60000";
        assert_eq!(failure.message, expected);
        let text = "[backend]\nphase-source = \"mongodb://me:hunter2@host\"\n";
        let failure = refused(Path::new("bridge.toml"), text, &toml::from_str::<File>(text).unwrap_err());
        assert!(failure.message.ends_with("expected phase-source to be mongodb or postgresql"), "{}", failure.message);
        assert!(!failure.message.contains("hunter2"), "{}", failure.message);
    }

    #[test]
    fn a_broken_file_is_refused_without_its_password() {
        for text in ["mongo-url = \"mongodb://me:hunter2@host", "workers = \"mongodb://me:hunter2@host\""] {
            let failure = refused(Path::new("bridge.toml"), text, &toml::from_str::<File>(text).unwrap_err());
            assert!(!failure.message.contains("hunter2"), "{}", failure.message);
        }
    }
}
