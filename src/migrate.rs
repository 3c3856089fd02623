//! Brings the PostgreSQL schema up to date.
//!
//! The migrations of folder `migrations/` are part of the program. All that are missing run in **one transaction**, under
//! a transaction-level advisory lock: a run that fails or dies leaves nothing behind, several at once queue up, and a
//! connection pooler cannot lose the lock. The record of what was applied stands in schema `bridge`, apart from the
//! `_sqlx_migrations` that another program may keep in the same database.

use sha2::{Digest, Sha256};
use sqlx::migrate::{Migration, Migrator};
use sqlx::{Connection, PgConnection};

use crate::layout::Layout;

/// The record of applied migrations.
pub const TABLE: &str = "bridge._sqlx_migrations";

/// How long one run waits for another, and for any lock on a table it changes.
pub const LOCK_WAIT_SECONDS: u32 = 60;

/// The namespace of the advisory lock. Two versions of the program must agree on it.
const LOCK_NAMESPACE: &str = "scheduler.migrate.v1";

static EMBEDDED: Migrator = sqlx::migrate!("./migrations");

/// What a run did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Files applied by this run, in order.
    pub applied: Vec<String>,
    /// Files that had been applied before.
    pub before: Vec<String>,
}

/// Why the schema is not up to date.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// A migration has run in this database with another text than the program holds.
    #[error("migration {file} was changed after it had been applied to this database")]
    Changed {
        /// File name in `migrations/`.
        file: String,
    },
    /// The database has a migration this program does not know.
    #[error("the database has migration {version}, which this version of the program does not know")]
    Newer {
        /// The migration's number.
        version: i64,
    },
    /// Somebody marked a migration as failed; the program itself never leaves one behind.
    #[error("migration {version} is recorded as half applied in {TABLE}")]
    Dirty {
        /// The migration's number.
        version: i64,
    },
    /// The schema lacks migrations ([`check`] only).
    #[error("the schema is not up to date: missing {}", files.join(", "))]
    Pending {
        /// Files that have not been applied.
        files: Vec<String>,
    },
    /// `bridge finalize` has taken away what the migrations made, and the record of them.
    #[error("the move is over: PostgreSQL alone holds the scheduler's records, without what this command needs")]
    Over,
    /// Another run did not finish in time.
    #[error("another process has been migrating this database for more than {LOCK_WAIT_SECONDS} s")]
    Locked {
        /// The server's answer.
        source: sqlx::Error,
    },
    /// A migration's SQL was refused; nothing of the run remains.
    #[error("migration {file} failed and was rolled back")]
    Apply {
        /// File name in `migrations/`.
        file: String,
        /// The server's answer.
        source: sqlx::Error,
    },
    /// The bookkeeping could not be read or written.
    #[error("could not {attempted}")]
    Query {
        /// What was attempted.
        attempted: &'static str,
        /// The server's answer.
        source: sqlx::Error,
    },
}

impl MigrateError {
    /// The server's answer, when there is one.
    pub fn answer(&self) -> Option<&sqlx::Error> {
        match self {
            Self::Locked { source } | Self::Apply { source, .. } | Self::Query { source, .. } => Some(source),
            Self::Changed { .. } | Self::Newer { .. } | Self::Dirty { .. } | Self::Pending { .. } | Self::Over => None,
        }
    }
}

/// Applies what is missing. Changes nothing, and needs no privilege to create, when nothing is missing. Once the move is
/// over ([`MigrateError::Over`]) the tables are the scheduler's alone.
///
/// Cancel-safe: a dropped run is rolled back.
pub async fn run(connection: &mut PgConnection) -> Result<Applied, MigrateError> {
    run_with(&EMBEDDED, connection).await
}

/// Whether every migration has been applied, unchanged. Reads only.
///
/// Answers [`MigrateError::Pending`] when some have not, [`MigrateError::Over`] when there is nothing left of the move.
pub async fn check(connection: &mut PgConnection) -> Result<(), MigrateError> {
    let state = State::read(&EMBEDDED, connection).await?;
    if state.pending.is_empty() { Ok(()) } else { Err(MigrateError::Pending { files: state.pending }) }
}

/// Every migration of the program, by file name.
pub fn files() -> Vec<String> {
    EMBEDDED.iter().map(file).collect()
}

async fn run_with(migrator: &Migrator, connection: &mut PgConnection) -> Result<Applied, MigrateError> {
    let before = State::read(migrator, connection).await?;
    if before.pending.is_empty() {
        return Ok(Applied { applied: Vec::new(), before: before.applied });
    }
    let mut transaction = connection.begin().await.map_err(query("begin the migration's transaction"))?;
    lock(&mut transaction).await?;
    create_schema(&mut transaction).await?;
    // Another process may have done it all while this one waited for the lock.
    let before = State::read(migrator, &mut transaction).await?;
    apply(migrator, &mut transaction).await?;
    transaction.commit().await.map_err(query("commit the migrations"))?;
    Ok(Applied { applied: before.pending, before: before.applied })
}

/// Waits for the lock, and for every table lock after it, no longer than [`LOCK_WAIT_SECONDS`].
async fn lock(connection: &mut PgConnection) -> Result<(), MigrateError> {
    sqlx::query("select set_config('lock_timeout', $1, true)")
        .bind(format!("{LOCK_WAIT_SECONDS}s"))
        .execute(&mut *connection)
        .await
        .map_err(query("bound the wait for the migration lock"))?;
    match sqlx::query("select pg_advisory_xact_lock($1)").bind(lock_id()).execute(connection).await {
        Ok(_) => Ok(()),
        Err(source) if code(&source).as_deref() == Some("55P03") => Err(MigrateError::Locked { source }),
        Err(source) => Err(MigrateError::Query { attempted: "take the migration lock", source }),
    }
}

/// `create schema if not exists` asks for the privilege to create one even when it exists.
async fn create_schema(connection: &mut PgConnection) -> Result<(), MigrateError> {
    let absent: bool = sqlx::query_scalar("select to_regnamespace('bridge') is null")
        .fetch_one(&mut *connection)
        .await
        .map_err(query("look for schema bridge"))?;
    if absent {
        sqlx::query("create schema bridge").execute(connection).await.map_err(query("create schema bridge"))?;
    }
    Ok(())
}

async fn apply(migrator: &Migrator, connection: &mut PgConnection) -> Result<(), MigrateError> {
    let mut recorded = Migrator { migrations: migrator.migrations.clone(), ..Migrator::DEFAULT };
    recorded.set_locking(false);
    recorded.dangerous_set_table_name(TABLE);
    recorded.run_direct(None, connection, false).await.map_err(|error| explained(migrator, error))
}

fn explained(migrator: &Migrator, error: sqlx::migrate::MigrateError) -> MigrateError {
    use sqlx::migrate::MigrateError as Theirs;
    match error {
        Theirs::ExecuteMigration(source, version) => MigrateError::Apply { file: file_of(migrator, version), source },
        Theirs::VersionMismatch(version) => MigrateError::Changed { file: file_of(migrator, version) },
        Theirs::VersionMissing(version) => MigrateError::Newer { version },
        Theirs::Dirty(version) => MigrateError::Dirty { version },
        Theirs::Execute(source) => MigrateError::Query { attempted: "record the applied migrations", source },
        other => MigrateError::Query { attempted: "apply the migrations", source: sqlx::Error::Migrate(other.into()) },
    }
}

/// Which migrations the database has, each compared with the program's.
struct State {
    applied: Vec<String>,
    pending: Vec<String>,
}

impl State {
    async fn read(migrator: &Migrator, connection: &mut PgConnection) -> Result<Self, MigrateError> {
        let rows = Self::rows(connection).await?;
        if let Some(row) = rows.iter().find(|row| !row.success) {
            return Err(MigrateError::Dirty { version: row.version });
        }
        if let Some(row) = rows.iter().find(|row| !migrator.version_exists(row.version)) {
            return Err(MigrateError::Newer { version: row.version });
        }
        let mut state = Self { applied: Vec::new(), pending: Vec::new() };
        for migration in migrator.iter() {
            match rows.iter().find(|row| row.version == migration.version) {
                None => state.pending.push(file(migration)),
                Some(row) if row.checksum == *migration.checksum => state.applied.push(file(migration)),
                Some(_) => return Err(MigrateError::Changed { file: file(migration) }),
            }
        }
        Ok(state)
    }

    async fn rows(connection: &mut PgConnection) -> Result<Vec<Row>, MigrateError> {
        let attempted = "read which migrations the database has";
        let exists: bool = sqlx::query_scalar("select to_regclass($1) is not null")
            .bind(TABLE)
            .fetch_one(&mut *connection)
            .await
            .map_err(query(attempted))?;
        if !exists {
            return match Layout::of(connection).await.map_err(query(attempted))? {
                Layout::Moving => Ok(Vec::new()),
                Layout::Final => Err(MigrateError::Over),
            };
        }
        sqlx::query_as("select version, success, checksum from bridge._sqlx_migrations order by version")
            .fetch_all(connection)
            .await
            .map_err(query(attempted))
    }
}

#[derive(sqlx::FromRow)]
struct Row {
    version: i64,
    success: bool,
    checksum: Vec<u8>,
}

fn file(migration: &Migration) -> String {
    format!("{:04}_{}.sql", migration.version, migration.description.replace(' ', "_"))
}

fn file_of(migrator: &Migrator, version: i64) -> String {
    migrator.iter().find(|migration| migration.version == version).map_or_else(|| version.to_string(), file)
}

/// The id of the lock: the first 8 bytes, big-endian, of the SHA-256 of its namespace.
pub fn lock_id() -> i64 {
    let digest: [u8; 32] = Sha256::digest(LOCK_NAMESPACE).into();
    let [a, b, c, d, e, f, g, h, ..] = digest;
    i64::from_be_bytes([a, b, c, d, e, f, g, h])
}

fn code(error: &sqlx::Error) -> Option<std::borrow::Cow<'_, str>> {
    error.as_database_error().and_then(|error| error.code())
}

fn query(attempted: &'static str) -> impl FnOnce(sqlx::Error) -> MigrateError {
    move |source| MigrateError::Query { attempted, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_id_is_the_same_in_every_version() {
        assert_eq!(lock_id(), 8_482_317_552_795_134_751);
    }

    #[test]
    fn a_migration_is_named_as_its_file() {
        let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations")).unwrap();
        let mut names: Vec<String> = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(files(), names, "touch src/migrate.rs: a new file in migrations/ is not seen by the compiler");
    }
}
